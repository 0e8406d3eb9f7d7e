use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::config::{self, NodePortAddresses, Overrides};
use crate::conntrack::{Flow, gone};
use crate::model::{Event, Kind};
use crate::nftables::in_memory::{Fault, InMemoryKernel};
use crate::source::convert::{Converter, Options};
use crate::sync::Facts;

const V4: Family = Family::V4;
const READY: [bool; 3] = [true, true, false];
const UNREADY: [bool; 3] = [false, false, false];
const LEFT: [bool; 3] = [false, false, true];
const ENDPOINTS: [&str; 3] = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"];

/// The line from objects to what is reset.
struct Proxy {
    engine: Engine<InMemoryKernel>,
    convert: Converter,
    now: Instant,
    resets: Resets,
}

impl Proxy {
    /// Of a node that has 192.0.2.10, and knows nothing else.
    fn new(all: bool) -> Proxy {
        let overrides = Overrides { hostname_override: Some("n1".to_owned()), ..Overrides::default() };
        let config = config::load(None, &overrides).expect("defaults are valid").config;
        let node_ports = NodePortAddresses::Cidrs(vec!["192.0.2.0/24".parse().expect("a range")]);
        let mut engine = Engine::new(InMemoryKernel::new(), Facts { node_ports, ..crate::app::facts(&config) });
        engine.set_addresses(["192.0.2.10".parse().expect("an IP")].into());
        let convert =
            Converter::new(Options { node_name: "n1".to_owned(), allow_external_ips: true, service_proxy_name: None });
        let mut proxy = Proxy { engine, convert, now: Instant::now(), resets: Resets::new(all) };
        for kind in Kind::ALL {
            proxy.hear([Event::ListStarted(kind), Event::ListDone(kind)]);
        }
        proxy
    }

