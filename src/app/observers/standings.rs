//! How the tables stand, for those who ask from outside the sync loop.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::unserved::Named;
use crate::metrics::daemon;
use crate::model::{Family, ObjectName, PerFamily};
use crate::nftables::Kernel;
use crate::sync::{Engine, Overlap, Standing};

/// How many Services that the kernel refuses are told by name; of the others it is told how many there are.
const MOST_NAMED: usize = 20;

/// How one family's table stands. What it says is [`Standing`]'s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::app) struct FamilyStanding {
    pub(in crate::app) standing: daemon::Standing,
    /// Why it is failing.
    pub(in crate::app) reason: Option<String>,
    /// The first of the Services that the kernel refuses, by name, and why. Known while the table is in line.
    pub(in crate::app) refused: Vec<(ObjectName, String)>,
    /// How many Services the kernel refuses.
    pub(in crate::app) refused_services: usize,
    /// Ranges of cluster IPs that hold addresses of the node, in words.
    pub(in crate::app) overlaps: Vec<String>,
    /// Ports of Services that are refused or dropped.
    pub(in crate::app) unserved: Named,
    /// When it came in line, while it is; when that ended, if it is not; `None` if it never was.
    turned: Option<Instant>,
}

impl Default for FamilyStanding {
    fn default() -> FamilyStanding {
        let standing = daemon::Standing::Behind;
        let (refused, overlaps) = (Vec::new(), Vec::new());
        let unserved = Named::default();
        FamilyStanding { standing, reason: None, refused, refused_services: 0, overlaps, unserved, turned: None }
    }
}

impl FamilyStanding {
    /// How many seconds ago the table was last in line: 0 while it is, `None` if it never was.
    pub(in crate::app) fn in_line_seconds_ago(&self, now: Instant) -> Option<u64> {
        let is_in_line = self.standing == daemon::Standing::InLine;
        self.turned.map(|turned| if is_in_line { 0 } else { now.saturating_duration_since(turned).as_secs() })
    }

    /// Returns whether that is news. What it costs does not depend on how many Services there are, or are refused.
    fn update(&mut self, standing: Standing<'_>, refused_services: usize, now: Instant) -> bool {
        let (word, reason, refused) = match standing {
            Standing::Behind => (daemon::Standing::Behind, None, None),
            Standing::Failing(reason) => (daemon::Standing::Failing, Some(reason), None),
            Standing::InLineBut(refused) => (daemon::Standing::InLine, None, Some(refused)),
            Standing::InLine => (daemon::Standing::InLine, None, None),
        };
        let named = || refused.into_iter().flat_map(|refused| refused.services().take(MOST_NAMED));
        let same = self.standing == word
            && self.reason.as_deref() == reason
            && self.refused_services == refused_services
            && self.refused.iter().map(|(name, why)| (name, why.as_str())).eq(named());
        if same {
            return false;
        }
        let was_in_line = self.standing == daemon::Standing::InLine;
        *self = FamilyStanding {
            standing: word,
            reason: reason.map(str::to_owned),
            refused: named().map(|(name, why)| (name.clone(), why.to_owned())).collect(),
            refused_services,
            overlaps: mem::take(&mut self.overlaps),
            unserved: mem::take(&mut self.unserved),
            turned: if standing.is_in_line() == was_in_line { self.turned } else { Some(now) },
        };
        true
    }
}

/// How all tables stand: the sync loop tells, others ask.
#[derive(Debug, Clone, Default)]
pub(in crate::app) struct Standings(Arc<watch::Sender<PerFamily<FamilyStanding>>>);

impl Standings {
    /// How they stand now.
    pub(in crate::app) fn get(&self) -> PerFamily<FamilyStanding> {
        self.0.borrow().clone()
    }

    /// To be called whenever they may have changed.
    pub(super) fn tell<K: Kernel>(&self, engine: &Engine<K>) {
        let now = Instant::now();
        self.0.send_if_modified(|families| {
            let news =
                Family::ALL.map(|family| families[family].update(engine.standing(family), engine.refused(family), now));
            news.contains(&true)
        });
    }

    /// Which ports of Services of a family are refused or dropped.
    pub(super) fn unserved(&self, family: Family, named: Named) {
        self.0.send_modify(|families| families[family].unserved = named);
    }

    /// Which ranges of cluster IPs of a family hold addresses of the node.
    pub(super) fn overlap(&self, family: Family, overlaps: &[Overlap]) {
        let overlaps = overlaps.iter().map(ToString::to_string).collect();
        self.0.send_modify(|families| families[family].overlaps = overlaps);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_standing_is_told_when_it_changes_and_when_it_was_in_line_is_kept() {
        use Standing::{Behind, Failing, InLine};
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut told = FamilyStanding::default();
        // When, how it stands, whether that is news, and how many seconds before 100 it was in line.
        let steps = [
            (0, Behind, false, None),
            (1, Failing("why"), true, None),
            (2, Failing("why"), false, None),
            (3, Failing("because"), true, None),
            (10, InLine, true, Some(0)),
            (20, InLine, false, Some(0)),
            (30, Behind, true, Some(70)),
            (40, Failing("why"), true, Some(70)),
            (50, Behind, true, Some(70)),
            (60, InLine, true, Some(0)),
            (70, Failing("why"), true, Some(30)),
        ];
        for (seconds, standing, news, ago) in steps {
            assert_eq!(told.update(standing, 0, at(seconds)), news, "{seconds} s: {standing:?}");
            assert_eq!(told.in_line_seconds_ago(at(100)), ago, "{seconds} s: {standing:?}");
        }
        assert_eq!((told.standing, told.reason.as_deref()), (daemon::Standing::Failing, Some("why")));
        assert!(told.update(Failing("why"), 3, at(70)), "how many are refused is told, too");
        assert_eq!(told.refused_services, 3);
    }
}
