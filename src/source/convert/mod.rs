//! Kubernetes objects become model values, here and nowhere else.
//!
//! The functions are total: whatever an object holds, its usable part works, and each unusable part becomes one
//! [`Reject`] that names the field. Objects that are not for this proxy (headless and ExternalName Services, those of
//! another proxy, slices of no Service) give no value and no reject.

mod fields;
mod node;
mod pool;
mod service;
mod slice;
pub mod spread;

use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use node::{ZONE_LABEL, node, service_cidr};
pub use pool::Pool;
pub use service::{SERVICE_PROXY_NAME_LABEL, service};
pub use slice::{HEADLESS_LABEL, LAST_CHANGE, SERVICE_NAME_LABEL, slice};

use crate::model::{Event, Kind, ObjectName, ObjectRef, RefKind, Reject};

/// What the meaning of objects depends on, fixed while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The name of this node's Node object, compared exactly (so in lower case, as the API has it).
    pub node_name: String,
    /// Feature gate `AllowServiceExternalIPs`: whether `spec.externalIPs` are served.
    pub allow_external_ips: bool,
    /// The value of the label [`SERVICE_PROXY_NAME_LABEL`] that Services for this proxy have; `None`: they have no such
    /// label.
    pub service_proxy_name: Option<String>,
}

impl Options {
    /// Whether a Service is for this proxy, as far as its labels say.
    pub fn serves(&self, metadata: &ObjectMeta) -> bool {
        fields::label(metadata, SERVICE_PROXY_NAME_LABEL) == self.service_proxy_name.as_deref()
    }

    /// The same as a label selector.
    pub fn service_selector(&self) -> String {
        match &self.service_proxy_name {
            None => format!("!{SERVICE_PROXY_NAME_LABEL}"),
            Some(name) => format!("{SERVICE_PROXY_NAME_LABEL}={name}"),
        }
    }
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted<T, N = ObjectName> {
    /// Its name; `None` if it has none that can be used, and then there is no value either.
    pub name: Option<N>,
    /// The value; `None` if it is not for this proxy, or nothing of it can be used.
    pub value: Option<T>,
    /// What could not be used, in the order of the fields looked at.
    pub rejects: Vec<Reject>,
}

/// Turns objects into events. Holds no object, only the texts that many of them repeat.
#[derive(Debug)]
pub struct Converter {
    options: Options,
    pool: Mutex<Pool>,
}

/// Each method says what there is to say about an object that came or changed: first its value, or that it is gone
/// where it is not for this proxy or nothing of it is usable; then, always, its [`Event::Rejects`], so that a receiver
/// can withdraw what it reported about an older version. An object without a usable name only gives the latter.
impl Converter {
    /// A converter for this node.
    pub fn new(options: Options) -> Self {
        Converter { options, pool: Mutex::default() }
    }

    /// What the meaning of objects depends on.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// A Service.
    pub fn service(&self, object: &core::Service) -> Vec<Event> {
        let converted = service(object, &self.options, &mut self.pool());
        events(Kind::Service, &object.metadata, converted, Event::Service, Event::ServiceGone)
    }

    /// An EndpointSlice, with the time of its change where it says so.
    pub fn slice(&self, object: &discovery::EndpointSlice) -> Vec<Event> {
        let mut converted = slice(object, &self.options, &mut self.pool());
        let changed_at = slice::last_change(object, &mut converted.rejects);
        let there = |slice| Event::Slice { slice, changed_at };
        events(Kind::EndpointSlice, &object.metadata, converted, there, Event::SliceGone)
    }

    /// A Node; other nodes' give no events.
    pub fn node(&self, object: &core::Node) -> Vec<Event> {
        if object.metadata.name.as_deref() != Some(&self.options.node_name) {
            return Vec::new();
        }
        let converted = node(object, &mut self.pool());
        events(Kind::Node, &object.metadata, converted, Event::Node, |_| Event::NodeGone)
    }

    /// A ServiceCIDR.
    pub fn service_cidr(&self, object: &networking::ServiceCIDR) -> Vec<Event> {
        events(Kind::ServiceCidr, &object.metadata, service_cidr(object), Event::ServiceCidr, Event::ServiceCidrGone)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // A pool is whole after every step of its work, so a panic elsewhere does not spoil it.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn events<T, N>(
    kind: Kind,
    metadata: &ObjectMeta,
    converted: Converted<T, N>,
    there: impl FnOnce(T) -> Event,
    gone: impl FnOnce(N) -> Event,
) -> Vec<Event> {
    let event = converted.value.map(there).or_else(|| converted.name.map(gone));
    let rejects = Reject::fold(converted.rejects);
    let rejects = Event::Rejects { object: object_ref(kind, metadata), rejects };
    event.into_iter().chain([rejects]).collect()
}

/// An object that may have no usable name: `Service shop/web`, `Node (no name)`.
fn object_ref(kind: Kind, metadata: &ObjectMeta) -> ObjectRef {
    let name = metadata.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("(no name)");
    let name = match metadata.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}").into(),
        _ => name.into(),
    };
    ObjectRef { kind: RefKind::Api(kind), name }
}

#[cfg(test)]
mod tests;
