//! What tables of others do to one packet: which of their base chains it meets at a hook, in the order of the kernel, and
//! what becomes of it there.
//!
//! Rules are evaluated as the kernel does: a condition holds, does not, or nobody can tell; what nobody can tell is followed
//! both ways, and said to be so. Sets are asked for one key. nftables, iptables-nft and legacy iptables are the same here,
//! but for how they are read.
//!
//! * `packet`: the packet, and what is said of it. `bits`: values of which some bits are not known. Pure.
//! * `rule`: rules as values. `decode`, `xt`, `legacy`: rules of nftables, of iptables in them, and of legacy iptables. Pure.
//! * `view`: what a chain sees of a packet. `step`: one rule. `walk`: one base chain. `tables`: all of a hook. Pure.
//! * `kernel`: the kernel's tables, and what it is asked on the way.

mod bits;
mod decode;
mod kernel;
#[cfg(test)]
mod kernel_tests;
mod legacy;
mod packet;
mod rule;
mod step;
mod tables;
#[cfg(test)]
mod tests;
mod view;
mod walk;
mod xt;

use std::io;
use std::path::Path;

use kernel::{Kernel, Look};
pub use packet::{End, Hook, Met, Named, Packet, Passage, State, Turn, Verdict};
use tables::{Table, meet, told, unexamined};

use crate::leftovers;

/// The tables of this network namespace, as they were at one moment.
#[derive(Debug)]
pub struct Tables {
    tables: Vec<Table>,
    kernel: Kernel,
    /// Tables of legacy iptables that could not be read, and why.
    unread: Vec<String>,
}

impl Tables {
    /// Reads all tables of nftables but those that `is_left_out` says, by family (as nft writes it) and name; and those of
    /// legacy iptables, by its own program. Which of these are in use is in files below `root`.
    ///
    /// # Errors
    /// They cannot be listed: who asks may not, or they change all the time.
    pub fn read(root: &Path, is_left_out: &dyn Fn(&str, &str) -> bool) -> io::Result<Tables> {
        let Look { mut tables, kernel } = kernel::read(is_left_out)?;
        let mut unread = Vec::new();
        for listed in leftovers::legacy::list(root)? {
            match (&listed.saved, legacy::table(&listed)) {
                (_, Some(table)) => tables.push(table),
                (Err(error), None) => unread.push(format!("table {} of {}: {error}", listed.name, listed.program)),
                (Ok(_), None) => {}
            }
        }
        Ok(Tables { tables, kernel, unread })
    }

    /// Tables of legacy iptables that could not be read, and why: what they do to packets is not said.
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// Whether no table of nftables has changed since. Elements of sets are asked for when a packet is: what is said is of
    /// one moment if this holds afterwards.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn is_current(&self) -> io::Result<bool> {
        self.kernel.is_current()
    }

    /// The base chains that a packet meets at its hook, up to one that ends its way.
    pub fn meet(&self, packet: &Packet) -> Passage {
        meet(&self.tables, &self.kernel, packet, told)
    }

    /// Base chains of families that packets are not taken through (`bridge`, `arp`) and that may drop: by name.
    pub fn unexamined(&self) -> Vec<String> {
        unexamined(&self.tables)
    }
}
