//! What the daemon says of itself on the metrics port, as JSON: the server writes it, `nftproxyd status` reads it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
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
    /// Whether nothing that Services need is awaited any more, as `/readyz` on the health port has it; `None` of a version
    /// that does not say.
    #[serde(default)]
    pub ready: Option<bool>,
    /// Seconds since it has started; `None` of a version that does not say.
    #[serde(default)]
    pub started_seconds_ago: Option<u64>,
    /// Services and ServiceCIDRs that have the address of the API server, in words.
    #[serde(default)]
    pub obstacles: Vec<String>,
    /// `spec.podCIDRs` of the Node.
    #[serde(default)]
    pub pod_cidrs: Vec<IpNet>,
    /// `clusterCIDR`, where it is what tells pods from others.
    #[serde(default)]
    pub cluster_cidrs: Vec<IpNet>,
    /// The limit of tracked connections that is configured, 0 where it is left alone; `None` of a version that does not say.
    #[serde(default)]
    pub wanted_connections: Option<u64>,
    /// Services whose health check cannot be served at the moment, by name, each with the address and the reason.
    #[serde(default)]
    pub failing_health_checks: BTreeMap<String, String>,
    /// Whether any Service asks for the reset of connections to endpoints that are gone.
    #[serde(default)]
    pub resets_connections: bool,
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
    /// What the rules of the table depend on; `None` while it is not known what is in the kernel, and of a version that does
    /// not say.
    #[serde(default)]
    pub frame: Option<FrameState>,
}

/// What the rules of a table depend on, besides the version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrameState {
    /// What tells packets of pods from others.
    pub pods: Option<Pods>,
    /// The bit of packets' marks that asks for masquerading.
    pub mark: u32,
    /// `masqueradeAll`.
    pub masquerade_all: bool,
    /// The ranges of cluster IPs.
    pub service_cidrs: Vec<IpNet>,
    /// Whether all local addresses but loopback accept node ports, not only those in `nodeport-ips`.
    pub node_ports_everywhere: bool,
    /// Whether a cluster IP is in none of the ranges.
    pub stray_cluster_ips: bool,
    /// Whether there has been a Service with session affinity.
    pub affinity: bool,
    /// Whether there has been a Service whose endpoints are found by a hash of the client.
    #[serde(default)]
    pub keeps_ports: bool,
    /// Whether each frontend counts its connections (`nftables.countConnections`).
    #[serde(default)]
    pub counters: bool,
    /// Whether there has been a Service whose node ports only some sources may reach.
    #[serde(default)]
    pub nodeport_ranges: bool,
    /// Whether there has been a Service whose addresses answer pings.
    #[serde(default)]
    pub ping: bool,
    /// The node's own address of the family, which answers them.
    #[serde(default)]
    pub node_ip: Option<IpAddr>,
}

/// What tells packets of pods from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Pods {
    /// Their source is in this range.
    Source(IpNet),
    /// They come in by this interface.
    Interface(String),
    /// They come in by an interface whose name begins so.
    InterfacePrefix(String),
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
