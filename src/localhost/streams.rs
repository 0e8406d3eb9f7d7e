//! Connections of TCP and SCTP: each is connected to an endpoint, by way of the tables.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::descriptors::{Descriptors, Taken};
use super::passing::{How, pass};
use super::pipes::Pipes;
use super::plan::{Way, address};
use super::ports::Ports;
use super::sockets::{begin, connected, is_exhausted, new, tune};
use crate::conntrack::{Conntrack, Tuple};
use crate::metrics::Metrics;
use crate::model::{Family, FrontendKey, Protocol};

/// How long an endpoint has to answer while there is another to try.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the last one has.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// How many endpoints are tried.
const TRIES: usize = 3;

/// How long to wait for a descriptor where there is none.
const PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
pub(super) struct Shared {
    pub(super) ports: Ports,
    pub(super) metrics: Arc<Metrics>,
    descriptors: Descriptors,
    pipes: Pipes,
    /// Sockets for connections to come.
    spare: RefCell<BTreeMap<(Protocol, Family), OwnedFd>>,
    /// Asked which endpoint the tables have chosen; opened when that is first wanted.
    flows: RefCell<Option<Conntrack>>,
}

impl Shared {
    pub(super) fn new(ports: Ports, metrics: Arc<Metrics>, descriptors: Descriptors) -> Shared {
        let pipes = Pipes::new(descriptors.clone());
        Shared { ports, metrics, descriptors, pipes, spare: RefCell::default(), flows: RefCell::new(None) }
    }

    /// Takes a connection that waits, with a socket for the other half of it: who is taken shall not wait for a descriptor
    /// that others like him have.
    ///
    /// # Errors
    /// `EMFILE`, and [`ErrorKind::WouldBlock`](io::ErrorKind) if none waits.
    pub(super) fn accept(&self, key: &FrontendKey, listener: &TcpListener) -> io::Result<Accepted> {
        let taken = self.descriptors.take(2).ok_or(Errno::EMFILE)?;
        let place = (key.protocol, key.family());
        let spare = self.spare.borrow_mut().remove(&place);
        let other_half = spare.map_or_else(|| new(key.protocol, address(key)), Ok)?;
        match accept(listener) {
            Ok(client) => Ok(Accepted { client, other_half, _descriptors: taken }),
            Err(error) => {
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.spare.borrow_mut().insert(place, other_half);
                }
                Err(error)
            }
        }
    }

    /// The endpoint to which the tables have translated a connection, if that is known.
    fn chosen(&self, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let mut flows = self.flows.borrow_mut();
        if flows.is_none() {
            *flows = Conntrack::open().inspect_err(|error| debug!("{error}")).ok();
        }
        let found = flows.as_mut()?.reply(protocol, Tuple { source: from, destination: to });
        let reply = found.inspect_err(|error| debug!("{error}")).ok()??;
        Some(reply.source).filter(|endpoint| *endpoint != to)
    }
}

/// A connection that was taken.
pub(super) struct Accepted {
    client: TcpStream,
    /// For the connection to the Service.
    other_half: OwnedFd,
    _descriptors: Taken,
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Serves a client until one of the two sides ends.
pub(super) async fn serve(shared: Rc<Shared>, key: FrontendKey, accepted: Accepted) {
    let Accepted { client, other_half, _descriptors } = accepted;
    let metrics = &shared.metrics.localhost;
    metrics.connections.of(key.protocol).inc();
    tune(key.protocol, &client);
    let way = shared.ports.way(&key);
    let server = match way {
        Some(way) => reach(&shared, &key, way, other_half).await,
        None => None,
    };
    let Some(server) = server else {
        metrics.refused.of(key.protocol).inc();
        // It is closed by a reset: as close to a refusal as a connection can come that has been accepted.
        let _ = client.set_zero_linger();
        return;
    };
    tune(key.protocol, &server);
    let how = if key.protocol == Protocol::Tcp { How::Spliced(&shared.pipes) } else { How::Copied };
    pass([&client, &server], how, metrics.bytes.of(key.protocol), || shared.ports.timeouts().half_closed).await;
}

/// Connects by way of the tables; if the endpoint that they choose does not answer, to others. With affinity, or a hash, the
/// tables would choose the same again.
async fn reach(shared: &Shared, key: &FrontendKey, way: Way, socket: OwnedFd) -> Option<TcpStream> {
    let Way { to, served } = way;
    let mut left: Vec<SocketAddr> = served.endpoints.to_vec();
    let mut tries = TRIES;
    if let Some(to) = to {
        let patience = if left.len() > 1 { PATIENCE } else { LAST_PATIENCE };
        match attempt(socket, to, patience).await {
            Ok(stream) => return Some(stream),
            Err(Failed { from, error }) => {
                debug!("{}: no connection to {to}: {error}", served.port);
                // Of one that is refused at once nobody knows where it was sent: then that one may be among the next.
                if let Some(tried) = from.and_then(|from| shared.chosen(key.protocol, from, to)) {
                    left.retain(|endpoint| *endpoint != tried);
                    tries -= 1;
                }
            }
        }
    }
    for nth in 1..=tries {
        if left.is_empty() {
            return None;
        }
        // Whose turn it is depends on how many have failed before.
        let retries = shared.metrics.localhost.retries.of(key.protocol);
        let endpoint = left.swap_remove(retries.get() as usize % left.len());
        retries.inc();
        let patience = if left.is_empty() || nth == tries { LAST_PATIENCE } else { PATIENCE };
        let socket = descriptor(|| new(key.protocol, endpoint)).await.ok()?;
        match attempt(socket, endpoint, patience).await {
            Ok(stream) => return Some(stream),
            Err(Failed { error, .. }) => debug!("{}: no connection to {endpoint}: {error}", served.port),
        }
    }
    None
}

/// A connection that did not come about.
struct Failed {
    /// Where it came from, if that is known.
    from: Option<SocketAddr>,
    error: io::Error,
}

/// Waits for a descriptor, if there is none just now.
async fn descriptor<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    loop {
        match make() {
            Err(error) if is_exhausted(&error) => sleep(PAUSE).await,
            other => return other,
        }
    }
}

async fn attempt(socket: OwnedFd, to: SocketAddr, patience: Duration) -> Result<TcpStream, Failed> {
    let stream = begin(socket, to).map_err(|error| Failed { from: None, error })?;
    // Later it is not known any more.
    let from = stream.local_addr().ok();
    match timeout(patience, connected(&stream)).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(Failed { from, error }),
        Err(_) => Err(Failed { from, error: io::ErrorKind::TimedOut.into() }),
    }
}
