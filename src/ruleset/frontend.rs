//! What a frontend is: whose it is, and what becomes of a connection to it.
//!
//! A [`Frontend`] is what the proxy remembers of what it installed. [`super::elements`] spreads it over the sets and maps,
//! so the difference of two frontends is the difference of their elements.

use std::net::IpAddr;

use arcstr::ArcStr;

use super::backend::Backend;
use super::names::Masquerade;
use super::ranges::Range;
use super::slots::Slots;
use crate::model::{ObjectName, TrafficPolicy};

/// The longest comment of an element, in bytes: nft 1.0.6 reads 128 with the closing NUL (`NFTNL_UDATA_COMMENT_MAXLEN`
/// of include/libnftnl/udata.h). Namespace, name and port name together can be longer.
const COMMENT_MAX: usize = 127;

/// What becomes of a connection to a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Refused: there is no endpoint anywhere.
    Reject,
    /// Dropped: there are endpoints, but the policy allows none of them here.
    Drop,
    /// Translated to one of the slots.
    Forward {
        /// Whether the slots are those of all endpoints or, with a traffic policy Local, of those on this node only. It is
        /// told by where the slots begin and by the name of the chain, so that it can be read back.
        policy: TrafficPolicy,
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

impl Action {
    /// Seconds of session affinity.
    pub fn affinity(&self) -> Option<u32> {
        match self {
            Action::Forward { affinity, .. } | Action::Split { affinity, .. } => *affinity,
            Action::Reject | Action::Drop => None,
        }
    }

    /// Whether clients keep their port when they are masqueraded, as it would not do otherwise to find the endpoint again by
    /// a hash. Where all policies are Local, the node's own connections are masqueraded.
    pub fn keeps_ports(&self) -> bool {
        let masquerades = !matches!(self, Action::Forward { masquerade: Masquerade::Never, .. });
        masquerades && self.slots().any(|(_, slots)| slots.by.is_by_client())
    }

    /// The endpoints that connections from inside the cluster may use.
    pub fn inside(&self) -> &[Backend] {
        match self {
            Action::Forward { slots, .. } | Action::Split { cluster: slots, .. } => slots,
            Action::Reject | Action::Drop => &[],
        }
    }

    /// All slots, with whether they are those of this node only.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = (bool, &mut Slots)> {
        let (one, other) = match self {
            Action::Forward { policy, slots, .. } => (Some((*policy == TrafficPolicy::Local, slots)), None),
            Action::Split { cluster, local, .. } => (Some((false, cluster)), Some((true, local))),
            Action::Reject | Action::Drop => (None, None),
        };
        one.into_iter().chain(other)
    }

    /// The same to look at.
    pub fn slots(&self) -> impl Iterator<Item = (bool, &Slots)> {
        let (one, other) = match self {
            Action::Forward { policy, slots, .. } => (Some((*policy == TrafficPolicy::Local, slots)), None),
            Action::Split { cluster, local, .. } => (Some((false, cluster)), Some((true, local))),
            Action::Reject | Action::Drop => (None, None),
        };
        one.into_iter().chain(other)
    }

    /// The endpoints that connections from outside may use.
    pub fn outside(&self) -> &[Backend] {
        match self {
            Action::Forward { slots, .. } | Action::Split { local: slots, .. } => slots,
            Action::Reject | Action::Drop => &[],
        }
    }
}

/// What is installed for one [`FrontendKey`](crate::model::FrontendKey).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The Service it belongs to.
    pub service: ObjectName,
    /// The name of the Service's port; with the Service's name, the comment of its element.
    pub port_name: ArcStr,
    /// What becomes of a connection.
    pub action: Action,
    /// `loadBalancerSourceRanges`: the only sources that are not dropped, sorted and merged; none where none of the ranges
    /// can be used. `None`: all are allowed.
    pub allowed_sources: Option<Box<[Range]>>,
}

/// The comment of the elements that lead to the frontends of a Service's port: see [`Frontend::comment`].
pub fn comment(service: &ObjectName, port_name: &str) -> ArcStr {
    let name = service.as_str();
    let mut comment = if port_name.is_empty() { name.into() } else { format!("{name}:{port_name}") };
    comment.truncate(comment.floor_char_boundary(COMMENT_MAX));
    if comment.ends_with(':') {
        // Nothing is left of the port's name: it has to look like a port without one, as which it is read back.
        comment.pop();
    }
    comment.into()
}

/// An element that several Services may need: it is there as long as one of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shared {
    /// A cluster IP, in `cluster-ips`.
    ClusterIp(IpAddr),
    /// An address that answers pings, in `ping-ips`.
    Ping(IpAddr),
    /// An endpoint on this node, in `local-endpoints`.
    LocalEndpoint(IpAddr),
    /// The same in `hairpin`.
    Hairpin(IpAddr),
}

impl Frontend {
    /// The comment of the frontend's element, which also tells the next run whose it is: `namespace/name:port`, cut to
    /// what nft can read.
    pub fn comment(&self) -> ArcStr {
        comment(&self.service, &self.port_name)
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
