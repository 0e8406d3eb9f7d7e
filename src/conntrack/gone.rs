//! Which connections of TCP lead to an endpoint that is gone: values in, a yes or no out.
//!
//! Without its entry in the kernel's table, the next packet of such a connection counts as a first one
//! (`nf_conntrack_tcp_loose`), and goes where a new connection would go: to an endpoint that does not know it and answers
//! with a reset, or to the rule that refuses it with one. SCTP has no such way: of its packets in the middle the kernel
//! takes heartbeats for first ones, and those with data for invalid (`sctp_new` in nf_conntrack_proto_sctp.c).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::model::{Family, FrontendAt, FrontendKey, Protocol};

/// All endpoints of a Service port in a family, whatever their state, sorted.
pub type Listed = Arc<[SocketAddr]>;

/// Frontends of TCP whose connections to endpoints that are gone are to be reset, each with the endpoints that there are.
///
/// `None` leaves the connections of a frontend alone: nobody asks for it any more, or it only goes before a node port of
/// the same number that is in here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resets(BTreeMap<FrontendKey, Option<Listed>>);

impl Resets {
    /// The connections of this frontend go to these endpoints, and to no others.
    pub fn insert(&mut self, frontend: FrontendKey, listed: Option<Listed>) {
        self.0.insert(frontend, listed);
    }

    /// The same, unless something is said of this frontend.
    pub fn insert_if_new(&mut self, frontend: FrontendKey, listed: impl FnOnce() -> Option<Listed>) {
        self.0.entry(frontend).or_insert_with(listed);
    }

    /// Whether nothing is said of any frontend.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of frontends whose connections are looked at.
    pub fn count(&self) -> usize {
        self.0.values().flatten().count()
    }

    /// Whether connections of this family are looked at.
    pub fn concerns(&self, family: Family) -> bool {
        self.0.iter().any(|(key, listed)| listed.is_some() && key.family() == family)
    }

    /// The node ports of a family whose connections are looked at.
    pub fn node_ports(&self, family: Family) -> impl Iterator<Item = FrontendKey> {
        let looked_at = self.0.iter().filter(|(_, listed)| listed.is_some()).map(|(key, _)| *key);
        looked_at.filter(move |key| key.at == FrontendAt::NodePort(family))
    }

    /// Those of one family.
    pub fn of(&self, family: Family) -> Resets {
        let of_family = self.0.iter().filter(|(key, _)| key.family() == family);
        Resets(of_family.map(|(key, listed)| (*key, listed.clone())).collect())
    }

    /// Adds what is due as well: gone is what is gone by either.
    pub fn merge(&mut self, other: Resets) {
        for (key, listed) in other.0 {
            let Some(Some(known)) = self.0.get_mut(&key) else {
                self.0.entry(key).or_insert(listed);
                continue;
            };
            match listed {
                Some(listed) => *known = known.iter().filter(|it| listed.binary_search(it).is_ok()).copied().collect(),
                None => _ = self.0.insert(key, None),
            }
        }
    }

    /// Something newer is known while these wait. What is an endpoint by then is spared, so that one that has been away only for
    /// a moment keeps its connections; what was one only since waits for its own turn.
    pub fn spare(&mut self, newer: &Resets) {
        for (key, listed) in &newer.0 {
            match (self.0.get_mut(key), listed) {
                (None, _) => {}
                (Some(waiting), None) => *waiting = None,
                (Some(None), Some(_)) => {}
                (Some(Some(waiting)), Some(listed)) if waiting != listed => {
                    let all: BTreeSet<SocketAddr> = waiting.iter().chain(listed.iter()).copied().collect();
                    *waiting = all.into_iter().collect();
                }
                (Some(Some(_)), Some(_)) => {}
            }
        }
    }

