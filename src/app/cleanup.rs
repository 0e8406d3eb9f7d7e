//! `nftproxyd cleanup`.

use anyhow::Context;

use crate::diff::{Operation, Transaction};
use crate::nftables::{Kernel, LinuxKernel};
use crate::ruleset::names::TABLE;
use crate::ruleset::text;

/// Removes our tables, where there are any, and nothing else.
pub(super) fn cleanup() -> anyhow::Result<()> {
    let mut kernel = LinuxKernel::open()?;
    let families = kernel.tables()?;
    for family in &families {
        let table = format!("table {} {TABLE}", text::family(*family));
        let operations = vec![Operation::DeleteTable];
        kernel
            .commit(&Transaction { family: *family, operations })
            .with_context(|| format!("cannot remove {table}"))?;
        println!("removed {table}");
    }
    if families.is_empty() {
        println!("there is no table of nftproxyd");
    }
    Ok(())
}
