use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::config::{self, Overrides};
use crate::model::{Event, Kind};
use crate::nftables::in_memory::{Fault, InMemoryKernel};
use crate::source::convert::{Converter, Options};

const V4: Family = Family::V4;
const V6: Family = Family::V6;
const ADDRESSES: [&str; 3] = ["172.30.0.53:53", "198.51.100.53:53", "node port 30053"];

/// The line from objects to what is checked.
struct Proxy {
    engine: Engine<InMemoryKernel>,
    convert: Converter,
    now: Instant,
    /// How many frontends of TCP are checked in each family after the last sync.
    restored: [usize; 2],
}

/// What a sync did, and what is checked after it: each frontend in words, and where its flows may go.
type Checked = (usize, BTreeMap<String, Vec<String>>);

impl Proxy {
    /// A proxy in zone `z` that knows a Service with a UDP and a TCP port of the same name, cluster IPs of both families
    /// and this specification observers, and has synced with these endpoints.
    fn new(spec: &Value, endpoints: &[Value]) -> Proxy {
        let (proxy, (operations, _)) = Proxy::on(InMemoryKernel::new(), spec, endpoints);
        assert!(operations > 0, "the first sync");
        proxy
    }

    /// The same on a kernel that is as it is, and what the first sync did.
    fn on(kernel: InMemoryKernel, spec: &Value, endpoints: &[Value]) -> (Proxy, Checked) {
        let overrides = Overrides { hostname_override: Some("n1".to_owned()), ..Overrides::default() };
        let config = config::load(None, &overrides).expect("defaults are valid").config;
        let engine = Engine::new(kernel, crate::app::facts(&config));
        let convert =
            Converter::new(Options { node_name: "n1".to_owned(), allow_external_ips: true, service_proxy_name: None });
        let mut proxy = Proxy { engine, convert, now: Instant::now(), restored: [0; 2] };
        for kind in Kind::ALL {
            proxy.hear([Event::ListStarted(kind), Event::ListDone(kind)]);
        }
        proxy.hear([Event::Node(crate::model::Node { zone: Some("z".into()), ..Default::default() })]);
        let mut whole = json!({
            "type": "NodePort", "clusterIP": "172.30.0.53", "clusterIPs": ["172.30.0.53", "fd00:172::53"],
            "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["198.51.100.53"],
            "ports": [{"name": "q", "port": 53, "protocol": "UDP", "nodePort": 30053},
                      {"name": "t", "port": 53, "protocol": "TCP", "nodePort": 30053}],
        });
        for (field, value) in spec.as_object().expect("fields") {
            whole[field] = value.clone();
        }
        let object = json!({"metadata": {"namespace": "shop", "name": "dns"}, "spec": whole});
        let events = proxy.convert.service(&serde_json::from_value(object).expect("a Service"));
        proxy.hear(events);
        proxy.slice("IPv4", endpoints);
        proxy.slice("IPv6", &[json!({"addresses": ["fd00:1::1"]})]);
        let first = proxy.check();
        (proxy, first)
    }

    fn hear(&mut self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.engine.apply(event));
    }

    fn slice(&mut self, family: &str, endpoints: &[Value]) {
        let object = json!({
            "metadata": {"namespace": "shop", "name": format!("dns-{family}"),
                         "labels": {"kubernetes.io/service-name": "dns"}},
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "q", "port": 5353, "protocol": "UDP"}, {"name": "t", "port": 5353, "protocol": "TCP"}],
        });
        let events = self.convert.slice(&serde_json::from_value(object).expect("an EndpointSlice"));
        self.hear(events);
    }

    /// Syncs; a sync that failed before is due by now.
    fn check(&mut self) -> Checked {
        self.now += Duration::from_secs(60);
        let report = self.engine.sync(self.now);
        let frontends = to_check(&self.engine, &report, report.udp_all);
        let any = !frontends.is_empty();
        let Frontends { by_address, by_node_port, node_port_addresses, restored, resets } = frontends;
        assert!(resets.is_empty(), "nobody asks here");
        self.restored = Family::ALL.map(|family| restored[family].as_ref().map_or(0, |all| all.len()));
        assert!(any || node_port_addresses.is_empty());
        let node_ports = by_node_port.into_iter().map(|((family, port), rule)| match family {
            V4 => (format!("node port {port}"), rule),
            V6 => (format!("IPv6 node port {port}"), rule),
        });
        let all = by_address.into_iter().map(|(at, rule)| (at.to_string(), rule)).chain(node_ports);
        let all = all.map(|(at, rule)| match rule {
            Rule::Endpoints(endpoints) => (at, endpoints.iter().map(ToString::to_string).collect()),
            Rule::Gone => (at, vec!["gone".to_owned()]),
        });
        (report.operations, all.collect())
    }
}

