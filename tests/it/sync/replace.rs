//! A table is replaced in one transaction: connections go on, new ones find their endpoint, clients keep theirs.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::Operation;
use nftproxyd::model::{Event, Family, Service};
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::nftables::{Kernel as _, LinuxKernel, table_flag};
use nftproxyd::ruleset::kept::Kept;
use nftproxyd::ruleset::names::{SetName, TableName};
use nftproxyd::ruleset::read::Remembered;
use nftproxyd::sync::Engine;

use super::refusals::plain;
use crate::netns::try_nft;
use crate::support::cluster::{Cluster, address, endpoints, facts, of_every_kind, plain_service, slice_of};
use crate::support::namespace::Namespace;
use crate::support::nft::nft;

const PATIENCE: Duration = Duration::from_secs(30);
/// When a connection is begun again.
const AGAIN: Duration = Duration::from_secs(5);

/// The addresses of two Services: one with affinity, one without.
const STICKY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 1, 1)), 80);
const PLAIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 1, 2)), 80);

/// They, with three endpoints each, beside others.
fn cluster() -> Cluster {
    let mut cluster = of_every_kind(20, Some(60));
    for service in [Service { affinity: Some(600), ..plain_service(257) }, plain_service(258)] {
        let slice = slice_of(&service.name, Family::V4, endpoints(Family::V4, 3));
        cluster.slices.insert(slice.name.clone(), slice);
        cluster.services.insert(service.name.clone(), service);
    }
    cluster
}

/// Gives the namespace the addresses of the endpoints, each with a server that says which it is and then echoes.
fn serve() {
    let ip = |arguments: &str| {
        let status = std::process::Command::new("ip").args(arguments.split(' ')).status().expect("ip can be run");
        assert!(status.success(), "ip {arguments}");
    };
    ip("link set lo up");
    ip("address add 10.125.0.1/32 dev lo");
    ip("route add 10.96.0.0/12 dev lo src 10.125.0.1");
    for last in 1..=3 {
        let at = SocketAddr::new(address(Family::V4, 10, 124, last), 8080);
        ip(&format!("address add {}/32 dev lo", at.ip()));
        let listener = TcpListener::bind(at).expect("the address is there");
        let answer = move |mut stream: TcpStream| {
            let mut bytes = [0; 1];
            let mut result = stream.write_all(&[last]);
            while result.is_ok() && stream.read_exact(&mut bytes).is_ok() {
                result = stream.write_all(&bytes);
            }
        };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || answer(stream));
            }
        });
    }
}

/// Connects, and says which endpoint has answered.
///
/// A first packet that is just being looked at when the kernel changes from one table to the other finds what it looks up
/// next in neither: it is dropped or goes on untranslated, and its connection may have to be begun again. Seen about once in
/// a hundred replacements under clients that never rest; the window is as long as it takes to look at one packet.
fn connect(to: SocketAddr) -> io::Result<(TcpStream, u8)> {
    let begin = || TcpStream::connect_timeout(&to, AGAIN);
    let mut stream =
        begin().or_else(|error| if error.kind() == io::ErrorKind::TimedOut { begin() } else { Err(error) })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut endpoint = [0];
    stream.read_exact(&mut endpoint)?;
    Ok((stream, endpoint[0]))
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Clients that never rest: one on an old connection, one that makes a new one each time, and one with affinity.
struct Clients {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<Result<usize, String>>>,
}

impl Clients {
    fn start(sticky: u8) -> Clients {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let run = |name: &str, mut each: Box<dyn FnMut() -> io::Result<()> + Send>| {
            let (stop, done, name) = (Arc::clone(&stop), Arc::clone(&done), name.to_owned());
            thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    each().map_err(|error| format!("{name}, after {count}: {error}"))?;
                    count += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(count)
            })
        };
        let mut old = connect(PLAIN).expect("it works before").0;
        let stays = move || match connect(STICKY)?.1 {
            endpoint if endpoint == sticky => Ok(()),
            endpoint => Err(io::Error::other(format!("sent to {endpoint}, not to {sticky}"))),
        };
        let threads = vec![
            run("an old connection", Box::new(move || echo(&mut old))),
            run("new connections", Box::new(|| connect(PLAIN).and_then(|(mut stream, _)| echo(&mut stream)))),
            run("a client with affinity", Box::new(stays)),
        ];
        Clients { stop, done, threads }
    }

    /// Waits until so many more have been served.
    fn wait_for(&self, more: usize) {
        let (from, end) = (self.done.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.done.load(Ordering::Relaxed) < from + more && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|thread| thread.join().expect("no panic"));
        let counts: Vec<usize> = ended.map(|result| result.expect("nothing is lost")).collect();
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        counts.into_iter().sum()
    }
}

