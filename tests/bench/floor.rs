//! The floor: what the kernel needs for the same elements, sent from a prepared buffer by somebody who does nothing else.
//!
//! The tables are read from the kernel, not taken from the daemon, and sent into a network namespace of their own. What a
//! change has to do is the difference of the tables before and after it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::netlink::{Nftables, Set, Transaction, Verb};
use crate::network::Namespace;

/// The name of the tables, and the families that they are of: `NFPROTO_*` and nft's word.
const TABLE: &str = "nftproxyd";
const FAMILIES: [(u8, &str); 2] = [(2, "ip"), (10, "ip6")];
/// How often the tables are filled.
const FILLS: usize = 5;
/// Before each time.
const SETTLE: Duration = Duration::from_millis(300);
/// How often a change is made and undone.
const TURNS: usize = 51;
/// Before each: a change comes by itself, to a processor that has done other things since the last one.
const PAUSE: Duration = Duration::from_millis(5);

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
            frame += &nft(&["--terse", "list", "table", word, TABLE], "")?;
            for set in kernel.sets(family, TABLE)? {
                elements.insert(set.clone(), kernel.elements(&set)?.into_iter().collect());
            }
        }
        Ok(Tables { frame, elements })
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

/// What a change takes.
pub(crate) struct Change {
    /// Elements added and deleted.
    pub(crate) operations: usize,
    /// The median.
    pub(crate) in_kernel: Duration,
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
            nft(&["flush", "ruleset"], "")?;
            // The kernel frees what is deleted a little later, and that shall not be counted.
            thread::sleep(SETTLE);
            nft(&["-f", "-"], &tables.frame)?;
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

    /// Measures the change that leads from one state of the tables to another.
    pub(crate) fn change(&mut self, before: &Tables, after: &Tables) -> Result<Change> {
        ensure!(before.frame == after.frame, "the change is one of the frame as well");
        if self.frame != before.frame {
            self.fill(before)?;
        }
        let Floor { namespace, elements, .. } = self;
        namespace.run(|| {
            let mut kernel = Nftables::open()?;
            if let Some(catch_up) = difference(elements, &before.elements).transaction() {
                kernel.commit(&catch_up).context("to where the change begins")?;
            }
            elements.clone_from(&before.elements);
            let forth = difference(&before.elements, &after.elements);
            let back = difference(&after.elements, &before.elements);
            let operations = forth.0.iter().map(|(_, _, elements)| elements.len()).sum();
            let (forth, back) = forth.transaction().zip(back.transaction()).context("nothing has changed")?;
            let mut taken = Vec::new();
            for _ in 0..TURNS {
                thread::sleep(PAUSE);
                taken.push(kernel.commit(&forth)?);
                for (set, wanted) in after.elements.iter().filter(|_| taken.len() == 1) {
                    let found: BTreeSet<Vec<u8>> = kernel.elements(set)?.into_iter().collect();
                    ensure!(found == *wanted, "set {} is not what it should be", set.name);
                }
                kernel.commit(&back)?;
            }
            taken.sort_unstable();
            Ok(Change { operations, in_kernel: taken[TURNS / 2] })
        })
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

/// Runs nft in this thread's network namespace.
pub(crate) fn nft(arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start nft")?;
    child.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
