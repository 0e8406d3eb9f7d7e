use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::*;
use crate::http::{Budget, bind};
use crate::metrics::daemon::Daemon;
use crate::metrics::{Metrics, ZPages, serve};
use crate::model::claims::Claims;
use crate::model::store::Store;
use crate::model::{
    Conditions, Endpoint, Event, Family, Hints, ObjectName, PerFamily, Places, Protocol, Scheduler, Service,
    ServicePort, Slice, SlicePort, TrafficPolicy,
};
use crate::testing::http::request;
use crate::testing::in_network_namespace_async;

const ADDRESS: &str = "127.0.0.1:10249";

fn name(text: &str) -> ObjectName {
    ObjectName::new("shop", text).expect("a name")
}

fn service(text: &str, last: u8) -> Service {
    let port = |name: &str, port: u16, node_port: Option<u16>| ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: port.try_into().expect("a port"),
        node_port: node_port.map(|port| port.try_into().expect("a port")),
    };
    Service {
        name: name(text),
        cluster_ips: PerFamily { v4: Some([10, 96, 0, last].into()), v6: None },
        ports: [port("http", 80, Some(30_000 + u16::from(last))), port("admin", 81, None)].into(),
        external_ips: [[192, 0, 2, 1].into()].into(),
        load_balancer_ips: [].into(),
        has_external_ips: PerFamily { v4: true, v6: false },
        source_ranges: Some(["203.0.113.0/24".parse().expect("a range")].into()),
        ranges_everywhere: false,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Local,
        affinity: Some(600),
        scheduler: None,
        maglev_size: None,
        ping: None,
        accounting: false,
        reset_connections: false,
        health_check_node_port: None,
        created: i64::from(last),
    }
}

fn slice(of: &str, endpoints: u8) -> Slice {
    let conditions = Conditions { ready: true, serving: true, terminating: false, local: false };
    let hints = Hints { zones: ["a".into()].into(), for_nodes: true, for_this_node: false };
    let endpoint =
        |last: u8| Endpoint { address: [10, 180, 0, last].into(), conditions, hints: Some(Box::new(hints.clone())) };
    Slice {
        name: name(&format!("{of}-x")),
        service: name(of),
        family: Family::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080.try_into().expect("a port") }]
            .into(),
        weight: 7,
        endpoints: (1..=endpoints).map(endpoint).collect(),
        places: Places::new((1..=endpoints).map(|last| (Some("web-0"), (last == 1).then(|| "n2".into())))),
    }
}

/// What is known of a cluster.
fn known(objects: impl IntoIterator<Item = Event>) -> (Store, Claims) {
    let (mut store, mut claims) = (Store::default(), Claims::default());
    for event in objects {
        for (name, before) in store.apply(event).redefined {
            claims.update(&name, before.as_ref(), store.service(&name));
        }
    }
    (store, claims)
}

const NODE: Node<'static> = Node { zone: None, scheduler: Scheduler::Maglev };

#[test]
fn a_service_is_told_with_all_that_it_has() {
    let (store, claims) = known([Event::Service(service("web", 1)), slice("web", 1).into()]);
    let asked = Ask::Services(vec![name("web"), name("none")]);
    let Answer::Facts { facts, looked_at } = answer(asked, &store, &claims, NODE) else { panic!("facts") };
    let json = serde_json::to_value(&facts).expect("JSON");
    let why = serde_json::json!("no endpoint has the port \"admin\" (tcp)");
    let unserved = |from, fate, why| serde_json::json!({"family": "IPv4", "from": from, "fate": fate, "why": why});
    let dropped = "its traffic policy is Local, and only other nodes have endpoints";
    let expected = serde_json::json!([{
        "name": "shop/web",
        "ports": [
            {"name": "http", "protocol": "tcp", "port": 80, "nodePort": 30001, "lost": [],
             "unserved": [unserved("outside", "dropped", dropped.into())]},
            {"name": "admin", "protocol": "tcp", "port": 81, "nodePort": null, "lost": [],
             "unserved": [unserved("inside", "refused", why.clone()), unserved("outside", "refused", why)]},
        ],
        "clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.1"], "loadBalancerIPs": [],
        "sourceRanges": ["203.0.113.0/24"],
        "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local",
        "affinitySeconds": 600, "scheduler": "mh", "healthCheckNodePort": null, "slices": 1,
        "endpoints": [{
            "portName": "http", "protocol": "tcp", "address": "10.180.0.1", "port": 8080, "pod": "web-0", "node": "n2",
            "ready": true, "serving": true, "terminating": false, "local": false, "weight": 7,
            "zones": ["a"], "forThisNode": false,
        }],
    }]);
    assert_eq!((json, looked_at), (expected, 2));
}

