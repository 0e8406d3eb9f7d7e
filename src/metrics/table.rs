//! The table of all metrics: what is on the metrics port is what stands here.
//!
//! The first part has kube-proxy 1.36's names, labels, buckets and help texts, so that its dashboards and alerts go on
//! working; help texts begin with the stability, as all Kubernetes components' do. What kube-proxy exports by accident
//! or of its own inside (`go_*`, `apiserver_*`, the client's caches) is not here. Neither is `kubernetes_build_info`:
//! alerts compare its version with the other components', and ours says nothing about that.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Type {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Observations, counted by these upper bounds (and one without bound).
    Histogram(&'static [f64]),
}

/// What is promised about a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stability {
    /// It may change with any minor version.
    Alpha,
    /// It stays as it is.
    Stable,
    /// Nothing: it belongs to all programs that Prometheus scrapes, not to Kubernetes.
    Unstated,
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub metric_type: Type,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What is promised about it.
    pub stability: Stability,
    /// What it means, in a few words.
    pub meaning: &'static str,
}

impl Definition {
    /// The text of its `# HELP` line.
    pub fn help(&self) -> String {
        match self.stability {
            Stability::Alpha => format!("[ALPHA] {}", self.meaning),
            Stability::Stable => format!("[STABLE] {}", self.meaning),
            Stability::Unstated => self.meaning.to_owned(),
        }
    }
}

macro_rules! table {
    ($($id:ident: $type:expr, $stability:ident, $name:literal, [$($label:literal),*], $meaning:literal;)*) => {
        $(
            pub(super) const $id: Definition = Definition {
                name: $name,
                metric_type: $type,
                labels: &[$($label),*],
                stability: Stability::$stability,
                meaning: $meaning,
            };
        )*

        /// Every metric.
        pub const TABLE: &[Definition] = &[$($id),*];
    };
}

use Type::{Counter, Gauge};

const SYNC_TIMES: Type = Type::Histogram(&doubling::<15>(0.001));
const PROGRAMMING_TIMES: Type = Type::Histogram(&programming_times());
const REQUEST_TIMES: Type = Type::Histogram(&[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0]);
const KERNEL_TIMES: Type = Type::Histogram(&doubling::<14>(0.000_1));
const SIZES: Type = Type::Histogram(&[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0]);
const COUNTS: Type = Type::Histogram(&[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4]);

