//! Counters of frontends.

use super::InMemoryKernel;
use crate::model::{Family, FrontendKey};
use crate::ruleset::counted::FrontendCount;
use crate::ruleset::elements::element_key;
use crate::ruleset::names::SetName;

impl InMemoryKernel {
    /// So many packets find a frontend; false if there is none, or it does not count.
    pub fn packets_find(&mut self, frontend: &FrontendKey, packets: u64) -> bool {
        let (key, family) = (element_key(frontend), frontend.family());
        let sets = self.tables[family].iter_mut().flat_map(|table| table.sets.values_mut());
        let mut sets = sets.filter(|set| set.def.name.is_entry() && set.def.counter);
        let Some(set) = sets.find(|set| set.elements.contains_key(&(key.clone(), None))) else { return false };
        *set.counts.entry(key).or_default() += packets;
        true
    }

    /// What they have counted.
    pub(super) fn counts_of(&self, family: Family) -> Vec<FrontendCount> {
        let Some(table) = &self.tables[family] else { return Vec::new() };
        let sets = SetName::ENTRIES.iter().filter_map(|name| table.sets.get(name)).filter(|set| set.def.counter);
        let elements = sets.flat_map(|set| set.elements.values().map(move |element| (set, element)));
        let count = |(set, element): (&super::SetState, _)| {
            let element: &crate::ruleset::types::Element = element;
            let packets = set.counts.get(&element.key).copied().unwrap_or(0);
            FrontendCount::read(family, set.def.name, element, packets, 0)
        };
        elements.filter_map(count).collect()
    }
}
