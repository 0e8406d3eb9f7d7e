//! A node of a cluster, with a kernel in memory.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use nftproxyd::addresses::NodePortAddresses;
use nftproxyd::config::DetectLocal;
use nftproxyd::model::{Event, Family, Kind, PerFamily, Protocol, Scheduler};
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::ruleset::Ruleset;
use nftproxyd::ruleset::eval::{Origin, Outcome, Packet, Trace, Tracer};
use nftproxyd::ruleset::names::{SetName, TableName};
use nftproxyd::ruleset::types::Element;
use nftproxyd::source::convert::{Converter, Options};
use nftproxyd::sync::{Engine, Facts};

use crate::looks::look;

/// The name of the node.
pub(crate) const NODE: &str = "n1";

/// The interface by which packets of this node's pods arrive, and the one for all others.
pub(crate) const POD_INTERFACE: &str = "cni0";
pub(crate) const OUTER_INTERFACE: &str = "eth0";

/// A configuration: pods are known by the cluster's range, node ports accepted on the node's own address.
pub(crate) fn facts() -> Facts {
    let range = |text: &str| Some(text.parse().expect("a range"));
    Facts {
        table: TableName::NODE,
        detect_local: DetectLocal::ClusterCidr(PerFamily { v4: range("10.0.0.0/8"), v6: range("fd10::/16") }),
        node_ports: NodePortAddresses::Primary,
        masquerade_bit: 14,
        masquerade_all: false,
        node_ips: PerFamily::default(),
        scheduler: Scheduler::Random,
        hashes: true,
        counters: false,
        ping: false,
        longest_retry: Duration::from_secs(30),
    }
}

/// What the proxy knows of the cluster, and the node that it runs on.
pub(crate) struct Cluster {
    pub(crate) engine: Engine<InMemoryKernel>,
    converter: Converter,
    addresses: BTreeSet<IpAddr>,
    now: Instant,
}

impl Cluster {
    /// A cluster without objects, on a node with these addresses besides loopback.
    pub(crate) fn new(facts: Facts, addresses: &[IpAddr]) -> Cluster {
        let addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        let mut engine = Engine::new(InMemoryKernel::new(), facts);
        engine.set_addresses(addresses.clone());
        for kind in Kind::ALL {
            engine.apply(Event::ListStarted(kind));
            engine.apply(Event::ListDone(kind));
        }
        Cluster { engine, converter: converter(true), addresses, now: Instant::now() }
    }

    /// With the feature gate `AllowServiceExternalIPs` off.
    pub(crate) fn without_external_ips(self) -> Cluster {
        Cluster { converter: converter(false), ..self }
    }

    /// An object is there, or changed.
    pub(crate) fn apply(&mut self, object: &Value) {
        for event in events(&self.converter, object) {
            self.engine.apply(event);
        }
    }

    /// An object is gone.
    pub(crate) fn delete(&mut self, object: &Value) {
        for event in events(&self.converter, object) {
            match event {
                Event::Service(service) => self.engine.apply(Event::ServiceGone(service.name)),
                Event::Slice { slice, .. } => self.engine.apply(Event::SliceGone(slice.name)),
                Event::Node(_) => self.engine.apply(Event::NodeGone),
                Event::ServiceCidr(_) => {
                    let name = object["metadata"]["name"].as_str().expect("a name");
                    self.engine.apply(Event::ServiceCidrGone(name.into()));
                }
                _ => {}
            }
        }
    }

    /// The node has these addresses now, besides loopback.
    pub(crate) fn set_addresses(&mut self, addresses: &[IpAddr]) {
        self.addresses = addresses.iter().copied().collect();
        self.engine.set_addresses(self.addresses.clone());
        self.sync();
    }

    /// Brings the kernel in line, some time after the last sync. Then it holds what the engine says that it holds.
    pub(crate) fn sync(&mut self) {
        self.now += Duration::from_secs(60);
        let report = self.engine.sync(self.now);
        assert_eq!(report.failures, 0, "{}", report.error_text());
        assert!(!self.engine.is_behind(), "one sync is enough");
        look(&mut self.engine, self.now);
        for family in Family::ALL {
            let ruleset = self.engine.ruleset(family);
            let kernel = self.engine.kernel();
            for chain in &ruleset.chains {
                let rules = kernel.rules_of(family, chain.name);
                assert_eq!(rules.as_ref(), Some(&chain.rules), "chain {} of the kernel", chain.name);
            }
            for (def, elements) in ruleset.sets.iter().filter(|(def, _)| def.name != SetName::Affinity) {
                let sorted = |mut elements: Vec<Element>| {
                    elements.sort_unstable();
                    elements
                };
                let held = sorted(kernel.elements_of(family, def.name));
                assert_eq!(held, sorted(elements.clone()), "elements of {} in the kernel", def.name);
            }
        }
    }

