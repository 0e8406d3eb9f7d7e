//! Whether the kernel passes packets on, and from whom it takes them: settings below `net.ipv4` and `net.ipv6`.

use std::path::Path;

use super::{Finding, Subject};
use crate::routing::{devices_with, of_device};
use crate::sysctl::read_number;

const IPV4: &str = "proc/sys/net/ipv4";
const IPV6: &str = "proc/sys/net/ipv6";

/// Are packets for others passed on? `v6_served` is whether there are Services of IPv6.
pub(super) fn forwarding(root: &Path, v6_served: bool) -> Vec<Finding> {
    let unknown = |family: &str, name: &str| {
        let what = format!("nobody can tell whether {family} packets are forwarded");
        Finding::unread(Subject::Forwarding, what, format!("sysctl {name}"))
    };
    let is = |path: &str, value| read_number(&root.join(path)).ok().map(|found| found == value);
    let v4 = match is(&format!("{IPV4}/ip_forward"), 1) {
        Some(false) => {
            Finding::wrong(Subject::Forwarding, "IPv4 packets are not forwarded", "sysctl -w net.ipv4.ip_forward=1")
                .proof("net.ipv4.ip_forward = 0")
        }
        Some(true) => Finding::ok(Subject::Forwarding, "IPv4 packets are forwarded"),
        None => unknown("IPv4", "net.ipv4.ip_forward"),
    };
    let is_forwarded = v4.grade == super::Grade::Ok;
    let mut findings = vec![v4];
    if is_forwarded {
        findings.extend(devices(root));
    }
    let has_v6 = is(&format!("{IPV6}/conf/all/disable_ipv6"), 0) == Some(true);
    if has_v6 {
        findings.push(match is(&format!("{IPV6}/conf/all/forwarding"), 0) {
            Some(true) => {
                let new = if v6_served { Finding::check } else { Finding::note };
                new(
                    Subject::Forwarding,
                    "IPv6 packets are not forwarded: IPv6 Services do not work for pods and clients outside".to_owned(),
                    "where there are IPv6 Services: sysctl -w net.ipv6.conf.all.forwarding=1".to_owned(),
                )
                .proof("net.ipv6.conf.all.forwarding = 0")
            }
            Some(false) => Finding::ok(Subject::Forwarding, "IPv6 packets are forwarded"),
            None => unknown("IPv6", "net.ipv6.conf.all.forwarding"),
        });
    }
    findings
}

/// Interfaces whose packets are not passed on although those of others are. Of IPv4 alone: with IPv6 the setting of all
/// decides, and that of an interface is about router advertisements (Documentation/networking/ip-sysctl.rst).
fn devices(root: &Path) -> Option<Finding> {
    let off = devices_with(root, "forwarding", |value, _| value == 0);
    let commands: Vec<_> = off.iter().map(|(name, _)| format!("{}=1", setting(name, "forwarding"))).collect();
    let names = off.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let finding = Finding::check(
        Subject::Forwarding,
        format!("IPv4 packets that come in by {names} are not forwarded, though others are"),
        format!("sysctl -w {}; see what sets it: systemd-networkd (IPForward=), NetworkManager", commands.join(" ")),
    );
    let shown = |finding: Finding, (name, value): &(String, u64)| {
        finding.proof(format!("{} = {value}", setting(name, "forwarding")))
    };
    (!off.is_empty()).then(|| off.iter().fold(finding, shown))
}

/// Which interfaces drop packets whose way back is another?
pub(super) fn reverse_path_filter(root: &Path) -> Vec<Finding> {
    if of_device(root, "all", "rp_filter").is_none() {
        let what = "nobody can tell whether interfaces filter by reverse path";
        return vec![Finding::unread(Subject::ReversePath, what, "sysctl -a -r '\\.rp_filter'")];
    }
    // The higher of the two is in force.
    let strict = devices_with(root, "rp_filter", |value, all| value.max(all) == 1);
    if strict.is_empty() {
        return vec![Finding::ok(Subject::ReversePath, "no interface filters by reverse path strictly")];
    }
    let names = strict.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let commands: Vec<_> = strict.iter().map(|(name, _)| format!("{}=2", setting(name, "rp_filter"))).collect();
    vec![Finding::note(
        Subject::ReversePath,
        format!(
            "{names} filter by reverse path strictly: where a client's way back is another interface, its packets are dropped"
        ),
        format!("sysctl -w {}", commands.join(" ")),
    )]
}

/// Can neighbours reach what listens on 127.0.0.1? kube-proxy's mode iptables switches that on, for node ports there, and
/// leaves it so. `is_guarded` is whether the rule is there with which kube-proxy and kubelet keep them from it.
pub(super) fn route_localnet(root: &Path, is_guarded: bool) -> Vec<Finding> {
    const NAME: &str = "route_localnet";
    let all = of_device(root, "all", NAME);
    if all.is_none() {
        let what = "nobody can tell whether addresses of 127.0.0.0/8 are routed";
        return vec![Finding::unread(Subject::RouteLocalnet, what, "sysctl net.ipv4.conf.all.route_localnet")];
    }
    // Either is enough.
    let mut on = devices_with(root, NAME, |value, _| value == 1);
    if all == Some(1) {
        on = vec![("all".to_owned(), 1)];
    }
    if on.is_empty() {
        return vec![Finding::ok(Subject::RouteLocalnet, "addresses of 127.0.0.0/8 are not routed")];
    }
    let commands: Vec<_> = on.iter().map(|(name, _)| format!("{}=0", setting(name, NAME))).collect();
    let fix = format!("if nothing else needs it (kube-proxy's mode iptables set it): sysctl -w {}", commands.join(" "));
    let finding = if is_guarded {
        let what = "addresses of 127.0.0.0/8 are routed; chain KUBE-FIREWALL keeps neighbours from what listens there";
        Finding::note(Subject::RouteLocalnet, what, fix)
    } else {
        let what =
            "addresses of 127.0.0.0/8 are routed: neighbours of this node can reach what listens on 127.0.0.1 alone";
        Finding::check(Subject::RouteLocalnet, what, fix)
    };
    vec![on.iter().fold(finding, |finding, (name, value)| finding.proof(format!("{} = {value}", setting(name, NAME))))]
}

