use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::config::{self, Overrides};
use crate::metrics::FRONTEND_STATES;
use crate::model::Protocol;
use crate::model::{ObjectRef, RefKind, Reject};
use crate::nftables::in_memory::{Fault, InMemoryKernel};
use crate::nftables::{Clients, KernelError, Slice};
use crate::ruleset::backend::Backend;
use crate::ruleset::frontend::Action;
use crate::ruleset::kept;
use crate::ruleset::read::Remembered;
use crate::source::convert::{Converter, LAST_CHANGE, Options};
use crate::sync::{Engine, News};

const V4: Family = Family::V4;
const V6: Family = Family::V6;

/// The sync loop, step by step.
struct Proxy {
    engine: Engine<InMemoryKernel>,
    counting: Counting,
    metrics: Arc<Metrics>,
    convert: Converter,
}

impl Proxy {
    /// A proxy that has listed everything: nothing but one Node.
    fn new() -> Proxy {
        Proxy::on(InMemoryKernel::new())
    }

    /// The same on tables that are there.
    fn on(kernel: InMemoryKernel) -> Proxy {
        let overrides = Overrides { hostname_override: Some("n1".to_owned()), ..Overrides::default() };
        let config = config::load(None, &overrides).expect("defaults are valid").config;
        let engine = Engine::new(kernel, crate::app::facts(&config));
        let metrics = Arc::new(Metrics::new());
        let counting = Counting::new(Arc::clone(&metrics));
        let convert =
            Converter::new(Options { node_name: "n1".to_owned(), allow_external_ips: true, service_proxy_name: None });
        let mut proxy = Proxy { engine, counting, metrics, convert };
        for kind in Kind::ALL {
            proxy.hear([Event::ListStarted(kind), Event::ListDone(kind)]);
        }
        proxy
    }

    fn hear(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.counting.hears(&self.engine, &event);
            self.engine.apply(event);
        }
        self.counting.queued(&self.engine);
    }

    /// A dual-stack Service with two ports.
    fn service(&mut self, name: &str, patch: &[(&str, Value)]) {
        let mut spec = json!({
            "type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81}],
        });
        for (field, value) in patch {
            spec[*field] = value.clone();
        }
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        let events = self.convert.service(&serde_json::from_value(object).expect("a Service"));
        self.hear(events);
    }

    /// The IPv4 slice of the Service `web`.
    fn slice(&mut self, addresses: &[&str], node: &str, at: Option<SystemTime>) {
        let endpoints: Vec<Value> =
            addresses.iter().map(|address| json!({"addresses": [address], "nodeName": node})).collect();
        let at = at.map(|at| jiff::Timestamp::try_from(at).expect("now").to_string());
        let object = json!({
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
                         "annotations": at.map(|at| json!({LAST_CHANGE: at}))},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8081}],
        });
        let events = self.convert.slice(&serde_json::from_value(object).expect("an EndpointSlice"));
        self.hear(events);
    }

    fn sync(&mut self) {
        let report = self.engine.sync(Instant::now());
        self.counting.synced(&self.engine, &report);
        for family in Family::ALL {
            for set in SetName::ALL {
                let counted = self.engine.elements(family).get(&set).copied().unwrap_or(0);
                assert_eq!(counted, self.engine.kernel().elements_of(family, set).len(), "{family} {set}");
            }
            assert_eq!(self.metrics.frontends.each_ref().map(|gauge| gauge[family].get()), self.recount(family));
        }
    }

    /// How many frontends are served, refused and dropped, one by one.
    fn recount(&self, family: Family) -> [f64; 3] {
        let mut counts = [0.0; 3];
        for (_, frontend) in self.engine.installed(family).frontends() {
            let state = match frontend.action {
                Action::Forward { .. } | Action::Split { .. } => 0,
                Action::Reject => 1,
                Action::Drop => 2,
            };
            counts[state] += 1.0;
        }
        counts
    }

    /// The value of a sample, as it is exported.
    fn value(&self, sample: &str) -> f64 {
        let text = self.metrics.text();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{sample} is not in\n{text}")).parse().expect("a number")
    }
}

