//! Who can change the tables.

use std::fmt::Write as _;

use serde::Serialize;

use super::shape::{Shape, shape};
use crate::metrics::daemon::Daemon;
use crate::model::Family;
use crate::nftables::{Kernel as _, KernelError, LinuxKernel, Owner, Protection};
use crate::printable::printable;
use crate::ruleset::names::TableName;
use crate::ruleset::text;

/// A table of ours, and who can change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableStatus {
    /// Its family and name, such as `ip nftproxyd`.
    pub table: String,
    /// What protects it.
    pub protection: Protected,
    /// The port id of the netlink socket that owns it.
    pub owner_port: Option<u32>,
    /// The process that has the socket, where it can be found.
    pub owner_pid: Option<u32>,
    /// The name of that process.
    pub owner_name: Option<String>,
    /// What of its chains, rules and maps is not as it has to be, in words.
    pub damage: Vec<String>,
}

/// What protects a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Protected {
    /// Everybody with the privilege may change it.
    Nothing,
    /// Its owner has ended without giving it up: everybody may change it, and nft before 1.1.0 cannot read back what it
    /// lists of it.
    Orphaned,
    /// Only its owner can change it.
    Owned,
}

impl TableStatus {
    fn new(name: TableName, family: Family, protection: Protection) -> TableStatus {
        let (protection, owner) = match protection {
            Protection::None => (Protected::Nothing, None),
            Protection::Orphan => (Protected::Orphaned, None),
            Protection::Owner(owner) => (Protected::Owned, Some(owner)),
        };
        let (owner_port, process) = owner.map(|Owner { port, process }| (port, process)).unzip();
        let (owner_pid, owner_name) = process.flatten().unzip();
        TableStatus {
            table: text::table(name, family).to_string(),
            protection,
            owner_port,
            owner_pid,
            owner_name,
            damage: Vec::new(),
        }
    }
}

/// Who can change the tables that are there, and whether they are as they have to be. A daemon knows more about that.
///
/// # Errors
/// The kernel cannot be asked.
pub fn tables(kernel: &mut LinuxKernel, daemon: Option<&Daemon>) -> Result<Vec<TableStatus>, KernelError> {
    let mut tables = Vec::new();
    let name = kernel.table();
    for family in Family::ALL {
        if let Some(protection) = kernel.protection(family)? {
            let Shape { damage, foreign, .. } = shape(kernel, family, daemon)?;
            tables
                .push(TableStatus { damage: [damage, foreign].concat(), ..TableStatus::new(name, family, protection) });
        }
    }
    Ok(tables)
}

/// A line for each table.
pub fn tables_text(tables: &[TableStatus]) -> String {
    let mut lines = String::new();
    for table in tables {
        let _ = write!(lines, "table     {}: ", table.table);
        let _ = match (table.protection, &table.owner_pid, &table.owner_name, table.owner_port) {
            (Protected::Nothing, ..) => writeln!(lines, "not owned"),
            (Protected::Orphaned, ..) => writeln!(lines, "has lost its owner (see nftproxyd doctor)"),
            (Protected::Owned, Some(pid), Some(name), _) => writeln!(lines, "owned by process {pid} ({name})"),
            (Protected::Owned, _, _, port) => writeln!(lines, "owned by netlink port {}", port.unwrap_or(0)),
        };
        for damage in &table.damage {
            let _ = writeln!(lines, "table     {}: DAMAGED: {}", table.table, printable(damage));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_has_a_line() {
        let owner = |process| Protection::Owner(Owner { port: 9, process });
        let process = Some((7, "nftproxyd".to_owned()));
        let cases = [
            (Protection::None, "table     ip nftproxyd: not owned\n"),
            (Protection::Orphan, "table     ip nftproxyd: has lost its owner (see nftproxyd doctor)\n"),
            (owner(process), "table     ip nftproxyd: owned by process 7 (nftproxyd)\n"),
            (owner(None), "table     ip nftproxyd: owned by netlink port 9\n"),
        ];
        for (protection, text) in cases {
            assert_eq!(tables_text(&[TableStatus::new(TableName::NODE, Family::V4, protection)]), text);
        }
        let mut damaged = TableStatus::new(TableName::NODE, Family::V4, Protection::None);
        damaged.damage.push("missing chains: services".to_owned());
        let text = "table     ip nftproxyd: not owned\ntable     ip nftproxyd: DAMAGED: missing chains: services\n";
        assert_eq!(tables_text(&[damaged]), text);
        let json =
            serde_json::to_value(TableStatus::new(TableName::NODE, Family::V6, Protection::Orphan)).expect("JSON");
        assert_eq!((&json["table"], &json["protection"]), (&"ip6 nftproxyd".into(), &"orphaned".into()));
    }
}
