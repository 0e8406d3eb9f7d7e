//! A kernel in memory, for tests of what stands above: atomic like the real one, and as strict about what refers to what.

mod clients;
mod counts;
mod others;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use std::{fmt, io};

use nix::errno::Errno;

pub use self::clients::InMemoryClients;
use super::kernel::{CommitError, Committed, KeptClients, Kernel, KernelError, Snapshot, Unread, table_flag};
use super::owner::Owner;
use super::words::words;
use crate::diff::{Operation, Transaction};
use crate::model::{Family, PerFamily};
use crate::ruleset::counted::FrontendCount;
use crate::ruleset::kept::{self, Kept};
use crate::ruleset::names::{ChainName, SetName, TableName};
use crate::ruleset::read::Remembered;
use crate::ruleset::types::{Chain, Data, Element, Hook, Key, Rule, SetDef, Statement, Verdict};

/// Who owns a table that somebody has made its own.
const OWNER: Owner = Owner { port: 4_242, process: None };

/// What goes wrong at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The kernel is busy; nothing was done.
    Busy,
    /// No permission.
    Permission,
    /// It is not known what happened.
    Unknown {
        /// Whether the transaction was in fact applied.
        applied: bool,
    },
    /// It is applied, but what others have done meanwhile was not heard.
    Unheard,
}

/// A set with its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SetState {
    def: SetDef,
    elements: BTreeMap<(Key, Option<Key>), Element>,
    /// Packets that found an element.
    counts: BTreeMap<Key, u64>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ChainState {
    hook: Option<Hook>,
    rules: Vec<Rule>,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct TableState {
    sets: BTreeMap<SetName, SetState>,
    chains: BTreeMap<ChainName, ChainState>,
    foreign_sets: BTreeSet<String>,
    foreign_chains: BTreeSet<String>,
    foreign_objects: BTreeSet<String>,
    flags: u32,
    /// Whether its owner is whoever uses this kernel.
    ours: bool,
    /// Whether the transaction at hand has cleared flags: until its end there are no new base chains.
    woken: bool,
    /// Whether it has touched a chain that was there, or deleted a base chain: until its end flags stay.
    chains_touched: bool,
}

/// Called before each commit: may change the kernel, and returns what is to go wrong.
type OnCommit = Box<dyn FnMut(&mut InMemoryKernel, &Transaction) -> Option<Fault> + Send>;
/// Called before the elements of a set are read: may change the kernel.
type OnElements = Box<dyn FnMut(&mut InMemoryKernel, &SetDef) + Send>;

/// Functions that see what is asked of the kernel, and may interfere.
#[derive(Default)]
struct Hooks {
    commit: Option<OnCommit>,
    elements: Option<OnElements>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hooks { commit, elements } = self;
        let is_set = [commit.is_some(), elements.is_some()];
        f.debug_struct("Hooks").field("commit", &is_set[0]).field("elements", &is_set[1]).finish()
    }
}

/// The tables of both families, and a record of what was done to them.
#[derive(Debug, Default)]
pub struct InMemoryKernel {
    tables: PerFamily<Option<TableState>>,
    faults: VecDeque<Fault>,
    refused: BTreeMap<(SetName, Option<Key>), Errno>,
    committed: Vec<Transaction>,
    attempts: usize,
    dumps: usize,
    hooks: Hooks,
    /// Whether commits are only recorded, not applied.
    keeps_no_tables: bool,
    /// Whether somebody else has changed something, by the methods for that, since a family was read or asked about.
    disturbed: PerFamily<bool>,
}

impl InMemoryKernel {
    /// A kernel without our tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// A kernel that accepts everything and keeps no tables, only the record of what was sent: for clusters that are too
    /// large to be copied at each commit. Read back, it is empty.
    pub fn recorder() -> Self {
        InMemoryKernel { keeps_no_tables: true, ..Self::default() }
    }

