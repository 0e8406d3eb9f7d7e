//! An engine that is told how many connections there are.

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::*;
use crate::addresses::NodePortAddresses;
use crate::config::DetectLocal;
use crate::model::{Conditions, Endpoint, Event, FrontendAt, Kind, PerFamily, Slice, SlicePort, TrafficPolicy};
use crate::nftables::in_memory::InMemoryKernel;
use crate::ruleset::names::{By, TableName};
use crate::sync::{Engine, Facts};
use crate::testing::log::captured;

fn address(last: u8) -> IpAddr {
    [10, 180, 0, last].into()
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("shop", text).expect("a name")
}

/// A Service with an external IP and a node port.
fn service(text: &str, last: u8, scheduler: Option<Scheduler>) -> Event {
    let port = NonZeroU16::new(80).expect("a port");
    Event::Service(Service {
        name: name(text),
        cluster_ips: PerFamily { v4: Some([10, 96, 0, last].into()), v6: None },
        ports: [ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port,
            node_port: NonZeroU16::new(30_000 + u16::from(last)),
        }]
        .into(),
        external_ips: [[192, 0, 2, last].into()].into(),
        load_balancer_ips: [].into(),
        has_external_ips: PerFamily { v4: true, v6: false },
        source_ranges: None,
        ranges_everywhere: false,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        scheduler,
        maglev_size: None,
        ping: None,
        accounting: false,
        reset_connections: false,
        health_check_node_port: None,
        created: 0,
    })
}

fn slice(text: &str, endpoints: &[u8]) -> Event {
    let conditions = Conditions { ready: true, serving: true, terminating: false, local: false };
    let endpoint = |last: &u8| Endpoint { address: address(*last), conditions, hints: None };
    let slice = Slice {
        name: name(&format!("{text}-1")),
        service: name(text),
        family: Family::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: NonZeroU16::MIN }].into(),
        weight: 1,
        endpoints: endpoints.iter().map(endpoint).collect(),
        places: Default::default(),
    };
    slice.into()
}

/// An engine that has been told of these, and a clock.
struct World {
    engine: Engine<InMemoryKernel>,
    now: Instant,
}

impl World {
    fn new(scheduler: Scheduler, events: impl IntoIterator<Item = Event>) -> World {
        let facts = Facts {
            table: TableName::NODE,
            detect_local: DetectLocal::NodeCidr,
            node_ports: NodePortAddresses::All,
            masquerade_bit: 14,
            masquerade_all: false,
            node_ips: PerFamily::default(),
            scheduler,
            hashes: true,
            counters: false,
            ping: false,
            longest_retry: Duration::from_secs(1),
        };
        let mut engine = Engine::new(InMemoryKernel::recorder(), facts);
        Kind::ALL.into_iter().for_each(|kind| engine.apply(Event::ListStarted(kind)));
        events.into_iter().for_each(|event| engine.apply(event));
        Kind::ALL.into_iter().for_each(|kind| engine.apply(Event::ListDone(kind)));
        let mut world = World { engine, now: Instant::now() };
        world.sync();
        world
    }

    fn sync(&mut self) {
        assert_eq!(self.engine.sync(self.now).failures, 0);
    }

    /// A second later these connections are open, to endpoints of the port with the number 0, of which so many are new.
    fn counts(&mut self, open: &[(u8, u32, u32)]) {
        self.now += Duration::from_secs(1);
        assert!(self.engine.begin_count(self.now).is_some(), "it is time");
        let of = |(last, open, new): &(u8, u32, u32)| {
            (0, SocketAddr::new(address(*last), 1), Seen { open: *open, new: *new })
        };
        let counts = Counts { seen: open.iter().map(of).collect(), incomplete: false, pause: Duration::from_secs(1) };
        self.engine.hear_counts(Ok(counts), self.now);
        self.sync();
    }

    fn fails(&mut self) -> String {
        self.now += Duration::from_secs(10);
        assert!(self.engine.begin_count(self.now).is_some(), "it is time");
        let said = captured(|| self.engine.hear_counts(Err("no permission".to_owned()), self.now));
        self.sync();
        said
    }

