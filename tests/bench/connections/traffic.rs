//! Connections from a client to the backend of the same network, both ends on this thread: nothing has to wake up, and
//! every packet is handled before the call that sent it returns.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use socket2::{Domain, Protocol, Socket, Type};

use super::network::Network;

/// So many connections begin a turn and do not count: those that follow a turn in other namespaces are slower.
const WARM_UP: usize = 10;
/// A turn that lost the processor is repeated so often.
const TRIES: usize = 5;

/// A way from the client to a pod.
pub(crate) struct Path<'a> {
    network: &'a Network,
    address: SocketAddr,
}

impl<'a> Path<'a> {
    /// By `address`, which reaches a pod.
    pub(crate) fn new(network: &'a Network, address: SocketAddr) -> Path<'a> {
        Path { network, address }
    }

    /// How long one connection takes from nothing to closed, both ends together; of `count` in a row.
    pub(crate) fn connections(&self, count: usize) -> Duration {
        self.network.enter_client();
        let count_u32 = u32::try_from(count).expect("a small number");
        (0..WARM_UP).for_each(|_| self.connection());
        undisturbed(|| {
            let start = Instant::now();
            (0..count).for_each(|_| self.connection());
            start.elapsed() / count_u32
        })
    }

    fn connection(&self) {
        let client = connect(self.address);
        let accepted = self.network.pods.accept().expect("the connection is there");
        reset(client);
        drop(accepted);
    }

    /// How long each of `count` calls of `connect` takes.
    pub(crate) fn latencies(&self, count: usize) -> Vec<Duration> {
        self.network.enter_client();
        (0..count)
            .map(|_| {
                let client = socket();
                let start = Instant::now();
                client.connect(&self.address.into()).expect("a pod answers");
                let taken = start.elapsed();
                let accepted = self.network.pods.accept().expect("the connection is there");
                reset(client);
                drop(accepted);
                taken
            })
            .collect()
    }

    /// How long a byte there and one back take on a connection that is there; of `count` in a row.
    pub(crate) fn round_trips(&self, count: usize) -> Duration {
        self.network.enter_client();
        let count_u32 = u32::try_from(count).expect("a small number");
        let client = connect(self.address);
        let (mut pod, _) = self.network.pods.accept().expect("the connection is there");
        client.set_tcp_nodelay(true).expect("an option of TCP");
        pod.set_nodelay(true).expect("an option of TCP");
        let mut byte = [0];
        let taken = undisturbed(|| {
            let start = Instant::now();
            for _ in 0..count {
                (&client).write_all(&byte).expect("connected");
                pod.read_exact(&mut byte).expect("connected");
                pod.write_all(&byte).expect("connected");
                (&client).read_exact(&mut byte).expect("connected");
            }
            start.elapsed() / count_u32
        });
        reset(client);
        taken
    }
}

/// Waits until connections to `address` arrive in the backend; whether they do.
pub(crate) fn reached(network: &Network, address: SocketAddr, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    network.enter_client();
    while socket().connect_timeout(&address.into(), Duration::from_millis(200)).is_err() {
        if Instant::now() >= end {
            return false;
        }
    }
    network.pods.accept().expect("the connection is there");
    true
}

fn socket() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket")
}

fn connect(address: SocketAddr) -> Socket {
    let socket = socket();
    socket.connect(&address.into()).expect("a pod answers");
    socket
}

/// Ends a connection so that neither end waits for anything.
fn reset(client: Socket) {
    client.set_linger(Some(Duration::ZERO)).expect("an option of sockets");
}

/// The result of `work` when nobody else took the processor meanwhile, or of the last try.
fn undisturbed<T>(mut work: impl FnMut() -> T) -> T {
    let mut before = switches();
    for _ in 1..TRIES {
        let result = work();
        let after = switches();
        if before == after {
            return result;
        }
        before = after;
    }
    work()
}

/// How often this thread has lost the processor.
fn switches() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("this thread's own figures");
    usage.involuntary_context_switches() + usage.voluntary_context_switches()
}
