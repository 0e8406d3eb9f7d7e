//! Kubernetes objects as the values that a manifest or an API server holds.
//!
//! Builders give the objects that tests need most; [`with_defaults`] fills in what an API server would.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::packet::Protocol;

/// The addresses that Services get their cluster IPs from.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["172.30.0.0/16", "fd00:172:30::/108"];

/// What an object is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ObjectKey {
    pub(crate) kind: String,
    /// `default` where an object has none, and for kinds that have no namespaces.
    #[serde(default = "default_namespace")]
    pub(crate) namespace: String,
    pub(crate) name: String,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl ObjectKey {
    /// The key of an object, which has a kind and a name.
    pub(crate) fn of(object: &Value) -> ObjectKey {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &object["metadata"];
        ObjectKey {
            kind: text(&object["kind"]).expect("an object has a kind"),
            namespace: text(&metadata["namespace"]).unwrap_or_else(default_namespace),
            name: text(&metadata["name"]).expect("an object has a name"),
        }
    }
}

/// A Service with a cluster IP for each of the addresses. `spec` is laid over the rest of the specification.
pub(crate) fn service(namespace: &str, name: &str, cluster_ips: &[IpAddr], spec: &Value) -> Value {
    let families: Vec<&str> = cluster_ips.iter().map(|ip| family_name(*ip)).collect();
    let policy = if cluster_ips.len() < 2 { "SingleStack" } else { "RequireDualStack" };
    let mut whole = json!({
        "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips, "ipFamilies": families, "ipFamilyPolicy": policy
    });
    merge(&mut whole, spec);
    with_defaults(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": whole
    }))
}

/// An EndpointSlice of one port with ready endpoints, for the Service of this name. All endpoints are of one family and
/// have one port; each is on the node that is named beside it.
pub(crate) fn endpoint_slice(
    namespace: &str,
    name: &str,
    service: &str,
    port: (&str, Protocol),
    endpoints: &[(SocketAddr, &str)],
) -> Value {
    let (first, _) = endpoints.first().expect("a slice of no endpoints has no family; write it out");
    let ready: Vec<Value> = endpoints
        .iter()
        .map(|(address, node)| json!({"addresses": [address.ip()], "nodeName": node, "conditions": {"ready": true}}))
        .collect();
    with_defaults(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family_name(first.ip()),
        "ports": [{"name": port.0, "port": first.port(), "protocol": api_protocol(port.1)}],
        "endpoints": ready
    }))
}

/// A Node. The first of the addresses of each family becomes an internal IP.
pub(crate) fn node(name: &str, ips: &[IpAddr], labels: &Map<String, Value>, pod_cidrs: &[String]) -> Value {
    let mut all_labels = json!({"kubernetes.io/hostname": name});
    merge(&mut all_labels, &Value::Object(labels.clone()));
    let firsts = [true, false].into_iter().filter_map(|v4| ips.iter().position(|ip| ip.is_ipv4() == v4));
    let mut firsts: Vec<usize> = firsts.collect();
    firsts.sort_unstable();
    let mut addresses: Vec<Value> =
        firsts.into_iter().map(|nth| json!({"type": "InternalIP", "address": ips[nth]})).collect();
    addresses.push(json!({"type": "Hostname", "address": name}));
    let spec = match pod_cidrs.first() {
        Some(first) => json!({"podCIDR": first, "podCIDRs": pod_cidrs}),
        None => json!({}),
    };
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": all_labels},
        "spec": spec, "status": {"addresses": addresses}
    })
}

/// The ServiceCIDR of the cluster, see [`SERVICE_CIDRS`].
pub(crate) fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": SERVICE_CIDRS}
    })
}

/// `IPv4` or `IPv6`, as in `ipFamilies` and `addressType`.
pub(crate) fn family_name(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn api_protocol(protocol: Protocol) -> String {
    protocol.to_string().to_uppercase()
}

/// Lays `over` over `base`: objects key by key, anything else as a whole.
pub(crate) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// The object with the fields that an API server fills in when it is created (Kubernetes 1.36: `pkg/apis/core/v1` and
/// `pkg/apis/discovery/v1`, `defaults.go`, and the allocation of cluster IPs). Nothing that is there is changed, and no
/// address or port is allocated.
pub(crate) fn with_defaults(object: &Value) -> Value {
    let mut object = object.clone();
    match object["kind"].as_str() {
        Some("Service") => service_defaults(&mut object),
        Some("EndpointSlice") => {
            default(&mut object["metadata"], "namespace", || json!("default"));
            for port in items(&mut object, "ports") {
                default(port, "name", || json!(""));
                default(port, "protocol", || json!("TCP"));
            }
        }
        _ => {}
    }
    object
}

fn service_defaults(object: &mut Value) {
    default(&mut object["metadata"], "namespace", || json!("default"));
    default(object, "spec", || json!({}));
    let spec = &mut object["spec"];
    default(spec, "type", || json!("ClusterIP"));
    default(spec, "sessionAffinity", || json!("None"));
    if spec["sessionAffinity"] == "ClientIP" {
        default(spec, "sessionAffinityConfig", || json!({}));
        default(&mut spec["sessionAffinityConfig"], "clientIP", || json!({}));
        default(&mut spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds", || json!(10800));
    }
    for port in items(spec, "ports") {
        let number = port["port"].clone();
        default(port, "protocol", || json!("TCP"));
        default(port, "targetPort", || number);
    }
    if spec["type"] != "ExternalName" {
        let cluster_ip = spec.get("clusterIP").or_else(|| spec.get("clusterIPs")?.get(0)).cloned();
        if let Some(ip) = cluster_ip.filter(|ip| ip.as_str().is_some_and(|ip| !ip.is_empty())) {
            spec["clusterIP"] = ip.clone();
            default(spec, "clusterIPs", || json!([ip]));
            let ips = spec["clusterIPs"].as_array().into_iter().flatten();
            let families: Option<Vec<&str>> =
                ips.map(|ip| ip.as_str()?.parse::<IpAddr>().ok().map(family_name)).collect();
            if let Some(families) = families {
                let families = json!(families); // none for a headless Service, whose cluster IP is "None"
                default(spec, "ipFamilies", || families);
            }
        }
        let dual = spec["clusterIPs"].as_array().is_some_and(|ips| ips.len() > 1);
        default(spec, "ipFamilyPolicy", || json!(if dual { "RequireDualStack" } else { "SingleStack" }));
        default(spec, "internalTrafficPolicy", || json!("Cluster"));
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    let external_ips = spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty());
    if kind == "NodePort" || kind == "LoadBalancer" || external_ips {
        default(spec, "externalTrafficPolicy", || json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", || json!(true));
    }
    default(object, "status", || json!({}));
    default(&mut object["status"], "loadBalancer", || json!({}));
    for ingress in items(&mut object["status"]["loadBalancer"], "ingress") {
        if ingress.get("ip").is_some() {
            default(ingress, "ipMode", || json!("VIP"));
        }
    }
}

/// The members of a list, if there is one.
fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets a field that is missing or null.
fn default(object: &mut Value, field: &str, value: impl FnOnce() -> Value) {
    let field = &mut object[field];
    if field.is_null() {
        *field = value();
    }
}
