//! The way of a packet through a base chain and what it leads to. Pure.
//!
//! A rule of which nobody can tell whether it matches is followed both ways; what may become of the packet is collected,
//! and a verdict is sure where all of it comes to the same.

use std::collections::BTreeMap;

use super::bits::Three;
use super::rule::{Action, Rule};
use super::step::{self, Table};
use super::view::{Carried, View};

/// The kernel follows no more jumps in a row (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;
/// No more rules are looked at: behind doubtful jumps a chain is looked at again for each way there.
const RULES: usize = 200_000;

/// The chains of a table, by name.
pub(super) type Chains = BTreeMap<String, Vec<Rule>>;

/// Where something is decided: a chain, and the number of a rule there; without, the policy.
pub(super) type At = (String, Option<usize>);

/// What may become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Pass,
    Drop(At),
    Reject(At),
    Translate(At),
    Give(At, String),
    /// Nobody knows, and why.
    Unknown(At, String),
}

/// What becomes of a packet, if it can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Surely(End),
    /// It may be dropped there.
    MayDrop(At, String),
    /// Something else may become of it.
    CannotTell(Option<At>, String),
}

/// What a base chain comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) fate: Fate,
    /// A rule that keeps the packet from being tracked, and whether it surely does.
    pub(super) untracks: Option<(At, Three)>,
    /// What a packet carries that passes.
    pub(super) carried: Carried,
}

struct Walk<'a> {
    chains: &'a Chains,
    table: Table<'a>,
    view: &'a View<'a>,
    ends: Vec<(End, Option<String>)>,
    /// The first doubt on the way.
    why: Option<String>,
    untracks: Option<(At, Three)>,
    /// What packets carry that have passed.
    passed: Option<Carried>,
    left: usize,
}

/// Takes a packet through a base chain; `drops` is its policy.
pub(super) fn through(
    chains: &Chains,
    table: Table<'_>,
    base: &str,
    drops: bool,
    view: &View<'_>,
    carried: &Carried,
) -> Way {
    let mut walk = Walk { chains, table, view, ends: Vec::new(), why: None, untracks: None, passed: None, left: RULES };
    let mut here = carried.clone();
    if walk.chain(base, &mut here, DEEPEST) {
        if drops {
            walk.end(End::Drop((base.to_owned(), None)), None);
        } else {
            walk.pass(&here);
        }
    }
    let fate = walk.fate();
    Way { fate, untracks: walk.untracks, carried: walk.passed.unwrap_or(here) }
}

