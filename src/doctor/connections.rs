//! Is there room for connections, and have any been lost?

use std::path::Path;

use super::{Finding, Subject};
use crate::leftovers::NET;
use crate::sysctl::{Tracked, picks_up, read_text, tracked};

/// Of the limit, in percent: above it, connections are likely to be refused at the next peak.
const FULL: u64 = 90;

/// Is there room for connections, and have any been lost?
/// `wanted` is the limit that is configured; 0 leaves it alone.
pub(super) fn connections(root: &Path, wanted: u64) -> Vec<Finding> {
    let Ok(Tracked { count, max }) = tracked(root) else {
        return vec![Finding::unread(
            Subject::Connections,
            "the kernel does not say how many connections it tracks",
            "modprobe nf_conntrack; it is loaded with the first table otherwise",
        )];
    };
    let more = (max.max(1) * 2).to_string();
    let room = format!("{count} of {max} connections are tracked");
    let mut findings = vec![if count * 100 >= max * FULL {
        Finding::wrong(
            Subject::Connections,
            format!("{room}: new ones are dropped when it is full"),
            format!("sysctl -w net.netfilter.nf_conntrack_max={more}, and set conntrack.min to it"),
        )
    } else {
        Finding::ok(Subject::Connections, room)
    }];
    if wanted > max {
        findings.push(
            Finding::check(
                Subject::Connections,
                format!("the limit of tracked connections is {max}, not {wanted} as configured"),
                format!("sysctl -w net.netfilter.nf_conntrack_max={wanted}"),
            )
            .proof(format!("net.netfilter.nf_conntrack_max = {max}")),
        );
    }
    let statistics = read_text(&root.join(NET).join("stat/nf_conntrack")).unwrap_or_default();
    let lost: Vec<_> = [
        ("drop", "packets were dropped because the table was full"),
        ("early_drop", "connections were given up to make room"),
        ("insert_failed", "connections lost the race for an address and port, or for their place in the table"),
    ]
    .into_iter()
    .filter_map(|(column, meaning)| match sum_of_column(&statistics, column) {
        Some(0) | None => None,
        Some(sum) => Some(format!("{sum} {meaning}")),
    })
    .collect();
    if !lost.is_empty() {
        findings.push(Finding::note(
            Subject::Connections,
            format!("since the kernel began to track connections: {}", lost.join("; ")),
            format!("if conntrack -S counts on: sysctl -w net.netfilter.nf_conntrack_max={more}"),
        ));
    }
    findings
}

/// Where connections to endpoints that are gone are to be reset: would the kernel let anybody do it?
pub(super) fn resets(root: &Path) -> Option<Finding> {
    let found = || {
        Finding::check(
            Subject::Connections,
            "open connections to endpoints that are gone are not reset, as a Service asks for: the kernel takes up none in the middle",
            "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1",
        )
        .proof("net.netfilter.nf_conntrack_tcp_loose = 0")
    };
    (!picks_up(root)).then(found)
}

/// The sum over all CPUs of a column of `/proc/net/stat/nf_conntrack`, whose numbers are hexadecimal.
fn sum_of_column(text: &str, column: &str) -> Option<u64> {
    let mut lines = text.lines();
    let position = lines.next()?.split_whitespace().position(|name| name == column)?;
    lines.map(|line| u64::from_str_radix(line.split_whitespace().nth(position)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::super::testing::grades;
    use super::*;
    use crate::testing::root;

    const STATISTICS: &str = "entries clashres insert_failed drop early_drop\n\
                              00000001 00000000 0000000f 00000000 00000001\n\
                              00000001 00000000 00000001 00000000 00000001\n";

    #[test]
    fn lost_connections_are_counted() {
        for (column, expected) in [("insert_failed", Some(16)), ("drop", Some(0)), ("early_drop", Some(2)), ("x", None)]
        {
            assert_eq!(sum_of_column(STATISTICS, column), expected, "{column}");
        }
        assert_eq!(sum_of_column("", "drop"), None);
    }

    #[test]
    fn resets_need_a_kernel_that_takes_up_connections() {
        for (loose, expected) in [("1", vec![]), ("0", vec![Grade::Check])] {
            let root = root(&[("proc/sys/net/netfilter/nf_conntrack_tcp_loose", loose)]);
            let findings: Vec<Finding> = resets(root.path()).into_iter().collect();
            assert_eq!(grades(&findings), expected, "{findings:?}");
        }
    }

    #[test]
    fn a_full_table_is_wrong() {
        use Grade::*;
        let cases = [
            ("10", "1000", "", vec![Ok]),
            ("900", "1000", "", vec![Wrong]),
            ("10", "999", "", vec![Ok, Check]),
            ("10", "1000", STATISTICS, vec![Ok, Note]),
        ];
        for (count, max, statistics, expected) in cases {
            let root = root(&[
                ("proc/sys/net/netfilter/nf_conntrack_count", count),
                ("proc/sys/net/netfilter/nf_conntrack_max", max),
                ("proc/thread-self/net/stat/nf_conntrack", statistics),
            ]);
            let findings = connections(root.path(), 1000);
            assert_eq!(grades(&findings), expected, "{count} {max}: {findings:?}");
        }
    }
}
