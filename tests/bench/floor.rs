//! The floor: what the kernel needs for the same elements, sent from a prepared buffer by somebody who does nothing else.
//!
//! The tables are read from the kernel, not taken from the daemon, and sent into a network namespace of their own. What a
//! change has to do is the difference of the tables before and after it.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::netlink::{Nftables, Set, Transaction, Verb};
use crate::netns::{Namespace, try_nft};

/// The name of the tables, and the families that they are of: `NFPROTO_*` and nft's word.
const TABLE: &str = "nftproxyd";
const FAMILIES: [(u8, &str); 2] = [(2, "ip"), (10, "ip6")];
/// How often the tables are filled.
const FILLS: usize = 5;
/// Before each time.
const SETTLE: Duration = Duration::from_millis(300);
/// The tables of a network namespace.
pub(crate) struct Tables {
    /// Sets without elements, chains and rules, as a script of nft.
    frame: String,
    elements: Elements,
}

type Elements = BTreeMap<Set, BTreeSet<Vec<u8>>>;

impl Tables {
    /// Reads those of this thread's network namespace.
    pub(crate) fn read() -> Result<Tables> {
        let mut frame = String::new();
        let mut elements = Elements::new();
        let mut kernel = Nftables::open()?;
        for (family, word) in FAMILIES {
            let listing = try_nft(&["--terse", "list", "table", word, TABLE], "")?;
            // Of a table that has, or had, an owner: nft before 1.1.0 cannot read what it lists of that.
            let of_owner = |line: &&str| line.starts_with("\tflags");
            frame.extend(listing.lines().filter(|line| !of_owner(line)).flat_map(|line| [line, "\n"]));
            for set in kernel.sets(family, TABLE)? {
                elements.insert(set.clone(), kernel.elements(&set)?.into_iter().collect());
            }
        }
        Ok(Tables { frame, elements })
    }

    /// Whether all but elements is the same.
    pub(crate) fn has_frame_of(&self, other: &Tables) -> bool {
        self.frame == other.frame
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.elements.values().map(BTreeSet::len).sum()
    }
}

/// A network namespace with the same tables.
pub(crate) struct Floor {
    namespace: Namespace,
    frame: String,
    elements: Elements,
}

/// A round of changes, each from where the one before it ends, prepared to be sent into the floor's namespace.
pub(crate) struct Round {
    kernel: Nftables,
    changes: Vec<Change>,
    /// From the end of the last change to the beginning of the first.
    back: Option<Transaction>,
}

struct Change {
    operations: usize,
    transaction: Transaction,
}

impl Floor {
    /// Makes the namespace and fills it, several times. Returns it with the shortest of the kernel's times for the elements;
    /// the frame, which is small, is not counted.
    pub(crate) fn load(tables: &Tables) -> Result<(Floor, Duration)> {
        let mut floor = Floor { namespace: Namespace::new()?, frame: String::new(), elements: Elements::new() };
        let mut shortest = floor.fill(tables)?;
        for _ in 1..FILLS {
            shortest = shortest.min(floor.fill(tables)?);
        }
        Ok((floor, shortest))
    }

    /// Makes the tables anew.
    fn fill(&mut self, tables: &Tables) -> Result<Duration> {
        self.frame.clone_from(&tables.frame);
        self.elements.clone_from(&tables.elements);
        self.namespace.run(|| {
            try_nft(&["flush", "ruleset"], "")?;
            // The kernel frees what is deleted a little later, and that shall not be counted.
            thread::sleep(SETTLE);
            try_nft(&["-f", "-"], &tables.frame)?;
            let mut kernel = Nftables::open()?;
            let mut transactions = Vec::new();
            for (set, elements) in &tables.elements {
                let elements: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
                transactions.extend(Transaction::adding(set, &elements));
            }
            let mut taken = Duration::ZERO;
            for transaction in &transactions {
                taken += kernel.commit(transaction)?;
            }
            Ok(taken)
        })
    }

    /// Prepares the changes that lead from each of these states of the tables to the next, and makes each once to see that it
    /// does; the tables are left in the first state.
    pub(crate) fn round(&mut self, states: &[Tables]) -> Result<Round> {
        let [first, .., last] = states else { bail!("nothing is to be changed") };
        ensure!(states.iter().all(|state| state.has_frame_of(first)), "a change is one of the frame as well");
        if self.frame != first.frame {
            self.fill(first)?;
        }
        let mut kernel = self.namespace.run(Nftables::open)?;
        if let Some(catch_up) = difference(&self.elements, &first.elements).transaction() {
            kernel.commit(&catch_up).context("to where the changes begin")?;
        }
        self.elements.clone_from(&first.elements);
        let mut changes = Vec::new();
        for (before, after) in states.iter().zip(&states[1..]) {
            let difference = difference(&before.elements, &after.elements);
            let operations = difference.0.iter().map(|(_, _, elements)| elements.len()).sum();
            let transaction = difference.transaction().context("nothing has changed")?;
            kernel.commit(&transaction)?;
            for (set, wanted) in &after.elements {
                let found: BTreeSet<Vec<u8>> = kernel.elements(set)?.into_iter().collect();
                ensure!(found == *wanted, "set {} is not what it should be", set.name);
            }
            changes.push(Change { operations, transaction });
        }
        let mut round = Round { kernel, changes, back: difference(&last.elements, &first.elements).transaction() };
        round.go_back()?;
        Ok(round)
    }
}

impl Round {
    /// How many elements a change adds and deletes.
    pub(crate) fn operations(&self, change: usize) -> usize {
        self.changes[change].operations
    }

    /// Makes a change: the first, or the one after that which was made last. Returns the kernel's time.
    pub(crate) fn make(&mut self, change: usize) -> Result<Duration> {
        self.kernel.commit(&self.changes[change].transaction)
    }

    /// Goes back to where the first change begins, after the last.
    pub(crate) fn go_back(&mut self) -> Result<()> {
        self.back.as_ref().map_or(Ok(()), |back| self.kernel.commit(back).map(drop))
    }
}

struct Difference<'a>(Vec<(Verb, &'a Set, Vec<&'a [u8]>)>);

impl Difference<'_> {
    /// `None` if there is nothing to do.
    fn transaction(&self) -> Option<Transaction> {
        (!self.0.is_empty()).then(|| Transaction::of(&self.0))
    }
}

/// What is to be deleted, then what is to be added: an element with other data is both.
fn difference<'a>(before: &'a Elements, after: &'a Elements) -> Difference<'a> {
    let of = |verb, from: &'a Elements, other: &'a Elements| {
        from.iter().filter_map(move |(set, elements)| {
            let others = other.get(set);
            let only = elements.iter().filter(|element| others.is_none_or(|others| !others.contains(*element)));
            let only: Vec<&[u8]> = only.map(Vec::as_slice).collect();
            (!only.is_empty()).then_some((verb, set, only))
        })
    };
    Difference(of(Verb::Delete, before, after).chain(of(Verb::Add, after, before)).collect())
}
