//! Cleans up on a thread of its own.

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::gone::Resets;
use super::netlink::{Flows, FlowsError, Swept};
use super::plan::{Flow, Frontends, gone, stale, stranded};
use crate::model::{Family, PerFamily};
use crate::threads;

/// When frontends are checked a second time.
///
/// A packet that met the old rules just before they were replaced may still be on its way through the stack (in a
/// queue of another CPU, in a `queue` rule of a firewall). Its connection enters the table only at the end of that
/// way, perhaps behind the first pass. Such a packet takes microseconds as a rule, so a second is generous.
const SECOND_PASS: Duration = Duration::from_secs(1);

/// So long an endpoint has to be away before connections to it are reset. A controller that moves it from one slice to another
/// may delete it there before it adds it here, with two requests to the API server.
const AWAY: Duration = Duration::from_secs(2);

/// A pass takes time in proportion to the table of connections, however little has changed: after one, nothing is done
/// for so many times as long as it took. Changes that come meanwhile go into one pass.
const REST: u32 = 4;

/// The first wait after a pass that did not do all that it should; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// How often such a pass is done again, which takes two minutes. After that, frontends wait for their next change.
const RETRIES: u32 = 7;

/// Why connections are left alone that nobody would reset.
const NOT_PICKED_UP: &str =
    "net.netfilter.nf_conntrack_tcp_loose is 0, so their next packet would be answered by nobody";

/// How long the end of the process waits for what is left to be done. A million connections are listed in about a
/// second; a kubelet gives 30 seconds.
const LAST_PASS: Duration = Duration::from_secs(10);

/// What one pass did, for logs and metrics.
#[derive(Debug)]
pub struct Sweep {
    /// The number of frontends that were checked.
    pub frontends: usize,
    /// The result of each family that the frontends concern.
    pub families: PerFamily<Option<Result<Swept, FlowsError>>>,
    /// The result of each family in which connections to endpoints that are gone were looked for.
    pub resets: PerFamily<Option<Result<Swept, FlowsError>>>,
    /// How long it took in each.
    pub elapsed: PerFamily<Duration>,
}

impl Sweep {
    /// What was done in a family.
    fn results(&self, family: Family) -> impl Iterator<Item = (What, &Result<Swept, FlowsError>)> {
        let each = [(What::Stale, &self.families[family]), (What::Gone, &self.resets[family])];
        each.into_iter().filter_map(|(what, result)| Some((what, result.as_ref()?)))
    }
}

/// What a pass looks for, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Stale,
    Gone,
}

impl What {
    fn left(self) -> &'static str {
        match self {
            What::Stale => "stale UDP flows are not all cleaned up",
            What::Gone => "connections to endpoints that are gone are not all reset",
        }
    }
}

/// The thread that cleans up. Dropping it has everything that waits done first, in a last pass, but waits no longer than
/// ten seconds: what is not done by then is done at the next start, which checks all frontends.
#[derive(Debug)]
pub struct Worker {
    jobs: Option<Sender<Frontends>>,
    thread: Option<JoinHandle<()>>,
    /// Says nothing, and hangs up when the thread is at its end.
    end: Receiver<()>,
    /// How long a drop waits for that.
    patience: Duration,
}

impl Worker {
    /// Starts the thread. `report` is called on it after each pass; `picks_up` says whether the kernel takes a packet in the
    /// middle of a connection for its first (`nf_conntrack_tcp_loose`), and is asked only where that matters.
    pub fn spawn<F, P, R>(flows: F, picks_up: P, report: R) -> io::Result<Worker>
    where
        F: Flows + Send + 'static,
        P: FnMut() -> bool + Send + 'static,
        R: FnMut(&Sweep) + Send + 'static,
    {
        let (jobs, receiver) = channel();
        let (ends, end) = channel();
        let thread = threads::spawn("conntrack", move || {
            run(flows, picks_up, report, &receiver);
            drop(ends);
        })?;
        Ok(Worker { jobs: Some(jobs), thread: Some(thread), end, patience: LAST_PASS })
    }

