//! The part of the ruleset that belongs to one Service: its frontends, and the elements that each of them needs.
//!
//! A [`Frontend`] is what the proxy remembers of what it installed; [`elements`] spreads it over the sets and maps.
//! Both are functions of values, so the difference of two frontends is the difference of their elements.

use std::net::IpAddr;
use std::num::NonZeroU16;

use arcstr::ArcStr;
use ipnet::IpNet;
use smallvec::{SmallVec, smallvec};

use super::names::{ChainName, Masquerade, Pick, SetName};
use super::ranges::{self, Range};
use super::types::{Data, Element, Key, Value, Verdict};
use crate::model::policy::{Choice, Target};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, Service, ServicePort, TrafficPolicy};

/// The longest comment of an element, in bytes: nft 1.0.6 reads 128 with the closing NUL (`NFTNL_UDATA_COMMENT_MAXLEN`
/// of include/libnftnl/udata.h). Namespace, name and port name together can be longer.
const COMMENT_MAX: usize = 127;

/// Where a frontend's connections may go: an address and port that a connection is translated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's port.
    pub port: NonZeroU16,
}

impl From<&Target> for Backend {
    fn from(target: &Target) -> Backend {
        Backend { address: target.address, port: target.port }
    }
}

/// The endpoints of a frontend in the order of their slots. At most [`Pick::LOCAL_OFFSET`] of them.
pub type Slots = Box<[Backend]>;

/// What becomes of a connection to a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Refused: there is no endpoint anywhere.
    Reject,
    /// Dropped: there are endpoints, but the policy allows none of them here.
    Drop,
    /// Translated to one of the slots.
    Forward {
        /// Which connections are masqueraded.
        masquerade: Masquerade,
        /// Seconds of session affinity.
        affinity: Option<u32>,
        /// At least one.
        slots: Slots,
    },
    /// `externalTrafficPolicy: Local`: connections from inside the cluster may use all endpoints, those from outside only
    /// the ones on this node; if there are none they are dropped.
    Split {
        /// Seconds of session affinity.
        affinity: Option<u32>,
        /// At least one.
        cluster: Slots,
        /// May be empty.
        local: Slots,
    },
}

/// What is installed for one [`FrontendKey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The Service it belongs to.
    pub service: ObjectName,
    /// The name of the Service's port; with the Service's name, the comment of its element.
    pub port_name: ArcStr,
    /// What becomes of a connection.
    pub action: Action,
    /// `loadBalancerSourceRanges`: the only sources that are not dropped, sorted and merged. `None`: all are allowed.
    pub allowed_sources: Option<Box<[Range]>>,
}

/// An element that several Services may need: it is there as long as one of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shared {
    /// A cluster IP, in `cluster-ips`.
    ClusterIp(IpAddr),
    /// An endpoint on this node, in `hairpin`.
    Hairpin(IpAddr),
}

/// Everything that one Service wants in one family's table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePart {
    /// Sorted by key, each key once.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// Sorted, each once.
    pub shared: Vec<Shared>,
}

/// What a Service's part of the ruleset depends on besides the Service, per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceFacts {
    /// How connections to a cluster IP are masqueraded: `FromOutside` where pods can be told apart, `Never` where they
    /// cannot, `Always` with `masqueradeAll`.
    pub cluster_ip_masquerade: Masquerade,
    /// This node's own address: if it is among the allowed source ranges, the load-balancer IPs are too, because a
    /// packet of the node may carry one as its source.
    pub node_ip: Option<IpAddr>,
}

