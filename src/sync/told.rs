//! Holds back lines of the log that would come again and again.

use std::time::{Duration, Instant};

/// The first has a line of the log, and while there are more, one in so long.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// What the log has said of something that may happen often.
#[derive(Debug, Default)]
pub struct Told {
    last: Option<Instant>,
    since: usize,
}

impl Told {
    /// Whether one more is told now; with the text that says how many were not since the last that was.
    pub fn again(&mut self, now: Instant) -> Option<String> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < TOLD_AGAIN) {
            self.since += 1;
            return None;
        }
        self.last = Some(now);
        match std::mem::take(&mut self.since) {
            0 => Some(String::new()),
            more => Some(format!(", and {more} times before")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_often_is_told_seldom_and_counted() {
        let (mut told, start) = (Told::default(), Instant::now());
        let mut at = |milliseconds| told.again(start + Duration::from_millis(milliseconds));
        assert_eq!(at(0).as_deref(), Some(""));
        assert_eq!([at(1), at(5_000), at(9_999)], [None, None, None]);
        assert_eq!(at(10_000).as_deref(), Some(", and 3 times before"));
        assert_eq!(at(10_001), None);
        assert_eq!(at(60_000).as_deref(), Some(", and 1 times before"));
        assert_eq!(at(90_000).as_deref(), Some(""));
    }
}
