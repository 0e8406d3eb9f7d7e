//! What becomes of an open connection: bytes go both ways until both sides have ended, or one has broken off.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use nix::sys::socket::{Shutdown, shutdown};
use prometheus::Counter;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::pipes::{Pipe, Pipes};

/// Bytes of a buffer, where they have to be copied.
const BUFFER: usize = 64 << 10;

/// How long to wait for a pipe where the process may have no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// After so many pieces of one connection others have a turn.
const ROUNDS: u32 = 16;

/// How one direction has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All has been said, and passed on.
    Said,
    /// Who spoke broke off.
    BrokenOff,
    /// Nobody listens any more. What the other side has said before is still worth to be passed on.
    Unheard,
}

/// How bytes go.
#[derive(Debug, Clone, Copy)]
pub(super) enum How<'a> {
    /// By pipes, not through the process.
    Spliced(&'a Pipes),
    /// Copied: of SCTP, which cannot be spliced. A message of up to 64 KiB stays one.
    Copied,
}

/// Passes on what either side says until both have ended. A reset of one is one of the other. When one side is at its end,
/// the connection ends if nothing is said for `patience`.
pub(super) async fn pass(
    [client, server]: [&TcpStream; 2],
    how: How<'_>,
    bytes: &[Counter; 2],
    patience: impl Fn() -> Duration,
) {
    let progress = Cell::new(Instant::now());
    let [there, back] = bytes;
    let there = pin!(direction(client, server, how, there, &progress));
    let back = pin!(direction(server, client, how, back, &progress));
    let (Either::Left((first, rest)) | Either::Right((first, rest))) = select(there, back).await;
    let second = match first {
        End::BrokenOff => None,
        End::Said | End::Unheard => patiently(rest, &progress, patience).await,
    };
    if (first, second) != (End::Said, Some(End::Said)) {
        // When these are closed, the other side is told that it did not end well.
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

/// Waits for the other direction as long as anything is said; `None` if nothing was.
async fn patiently(
    mut rest: impl Future<Output = End> + Unpin,
    progress: &Cell<Instant>,
    patience: impl Fn() -> Duration,
) -> Option<End> {
    progress.set(Instant::now());
    loop {
        tokio::select! {
            biased;
            end = &mut rest => return Some(end),
            () = sleep_until(progress.get() + patience()) => {
                if progress.get() + patience() <= Instant::now() {
                    return None;
                }
            }
        }
    }
}

async fn direction(from: &TcpStream, to: &TcpStream, how: How<'_>, bytes: &Counter, progress: &Cell<Instant>) -> End {
    let end = match how {
        How::Spliced(pipes) => spliced(from, to, pipes, bytes, progress).await,
        How::Copied => copied(from, to, bytes, progress).await,
    };
    match end {
        End::Said if shutdown(to.as_raw_fd(), Shutdown::Write).is_err() => End::Unheard,
        end => end,
    }
}

async fn spliced(from: &TcpStream, to: &TcpStream, pipes: &Pipes, bytes: &Counter, progress: &Cell<Instant>) -> End {
    loop {
        if from.readable().await.is_err() {
            return End::BrokenOff;
        }
        let Ok(mut pipe) = pipes.take() else {
            sleep(PAUSE).await;
            continue;
        };
        let mut rounds = 0;
        let end = loop {
            match from.try_io(Interest::READABLE, || pipe.fill(from)) {
                Ok(0) => break Some(End::Said),
                Ok(taken) => bytes.inc_by(taken as f64),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break Some(End::BrokenOff),
            }
            if emptied(&mut pipe, to).await.is_err() {
                break Some(End::Unheard);
            }
            progress.set(Instant::now());
            rounds += 1;
            if rounds % ROUNDS == 0 {
                yield_now().await;
            }
        };
        // A connection that says nothing has none.
        pipes.give_back(pipe);
        if let Some(end) = end {
            return end;
        }
    }
}

async fn emptied(pipe: &mut Pipe, to: &TcpStream) -> io::Result<()> {
    while pipe.holds() > 0 {
        to.writable().await?;
        match to.try_io(Interest::WRITABLE, || pipe.empty(to)) {
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

async fn copied(from: &TcpStream, to: &TcpStream, bytes: &Counter, progress: &Cell<Instant>) -> End {
    loop {
        if from.readable().await.is_err() {
            return End::BrokenOff;
        }
        let mut buffer = vec![0; BUFFER];
        let taken = match from.try_read(&mut buffer) {
            Ok(0) => return End::Said,
            Ok(taken) => taken,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(_) => return End::BrokenOff,
        };
        bytes.inc_by(taken as f64);
        let mut rest = &buffer[..taken];
        while !rest.is_empty() {
            if to.writable().await.is_err() {
                return End::Unheard;
            }
            match to.try_write(rest) {
                Ok(given) => rest = &rest[given..],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return End::Unheard,
            }
        }
        progress.set(Instant::now());
        yield_now().await;
    }
}
