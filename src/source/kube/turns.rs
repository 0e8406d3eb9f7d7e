//! Whose turn it is to ask an API server that does not answer well.
//!
//! Where nothing is wrong, nobody waits. While the server does not answer at all, or says that it cannot, all kinds take
//! turns, one request at a time, so that a server that comes back is met soon by one of them and is not stormed
//! meanwhile. A kind with trouble of its own takes turns with others that have. Once one of them gets what it wants, all
//! others go on at once: their trouble may have had the same cause.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::pace::{self, LONG};
use crate::model::Kind;

/// Between two requests of all kinds together, at random, at first.
const BETWEEN: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(800)];
/// The same where there are answers, only none that is of use: work for the server, or for what stands before it. Once
/// it has been so for [`A_WHILE`].
const BETWEEN_ANSWERS: [Duration; 2] = [Duration::from_millis(1000), Duration::from_millis(1050)];
/// The same, once it has been so for [`LONG`].
const BETWEEN_LATER: [Duration; 2] = [Duration::from_millis(1500), Duration::from_millis(2500)];
/// See [`BETWEEN_ANSWERS`].
const A_WHILE: Duration = Duration::from_secs(25);
/// Trouble that comes again so soon after its end has not ended: it goes on as it was.
const SAME_TROUBLE: Duration = Duration::from_secs(10);
/// See [`Turns::has_answered`].
const A_MOMENT: Duration = Duration::from_secs(1);
/// A store is not restored twice in such a time.
const BETWEEN_STORES: Duration = Duration::from_secs(5);
/// Who is first in the line and does not come is waited for so long.
const GRACE: Duration = Duration::from_millis(50);

/// What all kinds know about the server.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Since when there has been no answer.
    silent: Option<Instant>,
    /// Since when there has been trouble again and again, and when there was last.
    trouble: Option<(Instant, Instant)>,
    /// Since when it has said that it cannot answer anybody, and whether it said so last to a watch.
    unwell: Option<(Instant, bool)>,
    /// When the next request may be made, where turns are taken.
    next: Option<Instant>,
    /// Who waits for it, first come first served.
    waiting: VecDeque<Kind>,
    recovered: u64,
    stores: u64,
    another_store_at: Option<Instant>,
    /// When the server was last known to be away: see [`Turns::is_away`].
    away: Option<Instant>,
    answered: Option<Instant>,
}

impl Turns {
    /// Of a server that has not answered yet: one request is the first.
    pub(super) fn unknown(now: Instant) -> Turns {
        Turns { silent: Some(now), ..Turns::default() }
    }

    /// There was no answer, or a connection broke. The first attempt follows soon: it may be a short gap.
    pub(super) fn lost(&mut self, now: Instant) {
        let (since, is_new) = self.trouble(now);
        if self.silent.is_none() {
            self.silent = Some(since);
            self.next = Some(now + if is_new { pace::short() } else { pace::between(BETWEEN) });
        }
    }

    /// The server says that it cannot answer anybody at the moment.
    pub(super) fn refuses(&mut self, now: Instant, a_watch: bool) {
        self.answers(now);
        let (since, _) = self.trouble(now);
        if let Some((_, was_a_watch)) = &mut self.unwell {
            *was_a_watch = a_watch;
        } else {
            self.unwell = Some((since, a_watch));
            self.next = Some(now + pace::between(BETWEEN));
        }
    }

    /// There is trouble: since when, and whether it is new.
    fn trouble(&mut self, now: Instant) -> (Instant, bool) {
        let before = self.trouble.filter(|(_, last)| now.duration_since(*last) < SAME_TROUBLE);
        let since = before.map_or(now, |(since, _)| since);
        self.trouble = Some((since, now));
        (since, before.is_none())
    }

    /// There was an answer, good or bad.
    pub(super) fn answers(&mut self, now: Instant) {
        self.answered = Some(now);
        if let Some(since) = self.silent.take() {
            if self.was_away(since) {
                self.is_away(now);
            }
            self.recovered();
        }
    }

