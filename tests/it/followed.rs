//! Packets that are followed through the table of the machine's kernel, and frontends that are read from it one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::{Family, FrontendAt, FrontendKey, Protocol};
use nftproxyd::nftables::{Kernel, LinuxKernel, Rules};
use nftproxyd::ruleset::eval::{EvalError, Origin, Outcome, Packet, Trace, Tracer};
use nftproxyd::ruleset::kept::{self, Kept};
use nftproxyd::ruleset::read::Remembered;
use nftproxyd::status;
use nftproxyd::sync::Engine;

use crate::random::{changes, keys, runner};
use crate::support::cluster::{Cluster, address, cluster, facts, node_ports, of_every_kind, port};
use crate::support::namespace::Namespace;

/// Packets to all frontends and some other addresses, from everywhere.
fn packets(cluster: &Cluster, family: Family) -> Vec<Packet> {
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    let node: Vec<IpAddr> = cluster.addresses.iter().copied().filter(of_family).collect();
    let endpoints = cluster.slices.values().flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address));
    let mut sources: BTreeSet<IpAddr> = endpoints.filter(of_family).take(3).collect();
    sources.extend([address(family, 10, 124, 200), address(family, 10, 1, 7), address(family, 203, 0, 9)]);
    let mut destinations: BTreeSet<(IpAddr, Protocol, u16)> = BTreeSet::new();
    for key in keys(cluster).into_iter().filter(|key| key.family() == family) {
        let addresses = match key.at {
            FrontendAt::Address(address) => vec![address],
            FrontendAt::NodePort(_) => node.clone(),
        };
        for address in addresses {
            destinations.extend([(address, key.protocol, key.port.get()), (address, key.protocol, 9)]);
        }
    }
    destinations.extend([10, 96].map(|net| (address(family, net, 96, 250), Protocol::Tcp, 80)));
    let mut packets = Vec::new();
    for (destination, protocol, port) in destinations {
        let packet = |source, origin| Packet { source, destination, protocol, port, origin };
        packets.extend(sources.iter().map(|source| packet(*source, Origin::Arrives(Some("eth0".into())))));
        packets.extend(node.iter().take(1).map(|source| packet(*source, Origin::Node)));
    }
    packets
}

/// What was found out, without what is no more than a comment.
fn said(trace: Result<Trace, EvalError>) -> Result<(Outcome, Vec<String>), EvalError> {
    let steps = |trace: &Trace| {
        let step = |step: &nftproxyd::ruleset::eval::Step| {
            let rule = step.rule.split(" comment ").next().unwrap_or_default();
            format!("{} {} {rule} {}", step.hook, step.chain, step.found)
        };
        trace.steps.iter().map(step).collect()
    };
    trace.map(|trace| (trace.outcome.clone(), steps(&trace)))
}

/// The evaluator says the same of the kernel's table as of the one that the engine believes is there. Returns how often it
/// said each thing.
fn compare(engine: &mut Engine<LinuxKernel>, cluster: &Cluster) -> BTreeMap<&'static str, usize> {
    let mut seen = BTreeMap::new();
    for family in Family::ALL {
        let ruleset = engine.ruleset(family);
        let believed = Tracer::new(&ruleset, &cluster.addresses).expect("the ruleset is sound");
        let kernel = engine.kernel();
        let rules = Rules::read(kernel, family).expect("an answer").expect("there is a table");
        assert_eq!((rules.unread(), rules.is_dormant()), (&[][..], false));
        let there = rules.tracer(kernel, &cluster.addresses).expect("the kernel has each chain once");
        for packet in packets(cluster, family) {
            let (expected, found) = (believed.trace(&packet), there.trace(&packet));
            *seen
                .entry(match &expected {
                    Ok(trace) => match trace.outcome {
                        Outcome::Forward(_) => "forward",
                        Outcome::Reject => "reject",
                        Outcome::Drop => "drop",
                        Outcome::Pass => "pass",
                    },
                    Err(_) => "error",
                })
                .or_default() += 1;
            assert_eq!(said(found), said(expected), "{packet:?}");
        }
    }
    seen
}

