//! What others do to a table.

use super::InMemoryKernel;
use crate::model::Family;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::types::{Element, Key};

impl InMemoryKernel {
    /// Somebody else deletes a table.
    pub fn delete_table(&mut self, family: Family) {
        self.disturb();
        self.tables[family] = None;
    }

    /// Somebody else sets the flags ([`table_flag`](crate::nftables::table_flag)) of our table, if it exists.
    pub fn set_flags(&mut self, family: Family, flags: u32) {
        self.disturb();
        if let Some(table) = &mut self.tables[family] {
            (table.flags, table.ours) = (flags, false);
        }
    }

    /// Somebody else puts a chain and a set of these names into our table, if it exists.
    pub fn add_foreign(&mut self, family: Family, chain: &str, set: &str) {
        self.disturb();
        if let Some(table) = &mut self.tables[family] {
            table.foreign_chains.insert(chain.to_owned());
            table.foreign_sets.insert(set.to_owned());
        }
    }

    /// Somebody else puts an object into our table, if it exists, that can only go along with the table: a counter, say.
    pub fn add_foreign_object(&mut self, family: Family, object: &str) {
        self.disturb();
        if let Some(table) = &mut self.tables[family] {
            table.foreign_objects.insert(object.to_owned());
        }
    }

    /// An element, as rules of the kernel or somebody else write it: replaces one with the same key.
    pub fn put(&mut self, family: Family, set: SetName, element: Element) {
        self.disturb();
        if let Some(set) = self.tables[family].as_mut().and_then(|table| table.sets.get_mut(&set)) {
            set.elements.insert((element.key.clone(), element.key_end.clone()), element);
        }
    }

    /// Somebody else deletes an element. Returns whether it was there.
    pub fn remove(&mut self, family: Family, set: SetName, key: &Key) -> bool {
        self.disturb();
        let set = self.tables[family].as_mut().and_then(|table| table.sets.get_mut(&set));
        set.is_some_and(|set| {
            let before = set.elements.len();
            set.elements.retain(|(other, _), _| other != key);
            set.elements.len() != before
        })
    }

    /// Somebody else deletes the rules of a chain.
    pub fn flush_chain(&mut self, family: Family, chain: ChainName) {
        self.disturb();
        if let Some(chain) = self.tables[family].as_mut().and_then(|table| table.chains.get_mut(&chain)) {
            chain.rules.clear();
        }
    }
}