#[test]
fn changes_are_counted_and_wait_for_a_sync() {
    let mut proxy = Proxy::new();
    let values = |proxy: &Proxy| {
        let metrics = &proxy.metrics;
        [
            metrics.service_changes.get(),
            metrics.service_changes_pending.get(),
            metrics.endpoint_changes.get(),
            metrics.endpoint_changes_pending.get(),
        ]
    };
    proxy.service("web", &[]);
    proxy.service("web", &[]);
    proxy.slice(&["10.1.0.1"], "n1", None);
    assert_eq!(values(&proxy), [2.0, 1.0, 1.0, 1.0]);
    proxy.sync();
    assert_eq!(values(&proxy), [2.0, 0.0, 1.0, 0.0]);
    proxy.slice(&["10.1.0.1"], "n1", None);
    assert_eq!(values(&proxy), [2.0, 0.0, 2.0, 0.0], "it says nothing new");
    proxy.slice(&["10.1.0.1", "10.1.0.2"], "n1", None);
    proxy.slice(&["10.1.0.1", "10.1.0.2", "10.1.0.3"], "n1", None);
    assert_eq!(values(&proxy), [2.0, 0.0, 4.0, 2.0]);
    proxy.sync();
    assert_eq!(values(&proxy), [2.0, 0.0, 4.0, 0.0]);
}

#[test]
fn frontends_are_counted_by_what_becomes_of_connections() {
    let mut proxy = Proxy::new();
    let counted = |proxy: &Proxy, family: &str| {
        FRONTEND_STATES.map(|state| {
            proxy.value(&format!("nftproxyd_frontends{{ip_family=\"{family}\",state=\"{state}\"}}")) as u32
        })
    };
    let both = ("ipFamilies", json!(["IPv4", "IPv6"]));
    let local = |field| [both.clone(), (field, json!("Local"))];
    proxy.service("web", std::slice::from_ref(&both));
    proxy.service(
        "api",
        &[
            ("clusterIP", json!("10.96.0.2")),
            ("clusterIPs", json!(["10.96.0.2"])),
            ("ports", json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}])),
        ],
    );
    proxy.sync();
    assert_eq!((counted(&proxy, "IPv4"), counted(&proxy, "IPv6")), ([0, 5, 0], [0, 3, 0]), "there are no endpoints");
    proxy.slice(&["10.1.0.1"], "n2", None);
    proxy.sync();
    assert_eq!((counted(&proxy, "IPv4"), counted(&proxy, "IPv6")), ([3, 2, 0], [0, 3, 0]));
    proxy.service("web", &local("internalTrafficPolicy"));
    proxy.sync();
    assert_eq!(counted(&proxy, "IPv4"), [1, 2, 2], "the endpoint is on another node");
    proxy.service("web", &local("externalTrafficPolicy"));
    proxy.sync();
    assert_eq!(counted(&proxy, "IPv4"), [3, 2, 0], "those inside the cluster are served");
    proxy.service("web", &local("internalTrafficPolicy"));

    // A repair, and a table that is written anew.
    proxy.engine.kernel().delete_table(V4);
    proxy.engine.distrust(V4);
    proxy.sync();
    assert_eq!(counted(&proxy, "IPv4"), [1, 2, 2]);
    proxy.hear([Event::ServiceGone(ObjectName::new("shop", "api").expect("a name"))]);
    proxy.sync();
    assert_eq!(counted(&proxy, "IPv4"), [1, 0, 2]);

    // A start that finds the tables.
    let mut again = Proxy::on(std::mem::replace(proxy.engine.kernel(), InMemoryKernel::new()));
    again.service("web", &local("internalTrafficPolicy"));
    again.slice(&["10.1.0.1"], "n2", None);
    again.sync();
    assert_eq!((counted(&again, "IPv4"), counted(&again, "IPv6")), ([1, 0, 2], [0, 3, 0]));
}

#[test]
fn the_latency_is_measured_from_the_change_to_the_rules() {
    let mut proxy = Proxy::new();
    let count = |proxy: &Proxy| proxy.metrics.network_programming[V4].get_sample_count();
    let hour = Duration::from_secs(3600);
    proxy.service("web", &[]);
    proxy.slice(&["10.1.0.1"], "n1", Some(SystemTime::now() - hour));
    proxy.sync();
    assert_eq!(count(&proxy), 0, "it happened before the proxy was there");
    proxy.counting.started -= 2 * hour;
    proxy.slice(&["10.1.0.1"], "n1", Some(SystemTime::now() - hour));
    proxy.sync();
    assert_eq!(count(&proxy), 0, "nothing changed");
    proxy.slice(&["10.1.0.2"], "n1", Some(SystemTime::now() - hour));
    proxy.slice(&["10.1.0.3"], "n1", Some(SystemTime::now() + hour));
    proxy.slice(&["10.1.0.4"], "n1", None);
    assert_eq!(count(&proxy), 0, "not yet in force");
    proxy.sync();
    assert_eq!(count(&proxy), 2);
    let sum = proxy.metrics.network_programming[V4].get_sample_sum();
    assert!((3600.0..3660.0).contains(&sum), "{sum}: what is to come counts as now");
    proxy.slice(&["10.1.0.5"], "n1", Some(SystemTime::now()));
    proxy.engine.kernel().fail_next(Fault::Permission);
    proxy.sync();
    proxy.sync();
    assert_eq!(count(&proxy), 2, "times of a failed sync are lost");
    assert_eq!(proxy.metrics.network_programming[V6].get_sample_count(), 0);
}

