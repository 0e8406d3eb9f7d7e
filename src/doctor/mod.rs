//! `nftproxyd doctor`: what on this node keeps Services from working, or may, and what to do about it. It looks, and
//! changes nothing: kernel features are tried in a network namespace that goes with the trial.

mod daemon;
mod nft;
mod proc_files;
mod protection;
mod tables;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;

use anyhow::anyhow;
use nix::sched::{CloneFlags, unshare};

use crate::config::Conntrack;
use crate::leftovers;
use crate::nftables::LinuxKernel;
use crate::threads;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Fine,
    /// It may be meant so, or hurt only some traffic.
    Doubtful,
    /// Services do not work with this.
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub grade: Grade,
    /// What was found.
    pub what: String,
    /// What an administrator can type or do about it; empty where nothing is to be done.
    pub fix: String,
}

impl Finding {
    fn fine(what: impl Into<String>) -> Finding {
        Finding { grade: Grade::Fine, what: what.into(), fix: String::new() }
    }

    fn doubtful(what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { grade: Grade::Doubtful, what: what.into(), fix: fix.into() }
    }

    fn wrong(what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { grade: Grade::Wrong, what: what.into(), fix: fix.into() }
    }
}

/// Looks at everything. The daemon is asked at its metrics port, files of the kernel are read below `root`; nftables are
/// those of this network namespace. `mark` is the bit that we mark packets with. The first finding is about the daemon.
pub fn examine(metrics: SocketAddr, root: &Path, conntrack: &Conntrack, mark: u32) -> Vec<Finding> {
    let mut findings = daemon::ask(metrics);
    findings.push(features());
    findings.extend(proc_files::forwarding(root));
    findings.extend(proc_files::reverse_path_filter(root));
    findings.extend(proc_files::bridges(root));
    findings.extend(proc_files::connections(root, conntrack));
    findings.extend(proc_files::leftovers(root));
    // Who may not ask is told so below.
    findings.extend(protection::ask().unwrap_or_default());
    findings.extend(nft::ask());
    match leftovers::tables::list_with_rules(mark) {
        Ok(listed) => findings.extend(tables::judge(&listed)),
        Err(error) => findings.push(Finding::doubtful(
            format!("the tables of others cannot be listed: {error}"),
            "run as root, or with CAP_NET_ADMIN",
        )),
    }
    findings
}

/// The findings as text: the first as it stands, and then the gravest last, where a reader's eye is.
pub fn report(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    if let Some((_, others)) = sorted.split_first_mut() {
        others.sort_by_key(|finding| finding.grade);
    }
    let mut text = String::new();
    for finding in sorted {
        let grade = match finding.grade {
            Grade::Fine => "ok     ",
            Grade::Doubtful => "check  ",
            Grade::Wrong => "WRONG  ",
        };
        let _ = writeln!(text, "{grade}{}", finding.what);
        if !finding.fix.is_empty() {
            let _ = writeln!(text, "       fix: {}", finding.fix);
        }
    }
    text
}

