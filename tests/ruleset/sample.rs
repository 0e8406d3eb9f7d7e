//! A hand-made ruleset with every kind of frontend once, in either family.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nftproxyd::model::{Family, Protocol};
use nftproxyd::ruleset::Ruleset;
use nftproxyd::ruleset::base::{self, Detector, FrameFacts, NodePortScope};
use nftproxyd::ruleset::elements::dispatch_elements;
use nftproxyd::ruleset::extras::Extras;
use nftproxyd::ruleset::kinds::Kind;
use nftproxyd::ruleset::names::{By, Masquerade, Pick, SetName, TableName};
use nftproxyd::ruleset::types::{Data, Element, Key, Value};

use Protocol::{Sctp, Tcp, Udp};

/// Turns an IPv4 text of this sample into the address of the family: `a.b.c.d` is `fd00:a:b:c::d` in IPv6.
pub(crate) fn ip(family: Family, v4: &str) -> IpAddr {
    match family {
        Family::V4 => v4.parse().unwrap(),
        Family::V6 => {
            let parts: Vec<&str> = v4.split('.').collect();
            format!("fd00:{}:{}:{}::{}", parts[0], parts[1], parts[2], parts[3]).parse().unwrap()
        }
    }
}

/// The same for a range: in IPv6 its prefix is 16 bits longer, and each byte becomes 16 bits.
pub(crate) fn net(family: Family, v4: &str) -> IpNet {
    let (address, prefix) = v4.split_once('/').unwrap();
    let prefix: u8 = prefix.parse().unwrap();
    match family {
        Family::V4 => v4.parse().unwrap(),
        Family::V6 => IpNet::new(ip(family, address), if prefix == 32 { 128 } else { 16 + prefix * 2 }).unwrap(),
    }
}

/// Pods are known by their range, node ports by a list, and there is affinity.
pub(crate) fn facts(family: Family) -> FrameFacts {
    FrameFacts {
        table: TableName::NODE,
        family,
        detector: Some(Detector::Source(net(family, "10.124.0.0/16"))),
        mark: 0x4000,
        masquerade_all: false,
        service_cidrs: vec![net(family, "10.96.0.0/16")],
        node_ports: NodePortScope::Listed,
        stray_cluster_ips: false,
        affinity: true,
        keeps_ports: true,
        counters: false,
        extras: Extras::NONE,
        node_ip: None,
    }
}

/// The node's addresses.
pub(crate) fn local_addresses(family: Family) -> BTreeSet<IpAddr> {
    BTreeSet::from([ip(family, "10.125.0.1"), ip(family, "10.125.0.2")])
}

const BOTH: [&str; 2] = ["10.124.0.10", "10.124.1.11"];
/// The first endpoint is on the node.
const LOCAL: [&str; 1] = ["10.124.0.10"];

/// The endpoints that the sample's kinds lead to.
pub(crate) fn endpoint(family: Family, address: &str) -> SocketAddr {
    SocketAddr::new(ip(family, address), 8080)
}

struct Sample {
    family: Family,
    sets: Vec<(SetName, Element)>,
}

impl Sample {
    fn add(&mut self, set: SetName, key: &[Value], data: Data, comment: Option<&str>) {
        let element = Element { key: Key::from_slice(key), key_end: None, data, comment: comment.map(Into::into) };
        self.sets.push((set, element));
    }

    fn key(&self, address: Option<&str>, protocol: Protocol, port: u16) -> Vec<Value> {
        let address = address.map(|it| Value::Address(ip(self.family, it)));
        address.into_iter().chain([Value::Protocol(protocol), Value::Port(port)]).collect()
    }

    /// A frontend (a node port where there is no address) with its kind.
    fn frontend(&mut self, name: &str, address: Option<&str>, protocol: Protocol, port: u16, kind: Kind) {
        let set = if address.is_some() { SetName::ServiceIps } else { SetName::ServiceNodeports };
        self.add(set, &self.key(address, protocol, port), kind.data(), Some(name));
    }

