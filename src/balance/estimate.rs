//! How many connections come, and how long they stay, as looks at them show.

/// What a look counts beside the one before it.
const FADE: f64 = 0.875;

/// How many connections must have been looked at twice, to say how many of them stay. One that is open for long counts at
/// each look.
const ENOUGH: f64 = 8.0;

/// Longest pause that is learnt from, in seconds; more may not be one (the machine slept).
const LONGEST: f64 = 3_600.0;

/// Sums over the looks, of which the last count most.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Estimate {
    /// Connections that were open at the look before.
    before: f64,
    /// Those of them that were still open.
    stayed: f64,
    /// Connections that were open at the look before, times the seconds since.
    before_seconds: f64,
    /// Connections that were new.
    new: f64,
    seconds: f64,
}

impl Estimate {
    /// Takes a look, `elapsed` seconds after the one before.
    pub(super) fn learn(&mut self, elapsed: f64, before: f64, stayed: f64, new: f64) {
        let elapsed = elapsed.clamp(0.001, LONGEST);
        let add = |sum: &mut f64, value: f64| *sum = *sum * FADE + value;
        add(&mut self.before, before);
        add(&mut self.stayed, stayed);
        add(&mut self.before_seconds, before * elapsed);
        add(&mut self.new, new);
        add(&mut self.seconds, elapsed);
    }

    /// Whether there is enough to go by.
    pub(super) fn is_enough(&self) -> bool {
        self.before >= ENOUGH
    }

    /// The part of the open connections that is still open after so many seconds.
    pub(super) fn stays(&self, seconds: f64) -> f64 {
        if self.stayed <= 0.0 {
            return 0.0;
        }
        let mean = self.before_seconds / self.before;
        (self.stayed / self.before).powf(seconds / mean)
    }

    /// How many of the connections that come in so many seconds are open at their end.
    pub(super) fn expected(&self, seconds: f64) -> f64 {
        if self.seconds <= 0.0 { 0.0 } else { self.new / self.seconds * seconds }
    }
}
