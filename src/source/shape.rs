//! Which fields of an object are read. The others are skipped where they stand: of a real cluster's objects that is most
//! of the text (who set which field when, what the kubelet says of its images), and whatever it is, it cannot make an
//! object unreadable.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::model::Kind;
use crate::source::convert::{
    HEADLESS_LABEL, LAST_CHANGE, SERVICE_NAME_LABEL, SERVICE_PROXY_NAME_LABEL, ZONE_LABEL, spread,
};
use crate::yaml::{Scalar, Tree};

/// What is kept of a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// All of it.
    Whole,
    /// Of an object these fields, each by its shape; of a list the same of each entry; anything else as it is.
    Fields(&'static [(&'static str, Shape)]),
}

use Shape::{Fields, Whole};

const NAME: Shape = Fields(&[("name", Whole)]);
const METADATA: Shape = Fields(&[
    ("name", Whole),
    ("namespace", Whole),
    ("resourceVersion", Whole),
    ("creationTimestamp", Whole),
    ("deletionTimestamp", Whole),
    (
        "labels",
        Fields(&[
            (SERVICE_NAME_LABEL, Whole),
            (HEADLESS_LABEL, Whole),
            (SERVICE_PROXY_NAME_LABEL, Whole),
            (ZONE_LABEL, Whole),
        ]),
    ),
    (
        "annotations",
        Fields(&[
            (LAST_CHANGE, Whole),
            (spread::SCHEDULER, Whole),
            (spread::KUBE_ROUTER_SCHEDULER, Whole),
            (spread::KUBE_ROUTER_FLAGS, Whole),
            (spread::CILIUM_ALGORITHM, Whole),
            (spread::MAGLEV_SIZE, Whole),
            (spread::ACCOUNTING, Whole),
            (spread::RANGES_EVERYWHERE, Whole),
            (spread::PING, Whole),
            (spread::RESET_CONNECTIONS, Whole),
            (spread::WEIGHT, Whole),
            (spread::CILIUM_WEIGHT, Whole),
        ]),
    ),
]);
const SERVICE: Shape = Fields(&[
    ("apiVersion", Whole),
    ("kind", Whole),
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[
            ("clusterIP", Whole),
            ("clusterIPs", Whole),
            ("externalIPs", Whole),
            ("externalTrafficPolicy", Whole),
            ("healthCheckNodePort", Whole),
            ("internalTrafficPolicy", Whole),
            ("ipFamilies", Whole),
            ("loadBalancerSourceRanges", Whole),
            ("ports", Fields(&[("name", Whole), ("nodePort", Whole), ("port", Whole), ("protocol", Whole)])),
            ("sessionAffinity", Whole),
            ("sessionAffinityConfig", Fields(&[("clientIP", Fields(&[("timeoutSeconds", Whole)]))])),
            ("type", Whole),
        ]),
    ),
    ("status", Fields(&[("loadBalancer", Fields(&[("ingress", Fields(&[("ip", Whole), ("ipMode", Whole)]))]))])),
]);
const SLICE: Shape = Fields(&[
    ("apiVersion", Whole),
    ("kind", Whole),
    ("metadata", METADATA),
    ("addressType", Whole),
    ("ports", Fields(&[("name", Whole), ("port", Whole), ("protocol", Whole)])),
    (
        "endpoints",
        Fields(&[
            ("addresses", Whole),
            ("conditions", Fields(&[("ready", Whole), ("serving", Whole), ("terminating", Whole)])),
            ("nodeName", Whole),
            ("targetRef", Fields(&[("kind", Whole), ("name", Whole)])),
            ("hints", Fields(&[("forZones", NAME), ("forNodes", NAME)])),
        ]),
    ),
]);
const NODE: Shape = Fields(&[
    ("apiVersion", Whole),
    ("kind", Whole),
    ("metadata", METADATA),
    ("spec", Fields(&[("podCIDRs", Whole), ("taints", Fields(&[("key", Whole)]))])),
    ("status", Fields(&[("addresses", Fields(&[("address", Whole), ("type", Whole)]))])),
]);
const SERVICE_CIDR: Shape =
    Fields(&[("apiVersion", Whole), ("kind", Whole), ("metadata", METADATA), ("spec", Fields(&[("cidrs", Whole)]))]);

