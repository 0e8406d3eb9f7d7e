//! `nftproxyd doctor`: what on this node keeps Services from working, or may, and what to do about it. It looks, and
//! changes nothing: kernel features are tried in a network namespace that goes with the trial.
//!
//! * `finding`: what was found, how much it matters, and the exit status. Pure.
//! * `daemon`, `own_tables`, `protection`: the daemon, what it follows, and its tables. `served`: what is in them.
//! * `forwarding`, `bridges`, `connections`, `route`: what packets need of the kernel.
//! * `tables`, `raw`, `kube_proxy`: rules of others, and what kube-proxy has left.
//! * `listeners`: processes that listen where Services are. `nft`: what the nft of the host makes of the tables.
//!
//! What cannot be read is never taken for fine: [`Grade::Unread`].

mod bridges;
mod connections;
mod daemon;
mod finding;
mod forwarding;
mod kube_proxy;
mod listeners;
mod nft;
mod own_tables;
mod protection;
mod raw;
mod route;
mod served;
mod tables;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::thread;

use anyhow::anyhow;
use nix::sched::{CloneFlags, unshare};

pub use self::finding::{Finding, Grade, Report, Subject};
use self::served::{Served, Wanted};
use self::tables::Forwarded;
use crate::config::Config;
use crate::leftovers;
use crate::leftovers::early::Target;
use crate::leftovers::tables::EarlyTables;
use crate::metrics::daemon::Daemon;
use crate::model::{Family, PerFamily};
use crate::nftables::{KernelError, LinuxKernel};
use crate::routing::{self, Link, Question, Route, route};
use crate::ruleset::names::TableName;
use crate::status::{self, frame};
use crate::{errors, sysctl, threads};

/// Looks at everything. The daemon is asked at its metrics port, files of the kernel are read below `root`; nftables, routes
/// and sockets are those of this network namespace.
pub fn examine(root: &Path, config: &Config) -> Report {
    let answer = daemon::ask(config.metrics_bind_address);
    let mut findings = match &answer {
        Ok(daemon) => daemon::judge(daemon),
        Err(error) => daemon::absent(error),
    };
    findings.push(features());
    findings.extend(around(root, config, answer.as_ref().ok()));
    Report::new(findings)
}

/// The same for the daemon itself: without what it knows anyhow, which its log has said, and without a trial of the kernel,
/// which it has made.
pub fn examine_around(root: &Path, config: &Config, daemon: &Daemon) -> Report {
    let mut findings = daemon::judge(daemon);
    findings.retain(|finding| finding.subject == Subject::PodRange);
    findings.extend(around(root, config, Some(daemon)));
    Report::new(findings)
}