    /// How many slots each endpoint has, of all frontends alike, and whether they are taken in turns.
    fn slots(&self, text: &str) -> Vec<(u8, usize)> {
        let mut all = BTreeSet::new();
        for (_, frontend) in self.engine.installed(Family::V4).frontends_of(&name(text)) {
            for (_, slots) in frontend.action.slots() {
                let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
                for backend in slots.iter() {
                    let IpAddr::V4(address) = backend.address else { panic!("{backend:?}") };
                    *counts.entry(address.octets()[3]).or_default() += 1;
                }
                assert!(matches!(slots.by, By::Turn(_)), "{slots:?}");
                all.insert(counts.into_iter().collect::<Vec<_>>());
            }
        }
        assert_eq!(all.len(), 1, "{all:?}");
        all.pop_first().expect("there is one")
    }
}

const LC: Option<Scheduler> = Some(Scheduler::LeastConnections);

#[test]
fn nothing_is_counted_where_nobody_asks_for_it() {
    let rr = Some(Scheduler::RoundRobin);
    let mut world = World::new(Scheduler::Random, [service("web", 1, rr), slice("web", &[1, 2])]);
    assert_eq!((world.engine.count_at(), world.engine.begin_count(world.now)), (None, None));
    // Now it does, and no more.
    world.engine.apply(service("web", 1, LC));
    assert!(world.engine.begin_count(world.now).is_some());
    world.engine.hear_counts(Ok(Counts { pause: Duration::from_secs(7), ..Counts::default() }), world.now);
    assert_eq!(world.engine.count_at(), Some(world.now + Duration::from_secs(7)));
    world.engine.apply(Event::ServiceGone(name("web")));
    world.now += Duration::from_secs(60);
    assert_eq!((world.engine.count_at(), world.engine.begin_count(world.now)), (None, None));
}

#[test]
fn all_frontends_of_a_port_are_counted_together() {
    let events = [service("a", 1, None), slice("a", &[1, 2]), service("b", 2, Some(Scheduler::Random))];
    let mut world = World::new(Scheduler::NeverQueue, events);
    let tracked = world.engine.begin_count(world.now).expect("it is time");
    let told: Vec<(String, usize)> = tracked.iter().map(|(key, number)| (key.to_string(), *number)).collect();
    let expected = ["tcp 10.96.0.1:80", "tcp 192.0.2.1:80", "tcp node port 30001 (IPv4)"];
    assert_eq!(told, expected.map(|key| (key.to_owned(), 0)));
    assert!(tracked.iter().any(|(key, _)| matches!(key.at, FrontendAt::NodePort(Family::V4))));
    assert!(world.engine.begin_count(world.now).is_none(), "one at a time");
}

#[test]
fn who_has_fewest_gets_most_and_failures_end_that() {
    let mut world = World::new(Scheduler::Random, [service("web", 1, LC), slice("web", &[1, 2, 3])]);
    assert_eq!(world.slots("web"), [(1, 1), (2, 1), (3, 1)], "in turns");
    for _ in 0..8 {
        world.counts(&[(1, 100, 1), (2, 100, 1), (3, 10, 1)]);
    }
    let slots = world.slots("web");
    assert_eq!(slots.iter().map(|(_, slots)| slots).sum::<usize>(), 32);
    assert!(slots.last().is_some_and(|(last, slots)| *last == 3 && *slots >= 20), "{slots:?}");

    // An endpoint that comes between two counts does not wait for the next.
    world.engine.apply(slice("web", &[1, 2, 3, 4]));
    world.sync();
    let slots = world.slots("web");
    assert!(slots.iter().any(|(last, slots)| *last == 4 && *slots > 0), "{slots:?}");
    assert_eq!(slots.iter().map(|(_, slots)| slots).sum::<usize>(), 32);

    let said = world.fails();
    assert!(
        said.contains(
            "open connections cannot be counted: no permission; the endpoints of 1 Services that go by them take turns"
        ),
        "{said}"
    );
    assert_eq!(world.slots("web"), [(1, 1), (2, 1), (3, 1), (4, 1)]);
    assert_eq!(world.fails(), "", "it is said once");
    world.now += Duration::from_secs(10);
    assert!(captured(|| world.counts(&[(1, 100, 100)])).contains("open connections are counted again"));
}

