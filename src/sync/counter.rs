//! Counts open connections, on a thread of its own.
//!
//! The sync loop asks, and takes what comes when it has time for it: a count that takes long keeps back nobody.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::model::{FrontendKey, Seen};
use crate::threads;

/// How long the end of the process waits for the count that is under way.
const PATIENCE: Duration = Duration::from_secs(1);

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
pub struct Counter {
    asks: Option<Sender<Arc<Tracked>>>,
    news: mpsc::Receiver<Result<Counts, String>>,
    thread: Option<JoinHandle<()>>,
    /// Says nothing, and hangs up when the thread is at its end.
    end: Receiver<()>,
}

impl Counter {
    /// Starts the thread. `count` counts the open connections of some frontends, and tells which of them are new from its
    /// count before, or why it cannot: then nothing is new to the next.
    ///
    /// # Errors
    /// One line that names the limits to look at.
    pub fn spawn(
        mut count: impl FnMut(&Arc<Tracked>) -> Result<Counts, String> + Send + 'static,
    ) -> io::Result<Counter> {
        let (asks, asked) = channel::<Arc<Tracked>>();
        let (sender, news) = mpsc::channel(1);
        let (ends, end) = channel();
        let thread = threads::spawn("connections", move || {
            for tracked in asked {
                if sender.blocking_send(count(&tracked)).is_err() {
                    break;
                }
            }
            drop(ends);
        })?;
        Ok(Counter { asks: Some(asks), news, thread: Some(thread), end })
    }

    /// Asks for a count. Never waits.
    pub(super) fn ask(&self, tracked: Arc<Tracked>) {
        if let Some(asks) = &self.asks
            && asks.send(tracked).is_err()
        {
            // It ends before us only by a panic, which has been reported.
            tracing::error!("the thread that counts connections is gone");
        }
    }

    /// The next count. It may be dropped before it is ready.
    pub(super) async fn next(&mut self) -> Result<Counts, String> {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.asks = None;
        self.news.close();
        while self.news.try_recv().is_ok() {}
        if let Err(RecvTimeoutError::Timeout) = self.end.recv_timeout(PATIENCE) {
            // It changes nothing, and ends with the process.
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