#[rustfmt::skip]
table! {
    // kube-proxy's own, in nftables mode
    SYNC_DURATION: SYNC_TIMES, Alpha, "kubeproxy_sync_proxy_rules_duration_seconds", ["ip_family"],
        "SyncProxyRules latency in seconds";
    SYNC_FULL_DURATION: SYNC_TIMES, Alpha, "kubeproxy_sync_full_proxy_rules_duration_seconds", ["ip_family"],
        "SyncProxyRules latency in seconds for full resyncs";
    SYNC_PARTIAL_DURATION: SYNC_TIMES, Alpha, "kubeproxy_sync_partial_proxy_rules_duration_seconds", ["ip_family"],
        "SyncProxyRules latency in seconds for partial resyncs";
    SYNC_LAST: Gauge, Alpha, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", ["ip_family"],
        "The last time proxy rules were successfully synced";
    SYNC_LAST_QUEUED: Gauge, Alpha, "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", ["ip_family"],
        "The last time a sync of proxy rules was queued";
    ENDPOINT_CHANGES_PENDING: Gauge, Alpha, "kubeproxy_sync_proxy_rules_endpoint_changes_pending", [],
        "Pending proxy rules Endpoint changes";
    ENDPOINT_CHANGES: Counter, Alpha, "kubeproxy_sync_proxy_rules_endpoint_changes_total", [],
        "Cumulative proxy rules Endpoint changes";
    SERVICE_CHANGES_PENDING: Gauge, Alpha, "kubeproxy_sync_proxy_rules_service_changes_pending", [],
        "Pending proxy rules Service changes";
    SERVICE_CHANGES: Counter, Alpha, "kubeproxy_sync_proxy_rules_service_changes_total", [],
        "Cumulative proxy rules Service changes";
    // A gauge, in spite of its name.
    NO_LOCAL_ENDPOINTS: Gauge, Alpha, "kubeproxy_sync_proxy_rules_no_local_endpoints_total", ["traffic_policy", "ip_family"],
        "Number of services with a Local traffic policy and no endpoints";
    SYNC_FAILURES: Counter, Alpha, "kubeproxy_sync_proxy_rules_nftables_sync_failures_total", ["ip_family"],
        "Cumulative proxy nftables sync failures";
    CLEANUP_FAILURES: Counter, Alpha, "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", ["ip_family"],
        "Cumulative proxy nftables cleanup failures";
    NETWORK_PROGRAMMING: PROGRAMMING_TIMES, Alpha, "kubeproxy_network_programming_duration_seconds", ["ip_family"],
        "In Cluster Network Programming Latency in seconds";
    CONNTRACK_DURATION: SYNC_TIMES, Alpha, "kubeproxy_conntrack_reconciler_sync_duration_seconds", ["ip_family"],
        "ReconcileConntrackFlowsLatency latency in seconds";
    CONNTRACK_DELETED: Counter, Alpha, "kubeproxy_conntrack_reconciler_deleted_entries_total", ["ip_family"],
        "Cumulative conntrack flows deleted by conntrack reconciler";
    CONNECTIONS_RESET: Counter, Alpha, "nftproxyd_connections_reset_total", ["ip_family"],
        "TCP connections to endpoints that are gone of which the next packet is answered with a reset, where a Service asks for it.";
    LOCALHOST_LISTENERS: Gauge, Alpha, "kubeproxy_nftables_localhost_nodeport_listeners", ["ip_family"],
        "Number of sockets that listen for NodePorts on localhost";
    LOCALHOST_FAILURES: Counter, Alpha, "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total", ["ip_family"],
        "Cumulative failures to listen for NodePorts on localhost";
    HEALTHZ: Counter, Alpha, "kubeproxy_proxy_healthz_total", ["code"],
        "Cumulative proxy healthz HTTP status";
    LIVEZ: Counter, Alpha, "kubeproxy_proxy_livez_total", ["code"],
        "Cumulative proxy livez HTTP status";

    // those of every Kubernetes component
    REQUESTS: Counter, Alpha, "rest_client_requests_total", ["code", "method", "host"],
        "Number of HTTP requests, partitioned by status code, method, and host.";
    REQUEST_DURATION: REQUEST_TIMES, Alpha, "rest_client_request_duration_seconds", ["verb", "host"],
        "Request latency in seconds. Broken down by verb, and host.";
    HEALTHCHECK: Gauge, Stable, "kubernetes_healthcheck", ["name", "type"],
        "This metric records the result of a single healthcheck.";
    HEALTHCHECKS: Counter, Stable, "kubernetes_healthchecks_total", ["name", "status", "type"],
        "This metric records the results of all healthcheck.";

    // those of every process
    PROCESS_CPU: Counter, Unstated, "process_cpu_seconds_total", [],
        "Total user and system CPU time spent in seconds.";
    PROCESS_RESIDENT: Gauge, Unstated, "process_resident_memory_bytes", [],
        "Resident memory size in bytes.";
    PROCESS_VIRTUAL: Gauge, Unstated, "process_virtual_memory_bytes", [],
        "Virtual memory size in bytes.";
    PROCESS_VIRTUAL_MAX: Gauge, Unstated, "process_virtual_memory_max_bytes", [],
        "Maximum amount of virtual memory available in bytes.";
    PROCESS_OPEN_FDS: Gauge, Unstated, "process_open_fds", [],
        "Number of open file descriptors.";
    PROCESS_MAX_FDS: Gauge, Unstated, "process_max_fds", [],
        "Maximum number of open file descriptors.";
    PROCESS_START: Gauge, Unstated, "process_start_time_seconds", [],
        "Start time of the process since unix epoch in seconds.";
    PROCESS_RECEIVED: Counter, Unstated, "process_network_receive_bytes_total", [],
        "Number of bytes received by the process over the network.";
    PROCESS_SENT: Counter, Unstated, "process_network_transmit_bytes_total", [],
        "Number of bytes sent by the process over the network.";

    // nftproxyd's own
    BUILD_INFO: Gauge, Alpha, "nftproxyd_build_info", ["version", "arch"],
        "Always 1; the labels say which nftproxyd this is.";
    IN_SYNC: Gauge, Alpha, "nftproxyd_in_sync", ["ip_family"],
        "1 if nftproxyd's table holds all that it should, but for Services that the kernel refuses; 0 if not.";
    SERVICES: Gauge, Alpha, "nftproxyd_services", ["ip_family"],
        "Services that have something in nftproxyd's table.";
    FRONTENDS: Gauge, Alpha, "nftproxyd_frontends", ["ip_family", "state"],
        "Addresses and ports of Services, by what happens to connections: served, refused or dropped.";
    TRANSACTION_OPERATIONS: COUNTS, Alpha, "nftproxyd_transaction_operations", ["ip_family"],
        "Kernel objects created or deleted by one nftables transaction.";
    TRANSACTION_BYTES: SIZES, Alpha, "nftproxyd_transaction_bytes", ["ip_family"],
        "Size of one nftables transaction on its way to the kernel.";
    TRANSACTION_KERNEL: KERNEL_TIMES, Alpha, "nftproxyd_transaction_kernel_seconds", ["ip_family"],
        "Time that the kernel took for one nftables transaction.";
    FOREIGN_CHANGES: Counter, Alpha, "nftproxyd_foreign_changes_total", ["ip_family"],
        "Changes of nftproxyd's table that somebody else made.";
    REPAIRS: Counter, Alpha, "nftproxyd_repairs_total", ["ip_family"],
        "Times that nftproxyd's table was not as it should be, and was repaired.";
    REFUSED_SERVICES: Gauge, Alpha, "nftproxyd_refused_services", ["ip_family"],
        "Services of which the kernel refuses a change; they stay as they were.";
    HEALTH_CHECKS_FAILING: Gauge, Alpha, "nftproxyd_health_checks_failing", ["ip_family"],
        "Health checks of Services (healthCheckNodePort) whose port cannot be listened on.";
    REJECTED_OBJECTS: Gauge, Alpha, "nftproxyd_rejected_objects", ["kind"],
        "Objects of which a part cannot be used; the log says which part and why.";
    SOURCE_FOLLOWING: Gauge, Alpha, "nftproxyd_source_following", ["kind"],
        "1 while changes of objects of this kind arrive from the API server, 0 while they do not.";
    SOURCE_LAST_EVENT: Gauge, Alpha, "nftproxyd_source_last_event_timestamp_seconds", ["kind"],
        "When anything was last heard of objects of this kind: a list, a change, or a bookmark.";
    MAP_ELEMENTS: Gauge, Alpha, "nftproxyd_map_elements", ["ip_family", "map"],
        "Elements that nftproxyd has in each set and map of its table.";
    AFFINITY_CLIENTS: Gauge, Alpha, "nftproxyd_affinity_clients", ["ip_family"],
        "Clients that the kernel remembers for Services with session affinity, all together.";
    AFFINITY_CLIENTS_LIMIT: Gauge, Alpha, "nftproxyd_affinity_clients_limit", ["ip_family"],
        "Clients that the kernel can remember.";
    SERVICE_CONNECTIONS: Counter, Alpha, "nftproxyd_service_connections_total", ["namespace", "service", "port", "frontend"],
        "New connections to an address and port of a Service, where they are counted (nftables.countConnections).";
    ENDPOINT_CONNECTIONS: Counter, Alpha, "nftproxyd_endpoint_connections_total", ["namespace", "service", "port", "endpoint"],
        "Connections to an endpoint of a Service that have ended, where they are accounted for.";
    ENDPOINT_PACKETS: Counter, Alpha, "nftproxyd_endpoint_packets_total", ["namespace", "service", "port", "endpoint", "direction"],
        "Packets of these connections, from clients (original) and back (reply).";
    ENDPOINT_BYTES: Counter, Alpha, "nftproxyd_endpoint_bytes_total", ["namespace", "service", "port", "endpoint", "direction"],
        "Bytes of these connections with IP headers, from clients (original) and back (reply).";
    ACCOUNTING_LOST: Counter, Alpha, "nftproxyd_accounting_lost_total", [],
        "Times that the kernel told of ended connections faster than they were read: some are missing.";
    ACCOUNTING_FORGOTTEN: Counter, Alpha, "nftproxyd_accounting_forgotten_total", ["reason"],
        "Addresses and ports of accounted Services that were gone and have been forgotten: what ends later is counted nowhere.";
    LOCALHOST_CONNECTIONS: Counter, Alpha, "nftproxyd_localhost_nodeport_connections_total", ["protocol"],
        "Connections to NodePorts on localhost; of UDP, clients.";
    LOCALHOST_BYTES: Counter, Alpha, "nftproxyd_localhost_nodeport_bytes_total", ["protocol", "direction"],
        "Bytes of these connections without headers, from clients (original) and back (reply).";
    LOCALHOST_RETRIES: Counter, Alpha, "nftproxyd_localhost_nodeport_retries_total", ["protocol"],
        "Further endpoints that were tried for these connections, as the one before did not answer.";
    LOCALHOST_REFUSED: Counter, Alpha, "nftproxyd_localhost_nodeport_refused_total", ["protocol"],
        "Connections to NodePorts on localhost that no endpoint took.";
    LOCALHOST_EVICTED: Counter, Alpha, "nftproxyd_localhost_nodeport_evicted_total", [],
        "Clients of UDP on localhost that were forgotten early, as there were too many.";
    CONNTRACK_ENTRIES: Gauge, Alpha, "nftproxyd_conntrack_entries", [],
        "Connections that the kernel tracks in this network namespace.";
    CONNTRACK_LIMIT: Gauge, Alpha, "nftproxyd_conntrack_entries_limit", [],
        "Connections that the kernel can track (nf_conntrack_max).";
}

/// Bounds that double.
const fn doubling<const N: usize>(first: f64) -> [f64; N] {
    let mut bounds = [first; N];
    let mut i = 1;
    while i < N {
        bounds[i] = bounds[i - 1] * 2.0;
        i += 1;
    }
    bounds
}

/// 0.25 and 0.5; 1 to 59; 60 to 115 by fives; 120 to 300 by thirties.
const fn programming_times() -> [f64; 80] {
    let mut bounds = [0.0; 80];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = match i {
            0 | 1 => 0.25 * (i + 1) as f64,
            2..=60 => (i - 1) as f64,
            61..=72 => (60 + 5 * (i - 61)) as f64,
            _ => (120 + 30 * (i - 73)) as f64,
        };
        i += 1;
    }
    bounds
}
