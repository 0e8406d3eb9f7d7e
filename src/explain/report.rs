//! What is said about a packet: what it meets, what becomes of it, and why.

use std::net::SocketAddr;

use serde::Serialize;

use super::question::Asked;

/// What becomes of a packet; the gravest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It comes to an endpoint, whichever is chosen, as far as this node can tell.
    Reached,
    /// The same, but as far as is known nobody at the endpoint answers, or the answer is lost on this node.
    NotServed,
    /// It belongs to no Service that is served here, or somebody else's rules translate it.
    NotOurs,
    /// Nobody can tell: a condition of somebody else's rule, or our tables cannot be read.
    Unsure,
    /// Its sender is told: a reset, an ICMP error, no route.
    Refused,
    /// It is lost.
    Dropped,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Verdict; 6] =
        [Verdict::Reached, Verdict::NotServed, Verdict::NotOurs, Verdict::Unsure, Verdict::Refused, Verdict::Dropped];

    /// The exit status of `explain`. A part of the interface.
    pub fn exit_status(self) -> u8 {
        match self {
            Verdict::Reached => 0,
            // 1 is any error, 2 a wrong command line.
            Verdict::Refused => 3,
            Verdict::Dropped => 4,
            Verdict::NotOurs => 5,
            Verdict::Unsure => 6,
            Verdict::NotServed => 7,
        }
    }

    /// How the last line begins.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Reached => "REACHED",
            Verdict::NotServed => "REACHED, NOT ANSWERED",
            Verdict::NotOurs => "NOT OURS",
            Verdict::Unsure => "NOBODY CAN TELL",
            Verdict::Refused => "REFUSED",
            Verdict::Dropped => "DROPPED",
        }
    }
}

/// Why. The names in JSON are a part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The Service port has no endpoint at all.
    NoEndpoints,
    /// It has some, but none is ready.
    EndpointsNotReady,
    /// `internalTrafficPolicy: Local`, and no endpoint on this node.
    InternalTrafficPolicy,
    /// `externalTrafficPolicy: Local`, and no endpoint on this node.
    ExternalTrafficPolicy,
    /// The client is in none of `loadBalancerSourceRanges`.
    SourceRanges,
    /// The client is remembered at an endpoint that the Service has no more.
    RememberedEndpointGone,
    /// The cluster IP does not have this port.
    NoSuchPort,
    /// An address in the range of cluster IPs that no Service has.
    FreeClusterIp,
    /// The endpoint has answered no connection to its port that there is, or no attempt.
    EndpointDoesNotAnswer,
    /// Nobody answers ARP, or neighbour discovery, for the next hop to the endpoint.
    NeighbourDoesNotAnswer,
    /// A table of somebody else drops or refuses.
    ForeignRule,
    /// It may, with that packet or one that follows.
    ForeignRuleUnclear,
    /// The packet comes to an endpoint, and the answer does not come back through this node.
    AnswerLost,
    /// What the client sends after the answer is lost on this node.
    LaterPacketLost,
    /// A table of somebody else translates the packet first.
    TranslatedElsewhere,
    /// What kube-proxy has left translates it first, or is in the way.
    KubeProxyLeftover,
    /// The kernel does not forward (`ip_forward`, `forwarding` of an interface).
    NotForwarded,
    /// The kernel drops it for where it comes from (`rp_filter`).
    ReversePath,
    /// By which interface the packet comes in has to be known, and is not.
    InterfaceUnknown,
    /// Something cannot be read that decides.
    Unread,
    /// The table of connections is full.
    ConnectionsFull,
    /// Packets between ports of a bridge do not meet the rules that answers have to meet.
    Bridge,
    /// A pod is masqueraded, as its address is not in what the configuration says pods have.
    PodMasqueraded,
    /// The address of the node does not accept node ports.
    NodePortAddress,
    /// A process of this node listens on the port of a Service.
    Listener,
    /// This node has no route to the endpoint.
    NoRouteToEndpoint,
    /// This node has no route to the address of the Service.
    NoRouteToService,
    /// Our table is not there.
    NoTable,
    /// Our table is not as it has to be.
    DamagedTable,
    /// The daemon does not answer.
    DaemonDown,
    /// The daemon does not follow the cluster.
    NotFollowed,
    /// An address of this node.
    LocalAddress,
    /// No Service has it.
    NoService,
}

/// How much a reason matters to the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Good to know: the packet's fate is the same without it, or what it says is not of this packet alone.
    Note,
    /// It decides that the packet has this fate.
    Decides(Verdict),
}

/// One cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// Its kind.
    pub reason: Reason,
    /// What it does to the packet.
    pub effect: Effect,
    /// Of which endpoint alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// In words.
    pub what: String,
    /// What can be done, where that can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// A place that the packet passes, or where it ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// `routing`, or a hook: `prerouting`, `input`, `forward`, `output`, `postrouting`; of packets that follow, and only where
    /// one does not pass: `answer`, `later`.
    pub place: &'static str,
    /// What is there: a table and chain, an interface.
    pub at: String,
    /// What it does.
    pub does: String,
}

/// An endpoint that the packet may go to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointReport {
    /// Address and port.
    pub address: SocketAddr,
    /// The part of new connections that it gets, 0 to 1; `None` where the client is remembered there.
    pub share: Option<f64>,
    /// Its pod.
    pub pod: Option<String>,
    /// The pod's node.
    pub node: Option<String>,
    /// The interface by which the packet leaves, or `local`; `None` where there is no route.
    pub by: Option<String>,
    /// Whom it sees as the client, where that is not the client; `?` where the address cannot be told.
    pub sees: Option<String>,
    /// Connections of this frontend to it that it has answered.
    pub answered: usize,
    /// Those that it has not.
    pub unanswered: usize,
    /// What becomes of a packet that is sent to it.
    pub verdict: Verdict,
}

/// All that is said about a packet.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The packet.
    pub packet: Asked,
    /// `namespace/name:port` of the Service that it belongs to.
    pub service: Option<String>,
    /// What it is sent to, in words: `cluster IP, internalTrafficPolicy Cluster`.
    pub is: String,
    /// What else decides, each with its name: source ranges, affinity, scheduler.
    pub facts: Vec<(&'static str, String)>,
    /// What it meets, in order.
    pub way: Vec<Stage>,
    /// Where it may go.
    pub endpoints: Vec<EndpointReport>,
    /// Why; those that decide come first.
    pub causes: Vec<Cause>,
    /// What becomes of it: the gravest of what may.
    pub verdict: Verdict,
}