    /// Calls `hook` before each commit. It may change the kernel, as somebody else would, and may make the commit fail.
    /// There is one such hook at a time, and it is not called for what it does itself.
    pub fn on_commit(&mut self, hook: impl FnMut(&mut InMemoryKernel, &Transaction) -> Option<Fault> + Send + 'static) {
        self.hooks.commit = Some(Box::new(hook));
    }

    /// The same before the elements of a set are read.
    pub fn on_elements(&mut self, hook: impl FnMut(&mut InMemoryKernel, &SetDef) + Send + 'static) {
        self.hooks.elements = Some(Box::new(hook));
    }

    /// Removes the hooks.
    pub fn forget_hooks(&mut self) {
        self.hooks = Hooks::default();
    }

    /// Makes the next commits go wrong, one after the other.
    pub fn fail_next(&mut self, fault: Fault) {
        self.faults.push_back(fault);
    }

    /// Refuses every element of a set that is added, or only the one with this key, until [`InMemoryKernel::accept_all`].
    pub fn refuse(&mut self, set: SetName, key: Option<Key>) {
        self.refuse_with(set, key, Errno::EINVAL);
    }

    /// The same with another error.
    pub fn refuse_with(&mut self, set: SetName, key: Option<Key>, errno: Errno) {
        self.refused.insert((set, key), errno);
    }

    /// Somebody else changes a table that is not ours.
    pub fn disturb(&mut self) {
        self.disturbed = PerFamily::from_fn(|_| true);
    }

    /// Refuses nothing any more.
    pub fn accept_all(&mut self) {
        self.refused.clear();
    }

    /// The transactions that were applied, in order.
    pub fn committed(&self) -> &[Transaction] {
        &self.committed
    }

    /// Forgets the transactions so far, and returns them.
    pub fn take_committed(&mut self) -> Vec<Transaction> {
        std::mem::take(&mut self.committed)
    }

    /// How often a commit was tried.
    pub fn attempts(&self) -> usize {
        self.attempts
    }

    /// How often a table was read.
    pub fn dumps(&self) -> usize {
        self.dumps
    }

    /// Whether the table of a family exists.
    pub fn has_table(&self, family: Family) -> bool {
        self.tables[family].is_some()
    }

    /// Who uses this kernel ends: tables that it owned have no owner any more.
    pub fn close(&mut self) {
        for family in Family::ALL {
            if let Some(table) = self.tables[family].as_mut().filter(|table| table.ours) {
                (table.flags, table.ours) = (table.flags & !table_flag::OWNER, false);
            }
        }
    }

    /// The flags of our table; `None` if it does not exist.
    pub fn flags_of(&self, family: Family) -> Option<u32> {
        self.tables[family].as_ref().map(|table| table.flags)
    }

    /// The elements of a set, sorted by key; empty if it does not exist.
    pub fn elements_of(&self, family: Family, set: SetName) -> Vec<Element> {
        let set = self.tables[family].as_ref().and_then(|table| table.sets.get(&set));
        set.map(|set| set.elements.values().cloned().collect()).unwrap_or_default()
    }

    /// The rules of a chain, if it exists.
    pub fn rules_of(&self, family: Family, chain: ChainName) -> Option<Vec<Rule>> {
        let chain = self.tables[family].as_ref()?.chains.get(&chain)?;
        Some(chain.rules.clone())
    }

    /// Applies a transaction to a copy.
    fn apply(&self, transaction: &Transaction) -> Result<Option<TableState>, CommitError> {
        let mut table = self.tables[transaction.family].clone();
        if table.as_ref().is_some_and(|table| table.flags & table_flag::OWNER != 0 && !table.ours) {
            return Err(CommitError::Owned(OWNER.clone()));
        }
        for (position, operation) in transaction.operations.iter().enumerate() {
            self.step(&mut table, operation).map_err(|(errno, item)| CommitError::Refused {
                operation: position,
                object: words(TableName::NODE, transaction, position, item),
                source: io::Error::from(errno),
            })?;
        }
        table.iter_mut().for_each(|table| (table.woken, table.chains_touched) = (false, false));
        Ok(table)
    }

