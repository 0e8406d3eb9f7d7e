//! What the proxy knows about a cluster: compact values, free of Kubernetes types and of I/O.
//!
//! Objects of the API become these values once, in `convert`; past that point no address is text, no port is a
//! negative number and no `"None"` cluster IP exists.

mod endpoint;
mod event;
mod ids;
mod node;
mod service;

pub use endpoint::{Conditions, Endpoint, Hints, Slice, SlicePort};
pub use event::{Event, Kind, Reject};
pub use ids::{Family, FrontendAt, FrontendKey, ObjectName, PerFamily, Protocol, ServicePortName};
pub use node::{Node, ServiceCidr};
pub use service::{Service, ServicePort, TrafficPolicy};