/// All but the daemon and the features of the kernel.
fn around(root: &Path, config: &Config, daemon: Option<&Daemon>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mark = frame(daemon, Family::V4)
        .map(|frame| frame.mark)
        .or_else(|| leftovers::installed_mark(TableName::NODE.as_str()));
    let mark = mark.unwrap_or(1 << config.masquerade_bit);
    let addresses = routing::local_addresses().unwrap_or_else(|error| {
        let what = format!("the node's addresses cannot be listed: {error}");
        findings.push(Finding::unread(Subject::ServiceAddresses, what, "ip address"));
        Vec::new()
    });
    let local: BTreeSet<IpAddr> = addresses.iter().map(|(_, address)| *address).collect();
    let links = routing::links().unwrap_or_else(|error| {
        let what = format!("the interfaces of this node cannot be listed: {error}");
        findings.push(Finding::unread(Subject::Bridges, what, "ip -d link"));
        BTreeMap::new()
    });
    let legacy = leftovers::legacy::list(root).unwrap_or_else(|error| {
        let what = format!("nobody can tell whether legacy iptables is in use: {error}");
        findings.push(Finding::unread(Subject::Firewall, what, "run as root"));
        Vec::new()
    });
    let early = leftovers::tables::list_early();
    let no_tables = EarlyTables::new();
    let early_tables = early.as_ref().unwrap_or(&no_tables);
    let suspects = raw::suspects(early_tables, &legacy);
    let wanted = PerFamily::from_fn(|family| raw::wanted(&suspects, family, &local));
    let served = own(daemon, &local, &wanted, &mut findings);
    let (is_known, mut served) = (served.is_some(), served.unwrap_or_default());
    let about = |nth: usize| Family::ALL.into_iter().find_map(|family| served[family].wanted.get(nth)?.clone());
    let of_suspects = raw::judge(&suspects, about);
    match &early {
        Err(error) => findings.push(Finding::unread(
            Subject::Raw,
            format!("the rules that see packets before they are tracked cannot be listed: {error}"),
            "run as root, or with CAP_NET_ADMIN",
        )),
        Ok(_) if of_suspects.is_empty() && is_known => {
            let what = "no rule is known to drop packets to Services, or not to track them";
            findings.push(Finding::ok(Subject::Raw, what));
        }
        // Where Services are is not known, which has been said.
        Ok(_) => {}
    }
    findings.extend(of_suspects);
    for family in Family::ALL {
        served[family].own.retain(|frontend| !raw::is_left_alone(&suspects, frontend));
    }

    findings.extend(settings(root, config, daemon, &served));
    let pods = PerFamily::from_fn(|family| pods(daemon, family, &served[family], &local));
    findings.extend(routes(root, daemon, &served, &addresses, &links, &pods));
    let everywhere = |family| {
        frame(daemon, family).map_or(served[family].node_port_ips.is_empty(), |frame| frame.node_ports_everywhere)
    };
    findings.extend(listeners::judge(root, &served, everywhere));
    findings.extend(listeners::own_addresses(&served));
    findings.extend(nft::ask());

    let forwarded = Forwarded {
        targets: PerFamily::from_fn(|family| targets(daemon, family, &pods[family], &links)),
        unused: PerFamily::from_fn(|family| {
            let mut others = Family::ALL.into_iter().filter(|other| *other != family);
            !served[family].is_served() && others.any(|other| served[other].is_served())
        }),
    };
    let listed = leftovers::tables::list_with_rules(mark);
    match &listed {
        Ok(listed) => findings.extend(tables::judge(listed, early_tables, &forwarded)),
        Err(error) => findings.push(Finding::unread(
            Subject::Firewall,
            format!("the tables of others cannot be listed: {error}"),
            "run as root, or with CAP_NET_ADMIN",
        )),
    }
    findings.extend(legacy.iter().filter_map(|table| kube_proxy::legacy(table, mark)));
    findings.extend(legacy.iter().flat_map(|table| tables::judge_legacy(table, mark, &forwarded)));
    findings.push(kube_proxy::ipvs(root));
    let is_guarded = tables::guards_loopback(listed.as_ref().ok(), &legacy);
    findings.extend(forwarding::route_localnet(root, is_guarded));
    findings
}

/// Our tables, and what they serve; `None` if that cannot be read.
fn own(
    daemon: Option<&Daemon>,
    local: &BTreeSet<IpAddr>,
    wanted: &PerFamily<Wanted<'_>>,
    findings: &mut Vec<Finding>,
) -> Option<PerFamily<Served>> {
    let mut look = || {
        let mut served = PerFamily::<Served>::default();
        let mut kernel = LinuxKernel::open()?;
        for family in Family::ALL {
            findings.push(own_tables::judge(family, status::shape(&mut kernel, family, daemon)?, daemon.is_some()));
            served[family] = served::read(&mut kernel, family, local, &wanted[family])?;
        }
        findings.extend(protection::ask()?);
        Ok::<_, KernelError>(served)
    };
    match look() {
        Ok(served) => Some(served),
        Err(error) => {
            let what = format!("the tables of nftproxyd cannot be read: {}", errors::text(&error));
            findings.push(Finding::unread(Subject::Tables, what, "run as root, or with CAP_NET_ADMIN"));
            None
        }
    }
}

/// Settings of the kernel.
fn settings(root: &Path, config: &Config, daemon: Option<&Daemon>, served: &PerFamily<Served>) -> Vec<Finding> {
    let wanted = daemon.and_then(|daemon| daemon.wanted_connections);
    let wanted = wanted.unwrap_or_else(|| sysctl::wanted_connections(root, &config.conntrack));
    let mut findings = forwarding::forwarding(root, served.v6.is_served());
    findings.extend(forwarding::reverse_path_filter(root));
    findings.extend(connections::connections(root, wanted));
    if config.reset_connections || daemon.is_some_and(|daemon| daemon.resets_connections) {
        findings.extend(connections::resets(root));
    }
    findings
}

/// Pods of this node, as far as they are known, each with the interface that leads there.
fn pods(daemon: Option<&Daemon>, family: Family, served: &Served, local: &BTreeSet<IpAddr>) -> Vec<(IpAddr, u32)> {
    let ranges = daemon.map(|daemon| &daemon.pod_cidrs[..]).unwrap_or_default();
    // The first address is that of a bridge.
    let of_ranges = ranges.iter().filter_map(|range| range.hosts().nth(1));
    let pods = served.local_endpoints.iter().copied().chain(of_ranges);
    let pods = pods.filter(|pod| Family::of(*pod) == family && !local.contains(pod));
    pods.filter_map(|pod| match route(&Question::to(pod)) {
        Ok(Route::By(hop)) => Some((pod, hop.device)),
        _ => None,
    })
    .collect()
}

