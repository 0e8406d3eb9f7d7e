//! Single changes: from the API server's answer to packets, and what they cost.
//!
//! Packets show a change of a probe Service, which has one endpoint or none, at once. That a Service with ten endpoints
//! has one more shows only by chance, so of such changes only the cost is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use crate::floor::{Floor, Tables};
use crate::network::Network;
use crate::objects::{self, PROBES};
use crate::proxy::{PATIENCE, Proxy, Work};
use crate::run::{Run, Running};
use crate::sheet::Unit;
use crate::traffic::{self, Outcome};
use crate::writer::Writer;

/// A change of a probe Service.
struct Change {
    name: &'static str,
    /// What is written for this probe at this turn.
    write: fn(&Writer, usize, usize) -> Result<()>,
    /// What connections then show.
    shows: fn(Outcome, usize) -> bool,
    /// Whether they were not answered at all before.
    silent: bool,
}

/// In an order that can be repeated: each finds what the one before it has left.
const CHANGES: [Change; 5] = [
    Change {
        name: "endpoint replaced",
        write: |writer, probe, turn| writer.replace(&objects::probe_slice(probe, &[objects::pod(turn + 1)])),
        shows: |outcome, turn| outcome == Outcome::Answered(objects::pod(turn + 1)),
        silent: false,
    },
    Change {
        name: "endpoint removed, the only one",
        write: |writer, probe, _| writer.replace(&objects::probe_slice(probe, &[])),
        shows: |outcome, _| outcome == Outcome::Refused,
        silent: false,
    },
    Change {
        name: "endpoint added, the only one",
        write: |writer, probe, turn| writer.replace(&objects::probe_slice(probe, &[objects::pod(turn + 1)])),
        shows: |outcome, _| outcome.is_served(),
        silent: false,
    },
    Change {
        name: "Service deleted",
        write: |writer, probe, _| writer.delete(&objects::probe_service(probe)),
        shows: |outcome, _| !outcome.is_served(),
        silent: false,
    },
    Change {
        name: "Service created",
        write: |writer, probe, _| writer.create(&objects::probe_service(probe)),
        shows: |outcome, _| outcome.is_served(),
        silent: true,
    },
];

/// Changes of each kind are fewer than they should be if they take longer than this, but never less than so many.
const LONG: Duration = Duration::from_secs(180);
const AT_LEAST: usize = 3;
/// How often a round is made in which nothing else may change.
const TRIES: usize = 5;
/// Before a change whose cost is told, and before one of the floor: each comes by itself.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn measure(run: &mut Run<'_>, running: &mut Running) -> Result<()> {
    let mut all_taken = CHANGES.map(|_| Vec::new());
    let began = Instant::now();
    for turn in 0..run.effort.changes {
        if turn >= AT_LEAST && began.elapsed() > LONG {
            break;
        }
        for (change, taken) in CHANGES.iter().zip(&mut all_taken) {
            let one = to_packets(run.network, &run.control_plane.writer, change, turn);
            taken.push(one.with_context(|| format!("{}, time {}", change.name, turn + 1))?);
        }
    }
    run.note("changes of each kind", Unit::Count, all_taken[0].len() as f64);
    for (change, mut taken) in CHANGES.iter().zip(all_taken) {
        taken.sort_unstable();
        run.note_time(&format!("{}: p50 to packets", change.name), percentile(&taken, 50));
        run.note_time(&format!("{}: p99 to packets", change.name), percentile(&taken, 99));
    }
    let Some(floor) = &mut running.floor else { return Ok(()) };
    let writer = &run.control_plane.writer;
    let size = run.size;
    // Of the probes, now that nobody uses them.
    let names = CHANGES.map(|change| change.name.to_owned());
    let write = |change: usize, turn: usize| (CHANGES[change].write)(writer, turn % PROBES, turn + 1);
    let mut costs = costs(&mut running.proxy, floor, &names, &write, run.effort.changes)?;
    if size.endpoints > 1 {
        let pod = |turn: usize| objects::pod(30_000 + turn);
        let number = |turn| objects::spread(size, turn);
        let original = |turn| objects::slice(size, number(turn));
        let changes: [(&str, &dyn Fn(usize) -> Value); 4] = [
            ("replaced", &|turn| objects::with_replaced(size, number(turn), pod(turn))),
            ("replaced again", &original),
            ("added", &|turn| objects::with_one_more(size, number(turn), pod(turn))),
            ("removed", &original),
        ];
        let names = changes.map(|(name, _)| format!("1 of {} endpoints {name}", size.endpoints));
        let write = |change: usize, turn: usize| writer.replace(&changes[change].1(turn));
        costs.extend(self::costs(&mut running.proxy, floor, &names, &write, run.effort.changes)?);
    }
    costs.iter().for_each(|cost| note(run, cost));
    Ok(())
}

