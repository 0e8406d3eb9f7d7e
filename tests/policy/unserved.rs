//! What no Service serves, what a Service does not serve everybody, and who gets what two Services want.
//!
//! Pings are not followed: the packets of these tests have a protocol that a Service can have, and a port.

use serde_json::json;

use nftproxyd::addresses::NodePortAddresses;
use nftproxyd::model::Family;

use crate::cluster::{self, ip, service_cidr};
use crate::example::{
    CLIENT, CLUSTER_IP, E1, EXTERNAL_IP, Example, LOAD_BALANCER_IP, NODE_PORT, POD, THE_NODE, check, e1, e2, other,
    slice, slice_of, web,
};

/// A cluster IP belongs to the proxy: what it does not serve is refused; what nobody has is dropped. Whether there are
/// endpoints is asked first, so that an internal policy Local without endpoints here is silent.
#[test]
fn the_order_of_refusals() {
    let wrong_port = "tcp 172.30.0.1:81";
    let unallocated = "tcp 172.30.9.9:80";
    let internal_local = || Example::new().spec(json!({"internalTrafficPolicy": "Local"}));
    for (what, example, served) in [
        ("endpoints", Example::new(), "e1 e2"),
        ("no endpoints", Example::new().endpoints(&[]), "reject"),
        ("endpoints elsewhere, internal Local", internal_local().endpoints(&[e2()]), "drop"),
        ("no endpoints, internal Local", internal_local().endpoints(&[]), "reject"),
    ] {
        example.check(what, &[(POD, CLUSTER_IP, served)]);
        for source in [POD, THE_NODE, CLIENT, E1] {
            example.check(what, &[(source, wrong_port, "reject"), (source, unallocated, "drop")]);
        }
    }
}

/// It does not matter whether the cluster IP is on an interface of the node too. (kube-proxy then refuses only what the
/// node itself sends, and lets the rest be delivered.)
#[test]
fn a_cluster_ip_that_is_an_address_of_the_node() {
    Example::new().addresses(&["172.30.0.1"]).check(
        "bound to an interface",
        &[
            (POD, CLUSTER_IP, "e1 e2"),
            (CLIENT, CLUSTER_IP, "e1(m) e2(m)"),
            ("172.30.0.1", CLUSTER_IP, "e1(m) e2(m)"),
            (POD, "tcp 172.30.0.1:81", "reject"),
            (THE_NODE, "tcp 172.30.0.1:81", "reject"),
        ],
    );
}

/// A range that holds the node's own address, by mistake, does not cut the node off: what is not for a Service passes, and
/// its node ports are served. Its neighbours in the range are taken for cluster IPs that nobody has.
#[test]
fn a_range_that_holds_an_address_of_the_node() {
    let overlapping = || service_cidr("overlapping", &["192.0.2.0/24", "2001:db8:2::/64"]);
    for setting in [NodePortAddresses::Primary, NodePortAddresses::All] {
        let mut example = Example::new().addresses(&["192.0.2.77", "2001:db8:2::1"]);
        let elsewhere = if setting == NodePortAddresses::All { "e1(m) e2(m)" } else { "pass" };
        example.facts.node_ports = setting;
        let mut cluster = example.cluster();
        for (what, neighbour) in [("without", "pass"), ("with", "drop"), ("without again", "pass")] {
            if what == "with" {
                cluster.apply(&overlapping());
            } else {
                cluster.delete(&overlapping());
            }
            cluster.sync();
            for source in [POD, THE_NODE, "192.0.2.77", CLIENT, E1] {
                let packets = [
                    (source, "tcp 192.0.2.1:22", "pass"),
                    (source, "udp 192.0.2.1:123", "pass"),
                    (source, "tcp 192.0.2.77:22", "pass"),
                    (source, NODE_PORT, "e1(m) e2(m)"),
                    (source, "tcp 192.0.2.77:30080", elsewhere),
                    (source, "udp 192.0.2.1:30080", "pass"),
                    (source, "tcp 192.0.2.9:22", neighbour),
                    (source, "tcp 192.0.2.9:30080", neighbour),
                    (source, "tcp 172.30.9.9:80", "drop"),
                    (source, "tcp 172.30.0.1:81", "reject"),
                ];
                check(&cluster, what, &packets);
            }
            for source in ["fd10::2", "2001:db8:2::1", "2001:db8:113::5"] {
                let packets =
                    [(source, "tcp [2001:db8:2::1]:22", "pass"), (source, "udp [2001:db8:2::9]:22", neighbour)];
                check(&cluster, what, &packets);
            }
        }
    }
    // A cluster IP in it that is on an interface of the node, as of the node's own DNS cache, is one as any other.
    let mut example = Example::new().and(other("dns", "192.0.2.53", &json!({}))).addresses(&["192.0.2.53"]);
    example.service_cidrs.push(overlapping());
    for source in [POD, THE_NODE, "192.0.2.53", CLIENT] {
        example.check("bound", &[(source, "tcp 192.0.2.53:80", "reject"), (source, "tcp 192.0.2.53:9153", "reject")]);
    }
}

