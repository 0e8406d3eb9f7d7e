//! An object that may be faulty.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeSeed as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::model::Reject;
use crate::source::Key;
use crate::source::object::{self, Object};
use crate::source::shape::Shape;

/// Characters of a value that stands where there should be a name.
const MAX_SHOWN: usize = 80;

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
    /// Without a name, it is faulty.
    pub(super) object: Result<T, Reject>,
}

impl<T: Object> Guarded<T> {
    /// Reads an object that may be no proper JSON: then what is read of it is its name, if that can be.
    pub(super) fn read(text: &str) -> Guarded<T> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let mut track = serde_path_to_error::Track::new();
        match Shape::of(T::KIND).deserialize(serde_path_to_error::Deserializer::new(&mut deserializer, &mut track)) {
            Ok(value) => Guarded::of(&value),
            Err(err) => {
                let field = match track.path().to_string() {
                    path if path == "." => "the object".to_owned(),
                    path => path,
                };
                let reject = Reject { field, reason: format!("{err}; the object is not used") };
                let Named { metadata } = serde_json::from_str(text).unwrap_or_default();
                Guarded { metadata: metadata.into(), object: Err(reject) }
            }
        }
    }

    /// Whether it has a name that an object of this kind can have.
    pub(super) fn is_named(&self) -> bool {
        key::<T>(&self.metadata).is_some()
    }

    fn of(value: &Value) -> Guarded<T> {
        let text = |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let object = if key::<T>(&metadata).is_some() {
            object::parse(value)
        } else {
            Err(nameless(value, &T::KIND.to_string()))
        };
        Guarded { metadata, object }
    }
}

impl<'de, T: Object> Deserialize<'de> for Guarded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Guarded::of(&Shape::of(T::KIND).deserialize(deserializer)?))
    }
}

/// What is read of an object that cannot be read.
#[derive(Default, Deserialize)]
struct Named {
    metadata: Names,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Names {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

impl From<Names> for ObjectMeta {
    fn from(Names { name, namespace, resource_version }: Names) -> ObjectMeta {
        ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() }
    }
}

/// What is wrong with an object whose name says nothing.
fn nameless(value: &Value, kind: &str) -> Reject {
    let shown = |value: &Value| {
        let text = value.to_string();
        let end = text.char_indices().nth(MAX_SHOWN).map_or(text.len(), |(end, _)| end);
        format!("{}{}", &text[..end], if end < text.len() { "..." } else { "" })
    };
    if !value.is_object() {
        return Reject { field: "the object".into(), reason: format!("{} is no {kind}; it is not used", shown(value)) };
    }
    let field = |field: &str| value.get("metadata").and_then(|metadata| metadata.get(field)).unwrap_or(&Value::Null);
    let (name, namespace) = (shown(field("name")), shown(field("namespace")));
    let reason = format!("{name} in the namespace {namespace} is no name of a {kind}; the object is not used");
    Reject { field: "metadata.name".into(), reason }
}
