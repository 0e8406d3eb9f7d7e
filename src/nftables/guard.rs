//! The guard: what keeps open connections translated while our own tables can be flushed, which is as long as nobody
//! owns them (before Linux 6.9, or by choice).
//!
//! Connections that are open need no rules: the kernel knows how each is translated. But it does that, and looks at
//! connections at all, only while some table wants it. Whoever flushes everything ends both for a moment, and what a server
//! sends in that moment reaches its client with the server's own address. The client refuses that, the server closes, and
//! the client, who hears nothing of it, waits for ever.
//!
//! So there is a table of each family that wants both and does nothing else: an empty chain of type nat, and a rule that no
//! packet meets, which reads something of a connection. It has an owner (Linux 5.12): others' flushes pass it by. Without
//! the flag to persist (6.9), which is what our own tables have, it goes when its owner's socket is closed: nothing of it
//! is left by a daemon, however that ends.

use std::io;

use nix::errno::Errno;

use super::encode::{Batch, Encoder};
use super::kernel::{KernelError, table_flag};
use super::lower::lower;
use super::numbers::c_name;
use super::owner::{Owner, Protection};
use super::request::open;
use super::table;
use crate::diff::Operation;
use crate::model::{Family, PerFamily};
use crate::netlink::Socket;
use crate::ruleset::names::TableName;
use crate::ruleset::text;
use crate::ruleset::types::{Hook, HookPoint, Statement};

/// What the tables say about themselves.
const COMMENT: &str = "keeps open connections translated while tables are flushed; goes when nftproxyd ends";

/// The chain with a hook. One suffices for the translation at all of them, and fewest packets come to this one.
const NAT_CHAIN: &str = "nat-input";
/// The chain of the rule.
const CONNECTIONS_CHAIN: &str = "connections";
/// What the rule says about itself.
const RULE_COMMENT: &str = "no packet comes here; that it is there keeps connection tracking on";

/// The guard's tables: they are there for as long as this.
#[derive(Debug)]
pub struct Guard {
    /// It owns them.
    _socket: Socket,
}

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum NoGuard {
    /// Tables cannot have owners.
    #[error("tables cannot have an owner on this kernel (Linux 5.12)")]
    Unsupported,
    /// There is one, which is another's.
    #[error("table {} {table} is owned by {owner}", text::family(*family))]
    Owned {
        /// Its name.
        table: &'static str,
        /// The family of the table.
        family: Family,
        /// Its owner.
        owner: Owner,
    },
    /// Something else.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Guard {
    /// Makes the tables of both families that guard the tables of this name. One that is there without an owner is replaced.
    pub fn new(of: TableName) -> Result<Guard, NoGuard> {
        let mut socket = open()?;
        let table = of.guard();
        for family in Family::ALL {
            let there = table::ask(&mut socket, family, table)?;
            if let Some(port) = there.and_then(|table| table.owner) {
                return Err(NoGuard::Owned { table, family, owner: Owner::of(port) });
            }
            commit(&mut socket, |sequence| batch(table, family, sequence, there.is_some())).map_err(|error| {
                match error.raw_os_error().map(Errno::from_raw) {
                    // What kernels say of flags that they do not know.
                    Some(Errno::EINVAL | Errno::EOPNOTSUPP) => NoGuard::Unsupported,
                    _ => KernelError::Io { step: "make a guard", source: error }.into(),
                }
            })?;
        }
        Ok(Guard { _socket: socket })
    }

    /// What protects the tables that are there.
    pub fn protection(of: TableName) -> Result<PerFamily<Option<Protection>>, KernelError> {
        let mut socket = open()?;
        let mut found = PerFamily::default();
        for family in Family::ALL {
            found[family] = table::ask(&mut socket, family, of.guard())?.map(table::Table::protection);
        }
        Ok(found)
    }

    /// Removes a table that has no owner.
    pub fn remove(of: TableName, family: Family) -> Result<(), KernelError> {
        let batch = |sequence| {
            let mut encoder = Encoder::new(family, of.guard(), sequence);
            delete(&mut encoder);
            encoder.finish()
        };
        commit(&mut open()?, batch).map_err(|source| KernelError::Io { step: "remove a guard", source })
    }
}

/// Sends the batch that begins with the sequence number that it is given, and waits for the kernel's word about it.
fn commit(socket: &mut Socket, batch: impl FnOnce(u32) -> Batch) -> io::Result<()> {
    let first = socket.next_sequence();
    let batch = batch(first);
    let last = batch.last_sequence();
    socket.used_sequence(last);
    socket.execute_batch(batch.bytes(), first..=last)
}