/// What the kernel remembers of clients.
fn remembered(kernel: &mut LinuxKernel) -> Vec<Kept> {
    kernel.kept(Family::V4, PATIENCE, &mut |_| true).expect("a dump").clients
}

/// What others can do to the table that makes it one to be replaced, and packets do not notice.
const REASONS: [(&str, &str); 3] = [
    ("an object", "add counter ip nftproxyd theirs"),
    (
        "another shape of a set",
        "flush set ip nftproxyd nodeport-ips
add set ip nftproxyd theirs { type ipv4_addr; }
add counter ip nftproxyd theirs",
    ),
    (
        "another hook of a chain",
        "flush chain ip nftproxyd nat-input
delete chain ip nftproxyd nat-input
add chain ip nftproxyd nat-input { type nat hook input priority 7; }",
    ),
];

#[test]
fn nothing_is_lost_when_a_table_is_replaced() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        serve();
        let mut engine = cluster().engine(LinuxKernel::open().expect("a socket"), facts(NodePortAddresses::Primary));
        let report = engine.sync(Instant::now());
        assert_eq!((report.failures, report.error_text()), (0, String::new()));
        let sticky = connect(STICKY).expect("it works").1;
        // The client comes again now and then, which starts its time anew: these are clients that do not.
        nft(
            &["-f", "-"],
            "add element ip nftproxyd affinity { \
                10.125.0.9 . 10.96.1.1 . tcp . 80 timeout 600s expires 300s : 10.124.0.2 . 8080, \
                10.125.0.8 . 10.96.1.1 . tcp . 80 timeout 600s expires 300s : 10.124.0.77 . 8080 }",
        );
        let clients = Clients::start(sticky);
        clients.wait_for(100);
        for round in 0..2 {
            for (what, commands) in REASONS {
                nft(&["-f", "-"], commands);
                engine.distrust(Family::V4);
                let report = engine.sync(Instant::now());
                assert_eq!((report.failures, report.error_text()), (0, String::new()), "{what}");
                assert_eq!(report.transactions, 1, "{what}, round {round}: all at once");
                let listing = nft(&["list", "table", "ip", "nftproxyd"], "");
                assert!(!listing.contains("theirs") && !listing.contains("priority 7"), "{what}: it is replaced");
                let all = remembered(engine.kernel());
                let of = |last| all.iter().filter(move |kept| kept.client.client == address(Family::V4, 10, 125, last));
                // With what was left of its time, and what is listed of it.
                let [kept] = of(9).collect::<Vec<_>>()[..] else {
                    panic!("{what}: {all:#?}\n{}", nft(&["list", "map", "ip", "nftproxyd", "affinity"], ""))
                };
                assert_eq!(kept.timeout, Duration::from_secs(600), "{what}");
                let left = kept.expires;
                assert!(Duration::from_secs(200) < left && left <= Duration::from_secs(300), "{what}: {left:?}");
                let map = nft(&["list", "map", "ip", "nftproxyd", "affinity"], "");
                assert!(map.contains("10.125.0.9 . 10.96.1.1 . tcp . 80 timeout 10m expires"), "{map}");
                assert_eq!(of(8).count(), 0, "{what}: its endpoint serves nobody");
                assert_eq!(of(1).count(), 1, "{what}: {all:?}");
                clients.wait_for(50);
            }
        }
        println!("{} connections and echoes", clients.end());
    });
}

/// An engine that has been told all, and owns the tables or does not.
fn engine(own: bool) -> Engine<LinuxKernel> {
    let mut engine = cluster().engine(LinuxKernel::open().expect("a socket"), facts(NodePortAddresses::Primary));
    engine.own_tables(own);
    engine
}

/// Whether tables can have an owner; said loudly where they cannot.
fn can_own() -> bool {
    let can_own = LinuxKernel::open().expect("a socket").can_own().expect("it can be asked");
    if !can_own {
        writeln!(io::stderr(), "skipped: no tables that persist").expect("a standard error");
    }
    can_own
}