/// Addresses from outside are not the proxy's alone: other ports of theirs are left alone.
#[test]
fn other_ports_of_outside_addresses_pass() {
    let example = Example::new().addresses(&["192.0.2.99"]);
    for source in [POD, THE_NODE, CLIENT] {
        example.check(
            "not served",
            &[
                (source, "tcp 198.18.0.1:81", "pass"),
                (source, "udp 198.18.0.1:80", "pass"),
                (source, "tcp 198.19.0.1:81", "pass"),
                (source, "tcp 192.0.2.1:22", "pass"),
                (source, "udp 192.0.2.1:30080", "pass"),
                (source, "tcp 192.0.2.99:30080", "pass"),
                // A node port is no port of the other frontends, nor the other way round.
                (source, "tcp 198.18.0.1:30080", "pass"),
                (source, "tcp 198.19.0.1:30080", "pass"),
                (source, "tcp 192.0.2.1:80", "pass"),
                (source, "tcp 172.30.0.1:30080", "reject"),
                // And nobody's business at all.
                (source, "tcp 203.0.113.200:443", "pass"),
                (source, "tcp 10.180.1.1:80", "pass"),
            ],
        );
    }
}

/// `nodePortAddresses`, and addresses that come and go. Loopback never accepts node ports.
#[test]
fn node_ports_are_served_on_accepted_addresses() {
    let cidr = |text: &str| text.parse().expect("a range");
    let cases = [
        (NodePortAddresses::Primary, "e1(m) e2(m)", "pass"),
        (NodePortAddresses::All, "e1(m) e2(m)", "e1(m) e2(m)"),
        (NodePortAddresses::Cidrs(vec![cidr("198.51.100.0/24")]), "pass", "e1(m) e2(m)"),
        (NodePortAddresses::Cidrs(vec![cidr("192.0.2.0/24"), cidr("198.51.100.0/24")]), "e1(m) e2(m)", "e1(m) e2(m)"),
        (NodePortAddresses::Cidrs(vec![cidr("0.0.0.0/0")]), "e1(m) e2(m)", "e1(m) e2(m)"),
        // No range of the family: every address of it.
        (NodePortAddresses::Cidrs(vec![cidr("2001:db8::/32")]), "e1(m) e2(m)", "e1(m) e2(m)"),
        (NodePortAddresses::Cidrs(vec![cidr("127.0.0.0/8")]), "pass", "pass"),
    ];
    for (setting, primary, second) in cases {
        let what = format!("{setting:?}");
        let mut example = Example::new().addresses(&["198.51.100.1"]);
        example.facts.node_ports = setting;
        let packets = [
            (CLIENT, NODE_PORT, primary),
            (CLIENT, "tcp 198.51.100.1:30080", second),
            (THE_NODE, "tcp 198.51.100.1:30080", second),
            ("127.0.0.1", "tcp 127.0.0.1:30080", "pass"),
            // Not an address of the node.
            (CLIENT, "tcp 198.51.100.2:30080", "pass"),
            (CLIENT, "tcp 10.180.1.1:30080", "pass"),
        ];
        example.check(&what, &packets);
    }

    let mut example = Example::new();
    example.facts.node_ports = NodePortAddresses::Cidrs(vec![cidr("198.51.100.0/24")]);
    let mut cluster = example.cluster();
    check(&cluster, "before it is there", &[(CLIENT, "tcp 198.51.100.1:30080", "pass")]);
    cluster.set_addresses(&[ip(THE_NODE), ip("198.51.100.1")]);
    check(&cluster, "a new address", &[(CLIENT, "tcp 198.51.100.1:30080", "e1(m) e2(m)")]);
    cluster.set_addresses(&[ip(THE_NODE)]);
    check(&cluster, "gone again", &[(CLIENT, "tcp 198.51.100.1:30080", "pass")]);
}

