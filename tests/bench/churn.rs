//! Many changes: 200 endpoints are replaced each second.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::objects;
use crate::proxy::PATIENCE;
use crate::run::{Run, Running};
use crate::sheet::Unit;
use crate::traffic::{self, Outcome};

const PER_SECOND: u32 = 200;

pub(crate) fn measure(run: &mut Run<'_>, running: &mut Running) -> Result<()> {
    let changes = (f64::from(PER_SECOND) * run.effort.churn.as_secs_f64()) as u32;
    let writer = &run.control_plane.writer;
    let probe = 0;
    let last_pod = objects::pod(59_999);
    let (cpu, start) = (running.proxy.cpu()?, Instant::now());
    for turn in 0..changes {
        let due = start + Duration::from_secs(1) / PER_SECOND * turn;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let turn = turn as usize;
        writer.replace(&objects::with_replaced(run.size, objects::spread(run.size, turn), objects::pod(turn + 100)))?;
    }
    let elapsed = start.elapsed();
    writer.replace(&objects::probe_slice(probe, &[last_pod]))?;
    let answered = Instant::now();
    let shown = run.network.client.run(|| {
        let wanted = |outcome| outcome == Outcome::Answered(last_pod);
        traffic::watch(objects::probe_address(probe), wanted, || answered.elapsed() > PATIENCE)
    });
    let lag = shown?.saturating_duration_since(answered);
    running.proxy.settle()?;
    let used = running.proxy.cpu()? - cpu;
    run.note("churn: changes each second", Unit::Count, f64::from(changes) / elapsed.as_secs_f64());
    run.note("churn: processor", Unit::Percent, used.as_secs_f64() / elapsed.as_secs_f64() * 100.0);
    run.note_time("churn: lag at the end", lag);
    Ok(())
}
