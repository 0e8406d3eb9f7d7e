//! The seam between the proxy and the kernel's nftables.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use super::owner::Owner;
use crate::diff::Transaction;
use crate::model::{Family, FrontendKey};
use crate::printable::printable;
use crate::ruleset::counted::FrontendCount;
use crate::ruleset::kept::Kept;
use crate::ruleset::names::{ChainName, SetName, TableName};
use crate::ruleset::read::Remembered;
use crate::ruleset::types::{Chain, Key, SetDef};

pub use crate::ruleset::types::Element;

/// What a commit cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Kernel objects created or deleted ([`Transaction::len`]).
    pub operations: usize,
    /// Length of the batch.
    pub bytes: usize,
    /// From sending the batch to having the kernel's answer.
    pub elapsed: Duration,
    /// Whether others may have changed something meanwhile that nobody has heard of, as nobody listened.
    pub unheard: bool,
}

/// Flags of a table: `enum nft_table_flags` of include/uapi/linux/netfilter/nf_tables.h.
pub mod table_flag {
    /// None of its chains sees a packet. Whoever may change the table can set and clear it.
    pub const DORMANT: u32 = 0x1;
    /// Only the socket that set it may change the table, which goes when the socket is closed (Linux 5.12).
    pub const OWNER: u32 = 0x2;
    /// The table outlives its owner (Linux 6.9). It cannot be cleared.
    pub const PERSIST: u32 = 0x4;
    /// Those of a table of ours that we own; ours has none otherwise.
    pub const OWNED: u32 = OWNER | PERSIST;
}

/// What one family's table holds, but for the elements of its sets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Whether the table is there at all.
    pub table: bool,
    /// Its flags ([`table_flag`], or others that are not known yet). Its user data, a comment, is not read:
    /// it has no effect.
    pub table_flags: u32,
    /// Who else owns it: nobody but that socket can change it. If there is none, and it has the flag, this one does.
    pub owner: Option<Owner>,
    /// Sets of ours whose definition in the kernel is exactly the one asked about.
    pub sets: BTreeSet<SetName>,
    /// Sets of ours that are defined differently: they cannot be changed, only replaced along with the table.
    pub other_sets: BTreeSet<SetName>,
    /// Chains of ours that are exactly as asked about (hook and rules).
    pub chains: BTreeSet<ChainName>,
    /// Chains of ours that are attached as asked about, but have other rules: they can be flushed and filled again.
    pub other_rules: BTreeSet<ChainName>,
    /// Chains of ours that are attached differently: only replaced along with the table.
    pub other_chains: BTreeSet<ChainName>,
    /// Chains in the table that are not ours.
    pub foreign_chains: BTreeSet<String>,
    /// Sets and maps in the table that are not ours.
    pub foreign_sets: BTreeSet<String>,
    /// What else is not ours, as text: objects and flowtables. It goes when the table is replaced.
    pub foreign_other: BTreeSet<String>,
}

/// A chain of a table of ours that cannot be told as a [`Chain`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unread {
    /// No chain of ours has this name.
    #[error("chain {} is none of nftproxyd's", printable(.0))]
    Foreign(String),
    /// It is attached to a hook in a way that ours never are.
    #[error("chain {}: {what}", printable(chain))]
    Attached {
        /// Its name.
        chain: String,
        /// The way, in words.
        what: String,
    },
    /// A rule of it is none that a chain of ours could have.
    #[error("chain {}, rule {rule}: {} is not understood", printable(chain), printable(what))]
    Rule {
        /// The chain's name.
        chain: String,
        /// Which rule it is, from 1 on: the first of the chain that is not understood.
        rule: usize,
        /// Which expression of it, in words.
        what: String,
    },
}

impl Unread {
    /// The chain's name.
    pub fn chain(&self) -> &str {
        match self {
            Unread::Foreign(chain) | Unread::Attached { chain, .. } | Unread::Rule { chain, .. } => chain,
        }
    }
}

/// Clients that keep their endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeptClients {
    /// They, each once.
    pub clients: Vec<Kept>,
    /// Whether these are all, but for those that came meanwhile.
    pub complete: bool,
}

/// The kernel's nftables, as far as our two tables are concerned.
pub trait Kernel {
    /// The name of the tables.
    fn table(&self) -> TableName {
        TableName::NODE
    }

    /// Applies a transaction as one atomic batch.
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError>;

    /// Reads the frame of our table of one family back and compares it with the one given: sets by definition, chains by
    /// hook and rules. A chain that is made on demand (`ChainName::Pick`, `RememberFor`) is compared with what
    /// `on_demand` makes of its name.
    fn dump(
        &mut self,
        family: Family,
        sets: &[SetDef],
        chains: &[Chain],
        on_demand: &dyn Fn(ChainName) -> Option<Chain>,
    ) -> Result<Snapshot, KernelError>;

    /// Gives every element of one set, dynamic ones too, to `each` as it is read; `None` means: forget what came, the set
    /// is read again. Returns the elements that mean nothing to us, as text. Costs time in proportion to their number.
    fn read_elements(
        &mut self,
        family: Family,
        set: &SetDef,
        each: &mut dyn FnMut(Option<Element>),
    ) -> Result<BTreeSet<String>, KernelError>;