/// `loadBalancerSourceRanges`.
#[test]
fn source_ranges() {
    const ALL: &str = "e1(m) e2(m)";
    // The ranges; and sources, each with what becomes of its packets.
    type Case = (&'static [&'static str], &'static [(&'static str, &'static str)]);
    let cases: &[Case] = &[
        (&[], &[(CLIENT, ALL), (POD, ALL), (THE_NODE, ALL)]),
        (&["203.0.113.0/24"], &[(CLIENT, ALL), ("203.0.114.5", "drop"), (POD, "drop"), (THE_NODE, "drop")]),
        (&["203.0.113.5/32"], &[(CLIENT, ALL), ("203.0.113.4", "drop"), ("203.0.113.6", "drop")]),
        (&["203.0.113.5/24"], &[(CLIENT, ALL), ("203.0.113.255", ALL), ("203.0.112.255", "drop")]),
        // Leading zeros are decimal, host bits no matter.
        (&["203.0.113.000/024"], &[(CLIENT, ALL), ("203.0.114.0", "drop")]),
        // Overlapping, adjacent and repeated ranges.
        (
            &["203.0.113.0/25", "203.0.113.0/24", "203.0.114.0/24", "203.0.113.0/24", "10.0.0.0/8"],
            &[(CLIENT, ALL), ("203.0.113.200", ALL), ("203.0.114.255", ALL), ("203.0.115.0", "drop"), (POD, ALL)],
        ),
        // A /0 lifts all; so do ranges of the other family only. Those that cannot be read lift nothing.
        (&["203.0.113.0/24", "0.0.0.0/0"], &[("198.51.100.1", ALL), (POD, ALL)]),
        (&["2001:db8::/32"], &[(CLIENT, ALL), (POD, ALL)]),
        (&["2001:db8::/32", "x"], &[(CLIENT, ALL)]),
        (&["::/0", "198.51.100.0/24"], &[(CLIENT, "drop")]),
        (&["203.0.113.0/240"], &[(CLIENT, "drop"), (POD, "drop")]),
        (&["x", ""], &[(CLIENT, "drop"), (THE_NODE, "drop")]),
        (&["nonsense", "198.51.100.0/24"], &[(CLIENT, "drop"), ("198.51.100.1", ALL)]),
        // The node may come with a load-balancer IP as its source, if it may come with its own.
        (&["192.0.2.0/24"], &[(THE_NODE, ALL), ("198.18.0.1", ALL), ("198.18.0.2", ALL), (CLIENT, "drop")]),
        (&["192.0.2.1/32"], &[("198.18.0.1", ALL), ("198.18.0.3", "drop")]),
        (&["192.0.2.2/32"], &[(THE_NODE, "drop"), ("198.18.0.1", "drop")]),
    ];
    let ingress = json!([{"ip": "198.18.0.1"}, {"ip": "198.18.0.2"}]);
    for (ranges, packets) in cases {
        let example = Example::new()
            .spec(json!({"loadBalancerSourceRanges": ranges}))
            .with(json!({"status": {"loadBalancer": {"ingress": ingress}}}))
            .addresses(&["198.18.0.1", "198.18.0.2"]);
        for (source, expected) in *packets {
            let to_both = [(*source, LOAD_BALANCER_IP, *expected), (*source, "tcp 198.18.0.2:80", *expected)];
            example.check(&format!("{ranges:?}"), &to_both);
            // Other frontends of the Service are not concerned.
            example.check(&format!("{ranges:?}"), &[(*source, EXTERNAL_IP, ALL), (*source, NODE_PORT, ALL)]);
        }
    }
}

