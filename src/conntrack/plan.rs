//! Which flows are stale: values in, a yes or no out.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::gone::Resets;
use crate::model::{Family, FrontendAt, FrontendKey, PerFamily, Protocol};

/// One direction of a flow, as connection tracking expects its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where packets come from.
    pub source: SocketAddr,
    /// Where they go; same family as `source`.
    pub destination: SocketAddr,
}

/// The conntrack zones of a flow (`nft add rule ... ct zone set`): tuples are unique within a zone only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Zones {
    /// The zone of both directions (`CTA_ZONE`), if it is not 0.
    pub both: Option<u16>,
    /// The zone of the reply direction alone (`CTA_TUPLE_ZONE`), if it is not 0.
    pub reply: Option<u16>,
}

/// An entry of the kernel's connection tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The transport protocol's number.
    pub protocol: u8,
    /// The first packet, before any translation: its destination is the frontend.
    pub original: Tuple,
    /// The packets that are expected in answer: their source is the endpoint, whether or not the client's address was
    /// masqueraded on the way (that changes their destination).
    pub reply: Tuple,
    /// Where the entry lives.
    pub zones: Zones,
    /// Whether the other side has sent anything yet (`IPS_SEEN_REPLY`).
    pub answered: bool,
    /// What helps to tell it from a later entry (`CTA_ID`, as the kernel wrote it).
    pub id: Option<[u8; 4]>,
}

#[cfg(test)]
impl Flow {
    /// A client's connection to a frontend, translated to an endpoint, in no zone of its own.
    pub(crate) fn translated(protocol: Protocol, [client, frontend, endpoint]: [&str; 3]) -> Flow {
        let [client, frontend, endpoint] =
            [client, frontend, endpoint].map(|text| text.parse().expect("a socket address"));
        Flow {
            protocol: protocol.number(),
            original: Tuple { source: client, destination: frontend },
            reply: Tuple { source: endpoint, destination: client },
            zones: Zones::default(),
            answered: false,
            id: None,
        }
    }
}

/// What flows through a frontend may still do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// They may go to these, and nowhere else: **all** serving endpoints of the service port, on any node, whatever the
    /// traffic policies and topology hints choose for new flows. Sorted.
    ///
    /// With an empty list every flow is stale (as in kube-proxy since kubernetes#139628): a new one would be refused, and
    /// an old one would go on to an address that may be another pod's by now. That includes flows that were never
    /// translated, as with any list: a refused packet leaves no entry, so they are from a time without these rules, and
    /// the next packet is judged by them. Shared by the copies that wait for a second pass.
    Endpoints(Arc<[SocketAddr]>),
    /// The frontend does not exist any more: no flow may be translated.
    Gone,
}

impl Rule {
    /// The rule for a frontend with these serving endpoints, in any order.
    pub fn endpoints(endpoints: impl IntoIterator<Item = SocketAddr>) -> Rule {
        let mut endpoints: Vec<SocketAddr> = endpoints.into_iter().collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        Rule::Endpoints(endpoints.into())
    }

    fn forbids(&self, flow: &Flow) -> bool {
        match self {
            Rule::Endpoints(endpoints) => endpoints.binary_search(&flow.reply.source).is_err(),
            Rule::Gone => flow.reply.source != flow.original.destination,
        }
    }
}

/// The frontends whose flows are to be checked: of UDP those that changed, or all after a start or a repair; of TCP and
/// SCTP all, then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontends {
    /// Cluster, external and load-balancer IPs, with their port.
    pub by_address: BTreeMap<SocketAddr, Rule>,
    /// Node ports. `by_address` goes first where both match, as it does in the rules of the table.
    pub by_node_port: BTreeMap<(Family, u16), Rule>,
    /// The node's addresses that accept node ports. A flow through the node to the same port of another address is none
    /// of ours. (kube-proxy looks at the port alone, and deletes such flows.)
    pub node_port_addresses: Arc<BTreeSet<IpAddr>>,
    /// All frontends of TCP and SCTP that have endpoints, of the families in which connections may have begun while the
    /// rules were not in place. Shared by the copies that wait for a second pass.
    pub restored: PerFamily<Option<Arc<HashSet<FrontendKey>>>>,
    /// Those of TCP whose connections to endpoints that are gone are to be reset.
    pub resets: Resets,
}

