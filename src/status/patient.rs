//! A connection whose answer has an end: in time and in bytes, whatever the other side sends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// What is waited for, and taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Until the first byte comes.
    pub(super) first: Duration,
    /// Until the end.
    pub(super) whole: Duration,
    /// Bytes, with all heads.
    pub(super) longest: usize,
}

/// The stream. What reads it may never give way, as hyper does not between answers that are none (`100 Continue`), so that
/// no time-out around it is asked: it looks at the clock itself.
pub(super) struct Patient {
    stream: TcpStream,
    /// Until the first byte that for it, then that for all.
    timer: Pin<Box<Sleep>>,
    end: Instant,
    left: usize,
    begun: bool,
}

impl Patient {
    /// Begins to wait.
    pub(super) fn new(stream: TcpStream, limits: Limits) -> Patient {
        let now = Instant::now();
        let timer = Box::pin(sleep_until(now + limits.first.min(limits.whole)));
        Patient { stream, timer, end: now + limits.whole, left: limits.longest, begun: false }
    }
}

impl AsyncRead for Patient {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if Instant::now() >= this.timer.deadline() || this.timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long")));
        }
        if this.left == 0 {
            return Poll::Ready(Err(io::Error::other("the answer is too long")));
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        this.left = this.left.saturating_sub(read);
        if read > 0 && !std::mem::replace(&mut this.begun, true) {
            this.timer.as_mut().reset(this.end);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Patient {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
