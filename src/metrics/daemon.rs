//! What the daemon says of itself on the metrics port, as JSON: the server writes it, `nftproxyd status` reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where it is served on the metrics port.
pub const PATH: &str = "/nftproxyd/status";

/// The daemon. What a version does not know of the other's fields is left out, so that they may differ in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Whether changes of Services reach the kernel in time, as `/livez` on the health port has it.
    pub healthy: bool,
    /// Whether load balancers are to use this node: it is known, and neither being deleted nor about to be.
    pub node_eligible: bool,
    /// What the start still waits for: lists, tables, the take-over, which all have to come before the proxy is ready, and
    /// ports, which need not.
    #[serde(default)]
    pub awaited: Vec<String>,
    /// By kind, how its objects are followed at the API server; empty where they are read from manifests.
    #[serde(default)]
    pub kinds: BTreeMap<String, KindState>,
    /// By family: `IPv4`, `IPv6`.
    pub families: BTreeMap<String, FamilyState>,
    /// By family, what becomes of connections to Services.
    #[serde(default)]
    pub frontends: BTreeMap<String, FrontendsState>,
    /// Services whose changes wait for a sync.
    pub service_changes_pending: u64,
    /// Changes of EndpointSlices that wait for a sync.
    pub endpoint_changes_pending: u64,
    /// Objects of which a part cannot be used, by kind; kinds without any are left out.
    #[serde(default)]
    pub rejected_objects: BTreeMap<String, u64>,
    /// Ranges of cluster IPs that hold addresses of the node, in words: object, range and addresses.
    #[serde(default)]
    pub overlaps: Vec<String>,
}

impl Daemon {
    /// The kinds whose changes do not arrive.
    pub fn not_followed(&self) -> impl Iterator<Item = (&str, &KindState)> {
        let kinds = self.kinds.iter().map(|(kind, state)| (kind.as_str(), state));
        kinds.filter(|(_, state)| !matches!(state.followed, Followed::Follows | Followed::Absent))
    }
}

/// What becomes of connections to Services in a family.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendsState {
    /// Addresses and ports whose connections lead to endpoints.
    pub served: u64,
    /// Those whose connections are refused: there is no endpoint.
    pub refused: u64,
    /// Those whose connections are dropped: the traffic policy lets them go to none of the endpoints.
    pub dropped: u64,
    /// The first 20 ports of Services that are refused or dropped, by name, with the reason.
    pub unserved: BTreeMap<String, String>,
    /// How many more there are.
    pub unserved_more: u64,
}

/// How a kind is followed at the API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KindState {
    /// Whether what happens to its objects is heard.
    pub followed: Followed,
    /// Since how many seconds it is so.
    pub since_seconds: u64,
    /// Seconds since anything was heard of it, be it that there was no change; `None` before the first list.
    pub heard_seconds_ago: Option<u64>,
    /// Why it is not followed, where that is known.
    pub reason: Option<String>,
}

/// Whether what happens to the objects of a kind is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Followed {
    /// Not yet.
    Begins,
    /// It is.
    Follows,
    /// The API server does not have the kind.
    Absent,
    /// No longer, or not yet although it was tried: what is known may be old.
    Lost,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}

/// One family's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyState {
    /// How it stands to what is wanted of it.
    pub standing: Standing,
    /// Why, if the last attempt failed.
    pub reason: Option<String>,
    /// Seconds since it was last in line: 0 while it is, `None` if it never was.
    #[serde(default)]
    pub in_line_seconds_ago: Option<u64>,
    /// Seconds since the last sync that succeeded; `None` before the first.
    pub synced_seconds_ago: Option<u64>,
    /// How long the oldest change has been waiting, in seconds; 0 if none waits.
    pub lag_seconds: u64,
    /// Services of which the kernel refuses a change: they stay as they were. The rest may be in line.
    pub refused_services: u64,
    /// The first 20 of them, by name, with the reason; left out while the table is not in line.
    #[serde(default)]
    pub refused: BTreeMap<String, String>,
    /// How often the table was repaired since the daemon has started.
    pub repairs: u64,
    /// How many clients the kernel remembers for Services with session affinity.
    #[serde(default)]
    pub affinity_clients: u64,
    /// How many it can; 0 of a version that does not say.
    #[serde(default)]
    pub affinity_clients_limit: u64,
}

/// How a family's table stands to what is wanted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It holds all that it should and that the kernel takes.
    InLine,
    /// Something has still to be listed, read or sent.
    Behind,
    /// The last attempt failed as a whole; another will follow.
    Failing,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}
