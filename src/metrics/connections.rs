//! Connections to each frontend, added up from counters that begin anew whenever an element is replaced.

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arcstr::ArcStr;
use prometheus::proto::MetricFamily;
use tokio::sync::watch;
use tokio::time::timeout;

use super::bounded::{Bounded, FORGOTTEN, MOST_SERIES};
use super::table;
use crate::model::{FrontendKey, ObjectName};

/// How long whoever asks for the metrics waits for a reading. Then the values are those of the last one.
const PATIENCE: Duration = Duration::from_millis(500);

/// A frontend of a port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendOf {
    /// The Service.
    pub service: ObjectName,
    /// The name of its port; may be empty.
    pub port: ArcStr,
    /// The frontend.
    pub key: FrontendKey,
}

/// The connections to all frontends since the process began to count.
///
/// Counters are read when somebody asks for the metrics; what one had in all is told when its element is deleted. So nothing
/// is lost where an element is replaced, or a Service goes between two readings.
#[derive(Debug)]
pub struct Connections {
    tally: Mutex<Tally>,
    reader: OnceLock<Reader>,
}

#[derive(Debug)]
struct Reader {
    asks: SyncSender<()>,
    answered: watch::Receiver<()>,
}

impl Connections {
    pub(super) fn new() -> Connections {
        Connections { tally: Mutex::new(Tally::new(MOST_SERIES)), reader: OnceLock::new() }
    }

    /// Somebody reads counters from now on whenever there is something in `asks`, and says in `answered` that that is done.
    pub fn read_by(&self, asks: SyncSender<()>, answered: watch::Receiver<()>) {
        // There is one reader for as long as the process runs.
        let _ = self.reader.set(Reader { asks, answered });
    }

    /// The counters were read: all of them, from `begun` on. Those that are there at the first reading count from there on.
    pub fn read(&self, counts: impl IntoIterator<Item = (FrontendOf, u64)>, begun: Instant) {
        self.tally().read(counts, begun);
    }

    /// A frontend's element was deleted by `at`, and had counted so many in all.
    pub fn deleted(&self, frontend: FrontendOf, count: u64, at: Instant) {
        self.tally().deleted(frontend, count, at);
    }

    /// Has the counters read, if anybody does that, and waits for it a little.
    pub(super) async fn refresh(&self) {
        let Some(reader) = self.reader.get() else { return };
        let mut answered = reader.answered.clone();
        answered.mark_unchanged();
        // If somebody else has asked and waits, both get the answer.
        let _ = reader.asks.try_send(());
        let _ = timeout(PATIENCE, answered.changed()).await;
    }

    pub(super) fn family(&self) -> Option<MetricFamily> {
        let labels = |FrontendOf { service, port, key }: &FrontendOf| {
            vec![service.namespace().to_owned(), service.name().to_owned(), port.to_string(), key.to_string()]
        };
        self.tally().series.families(&table::SERVICE_CONNECTIONS, labels, |[count]| vec![(Vec::new(), *count)])
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Each step leaves it whole.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of the counter of a frontend.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// What of the counter that is there has been added.
    last: u64,
    /// When the reading began that it was last seen in.
    read: Instant,
    /// By when an element was last deleted.
    deleted: Option<Instant>,
    /// What it was at the reading before, and whether it was less at the last one than at that.
    before: u64,
    backwards: bool,
}

/// Adds up.
#[derive(Debug)]
struct Tally {
    /// Whether the counters have been read.
    begun: bool,
    known: BTreeMap<FrontendOf, Known>,
    series: Bounded<FrontendOf, 1>,
}

impl Tally {
    fn new(most: usize) -> Tally {
        Tally { begun: false, known: BTreeMap::new(), series: Bounded::new(most) }
    }

    /// See [`Connections::read`]. A counter that has become less is one that began anew, which nobody told: somebody else has
    /// replaced it. One that is missing may be there: while the kernel enlarges its hash table, a reading can pass one over.
    fn read(&mut self, counts: impl IntoIterator<Item = (FrontendOf, u64)>, begun: Instant) {
        for (frontend, count) in counts {
            let known = self.known.get(&frontend).copied();
            if known.and_then(|known| known.deleted).is_some_and(|at| at >= begun) {
                // Either element may have been read; the next reading tells.
                continue;
            }
            let fresh = Known { last: 0, read: begun, deleted: None, before: 0, backwards: false };
            let Known { last, deleted, .. } = known.unwrap_or(fresh);
            let backwards = count < last;
            let come = match known {
                None if !self.begun => 0,
                _ if backwards => count,
                _ => count - last,
            };
            self.series.add(frontend.clone(), [come], begun);
            self.known.insert(frontend, Known { last: count, read: begun, deleted, before: last, backwards });
        }
        self.begun = true;
        self.known.retain(|_, known| begun.saturating_duration_since(known.read) < FORGOTTEN);
        self.series.forget(begun);
    }

