//! What clients have counted, and which fault it belongs to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ask {
    /// A new TCP connection.
    New,
    /// The same of a client that has to come to the same pod.
    Sticky,
    /// An echo on a TCP connection that stays.
    Echo,
    /// What a server sends by itself on a TCP connection that stays.
    Push,
    /// An echo in a UDP flow that stays.
    Flow,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Right,
    /// Right, but later than a retransmission takes.
    Late,
    /// No answer; a connection that stays is lost.
    Missing,
    /// By somebody who may not.
    Wrong,
}

/// What was done to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    name: &'static str,
    began: Instant,
    whole: Option<Instant>,
    /// Whether something may be lost by it, by the nature of it.
    may_lose: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    right: u64,
    late: u64,
    missing: u64,
    wrong: u64,
}

impl Counts {
    fn add(&mut self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Right => &mut self.right,
            Outcome::Late => &mut self.late,
            Outcome::Missing => &mut self.missing,
            Outcome::Wrong => &mut self.wrong,
        };
        *count += 1;
    }
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    asked: BTreeMap<Ask, Counts>,
    /// What was not right, by the name of the fault that it belongs to.
    lost: BTreeMap<&'static str, BTreeMap<Ask, Counts>>,
    examples: Vec<String>,
    unforgiven: u64,
    began: Option<Instant>,
    /// How often, and how long altogether, the machine let nobody run.
    stood_still: (u32, Duration),
}

/// The most examples that are kept.
const EXAMPLES: usize = 20;
/// What happens so soon after a node is whole again belongs to what happened to it.
const AFTERMATH: Duration = Duration::from_secs(1);
/// Where nothing was done to the node.
const NO_FAULT: &str = "(no fault)";

/// What clients have counted.
#[derive(Default)]
pub(crate) struct Tally(Mutex<State>);

impl Tally {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is done to the node.
    pub(crate) fn fault_begins(&self, name: &'static str, may_lose: bool) {
        let mut state = self.state();
        state.faults.push(Fault { name, began: Instant::now(), whole: None, may_lose });
    }

    /// It is whole again.
    pub(crate) fn fault_ends(&self) {
        if let Some(fault) = self.state().faults.last_mut() {
            fault.whole = Some(Instant::now());
        }
    }

    /// The machine let nobody run for so long.
    pub(crate) fn stood_still(&self, took: Duration) {
        let (times, all) = &mut self.state().stood_still;
        *times += 1;
        *all += took;
    }

    /// A client has asked then, and knows now what became of it.
    pub(crate) fn count(&self, ask: Ask, asked: Instant, outcome: Outcome, what: impl FnOnce() -> String) {
        let now = Instant::now();
        let mut state = self.state();
        let began = *state.began.get_or_insert(now);
        state.asked.entry(ask).or_default().add(outcome);
        if outcome == Outcome::Right {
            return;
        }
        let belongs = |fault: &&Fault| fault.began <= now && fault.whole.is_none_or(|whole| whole + AFTERMATH >= asked);
        let fault = state.faults.iter().find(belongs).copied();
        let name = fault.map_or(NO_FAULT, |fault| fault.name);
        state.lost.entry(name).or_default().entry(ask).or_default().add(outcome);
        // How late something is depends on the machine. With the tables goes what they remember of clients.
        let by_nature = outcome == Outcome::Missing || ask == Ask::Sticky;
        if outcome == Outcome::Late || fault.is_some_and(|fault| fault.may_lose && by_nature) {
            return;
        }
        state.unforgiven += 1;
        if state.examples.len() < EXAMPLES {
            let at = now.duration_since(began).as_secs_f64();
            let example = format!("{at:.1} s, {name}: {ask:?} {outcome:?}: {}", what());
            state.examples.push(example);
        }
    }

    /// A table of what happened.
    pub(crate) fn report(&self) -> String {
        let state = self.state();
        let mut text = String::from("what clients asked for       right    late missing   wrong\n");
        for (ask, Counts { right, late, missing, wrong }) in &state.asked {
            let _ = writeln!(text, "{:<24} {right:>9} {late:>7} {missing:>7} {wrong:>7}", format!("{ask:?}"));
        }
        let _ = writeln!(text, "\nfault                     made  whole after, median and longest    not right");
        let mut names: Vec<&str> = state.faults.iter().map(|fault| fault.name).chain([NO_FAULT]).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let mut took: Vec<Duration> = state
                .faults
                .iter()
                .filter(|fault| fault.name == name)
                .filter_map(|fault| Some(fault.whole?.duration_since(fault.began)))
                .collect();
            took.sort_unstable();
            let median = took.get(took.len() / 2).copied().unwrap_or_default();
            let longest = took.last().copied().unwrap_or_default();
            let lost = state.lost.get(name).map(lost).unwrap_or_default();
            let (median, longest) = (median.as_secs_f64(), longest.as_secs_f64());
            let _ = writeln!(text, "{name:<24} {:>5}  {median:>8.3} s {longest:>8.3} s            {lost}", took.len());
        }
        state.examples.iter().for_each(|example| text.extend([example, "\n"]));
        let (times, all) = state.stood_still;
        let _ = write!(text, "the machine stood still {times} times, {:.1} s in all", all.as_secs_f64());
        text
    }

    /// What must not have happened.
    pub(crate) fn faults(&self) -> Vec<String> {
        let state = self.state();
        let mut faults = Vec::new();
        if state.unforgiven > 0 {
            faults.push(format!("{} answers were wrong or missing where none may be", state.unforgiven));
        }
        // A client that asks for nothing finds nothing.
        let silent = [Ask::New, Ask::Sticky, Ask::Echo, Ask::Push, Ask::Flow].into_iter();
        let silent = silent.filter(|ask| state.asked.get(ask).is_none_or(|counts| counts.right == 0));
        faults.extend(silent.map(|ask| format!("{ask:?}: nothing was right")));
        faults
    }
}

fn lost(by_ask: &BTreeMap<Ask, Counts>) -> String {
    let mut words = Vec::new();
    for (ask, counts) in by_ask {
        for (count, what) in [(counts.wrong, "wrong"), (counts.missing, "missing"), (counts.late, "late")] {
            if count > 0 {
                words.push(format!("{ask:?} {what} {count}"));
            }
        }
    }
    words.join(", ")
}