/// The transaction that makes the table of a family.
fn batch(table: &str, family: Family, first_sequence: u32, replace: bool) -> Batch {
    let mut encoder = Encoder::new(family, table, first_sequence);
    if replace {
        delete(&mut encoder);
    }
    encoder.add_table(0, table_flag::OWNER, COMMENT);
    // This priority has one name in every hook, for every nft.
    encoder.add_chain(0, NAT_CHAIN, Some(Hook { hook: HookPoint::Input, priority: 0 }));
    encoder.add_chain(0, CONNECTIONS_CHAIN, None);
    let expressions = lower(family, &Statement::StatusDnat);
    encoder.add_rule(0, 0, &c_name(CONNECTIONS_CHAIN), Some(RULE_COMMENT), &expressions);
    encoder.finish()
}

fn delete(encoder: &mut Encoder) {
    encoder.operation(0, &Operation::DeleteTable).expect("it has nothing but a name");
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::in_network_namespace;
    use crate::testing::netns::{nft, run, skip, try_nft};

    /// What nft lists, but for the name of the program, which is another's here.
    fn listing(family: &str) -> String {
        format!(
            r#"table {family} nftproxyd-guard {{
	flags owner
	comment "keeps open connections translated while tables are flushed; goes when nftproxyd ends"

	chain nat-input {{
		type nat hook input priority filter; policy accept;
	}}

	chain connections {{
		ct status dnat comment "no packet comes here; that it is there keeps connection tracking on"
	}}
}}
"#
        )
    }

    fn listed() -> String {
        let text = nft(&["list", "ruleset"], "");
        text.lines().map(|line| format!("{}\n", line.split(" # progname").next().unwrap_or(line))).collect()
    }

    /// `None` where the kernel knows no owners.
    fn guard() -> Option<Guard> {
        match Guard::new(TableName::NODE) {
            Err(NoGuard::Unsupported) => {
                skip("owners of tables", "this kernel knows none");
                None
            }
            guard => Some(guard.expect("it can be made")),
        }
    }

    fn protection() -> [Option<Protection>; 2] {
        let found = Guard::protection(TableName::NODE).expect("it can be asked for");
        Family::ALL.map(|family| found[family].clone())
    }

    /// Drops it and waits until its tables are gone: a program that another test starts at the same time has the socket,
    /// too, for a moment.
    fn end(guard: Guard) {
        drop(guard);
        let until = Instant::now() + Duration::from_secs(30);
        while protection() != [None, None] {
            assert!(Instant::now() < until, "it does not go: {}", listed());
            sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn it_is_there_for_as_long_as_its_owner() {
        in_network_namespace(|| {
            let Some(guard) = guard() else { return };
            let both = listing("ip") + &listing("ip6");
            assert_eq!(listed(), both);
            run(&["nft", "flush ruleset"]);
            assert_eq!(listed(), both);
            for attempt in ["delete table ip nftproxyd-guard", "flush chain ip6 nftproxyd-guard connections"] {
                let error = try_nft(&[attempt], "").expect_err(attempt).to_string();
                assert!(error.contains("Operation not permitted"), "{error}");
            }
            for found in protection() {
                let Some(Protection::Owner(owner)) = found else { panic!("{found:?}") };
                assert_eq!(owner.process.map(|(id, _)| id), Some(std::process::id()));
            }
            let second = Guard::new(TableName::NODE).expect_err("there is one");
            let words = "table ip nftproxyd-guard is owned by netlink port ";
            assert!(second.to_string().starts_with(words), "{second}");
            Guard::remove(TableName::NODE, Family::V4).expect_err("it is another's");
            end(guard);
            assert_eq!((listed(), protection()), (String::new(), [None, None]));
        });
    }

    #[test]
    fn what_has_no_owner_is_replaced_or_removed() {
        in_network_namespace(|| {
            run(&["nft", "add table ip6 nftproxyd-guard; add chain ip6 nftproxyd-guard theirs"]);
            assert_eq!(protection(), [None, Some(Protection::None)]);
            let Some(guard) = guard() else { return };
            assert_eq!(listed(), listing("ip") + &listing("ip6"));
            end(guard);
            run(&["nft", "add table ip nftproxyd-guard"]);
            Guard::remove(TableName::NODE, Family::V4).expect("it is nobody's");
            assert_eq!(listed(), "");
        });
    }
}
