//! Cleans up on a thread of its own.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::netlink::{Flows, FlowsError, Swept};
use super::plan::{Frontends, stale};
use crate::model::{Family, PerFamily};

/// When frontends are checked a second time.
///
/// A packet that met the old rules just before they were replaced may still be on its way through the stack (in a
/// queue of another CPU, in a `queue` rule of a firewall). Its connection enters the table only at the end of that
/// way, perhaps behind the first pass. Such a packet takes microseconds as a rule, so a second is generous.
const SECOND_PASS: Duration = Duration::from_secs(1);

/// What one pass did, for logs and metrics.
#[derive(Debug)]
pub struct Pass {
    /// The number of frontends that were checked.
    pub frontends: usize,
    /// The result of each family that the frontends concern.
    pub families: PerFamily<Option<Result<Swept, FlowsError>>>,
    /// How long it took in each.
    pub elapsed: PerFamily<Duration>,
}

/// The thread that cleans up. Dropping it lets a pass that is under way finish, and forgets what is waiting.
#[derive(Debug)]
pub struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is asked for.
enum Job {
    Clean(Frontends),
    Before(Box<dyn FnOnce() + Send>),
}

impl Worker {
    /// Starts the thread. `report` is called on it after each pass.
    pub fn spawn<F, R>(flows: F, report: R) -> io::Result<Worker>
    where
        F: Flows + Send + 'static,
        R: FnMut(&Pass) + Send + 'static,
    {
        let (jobs, receiver) = channel();
        let thread =
            std::thread::Builder::new().name("conntrack".to_owned()).spawn(move || run(flows, report, &receiver))?;
        Ok(Worker { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Asks for a clean-up of these frontends, after the kernel has got their new rules. Never waits; frontends that are
    /// asked for while a pass is under way are checked together in the next.
    pub fn clean(&self, frontends: Frontends) {
        if !frontends.is_empty() {
            self.send(Job::Clean(frontends));
        }
    }

    /// Has the thread do something else before the clean-ups that are asked for from now on. Never waits.
    pub fn before(&self, job: impl FnOnce() + Send + 'static) {
        self.send(Job::Before(Box::new(job)));
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs
            && jobs.send(job).is_err()
        {
            // It ends before us only by a panic, which has been reported.
            tracing::error!("the thread that cleans up connection tracking is gone");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut flows: impl Flows, mut report: impl FnMut(&Pass), jobs: &Receiver<Job>) {
    let mut schedule = Schedule::default();
    loop {
        let job = match schedule.wait(Instant::now()) {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(timeout) => jobs.recv_timeout(timeout),
        };
        match job {
            Ok(job) => take(&mut schedule, job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        loop {
            match jobs.try_recv() {
                Ok(job) => take(&mut schedule, job),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let due = schedule.take(Instant::now());
        if !due.is_empty() {
            let pass = clean(&mut flows, &due);
            log(&pass);
            report(&pass);
        }
    }
}

fn take(schedule: &mut Schedule, job: Job) {
    match job {
        Job::Clean(frontends) => schedule.add(frontends),
        Job::Before(job) => job(),
    }
}

/// One pass: each family's table is listed once, however many frontends there are.
fn clean(flows: &mut impl Flows, frontends: &Frontends) -> Pass {
    let mut elapsed = PerFamily::default();
    let families = PerFamily::from_fn(|family| {
        let start = Instant::now();
        let swept = frontends.concerns(family).then(|| flows.delete_udp(family, &mut |flow| stale(flow, frontends)));
        elapsed[family] = start.elapsed();
        swept
    });
    Pass { frontends: frontends.len(), families, elapsed }
}

fn log(pass: &Pass) {
    let frontends = pass.frontends;
    for family in Family::ALL {
        let elapsed = pass.elapsed[family];
        match &pass.families[family] {
            None => {}
            Some(Ok(Swept { seen, deleted, failed, incomplete })) => {
                tracing::debug!(%family, frontends, seen, deleted, failed, incomplete, ?elapsed, "stale UDP flows");
            }
            Some(Err(error)) => {
                let source = std::error::Error::source(error).map(ToString::to_string);
                tracing::warn!(%family, %error, source, "stale UDP flows were not cleaned up");
            }
        }
    }
}

/// What is to be checked, and when. Time comes in as an argument.
#[derive(Debug, Default)]
struct Schedule {
    /// For the first time, at once.
    first: Frontends,
    /// For the second time, the earliest in front. A frontend waits in at most one of these, and with its newest rule:
    /// an older one would delete flows to endpoints that it does not know.
    second: VecDeque<(Instant, Frontends)>,
}

impl Schedule {
    fn add(&mut self, job: Frontends) {
        for (_, waiting) in &mut self.second {
            waiting.superseded_by(&job);
        }
        self.second.retain(|(_, waiting)| !waiting.is_empty());
        self.first.merge(job);
    }

    /// How long nothing is due: zero if something is, `None` if nothing will be.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if !self.first.is_empty() {
            return Some(Duration::ZERO);
        }
        self.second.front().map(|(due, _)| due.saturating_duration_since(now))
    }

    /// What is due now; what is in it for the first time will be due once more.
    fn take(&mut self, now: Instant) -> Frontends {
        let mut due = std::mem::take(&mut self.first);
        if !due.is_empty() {
            self.second.push_back((now + SECOND_PASS, due.clone()));
        }
        while self.second.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, again)) = self.second.pop_front() {
                due.merge(again);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::sync::mpsc;

    use super::super::plan::{Flow, Rule};
    use super::*;
    use crate::model::Protocol;

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
        schedule.add(a.clone());
        assert_eq!(schedule.wait(ms(0)), Some(Duration::ZERO));
        assert_eq!(schedule.take(ms(0)), a);
        assert_eq!(schedule.wait(ms(100)), Some(Duration::from_millis(900)));
        schedule.add(b.clone());
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
        schedule.add(old);
        schedule.take(ms(0));
        schedule.add(new.clone());
        // Both at once: the first pass of the new rule and the second pass of what is left of the old job.
        assert_eq!(schedule.take(ms(1000)), job(&[("10.0.0.1:53", "10.1.0.9:53"), ("10.0.0.2:53", "10.1.0.1:53")]));
        assert_eq!(schedule.take(ms(2000)), new);
        assert_eq!(schedule.wait(ms(2000)), None);
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
        let worker = Worker::spawn(table, move |pass: &Pass| {
            let _ = report_sender.send((pass.frontends, pass.families.v6.is_some()));
        })
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
    fn only_the_families_concerned_are_listed() {
        let (asked_sender, asked) = mpsc::channel();
        let (go, go_receiver) = mpsc::channel();
        go.send(()).expect("room");
        let mut table = Table { flows: Vec::new(), asked: asked_sender, go: go_receiver };
        let v6 =
            Frontends { by_node_port: BTreeMap::from([((Family::V6, 30053), Rule::Gone)]), ..Frontends::default() };
        let pass = clean(&mut table, &v6);
        assert!(pass.families.v4.is_none());
        assert!(matches!(pass.families.v6, Some(Ok(_))));
        assert_eq!(asked.try_iter().collect::<Vec<_>>(), [(Family::V6, 0)]);
    }
}
