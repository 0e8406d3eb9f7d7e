//! Fewest connections: how many of the next connections each endpoint of a Service gets, from how many it has.
//!
//! The kernel chooses the endpoint of each connection alone, by taking the slots of a Service in turns; it cannot look for
//! the endpoint with the fewest connections. So the slots are given anew from time to time: whoever has fewer gets more of
//! them, just as many as to make all equal until the next look.
//!
//! * [`Balance`]: from what two looks have seen to the slots of each endpoint.
//! * `fill`: levels what is expected to come.
//! * [`keep`]: which slot is whose, with as few changes as can be.
//!
//! The simulation among the tests says what that is worth, and how the numbers here were chosen.

mod estimate;
mod fill;
mod slots;

use std::time::Duration;

use crate::model::Seen;
use estimate::Estimate;
pub use slots::{keep, slots};

/// Which endpoint is next: the schedulers of IPVS that go by the number of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// `lc`: the one with the fewest. Of its weight only 0 counts.
    Lc,
    /// `wlc`: the one with the fewest for its weight.
    Wlc,
    /// `sed`: the one that would have the fewest for its weight, with this one.
    Sed,
    /// `nq`: one that has none, else as `sed`.
    Nq,
}

/// How the next connections are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shares {
    /// All endpoints in turns, in proportion to their weights: as with `rr` and `wrr`.
    Turns,
    /// So many slots for each, in the order in which the endpoints were given; [`slots()`] in all.
    Slots(Vec<u32>),
}

/// Most that an endpoint gets of the connections, as a multiple of its share. One that has just come has none, and would
/// get all of them until the next look.
const MOST: f64 = 3.0;

/// So many connections are expected at least, for each endpoint and in all: however quiet it was, more may come at once,
/// and whoever has the fewest would get all of them.
const LEAST: (f64, f64) = (0.5, 2.0);

/// Of the connections open at a look, the part that has to be open at the next one, for counts to be of use: below the
/// first no longer, from the second on again. That is where connections last for little more than a period on average. Turns
/// are better for shorter ones: they are others at each look.
const STAY: (f64, f64) = (0.36, 0.42);

/// A look is late after so many times the time between the two before.
const LATE: u32 = 3;

/// For how many looks at least it is left at turns, or at slots.
const DWELL: u32 = 5;

/// The connections to the endpoints of one port of a Service, in one family, from look to look.
#[derive(Debug, Clone)]
pub struct Balance<E> {
    /// The endpoints of the last look with their open connections, sorted.
    last: Vec<(E, u32)>,
    /// How long it was before that look.
    elapsed: Duration,
    estimate: Estimate,
    by_slots: bool,
    /// How many looks ago that was decided.
    decided: u32,
}

impl<E> Default for Balance<E> {
    fn default() -> Self {
        Balance {
            last: Vec::new(),
            elapsed: Duration::MAX,
            estimate: Estimate::default(),
            by_slots: false,
            decided: DWELL,
        }
    }
}

impl<E: Ord + Copy> Balance<E> {
    /// Takes what a look has seen, one for each endpoint, after so much time since the look before (of the first, or after
    /// one that failed: any time). Endpoints have weights; those of weight 0 get nothing, unless there is no other.
    pub fn look(&mut self, elapsed: Duration, endpoints: &[(E, u16)], seen: &[Seen], rule: Rule) -> Shares {
        debug_assert_eq!(endpoints.len(), seen.len());
        // Of what came since a look long ago, most has gone again and is not seen.
        let is_late = elapsed > self.elapsed.saturating_mul(LATE);
        self.learn((!is_late).then_some(elapsed), endpoints, seen);
        // One look that came late does not make the next one late.
        let period = elapsed.min(std::mem::replace(&mut self.elapsed, elapsed)).as_secs_f64();
        let Some(weights) = Weights::of(endpoints, rule) else { return Shares::Turns };
        let Some(total) = slots(weights.serving).filter(|_| self.decide(period)) else { return Shares::Turns };
        let stays = self.estimate.stays(period);
        let (each, all) = LEAST;
        let expected = self.estimate.expected(period).max(each * weights.count()).max(all);
        let stay: Vec<f64> = seen.iter().map(|seen| f64::from(seen.open) * stays).collect();
        let most: Vec<f64> = weights.shares().map(|share| MOST * share).collect();
        let shares = match rule {
            Rule::Lc | Rule::Wlc => fill::level(&stay, &weights.each, expected, &most),
            Rule::Sed => fill::level_with_one(&stay, &weights.each, expected, &most),
            Rule::Nq => {
                let idle: Vec<bool> = seen.iter().map(|seen| seen.open == 0).collect();
                fill::idle_first(&stay, &idle, &weights.each, expected, &most)
            }
        };
        Shares::Slots(slots::whole(&shares, &most, total))
    }

    /// Learns from the endpoints that were there at both looks.
    fn learn(&mut self, elapsed: Option<Duration>, endpoints: &[(E, u16)], seen: &[Seen]) {
        let (mut before, mut stayed, mut new) = (0.0, 0.0, 0.0);
        for ((endpoint, _), seen) in endpoints.iter().zip(seen) {
            new += f64::from(seen.new);
            if let Ok(index) = self.last.binary_search_by(|(known, _)| known.cmp(endpoint)) {
                let (_, open) = self.last[index];
                before += f64::from(open);
                stayed += f64::from(seen.open.saturating_sub(seen.new).min(open));
            }
        }
        // To the first look everything is new.
        if let Some(elapsed) = elapsed.filter(|_| !self.last.is_empty()) {
            self.estimate.learn(elapsed.as_secs_f64(), before, stayed, new);
        }
        self.last.clear();
        self.last.extend(endpoints.iter().zip(seen).map(|((endpoint, _), seen)| (*endpoint, seen.open)));
        self.last.sort_unstable();
        self.last.dedup_by_key(|(endpoint, _)| *endpoint);
    }

    /// Whether slots are given by counts.
    fn decide(&mut self, period: f64) -> bool {
        self.decided = self.decided.saturating_add(1);
        let stays = self.estimate.stays(period);
        let wanted = self.estimate.is_enough() && stays >= if self.by_slots { STAY.0 } else { STAY.1 };
        if wanted != self.by_slots && self.decided > DWELL {
            (self.by_slots, self.decided) = (wanted, 0);
        }
        self.by_slots
    }
}

/// The weights that count.
struct Weights {
    each: Vec<f64>,
    sum: f64,
    /// How many are not 0.
    serving: usize,
}

impl Weights {
    /// `None` where there is nothing to choose.
    fn of<E>(endpoints: &[(E, u16)], rule: Rule) -> Option<Weights> {
        let none = endpoints.iter().all(|(_, weight)| *weight == 0);
        let weight = |weight: u16| match (rule, weight) {
            _ if none => 1.0,
            (Rule::Lc, 1..) => 1.0,
            (_, weight) => f64::from(weight),
        };
        let each: Vec<f64> = endpoints.iter().map(|(_, given)| weight(*given)).collect();
        let serving = each.iter().filter(|weight| **weight > 0.0).count();
        (serving > 1).then(|| Weights { sum: each.iter().sum(), each, serving })
    }

    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    fn count(&self) -> f64 {
        self.serving as f64
    }

    fn shares(&self) -> impl Iterator<Item = f64> {
        self.each.iter().map(|weight| weight / self.sum)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
