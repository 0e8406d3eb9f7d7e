//! Which endpoints a connection to a service port may reach on this node: a pure function of the Service, its slices
//! and the node's zone, the same as kube-proxy 1.36's.

mod unserved;

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::{Endpoint, Family, Protocol, Service, ServicePort, Slice, SlicePort, TrafficPolicy};

pub use unserved::{DROPPED_BECAUSE, refused_because};

/// An endpoint to send connections to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Its address.
    pub address: IpAddr,
    /// The port that it listens on.
    pub port: NonZeroU16,
    /// Whether it is on this node: only then it can meet its own connection again here (hairpin).
    pub local: bool,
    /// The weight of its slice. 0: it gets no new connections, unless all have 0.
    pub weight: u16,
}

/// The endpoints of a service port in one family, by policy. The lists are sorted by address and port, without
/// duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// For traffic policy Cluster, and for pods and the node under `externalTrafficPolicy: Local`. Empty if nothing
    /// needs it.
    pub cluster: Vec<Target>,
    /// For traffic policy Local. Empty if nothing needs it.
    pub local: Vec<Target>,
    /// Whether there is an endpoint anywhere. An empty list means DROP if so (other nodes serve), REJECT if not.
    pub any: bool,
}

/// Whether the service port can be reached in this family other than by its cluster IP.
pub fn external(service: &Service, port: &ServicePort, family: Family) -> bool {
    port.node_port.is_some()
        || service.has_external_ips[family]
        || service.load_balancer_ips.iter().any(|address| Family::of(*address) == family)
}

/// Chooses the endpoints. `slices` are those of the Service, of any family and in any order; `zone` is this node's.
pub fn choose(service: &Service, port: &ServicePort, family: Family, slices: &[Slice], zone: Option<&str>) -> Choice {
    let endpoints = endpoints(port, family, slices, ready);
    let external = external(service, port, family);
    let uses_cluster = service.internal_policy == TrafficPolicy::Cluster || external;
    let uses_local = service.internal_policy == TrafficPolicy::Local
        || (external && service.external_policy == TrafficPolicy::Local);

    let cluster = if uses_cluster {
        let topology = Topology::of(&endpoints, zone);
        ready_or_else_terminating(&endpoints, |endpoint| topology.allows(endpoint))
    } else {
        Vec::new()
    };
    let local = if uses_local {
        ready_or_else_terminating(&endpoints, |endpoint| endpoint.conditions.local)
    } else {
        Vec::new()
    };
    let any = endpoints.iter().any(|found| ready(found.endpoint) || terminating(found.endpoint));
    Choice { cluster, local, any }
}

/// The endpoints of a service port that answer at all (`conditions.serving`), on any node and whatever the policies
/// say, sorted by address and port: a UDP connection to any other endpoint is stale.
pub fn serving(port: &ServicePort, family: Family, slices: &[Slice]) -> Vec<Target> {
    let endpoints = endpoints(port, family, slices, |endpoint| endpoint.conditions.serving);
    endpoints.iter().filter(|found| found.endpoint.conditions.serving).map(Candidate::target).collect()
}

/// All endpoints of a service port, on any node, whatever their state and the policies say, sorted by address and port: one that
/// is not among them is gone.
pub fn listed(port: &ServicePort, family: Family, slices: &[Slice]) -> Vec<Target> {
    endpoints(port, family, slices, ready).iter().map(Candidate::target).collect()
}

/// Whether two versions of a slice add the same to [`serving`], whichever UDP port is asked for and whatever other
/// slices there are. `None`: the slice is not there. Costs what the slices cost; a "no" may be one too many.
pub fn serve_udp_alike(a: Option<&Slice>, b: Option<&Slice>) -> bool {
    /// What [`serving`] looks at.
    fn seen(slice: Option<&Slice>) -> impl Iterator<Item = (IpAddr, bool, bool)> {
        let endpoints = slice.into_iter().flat_map(|slice| &slice.endpoints);
        endpoints.map(|it| (it.address, it.conditions.serving, it.conditions.terminating))
    }
    let ports = |slice: Option<&Slice>| -> Vec<SlicePort> {
        let ports = slice.into_iter().flat_map(|slice| &slice.ports);
        ports.filter(|port| port.protocol == Protocol::Udp).cloned().collect()
    };
    let (ports_a, ports_b) = (ports(a), ports(b));
    let neither = ports_a.is_empty() && ports_b.is_empty();
    neither || (a.map(|it| it.family) == b.map(|it| it.family) && ports_a == ports_b && seen(a).eq(seen(b)))
}

/// The number of distinct addresses of ready endpoints on this node, over all ports: the weight that the health check
/// node port of a Service reports.
pub fn ready_on_this_node(family: Family, slices: &[Slice]) -> usize {
    let mut addresses: Vec<IpAddr> = slices
        .iter()
        .filter(|slice| slice.family == family && !slice.ports.is_empty())
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.conditions.local && ready(endpoint))
        .map(|endpoint| endpoint.address)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.len()
}