/// Routes to cluster IPs, and bridges between pods, of families that have Services.
fn routes(
    root: &Path,
    daemon: Option<&Daemon>,
    served: &PerFamily<Served>,
    addresses: &[(String, IpAddr)],
    links: &BTreeMap<u32, Link>,
    pods: &PerFamily<Vec<(IpAddr, u32)>>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut to_pods: PerFamily<BTreeSet<u32>> = PerFamily::default();
    for family in Family::ALL.into_iter().filter(|family| served[*family].is_served()) {
        let ranges = frame(daemon, family).map(|frame| &frame.service_cidrs[..]).unwrap_or_default();
        let device = route::device(links, addresses, family);
        findings.extend(route::judge(family, ranges, served[family].cluster_ip, device.as_deref(), |to| {
            route(&Question::to(to))
        }));
        to_pods[family] = pods[family].iter().map(|(_, index)| *index).collect();
    }
    findings.extend(bridges::judge(root, links, &to_pods));
    findings
}

/// Where packets of Services go that are forwarded: to pods of this node, and of the cluster where its range is known.
fn targets(
    daemon: Option<&Daemon>,
    family: Family,
    pods: &[(IpAddr, u32)],
    links: &BTreeMap<u32, Link>,
) -> Vec<Target> {
    let ranges = daemon.map(|daemon| &daemon.cluster_cidrs[..]).unwrap_or_default();
    let ranges = ranges.iter().filter(|range| Family::of(range.addr()) == family);
    let of_pods = pods
        .iter()
        .map(|(pod, index)| Target { range: (*pod).into(), device: links.get(index).map(|link| link.name.clone()) });
    ranges.map(|range| Target { range: *range, device: None }).chain(of_pods).collect()
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
        Ok(()) => Finding::ok(
            Subject::Kernel,
            format!("the kernel has every feature of nftables that is needed ({where_tried})"),
        ),
        Err(error) => Finding::wrong(
            Subject::Kernel,
            format!("the kernel cannot hold the tables: {error:#}"),
            "run as root or with CAP_NET_ADMIN, on Linux 5.10 or later; load what is missing, such as: \
             modprobe -a nf_tables nft_chain_nat nft_nat nft_masq nft_numgen nft_hash nft_fib_ipv4 nft_fib_ipv6 nft_reject_inet",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::netns::has;
    use crate::testing::{in_network_namespace, run};

    fn examined() -> Report {
        let config = crate::config::load(None, &crate::config::Overrides::default()).expect("it can be used").config;
        examine(Path::new("/"), &config)
    }

    #[test]
    fn a_bare_node_is_examined_and_mended() {
        if !has(&["sysctl"]) {
            return;
        }
        in_network_namespace(|| {
            let of = |grade| {
                examined()
                    .findings
                    .into_iter()
                    .filter(|finding| finding.grade == grade)
                    .map(|finding| finding.what)
                    .collect()
            };
            run(&["sysctl", "-q", "-w", "net.ipv4.ip_forward=0"]);
            let fine: Vec<String> = of(Grade::Ok);
            assert!(fine.iter().any(|what| what.contains("every feature of nftables")), "{fine:?}");
            let wrong: Vec<String> = of(Grade::Wrong);
            let no_tables = [
                "table ip nftproxyd is not there: no Service of IPv4 is served",
                "table ip6 nftproxyd is not there: no Service of IPv6 is served",
            ];
            assert_eq!(wrong[..2], no_tables);
            assert_eq!(wrong[2..], ["IPv4 packets are not forwarded"]);
            run(&["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]);
            assert_eq!(of(Grade::Wrong), no_tables);

            run(&["nft", "add table ip kube-proxy; add table ip6 kube-proxy"]);
            run(&["nft", "add table ip nat; add chain ip nat KUBE-SVC-ABC; add chain ip nat KUBE-KUBELET-CANARY"]);
            run(&[
                "nft",
                "add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; }",
            ]);
            let check: Vec<String> = of(Grade::Check);
            let wrong: Vec<String> = of(Grade::Wrong);
            let has = |list: &[String], text: &str| list.iter().any(|what| what.contains(text));
            assert!(has(&wrong, "table ip kube-proxy, table ip6 kube-proxy"), "{wrong:?}");
            assert!(has(&wrong, "KUBE-SVC-ABC") && !has(&wrong, "KUBELET"), "{wrong:?}");
            assert!(has(&check, "chain inet fw f drops what no rule accepts"), "{check:?}");
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
                    let findings = examined().findings;
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
