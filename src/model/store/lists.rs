//! Numbers each list, so that what a new list lacks can be found without keeping the list.

use std::collections::BTreeMap;

use super::super::Kind;

/// The number of the list that an object came with, or after.
pub(super) type ListNumber = u32;

/// The lists so far.
#[derive(Debug, Default)]
pub(super) struct Lists {
    kinds: BTreeMap<Kind, OfKind>,
}

#[derive(Debug, Clone, Copy, Default)]
struct OfKind {
    started: ListNumber,
    ever_done: bool,
}

impl Lists {
    /// What an object that comes now is stamped with.
    pub(super) fn now(&self, kind: Kind) -> ListNumber {
        self.kinds.get(&kind).map_or(0, |lists| lists.started)
    }

    /// From now on objects of this kind are of a new list, whether the one before was completed or not.
    pub(super) fn list_started(&mut self, kind: Kind) {
        let lists = self.kinds.entry(kind).or_default();
        lists.started = lists.started.wrapping_add(1);
    }

    /// Notes that a list is complete; returns whether with this one every kind has been listed for the first time.
    pub(super) fn list_done(&mut self, kind: Kind) -> bool {
        let first = !std::mem::replace(&mut self.kinds.entry(kind).or_default().ever_done, true);
        first && self.awaited().is_empty()
    }

    /// The kinds that have not been listed yet.
    pub(super) fn awaited(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| !self.kinds.get(kind).is_some_and(|lists| lists.ever_done)).collect()
    }
}
