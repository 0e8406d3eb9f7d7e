//! Connections of TCP and SCTP: each is connected to an endpoint, by way of the tables.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::Ports;
use super::passing::{How, pass};
use super::pipes::Pipes;
use super::plan::Way;
use super::sockets::{begin, connected, tune};
use crate::conntrack::{Conntrack, Tuple};
use crate::metrics::Metrics;
use crate::model::{FrontendKey, Protocol};

/// How long an endpoint has to answer while there is another to try.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the last one has.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// How many endpoints are tried.
const TRIES: usize = 3;

/// What all connections share.
pub(super) struct Shared {
    pub(super) ports: Ports,
    pub(super) metrics: Arc<Metrics>,
    pipes: Pipes,
    /// Asked which endpoint the tables have chosen; opened when that is first wanted.
    flows: RefCell<Option<Conntrack>>,
}

impl Shared {
    pub(super) fn new(ports: Ports, metrics: Arc<Metrics>) -> Shared {
        Shared { ports, metrics, pipes: Pipes::default(), flows: RefCell::new(None) }
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

/// Serves a client until one of the two sides ends.
pub(super) async fn serve(shared: Rc<Shared>, key: FrontendKey, client: TcpStream) {
    let metrics = &shared.metrics.localhost;
    metrics.connections.of(key.protocol).inc();
    tune(key.protocol, &client);
    let way = shared.ports.way(&key);
    let server = match way {
        Some(way) => reach(&shared, &key, way).await,
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
async fn reach(shared: &Shared, key: &FrontendKey, way: Way) -> Option<TcpStream> {
    let Way { to, served } = way;
    let mut left: Vec<SocketAddr> = served.endpoints.to_vec();
    if let Some(to) = to {
        let patience = if left.len() > 1 { PATIENCE } else { LAST_PATIENCE };
        match attempt(key.protocol, to, patience).await {
            Ok(stream) => return Some(stream),
            Err(Failed { from, error }) => {
                debug!("{}: no connection to {to}: {error}", served.port);
                if let Some(tried) = from.and_then(|from| shared.chosen(key.protocol, from, to)) {
                    left.retain(|endpoint| *endpoint != tried);
                }
            }
        }
    }
    for nth in 1..TRIES {
        if left.is_empty() {
            return None;
        }
        // Whose turn it is depends on how many have failed before.
        let retries = shared.metrics.localhost.retries.of(key.protocol);
        let endpoint = left.swap_remove(retries.get() as usize % left.len());
        retries.inc();
        let patience = if left.is_empty() || nth + 1 == TRIES { LAST_PATIENCE } else { PATIENCE };
        match attempt(key.protocol, endpoint, patience).await {
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

async fn attempt(protocol: Protocol, to: SocketAddr, patience: Duration) -> Result<TcpStream, Failed> {
    let stream = begin(protocol, to).map_err(|error| Failed { from: None, error })?;
    // Later it is not known any more.
    let from = stream.local_addr().ok();
    match timeout(patience, connected(&stream)).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(Failed { from, error }),
        Err(_) => Err(Failed { from, error: io::ErrorKind::TimedOut.into() }),
    }
}