/// By the annotation they hold for all but the cluster IP.
#[test]
fn source_ranges_everywhere() {
    const ALL: &str = "e1(m) e2(m)";
    let everywhere =
        |value: &str| json!({"metadata": {"annotations": {"nftproxyd.io/source-ranges-everywhere": value}}});
    let guarded = |ranges: &[&str]| {
        Example::new()
            .with(everywhere("true"))
            .spec(json!({"loadBalancerSourceRanges": ranges}))
            .addresses(&["198.19.0.1"])
    };
    let to_all = |example: &Example, what: &str, source: &str, expected: &str| {
        example.check(what, &[LOAD_BALANCER_IP, EXTERNAL_IP, NODE_PORT].map(|to| (source, to, expected)));
    };
    let clients = guarded(&["203.0.113.0/25"]);
    for (source, expected) in
        [(CLIENT, ALL), ("203.0.113.128", "drop"), (POD, "drop"), (E1, "drop"), (THE_NODE, "drop")]
    {
        to_all(&clients, "clients", source, expected);
    }
    clients.check("the cluster IP", &[(POD, CLUSTER_IP, "e1 e2"), ("203.0.113.128", CLUSTER_IP, ALL)]);
    clients.check("another port", &[(POD, "tcp 192.0.2.1:22", "pass"), ("198.51.100.1", "tcp 198.19.0.1:81", "pass")]);

    // The node itself, by its address and by an external or load-balancer IP that it has.
    let node = guarded(&["192.0.2.0/24"]);
    for source in [THE_NODE, "198.18.0.1", "198.19.0.1"] {
        to_all(&node, "the node", source, ALL);
    }
    to_all(&node, "the node", CLIENT, "drop");

    // No endpoints, and policy Local, as at a load-balancer IP.
    let clients = || guarded(&["203.0.113.0/25"]);
    let none = clients().endpoints(&[]);
    to_all(&none, "no endpoints", CLIENT, "reject");
    to_all(&none, "no endpoints", "203.0.113.128", "drop");
    let local = clients().spec(json!({"externalTrafficPolicy": "Local"}));
    to_all(&local, "external Local", CLIENT, "e1");
    to_all(&local, "external Local", POD, "drop");
    to_all(&local.endpoints(&[e2()]), "external Local, elsewhere", CLIENT, "drop");

    // Neither `false`, nor what is no value, nor ranges of the other family, nor a /0.
    for value in ["false", "yes"] {
        let example =
            Example::new().with(everywhere(value)).spec(json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]}));
        example
            .check(value, &[(CLIENT, LOAD_BALANCER_IP, "drop"), (CLIENT, EXTERNAL_IP, ALL), (CLIENT, NODE_PORT, ALL)]);
    }
    to_all(&guarded(&["2001:db8::/32"]), "of IPv6", CLIENT, ALL);
    to_all(&guarded(&["0.0.0.0/0", "198.51.100.0/24"]), "a /0", CLIENT, ALL);
    to_all(&guarded(&["x"]), "none that can be read", CLIENT, "drop");
    to_all(&Example::new().with(everywhere("true")), "no ranges at all", CLIENT, ALL);

    // It comes and goes with the annotation.
    let mut cluster = Example::new().spec(json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]})).cluster();
    check(&cluster, "before", &[(CLIENT, NODE_PORT, ALL), (CLIENT, EXTERNAL_IP, ALL)]);
    let mut object = web();
    object["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
    object["metadata"]["annotations"] = json!({"nftproxyd.io/source-ranges-everywhere": "true"});
    cluster.apply(&object);
    cluster.sync();
    check(
        &cluster,
        "with it",
        &[(CLIENT, NODE_PORT, "drop"), ("198.51.100.1", NODE_PORT, ALL), (POD, CLUSTER_IP, "e1 e2")],
    );
    object["metadata"]["annotations"] = json!({});
    cluster.apply(&object);
    cluster.sync();
    check(&cluster, "afterwards", &[(CLIENT, NODE_PORT, ALL), (CLIENT, EXTERNAL_IP, ALL)]);
}

