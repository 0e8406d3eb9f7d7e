//! Whether the machine itself stands still: nobody's fault, and none of the daemon's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::tally::Tally;
use crate::truth::Truth;

const BEAT: Duration = Duration::from_millis(20);
/// A thread that sleeps for [`BEAT`] and wakes so late has not been let run.
const STANDSTILL: Duration = Duration::from_millis(400);

/// Looks all the time.
pub(crate) struct Pulse {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Pulse {
    pub(crate) fn begin(truth: &Arc<Truth>, tally: &Arc<Tally>) -> Pulse {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, truth, tally) = (Arc::clone(&stop), Arc::clone(truth), Arc::clone(tally));
        let thread = thread::spawn(move || {
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(BEAT);
                let took = last.elapsed();
                if took > STANDSTILL {
                    tally.stood_still(took);
                    truth.resettles();
                }
                last = Instant::now();
            }
        });
        Pulse { stop, thread }
    }

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
