//! Has the node a route to cluster IPs? What it sends itself is routed before it is translated.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Finding, Subject};
use crate::model::Family;
use crate::routing::{Link, Route};

/// What there is to say about one family. `ranges` are those of cluster IPs, of which one that is given out may be known;
/// `device` is the interface that has the node's address.
pub(super) fn judge(
    family: Family,
    ranges: &[IpNet],
    cluster_ip: Option<IpAddr>,
    device: Option<&str>,
    look_up: impl Fn(IpAddr) -> io::Result<Route>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (to, range) in targets(ranges, cluster_ip) {
        let range = range.map_or_else(|| to.to_string(), |range| range.to_string());
        match look_up(to) {
            Ok(Route::By(_) | Route::Local) => {}
            Ok(Route::Nowhere(why)) => {
                let ip = if family == Family::V6 { "ip -6" } else { "ip" };
                let device = device.unwrap_or("DEVICE");
                findings.push(
                    Finding::check(
                        Subject::Route,
                        format!(
                            "this node has no route to cluster IPs in {range}: its own connections to Services fail at \
                             once (kubelet, the API server, pods on the host network); those of pods do not"
                        ),
                        format!("give the node a default route, or: {ip} route add {range} dev {device}"),
                    )
                    .proof(format!("{ip} route get {to}: {why}")),
                );
            }
            Err(error) => findings.push(Finding::unread(
                Subject::Route,
                format!("nobody can tell whether this node has a route to {to}: {error}"),
                format!("ip route get {to}"),
            )),
        }
    }
    findings
}

/// An address of each range, and the range.
fn targets(ranges: &[IpNet], cluster_ip: Option<IpAddr>) -> Vec<(IpAddr, Option<IpNet>)> {
    let of_range = |range: &IpNet| {
        let given = cluster_ip.filter(|ip| range.contains(ip));
        (given.or_else(|| range.hosts().next()).unwrap_or(range.addr()), Some(*range))
    };
    let mut targets: Vec<_> = ranges.iter().map(of_range).collect();
    if let Some(ip) = cluster_ip.filter(|ip| !ranges.iter().any(|range| range.contains(ip))) {
        targets.push((ip, None));
    }
    targets
}

/// The interface that a packet to anywhere, or to a neighbour, would leave by.
pub(super) fn device(links: &BTreeMap<u32, Link>, addresses: &[(String, IpAddr)], family: Family) -> Option<String> {
    let is_of = |(_, address): &&(String, IpAddr)| Family::of(*address) == family && !address.is_loopback();
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let found = addresses.iter().filter(is_of).find(|(name, address)| {
        let kind = links.values().find(|link| link.name == *name).map_or("", |link| link.kind.as_str());
        !link_local(address) && kind != "bridge"
    });
    found.map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;
    use crate::routing::{Hop, Refusal};

    const HOP: Hop = Hop { device: 2, gateway: None, source: None };

    #[test]
    fn a_range_without_a_route_is_named() {
        let ranges: Vec<IpNet> =
            ["10.96.0.0/12", "10.9.0.0/24"].iter().map(|range| range.parse().expect("a range")).collect();
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let asked = std::cell::RefCell::new(Vec::new());
        let found = |answer: fn(IpAddr) -> io::Result<Route>, cluster_ip: Option<&str>| {
            asked.borrow_mut().clear();
            judge(Family::V4, &ranges, cluster_ip.map(ip), Some("eth0"), |to| {
                asked.borrow_mut().push(to);
                answer(to)
            })
        };
        assert_eq!(found(|_| Ok(Route::By(HOP)), None), []);
        assert_eq!(*asked.borrow(), [ip("10.96.0.1"), ip("10.9.0.1")]);
        let nowhere = |to: IpAddr| {
            Ok(if to.to_string().starts_with("10.9.") { Route::Local } else { Route::Nowhere(Refusal::NoRoute) })
        };
        let findings = found(nowhere, Some("10.96.0.80"));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].grade, Grade::Check);
        assert_eq!(findings[0].proof, ["ip route get 10.96.0.80: no route"]);
        assert!(findings[0].fix.ends_with("ip route add 10.96.0.0/12 dev eth0"), "{findings:?}");
        assert_eq!(found(|_| Err(io::ErrorKind::Other.into()), None)[0].grade, Grade::Unread);
        // One that is in no range, or where none is known.
        assert_eq!(found(|_| Ok(Route::Nowhere(Refusal::NoRoute)), Some("172.30.0.1")).len(), 3);
    }
}
