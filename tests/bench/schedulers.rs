//! What changes of Services cost by the scheduler that they name, beside one that is `random` in the same cluster.

use std::fmt;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::changes::{self, PAUSE, percentile};
use crate::kernel_memory;
use crate::objects;
use crate::run::{Run, Running};
use crate::sheet::Unit;
use crate::writer::Writer;

/// What is measured. The first is what the others are compared with.
const SCHEDULERS: [&str; 5] = ["random", "rr", "wrr", "sh", "mh"];
/// Not as many as the Services of the cluster, which take the counters for their number where all take turns.
const ENDPOINTS: usize = 12;
/// From so many endpoints on no chain is there before it is used.
const UNCOMMON: usize = 17;
/// The other weight with `wrr`, of half of the endpoints.
const WEIGHT: u16 = 3;
/// Longer than chains stay that nobody uses.
const IDLE: Duration = Duration::from_secs(35);
/// With fewer changes than this, what takes its time is left out.
const ENOUGH: usize = 20;
/// The first place of Services whose memory is told.
const MANY: usize = 10;
/// How many they are of a scheduler.
const EACH: usize = 20;

/// A Service of this scheduler.
struct Scheduled {
    place: usize,
    scheduler: &'static str,
}

impl fmt::Display for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service by {}", self.scheduler)
    }
}

impl Scheduled {
    fn pod(&self, number: usize) -> Ipv4Addr {
        objects::pod(40_000 + 50 * self.place + number)
    }

    /// Its first endpoints, but for those of another weight.
    fn pods(&self, count: usize) -> Vec<Ipv4Addr> {
        (0..count - self.others().len()).map(|number| self.pod(number)).collect()
    }

    fn others(&self) -> Vec<Ipv4Addr> {
        let count = if self.scheduler == "wrr" { ENDPOINTS / 2 } else { 0 };
        (0..count).map(|number| self.pod(49 - number)).collect()
    }

    fn create(&self, writer: &Writer) -> Result<()> {
        writer.create(&objects::scheduled_slice(self.place, 1, &self.pods(ENDPOINTS)))?;
        if !self.others().is_empty() {
            writer.create(&objects::scheduled_slice(self.place, WEIGHT, &self.others()))?;
        }
        writer.create(&objects::scheduled_service(self.place, self.scheduler))
    }

    fn write(&self, writer: &Writer, pods: &[Ipv4Addr]) -> Result<()> {
        writer.replace(&objects::scheduled_slice(self.place, 1, pods))
    }

    fn delete(&self, writer: &Writer) -> Result<()> {
        writer.delete(&objects::scheduled_service(self.place, self.scheduler))?;
        for weight in [1].into_iter().chain((!self.others().is_empty()).then_some(WEIGHT)) {
            writer.delete(&objects::scheduled_slice(self.place, weight, &[]))?;
        }
        Ok(())
    }
}

pub(crate) fn measure(run: &mut Run<'_>, running: &mut Running) -> Result<()> {
    if !run.effort.schedulers {
        return Ok(());
    }
    if running.floor.is_none() {
        return Ok(());
    }
    let all = || (0..).zip(SCHEDULERS).map(|(place, scheduler)| Scheduled { place, scheduler });
    for service in all() {
        changes(run, running, &service)?;
    }
    // The chains of `wrr` are those of `rr`, and a Maglev table keeps its size.
    for service in all().filter(|service| !["wrr", "mh"].contains(&service.scheduler)) {
        first_uses(run, running, &service)?;
    }
    for service in all() {
        service.delete(&run.control_plane.writer)?;
    }
    if run.effort.changes >= ENOUGH {
        memory(run, running, "random")?;
        memory(run, running, "mh")?;
        idle(run, running)?;
    }
    Ok(())
}