/// An endpoint of a service port.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    port: NonZeroU16,
    weight: u16,
}

impl Candidate<'_> {
    fn target(&self) -> Target {
        let Candidate { endpoint, port, weight } = *self;
        Target { address: endpoint.address, port, local: endpoint.conditions.local, weight }
    }
}

/// All endpoints of a service port, sorted by address and port, each once.
///
/// Of several copies that disagree, one that is not terminating counts before one that is, as in kube-proxy: a pod that
/// runs wins over one that is leaving the same address. Then, where kube-proxy leaves it to chance, one that is `preferred`,
/// and one that is serving; of those that are alike the last, in the order of the slices' names and within a slice in its
/// own, and if all are terminating the first.
fn endpoints<'a>(
    port: &ServicePort,
    family: Family,
    slices: &'a [Slice],
    preferred: fn(&Endpoint) -> bool,
) -> Vec<Candidate<'a>> {
    let mut slices: Vec<&Slice> = slices.iter().filter(|slice| slice.family == family).collect();
    slices.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let mut found: Vec<Candidate<'a>> = Vec::new();
    for slice in slices {
        for joined in slice.ports.iter().filter(|joined| joined.name == port.name && joined.protocol == port.protocol) {
            let (port, weight) = (joined.port, slice.weight);
            found.extend(slice.endpoints.iter().map(|endpoint| Candidate { endpoint, port, weight }));
        }
    }
    // Stable: copies stay in the order in which they were found.
    found.sort_by_key(|found| (found.endpoint.address, found.port));
    found.dedup_by(|new, kept| {
        let same = (new.endpoint.address, new.port) == (kept.endpoint.address, kept.port);
        let rank = |found: &Candidate<'_>| {
            let conditions = found.endpoint.conditions;
            (!conditions.terminating, preferred(found.endpoint), conditions.serving)
        };
        if same && (rank(new), !new.endpoint.conditions.terminating) > (rank(kept), false) {
            *kept = *new;
        }
        same
    });
    found
}

fn ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.ready
}

/// Serving while it shuts down: better than nothing.
fn terminating(endpoint: &Endpoint) -> bool {
    endpoint.conditions.serving && endpoint.conditions.terminating
}

/// The ready ones of the allowed endpoints; if there are none, the terminating ones (KEP-1669).
///
/// kube-proxy ignores topology for the latter. So do we, without a word about it: a topology other than
/// [`Topology::Anywhere`] always allows a ready endpoint.
fn ready_or_else_terminating(endpoints: &[Candidate<'_>], allowed: impl Fn(&Endpoint) -> bool) -> Vec<Target> {
    let targets = |state: fn(&Endpoint) -> bool| -> Vec<Target> {
        let chosen = endpoints.iter().filter(|found| state(found.endpoint) && allowed(found.endpoint));
        chosen.map(Candidate::target).collect()
    };
    let chosen = targets(ready);
    if chosen.is_empty() { targets(terminating) } else { chosen }
}

/// Whether hints keep traffic near, for a whole service port: only if *every* ready endpoint has a hint, and at least
/// one is meant for us (KEP-2433, and KEP-4444 for nodes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology<'z> {
    SameNode,
    SameZone(&'z str),
    Anywhere,
}

impl<'z> Topology<'z> {
    fn of(endpoints: &[Candidate<'_>], zone: Option<&'z str>) -> Self {
        // One that is not ready counts neither for nor against.
        let applies = |hinted: fn(&Endpoint) -> bool, topology: Topology<'_>| {
            let mut ready = endpoints.iter().map(|found| found.endpoint).filter(|endpoint| ready(endpoint));
            ready.clone().all(hinted) && ready.any(|endpoint| topology.allows(endpoint))
        };
        if applies(|endpoint| endpoint.hints.as_ref().is_some_and(|hints| hints.for_nodes), Topology::SameNode) {
            return Topology::SameNode;
        }
        match zone.filter(|zone| !zone.is_empty()).map(Topology::SameZone) {
            Some(same_zone)
                if applies(
                    |endpoint| endpoint.hints.as_ref().is_some_and(|hints| !hints.zones.is_empty()),
                    same_zone,
                ) =>
            {
                same_zone
            }
            _ => Topology::Anywhere,
        }
    }

    fn allows(self, endpoint: &Endpoint) -> bool {
        let hints = endpoint.hints.as_ref();
        match self {
            Topology::SameNode => hints.is_some_and(|hints| hints.for_this_node),
            Topology::SameZone(zone) => hints.is_some_and(|hints| hints.zones.iter().any(|hint| **hint == *zone)),
            Topology::Anywhere => true,
        }
    }
}

#[cfg(test)]
mod tests;
