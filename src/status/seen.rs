//! Which connections are new since the last look at the kernel's table of them.

use std::collections::HashSet;
use std::mem;
use std::time::{Duration, Instant};

use crate::conntrack::{Flow, Tuple};

/// The connections that were there at the last look. The kernel keeps the entry of one that has ended for some seconds at least
/// (10 of TCP that was reset, 30 of UDP), so with looks that are not further apart hardly any is missed.
#[derive(Debug, Default)]
pub struct Seen {
    at: Option<Instant>,
    /// Whether there was a look before this one.
    again: bool,
    before: HashSet<Entry>,
    now: HashSet<Entry>,
}

/// What tells an entry from others, also from a later one of the same client and port.
type Entry = (u8, Tuple, Option<[u8; 4]>);

impl Seen {
    /// A look begins; returns how long ago the last one began.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Duration> {
        self.before = mem::take(&mut self.now);
        self.again = self.at.is_some();
        self.at.replace(now).map(|before| now.saturating_duration_since(before))
    }

    /// Whether a connection was not there at the last look; at the first none is new.
    pub(super) fn is_new(&mut self, flow: &Flow) -> bool {
        let entry = (flow.protocol, flow.original, flow.id);
        // While the table is resized, an entry may be listed twice.
        let is_first = self.now.insert(entry);
        self.again && is_first && !self.before.contains(&entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn flow(client: &str, id: u8) -> Flow {
        let flow = Flow::translated(Protocol::Tcp, [client, "10.96.0.1:80", "10.1.0.1:8080"]);
        Flow { id: Some([0, 0, 0, id]), ..flow }
    }

    #[test]
    fn those_that_were_not_there_are_new() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(seen.begin(start), None);
        assert!(!seen.is_new(&flow("192.0.2.1:1000", 1)), "nobody knows");
        assert_eq!(seen.begin(start + second), Some(second));
        assert!(!seen.is_new(&flow("192.0.2.1:1000", 1)));
        assert!(seen.is_new(&flow("192.0.2.1:1001", 2)));
        assert!(!seen.is_new(&flow("192.0.2.1:1001", 2)), "it is listed twice");
        assert_eq!(seen.begin(start + 3 * second), Some(2 * second));
        assert!(seen.is_new(&flow("192.0.2.1:1000", 3)), "the port was used again");
        assert!(!seen.is_new(&flow("192.0.2.1:1001", 2)));
    }
}
