//! What a source of objects says: the only input of the line that ends in the kernel.

use std::fmt;
use std::time::SystemTime;

use arcstr::ArcStr;

use super::{Node, ObjectName, Service, ServiceCidr, Slice};

/// The kinds of objects that the proxy reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node, only the proxy's own.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];
}

impl fmt::Display for Kind {
    /// The word in an object's `kind` field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// What a report can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefKind {
    /// An object of this kind.
    Api(Kind),
    /// A file of manifests, or a document in one.
    File,
    /// The folder of manifests.
    Folder,
}

impl fmt::Display for RefKind {
    /// The kind, or `file`, `folder`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RefKind::Api(kind) => kind.fmt(f),
            RefKind::File => f.write_str("file"),
            RefKind::Folder => f.write_str("folder"),
        }
    }
}

/// An object or a file as an administrator names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// What it is.
    pub kind: RefKind,
    /// Which: `shop/web`, `shop.yaml, document 2`.
    pub name: ArcStr,
}

impl fmt::Display for ObjectRef {
    /// `Service shop/web`, `file shop.yaml, document 2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// What a source says. Objects arrive as model values, one by one, so that a list never has to be held as a whole.
///
/// A list is bracketed: between `ListStarted` and `ListDone` of a kind come all objects of that kind that there are;
/// those that were known before and did not come again are gone at `ListDone`. A list that breaks off simply starts
/// again with another `ListStarted`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A list of this kind begins.
    ListStarted(Kind),
    /// The list of this kind is complete.
    ListDone(Kind),
    /// A Service is there, or changed.
    Service(Service),
    /// A Service is gone, or is no longer one to be proxied.
    ServiceGone(ObjectName),
    /// A slice is there, or changed.
    Slice {
        /// What it says.
        slice: Slice,
        /// When that happened, by the clock of the control plane, if the slice says so.
        changed_at: Option<SystemTime>,
    },
    /// A slice is gone, or is no longer one to be used.
    SliceGone(ObjectName),
    /// This node's Node is there, or changed.
    Node(Node),
    /// This node's Node is gone.
    NodeGone,
    /// A ServiceCIDR is there, or changed.
    ServiceCidr(ServiceCidr),
    /// A ServiceCIDR of this name is gone.
    ServiceCidrGone(ArcStr),
    /// What could not be used of one object (or file); an empty list says that nothing is wrong with it any more.
    Rejects {
        /// Which.
        object: ObjectRef,
        /// What is wrong with it.
        rejects: Vec<Reject>,
    },
}

impl From<Slice> for Event {
    /// A slice that does not say when it changed.
    fn from(slice: Slice) -> Event {
        Event::Slice { slice, changed_at: None }
    }
}

/// A part of an object that cannot be used. The rest of the object, and all other objects, work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reject {
    /// The field's path in the object, as `kubectl explain` would name it: `spec.externalIPs[2]`.
    pub field: String,
    /// What is wrong and what happens instead: `\"1.2.3\" is not an IP address; skipped`.
    pub reason: String,
}

impl Reject {
    /// A reject of a field. `reason` says what is wrong and what happens instead.
    pub fn new(field: impl Into<String>, reason: impl fmt::Display) -> Reject {
        Reject { field: field.into(), reason: reason.to_string() }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}