/// Tries what the tables need in a network namespace of its own; where none may be made (it takes `CAP_SYS_ADMIN`), in a
/// transaction that the kernel only checks.
fn features() -> Finding {
    let open = || LinuxKernel::open().map_err(anyhow::Error::from);
    let apart = thread::scope(|scope| {
        let trial = || unshare(CloneFlags::CLONE_NEWNET).ok().map(|()| Ok(open()?.try_for_good()?));
        match threads::spawn_scoped(scope, "trial", trial) {
            Ok(trial) => trial.join().unwrap_or_else(|_| Some(Err(anyhow!("the trial has failed")))),
            // Without a namespace it is only checked.
            Err(_) => None,
        }
    });
    let where_tried = if apart.is_some() { "tried in a network namespace of its own" } else { "checked, not tried" };
    match apart.unwrap_or_else(|| Ok(open()?.probe()?)) {
        Ok(()) => Finding::fine(format!("the kernel has every feature of nftables that is needed ({where_tried})")),
        Err(error) => Finding::wrong(
            format!("the kernel cannot hold the tables: {error:#}"),
            "run as root or with CAP_NET_ADMIN, on Linux 5.10 or later; load what is missing, such as: \
             modprobe -a nf_tables nft_chain_nat nft_nat nft_masq nft_numgen nft_fib_ipv4 nft_fib_ipv6 nft_reject_inet",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::netns::has;
    use crate::testing::{in_network_namespace, run};

    /// Where nobody listens, in a namespace of the test's own.
    const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);

    #[test]
    fn a_report_names_the_gravest_last() {
        let first = Finding::doubtful("f", "do g");
        let findings = [first, Finding::wrong("a", "do b"), Finding::fine("c"), Finding::doubtful("d", "do e")];
        let expected = "check  f\n       fix: do g\nok     c\ncheck  d\n       fix: do e\nWRONG  a\n       fix: do b\n";
        assert_eq!(report(&findings), expected);
    }

    #[test]
    fn a_bare_node_is_examined_and_mended() {
        if !has(&["sysctl"]) {
            return;
        }
        in_network_namespace(|| {
            let of = |grade| {
                let findings = examine(METRICS, Path::new("/"), &Conntrack::default(), 0x4000);
                findings.into_iter().filter(|finding| finding.grade == grade).map(|finding| finding.what).collect()
            };
            run(&["sysctl", "-q", "-w", "net.ipv4.ip_forward=0"]);
            let fine: Vec<String> = of(Grade::Fine);
            assert!(fine.iter().any(|what| what.contains("every feature of nftables")), "{fine:?}");
            let wrong: Vec<String> = of(Grade::Wrong);
            assert_eq!(wrong, ["IPv4 packets are not forwarded"]);
            run(&["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]);
            assert_eq!(of(Grade::Wrong), [] as [&str; 0]);

            run(&["nft", "add table ip kube-proxy; add table ip6 kube-proxy"]);
            run(&["nft", "add table ip nat; add chain ip nat KUBE-SVC-ABC; add chain ip nat KUBE-KUBELET-CANARY"]);
            run(&[
                "nft",
                "add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; }",
            ]);
            let doubtful: Vec<String> = of(Grade::Doubtful);
            let wrong: Vec<String> = of(Grade::Wrong);
            let has = |list: &[String], text: &str| list.iter().any(|what| what.contains(text));
            assert!(has(&wrong, "table ip kube-proxy, table ip6 kube-proxy"), "{wrong:?}");
            assert!(has(&wrong, "KUBE-SVC-ABC") && !has(&wrong, "KUBELET"), "{wrong:?}");
            assert!(has(&doubtful, "chain inet fw f drops what no rule accepts"), "{doubtful:?}");
        });
    }

    #[test]
    fn what_is_advised_for_a_chain_that_drops_can_be_typed() {
        in_network_namespace(|| {
            let mut advised = 0;
            for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
                for family in ["ip", "ip6", "inet"] {
                    run(&["nft", &format!("add table {family} fw")]);
                    let chain = format!("{family} fw c {{ type filter hook {hook} priority 0; policy drop; }}");
                    run(&["nft", &format!("add chain {chain}")]);
                    let findings = examine(METRICS, Path::new("/"), &Conntrack::default(), 0x4000);
                    let drops = format!("chain {family} fw c drops what no rule accepts, at hook {hook}");
                    let finding = findings.iter().find(|finding| finding.what == drops).expect("it is found");
                    for command in finding.fix.split("nft ").skip(1) {
                        run(&["nft", command.split(';').next().unwrap_or(command)]);
                        advised += 1;
                    }
                    run(&["nft", &format!("delete table {family} fw")]);
                }
            }
            assert_eq!(advised, 3 * (3 + 2 + 1 + 1 + 1));
        });
    }
}
