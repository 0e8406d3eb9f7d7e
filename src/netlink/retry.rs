//! Trying again what the kernel refused for the moment: it timed out, or had no memory.

use std::time::Duration;

/// The first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Again {
    /// How long to wait before the next attempt.
    pub(crate) pause: Duration,
    /// Whether it worked the last time: this is worth a line of the log.
    pub(crate) first: bool,
}

/// How often something has failed in a row.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    pause: Option<Duration>,
}

impl Retry {
    /// It has failed.
    pub(crate) fn failed(&mut self) -> Again {
        let (first, longest) = PAUSES;
        let pause = self.pause.map_or(first, |pause| (pause * 2).min(longest));
        Again { pause, first: self.pause.replace(pause).is_none() }
    }

    /// Whether it has failed and has not worked since.
    pub(crate) fn is_failing(&self) -> bool {
        self.pause.is_some()
    }

    /// It works; says whether it failed before, which is worth another line.
    pub(crate) fn works(&mut self) -> bool {
        self.pause.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_begin_anew() {
        let mut retry = Retry::default();
        assert!(!retry.works());
        let pauses: Vec<Again> = (0..9).map(|_| retry.failed()).collect();
        let milliseconds: Vec<u128> = pauses.iter().map(|again| again.pause.as_millis()).collect();
        assert_eq!(milliseconds, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(pauses.iter().filter(|again| again.first).count(), 1);
        assert!(pauses[0].first && retry.is_failing());
        assert!(retry.works() && !retry.works() && !retry.is_failing());
        assert_eq!(retry.failed(), pauses[0]);
    }
}
