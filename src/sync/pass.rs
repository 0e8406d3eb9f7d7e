//! One sync on its way through the tables.

use std::time::Instant;

use super::cluster::Cluster;
use super::report::Report;
use crate::nftables::Kernel;

/// One sync: what it works with, and what it has to tell.
pub(super) struct Pass<'a> {
    pub(super) kernel: &'a mut dyn Kernel,
    pub(super) cluster: &'a Cluster<'a>,
    pub(super) now: Instant,
    pub(super) report: &'a mut Report,
    /// The Services that are refused for another reason than before, or for the first time.
    pub(super) newly_refused: usize,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        kernel: &'a mut dyn Kernel,
        cluster: &'a Cluster<'a>,
        now: Instant,
        report: &'a mut Report,
    ) -> Pass<'a> {
        Pass { kernel, cluster, now, report, newly_refused: 0 }
    }
}