#[test]
fn syncs_are_told_apart() {
    let mut proxy = Proxy::new();
    let counts = |proxy: &Proxy, family: Family| {
        let metrics = &proxy.metrics;
        let histograms = [&metrics.sync_duration, &metrics.sync_full_duration, &metrics.sync_partial_duration];
        histograms.map(|histogram| histogram[family].get_sample_count())
    };
    let queued = proxy.metrics.sync_last_queued[V4].get();
    assert!(queued > 1.7e9, "{queued}");
    assert_eq!(proxy.metrics.sync_last[V4].get(), 0.0);
    proxy.sync();
    assert_eq!((counts(&proxy, V4), counts(&proxy, V6)), ([1, 1, 0], [1, 1, 0]));
    let last = proxy.metrics.sync_last[V4].get();
    assert!(last >= queued, "{last}");

    proxy.service("web", &[]);
    proxy.slice(&["10.1.0.1"], "n1", None);
    proxy.sync();
    assert_eq!((counts(&proxy, V4), counts(&proxy, V6)), ([2, 1, 1], [2, 1, 1]));
    assert_eq!(proxy.metrics.services[V4].get(), 1.0);
    assert_eq!(proxy.value(r#"nftproxyd_map_elements{ip_family="IPv4",map="endpoints"}"#), 2.0);
    assert_eq!(proxy.value(r#"nftproxyd_map_elements{ip_family="IPv6",map="endpoints"}"#), 0.0);
    assert!(proxy.metrics.transaction_operations[V4].get_sample_count() >= 2);
    assert_eq!(proxy.metrics.repairs[V4].get(), 0.0, "the start is no repair");

    proxy.engine.distrust(V4);
    proxy.sync();
    assert_eq!((counts(&proxy, V4), counts(&proxy, V6)), ([3, 2, 1], [2, 1, 1]));
    assert_eq!(proxy.metrics.repairs[V4].get(), 0.0, "nothing was wrong");
    proxy.engine.kernel().delete_table(V4);
    proxy.engine.distrust(V4);
    proxy.sync();
    assert_eq!(proxy.metrics.repairs[V4].get(), 1.0);

    let last = proxy.metrics.sync_last[V4].get();
    proxy.slice(&["10.1.0.2"], "n1", None);
    proxy.engine.kernel().fail_next(Fault::Permission);
    let report = proxy.engine.sync(Instant::now());
    proxy.counting.synced(&proxy.engine, &report);
    assert_eq!(proxy.metrics.sync_failures[V4].get(), 1.0);
    assert_eq!(proxy.metrics.sync_failures[V6].get(), 0.0);
    assert_eq!(proxy.metrics.sync_last[V4].get(), last, "not a success");
    assert_eq!(counts(&proxy, V4)[0], 5, "but a sync");
}

#[test]
fn clients_are_counted_and_those_forgotten_as_every_element() {
    let mut proxy = Proxy::new();
    proxy.sync();
    proxy.service("web", &[("sessionAffinity", json!("ClientIP"))]);
    proxy.slice(&["10.1.0.1"], "n1", None);
    proxy.sync();
    let cleanups = "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"}";
    let transactions = "nftproxyd_transaction_operations_count{ip_family=\"IPv4\"}";
    let clients = |proxy: &Proxy, what| proxy.value(&format!("nftproxyd_affinity_clients{what}{{ip_family=\"IPv4\"}}"));
    assert_eq!((clients(&proxy, ""), clients(&proxy, "_limit")), (0.0, 262_144.0));
    let before = proxy.value(transactions);
    let looks = |proxy: &mut Proxy, seconds, end: Result<Clients, KernelError>, found: Vec<Remembered>| {
        let now = Instant::now() + Duration::from_secs(seconds);
        proxy.engine.look(now).expect("a look");
        let took = Duration::ZERO;
        proxy.engine.hear(V4, News::Slice(Slice { clients: found, took }), now);
        let report = proxy.engine.hear(V4, News::End(end), now).expect("its end");
        proxy.counting.forgot(&proxy.engine, &report);
        while proxy.engine.has_to_forget() {
            let report = proxy.engine.forget(now);
            proxy.counting.forgot(&proxy.engine, &report);
        }
    };
    let clients_of = |count| Clients { count, torn: false, took: Duration::ZERO };
    let port = NonZeroU16::MIN;
    let anywhere: IpAddr = Ipv4Addr::LOCALHOST.into();
    let gone = Remembered {
        client: anywhere,
        destination: anywhere,
        protocol: Protocol::Tcp,
        port,
        backend: Backend { address: anywhere, port },
    };
    proxy.engine.kernel().put(V4, SetName::Affinity, kept::element(&gone));
    looks(&mut proxy, 10, Ok(clients_of(250_000)), vec![gone]);
    assert_eq!((clients(&proxy, ""), proxy.value(cleanups)), (250_000.0, 0.0));
    assert_eq!(proxy.value(transactions), before + 1.0);
    assert_eq!(proxy.engine.kernel().elements_of(V4, SetName::Affinity), []);
    looks(&mut proxy, 100, Err(KernelError::Restless), Vec::new());
    assert_eq!((clients(&proxy, ""), proxy.value(cleanups)), (250_000.0, 1.0));
}

#[test]
fn service_ports_without_a_local_endpoint_are_counted() {
    /// Changes of the Service `web`, the node of its endpoint, and what is counted of IPv4: internal, external.
    type Case<'a> = (&'a [(&'a str, Value)], &'a str, [f64; 2]);
    let local = json!("Local");
    let mut proxy = Proxy::new();
    #[rustfmt::skip]
    let cases: [Case<'_>; 6] = [
        (&[], "n2", [0.0, 0.0]),
        (&[("internalTrafficPolicy", local.clone())], "n2", [2.0, 0.0]),
        (&[("externalTrafficPolicy", local.clone())], "n2", [0.0, 1.0]),
        (&[("externalTrafficPolicy", local.clone()), ("internalTrafficPolicy", local.clone())], "n2", [2.0, 1.0]),
        (&[("externalTrafficPolicy", local.clone()), ("internalTrafficPolicy", local.clone())], "n1", [0.0, 0.0]),
        (&[("externalTrafficPolicy", local)], "n2", [0.0, 1.0]),
    ];
    for (patch, node, expected) in cases {
        proxy.service("web", patch);
        proxy.slice(&["10.1.0.1"], node, None);
        proxy.sync();
        let counted =
            |family: Family| [0, 1].map(|policy: usize| proxy.metrics.no_local_endpoints[policy][family].get());
        assert_eq!(counted(V4), expected, "{patch:?} {node}");
        assert_eq!(counted(V6), [0.0, 0.0], "it has no endpoints at all");
    }
    proxy.hear([Event::ServiceGone(ObjectName::new("shop", "web").expect("a name"))]);
    proxy.sync();
    assert_eq!(proxy.metrics.no_local_endpoints[1][V4].get(), 0.0);
    assert!(proxy.counting.no_local.is_empty());
}

#[test]
fn faulty_objects_are_counted_by_kind() {
    let mut proxy = Proxy::new();
    const SERVICE: RefKind = RefKind::Api(Kind::Service);
    const FILE: RefKind = RefKind::File;
    let rejects = |kind: RefKind, name: &str, faulty: bool| {
        let reject = Reject::new("spec", "odd");
        let rejects = if faulty { vec![reject] } else { Vec::new() };
        Event::Rejects { object: ObjectRef { kind, name: name.into() }, rejects }
    };
    let values = |proxy: &Proxy| {
        ["Service", "file"].map(|kind| proxy.value(&format!("nftproxyd_rejected_objects{{kind=\"{kind}\"}}")))
    };
    proxy.hear([rejects(SERVICE, "shop/a", true), rejects(SERVICE, "shop/a", true), rejects(FILE, "x.yaml", true)]);
    assert_eq!(values(&proxy), [1.0, 1.0]);
    proxy.hear([rejects(SERVICE, "shop/b", true), rejects(FILE, "x.yaml", false)]);
    assert_eq!(values(&proxy), [2.0, 0.0]);
    proxy.hear([
        rejects(SERVICE, "shop/a", false),
        rejects(SERVICE, "shop/a", false),
        rejects(SERVICE, "shop/b", false),
    ]);
    assert_eq!(values(&proxy), [0.0, 0.0]);
}
