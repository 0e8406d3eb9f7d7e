//! What is said of a node whose tables change while they are read, and of one that lacks a table.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::diff::{Operation, Transaction};
use crate::metrics::services::ServiceFacts;
use crate::model::{Destination, Family, FrontendAt, FrontendKey, ObjectName, Protocol};
use crate::nftables::Kernel as _;
use crate::nftables::in_memory::InMemoryKernel;
use crate::ruleset::base;
use crate::ruleset::elements::elements;
use crate::ruleset::frontend::{Action, Frontend};
use crate::ruleset::names::SetName;
use crate::testing::in_network_namespace;

fn nft(text: &str) {
    assert!(Command::new("nft").arg(text).status().expect("nft is there").success(), "{text}");
}

/// What is said of a packet to an address that nobody has, while somebody changes tables as often as ours is read, up to so many
/// times: the verdict, and what could not be read.
fn said(changes: usize) -> (Verdict, Vec<String>) {
    let mut left = changes;
    said_while(move || {
        if left > 0 {
            left -= 1;
            nft("add chain ip other c");
            nft("delete chain ip other c");
        }
    })
}

/// The same while this is done each time that elements of ours are read.
fn said_while(mut change: impl FnMut() + Send + 'static) -> (Verdict, Vec<String>) {
    nft("add table ip other");
    let mut kernel = InMemoryKernel::new();
    kernel.on_elements(move |_, _| change());
    let address: IpAddr = [127, 0, 0, 1].into();
    let to = Destination::Address { address, port: Some(80) };
    let question = Question { from: None, to, protocol: None, arriving_by: None, probe: false };
    let mut services = |_: &_| -> Vec<ServiceFacts> { Vec::new() };
    let daemon = Err("is not asked".to_owned());
    let mut informants = Informants { daemon, services: &mut services, place: Place::Here(Path::new("/")) };
    let mut all = explain(&mut kernel, &question, &mut informants).expect("an explanation");
    let Some(Explanation { verdict, causes, .. }) = all.pop() else { panic!("nothing is said") };
    let unread = causes.into_iter().filter(|cause| cause.reason == Reason::Unread).map(|cause| cause.what);
    (verdict, unread.collect())
}

#[test]
fn tables_that_change_while_they_are_read_are_read_again() {
    in_network_namespace(|| {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is there").success());
        assert_eq!(said(0), (Verdict::NotOurs, Vec::new()));
        assert_eq!(said(3), (Verdict::NotOurs, Vec::new()), "they are quiet in the end");
        let torn = "the tables were changed while they were read: this may be of before and after";
        let same = format!("{torn}, and read again came to the same");
        assert_eq!(said(usize::MAX), (Verdict::NotOurs, vec![same]), "others' chains that do nothing");

        let readings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&readings);
        assert_eq!(said_while(move || _ = counted.fetch_add(1, Relaxed)), (Verdict::NotOurs, Vec::new()));
        let (each, mut calls) = (readings.load(Relaxed), 0);
        let drops = move || {
            if calls % each == 0 {
                let is_there = calls / each % 2 == 1;
                nft(if is_there {
                    "delete chain ip other c"
                } else {
                    "add chain ip other c { type filter hook output priority 0; policy drop; }"
                });
            }
            calls += 1;
        };
        assert_eq!(said_while(drops), (Verdict::Unsure, vec![torn.to_owned()]), "each time another verdict");
    });
}

#[test]
fn chains_that_are_not_followed_are_named_where_they_can_see_the_packet() {
    in_network_namespace(|| {
        let ip =
            |arguments: &[&str]| assert!(Command::new("ip").args(arguments).status().expect("ip is there").success());
        ip(&["link", "set", "lo", "up"]);
        for family in ["bridge", "arp"] {
            nft(&format!("add table {family} other"));
            nft(&format!("add chain {family} other c {{ type filter hook input priority 0; policy drop; }}"));
            nft(&format!("add chain {family} other passes {{ type filter hook input priority 0; policy accept; }}"));
        }
        let told = |family: &str| format!("not followed: chain {family} other c, which may drop");
        assert_eq!(said(0), (Verdict::NotOurs, vec![told("arp")]), "there is no bridge");
        ip(&["link", "add", "br0", "type", "bridge"]);
        let (verdict, mut chains) = said(0);
        chains.sort();
        assert_eq!((verdict, chains), (Verdict::NotOurs, vec![told("arp"), told("bridge")]));
    });
}

#[test]
fn a_family_without_its_table_is_explained_as_the_daemon_has_it() {
    let mut kernel = InMemoryKernel::new();
    let sets = SetName::ALL.into_iter().map(|set| Operation::AddSet(base::set(set)));
    let operations = [Operation::AddTable].into_iter().chain(sets).collect();
    kernel.commit(&Transaction { family: Family::V4, operations }).expect("a table can be made");
    let service = ObjectName::new("shop", "web").expect("a name");
    let at = FrontendAt::Address([10, 96, 0, 1].into());
    let key = FrontendKey { at, protocol: Protocol::Tcp, port: 80.try_into().expect("not 0") };
    let action = Action::Reject;
    let frontend = Frontend { service, port_name: "http".into(), action, allowed_sources: None };
    elements(&key, &frontend).into_iter().for_each(|(set, element)| kernel.put(Family::V4, set, element));
    let facts = serde_json::json!({
        "name": "shop/web", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": [], "loadBalancerIPs": [],
        "ports": [{"name": "http", "protocol": "tcp", "port": 80, "nodePort": null},
                  {"name": "dns", "protocol": "udp", "port": 53, "nodePort": null}],
        "sourceRanges": null, "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
        "affinitySeconds": null, "scheduler": "random", "healthCheckNodePort": null, "slices": 0, "endpoints": [],
    });
    let facts: ServiceFacts = serde_json::from_value(facts).expect("facts");
    let mut said = |to: &str, facts: &ServiceFacts| -> Vec<(String, Verdict, Vec<String>)> {
        let to = to.parse().expect("a Service");
        let question = Question { from: None, to, protocol: None, arriving_by: None, probe: false };
        let mut services = |_: &_| vec![facts.clone()];
        let place = Place::Manifests(&BTreeSet::new());
        let mut informants = Informants { daemon: Err("is not asked".to_owned()), services: &mut services, place };
        let all = explain(&mut kernel, &question, &mut informants).expect("explanations");
        let no_table =
            |causes: Vec<Cause>| causes.into_iter().filter(|it| it.reason == Reason::NoTable).map(|it| it.what);
        all.into_iter().map(|it| (it.packet.to.to_string(), it.verdict, no_table(it.causes).collect())).collect()
    };
    let gone = "table ip6 nftproxyd is not there: no Service is served on this node".to_owned();
    let all = said("shop/web:http", &facts);
    assert_eq!(all[0].0, "10.96.0.1:80");
    assert_eq!(all[0].2, [""; 0]);
    assert_eq!(all[1..], [("[fd00::1]:80".to_owned(), Verdict::NotOurs, vec![gone.clone()])]);
    let ports: Vec<String> = said("shop/web", &facts).into_iter().map(|(to, ..)| to).collect();
    assert_eq!(ports, ["10.96.0.1:80", "[fd00::1]:80", "[fd00::1]:53"]);
    // One that has no address of the family is not said to be missing there.
    let one = ServiceFacts { cluster_ips: vec![[10, 96, 0, 1].into()], ..facts };
    assert_eq!(said("shop/web", &one).len(), 1);
}