fn endpoint(last: u8, [ready, serving, terminating]: [bool; 3]) -> Value {
    json!({"addresses": [format!("10.1.0.{last}")], "nodeName": "n2",
           "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

const READY: [bool; 3] = [true, true, false];
const LEAVING: [bool; 3] = [false, true, true];
const LEFT: [bool; 3] = [false, false, true];

/// These frontends, all with these endpoints.
fn checked(frontends: &[&str], endpoints: &[&str]) -> BTreeMap<String, Vec<String>> {
    let endpoints: Vec<String> = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
    frontends.iter().map(|&frontend| (frontend.to_owned(), endpoints.clone())).collect()
}

#[test]
fn an_endpoint_that_ends_gracefully_beside_its_successor() {
    // What ends it: it does not serve any more, or it is not in the list.
    for last in [vec![endpoint(1, LEFT), endpoint(2, READY)], vec![endpoint(2, READY)]] {
        let mut proxy = Proxy::new(&json!({}), &[endpoint(1, READY)]);
        assert_eq!(proxy.check(), (0, BTreeMap::new()), "nothing happened");
        proxy.slice("IPv4", &[endpoint(1, LEAVING), endpoint(2, READY)]);
        let (operations, flows) = proxy.check();
        assert!(operations > 0, "new flows go to the successor");
        assert_eq!(flows, checked(&ADDRESSES, &["10.1.0.1:5353", "10.1.0.2:5353"]), "old ones may go on");
        proxy.slice("IPv4", &last);
        assert_eq!(proxy.check(), (0, checked(&ADDRESSES, &["10.1.0.2:5353"])), "the rules were right before");
        assert_eq!(proxy.check(), (0, BTreeMap::new()), "once is enough");
    }
}

#[test]
fn an_endpoint_meant_for_another_zone() {
    let near = |last, zone| {
        let mut endpoint = endpoint(last, READY);
        endpoint["hints"] = json!({"forZones": [{"name": zone}]});
        endpoint
    };
    let mut proxy = Proxy::new(&json!({}), &[near(1, "z"), near(2, "other")]);
    proxy.slice("IPv4", &[near(1, "z")]);
    assert_eq!(proxy.check(), (0, checked(&ADDRESSES, &["10.1.0.1:5353"])));
    proxy.slice("IPv4", &[near(1, "z"), near(2, "other")]);
    assert_eq!(proxy.check().0, 0);
    proxy.slice("IPv4", &[near(1, "z"), near(2, "third")]);
    assert_eq!(proxy.check(), (0, BTreeMap::new()), "whom it is meant for is nothing to flows");
}

#[test]
fn an_endpoint_on_another_node_under_policy_local() {
    let local = |last| {
        let mut endpoint = endpoint(last, READY);
        endpoint["nodeName"] = json!("n1");
        endpoint
    };
    let only_cluster_ip = json!({"type": "ClusterIP", "externalIPs": [], "internalTrafficPolicy": "Local",
        "ports": [{"name": "q", "port": 53, "protocol": "UDP"}]});
    let mut proxy = Proxy::new(&only_cluster_ip, &[local(1), endpoint(2, READY)]);
    proxy.slice("IPv4", &[local(1)]);
    assert_eq!(proxy.check(), (0, checked(&ADDRESSES[..1], &["10.1.0.1:5353"])));

    // Nobody is here, before and after: connections are dropped, whoever serves elsewhere.
    let mut proxy = Proxy::new(&only_cluster_ip, &[endpoint(1, READY), endpoint(2, READY)]);
    proxy.slice("IPv4", &[endpoint(1, READY)]);
    assert_eq!(proxy.check(), (0, checked(&ADDRESSES[..1], &["10.1.0.1:5353"])));
}

#[test]
fn the_last_endpoint() {
    for last in [vec![], vec![endpoint(1, LEFT)], vec![endpoint(1, [false; 3])]] {
        let mut proxy = Proxy::new(&json!({}), &[endpoint(1, READY)]);
        proxy.slice("IPv4", &last);
        let (operations, flows) = proxy.check();
        assert!(operations > 0);
        assert_eq!(flows, checked(&ADDRESSES, &[]), "{last:?}");
    }
}

#[test]
fn nothing_is_checked_for_tcp_alone() {
    let tcp =
        json!({"ports": [{"name": "t", "port": 53, "protocol": "TCP"}, {"name": "s", "port": 53, "protocol": "SCTP"}]});
    let mut proxy = Proxy::new(&json!({}), &[endpoint(1, READY)]);
    let object = json!({"metadata": {"namespace": "shop", "name": "dns"},
        "spec": {"clusterIP": "172.30.0.53", "ports": tcp["ports"]}});
    let events = proxy.convert.service(&serde_json::from_value(object).expect("a Service"));
    proxy.hear(events);
    let v6 = ["[fd00:172::53]:53", "IPv6 node port 30053"];
    assert_eq!(proxy.check().1, checked(&[&ADDRESSES[..], &v6[..]].concat(), &["gone"]));
    for endpoints in [vec![endpoint(1, LEAVING), endpoint(2, READY)], vec![endpoint(2, READY)], vec![]] {
        proxy.slice("IPv4", &endpoints);
        assert_eq!(proxy.check().1, BTreeMap::new(), "{endpoints:?}");
    }
}

#[test]
fn everything_is_checked_once_after_a_table_was_read_back() {
    let mut proxy = Proxy::new(&json!({}), &[endpoint(1, READY)]);
    let v4 = checked(&ADDRESSES, &["10.1.0.1:5353"]);
    let v6 = checked(&["[fd00:172::53]:53", "IPv6 node port 30053"], &["[fd00:1::1]:5353"]);
    proxy.engine.distrust(V4);
    assert_eq!(proxy.check(), (0, v4.clone()), "somebody may have been there, in this family alone");
    assert_eq!(proxy.restored, [3, 0]);
    assert_eq!(proxy.check(), (0, BTreeMap::new()));
    assert_eq!(proxy.restored, [0, 0]);
    Family::ALL.into_iter().for_each(|family| proxy.engine.distrust(family));
    assert_eq!(proxy.check(), (0, v4.clone().into_iter().chain(v6.clone()).collect()));
    assert_eq!(proxy.restored, [3, 2]);

    // Where there is no endpoint nothing is served.
    proxy.slice("IPv4", &[]);
    proxy.check();
    proxy.engine.distrust(V4);
    proxy.check();
    assert_eq!(proxy.restored, [0, 0]);
    proxy.slice("IPv4", &[endpoint(1, READY)]);
    proxy.check();

    // Another life of the daemon finds the tables as they should be.
    let kernel = std::mem::take(proxy.engine.kernel());
    let (mut again, first) = Proxy::on(kernel, &json!({}), &[endpoint(1, READY)]);
    assert_eq!(first, (0, v4.into_iter().chain(v6).collect()));
    assert_eq!(again.check(), (0, BTreeMap::new()));
}

#[test]
fn what_is_to_be_checked_waits_for_the_rules() {
    // A table that has to be repaired, and cannot be at first.
    let mut proxy = Proxy::new(&json!({}), &[endpoint(1, READY)]);
    proxy.engine.kernel().flush_chain(V4, crate::ruleset::names::ChainName::Services);
    proxy.engine.distrust(V4);
    proxy.engine.kernel().fail_next(Fault::Permission);
    assert_eq!(proxy.check(), (0, BTreeMap::new()));
    let (operations, flows) = proxy.check();
    assert!(operations > 0);
    assert_eq!(flows, checked(&ADDRESSES, &["10.1.0.1:5353"]));

    // An endpoint that new flows are not sent to goes while the Service is changed, which fails at first.
    let mut proxy = Proxy::new(&json!({}), &[endpoint(1, LEAVING), endpoint(2, READY)]);
    proxy.slice("IPv4", &[endpoint(2, READY)]);
    let other = json!({"metadata": {"namespace": "shop", "name": "other"},
        "spec": {"clusterIP": "172.30.0.80", "ports": [{"port": 80}]}});
    let events = proxy.convert.service(&serde_json::from_value(other).expect("a Service"));
    proxy.hear(events);
    proxy.engine.kernel().fail_next(Fault::Permission);
    assert_eq!(proxy.check(), (0, BTreeMap::new()));
    let (operations, flows) = proxy.check();
    assert_eq!((operations > 0, flows), (true, checked(&ADDRESSES, &["10.1.0.2:5353"])));
}
