//! How much memory of the kernel the tables take.
//!
//! nftables' objects and hash tables are unreclaimable slab memory, per-CPU memory and memory of vmalloc. There is no
//! count of them for a network namespace, so the machine's is read just before and just after the tables are deleted: the
//! difference is theirs, but for what others do in those seconds.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use procfs::{Current as _, Meminfo};

use crate::netlink::Nftables;
use crate::netns::try_nft;

/// The kernel frees what is deleted a little later; then its memory stays the same for so long, or it took long enough.
const QUIET: Duration = Duration::from_millis(300);
const ENOUGH: Duration = Duration::from_secs(5);
/// Less is no change.
const LITTLE: u64 = 64 * 1024;

/// Deletes all tables of this thread's network namespace. Returns how many bytes that gave back.
pub(crate) fn of_tables() -> Result<u64> {
    // Connections that run out meanwhile would count as well.
    Nftables::open()?.forget_connections()?;
    let before = settled()?;
    try_nft(&["flush", "ruleset"], "")?;
    Ok(before.saturating_sub(settled()?))
}

/// What is used once it no longer changes.
pub(crate) fn settled() -> Result<u64> {
    let start = Instant::now();
    let (mut last, mut since) = (used()?, start);
    while since.elapsed() < QUIET && start.elapsed() < ENOUGH {
        thread::sleep(Duration::from_millis(20));
        let now = used()?;
        if now.abs_diff(last) > LITTLE {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

fn used() -> Result<u64> {
    // Each processor keeps some of its counts to itself until it is asked (Documentation/admin-guide/sysctl/vm.rst).
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let info = Meminfo::current().context("no /proc/meminfo")?;
    Ok(info.s_unreclaim.unwrap_or_default() + info.per_cpu.unwrap_or_default() + info.vmalloc_used)
}
