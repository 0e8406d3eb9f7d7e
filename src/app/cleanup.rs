//! `nftproxyd cleanup`.

use anyhow::Context;

use super::instance;
use crate::diff::{Operation, Transaction};
use crate::leftovers;
use crate::model::Family;
use crate::nftables::{Guard, Kernel, LinuxKernel, Protection};
use crate::ruleset::names::TableName;
use crate::ruleset::text;

/// Removes our tables, where there are any, and nothing else.
///
/// # Errors
/// A daemon serves the node: it would only make them anew. Or somebody else owns one.
pub(super) fn cleanup(name: TableName) -> anyhow::Result<()> {
    if let Some(holder) = instance::serving(name) {
        anyhow::bail!("{holder}: stop it first; nothing was removed");
    }
    let mut kernel = LinuxKernel::of(name)?;
    let families = kernel.tables()?;
    for family in &families {
        let table = format!("table {}", text::table(name, *family));
        let operations = vec![Operation::DeleteTable];
        kernel
            .commit(&Transaction { family: *family, operations })
            .with_context(|| format!("cannot remove {table}"))?;
        println!("removed {table}");
    }
    let guards = remove_guards(name)?;
    let signs =
        if name == TableName::NODE { leftovers::remove_sign().context("cannot remove the sign")? } else { Vec::new() };
    signs.iter().for_each(|sign| println!("removed {sign}"));
    if families.is_empty() && guards == 0 && signs.is_empty() {
        println!("there is no table {name}");
    }
    Ok(())
}

/// Removes the guard's tables, of which there are none but by accident: they go with the daemon. Returns how many there
/// were.
fn remove_guards(name: TableName) -> anyhow::Result<usize> {
    let found = Guard::protection(name)?;
    let mut removed = 0;
    let mut owned = Vec::new();
    for family in Family::ALL {
        let table = format!("table {} {}", text::family(family), name.guard());
        match &found[family] {
            None => {}
            Some(Protection::Owner(owner)) => owned.push(format!("{table} is owned by {owner}")),
            Some(_) => {
                Guard::remove(name, family).with_context(|| format!("cannot remove {table}"))?;
                println!("removed {table}");
                removed += 1;
            }
        }
    }
    let owned = owned.join(", ");
    anyhow::ensure!(owned.is_empty(), "{owned}: it goes when that program ends");
    Ok(removed)
}