impl Shape {
    /// What is read of an object of this kind: what `source::convert` and the selectors look at.
    pub(super) const fn of(kind: Kind) -> Shape {
        match kind {
            Kind::Service => SERVICE,
            Kind::EndpointSlice => SLICE,
            Kind::Node => NODE,
            Kind::ServiceCidr => SERVICE_CIDR,
        }
    }

    /// What is kept of a value of a file.
    pub(super) fn keep(self, tree: &Tree) -> Value {
        match tree {
            Tree::Null => Value::Null,
            Tree::Scalar(Scalar::Bool(value), _) => Value::Bool(*value),
            Tree::Scalar(Scalar::Int(value), _) => Value::Number((*value).into()),
            Tree::Scalar(Scalar::Float(value), _) => Number::from_f64(*value).map_or(Value::Null, Value::Number),
            Tree::String(text) => Value::String(text.clone()),
            Tree::List(entries) => Value::Array(entries.iter().map(|entry| self.keep(entry)).collect()),
            Tree::Map(entries) => {
                let kept = entries.iter().filter_map(|(name, value)| {
                    let shape = match self {
                        Whole => Whole,
                        Fields(fields) => find(fields, name)?,
                    };
                    Some((name.clone(), shape.keep(value)))
                });
                Value::Object(kept.collect())
            }
        }
    }
}

fn find(fields: &[(&str, Shape)], name: &str) -> Option<Shape> {
    fields.iter().find(|(field, _)| *field == name).map(|(_, shape)| *shape)
}

