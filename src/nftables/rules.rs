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
    /// it for the first time. What becomes of a packet by chains of others it does not know.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use smallvec::smallvec;

    use super::*;
    use crate::diff::{Operation, Transaction};
    use crate::model::Protocol;
    use crate::nftables::in_memory::InMemoryKernel;
    use crate::ruleset::base::{Detector, FrameFacts, NodePortScope};
    use crate::ruleset::eval::{Origin, Outcome, Packet};
    use crate::ruleset::extras::Extras;
    use crate::ruleset::kinds::Kind;
    use crate::ruleset::names::TableName;
    use crate::ruleset::types::{DataDef, Value};

    const FAMILY: Family = Family::V4;

    /// A kernel with a table of these sets, and one frontend that refuses.
    fn kernel(set: impl Fn(SetName) -> Option<SetDef>) -> InMemoryKernel {
        let facts = FrameFacts {
            table: TableName::NODE,
            family: FAMILY,
            detector: Some(Detector::Source("10.0.0.0/8".parse().expect("a range"))),
            mark: 1,
            masquerade_all: false,
            service_cidrs: Vec::new(),
            node_ports: NodePortScope::All,
            stray_cluster_ips: false,
            affinity: false,
            keeps_ports: false,
            counters: true,
            extras: Extras::NONE,
            node_ip: None,
        };
        let frame = base::frame(&facts);
        let sets = SetName::ALL.into_iter().filter_map(set).map(Operation::AddSet);
        let chains = frame.chains.iter().cloned().map(Operation::AddChain);
        let rules = frame.chains.iter().cloned().map(Operation::AddRules);
        let dispatch = frame.elements.iter().map(|(set, element)| Operation::AddElements(*set, vec![element.clone()]));
        let operations = [Operation::AddTable].into_iter().chain(sets).chain(chains).chain(rules).chain(dispatch);
        let mut kernel = InMemoryKernel::new();
        kernel.commit(&Transaction { family: FAMILY, operations: operations.collect() }).expect("it is taken");
        let key = smallvec![Value::Address([10, 96, 0, 1].into()), Value::Protocol(Protocol::Tcp), Value::Port(80)];
        let data = Kind::Reject.data();
        kernel.put(FAMILY, SetName::ServiceIps, Element { key, key_end: None, data, comment: None });
        kernel
    }

    /// A packet to the frontend.
    fn packet() -> Packet {
        let (source, destination) = ([192, 0, 2, 1].into(), [10, 96, 0, 1].into());
        Packet { source, destination, protocol: Protocol::Tcp, port: 80, origin: Origin::Arrives(None) }
    }

    /// What becomes of it.
    fn traced(kernel: &mut InMemoryKernel) -> Result<Outcome, EvalError> {
        let rules = Rules::read(kernel, FAMILY).expect("it can be read").expect("there is a table");
        let local = BTreeSet::new();
        let tracer = rules.tracer(kernel, &local).expect("each chain is there once");
        let packet = packet();
        let trace = tracer.trace(&packet).map(|trace| trace.outcome);
        assert_eq!(tracer.trace(&packet).map(|trace| trace.outcome), trace, "again");
        trace
    }

    #[test]
    fn a_packet_is_looked_up_in_what_it_meets_and_nothing_else() {
        assert_eq!(Rules::read(&mut InMemoryKernel::new(), FAMILY).expect("it can be read"), None);
        let asked = Arc::new(AtomicUsize::new(0));
        let mut kernel = kernel(|name| Some(base::set(name)));
        let count = asked.clone();
        kernel.on_elements(move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(traced(&mut kernel), Ok(Outcome::Reject));
        // The kind of the frontend and what is done with it, each once for two packets.
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_table_that_is_switched_off_does_nothing() {
        let mut kernel = kernel(|name| Some(base::set(name)));
        kernel.set_flags(FAMILY, table_flag::DORMANT);
        assert!(Rules::read(&mut kernel, FAMILY).expect("it can be read").is_some_and(|rules| rules.is_dormant()));
        assert_eq!(traced(&mut kernel), Ok(Outcome::Pass));
    }

    #[test]
    fn a_set_of_another_kind_is_not_looked_into() {
        let verdicts = |name| match name {
            SetName::ServiceIps => SetDef { data: DataDef::Verdict, ..base::set(name) },
            other => base::set(other),
        };
        let error = traced(&mut kernel(|name| Some(verdicts(name)))).expect_err("it is another");
        assert!(error.to_string().contains("the set is defined otherwise"), "{error}");
    }

    #[test]
    fn who_comes_to_a_chain_that_cannot_be_told_is_not_followed() {
        let mut kernel = kernel(|name| Some(base::set(name)));
        let rules = Rules::read(&mut kernel, FAMILY).expect("it can be read").expect("there is a table");
        let unread = |chain: ChainName| {
            let chain = chain.to_string();
            vec![Unread::Rule { chain, rule: 1, what: "expression 1 (counter)".to_owned() }]
        };
        let local = BTreeSet::new();
        let mut traced = |name: ChainName| {
            let chains = rules.chains.iter().filter(|chain| chain.name != name).cloned().collect();
            let rules = Rules { chains, unread: unread(name), ..rules.clone() };
            let tracer = rules.tracer(&mut kernel, &local).expect("each chain is there once");
            tracer.trace(&packet()).map(|trace| trace.outcome)
        };
        for met in [ChainName::NatPrerouting, ChainName::RejectIt] {
            let error = unread(met)[0].to_string();
            assert_eq!(traced(met), Err(EvalError::Unread(error)));
        }
        for passed_by in [ChainName::NatOutput, ChainName::NatPostrouting, ChainName::SourceRanges] {
            assert_eq!(traced(passed_by), Ok(Outcome::Reject));
        }
    }
}
