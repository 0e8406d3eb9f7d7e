//! How long to wait before an API server is asked again, and when to say that it does not answer.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use tokio::time::Instant;

/// A watch that lasted so long, or brought a change, is one that works; one that did not has failed, whatever the server
/// called it. (client-go has the same limit: `handleAnyWatch` in its `reflector.go`.)
pub(super) const LIVED: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(30);
/// How often it is said that something goes on failing.
const REPEAT: Duration = Duration::from_secs(300);
/// How soon it is said that it fails for another reason.
const OTHER_REASON: Duration = Duration::from_secs(60);

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// Not at all: there was no answer, and `turns` says when to ask next.
    NoAnswer,
    /// Two seconds at first, each time twice as long as the time before, shortened by up to a half at random: the server,
    /// or what stands before it, had work with a request that came to nothing.
    Answer,
}

/// The first pause after [`First::Answer`].
const FIRST: Duration = Duration::from_secs(2);
/// A pause where nothing has failed.
const SHORT: Duration = Duration::from_millis(100);

/// What is to be done after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// How long to wait.
    pub(super) pause: Duration,
    /// Whether to say it.
    pub(super) say: bool,
    /// How many attempts have failed since it worked last.
    pub(super) attempts: u32,
}

/// Counts the failures since it worked last.
#[derive(Debug, Default)]
pub(super) struct Pace {
    attempts: u32,
    /// How many of them, since there was no answer last, had one.
    answers: u32,
    /// Whether the version last seen has expired.
    stale: bool,
    /// When it was said last, and for what reason.
    said: Option<(Instant, String)>,
}

impl Pace {
    /// An attempt failed.
    pub(super) fn failed(&mut self, now: Instant, first: First, reason: &str) -> Failed {
        let pause = match first {
            First::NoAnswer => {
                // Once there are answers again, the server is another one, so to speak.
                self.answers = 0;
                Duration::ZERO
            }
            First::Answer => {
                let pause = FIRST.saturating_mul(1 << self.answers.min(20)).min(LONGEST);
                self.answers = self.answers.saturating_add(1);
                shortened(pause)
            }
        };
        self.attempts = self.attempts.saturating_add(1);
        let say = self
            .said
            .as_ref()
            .is_none_or(|(at, said)| now.duration_since(*at) >= if said == reason { REPEAT } else { OTHER_REASON });
        if say {
            self.said = Some((now, reason.to_owned()));
        }
        Failed { pause, say, attempts: self.attempts }
    }

    /// The version last seen has expired. Returns whether it is the first time since it worked, whatever else failed: then
    /// there is no need to wait long, though it counts, so that versions that are expired always do not go on like this.
    pub(super) fn expired(&mut self) -> bool {
        self.attempts = self.attempts.max(1);
        self.answers = self.answers.max(1);
        !std::mem::replace(&mut self.stale, true)
    }

    /// It works: whatever fails next is the first.
    pub(super) fn works(&mut self) {
        *self = Pace::default();
    }
}

/// A pause where nothing has failed, so that the proxies of a cluster do not come back all at once.
pub(super) fn short() -> Duration {
    shortened(SHORT)
}

/// A time between these two, at random.
pub(super) fn between(least: Duration, most: Duration) -> Duration {
    least + (most - least).mul_f64(random())
}

/// Shortened by up to a half at random.
fn shortened(pause: Duration) -> Duration {
    between(pause / 2, pause)
}

/// From 0 to 1.
fn random() -> f64 {
    // Every `RandomState` has other keys: all the randomness that is needed here.
    (RandomState::new().hash_one(0) % 1001) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of attempts that all fail for `seconds`, without one that is made at once.
    fn attempts(first: First, seconds: u64) -> Vec<Duration> {
        let (start, mut pace, mut times) = (Instant::now(), Pace::default(), Vec::new());
        let mut elapsed = Duration::ZERO;
        while elapsed < Duration::from_secs(seconds) {
            elapsed += pace.failed(start + elapsed, first, "no").pause;
            times.push(elapsed);
        }
        times
    }

    #[test]
    fn four_kinds_are_at_most_four_requests_a_second_at_first_and_one_later() {
        for _ in 0..100 {
            let times = attempts(First::Answer, 600);
            let between =
                |from: u64, to: u64| times.iter().filter(|at| (from..to).contains(&at.as_secs())).count() as u64;
            // With the one that is made at once; each is a list and a watch, where versions are always expired.
            assert!(4 * (1 + 2 * between(0, 5)) <= 4 * 5, "{times:?}");
            assert!(4 * 2 * between(30, 60) <= 30, "{times:?}");
            assert!(4 * 2 * between(60, 600) <= 540, "{times:?}");
            assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= LONGEST), "it is tried for ever: {times:?}");
        }
    }

    #[test]
    fn a_server_that_was_away_is_not_left_alone_for_long() {
        let (now, mut pace) = (Instant::now(), Pace::default());
        for _ in 0..10 {
            pace.failed(now, First::Answer, "503");
        }
        for attempts in 11..100 {
            let failed = pace.failed(now, First::NoAnswer, "refused");
            assert_eq!((failed.pause, failed.attempts), (Duration::ZERO, attempts));
        }
        // Its first words may be that it is not ready.
        assert!(pace.failed(now, First::Answer, "503").pause <= FIRST);
        assert!(pace.failed(now, First::Answer, "503").pause >= FIRST);
    }

    #[test]
    fn pauses_differ_and_begin_anew_once_it_works() {
        let (now, mut pace) = (Instant::now(), Pace::default());
        let pauses: Vec<_> = (0..20).map(|_| pace.failed(now, First::Answer, "no").pause).collect();
        let long = &pauses[5..];
        assert!(long.iter().any(|pause| *pause != long[0]), "at random: {pauses:?}");
        assert!(long.iter().all(|pause| (LONGEST / 2..=LONGEST).contains(pause)), "{pauses:?}");
        pace.works();
        let Failed { pause, say, attempts } = pace.failed(now, First::Answer, "no");
        assert!(pause <= FIRST && say && attempts == 1, "{pause:?} {say} {attempts}");
    }

    #[test]
    fn a_failure_is_said_at_once_and_then_every_few_minutes() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut said =
            |second: u64, reason: &str| pace.failed(start + Duration::from_secs(second), First::Answer, reason).say;
        assert!(said(0, "one"));
        assert!(!said(1, "one") && !said(2, "two") && !said(59, "two"));
        assert!(said(60, "two"), "another reason");
        assert!(!said(61, "one") && !said(119, "two") && !said(359, "two"));
        assert!(said(360, "two"), "minutes later");
        // Two reasons that take turns are a line each minute at most.
        let lines = (361..1561).filter(|&second| said(second, if second % 2 == 0 { "one" } else { "two" })).count();
        assert!(lines <= 20, "{lines}");
    }

    #[test]
    fn versions_may_expire_once() {
        let mut pace = Pace::default();
        assert!(pace.expired());
        assert!(!pace.expired());
        let Failed { pause, say, .. } = pace.failed(Instant::now(), First::Answer, "410");
        assert!(pause >= FIRST / 2 && say, "it counts: {pause:?} {say}");
        pace.works();
        assert!(pace.expired());
        pace.works();
        pace.failed(Instant::now(), First::Answer, "no");
        assert!(pace.expired(), "as is to be expected after an outage");
        assert!(!pace.expired());
    }
}
