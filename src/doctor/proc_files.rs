//! What files of the kernel say: forwarding, filters of routing, tracked connections, IPVS and legacy iptables.

use std::fs;
use std::path::Path;

use super::Finding;
use crate::config::Conntrack;
use crate::leftovers::NET;
use crate::sysctl::{NETFILTER, cpus, limit, read_number, read_text};

const IPV4: &str = "proc/sys/net/ipv4";
const IPV6: &str = "proc/sys/net/ipv6";
const BRIDGE: &str = "proc/sys/net/bridge";

/// Of the limit, in percent: above it, connections are likely to be refused at the next peak.
const FULL: u64 = 90;

/// Are packets for others passed on?
pub(super) fn forwarding(root: &Path) -> Vec<Finding> {
    let unknown = |family: &str, name: &str| {
        Finding::doubtful(format!("nobody can tell whether {family} packets are forwarded"), format!("sysctl {name}"))
    };
    let is = |path: &str, value| read_number(&root.join(path)).ok().map(|found| found == value);
    let v4 = match is(&format!("{IPV4}/ip_forward"), 1) {
        Some(false) => Finding::wrong("IPv4 packets are not forwarded", "sysctl -w net.ipv4.ip_forward=1"),
        Some(true) => Finding::fine("IPv4 packets are forwarded"),
        None => unknown("IPv4", "net.ipv4.ip_forward"),
    };
    let mut findings = vec![v4];
    let has_v6 = is(&format!("{IPV6}/conf/all/disable_ipv6"), 0) == Some(true);
    if has_v6 {
        findings.push(match is(&format!("{IPV6}/conf/all/forwarding"), 0) {
            Some(true) => Finding::doubtful(
                "IPv6 packets are not forwarded: IPv6 Services do not work for pods and clients outside",
                "where there are IPv6 Services: sysctl -w net.ipv6.conf.all.forwarding=1",
            ),
            Some(false) => Finding::fine("IPv6 packets are forwarded"),
            None => unknown("IPv6", "net.ipv6.conf.all.forwarding"),
        });
    }
    findings
}

/// Which interfaces drop packets whose way back is another?
pub(super) fn reverse_path_filter(root: &Path) -> Vec<Finding> {
    let folder = root.join(IPV4).join("conf");
    let of = |name: &str| read_number(&folder.join(name).join("rp_filter")).unwrap_or(0);
    let all = of("all");
    let mut strict: Vec<String> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !["all", "default", "lo"].contains(&name.as_str()))
        // The higher of the two is in force.
        .filter(|name| of(name).max(all) == 1)
        .collect();
    strict.sort();
    if strict.is_empty() {
        return vec![Finding::fine("no interface filters by reverse path strictly")];
    }
    let commands: Vec<_> =
        strict.iter().map(|name| format!("net.ipv4.conf.{}.rp_filter=2", name.replace('.', "/"))).collect();
    vec![Finding::doubtful(
        format!(
            "{} filter by reverse path strictly: where a client's way back is another interface, its packets are dropped",
            strict.join(", ")
        ),
        format!("sysctl -w {}", commands.join(" ")),
    )]
}

/// Do packets between ports of one bridge meet connection tracking?
pub(super) fn bridges(root: &Path) -> Vec<Finding> {
    let name = |family: &str| format!("bridge-nf-call-{family}tables");
    let off = |family: &str| read_number(&root.join(BRIDGE).join(name(family))).is_ok_and(|value| value == 0);
    let off: Vec<_> = ["ip", "ip6"]
        .into_iter()
        .filter(|family| off(family))
        .map(|family| format!("net.bridge.{}=1", name(family)))
        .collect();
    if off.is_empty() {
        return Vec::new();
    }
    vec![Finding::doubtful(
        "packets between ports of a Linux bridge do not meet connection tracking: where pods share a bridge, a pod that \
         reaches its neighbour through a Service gets the answer from the wrong address",
        format!("where pods share a bridge: sysctl -w {}", off.join(" ")),
    )]
}

/// Is there room for connections, and have any been lost?
pub(super) fn connections(root: &Path, wanted: &Conntrack) -> Vec<Finding> {
    let read = |name: &str| read_number(&root.join(NETFILTER).join(name)).ok();
    let (Some(count), Some(max)) = (read("nf_conntrack_count"), read("nf_conntrack_max")) else {
        return vec![Finding::doubtful(
            "the kernel does not say how many connections it tracks",
            "modprobe nf_conntrack; it is loaded with the first table otherwise",
        )];
    };
    let more = (max.max(1) * 2).to_string();
    let room = format!("{count} of {max} connections are tracked");
    let mut findings = vec![if count * 100 >= max * FULL {
        Finding::wrong(
            format!("{room}: new ones are dropped when it is full"),
            format!("sysctl -w net.netfilter.nf_conntrack_max={more}, and set conntrack.min to it"),
        )
    } else {
        Finding::fine(room)
    }];
    if let Some(limit) = limit(wanted, cpus(root))
        && u64::from(limit.connections) > max
    {
        findings.push(Finding::doubtful(
            format!("the limit of tracked connections is {max}, not {} as configured", limit.connections),
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", limit.connections),
        ));
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
        findings.push(Finding::doubtful(
            format!("since the kernel began to track connections: {}", lost.join("; ")),
            format!("if conntrack -S counts on: sysctl -w net.netfilter.nf_conntrack_max={more}"),
        ));
    }
    findings
}