#[test]
fn nothing_is_lost_when_a_table_becomes_owned_and_is_given_up_again() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        if !can_own() {
            return;
        }
        serve();
        assert_eq!(engine(false).sync(Instant::now()).failures, 0);
        let sticky = connect(STICKY).expect("it works").1;
        let clients = Clients::start(sticky);
        clients.wait_for(100);
        for round in 0..6 {
            let mut engine = engine(true);
            let report = engine.sync(Instant::now());
            assert_eq!((report.failures, report.error_text()), (0, String::new()), "round {round}");
            assert_eq!(report.transactions, 2, "round {round}: all at once, in each family");
            assert!(Family::ALL.into_iter().all(|family| engine.owns(family)), "round {round}");
            assert!(try_nft(&["delete", "table", "ip", "nftproxyd"], "").is_err(), "round {round}");
            assert_eq!(remembered(engine.kernel()).len(), 1, "round {round}");
            clients.wait_for(50);
            // Reading back finds nothing to do; nobody can have touched it.
            engine.distrust(Family::V4);
            assert!(!engine.is_behind(), "round {round}");
            let report = engine.disown_tables(Instant::now());
            assert_eq!((report.failures, report.error_text()), (0, String::new()), "round {round}");
            assert_eq!(report.transactions, 2, "round {round}: all at once, in each family");
            assert!(!engine.owns(Family::V4) && !engine.owns(Family::V6), "round {round}");
            assert!(!nft(&["list", "ruleset"], "").contains("flags owner"), "round {round}");
            assert_eq!(remembered(engine.kernel()).len(), 1, "round {round}");
            clients.wait_for(50);
            engine.distrust(Family::V4);
        }
        // What was left is what is wanted.
        assert_eq!(engine(false).sync(Instant::now()).operations, 0);
        println!("{} connections and echoes", clients.end());
    });
}

#[test]
fn the_next_owner_waits_for_the_end_of_the_one_before() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        if !can_own() {
            return;
        }
        let mut first = engine(true);
        assert_eq!(first.sync(Instant::now()).failures, 0);
        let mut second = engine(true);
        let mut now = Instant::now();
        for attempt in 0..20 {
            let report = second.sync(now);
            assert!(report.error_text().contains("belongs to netlink port"), "{attempt}: {}", report.error_text());
            let wake = second.wake_at().expect("another attempt");
            assert!(wake <= now + Duration::from_millis(100), "attempt {attempt}: in {:?}", wake - now);
            now = wake;
        }
        assert!(!second.is_in_line());
        assert_eq!(first.sync(Instant::now()).failures, 0, "the first is not disturbed");
        drop(first);
        let report = second.sync(now);
        assert_eq!((report.failures, report.operations), (0, 2), "{}", report.error_text());
        assert!(second.is_in_line() && Family::ALL.into_iter().all(|family| second.owns(family)));
    });
}

#[test]
fn a_table_is_owned_in_memory_as_in_the_kernel() {
    let mut engine = cluster().engine(InMemoryKernel::new(), facts(NodePortAddresses::Primary));
    engine.own_tables(true);
    assert_eq!(engine.sync(Instant::now()).failures, 0);
    let mut kernel = std::mem::take(engine.kernel());
    assert_eq!(kernel.flags_of(Family::V4), Some(table_flag::OWNED));
    kernel.close();
    assert_eq!(kernel.flags_of(Family::V4), Some(table_flag::PERSIST));
    let mut engine = cluster().engine(kernel, facts(NodePortAddresses::Primary));
    engine.own_tables(true);
    let report = engine.sync(Instant::now());
    assert_eq!((report.failures, report.operations), (0, 2), "{}", report.error_text());
    assert_eq!(engine.disown_tables(Instant::now()).failures, 0);
    assert_eq!(engine.kernel().flags_of(Family::V6), Some(0));
}

