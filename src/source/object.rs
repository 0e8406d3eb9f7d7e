//! One object as JSON becomes events, whichever source it came from.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Key;
use super::convert::{Converter, HEADLESS_LABEL, Options};
use crate::model::{Event, Kind, Reject};

/// A kind of object that the proxy reads.
pub(super) trait Object: DeserializeOwned + Clone + Send + 'static {
    const KIND: Kind;
    /// The object's metadata.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
    /// Whether the selectors of the API, which a folder of manifests does not have, would let it through.
    fn selected(&self, options: &Options) -> bool;
    /// What there is to say about it.
    fn events(&self, convert: &Converter) -> Vec<Event>;
}

fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

macro_rules! object {
    ($type:ty, $kind:expr, $convert:ident, $selected:expr) => {
        impl Object for $type {
            const KIND: Kind = $kind;

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }

            fn selected(&self, options: &Options) -> bool {
                let selected: fn(&$type, &Options) -> bool = $selected;
                selected(self, options)
            }

            fn events(&self, convert: &Converter) -> Vec<Event> {
                convert.$convert(self)
            }
        }
    };
}

object!(Service, Kind::Service, service, |service, options| {
    let headless = service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"));
    !headless && options.serves(&service.metadata)
});
object!(EndpointSlice, Kind::EndpointSlice, slice, |slice, _| !has_label(&slice.metadata, HEADLESS_LABEL));
object!(Node, Kind::Node, node, |_, _| true);
object!(ServiceCIDR, Kind::ServiceCidr, service_cidr, |_, _| true);

/// Reads an object; the error names the field, as `kubectl explain` would, and what is wrong with it.
pub(super) fn parse<T: DeserializeOwned>(object: &Value) -> Result<T, Reject> {
    // To keep track of the path costs as much as reading: only what cannot be read is read a second time, with it.
    T::deserialize(object).or_else(|_| serde_path_to_error::deserialize(object)).map_err(|err| Reject {
        field: match err.path().to_string() {
            path if path == "." => "the object".into(),
            path => path,
        },
        reason: format!("{}; the object is not used", err.inner()),
    })
}

/// The events of an object: its conversion, or that it is gone where the selectors do not want it.
pub(super) fn events<T: Object>(object: &T, key: &Key, convert: &Converter) -> Vec<Event> {
    if object.selected(convert.options()) { object.events(convert) } else { key.gone().into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::convert::SERVICE_PROXY_NAME_LABEL;
    use super::*;

    #[test]
    fn errors_name_the_field() {
        let cases = [
            (json!({"spec": {"ports": [{"port": "http"}]}}), "spec.ports[0].port", "invalid type: string \"http\""),
            (json!({"spec": {"externalIPs": ["1.2.3.4", 5]}}), "spec.externalIPs[1]", "invalid type: integer `5`"),
            (json!([]), "the object", "invalid type: sequence"),
        ];
        for (object, field, reason) in cases {
            let reject = parse::<Service>(&object).expect_err("the object is faulty");
            assert_eq!(reject.field, field, "{object}");
            assert!(reject.reason.starts_with(reason), "{object}: {}", reject.reason);
        }
    }

    fn options(name: Option<&str>) -> Options {
        Options { node_name: "n1".to_owned(), allow_external_ips: true, service_proxy_name: name.map(str::to_owned) }
    }

    #[test]
    fn selectors() {
        let cases = [
            (json!({"spec": {"clusterIP": "10.0.0.1"}}), true),
            (json!({"spec": {"clusterIP": "None"}}), false),
            (json!({"metadata": {"labels": {SERVICE_PROXY_NAME_LABEL: ""}}, "spec": {"clusterIP": "10.0.0.1"}}), false),
            (json!({"metadata": {"labels": {HEADLESS_LABEL: ""}}, "spec": {"clusterIP": "10.0.0.1"}}), true),
            (json!({"spec": {}}), true),
        ];
        for (object, selected) in cases {
            assert_eq!(parse::<Service>(&object).expect("valid").selected(&options(None)), selected, "{object}");
        }
        // Whoever has a name serves those with exactly this one.
        for (label, selected) in [(json!({SERVICE_PROXY_NAME_LABEL: "trial"}), true), (json!({}), false)]
            .into_iter()
            .chain(["", "trial2", "Trial"].map(|other| (json!({SERVICE_PROXY_NAME_LABEL: other}), false)))
        {
            let object = json!({"metadata": {"labels": label}, "spec": {"clusterIP": "10.0.0.1"}});
            let service = parse::<Service>(&object).expect("valid");
            assert_eq!(service.selected(&options(Some("trial"))), selected, "{object}");
        }
        let slice = json!({"addressType": "IPv4", "endpoints": [], "metadata": {"labels": {HEADLESS_LABEL: ""}}});
        assert!(!parse::<EndpointSlice>(&slice).expect("valid").selected(&options(None)));
    }
}
