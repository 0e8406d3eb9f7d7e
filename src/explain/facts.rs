//! What has to be known of a packet, and of this node, to explain what becomes of the packet: values alone, so that what is
//! made of them needs no kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::question::Asked;
use crate::metrics::services::ServiceFacts;
use crate::ruleset::eval::{EvalError, Outcome, Reached, Trace};
use crate::ruleset::names::TableName;
use crate::status::FrontendStatus;

/// All of it.
#[derive(Debug)]
pub(super) struct Facts {
    /// The packet.
    pub(super) asked: Asked,
    /// What our tables are called.
    pub(super) own: TableName,
    /// Our table of its family.
    pub(super) table: Table,
    /// What our table does to it; `None` where there is none to ask.
    pub(super) trace: Option<Result<Trace, EvalError>>,
    /// Whether its destination is a cluster IP.
    pub(super) is_cluster_ip: bool,
    /// What is at its destination: the frontend that it is looked up as, if there is one.
    pub(super) frontend: Option<FrontendStatus>,
    /// What else Services have at its address: port and protocol, and whose it is.
    pub(super) neighbours: Vec<(u16, &'static str, String)>,
    /// The node port of this number, where the address does not accept it.
    pub(super) node_port: Option<FrontendStatus>,
    /// Which addresses of the node accept node ports.
    pub(super) accepting: Vec<IpAddr>,
    /// Whether the destination is in a range of cluster IPs, as far as the table says.
    pub(super) in_service_cidr: Option<IpNet>,
    /// The interface that has the destination, if it is the node's own address.
    pub(super) local_at: Option<String>,
    /// Where the client is remembered.
    pub(super) remembered: Option<Remembered>,
    /// What the daemon, or the manifests, say of the Service.
    pub(super) service: Option<ServiceFacts>,
    /// What the daemon says of itself; else why it does not.
    pub(super) daemon: Result<DaemonFacts, String>,
    /// Whether the source is a pod of this node, and by what that is known.
    pub(super) is_pod: Option<String>,
    /// The node, as far as packets have to do with it.
    pub(super) node: Option<NodeFacts>,
}

impl Facts {
    /// Our table of the packet's family, as nft calls it.
    pub(super) fn table_name(&self) -> String {
        format!("{} {}", if self.asked.to.is_ipv4() { "ip" } else { "ip6" }, self.own.as_str())
    }

    /// What our table does, where the packet comes to it and it could be asked.
    pub(super) fn traced(&self) -> Option<&Trace> {
        self.trace.as_ref()?.as_ref().ok().filter(|_| !self.ends_before())
    }

    /// Whether the packet ends before it comes to our table: there is no route, or somebody else ends its way.
    pub(super) fn ends_before(&self) -> bool {
        let Some(node) = &self.node else { return false };
        matches!(node.first_route, Some(Way::Nowhere(_))) || node.before.iter().any(Met::ends)
    }

    /// What the packet can reach by our table.
    pub(super) fn reachable(&self) -> impl Iterator<Item = Reached> {
        let reached = match self.traced().map(|trace| &trace.outcome) {
            Some(Outcome::Forward(reached)) => Some(reached),
            _ => None,
        };
        reached.into_iter().flatten().copied()
    }
}

/// Our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Table {
    /// It is there, with what is not as it has to be, in words.
    There(Vec<String>),
    /// It is, and switched off.
    Dormant,
    /// It is not.
    Absent,
    /// It is not asked for: the rules are those that manifests come to.
    OfManifests,
}

/// A client of a Service with session affinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remembered {
    /// Where it is sent.
    pub(super) endpoint: SocketAddr,
    /// For how long still, if it does not come again.
    pub(super) seconds_left: u64,
}

/// What matters of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct DaemonFacts {
    /// The kinds that are not followed, in words; empty where all are.
    pub(super) not_followed: String,
    /// `clusterCIDR` or what else tells pods, in words.
    pub(super) pods_are: Option<String>,
    /// `masqueradeAll`.
    pub(super) masquerade_all: bool,
}

