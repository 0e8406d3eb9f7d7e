//! How many connections all ports of the process serve at a time, and whose place a new one gets when there are so many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

/// Connections that the process serves at a time, if it may have as many file descriptors.
const CONNECTIONS: usize = 512;

/// Even where it may have hardly any.
const FEWEST: usize = 8;

/// Descriptors for all else: netlink, the API server, files, pipes.
const OTHERS: usize = 128;

/// How long a new client has until it has said what it wants.
const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// How long it has from each request to the next. It has to take the answer in that time.
const NEXT_REQUEST: Duration = Duration::from_secs(30);

/// How long the end of a connection is waited for that had to make room; it takes a turn of the scheduler.
const ENDS_SOON: Duration = Duration::from_millis(100);

/// The connections that all ports share.
///
/// Whoever connects when there is no place left gets that of the connection which has got no further for the longest time:
/// it said nothing, or part of a request, or does not take its answer. So nobody from outside can keep others from being
/// answered, unless by coming faster than a request needs to arrive.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    places: Arc<Semaphore>,
    sockets: usize,
    line: Mutex<Line>,
}

/// The connections in the order in which they got further, with what tells each to end.
#[derive(Debug, Default)]
struct Line {
    next: u64,
    places: BTreeMap<u64, Arc<Notify>>,
}

impl Line {
    /// Goes to the end of the line.
    fn join(&mut self, told_to_end: Arc<Notify>) -> u64 {
        self.next += 1;
        self.places.insert(self.next, told_to_end);
        self.next
    }
}

impl Budget {
    /// What this process can have. Raises its limit of descriptors as far as it may be: the usual 1,024 are of a time when
    /// programs used `select`.
    pub(crate) fn of_process() -> Budget {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, hard)| {
            match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                Ok(()) => hard,
                Err(error) => {
                    tracing::debug!(%error, "the limit of file descriptors stays {soft}");
                    soft
                }
            }
        });
        Budget::of(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// For this many descriptors: a half for connections, and of the other half two for each socket that is listened on,
    /// itself and a connection that waits for a place.
    pub(crate) fn of(descriptors: usize) -> Budget {
        let half = descriptors.saturating_sub(OTHERS) / 2;
        let places = Arc::new(Semaphore::new(half.clamp(FEWEST, CONNECTIONS)));
        Budget(Arc::new(Shared { places, sockets: half / 2, line: Mutex::default() }))
    }

    /// How many sockets may be listened on for health checks of Services.
    pub(crate) fn sockets(&self) -> usize {
        self.0.sockets
    }

    /// A place for a connection, as soon as another has ended if none is free.
    pub(super) async fn place(&self) -> Place {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.0.places).try_acquire_owned() {
                break permit;
            }
            self.make_room();
            // Others may wait for the same, on more ports than there are places.
            if let Ok(Ok(permit)) = timeout(ENDS_SOON, Arc::clone(&self.0.places).acquire_owned()).await {
                break permit;
            }
        };
        let told_to_end = Arc::new(Notify::new());
        let number = self.line().join(Arc::clone(&told_to_end));
        let turn = Mutex::new(Turn { number, deadline: Instant::now() + FIRST_REQUEST });
        Place { turn, told_to_end, budget: self.clone(), _permit: permit }
    }

    /// Ends the connection that has got no further for the longest time.
    pub(super) fn make_room(&self) {
        if let Some((_, oldest)) = self.line().places.pop_first() {
            oldest.notify_one();
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Each change leaves it whole.
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Budget {
    fn default() -> Budget {
        Budget::of(1_024)
    }
}

/// A connection's place, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    turn: Mutex<Turn>,
    told_to_end: Arc<Notify>,
    budget: Budget,
    _permit: OwnedSemaphorePermit,
}

/// Where in the line a connection is, and until when it has to get further.
#[derive(Debug)]
struct Turn {
    number: u64,
    deadline: Instant,
}

impl Place {
    /// A request has come: the connection goes to the end of the line.
    pub(super) fn asks(&self) {
        let mut turn = self.turn();
        let mut line = self.budget.line();
        // Who has been told to end is not there any more.
        if line.places.remove(&turn.number).is_some() {
            turn.number = line.join(Arc::clone(&self.told_to_end));
            turn.deadline = Instant::now() + NEXT_REQUEST;
        }
    }

    /// Waits until the client has used up its time, or has to make room.
    pub(super) async fn is_over(&self) {
        loop {
            let deadline = self.turn().deadline;
            if deadline <= Instant::now() {
                return;
            }
            tokio::select! {
                () = self.told_to_end.notified() => return,
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let number = self.turn().number;
        self.budget.line().places.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    #[test]
    fn descriptors_are_shared_out() {
        for (descriptors, places, sockets) in
            [(0, FEWEST, 0), (128, FEWEST, 0), (256, 64, 32), (1_024, 448, 224), (524_288, CONNECTIONS, 131_040)]
        {
            let budget = Budget::of(descriptors);
            assert_eq!((budget.0.places.available_permits(), budget.sockets()), (places, sockets), "{descriptors}");
            let all = places + 2 * sockets + OTHERS;
            assert!(descriptors <= OTHERS || all <= descriptors, "{all} of {descriptors}");
        }
    }

    /// A connection that lasts until it is ended.
    async fn connection(budget: &Budget) -> (Arc<Place>, JoinHandle<()>) {
        let place = Arc::new(budget.place().await);
        let held = Arc::clone(&place);
        (place, tokio::spawn(async move { held.is_over().await }))
    }

    #[tokio::test(start_paused = true)]
    async fn who_got_no_further_for_the_longest_time_makes_room() {
        let budget = Budget::of(0);
        let mut line = VecDeque::new();
        for _ in 0..FEWEST {
            let (place, task) = connection(&budget).await;
            line.push_back((Arc::downgrade(&place), task));
        }
        let start = Instant::now();
        for _ in 0..3 * FEWEST {
            // The first to come asks, and is the last to go.
            let (place, task) = line.pop_front().expect("there is one");
            place.upgrade().expect("it is there").asks();
            line.push_back((place, task));
            let (place, task) = connection(&budget).await;
            line.push_back((Arc::downgrade(&place), task));
            drop(place);
            let (_, oldest) = line.pop_front().expect("there is one");
            oldest.await.expect("it has made room");
            yield_now().await;
            assert!(line.iter().all(|(_, task)| !task.is_finished()));
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "nobody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn more_may_wait_than_there_are_places() {
        let budget = Budget::of(0);
        let came = (0..3 * FEWEST).map(async |_| {
            let place = budget.place().await;
            place.is_over().await;
        });
        let start = Instant::now();
        futures::future::join_all(came).await;
        assert!(start.elapsed() <= 2 * FIRST_REQUEST, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_its_time() {
        let budget = Budget::default();
        let place = budget.place().await;
        let start = Instant::now();
        tokio::join!(place.is_over(), async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            place.asks();
        });
        assert_eq!(start.elapsed(), Duration::from_secs(34));
        let silent = Instant::now();
        budget.place().await.is_over().await;
        assert_eq!(silent.elapsed(), FIRST_REQUEST);
    }
}
