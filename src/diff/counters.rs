//! Which counter a frontend takes turns by.
//!
//! Two Services with one counter would not take turns: each sees only some of its numbers, and where a client calls one
//! after the other, always the same. So a counter is for one Service port, whose addresses share it. Who finds none free
//! gets a random slot each time, and a counter when it is looked at again and one is free.

use std::collections::BTreeSet;

use smallvec::SmallVec;

use super::installed::Installed;
use super::turns::{Counters, Turns};
use crate::model::{FrontendKey, ObjectName, Protocol};
use crate::ruleset::elements;
use crate::ruleset::frontend::Frontend;
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{By, ChainName, Pick};
use crate::ruleset::service::ServicePart;

/// The most chains made on demand that a table has for counters to get more of them, be it one with a counter or one that hands
/// over to it: the maps of kinds have room for twice as many.
const MOST_CHAINS: usize = 2_048;

/// Gives out counters.
#[derive(Debug, Clone, Default)]
pub(super) struct Giver {
    /// How the use of counters changes by what has been given and taken.
    turns: Turns,
    /// The chains that it takes for what has been given out, and that are not there.
    new: BTreeSet<ChainName>,
}

impl Giver {
    /// Gives a counter to each port of a Service that wants one: the one that it has, if nobody else uses it, or a free one.
    /// Each Service at most once. Costs what the Service costs.
    pub(super) fn give(&mut self, installed: &Installed, name: &ObjectName, wanted: &mut ServicePart) {
        for (key, frontend) in installed.frontends_of(name).filter(|(_, frontend)| frontend.service == *name) {
            self.turns.count(key, Some(frontend), -1);
        }
        let mut given: SmallVec<[(Counters, Protocol, usize, By); 4]> = SmallVec::new();
        for at in 0..wanted.frontends.len() {
            let (before, rest) = wanted.frontends.split_at_mut(at);
            let [(key, frontend), ..] = rest else { return };
            let key = *key;
            for (local, slots) in frontend.action.slots_mut().filter(|(_, slots)| matches!(slots.by, By::Turn(_))) {
                let counters = Counters::of(&key, local, slots.len());
                let of_this_port = given.iter().find(|(same, protocol, first, _)| {
                    *same == counters
                        && *protocol == key.protocol
                        && before.get(*first).is_some_and(|(_, other)| other.port_name == frontend.port_name)
                });
                slots.by = match of_this_port {
                    Some((.., by)) => *by,
                    None => {
                        let has = installed.frontend(&key).filter(|frontend| frontend.service == *name);
                        let by = self.free(installed, counters, has.and_then(|frontend| counter_of(frontend, local)));
                        given.push((counters, key.protocol, at, by));
                        by
                    }
                };
            }
            self.limit(installed, &key, frontend);
            self.turns.count(&key, Some(frontend), 1);
        }
    }

    /// Leaves a frontend at random slots where it would take chains that the table has no room for.
    fn limit(&mut self, installed: &Installed, key: &FrontendKey, frontend: &mut Frontend) {
        let missing = |frontend: &Frontend| {
            let kinds = elements::kinds(key, frontend).into_iter().flat_map(|(_, kind)| kind.with_counter());
            let chains = kinds.filter_map(Kind::on_demand).filter(|chain| !installed.has_chain(*chain));
            chains.filter(|chain| !self.new.contains(chain)).collect::<BTreeSet<ChainName>>()
        };
        let turns = |chain: &ChainName| matches!(chain, ChainName::Pick(Pick { by: By::Turn(_), .. }));
        let mut chains = missing(frontend);
        if chains.iter().any(turns) && installed.chain_count() + self.new.len() + chains.len() > MOST_CHAINS {
            let taking_turns = frontend.action.slots_mut().filter(|(_, slots)| matches!(slots.by, By::Turn(_)));
            taking_turns.for_each(|(_, slots)| slots.by = By::Random);
            chains = missing(frontend);
        }
        self.new.append(&mut chains);
    }

    /// A counter that nobody uses; if possible this one, or one that has a chain: to make a chain that looks into `endpoints` costs
    /// the kernel a walk over that map. Else none.
    fn free(&self, installed: &Installed, counters: Counters, preferred: Option<u8>) -> By {
        let uses = |counter| installed.turns.uses(counters, counter) + self.turns.uses(counters, counter);
        let is_there = |counter: &u8| installed.has_chain(counters.chain(*counter));
        let free = |counter: &u8| uses(*counter) <= 0;
        let room = installed.chain_count() + self.new.len() < MOST_CHAINS;
        let known = preferred.into_iter().chain(0..By::COUNTERS).filter(free).find(is_there);
        let new = || preferred.into_iter().chain(0..By::COUNTERS).filter(free).find(|_| room);
        match known.or_else(new) {
            Some(counter) => By::Turn(counter),
            None => By::Random,
        }
    }
}

/// The counter that a frontend has, whatever its number of slots: its chain is likely to be there for another number as well.
fn counter_of(frontend: &Frontend, of_node: bool) -> Option<u8> {
    frontend.action.slots().find_map(|(local, slots)| match slots.by {
        By::Turn(counter) if local == of_node => Some(counter),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