    fn step(&self, table: &mut Option<TableState>, operation: &Operation) -> Result<(), (Errno, Option<usize>)> {
        match operation {
            Operation::AddTable => {
                let table = table.get_or_insert_default();
                if table.flags & !table_flag::DORMANT != 0 {
                    return Err((Errno::EOPNOTSUPP, None));
                }
                if table.flags != 0 {
                    if table.chains_touched {
                        return Err((Errno::EINVAL, None));
                    }
                    (table.flags, table.woken) = (0, true);
                }
                return Ok(());
            }
            Operation::OwnTable => {
                let table =
                    table.get_or_insert_with(|| TableState { flags: table_flag::PERSIST, ..Default::default() });
                if table.flags != table_flag::PERSIST && !(table.ours && table.flags == table_flag::OWNED) {
                    return Err((Errno::EOPNOTSUPP, None));
                }
                (table.flags, table.ours) = (table_flag::OWNED, true);
                return Ok(());
            }
            Operation::DeleteTable => return table.take().map(|_| ()).ok_or((Errno::ENOENT, None)),
            // The real kernel gets no message for an empty list.
            operation if operation.is_empty() => return Ok(()),
            _ => {}
        }
        let table = table.as_mut().ok_or((Errno::ENOENT, None))?;
        match operation {
            Operation::AddElements(set, elements) => {
                for (index, element) in elements.iter().enumerate() {
                    self.add_element(table, *set, element).map_err(|errno| (errno, Some(index)))?;
                }
                Ok(())
            }
            Operation::DeleteElements(set, elements) => {
                let set = table.sets.get_mut(set).ok_or((Errno::ENOENT, None))?;
                for (index, element) in elements.iter().enumerate() {
                    let key = (element.key.clone(), element.key_end.clone());
                    set.elements.remove(&key).ok_or((Errno::ENOENT, Some(index)))?;
                    set.counts.remove(&element.key);
                }
                Ok(())
            }
            Operation::Remember(clients) => {
                for (index, kept) in clients.iter().enumerate() {
                    let added = self.add_element(table, SetName::Affinity, &kept.element());
                    added.map_err(|errno| (errno, Some(index)))?;
                }
                Ok(())
            }
            Operation::AddRules(chain) => {
                for (index, rule) in chain.rules.iter().enumerate() {
                    table.add_rule(chain.name, rule).map_err(|errno| (errno, Some(index)))?;
                }
                Ok(())
            }
            operation => table.step(operation).map_err(|errno| (errno, None)),
        }
    }

    fn add_element(&self, table: &mut TableState, name: SetName, element: &Element) -> Result<(), Errno> {
        let refused = |key| self.refused.get(&(name, key));
        if let Some(errno) = refused(None).or_else(|| refused(Some(element.key.clone()))) {
            return Err(*errno);
        }
        if let Data::Verdict(verdict) = &element.data {
            table.check_verdict(*verdict)?;
        }
        let set = table.sets.get_mut(&name).ok_or(Errno::ENOENT)?;
        if element.key.len() != set.def.key.len() {
            return Err(Errno::EINVAL);
        }
        let key = (element.key.clone(), element.key_end.clone());
        match set.elements.get(&key) {
            // What is there stays, with its comment.
            Some(old) if old.data == element.data => Ok(()),
            // Older kernels say EBUSY.
            Some(_) => Err(Errno::EEXIST),
            None if set.def.size.is_some_and(|size| set.elements.len() >= size as usize) => Err(Errno::ENFILE),
            None => {
                set.elements.insert(key, element.clone());
                Ok(())
            }
        }
    }
}