/// By annotation, or for all, addresses with endpoints answer pings; the node does, by its own address.
#[test]
fn pings_of_services() {
    let pings = |cluster: &cluster::Cluster, expected: [&str; 3]| {
        for (to, expected) in ["172.30.0.1", "198.18.0.1", "198.19.0.1"].into_iter().zip(expected) {
            for source in [POD, THE_NODE, CLIENT] {
                assert_eq!(cluster.ping(ip(source), ip(to)), expected, "{source} to {to}");
            }
        }
    };
    let (answered, silent) = (["192.0.2.1:0"; 3], ["reject", "pass", "pass"]);
    let asks = |value: &str| Example::new().with(json!({"metadata": {"annotations": {"nftproxyd.io/ping": value}}}));
    pings(&Example::new().cluster(), silent);
    pings(&asks("false").cluster(), silent);
    pings(&asks("maybe").cluster(), silent);
    pings(&asks("true").endpoints(&[]).cluster(), silent);
    let mut cluster = asks("true").cluster();
    pings(&cluster, answered);
    // The endpoints go, the node gets another address, the Service goes.
    cluster.apply(&slice("web", &[]));
    cluster.sync();
    pings(&cluster, silent);
    cluster.apply(&slice("web", &[e2()]));
    cluster.apply(&cluster::node(&["192.0.2.7"], &["10.0.0.0/24"], "a"));
    cluster.set_addresses(&[ip(THE_NODE), ip("192.0.2.7")]);
    pings(&cluster, ["192.0.2.7:0"; 3]);
    cluster.apply(&cluster::node(&[], &["10.0.0.0/24"], "a"));
    cluster.sync();
    pings(&cluster, silent);
    cluster.apply(&cluster::node(&[THE_NODE], &["10.0.0.0/24"], "a"));
    cluster.sync();
    pings(&cluster, answered);
    cluster.delete(&web());
    cluster.sync();
    pings(&cluster, ["drop", "pass", "pass"]);

    let mut all = Example::new();
    all.facts.ping = true;
    pings(&all.cluster(), answered);
    let mut all = asks("false");
    all.facts.ping = true;
    pings(&all.cluster(), silent);

    // An address of two Services answers as long as one of them lets it.
    let port = json!([{"port": 81, "protocol": "TCP"}]);
    let mut shared = other("other", "172.30.0.2", &json!({"externalIPs": ["198.19.0.1"], "ports": port}));
    shared["metadata"]["annotations"] = json!({"nftproxyd.io/ping": "true"});
    let example =
        Example::new().and(shared.clone()).slices(vec![slice("web", &[e1()]), slice_of("other", "other", &[e2()])]);
    let mut cluster = example.cluster();
    assert_eq!(cluster.ping(ip(CLIENT), ip("198.19.0.1")), "192.0.2.1:0");
    assert_eq!(cluster.ping(ip(CLIENT), ip("172.30.0.1")), "reject");
    cluster.delete(&shared);
    cluster.sync();
    assert_eq!(cluster.ping(ip(CLIENT), ip("198.19.0.1")), "pass");
}

/// Who may not come learns nothing: neither that there are no endpoints, nor by way of an external IP that is the same.
#[test]
fn source_ranges_come_first() {
    let guarded = |spec: serde_json::Value| {
        Example::new().spec(json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]})).spec(spec)
    };
    let allowed = "198.51.100.1";
    guarded(json!({})).endpoints(&[]).check(
        "no endpoints",
        &[(CLIENT, LOAD_BALANCER_IP, "drop"), (allowed, LOAD_BALANCER_IP, "reject"), (CLIENT, EXTERNAL_IP, "reject")],
    );
    guarded(json!({"externalIPs": ["198.18.0.1"]})).check(
        "an external IP that is also the load-balancer IP",
        &[(CLIENT, LOAD_BALANCER_IP, "drop"), (allowed, LOAD_BALANCER_IP, "e1(m) e2(m)")],
    );
    guarded(json!({"externalTrafficPolicy": "Local"})).check(
        "external Local",
        &[(CLIENT, LOAD_BALANCER_IP, "drop"), (POD, LOAD_BALANCER_IP, "drop"), (allowed, LOAD_BALANCER_IP, "e1")],
    );
    // Only the ports of the Service are guarded.
    guarded(json!({})).check("another port", &[(CLIENT, "tcp 198.18.0.1:81", "pass")]);
}