fn asked_for(kernel: &mut LinuxKernel, what: &str) -> Vec<status::FrontendStatus> {
    let filter = status::Filter::parse(what).expect(what);
    status::look(kernel, &Family::ALL, &filter, None, None, None).expect("an answer").frontends
}

/// Each frontend is seen as what the engine has written, and as among all.
fn compare_frontends(engine: &mut Engine<LinuxKernel>) -> usize {
    let mut frontends = 0;
    let all = status::read(engine.kernel(), &Family::ALL).expect("an answer");
    for family in Family::ALL {
        let written: Vec<_> =
            engine.installed(family).frontends().map(|(key, frontend)| (*key, frontend.clone())).collect();
        frontends += written.len();
        for (key, frontend) in written {
            let seen = status::look_at(engine.kernel(), &key).expect("an answer").expect("it is there");
            assert_eq!(seen, status::Found { frontend: Some(frontend.clone()), damaged: false }, "{key}");
            let one = status::one(engine.kernel(), &key).expect("an answer").expect("it is there");
            assert!(all.contains(&one), "{key}: {one:?}");
            let port_name = Some(&*frontend.port_name);
            let keys = status::of_service(engine.kernel(), family, &frontend.service, port_name).expect("an answer");
            assert!(keys.contains(&key), "{key}: {keys:?}");
            let what = match key.at {
                FrontendAt::Address(ip) => SocketAddr::new(ip, key.port.get()).to_string(),
                FrontendAt::NodePort(_) => format!("*:{}", key.port),
            };
            let found = asked_for(engine.kernel(), &what);
            assert!(found.contains(&one), "{what}: {found:?}");
            assert!(found.iter().all(|found| all.contains(found) && found.port == key.port.get()), "{what}: {found:?}");
            let service = frontend.service.as_str();
            let is_of_it = |it: &&status::FrontendStatus| it.service.split(':').next() == Some(service);
            let of_service: Vec<_> = all.iter().filter(is_of_it).cloned().collect();
            assert_eq!(asked_for(engine.kernel(), service), of_service);
        }
    }
    assert_eq!(all.len(), frontends);
    frontends
}

#[test]
fn packets_meet_in_the_kernel_what_the_engine_believes() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        let seen = std::cell::RefCell::new(BTreeMap::new());
        let walk = |(mut cluster, portions, node_ports): (Cluster, Vec<Vec<_>>, NodePortAddresses)| {
            let kernel = LinuxKernel::open().expect("a netlink socket");
            let mut engine = cluster.engine(kernel, facts(node_ports));
            for portion in portions {
                portion.into_iter().for_each(|change| cluster.change(&mut engine, change));
                engine.sync(Instant::now());
            }
            for (what, times) in compare(&mut engine, &cluster) {
                *seen.borrow_mut().entry(what).or_insert(0) += times;
            }
            compare_frontends(&mut engine);
            Ok(())
        };
        runner(20).run(&(cluster(), changes(4), node_ports()), walk).expect("every cluster");
        let seen = seen.into_inner();
        println!("{seen:?}");
        for what in ["forward", "reject", "drop", "pass"] {
            assert!(seen.contains_key(what), "{what}: {seen:?}");
        }
    });
}

