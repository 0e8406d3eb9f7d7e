//! Which connections are new since the last look at the kernel's table of them, and at the counters of frontends.

use std::collections::{BTreeMap, HashSet};
use std::mem;
use std::time::{Duration, Instant};

use crate::conntrack::{Flow, Tuple};
use crate::model::FrontendKey;

/// The connections that were there at the last look, and what counters said. The kernel keeps the entry of one that has ended for some seconds at least
/// (10 of TCP that was reset, 30 of UDP), so with looks that are not further apart hardly any is missed.
#[derive(Debug, Default)]
pub struct Seen {
    at: Option<Instant>,
    /// Whether there was a look before this one.
    again: bool,
    before: HashSet<Entry>,
    now: HashSet<Entry>,
    counters: BTreeMap<FrontendKey, Counter>,
}

/// What a counter said when it was last read.
#[derive(Debug, Clone, Copy)]
struct Counter {
    count: u64,
    /// So many looks ago.
    looks: u8,
}

/// So many looks later a counter that is not there is gone: while the kernel resizes a hash table, one may be passed over.
const PASSED_OVER: u8 = 2;

/// What tells an entry from others, also from a later one of the same client and port.
type Entry = (u8, Tuple, Option<[u8; 4]>);

impl Seen {
    /// A look begins; returns how long ago the last one began.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Duration> {
        self.before = mem::take(&mut self.now);
        self.again = self.at.is_some();
        self.counters.retain(|_, counter| {
            counter.looks += 1;
            counter.looks <= PASSED_OVER
        });
        self.at.replace(now).map(|before| now.saturating_duration_since(before))
    }

    /// Whether a connection was not there at the last look; at the first none is new.
    pub(super) fn is_new(&mut self, flow: &Flow) -> bool {
        let entry = (flow.protocol, flow.original, flow.id);
        // While the table is resized, an entry may be listed twice.
        let is_first = self.now.insert(entry);
        self.again && is_first && !self.before.contains(&entry)
    }

    /// How many have come to a frontend since the last look, whose counter says this now; at the first look none. A counter that
    /// went down, or that was not there, is that of a new element.
    pub(super) fn come(&mut self, frontend: FrontendKey, count: u64) -> u64 {
        let before = self.counters.insert(frontend, Counter { count, looks: 0 }).map_or(0, |counter| counter.count);
        match count.checked_sub(before) {
            _ if !self.again => 0,
            Some(come) => come,
            None => count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FrontendAt, Protocol};

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
    #[test]
    fn a_counter_that_went_down_is_a_new_one() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let key = |last| FrontendKey {
            at: FrontendAt::Address([10, 96, 0, last].into()),
            protocol: Protocol::Tcp,
            port: 80.try_into().expect("not 0"),
        };
        let mut look = |counts: &[(u8, u64)]| -> Vec<u64> {
            seen.begin(start);
            counts.iter().map(|(last, count)| seen.come(key(*last), *count)).collect()
        };
        assert_eq!(look(&[(1, 100)]), [0], "nobody knows when they came");
        assert_eq!(look(&[(1, 103), (2, 7)]), [3, 7], "the second is new");
        assert_eq!(look(&[(1, 2), (2, 7)]), [2, 0], "the first was replaced");
        // One is passed over.
        assert_eq!(look(&[(1, 2)]), [0]);
        assert_eq!(look(&[(1, 2), (2, 9)]), [0, 2]);
        // It goes and comes again.
        (0..3).for_each(|_| assert_eq!(look(&[(1, 2)]), [0]));
        assert_eq!(look(&[(1, 2), (2, 9)]), [0, 9]);
    }
}
