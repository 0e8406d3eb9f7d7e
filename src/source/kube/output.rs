//! Says what arrives of a kind, in model values.

use std::sync::Arc;

use tokio::sync::mpsc::Sender;

use super::guarded::{Guarded, key};
use crate::model::{Event, Kind, ObjectRef, RefKind, Reject};
use crate::source::convert::Converter;
use crate::source::object::{self, Object};
use crate::source::rejects::Reported;

/// The receiver of events is gone.
pub(super) struct Closed;

/// Says what arrives.
pub(super) struct Output {
    convert: Arc<Converter>,
    events: Sender<Event>,
    reported: Reported,
    /// Whether [`Event::ListStarted`] was sent for the list that is under way.
    started: bool,
    /// Objects that came in that list.
    came: usize,
    /// What is wrong with those of them that have no name; not more than [`MAX_NAMELESS`].
    nameless: Vec<Reject>,
    /// How many of those there are.
    nameless_count: usize,
}

/// Objects without a name that are told one by one.
const MAX_NAMELESS: usize = 3;

impl Output {
    pub(super) fn new(convert: Arc<Converter>, events: Sender<Event>) -> Output {
        Output {
            convert,
            events,
            reported: Reported::default(),
            started: false,
            came: 0,
            nameless: Vec::new(),
            nameless_count: 0,
        }
    }

    pub(super) fn begin_list(&mut self) {
        self.started = false;
        (self.came, self.nameless_count) = (0, 0);
        self.nameless.clear();
    }

    /// Says that a list begins, once there is something to say about it.
    pub(super) async fn start_list(&mut self, kind: Kind) -> Result<(), Closed> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        self.reported.list_started();
        self.send(Event::ListStarted(kind)).await
    }

    pub(super) async fn end_list(&mut self, kind: Kind) -> Result<(), Closed> {
        if let Some(event) = self.report_nameless(kind)
            && self.reported.is_news(&event)
        {
            self.send(event).await?;
        }
        for event in self.reported.list_done() {
            self.send(event).await?;
        }
        self.send(Event::ListDone(kind)).await
    }

    /// What is wrong with the objects without a name, which are told together.
    fn report_nameless(&mut self, kind: Kind) -> Option<Event> {
        let mut rejects = std::mem::take(&mut self.nameless);
        let more = self.nameless_count - rejects.len();
        if more > 0 {
            rejects.push(Reject { field: "items".into(), reason: format!("{more} more without a name are not used") });
        }
        let object = ObjectRef { kind: RefKind::Api(kind), name: arcstr::literal!("without a name") };
        (!rejects.is_empty()).then_some(Event::Rejects { object, rejects })
    }

    pub(super) async fn object_of_list<T: Object>(&mut self, object: Guarded<T>) -> Result<(), Closed> {
        if let (false, Err(reject)) = (object.is_named(), &object.object) {
            if self.nameless.len() < MAX_NAMELESS {
                let field = match &*reject.field {
                    "the object" => format!("items[{}]", self.came),
                    field => format!("items[{}].{field}", self.came),
                };
                self.nameless.push(Reject { field, reason: reject.reason.clone() });
            }
            self.nameless_count += 1;
        }
        self.came += 1;
        self.object(object).await
    }

    pub(super) async fn object<T: Object>(&mut self, object: Guarded<T>) -> Result<(), Closed> {
        let Some(key) = key::<T>(&object.metadata) else { return Ok(()) };
        let events = match &object.object {
            Ok(object) => object::events(object, &key, &self.convert),
            Err(reject) => vec![Event::Rejects { object: key.object(), rejects: vec![reject.clone()] }],
        };
        drop(object);
        for event in events {
            if self.reported.is_news(&event) {
                self.send(event).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn gone<T: Object>(&mut self, object: Guarded<T>) -> Result<(), Closed> {
        let Some(key) = key::<T>(&object.metadata) else { return Ok(()) };
        let report = self.reported.withdraw(&key.object());
        for event in key.gone().into_iter().chain(report) {
            self.send(event).await?;
        }
        Ok(())
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}