/// What sysctl calls the setting of an interface.
fn setting(device: &str, name: &str) -> String {
    format!("net.ipv4.conf.{}.{name}", device.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Grade;
    use super::super::testing::grades;
    use super::*;
    use crate::testing::root;

    /// A root with these settings of interfaces.
    fn with(name: &str, values: &[(&str, &str)]) -> tempfile::TempDir {
        let files: Vec<_> =
            values.iter().map(|(device, value)| (format!("{IPV4}/conf/{device}/{name}"), *value)).collect();
        root(&files.iter().map(|(path, value)| (path.as_str(), *value)).collect::<Vec<_>>())
    }

    #[test]
    fn forwarding_is_needed() {
        use Grade::*;
        let cases = [
            ("1", "0", "1", false, vec![Ok, Ok]),
            ("?", "0", "?", false, vec![Unread, Unread]),
            ("0", "0", "0", false, vec![Wrong, Note]),
            ("0", "0", "0", true, vec![Wrong, Check]),
            ("1", "1", "0", true, vec![Ok]),
        ];
        for (v4, disabled, v6, v6_served, expected) in cases {
            let root = root(&[
                ("proc/sys/net/ipv4/ip_forward", v4),
                ("proc/sys/net/ipv6/conf/all/disable_ipv6", disabled),
                ("proc/sys/net/ipv6/conf/all/forwarding", v6),
            ]);
            assert_eq!(grades(&forwarding(root.path(), v6_served)), expected, "{v4} {disabled} {v6}");
        }
    }

    #[test]
    fn an_interface_that_does_not_forward_is_named() {
        let root = with(
            "forwarding",
            &[("all", "1"), ("default", "0"), ("lo", "0"), ("eth0", "0"), ("eth1", "1"), ("eth0.7", "0")],
        );
        fs::write(root.path().join(IPV4).join("ip_forward"), "1").expect("a file");
        let findings = forwarding(root.path(), false);
        assert_eq!(grades(&findings), [Grade::Ok, Grade::Check], "{findings:?}");
        assert!(findings[1].what.contains("come in by eth0, eth0.7 are not forwarded"), "{findings:?}");
        assert_eq!(findings[1].proof, ["net.ipv4.conf.eth0.forwarding = 0", "net.ipv4.conf.eth0/7.forwarding = 0"]);
        assert!(
            findings[1].fix.starts_with("sysctl -w net.ipv4.conf.eth0.forwarding=1 net.ipv4.conf.eth0/7.forwarding=1;")
        );
        // Where nothing is forwarded, that is what is to be said.
        fs::write(root.path().join(IPV4).join("ip_forward"), "0").expect("a file");
        assert_eq!(grades(&forwarding(root.path(), false)), [Grade::Wrong]);
    }

    #[test]
    fn strict_interfaces_are_named() {
        let root = with("rp_filter", &[("all", "0"), ("lo", "1"), ("eth0", "1"), ("eth1.7", "1"), ("eth2", "2")]);
        let findings = reverse_path_filter(root.path());
        assert!(findings[0].what.starts_with("eth0, eth1.7 filter"), "{findings:?}");
        assert_eq!(findings[0].fix, "sysctl -w net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf.eth1/7.rp_filter=2");
        assert_eq!(grades(&findings), [Grade::Note]);
        let strict = with("rp_filter", &[("all", "1"), ("eth0", "0"), ("eth2", "2")]);
        assert!(reverse_path_filter(strict.path())[0].what.starts_with("eth0 filter"));
        assert_eq!(grades(&reverse_path_filter(crate::testing::root(&[]).path())), [Grade::Unread]);
    }

    #[test]
    fn routed_loopback_addresses_are_named() {
        let of =
            |values: &[(&str, &str)], is_guarded| route_localnet(with("route_localnet", values).path(), is_guarded);
        for (values, is_guarded, grade, proof) in [
            (&[("all", "0"), ("eth0", "0"), ("lo", "1")][..], false, Grade::Ok, None),
            (&[("all", "1"), ("eth0", "1")], false, Grade::Check, Some("net.ipv4.conf.all.route_localnet = 1")),
            (&[("all", "1")], true, Grade::Note, Some("net.ipv4.conf.all.route_localnet = 1")),
            (&[("all", "0"), ("eth0", "1")], false, Grade::Check, Some("net.ipv4.conf.eth0.route_localnet = 1")),
            (&[("eth0", "1")], false, Grade::Unread, None),
        ] {
            let findings = of(values, is_guarded);
            assert_eq!(grades(&findings), [grade], "{values:?}");
            assert_eq!(findings[0].proof, proof.into_iter().collect::<Vec<_>>(), "{values:?}");
        }
    }
}