/// The part of one Service in one family's table.
///
/// `owns` tells whether this port of the Service owns a frontend (another Service may claim the same), `choose` which
/// endpoints a port may use, `previous` what is installed for a key: slots are kept where they are as far as possible.
pub fn wanted<'a>(
    service: &Service,
    family: Family,
    facts: &ServiceFacts,
    owns: impl Fn(&FrontendKey, &ServicePort) -> bool,
    choose: impl Fn(&ServicePort) -> Choice,
    previous: impl Fn(&FrontendKey) -> Option<&'a Frontend>,
) -> ServicePart {
    let Some(cluster_ip) = service.cluster_ips[family] else { return ServicePart::default() };
    let mut wanted = ServicePart { frontends: Vec::new(), shared: vec![Shared::ClusterIp(cluster_ip)] };
    for port in &service.ports {
        let choice = choose(port);
        let mut add = |at: FrontendAt, number: NonZeroU16, internal: bool, guarded: bool| {
            let key = FrontendKey { at, protocol: port.protocol, port: number };
            if !owns(&key, port) || wanted.frontends.iter().any(|(other, _)| *other == key) {
                return;
            }
            let action =
                if internal { internal_action(service, &choice, facts) } else { external_action(service, &choice) };
            let mut frontend = Frontend {
                service: service.name.clone(),
                port_name: port.name.clone(),
                action,
                allowed_sources: guarded.then(|| allowed_sources(service, family, facts)).flatten(),
            };
            if let Some(installed) = previous(&key) {
                keep_slots(&mut frontend.action, &installed.action);
            }
            wanted.frontends.push((key, frontend));
        };
        add(FrontendAt::Address(cluster_ip), port.port, true, false);
        // Load-balancer IPs before external IPs: where an address is both, its source ranges count.
        for address in service.load_balancer_ips.iter().filter(|address| Family::of(**address) == family) {
            add(FrontendAt::Address(*address), port.port, false, true);
        }
        for address in service.external_ips.iter().filter(|address| Family::of(**address) == family) {
            add(FrontendAt::Address(*address), port.port, false, false);
        }
        if let Some(node_port) = port.node_port {
            add(FrontendAt::NodePort(family), node_port, false, false);
        }
        let reachable = choice.cluster.iter().chain(&choice.local);
        wanted.shared.extend(reachable.filter(|target| target.local).map(|target| Shared::Hairpin(target.address)));
    }
    wanted.frontends.sort_by_key(|(key, _)| *key);
    wanted.shared.sort_unstable();
    wanted.shared.dedup();
    wanted
}

fn internal_action(service: &Service, choice: &Choice, facts: &ServiceFacts) -> Action {
    let targets = match service.internal_policy {
        TrafficPolicy::Cluster => &choice.cluster,
        TrafficPolicy::Local => &choice.local,
    };
    forward(choice, targets, facts.cluster_ip_masquerade, service.affinity)
}

fn external_action(service: &Service, choice: &Choice) -> Action {
    match service.external_policy {
        TrafficPolicy::Cluster => forward(choice, &choice.cluster, Masquerade::Always, service.affinity),
        TrafficPolicy::Local if choice.any && !choice.cluster.is_empty() => {
            Action::Split { affinity: service.affinity, cluster: slots(&choice.cluster), local: slots(&choice.local) }
        }
        TrafficPolicy::Local => forward(choice, &choice.local, Masquerade::Never, service.affinity),
    }
}

fn forward(choice: &Choice, targets: &[Target], masquerade: Masquerade, affinity: Option<u32>) -> Action {
    if !choice.any {
        Action::Reject
    } else if targets.is_empty() {
        Action::Drop
    } else {
        Action::Forward { masquerade, affinity, slots: slots(targets) }
    }
}

fn slots(targets: &[Target]) -> Slots {
    targets.iter().take(Pick::LOCAL_OFFSET as usize).map(Backend::from).collect()
}

/// The ranges that may reach a load-balancer IP; `None` where all sources may: no range of this family, or a `/0`.
fn allowed_sources(service: &Service, family: Family, facts: &ServiceFacts) -> Option<Box<[Range]>> {
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    let nets: SmallVec<[IpNet; 8]> =
        service.source_ranges.iter().filter(|net| of_family(&net.network())).copied().collect();
    if nets.is_empty() || nets.iter().any(|net| net.prefix_len() == 0) {
        return None;
    }
    let mut allowed: Vec<Range> = nets.iter().map(Range::of).collect();
    if facts.node_ip.is_some_and(|node_ip| nets.iter().any(|net| net.contains(&node_ip))) {
        allowed.extend(service.load_balancer_ips.iter().copied().filter(of_family).map(Range::single));
    }
    Some(ranges::merge(allowed).into())
}

