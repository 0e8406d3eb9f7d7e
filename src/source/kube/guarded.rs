//! An object that may be faulty.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeSeed as _;
use serde::{Deserialize, Deserializer};

use crate::model::Reject;
use crate::source::Key;
use crate::source::object::{self, Object};
use crate::source::shape::Shape;

pub(super) fn key<T: Object>(metadata: &ObjectMeta) -> Option<Key> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Key::new(T::KIND, &text(&metadata.namespace), &text(&metadata.name))
}

/// An object that may be faulty, so that one that cannot be read does not stop the list or watch it comes in. (Unlike
/// `kube::core::DeserializeGuard` it says which field is at fault, and copies nothing.)
#[derive(Debug, Clone)]
pub(super) struct Guarded<T> {
    /// Of a faulty object: name, namespace and version only.
    pub(super) metadata: ObjectMeta,
    pub(super) object: Result<T, Reject>,
}

impl<'de, T: Object> Deserialize<'de> for Guarded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Shape::of(T::KIND).deserialize(deserializer)?;
        let text = |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Guarded { metadata, object: object::parse(&value) })
    }
}

impl<T: Resource> Resource for Guarded<T> {
    type DynamicType = T::DynamicType;
    type Scope = T::Scope;

    fn kind(dt: &T::DynamicType) -> std::borrow::Cow<'_, str> {
        T::kind(dt)
    }

    fn group(dt: &T::DynamicType) -> std::borrow::Cow<'_, str> {
        T::group(dt)
    }

    fn version(dt: &T::DynamicType) -> std::borrow::Cow<'_, str> {
        T::version(dt)
    }

    fn plural(dt: &T::DynamicType) -> std::borrow::Cow<'_, str> {
        T::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
