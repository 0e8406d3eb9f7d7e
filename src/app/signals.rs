//! What the daemon does about signals. One that is not listened to does what the kernel does: SIGQUIT ends the process
//! with a core dump, for who wants one.

use std::collections::BTreeSet;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

/// Signals that other daemons have a use for, with their names. Nobody shall end this one by sending them.
const IGNORED: [(&str, MakeKind); 3] =
    [("SIGUSR1", SignalKind::user_defined1), ("SIGUSR2", SignalKind::user_defined2), ("SIGALRM", SignalKind::alarm)];

type MakeKind = fn() -> SignalKind;

/// The signals that are listened to, from the moment on that this is made.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    ignored: [(&'static str, Signal); 3],
}

impl Signals {
    /// Begins to listen; the second is SIGHUP.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub(super) fn listen() -> anyhow::Result<(Signals, Signal)> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let [first, second, third] = IGNORED.map(|(name, kind)| listen(kind()).map(|signal| (name, signal)));
        let signals = Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            ignored: [first?, second?, third?],
        };
        Ok((signals, listen(SignalKind::hangup())?))
    }

    /// Waits for SIGTERM or SIGINT. Says of each other one that it is ignored, when it comes for the first time.
    pub(super) async fn stop(&mut self) {
        let [(first, usr1), (second, usr2), (third, alarm)] = &mut self.ignored;
        let mut said = BTreeSet::new();
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = usr1.recv() => *first,
                _ = usr2.recv() => *second,
                _ = alarm.recv() => *third,
            };
            if said.insert(name) {
                warn!("{name} has no meaning here and is ignored; SIGHUP reads the configuration file again");
            }
        }
    }
}
