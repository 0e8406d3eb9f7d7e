//! Packets that are followed through a kernel's own table, which is asked for no more than they meet.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::kernel::{Kernel, KernelError, Unread, table_flag};
use crate::errors;
use crate::model::Family;
use crate::ruleset::base;
use crate::ruleset::eval::{EvalError, Sets, Tracer};
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::types::{Chain, Element, Key, SetDef};

/// The rules of one family's table as they are in a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    family: Family,
    dormant: bool,
    chains: Vec<Chain>,
    unread: Vec<Unread>,
    sets: BTreeMap<SetName, SetDef>,
    other_sets: BTreeSet<SetName>,
}

impl Rules {
    /// Reads them; `None` if there is no table. Takes a few milliseconds, however many Services there are.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn read(kernel: &mut impl Kernel, family: Family) -> Result<Option<Rules>, KernelError> {
        let mut sets = SetName::ALL.map(base::set);
        let mut snapshot = kernel.dump(family, &sets, &[], &|_| None)?;
        if !snapshot.table {
            return Ok(None);
        }
        if SetName::ENTRIES.iter().any(|name| snapshot.other_sets.contains(name)) {
            // Those that count are as good.
            sets.iter_mut().filter(|set| set.name.is_entry()).for_each(|set| set.counter = true);
            snapshot = kernel.dump(family, &sets, &[], &|_| None)?;
        }
        let (mut chains, mut unread) = (Vec::new(), Vec::new());
        for chain in kernel.chains(family)? {
            match chain {
                Ok(chain) => chains.push(chain),
                Err(why) => unread.push(why),
            }
        }
        Ok(Some(Rules {
            family,
            dormant: snapshot.table_flags & table_flag::DORMANT != 0,
            chains,
            unread,
            sets: sets.into_iter().filter(|set| snapshot.sets.contains(&set.name)).map(|set| (set.name, set)).collect(),
            other_sets: snapshot.other_sets,
        }))
    }

    /// Whether the table is switched off: none of its chains sees a packet.
    pub fn is_dormant(&self) -> bool {
        self.dormant
    }

    /// The chains that can be told, in the order of their names.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// Those that cannot.
    pub fn unread(&self) -> &[Unread] {
        &self.unread
    }

    /// What follows packets through the table. Rules are as they were read; each element is as it is when a packet comes to
    /// it for the first time. What becomes of a packet by chains of others, and by an element of others that stands for all
    /// keys that there are not, it does not know.
    ///
    /// # Errors
    /// Never, for what a kernel holds: see [`Tracer::over`].
    pub fn tracer<'a>(
        &'a self,
        kernel: &'a mut impl Kernel,
        local_addresses: &'a BTreeSet<IpAddr>,
    ) -> Result<Tracer<'a>, EvalError> {
        let sets = Asked { rules: self, kernel: RefCell::new(kernel), known: RefCell::default() };
        let (chains, unread): (&[Chain], &[Unread]) =
            if self.dormant { (&[], &[]) } else { (&self.chains, &self.unread) };
        let named = |unread: &Unread| Some((ChainName::parse(unread.chain())?, unread.to_string()));
        let unread = unread.iter().filter_map(named).collect();
        Ok(Tracer::over(self.family, chains, Box::new(sets), local_addresses)?.without(unread))
    }
}

/// The sets of a kernel.
struct Asked<'a, K: ?Sized> {
    rules: &'a Rules,
    kernel: RefCell<&'a mut K>,
    /// What the kernel has been asked for.
    known: RefCell<BTreeMap<(SetName, Key), Option<Element>>>,
}

impl<K: ?Sized> fmt::Debug for Asked<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("known", &self.known).finish_non_exhaustive()
    }
}

impl<K: Kernel + ?Sized> Sets for Asked<'_, K> {
    fn def(&self, set: SetName) -> Result<&SetDef, &'static str> {
        let other = self.rules.other_sets.contains(&set);
        let why = if other { "the set is defined otherwise" } else { "the set is not there" };
        self.rules.sets.get(&set).ok_or(why)
    }

    fn find(&self, set: SetName, keys: &[Key]) -> Result<Vec<Option<Cow<'_, Element>>>, String> {
        let mut known = self.known.borrow_mut();
        let missing: Vec<Key> =
            keys.iter().filter(|key| !known.contains_key(&(set, (*key).clone()))).cloned().collect();
        if !missing.is_empty() {
            let found = self.kernel.borrow_mut().find(self.rules.family, self.def(set)?, &missing);
            let found = found.map_err(|error| errors::text(&error))?;
            known.extend(missing.into_iter().map(|key| (set, key)).zip(found));
        }
        let element = |key: &Key| known.get(&(set, key.clone())).cloned().flatten().map(Cow::Owned);
        Ok(keys.iter().map(element).collect())
    }
}
