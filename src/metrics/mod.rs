//! Numbers about the proxy for Prometheus, and the port on which they are asked for.
//!
//! * [`TABLE`]: all metrics, with kube-proxy's names where kube-proxy has the same.
//! * [`Metrics`]: their values. Whoever does something counts it; nothing here knows what is counted.
//! * [`Connections`]: what counters say that begin anew now and then, added up.
//! * `serve`: the metrics port, with kube-proxy's paths, and [`daemon::PATH`].

mod bounded;
mod connections;
pub mod daemon;
pub mod endpoints;
pub mod history;
mod localhost;
mod readings;
mod server;
pub mod services;
mod table;
mod zpages;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder,
};

use crate::model::{Family, PerFamily};

pub use bounded::{FORGOTTEN, MOST_SERIES, OTHER};
pub use connections::{Connections, FrontendOf};
pub use endpoints::{EndpointOf, Endpoints, Had};
pub use localhost::{Localhost, PerProtocol};
pub(crate) use server::serve;
pub use table::{Definition, Stability, TABLE, Type};
pub use zpages::ZPages;

/// Traffic policies, as they are in the label `traffic_policy`: of connections from inside the cluster, and from
/// outside.
pub const TRAFFIC_POLICIES: [&str; 2] = ["internal", "external"];

/// What happens to connections to a frontend, as it is in the label `state`: they lead to endpoints, are refused because there
/// is none, or are dropped because there are endpoints only where the traffic policy does not let them go.
pub const FRONTEND_STATES: [&str; 3] = ["served", "refused", "dropped"];