/// Arranges the slots of a new action as the installed one has them, as far as its endpoints are still wanted.
fn keep_slots(action: &mut Action, installed: &Action) {
    let (cluster, local) = match installed {
        Action::Forward { slots, .. } => (slots, None),
        Action::Split { cluster, local, .. } => (cluster, Some(local)),
        Action::Reject | Action::Drop => return,
    };
    match action {
        Action::Forward { slots, .. } => *slots = arrange(cluster, slots),
        Action::Split { cluster: wanted_cluster, local: wanted_local, .. } => {
            *wanted_cluster = arrange(cluster, wanted_cluster);
            if let Some(local) = local {
                *wanted_local = arrange(local, wanted_local);
            }
        }
        Action::Reject | Action::Drop => {}
    }
}

/// Puts the wanted endpoints into slots so that as few slots as possible differ from the installed ones: an endpoint that
/// stays keeps its slot; one beyond the new count moves into a gap; new ones fill what is left. So removing one of N
/// changes two slots, whatever N. `wanted` must be sorted; the cost is O(N log N).
pub fn arrange(installed: &[Backend], wanted: &[Backend]) -> Slots {
    let mut slots: Vec<Option<Backend>> = vec![None; wanted.len()];
    let mut placed = vec![false; wanted.len()];
    let mut moving = Vec::new();
    for (slot, backend) in installed.iter().enumerate() {
        let Ok(index) = wanted.binary_search(backend) else { continue };
        if std::mem::replace(&mut placed[index], true) {
            continue;
        }
        match slots.get_mut(slot) {
            Some(free) => *free = Some(*backend),
            None => moving.push(*backend),
        }
    }
    let new = wanted.iter().zip(&placed).filter(|(_, placed)| !**placed).map(|(backend, _)| *backend);
    let mut rest = moving.into_iter().chain(new);
    slots.into_iter().map(|slot| slot.or_else(|| rest.next()).expect("as many endpoints as slots")).collect()
}

impl Frontend {
    /// The comment of the frontend's element, which also tells the next run whose it is: `namespace/name:port`, cut to
    /// what nft can read.
    pub fn comment(&self) -> ArcStr {
        let name = self.service.as_str();
        let mut comment = if self.port_name.is_empty() { name.into() } else { format!("{name}:{}", self.port_name) };
        comment.truncate(comment.floor_char_boundary(COMMENT_MAX));
        comment.into()
    }

    /// About how many elements it has.
    pub fn weight(&self) -> usize {
        match &self.action {
            Action::Reject | Action::Drop => 1,
            Action::Forward { slots, .. } => 1 + slots.len(),
            Action::Split { cluster, local, .. } => 3 + cluster.len() + local.len(),
        }
    }
}

/// All elements of a frontend, in a fixed order.
pub fn elements(key: &FrontendKey, frontend: &Frontend) -> Vec<(SetName, Element)> {
    let mut sink =
        Elements { nodeport: matches!(key.at, FrontendAt::NodePort(_)), key: element_key(key), elements: Vec::new() };
    let verdict = sink.action(&frontend.action);
    let first = match &frontend.allowed_sources {
        None => verdict,
        Some(allowed) => {
            for range in allowed {
                sink.source(range);
            }
            sink.verdict(SetName::AfterSourceRanges, verdict, None);
            Verdict::Goto(ChainName::SourceRanges)
        }
    };
    let map = if sink.nodeport { SetName::ServiceNodeports } else { SetName::ServiceIps };
    sink.verdict(map, first, Some(frontend.comment()));
    sink.elements
}

