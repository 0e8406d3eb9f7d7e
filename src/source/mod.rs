//! Where objects come from: an API server ([`kube`]) or a folder of manifests ([`file`](mod@file)).
//!
//! Both say the same thing in the same way: [`Event`]s with model values, sent into one bounded channel. A source turns
//! each object into a model value as it arrives and forgets the object. It keeps what works: when a server cannot be
//! reached or a file cannot be read, nothing is said, so everything that was known stays in force.

mod bypass;
pub mod convert;
mod exchange;
pub mod file;
mod following;
pub mod kube;
mod object;
mod rejects;
mod shape;

use arcstr::ArcStr;

pub use bypass::Bypass;
pub use exchange::{Exchange, ExchangeListener};
pub use following::{Followed, Following, FollowingListener, State};

use crate::model::{Event, Kind, ObjectName, ObjectRef, RefKind};

/// What tells objects apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    kind: Kind,
    /// `namespace/name`, or `name` where the kind has no namespaces.
    name: ArcStr,
}

impl Key {
    /// `None` where an object of this kind cannot be named so.
    fn new(kind: Kind, namespace: &str, name: &str) -> Option<Key> {
        let name = match kind {
            Kind::Service | Kind::EndpointSlice => ObjectName::new(namespace, name)?.as_str().into(),
            Kind::Node | Kind::ServiceCidr if !ObjectName::is_part(name) => return None,
            Kind::Node | Kind::ServiceCidr => name.into(),
        };
        Some(Key { kind, name })
    }

    /// The object, for a report about it.
    fn object(&self) -> ObjectRef {
        ObjectRef { kind: RefKind::Api(self.kind), name: self.name.clone() }
    }

    /// Says that the object is gone.
    fn gone(&self) -> Option<Event> {
        let object_name = || self.name.split_once('/').and_then(|(namespace, name)| ObjectName::new(namespace, name));
        Some(match self.kind {
            Kind::Service => Event::ServiceGone(object_name()?),
            Kind::EndpointSlice => Event::SliceGone(object_name()?),
            Kind::Node => Event::NodeGone,
            Kind::ServiceCidr => Event::ServiceCidrGone(self.name.clone()),
        })
    }
}

impl std::fmt::Display for Key {
    /// `Service shop/web`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.object().fmt(f)
    }
}
