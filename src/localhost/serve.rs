//! The thread that serves node ports on localhost.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::datagrams::{Datagrams, client_of};
use super::descriptors::Descriptors;
use super::listeners::{Keeper, Listeners};
use super::poll::Poll;
use super::ports::Ports;
use super::sockets::{Listener, is_exhausted};
use super::streams::{Shared, serve};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::model::FrontendKey;
use crate::threads;

/// So many ports are opened or closed before connections have a turn.
const CHANGES_AT_ONCE: usize = 128;

/// How many connections of a port are taken before others have a turn.
const ACCEPTED_AT_ONCE: usize = 64;

/// How long nobody is served anew when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(200);

/// What there is outside of it.
pub struct Outside {
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// To whom it is said that a port cannot be listened on.
    pub events: Events,
    /// Who keeps sockets open.
    pub keeper: Box<dyn Keeper + Send>,
    /// Sockets that it has kept, by name.
    pub kept: Vec<(String, OwnedFd)>,
}

/// Starts the thread. It serves for as long as the process lives.
///
/// # Errors
/// There is no thread to be had.
pub fn spawn(ports: Ports, outside: Outside) -> io::Result<()> {
    threads::spawn("localhost", move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => return warn!("node ports on localhost cannot be served: {error}"),
        };
        let tasks = LocalSet::new();
        if let Err(error) = runtime.block_on(tasks.run_until(run(ports, outside))) {
            warn!("node ports on localhost are not served any more: {error}");
        }
    })?;
    Ok(())
}

async fn run(ports: Ports, outside: Outside) -> io::Result<()> {
    let Outside { metrics, events, keeper, kept } = outside;
    let poll = Poll::new()?;
    let descriptors = Descriptors::of_process();
    let shared = Rc::new(Shared::new(ports.clone(), Arc::clone(&metrics), descriptors.clone()));
    let mut datagrams = Datagrams::new(ports.clone(), Arc::clone(&metrics), descriptors.clone());
    let mut listeners = Listeners::new(ports.clone(), metrics, descriptors, (events, keeper), kept);
    let mut exhausted = Exhausted::default();
    loop {
        let (changes, settled) = ports.changes(CHANGES_AT_ONCE);
        let more = changes.len() == CHANGES_AT_ONCE;
        for (key, wanted) in changes {
            if wanted {
                listeners.open(&poll, key);
            } else if listeners.close(&poll, &key) {
                datagrams.closed(&poll, &key);
            }
        }
        if settled {
            listeners.settle();
        }
        listeners.try_again(&poll);
        let wake = [datagrams.expire(&poll), listeners.next_attempt(), exhausted.until];
        let wake = if more { Some(Instant::now()) } else { wake.into_iter().flatten().min() };
        let wake = async {
            match wake {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let ready = tokio::select! {
            () = ports.changed() => Vec::new(),
            () = wake => Vec::new(),
            ready = poll.ready(), if exhausted.is_over() => ready?,
        };
        for number in ready {
            if let Some(client) = client_of(number) {
                datagrams.answers(&poll, client, |key| listeners.datagrams(key));
                continue;
            }
            match listeners.get(number) {
                Some((key, Listener::Stream(listener))) => exhausted.note(take(&shared, key, listener)),
                Some((key, Listener::Datagram(listener))) => datagrams.questions(&poll, key, listener),
                None => {}
            }
        }
        yield_now().await;
    }
}

/// Takes connections that wait.
fn take(shared: &Rc<Shared>, key: &FrontendKey, listener: &TcpListener) -> io::Result<()> {
    for _ in 0..ACCEPTED_AT_ONCE {
        match shared.accept(key, listener) {
            Ok(accepted) => drop(spawn_local(serve(Rc::clone(shared), *key, accepted))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // The socket itself is of no use: whatever has become of it, nothing spins.
            Err(error) if is_exhausted(&error) || error.kind() == ErrorKind::InvalidInput => return Err(error),
            // The client has gone again.
            Err(_) => {}
        }
    }
    Ok(())
}

/// Whether there are no descriptors left. Connections wait meanwhile; nothing spins.
#[derive(Debug, Default)]
struct Exhausted {
    until: Option<Instant>,
    said: bool,
}

impl Exhausted {
    fn is_over(&mut self) -> bool {
        if self.until.is_some_and(|until| until <= Instant::now()) {
            self.until = None;
        }
        self.until.is_none()
    }

    fn note(&mut self, taken: io::Result<()>) {
        match taken {
            Ok(()) if self.said && self.until.is_none() => {
                self.said = false;
                info!("connections to node ports on localhost are taken again");
            }
            Ok(()) => {}
            Err(error) => {
                self.until = Some(Instant::now() + PAUSE);
                if !std::mem::replace(&mut self.said, true) {
                    let fix = match is_exhausted(&error) {
                        true => "; raise the limit (LimitNOFILE= of the unit, or ulimit -Hn)",
                        false => "",
                    };
                    warn!("connections to node ports on localhost have to wait: {error}{fix}");
                }
            }
        }
    }
}