/// What is gained by other slots shall not cost more than the count.
#[test]
fn where_many_slots_change_there_are_fewer_counts() {
    let mut world = World::new(Scheduler::Random, [service("web", 1, LC), slice("web", &[1, 2, 3])]);
    let mut longest = Duration::ZERO;
    for round in 0..12 {
        let few = [(1, 100, 50), (2, 10, 5)];
        let turned = [(1, 10, 5), (2, 100, 50)];
        world.counts(if round % 2 == 0 { &few } else { &turned });
        let next = world.engine.count_at().expect("another follows") - world.now;
        longest = longest.max(next);
        world.now += next;
    }
    // At most 32 slots of each of three frontends.
    assert!(longest == Duration::from_secs(1), "{longest:?}");
    let slots = |shares: &[u32]| {
        (1..)
            .zip(shares)
            .map(|(last, slots)| (Backend { address: address(last), port: NonZeroU16::MIN }, *slots))
            .collect::<Shares>()
    };
    assert_eq!(moved(None, &slots(&[16, 16])), 32);
    assert_eq!(moved(Some(&slots(&[16, 16])), &slots(&[10, 22])), 6);
    assert_eq!(moved(Some(&slots(&[16, 16])), &slots(&[10, 11, 11])), 11);
    assert_eq!(moved(Some(&slots(&[16, 16])), &Shares::new()), 32);
    assert_eq!(moved(Some(&Shares::new()), &Shares::new()), 0);
    // A hundred Services with 30 changes each, in one frontend: more than a second.
    assert!(SLOT * 30 * 100 * PARTS > Duration::from_secs(1));
}

/// To look for stale flows costs a listing of all that there are, more than the count.
#[test]
fn other_slots_are_no_reason_to_look_for_stale_flows() {
    let Event::Service(mut dns) = service("web", 1, LC) else { panic!("it is a Service") };
    dns.ports[0].protocol = Protocol::Udp;
    let Event::Slice { slice: mut of_dns, changed_at } = slice("web", &[1, 2]) else { panic!("it is a slice") };
    of_dns.ports[0].protocol = Protocol::Udp;
    let of_dns = Event::Slice { slice: of_dns, changed_at };
    let mut world = World::new(Scheduler::Random, [Event::Service(dns), of_dns]);
    for _ in 0..8 {
        world.counts(&[(1, 100, 50), (2, 100, 50)]);
    }
    world.now += Duration::from_secs(1);
    assert!(world.engine.begin_count(world.now).is_some());
    let seen = [(1, 100), (2, 80)];
    let seen = seen.map(|(last, open)| (0, SocketAddr::new(address(last), 1), Seen { open, new: 50 })).into();
    world.engine.hear_counts(Ok(Counts { seen, ..Counts::default() }), world.now);
    let report = world.engine.sync(world.now);
    assert_eq!((report.transactions, report.udp), (1, vec![]));
    // Nor if one of them gets none for a while.
    let mut world = world;
    for _ in 0..3 {
        world.now += Duration::from_secs(1);
        assert!(world.engine.begin_count(world.now).is_some());
        let seen = [(1, 500), (2, 10)];
        let seen = seen.map(|(last, open)| (0, SocketAddr::new(address(last), 1), Seen { open, new: 0 })).into();
        world.engine.hear_counts(Ok(Counts { seen, ..Counts::default() }), world.now);
        assert_eq!(world.engine.sync(world.now).udp, vec![]);
    }
    assert_eq!(world.slots("web"), [(2, 32)]);
}

