//! Events about what a Service asks for of its connections and cannot have.

use crate::events::{Events, Notice};
use crate::model::faults::News;
use crate::model::store::Store;
use crate::model::{Event, Kind, ObjectName, RefKind, Reject};
use crate::sync::Report;

/// Tells the cluster.
pub(super) struct Spreading(pub(super) Events);

impl Spreading {
    /// An event comes, and is not in the store yet: what cannot be used of annotations, of a Service or of its slices.
    pub(super) fn hears(&self, store: &Store, event: &Event) {
        let Event::Rejects { object, rejects } = event else { return };
        let News::Faults(faults) = store.faults().news(object, rejects) else { return };
        let named = || {
            let (namespace, name) = object.name.split_once('/')?;
            let named = ObjectName::new(namespace, name)?;
            match object.kind {
                RefKind::Api(Kind::Service) => Some(named),
                RefKind::Api(Kind::EndpointSlice) => store.service_of(&named).cloned(),
                _ => None,
            }
        };
        let of_annotation = |fault: &&&Reject| fault.field.starts_with("metadata.annotations[");
        for fault in faults.iter().filter(of_annotation) {
            if let Some(service) = named() {
                self.0.say(Notice::unusable(service, "InvalidAnnotation", format!("{object}: {fault}")));
            }
        }
    }

    /// A sync has ended: weights that are not met.
    pub(super) fn synced(&self, report: &Report) {
        for (service, why) in &report.misfits {
            self.0.say(Notice::unusable(service.clone(), "WeightsNotMet", why.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Regarding;
    use crate::model::{Family, ObjectRef, Slice};

    fn name(text: &str) -> ObjectName {
        ObjectName::new("shop", text).expect("a name")
    }

    fn rejects(kind: RefKind, object: &str, field: &str) -> Event {
        let object = ObjectRef { kind, name: name(object).shared().clone() };
        Event::Rejects { object, rejects: vec![Reject::new(field, "odd")] }
    }

    #[test]
    fn odd_annotations_are_told_about_the_service_once() {
        let (events, mut notices) = Events::channel();
        let spreading = Spreading(events);
        let mut store = Store::default();
        let slice = Slice {
            name: name("web-1"),
            service: name("web"),
            family: Family::V4,
            ports: [].into(),
            weight: 1,
            endpoints: [].into(),
            places: Default::default(),
        };
        store.apply(slice.into());
        let mut heard = |event: Event| {
            spreading.hears(&store, &event);
            store.apply(event);
            notices.try_recv().ok().map(|notice| (notice.regarding, notice.note))
        };
        let of_web = |note: &str| Some((Regarding::Service(name("web")), note.to_owned()));
        let scheduler = || rejects(RefKind::Api(Kind::Service), "web", "metadata.annotations[x/scheduler]");
        assert_eq!(heard(scheduler()), of_web("Service shop/web: metadata.annotations[x/scheduler]: odd"));
        assert_eq!(heard(scheduler()), None, "the same again");
        let weight = || rejects(RefKind::Api(Kind::EndpointSlice), "web-1", "metadata.annotations[x/weight]");
        assert_eq!(heard(weight()), of_web("EndpointSlice shop/web-1: metadata.annotations[x/weight]: odd"));
        assert_eq!(heard(rejects(RefKind::Api(Kind::Service), "web", "spec.type")), None);
        assert_eq!(heard(rejects(RefKind::Api(Kind::EndpointSlice), "other", "metadata.annotations[x/weight]")), None);
    }
}
