//! The sockets that listen: opened and closed as the Services have it, and tried again where somebody else has the port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::descriptors::{Descriptors, Taken};
use super::plan::{address, name, named};
use super::poll::Poll;
use super::ports::Ports;
use super::sockets::Listener;
use crate::events::{Events, Notice};
use crate::listening::who_listens;
use crate::metrics::Metrics;
use crate::model::{Family, FrontendKey, PerFamily, Protocol};

/// The first pause before a port is tried again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Of so many busy ports it is found out who has them, which goes through the descriptors of all processes.
const FOUND_OUT: usize = 10;

/// Who keeps sockets open while there is no process of ours: the service manager, if it does.
pub trait Keeper {
    /// A socket is open, under this name.
    fn keep(&self, name: &str, socket: BorrowedFd<'_>);
    /// It is not wanted any more.
    fn forget(&self, name: &str);
}

/// A port that could not be listened on.
#[derive(Debug)]
struct Failing {
    pause: Duration,
    at: Instant,
    /// Whether it was said that somebody else has it.
    told: bool,
}

/// A port that is listened on.
struct Open {
    key: FrontendKey,
    listener: Listener,
    _descriptors: Taken,
}

/// All that are open, and those that shall be.
pub(super) struct Listeners {
    ports: Ports,
    metrics: Arc<Metrics>,
    events: Events,
    keeper: Box<dyn Keeper>,
    next: u64,
    numbers: BTreeMap<FrontendKey, u64>,
    descriptors: Descriptors,
    open: HashMap<u64, Open>,
    counts: PerFamily<usize>,
    failing: BTreeMap<FrontendKey, Failing>,
    due: BTreeSet<(Instant, FrontendKey)>,
    found_out: usize,
    /// What was said of all ports of a protocol and family: the kernel does not have it, or there are no descriptors.
    said: BTreeSet<(Protocol, Family, i32)>,
    /// Open since before this process was; not all may be wanted.
    inherited: BTreeMap<FrontendKey, Listener>,
}

impl Listeners {
    /// None but those that are `inherited`, by name.
    pub(super) fn new(
        ports: Ports,
        metrics: Arc<Metrics>,
        descriptors: Descriptors,
        (events, keeper): (Events, Box<dyn Keeper>),
        inherited: Vec<(String, OwnedFd)>,
    ) -> Listeners {
        let mut taken_over = BTreeMap::new();
        for (name, socket) in inherited {
            // Of what has another name nobody knows whose it is.
            let Some(key) = named(&name) else { continue };
            match Listener::inherited(&key, socket) {
                Some(listener) => drop(taken_over.insert(key, listener)),
                None => {
                    warn!("the service manager has kept as {name} what is not that; it is not used");
                    keeper.forget(&name);
                }
            }
        }
        if !taken_over.is_empty() {
            info!("{} sockets of node ports on localhost have stayed open since before the start", taken_over.len());
        }
        Listeners {
            ports,
            metrics,
            events,
            keeper,
            descriptors,
            next: 0,
            numbers: BTreeMap::new(),
            open: HashMap::new(),
            counts: PerFamily::default(),
            failing: BTreeMap::new(),
            due: BTreeSet::new(),
            found_out: 0,
            said: BTreeSet::new(),
            inherited: taken_over,
        }
    }

    /// The port with this number, and its socket.
    pub(super) fn get(&self, number: u64) -> Option<(&FrontendKey, &Listener)> {
        self.open.get(&number).map(|open| (&open.key, &open.listener))
    }

    /// A UDP port's socket.
    pub(super) fn datagrams(&self, key: &FrontendKey) -> Option<&UdpSocket> {
        match &self.open.get(self.numbers.get(key)?)?.listener {
            Listener::Datagram(socket) => Some(socket),
            Listener::Stream(_) => None,
        }
    }

    /// A port is wanted from now on.
    pub(super) fn open(&mut self, poll: &Poll, key: FrontendKey) {
        if !self.numbers.contains_key(&key) && !self.failing.contains_key(&key) {
            self.attempt(poll, key);
        }
    }

    /// A port is not wanted any more; says whether it was open. Connections go on.
    pub(super) fn close(&mut self, poll: &Poll, key: &FrontendKey) -> bool {
        if let Some(failing) = self.failing.remove(key) {
            self.due.remove(&(failing.at, *key));
        }
        let listener = self.numbers.remove(key).and_then(|number| self.open.remove(&number));
        let Some(Open { listener, .. }) = listener else { return false };
        poll.remove(&listener);
        listener.end();
        self.keeper.forget(&name(key));
        self.count(key.family(), -1);
        true
    }