/// Ranges that hold the node's address follow it.
#[test]
fn source_ranges_follow_the_address_of_the_node() {
    let example = Example::new().spec(json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]})).addresses(&["198.18.0.1"]);
    let mut cluster = example.cluster();
    let from_itself = |expected| [("198.18.0.1", LOAD_BALANCER_IP, expected)];
    check(&cluster, "the node is in the range", &from_itself("e1(m) e2(m)"));
    cluster.apply(&cluster::node(&["198.51.100.1"], &["10.0.0.0/24"], "a"));
    cluster.sync();
    check(&cluster, "the node's address is outside now", &from_itself("drop"));
    cluster.apply(&cluster::node(&[THE_NODE], &["10.0.0.0/24"], "a"));
    cluster.sync();
    check(&cluster, "and inside again", &from_itself("e1(m) e2(m)"));
}

/// The exact address and port come before node ports.
#[test]
fn a_load_balancer_ip_that_is_an_address_of_the_node() {
    let at_the_node = json!({"status": {"loadBalancer": {"ingress": [{"ip": THE_NODE}]}}});
    Example::new().with(at_the_node.clone()).spec(json!({"externalTrafficPolicy": "Local"})).check(
        "its port and the node port",
        &[
            (CLIENT, "tcp 192.0.2.1:80", "e1"),
            (THE_NODE, "tcp 192.0.2.1:80", "e1(m) e2(m)"),
            (CLIENT, NODE_PORT, "e1"),
            (CLIENT, "tcp 192.0.2.1:22", "pass"),
        ],
    );
    // The port of one Service is the node port of another.
    let other = {
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 30080, "protocol": "TCP", "nodePort": 30081}]});
        let mut other = other("other", "172.30.0.2", &spec);
        other["status"] = at_the_node["status"].clone();
        other
    };
    Example::new().and(other).slices(vec![slice("web", &[e1()]), slice_of("other", "other", &[e2()])]).check(
        "an exact match",
        &[(CLIENT, NODE_PORT, "e2(m)"), (CLIENT, "tcp 192.0.2.1:30081", "e2(m)"), (CLIENT, LOAD_BALANCER_IP, "e1(m)")],
    );
}

/// Two Services want the same: a cluster IP comes first, then the older Service, then the name; the other one gets it
/// when the owner is gone. It never depends on the order in which they arrive.
#[test]
fn clashes_have_one_winner() {
    let slices = || vec![slice("web", &[e1()]), slice_of("other", "other", &[e2()])];
    let same_age = |name: &str, cluster_ip: &str, spec| {
        let mut service = other(name, cluster_ip, &spec);
        service["metadata"]["creationTimestamp"] = web()["metadata"]["creationTimestamp"].clone();
        service
    };
    let external = |address: &str| json!({"externalIPs": [address]});
    let twice = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
    let cases = [
        // The external IP of `other` is the cluster IP of `web`, and the other way round although `web` is older.
        ("a cluster IP", web(), other("other", "172.30.0.2", &external("172.30.0.1")), CLUSTER_IP, "e1", "e2(m)"),
        (
            "a cluster IP of a younger Service",
            {
                let mut web = web();
                web["spec"]["externalIPs"] = json!(["172.30.0.2"]);
                web
            },
            other("other", "172.30.0.2", &json!({})),
            "tcp 172.30.0.2:80",
            "e2",
            "e1(m)",
        ),
        (
            "the older one",
            web(),
            other("other", "172.30.0.2", &external("198.18.0.1")),
            LOAD_BALANCER_IP,
            "e1(m)",
            "e2(m)",
        ),
        ("the older one", web(), other("other", "172.30.0.2", &twice), NODE_PORT, "e1(m)", "e2(m)"),
        ("the name", web(), same_age("other", "172.30.0.2", external("198.19.0.1")), EXTERNAL_IP, "e2(m)", "e1(m)"),
    ];
    for (what, web, other, to, expected, later) in cases {
        for web_first in [true, false] {
            let mut example = Example::new().slices(slices());
            example.services =
                if web_first { vec![web.clone(), other.clone()] } else { vec![other.clone(), web.clone()] };
            let mut cluster = example.cluster();
            check(&cluster, what, &[(POD, to, expected)]);
            // A change of the loser does not matter.
            let winner = if expected.starts_with("e1") { &web } else { &other };
            let loser = if expected.starts_with("e1") { &other } else { &web };
            cluster.apply(loser);
            cluster.sync();
            check(&cluster, what, &[(POD, to, expected)]);
            cluster.delete(winner);
            cluster.sync();
            check(&cluster, &format!("{what}, when it is gone"), &[(POD, to, later)]);
        }
    }
}

