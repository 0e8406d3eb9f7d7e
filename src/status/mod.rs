//! `nftproxyd status`: every frontend with its policy, its endpoints and their open connections, read from the kernel: what
//! it says is what packets meet, whether or not a daemon runs. What only a daemon knows is asked of it.

mod accounted;
mod daemon;
mod filter;
mod history;
mod known;
mod one;
mod patient;
mod protection;
mod seen;
mod shape;
mod show;
mod wanted;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde::Serialize;

pub use self::accounted::{add_accounted, ask_accounted};
pub use self::daemon::{
    AskError, ask, ask_services, daemon_text, kinds_text, kube_proxy_has_synced, kube_proxy_mode, unserved_text,
};
pub use self::filter::Filter;
pub use self::history::{ask_history, changes_of, history_text};
pub use self::known::{add_known, ask_known, ask_named};
pub use self::one::{Found, look_at, of_service, one};
pub use self::protection::{Protected, TableStatus, tables, tables_text};
pub use self::seen::Seen;
pub use self::shape::{Shape, frame, shape};
pub use self::show::{new_from_text, node_ports_text, notes, table, totals};
pub use self::watch::{Order, View, frame_text};
use crate::conntrack::{Conntrack, Flow, FlowsError};
use crate::metrics::daemon::Daemon;
use crate::metrics::endpoints::Totals;
use crate::metrics::services::ServiceFacts;
use crate::model::{Family, FrontendAt, FrontendKey, Protocol, TrafficPolicy};
use crate::nftables::{Kernel, KernelError};
use crate::ruleset::base;
use crate::ruleset::counted::FrontendCount;
use crate::ruleset::frontend::Action;
use crate::ruleset::names::SetName;
use crate::ruleset::ranges::Range;
use crate::ruleset::read::Contents;
use crate::ruleset::types::Value;

/// A frontend: an address and port, or a node port, of a Service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendStatus {
    /// `namespace/name:port`, or `namespace/name` of a port without a name.
    pub service: String,
    /// Its address; `None` for a node port.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// In lower case.
    pub protocol: &'static str,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// What becomes of new connections.
    pub policy: Policy,
    /// Whether only some sources are allowed (`loadBalancerSourceRanges`).
    pub source_ranges: bool,
    /// How the endpoint of a new connection is chosen, as far as the table tells: `random`, `rr`, `sh`, `sh-port`, `dh`, `mh` or
    /// `mh-port`. `wrr`, and `lc` and its kin, are `rr` with shares. `None` where there is nothing to choose.
    pub scheduler: Option<&'static str>,
    /// How long a client stays with its endpoint, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Its endpoints, and others that still have connections, sorted by address.
    pub endpoints: Vec<EndpointStatus>,
    /// Whether its elements are not exactly what nftproxyd writes for any frontend: some are missing, or somebody else has
    /// changed them. Then the rest is what the elements that are there come closest to. Never set while changes go on that
    /// may be the reason.
    pub damaged: bool,
    /// Those sources, as ranges: `203.0.113.0/24`, or first and last address. `None`: all are allowed.
    pub allowed_sources: Option<Vec<String>>,
    /// The scheduler that its Service has, as the daemon says.
    pub configured_scheduler: Option<String>,
    /// Why its connections are refused or dropped, as the daemon says.
    pub unserved: Option<String>,
    /// Connections since its element was made, as the element's counter says, and repetitions of those that were refused or
    /// dropped; `None` where the maps do not count.
    pub counted: Option<u64>,
    /// Those since the look before: by the counter, or where the maps do not count, those of its endpoints together; `None` of a
    /// first look.
    pub new_connections: Option<u64>,
}

/// What becomes of new connections to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Policy {
    /// They go to any endpoint.
    Cluster,
    /// They go to endpoints on this node only. At an external IP, load-balancer IP or node port, those from inside of the
    /// cluster may go to any.
    Local,
    /// Those from outside of the cluster are dropped, as there is no endpoint on this node; those from inside may go to any.
    DroppedOutside,
    /// They are refused: there is no endpoint.
    Refused,
    /// They are dropped: there is no endpoint on this node.
    Dropped,
    /// What there is of the frontend does not tell.
    Unknown,
}

