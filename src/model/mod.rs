//! What the proxy knows about a cluster: compact values, free of Kubernetes types and of I/O.
//!
//! Objects of the API become these values once, in `source::convert`; past that point no address is text, no port is a
//! negative number and no `"None"` cluster IP exists. [`store`] keeps them and says which Services have to be looked at
//! again, [`claims`] which of two Services gets an address that both want, [`policy`] which endpoints a packet may
//! reach, [`scheduler`] how one of them is chosen.

pub mod claims;
mod destination;
mod endpoint;
mod event;
pub mod faults;
mod ids;
mod node;
pub mod parse;
mod places;
pub mod policy;
pub mod scheduler;
mod seen;
mod service;
pub mod store;

pub use destination::{Destination, Source};
pub use endpoint::{Conditions, Endpoint, Hints, Slice, SlicePort};
pub use event::{Event, Kind, ObjectRef, RefKind, Reject};
pub use ids::{Family, FrontendAt, FrontendKey, ObjectName, PerFamily, Protocol, ServicePortName};
pub use node::{Node, ServiceCidr};
pub use places::{Place, Places};
pub use scheduler::Scheduler;
pub use seen::Seen;
pub use service::{Role, Service, ServicePort, TrafficPolicy};
