//! Whose turn it is to ask an API server that does not answer.
//!
//! All kinds take turns, one attempt at a time, so that a server that comes back is met soon by one of them and is not
//! stormed meanwhile; once one of them has an answer, of whatever kind, all others go on at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::pace;

/// Between two attempts of all kinds together, at random.
const BETWEEN: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(800)];
/// The same, once the server has not answered for [`LONG`].
const BETWEEN_LATER: [Duration; 2] = [Duration::from_millis(1000), Duration::from_millis(2000)];
/// Whoever is away for longer is not met within a second.
const LONG: Duration = Duration::from_secs(150);

/// Whether the server answers, and when it is asked next if it does not.
#[derive(Debug, Default)]
struct Turns {
    silent: Option<Silent>,
}

#[derive(Debug)]
struct Silent {
    since: Instant,
    next: Instant,
}

impl Turns {
    /// There was no answer, or a connection broke. The first attempt follows soon: it may be a short gap.
    fn lost(&mut self, now: Instant) {
        self.silent.get_or_insert_with(|| Silent { since: now, next: now + pace::short() });
    }

    /// Whether the server did not answer before.
    fn answers(&mut self) -> bool {
        self.silent.take().is_some()
    }

    /// Takes the turn, or says when the next one is.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let Some(silent) = &mut self.silent else { return Ok(()) };
        if now < silent.next {
            return Err(silent.next);
        }
        let [least, most] = if now.duration_since(silent.since) < LONG { BETWEEN } else { BETWEEN_LATER };
        silent.next = now + pace::between(least, most);
        Ok(())
    }
}

/// What all kinds share.
#[derive(Debug, Default)]
pub(super) struct Line {
    turns: Mutex<Turns>,
    /// Sent to when the server answers again.
    answers: watch::Sender<()>,
}

impl Line {
    /// Waits until it is the caller's turn to ask.
    pub(super) async fn turn(&self) {
        loop {
            let mut answers = self.answers.subscribe();
            let Err(next) = self.turns().take(Instant::now()) else { return };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                _ = answers.changed() => {}
            }
        }
    }

    /// There was no answer, or a connection broke.
    pub(super) fn lost(&self) {
        self.turns().lost(Instant::now());
    }

    /// There was an answer, good or bad.
    pub(super) fn answers(&self) {
        if self.turns().answers() {
            self.answers.send_replace(());
        }
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// When four kinds ask a server that does not answer for `outage`, and when the last of them has an answer. Time is
    /// that of tokio: paused.
    async fn asked(outage: Duration) -> (Vec<Duration>, Duration) {
        let (start, line) = (Instant::now(), Arc::new(Line::default()));
        let times = Arc::new(Mutex::new(Vec::new()));
        line.lost();
        let kinds = (0..4).map(|_| {
            let (line, times) = (Arc::clone(&line), Arc::clone(&times));
            tokio::spawn(async move {
                loop {
                    line.turn().await;
                    times.lock().expect("whole").push(start.elapsed());
                    if start.elapsed() >= outage {
                        line.answers();
                        return start.elapsed();
                    }
                    line.lost();
                }
            })
        });
        let mut last = Duration::ZERO;
        for kind in kinds.collect::<Vec<_>>() {
            last = last.max(kind.await.expect("no panic"));
        }
        let times = times.lock().expect("whole").clone();
        (times, last)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_comes_back_is_met_within_a_second_and_not_stormed_before() {
        for seconds in [1, 3, 10, 30, 60, 120] {
            let outage = Duration::from_secs(seconds);
            let (times, last) = asked(outage).await;
            let during: Vec<_> = times.iter().filter(|at| **at < outage).collect();
            assert!(during.len() as u64 <= 1 + 2 * seconds, "{seconds}: {during:?}");
            assert!(during.windows(2).all(|pair| *pair[1] - *pair[0] >= BETWEEN[0]), "{seconds}: {during:?}");
            assert!(*during[0] <= Duration::from_millis(101), "a short gap is over soon: {during:?}");
            assert!(last - outage < Duration::from_millis(850), "{seconds}: {:?}", last - outage);
        }
        let (times, last) = asked(Duration::from_secs(3600)).await;
        assert!(times.len() < 3600 && last < Duration::from_secs(3603), "{} {last:?}", times.len());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_while_it_answers() {
        let (start, line) = (Instant::now(), Line::default());
        for _ in 0..100 {
            line.turn().await;
        }
        line.lost();
        line.answers();
        line.turn().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
