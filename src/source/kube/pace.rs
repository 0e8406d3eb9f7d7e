//! How long a kind waits before it asks an API server again, and when to say that it fails.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use tokio::time::Instant;

/// Whoever is away for longer is not met within a second.
pub(super) const LONG: Duration = Duration::from_secs(150);
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest pause of a kind, as long as the whole has not lasted for [`LONG`]: four kinds ask once a second.
const LONGEST_AT_FIRST: Duration = Duration::from_secs(4);
/// The first pause where there was an answer that is of no use.
const FIRST: Duration = Duration::from_secs(1);
/// The first pause before what costs more than a request: another list of all objects.
const FIRST_LIST: Duration = Duration::from_secs(4);
/// A pause where nothing has failed.
const SHORT: Duration = Duration::from_millis(100);
/// The longest pause between watches that are cut short, though each brings something.
const LONGEST_IN_HASTE: Duration = Duration::from_secs(1);
/// The same where they bring nothing.
const LONGEST_IN_VAIN: Duration = Duration::from_secs(4);
/// So many watches that are cut short are resumed as if nothing were wrong.
const IN_HASTE: u32 = 3;
/// The pause before something that has become better lets a kind go on at once that has failed all the same, at first.
const GOES_ON_AFTER: Duration = Duration::from_secs(2);
/// How many lists of all objects there may be without a pause, each after a watch that worked.
const LISTS_NOW: u32 = 5;
/// How soon there may be one more.
const ANOTHER_LIST: Duration = Duration::from_secs(30);
/// How often it is said that something goes on failing.
const REPEAT: Duration = Duration::from_secs(300);
/// How soon it is said that it fails for another reason.
const OTHER_REASON: Duration = Duration::from_secs(60);

/// How often it is said within [`REPEAT`] that what works again fails again.
const MAX_BEGINNINGS: u32 = 5;

/// What a failure is to be followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// Nothing: the server answers nobody, and `turns` says when to ask next.
    Turns,
    /// Hardly any.
    Short,
    /// A growing pause: an answer came to nothing, for this kind.
    Grows,
    /// The same, and one that is longer: all objects have to be listed again.
    GrowsToList,
}

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

/// Counts the failures of a kind since it worked last.
#[derive(Debug, Default)]
pub(super) struct Pace {
    attempts: u32,
    /// When it began.
    since: Option<Instant>,
    /// How many of them were followed by a growing pause.
    pauses: u32,
    /// How often all objects were listed again without a pause, of late; and when one was last taken off from that.
    lists_now: (u32, Option<Instant>),
    /// Whether that was done since it worked last.
    is_listed: bool,
    /// Watches in sequence that were cut short, though they brought something or lasted for a moment.
    in_haste: u32,
    /// How often it went on at once when something had become better, and failed; and when it may do so again.
    went_on: (u32, Option<Instant>),
    /// When it was said last, and for what reason.
    said: Option<(Instant, String)>,
    /// Whether it was said since it worked last.
    is_said: bool,
    /// How often it was said for the first time since it worked last, and since when that is counted.
    beginnings: (u32, Option<Instant>),
}

impl Pace {
    /// An attempt failed.
    pub(super) fn failed(&mut self, now: Instant, kind: Pause, reason: &str) -> Failed {
        let since = *self.since.get_or_insert(now);
        let grown = |first: Duration| lengthened(first.saturating_mul(1 << self.pauses.min(20)).min(LONGEST));
        let pause = match kind {
            Pause::Turns => Duration::ZERO,
            Pause::Short => short(),
            Pause::Grows if now.duration_since(since) < LONG => grown(FIRST).min(lengthened(LONGEST_AT_FIRST)),
            Pause::Grows => grown(FIRST),
            Pause::GrowsToList => grown(FIRST_LIST),
        };
        if matches!(kind, Pause::Grows | Pause::GrowsToList) {
            self.pauses = self.pauses.saturating_add(1);
        }
        self.attempts = self.attempts.saturating_add(1);
        let say = self.is_to_be_said(now, reason);
        if say {
            self.said = Some((now, reason.to_owned()));
            self.is_said = true;
        }
        Failed { pause, say, attempts: self.attempts }
    }