    /// There was a good answer. One to a list says nothing about watches.
    pub(super) fn serves(&mut self, now: Instant, a_watch: bool) {
        self.answers(now);
        if self.unwell.take_if(|(_, was_a_watch)| a_watch || !*was_a_watch).is_some() {
            self.is_away(now);
            self.recovered();
        }
    }

    /// Whether somebody had an answer a moment ago: a request without one is no sign that there is nobody.
    pub(super) fn has_answered(&self, now: Instant) -> bool {
        self.answered.is_some_and(|at| now.duration_since(at) < A_MOMENT)
    }

    /// Whether it was a watch that it could not answer.
    pub(super) fn refuses_watches(&self) -> bool {
        self.unwell.is_some_and(|(_, a_watch)| a_watch)
    }

    /// A kind that could not be followed can be.
    pub(super) fn recovered(&mut self) {
        self.recovered += 1;
        self.waiting.clear();
    }

    /// How often something has become better. Who has not failed since it did last has no reason to wait.
    pub(super) fn recoveries(&self) -> u64 {
        self.recovered
    }

    /// A kind has seen that the server's store is another one, as after it was restored from a snapshot. It is so for all;
    /// but where it is seen again and again, it is something else that is wrong.
    pub(super) fn another_store(&mut self, now: Instant) {
        if self.another_store_at.is_none_or(|at| now.duration_since(at) >= BETWEEN_STORES) {
            self.another_store_at = Some(now);
            self.stores += 1;
        }
    }

    /// A request of any kind was not answered, or with the word that nobody is at the moment; or the time in which that was
    /// so has ended.
    pub(super) fn is_away(&mut self, now: Instant) {
        self.away = Some(now);
    }

    /// Whether that has happened since.
    pub(super) fn was_away(&self, since: Instant) -> bool {
        self.away.is_some_and(|away| away >= since)
    }

    /// How often another store was seen.
    pub(super) fn stores(&self) -> u64 {
        self.stores
    }

    /// Takes the turn, or says when to come again. `failing`: since when the kind that asks has had trouble.
    pub(super) fn take(&mut self, now: Instant, kind: Kind, failing: Option<Instant>) -> Result<(), Instant> {
        let unwell = self.unwell.map(|(since, _)| since);
        let Some(since) = self.silent.or(unwell).or(failing) else { return Ok(()) };
        if let Some(next) = self.next {
            if !self.waiting.contains(&kind) {
                self.waiting.push_back(kind);
            }
            let is_first = self.waiting.front() == Some(&kind);
            let mine = if is_first { next } else { next + GRACE };
            if now < mine {
                return Err(mine);
            }
        }
        self.waiting.retain(|waiting| *waiting != kind);
        let lasted = now.duration_since(since);
        let between = match self.silent {
            _ if lasted >= LONG => BETWEEN_LATER,
            None if lasted >= A_WHILE => BETWEEN_ANSWERS,
            // Some have answers, now and then.
            Some(_) if lasted >= A_WHILE && self.answered.is_some_and(|at| now.duration_since(at) < SAME_TROUBLE) => {
                BETWEEN_ANSWERS
            }
            _ => BETWEEN,
        };
        self.next = Some(now + pace::between(between));
        Ok(())
    }
}

/// The turns of the tasks of all kinds.
#[derive(Debug)]
pub(super) struct Line {
    turns: Mutex<Turns>,
    /// Sent to when something has become better, or has to be listed again.
    recovered: watch::Sender<()>,
}

impl Line {
    pub(super) fn new(now: Instant) -> Line {
        Line { turns: Mutex::new(Turns::unknown(now)), recovered: watch::Sender::default() }
    }