    /// Closes what has stayed open and is not wanted. To be called when all is known that is.
    pub(super) fn settle(&mut self) {
        for (key, listener) in std::mem::take(&mut self.inherited) {
            listener.end();
            self.keeper.forget(&name(&key));
        }
    }

    /// When one is to be tried again.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Tries one again that is due, if any is.
    pub(super) fn try_again(&mut self, poll: &Poll) {
        if let Some((at, key)) = self.due.first().copied()
            && at <= Instant::now()
        {
            self.due.remove(&(at, key));
            self.attempt(poll, key);
        }
    }

    fn attempt(&mut self, poll: &Poll, key: FrontendKey) {
        let is_new = !self.inherited.contains_key(&key);
        let descriptors = self.descriptors.take(1).ok_or(Errno::EMFILE.into());
        let opened = descriptors.and_then(|descriptors| {
            let listener = self.inherited.remove(&key).map_or_else(|| Listener::open(&key), Ok)?;
            Ok(Open { key, listener, _descriptors: descriptors })
        });
        // Those of clients are odd.
        let number = self.next << 1;
        match opened.and_then(|open| poll.add(&open.listener, number).map(|()| open)) {
            Ok(open) => {
                self.next += 1;
                if is_new {
                    self.keeper.keep(&name(&key), open.listener.as_fd());
                }
                self.numbers.insert(key, number);
                self.open.insert(number, open);
                self.count(key.family(), 1);
                if self.failing.remove(&key).is_some() {
                    info!("{}: {} is listened on now", self.whose(&key), place(&key));
                }
            }
            Err(error) => self.failed(key, &error),
        }
    }

    fn failed(&mut self, key: FrontendKey, error: &io::Error) {
        self.metrics.localhost.failures[key.family()].inc();
        let errno = error.raw_os_error().unwrap_or_default();
        let told = self.failing.get(&key).is_some_and(|failing| failing.told);
        let is_busy = errno == libc::EADDRINUSE;
        match errno {
            libc::EADDRINUSE if !told => {
                let who = self.who_has(&key);
                let note = format!("cannot listen on {}: {error}{who}", place(&key));
                let served = self.ports.way(&key).map(|way| way.served);
                warn!("{}: {note}; it is tried again", self.whose(&key));
                if let Some(served) = served {
                    self.events.say(Notice::localhost_failed(served.port.service.clone(), note));
                }
            }
            libc::EADDRINUSE => {}
            // One line for all.
            _ => {
                if self.said.insert((key.protocol, key.family(), errno)) {
                    let again = if never(errno) { "" } else { "; it is tried again" };
                    warn!("node ports of {} are not served on {}: {error}{again}", key.protocol, address(&key).ip());
                }
            }
        }
        let (first, longest) = PAUSES;
        let pause = self.failing.get(&key).map_or(first, |failing| (failing.pause * 2).min(longest));
        let at = Instant::now() + pause;
        self.failing.insert(key, Failing { pause, at, told: told || is_busy });
        if !never(errno) {
            self.due.insert((at, key));
        }
    }

    /// Who has a port, for a line of the log; nothing if that cannot be told.
    fn who_has(&mut self, key: &FrontendKey) -> String {
        if self.found_out >= FOUND_OUT {
            return String::new();
        }
        self.found_out += 1;
        let at = address(key);
        let found = who_listens(Path::new("/"), key.protocol, at.ip(), at.port()).ok().flatten();
        found.and_then(|listening| listening.process).map(|process| format!(" ({process} has it)")).unwrap_or_default()
    }

    /// `namespace/name:port`.
    fn whose(&self, key: &FrontendKey) -> String {
        self.ports.way(key).map_or_else(|| "a Service".to_owned(), |way| way.served.port.to_string())
    }

    fn count(&mut self, family: Family, change: isize) {
        self.counts[family] = self.counts[family].saturating_add_signed(change);
        self.metrics.localhost.listeners[family].set(self.counts[family] as f64);
    }
}

/// Whether it is of no use to try again: the kernel does not have the protocol or the family.
fn never(errno: i32) -> bool {
    matches!(errno, libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT | libc::EAFNOSUPPORT)
}

fn place(key: &FrontendKey) -> String {
    format!("{} {}", key.protocol, address(key))
}