    /// See [`Connections::deleted`].
    fn deleted(&mut self, frontend: FrontendOf, count: u64, at: Instant) {
        if !self.begun {
            // It has counted since before the process began, nobody knows how much.
            return;
        }
        let known = self.known.get(&frontend).copied();
        let fresh = Known { last: 0, read: at, deleted: None, before: 0, backwards: false };
        let mut known = known.unwrap_or(fresh);
        let come = if known.read > at {
            // A reading that began afterwards was faster: what it has seen is the next counter, which it took for this one
            // unless it was less.
            if known.backwards { count.saturating_sub(known.before) } else { count }
        } else {
            count.saturating_sub(std::mem::take(&mut known.last))
        };
        (known.deleted, known.backwards, known.before) = (Some(at), false, 0);
        self.series.add(frontend.clone(), [come], at);
        self.known.insert(frontend, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FrontendAt, Protocol};

    fn frontend(n: u8) -> FrontendOf {
        FrontendOf {
            service: ObjectName::new("shop", "web").expect("a name"),
            port: "http".into(),
            key: FrontendKey {
                at: FrontendAt::Address([10, 96, 0, n].into()),
                protocol: Protocol::Tcp,
                port: 80.try_into().expect("not 0"),
            },
        }
    }

    /// Times that count up.
    struct Clock(Instant);

    impl Clock {
        fn next(&mut self) -> Instant {
            self.0 += Duration::from_secs(1);
            self.0
        }
    }

    fn started(counts: &[(u8, u64)]) -> (Tally, Clock) {
        let (mut tally, mut clock) = (Tally::new(10), Clock(Instant::now()));
        tally.read(counts.iter().map(|(n, count)| (frontend(*n), *count)), clock.next());
        (tally, clock)
    }

    fn total(tally: &Tally, n: u8) -> Option<u64> {
        tally.series.get(&frontend(n)).map(|[count]| count)
    }

    #[test]
    fn counters_count_from_the_start_of_the_process_on() {
        let (mut tally, mut clock) = started(&[(1, 100)]);
        assert_eq!(total(&tally, 1), Some(0), "what was before is not ours");
        tally.read([(frontend(1), 103), (frontend(2), 4)], clock.next());
        assert_eq!((total(&tally, 1), total(&tally, 2)), (Some(3), Some(4)), "a new one begins at zero");
        // One that is passed over, and one that comes twice.
        tally.read([(frontend(2), 5), (frontend(2), 5)], clock.next());
        tally.read([(frontend(1), 110), (frontend(2), 5)], clock.next());
        assert_eq!((total(&tally, 1), total(&tally, 2)), (Some(10), Some(5)));

        let mut early = Tally::new(10);
        early.deleted(frontend(1), 1_000, clock.next());
        early.read([(frontend(1), 2)], clock.next());
        assert_eq!(total(&early, 1), Some(0), "nobody knows when it began");
    }

    #[test]
    fn an_element_that_is_replaced_loses_nothing() {
        let (mut tally, mut clock) = started(&[(1, 0)]);
        tally.read([(frontend(1), 10)], clock.next());
        tally.deleted(frontend(1), 12, clock.next());
        assert_eq!(total(&tally, 1), Some(12));
        // Twice between two readings.
        tally.deleted(frontend(1), 3, clock.next());
        tally.read([(frontend(1), 40)], clock.next());
        assert_eq!(total(&tally, 1), Some(12 + 3 + 40), "more than before, but of another counter");
        tally.deleted(frontend(1), 41, clock.next());
        assert_eq!(total(&tally, 1), Some(56));
        // Nobody tells of this one.
        tally.read([(frontend(1), 5)], clock.next());
        tally.read([(frontend(1), 2)], clock.next());
        assert_eq!(total(&tally, 1), Some(56 + 5 + 2));
        // A Service that comes and goes between two readings.
        tally.deleted(frontend(7), 9, clock.next());
        assert_eq!(total(&tally, 7), Some(9));
    }

    #[test]
    fn a_reading_beside_a_deletion_counts_nothing_twice() {
        for (old, new) in [(12, 3), (12, 11), (12, 40)] {
            // The reading began before the deletion was done: it may have seen either.
            let (mut tally, mut clock) = started(&[(1, 0)]);
            tally.read([(frontend(1), 10)], clock.next());
            let (begun, done) = (clock.next(), clock.next());
            tally.deleted(frontend(1), old, done);
            tally.read([(frontend(1), new)], begun);
            assert_eq!(total(&tally, 1), Some(old));
            tally.read([(frontend(1), new + 1)], clock.next());
            assert_eq!(total(&tally, 1), Some(old + new + 1));

            // It began afterwards, and was told first.
            let (mut tally, mut clock) = started(&[(1, 0)]);
            tally.read([(frontend(1), 10)], clock.next());
            let done = clock.next();
            tally.read([(frontend(1), new)], clock.next());
            tally.deleted(frontend(1), old, done);
            assert_eq!(total(&tally, 1), Some(old + new), "{old} {new}");
            tally.read([(frontend(1), new + 1)], clock.next());
            assert_eq!(total(&tally, 1), Some(old + new + 1), "{old} {new}");
        }
    }

    #[test]
    fn what_is_gone_is_forgotten_after_a_while() {
        let (mut tally, mut clock) = started(&[(1, 0), (2, 0)]);
        tally.read([(frontend(1), 10), (frontend(2), 5)], clock.next());
        tally.deleted(frontend(1), 11, clock.next());
        let soon = clock.next();
        tally.read([(frontend(2), 5)], soon);
        assert_eq!(total(&tally, 1), Some(11), "the last count is still to be seen");
        tally.read([(frontend(2), 6)], soon + FORGOTTEN);
        assert_eq!((total(&tally, 1), total(&tally, 2)), (None, Some(6)));
        assert_eq!(tally.known.len(), 1);
    }
}