impl Walk<'_> {
    fn end(&mut self, end: End, why: Option<&String>) {
        let why = why.or(self.why.as_ref()).cloned();
        self.ends.push((end, why));
    }

    fn pass(&mut self, carried: &Carried) {
        self.end(End::Pass, None);
        self.join(carried);
    }

    fn join(&mut self, carried: &Carried) {
        self.passed = Some(self.passed.take().map_or_else(|| carried.clone(), |passed| passed.join(carried)));
    }

    /// Returns whether the packet may come back at the end of the chain, with what it carries then.
    fn chain(&mut self, name: &str, carried: &mut Carried, depth: usize) -> bool {
        let chains = self.chains;
        let mut returned: Option<Carried> = None;
        let mut is_here = true;
        for (nth, rule) in chains.get(name).into_iter().flatten().enumerate() {
            let at = || (name.to_owned(), Some(nth));
            if self.left == 0 {
                let why = "there are too many ways through the rules".to_owned();
                self.end(End::Unknown(at(), why.clone()), Some(&why));
                is_here = false;
                break;
            }
            self.left -= 1;
            let outcome = step::rule(rule, self.view, self.table, carried);
            if outcome.untracks != Three::No {
                let is_sure = if self.why.is_some() { Three::Maybe } else { outcome.untracks };
                self.untracks.get_or_insert((at(), is_sure));
            }
            if outcome.matches == Three::No {
                continue;
            }
            let is_sure = outcome.matches == Three::Yes;
            let why = outcome.why.as_ref();
            let Some(action) = outcome.action else { continue };
            // What those carry that the rule does not match.
            let before = carried.clone();
            match action {
                Action::Accept => {
                    self.note(why);
                    self.pass(&before);
                    is_here = !is_sure;
                }
                Action::Drop => {
                    self.end(End::Drop(at()), why);
                    is_here = !is_sure;
                }
                Action::Reject => {
                    self.end(End::Reject(at()), why);
                    is_here = !is_sure;
                }
                Action::Translate => {
                    self.end(End::Translate(at()), why);
                    self.join(&Carried { intact: false, ..before });
                    is_here = !is_sure;
                }
                Action::Give(to) => {
                    self.end(End::Give(at(), to), why);
                    is_here = !is_sure;
                }
                Action::Unknown(reason) => {
                    self.end(End::Unknown(at(), reason.clone()), Some(&reason));
                    self.join(&Carried { intact: false, ..before });
                }
                Action::Return => {
                    returned = Some(returned.map_or_else(|| before.clone(), |returned| returned.join(&before)));
                    is_here = !is_sure;
                }
                Action::Jump(to) | Action::Goto(to) if depth == 0 => {
                    let why = format!("jumps to chain {to} and further are too many");
                    self.end(End::Unknown(at(), why.clone()), Some(&why));
                    is_here = !is_sure;
                }
                Action::Jump(to) => {
                    self.note(why);
                    let mut inside = before.clone();
                    let back = self.chain(&to, &mut inside, depth - 1);
                    match (back, is_sure) {
                        (true, true) => *carried = inside,
                        (true, false) => *carried = before.join(&inside),
                        (false, _) => is_here = !is_sure,
                    }
                }
                Action::Goto(to) => {
                    self.note(why);
                    let mut inside = before.clone();
                    if self.chain(&to, &mut inside, depth - 1) {
                        returned = Some(returned.map_or_else(|| inside.clone(), |returned| returned.join(&inside)));
                    }
                    is_here = !is_sure;
                }
            }
            self.note(why);
            if !is_here {
                break;
            }
        }
        match (is_here, returned) {
            (true, Some(returned)) => *carried = carried.join(&returned),
            (false, Some(returned)) => *carried = returned,
            (false, None) => return false,
            (true, None) => {}
        }
        true
    }

    /// Notes the first doubt.
    fn note(&mut self, why: Option<&String>) {
        if self.why.is_none() {
            self.why = why.cloned();
        }
    }

    fn fate(&self) -> Fate {
        let is_drop = |end: &End| matches!(end, End::Drop(_) | End::Reject(_));
        let same = |a: &End, b: &End| std::mem::discriminant(a) == std::mem::discriminant(b);
        let Some((last, why)) = self.ends.last() else {
            return Fate::CannotTell(None, "its rules lead in a circle".to_owned());
        };
        let why = |own: &Option<String>| {
            own.clone().or_else(|| why.clone()).unwrap_or_else(|| "another rule may come first".to_owned())
        };
        if self.ends.iter().all(|(end, _)| is_drop(end)) || self.ends.iter().all(|(end, _)| same(end, last)) {
            // The one that takes what is left.
            return match last {
                End::Unknown(at, why) => Fate::CannotTell(Some(at.clone()), why.clone()),
                last => Fate::Surely(last.clone()),
            };
        }
        for (end, own) in &self.ends {
            if let End::Drop(at) | End::Reject(at) = end {
                return Fate::MayDrop(at.clone(), why(own));
            }
        }
        let found = self.ends.iter().find_map(|(end, own)| match end {
            End::Translate(at) | End::Give(at, _) | End::Unknown(at, _) => Some((at.clone(), why(own))),
            _ => None,
        });
        let (at, why) = found.map_or_else(|| (None, why(&None)), |(at, why)| (Some(at), why));
        Fate::CannotTell(at, why)
    }
}