/// What only the node knows.
#[derive(Debug, Default)]
pub(super) struct NodeFacts {
    /// The way of a packet of this node to its destination, before it is translated; `None` for one that arrives.
    pub(super) first_route: Option<Way>,
    /// The interface that has the node's address, of a packet that it sends itself.
    pub(super) device: Option<String>,
    /// What tables of others do before ours.
    pub(super) before: Vec<Met>,
    /// What becomes of the packet behind our table, by endpoint.
    pub(super) to_endpoints: BTreeMap<SocketAddr, ToEndpoint>,
    /// Tracked connections, and how many there can be, if they are as many.
    pub(super) connections: Option<(u64, u64)>,
    /// Who listens where the packet is sent to.
    pub(super) listener: Option<String>,
    /// Why packets between ports of a bridge are not seen by filters, where source and an endpoint are behind the same.
    pub(super) bridge: Option<String>,
    /// Whether endpoints were to be connected to that cannot, for their protocol.
    pub(super) not_probed: bool,
    /// What could not be found out, in words, and whether that may decide.
    pub(super) unread: Vec<(String, bool)>,
}

/// A way that a packet takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// By this interface, from this address of the node if it sends itself or masquerades.
    By(String, Option<IpAddr>),
    /// To the node itself.
    Local,
    /// Nowhere, for this reason; its sender is told.
    Nowhere(String),
    /// The kernel does not pass it on: the setting, and what has to be set.
    NotForwarded(String, String),
    /// The kernel drops it for its source: the same.
    ReversePath(String, String),
}

/// What becomes of a packet that is sent to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ToEndpoint {
    /// The way.
    pub(super) way: Option<Way>,
    /// What tables of others do on it.
    pub(super) met: Vec<Met>,
    /// The packets that follow, up to one that is lost; none where the first does not come there.
    pub(super) followed: Vec<Followed>,
    /// Connections of the frontend to the endpoint that were answered.
    pub(super) answered: usize,
    /// Those that were not.
    pub(super) unanswered: usize,
    /// What an attempt to connect has come to, where one was asked for.
    pub(super) probe: Option<Result<(), String>>,
    /// Whom it is given to, and the index of the interface that it leaves by; `None` where it does not leave.
    pub(super) next_hop: Option<(IpAddr, u32)>,
    /// That one, if the kernel holds that it has not answered.
    pub(super) silent: Option<Silent>,
}

/// A next hop that has not answered when the kernel asked for its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Silent {
    /// Its address: that of the endpoint, or of a router.
    pub(super) address: IpAddr,
    /// The interface that it was asked for by.
    pub(super) device: String,
    /// How the kernel has it: `FAILED`; or `INCOMPLETE`, as it is still being asked for.
    pub(super) state: &'static str,
}

/// Which packet of a connection it is, behind the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// The first answer; of TCP, that to its SYN.
    Answer,
    /// What the client sends next.
    Later,
    /// What the endpoint sends next, of TCP.
    LaterAnswer,
}

/// A packet that follows the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Followed {
    pub(super) which: Which,
    /// Its way, back to the client or to the endpoint.
    pub(super) way: Way,
    /// What tables of others do on it.
    pub(super) met: Vec<Met>,
    /// Whether a rule has it looked up in another zone than the first, where its connection is not.
    pub(super) other_zone: bool,
}

/// A base chain of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Met {
    /// The hook.
    pub(super) hook: &'static str,
    /// `ip filter FORWARD`.
    pub(super) chain: String,
    /// What it does to the packet.
    pub(super) does: Does,
}

impl Met {
    /// Whether it lets nothing of the packet pass.
    pub(super) fn ends(&self) -> bool {
        matches!(self.does, Does::Drops(_) | Does::Rejects(_) | Does::Takes(..))
    }
}

/// What a chain does to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Does {
    /// It lets it pass.
    Passes,
    /// It drops it: the rule, or its policy.
    Drops(String),
    /// It refuses it.
    Rejects(String),
    /// It may, which cannot be told: the rule, and why.
    MayDrop(String, String),
    /// It translates source or destination.
    Translates(String),
    /// It gives it away: the rule, and to whom.
    Takes(String, String),
    /// It has the connection not tracked.
    NotTracked(String),
}