/// Frontends of every kind, and what a client that is remembered meets.
#[test]
fn a_remembered_client_goes_where_it_went_in_the_kernel_too() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        let cluster = of_every_kind(2, Some(600));
        let mut engine = cluster.engine(LinuxKernel::open().expect("a netlink socket"), facts(NodePortAddresses::All));
        engine.sync(Instant::now());
        let seen = compare(&mut engine, &cluster);
        assert!(["forward", "reject", "drop", "pass"].iter().all(|what| seen.contains_key(what)), "{seen:?}");
        assert!(compare_frontends(&mut engine) > 100);
        for family in Family::ALL {
            let installed = engine.installed(family);
            let sticky = installed.frontends().find(|(key, frontend)| {
                matches!(key.at, FrontendAt::Address(_)) && frontend.action.affinity().is_some()
            });
            let (FrontendKey { at: FrontendAt::Address(destination), protocol, port }, frontend) =
                sticky.map(|(key, frontend)| (*key, frontend.clone())).expect("there is one with affinity")
            else {
                panic!("it has an address")
            };
            let (client, other) = (address(family, 203, 0, 9), address(family, 203, 0, 10));
            let [first, second] = frontend.action.inside() else { panic!("two endpoints: {frontend:?}") };
            let backend = *second;
            let minute = std::time::Duration::from_secs(60);
            let kept = Kept {
                client: Remembered { client, destination, protocol, port, backend },
                timeout: 10 * minute,
                expires: 5 * minute,
            };
            let remember = Transaction { family, operations: vec![Operation::Remember(vec![kept])] };
            engine.kernel().commit(&remember).expect("there is room");
            let rules = Rules::read(engine.kernel(), family).expect("an answer").expect("there is a table");
            let tracer = rules.tracer(engine.kernel(), &cluster.addresses).expect("the kernel has each chain once");
            let reached = |source| {
                let origin = Origin::Arrives(Some("eth0".into()));
                let packet = Packet { source, destination, protocol, port: port.get(), origin };
                let Outcome::Forward(reached) = tracer.trace(&packet).expect("it can be followed").outcome else {
                    panic!("it is forwarded")
                };
                reached.into_iter().map(|reached| reached.endpoint.ip()).collect::<BTreeSet<_>>()
            };
            assert_eq!(reached(client), [second.address].into());
            assert_eq!(reached(other), [first.address, second.address].into());
            drop(tracer);
            let found = engine.kernel().client(family, &kept::key(client, destination, protocol, port));
            let found = found.expect("an answer").expect("it is remembered");
            assert_eq!((found.client, found.timeout), (kept.client, kept.timeout));
            assert!(found.expires <= kept.expires && found.expires > 4 * minute, "{found:?}");
        }
    });
}

/// What somebody else has changed is met, and what cannot be told is said.
#[test]
fn what_others_have_changed_is_followed_or_named() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        let cluster = of_every_kind(1, None);
        let mut engine = cluster.engine(LinuxKernel::open().expect("a netlink socket"), facts(NodePortAddresses::All));
        engine.sync(Instant::now());
        let packet = Packet {
            source: address(Family::V4, 203, 0, 9),
            destination: cluster.services.values().next().and_then(|it| it.cluster_ips.v4).expect("a cluster IP"),
            protocol: Protocol::Tcp,
            port: port(80).get(),
            origin: Origin::Arrives(Some("eth0".into())),
        };
        let mut traced = |change: &str| {
            crate::netns::try_nft(&["-f", "-"], change).expect("anybody may do that");
            let rules = Rules::read(engine.kernel(), Family::V4).expect("an answer").expect("there is a table");
            let tracer = rules.tracer(engine.kernel(), &cluster.addresses).expect("each chain is there once");
            tracer.trace(&packet).map(|trace| trace.outcome).map_err(|error| error.to_string())
        };
        assert!(matches!(traced(""), Ok(Outcome::Forward(_))));
        let at = |destination: IpAddr| format!("{destination} . tcp . 80");
        let key = at(packet.destination);
        // One slot is gone: half of the connections get none, and the rest of the chain is no other answer.
        let missing = traced(&format!("delete element ip nftproxyd endpoints {{ {key} . 0 }}"));
        assert!(missing.as_ref().is_err_and(|error| error.contains("slots are missing")), "{missing:?}");
        let refused = traced("insert rule ip nftproxyd nat-prerouting ip saddr 203.0.0.0/16 drop");
        assert_eq!(refused, Ok(Outcome::Drop));
        let counted = traced("insert rule ip nftproxyd nat-prerouting counter drop");
        let why = "chain nat-prerouting, rule 1: expression 1 (counter) is not understood";
        assert_eq!(counted, Err(why.to_owned()));
        let dormant = traced("add table ip nftproxyd { flags dormant; }");
        assert_eq!(dormant, Ok(Outcome::Pass), "no chain sees a packet");
    });
}
