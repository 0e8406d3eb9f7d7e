//! What the service manager is told (sd_notify(3)); where there is none, nobody is told anything.

use std::future;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

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