/// The sum over all CPUs of a column of `/proc/net/stat/nf_conntrack`, whose numbers are hexadecimal.
fn sum_of_column(text: &str, column: &str) -> Option<u64> {
    let mut lines = text.lines();
    let position = lines.next()?.split_whitespace().position(|name| name == column)?;
    lines.map(|line| u64::from_str_radix(line.split_whitespace().nth(position)?, 16).ok()).sum()
}

/// What IPVS and iptables of old have left behind. Those of iptables-nft are among the tables.
pub(super) fn leftovers(root: &Path) -> Vec<Finding> {
    let text = |name: &str| read_text(&root.join(NET).join(name)).unwrap_or_default();
    let mut findings = Vec::new();
    let virtual_servers = text("ip_vs").lines().filter(|line| is_virtual_server(line)).count();
    let devices = text("dev");
    let has_device = devices.lines().any(|line| line.trim_start().starts_with("kube-ipvs0:"));
    if virtual_servers > 0 || has_device {
        let device = if has_device { ", interface kube-ipvs0" } else { "" };
        findings.push(Finding::wrong(
            format!("IPVS of kube-proxy answers for Services: {virtual_servers} virtual servers{device}"),
            "when nftproxyd is in sync and kube-proxy stopped: nftproxyd cleanup --kube-proxy",
        ));
    }
    for (file, tool) in [("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy")] {
        let tables: Vec<String> = text(file).lines().map(str::to_owned).collect();
        if !tables.is_empty() {
            findings.push(Finding::doubtful(
                format!("{tool} is in use ({}): only its own tool can say whether by kube-proxy", tables.join(", ")),
                format!(
                    "if {tool}-save | grep -E 'KUBE-(SVC|SEP|SERVICES)' prints anything: nftproxyd cleanup --kube-proxy"
                ),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::fine("there is nothing of kube-proxy in IPVS and legacy iptables"));
    }
    findings
}

fn is_virtual_server(line: &str) -> bool {
    ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    fn grades(findings: &[Finding]) -> Vec<Grade> {
        findings.iter().map(|finding| finding.grade).collect()
    }

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
    fn forwarding_is_needed() {
        use Grade::*;
        let cases = [
            ("1", "0", "1", vec![Fine, Fine]),
            ("?", "0", "?", vec![Doubtful, Doubtful]),
            ("0", "0", "0", vec![Wrong, Doubtful]),
            ("1", "1", "0", vec![Fine]),
        ];
        for (v4, disabled, v6, expected) in cases {
            let root = root(&[
                ("proc/sys/net/ipv4/ip_forward", v4),
                ("proc/sys/net/ipv6/conf/all/disable_ipv6", disabled),
                ("proc/sys/net/ipv6/conf/all/forwarding", v6),
            ]);
            assert_eq!(grades(&forwarding(root.path())), expected, "{v4} {disabled} {v6}");
        }
    }

    #[test]
    fn strict_interfaces_are_named() {
        let conf = |name: &str| format!("proc/sys/net/ipv4/conf/{name}/rp_filter");
        let files =
            [(conf("all"), "0"), (conf("lo"), "1"), (conf("eth0"), "1"), (conf("eth1.7"), "1"), (conf("eth2"), "2")];
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let findings = reverse_path_filter(root(&files).path());
        assert!(findings[0].what.starts_with("eth0, eth1.7 filter"), "{findings:?}");
        assert_eq!(findings[0].fix, "sysctl -w net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf.eth1/7.rp_filter=2");
    }

    #[test]
    fn a_full_table_is_wrong() {
        use Grade::*;
        let wanted = Conntrack { max_per_core: Some(100), min: Some(1000), ..Conntrack::default() };
        let cases = [
            ("10", "1000", "", vec![Fine]),
            ("900", "1000", "", vec![Wrong]),
            ("10", "999", "", vec![Fine, Doubtful]),
            ("10", "1000", STATISTICS, vec![Fine, Doubtful]),
        ];
        for (count, max, statistics, expected) in cases {
            let root = root(&[
                ("sys/devices/system/cpu/online", "0"),
                ("proc/sys/net/netfilter/nf_conntrack_count", count),
                ("proc/sys/net/netfilter/nf_conntrack_max", max),
                ("proc/thread-self/net/stat/nf_conntrack", statistics),
            ]);
            let findings = connections(root.path(), &wanted);
            assert_eq!(grades(&findings), expected, "{count} {max}: {findings:?}");
        }
    }

    #[test]
    fn leftovers_of_other_modes_are_named() {
        let ipvs = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n\
                    \x20 -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                    TCP  AC1E0001:01BB rr\n  -> C0000201:192B      Masq    1      0          0\n";
        let root_of_ipvs = root(&[
            ("proc/thread-self/net/ip_vs", ipvs),
            ("proc/thread-self/net/dev", "  lo: 0\nkube-ipvs0: 0 0\n"),
            ("proc/thread-self/net/ip_tables_names", "nat\nfilter\n"),
        ]);
        let findings = leftovers(root_of_ipvs.path());
        assert!(findings[0].what.ends_with("1 virtual servers, interface kube-ipvs0"), "{findings:?}");
        assert!(findings[1].what.starts_with("iptables-legacy is in use (nat, filter)"), "{findings:?}");
        assert_eq!(grades(&leftovers(root(&[]).path())), [Grade::Fine]);
        let off = root(&[
            ("proc/sys/net/bridge/bridge-nf-call-iptables", "0"),
            ("proc/sys/net/bridge/bridge-nf-call-ip6tables", "1"),
        ]);
        assert!(bridges(off.path())[0].fix.ends_with("sysctl -w net.bridge.bridge-nf-call-iptables=1"));
    }
}
