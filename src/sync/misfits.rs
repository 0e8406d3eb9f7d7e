//! Says of which Services the weights are not met.

use std::collections::BTreeMap;
use std::mem::discriminant;

use tracing::{info, warn};

use crate::model::{Family, ObjectName};
use crate::ruleset::slots::Misfit;

/// The Services of which that was said in a family, and what.
#[derive(Debug, Default)]
pub(super) struct Misfits(BTreeMap<ObjectName, Misfit>);

impl Misfits {
    /// A Service was looked at, and asks for this in vain. Said when it is another thing than before, but not how much of it, and
    /// when it is over; returns what was said is wrong.
    pub(super) fn note(&mut self, family: Family, service: &ObjectName, misfit: Option<Misfit>) -> Option<String> {
        let Some(misfit) = misfit else {
            if self.0.remove(service).is_some() {
                info!("Service {service}: the weights of its {family} endpoints are met");
            }
            return None;
        };
        let before = self.0.insert(service.clone(), misfit);
        if before.is_some_and(|before| discriminant(&before) == discriminant(&misfit)) {
            return None;
        }
        warn!("Service {service}: {family}: {misfit}");
        Some(format!("{family}: {misfit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::log::captured;

    #[test]
    fn it_is_said_once_and_when_it_is_over() {
        let mut misfits = Misfits::default();
        let web = ObjectName::new("shop", "web").expect("a name");
        let mut said = |misfit| {
            let mut told = None;
            (captured(|| told = misfits.note(Family::V4, &web, misfit)), told)
        };
        assert_eq!(said(None), (String::new(), None));
        let (line, told) = said(Some(Misfit::TooMany(70)));
        assert!(
            line.contains("Service shop/web: IPv4: the unlike weights of 70 endpoints do not fit into 64 slots"),
            "{line}"
        );
        assert!(told.is_some_and(|told| told.starts_with("IPv4: the unlike weights of 70 endpoints")));
        assert_eq!(said(Some(Misfit::TooMany(70))), (String::new(), None));
        assert_eq!(said(Some(Misfit::TooMany(71))), (String::new(), None), "more of the same");
        assert!(said(Some(Misfit::Coarse(9))).0.contains("to within 0.9 % of the connections only"));
        assert!(said(None).0.contains("Service shop/web: the weights of its IPv4 endpoints are met"));
        assert_eq!(said(None), (String::new(), None));
    }
}
