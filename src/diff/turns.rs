//! Who takes turns by which counter.

use std::collections::BTreeMap;

use crate::model::{FrontendAt, FrontendKey};
use crate::ruleset::frontend::Frontend;
use crate::ruleset::names::{By, ChainName, Masquerade, Pick};

/// The counters among which one is chosen: those for a number of slots, each for node ports and for addresses, in the cluster
/// and on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Counters {
    nodeport: bool,
    local: bool,
    slots: u32,
}

impl Counters {
    pub(super) fn of(key: &FrontendKey, local: bool, slots: usize) -> Counters {
        let nodeport = matches!(key.at, FrontendAt::NodePort(_));
        Counters { nodeport, local, slots: u32::try_from(slots).unwrap_or(u32::MAX) }
    }

    /// The chain with this counter.
    pub(super) fn chain(self, counter: u8) -> ChainName {
        let Counters { nodeport, local, slots } = self;
        let (masquerade, sticky, by) = (Masquerade::Never, false, By::Turn(counter));
        ChainName::Pick(Pick { nodeport, masquerade, sticky, local, by, slots })
    }
}

/// How many frontends take turns by each counter, or by how many that changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Turns {
    uses: BTreeMap<Counters, BTreeMap<u8, i32>>,
}

impl Turns {
    /// How many use one.
    pub(super) fn uses(&self, counters: Counters, counter: u8) -> i32 {
        self.uses.get(&counters).and_then(|uses| uses.get(&counter)).copied().unwrap_or(0)
    }

    fn change(&mut self, counters: Counters, counter: u8, by: i32) {
        let uses = self.uses.entry(counters).or_default();
        let of_one = uses.entry(counter).or_default();
        *of_one += by;
        if *of_one == 0 {
            uses.remove(&counter);
            if uses.is_empty() {
                self.uses.remove(&counters);
            }
        }
    }

    /// A frontend is there (1), or no longer (-1).
    pub(super) fn count(&mut self, key: &FrontendKey, frontend: Option<&Frontend>, by: i32) {
        for (local, slots) in frontend.into_iter().flat_map(|frontend| frontend.action.slots()) {
            if let By::Turn(counter) = slots.by {
                self.change(Counters::of(key, local, slots.len()), counter, by);
            }
        }
    }
}