impl TableState {
    fn step(&mut self, operation: &Operation) -> Result<(), Errno> {
        let there = |removed: bool| if removed { Ok(()) } else { Err(Errno::ENOENT) };
        match operation {
            Operation::AddSet(def) => {
                if self.sets.contains_key(&def.name) {
                    return Err(Errno::EEXIST);
                }
                self.sets.insert(
                    def.name,
                    SetState { def: def.clone(), elements: BTreeMap::new(), counts: BTreeMap::new() },
                );
                Ok(())
            }
            Operation::AddChain(chain) => match self.chains.get(&chain.name) {
                None if self.woken && chain.hook.is_some() => Err(Errno::EINVAL),
                None => {
                    self.chains.insert(chain.name, ChainState { hook: chain.hook, rules: Vec::new() });
                    Ok(())
                }
                Some(old) if chain.hook.is_none() || old.hook == chain.hook => {
                    self.chains_touched = true;
                    Ok(())
                }
                Some(_) => Err(Errno::EEXIST),
            },
            Operation::FlushChain(chain) => {
                self.chains.get_mut(chain).ok_or(Errno::ENOENT)?.rules.clear();
                Ok(())
            }
            Operation::DeleteChain(chain) => self.delete_chain(*chain),
            Operation::DeleteForeignChain(name) => match ChainName::parse(name) {
                Some(chain) => self.delete_chain(chain),
                None => there(self.foreign_chains.remove(name)),
            },
            Operation::DeleteForeignSet(name) => match SetName::parse(name) {
                Some(set) if self.is_looked_up(set) => Err(Errno::EBUSY),
                Some(set) => there(self.sets.remove(&set).is_some()),
                None => there(self.foreign_sets.remove(name)),
            },
            // These are done by the kernel as a whole.
            Operation::AddTable
            | Operation::OwnTable
            | Operation::DeleteTable
            | Operation::AddRules(_)
            | Operation::AddElements(..)
            | Operation::Remember(_)
            | Operation::DeleteElements(..) => Ok(()),
        }
    }

    fn delete_chain(&mut self, chain: ChainName) -> Result<(), Errno> {
        if self.is_used(chain) {
            return Err(Errno::EBUSY);
        }
        let removed = self.chains.remove(&chain).ok_or(Errno::ENOENT)?;
        self.chains_touched |= removed.hook.is_some();
        Ok(())
    }

    fn add_rule(&mut self, chain: ChainName, rule: &Rule) -> Result<(), Errno> {
        for statement in &rule.statements {
            if let Some(set) = set_of(statement)
                && !self.sets.contains_key(&set)
            {
                return Err(Errno::ENOENT);
            }
            if let Statement::Verdict(verdict) = statement {
                self.check_verdict(*verdict)?;
            }
        }
        self.chains.get_mut(&chain).ok_or(Errno::ENOENT)?.rules.push(rule.clone());
        Ok(())
    }

    fn check_verdict(&self, verdict: Verdict) -> Result<(), Errno> {
        match target(verdict) {
            None => Ok(()),
            Some(chain) => match self.chains.get(&chain) {
                None => Err(Errno::ENOENT),
                Some(chain) if chain.hook.is_some() => Err(Errno::EOPNOTSUPP),
                Some(_) => Ok(()),
            },
        }
    }

    fn is_used(&self, chain: ChainName) -> bool {
        let in_rules = self
            .chains
            .values()
            .flat_map(|chain| &chain.rules)
            .flat_map(|rule| &rule.statements)
            .any(|statement| matches!(statement, Statement::Verdict(verdict) if target(*verdict) == Some(chain)));
        in_rules
            || self
                .sets
                .values()
                .flat_map(|set| set.elements.values())
                .any(|element| matches!(element.data, Data::Verdict(verdict) if target(verdict) == Some(chain)))
    }

    fn is_looked_up(&self, set: SetName) -> bool {
        let mut statements = self.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
        statements.any(|statement| set_of(statement) == Some(set))
    }
}