    /// The elements of one set at once: 300 bytes of memory for each, so for small sets.
    fn elements(&mut self, family: Family, set: &SetDef) -> Result<Vec<Element>, KernelError> {
        let mut elements = Vec::new();
        self.read_elements(family, set, &mut |element| match element {
            Some(element) => elements.push(element),
            None => elements.clear(),
        })?;
        Ok(elements)
    }

    /// Whether a set holds exactly this element. The kernel is asked for the one where it can be, whatever the set holds.
    fn holds(&mut self, family: Family, set: &SetDef, element: &Element) -> Result<bool, KernelError> {
        Ok(self.elements(family, set)?.contains(element))
    }

    /// The elements of a set with these keys, or of a set of ranges, one that holds each. The kernel is asked for each of
    /// them where it can be, whatever the set holds: some 20 microseconds for each. An element that is none of the set's, or that stands for all
    /// keys, is [`KernelError::Strange`] where it could be the answer.
    fn find(&mut self, family: Family, set: &SetDef, keys: &[Key]) -> Result<Vec<Option<Element>>, KernelError> {
        look_through(self, family, set, keys)
    }

    /// The client that the map `affinity` has by this key: its address, the address that it connected to, protocol and
    /// port.
    fn client(&mut self, family: Family, key: &Key) -> Result<Option<Kept>, KernelError>;

    /// The chains of our table of one family with their rules, as they are, in the order of their names; none if there is
    /// no table.
    fn chains(&mut self, family: Family) -> Result<Vec<Result<Chain, Unread>>, KernelError>;

    /// How often each frontend was found by a packet since its element was made, as the element's counter says; none where the
    /// maps do not count. For 10,000 frontends it takes 50 to 120 ms, for more a time in proportion to the square of their
    /// number. While the kernel enlarges its hash table one may come twice, or not at all.
    fn frontend_counts(&mut self, family: Family) -> Result<Vec<FrontendCount>, KernelError>;

    /// The same of these frontends alone, each asked for where the kernel can be: whatever the maps hold.
    fn frontend_counts_of(&mut self, family: Family, keys: &[FrontendKey]) -> Result<Vec<FrontendCount>, KernelError> {
        Ok(self.frontend_counts(family)?.into_iter().filter(|count| keys.contains(&count.key)).collect())
    }

    /// The clients of the map `affinity` that are `wanted`. Looks for them for about so long: a dump takes a time in
    /// proportion to the square of their number.
    fn kept(
        &mut self,
        family: Family,
        patience: Duration,
        wanted: &mut dyn FnMut(&Remembered) -> bool,
    ) -> Result<KeptClients, KernelError>;

    /// Whether nobody else has changed anything in nftables since the last [`Kernel::dump`] of this family began, or since
    /// the last time this was asked about it. It may say no although only tables of others were changed, never yes
    /// although ours was.
    fn undisturbed(&mut self, family: Family) -> Result<bool, KernelError>;
}

/// Looks for the elements with these keys among all that the set has. Costs time in proportion to their number.
pub(super) fn look_through(
    kernel: &mut (impl Kernel + ?Sized),
    family: Family,
    set: &SetDef,
    keys: &[Key],
) -> Result<Vec<Option<Element>>, KernelError> {
    let mut found = vec![None; keys.len()];
    let strange = kernel.read_elements(family, set, &mut |element| match element {
        None => found.fill(None),
        Some(element) => {
            let wanted = found.iter_mut().zip(keys).filter(|(_, key)| element.matches(key));
            wanted.for_each(|(place, _)| *place = Some(element.clone()));
        }
    })?;
    match strange.into_iter().next().filter(|_| found.contains(&None)) {
        // It may stand for any key.
        Some(words) => Err(KernelError::Strange(words)),
        None => Ok(found),
    }
}

/// Reading from the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The capability `CAP_NET_ADMIN` is missing.
    #[error("no permission to use nftables: run as root or with CAP_NET_ADMIN")]
    Permission,
    /// The kernel has no nf_tables.
    #[error("the kernel has no nf_tables: load the module nf_tables, or use a kernel with CONFIG_NF_TABLES")]
    Unsupported,
    /// The socket failed.
    #[error("netlink: cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Others change nftables all the time.
    #[error("nftables changes faster than it can be read")]
    Restless,
    /// An answer makes no sense.
    #[error("netlink: unexpected answer: {0}")]
    Protocol(String),
    /// Where an element was looked for by its key there is one that means nothing to us.
    #[error("{0} is none that nftproxyd could have written")]
    Strange(String),
}

/// A commit failed. Unless it is `Unknown`, the kernel holds exactly what it held before.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The kernel refused an object.
    #[error("the kernel refused {object}: {source}")]
    Refused {
        /// Position in [`Transaction::operations`] of the step that it belongs to.
        operation: usize,
        /// The object, as text: `map service-ips, element 10.96.0.1 . tcp . 80`.
        object: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The kernel asks to try again (another transaction was faster).
    #[error("the kernel is busy")]
    Busy,
    /// `CAP_NET_ADMIN` is missing.
    #[error("no permission to change nftables: run as root or with CAP_NET_ADMIN")]
    Permission,
    /// The table has an owner (flag `owner`, Linux 5.12): the kernel lets nobody else change it, whatever they may.
    #[error("the table belongs to {0}, and nobody else may change it: stop that program, or have it give up the table")]
    Owned(Owner),
    /// It is not known whether the transaction was applied: the kernel's state has to be read back.
    #[error("the outcome of a transaction is not known: {0}")]
    Unknown(#[source] io::Error),
}