/// Reads a value of any type, and keeps of it what the shape says.
impl<'de> DeserializeSeed<'de> for Shape {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(entry) = entries.next_element_seed(self)? {
            kept.push(entry);
        }
        Ok(Value::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(name) = entries.next_key_seed(Name(self))? {
            match name {
                Some((name, shape)) => drop(kept.insert(name, entries.next_value_seed(shape)?)),
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }
}

/// The name of a field of an object that has this shape, with the field's own shape; `None` where it is not kept.
struct Name(Shape);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<(String, Shape)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<(String, Shape)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        let shape = match self.0 {
            Whole => Some(Whole),
            Fields(fields) => find(fields, name),
        };
        Ok(shape.map(|shape| (name.to_owned(), shape)))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use k8s_openapi::api::networking::v1::ServiceCIDR;
    use serde_json::json;

    use super::super::object::{Object, parse};
    use super::*;
    use crate::model::Event;
    use crate::source::convert::{Converter, Options};

    fn read(kind: Kind, text: &str) -> Value {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let value = Shape::of(kind).deserialize(&mut deserializer).expect("JSON");
        deserializer.end().expect("nothing follows");
        value
    }

    fn kept(kind: Kind, text: &str) -> Value {
        Shape::of(kind).keep(&crate::yaml::json(text).expect("JSON").tree)
    }

    #[test]
    fn what_is_not_read_is_skipped_wherever_it_stands() {
        let slice = json!({
            "kind": "EndpointSlice",
            "metadata": {
                "name": "web-1", "namespace": "shop", "uid": "1", "managedFields": [{"fieldsV1": {"f:endpoints": {}}}],
                "labels": {"kubernetes.io/service-name": "web", "app": "web"},
                "annotations": {"note": "x", LAST_CHANGE: "2026-01-01T00:00:00Z"},
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web-a", "uid": "1"},
                    "conditions": {"ready": true, "odd": 1},
                },
                "not an endpoint",
                {"hints": {"forZones": [{"name": "a", "x": 1}], "forPlanets": []}, "nodeName": null},
            ],
            "ports": {"not": "a list", "name": 5.5},
        });
        let expected = json!({
            "kind": "EndpointSlice",
            "metadata": {
                "name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {LAST_CHANGE: "2026-01-01T00:00:00Z"},
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web-a"},
                    "conditions": {"ready": true},
                },
                "not an endpoint",
                {"hints": {"forZones": [{"name": "a"}]}, "nodeName": null},
            ],
            "ports": {"name": 5.5},
        });
        assert_eq!(read(Kind::EndpointSlice, &slice.to_string()), expected);
        assert_eq!(kept(Kind::EndpointSlice, &slice.to_string()), expected);
    }

    #[test]
    fn any_value_is_read_as_serde_json_does() {
        for text in [
            "null",
            "true",
            "-1",
            "18446744073709551615",
            "0.5",
            "1e300",
            r#""a\"b""#,
            "[]",
            "[1,[2]]",
            r#"{"spec":{"cidrs":[{"a":[null]},-1e3]}}"#,
        ] {
            let whole: Value = text.parse().expect("JSON");
            assert_eq!(
                Whole.deserialize(&mut serde_json::Deserializer::from_str(text)).expect("JSON"),
                whole,
                "{text}"
            );
            // Of numbers a file knows more kinds.
            if !text.contains(['e', '8']) {
                assert_eq!(read(Kind::ServiceCidr, text), kept(Kind::ServiceCidr, text), "{text}");
            }
        }
    }

    /// Objects with every field that is read.
    fn rich() -> [(Kind, Value); 4] {
        let metadata = |name: &str| {
            json!({
                "name": name, "namespace": "shop", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {SERVICE_NAME_LABEL: "web"}, "annotations": {LAST_CHANGE: "2026-01-01T00:00:00Z"},
            })
        };
        let service = json!({
            "metadata": metadata("web"),
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "ipFamilies": ["IPv4", "IPv6"], "externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local",
                "internalTrafficPolicy": "Local", "healthCheckNodePort": 30000,
                "loadBalancerSourceRanges": ["192.0.2.0/24"], "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}],
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
            ]}},
        });
        let slice = json!({
            "metadata": metadata("web-1"), "addressType": "IPv4",
            "ports": [{"name": "dns", "port": 5353, "protocol": "UDP"}],
            "endpoints": [{
                "addresses": ["10.0.0.1"], "nodeName": "n",
                "conditions": {"ready": false, "serving": false, "terminating": true},
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n"}]},
            }],
        });
        let mut node = json!({
            "metadata": {"name": "n", "labels": {ZONE_LABEL: "a"}},
            "spec": {"podCIDRs": ["10.0.0.0/24"], "taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]},
        });
        node["metadata"]["deletionTimestamp"] = Value::Null;
        let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
        [(Kind::Service, service), (Kind::EndpointSlice, slice), (Kind::Node, node), (Kind::ServiceCidr, cidr)]
    }

    /// What an object says.
    fn events(kind: Kind, object: &Value) -> String {
        fn of<T: Object>(object: &Value) -> Vec<Event> {
            let converter = Converter::new(Options {
                node_name: "n".to_owned(),
                allow_external_ips: true,
                service_proxy_name: None,
            });
            parse::<T>(object).expect("it can be read").events(&converter)
        }
        let events = match kind {
            Kind::Service => of::<core::Service>(object),
            Kind::EndpointSlice => of::<EndpointSlice>(object),
            Kind::Node => of::<core::Node>(object),
            Kind::ServiceCidr => of::<ServiceCIDR>(object),
        };
        assert!(events.iter().any(|event| !matches!(event, Event::Rejects { .. })), "{object}: {events:?}");
        format!("{events:?}")
    }

    #[test]
    fn what_is_read_is_kept() {
        for (kind, object) in rich() {
            assert_eq!(kept(kind, &object.to_string()), object, "the table has all of it");
            assert_eq!(read(kind, &object.to_string()), object);
            // With what nobody reads beside it, it says the same.
            let mut more = object.clone();
            more["metadata"]["managedFields"] = json!([{"manager": "x"}]);
            more["spec"]["nobody"] = json!({"reads": "this"});
            let kept = read(kind, &more.to_string());
            assert_eq!(kept, object);
            assert_eq!(events(kind, &kept), events(kind, &object));
        }
        for label in [HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL] {
            let object = json!({"metadata": {"name": "x", "labels": {label: ""}}});
            assert_eq!(read(Kind::Service, &object.to_string()), object);
        }
    }
}