/// All metrics. Each has its zero from the start, so that a rate is right from the first event on, except where the
/// values of a label are not known before.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    slis: Mutex<Slis>,

    /// Every sync, whether it succeeded or not.
    pub sync_duration: PerFamily<Histogram>,
    /// Syncs that read back the kernel's table and compared all of it.
    pub sync_full_duration: PerFamily<Histogram>,
    /// All other syncs.
    pub sync_partial_duration: PerFamily<Histogram>,
    /// The last successful sync.
    pub sync_last: PerFamily<Gauge>,
    /// When something last had to be synced.
    pub sync_last_queued: PerFamily<Gauge>,
    /// Changes of slices since the last sync.
    pub endpoint_changes_pending: Gauge,
    /// Events about slices.
    pub endpoint_changes: Counter,
    /// Services changed since the last sync.
    pub service_changes_pending: Gauge,
    /// Events about Services.
    pub service_changes: Counter,
    /// Service ports without a local endpoint, by [`TRAFFIC_POLICIES`].
    pub no_local_endpoints: [PerFamily<Gauge>; 2],
    /// Transactions that failed.
    pub sync_failures: PerFamily<Counter>,
    /// Failures to forget the clients of endpoints that are gone.
    pub cleanup_failures: PerFamily<Counter>,
    /// From a change in the cluster to the rules.
    pub network_programming: PerFamily<Histogram>,
    /// Passes over the UDP flows of connection tracking.
    pub conntrack_duration: PerFamily<Histogram>,
    /// Flows that they deleted.
    pub conntrack_deleted: PerFamily<Counter>,
    /// Connections that were reset, as their endpoint is gone.
    pub connections_reset: PerFamily<Counter>,
    /// 1 while a table holds what it should, 0 while it does not.
    pub in_sync: PerFamily<Gauge>,
    /// Services that something is installed for.
    pub services: PerFamily<Gauge>,
    /// Frontends, by [`FRONTEND_STATES`].
    pub frontends: [PerFamily<Gauge>; 3],
    /// Operations of each transaction.
    pub transaction_operations: PerFamily<Histogram>,
    /// Bytes of each transaction.
    pub transaction_bytes: PerFamily<Histogram>,
    /// Time that the kernel took for each transaction.
    pub transaction_kernel: PerFamily<Histogram>,
    /// Changes of our tables by others.
    pub foreign_changes: PerFamily<Counter>,
    /// Repairs of our tables.
    pub repairs: PerFamily<Counter>,
    /// Services of which the kernel refuses something.
    pub refused_services: PerFamily<Gauge>,
    /// Health checks of Services whose port cannot be listened on.
    pub health_checks_failing: PerFamily<Gauge>,
    /// Clients that the kernel remembers.
    pub affinity_clients: PerFamily<Gauge>,
    /// How many it can.
    pub affinity_clients_limit: PerFamily<Gauge>,
    /// Connections to each frontend, where they are counted.
    pub connections: Connections,
    /// What ended connections to each endpoint had, where that is accounted for.
    pub endpoints: Endpoints,
    /// Times that ends of connections were lost.
    pub accounting_lost: Counter,
    /// Node ports on localhost.
    pub localhost: Localhost,

    accounting_forgotten: [Counter; 2],
    healthz: CounterVec,
    livez: CounterVec,
    requests: CounterVec,
    request_duration: HistogramVec,
    rejected_objects: GaugeVec,
    source_following: GaugeVec,
    source_last_event: GaugeVec,
    map_elements: GaugeVec,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let table = Registering(Registry::new());
        let no_local_endpoints = table.gauges(&table::NO_LOCAL_ENDPOINTS);
        let frontends = table.gauges(&table::FRONTENDS);
        let (healthz, livez) = (table.counters(&table::HEALTHZ), table.counters(&table::LIVEZ));
        for code in ["200", "503"] {
            healthz.with_label_values(&[code]);
            livez.with_label_values(&[code]);
        }
        let accounting_forgotten = table.counters(&table::ACCOUNTING_FORGOTTEN);
        let build_info = table.gauges(&table::BUILD_INFO);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), std::env::consts::ARCH]).set(1.0);
        Metrics {
            slis: Mutex::new(Slis::new()),
            sync_duration: table.histogram(&table::SYNC_DURATION),
            sync_full_duration: table.histogram(&table::SYNC_FULL_DURATION),
            sync_partial_duration: table.histogram(&table::SYNC_PARTIAL_DURATION),
            sync_last: table.gauge(&table::SYNC_LAST),
            sync_last_queued: table.gauge(&table::SYNC_LAST_QUEUED),
            endpoint_changes_pending: table.gauges(&table::ENDPOINT_CHANGES_PENDING).with_label_values(NONE),
            endpoint_changes: table.counters(&table::ENDPOINT_CHANGES).with_label_values(NONE),
            service_changes_pending: table.gauges(&table::SERVICE_CHANGES_PENDING).with_label_values(NONE),
            service_changes: table.counters(&table::SERVICE_CHANGES).with_label_values(NONE),
            no_local_endpoints: TRAFFIC_POLICIES.map(|policy| {
                PerFamily::from_fn(|family| no_local_endpoints.with_label_values(&[policy, label(family)]))
            }),
            sync_failures: table.counter(&table::SYNC_FAILURES),
            cleanup_failures: table.counter(&table::CLEANUP_FAILURES),
            network_programming: table.histogram(&table::NETWORK_PROGRAMMING),
            conntrack_duration: table.histogram(&table::CONNTRACK_DURATION),
            conntrack_deleted: table.counter(&table::CONNTRACK_DELETED),
            connections_reset: table.counter(&table::CONNECTIONS_RESET),
            in_sync: table.gauge(&table::IN_SYNC),
            services: table.gauge(&table::SERVICES),
            frontends: FRONTEND_STATES
                .map(|state| PerFamily::from_fn(|family| frontends.with_label_values(&[label(family), state]))),
            transaction_operations: table.histogram(&table::TRANSACTION_OPERATIONS),
            transaction_bytes: table.histogram(&table::TRANSACTION_BYTES),
            transaction_kernel: table.histogram(&table::TRANSACTION_KERNEL),
            foreign_changes: table.counter(&table::FOREIGN_CHANGES),
            repairs: table.counter(&table::REPAIRS),
            refused_services: table.gauge(&table::REFUSED_SERVICES),
            health_checks_failing: table.gauge(&table::HEALTH_CHECKS_FAILING),
            affinity_clients: table.gauge(&table::AFFINITY_CLIENTS),
            affinity_clients_limit: table.gauge(&table::AFFINITY_CLIENTS_LIMIT),
            connections: Connections::new(),
            endpoints: Endpoints::new(),
            accounting_lost: table.counters(&table::ACCOUNTING_LOST).with_label_values(NONE),
            accounting_forgotten: ["time", "room"].map(|reason| accounting_forgotten.with_label_values(&[reason])),
            localhost: Localhost::new(&table),
            healthz,
            livez,
            requests: table.counters(&table::REQUESTS),
            request_duration: table.histograms(&table::REQUEST_DURATION),
            rejected_objects: table.gauges(&table::REJECTED_OBJECTS),
            source_following: table.gauges(&table::SOURCE_FOLLOWING),
            source_last_event: table.gauges(&table::SOURCE_LAST_EVENT),
            map_elements: table.gauges(&table::MAP_ELEMENTS),
            registry: table.0,
        }
    }

    /// So many frontends that are gone have been forgotten, after their time and for want of room.
    pub fn accounting_forgotten(&self, in_time: u64, for_room: u64) {
        for (counter, count) in self.accounting_forgotten.iter().zip([in_time, for_room]) {
            // Exact up to 2^53.
            counter.inc_by(count as f64);
        }
    }

    /// `/healthz` was asked for on the health port, and answered with this status code.
    pub fn healthz_answered(&self, code: u16) {
        self.healthz.with_label_values(&[code.to_string()]).inc();
    }

    /// The same for `/livez`.
    pub fn livez_answered(&self, code: u16) {
        self.livez.with_label_values(&[code.to_string()]).inc();
    }

    /// A request to the API server has been answered, with a status code, or has failed without.
    pub fn requested(&self, method: &str, host: &str, code: Option<u16>, elapsed: Duration) {
        let code = code.map_or("<error>".to_owned(), |code| code.to_string());
        self.requests.with_label_values(&[&code, method, host]).inc();
        self.request_duration.with_label_values(&[method, host]).observe(elapsed.as_secs_f64());
    }

    /// So many objects of a kind are partly unusable.
    pub fn set_rejected_objects(&self, kind: &str, objects: usize) {
        self.rejected_objects.with_label_values(&[kind]).set(objects as f64);
    }

    /// How many objects are partly unusable, by kind.
    pub fn rejected_objects(&self) -> BTreeMap<String, u64> {
        let families = self.rejected_objects.collect();
        let samples = families.iter().flat_map(|family| family.get_metric());
        let kind = |labels: &[prometheus::proto::LabelPair]| {
            labels.iter().map(|label| label.value().to_owned()).next().unwrap_or_default()
        };
        samples.map(|sample| (kind(sample.get_label()), sample.get_gauge().get_value() as u64)).collect()
    }

    /// Whether a kind is followed, and when anything was last heard of it; `None` where the API server does not have it.
    pub fn set_followed(&self, kind: &str, followed: Option<(bool, Option<SystemTime>)>) {
        let Some((follows, heard)) = followed else {
            // It fails where there is none.
            let _ = self.source_following.remove_label_values(&[kind]);
            return;
        };
        self.source_following.with_label_values(&[kind]).set(f64::from(u8::from(follows)));
        if let Some(heard) = heard {
            self.source_last_event.with_label_values(&[kind]).set(timestamp(heard));
        }
    }

    /// A set or map of our table has so many elements.
    pub fn set_map_elements(&self, family: Family, map: &str, elements: usize) {
        self.map_elements.with_label_values(&[label(family), map]).set(elements as f64);
    }

    /// All values in the Prometheus text format 0.0.4, sorted by name.
    pub fn text(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(readings::read());
        families.extend(self.connections.family());
        families.extend(self.endpoints.families(Instant::now()));
        families.sort_by(|a, b| a.name().cmp(b.name()));
        encode(&families)
    }

    /// What `/metrics/slis` shows.
    fn slis_text(&self) -> String {
        let slis = self.slis.lock().unwrap_or_else(PoisonError::into_inner);
        let mut families = slis.registry.gather();
        families.extend(readings::start_time().map(|time| readings::family(&table::PROCESS_START, time)));
        encode(&families)
    }

    /// `/healthz` was asked for on the metrics port.
    fn healthcheck(&self) {
        let slis = self.slis.lock().unwrap_or_else(PoisonError::into_inner);
        slis.result.with_label_values(&["ping", "healthz"]).set(1.0);
        slis.results.with_label_values(&["ping", "success", "healthz"]).inc();
    }

    fn reset_slis(&self) {
        *self.slis.lock().unwrap_or_else(PoisonError::into_inner) = Slis::new();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// A time as gauges have it: seconds since 1970.
pub fn timestamp(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The values of the labels of a metric that has none.
const NONE: &[&str] = &[];

/// The value of the label `ip_family`.
fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn encode(families: &[prometheus::proto::MetricFamily]) -> String {
    let mut text = Vec::new();
    // It fails for a family without values only, which the registry never gives.
    if let Err(error) = TextEncoder::new().encode(families, &mut text) {
        tracing::error!("cannot write metrics: {error}");
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The metrics of `/metrics/slis`: a port of its own for what service levels are computed from.
#[derive(Debug)]
struct Slis {
    registry: Registry,
    result: GaugeVec,
    results: CounterVec,
}

impl Slis {
    fn new() -> Slis {
        let table = Registering(Registry::new());
        Slis {
            result: table.gauges(&table::HEALTHCHECK),
            results: table.counters(&table::HEALTHCHECKS),
            registry: table.0,
        }
    }
}

/// Makes metrics of definitions.
struct Registering(Registry);

impl Registering {
    fn counter(&self, definition: &Definition) -> PerFamily<Counter> {
        let vector = self.counters(definition);
        PerFamily::from_fn(|family| vector.with_label_values(&[label(family)]))
    }

    fn gauge(&self, definition: &Definition) -> PerFamily<Gauge> {
        let vector = self.gauges(definition);
        PerFamily::from_fn(|family| vector.with_label_values(&[label(family)]))
    }

    fn histogram(&self, definition: &Definition) -> PerFamily<Histogram> {
        let vector = self.histograms(definition);
        PerFamily::from_fn(|family| vector.with_label_values(&[label(family)]))
    }

    fn counters(&self, definition: &Definition) -> CounterVec {
        self.register(CounterVec::new(options(definition), definition.labels))
    }

    fn gauges(&self, definition: &Definition) -> GaugeVec {
        self.register(GaugeVec::new(options(definition), definition.labels))
    }

    fn histograms(&self, definition: &Definition) -> HistogramVec {
        let Type::Histogram(bounds) = definition.metric_type else { panic!("{} is no histogram", definition.name) };
        let options = HistogramOpts { common_opts: options(definition), buckets: bounds.to_vec() };
        self.register(HistogramVec::new(options, definition.labels))
    }

    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("names and labels in the table are valid");
        self.0.register(Box::new(made.clone())).expect("each metric is made once");
        made
    }
}

fn options(definition: &Definition) -> Opts {
    Opts::new(definition.name, definition.help())
}
