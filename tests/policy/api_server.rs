//! Objects that have the address of the API server are named, and what packets there meet is the same for all but the
//! proxy.

use std::collections::BTreeSet;

use serde_json::json;

use crate::cluster::{Cluster, service_cidr};
use crate::example::{CLIENT, Example, THE_NODE, check, other};

/// What is said when the API server has these addresses.
fn said(cluster: &mut Cluster, servers: &[&str]) -> Vec<String> {
    let servers: BTreeSet<_> = servers.iter().map(|text| text.parse().expect("an address and a port")).collect();
    cluster.engine.set_servers(servers);
    cluster.engine.obstacles().expect("it may have changed").iter().map(ToString::to_string).collect()
}

#[test]
fn whatever_has_its_address_is_named() {
    let mut cluster = Example::new().cluster();
    for (server, expected) in [
        (
            "198.19.0.1:80",
            Some("Service default/web: spec.externalIPs: 198.19.0.1:80 is the address of the API server: "),
        ),
        ("198.18.0.1:80", Some("Service default/web: status.loadBalancer.ingress: 198.18.0.1:80 is ")),
        ("192.0.2.1:30080", Some("Service default/web: spec.ports: nodePort: 192.0.2.1:30080 is ")),
        (
            "172.30.0.9:443",
            Some("ServiceCIDR kubernetes: spec.cidrs: 172.30.0.0/16 holds the address of the API server: 172.30.0.9; "),
        ),
        // Another port, a node port of an address that has none, and what has nothing to do with Services.
        ("198.19.0.1:6443", None),
        ("198.18.0.9:30080", None),
        ("203.0.113.1:6443", None),
        ("[2001:db8::1]:6443", None),
    ] {
        let said = said(&mut cluster, &[server]);
        assert_eq!(said.len(), usize::from(expected.is_some()), "{server}: {said:?}");
        assert!(said.iter().all(|line| line.starts_with(expected.expect("one"))), "{server}: {said:?}");
    }
    let both = said(&mut cluster, &["172.30.0.1:80"]);
    assert_eq!(both.len(), 2, "{both:?}");
    assert!(both[0].starts_with("Service default/web: spec.clusterIPs: 172.30.0.1:80 is "), "{both:?}");
    let several = said(&mut cluster, &["172.30.0.7:1", "172.30.0.8:1", "172.30.0.8:2", "203.0.113.1:1"]);
    assert!(several.len() == 1 && several[0].contains("server: 172.30.0.7, 172.30.0.8; "), "{several:?}");
}

/// What is the node's own is dropped by no range, and the API server's own Service leads to it.
#[test]
fn what_leads_there_is_not() {
    let mut own = other("kubernetes", "172.30.0.5", &json!({"externalIPs": ["203.0.113.1"]}));
    own["spec"]["ports"][0]["port"] = json!(6443);
    let mut example = Example::new().and(own);
    example.service_cidrs.push(service_cidr("wide", &["192.0.2.0/24"]));
    let mut cluster = example.cluster();
    let said_of_both = said(&mut cluster, &["192.0.2.1:6443", "203.0.113.1:6443"]);
    assert!(said_of_both.is_empty(), "{said_of_both:?}");
    assert_eq!(said(&mut cluster, &["192.0.2.9:6443"]).len(), 1);
}

#[test]
fn it_is_looked_for_when_something_has_changed() {
    let mut cluster = Example::new().cluster();
    cluster.engine.set_servers(["198.19.0.7:80".parse().expect("an address and a port")].into());
    let named = |cluster: &mut Cluster| cluster.engine.obstacles().map(|found| found.len());
    assert_eq!(named(&mut cluster), Some(0));
    assert_eq!(named(&mut cluster), None, "nothing has changed");
    let evil = other("evil", "172.30.0.7", &json!({"externalIPs": ["198.19.0.7"]}));
    cluster.apply(&evil);
    assert_eq!(named(&mut cluster), Some(1));
    for object in Example::new().endpoints(&[]).slices {
        cluster.apply(&object);
        assert_eq!(named(&mut cluster), None, "endpoints do not matter");
    }
    cluster.sync();
    for source in [THE_NODE, CLIENT] {
        check(&cluster, "as with kube-proxy", &[(source, "tcp 198.19.0.7:80", "reject")]);
    }
    cluster.delete(&evil);
    assert_eq!(named(&mut cluster), Some(0));
    for range in [&["198.19.0.0/16", "2001:db8::/32"][..], &["198.20.0.0/16"]] {
        cluster.apply(&service_cidr("wide", range));
        assert_eq!(named(&mut cluster), Some(range.len() - 1), "{range:?}");
    }
}
