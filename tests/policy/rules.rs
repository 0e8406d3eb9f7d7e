//! The rules of Kubernetes Services, told as plainly as can be: what becomes of one packet.
//!
//! This shares no code with the proxy on purpose. It is slow, knows nothing of sets and chains, and follows the order
//! in which the rules are explained to people.

use std::net::{IpAddr, SocketAddr};

use nftproxyd::ruleset::eval::{Outcome, Reached};

/// What sort of Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    /// `ClusterIP`, not reachable in any other way.
    ClusterIp,
    /// `ClusterIP` with an external IP.
    ExternalIp,
    /// `ClusterIP` with the node port and the load-balancer IP of an earlier life as another type.
    FormerLoadBalancer,
    /// `NodePort`, with an external IP too.
    NodePort,
    /// `LoadBalancer`, with a node port and an external IP too.
    LoadBalancer,
    /// The same, which only clients outside and this node's pods may use (`loadBalancerSourceRanges`).
    RestrictedLoadBalancer,
    /// The same, whose node port and external IP are restricted, too (`nftproxyd.io/source-ranges-everywhere`).
    RestrictedEverywhere,
}

/// Where a packet is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frontend {
    ClusterIp,
    ExternalIp,
    LoadBalancerIp,
    /// On an address of the node that accepts node ports.
    NodePort,
    /// A port of the cluster IP that the Service does not have.
    OtherPortOfClusterIp,
    /// An address of a ServiceCIDR that no Service has.
    UnallocatedClusterIp,
    /// A port of the external IP or load-balancer IP that the Service does not have.
    OtherPortOutside,
    /// A port of the node that is no node port.
    OtherPortOfNode,
    /// The node port, on an address of the node that does not accept node ports.
    NodePortElsewhere,
}

/// How pods are told from others (`detectLocalMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detection {
    None,
    ClusterCidr,
    NodeCidr,
    BridgeInterface,
    InterfaceNamePrefix,
}

/// Who sends the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A pod of this node that is no endpoint.
    Pod,
    /// A pod of another node.
    PodElsewhere,
    /// The endpoint on this node itself.
    LocalEndpoint,
    /// The endpoint on the other node itself.
    RemoteEndpoint,
    /// This node, from the address that it is known by.
    Node,
    /// This node, from another address of its own.
    NodeOtherAddress,
    /// A client outside the cluster.
    Client,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no such endpoint.
    Absent,
    Ready,
    /// It shuts down, but still answers.
    Terminating,
    /// It does not answer.
    NotReady,
    /// Ready, in the network of the node: its address is the node's.
    OnHostNetwork,
}

/// An endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) at: SocketAddr,
    pub(crate) state: State,
    /// Whether it is on this node.
    pub(crate) local: bool,
}

/// All that decides what becomes of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) sort: Sort,
    /// `internalTrafficPolicy: Local`.
    pub(crate) internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub(crate) external_local: bool,
    pub(crate) endpoints: &'a [Endpoint],
    pub(crate) detection: Detection,
    pub(crate) masquerade_all: bool,
    pub(crate) frontend: Frontend,
    pub(crate) source: Source,
    /// The source's address.
    pub(crate) from: IpAddr,
}

/// The classes of sources that the rules tell apart.
#[derive(PartialEq, Eq)]
enum Class {
    Pod,
    Node,
    Other,
}

