//! Counters of frontends.

use super::{InMemoryKernel, SetState};
use crate::model::{Family, FrontendKey};
use crate::ruleset::counted::FrontendCount;
use crate::ruleset::elements::element_key;
use crate::ruleset::names::SetName;
use crate::ruleset::types::Element;

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
        let count = |set: &SetState, element: &Element| {
            let packets = set.counts.get(&element.key).copied().unwrap_or(0);
            FrontendCount::read(family, set.def.name, element, packets, 0)
        };
        sets.flat_map(|set| set.elements.values().filter_map(|element| count(set, element))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::{Operation, Transaction};
    use crate::model::{FrontendAt, ObjectName, Protocol};
    use crate::nftables::Kernel as _;
    use crate::ruleset::base;
    use crate::ruleset::elements::elements;
    use crate::ruleset::frontend::{Action, Frontend};
    use crate::ruleset::types::SetDef;

    #[test]
    fn an_element_counts_from_when_it_is_added_and_only_where_its_map_counts() {
        let at = FrontendAt::NodePort(Family::V4);
        let key = FrontendKey { at, protocol: Protocol::Tcp, port: 30_080.try_into().expect("not 0") };
        let service = ObjectName::new("shop", "web").expect("a name");
        let frontend = Frontend { service, port_name: "".into(), action: Action::Drop, allowed_sources: None };
        for counter in [false, true] {
            let mut kernel = InMemoryKernel::new();
            let mut commit = |operations: Vec<Operation>| {
                kernel.commit(&Transaction { family: Family::V4, operations }).expect("it can be done");
                let mut counts = || kernel.frontend_counts(Family::V4).expect("an answer").pop().map(|it| it.packets);
                let before = counts();
                (before, kernel.packets_find(&key, 3))
            };
            let elements = || elements(&key, &frontend).into_iter().map(|(_, element)| element).collect();
            let set = SetName::ServiceNodeports;
            let add = || Operation::AddElements(set, elements());
            let define = Operation::AddSet(SetDef { counter, ..base::set(set) });
            assert_eq!(commit(vec![Operation::AddTable, define]), (None, false));
            assert_eq!(commit(vec![add()]), (counter.then_some(0), counter));
            assert_eq!(commit(vec![add()]), (counter.then_some(3), counter), "it was there");
            assert_eq!(commit(vec![Operation::DeleteElements(set, elements()), add()]).0, counter.then_some(0));
        }
    }
}
