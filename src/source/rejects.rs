//! Which objects have been reported as faulty, so that a report is withdrawn when it no longer holds. What is new in a
//! report is found out by those who receive it ([`Faults`](crate::model::faults::Faults)).

use std::collections::BTreeSet;

use crate::model::{Event, ObjectRef};

/// Objects with a report that has not been withdrawn. Holds the name of each faulty object and nothing for the others.
#[derive(Debug, Default)]
pub(super) struct Reported {
    standing: BTreeSet<ObjectRef>,
    /// Faulty objects that have not come up yet in the list that is under way.
    unseen: BTreeSet<ObjectRef>,
}

impl Reported {
    /// Whether `event` says something new: all events do, except an [`Event::Rejects`] that withdraws nothing.
    pub(super) fn is_news(&mut self, event: &Event) -> bool {
        let Event::Rejects { object, rejects } = event else { return true };
        self.unseen.remove(object);
        if rejects.is_empty() {
            return self.standing.remove(object);
        }
        self.standing.insert(object.clone());
        true
    }

    /// Withdraws what was reported about `object`.
    pub(super) fn withdraw(&mut self, object: &ObjectRef) -> Option<Event> {
        self.unseen.remove(object);
        self.standing.remove(object).then(|| Event::Rejects { object: object.clone(), rejects: Vec::new() })
    }

    /// A list begins: objects that do not come up until [`Reported::list_done`] are gone.
    pub(super) fn list_started(&mut self) {
        self.unseen.clone_from(&self.standing);
    }

    /// The list is complete: withdraws the reports about objects that are gone, in the order of their names.
    pub(super) fn list_done(&mut self) -> Vec<Event> {
        let gone = std::mem::take(&mut self.unseen);
        gone.iter().filter_map(|object| self.withdraw(object)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, RefKind, Reject};

    fn object(name: &str) -> ObjectRef {
        ObjectRef { kind: RefKind::Api(Kind::Service), name: name.into() }
    }

    fn report(name: &str, faulty: bool) -> Event {
        let reject = Reject::new("spec", "odd");
        Event::Rejects { object: object(name), rejects: if faulty { vec![reject] } else { Vec::new() } }
    }

    #[test]
    fn only_standing_reports_are_withdrawn() {
        let mut reported = Reported::default();
        assert!(!reported.is_news(&report("a/b", false)), "nothing was reported");
        assert!(reported.is_news(&report("a/b", true)));
        assert!(reported.is_news(&report("a/b", true)), "the reasons may have changed");
        assert!(reported.is_news(&report("a/b", false)));
        assert!(!reported.is_news(&report("a/b", false)));
        assert_eq!(reported.withdraw(&object("a/b")), None);
    }

    #[test]
    fn a_list_withdraws_what_it_lacks() {
        let mut reported = Reported::default();
        for name in ["a", "b", "c"] {
            assert!(reported.is_news(&report(name, true)));
        }
        reported.list_started();
        assert!(reported.is_news(&report("b", true)));
        assert_eq!(reported.list_done(), [report("a", false), report("c", false)]);
        assert_eq!(reported.list_done(), []);
    }
}