/// What should become of the packet. Session affinity plays no part: it chooses among the same endpoints.
pub(crate) fn outcome(case: &Case<'_>) -> Outcome {
    // What nobody serves. A cluster IP belongs to the proxy, whatever the port; other addresses do not.
    match case.frontend {
        Frontend::OtherPortOfClusterIp => return Outcome::Reject,
        Frontend::UnallocatedClusterIp => return Outcome::Drop,
        Frontend::OtherPortOutside | Frontend::OtherPortOfNode | Frontend::NodePortElsewhere => return Outcome::Pass,
        _ => {}
    }

    // Source ranges come first, and concern the load-balancer IP only, or whatever is reached from outside: for every source,
    // pods and the node included.
    let restricted = match case.sort {
        Sort::RestrictedLoadBalancer => case.frontend == Frontend::LoadBalancerIp,
        Sort::RestrictedEverywhere => case.frontend != Frontend::ClusterIp,
        _ => false,
    };
    if restricted && !matches!(case.source, Source::Client | Source::Pod | Source::LocalEndpoint) {
        return Outcome::Drop;
    }

    // The external policy counts where the Service was made to be reached from outside.
    let reachable_from_outside = case.sort != Sort::ClusterIp;
    let external_local = case.external_local && !matches!(case.sort, Sort::ClusterIp | Sort::FormerLoadBalancer);

    // The endpoints by policy: the ready ones, or if there are none the terminating ones.
    let uses_cluster = !case.internal_local || reachable_from_outside;
    let uses_local = case.internal_local || (external_local && reachable_from_outside);
    let cluster = if uses_cluster { usable(case.endpoints, |_| true) } else { Vec::new() };
    let local = if uses_local { usable(case.endpoints, |endpoint| endpoint.local) } else { Vec::new() };

    // Nothing anywhere: the sender is told. Something, but elsewhere: silence, so that it tries another node.
    let anywhere = !usable(case.endpoints, |_| true).is_empty();
    if cluster.is_empty() && !(uses_local && anywhere) {
        return Outcome::Reject;
    }

    let class = class(case);
    let internal = case.frontend == Frontend::ClusterIp;
    let (endpoints, masquerade) = match (internal, if internal { case.internal_local } else { external_local }) {
        // A cluster IP masquerades what comes from outside the cluster, if that can be told.
        (true, is_local) => {
            let outside = case.detection != Detection::None && class != Class::Pod;
            (if is_local { local } else { cluster }, case.masquerade_all || outside)
        }
        // From outside, to any node: the answer must come back by this node.
        (false, false) => (cluster, true),
        // The client's address is kept, so only this node's endpoints can answer. Pods and the node itself are served as
        // if they had gone out to the balancer and come back by the best node.
        (false, true) => match class {
            Class::Pod => (cluster, false),
            Class::Node => (cluster, true),
            Class::Other => (local, false),
        },
    };
    if endpoints.is_empty() {
        return Outcome::Drop;
    }
    let reached = |endpoint: Endpoint| {
        // An endpoint that reaches itself would answer itself directly, and not understand.
        let hairpin = endpoint.local && endpoint.at.ip() == case.from;
        // What is delivered to the node itself leaves by no interface whose address it could get.
        let delivered = endpoint.state == State::OnHostNetwork && class_of_node(case.source).is_none();
        Reached { endpoint: endpoint.at, masqueraded: (masquerade || hairpin) && !delivered }
    };
    Outcome::Forward(endpoints.into_iter().map(reached).collect())
}

/// Whether a ping of a Service's address is answered, for a Service that asks for it: where a client outside who may come would
/// get an endpoint. Who may not come is told by his port, so an address that only some may reach answers nobody.
pub(crate) fn answers_ping(case: &Case<'_>) -> bool {
    let restricted = match case.sort {
        Sort::RestrictedLoadBalancer => case.frontend == Frontend::LoadBalancerIp,
        Sort::RestrictedEverywhere => case.frontend != Frontend::ClusterIp,
        _ => false,
    };
    let client = Case { source: Source::Client, ..*case };
    !restricted && matches!(outcome(&client), Outcome::Forward(_))
}

/// The endpoints that get new connections: never ready and terminating ones mixed.
fn usable(endpoints: &[Endpoint], wanted: impl Fn(&Endpoint) -> bool) -> Vec<Endpoint> {
    let of_states = |states: &[State]| -> Vec<Endpoint> {
        endpoints.iter().filter(|endpoint| wanted(endpoint) && states.contains(&endpoint.state)).copied().collect()
    };
    let ready = of_states(&[State::Ready, State::OnHostNetwork]);
    if ready.is_empty() { of_states(&[State::Terminating]) } else { ready }
}

/// A packet is a pod's if the detection says so; else the node's if it has one of its addresses; else another's.
fn class(case: &Case<'_>) -> Class {
    use Source::{LocalEndpoint, Pod, PodElsewhere, RemoteEndpoint};
    let is_pod = match case.detection {
        Detection::None => false,
        Detection::ClusterCidr => matches!(case.source, Pod | PodElsewhere | LocalEndpoint | RemoteEndpoint),
        Detection::NodeCidr | Detection::BridgeInterface | Detection::InterfaceNamePrefix => {
            matches!(case.source, Pod | LocalEndpoint)
        }
    };
    if is_pod { Class::Pod } else { class_of_node(case.source).unwrap_or(Class::Other) }
}

fn class_of_node(source: Source) -> Option<Class> {
    matches!(source, Source::Node | Source::NodeOtherAddress).then_some(Class::Node)
}
