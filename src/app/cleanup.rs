//! `nftproxyd cleanup`.

use anyhow::Context;

use crate::diff::{Operation, Transaction};
use crate::netlink::{Kernel, Netlink};
use crate::ruleset::names::TABLE;
use crate::ruleset::text;

/// Removes our tables, where there are any, and nothing else.
pub(super) fn cleanup() -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let families = netlink.tables()?;
    for family in &families {
        let table = format!("table {} {TABLE}", text::family(*family));
        let operations = vec![Operation::DeleteTable];
        netlink
            .commit(&Transaction { family: *family, operations })
            .with_context(|| format!("cannot remove {table}"))?;
        println!("removed {table}");
    }
    if families.is_empty() {
        println!("there is no table of nftproxyd");
    }
    Ok(())
}
