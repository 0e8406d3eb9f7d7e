//! What is logged about faulty objects, and about ranges that hold addresses of the node: each fault once, and when it
//! is over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;
use tracing::{info, warn};

use super::engine::Overlap;
use super::obstacle::Obstacle;
use crate::model::faults::{Faults, News};
use crate::model::{Event, Family, PerFamily};

/// Logs the faults in an event that are not `known` yet, or that they are over.
pub(super) fn log_faults(known: &Faults, event: &Event) {
    let Event::Rejects { object, rejects } = event else { return };
    match known.news(object, rejects) {
        News::Faults(faults) => faults.iter().for_each(|fault| warn!("{object}: {fault}")),
        News::Over => info!("{object}: nothing is wrong any more"),
        News::None => {}
    }
}

/// What has been logged about ServiceCIDRs, and about what has the address of the API server, and still holds.
#[derive(Debug, Default)]
pub(super) struct Reports {
    overlaps: PerFamily<BTreeMap<(ArcStr, IpNet), BTreeSet<IpAddr>>>,
    obstacles: Vec<Obstacle>,
}

impl Reports {
    /// Logs what is new about what has the address of the API server; these are all.
    pub(super) fn obstacles(&mut self, obstacles: Vec<Obstacle>) {
        obstacles.iter().filter(|it| !self.obstacles.contains(it)).for_each(|it| warn!("{it}"));
        self.obstacles = obstacles;
    }

    /// Logs what is new about ServiceCIDRs of a family that hold addresses of the node; these are all.
    pub(super) fn overlaps(&mut self, family: Family, overlaps: &[Overlap]) {
        for overlap in overlaps {
            if self.overlaps[family].get(&(overlap.object.clone(), overlap.range)) == Some(&overlap.addresses) {
                continue;
            }
            warn!(
                "{overlap}; they stay reachable, but connections to all others in it that are no Service's are dropped: \
                 use a range of which no node is part"
            );
        }
        let now = overlaps.iter().map(|it| ((it.object.clone(), it.range), it.addresses.clone())).collect();
        let before = std::mem::replace(&mut self.overlaps[family], now);
        for (object, range) in before.keys().filter(|key| !self.overlaps[family].contains_key(*key)) {
            info!("ServiceCIDR {object}: spec.cidrs: {range} holds no address of this node any more");
        }
    }
}
