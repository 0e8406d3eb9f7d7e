//! A cold start, a restart with the rules in place, and what follows when somebody deletes them all.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::floor::{Floor, Tables};
use crate::netlink::Nftables;
use crate::objects;
use crate::proxy::{Kind, PATIENCE, Proxy, UNPROTECTED};
use crate::run::{Run, Running};
use crate::sheet::Unit;
use crate::traffic::{self, Outcome};

/// How often everything is deleted.
const FLUSHES: usize = 5;
/// Between two looks at a Service that does not work yet.
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) fn measure(run: &mut Run<'_>) -> Result<Running> {
    cold_start(run)?;
    let mut floor = None;
    if run.kind() == Kind::Nftproxyd {
        let tables = Tables::read()?;
        let elements = tables.len();
        let (loaded, taken) = Floor::load(&tables)?;
        run.note_floor("cold start: operations", Unit::Count, elements as f64);
        for row in ["cold start, to packets", "cold start: in the kernel"] {
            run.note_floor(row, Unit::Milliseconds, taken.as_secs_f64() * 1e3);
        }
        floor = Some(loaded);
    }

    let mut proxy = restart(run, "restart after a kill")?;
    if run.kind() == Kind::Nftproxyd {
        proxy.stop()?;
        proxy = restart(run, "restart after a stop")?;
    }
    Ok(Running { proxy, floor })
}

/// A start with the rules in place.
fn restart(run: &mut Run<'_>, what: &str) -> Result<Proxy> {
    let mut proxy = run.program.start(&run.control_plane.kubeconfig)?;
    let (at, start) = proxy.wait_in_sync()?;
    run.note_time(&format!("{what}, to \"in sync\""), at - proxy.started());
    if let Some(start) = start {
        run.note_time(&format!("{what}: building"), start.building);
        run.note_time(&format!("{what}: in the kernel"), start.in_kernel);
        run.note(&format!("{what}: operations"), Unit::Count, start.operations as f64);
        run.note_time(&format!("{what}: longest transaction"), start.longest);
    }
    proxy.settle()?;
    Ok(proxy)
}

/// Deletes everything below a proxy that cannot prevent it, some times. None runs afterwards, and its tables are in place.
pub(crate) fn measure_repairs(run: &mut Run<'_>) -> Result<()> {
    let mut proxy = run.program.start_with(&run.control_plane.kubeconfig, UNPROTECTED)?;
    proxy.wait_in_sync()?;
    let samples = objects::samples(run.size);
    let mut all_taken = Vec::new();
    for _ in 0..FLUSHES {
        proxy.settle()?;
        let mut nftables = Nftables::open()?;
        let began = Instant::now();
        nftables.flush()?;
        let repaired = run.network.client.run(|| first_all_served(&samples, began + PATIENCE))?;
        all_taken.push(repaired - began);
    }
    all_taken.sort_unstable();
    run.note_time("repair after a flush: p50 to packets", all_taken[FLUSHES / 2]);
    run.note_time("repair after a flush: the longest, to packets", all_taken[FLUSHES - 1]);
    Ok(())
}

fn cold_start(run: &mut Run<'_>) -> Result<()> {
    let mut proxy = run.program.start(&run.control_plane.kubeconfig)?;
    let samples = objects::samples(run.size);
    let started = proxy.started();
    let forwarding = run.network.client.run(|| first_all_served(&samples, started + PATIENCE))?;
    let (_, start) = proxy.wait_in_sync()?;
    let taken = forwarding - started;
    let cpu = proxy.cpu()?;
    run.note_time("cold start, to packets", taken);
    if let Some(start) = start {
        run.note_time("cold start: listing", start.listing);
        run.note_time("cold start: building", start.building);
        run.note_time("cold start: in the kernel", start.in_kernel);
        run.note("cold start: operations", Unit::Count, start.operations as f64);
    }
    run.note_time("cold start: processor time", cpu);
    proxy.settle()?;
    let memory = proxy.memory()?;
    run.longest = start.map_or(Duration::ZERO, |start| start.longest);
    run.note_memory("resident after the cold start", memory.resident as f64);
    run.note_memory("peak after the cold start", memory.peak as f64);
    Ok(())
}

/// When the last of these Services answered for the first time. One that works goes on working, so they are looked at
/// one after the other.
fn first_all_served(samples: &[usize], deadline: Instant) -> Result<Instant> {
    for &number in samples {
        let address = objects::address(number);
        loop {
            match traffic::ask(address) {
                Outcome::Answered(_) => break,
                outcome if Instant::now() > deadline => {
                    return Err(anyhow!("Service {number} at {address} does not forward: {outcome:?}"));
                }
                _ => thread::sleep(PAUSE),
            }
        }
    }
    Ok(Instant::now())
}