/// Ranges of cluster IPs are an input like any other: they come, change and go at once.
#[test]
fn service_cidrs() {
    let unallocated = "tcp 172.30.9.9:80";
    let wrong_port = "tcp 172.30.0.1:81";
    let beyond = "tcp 172.31.0.1:80";
    let mut example = Example::new();
    example.service_cidrs.clear();
    let mut cluster = example.cluster();
    let mut expect = |what: &str, change: &dyn Fn(&mut cluster::Cluster), fates: [&str; 3]| {
        change(&mut cluster);
        cluster.sync();
        let [wrong, nobody, other] = fates;
        check(&cluster, what, &[(POD, CLUSTER_IP, "e1 e2"), (POD, wrong_port, wrong), (THE_NODE, wrong_port, wrong)]);
        check(&cluster, what, &[(POD, unallocated, nobody), (THE_NODE, unallocated, nobody), (POD, beyond, other)]);
    };
    let first = |cidrs: &[&str]| service_cidr("kubernetes", cidrs);
    let second = |cidrs: &[&str]| service_cidr("second", cidrs);
    expect("none: a cluster IP is known all the same", &|_| {}, ["reject", "pass", "pass"]);
    expect("one", &|it| it.apply(&first(&["172.30.0.0/16"])), ["reject", "drop", "pass"]);
    expect("of the other family", &|it| it.apply(&first(&["fd30::/112"])), ["reject", "pass", "pass"]);
    expect("of both families", &|it| it.apply(&first(&["172.30.0.0/16", "fd30::/112"])), ["reject", "drop", "pass"]);
    expect("another object", &|it| it.apply(&second(&["172.31.0.0/16"])), ["reject", "drop", "drop"]);
    expect("the same range twice", &|it| it.apply(&second(&["172.30.0.0/16"])), ["reject", "drop", "pass"]);
    expect("one of the two is gone", &|it| it.delete(&second(&["172.30.0.0/16"])), ["reject", "drop", "pass"]);
    expect("overlapping", &|it| it.apply(&second(&["172.30.0.0/15"])), ["reject", "drop", "drop"]);
    expect("the larger one alone", &|it| it.delete(&first(&[])), ["reject", "drop", "drop"]);
    expect("cluster IPs outside of all", &|it| it.apply(&second(&["172.31.0.0/16"])), ["reject", "pass", "drop"]);
    expect("none again", &|it| it.delete(&second(&[])), ["reject", "pass", "pass"]);
}

/// An address is a cluster IP as long as a Service has it, with or without endpoints.
#[test]
fn cluster_ips_come_and_go() {
    let stray = other("stray", "172.31.0.1", &json!({}));
    let mut cluster = Example::new().and(stray.clone()).cluster();
    let both = ["tcp 172.30.0.1:81", "tcp 172.31.0.1:81"];
    check(&cluster, "no endpoints", &[(POD, "tcp 172.31.0.1:80", "reject")]);
    both.iter().for_each(|to| check(&cluster, "wrong port", &[(POD, to, "reject"), (CLIENT, to, "reject")]));
    cluster.delete(&stray);
    cluster.delete(&web());
    cluster.sync();
    check(&cluster, "in the range", &[(POD, CLUSTER_IP, "drop"), (POD, both[0], "drop")]);
    check(&cluster, "outside", &[(POD, "tcp 172.31.0.1:80", "pass"), (POD, both[1], "pass")]);
    check(&cluster, "with all the rest", &[(CLIENT, NODE_PORT, "pass"), (CLIENT, LOAD_BALANCER_IP, "pass")]);
}

