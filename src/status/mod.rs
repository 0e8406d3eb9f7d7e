//! `nftproxyd status`: every frontend with its policy, its endpoints and their open connections, read from the kernel: what
//! it says is what packets meet, whether or not a daemon runs. What only a daemon knows is asked of it.

mod daemon;
mod one;
mod protection;
mod shape;
mod show;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use serde::Serialize;

pub use self::daemon::{
    AskError, ask, ask_services, daemon_text, kinds_text, kube_proxy_has_synced, kube_proxy_mode, unserved_text,
};
pub use self::one::{Seen, look, of_service, one};
pub use self::protection::{Protected, TableStatus, tables, tables_text};
pub use self::shape::{Shape, frame, shape};
pub use self::show::table;
use crate::conntrack::{Conntrack, Flow, FlowsError};
use crate::model::{Family, FrontendAt, FrontendKey, Protocol, TrafficPolicy};
use crate::nftables::{Kernel, KernelError};
use crate::ruleset::base;
use crate::ruleset::frontend::Action;
use crate::ruleset::names::SetName;
use crate::ruleset::read::Contents;

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
    /// Connections that the kernel tracks.
    pub connections: usize,
    /// It gets no new connections.
    pub removed: bool,
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
const SETS: [SetName; 14] = [
    SetName::ServiceIps,
    SetName::ServiceNodeports,
    SetName::Endpoints,
    SetName::NodeportEndpoints,
    SetName::AllowedSources,
    SetName::AfterSourceRanges,
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
    let mut all = Vec::new();
    let mut conntrack = Conntrack::open()?;
    for &family in families {
        let mut frontends = Frontends::read(kernel, family)?;
        conntrack.each(family, &mut |flow| frontends.count(flow))?;
        all.extend(frontends.0.into_values());
    }
    all.sort();
    Ok(all)
}

/// The frontends of one family, with the connections that have been counted.
struct Frontends(BTreeMap<FrontendKey, FrontendStatus>);

impl Frontends {
    fn read(kernel: &mut impl Kernel, family: Family) -> Result<Frontends, KernelError> {
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

    fn count(&mut self, flow: &Flow) {
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
        match frontend.endpoints.binary_search_by_key(&endpoint, |it| it.address) {
            Ok(index) => frontend.endpoints[index].connections += 1,
            Err(index) => {
                let gone = EndpointStatus { address: endpoint, slots: 0, of: 0, connections: 1, removed: true };
                frontend.endpoints.insert(index, gone);
            }
        }
    }
}

/// Looks at frontends until all of them fit together, at most [`ATTEMPTS`] times. `look` reads them, each set at a moment
/// of its own, and says whether nothing was changed meanwhile. Only what does not fit together twice without a change is
/// damaged: while the kernel resizes a hash table it may leave elements out.
fn settled(
    mut look: impl FnMut() -> Result<(Contents, bool), KernelError>,
) -> Result<BTreeMap<FrontendKey, Seen>, KernelError> {
    let mut seen_before = false;
    let mut attempt = 1;
    loop {
        let (contents, undisturbed) = look()?;
        let seen = contents.frontends.into_iter().map(|(key, elements)| (key, Seen::of(&key, elements)));
        let mut seen: BTreeMap<FrontendKey, Seen> = seen.collect();
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
fn frontend(key: &FrontendKey, seen: &Seen) -> FrontendStatus {
    let Seen { frontend: found, damaged } = seen;
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
            .map(|(address, (slots, of))| EndpointStatus { address, slots, of, connections: 0, removed: false })
            .collect(),
        damaged: *damaged,
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