#[test]
fn who_loses_its_endpoint_meanwhile_is_not_taken_along() {
    let mut engine = cluster().engine(InMemoryKernel::new(), facts(NodePortAddresses::Primary));
    assert_eq!(engine.sync(Instant::now()).failures, 0);
    let client = |endpoint, port| Remembered {
        client: address(Family::V4, 10, 125, endpoint),
        destination: STICKY.ip(),
        protocol: nftproxyd::model::Protocol::Tcp,
        port,
        backend: nftproxyd::ruleset::backend::Backend {
            address: address(Family::V4, 10, 124, endpoint),
            port: crate::support::cluster::port(8080),
        },
    };
    for endpoint in 1..=3 {
        let client = client(endpoint, crate::support::cluster::port(80));
        let element = Kept { client, timeout: PATIENCE, expires: PATIENCE }.element();
        assert_eq!(Remembered::read(&element), Some(client));
        engine.kernel().put(Family::V4, SetName::Affinity, element);
    }
    engine.kernel().add_foreign_object(Family::V4, "counter theirs");
    let service = plain_service(257);
    engine.apply(Event::from(slice_of(&service.name, Family::V4, endpoints(Family::V4, 2))));
    engine.distrust(Family::V4);
    engine.kernel().take_committed();
    assert_eq!(engine.sync(Instant::now()).failures, 0);
    let [transaction] = &engine.kernel().take_committed()[..] else { panic!("it is one transaction") };
    let text = transaction.text(TableName::NODE);
    let line = "10.125.0.1 . 10.96.1.1 . tcp . 80 timeout 60000ms expires 30000ms : ";
    assert!(text.contains(line), "{text}");
    let remembered = engine.kernel().elements_of(Family::V4, SetName::Affinity);
    let endpoints: Vec<_> = remembered.iter().filter_map(Remembered::read).map(|it| it.backend.address).collect();
    assert_eq!(endpoints, [1, 2].map(|last| address(Family::V4, 10, 124, last)));
}

/// To read a set takes the kernel a time in proportion to the square of its size. What is large is written anew at a start,
/// but never later, and read nevertheless where the kernel does not take it at once.
#[test]
fn a_large_table_is_written_anew_at_a_start() {
    // 150,000 endpoints of IPv4, and none of IPv6.
    let mut cluster = plain(600);
    cluster.slices.values_mut().for_each(|slice| {
        *slice = slice_of(&slice.service, Family::V4, endpoints(Family::V4, 250));
    });
    let start = |kernel| {
        let mut engine = cluster.engine(kernel, facts(NodePortAddresses::Primary));
        engine.own_tables(true);
        let report = engine.sync(Instant::now());
        assert_eq!(report.failures, 0, "{}", report.error_text());
        assert!(engine.is_in_line());
        (engine, report)
    };
    let lost = |mut kernel: InMemoryKernel| {
        kernel.close();
        kernel.take_committed();
        kernel
    };
    let (mut engine, _) = start(InMemoryKernel::new());
    let whole = |kernel: &InMemoryKernel| kernel.elements_of(Family::V4, SetName::Endpoints);
    let wanted = whole(engine.kernel());
    assert_eq!(wanted.len(), 150_000);

    let (mut engine, report) = start(lost(std::mem::take(engine.kernel())));
    assert!(report.operations > 150_000, "{}", report.operations);
    let committed = engine.kernel().take_committed();
    let of = |family| committed.iter().filter(|one| one.family == family).collect::<Vec<_>>();
    let [adopted, anew] = of(Family::V4)[..] else { panic!("{}", of(Family::V4).len()) };
    assert_eq!((adopted.len(), of(Family::V6).len()), (1, 1), "the small one is read");
    assert!(anew.operations.contains(&Operation::DeleteTable) && anew.len() > 150_000);
    assert_eq!(whole(engine.kernel()), wanted);

    // Nobody wants it anew a second time, whether or not it had to be replaced at the start.
    for flags in [0, table_flag::PERSIST] {
        let mut kernel = std::mem::take(engine.kernel());
        Family::ALL.into_iter().for_each(|family| kernel.set_flags(family, flags));
        engine = cluster.engine(kernel, facts(NodePortAddresses::Primary));
        assert_eq!(engine.sync(Instant::now()).failures, 0);
        engine.distrust(Family::V4);
        let report = engine.sync(Instant::now());
        assert!(report.families.v4.is_some_and(|family| family.full) && report.operations == 0, "{flags}");
    }

    // The kernel refuses so much at once: nothing is deleted.
    let mut kernel = lost(std::mem::take(engine.kernel()));
    kernel.set_flags(Family::V4, table_flag::PERSIST);
    kernel.set_flags(Family::V6, table_flag::PERSIST);
    kernel.on_commit(|kernel, transaction| {
        if transaction.len() > 100_000 {
            kernel.refuse(SetName::Endpoints, None);
        } else {
            kernel.accept_all();
        }
        None
    });
    let (mut engine, report) = start(kernel);
    assert_eq!(report.operations, 2);
    assert!(!engine.kernel().committed().iter().any(|one| one.operations.contains(&Operation::DeleteTable)));
    assert_eq!(whole(engine.kernel()), wanted);
}