/// Services that are not for this proxy have no frontend at all.
#[test]
fn services_that_are_not_proxied() {
    let cases = [
        ("headless", json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})),
        ("without a cluster IP", json!({"spec": {"clusterIP": "", "clusterIPs": null}})),
        ("ExternalName", json!({"spec": {"type": "ExternalName"}})),
        ("of another proxy", json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "x"}}})),
        ("without ports", json!({"spec": {"ports": []}})),
        // Then its node ports and outside addresses of that family are not served either.
        (
            "of the other family",
            json!({"spec": {"clusterIP": "fd30::1", "clusterIPs": ["fd30::1"], "ipFamilies": ["IPv6"]}}),
        ),
    ];
    for (what, patch) in cases {
        Example::new().with(patch).check(
            what,
            &[
                (POD, CLUSTER_IP, "drop"),
                (CLIENT, LOAD_BALANCER_IP, "pass"),
                (CLIENT, EXTERNAL_IP, "pass"),
                (CLIENT, NODE_PORT, "pass"),
            ],
        );
    }

    let mut cluster = cluster::Cluster::new(cluster::facts(), &[ip(THE_NODE)]).without_external_ips();
    cluster.apply(&cluster::node(&[THE_NODE], &[], ""));
    cluster.apply(&web());
    cluster.apply(&slice("web", &[e1(), e2()]));
    cluster.sync();
    let without_gate = [(CLIENT, EXTERNAL_IP, "pass"), (CLIENT, LOAD_BALANCER_IP, "e1(m) e2(m)")];
    check(&cluster, "with AllowServiceExternalIPs off", &without_gate);
}

/// One family's ranges say nothing about the other's.
#[test]
fn source_ranges_of_one_family_leave_the_other_open() {
    let dual_stack = json!({
        "metadata": {},
        "spec": {
            "clusterIPs": ["172.30.0.1", "fd30::1"], "ipFamilies": ["IPv4", "IPv6"],
            "loadBalancerSourceRanges": ["198.51.100.0/24"],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.18.0.1"}, {"ip": "fd18::1"}]}},
    });
    let v6 = {
        let mut slice = slice("web-v6", &[json!({"addresses": ["fd10:2::1"], "nodeName": "n2"})]);
        slice["addressType"] = json!(Family::V6.to_string());
        slice
    };
    Example::new().with(dual_stack).slices(vec![slice("web", &[e1(), e2()]), v6]).check(
        "only IPv4 ranges",
        &[
            (CLIENT, LOAD_BALANCER_IP, "drop"),
            ("198.51.100.1", LOAD_BALANCER_IP, "e1(m) e2(m)"),
            ("2001:db8:113::5", "tcp [fd18::1]:80", "[fd10:2::1]:80(m)"),
            ("fd10::2", "tcp [fd30::1]:80", "[fd10:2::1]:80"),
            ("fd10::2", "tcp [fd30::1]:81", "reject"),
        ],
    );
}

/// Where pods are known by the ranges of the Node, those may come late and change.
#[test]
fn pods_are_known_by_the_ranges_that_the_node_has_now() {
    let mut example = Example::new();
    example.facts.detect_local = nftproxyd::config::DetectLocal::NodeCidr;
    let mut cluster = example.cluster();
    let pods = ["10.0.0.2", "10.7.0.2"];
    let mut expect = |what: &str, ranges: &[&str], fates: [&str; 2]| {
        cluster.apply(&cluster::node(&[THE_NODE], ranges, "a"));
        cluster.sync();
        for (pod, fate) in pods.iter().zip(fates) {
            check(&cluster, what, &[(pod, CLUSTER_IP, fate)]);
        }
    };
    expect("the first range", &["10.0.0.0/24"], ["e1 e2", "e1(m) e2(m)"]);
    expect("another range", &["10.7.0.0/24"], ["e1(m) e2(m)", "e1 e2"]);
    expect("none: nobody can be told apart", &[], ["e1 e2", "e1 e2"]);
    expect("the first one again", &["10.0.0.0/24", "10.7.0.0/24"], ["e1 e2", "e1(m) e2(m)"]);
}
