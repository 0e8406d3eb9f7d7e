//! Which faults of objects stand: what is new in a report, what is over, and how many objects have some.

use std::collections::BTreeMap;

use super::{ObjectRef, RefKind, Reject};

/// The faults that were told last of each object or file. Holds nothing for those without.
#[derive(Debug, Default)]
pub struct Faults {
    standing: BTreeMap<ObjectRef, Vec<Reject>>,
    /// How many of these are of each kind; those that had some once stay.
    by_kind: BTreeMap<RefKind, usize>,
}

/// What a report says that was not known.
#[derive(Debug, PartialEq, Eq)]
pub enum News<'a> {
    /// Nothing. Sources repeat faults, as whenever an object changes or is listed again.
    None,
    /// These faults.
    Faults(Vec<&'a Reject>),
    /// That nothing is wrong any more.
    Over,
}

impl Faults {
    /// What would be new if this were all that is wrong with an object.
    pub fn news<'a>(&self, object: &ObjectRef, rejects: &'a [Reject]) -> News<'a> {
        let known = self.of(object);
        let faults: Vec<&Reject> =
            rejects.iter().filter(|reject| !known.iter().any(|known| known.is_like(reject))).collect();
        match (faults.is_empty(), rejects.is_empty() && !known.is_empty()) {
            (false, _) => News::Faults(faults),
            (true, true) => News::Over,
            (true, false) => News::None,
        }
    }

    /// Takes in all that is wrong with an object now; an empty list says that nothing is.
    pub fn note(&mut self, object: ObjectRef, rejects: Vec<Reject>) {
        let kind = object.kind;
        let faulty = !rejects.is_empty();
        let before = if faulty { self.standing.insert(object, rejects) } else { self.standing.remove(&object) };
        if faulty != before.is_some() {
            let objects = self.by_kind.entry(kind).or_default();
            *objects = if faulty { *objects + 1 } else { *objects - 1 };
        }
    }

    /// What is wrong with an object.
    pub fn of(&self, object: &ObjectRef) -> &[Reject] {
        self.standing.get(object).map(Vec::as_slice).unwrap_or_default()
    }

    /// How many objects have faults, by kind: every kind that has or had some.
    pub fn by_kind(&self) -> impl Iterator<Item = (RefKind, usize)> {
        self.by_kind.iter().map(|(kind, objects)| (*kind, *objects))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;

    fn service(name: &str) -> ObjectRef {
        ObjectRef { kind: RefKind::Api(Kind::Service), name: name.into() }
    }

    #[test]
    fn each_fault_is_news_once() {
        let fault = |field: &str| Reject::new(field, "odd");
        let (a, b) = (fault("a"), fault("b"));
        let mut faults = Faults::default();
        let mut told = |name: &str, rejects: &[&Reject], expected: News<'_>| {
            let object = service(name);
            let rejects: Vec<Reject> = rejects.iter().copied().cloned().collect();
            assert_eq!(faults.news(&object, &rejects), expected, "{object}: {rejects:?}");
            faults.note(object, rejects);
        };
        told("x/y", &[], News::None);
        told("x/y", &[&a], News::Faults(vec![&a]));
        told("x/y", &[&a], News::None);
        told("x/y", &[&a, &b], News::Faults(vec![&b]));
        // Another object.
        told("x/z", &[&b], News::Faults(vec![&b]));
        told("x/y", &[&b], News::None);
        // It is back.
        told("x/y", &[&a], News::Faults(vec![&a]));
        told("x/y", &[], News::Over);
        told("x/y", &[], News::None);
        // Elsewhere in a list.
        told("x/y", &[&fault("e[3].a")], News::Faults(vec![&fault("e[3].a")]));
        told("x/y", &[&fault("e[5].a")], News::None);
        told("x/y", &[], News::Over);
        assert_eq!((faults.of(&service("x/y")), faults.of(&service("x/z"))), (&[][..], &[b][..]));
    }

    #[test]
    fn objects_are_counted_by_kind_and_not_by_name() {
        let fault = || vec![Reject::new("spec", "odd")];
        let file = ObjectRef { kind: RefKind::File, name: "Service x/y".into() };
        let mut faults = Faults::default();
        for object in [service("x/y"), service("x/y"), service("x/z"), file.clone()] {
            faults.note(object, fault());
        }
        let counts = |faults: &Faults| faults.by_kind().collect::<Vec<_>>();
        assert_eq!(counts(&faults), [(RefKind::Api(Kind::Service), 2), (RefKind::File, 1)]);
        for object in [service("x/y"), service("x/y"), service("other"), file] {
            faults.note(object, Vec::new());
        }
        assert_eq!(counts(&faults), [(RefKind::Api(Kind::Service), 1), (RefKind::File, 0)]);
    }
}