    fn second(&mut self, set: SetName, address: Option<&str>, port: u16, kind: Kind) {
        self.add(set, &self.key(address, Tcp, port), kind.data(), None);
    }

    fn endpoints(&mut self, address: Option<&str>, protocol: Protocol, port: u16, first: u32, endpoints: &[&str]) {
        let set = if address.is_some() { SetName::Endpoints } else { SetName::NodeportEndpoints };
        for (slot, endpoint) in (first..).zip(endpoints) {
            let mut key = self.key(address, protocol, port);
            key.push(Value::Slot(slot));
            let data = [Value::Address(ip(self.family, endpoint)), Value::Port(8080)];
            self.add(set, &key, Data::Values(data.into()), None);
        }
    }
}

fn pick(slots: u32) -> Pick {
    let (masquerade, by) = (Masquerade::Never, By::Random);
    Pick { nodeport: false, masquerade, sticky: false, local: false, by, slots }
}

/// The ruleset.
pub(crate) fn ruleset(facts: &FrameFacts) -> Ruleset {
    let family = facts.family;
    let mut s = Sample { family, sets: Vec::new() };
    let cluster = |pick: Pick| Kind::Pick(Pick { masquerade: facts.cluster_ip_masquerade(), ..pick });
    let masq = |pick: Pick| Pick { masquerade: Masquerade::Always, ..pick };
    let np = |pick: Pick| Pick { nodeport: true, ..pick };
    let sticky = |pick: Pick| Pick { sticky: true, ..pick };
    let local = |pick: Pick| Pick { local: true, ..pick };

    s.frontend("default/web:http", Some("10.96.0.1"), Tcp, 80, cluster(pick(2)));
    s.endpoints(Some("10.96.0.1"), Tcp, 80, 0, &BOTH);
    s.frontend("default/web:http", None, Tcp, 30080, Kind::Pick(np(masq(pick(2)))));
    s.endpoints(None, Tcp, 30080, 0, &BOTH);
    s.frontend("default/empty:http", Some("10.96.0.2"), Tcp, 80, Kind::Reject);
    s.frontend("default/int-local:http", Some("10.96.0.3"), Tcp, 80, Kind::Drop);
    s.frontend("default/int-local-one", Some("10.96.0.5"), Tcp, 80, cluster(local(pick(1))));
    s.endpoints(Some("10.96.0.5"), Tcp, 80, Pick::LOCAL_OFFSET, &LOCAL);
    s.frontend("default/dns:dns", Some("10.96.0.6"), Udp, 53, cluster(pick(1)));
    s.endpoints(Some("10.96.0.6"), Udp, 53, 0, &LOCAL);
    s.frontend("default/dns:assoc", Some("10.96.0.6"), Sctp, 99, cluster(pick(1)));
    s.endpoints(Some("10.96.0.6"), Sctp, 99, 0, &LOCAL);
    // An endpoint in the node's own network namespace.
    s.frontend("default/host", Some("10.96.0.7"), Tcp, 443, cluster(pick(1)));
    s.endpoints(Some("10.96.0.7"), Tcp, 443, 0, &["10.125.0.1"]);
    s.frontend("default/etp-cluster:http", Some("192.0.2.4"), Tcp, 80, Kind::Pick(masq(pick(2))));
    s.endpoints(Some("192.0.2.4"), Tcp, 80, 0, &BOTH);

    s.frontend("default/ranges:http", Some("192.0.2.5"), Tcp, 80, Kind::SourceRanges);
    s.second(SetName::AfterSourceRanges, Some("192.0.2.5"), 80, Kind::Pick(masq(pick(2))));
    s.endpoints(Some("192.0.2.5"), Tcp, 80, 0, &BOTH);
    // Node ports of the same, where they are guarded as well.
    let guarded = facts.extras.nodeport_ranges;
    let whole = net(family, "10.125.0.0/16");
    let part = [ip(family, "203.0.113.3"), ip(family, "203.0.113.6")];
    let ranges = [("192.0.2.5", [whole.network(), whole.broadcast()]), ("192.0.2.5", part), ("192.0.2.8", part)];
    for (address, [first, last]) in ranges {
        let end = |source| Key::from_iter(s.key(Some(address), Tcp, 80).into_iter().chain([Value::Address(source)]));
        let element = Element { key: end(first), key_end: Some(end(last)), data: Data::None, comment: None };
        s.sets.push((SetName::AllowedSources, element));
    }

    // externalTrafficPolicy Local: with an endpoint on the node, and with none.
    for (address, kind) in [("192.0.2.6", Kind::Pick(local(pick(1)))), ("192.0.2.7", Kind::Drop)] {
        s.frontend("default/etp-local:http", Some(address), Tcp, 80, Kind::ExternalLocal);
        s.second(SetName::ClusterPolicy, Some(address), 80, Kind::Pick(pick(2)));
        s.second(SetName::LocalPolicy, Some(address), 80, kind);
        s.endpoints(Some(address), Tcp, 80, 0, &BOTH);
    }
    s.endpoints(Some("192.0.2.6"), Tcp, 80, Pick::LOCAL_OFFSET, &LOCAL);
    // The same, and only some sources.
    s.frontend("default/etp-local-ranges:http", Some("192.0.2.8"), Tcp, 80, Kind::SourceRangesLocal);
    s.second(SetName::ClusterPolicy, Some("192.0.2.8"), 80, Kind::Pick(pick(2)));
    s.second(SetName::LocalPolicy, Some("192.0.2.8"), 80, Kind::Pick(local(pick(1))));
    s.endpoints(Some("192.0.2.8"), Tcp, 80, 0, &BOTH);
    s.endpoints(Some("192.0.2.8"), Tcp, 80, Pick::LOCAL_OFFSET, &LOCAL);
    for (port, kind) in [(30081, Kind::Pick(np(local(pick(1))))), (30083, Kind::Drop)] {
        s.frontend("default/etp-local:http", None, Tcp, port, Kind::NodeportLocal);
        s.second(SetName::NodeportClusterPolicy, None, port, Kind::Pick(np(pick(2))));
        s.second(SetName::NodeportLocalPolicy, None, port, kind);
        s.endpoints(None, Tcp, port, 0, &BOTH);
    }
    s.endpoints(None, Tcp, 30081, Pick::LOCAL_OFFSET, &LOCAL);

    if guarded {
        s.frontend("default/ranges:http", None, Tcp, 30086, Kind::NodeportSourceRanges);
        s.second(SetName::NodeportAfterSourceRanges, None, 30086, Kind::Pick(np(masq(pick(2)))));
        s.endpoints(None, Tcp, 30086, 0, &BOTH);
        s.frontend("default/etp-local-ranges:http", None, Tcp, 30087, Kind::NodeportSourceRangesLocal);
        s.second(SetName::NodeportClusterPolicy, None, 30087, Kind::Pick(np(pick(2))));
        s.second(SetName::NodeportLocalPolicy, None, 30087, Kind::Pick(np(local(pick(1)))));
        s.endpoints(None, Tcp, 30087, 0, &BOTH);
        s.endpoints(None, Tcp, 30087, Pick::LOCAL_OFFSET, &LOCAL);
        for (port, [first, last]) in [(30086, [whole.network(), whole.broadcast()]), (30086, part), (30087, part)] {
            let end = |source| Key::from_iter(s.key(None, Tcp, port).into_iter().chain([Value::Address(source)]));
            let element = Element { key: end(first), key_end: Some(end(last)), data: Data::None, comment: None };
            s.sets.push((SetName::NodeportAllowedSources, element));
        }
    }

    if facts.affinity {
        s.frontend("default/sticky:http", Some("10.96.0.4"), Tcp, 80, cluster(sticky(pick(2))));
        s.endpoints(Some("10.96.0.4"), Tcp, 80, 0, &BOTH);
        s.second(SetName::AffinityTimeouts, Some("10.96.0.4"), 80, Kind::RememberFor(10_800));
        s.frontend("default/sticky:http", None, Tcp, 30082, Kind::Pick(np(masq(sticky(pick(2))))));
        s.endpoints(None, Tcp, 30082, 0, &BOTH);
        s.second(SetName::NodeportAffinityTimeouts, None, 30082, Kind::RememberFor(10_800));
    }
    if facts.keeps_ports {
        let by = |by, pick: Pick| Pick { by, ..pick };
        // The first endpoint twice as often.
        s.frontend("default/turns:http", Some("10.96.0.8"), Tcp, 80, cluster(by(By::Turn(0), pick(3))));
        s.endpoints(Some("10.96.0.8"), Tcp, 80, 0, &[BOTH[0], BOTH[1], BOTH[0]]);
        s.frontend("default/turns:http", Some("192.0.2.9"), Tcp, 80, Kind::Pick(masq(by(By::Turn(0), pick(3)))));
        s.endpoints(Some("192.0.2.9"), Tcp, 80, 0, &[BOTH[0], BOTH[1], BOTH[0]]);
        s.frontend("default/turns:http", None, Tcp, 30084, Kind::Pick(np(masq(sticky(by(By::Turn(7), pick(2)))))));
        s.endpoints(None, Tcp, 30084, 0, &BOTH);
        s.frontend("default/hash:http", Some("10.96.0.9"), Tcp, 80, cluster(by(By::Source, pick(2))));
        s.endpoints(Some("10.96.0.9"), Tcp, 80, 0, &BOTH);
        s.frontend("default/hash:http", None, Tcp, 30085, Kind::Pick(np(masq(by(By::MaglevAndPort, pick(2))))));
        s.endpoints(None, Tcp, 30085, 0, &BOTH);
        s.frontend("default/hash:other", Some("10.96.0.9"), Tcp, 81, cluster(by(By::Destination, pick(2))));
        s.endpoints(Some("10.96.0.9"), Tcp, 81, 0, &BOTH);
        let kept = s.key(Some("10.96.0.9"), Tcp, 80);
        s.add(SetName::KeptPorts, &kept, Data::None, None);
        let kept = s.key(None, Tcp, 30085);
        s.add(SetName::NodeportKeptPorts, &kept, Data::None, None);
    }

    for last in 1..=9 {
        s.add(SetName::ClusterIps, &[Value::Address(ip(family, &format!("10.96.0.{last}")))], Data::None, None);
    }
    if facts.extras.ping {
        for pinged in ["10.96.0.1", "192.0.2.4"] {
            s.add(SetName::PingIps, &[Value::Address(ip(family, pinged))], Data::None, None);
        }
    }
    s.add(SetName::NodeportIps, &[Value::Address(ip(family, "10.125.0.1"))], Data::None, None);
    for endpoint in LOCAL {
        let address = Value::Address(ip(family, endpoint));
        s.add(SetName::LocalEndpoints, &[address], Data::None, None);
        s.add(SetName::Hairpin, &[address, address], Data::None, None);
    }

    let kinds: BTreeSet<Kind> = s.sets.iter().filter_map(|(_, element)| Kind::of_data(&element.data)).collect();
    let chains = base::all_chains(kinds.iter().filter_map(|kind| kind.on_demand()), facts);
    let all: BTreeSet<Kind> =
        chains.iter().filter_map(|chain| Kind::of_chain(chain.name)).chain([Kind::Drop]).collect();
    s.sets.extend(all.into_iter().flat_map(dispatch_elements));
    let elements = |name| s.sets.iter().filter(|(set, _)| *set == name).map(|(_, element)| element.clone()).collect();
    let sets = base::frame(facts).sets.into_iter().map(|def| (def.clone(), elements(def.name))).collect();
    Ruleset { table: facts.table, family, sets, chains }
}