    /// What becomes of a packet. It is the node's own if its source is; by which interface others come in is not known.
    pub(crate) fn trace(&self, source: IpAddr, protocol: Protocol, destination: SocketAddr) -> Trace {
        self.trace_knowing(&[], source, protocol, destination)
    }

    /// The same, with elements in the map of clients that are known.
    pub(crate) fn trace_knowing(
        &self,
        known: &[Element],
        source: IpAddr,
        protocol: Protocol,
        destination: SocketAddr,
    ) -> Trace {
        let mut ruleset: Ruleset = self.engine.ruleset(Family::of(source));
        let affinity = ruleset.sets.iter_mut().find(|(def, _)| def.name == SetName::Affinity);
        affinity.expect("the map is always there").1.extend(known.iter().cloned());
        let origin =
            if self.addresses.contains(&source) || source.is_loopback() { Origin::Node } else { Origin::Arrives(None) };
        let packet = Packet { source, destination: destination.ip(), protocol, port: destination.port(), origin };
        let tracer = Tracer::new(&ruleset, &self.addresses).expect("the ruleset is sound");
        tracer.trace(&packet).expect("the packet can be followed")
    }

    /// What becomes of a ping, in words.
    pub(crate) fn ping(&self, source: IpAddr, destination: IpAddr) -> String {
        let ruleset: Ruleset = self.engine.ruleset(Family::of(source));
        let origin = if self.addresses.contains(&source) { Origin::Node } else { Origin::Arrives(None) };
        let tracer = Tracer::new(&ruleset, &self.addresses).expect("the ruleset is sound");
        shown(&tracer.ping(source, destination, origin).expect("the ping can be followed").outcome, &[])
    }

    /// Compares what becomes of packets with what should: source, `protocol address:port`, and in words `reject`,
    /// `drop`, `pass`, or the endpoints by name, masqueraded ones followed by `(m)`.
    #[track_caller]
    pub(crate) fn check(&self, what: &str, endpoints: &[(&str, &str)], packets: &[(&str, &str, &str)]) {
        for (source, destination, expected) in packets {
            let (protocol, to) = destination_of(destination);
            let trace = self.trace(ip(source), protocol, to);
            let shown = shown(&trace.outcome, endpoints);
            assert_eq!(shown, *expected, "{what}: {source} -> {destination}\n{trace}");
        }
    }
}

pub(crate) fn converter(allow_external_ips: bool) -> Converter {
    Converter::new(Options { node_name: NODE.into(), allow_external_ips, service_proxy_name: None })
}

/// What a source says of an object.
pub(crate) fn events(converter: &Converter, object: &Value) -> Vec<Event> {
    let object = object.clone();
    match object["kind"].as_str() {
        Some("Service") => converter.service(&serde_json::from_value(object).expect("a Service")),
        Some("EndpointSlice") => converter.slice(&serde_json::from_value(object).expect("an EndpointSlice")),
        Some("Node") => converter.node(&serde_json::from_value(object).expect("a Node")),
        Some("ServiceCIDR") => converter.service_cidr(&serde_json::from_value(object).expect("a ServiceCIDR")),
        kind => panic!("{kind:?} is no kind that the proxy reads"),
    }
}

/// This node, with these addresses (host names are left out) and pod ranges.
pub(crate) fn node(addresses: &[&str], pod_cidrs: &[&str], zone: &str) -> Value {
    let address = |text: &&str| json!({"type": "InternalIP", "address": text});
    json!({
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": zone}},
        "spec": {"podCIDRs": pod_cidrs},
        "status": {"addresses": addresses.iter().map(address).collect::<Vec<_>>()},
    })
}

/// The ranges of cluster IPs.
pub(crate) fn service_cidr(name: &str, cidrs: &[&str]) -> Value {
    json!({"kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": cidrs}})
}

/// Merges `patch` into `base` as a JSON merge patch (RFC 7396) does.
pub(crate) fn merge(base: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *base = patch.clone();
        return;
    };
    for (key, value) in patch {
        merge(&mut base[key], value);
    }
}

/// An address.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `tcp 172.30.0.1:80`.
pub(crate) fn destination_of(text: &str) -> (Protocol, SocketAddr) {
    let (protocol, to) = text.split_once(' ').expect("a protocol and a destination");
    let protocol = Protocol::from_name(protocol).expect("a protocol");
    (protocol, to.parse().expect("an address and a port"))
}

/// An outcome, with names for its endpoints.
pub(crate) fn shown(outcome: &Outcome, names: &[(&str, &str)]) -> String {
    let Outcome::Forward(endpoints) = outcome else { return outcome.to_string() };
    let name = |endpoint: &SocketAddr| {
        let text = endpoint.to_string();
        names.iter().find(|(_, at)| *at == text).map_or(text, |(name, _)| (*name).to_owned())
    };
    let one = |reached: &nftproxyd::ruleset::eval::Reached| {
        format!("{}{}", name(&reached.endpoint), if reached.masqueraded { "(m)" } else { "" })
    };
    endpoints.iter().map(one).collect::<Vec<_>>().join(" ")
}
