//! `nftproxyd status`: every frontend with its policy, its endpoints and their open connections, read from the kernel: what
//! it says is what packets meet, whether or not a daemon runs. What only a daemon knows is asked of it.

mod daemon;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

pub use self::daemon::{Daemon, FamilyState, ask};
pub use self::show::table;
use crate::conntrack::{Conntrack, Flow, FlowsError};
use crate::model::{Family, Protocol};
use crate::nftables::{Kernel, KernelError};
use crate::ruleset::base;
use crate::ruleset::names::{ChainName, Pick, SetName};
use crate::ruleset::types::{Data, Element, Key, Value, Verdict};

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
    /// How long a client stays with its endpoint, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Its endpoints, and others that still have connections.
    pub endpoints: Vec<EndpointStatus>,
}

/// What becomes of new connections to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Policy {
    /// They go to any endpoint.
    Cluster,
    /// They go to endpoints on this node only; those from inside of the cluster may go to any.
    Local,
    /// They are refused: there is no endpoint.
    Refused,
    /// They are dropped: there is no endpoint on this node.
    Dropped,
}

/// An endpoint of a frontend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Where connections go.
    pub address: SocketAddr,
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

/// The sets that a status is made of.
const SETS: [SetName; 11] = [
    SetName::ServiceIps,
    SetName::ServiceNodeports,
    SetName::Endpoints,
    SetName::NodeportEndpoints,
    SetName::AfterSourceRanges,
    SetName::LocalPolicy,
    SetName::NodeportLocalPolicy,
    SetName::AffinityTimeouts,
    SetName::NodeportAffinityTimeouts,
    SetName::ClusterPolicy,
    SetName::NodeportClusterPolicy,
];

/// Reads what is in the kernel for these families, whose tables are there.
///
/// # Errors
/// The tables or the connections cannot be read.
pub fn read(kernel: &mut impl Kernel, families: &[Family]) -> Result<Vec<FrontendStatus>, StatusError> {
    let mut all = Vec::new();
    let mut conntrack = Conntrack::open()?;
    for &family in families {
        let mut sets = Sets::new();
        for name in SETS {
            sets.insert(name, kernel.elements(family, &base::set(name))?);
        }
        let mut connections = Connections::of(&sets);
        conntrack.each(family, &mut |flow| connections.count(flow))?;
        all.extend(frontends(family, &sets, &connections));
    }
    all.sort();
    Ok(all)
}

type Sets = BTreeMap<SetName, Vec<Element>>;
/// Protocol and port of a frontend, with its address if it has one.
type At = (Option<IpAddr>, Protocol, u16);

/// Open connections by frontend and endpoint.
#[derive(Debug, Default)]
struct Connections {
    endpoints: BTreeMap<At, BTreeSet<SocketAddr>>,
    counts: BTreeMap<At, BTreeMap<SocketAddr, usize>>,
}

impl Connections {
    /// None yet, through the frontends of these sets.
    fn of(sets: &Sets) -> Connections {
        let mut endpoints: BTreeMap<At, BTreeSet<SocketAddr>> = BTreeMap::new();
        for name in [SetName::ServiceIps, SetName::ServiceNodeports] {
            endpoints.extend(elements(sets, name).filter_map(|element| Some((at(&element.key)?.0, BTreeSet::new()))));
        }
        for name in [SetName::Endpoints, SetName::NodeportEndpoints] {
            for (at, _, address) in elements(sets, name).filter_map(slot) {
                endpoints.entry(at).or_default().insert(address);
            }
        }
        Connections { endpoints, counts: BTreeMap::new() }
    }

    fn count(&mut self, flow: &Flow) {
        let Some(protocol) = Protocol::from_number(flow.protocol) else { return };
        let (to, endpoint) = (flow.original.destination, flow.reply.source);
        let (by_address, by_port) = ((Some(to.ip()), protocol, to.port()), (None, protocol, to.port()));
        let at = if self.endpoints.contains_key(&by_address) && to != endpoint {
            by_address
        } else if self.endpoints.get(&by_port).is_some_and(|endpoints| endpoints.contains(&endpoint)) {
            // The port alone says little: connections to the same port of other hosts are not ours.
            by_port
        } else {
            return;
        };
        *self.counts.entry(at).or_default().entry(endpoint).or_default() += 1;
    }
}

fn elements(sets: &Sets, name: SetName) -> impl Iterator<Item = &Element> {
    sets.get(&name).into_iter().flatten()
}