/// One endpoint replaced, added and removed.
fn changes(run: &mut Run<'_>, running: &mut Running, service: &Scheduled) -> Result<()> {
    let Some(floor) = &mut running.floor else { return Ok(()) };
    let writer = &run.control_plane.writer;
    running.proxy.work_so_far();
    service.create(writer)?;
    let created = running.proxy.next_work()?;
    let with_new = |turn: usize, original: usize| {
        let mut pods = service.pods(ENDPOINTS);
        // Not always the same place in their order.
        let at = turn % original;
        pods[at] = objects::pod(50_000 + turn);
        pods
    };
    let write = |change: usize, turn: usize| match change {
        0 => service.write(writer, &with_new(turn, service.pods(ENDPOINTS).len())),
        2 => service.write(writer, &service.pods(ENDPOINTS + 1)),
        _ => service.write(writer, &service.pods(ENDPOINTS)),
    };
    let names = ["1 endpoint replaced", "1 replaced again", "1 added", "1 removed"];
    let names = names.map(|change| format!("{service}, of {ENDPOINTS}: {change}"));
    let costs = changes::costs(&mut running.proxy, floor, &names, &write, run.effort.changes)?;
    run.note(&format!("{service}, created: operations"), Unit::Count, created.operations as f64);
    run.note(&format!("{service}, created: bytes"), Unit::Bytes, created.bytes as f64);
    run.note_short_time(&format!("{service}, created, once: in the kernel"), created.in_kernel);
    // Not the way back from the first.
    costs.iter().enumerate().filter(|(change, _)| *change != 1).for_each(|(_, cost)| changes::note(run, cost));
    Ok(())
}

/// One endpoint more each time, up to numbers for which there is no chain; and the same again, with the chains in place.
fn first_uses(run: &mut Run<'_>, running: &mut Running, service: &Scheduled) -> Result<()> {
    let writer = &run.control_plane.writer;
    let proxy = &mut running.proxy;
    let mut notes = Vec::new();
    for round in ["for the first time", "with the chain in place"] {
        service.write(writer, &service.pods(UNCOMMON - 1))?;
        proxy.next_work()?;
        let (mut times, mut operations) = (Vec::new(), Vec::new());
        for endpoints in UNCOMMON..UNCOMMON + run.effort.changes.min(20) {
            thread::sleep(PAUSE);
            proxy.work_so_far();
            service.write(writer, &service.pods(endpoints))?;
            let work = proxy.next_work()?;
            times.push(work.in_kernel);
            operations.push(work.operations);
        }
        times.sort_unstable();
        operations.sort_unstable();
        let what = format!("{service}: an uncommon number of endpoints {round}");
        notes.push((
            format!("{what}: p50 in the kernel"),
            Unit::Microseconds,
            percentile(&times, 50).as_secs_f64() * 1e6,
        ));
        notes.push((
            format!("{what}: the longest in the kernel"),
            Unit::Microseconds,
            percentile(&times, 100).as_secs_f64() * 1e6,
        ));
        notes.push((format!("{what}: operations"), Unit::Count, percentile(&operations, 50) as f64));
    }
    notes.into_iter().for_each(|(what, unit, value)| run.note(&what, unit, value));
    Ok(())
}

/// What each of several Services takes of memory.
fn memory(run: &mut Run<'_>, running: &mut Running, scheduler: &'static str) -> Result<()> {
    let writer = &run.control_plane.writer;
    let services: Vec<Scheduled> = (MANY..MANY + EACH).map(|place| Scheduled { place, scheduler }).collect();
    let count = services.len() as f64;
    running.proxy.settle()?;
    let (kernel, daemon) = (kernel_memory::settled()?, running.proxy.memory()?.resident);
    for service in &services {
        service.create(writer)?;
    }
    running.proxy.settle()?;
    let (kernel_with, daemon_with) = (kernel_memory::settled()?, running.proxy.memory()?.resident);
    for service in &services {
        service.delete(writer)?;
    }
    running.proxy.settle()?;
    let kernel_after = kernel_memory::settled()?;
    let each = |with: u64, without: u64| (with as f64 - without as f64) / count;
    let what = format!("Service by {scheduler}, each of {}", services.len());
    run.note(&format!("{what}: kernel memory, as they come"), Unit::Bytes, each(kernel_with, kernel));
    run.note(&format!("{what}: kernel memory, as they go"), Unit::Bytes, each(kernel_with, kernel_after));
    run.note(&format!("{what}: resident"), Unit::Bytes, each(daemon_with, daemon));
    Ok(())
}

/// What it costs that the chains of all this go. They do so some time after they were used last.
fn idle(run: &mut Run<'_>, running: &mut Running) -> Result<()> {
    running.proxy.work_so_far();
    thread::sleep(IDLE);
    let work = running.proxy.work_so_far();
    run.note("idle chains: operations", Unit::Count, work.operations as f64);
    run.note_short_time("idle chains: in the kernel", work.in_kernel);
    run.note_short_time("idle chains: longest transaction", work.longest);
    Ok(())
}
