//! What becomes of the bytes that the server sends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::{Shared, lock};

/// What becomes of what is sent, on all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wire {
    /// It arrives.
    #[default]
    Whole,
    /// Nothing arrives, and nothing says so.
    Hangs,
    /// So many bytes arrive each tenth of a second.
    Slow(u64),
    /// A connection breaks after so many bytes.
    CutAfter(u64),
}

/// How often it is looked whether it is still so.
const TICK: Duration = Duration::from_millis(100);

/// A connection of which the server's side is such a wire.
pub(super) struct Faulty<S> {
    stream: S,
    shared: Arc<Shared>,
    sent: u64,
    pause: Pin<Box<Sleep>>,
    may_send: u64,
}

impl<S> Faulty<S> {
    pub(super) fn new(stream: S, shared: Arc<Shared>) -> Faulty<S> {
        Faulty { stream, shared, sent: 0, pause: Box::pin(sleep(Duration::ZERO)), may_send: 0 }
    }

    fn tick(&mut self, context: &mut Context<'_>) -> Poll<()> {
        ready!(self.pause.as_mut().poll(context));
        self.pause.as_mut().reset(Instant::now() + TICK);
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Faulty<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Faulty<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let wire = lock(&this.shared.faults).wire;
            let most = match wire {
                Wire::Whole => bytes.len() as u64,
                Wire::Slow(_) if this.may_send > 0 => this.may_send,
                Wire::CutAfter(end) if this.sent < end => end - this.sent,
                Wire::CutAfter(_) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Wire::Hangs | Wire::Slow(_) => {
                    ready!(this.tick(context));
                    if let Wire::Slow(bytes) = wire {
                        this.may_send = bytes;
                    }
                    continue;
                }
            };
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
            let written = ready!(Pin::new(&mut this.stream).poll_write(context, &bytes[..most]))?;
            this.sent += written as u64;
            this.may_send = this.may_send.saturating_sub(written as u64);
            return Poll::Ready(Ok(written));
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
