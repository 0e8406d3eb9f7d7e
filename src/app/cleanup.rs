//! `nftproxyd cleanup`.

use anyhow::Context;

use super::instance;
use crate::diff::{Operation, Transaction};
use crate::nftables::{Kernel, LinuxKernel};
use crate::ruleset::names::TABLE;
use crate::ruleset::text;

/// Removes our tables, where there are any, and nothing else.
///
/// # Errors
/// A daemon serves the node: it would only make them anew.
pub(super) fn cleanup() -> anyhow::Result<()> {
    if let Some(holder) = instance::serving() {
        anyhow::bail!("{holder}: stop it first; nothing was removed");
    }
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
