//! What the nft of this host makes of our tables: which of what it lists of them it can read back.

use std::process::Command;

use super::{Finding, Subject};
use crate::model::{Family, PerFamily};
use crate::nftables::{Kernel as _, KernelError, LinuxKernel};
use crate::ruleset::names::{ChainName, TableName};
use crate::ruleset::text;

/// The first version that reads back what it lists of any table of ours.
const OF_TABLES: &[u32] = &[1, 0, 3];
/// The first that does with session affinity.
const OF_AFFINITY: &[u32] = &[1, 0, 6];
/// The first that does with that of IPv6, and one before it.
const OF_AFFINITY_V6: [&[u32]; 2] = [&[1, 1, 0], &[1, 0, 6, 1]];

/// What is in a table that an nft may not be able to read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// Nothing but what every table has.
    Frame,
    /// Rules of session affinity.
    Affinity,
}

/// Asks nft for its version, if there is one, and the kernel for our tables.
pub(super) fn ask() -> Vec<Finding> {
    let printed = Command::new("nft").arg("--version").output().ok();
    let Some(version) = printed.and_then(|output| version(&String::from_utf8_lossy(&output.stdout))) else {
        // Whoever has none saves nothing with it.
        return Vec::new();
    };
    // Who may not ask is told so about the tables.
    let holds = holds().unwrap_or_default();
    Family::ALL.into_iter().filter_map(|family| judge(&version, family, holds[family]?)).collect()
}

/// What our tables hold. Of the chains of a table nothing is known here, so all are named.
fn holds() -> Result<PerFamily<Option<Holds>>, KernelError> {
    let mut holds = PerFamily::default();
    for family in Family::ALL {
        let snapshot = LinuxKernel::open()?.dump(family, &[], &[], &|_| None)?;
        let of_affinity = |name: &String| matches!(ChainName::parse(name), Some(ChainName::RememberFor(_)));
        let remembers = snapshot.foreign_chains.iter().any(of_affinity);
        holds[family] = snapshot.table.then_some(if remembers { Holds::Affinity } else { Holds::Frame });
    }
    Ok(holds)
}

/// The numbers in `nftables v1.0.6 (Lester Gooch #5)`.
fn version(text: &str) -> Option<Vec<u32>> {
    let numbers = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    numbers.split('.').map(|number| number.parse().ok()).collect()
}

fn judge(version: &[u32], family: Family, holds: Holds) -> Option<Finding> {
    let [first_v6, other_v6] = OF_AFFINITY_V6;
    let (what, from) = if version < OF_TABLES {
        ("", "1.0.3")
    } else if holds == Holds::Affinity && family == Family::V6 && version < first_v6 && version != other_v6 {
        (" of session affinity", "1.1.0")
    } else if holds == Holds::Affinity && version < OF_AFFINITY {
        (" of session affinity", "1.0.6")
    } else {
        return None;
    };
    let version = version.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
    let table = format!("table {}", text::table(TableName::NODE, family));
    let in_table = if what.is_empty() { "of" } else { "in" };
    let finding = Finding::note(
        Subject::Nft,
        format!(
            "nft {version} cannot read back what it lists{what} {in_table} {table}: a saved ruleset with that is refused as a whole"
        ),
        format!("save tables of your own by name, as nft list table inet filter, or use nft {from} or later"),
    );
    Some(finding.proof(format!("nft --version: {version}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_told_from_new_ones() {
        use Family::{V4, V6};
        use Holds::{Affinity, Frame};
        let said = |text: &str, family, holds| {
            let finding = judge(&version(text).expect("a version"), family, holds);
            finding.map(|finding| finding.what.split(':').next().unwrap_or_default().to_owned())
        };
        let of_affinity = |version: &str, table: &str| {
            Some(format!("nft {version} cannot read back what it lists of session affinity in table {table} nftproxyd"))
        };
        assert_eq!(said("nftables v1.0.6 (Lester Gooch #5)\n", V6, Affinity), of_affinity("1.0.6", "ip6"));
        assert_eq!(said("nftables v1.0.9 (Old Doc Yak #3)", V6, Affinity), of_affinity("1.0.9", "ip6"));
        assert_eq!(said("nftables v1.0.5 (x)", V4, Affinity), of_affinity("1.0.5", "ip"));
        for family in [V4, V6] {
            let all = format!("nft 0.9.8 cannot read back what it lists of table {} nftproxyd", text::family(family));
            assert_eq!(said("nftables v0.9.8 (E.D.S.)", family, Frame), Some(all));
            for fine in
                ["nftables v1.1.0 (Commodore Bullmoose)", "nftables v1.0.6.1 (x)", "nftables v1.1.3 (x)", "v2.0"]
            {
                assert_eq!(said(fine, family, Affinity), None, "{fine}");
            }
            assert_eq!(said("nftables v1.0.3 (x)", family, Frame), None, "nothing in the table needs more");
        }
        assert_eq!(said("nftables v1.0.6 (x)", V4, Affinity), None);
        for strange in ["", "nftables", "nftables v1.x"] {
            assert_eq!(version(strange), None, "{strange}");
        }
    }
}
