//! Kernels for tests that look at what is sent, or that disturb it.

use std::collections::BTreeSet;
use std::time::Duration;

use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::Family;
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::nftables::{CommitError, Committed, Kernel, KernelError, Snapshot};
use nftproxyd::ruleset::names::ChainName;
use nftproxyd::ruleset::types::{Chain, Element, SetDef};

/// Takes everything and keeps no tables, only what was sent: for clusters that are too large to be copied.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) sent: Vec<Transaction>,
    /// How often a table was read.
    pub(crate) dumps: usize,
}

impl Recorder {
    /// What was sent since the last time, in one list.
    pub(crate) fn take(&mut self) -> Vec<Operation> {
        std::mem::take(&mut self.sent).into_iter().flat_map(|transaction| transaction.operations).collect()
    }
}

impl Kernel for Recorder {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        self.sent.push(transaction.clone());
        Ok(Committed { operations: transaction.len(), bytes: 0, elapsed: Duration::ZERO })
    }

    fn dump(
        &mut self,
        _: Family,
        _: &[SetDef],
        _: &[Chain],
        _: &dyn Fn(ChainName) -> Option<Chain>,
    ) -> Result<Snapshot, KernelError> {
        self.dumps += 1;
        Ok(Snapshot::default())
    }

    fn read_elements(
        &mut self,
        _: Family,
        _: &SetDef,
        _: &mut dyn FnMut(Option<Element>),
    ) -> Result<BTreeSet<String>, KernelError> {
        Ok(BTreeSet::new())
    }

    fn undisturbed(&mut self, _: Family) -> Result<bool, KernelError> {
        Ok(true)
    }
}

/// The kernel in memory, with somebody who interferes.
pub(crate) struct Disturbed<F> {
    pub(crate) kernel: InMemoryKernel,
    /// Called before each call.
    pub(crate) disturb: F,
}

/// What is about to be asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Commit,
    Dump,
    /// Those of a set that the kernel itself writes.
    Elements,
}

impl<F: FnMut(Call, &mut InMemoryKernel)> Kernel for Disturbed<F> {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        (self.disturb)(Call::Commit, &mut self.kernel);
        self.kernel.commit(transaction)
    }

    fn dump(
        &mut self,
        family: Family,
        sets: &[SetDef],
        chains: &[Chain],
        on_demand: &dyn Fn(ChainName) -> Option<Chain>,
    ) -> Result<Snapshot, KernelError> {
        (self.disturb)(Call::Dump, &mut self.kernel);
        self.kernel.dump(family, sets, chains, on_demand)
    }

    fn read_elements(
        &mut self,
        family: Family,
        set: &SetDef,
        each: &mut dyn FnMut(Option<Element>),
    ) -> Result<BTreeSet<String>, KernelError> {
        if set.dynamic_size.is_some() {
            (self.disturb)(Call::Elements, &mut self.kernel);
        }
        self.kernel.read_elements(family, set, each)
    }

    fn undisturbed(&mut self, family: Family) -> Result<bool, KernelError> {
        self.kernel.undisturbed(family)
    }
}
