//! What the nft of this host makes of our tables.

use std::process::Command;

use super::Finding;
use crate::model::Family;
use crate::nftables::{Kernel as _, KernelError, LinuxKernel};
use crate::ruleset::names::{ChainName, TableName};

/// The first version that reads back what it lists of a map of IPv6 addresses that rules fill, and one before it.
const READS_BACK: [&[u32]; 2] = [&[1, 1, 0], &[1, 0, 6, 1]];

/// Asks nft for its version, if there is one, and the kernel for our table of IPv6.
pub(super) fn ask() -> Option<Finding> {
    let output = Command::new("nft").arg("--version").output().ok()?;
    let version = version(&String::from_utf8_lossy(&output.stdout))?;
    judge(&version, remembers_clients().unwrap_or(false))
}

/// Whether our table of IPv6 has rules of session affinity. Of the chains of a table nothing is known here, so all are named.
fn remembers_clients() -> Result<bool, KernelError> {
    let snapshot = LinuxKernel::open()?.dump(Family::V6, &[], &[], &|_| None)?;
    let of_affinity = |name: &String| matches!(ChainName::parse(name), Some(ChainName::RememberFor(_)));
    Ok(snapshot.foreign_chains.iter().any(of_affinity))
}

/// The numbers in `nftables v1.0.6 (Lester Gooch #5)`.
fn version(text: &str) -> Option<Vec<u32>> {
    let numbers = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    numbers.split('.').map(|number| number.parse().ok()).collect()
}

fn judge(version: &[u32], remembers: bool) -> Option<Finding> {
    let [first, other] = READS_BACK;
    if !remembers || version >= first || version == other {
        return None;
    }
    let version = version.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
    Some(Finding::doubtful(
        format!(
            "nft {version} cannot read back what it lists of session affinity in table ip6 {}: a saved ruleset with that \
             is refused as a whole",
            TableName::NODE
        ),
        "save tables of your own by name, as nft list table inet filter, or use nft 1.1.0 or later",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_told_from_new_ones() {
        let said = |text: &str, remembers| {
            let finding = judge(&version(text).expect("a version"), remembers);
            finding.map(|finding| finding.what.split(" cannot").next().unwrap_or_default().to_owned())
        };
        assert_eq!(said("nftables v1.0.6 (Lester Gooch #5)\n", true).as_deref(), Some("nft 1.0.6"));
        assert_eq!(said("nftables v0.9.8 (E.D.S.)", true).as_deref(), Some("nft 0.9.8"));
        assert_eq!(said("nftables v1.0.9 (Old Doc Yak #3)", true).as_deref(), Some("nft 1.0.9"));
        for fine in ["nftables v1.1.0 (Commodore Bullmoose)", "nftables v1.0.6.1 (x)", "nftables v1.1.3 (x)", "v2.0"] {
            assert_eq!(said(fine, true), None, "{fine}");
        }
        assert_eq!(said("nftables v1.0.6 (Lester Gooch #5)", false), None, "nothing in the table needs it");
        for strange in ["", "nftables", "nftables v1.x"] {
            assert_eq!(version(strange), None, "{strange}");
        }
    }
}