    fn is_to_be_said(&mut self, now: Instant, reason: &str) -> bool {
        let Some((at, said)) = &self.said else { return true };
        let silent = now.duration_since(*at);
        if self.is_said {
            return silent >= if said == reason { REPEAT } else { OTHER_REASON };
        }
        // It worked meanwhile. Each time is news, but not where it works and fails again every other second.
        let (count, since) = &mut self.beginnings;
        if now.duration_since(*since.get_or_insert(now)) >= REPEAT {
            (*count, *since) = (0, Some(now));
        }
        *count += 1;
        *count <= MAX_BEGINNINGS || silent >= OTHER_REASON
    }

    /// Since when it has failed.
    pub(super) fn failing_since(&self) -> Option<Instant> {
        self.since
    }

    /// All objects have to be listed again. Returns whether that may be without a pause: once after a watch that worked,
    /// so that versions that are expired always do not go on like this, and not too often in all.
    pub(super) fn lists_now(&mut self, now: Instant) -> bool {
        let (count, since) = &mut self.lists_now;
        let over = now.duration_since(*since.get_or_insert(now)).as_secs() / ANOTHER_LIST.as_secs();
        if over > 0 {
            *count = count.saturating_sub(u32::try_from(over).unwrap_or(u32::MAX));
            *since = Some(now);
        }
        let may = !self.is_listed && *count < LISTS_NOW;
        if may {
            *count += 1;
            self.is_listed = true;
        }
        may
    }

    /// A watch was cut short: it brought something, or lasted for a moment only. Returns the pause before the next.
    pub(super) fn cut_short(&mut self, brought: bool) -> Duration {
        self.in_haste = self.in_haste.saturating_add(1);
        let times = self.in_haste.saturating_sub(IN_HASTE).min(10);
        shortened(SHORT.saturating_mul(1 << times).min(if brought { LONGEST_IN_HASTE } else { LONGEST_IN_VAIN }))
    }

    /// A watch lasted for as long as can be wished.
    pub(super) fn lasted(&mut self) {
        self.in_haste = 0;
    }

    /// It failed although it went on at once because something had become better.
    pub(super) fn went_on_in_vain(&mut self, now: Instant) {
        let (count, until) = &mut self.went_on;
        *until = Some(now + GOES_ON_AFTER.saturating_mul(1 << (*count).min(10)).min(LONGEST));
        *count = count.saturating_add(1);
    }

    /// When it may go on at once if something becomes better.
    pub(super) fn may_go_on_at(&self) -> Option<Instant> {
        self.went_on.1
    }

    /// It works: whatever fails next is the first. Returns whether it was said that it does not.
    pub(super) fn works(&mut self) -> bool {
        let before = std::mem::take(self);
        self.in_haste = before.in_haste;
        (self.said, self.beginnings, self.lists_now) = (before.said, before.beginnings, before.lists_now);
        before.is_said
    }
}

/// A pause where nothing has failed, so that the proxies of a cluster do not come back all at once.
pub(super) fn short() -> Duration {
    shortened(SHORT)
}

/// A time between these two, at random.
pub(super) fn between([least, most]: [Duration; 2]) -> Duration {
    least + (most - least).mul_f64(random())
}

/// Shortened by up to a half at random.
fn shortened(pause: Duration) -> Duration {
    between([pause / 2, pause])
}

/// Lengthened by up to a quarter at random.
fn lengthened(pause: Duration) -> Duration {
    between([pause, pause + pause / 4])
}