/// An endpoint of a frontend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Where connections go.
    pub address: SocketAddr,
    /// How many of the frontend's slots it has: its share of new connections, of those from inside of the cluster where others
    /// may go elsewhere.
    pub slots: usize,
    /// How many slots there are.
    pub of: usize,
    /// Connections that the kernel tracks: also, for up to two minutes, those that one side has closed.
    pub connections: usize,
    /// Those of them that the endpoint has not answered yet.
    pub unanswered: usize,
    /// It gets no new connections.
    pub removed: bool,
    /// The name of its pod, as the daemon says.
    pub pod: Option<String>,
    /// The name of its node, as the daemon says.
    pub node: Option<String>,
    /// Its weight, as the daemon says.
    pub weight: Option<u16>,
    /// How it is, as the daemon says.
    pub state: Option<EndpointState>,
    /// Connections that were not there at the look before; `None` of a first look.
    pub new_connections: Option<u64>,
    /// What its connections had that have ended, through all frontends of the port, as a daemon says that accounts for them.
    pub totals: Option<Totals>,
}

impl EndpointStatus {
    /// One that has these slots of so many.
    fn new(address: SocketAddr, slots: usize, of: usize) -> EndpointStatus {
        let (pod, node, weight, state) = (None, None, None, None);
        let (connections, unanswered, removed) = (0, 0, false);
        let (new_connections, totals) = (None, None);
        EndpointStatus {
            address,
            slots,
            of,
            connections,
            unanswered,
            removed,
            pod,
            node,
            weight,
            state,
            new_connections,
            totals,
        }
    }
}

/// How an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointState {
    /// It takes connections.
    Ready,
    /// It is about to end.
    Terminating,
    /// It takes none.
    NotReady,
}

/// Which addresses accept node ports, in one family.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePortsStatus {
    /// Whether all addresses of the node do but those of loopback; `None` where only a daemon could tell.
    pub everywhere: Option<bool>,
    /// The set `nodeport-ips`.
    pub addresses: Vec<IpAddr>,
}

/// Where frontends' new connections are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NewFrom {
    /// The counters of their elements.
    Counters,
    /// Connection tracking.
    Conntrack,
}

/// What is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Picture {
    /// The frontends that are asked for, sorted.
    pub frontends: Vec<FrontendStatus>,
    /// By family, `IPv4` and `IPv6`.
    pub node_ports: BTreeMap<String, NodePortsStatus>,
    /// Since the look before, if there was one.
    pub since: Option<Duration>,
    /// Where new connections are taken from, by family, `IPv4` and `IPv6`; nothing of one without frontends.
    pub new_from: BTreeMap<String, NewFrom>,
}