/// What an earlier run has left stays until something is known, and no longer.
#[test]
fn slots_of_an_earlier_run_go_when_nothing_speaks_for_them() {
    let left = || {
        let uneven = Some(Scheduler::WeightedRoundRobin);
        let Event::Slice { slice: mut heavy, changed_at } = slice("web", &[1]) else { panic!("it is a slice") };
        (heavy.name, heavy.weight) = (name("web-2"), 31);
        let heavy = Event::Slice { slice: heavy, changed_at };
        let mut world = World::new(Scheduler::Random, [service("web", 1, uneven), slice("web", &[2]), heavy]);
        world.engine.apply(service("web", 1, LC));
        world.sync();
        assert_eq!(world.slots("web"), [(1, 31), (2, 1)]);
        world
    };
    let mut idle = left();
    idle.counts(&[]);
    assert_eq!(idle.slots("web"), [(1, 1), (2, 1)], "nobody is connected");

    let mut failing = left();
    assert!(failing.fails().contains("take turns"));
    assert_eq!(failing.slots("web"), [(1, 1), (2, 1)], "nothing will be known");

    let mut busy = left();
    busy.counts(&[(1, 100, 100), (2, 100, 100)]);
    assert_eq!(busy.slots("web"), [(1, 31), (2, 1)], "one count says nothing");
    busy.counts(&[(1, 100, 0), (2, 100, 0)]);
    assert_eq!(busy.slots("web"), [(1, 16), (2, 16)]);
}

/// Who is in no slot is gone, to those who forget clients of endpoints that are.
#[test]
fn an_endpoint_that_clients_are_remembered_for_always_has_a_slot() {
    for affinity in [None, Some(60)] {
        let Event::Service(mut web) = service("web", 1, LC) else { panic!("it is a Service") };
        web.affinity = affinity;
        let mut world = World::new(Scheduler::Random, [Event::Service(web), slice("web", &[1, 2, 3])]);
        for _ in 0..8 {
            world.counts(&[(1, 900, 0), (2, 10, 1), (3, 10, 1)]);
        }
        let slots = world.slots("web");
        assert_eq!(slots.iter().map(|(_, slots)| slots).sum::<usize>(), 32);
        let of_first = slots.iter().find(|(last, _)| *last == 1).map(|(_, slots)| *slots);
        assert_eq!(of_first, affinity.map(|_| 1), "{slots:?}");
    }
}

#[test]
fn counts_that_are_never_whole_are_taken_for_failed() {
    let mut world = World::new(Scheduler::Random, [service("web", 1, LC), slice("web", &[1, 2])]);
    for _ in 0..8 {
        world.counts(&[(1, 100, 1), (2, 10, 1)]);
    }
    let mut said = String::new();
    for _ in 0..MOST_INCOMPLETE {
        assert_eq!((world.slots("web").iter().map(|(_, slots)| slots).sum::<usize>(), &*said), (32, ""));
        world.now += Duration::from_secs(1);
        assert!(world.engine.begin_count(world.now).is_some(), "it is time");
        let counts = Counts { incomplete: true, pause: Duration::from_secs(1), ..Counts::default() };
        said = captured(|| world.engine.hear_counts(Ok(counts), world.now));
        world.sync();
    }
    assert!(said.contains("the kernel's list of them is interrupted each time"), "{said}");
    assert_eq!(world.slots("web"), [(1, 1), (2, 1)]);
    world.now += Duration::from_secs(1);
    assert!(captured(|| world.counts(&[(1, 100, 1)])).contains("counted again"));
}

#[test]
fn a_count_that_never_comes_is_taken_for_failed() {
    let mut world = World::new(Scheduler::Random, [service("web", 1, LC), slice("web", &[1, 2])]);
    for _ in 0..8 {
        world.counts(&[(1, 100, 1), (2, 10, 1)]);
    }
    assert_eq!(world.slots("web").iter().map(|(_, slots)| slots).sum::<usize>(), 32);
    world.now += Duration::from_secs(1);
    assert!(world.engine.begin_count(world.now).is_some());
    world.now += Duration::from_secs(59);
    assert!(world.engine.begin_count(world.now).is_none());
    assert_eq!(world.slots("web").iter().map(|(_, slots)| slots).sum::<usize>(), 32, "not yet");
    assert_eq!(world.engine.count_at(), Some(world.now + Duration::from_secs(1)));
    world.now += Duration::from_secs(1);
    let said = captured(|| assert!(world.engine.begin_count(world.now).is_none()));
    assert!(said.contains("there is no answer for a minute"), "{said}");
    world.sync();
    assert_eq!(world.slots("web"), [(1, 1), (2, 1)]);
    assert_eq!(world.engine.count_at(), None, "nobody is woken for it");
    // It comes in the end.
    world.engine.hear_counts(Ok(Counts { pause: Duration::from_secs(1), ..Counts::default() }), world.now);
    assert!(world.engine.count_at().is_some());
}
