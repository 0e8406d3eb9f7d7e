//! One proxy at one size: from its start to its end.

use std::time::Duration;

use anyhow::Result;

use crate::control_plane::ControlPlane;
use crate::floor::Floor;
use crate::kernel_memory;
use crate::network::Network;
use crate::proxy::{Kind, Program, Proxy};
use crate::sheet::{Sheet, Unit};
use crate::size::Size;
use crate::targets;

/// How much is done of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Changes of each kind.
    pub(crate) changes: usize,
    /// For how long there is churn.
    pub(crate) churn: Duration,
    /// Whether changes are told by scheduler.
    pub(crate) schedulers: bool,
}

/// What all measurements of one proxy at one size share.
pub(crate) struct Run<'a> {
    pub(crate) network: &'a Network,
    pub(crate) control_plane: ControlPlane,
    pub(crate) program: &'a Program,
    pub(crate) size: Size,
    pub(crate) effort: Effort,
    pub(crate) sheet: &'a mut Sheet,
    /// The longest time that the proxy says a transaction of its cold start took.
    pub(crate) longest: Duration,
}

/// What the measurements after the start work with.
pub(crate) struct Running {
    pub(crate) proxy: Proxy,
    /// The same tables elsewhere, for a proxy whose tables can be read.
    pub(crate) floor: Option<Floor>,
}

impl Run<'_> {
    pub(crate) fn kind(&self) -> Kind {
        self.program.kind
    }

    pub(crate) fn note(&mut self, what: &str, unit: Unit, value: f64) {
        self.sheet.note(self.size, self.program.kind, what, unit, value);
        if let Some(target) = targets::target(self.size, what) {
            self.sheet.note_target(self.size, what, unit, target);
        }
    }

    pub(crate) fn note_time(&mut self, what: &str, value: Duration) {
        self.note(what, Unit::Milliseconds, value.as_secs_f64() * 1e3);
    }

    pub(crate) fn note_short_time(&mut self, what: &str, value: Duration) {
        self.note(what, Unit::Microseconds, value.as_secs_f64() * 1e6);
    }

    pub(crate) fn note_memory(&mut self, what: &str, bytes: f64) {
        self.note(what, Unit::MiB, bytes / f64::from(1 << 20));
    }

    /// Notes what the kernel needs for it at least.
    pub(crate) fn note_floor(&mut self, what: &str, unit: Unit, value: f64) {
        self.sheet.note_floor(self.size, what, unit, value);
    }

    /// Everything, in order. No table is left.
    pub(crate) fn measure(mut self) -> Result<()> {
        let mut running = crate::start::measure(&mut self)?;
        crate::changes::measure(&mut self, &mut running)?;
        crate::churn::measure(&mut self, &mut running)?;
        running.proxy.settle()?;
        let memory = running.proxy.memory()?;
        self.note_memory("resident at the end", memory.resident as f64);
        self.note_memory("peak at the end", memory.peak as f64);
        if self.kind() == Kind::Nftproxyd {
            self.note_time("longest transaction", self.longest.max(running.proxy.longest()));
        }
        crate::schedulers::measure(&mut self, &mut running)?;
        drop(running);
        if self.kind() == Kind::Nftproxyd {
            crate::start::measure_repairs(&mut self)?;
        }
        let tables = kernel_memory::of_tables()?;
        self.note_memory("kernel memory of the tables", tables as f64);
        Ok(())
    }
}