    /// Asks for a clean-up of these frontends, after the kernel has got their new rules. Never waits; frontends that are
    /// asked for while a pass is under way are checked together in the next.
    pub fn clean(&self, frontends: Frontends) {
        if !frontends.is_empty()
            && let Some(jobs) = &self.jobs
            && jobs.send(frontends).is_err()
        {
            // It ends before us only by a panic, which has been reported.
            tracing::error!("the thread that cleans up connection tracking is gone");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Err(RecvTimeoutError::Timeout) = self.end.recv_timeout(self.patience) {
            tracing::warn!("stale UDP flows may be left: the last pass over them takes too long to wait for");
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    mut flows: impl Flows,
    mut picks_up: impl FnMut() -> bool,
    mut report: impl FnMut(&Sweep),
    jobs: &Receiver<Frontends>,
) {
    let mut schedule = Schedule::default();
    let mut left_alone = false;
    let mut pass = |schedule: &mut Schedule, due: Frontends, last: bool| {
        let concerns_resets = Family::ALL.into_iter().any(|family| due.resets.concerns(family));
        let picks_up = concerns_resets && picks_up();
        if concerns_resets {
            let before = mem::replace(&mut left_alone, !picks_up);
            if left_alone && !before {
                tracing::warn!("open connections to endpoints that are gone are not reset: {NOT_PICKED_UP}");
            }
        }
        let pass = clean(&mut flows, &due, picks_up);
        schedule.done(&pass, due, Instant::now());
        log(&pass, &schedule.failures, last);
        report(&pass);
    };
    loop {
        let job = match schedule.wait(Instant::now()) {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(timeout) => jobs.recv_timeout(timeout),
        };
        let mut over = false;
        match job {
            Ok(frontends) => schedule.add(frontends, Instant::now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => over = true,
        }
        loop {
            match jobs.try_recv() {
                Ok(frontends) => schedule.add(frontends, Instant::now()),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    over = true;
                    break;
                }
            }
        }
        let due = if over { schedule.take_all(Instant::now()) } else { schedule.take(Instant::now()) };
        if !due.is_empty() {
            pass(&mut schedule, due, over);
        }
        if over {
            return;
        }
    }
}

/// One pass: each family's table is listed once, however many frontends there are, and once more where connections may
/// have begun without rules, and where some are to be reset.
fn clean(flows: &mut impl Flows, frontends: &Frontends, picks_up: bool) -> Sweep {
    let (mut elapsed, mut resets) = (PerFamily::default(), PerFamily::default());
    let families = PerFamily::from_fn(|family| {
        let start = Instant::now();
        let udp = frontends.concerns(family).then(|| flows.delete_udp(family, &mut |flow| stale(flow, frontends)));
        let restored = frontends.restored[family].as_ref();
        let begun = restored.map(|_| flows.delete_unanswered(family, &mut |flow| stranded(flow, frontends)));
        resets[family] = frontends.resets.concerns(family).then(|| {
            let mut is_gone = |flow: &Flow| gone(flow, frontends, picks_up);
            flows.delete_tcp(family, &mut is_gone)
        });
        elapsed[family] = start.elapsed();
        match (udp, begun) {
            (Some(Ok(udp)), Some(Ok(begun))) => Some(Ok(udp.and(begun))),
            (Some(Err(error)), _) | (_, Some(Err(error))) => Some(Err(error)),
            (one, other) => one.or(other),
        }
    });
    Sweep { frontends: frontends.len(), families, resets, elapsed }
}

/// Logs a pass after which so many have failed one after the other in each family.
fn log(pass: &Sweep, failures: &PerFamily<u32>, last: bool) {
    let frontends = pass.frontends;
    for family in Family::ALL {
        let elapsed = pass.elapsed[family];
        for (what, result) in pass.results(family) {
            if let Ok(Swept { seen, deleted, failed, incomplete }) = result {
                match what {
                    What::Stale => {
                        tracing::debug!(%family, frontends, seen, deleted, failed, incomplete, ?elapsed, "stale UDP flows");
                    }
                    What::Gone if *deleted > 0 => {
                        tracing::info!(%family, seen, deleted, ?elapsed, "connections to endpoints that are gone are reset");
                    }
                    What::Gone => {
                        tracing::debug!(%family, seen, failed, incomplete, ?elapsed, "no connection leads to an endpoint that is gone");
                    }
                }
            }
            if is_complete(result) {
                continue;
            }
            let then = match failures[family] {
                0 => continue,
                _ if last => "the next start does it",
                1 => "trying again",
                failures if failures == RETRIES + 1 => "given up until a change",
                _ => continue,
            };
            let left = what.left();
            match result {
                Ok(Swept { failed, incomplete, .. }) => tracing::warn!(%family, failed, incomplete, "{left}; {then}"),
                Err(error) => {
                    let source = std::error::Error::source(error).map(ToString::to_string);
                    tracing::warn!(%family, %error, source, "{left}; {then}");
                }
            }
        }
    }
}

fn is_complete(result: &Result<Swept, FlowsError>) -> bool {
    result.as_ref().is_ok_and(|swept| swept.failed == 0 && !swept.incomplete)
}

/// What is to be checked, and when. Time comes in as an argument.
///
/// A frontend waits in at most one place, and with its newest rule: an older one would delete flows to endpoints that it
/// does not know. So what waits is no more than the frontends that changed within the last seconds; all that there are
/// wait only after a start or a repair. To be reset it waits once for each of its changes, from when endpoints have been
/// away since then; none of them is of an endpoint that is known to be there.
#[derive(Debug, Default)]
struct Schedule {
    /// For the first time, at once.
    first: Frontends,
    /// Once more, not before these times, in no order.
    later: Vec<(Instant, Frontends)>,
    /// No pass before this time.
    rest: Option<Instant>,
    /// Passes that failed one after the other.
    failures: PerFamily<u32>,
}

impl Schedule {
    fn add(&mut self, mut job: Frontends, now: Instant) {
        self.supersede(&job);
        let resets = mem::take(&mut job.resets);
        if !resets.is_empty() {
            let node_port_addresses = Arc::clone(&job.node_port_addresses);
            self.later.push((now + AWAY, Frontends { node_port_addresses, resets, ..Frontends::default() }));
        }
        self.first.merge(job);
    }

    fn supersede(&mut self, newer: &Frontends) {
        for (_, waiting) in &mut self.later {
            waiting.superseded_by(newer);
        }
        self.later.retain(|(_, waiting)| !waiting.is_empty());
    }

    /// How long nothing is due: zero if something is, `None` if nothing will be.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let first = (!self.first.is_empty()).then_some(now);
        let due = self.later.iter().map(|(at, _)| *at).chain(first).min()?;
        Some(self.rest.map_or(due, |rest| rest.max(due)).saturating_duration_since(now))
    }

    /// What is due now; what is in it for the first time will be due once more.
    fn take(&mut self, now: Instant) -> Frontends {
        if self.rest.is_some_and(|rest| rest > now) {
            return Frontends::default();
        }
        let mut due = mem::take(&mut self.first);
        let again = due.clone();
        self.later.retain_mut(|(at, waiting)| {
            let over = *at <= now;
            if over {
                due.merge(mem::take(waiting));
            }
            !over
        });
        if !again.is_empty() {
            self.later.push((now + SECOND_PASS, again));
        }
        due
    }

    /// All that there is to do. Who has not been away for long may come back: the next start looks at everybody.
    fn take_all(&mut self, now: Instant) -> Frontends {
        let mut due = mem::take(&mut self.first);
        for (at, mut waiting) in self.later.drain(..) {
            if at > now {
                waiting.resets = Resets::default();
            }
            due.merge(waiting);
        }
        due
    }

    /// A pass over what was `due` has ended. What it did not do in a family is done again, a number of times.
    fn done(&mut self, pass: &Sweep, due: Frontends, now: Instant) {
        self.rest = Some(now + Family::ALL.into_iter().map(|family| pass.elapsed[family]).sum::<Duration>() * REST);
        for family in Family::ALL {
            if pass.results(family).next().is_none() {
                continue;
            }
            if pass.results(family).all(|(_, result)| is_complete(result)) {
                self.failures[family] = 0;
                continue;
            }
            let wait = FIRST_RETRY * 2_u32.saturating_pow(self.failures[family]);
            self.failures[family] = self.failures[family].saturating_add(1);
            if self.failures[family] <= RETRIES {
                let mut again = due.of(family);
                for (_, waiting) in &self.later {
                    again.resets.spare(&waiting.resets);
                }
                let resets = mem::take(&mut again.resets);
                self.supersede(&again);
                again.resets = resets;
                self.later.push((now + wait, again));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::net::SocketAddr;
    use std::num::NonZeroU16;
    use std::sync::{Arc, mpsc};

    use super::super::plan::Rule;
    use super::*;
    use crate::model::{FrontendAt, FrontendKey, Protocol};

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("a socket address")
    }

    fn job(frontends: &[(&str, &str)]) -> Frontends {
        let rules = frontends.iter().map(|(frontend, endpoint)| (at(frontend), Rule::endpoints([at(endpoint)])));
        Frontends { by_address: rules.collect(), ..Frontends::default() }
    }

    #[test]
    fn every_job_is_due_at_once_and_again_later() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let (a, b) = (job(&[("10.0.0.1:53", "10.1.0.1:53")]), job(&[("10.0.0.2:53", "10.1.0.1:53")]));
        let mut schedule = Schedule::default();
        assert_eq!(schedule.wait(ms(0)), None);
        schedule.add(a.clone(), ms(0));
        assert_eq!(schedule.wait(ms(0)), Some(Duration::ZERO));
        assert_eq!(schedule.take(ms(0)), a);
        assert_eq!(schedule.wait(ms(100)), Some(Duration::from_millis(900)));
        schedule.add(b.clone(), start);
        assert_eq!(schedule.take(ms(400)), b);
        assert_eq!(schedule.wait(ms(400)), Some(Duration::from_millis(600)));
        assert!(schedule.take(ms(999)).is_empty());
        assert_eq!(schedule.take(ms(1000)), a);
        assert_eq!(schedule.take(ms(1400)), b);
        assert_eq!(schedule.wait(ms(1400)), None);
    }

    #[test]
    fn a_second_pass_never_applies_an_older_rule() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let old = job(&[("10.0.0.1:53", "10.1.0.1:53"), ("10.0.0.2:53", "10.1.0.1:53")]);
        let new = job(&[("10.0.0.1:53", "10.1.0.9:53")]);
        let mut schedule = Schedule::default();
        schedule.add(old, start);
        schedule.take(ms(0));
        schedule.add(new.clone(), start);
        // Both at once: the first pass of the new rule and the second pass of what is left of the old job.
        assert_eq!(schedule.take(ms(1000)), job(&[("10.0.0.1:53", "10.1.0.9:53"), ("10.0.0.2:53", "10.1.0.1:53")]));
        assert_eq!(schedule.take(ms(2000)), new);
        assert_eq!(schedule.wait(ms(2000)), None);
    }

    /// A pass over what was due, that ended so in IPv4 and took so long.
    fn passed(due: &Frontends, swept: Result<Swept, FlowsError>, took: u64) -> Sweep {
        let mut elapsed = PerFamily::default();
        elapsed[Family::V4] = Duration::from_millis(took);
        let mut families = PerFamily::default();
        families[Family::V4] = Some(swept);
        Sweep { frontends: due.len(), families, resets: PerFamily::default(), elapsed }
    }

    #[test]
    fn a_pass_that_failed_is_done_again_a_number_of_times() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let incomplete = || Ok(Swept { incomplete: true, ..Swept::default() });
        let undeleted = || Ok(Swept { failed: 1, ..Swept::default() });
        let unread = || Err(FlowsError::Unsupported);
        let a = job(&[("10.0.0.1:53", "10.1.0.1:53")]);
        let mut schedule = Schedule::default();
        schedule.add(a.clone(), start);
        let mut now = 0;
        for (attempt, swept) in
            [incomplete(), undeleted(), unread(), incomplete(), unread(), unread(), unread()].into_iter().enumerate()
        {
            assert_eq!(schedule.wait(at(now)), Some(Duration::ZERO), "{attempt}");
            let due = schedule.take(at(now));
            assert_eq!(due, a, "{attempt}");
            schedule.done(&passed(&due, swept, 0), due, at(now));
            let wait = 1 << attempt;
            assert_eq!(schedule.wait(at(now)), Some(Duration::from_secs(wait)), "{attempt}");
            assert_eq!(schedule.later.len(), 1, "each frontend waits in one place");
            now += wait;
        }
        let due = schedule.take(at(now));
        assert_eq!(due, a);
        schedule.done(&passed(&due, unread(), 0), due, at(now));
        assert_eq!((schedule.wait(at(now)), schedule.failures[Family::V4]), (None, RETRIES + 1), "given up");

        // The next change is not given up, and one that succeeds makes good.
        schedule.add(a.clone(), start);
        let due = schedule.take(at(now));
        schedule.done(&passed(&due, unread(), 0), due, at(now));
        assert_eq!(schedule.wait(at(now)), Some(SECOND_PASS));
        let due = schedule.take(at(now + 1));
        assert_eq!(due, a);
        schedule.done(&passed(&due, Ok(Swept::default()), 0), due, at(now + 1));
        assert_eq!((schedule.wait(at(now + 1)), schedule.failures[Family::V4]), (None, 0));
    }

    #[test]
    fn only_what_failed_is_done_again_and_with_its_newest_rule() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let v6 = Frontends { by_address: job(&[("[fd00::1]:53", "[fd01::1]:53")]).by_address, ..Frontends::default() };
        let old = job(&[("10.0.0.1:53", "10.1.0.1:53"), ("10.0.0.2:53", "10.1.0.1:53")]);
        let new = job(&[("10.0.0.1:53", "10.1.0.9:53")]);
        let mut schedule = Schedule::default();
        schedule.add(old.clone(), start);
        schedule.add(v6.clone(), start);
        let due = schedule.take(ms(0));
        let mut pass = passed(&due, Err(FlowsError::Permission), 0);
        pass.families[Family::V6] = Some(Ok(Swept::default()));
        schedule.done(&pass, due, ms(200));
        schedule.add(new.clone(), start);
        assert_eq!(schedule.take(ms(300)), new);
        assert_eq!(schedule.take(ms(1000)), v6, "its second pass");
        assert_eq!(schedule.take(ms(1200)), job(&[("10.0.0.2:53", "10.1.0.1:53")]), "what is left of what failed");
        assert_eq!(schedule.take(ms(1300)), new, "its second pass");
        assert_eq!(schedule.wait(ms(1300)), None);
    }