    fn hear(&mut self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.engine.apply(event));
    }

    /// A Service of TCP with cluster IP 172.30.0.LAST, and what lies over its specification.
    fn service(&mut self, name: &str, last: u8, annotations: &Value, spec: &Value) {
        let address = format!("172.30.0.{last}");
        let mut whole = json!({
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ports": [{"name": "t", "port": 80, "protocol": "TCP"}, {"name": "u", "port": 80, "protocol": "UDP"}],
        });
        for (field, value) in spec.as_object().expect("fields") {
            whole[field] = value.clone();
        }
        let object =
            json!({"metadata": {"namespace": "shop", "name": name, "annotations": annotations}, "spec": whole});
        let events = self.convert.service(&serde_json::from_value(object).expect("a Service"));
        self.hear(events);
    }

    fn slice(&mut self, service: &str, endpoints: &[(u8, [bool; 3])]) {
        let endpoints = endpoints.iter().map(|(last, [ready, serving, terminating])| {
            json!({"addresses": [format!("10.1.0.{last}")], "nodeName": "n2",
                   "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        });
        let object = json!({
            "metadata": {"namespace": "shop", "name": format!("{service}-1"),
                         "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 8080, "protocol": "UDP"}],
        });
        let events = self.convert.slice(&serde_json::from_value(object).expect("an EndpointSlice"));
        self.hear(events);
    }

    /// Syncs, and says what is looked at then; a sync that failed before is due by now.
    fn sync(&mut self) -> Frontends {
        self.now += Duration::from_secs(60);
        let report = self.engine.sync(self.now);
        let mut frontends = Frontends::default();
        self.resets.synced(&self.engine, &report, report.udp_all, &mut frontends);
        frontends
    }
}

fn asks() -> Value {
    json!({"nftproxyd.io/reset-connections": "true"})
}

/// The endpoints of which connections through this address are reset.
fn gone_of(frontends: &Frontends, to: &str) -> Vec<&'static str> {
    let flow =
        |endpoint| Flow { answered: true, ..Flow::translated(Protocol::Tcp, ["203.0.113.7:4000", to, endpoint]) };
    ENDPOINTS.into_iter().filter(|endpoint| gone(&flow(endpoint), frontends, true)).collect()
}

#[test]
fn endpoints_are_gone_when_no_slice_lists_them() {
    let mut proxy = Proxy::new(false);
    proxy.service("web", 1, &asks(), &json!({}));
    proxy.service("other", 2, &json!({}), &json!({}));
    for service in ["web", "other"] {
        proxy.slice(service, &[(1, READY), (2, READY)]);
    }
    assert_eq!(gone_of(&proxy.sync(), "172.30.0.1:80"), ["10.1.0.3:8080"], "at the start all that is not listed");
    assert!(proxy.resets.any());
    assert!(proxy.sync().is_empty(), "nothing happened");
    for state in [UNREADY, LEFT] {
        proxy.slice("web", &[(1, state), (2, READY)]);
        assert!(proxy.sync().is_empty(), "{state:?}: it is there");
    }
    for service in ["web", "other"] {
        proxy.slice(service, &[(2, READY)]);
    }
    let found = proxy.sync();
    assert_eq!(gone_of(&found, "172.30.0.1:80"), ["10.1.0.1:8080", "10.1.0.3:8080"]);
    assert_eq!((gone_of(&found, "172.30.0.2:80"), found.resets.count()), (Vec::new(), 1), "the other does not ask");
    // It comes back in the same sync, or in one of its own: what waits has to know.
    proxy.slice("web", &[]);
    proxy.slice("web", &[(2, READY)]);
    assert!(proxy.sync().is_empty());
    proxy.slice("web", &[(1, READY), (2, READY)]);
    assert_eq!(gone_of(&proxy.sync(), "172.30.0.1:80"), ["10.1.0.3:8080"]);
    proxy.slice("web", &[]);
    assert_eq!(gone_of(&proxy.sync(), "172.30.0.1:80"), ENDPOINTS, "there is none any more");
    assert!(Proxy::new(true).sync().is_empty(), "there is no Service");
}

#[test]
fn nothing_is_done_before_the_kernel_has_the_rules() {
    let mut proxy = Proxy::new(true);
    proxy.service("web", 1, &json!({}), &json!({}));
    proxy.slice("web", &[(1, READY)]);
    proxy.sync();
    proxy.slice("web", &[(2, READY)]);
    proxy.engine.kernel().on_commit(|_, _| Some(Fault::Permission));
    assert!(proxy.sync().is_empty(), "the old rules lead to the endpoint that is gone");
    proxy.engine.kernel().forget_hooks();
    assert_eq!(gone_of(&proxy.sync(), "172.30.0.1:80"), ["10.1.0.1:8080", "10.1.0.3:8080"]);
}

#[test]
fn connections_of_a_service_that_is_gone_or_does_not_ask_any_more_are_left_alone() {
    let mut proxy = Proxy::new(false);
    proxy.service("web", 1, &json!({}), &json!({}));
    proxy.slice("web", &[(1, READY)]);
    assert!(proxy.sync().is_empty() && !proxy.resets.any());
    proxy.service("web", 1, &asks(), &json!({}));
    assert_eq!(gone_of(&proxy.sync(), "172.30.0.1:80"), ENDPOINTS[1..], "who asks is answered at once");
    proxy.slice("web", &[(2, READY)]);
    let mut waiting = proxy.sync();
    assert_eq!(gone_of(&waiting, "172.30.0.1:80"), ["10.1.0.1:8080", "10.1.0.3:8080"]);
    proxy.service("web", 1, &json!({}), &json!({}));
    let last = proxy.sync();
    assert!(gone_of(&last, "172.30.0.1:80").is_empty() && !last.is_empty() && !proxy.resets.any());
    waiting.superseded_by(&last);
    assert!(gone_of(&waiting, "172.30.0.1:80").is_empty(), "nor is done what waits");

    // Another Service gets the address of one that is gone.
    proxy.service("web", 1, &asks(), &json!({}));
    proxy.slice("new", &[(3, READY)]);
    let mut waiting = proxy.sync();
    proxy.hear([Event::ServiceGone(ObjectName::new("shop", "web").expect("a name"))]);
    proxy.service("new", 1, &asks(), &json!({}));
    let newer = proxy.sync();
    assert_eq!(gone_of(&newer, "172.30.0.1:80"), ENDPOINTS[..2], "its own endpoints count");
    waiting.superseded_by(&newer);
    assert_eq!(gone_of(&waiting, "172.30.0.1:80"), ENDPOINTS[..1], "also for what waits");
    proxy.hear([Event::ServiceGone(ObjectName::new("shop", "new").expect("a name"))]);
    waiting.superseded_by(&proxy.sync());
    assert!(gone_of(&waiting, "172.30.0.1:80").is_empty() && !proxy.resets.any());
}

#[test]
fn a_node_port_gives_way_to_an_address_of_another_service() {
    let mut proxy = Proxy::new(false);
    let ports = json!([{"name": "t", "port": 80, "protocol": "TCP", "nodePort": 30080}]);
    proxy.service("web", 1, &asks(), &json!({"type": "NodePort", "ports": ports}));
    proxy.slice("web", &[(1, READY)]);
    assert_eq!(gone_of(&proxy.sync(), "192.0.2.10:30080"), ENDPOINTS[1..]);
    let ports = json!([{"name": "t", "port": 30080, "protocol": "TCP"}]);
    proxy.service("other", 2, &json!({}), &json!({"externalIPs": ["192.0.2.10"], "ports": ports}));
    proxy.slice("other", &[(3, READY)]);
    proxy.slice("web", &[(2, READY)]);
    let found = proxy.sync();
    assert_eq!(gone_of(&found, "172.30.0.1:80"), ["10.1.0.1:8080", "10.1.0.3:8080"]);
    assert!(gone_of(&found, "192.0.2.10:30080").is_empty(), "connections through it are the other's");
    assert_eq!(found.node_port_addresses.len(), 1);
    assert!(found.of(V4) == found);
}

#[test]
fn clients_that_are_remembered_are_looked_at_again_when_they_are_forgotten() {
    let mut proxy = Proxy::new(true);
    proxy.service("web", 1, &json!({}), &json!({"sessionAffinity": "ClientIP"}));
    proxy.service("plain", 2, &json!({}), &json!({}));
    for service in ["web", "plain"] {
        proxy.slice(service, &[(1, READY), (2, READY)]);
    }
    proxy.sync();
    proxy.slice("web", &[(2, READY)]);
    proxy.slice("plain", &[(2, READY)]);
    proxy.sync();
    let forgot = |proxy: &mut Proxy, operations| {
        let mut found = Frontends::default();
        let mut report = Report::default();
        report.operations = operations;
        proxy.resets.forgot(&proxy.engine, &report, &mut found);
        found
    };
    assert!(forgot(&mut proxy, 0).is_empty(), "nobody was forgotten");
    let found = forgot(&mut proxy, 3);
    assert_eq!((gone_of(&found, "172.30.0.1:80"), found.resets.count()), (vec!["10.1.0.1:8080", "10.1.0.3:8080"], 1));
    assert!(forgot(&mut proxy, 3).is_empty(), "once is enough");
}
