//! A thread that the sync loop asks, and that never keeps it waiting.

use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::threads;

/// How long the end of the process waits for what is under way.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The thread. Dropping it ends it, whatever it was asked for.
pub(super) struct Asked<Q, N> {
    asks: Option<Sender<Q>>,
    pub(super) news: mpsc::Receiver<N>,
    thread: Option<JoinHandle<()>>,
    /// Says nothing, and hangs up when the thread is at its end.
    end: Receiver<()>,
    /// What it does, for people.
    does: &'static str,
}

impl<Q: Send + 'static, N: Send + 'static> Asked<Q, N> {
    /// Starts a thread of this name that `answers` to what it is asked; so many answers wait for the loop, then it does.
    ///
    /// # Errors
    /// One line that names the limits to look at.
    pub(super) fn spawn(
        name: &str,
        does: &'static str,
        waiting: usize,
        answers: impl FnOnce(&Receiver<Q>, &mpsc::Sender<N>) + Send + 'static,
    ) -> io::Result<Asked<Q, N>> {
        let (asks, asked) = channel();
        let (sender, news) = mpsc::channel(waiting);
        let (ends, end) = channel();
        let thread = threads::spawn(name, move || {
            answers(&asked, &sender);
            drop(ends);
        })?;
        Ok(Asked { asks: Some(asks), news, thread: Some(thread), end, does })
    }

    /// Asks. Never waits.
    pub(super) fn ask(&self, what: Q) {
        if let Some(asks) = &self.asks
            && asks.send(what).is_err()
        {
            // It ends before us only by a panic, which has been reported.
            tracing::error!("the thread that {} is gone", self.does);
        }
    }

    /// The next answer. It may be dropped before it is ready.
    pub(super) async fn next(&mut self) -> N {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }

    /// The next answer, if there is any.
    pub(super) fn try_next(&mut self) -> Option<N> {
        self.news.try_recv().ok()
    }
}

impl<Q, N> fmt::Debug for Asked<Q, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("does", &self.does).finish_non_exhaustive()
    }
}

impl<Q, N> Drop for Asked<Q, N> {
    fn drop(&mut self) {
        self.asks = None;
        self.news.close();
        // What is still in the channel is what the thread may be waiting behind.
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
