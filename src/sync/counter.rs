//! Counts open connections, on a thread of its own.
//!
//! The sync loop asks, and takes what comes when it has time for it: a count that takes long keeps back nobody.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::sync::mpsc;

use super::asked::Asked;
use crate::model::{FrontendKey, Seen};

/// The frontends whose connections are counted, each with the number of its Service port in its family: what comes by any of
/// them is counted together.
pub type Tracked = Vec<(FrontendKey, usize)>;

/// What has been counted.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// By the number of a Service port and its endpoint; those without connections may be missing.
    pub seen: Vec<(usize, SocketAddr, Seen)>,
    /// Whether connections may be missing.
    pub incomplete: bool,
    /// How long it has to be at least to the next count.
    pub pause: Duration,
}

/// The thread that counts. Dropping it ends it.
#[derive(Debug)]
pub struct Counter(Asked<Arc<Tracked>, Result<Counts, String>>);

impl Counter {
    /// Starts the thread. `count` counts the open connections of some frontends, and tells which of them are new from its
    /// count before, or why it cannot: then nothing is new to the next.
    ///
    /// # Errors
    /// One line that names the limits to look at.
    pub fn spawn(
        mut count: impl FnMut(&Arc<Tracked>) -> Result<Counts, String> + Send + 'static,
    ) -> io::Result<Counter> {
        let answers = move |asked: &Receiver<Arc<Tracked>>, news: &mpsc::Sender<_>| {
            for tracked in asked {
                if news.blocking_send(count(&tracked)).is_err() {
                    return;
                }
            }
        };
        Ok(Counter(Asked::spawn("connections", "counts connections", 1, answers)?))
    }

    /// Asks for a count. Never waits.
    pub(super) fn ask(&self, tracked: Arc<Tracked>) {
        self.0.ask(tracked);
    }

    /// The next count. It may be dropped before it is ready.
    pub(super) async fn next(&mut self) -> Result<Counts, String> {
        self.0.next().await
    }
}