    #[test]
    fn passes_take_a_part_of_the_time() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let (a, b) = (job(&[("10.0.0.1:53", "10.1.0.1:53")]), job(&[("10.0.0.2:53", "10.1.0.1:53")]));
        let mut schedule = Schedule::default();
        schedule.add(a.clone(), start);
        let due = schedule.take(ms(0));
        schedule.done(&passed(&due, Ok(Swept::default()), 500), due, ms(500));
        schedule.add(b.clone(), start);
        assert_eq!(schedule.wait(ms(500)), Some(Duration::from_secs(2)));
        assert!(schedule.take(ms(1499)).is_empty());
        schedule.add(job(&[("10.0.0.2:53", "10.1.0.2:53")]), start);
        let mut both = a;
        both.merge(job(&[("10.0.0.2:53", "10.1.0.2:53")]));
        assert_eq!(schedule.take(ms(2500)), both, "all that came meanwhile, in one pass");
    }

    /// Calls that a table answers in turn, and how often it was asked.
    struct Scripted<F: FnMut(usize, &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError>> {
        asked: usize,
        answer: F,
    }

    impl<F: FnMut(usize, &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError>> Flows for Scripted<F> {
        fn delete_udp(&mut self, _: Family, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
            self.asked += 1;
            (self.answer)(self.asked, stale)
        }

        fn delete_unanswered(&mut self, _: Family, _: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
            unreachable!("nothing was restored")
        }

        fn delete_tcp(&mut self, _: Family, _: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
            unreachable!("nobody asks for resets")
        }
    }

    #[test]
    fn what_waits_is_done_before_the_end() {
        let (begun, under_way) = mpsc::channel();
        let (go, go_receiver) = mpsc::channel();
        let (deleted, found) = mpsc::channel();
        let answer = move |nth: usize, stale: &mut dyn FnMut(&Flow) -> bool| {
            if nth == 1 {
                begun.send(()).expect("the test listens");
                let () = go_receiver.recv().expect("the test lets us go on");
            }
            let flows = ["10.0.0.1:53", "10.0.0.2:53"].map(|frontend| flow(frontend, "10.1.0.1:53"));
            let stale = flows.iter().filter(|flow| stale(flow)).map(|flow| flow.original.destination);
            deleted.send(stale.collect::<Vec<SocketAddr>>()).expect("the test listens");
            Ok(Swept::default())
        };
        let worker = Worker::spawn(Scripted { asked: 0, answer }, || true, |_: &Sweep| {}).expect("a thread");
        worker.clean(job(&[("10.0.0.1:53", "10.1.0.2:53")]));
        under_way.recv_timeout(Duration::from_secs(20)).expect("the first pass begins");
        worker.clean(job(&[("10.0.0.2:53", "10.1.0.2:53")]));
        go.send(()).expect("the worker waits");
        drop(worker);
        let found: Vec<Vec<SocketAddr>> = found.iter().collect();
        assert_eq!(found.first(), Some(&vec![at("10.0.0.1:53")]));
        let later: Vec<SocketAddr> = found[1..].concat();
        assert!(later.contains(&at("10.0.0.2:53")), "what waited for its first pass: {found:?}");
        assert!(later.contains(&at("10.0.0.1:53")), "what waited for its second: {found:?}");
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let (begun, under_way) = mpsc::channel();
        let (go, go_receiver) = mpsc::channel::<()>();
        let answer = move |_: usize, _: &mut dyn FnMut(&Flow) -> bool| {
            let _ = begun.send(());
            let _ = go_receiver.recv();
            Ok(Swept::default())
        };
        let mut worker = Worker::spawn(Scripted { asked: 0, answer }, || true, |_: &Sweep| {}).expect("a thread");
        worker.patience = Duration::from_millis(10);
        worker.clean(job(&[("10.0.0.1:53", "10.1.0.2:53")]));
        under_way.recv_timeout(Duration::from_secs(20)).expect("the pass begins");
        drop(worker); // would wait for the pass, which waits for us
        drop(go);
    }

    #[test]
    fn a_table_that_cannot_be_read_is_read_again() {
        let (deleted, found) = mpsc::channel();
        let answer = move |nth: usize, stale: &mut dyn FnMut(&Flow) -> bool| match nth {
            // The second time is that of the second pass.
            1 | 2 => Err(FlowsError::Permission),
            _ => {
                let deleted_now = stale(&flow("10.0.0.1:53", "10.1.0.1:53"));
                let _ = deleted.send((nth, deleted_now));
                Ok(Swept::default())
            }
        };
        let worker = Worker::spawn(Scripted { asked: 0, answer }, || true, |_: &Sweep| {}).expect("a thread");
        worker.clean(job(&[("10.0.0.1:53", "10.1.0.2:53")]));
        assert_eq!(found.recv_timeout(Duration::from_secs(20)), Ok((3, true)));
    }

    /// A table of connections in memory that says what it was asked.
    struct Table {
        flows: Vec<Flow>,
        asked: mpsc::Sender<(Family, usize)>,
        go: mpsc::Receiver<()>,
    }

    impl Flows for Table {
        fn delete_udp(&mut self, family: Family, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
            let before = self.flows.len();
            self.flows.retain(|flow| !stale(flow));
            let deleted = before - self.flows.len();
            self.asked.send((family, deleted)).expect("the test listens");
            self.go.recv().expect("the test lets us go on");
            Ok(Swept { seen: before, deleted, failed: 0, incomplete: false })
        }

        fn delete_unanswered(
            &mut self,
            family: Family,
            stale: &mut dyn FnMut(&Flow) -> bool,
        ) -> Result<Swept, FlowsError> {
            self.delete_udp(family, stale)
        }

        fn delete_tcp(&mut self, family: Family, gone: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
            self.delete_udp(family, gone)
        }
    }

    fn flow(frontend: &str, endpoint: &str) -> Flow {
        Flow::translated(Protocol::Udp, ["10.0.0.2:4000", frontend, endpoint])
    }

    #[test]
    fn jobs_that_arrive_during_a_pass_become_one() {
        let (asked_sender, asked) = mpsc::channel();
        let (go, go_receiver) = mpsc::channel();
        let (report_sender, reports) = mpsc::channel();
        let flows = ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"].map(|frontend| flow(frontend, "10.1.0.1:53")).into();
        let table = Table { flows, asked: asked_sender, go: go_receiver };
        let worker = Worker::spawn(
            table,
            || true,
            move |pass: &Sweep| {
                let _ = report_sender.send((pass.frontends, pass.families.v6.is_some()));
            },
        )
        .expect("a thread");
        let deadline = Duration::from_secs(20);

        worker.clean(Frontends::default());
        worker.clean(job(&[("10.0.0.1:53", "10.1.0.2:53")]));
        assert_eq!(asked.recv_timeout(deadline), Ok((Family::V4, 1)));
        worker.clean(job(&[("10.0.0.2:53", "10.1.0.2:53")]));
        worker.clean(job(&[("10.0.0.3:53", "10.1.0.2:53")]));
        worker.clean(job(&[("10.0.0.3:53", "10.1.0.1:53")])); // the newest rule counts: its flow stays
        go.send(()).expect("the worker waits");
        assert_eq!(reports.recv_timeout(deadline), Ok((1, false)));
        assert_eq!(asked.recv_timeout(deadline), Ok((Family::V4, 1)));
        go.send(()).expect("the worker waits");
        assert_eq!(reports.recv_timeout(deadline), Ok((2, false)));
        // The second pass of each, in one or in two passes.
        let mut again = 0;
        while again < 3 {
            assert_eq!(asked.recv_timeout(deadline), Ok((Family::V4, 0)));
            go.send(()).expect("the worker waits");
            again += reports.recv_timeout(deadline).expect("a report").0;
        }
        drop(worker);
        assert!(asked.recv().is_err(), "the thread has ended");
    }

    #[test]
    fn where_rules_were_restored_what_has_no_answer_is_looked_at_too() {
        let (asked_sender, asked) = mpsc::channel();
        let (go, go_receiver) = mpsc::channel();
        (0..2).for_each(|_| go.send(()).expect("room"));
        let tcp = |frontend, endpoint| Flow { protocol: Protocol::Tcp.number(), ..flow(frontend, endpoint) };
        let flows = vec![
            flow("10.0.0.1:53", "10.1.0.1:53"),
            tcp("10.0.0.2:80", "10.0.0.2:80"),
            tcp("10.0.0.2:80", "10.1.0.1:80"),
        ];
        let mut table = Table { flows, asked: asked_sender, go: go_receiver };
        let key = FrontendKey {
            at: FrontendAt::Address(at("10.0.0.2:80").ip()),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(80).expect("a port"),
        };
        let mut frontends = job(&[("10.0.0.1:53", "10.1.0.2:53")]);
        frontends.restored.v4 = Some(Arc::new(HashSet::from([key])));
        let pass = clean(&mut table, &frontends, true);
        assert_eq!(asked.try_iter().collect::<Vec<_>>(), [(Family::V4, 1), (Family::V4, 1)]);
        let swept = pass.families.v4.expect("it was looked at").expect("it could be");
        assert_eq!((swept.seen, swept.deleted), (5, 2));
        assert_eq!(table.flows, [tcp("10.0.0.2:80", "10.1.0.1:80")]);
    }

    /// A job that resets connections through 10.0.0.2:80 to other endpoints than this one.
    fn reset(endpoint: &str) -> Frontends {
        let key = FrontendKey {
            at: FrontendAt::Address(at("10.0.0.2:80").ip()),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(80).expect("a port"),
        };
        let mut frontends = Frontends::default();
        frontends.resets.insert(key, Some([at(endpoint)].into()));
        frontends
    }

    /// A connection through 10.0.0.2:80.
    fn through(endpoint: &str) -> Flow {
        let flow = Flow::translated(Protocol::Tcp, ["10.0.0.9:4000", "10.0.0.2:80", endpoint]);
        Flow { answered: true, ..flow }
    }

    #[test]
    fn connections_to_endpoints_that_are_gone_are_looked_for_where_that_is_asked_for() {
        let (asked_sender, asked) = mpsc::channel();
        let (go, go_receiver) = mpsc::channel();
        (0..2).for_each(|_| go.send(()).expect("room"));
        let flows = vec![through("10.1.0.1:80"), through("10.1.0.2:80")];
        let mut table = Table { flows, asked: asked_sender, go: go_receiver };
        let pass = clean(&mut table, &reset("10.1.0.1:80"), false);
        assert_eq!(pass.resets.v4.expect("it was looked at").expect("it could be").deleted, 0, "nobody would reset it");
        let pass = clean(&mut table, &reset("10.1.0.1:80"), true);
        assert_eq!(asked.try_iter().collect::<Vec<_>>(), [(Family::V4, 0), (Family::V4, 1)]);
        assert!(pass.families.v4.is_none() && pass.resets.v6.is_none());
        assert_eq!(pass.resets.v4.expect("it was looked at").expect("it could be").deleted, 1);
        assert_eq!(table.flows, [through("10.1.0.1:80")]);
    }

    #[test]
    fn resets_that_fail_are_tried_again_and_the_newest_list_counts() {
        let start = Instant::now();
        let seconds = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::default();
        schedule.add(reset("10.1.0.1:80"), start);
        assert_eq!(schedule.wait(start), Some(AWAY));
        assert!(schedule.take(start).is_empty(), "others may only be moved");
        let due = schedule.take(start + AWAY);
        assert_eq!(due, reset("10.1.0.1:80"));
        let mut pass = passed(&due, Ok(Swept::default()), 0);
        pass.resets.v4 = Some(Err(FlowsError::Permission));
        schedule.done(&pass, due, start + AWAY);
        assert_eq!((schedule.failures[Family::V4], schedule.later.len()), (1, 1));
        schedule.add(reset("10.1.0.2:80"), start + AWAY);
        let mut both = reset("10.1.0.1:80");
        both.resets.spare(&reset("10.1.0.2:80").resets);
        assert_eq!(schedule.take(start + AWAY + FIRST_RETRY), both, "the first has gone only since");
        assert_eq!(schedule.take(start + AWAY * 2), reset("10.1.0.2:80"));
        assert_eq!(schedule.wait(seconds(9)), None);
    }

    #[test]
    fn an_endpoint_that_comes_back_soon_keeps_its_connections() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut schedule = Schedule::default();
        // Others than each of the two are gone, in turn, as long as the Service changes.
        for at in [0, 1500, 3000, 4500] {
            let endpoint = if at % 2 == 0 && at % 3000 == 0 { "10.1.0.1:80" } else { "10.1.0.2:80" };
            schedule.add(reset(endpoint), ms(at));
            let due = schedule.take(ms(at + 600));
            for endpoint in ["10.1.0.1:80", "10.1.0.2:80"] {
                assert!(!gone(&through(endpoint), &due, true), "{endpoint} was there {at} ms after the start");
            }
            assert_eq!(gone(&through("10.1.0.3:80"), &due, true), at > 0, "{at} ms after the start");
        }
        assert!(schedule.take_all(ms(5200)).is_empty(), "the process ends: the next start looks at it");
        schedule.add(reset("10.1.0.1:80"), ms(6000));
        assert_eq!(schedule.take_all(ms(8000)), reset("10.1.0.1:80"));
    }

    #[test]
    fn that_connections_are_left_alone_is_said_once() {
        let said = crate::testing::log::captured(|| {
            let (jobs, receiver) = channel();
            let mut answers = [false, false, true, false].into_iter();
            let (asked_sender, _asked) = mpsc::channel();
            let (go, go_receiver) = mpsc::channel();
            (0..20).for_each(|_| go.send(()).expect("room"));
            let table = Table { flows: Vec::new(), asked: asked_sender, go: go_receiver };
            jobs.send(reset("10.1.0.1:80")).expect("it is there");
            let mut passes = 0;
            let jobs = std::cell::RefCell::new(Some(jobs));
            let report = |_: &Sweep| {
                passes += 1;
                match passes {
                    4 => drop(jobs.borrow_mut().take()),
                    _ => jobs.borrow().iter().for_each(|jobs| jobs.send(reset("10.1.0.1:80")).expect("it is there")),
                }
            };
            run(table, || answers.next().unwrap_or(false), report, &receiver);
        });
        let lines =
            said.lines().filter(|line| line.contains("are not reset: net.netfilter.nf_conntrack_tcp_loose is 0"));
        assert_eq!(lines.count(), 2, "when it begins, and when it begins anew: {said}");
    }

    #[test]
    fn only_the_families_concerned_are_listed() {
        let (asked_sender, asked) = mpsc::channel();
        let (go, go_receiver) = mpsc::channel();
        go.send(()).expect("room");
        let mut table = Table { flows: Vec::new(), asked: asked_sender, go: go_receiver };
        let v6 =
            Frontends { by_node_port: BTreeMap::from([((Family::V6, 30053), Rule::Gone)]), ..Frontends::default() };
        let pass = clean(&mut table, &v6, true);
        assert!(pass.families.v4.is_none());
        assert!(matches!(pass.families.v6, Some(Ok(_))));
        assert_eq!(asked.try_iter().collect::<Vec<_>>(), [(Family::V6, 0)]);
    }
}
