//! Which pods may answer for a Service, now and a moment ago.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So long after it is no longer wanted, or after the end of a fault that kept the daemon from knowing, a pod may still
/// answer. Generous: it is about what never passes, not about speed.
const GRACE: Duration = Duration::from_secs(3);

/// The pods of each Service that clients use.
#[derive(Default)]
pub(crate) struct Truth(Mutex<State>);

#[derive(Default)]
struct State {
    services: HashMap<usize, Pods>,
    /// Since when nothing keeps the daemon from knowing what is wanted; `None` while something does.
    settled: Option<Instant>,
}

/// Those that may answer, and those that might, with when they were no longer wanted.
#[derive(Default)]
struct Pods {
    wanted: Vec<Ipv4Addr>,
    retired: HashMap<Ipv4Addr, Instant>,
}

impl Truth {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are wanted from now on.
    pub(crate) fn is_now(&self, service: usize, wanted: &[Ipv4Addr]) {
        let mut state = self.state();
        let pods = state.services.entry(service).or_default();
        for pod in std::mem::replace(&mut pods.wanted, wanted.to_vec()) {
            pods.retired.insert(pod, Instant::now());
        }
        pods.retired.retain(|pod, _| !wanted.contains(pod));
    }

    /// Something keeps the daemon from knowing, until [`Truth::is_settled`].
    pub(crate) fn is_disturbed(&self) {
        self.state().settled = None;
    }

    pub(crate) fn is_settled(&self) {
        self.state().settled = Some(Instant::now());
    }

    /// The machine stood still: what was settled is settled from now on only.
    pub(crate) fn resettles(&self) {
        let mut state = self.state();
        state.settled = state.settled.map(|_| Instant::now());
    }

    /// Whether this pod may answer a question that was asked then.
    pub(crate) fn allows(&self, service: usize, pod: Ipv4Addr, asked: Instant) -> bool {
        let state = self.state();
        let Some(pods) = state.services.get(&service) else { return false };
        if pods.wanted.contains(&pod) {
            return true;
        }
        let Some(retired) = pods.retired.get(&pod) else { return false };
        state.settled.is_none_or(|settled| asked < settled.max(*retired) + GRACE)
    }
}
