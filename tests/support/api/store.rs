//! Objects, their versions and what happened to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use super::selector::Selector;
use super::{KINDS, Resource};

/// How many changes are kept for watches to catch up.
const HISTORY: usize = 200_000;

/// An object with its text, made once.
pub struct Object {
    /// What selectors look at: all but the endpoints, which are most of a large cluster.
    value: Value,
    pub text: String,
}

struct Change {
    version: u64,
    plural: &'static str,
    before: Option<Arc<Object>>,
    after: Option<Arc<Object>>,
}

/// How far a watch is.
#[derive(Clone, Copy)]
pub struct Seen {
    version: u64,
    bookmarks: u64,
}

#[derive(Default)]
pub struct Store {
    /// By plural and `namespace/name`.
    objects: BTreeMap<(&'static str, String), Arc<Object>>,
    /// Oldest first.
    history: VecDeque<Change>,
    version: u64,
    /// The oldest version from which a watch can start.
    oldest: u64,
    /// How many bookmarks were sent.
    bookmarks: u64,
}

/// What there was at one time.
pub struct Snapshot {
    objects: BTreeMap<(&'static str, String), Arc<Object>>,
    version: u64,
}

/// A page of a list.
pub struct Page {
    pub version: u64,
    pub objects: Vec<Arc<Object>>,
    /// Where the next page begins. How many objects remain is not counted: servers do not either where there is a
    /// selector, and it would make long lists slow.
    pub rest: Option<String>,
}

/// An event for one watch.
pub enum WatchEvent {
    Object(&'static str, Arc<Object>),
    Bookmark(u64),
}

/// The version asked for is no longer known.
#[derive(Debug)]
pub struct Expired;

impl Store {
    pub fn apply(&mut self, mut value: Value) -> u64 {
        let kind = value["kind"].as_str().expect("kind").to_owned();
        let resource = resource(&kind);
        assert_eq!(value["apiVersion"], resource.api_version, "apiVersion of {kind}");
        self.version += 1;
        if resource.namespaced && value["metadata"].get("namespace").is_none() {
            value["metadata"]["namespace"] = "default".into();
        }
        value["metadata"]["resourceVersion"] = self.version.to_string().into();
        let metadata = &value["metadata"];
        let key = key(resource, metadata["namespace"].as_str().unwrap_or(""), metadata["name"].as_str().expect("name"));
        let after = Arc::new(Object::new(value));
        let before = self.objects.insert(key, Arc::clone(&after));
        self.changed(resource.plural, before, Some(after));
        self.version
    }

    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> bool {
        let resource = resource(kind);
        let Some(before) = self.objects.remove(&key(resource, namespace, name)) else { return false };
        self.version += 1;
        self.changed(resource.plural, Some(before), None);
        true
    }

    fn changed(&mut self, plural: &'static str, before: Option<Arc<Object>>, after: Option<Arc<Object>>) {
        self.history.push_back(Change { version: self.version, plural, before, after });
        if self.history.len() > HISTORY
            && let Some(forgotten) = self.history.pop_front()
        {
            self.oldest = forgotten.version;
        }
    }

    pub fn advance(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub fn expire(&mut self) {
        self.advance();
        self.compact();
    }

    pub fn compact(&mut self) {
        self.oldest = self.version;
    }

    pub fn bookmark(&mut self) -> u64 {
        self.bookmarks += 1;
        self.version
    }

    /// A page of at most `limit` objects. `from`: version of the list and key to begin behind.
    pub fn list(
        &self,
        plural: &'static str,
        selector: &Selector,
        limit: usize,
        from: Option<(u64, &str)>,
    ) -> Result<Page, Expired> {
        let (version, behind) = from.unwrap_or((self.version, ""));
        if version < self.oldest {
            return Err(Expired);
        }
        let mut matching = self
            .objects
            .range((plural, behind.to_owned())..)
            .take_while(|((kind, _), _)| *kind == plural)
            .filter(|((_, key), object)| (from.is_none() || key != behind) && selector.matches(&object.value));
        let mut objects = Vec::new();
        let mut last = "";
        for ((_, key), object) in matching.by_ref().take(limit) {
            objects.push(Arc::clone(object));
            last = key;
        }
        let rest = matching.next().is_some().then(|| last.to_owned());
        Ok(Page { version, objects, rest })
    }

    /// Where a watch from this version begins, which may be in the future.
    pub fn watch_from(&self, version: u64) -> Result<Seen, Expired> {
        (version >= self.oldest).then_some(Seen { version, bookmarks: self.bookmarks }).ok_or(Expired)
    }

    /// The version of what there is.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What there is, to come back to.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { objects: self.objects.clone(), version: self.version }
    }

    /// Goes back to what there was. What happened before is no longer known.
    pub fn restore(&mut self, Snapshot { objects, version }: Snapshot) {
        *self = Store { objects, history: VecDeque::new(), version, oldest: version, bookmarks: self.bookmarks };
    }

    /// What happened after `seen` that a watch with this selector sees; moves `seen` to the present.
    pub fn events(&self, plural: &str, selector: &Selector, seen: &mut Seen) -> Vec<WatchEvent> {
        let start = self.history.partition_point(|change| change.version <= seen.version);
        let mut events = Vec::new();
        for Change { version, plural: changed, before, after } in self.history.range(start..) {
            if *changed != plural {
                continue;
            }
            let visible = |object: &&Arc<Object>| selector.matches(&object.value);
            events.extend(match (before.as_ref().filter(visible), after.as_ref().filter(visible)) {
                (None, Some(after)) => Some(WatchEvent::Object("ADDED", Arc::clone(after))),
                (Some(_), Some(after)) => Some(WatchEvent::Object("MODIFIED", Arc::clone(after))),
                (Some(before), None) => Some(WatchEvent::Object("DELETED", Arc::new(before.at(*version)))),
                (None, None) => None,
            });
        }
        // Like the real one, a watch from a version that is still to come says nothing until then.
        if seen.version > self.version {
            return events;
        }
        seen.version = self.version;
        if seen.bookmarks != self.bookmarks {
            seen.bookmarks = self.bookmarks;
            events.push(WatchEvent::Bookmark(self.version));
        }
        events
    }
}

impl Object {
    fn new(mut value: Value) -> Object {
        let text = value.to_string();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("endpoints");
        }
        Object { text, value }
    }

    /// The object as it was, with the version of its deletion.
    fn at(&self, version: u64) -> Object {
        let mut value: Value = serde_json::from_str(&self.text).expect("a text that was a value");
        value["metadata"]["resourceVersion"] = version.to_string().into();
        Object::new(value)
    }
}

fn resource(kind: &str) -> &'static Resource {
    KINDS.iter().find(|resource| resource.kind == kind).unwrap_or_else(|| panic!("the server has no {kind}"))
}

fn key(resource: &Resource, namespace: &str, name: &str) -> (&'static str, String) {
    (resource.plural, if resource.namespaced { format!("{namespace}/{name}") } else { name.to_owned() })
}
