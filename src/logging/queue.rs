//! Lines on their way to standard error, which may be a pipe that nobody reads: whoever logs waits for nobody.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tracing::warn;

use crate::threads;

/// How much text may wait, in bytes: some 20,000 lines. What comes when it is full is lost, and counted.
const ROOM: usize = 4 * 1024 * 1024;

/// What a line takes besides its text, about.
const OVERHEAD: usize = 48;

/// How long to wait where the other end has made the pipe one that does not block (`O_NONBLOCK` is a matter of both).
const AGAIN: Duration = Duration::from_millis(10);

/// The queue of the process, once it has one.
static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// Lines that wait for their thread.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// There is a line, or none is left.
    changed: Condvar,
    room: usize,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// Of `lines`, and of those that are being written.
    bytes: usize,
    /// Lines for which there was no room since this was told last.
    lost: usize,
    /// The thread that writes: what it says itself always has room.
    writer: Option<ThreadId>,
}

/// What a subscriber writes its lines to.
#[derive(Clone)]
pub(super) struct Writer(Arc<Queue>);

/// Starts the thread that writes to standard error, at the first call.
///
/// # Errors
/// When there can be no thread, or no descriptor.
pub(super) fn start() -> io::Result<Writer> {
    if let Some(queue) = QUEUE.get() {
        return Ok(Writer(Arc::clone(queue)));
    }
    // Not by way of `std::io::stderr`: its lock would be held for as long as a line takes.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let queue = Queue::start(out, ROOM)?;
    Ok(Writer(Arc::clone(QUEUE.get_or_init(|| queue))))
}

/// Writes lines past the subscriber, if there is a queue. Returns whether there is one.
pub(super) fn write(text: &str) -> bool {
    let Some(queue) = QUEUE.get() else { return false };
    queue.push(format!("{text}\n").into_bytes());
    true
}

/// Waits until all that was said is written, but not longer than this.
pub(super) fn flush(patience: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.flush(patience);
    }
}

impl Queue {
    fn start(out: impl Write + Send + 'static, room: usize) -> io::Result<Arc<Queue>> {
        let queue = Arc::new(Queue { waiting: Mutex::default(), changed: Condvar::new(), room });
        let of_thread = Arc::clone(&queue);
        threads::spawn("log", move || of_thread.run(out))?;
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Whatever panics, the lines are whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Vec<u8>) {
        let mut waiting = self.lock();
        let size = line.len() + OVERHEAD;
        if waiting.bytes + size > self.room && waiting.writer != Some(thread::current().id()) {
            waiting.lost += 1;
            return;
        }
        waiting.bytes += size;
        waiting.lines.push_back(line);
        drop(waiting);
        self.changed.notify_all();
    }

    fn run(&self, mut out: impl Write) {
        self.lock().writer = Some(thread::current().id());
        loop {
            let waiting = self.lock();
            let none = |waiting: &mut Waiting| waiting.lines.is_empty();
            let mut waiting = self.changed.wait_while(waiting, none).unwrap_or_else(PoisonError::into_inner);
            let lines = std::mem::take(&mut waiting.lines);
            let lost = std::mem::take(&mut waiting.lost);
            drop(waiting);
            if lost > 0 {
                // Behind the lines that came before those, and before all that come now.
                warn!("{lost} lines of the log were lost: standard error is not read as fast as it is written");
            }
            for line in lines {
                write_all(&mut out, &line);
                self.lock().bytes -= line.len() + OVERHEAD;
                self.changed.notify_all();
            }
        }
    }

    fn flush(&self, patience: Duration) {
        let left = |waiting: &mut Waiting| waiting.bytes > 0;
        drop(self.changed.wait_timeout_while(self.lock(), patience, left));
    }
}

/// Writes a line, whatever it takes. A line that cannot be written is lost, and there is nobody to tell.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return,
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(AGAIN),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

impl Write for Writer {
    /// `line` is all of a line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Takes a line whenever it is told to, in pieces.
    struct Slow {
        go: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.go.recv();
            let piece = &bytes[..bytes.len().min(8)];
            let _ = self.written.send(String::from_utf8_lossy(piece).into_owned());
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_has_no_room_is_lost_and_counted_and_nobody_waits() {
        let (go, taken) = channel();
        let (written, read) = channel();
        let queue = Queue::start(Slow { go: taken, written }, 10 * (8 + OVERHEAD)).expect("a thread");
        let line = |nth: usize| format!("line {nth:02}\n");
        queue.push(line(0).into_bytes());
        let end = Instant::now() + PATIENCE;
        while !queue.lock().lines.is_empty() {
            assert!(Instant::now() < end, "the thread does not take the line");
            thread::sleep(Duration::from_millis(1));
        }
        (1..30).for_each(|nth| queue.push(line(nth).into_bytes()));
        let lost = queue.lock().lost;
        assert_eq!(lost, 20, "{} bytes wait", queue.lock().bytes);
        let start = Instant::now();
        queue.flush(Duration::from_millis(20));
        assert!(start.elapsed() < PATIENCE, "nobody reads, and it does not wait for ever");
        (0..10).for_each(|_| go.send(()).expect("it writes"));
        let lines: Vec<String> = (0..10).map(|_| read.recv_timeout(PATIENCE).expect("it is written")).collect();
        assert_eq!(lines, (0..10).map(line).collect::<Vec<_>>());
        queue.flush(PATIENCE);
        assert_eq!(queue.lock().bytes, 0);
        // There is room again, also for what is written in two pieces.
        queue.push(b"0123456789\n".to_vec());
        drop(go);
        queue.flush(PATIENCE);
        assert_eq!(read.try_iter().collect::<String>(), "0123456789\n");
    }

    #[test]
    fn what_cannot_be_written_is_over() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let queue = Queue::start(Closed, ROOM).expect("a thread");
        queue.push(b"line\n".to_vec());
        queue.flush(PATIENCE);
        assert_eq!(queue.lock().bytes, 0);
    }
}
