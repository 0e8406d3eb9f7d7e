//! What is said about objects that are faulty, or in the way of the node: each fault once, and that it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;
use tracing::{info, warn};

use super::engine::Overlap;
use crate::model::{Event, Family, PerFamily, Reject};

/// The faults that have been said and still hold. Holds nothing for objects without faults.
#[derive(Debug, Default)]
pub(super) struct Reports {
    standing: BTreeMap<String, Vec<Reject>>,
    overlaps: PerFamily<BTreeMap<(ArcStr, IpNet), BTreeSet<IpAddr>>>,
}

/// So many addresses are named.
const NAMED: usize = 3;

impl Reports {
    /// Logs what is new in an [`Event::Rejects`]. Sources repeat faults, as whenever an object changes or is listed again.
    pub(super) fn log(&mut self, event: &Event) {
        let Event::Rejects { object, rejects } = event else { return };
        match self.note(object, rejects) {
            News::Faults(faults) => faults.iter().for_each(|fault| warn!("{object}: {fault}")),
            News::Over => info!("{object}: nothing is wrong any more"),
            News::None => {}
        }
    }

    /// Logs what is new about ServiceCIDRs of a family that hold addresses of the node; these are all.
    pub(super) fn overlaps(&mut self, family: Family, overlaps: &[Overlap]) {
        for Overlap { object, range, addresses } in overlaps {
            if self.overlaps[family].get(&(object.clone(), *range)) == Some(addresses) {
                continue;
            }
            let named: Vec<String> = addresses.iter().take(NAMED).map(ToString::to_string).collect();
            let more = match addresses.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            warn!(
                "ServiceCIDR {object}: spec.cidrs: {range} holds addresses of this node: {}{more}; they stay reachable, \
                 but connections to all others in it that are no Service's are dropped: use a range of which no node is part",
                named.join(", ")
            );
        }
        let now = overlaps.iter().map(|it| ((it.object.clone(), it.range), it.addresses.clone())).collect();
        let before = std::mem::replace(&mut self.overlaps[family], now);
        for (object, range) in before.keys().filter(|key| !self.overlaps[family].contains_key(*key)) {
            info!("ServiceCIDR {object}: spec.cidrs: {range} holds no address of this node any more");
        }
    }

    fn note<'a>(&mut self, object: &str, rejects: &'a [Reject]) -> News<'a> {
        if rejects.is_empty() {
            return if self.standing.remove(object).is_some() { News::Over } else { News::None };
        }
        let known = self.standing.insert(object.to_owned(), rejects.to_vec()).unwrap_or_default();
        let faults: Vec<&Reject> = rejects.iter().filter(|reject| !known.contains(reject)).collect();
        if faults.is_empty() { News::None } else { News::Faults(faults) }
    }
}

/// What a report says that was not known.
#[derive(Debug, PartialEq)]
enum News<'a> {
    None,
    Faults(Vec<&'a Reject>),
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_news_once() {
        let fault = |field: &str| Reject { field: field.to_owned(), reason: "odd".to_owned() };
        let (a, b) = (fault("a"), fault("b"));
        let mut reports = Reports::default();
        assert_eq!(reports.note("Service x/y", &[]), News::None, "nothing was wrong");
        assert_eq!(reports.note("Service x/y", std::slice::from_ref(&a)), News::Faults(vec![&a]));
        assert_eq!(reports.note("Service x/y", std::slice::from_ref(&a)), News::None);
        assert_eq!(reports.note("Service x/y", &[a.clone(), b.clone()]), News::Faults(vec![&b]));
        assert_eq!(reports.note("Service x/z", std::slice::from_ref(&b)), News::Faults(vec![&b]), "another object");
        assert_eq!(reports.note("Service x/y", std::slice::from_ref(&b)), News::None);
        assert_eq!(reports.note("Service x/y", std::slice::from_ref(&a)), News::Faults(vec![&a]), "it is back");
        assert_eq!(reports.note("Service x/y", &[]), News::Over);
        assert_eq!(reports.note("Service x/y", &[]), News::None);
    }
}