/// From 0 to 1.
fn random() -> f64 {
    // Every `RandomState` has other keys: all the randomness that is needed here.
    (RandomState::new().hash_one(0) % 1001) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When attempts are made that all fail so for `seconds`, without the one at once.
    fn attempts(pause: Pause, seconds: u64) -> Vec<Duration> {
        let (start, mut pace, mut times) = (Instant::now(), Pace::default(), Vec::new());
        let mut elapsed = Duration::ZERO;
        while elapsed < Duration::from_secs(seconds) {
            elapsed += pace.failed(start + elapsed, pause, "no").pause;
            times.push(elapsed);
        }
        times
    }

    #[test]
    fn pauses_grow_at_random_and_not_for_ever() {
        for pause in [Pause::Grows, Pause::GrowsToList] {
            let times = attempts(pause, 3600);
            let between: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(between.iter().all(|pause| *pause >= FIRST && *pause <= lengthest(LONGEST)), "{between:?}");
            let long = &between[between.len() - 20..];
            assert!(long.iter().all(|pause| *pause >= LONGEST), "{long:?}");
            assert!(long.iter().any(|pause| *pause != long[0]), "at random: {long:?}");
            let early = times.iter().filter(|at| at.as_secs() < 120).count();
            assert!(if pause == Pause::Grows { early >= 24 } else { early <= 8 }, "{pause:?}: {early}");
        }
    }

    fn lengthest(pause: Duration) -> Duration {
        pause + pause / 4
    }

    #[test]
    fn a_server_that_answers_nobody_is_not_left_alone_for_long() {
        let (now, mut pace) = (Instant::now(), Pace::default());
        for _ in 0..10 {
            pace.failed(now, Pause::Grows, "404");
        }
        for attempts in 11..100 {
            let failed = pace.failed(now, Pause::Turns, "refused");
            assert_eq!((failed.pause, failed.attempts), (Duration::ZERO, attempts));
        }
    }

    #[test]
    fn pauses_begin_anew_once_it_works() {
        let (now, mut pace) = (Instant::now(), Pace::default());
        for _ in 0..20 {
            pace.failed(now, Pause::Grows, "no");
        }
        assert_eq!(pace.failing_since(), Some(now));
        pace.works();
        assert_eq!(pace.failing_since(), None);
        let Failed { pause, say, attempts } = pace.failed(now, Pause::Grows, "no");
        assert!(pause <= lengthest(FIRST) && say && attempts == 1, "{pause:?} {say} {attempts}");
    }

    #[test]
    fn watches_that_are_cut_short_again_and_again_are_resumed_more_slowly() {
        let mut pace = Pace::default();
        let pauses: Vec<_> = (0..20)
            .map(|_| {
                pace.works();
                pace.cut_short(true)
            })
            .collect();
        assert!(pauses[..3].iter().all(|pause| *pause <= SHORT), "{pauses:?}");
        assert!(pauses[6..].iter().all(|pause| *pause >= LONGEST_IN_HASTE / 2), "{pauses:?}");
        assert!((0..10).map(|_| pace.cut_short(false)).max().is_some_and(|pause| pause > LONGEST_IN_HASTE));
        pace.lasted();
        assert!(pace.cut_short(false) <= SHORT);
    }

    #[test]
    fn a_failure_is_said_at_once_and_then_every_few_minutes() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut said =
            |second: u64, reason: &str| pace.failed(start + Duration::from_secs(second), Pause::Grows, reason).say;
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
    fn what_fails_and_works_by_turns_is_said_some_times_and_then_once_a_minute() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut said = Vec::new();
        for second in (0..1200).step_by(2) {
            if pace.failed(start + Duration::from_secs(second), Pause::Grows, "no").say {
                said.push(second);
            }
            assert_eq!(pace.works(), said.last() == Some(&second));
        }
        assert_eq!(said[..5], [0, 2, 4, 6, 8]);
        assert!(said.len() <= 45 && said.windows(2).all(|pair| pair[1] - pair[0] <= 62), "{said:?}");
    }

    #[test]
    fn all_is_listed_without_a_pause_now_and_then() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        assert!(pace.lists_now(start) && !pace.lists_now(start), "once after a watch that worked");
        let may = |pace: &mut Pace, at: Instant| {
            pace.works();
            pace.lists_now(at)
        };
        let taken = (0..20).filter(|second| may(&mut pace, start + Duration::from_secs(*second))).count();
        assert_eq!(taken, 4, "five of late");
        let taken = (20..620).filter(|second| may(&mut pace, start + Duration::from_secs(*second))).count();
        assert!((19..=21).contains(&taken), "{taken}");
    }
}