impl Frontends {
    /// Whether there is nothing to check.
    pub fn is_empty(&self) -> bool {
        let no_udp = self.by_address.is_empty() && self.by_node_port.is_empty();
        no_udp && self.restored == PerFamily::default() && self.resets.is_empty()
    }

    /// The number of frontends.
    pub fn len(&self) -> usize {
        let restored = Family::ALL.map(|family| self.restored[family].as_ref().map_or(0, |all| all.len()));
        self.by_address.len() + self.by_node_port.len() + restored.iter().sum::<usize>() + self.resets.count()
    }

    /// Whether a UDP frontend of this family is among them.
    pub fn concerns(&self, family: Family) -> bool {
        self.by_address.keys().any(|address| Family::of(address.ip()) == family)
            || self.by_node_port.keys().any(|(of, _)| *of == family)
    }

    /// Those of one family.
    pub fn of(&self, family: Family) -> Frontends {
        let by_address = self.by_address.iter().filter(|(address, _)| Family::of(address.ip()) == family);
        let by_node_port = self.by_node_port.iter().filter(|((of, _), _)| *of == family);
        let mut restored: PerFamily<Option<Arc<HashSet<FrontendKey>>>> = PerFamily::default();
        restored[family].clone_from(&self.restored[family]);
        Frontends {
            by_address: by_address.map(|(address, rule)| (*address, rule.clone())).collect(),
            by_node_port: by_node_port.map(|(port, rule)| (*port, rule.clone())).collect(),
            node_port_addresses: Arc::clone(&self.node_port_addresses),
            restored,
            resets: self.resets.of(family),
        }
    }

    /// Takes over what is newer: rules of `newer` replace ours.
    pub fn merge(&mut self, newer: Frontends) {
        self.by_address.extend(newer.by_address);
        self.by_node_port.extend(newer.by_node_port);
        self.node_port_addresses = newer.node_port_addresses;
        self.resets.merge(newer.resets);
        for (family, restored) in Family::ALL.into_iter().zip([newer.restored.v4, newer.restored.v6]) {
            self.restored[family] = restored.or(self.restored[family].take());
        }
    }

    /// Forgets the frontends for which `newer` has a rule; those to be reset spare the endpoints that it knows.
    pub fn superseded_by(&mut self, newer: &Frontends) {
        self.by_address.retain(|address, _| !newer.by_address.contains_key(address));
        self.by_node_port.retain(|port, _| !newer.by_node_port.contains_key(port));
        self.node_port_addresses = Arc::clone(&newer.node_port_addresses);
        self.resets.spare(&newer.resets);
        for family in Family::ALL {
            self.restored[family].take_if(|_| newer.restored[family].is_some());
        }
    }

    fn rule(&self, destination: SocketAddr) -> Option<&Rule> {
        self.by_address.get(&destination).or_else(|| {
            let rule = self.by_node_port.get(&(Family::of(destination.ip()), destination.port()))?;
            self.node_port_addresses.contains(&destination.ip()).then_some(rule)
        })
    }
}

/// Whether a flow came in through one of these frontends and goes where it may not go any more.
///
/// That includes flows from before the frontend had endpoints: they were not translated, so the "endpoint" is the
/// frontend itself.
pub fn stale(flow: &Flow, frontends: &Frontends) -> bool {
    flow.protocol == Protocol::Udp.number()
        && frontends.rule(flow.original.destination).is_some_and(|rule| rule.forbids(flow))
}

/// Whether a connection of TCP leads to an endpoint that is gone, and is to be reset.
///
/// Unless the kernel `picks_up` connections in the middle (`nf_conntrack_tcp_loose`), only one that has no answer: it begins
/// anew elsewhere. Nobody would answer the next packet of another one, which goes on to the dead as well as nowhere.
pub fn gone(flow: &Flow, frontends: &Frontends, picks_up: bool) -> bool {
    let ends = [flow.original.destination, flow.reply.source];
    (picks_up || !flow.answered) && frontends.resets.is_gone(flow.protocol, ends, &frontends.node_port_addresses)
}