/// The frontend that a key begins with, and what follows it.
fn at(key: &Key) -> Option<(At, &[Value])> {
    match key.as_slice() {
        [Value::Address(address), Value::Protocol(protocol), Value::Port(port), rest @ ..] => {
            Some(((Some(*address), *protocol, *port), rest))
        }
        [Value::Protocol(protocol), Value::Port(port), rest @ ..] => Some(((None, *protocol, *port), rest)),
        _ => None,
    }
}

/// FrontendStatus, slot and endpoint of an element of the maps of endpoints.
fn slot(element: &Element) -> Option<(At, u32, SocketAddr)> {
    let (at, rest) = at(&element.key)?;
    match (rest, &element.data) {
        ([Value::Slot(slot)], Data::Values(values)) => match values.as_slice() {
            [Value::Address(address), Value::Port(port)] => Some((at, *slot, SocketAddr::new(*address, *port))),
            _ => None,
        },
        _ => None,
    }
}

/// Verdicts by frontend.
fn verdicts(sets: &Sets, names: [SetName; 2]) -> BTreeMap<At, Verdict> {
    let verdict = |element: &Element| match element.data {
        Data::Verdict(verdict) => Some((at(&element.key)?.0, verdict)),
        _ => None,
    };
    names.into_iter().flat_map(|name| elements(sets, name).filter_map(verdict)).collect()
}

fn frontends(family: Family, sets: &Sets, connections: &Connections) -> Vec<FrontendStatus> {
    let allowed = verdicts(sets, [SetName::AfterSourceRanges; 2]);
    let local = verdicts(sets, [SetName::LocalPolicy, SetName::NodeportLocalPolicy]);
    let remembering = verdicts(sets, [SetName::AffinityTimeouts, SetName::NodeportAffinityTimeouts]);
    let mut slots: BTreeMap<At, BTreeMap<u32, SocketAddr>> = BTreeMap::new();
    for name in [SetName::Endpoints, SetName::NodeportEndpoints] {
        for (at, slot, address) in elements(sets, name).filter_map(slot) {
            slots.entry(at).or_default().insert(slot, address);
        }
    }
    let frontend = |element: &Element| {
        let (at, _) = at(&element.key)?;
        let Data::Verdict(mut verdict) = element.data else { return None };
        let source_ranges = verdict == Verdict::Goto(ChainName::SourceRanges);
        if source_ranges {
            verdict = allowed.get(&at).copied().unwrap_or(verdict);
        }
        let policy = policy(verdict, local.get(&at).copied());
        let affinity_seconds = match remembering.get(&at) {
            Some(Verdict::Goto(ChainName::RememberFor(seconds))) => Some(*seconds),
            _ => None,
        };
        let reachable: BTreeSet<SocketAddr> =
            slots.get(&at).into_iter().flat_map(|slots| slots.values().copied()).collect();
        let counts = connections.counts.get(&at);
        let all = reachable.iter().chain(counts.into_iter().flat_map(BTreeMap::keys)).collect::<BTreeSet<_>>();
        let endpoint = |address: &SocketAddr| EndpointStatus {
            address: *address,
            connections: counts.and_then(|counts| counts.get(address)).copied().unwrap_or(0),
            removed: !reachable.contains(address),
        };
        let (address, protocol, port) = at;
        Some(FrontendStatus {
            service: element.comment.as_deref().unwrap_or("?").to_owned(),
            address,
            port,
            protocol: protocol_name(protocol),
            family: family.to_string(),
            policy,
            source_ranges,
            affinity_seconds,
            endpoints: all.into_iter().map(endpoint).collect(),
        })
    };
    [SetName::ServiceIps, SetName::ServiceNodeports]
        .into_iter()
        .flat_map(|name| elements(sets, name).filter_map(frontend))
        .collect()
}

fn policy(verdict: Verdict, local: Option<Verdict>) -> Policy {
    match verdict {
        Verdict::Drop => Policy::Dropped,
        Verdict::Goto(chain) | Verdict::Jump(chain) => match chain {
            ChainName::RejectIt => Policy::Refused,
            ChainName::ExternalLocal | ChainName::NodeportLocal if local == Some(Verdict::Drop) => Policy::Dropped,
            ChainName::ExternalLocal | ChainName::NodeportLocal => Policy::Local,
            ChainName::Pick(Pick { local: true, .. }) => Policy::Local,
            _ => Policy::Cluster,
        },
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

#[cfg(test)]
mod tests;
