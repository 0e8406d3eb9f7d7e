//! From sets and connections to lines.

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn key(frontend: Option<&str>, port: u16, slot: Option<u32>) -> Key {
    let address = frontend.map(|ip| Value::Address(ip.parse().expect("an address")));
    let rest = [Value::Protocol(Protocol::Tcp), Value::Port(port)];
    address.into_iter().chain(rest).chain(slot.map(Value::Slot)).collect()
}

fn verdict(key: Key, verdict: Verdict, comment: &str) -> Element {
    Element { key, key_end: None, data: Data::Verdict(verdict), comment: Some(comment.into()) }
}

fn endpoint(key: Key, to: &str) -> Element {
    let to = address(to);
    let data = Data::Values([Value::Address(to.ip()), Value::Port(to.port())].into_iter().collect());
    Element { key, key_end: None, data, comment: None }
}

fn goto(name: &str) -> Verdict {
    Verdict::Goto(ChainName::parse(name).expect("a chain of ours"))
}

fn flow(to: &str, endpoint: &str) -> Flow {
    Flow::translated(Protocol::Tcp, ["203.0.113.7:4000", to, endpoint])
}

fn sets() -> Sets {
    let at = |ip| key(Some(ip), 80, None);
    Sets::from([
        (
            SetName::ServiceIps,
            vec![
                verdict(at("10.96.0.1"), goto("cluster-sticky-pick-2"), "a/web:http"),
                verdict(at("10.96.0.2"), goto("reject-it"), "a/empty"),
                verdict(at("10.96.0.3"), Verdict::Drop, "a/elsewhere"),
                verdict(at("192.0.2.6"), goto("external-local"), "b/local"),
                verdict(at("192.0.2.7"), goto("external-local"), "b/nowhere"),
                verdict(at("192.0.2.8"), goto("source-ranges"), "b/ranges"),
            ],
        ),
        (SetName::ServiceNodeports, vec![verdict(key(None, 30080, None), goto("np-masq-pick-1"), "a/web:http")]),
        (
            SetName::Endpoints,
            vec![
                endpoint(key(Some("10.96.0.1"), 80, Some(0)), "10.1.0.1:8080"),
                endpoint(key(Some("10.96.0.1"), 80, Some(1)), "10.1.0.2:8080"),
                endpoint(key(Some("192.0.2.6"), 80, Some(0)), "10.1.0.1:8080"),
                endpoint(key(Some("192.0.2.6"), 80, Some(Pick::LOCAL_OFFSET)), "10.1.0.1:8080"),
            ],
        ),
        (SetName::NodeportEndpoints, vec![endpoint(key(None, 30080, Some(0)), "10.1.0.1:8080")]),
        (
            SetName::LocalPolicy,
            vec![verdict(at("192.0.2.6"), goto("pick-local-1"), ""), verdict(at("192.0.2.7"), Verdict::Drop, "")],
        ),
        (SetName::AfterSourceRanges, vec![verdict(at("192.0.2.8"), goto("reject-it"), "")]),
        (SetName::AffinityTimeouts, vec![verdict(at("10.96.0.1"), goto("remember-10800"), "")]),
    ])
}

#[test]
fn a_table_for_people() {
    let sets = sets();
    let mut connections = Connections::of(&sets);
    for (to, endpoint) in [
        ("10.96.0.1:80", "10.1.0.1:8080"),
        ("10.96.0.1:80", "10.1.0.1:8080"),
        ("10.96.0.1:80", "10.1.0.9:8080"),
        ("192.0.2.10:30080", "10.1.0.1:8080"),
        // To the same port of another host, and to another port.
        ("198.51.100.1:30080", "198.51.100.1:30080"),
        ("10.96.0.1:81", "10.1.0.1:8080"),
    ] {
        connections.count(&flow(to, endpoint));
    }
    let mut all = frontends(Family::V4, &sets, &connections);
    all.sort();
    let expected = "\
SERVICE      FRONTEND            POLICY           AFFINITY  ENDPOINT                 CONNECTIONS
a/elsewhere  tcp 10.96.0.3:80    dropped          -         -                        -
a/empty      tcp 10.96.0.2:80    refused          -         -                        -
a/web:http   tcp *:30080 (IPv4)  Cluster          -         10.1.0.1:8080            1
a/web:http   tcp 10.96.0.1:80    Cluster          10800s    10.1.0.1:8080            2
                                                            10.1.0.2:8080            0
                                                            10.1.0.9:8080 (removed)  1
b/local      tcp 192.0.2.6:80    Local            -         10.1.0.1:8080            0
b/nowhere    tcp 192.0.2.7:80    dropped          -         -                        -
b/ranges     tcp 192.0.2.8:80    refused, ranges  -         -                        -
";
    assert_eq!(table(&all), expected);
    let json = serde_json::to_value(&all[3]).expect("it can be written");
    assert_eq!(json["endpoints"][0]["connections"], 2);
    assert_eq!((&json["policy"], &json["affinitySeconds"]), (&"Cluster".into(), &10800.into()));
    assert_eq!(table(&[]).lines().count(), 1);
}