/// Whether a connection of TCP or SCTP began through one of the restored frontends while the rules were not in place, and
/// has had no answer. Its first packet went out as it was, and the kernel sends each repetition the same way, for minutes:
/// when the entry is gone, the next repetition is a first packet, which meets the rules.
///
/// One that has been answered is left alone: somebody has the address, or had it then.
pub fn stranded(flow: &Flow, frontends: &Frontends) -> bool {
    let destination = flow.original.destination;
    if flow.answered || flow.reply.source != destination {
        return false;
    }
    let family = Family::of(destination.ip());
    let Some(restored) = &frontends.restored[family] else { return false };
    let Some(protocol) = Protocol::from_number(flow.protocol) else { return false };
    let Some(port) = NonZeroU16::new(destination.port()) else { return false };
    let has = |at| restored.contains(&FrontendKey { at, protocol, port });
    has(FrontendAt::Address(destination.ip()))
        || frontends.node_port_addresses.contains(&destination.ip()) && has(FrontendAt::NodePort(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("a socket address")
    }

    fn flow(original: &str, reply_source: &str) -> Flow {
        let client = if at(original).is_ipv4() { "10.0.0.2:4000" } else { "[fd00::2]:4000" };
        Flow::translated(Protocol::Udp, [client, original, reply_source])
    }

    fn frontends() -> Frontends {
        let rule = |endpoints: &[&str]| Rule::endpoints(endpoints.iter().map(|endpoint| at(endpoint)));
        Frontends {
            by_address: BTreeMap::from([
                (at("172.30.0.1:53"), rule(&["10.180.1.1:5353", "10.180.0.1:5353"])),
                (at("172.30.0.2:53"), rule(&[])),
                (at("172.30.0.3:53"), Rule::Gone),
                (at("[fd00:1::1]:53"), rule(&["[fd00:2::1]:53"])),
                (at("192.0.2.1:30054"), rule(&["10.180.0.9:53"])),
            ]),
            by_node_port: BTreeMap::from([
                ((Family::V4, 30053), rule(&["10.180.0.1:5353"])),
                ((Family::V4, 30054), rule(&["10.180.0.1:5353"])),
                ((Family::V4, 30055), Rule::Gone),
                ((Family::V6, 30053), rule(&["[fd00:2::1]:53"])),
            ]),
            node_port_addresses: Arc::new(["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().expect("an IP")).into()),
            restored: PerFamily::default(),
            resets: Resets::default(),
        }
    }

    /// Of TCP and SCTP: a cluster IP of each family, and a node port of IPv4.
    fn restored() -> Frontends {
        let key = |at, protocol, port| FrontendKey { at, protocol, port: NonZeroU16::new(port).expect("a port") };
        let keys = [Protocol::Tcp, Protocol::Sctp].map(|protocol| {
            [
                key(FrontendAt::Address(at("172.30.0.1:1").ip()), protocol, 80),
                key(FrontendAt::Address(at("[fd00:1::1]:1").ip()), protocol, 80),
                key(FrontendAt::NodePort(Family::V4), protocol, 30053),
            ]
        });
        let of = |family| keys.as_flattened().iter().filter(|key| key.family() == family).copied().collect();
        Frontends { restored: PerFamily::from_fn(|family| Some(Arc::new(of(family)))), ..frontends() }
    }

    #[test]
    fn connections_that_began_without_rules_and_have_no_answer_are_stranded() {
        #[rustfmt::skip]
        let cases = [
            // original destination, reply source, stranded, why
            ("172.30.0.1:80", "172.30.0.1:80", true, "a cluster IP, never translated"),
            ("172.30.0.1:80", "10.180.0.1:5353", false, "translated"),
            ("172.30.0.1:80", "172.30.0.1:81", false, "translated by somebody else"),
            ("172.30.0.1:81", "172.30.0.1:81", false, "another port"),
            ("172.30.0.9:80", "172.30.0.9:80", false, "another address"),
            ("[fd00:1::1]:80", "[fd00:1::1]:80", true, "IPv6"),
            ("192.0.2.1:30053", "192.0.2.1:30053", true, "a node port"),
            ("198.51.100.1:30053", "198.51.100.1:30053", false, "the same port of a foreign host"),
            ("[2001:db8::1]:30053", "[2001:db8::1]:30053", false, "a node port of the other family"),
        ];
        let frontends = restored();
        for (original, reply_source, expected, why) in cases {
            for protocol in [Protocol::Tcp, Protocol::Sctp] {
                let begun = Flow { protocol: protocol.number(), ..flow(original, reply_source) };
                assert_eq!(stranded(&begun, &frontends), expected, "{protocol:?} {original}: {why}");
                assert!(!stranded(&Flow { answered: true, ..begun }, &frontends), "{original}: it has an answer");
                assert!(!stranded(&begun, &self::frontends()), "{original}: the rules were in place");
            }
            assert!(!stranded(&flow(original, reply_source), &frontends), "{original}: UDP");
        }
    }

    #[test]
    fn what_was_restored_is_told_by_family_and_the_newest_counts() {
        let all = restored();
        assert_eq!(all.len(), frontends().len() + 6);
        let [v4, v6] = Family::ALL.map(|family| all.of(family));
        assert!(v4.restored.v6.is_none() && v6.restored.v4.is_none());
        let mut merged = v4;
        merged.merge(v6);
        assert_eq!(merged, all);
        merged.merge(frontends());
        assert_eq!(merged, all, "a change of some frontends does not take back that all are to be looked at");
        let only = Frontends { restored: all.restored.clone(), ..Frontends::default() };
        assert!(!only.is_empty());
        let newer = Frontends { restored: PerFamily { v6: None, ..all.restored.clone() }, ..Frontends::default() };
        merged.superseded_by(&newer);
        assert!(merged.restored.v4.is_none() && merged.restored.v6.is_some());
    }

    #[test]
    fn flows_to_what_does_not_serve_are_stale() {
        #[rustfmt::skip]
        let cases = [
            // original destination, reply source, stale, why
            ("172.30.0.1:53", "10.180.0.1:5353", false, "a serving endpoint"),
            ("172.30.0.1:53", "10.180.1.1:5353", false, "another one"),
            ("172.30.0.1:53", "10.180.2.1:5353", true, "an endpoint that is gone"),
            ("172.30.0.1:53", "10.180.0.1:53", true, "the right address with the wrong port"),
            ("172.30.0.1:53", "172.30.0.1:53", true, "never translated"),
            ("172.30.0.1:54", "10.180.2.1:5353", false, "another port of the address"),
            ("172.30.0.9:53", "10.180.2.1:5353", false, "a frontend that did not change"),
            ("172.30.0.2:53", "10.180.2.1:53", true, "no endpoint serves"),
            ("172.30.0.2:53", "172.30.0.2:53", true, "no endpoint serves, never translated"),
            ("172.30.0.3:53", "10.180.0.1:5353", true, "the frontend is gone"),
            ("172.30.0.3:53", "172.30.0.3:53", false, "the frontend is gone, but was never used"),
            ("[fd00:1::1]:53", "[fd00:2::1]:53", false, "IPv6, serving"),
            ("[fd00:1::1]:53", "[fd00:2::2]:53", true, "IPv6, gone"),
            ("192.0.2.1:30053", "10.180.0.1:5353", false, "node port, serving"),
            ("192.0.2.1:30053", "10.180.2.1:5353", true, "node port, gone"),
            ("192.0.2.1:30053", "192.0.2.1:30053", true, "node port, never translated"),
            ("198.51.100.1:30053", "198.51.100.1:30053", false, "the same port of a foreign host"),
            ("192.0.2.1:30054", "10.180.0.9:53", false, "an external IP goes before a node port"),
            ("192.0.2.1:30054", "10.180.0.1:5353", true, "an external IP goes before a node port"),
            ("192.0.2.1:30055", "10.180.0.1:5353", true, "the node port is gone"),
            ("192.0.2.1:30055", "192.0.2.1:30055", false, "the node port is gone: an ordinary flow"),
            ("[2001:db8::1]:30053", "[fd00:2::1]:53", false, "IPv6 node port, serving"),
            ("[2001:db8::1]:30053", "[fd00:2::2]:53", true, "IPv6 node port, gone"),
            ("[2001:db8::1]:30055", "[fd00:2::2]:53", false, "a node port of the other family"),
        ];
        let frontends = frontends();
        for (original, reply_source, expected, why) in cases {
            let mut flow = flow(original, reply_source);
            assert_eq!(stale(&flow, &frontends), expected, "{original} -> {reply_source}: {why}");
            flow.reply.destination = at("192.0.2.1:61000");
            assert_eq!(stale(&flow, &frontends), expected, "{original} -> {reply_source}, masqueraded: {why}");
            for protocol in [6, 132] {
                flow.protocol = protocol;
                assert!(!stale(&flow, &frontends), "protocol {protocol}");
            }
        }
    }

    #[test]
    fn flows_of_before_an_outage_are_stale_in_it_and_after_it() {
        let old = flow("172.30.0.1:53", "10.180.0.1:53");
        let untranslated = flow("172.30.0.1:53", "172.30.0.1:53");
        let key = at("172.30.0.1:53");
        let with = |endpoints: &[&str]| Frontends {
            by_address: BTreeMap::from([(key, Rule::endpoints(endpoints.iter().map(|endpoint| at(endpoint))))]),
            ..Frontends::default()
        };
        assert!(stale(&old, &with(&[])));
        assert!(stale(&untranslated, &with(&[])));
        assert!(stale(&old, &with(&["10.180.0.2:53"])));
        assert!(stale(&untranslated, &with(&["10.180.0.2:53"])));
        assert!(!stale(&old, &with(&["10.180.0.1:53"])));
    }

    #[test]
    fn connections_to_endpoints_that_are_gone_are_left_where_nobody_would_reset_them() {
        let to = FrontendKey {
            at: FrontendAt::Address(at("172.30.0.1:80").ip()),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(80).expect("a port"),
        };
        let mut resets = Resets::default();
        resets.insert(to, Some([at("10.180.0.1:80")].into()));
        let frontends = Frontends { resets, ..Frontends::default() };
        assert!(
            !frontends.is_empty() && frontends.len() == 1 && !frontends.concerns(Family::V4),
            "of UDP there is none"
        );
        let tcp = |endpoint| Flow { protocol: Protocol::Tcp.number(), ..flow("172.30.0.1:80", endpoint) };
        let open = Flow { answered: true, ..tcp("10.180.0.9:80") };
        for (flow, picks_up, expected) in [
            (open, true, true),
            (open, false, false),
            (tcp("10.180.0.9:80"), true, true),
            (tcp("10.180.0.9:80"), false, true),
            (tcp("10.180.0.1:80"), true, false),
        ] {
            assert_eq!(gone(&flow, &frontends, picks_up), expected, "{flow:?} {picks_up}");
            assert!(!gone(&flow, &frontends.of(Family::V6), picks_up) && !stale(&flow, &frontends));
            let mut merged = Frontends::default();
            merged.merge(frontends.of(Family::V4));
            assert_eq!(gone(&flow, &merged, picks_up), expected);
            merged.superseded_by(&frontends);
            assert_eq!(gone(&flow, &merged, picks_up), expected, "the same is said again");
        }
    }

    #[test]
    fn newer_rules_replace_older_ones() {
        let mut merged = frontends();
        let newer = Frontends {
            by_address: BTreeMap::from([(at("172.30.0.1:53"), Rule::Gone), (at("172.30.0.7:53"), Rule::Gone)]),
            by_node_port: BTreeMap::from([((Family::V4, 30053), Rule::Gone)]),
            ..Frontends::default()
        };
        let mut left = frontends();
        left.superseded_by(&newer);
        assert_eq!(left.len(), frontends().len() - 2);
        assert!(!left.by_address.contains_key(&at("172.30.0.1:53")));
        assert!(left.node_port_addresses.is_empty());
        merged.merge(newer);
        assert_eq!(merged.len(), frontends().len() + 1);
        assert_eq!(merged.by_address[&at("172.30.0.1:53")], Rule::Gone);
        assert_eq!(merged.by_node_port[&(Family::V4, 30053)], Rule::Gone);
        assert!(merged.node_port_addresses.is_empty());
    }

    #[test]
    fn families_are_told_apart() {
        assert!(!Frontends::default().concerns(Family::V4));
        let v6 = Frontends { by_node_port: BTreeMap::from([((Family::V6, 1), Rule::Gone)]), ..Frontends::default() };
        assert!(v6.concerns(Family::V6) && !v6.concerns(Family::V4));
        let v4 = Frontends { by_address: BTreeMap::from([(at("10.0.0.1:1"), Rule::Gone)]), ..Frontends::default() };
        assert!(v4.concerns(Family::V4) && !v4.concerns(Family::V6));
        let all = frontends();
        let [of_v4, of_v6] = Family::ALL.map(|family| all.of(family));
        assert!(!of_v4.concerns(Family::V6) && !of_v6.concerns(Family::V4));
        assert_eq!(of_v4.len() + of_v6.len(), all.len());
        let mut merged = of_v4;
        merged.merge(of_v6);
        assert_eq!(merged, all);
    }
}