/// Makes the change while a client connects all the time. Returns the time between the answer to whoever made it and the
/// first connection that shows it.
fn to_packets(network: &Network, writer: &Writer, change: &Change, turn: usize) -> Result<Duration> {
    let probe = turn % PROBES;
    let address = objects::probe_address(probe);
    let deadline = Instant::now() + PATIENCE;
    let refused = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            network.client.enter();
            let give_up = || refused.load(Ordering::Relaxed) || Instant::now() > deadline;
            if change.silent {
                return traffic::watch_silence(address, give_up);
            }
            traffic::watch(address, |outcome| (change.shows)(outcome, turn), give_up)
        });
        let written = (change.write)(writer, probe, turn);
        let answered = Instant::now();
        refused.store(written.is_err(), Ordering::Relaxed);
        let shown = watching.join().map_err(|_| anyhow!("the client has ended"))?;
        written?;
        Ok(shown?.saturating_duration_since(answered))
    })
}

/// What changes of one kind have cost.
pub(crate) struct Cost {
    name: String,
    works: Vec<Work>,
    /// What the kernel took for the same elements from somebody who does nothing else.
    floor: Vec<Duration>,
    floor_operations: usize,
}

/// Makes all changes in turn, so often; after each the kernel is made to do the same once more for the floor, in the same
/// rhythm, so that its caches hold as little of either.
pub(crate) fn costs(
    proxy: &mut Proxy,
    floor: &mut Floor,
    names: &[String],
    write: &dyn Fn(usize, usize) -> Result<()>,
    turns: usize,
) -> Result<Vec<Cost>> {
    // What was said of earlier changes would be taken for these: two that came together are told of in one line, and the
    // second would be waited for in vain.
    proxy.settle()?;
    // What a round changes is read off the tables, after one that has made the chains that it takes.
    for change in 0..names.len() {
        proxy.work_so_far();
        write(change, turns)?;
        proxy.next_work()?;
    }
    let mut states = Vec::new();
    for _ in 0..TRIES {
        states = vec![Tables::read()?];
        for change in 0..names.len() {
            proxy.work_so_far();
            write(change, turns + 1)?;
            proxy.next_work()?;
            states.push(Tables::read()?);
        }
        // A chain that was used before may have gone meanwhile.
        if states.iter().all(|state| state.has_frame_of(&states[0])) {
            break;
        }
    }
    let mut round = floor.round(&states).context("the floor of changes")?;
    let cost = |(change, name): (usize, &String)| Cost {
        name: name.clone(),
        works: Vec::new(),
        floor: Vec::new(),
        floor_operations: round.operations(change),
    };
    let mut costs: Vec<Cost> = names.iter().enumerate().map(cost).collect();
    for turn in 0..turns {
        for (change, cost) in costs.iter_mut().enumerate() {
            thread::sleep(PAUSE);
            proxy.work_so_far();
            write(change, turn)?;
            cost.works.push(proxy.next_work()?);
            thread::sleep(PAUSE);
            cost.floor.push(round.make(change)?);
        }
        round.go_back()?;
    }
    Ok(costs)
}

pub(crate) fn note(run: &mut Run<'_>, cost: &Cost) {
    let Cost { name, works, floor, floor_operations } = cost;
    let mut in_kernel: Vec<Duration> = works.iter().map(|work| work.in_kernel).collect();
    in_kernel.sort_unstable();
    let rows = ["p50 in the kernel", "operations", "bytes"].map(|row| format!("{name}: {row}"));
    run.note_short_time(&rows[0], percentile(&in_kernel, 50));
    let mut floor = floor.clone();
    floor.sort_unstable();
    run.note_floor(&rows[0], Unit::Microseconds, percentile(&floor, 50).as_secs_f64() * 1e6);
    // The first change of its kind may make a chain; an endpoint on this node has an element more.
    let usual = |of: fn(&Work) -> u64| {
        let mut numbers: Vec<u64> = works.iter().map(of).collect();
        numbers.sort_unstable();
        percentile(&numbers, 50) as f64
    };
    run.note(&rows[1], Unit::Count, usual(|work| work.operations));
    run.note_floor(&rows[1], Unit::Count, *floor_operations as f64);
    run.note(&rows[2], Unit::Bytes, usual(|work| work.bytes));
}

/// Of sorted values that there are some of.
pub(crate) fn percentile<T: Copy>(sorted: &[T], percent: usize) -> T {
    sorted[(sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1]
}
