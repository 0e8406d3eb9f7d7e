//! What the service manager is told (sd_notify(3)); where there is none, nobody is told anything.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future;
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::localhost::Keeper;
use crate::sys::inherited;

/// Tells that the rules are in place.
pub(super) fn ready() {
    tell(NotifyState::Ready);
}

/// Tells that the end has begun.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

/// Tells what is going on, in words. While a start waits, nothing else is said: how long it may take is for the unit to
/// say (`TimeoutStartSec`), as for a start without an API server.
pub(super) fn status(text: &str) {
    tell(NotifyState::Status(text));
}

fn tell(state: NotifyState<'_>) {
    let states = [state];
    if let Err(error) = sd_notify::notify(&states) {
        warn!("cannot tell the service manager {states:?}: {error}");
    }
}

/// The most sockets that it is given to keep. It gives them back with a list of their names in the environment, and a process
/// with more than 128 KiB of that could not be started at all (execve(2)). `FileDescriptorStoreMax=` of the unit is the same.
const KEPT: usize = 8_192;

/// How long it may take to take one.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sockets that are kept open from this process to the next, by a service manager that does (`FDSTORE=1`).
#[derive(Debug)]
pub(super) struct Sockets {
    /// `None` where there is none.
    manager: Option<UnixDatagram>,
    kept: RefCell<BTreeSet<String>>,
    failed: Cell<bool>,
}

impl Sockets {
    /// With what has been kept until now, by name, of all that `is_ours`.
    pub(super) fn taken_over(is_ours: fn(&str) -> bool) -> (Sockets, Vec<(String, OwnedFd)>) {
        let manager = std::env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect(path).ok()?;
            socket.set_write_timeout(Some(PATIENCE)).ok()?;
            Some(socket)
        });
        let given = sd_notify::listen_fds_with_names();
        let given = given.inspect_err(|error| warn!("what the service manager has kept is not used: {error}"));
        let ours = given.into_iter().flatten().filter(|(_, name)| is_ours(name));
        let sockets: Vec<_> = ours.filter_map(|(descriptor, name)| Some((name, inherited(descriptor)?))).collect();
        let kept = RefCell::new(sockets.iter().map(|(name, _)| name.clone()).collect());
        (Sockets { manager, kept, failed: Cell::new(false) }, sockets)
    }

    fn say(&self, text: &str, sockets: &[RawFd]) -> bool {
        let Some(manager) = &self.manager else { return false };
        let rights = [ControlMessage::ScmRights(sockets)];
        let rights = if sockets.is_empty() { &[] } else { &rights[..] };
        let said =
            sendmsg::<()>(manager.as_raw_fd(), &[IoSlice::new(text.as_bytes())], rights, MsgFlags::empty(), None);
        if let Err(error) = said
            && !self.failed.replace(true)
        {
            warn!("the service manager does not keep sockets open over a restart: {error}");
        }
        said.is_ok()
    }
}

impl Keeper for Sockets {
    fn keep(&self, name: &str, socket: BorrowedFd<'_>) {
        let mut kept = self.kept.borrow_mut();
        let text = format!("FDSTORE=1\nFDNAME={name}");
        if kept.len() < KEPT && self.say(&text, &[socket.as_raw_fd()]) {
            kept.insert(name.to_owned());
        }
    }

    fn forget(&self, name: &str) {
        if self.kept.borrow_mut().remove(name) {
            self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        }
    }
}

/// Makes the watchdog's heartbeat: the part of the sources' loop, and that of the sync loop.
///
/// A beat goes from the loop that all sources run on to the sync loop, and from there to the service manager: when
/// either of them hangs, it stops.
pub(super) fn heartbeat() -> (Pulse, Heartbeat) {
    let (sender, receiver) = mpsc::channel(1);
    let period = sd_notify::watchdog_enabled().map(|timeout| timeout / 2).filter(|period| !period.is_zero());
    (Pulse { period, sender }, Heartbeat { receiver })
}

/// The part that beats, in the loop that all sources run on.
pub(super) struct Pulse {
    /// `None`: nobody waits for beats.
    period: Option<Duration>,
    sender: mpsc::Sender<()>,
}

impl Pulse {
    /// Beats for ever, twice in the time after which the watchdog bites.
    pub(super) async fn beat(self) {
        let Some(period) = self.period else {
            return future::pending().await;
        };
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // One that is still waiting is enough. One that nobody can receive is missed by the watchdog.
            let _ = self.sender.try_send(());
        }
    }
}

/// The part that passes the beats on, in the sync loop.
pub(super) struct Heartbeat {
    receiver: mpsc::Receiver<()>,
}

impl Heartbeat {
    /// Passes on each beat, for ever.
    pub(super) async fn pass_on(mut self) {
        while self.receiver.recv().await.is_some() {
            tell(NotifyState::Watchdog);
        }
        // The end of the sources is not that of the engine, which finishes what it has.
        future::pending::<()>().await;
    }
}
