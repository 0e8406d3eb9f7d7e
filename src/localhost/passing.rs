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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::localhost::descriptors::Descriptors;
    use crate::testing::in_network_namespace_async;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A client and a server, and the ends of their connections that are passed on.
    async fn connection() -> (TcpStream, TcpStream, TcpStream, TcpStream) {
        let pair = async || {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
            let address = listener.local_addr().expect("it has one");
            let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
            (near.expect("it is connected"), far.expect("it is connected").0)
        };
        let ((client, ours), (theirs, server)) = (pair().await, pair().await);
        (client, ours, theirs, server)
    }

    fn counters() -> [Counter; 2] {
        ["there", "back"].map(|name| Counter::new(name, name).expect("a name"))
    }

    fn within<T>(result: Result<T, tokio::time::error::Elapsed>) -> T {
        result.expect("in time")
    }

    #[test]
    fn both_ways_of_passing_on_are_alike() {
        in_network_namespace_async(async || {
            let pipes = Pipes::new(Descriptors::new(100));
            for how in [How::Spliced(&pipes), How::Copied] {
                let (mut client, ours, theirs, mut server) = connection().await;
                let bytes = counters();
                let question: Vec<u8> = (0..1_000_000_u32).map(|byte| (byte % 251) as u8).collect();
                let sent = question.clone();
                let talk = async {
                    let asks = async {
                        client.write_all(&sent).await.expect("it is taken");
                        client.shutdown().await.expect("it is open");
                        let mut answer = Vec::new();
                        client.read_to_end(&mut answer).await.expect("it is open");
                        answer
                    };
                    let answers = async {
                        let mut heard = Vec::new();
                        server.read_to_end(&mut heard).await.expect("it is open");
                        server.write_all(b"thanks").await.expect("it is open");
                        server.shutdown().await.expect("it is open");
                        heard
                    };
                    tokio::join!(asks, answers)
                };
                let passes = pass([&ours, &theirs], how, &bytes, || PATIENCE);
                let ((answer, heard), ()) = within(timeout(PATIENCE, async { tokio::join!(talk, passes) }).await);
                assert!(heard == question && answer == b"thanks", "{how:?}");
                assert_eq!(bytes.map(|counter| counter.get()), [1_000_000.0, 6.0], "{how:?}");
            }
        });
    }

    #[test]
    fn a_connection_that_one_side_has_closed_ends_when_nothing_is_said() {
        in_network_namespace_async(async || {
            let (pipes, bytes) = (Pipes::new(Descriptors::new(100)), counters());
            let (mut client, ours, theirs, mut server) = connection().await;
            let passing = async {
                let start = Instant::now();
                pass([&ours, &theirs], How::Spliced(&pipes), &bytes, || Duration::from_millis(300)).await;
                drop((ours, theirs));
                start.elapsed()
            };
            let talk = async {
                client.shutdown().await.expect("it is open");
                // What is said meanwhile counts.
                for _ in 0..4 {
                    sleep(Duration::from_millis(150)).await;
                    server.write_all(b"!").await.expect("it is open");
                }
                let mut all = Vec::new();
                (client.read_to_end(&mut all).await.map_err(|error| error.kind()), all.len())
            };
            let (took, (end, heard)) = within(timeout(PATIENCE, async { tokio::join!(passing, talk) }).await);
            assert_eq!((end, heard), (Err(ErrorKind::ConnectionReset), 4));
            assert!(took >= Duration::from_millis(900), "{took:?}");
        });
    }

    #[test]
    fn what_was_said_before_a_reset_is_passed_on() {
        in_network_namespace_async(async || {
            let (pipes, bytes) = (Pipes::new(Descriptors::new(100)), counters());
            let (mut client, ours, theirs, mut server) = connection().await;
            let passing = async {
                pass([&ours, &theirs], How::Spliced(&pipes), &bytes, || PATIENCE).await;
                drop((ours, theirs));
            };
            let talk = async {
                client.write_all(b"a question").await.expect("it is open");
                server.write_all(b"too large").await.expect("it is open");
                // It has not read what was asked: that makes it a reset.
                assert_eq!(server.peek(&mut [0]).await.expect("it is open"), 1);
                drop(server);
                let mut answer = vec![0; 9];
                client.read_exact(&mut answer).await.expect("it comes first");
                let end = client.read(&mut [0]).await.map_err(|error| error.kind());
                (answer, end)
            };
            let ((), (answer, end)) = within(timeout(PATIENCE, async { tokio::join!(passing, talk) }).await);
            assert_eq!((answer.as_slice(), end), (&b"too large"[..], Err(ErrorKind::ConnectionReset)));
        });
    }
}
