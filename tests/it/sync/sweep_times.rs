//! How long changes wait while the clients of an endpoint that is gone are looked for and forgotten. Run it alone, better
//! in release mode: `cargo test --release --test it sweep_times -- --ignored --nocapture`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::{Event, Family, ObjectName, Protocol, Service};
use nftproxyd::nftables::{Kernel as _, LinuxClients, LinuxKernel};
use nftproxyd::ruleset::backend::Backend;
use nftproxyd::ruleset::kept::Kept;
use nftproxyd::ruleset::names::TableName;
use nftproxyd::ruleset::read::Remembered;
use nftproxyd::sync::{self, Counter, Counts, Engine, Inputs, Observer, Reader, Report};
use tokio::sync::{mpsc, watch};

use crate::netns::in_namespace;
use crate::support::cluster::{address, endpoints, facts, ip, of_every_kind, plain_service, port, ready, slice_of};

const SERVICES: u16 = 1_000;
const PERIOD: Duration = Duration::from_millis(2);
const HOUR: Duration = Duration::from_secs(3_600);

/// Tells of the end of each sync, and of what is forgotten.
struct Tell {
    synced: blocking::Sender<BTreeSet<ObjectName>>,
    /// When clients were last forgotten.
    forgot: Arc<Mutex<Option<Instant>>>,
}

impl Observer<LinuxKernel> for Tell {
    fn hears(&mut self, _: &Engine<LinuxKernel>, _: &Event) {}

    fn queued(&mut self, _: &Engine<LinuxKernel>) {}

    fn begins(&mut self, _: &Engine<LinuxKernel>) {}

    fn synced(&mut self, _: &Engine<LinuxKernel>, report: &Report) {
        if !report.services.is_empty() {
            let _ = self.synced.send(report.services.clone());
        }
    }

    fn forgot(&mut self, _: &Engine<LinuxKernel>, report: &Report) {
        if report.operations > 0 {
            *self.forgot.lock().expect("no panic") = Some(Instant::now());
        }
    }
}

/// The nth client of the first Service, and where it is sent: to each of three endpoints in turn.
fn client(nth: u32) -> Kept {
    let last = u8::try_from(nth % 3 + 1).expect("small");
    let backend = Backend { address: address(Family::V4, 10, 124, last), port: port(8080) };
    let client = IpAddr::from(Ipv4Addr::from(0x1400_0000 + nth));
    let (destination, protocol) = (ip("10.96.0.0"), Protocol::Tcp);
    Kept { client: Remembered { client, destination, protocol, port: port(80), backend }, timeout: HOUR, expires: HOUR }
}

fn changed(service: u16, round: u32) -> Event {
    let last = u8::try_from(round % 200 + 10).expect("small");
    Event::from(slice_of(&plain_service(service).name, Family::V4, vec![ready(address(Family::V4, 10, 124, last))]))
}

/// How long changes of other Services took, sorted: for so long, one by one, while the first has lost an endpoint.
fn run(clients: u32, length: Duration) -> (Vec<Duration>, Option<Duration>) {
    let mut cluster = of_every_kind(0, None);
    for index in 0..SERVICES {
        let service = Service { affinity: (index == 0).then_some(3_600), ..plain_service(index) };
        let slice = slice_of(&service.name, Family::V4, endpoints(Family::V4, 3));
        cluster.slices.insert(slice.name.clone(), slice);
        cluster.services.insert(service.name.clone(), service);
    }
    let kernel = LinuxKernel::open().expect("a netlink socket");
    let mut engine = cluster.engine(kernel, facts(NodePortAddresses::All));
    assert_eq!(engine.sync(Instant::now()).failures, 0);
    let (events, receiver) = mpsc::channel(100);
    let (_addresses, addresses) = watch::channel(cluster.addresses.clone());
    let (_disturbances, disturbances) = mpsc::channel(1);
    let (told, synced) = blocking::channel();
    let forgot = Arc::new(Mutex::new(None));
    let mut tell = Tell { synced: told, forgot: Arc::clone(&forgot) };
    let looking = thread::spawn(move || {
        // It is in the namespace of the thread that makes it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let inputs = Inputs {
            events: receiver,
            addresses,
            node_ports: watch::channel(NodePortAddresses::default()).1,
            servers: watch::channel(BTreeSet::new()).1,
            disturbances,
            clients: Reader::spawn(LinuxClients::of(TableName::NODE)).expect("a thread"),
            connections: Counter::spawn(|_| Ok(Counts::default())).expect("a thread"),
            questions: mpsc::channel(1).1,
        };
        runtime.block_on(sync::run(&mut engine, inputs, Duration::ZERO, &mut tell));
    });
    let change = |service: u16, round| {
        let start = Instant::now();
        events.blocking_send(changed(service, round)).expect("the loop runs");
        while !synced.recv().expect("it is synced").contains(&plain_service(service).name) {}
        start.elapsed()
    };
    let two = [1, 3].map(|last| ready(address(Family::V4, 10, 124, last)));
    // The looks of the start are over, before there is much to see.
    change(901, 1);
    thread::sleep(Duration::from_secs(3));
    let mut other = LinuxKernel::open().expect("a netlink socket");
    for from in (0..clients).step_by(5_000) {
        let some = (from..clients.min(from + 5_000)).map(client).collect();
        let operations = vec![Operation::Remember(some)];
        other.commit(&Transaction { family: Family::V4, operations }).expect("there is room");
    }
    let start = Instant::now();
    events.blocking_send(Event::from(slice_of(&plain_service(0).name, Family::V4, two.into()))).expect("the loop runs");
    thread::sleep(Duration::from_millis(2));
    let mut times = vec![change(950, 1)];
    eprintln!("{clients} clients: the next change after that of the endpoint took {:?}", times[0]);
    let mut round = 0;
    while start.elapsed() < length {
        round += 1;
        times.push(change(u16::try_from(1 + round % 900).expect("small"), round));
        thread::sleep(PERIOD);
    }
    drop(events);
    looking.join().expect("no panic");
    times.sort_unstable();
    let forgotten = forgot.lock().expect("no panic").map(|at| at.saturating_duration_since(start));
    (times, forgotten)
}

#[test]
#[ignore = "a measurement"]
fn measure_sweep_times() {
    in_namespace(|| {
        for clients in [0, 10_000, 150_000, 262_000] {
            let mut kernel = LinuxKernel::open().expect("a netlink socket");
            let (times, forgotten) = run(clients, Duration::from_secs(12));
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
            eprintln!(
                "{clients} clients: {} changes, p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}; forgotten after {forgotten:?}",
                times.len(),
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0)
            );
            let operations = vec![Operation::DeleteTable];
            kernel.commit(&Transaction { family: Family::V4, operations: operations.clone() }).expect("it is there");
            kernel.commit(&Transaction { family: Family::V6, operations }).expect("it is there");
        }
    });
}