    /// Whether a connection of this protocol, by its number, came in through one of these frontends and was sent to an endpoint
    /// that is gone. One that was never translated is somebody else's. Node ports are at these addresses only.
    pub(super) fn is_gone(
        &self,
        protocol: u8,
        [to, endpoint]: [SocketAddr; 2],
        node_port_addresses: &BTreeSet<IpAddr>,
    ) -> bool {
        if protocol != Protocol::Tcp.number() || to == endpoint {
            return false;
        }
        let Some(port) = NonZeroU16::new(to.port()) else { return false };
        let said = |at| self.0.get(&FrontendKey { at, protocol: Protocol::Tcp, port });
        let said = said(FrontendAt::Address(to.ip())).or_else(|| {
            let by_node_port = || said(FrontendAt::NodePort(Family::of(to.ip())));
            node_port_addresses.contains(&to.ip()).then(by_node_port).flatten()
        });
        matches!(said, Some(Some(listed)) if listed.binary_search(&endpoint).is_err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("a socket address")
    }

    fn address(text: &str) -> FrontendKey {
        let address = at(text);
        FrontendKey {
            at: FrontendAt::Address(address.ip()),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(address.port()).expect("a port"),
        }
    }

    fn node_port(family: Family, port: u16) -> FrontendKey {
        let port = NonZeroU16::new(port).expect("a port");
        FrontendKey { at: FrontendAt::NodePort(family), protocol: Protocol::Tcp, port }
    }

    fn listed(endpoints: &[&str]) -> Option<Listed> {
        Some(endpoints.iter().map(|endpoint| at(endpoint)).collect())
    }

    fn resets() -> Resets {
        let mut resets = Resets::default();
        resets.insert(address("172.30.0.1:80"), listed(&["10.1.0.1:8080", "10.1.0.2:8080"]));
        resets.insert(address("172.30.0.2:80"), listed(&[]));
        resets.insert(address("172.30.0.3:80"), None);
        resets.insert(address("192.0.2.10:30081"), None);
        resets.insert(address("[fd00::1]:80"), listed(&["[fd01::1]:8080"]));
        resets.insert(node_port(Family::V4, 30080), listed(&["10.1.0.1:8080"]));
        resets.insert(node_port(Family::V4, 30081), listed(&["10.1.0.1:8080"]));
        resets
    }

    #[test]
    fn connections_to_what_is_no_endpoint_any_more_are_found() {
        let node: BTreeSet<IpAddr> = ["192.0.2.10", "2001:db8::10"].map(|ip| ip.parse().expect("an IP")).into();
        #[rustfmt::skip]
        let cases = [
            // where the client sent it, where it went, gone, why
            ("172.30.0.1:80", "10.1.0.1:8080", false, "an endpoint"),
            ("172.30.0.1:80", "10.1.0.9:8080", true, "an endpoint that is gone"),
            ("172.30.0.1:80", "10.1.0.1:8081", true, "the address is another port's by now"),
            ("172.30.0.1:80", "172.30.0.1:80", false, "never translated"),
            ("172.30.0.1:81", "10.1.0.9:8080", false, "another port of the Service"),
            ("172.30.0.9:80", "10.1.0.9:8080", false, "another Service, with the same endpoint"),
            ("172.30.0.2:80", "10.1.0.1:8080", true, "there is no endpoint any more"),
            ("172.30.0.3:80", "10.1.0.9:8080", false, "nobody asks for it any more"),
            ("[fd00::1]:80", "[fd01::1]:8080", false, "IPv6"),
            ("[fd00::1]:80", "[fd01::2]:8080", true, "IPv6, gone"),
            ("192.0.2.10:30080", "10.1.0.1:8080", false, "a node port"),
            ("192.0.2.10:30080", "10.1.0.9:8080", true, "a node port, gone"),
            ("198.51.100.1:30080", "10.1.0.9:8080", false, "the same port of another host"),
            ("192.0.2.10:30081", "10.1.0.9:8080", false, "an external IP of somebody else goes before a node port"),
            ("[2001:db8::10]:30080", "[fd01::2]:8080", false, "a node port of the other family"),
        ];
        for (to, endpoint, expected, why) in cases {
            let ends = [at(to), at(endpoint)];
            assert_eq!(resets().is_gone(Protocol::Tcp.number(), ends, &node), expected, "{to} -> {endpoint}: {why}");
            for other in [Protocol::Udp, Protocol::Sctp] {
                assert!(!resets().is_gone(other.number(), ends, &node), "{other:?}");
            }
        }
    }

    #[test]
    fn what_is_newer_counts() {
        let is_gone = |resets: &Resets| {
            resets.is_gone(Protocol::Tcp.number(), ["172.30.0.1:80", "10.1.0.9:8080"].map(at), &BTreeSet::new())
        };
        let to_second = |resets: &Resets| {
            resets.is_gone(Protocol::Tcp.number(), ["172.30.0.1:80", "10.1.0.2:8080"].map(at), &BTreeSet::new())
        };
        let mut waiting = resets();
        let mut newer = Resets::default();
        newer.insert(address("172.30.0.1:80"), listed(&["10.1.0.9:8080"]));
        newer.insert_if_new(address("172.30.0.1:80"), || unreachable!("something is said of it"));
        assert!(is_gone(&waiting) && to_second(&newer));
        waiting.spare(&newer);
        assert!(!is_gone(&waiting), "it is back");
        assert!(!to_second(&waiting), "it has gone since");
        assert_eq!(waiting.count(), resets().count());
        let mut merged = waiting.clone();
        merged.merge(newer);
        assert!(!is_gone(&merged) && to_second(&merged), "both are due");
        let mut left_alone = Resets::default();
        left_alone.insert_if_new(address("172.30.0.1:80"), || None);
        assert!(!left_alone.is_empty() && left_alone.count() == 0 && !left_alone.concerns(Family::V4));
        for say in [Resets::merge, |waiting: &mut Resets, newer| waiting.spare(&newer)] {
            let mut merged = resets();
            say(&mut merged, left_alone.clone());
            assert!(!is_gone(&merged), "nobody asks for it any more");
        }
    }

    #[test]
    fn families_are_told_apart() {
        let [v4, v6] = Family::ALL.map(|family| resets().of(family));
        assert!(v4.concerns(Family::V4) && !v4.concerns(Family::V6));
        assert!(v6.concerns(Family::V6) && !v6.concerns(Family::V4));
        let mut all = v4;
        all.merge(v6);
        assert_eq!(all, resets());
    }
}