/// The element of a shared need.
pub fn shared_element(shared: Shared) -> (SetName, Element) {
    let element = |key: Key| Element { key, key_end: None, data: Data::None, comment: None };
    match shared {
        Shared::ClusterIp(address) => (SetName::ClusterIps, element(smallvec![Value::Address(address)])),
        Shared::Hairpin(address) => {
            (SetName::Hairpin, element(smallvec![Value::Address(address), Value::Address(address)]))
        }
    }
}

/// The element of an address of the node that accepts node ports.
pub fn nodeport_ip_element(address: IpAddr) -> (SetName, Element) {
    let key = smallvec![Value::Address(address)];
    (SetName::NodeportIps, Element { key, key_end: None, data: Data::None, comment: None })
}

/// The key of a frontend in its maps: `address . protocol . port`, for a node port `protocol . port`.
pub fn element_key(key: &FrontendKey) -> Key {
    let mut values = Key::new();
    if let FrontendAt::Address(address) = key.at {
        values.push(Value::Address(address));
    }
    values.extend([Value::Protocol(key.protocol), Value::Port(key.port.get())]);
    values
}

struct Elements {
    nodeport: bool,
    key: Key,
    elements: Vec<(SetName, Element)>,
}

impl Elements {
    /// Adds what an action needs and returns the verdict that leads to it.
    fn action(&mut self, action: &Action) -> Verdict {
        let nodeport = self.nodeport;
        let pick = |masquerade, sticky, local, slots: &Slots| {
            Verdict::Goto(ChainName::Pick(Pick { nodeport, masquerade, sticky, local, slots: slots.len() as u32 }))
        };
        match action {
            Action::Reject => Verdict::Goto(ChainName::RejectIt),
            Action::Drop => Verdict::Drop,
            Action::Forward { masquerade, affinity, slots } => {
                self.slots(slots, 0);
                self.affinity(*affinity);
                pick(*masquerade, affinity.is_some(), false, slots)
            }
            Action::Split { affinity, cluster, local } => {
                let sticky = affinity.is_some();
                self.slots(cluster, 0);
                self.slots(local, Pick::LOCAL_OFFSET);
                self.affinity(*affinity);
                let (cluster_map, local_map, chain) = if nodeport {
                    (SetName::NodeportClusterPolicy, SetName::NodeportLocalPolicy, ChainName::NodeportLocal)
                } else {
                    (SetName::ClusterPolicy, SetName::LocalPolicy, ChainName::ExternalLocal)
                };
                self.verdict(cluster_map, pick(Masquerade::Never, sticky, false, cluster), None);
                let outside =
                    if local.is_empty() { Verdict::Drop } else { pick(Masquerade::Never, sticky, true, local) };
                self.verdict(local_map, outside, None);
                Verdict::Goto(chain)
            }
        }
    }

    fn slots(&mut self, slots: &[Backend], offset: u32) {
        let map = if self.nodeport { SetName::NodeportEndpoints } else { SetName::Endpoints };
        for (slot, backend) in (offset..).zip(slots) {
            let mut key = self.key.clone();
            key.push(Value::Slot(slot));
            let data = Data::Values(smallvec![Value::Address(backend.address), Value::Port(backend.port.get())]);
            self.elements.push((map, Element { key, key_end: None, data, comment: None }));
        }
    }

    fn affinity(&mut self, affinity: Option<u32>) {
        let map = if self.nodeport { SetName::NodeportAffinityTimeouts } else { SetName::AffinityTimeouts };
        if let Some(seconds) = affinity {
            self.verdict(map, Verdict::Goto(ChainName::RememberFor(seconds)), None);
        }
    }

    fn source(&mut self, range: &Range) {
        let with = |address| {
            let mut key = self.key.clone();
            key.push(Value::Address(address));
            key
        };
        let (key, key_end) = (with(range.first), Some(with(range.last)));
        self.elements.push((SetName::AllowedSources, Element { key, key_end, data: Data::None, comment: None }));
    }

    fn verdict(&mut self, map: SetName, verdict: Verdict, comment: Option<ArcStr>) {
        let element = Element { key: self.key.clone(), key_end: None, data: Data::Verdict(verdict), comment };
        self.elements.push((map, element));
    }
}
