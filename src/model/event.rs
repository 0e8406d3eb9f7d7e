//! What a source of objects says: the only input of the line that ends in the kernel.

use std::collections::BTreeMap;
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

    /// The same rejects; of each list in the object, and of each field, at most three are told one by one, and of more
    /// than that the first of them and how many there are. So an object has few, however much is wrong with it.
    pub fn fold(rejects: Vec<Reject>) -> Vec<Reject> {
        if rejects.len() <= NAMED {
            return rejects;
        }
        let list = |reject: &Reject| reject.field.find('[').unwrap_or(reject.field.len());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for reject in &rejects {
            *counts.entry(reject.field[..list(reject)].to_owned()).or_default() += 1;
        }
        let mut folded: Vec<Reject> = Vec::new();
        let mut named: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for reject in rejects {
            let (head, rest) = reject.field.split_at(list(&reject));
            let count = counts.get(head).copied().unwrap_or_default();
            if count <= NAMED {
                folded.push(reject);
                continue;
            }
            let (at, told) = *named.entry(head.to_owned()).or_insert_with(|| {
                folded.push(Reject::new(head, format_args!("{count}{MANY}")));
                (folded.len() - 1, 0)
            });
            if told < NAMED {
                let comma = if told == 0 { "" } else { ", " };
                let colon = if rest.is_empty() { "" } else { ": " };
                folded[at].reason.push_str(&format!("{comma}{rest}{colon}{}", reject.reason));
                named.insert(head.to_owned(), (at, told + 1));
            }
        }
        folded
    }

    /// Whether it tells nothing that the other does not: the same at another place of a list, or another number of them.
    pub fn is_like(&self, other: &Reject) -> bool {
        let many = |reject: &Reject| reject.reason.contains(MANY);
        without_indexes(&self.field) == without_indexes(&other.field)
            && (self.reason == other.reason || many(self) && many(other))
    }
}

/// A path without the numbers in its brackets.
fn without_indexes(field: &str) -> String {
    let mut inside = false;
    let digits = |c: &char| {
        inside = if *c == '[' { true } else { inside && c.is_ascii_digit() };
        !(inside && c.is_ascii_digit())
    };
    field.chars().filter(digits).collect()
}

/// At most this many rejects of one list are told one by one.
const NAMED: usize = 3;

/// What makes of a number and some rejects one.
const MANY: &str = " faults, such as ";

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(rejects: Vec<Reject>) -> Vec<String> {
        Reject::fold(rejects).iter().map(Reject::to_string).collect()
    }

    #[test]
    fn many_faults_of_one_list_are_one() {
        let bad = |i| Reject::new(format!("endpoints[{i}].addresses[0]"), format_args!("\"{i}\" is bad; skipped"));
        let port = || Reject::new("ports[0].port", "bad");
        assert_eq!(texts((0..3).map(bad).collect()).len(), 3);
        let mut many: Vec<_> = (0..38_000).map(bad).collect();
        many.insert(0, port());
        let expected = [
            "ports[0].port: bad".to_owned(),
            "endpoints: 38000 faults, such as [0].addresses[0]: \"0\" is bad; skipped, \
             [1].addresses[0]: \"1\" is bad; skipped, [2].addresses[0]: \"2\" is bad; skipped"
                .to_owned(),
        ];
        assert_eq!(texts(many), expected);
        let same = (0..5).map(|i| Reject::new("metadata.name", format_args!("Service {i} is not used"))).collect();
        assert_eq!(
            texts(same),
            ["metadata.name: 5 faults, such as Service 0 is not used, Service 1 is not used, Service 2 is not used"]
        );
    }

    #[test]
    fn the_same_fault_elsewhere_is_nothing_new() {
        let at = |field: &str, reason: &str| Reject::new(field, reason);
        assert!(at("e[1].a[0]", "x").is_like(&at("e[22].a[0]", "x")));
        assert!(at("e", "4 faults, such as x").is_like(&at("e", "5 faults, such as y")));
        for other in [at("e[1].b[0]", "x"), at("e[1].a[0]", "y"), at("e1.a[0]", "x"), at("m[a].a[0]", "x")] {
            assert!(!at("e[1].a[0]", "x").is_like(&other), "{other}");
        }
        assert!(!at("l[k8s.io/a1]", "x").is_like(&at("l[k8s.io/a2]", "x")));
    }
}
