//! How much memory of the kernel the tables take.
//!
//! nftables' objects and hash tables are unreclaimable slab memory, per-CPU memory and memory of vmalloc; the difference
//! between before and after is theirs, if little else happens on the machine. What processes and connections take is
//! not among it once they are gone.

use anyhow::{Context as _, Result};
use procfs::{Current as _, Meminfo};

/// Bytes of the kernel's memory that tables can be in. For the whole machine: a network namespace has no count of its
/// own.
pub(crate) fn used() -> Result<u64> {
    let info = Meminfo::current().context("no /proc/meminfo")?;
    Ok(info.s_unreclaim.unwrap_or_default() + info.per_cpu.unwrap_or_default() + info.vmalloc_used)
}