/// Status could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The tables could not be read.
    #[error(transparent)]
    Tables(#[from] KernelError),
    /// The connections could not be read.
    #[error(transparent)]
    Connections(#[from] FlowsError),
}

/// The sets that frontends are made of.
const SETS: [SetName; 16] = [
    SetName::ServiceIps,
    SetName::ServiceNodeports,
    SetName::Endpoints,
    SetName::NodeportEndpoints,
    SetName::AllowedSources,
    SetName::AfterSourceRanges,
    SetName::NodeportAllowedSources,
    SetName::NodeportAfterSourceRanges,
    SetName::ClusterPolicy,
    SetName::LocalPolicy,
    SetName::NodeportClusterPolicy,
    SetName::NodeportLocalPolicy,
    SetName::AffinityTimeouts,
    SetName::NodeportAffinityTimeouts,
    SetName::KeptPorts,
    SetName::NodeportKeptPorts,
];

/// How often the sets are read again because a change came in between, and something does not fit together.
const ATTEMPTS: usize = 5;

/// Reads what is in the kernel for these families, whose tables are there.
///
/// # Errors
/// The tables or the connections cannot be read.
pub fn read(kernel: &mut impl Kernel, families: &[Family]) -> Result<Vec<FrontendStatus>, StatusError> {
    Ok(look(kernel, families, &Filter::All, None, None, None)?.frontends)
}

/// Reads what is asked for. A daemon says whether all addresses accept node ports, and what it knows of the Service that the
/// filter names. Other families are not read, nor connections where there is nobody who could have some; few frontends are asked
/// for by their keys, of more the sets are read as a whole. With `seen` it is told which connections are new since the last look.
///
/// # Errors
/// The tables or the connections cannot be read.
pub fn look(
    kernel: &mut impl Kernel,
    families: &[Family],
    filter: &Filter,
    daemon: Option<&Daemon>,
    named: Option<&ServiceFacts>,
    mut seen: Option<&mut Seen>,
) -> Result<Picture, StatusError> {
    let since = seen.as_mut().and_then(|seen| seen.begin(Instant::now()));
    let mut picture = Picture { since, ..Picture::default() };
    let mut conntrack = None;
    for &family in families.iter().filter(|family| filter.concerns(**family)) {
        let addresses = accepting(kernel, family)?;
        let everywhere = match frame(daemon, family) {
            Some(frame) => Some(frame.node_ports_everywhere),
            // They are there only where not all accept node ports.
            None => Some(false).filter(|_| !addresses.is_empty()),
        };
        let node_ports = NodePortsStatus { everywhere, addresses };
        let named = wanted::certain(daemon, family, named);
        let by_key = wanted::by_key(kernel, family, filter, &node_ports, named)?;
        let is_by_key = by_key.is_some();
        let mut frontends = match by_key {
            Some(frontends) => Frontends(frontends),
            None => Frontends::among_all(kernel, family, filter, &node_ports)?,
        };
        if !frontends.0.is_empty() {
            let conntrack = match &mut conntrack {
                Some(open) => open,
                none => none.insert(Conntrack::open()?),
            };
            conntrack.each(family, &mut |flow| frontends.count(flow, seen.as_deref_mut()))?;
        }
        // The daemon knows whether there is anything to read.
        let may_count = frame(daemon, family).is_none_or(|frame| frame.counters);
        let counts = match (may_count, is_by_key) {
            (false, _) => Vec::new(),
            (true, true) => kernel.frontend_counts_of(family, &frontends.keys())?,
            (true, false) => kernel.frontend_counts(family)?,
        };
        let new_from = frontends.finish(counts, seen.as_deref_mut(), picture.since.is_some());
        picture.new_from.extend(new_from.map(|new_from| (family.to_string(), new_from)));
        picture.node_ports.insert(family.to_string(), node_ports);
        picture.frontends.extend(frontends.0.into_values());
    }
    picture.frontends.sort();
    Ok(picture)
}

/// The addresses that accept node ports, sorted; none where all do.
///
/// # Errors
/// The kernel cannot be asked.
pub fn accepting(kernel: &mut impl Kernel, family: Family) -> Result<Vec<IpAddr>, KernelError> {
    let addresses = kernel.elements(family, &base::set(SetName::NodeportIps))?.into_iter();
    let addresses = addresses.filter_map(|element| match element.key[..] {
        [Value::Address(address)] => Some(address),
        _ => None,
    });
    Ok(addresses.collect::<BTreeSet<_>>().into_iter().collect())
}

/// The frontends of one family, with the connections that have been counted.
struct Frontends(BTreeMap<FrontendKey, FrontendStatus>);

impl Frontends {
    /// Those that the filter takes, from among all.
    fn among_all(
        kernel: &mut impl Kernel,
        family: Family,
        filter: &Filter,
        node_ports: &NodePortsStatus,
    ) -> Result<Frontends, KernelError> {
        let mut all = Frontends::of(kernel, family)?;
        all.0.retain(|key, frontend| filter.takes(key, frontend, node_ports));
        Ok(all)
    }

    fn of(kernel: &mut impl Kernel, family: Family) -> Result<Frontends, KernelError> {
        // What was changed before does not count.
        kernel.undisturbed(family)?;
        Frontends::settled(|| {
            let mut contents = Contents::new(family);
            for set in SETS {
                kernel.read_elements(family, &base::set(set), &mut |element| match element {
                    Some(element) => contents.element(set, element),
                    None => contents.forget(set),
                })?;
            }
            Ok((contents, kernel.undisturbed(family)?))
        })
    }

    fn settled(look: impl FnMut() -> Result<(Contents, bool), KernelError>) -> Result<Frontends, KernelError> {
        let seen = settled(look)?.into_iter();
        Ok(Frontends(seen.map(|(key, seen)| (key, frontend(&key, &seen))).collect()))
    }

    fn keys(&self) -> Vec<FrontendKey> {
        self.0.keys().copied().collect()
    }

    /// Adds what counters say, and when all connections are counted, how many are new if there was a look before. Where there
    /// are counters, they say it of frontends; of endpoints they know nothing.
    fn finish(&mut self, counts: Vec<FrontendCount>, mut seen: Option<&mut Seen>, again: bool) -> Option<NewFrom> {
        let new_from = if counts.is_empty() { NewFrom::Conntrack } else { NewFrom::Counters };
        for frontend in self.0.values_mut() {
            if again {
                let new =
                    frontend.endpoints.iter_mut().map(|endpoint| *endpoint.new_connections.get_or_insert(0)).sum();
                frontend.new_connections = Some(new).filter(|_| new_from == NewFrom::Conntrack);
            }
        }
        // While the kernel resizes a hash table, one may be listed twice.
        let counts: BTreeMap<FrontendKey, u64> = counts.into_iter().map(|count| (count.key, count.packets)).collect();
        for (key, count) in counts {
            // Also of those that nobody asks for now.
            let come = seen.as_deref_mut().map(|seen| seen.come(key, count));
            if let Some(frontend) = self.0.get_mut(&key) {
                (frontend.counted, frontend.new_connections) = (Some(count), come.filter(|_| again));
            }
        }
        Some(new_from).filter(|_| !self.0.is_empty())
    }

    /// Counts a connection, if it is one of theirs.
    fn count(&mut self, flow: &Flow, seen: Option<&mut Seen>) {
        let Some(protocol) = Protocol::from_number(flow.protocol) else { return };
        let (to, endpoint) = (flow.original.destination, flow.reply.source);
        let Some(port) = NonZeroU16::new(to.port()) else { return };
        let (by_address, by_port) = (FrontendAt::Address(to.ip()), FrontendAt::NodePort(Family::of(to.ip())));
        let key = |at| FrontendKey { at, protocol, port };
        let has = |frontend: &FrontendStatus| frontend.endpoints.iter().any(|it| it.address == endpoint && !it.removed);
        let key = if to != endpoint && self.0.contains_key(&key(by_address)) {
            key(by_address)
        } else if self.0.get(&key(by_port)).is_some_and(has) {
            // The port alone says little: connections to the same port of other hosts are not ours.
            key(by_port)
        } else {
            return;
        };
        let Some(frontend) = self.0.get_mut(&key) else { return };
        let index = match frontend.endpoints.binary_search_by_key(&endpoint, |it| it.address) {
            Ok(index) => index,
            Err(index) => {
                let gone = EndpointStatus { removed: true, ..EndpointStatus::new(endpoint, 0, 0) };
                frontend.endpoints.insert(index, gone);
                index
            }
        };
        let found = &mut frontend.endpoints[index];
        found.connections += 1;
        found.unanswered += usize::from(!flow.answered);
        if seen.is_some_and(|seen| seen.is_new(flow)) {
            *found.new_connections.get_or_insert(0) += 1;
        }
    }
}

/// Looks at frontends until all of them fit together, at most [`ATTEMPTS`] times. `look` reads them, each set at a moment
/// of its own, and says whether nothing was changed meanwhile. Only what does not fit together twice without a change is
/// damaged: while the kernel resizes a hash table it may leave elements out.
fn settled(
    mut look: impl FnMut() -> Result<(Contents, bool), KernelError>,
) -> Result<BTreeMap<FrontendKey, Found>, KernelError> {
    let mut seen_before = false;
    let mut attempt = 1;
    loop {
        let (contents, undisturbed) = look()?;
        let seen = contents.frontends.into_iter().map(|(key, elements)| (key, Found::of(&key, elements)));
        let mut seen: BTreeMap<FrontendKey, Found> = seen.collect();
        let damaged = seen.values().any(|seen| seen.damaged);
        if !damaged || (undisturbed && seen_before) {
            return Ok(seen);
        }
        seen_before = undisturbed;
        if attempt == ATTEMPTS {
            seen.values_mut().for_each(|seen| seen.damaged = false);
            return Ok(seen);
        }
        attempt += 1;
    }
}

/// What is seen of a frontend, without its connections.
pub fn frontend(key: &FrontendKey, seen: &Found) -> FrontendStatus {
    let Found { frontend: found, damaged } = seen;
    let action = found.as_ref().map(|frontend| &frontend.action);
    // Where both kinds of clients may go to an endpoint, those from inside count.
    let mut endpoints: BTreeMap<SocketAddr, (usize, usize)> = BTreeMap::new();
    for slots in action.into_iter().flat_map(|action| [action.inside(), action.outside()]) {
        let mut of_these: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for backend in slots {
            *of_these.entry(SocketAddr::new(backend.address, backend.port.get())).or_default() += 1;
        }
        for (address, number) in of_these {
            endpoints.entry(address).or_insert((number, slots.len()));
        }
    }
    let chooses = action.into_iter().flat_map(Action::slots).find(|(_, slots)| slots.len() > 1);
    let scheduler = chooses.map(|(_, slots)| slots.by.scheduler());
    FrontendStatus {
        service: found.as_ref().map_or_else(|| "?".to_owned(), |frontend| frontend.comment().to_string()),
        address: match key.at {
            FrontendAt::Address(address) => Some(address),
            FrontendAt::NodePort(_) => None,
        },
        port: key.port.get(),
        protocol: key.protocol.name(),
        family: key.family().to_string(),
        policy: action.map_or(Policy::Unknown, policy),
        source_ranges: found.as_ref().is_some_and(|frontend| frontend.allowed_sources.is_some()),
        scheduler,
        affinity_seconds: action.and_then(Action::affinity),
        endpoints: endpoints
            .into_iter()
            .map(|(address, (slots, of))| EndpointStatus::new(address, slots, of))
            .collect(),
        damaged: *damaged,
        allowed_sources: found
            .as_ref()
            .and_then(|frontend| Some(frontend.allowed_sources.as_ref()?.iter().map(range_text).collect())),
        configured_scheduler: None,
        unserved: None,
        counted: None,
        new_connections: None,
    }
}

/// A range as one network, if it is one.
fn range_text(range: &Range) -> String {
    let nets: Vec<IpNet> = match (range.first, range.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).take(2).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).take(2).map(IpNet::V6).collect(),
        _ => Vec::new(),
    };
    match nets[..] {
        [net] => net.to_string(),
        _ => format!("{}-{}", range.first, range.last),
    }
}

fn policy(action: &Action) -> Policy {
    match action {
        Action::Reject => Policy::Refused,
        Action::Drop => Policy::Dropped,
        Action::Split { local, .. } if local.is_empty() => Policy::DroppedOutside,
        Action::Split { .. } | Action::Forward { policy: TrafficPolicy::Local, .. } => Policy::Local,
        Action::Forward { policy: TrafficPolicy::Cluster, .. } => Policy::Cluster,
    }
}

#[cfg(test)]
mod tests;
