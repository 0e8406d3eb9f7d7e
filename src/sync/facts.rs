//! What the tables depend on besides Services: the configuration, the Node, the ranges of cluster IPs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::addresses::{Accepted, NodePortAddresses};
use crate::config::DetectLocal;
use crate::model::claims::Claims;
use crate::model::store::Store;
use crate::model::{Family, PerFamily, Scheduler, Service};
use crate::ruleset::base::{self, Detector, FrameFacts};
use crate::ruleset::extras::Extras;
use crate::ruleset::names::{Masquerade, TableName};
use crate::ruleset::service::ServiceFacts;

/// What the ruleset depends on besides the objects of the cluster: the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The name of the tables. Any but the node's own are of a proxy that serves beside another.
    pub table: TableName,
    /// How a pod's packet is told from others.
    pub detect_local: DetectLocal,
    /// Which of the node's addresses accept node ports.
    pub node_ports: NodePortAddresses,
    /// The bit of the packet mark that means "masquerade", 0..=31.
    pub masquerade_bit: u8,
    /// Masquerade every connection to a cluster IP.
    pub masquerade_all: bool,
    /// The node's addresses, where configured rather than taken from the Node object.
    pub node_ips: PerFamily<Option<IpAddr>>,
    /// How endpoints are chosen where a Service does not say.
    pub scheduler: Scheduler,
    /// Whether the kernel can choose endpoints by a hash.
    pub hashes: bool,
    /// Whether each frontend counts its connections.
    pub counters: bool,
    /// Whether addresses of Services answer pings where a Service does not say.
    pub ping: bool,
    /// The longest wait between two attempts of a failing sync.
    pub longest_retry: Duration,
}

/// Rules that are there from the first Service on that needs them, and for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Used {
    /// Session affinity.
    pub(super) affinity: bool,
    /// Endpoints by a hash of the client.
    pub(super) keeps_ports: bool,
    /// What else not every table has.
    pub(super) extras: Extras,
}

impl Used {
    pub(super) fn of(facts: &FrameFacts) -> Used {
        Used { affinity: facts.affinity, keeps_ports: facts.keeps_ports, extras: facts.extras }
    }

    /// What a Service needs.
    pub(super) fn by(service: &Service, facts: &Facts) -> Used {
        let by_client = service.scheduler.unwrap_or(facts.scheduler).is_by_client();
        let nodeport_ranges = service.ranges_everywhere && service.source_ranges.is_some();
        let extras = Extras { nodeport_ranges, ping: service.ping.unwrap_or(facts.ping) };
        Used { affinity: service.affinity.is_some(), keeps_ports: by_client, extras }
    }

    /// This, and more.
    pub(super) fn with(self, more: Used) -> Used {
        Used {
            affinity: self.affinity || more.affinity,
            keeps_ports: self.keeps_ports || more.keeps_ports,
            extras: self.extras.with(more.extras),
        }
    }
}

/// The facts of one family's frame, and the addresses that accept node ports where they are listed.
pub(super) fn frame_facts(
    family: Family,
    (facts, beside): (&Facts, bool),
    store: &Store,
    claims: &Claims,
    addresses: &BTreeSet<IpAddr>,
    Used { affinity, keeps_ports, extras }: Used,
) -> (FrameFacts, BTreeSet<IpAddr>) {
    let node_ips = node_ips(facts, store);
    let (node_ports, nodeport_ips) = match facts.node_ports.accepted(&node_ips, addresses)[family].clone() {
        Accepted::All => (base::NodePortScope::All, BTreeSet::new()),
        Accepted::Only(addresses) => (base::NodePortScope::Listed, addresses),
    };
    let frame = FrameFacts {
        table: facts.table,
        family,
        detector: detector(facts, store, family),
        mark: 1 << facts.masquerade_bit,
        masquerade_all: facts.masquerade_all,
        service_cidrs: service_cidrs(beside, store, family),
        node_ports,
        stray_cluster_ips: claims.stray(family),
        affinity,
        keeps_ports,
        counters: facts.counters,
        extras,
        node_ip: node_ips[family],
    };
    (frame, nodeport_ips)
}

/// The ranges in which cluster IPs that no Service has are dropped.
pub(super) fn service_cidrs(beside: bool, store: &Store, family: Family) -> Vec<IpNet> {
    if beside { Vec::new() } else { store.service_cidrs(family) }
}

fn detector(facts: &Facts, store: &Store, family: Family) -> Option<Detector> {
    match &facts.detect_local {
        DetectLocal::ClusterCidr(ranges) => ranges[family].map(Detector::Source),
        DetectLocal::NodeCidr => {
            let cidrs = store.node().map(|node| &node.pod_cidrs[..]).unwrap_or_default();
            cidrs.iter().copied().find(|cidr| Family::of(cidr.addr()) == family).map(Detector::Source)
        }
        DetectLocal::BridgeInterface(name) => Some(Detector::Interface(name.as_str().into())),
        DetectLocal::InterfaceNamePrefix(prefix) => Some(Detector::InterfacePrefix(prefix.as_str().into())),
    }
}

pub(super) fn node_ips(facts: &Facts, store: &Store) -> PerFamily<Option<IpAddr>> {
    PerFamily::from_fn(|family| facts.node_ips[family].or_else(|| store.node().and_then(|node| node.addresses[family])))
}

pub(super) fn service_facts(facts: &Facts, store: &Store) -> PerFamily<ServiceFacts> {
    let node_ips = node_ips(facts, store);
    PerFamily::from_fn(|family| ServiceFacts {
        cluster_ip_masquerade: if facts.masquerade_all {
            Masquerade::Always
        } else if detector(facts, store, family).is_some() {
            Masquerade::FromOutside
        } else {
            Masquerade::Never
        },
        node_ip: node_ips[family],
        scheduler: facts.scheduler,
        hashes: facts.hashes,
        ping: facts.ping,
    })
}