#[test]
fn what_another_service_has_is_told() {
    // The older one has the external IP.
    let (store, claims) = known([Event::Service(service("web", 2)), Event::Service(service("api", 1))]);
    let lost = |of: &str| -> Vec<Vec<String>> {
        let asked = Ask::Services(vec![name(of)]);
        let Answer::Facts { facts, .. } = answer(asked, &store, &claims, NODE) else { panic!("facts") };
        let of_port = |port: &PortFacts| port.lost.iter().map(|it| format!("{} {}", it.frontend, it.owner)).collect();
        facts[0].ports.iter().map(of_port).collect()
    };
    assert_eq!(lost("api"), [Vec::<String>::new(), vec![]]);
    assert_eq!(lost("web"), [vec!["tcp 192.0.2.1:80 shop/api:http"], vec!["tcp 192.0.2.1:81 shop/api:admin"]]);
}

#[test]
fn not_too_many_endpoints_are_told_of_at_once() {
    let objects = (1..=30).flat_map(|n| {
        let of = format!("s-{n:02}");
        [Event::Service(service(&of, n)), slice(&of, 250).into()]
    });
    let (store, claims) = known(objects);
    let all: Vec<ObjectName> = (1..=30).map(|n| name(&format!("s-{n:02}"))).collect();
    let Answer::Facts { facts, looked_at } = answer(Ask::Services(all), &store, &claims, NODE) else { panic!("facts") };
    assert_eq!((facts.len(), looked_at), (8, 8), "of 250 each");
}

fn daemon() -> Daemon {
    unreachable!("nobody asks")
}

/// A metrics port whose questions are answered by this.
async fn with_page(ask: AskOwner, test: impl AsyncFnOnce()) {
    let listener = bind(ADDRESS.parse().expect("an address")).expect("free");
    let zpages = ZPages { status: Box::new(String::new), flags: BTreeMap::new(), history: Box::new(Vec::new) };
    let configz = tokio::sync::watch::channel(String::new()).1;
    let metrics = Arc::new(Metrics::new());
    let serving = tokio::spawn(serve(listener, Budget::default(), metrics, configz, daemon, zpages, Services(ask)));
    test().await;
    serving.abort();
    // Then the port is free again.
    assert!(serving.await.is_err_and(|error| error.is_cancelled()));
}

#[test]
fn the_page_lists_those_that_are_asked_for() {
    in_network_namespace_async(async || {
        let services = (1..=200).map(|n| Event::Service(service(&format!("s-{n:03}"), n)));
        let known = known(services.chain((1..=200).map(|n| slice(&format!("s-{n:03}"), 20).into())));
        let ask = move |ask, reply: oneshot::Sender<Answer>| reply.send(answer(ask, &known.0, &known.1, NODE)).is_ok();
        with_page(Box::new(ask), async || {
            let names = async |query: &str| -> Vec<String> {
                let answer = request(ADDRESS, "GET", &format!("{PATH}{query}")).await;
                assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{query}");
                let facts: Vec<ServiceFacts> = serde_json::from_str(&answer.body).expect("a list");
                facts.into_iter().map(|facts| facts.name).collect()
            };
            let all: Vec<String> = (1..=200).map(|n| format!("shop/s-{n:03}")).collect();
            assert_eq!(names("").await, all);
            assert_eq!(names("?name=shop/s-007").await, ["shop/s-007"]);
            assert_eq!(names("?address=10.96.0.9").await, ["shop/s-009"]);
            assert_eq!(names("?address=192.0.2.1").await, all);
            assert_eq!(names("?address=192.0.2.1&port=80").await, ["shop/s-001"], "the oldest has it");
            assert_eq!(names("?nodePort=30009").await, ["shop/s-009"]);
            for none in ["?name=shop/x", "?name=other/s-007", "?address=10.96.0.9&port=82", "?nodePort=80"] {
                assert_eq!(names(none).await, [""; 0], "{none}");
            }
            assert_eq!(names("?nodePort=30009&protocol=udp").await, [""; 0]);
            let wrong = request(ADDRESS, "GET", &format!("{PATH}?name=web")).await;
            assert_eq!((wrong.status, &*wrong.body), (400, "name: \"web\" is not NAMESPACE/NAME\n"));
        })
        .await;
    });
}

#[test]
fn one_who_gets_no_answer_is_told_so() {
    in_network_namespace_async(async || {
        let kept = Mutex::new(Vec::new());
        let never = move |_, reply| {
            kept.lock().expect("no panic").push(reply);
            true
        };
        with_page(Box::new(never), async || {
            let answer = request(ADDRESS, "GET", &format!("{PATH}?name=shop/web")).await;
            assert_eq!((answer.status, &*answer.body), (503, "the sync loop has not answered within 1 s\n"));
        })
        .await;
        with_page(Box::new(|_, _| false), async || {
            let answer = request(ADDRESS, "GET", PATH).await;
            assert_eq!((answer.status, &*answer.body), (503, "too many ask at the same time\n"));
        })
        .await;
    });
}