/// The chain that a verdict leads to.
fn target(verdict: Verdict) -> Option<ChainName> {
    match verdict {
        Verdict::Drop => None,
        Verdict::Goto(chain) | Verdict::Jump(chain) => Some(chain),
    }
}

/// The set that a statement uses.
fn set_of(statement: &Statement) -> Option<SetName> {
    match statement {
        Statement::InSet { set, .. } => Some(*set),
        Statement::VerdictMap { map, .. }
        | Statement::PriorityFromMap { map, .. }
        | Statement::DnatMap { map, .. }
        | Statement::Update { map, .. } => Some(*map),
        _ => None,
    }
}

impl Kernel for InMemoryKernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        self.attempts += 1;
        let mut hook = self.hooks.commit.take();
        let fault = hook.as_mut().and_then(|hook| hook(self, transaction));
        self.hooks.commit = self.hooks.commit.take().or(hook);
        let fault = fault.or_else(|| self.faults.pop_front());
        match fault {
            Some(Fault::Busy) => return Err(CommitError::Busy),
            Some(Fault::Permission) => return Err(CommitError::Permission),
            Some(Fault::Unknown { applied: false }) => return Err(CommitError::Unknown(Errno::ENOBUFS.into())),
            Some(Fault::Unknown { applied: true } | Fault::Unheard) | None => {}
        }
        if !self.keeps_no_tables {
            self.tables[transaction.family] = self.apply(transaction)?;
        }
        self.committed.push(transaction.clone());
        match fault {
            None | Some(Fault::Unheard) => {
                let (operations, unheard) = (transaction.len(), fault.is_some());
                Ok(Committed { operations, bytes: 0, elapsed: Duration::ZERO, unheard })
            }
            Some(_) => Err(CommitError::Unknown(Errno::ENOBUFS.into())),
        }
    }

    fn dump(
        &mut self,
        family: Family,
        sets: &[SetDef],
        chains: &[Chain],
        on_demand: &dyn Fn(ChainName) -> Option<Chain>,
    ) -> Result<Snapshot, KernelError> {
        let mut snapshot = Snapshot::default();
        self.dumps += 1;
        self.disturbed[family] = false;
        let Some(table) = &self.tables[family] else { return Ok(snapshot) };
        snapshot.table = true;
        snapshot.table_flags = table.flags;
        snapshot.owner = (table.flags & table_flag::OWNER != 0 && !table.ours).then(|| OWNER.clone());
        snapshot.foreign_chains = table.foreign_chains.clone();
        snapshot.foreign_sets = table.foreign_sets.clone();
        snapshot.foreign_other = table.foreign_objects.clone();
        for (name, set) in &table.sets {
            match sets.iter().find(|def| def.name == *name) {
                None => {
                    snapshot.foreign_sets.insert(name.to_string());
                }
                Some(def) if *def != set.def => {
                    snapshot.other_sets.insert(*name);
                }
                Some(_) => {
                    snapshot.sets.insert(*name);
                }
            }
        }
        for (name, chain) in &table.chains {
            let wanted = chains.iter().find(|wanted| wanted.name == *name).cloned().or_else(|| on_demand(*name));
            match wanted {
                None => {
                    snapshot.foreign_chains.insert(name.to_string());
                }
                Some(wanted) if wanted.hook != chain.hook => {
                    snapshot.other_chains.insert(*name);
                }
                Some(wanted) if wanted.rules != chain.rules => {
                    snapshot.other_rules.insert(*name);
                }
                Some(_) => {
                    snapshot.chains.insert(*name);
                }
            }
        }
        Ok(snapshot)
    }

    fn read_elements(
        &mut self,
        family: Family,
        set: &SetDef,
        each: &mut dyn FnMut(Option<Element>),
    ) -> Result<BTreeSet<String>, KernelError> {
        let mut hook = self.hooks.elements.take();
        if let Some(hook) = &mut hook {
            hook(self, set);
        }
        self.hooks.elements = self.hooks.elements.take().or(hook);
        each(None);
        self.elements_of(family, set.name).into_iter().for_each(|element| each(Some(element)));
        Ok(BTreeSet::new())
    }

    fn client(&mut self, family: Family, key: &Key) -> Result<Option<Kept>, KernelError> {
        let mut wanted = |it: &Remembered| kept::key(it.client, it.destination, it.protocol, it.port) == *key;
        Ok(self.kept(family, Duration::ZERO, &mut wanted)?.clients.pop())
    }

    fn chains(&mut self, family: Family) -> Result<Vec<Result<Chain, Unread>>, KernelError> {
        let Some(table) = &self.tables[family] else { return Ok(Vec::new()) };
        let ours = table.chains.iter().map(|(name, ChainState { hook, rules })| {
            // The kernel knows comments only as something of its user's.
            let rules = rules.iter().map(|rule| Rule { comment: None, ..rule.clone() });
            (name.to_string(), Ok(Chain { name: *name, hook: *hook, rules: rules.collect() }))
        });
        let foreign = table.foreign_chains.iter().map(|name| (name.clone(), Err(Unread::Foreign(name.clone()))));
        Ok(ours.chain(foreign).collect::<BTreeMap<_, _>>().into_values().collect())
    }

    fn frontend_counts(&mut self, family: Family) -> Result<Vec<FrontendCount>, KernelError> {
        Ok(self.counts_of(family))
    }

    fn kept(
        &mut self,
        family: Family,
        _: Duration,
        wanted: &mut dyn FnMut(&Remembered) -> bool,
    ) -> Result<KeptClients, KernelError> {
        // It knows no time.
        let (timeout, expires) = (Duration::from_secs(60), Duration::from_secs(30));
        let clients = self.elements_of(family, SetName::Affinity);
        let clients = clients.iter().filter_map(Remembered::read).filter(|client| wanted(client));
        let clients = clients.map(|client| Kept { client, timeout, expires }).collect();
        Ok(KeptClients { clients, complete: true })
    }

    fn undisturbed(&mut self, family: Family) -> Result<bool, KernelError> {
        Ok(!std::mem::take(&mut self.disturbed[family]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_see_each_commit_before_it_is_done_and_may_interfere() {
        let create = Transaction { family: Family::V4, operations: vec![Operation::AddTable] };
        let flush = Operation::FlushChain(ChainName::Services);
        let flush = Transaction { family: Family::V4, operations: vec![flush] };
        let mut kernel = InMemoryKernel::new();
        kernel.commit(&create).expect("it is empty");
        kernel.fail_next(Fault::Busy);
        kernel.on_commit(|kernel, transaction| {
            if transaction.operations == [Operation::AddTable] {
                return Some(Fault::Permission);
            }
            kernel.delete_table(Family::V4);
            None
        });
        assert!(matches!(kernel.commit(&create), Err(CommitError::Permission)), "the hook comes first");
        assert!(kernel.has_table(Family::V4));
        assert!(matches!(kernel.commit(&flush), Err(CommitError::Busy)), "what was to fail fails all the same");
        assert!(!kernel.has_table(Family::V4), "the hook stays");
        kernel.forget_hooks();
        kernel.commit(&create).expect("nobody is in the way");
        assert_eq!((kernel.attempts(), kernel.committed().len()), (4, 2));
    }

    #[test]
    fn a_recorder_keeps_what_was_sent_and_no_table() {
        let create = Transaction { family: Family::V4, operations: vec![Operation::AddTable] };
        let mut kernel = InMemoryKernel::recorder();
        kernel.commit(&create).expect("it takes everything");
        assert_eq!(kernel.committed(), [create]);
        assert_eq!(kernel.dump(Family::V4, &[], &[], &|_| None).ok(), Some(Snapshot::default()));
        assert_eq!((kernel.has_table(Family::V4), kernel.dumps()), (false, 1));
    }
}