    /// Does this with the turns; wakes who waits for one if it may be in vain.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Turns) -> T) -> T {
        let mut turns = self.turns();
        let before = (turns.recoveries(), turns.stores());
        let result = act(&mut turns);
        if (turns.recoveries(), turns.stores()) != before {
            self.recovered.send_replace(());
        }
        result
    }

    /// Hears of everything that becomes better, or has to be listed again, from now on.
    pub(super) fn recoveries(&self) -> watch::Receiver<()> {
        self.recovered.subscribe()
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_where_nothing_is_wrong() {
        let (now, mut turns) = (Instant::now(), Turns::default());
        for _ in 0..100 {
            assert_eq!(turns.take(now, Kind::Node, None), Ok(()));
        }
        turns.lost(now);
        assert!(turns.take(now, Kind::Node, None).is_err(), "all kinds take turns");
        turns.answers(now);
        assert_eq!((turns.take(now, Kind::Node, None), turns.recoveries()), (Ok(()), 1));
        turns.answers(now);
        turns.serves(now, true);
        assert_eq!(turns.recoveries(), 1, "nothing became better");
    }

    #[test]
    fn a_server_that_is_unwell_has_not_recovered_by_saying_so_again() {
        let (now, mut turns) = (Instant::now(), Turns::default());
        turns.lost(now);
        turns.refuses(now, true);
        assert_eq!(turns.recoveries(), 1, "it answers");
        turns.refuses(now, true);
        assert!(turns.take(now, Kind::Node, None).is_err() && turns.recoveries() == 1);
        turns.serves(now, false);
        assert_eq!(turns.recoveries(), 1, "lists are served, watches are not");
        turns.serves(now, true);
        assert_eq!((turns.take(now, Kind::Node, None), turns.recoveries()), (Ok(()), 2));
    }

    #[test]
    fn a_server_is_away_from_the_first_failure_to_the_end_of_it() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut turns = Turns::default();
        turns.refuses(start, true);
        turns.is_away(start);
        assert!(turns.was_away(start) && !turns.was_away(later(1)), "it may be over");
        turns.serves(later(2), true);
        // What was not heard of since the middle of it has missed the same.
        assert!(turns.was_away(later(1)) && !turns.was_away(later(3)));

        let mut turns = Turns::default();
        turns.lost(start);
        turns.answers(later(1));
        assert!(!turns.was_away(start), "a connection broke, no more");
        turns.lost(later(2));
        turns.is_away(later(3));
        turns.answers(later(5));
        assert!(turns.was_away(later(4)) && !turns.was_away(later(6)));
    }

    #[test]
    fn kinds_with_trouble_of_their_own_take_turns_with_each_other_only() {
        let (now, mut turns) = (Instant::now(), Turns::default());
        assert_eq!(turns.take(now, Kind::Node, Some(now)), Ok(()));
        assert!(turns.take(now, Kind::Node, Some(now)).is_err());
        assert_eq!(turns.take(now, Kind::Node, None), Ok(()));
    }

    #[test]
    fn everybody_has_a_turn_and_nobody_waits_for_one_who_does_not_come() {
        let (start, mut turns) = (Instant::now(), Turns::default());
        turns.refuses(start, true);
        let mut wait = Kind::ALL.map(|kind| (start, kind));
        let mut taken = Vec::new();
        while taken.len() < 40 {
            let (at, kind) = wait.iter_mut().min().expect("four");
            match turns.take(*at, *kind, None) {
                Ok(()) => taken.push(*kind),
                Err(next) => *at = next,
            }
            // From here on, only two of them ask.
            if taken.len() == 20 {
                wait[2].0 += Duration::from_secs(3600);
                wait[3].0 += Duration::from_secs(3600);
            }
        }
        for kind in Kind::ALL {
            assert_eq!(taken[..20].iter().filter(|taken| **taken == kind).count(), 5, "{taken:?}");
        }
    }

    #[test]
    fn turns_become_rarer() {
        for (silent, seconds, at_most) in [(true, 20, 40), (true, 120, 240), (false, 20, 40), (false, 120, 145)] {
            let (start, mut turns) = (Instant::now(), Turns::default());
            if silent {
                turns.lost(start);
            } else {
                turns.refuses(start, true);
            }
            let mut at = start;
            let mut taken = 0;
            while at < start + Duration::from_secs(seconds) {
                match turns.take(at, Kind::Node, None) {
                    Ok(()) => taken += 1,
                    Err(next) => at = next,
                }
            }
            assert!((seconds..=at_most).contains(&taken), "{silent} {seconds}: {taken}");
            let later = start + Duration::from_secs(3600);
            assert_eq!(turns.take(later, Kind::Node, None), Ok(()));
            assert!(turns.take(later, Kind::Node, None).is_err_and(|next| next >= later + BETWEEN_LATER[0]));
        }
    }
}
