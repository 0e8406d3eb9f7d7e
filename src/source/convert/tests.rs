use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{Conditions, Family, Hints, Protocol, TrafficPolicy};

fn options() -> Options {
    Options { node_name: "n1".into(), allow_external_ips: true, service_proxy_name: None }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| address(text)).collect()
}

/// Merges `patch` into `base` as a JSON merge patch (RFC 7396) does.
fn merge(base: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *base = patch.clone();
        return;
    };
    if !base.is_object() {
        *base = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            base.as_object_mut().expect("an object").remove(key);
        } else {
            merge(&mut base[key], value);
        }
    }
}

fn service_object(patch: &Value) -> core::Service {
    let mut object = json!({
        "metadata": {"namespace": "shop", "name": "web", "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {
            "type": "ClusterIP", "clusterIP": "172.30.0.41", "clusterIPs": ["172.30.0.41"], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    merge(&mut object, patch);
    serde_json::from_value(object).expect("a Service")
}

fn convert_service(patch: Value) -> Converted<crate::model::Service> {
    service(&service_object(&patch), &options(), &mut Pool::default())
}

fn shown(rejects: &[Reject]) -> Vec<String> {
    rejects.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_service() {
    let converted = convert_service(json!({}));
    assert!(converted.rejects.is_empty(), "{:?}", converted.rejects);
    let service = converted.value.expect("proxied");
    assert_eq!(service.name.as_str(), "shop/web");
    assert_eq!(service.cluster_ips, PerFamilyIp { v4: Some(address("172.30.0.41")), v6: None });
    assert_eq!(service.created, 1_767_323_045);
    assert_eq!(service.ports.len(), 1);
    assert_eq!((&*service.ports[0].name, service.ports[0].protocol), ("http", Protocol::Tcp));
    assert_eq!((service.ports[0].port.get(), service.ports[0].node_port), (80, None));
    assert_eq!((service.internal_policy, service.external_policy), (TrafficPolicy::Cluster, TrafficPolicy::Cluster));
    assert_eq!((service.affinity, service.health_check_node_port), (None, None));
    assert!(service.external_ips.is_empty() && service.load_balancer_ips.is_empty());
    assert_eq!(service.source_ranges, None);
}

type PerFamilyIp = crate::model::PerFamily<Option<IpAddr>>;

#[test]
fn services_that_are_not_proxied_have_no_rejects() {
    let cases = [
        json!({"spec": {"clusterIP": "None"}}),
        json!({"spec": {"clusterIP": "None", "ports": null}}),
        json!({"spec": {"type": "ExternalName"}}),
        json!({"spec": {"type": "ExternalName", "clusterIP": "", "ports": null}}),
        json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": ""}}}),
        json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": ""}}, "spec": {"clusterIP": null}}),
    ];
    for patch in cases {
        let converted = convert_service(patch.clone());
        assert_eq!(converted.name.as_ref().map(ObjectName::as_str), Some("shop/web"), "{patch}");
        assert_eq!((converted.value, converted.rejects), (None, vec![]), "{patch}");
    }
    let labels = json!({"service.kubernetes.io/headless": ""});
    let labelled = json!({"metadata": {"labels": labels, "deletionTimestamp": "2026-01-02T03:04:05Z"}});
    assert!(convert_service(labelled).value.is_some(), "the headless label and a deletion count for nothing");
}

#[test]
fn cluster_ips_follow_the_families() {
    let both = ["172.30.0.1", "fd00::1"];
    let cases = [
        (json!(["IPv4", "IPv6"]), json!(both), "172.30.0.1", [Some(both[0]), Some(both[1])]),
        (json!(["IPv6", "IPv4"]), json!([both[1], both[0]]), "fd00::1", [Some(both[0]), Some(both[1])]),
        (json!(["IPv6"]), json!([both[1]]), "fd00::1", [None, Some(both[1])]),
        (json!(["IPv4", "IPv6"]), json!([both[0]]), "172.30.0.1", [Some(both[0]), None]),
        (json!(null), json!(null), "fd00::1", [None, Some(both[1])]),
        (json!([]), json!(both), "172.30.0.1", [Some(both[0]), None]),
        (json!(null), json!(null), "::ffff:1.2.3.4", [Some("1.2.3.4"), None]),
        (json!(["IPv4"]), json!(["172.30.0.041"]), "172.30.0.041", [Some("172.30.0.41"), None]),
        // By hand, as an API server never has it.
        (json!(["IPv4"]), json!(null), "172.30.0.1", [Some(both[0]), None]),
        (json!(["IPv6", "IPv4"]), json!([]), "fd00::1", [None, Some(both[1])]),
        (json!(null), json!(both), "172.30.0.1", [Some(both[0]), None]),
    ];
    for (families, ips, ip, [v4, v6]) in cases {
        let patch = json!({"spec": {"ipFamilies": families, "clusterIPs": ips, "clusterIP": ip}});
        let converted = convert_service(patch.clone());
        assert!(converted.rejects.is_empty(), "{patch}: {:?}", converted.rejects);
        let expected = PerFamilyIp { v4: v4.map(address), v6: v6.map(address) };
        assert_eq!(converted.value.expect("proxied").cluster_ips, expected, "{patch}");
    }
}

#[test]
fn externally_reachable_policies() {
    let local = TrafficPolicy::Local;
    let cases = [
        (json!({"type": "ClusterIP"}), TrafficPolicy::Cluster),
        (json!({"type": null}), TrafficPolicy::Cluster),
        (json!({"type": "ClusterIP", "externalIPs": ["fd00::9"]}), local),
        (json!({"type": "NodePort"}), local),
        (json!({"type": "LoadBalancer", "healthCheckNodePort": 32000}), local),
    ];
    for (mut spec, expected) in cases {
        spec["externalTrafficPolicy"] = json!("Local");
        let converted = convert_service(json!({ "spec": spec }));
        assert!(converted.rejects.is_empty(), "{spec}: {:?}", converted.rejects);
        let service = converted.value.expect("proxied");
        assert_eq!(service.external_policy, expected, "{spec}");
        let port = (spec["type"] == "LoadBalancer").then_some(32000);
        assert_eq!(service.health_check_node_port.map(|port| port.get()), port, "{spec}");
    }
    let not_local = json!({"spec": {"type": "LoadBalancer", "healthCheckNodePort": 32000}});
    assert_eq!(convert_service(not_local).value.expect("proxied").health_check_node_port, None);
}

#[test]
fn everything_a_service_can_have() {
    let converted = convert_service(json!({
        "spec": {
            "type": "LoadBalancer",
            "externalIPs": ["203.0.113.9", "fd00::9", "203.0.113.009", "::ffff:203.0.113.8", " "],
            "loadBalancerSourceRanges": [" 198.51.100.7/24\n", "fd00::/8", "198.51.100.000/024"],
            "internalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}},
            "ports": [
                {"port": 53, "protocol": "UDP", "nodePort": 30053},
                {"port": 53, "protocol": "TCP", "nodePort": 0},
                {"name": "s", "port": 9, "protocol": "SCTP"},
            ],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "5.6.7.8", "ipMode": "Proxy"}, {"ip": "5.6.7.10", "ipMode": "VIP"}, {"hostname": "lb"},
            {"ip": "5.6.7.9"}, {"ip": ""},
        ]}},
    }));
    assert!(converted.rejects.is_empty(), "{:?}", converted.rejects);
    let service = converted.value.expect("proxied");
    assert_eq!(*service.external_ips, *addresses(&["203.0.113.8", "203.0.113.9", "fd00::9"]));
    assert_eq!((service.has_external_ips.v4, service.has_external_ips.v6), (true, true));
    assert_eq!(*service.load_balancer_ips, *addresses(&["5.6.7.9", "5.6.7.10"]));
    let ranges: Vec<String> = service.source_ranges.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(ranges, ["198.51.100.0/24", "fd00::/8"]);
    assert_eq!((service.internal_policy, service.affinity), (TrafficPolicy::Local, Some(86_400)));
    let ports: Vec<_> =
        service.ports.iter().map(|port| (&*port.name, port.protocol, port.node_port.map(|port| port.get()))).collect();
    assert_eq!(ports, [("", Protocol::Udp, Some(30053)), ("", Protocol::Tcp, None), ("s", Protocol::Sctp, None)]);
}

#[test]
fn the_gate_hides_external_ips_but_not_that_there_are_any() {
    let object = service_object(&json!({"spec": {"externalIPs": ["fd00::9"], "externalTrafficPolicy": "Local"}}));
    let gated = Options { allow_external_ips: false, ..options() };
    let service = service(&object, &gated, &mut Pool::default()).value.expect("proxied");
    assert!(service.external_ips.is_empty());
    assert_eq!((service.has_external_ips.v4, service.has_external_ips.v6), (false, true));
    assert_eq!(service.external_policy, TrafficPolicy::Local);
}

/// Each bad field gives one reject that names it, and the Service works without it.
#[test]
fn bad_fields_of_a_service() {
    let good = json!({"name": "http", "port": 80});
    let cases = [
        (
            json!({"ports": [good, {"name": "b", "port": 0}]}),
            "spec.ports[1].port: 0 is not from 1 to 65535; the port is skipped",
        ),
        (json!({"ports": [good, {"name": "b", "port": -1}]}), "spec.ports[1].port: -1 is not from"),
        (json!({"ports": [good, {"name": "b", "port": 65536}]}), "spec.ports[1].port: 65536 is not from"),
        (
            json!({"ports": [good, {"name": "b", "port": 1, "protocol": "tcp"}]}),
            "spec.ports[1].protocol: \"tcp\" is not a protocol",
        ),
        (json!({"ports": [good, good]}), "spec.ports[1].name: a second tcp port of the name \"http\"; skipped"),
        (
            json!({"ports": [{"port": 80, "nodePort": 70000}]}),
            "spec.ports[0].nodePort: 70000 is not from 1 to 65535; the port has no node port",
        ),
        (
            json!({"externalIPs": ["1.2.3.4", " 1.2.3.4"]}),
            "spec.externalIPs[1]: \" 1.2.3.4\" is not an IP address; skipped",
        ),
        (
            json!({"loadBalancerSourceRanges": ["1.2.3.4", "1.2.3.0/24"]}),
            "spec.loadBalancerSourceRanges[0]: \"1.2.3.4\" is not a CIDR",
        ),
        (
            json!({"externalIPs": ["169.254.169.254"]}),
            "spec.externalIPs[0]: \"169.254.169.254\" is a link-local address; skipped",
        ),
        (json!({"externalIPs": ["::1", "1.2.3.4"]}), "spec.externalIPs[0]: \"::1\" is a loopback address; skipped"),
        (json!({"externalIPs": ["224.0.0.1"]}), "spec.externalIPs[0]: \"224.0.0.1\" is a multicast address; skipped"),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["172.30.0.41", "::"]}),
            "spec.clusterIPs[1]: \"::\" is the unspecified address; not proxied in IPv6",
        ),
        (
            json!({"ports": [good, {"name": "a\nb", "port": 1}]}),
            "spec.ports[1].name: \"a\\nb\" is not a name; the port is skipped",
        ),
        (json!({"internalTrafficPolicy": "local"}), "spec.internalTrafficPolicy: \"local\" is not Cluster or Local"),
        (json!({"externalTrafficPolicy": "Remote"}), "spec.externalTrafficPolicy: \"Remote\" is not"),
        (json!({"type": "Loadbalancer"}), "spec.type: \"Loadbalancer\" is not a type; treated as ClusterIP"),
        (json!({"sessionAffinity": "Cookie"}), "spec.sessionAffinity: \"Cookie\" is not None or ClientIP"),
        (
            json!({"sessionAffinity": "ClientIP"}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: missing; the default of 10800",
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not from 1 to 86400",
        ),
        (json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}), "spec.healthCheckNodePort: missing"),
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": -5}),
            "spec.healthCheckNodePort: -5 is not from 1 to 65535",
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["172.30.0.41", "x"]}),
            "spec.clusterIPs[1]: \"x\" is not an IP address; not proxied in IPv6",
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["172.30.0.41", "::ffff:1.2.3.4"]}),
            "spec.clusterIPs[1]: 1.2.3.4 is not of IPv6, as spec.ipFamilies[1] says",
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv4"], "clusterIPs": ["172.30.0.41", "172.30.0.42"]}),
            "spec.clusterIPs[1]: a second cluster IP of IPv4; skipped",
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv5"], "clusterIPs": ["172.30.0.41", "172.30.0.42"]}),
            "spec.ipFamilies[1]: \"IPv5\" is not IPv4 or IPv6; skipped",
        ),
    ];
    for (spec, reject) in cases {
        let converted = convert_service(json!({ "spec": spec }));
        let rejects = shown(&converted.rejects);
        assert!(rejects.len() == 1 && rejects[0].starts_with(reject), "{spec}: {rejects:?}");
        let service = converted.value.expect("the rest works");
        assert_eq!(service.cluster_ips, PerFamilyIp { v4: Some(address("172.30.0.41")), v6: None }, "{spec}");
        assert_eq!((service.ports.len(), service.ports[0].port.get()), (1, 80), "{spec}");
    }
    let ingress = json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "x"}, {"ip": "1.2.3.4", "ipMode": "vip"}, {"ip": "127.0.0.1"},
    ]}}});
    let converted = convert_service(ingress);
    assert_eq!(
        shown(&converted.rejects),
        [
            "status.loadBalancer.ingress[0].ip: \"x\" is not an IP address; skipped",
            "status.loadBalancer.ingress[1].ipMode: \"vip\" is not VIP or Proxy; skipped",
            "status.loadBalancer.ingress[2].ip: \"127.0.0.1\" is a loopback address; skipped",
        ]
    );
    assert!(converted.value.expect("the rest works").load_balancer_ips.is_empty());
}

#[test]
fn services_of_which_nothing_is_left() {
    let cases = [
        (json!({"spec": {"ipFamilies": null, "clusterIP": "x"}}), "spec.clusterIP: \"x\" is not an IP address"),
        (json!({"spec": {"clusterIPs": ["x"]}}), "spec.clusterIPs[0]: "),
        (json!({"spec": {"ports": [{"port": 0}]}}), "spec.ports[0].port: "),
        (json!({"metadata": {"name": null}}), "metadata.name: missing; the object is not used"),
        (json!({"metadata": {"namespace": ""}}), "metadata.namespace: missing"),
        (json!({"metadata": {"name": "a/b"}}), "metadata.name: \"a/b\" is not a name; the object is not used"),
        (json!({"metadata": {"name": "a\nb"}}), "metadata.name: \"a\\nb\" is not a name"),
        (json!({"metadata": {"namespace": "a\"b"}}), "metadata.namespace: \"a\\\"b\" is not a name"),
        (json!({"spec": {"clusterIP": ""}}), "spec.clusterIP: missing; the Service is not proxied"),
        (json!({"spec": {"clusterIP": null}}), "spec.clusterIP: missing"),
        (json!({"spec": null}), "spec.clusterIP: missing"),
        (json!({"spec": {"ports": null}}), "spec.ports: missing; the Service is not proxied"),
        (json!({"spec": {"ports": []}}), "spec.ports: missing"),
        (
            json!({"spec": {"ipFamilies": null, "clusterIP": "127.0.0.1"}}),
            "spec.clusterIP: \"127.0.0.1\" is a loopback address; the Service is not proxied",
        ),
    ];
    for (patch, reject) in cases {
        let converted = convert_service(patch.clone());
        let rejects = shown(&converted.rejects);
        assert!(rejects.len() == 1 && rejects[0].starts_with(reject), "{patch}: {rejects:?}");
        assert_eq!(converted.value, None, "{patch}");
        assert_eq!(converted.name.is_none(), reject.starts_with("metadata"), "{patch}");
    }
}

#[test]
fn source_ranges_that_cannot_be_used_let_nobody_in() {
    let left = "spec.loadBalancerSourceRanges: no range is left: nobody may connect to the load-balancer IPs";
    let none = |family| {
        format!("spec.loadBalancerSourceRanges: no range is {family}: load-balancer IPs of that family are open to all")
    };
    let cases = [
        (json!([]), None, vec![]),
        (json!(["x", "10.0.0.0/33"]), Some(0), vec![left.to_owned()]),
        (json!([""]), Some(0), vec![left.to_owned()]),
        (json!(["::/0"]), Some(1), vec![none("IPv4")]),
        (json!(["10.0.0.0/8", "x"]), Some(1), vec![none("IPv6")]),
        (json!(["10.0.0.0/8", "fd00::/8"]), Some(2), vec![]),
    ];
    for (ranges, count, said) in cases {
        let ingress = json!({"loadBalancer": {"ingress": [{"ip": "5.6.7.8"}, {"ip": "fd00::9"}]}});
        let converted = convert_service(json!({"spec": {"loadBalancerSourceRanges": ranges}, "status": ingress}));
        let rejects = shown(&converted.rejects).into_iter().filter(|reject| !reject.contains("Ranges["));
        assert_eq!(rejects.collect::<Vec<_>>(), said, "{ranges}");
        let service = converted.value.expect("the rest works");
        assert_eq!(service.source_ranges.map(|ranges| ranges.len()), count, "{ranges}");
    }
    // Where they hold for more, that is said; and that they hold for nothing.
    let with = |spec: Value| {
        let annotations = json!({"nftproxyd.io/source-ranges-everywhere": "true"});
        shown(&convert_service(json!({"metadata": {"annotations": annotations}, "spec": spec})).rejects)
    };
    let everywhere = "load-balancer IPs, external IPs and node ports";
    let said = with(json!({"loadBalancerSourceRanges": ["x"]}));
    assert_eq!(
        said[1..],
        [format!("spec.loadBalancerSourceRanges: no range is left: nobody may connect to the {everywhere}")]
    );
    let of_four =
        format!("spec.loadBalancerSourceRanges: no range is IPv4: {everywhere} of that family are open to all");
    let ports = json!([{"port": 80, "nodePort": 30080}]);
    assert_eq!(with(json!({"loadBalancerSourceRanges": ["fd00::/8"], "ports": ports})), [of_four]);
    let unused = "metadata.annotations[nftproxyd.io/source-ranges-everywhere]: without effect: there is no spec.loadBalancerSourceRanges";
    assert_eq!(with(json!({})), [unused]);
    // Nothing is to be said about a family without load-balancer IPs.
    let converted = convert_service(json!({"spec": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}}));
    assert_eq!(converted.rejects, []);
}

fn slice_object(patch: &Value) -> discovery::EndpointSlice {
    let mut object = json!({
        "metadata": {"namespace": "shop", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.180.0.1", "10.180.0.2"], "nodeName": "n1"}],
    });
    merge(&mut object, patch);
    serde_json::from_value(object).expect("an EndpointSlice")
}

fn convert_slice(patch: Value) -> Converted<crate::model::Slice> {
    slice(&slice_object(&patch), &options(), &mut Pool::default())
}

#[test]
fn a_plain_slice() {
    let converted = convert_slice(json!({}));
    assert!(converted.rejects.is_empty(), "{:?}", converted.rejects);
    let slice = converted.value.expect("used");
    assert_eq!((slice.name.as_str(), slice.service.as_str(), slice.family), ("shop/web-x", "shop/web", Family::V4));
    assert_eq!((&*slice.ports[0].name, slice.ports[0].port.get()), ("http", 8080));
    assert_eq!(slice.endpoints.len(), 1, "only the first address counts");
    assert_eq!(slice.endpoints[0].address, address("10.180.0.1"));
    let conditions = Conditions { ready: true, serving: true, terminating: false, local: true };
    assert_eq!(slice.endpoints[0].conditions, conditions);
    assert_eq!(slice.endpoints[0].hints, None);
}

#[test]
fn slices_that_are_not_used() {
    let label = "metadata.labels[kubernetes.io/service-name]";
    let cases = [
        (json!({"metadata": {"labels": null}}), None),
        (json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}), None),
        (json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}}), None),
        (json!({"metadata": {"labels": {"kubernetes.io/service-name": "a/b"}}}), Some(label)),
        (json!({"addressType": "FQDN"}), Some("addressType")),
        (json!({"addressType": "ipv4"}), Some("addressType")),
        (json!({"metadata": {"name": null}}), Some("metadata.name")),
    ];
    for (patch, field) in cases {
        let converted = convert_slice(patch.clone());
        assert_eq!(converted.value, None, "{patch}");
        let fields: Vec<&str> = converted.rejects.iter().map(|reject| reject.field.as_str()).collect();
        assert_eq!(fields, Vec::from_iter(field), "{patch}");
    }
}

#[test]
fn pods_and_nodes_of_endpoints_are_known() {
    let target = |kind: &str, name: &str| json!({"kind": kind, "name": name, "namespace": "shop"});
    let converted = convert_slice(json!({"endpoints": [
        {"addresses": ["10.180.0.1"], "nodeName": "n1", "targetRef": target("Pod", "web-a")},
        {"addresses": ["fd00::1"], "nodeName": "n9", "targetRef": target("Pod", "web-x")},
        {"addresses": ["10.180.0.2"], "nodeName": "n1", "targetRef": target("VirtualMachine", "web-b")},
        {"addresses": ["10.180.0.3"], "nodeName": "a\nb", "targetRef": target("Pod", "web c")},
        {"addresses": ["10.180.0.4"], "targetRef": target("Pod", "web-d")},
    ]}));
    let slice = converted.value.expect("used");
    let found: Vec<(Option<String>, Option<String>)> =
        slice.places.iter().take(slice.endpoints.len()).map(|it| (it.pod, it.node.map(ToString::to_string))).collect();
    let named = |pod: &str, node: &str| {
        let name = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        (name(pod), name(node))
    };
    // The second endpoint is skipped.
    assert_eq!(found, [named("web-a", "n1"), named("", "n1"), named("", ""), named("web-d", "")]);
    assert_eq!(converted.rejects.len(), 1, "{:?}", converted.rejects);
}

#[test]
fn ports_of_a_slice() {
    let converted = convert_slice(json!({"ports": [
        {"port": 1},
        {"name": "a"},
        {"name": "b", "port": 0},
        {"name": "c", "port": 3, "protocol": "ICMP"},
        {"name": "", "port": 65535},
        {"name": "d", "port": 5, "protocol": "SCTP"},
    ]}));
    let expected = ["ports[1].port: ", "ports[2].port: ", "ports[3].protocol: "];
    let rejects = shown(&converted.rejects);
    assert_eq!(rejects.len(), expected.len(), "{rejects:?}");
    for (reject, start) in rejects.iter().zip(expected) {
        assert!(reject.starts_with(start) && reject.ends_with("; the port is skipped"), "{reject}");
    }
    let ports = converted.value.expect("used").ports;
    let ports: Vec<_> = ports.iter().map(|port| (&*port.name, port.port.get(), port.protocol)).collect();
    assert_eq!(ports, [("", 1, Protocol::Tcp), ("", 65535, Protocol::Tcp), ("d", 5, Protocol::Sctp)]);
}

#[test]
fn endpoint_conditions_and_locality() {
    let conditions = |ready, serving, terminating, local| Conditions { ready, serving, terminating, local };
    let cases = [
        (json!({}), conditions(true, true, false, false)),
        (json!({"conditions": {}}), conditions(true, true, false, false)),
        (json!({"conditions": {"ready": false}}), conditions(false, true, false, false)),
        (json!({"conditions": {"ready": false, "terminating": true}}), conditions(false, true, true, false)),
        (json!({"conditions": {"serving": false}}), conditions(true, false, false, false)),
        (json!({"nodeName": "n1"}), conditions(true, true, false, true)),
        (json!({"nodeName": "N1"}), conditions(true, true, false, false)),
        (json!({"nodeName": "n2", "hostname": "n1"}), conditions(true, true, false, false)),
    ];
    for (mut endpoint, expected) in cases {
        endpoint["addresses"] = json!(["10.180.0.1"]);
        let slice = convert_slice(json!({"endpoints": [endpoint]})).value.expect("used");
        assert_eq!(slice.endpoints[0].conditions, expected, "{endpoint}");
    }
}

#[test]
fn endpoint_hints() {
    let zones = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
    let cases = [
        (json!({}), None),
        (json!({"forZones": [], "forNodes": []}), None),
        (
            json!({"forZones": [{"name": "b"}, {"name": "a"}, {"name": "b"}]}),
            Some(Hints { zones: zones(&["a", "b"]), for_nodes: false, for_this_node: false }),
        ),
        (
            json!({"forNodes": [{"name": "n2"}]}),
            Some(Hints { zones: zones(&[]), for_nodes: true, for_this_node: false }),
        ),
        (
            json!({"forNodes": [{"name": "n2"}, {"name": "n1"}], "forZones": [{"name": "a"}]}),
            Some(Hints { zones: zones(&["a"]), for_nodes: true, for_this_node: true }),
        ),
    ];
    for (hints, expected) in cases {
        let endpoint = json!({"addresses": ["10.180.0.1"], "hints": hints});
        let slice = convert_slice(json!({"endpoints": [endpoint]})).value.expect("used");
        assert_eq!(slice.endpoints[0].hints.as_deref(), expected.as_ref(), "{hints}");
    }
}

#[test]
fn bad_endpoints_are_skipped() {
    let endpoints = json!([
        {"addresses": ["127.0.0.1"]}, {"addresses": ["x"]}, {"addresses": ["fd00::1"]}, {"addresses": ["10.180.00.001"]},
        {"addresses": ["::ffff:10.180.0.2"]}, {"addresses": []}, {"addresses": ["169.254.169.254"]},
    ]);
    let converted = convert_slice(json!({ "endpoints": endpoints }));
    assert_eq!(
        shown(&converted.rejects),
        [
            "endpoints[0].addresses[0]: \"127.0.0.1\" is a loopback address; the endpoint is skipped",
            "endpoints[1].addresses[0]: \"x\" is not an IP address; the endpoint is skipped",
            "endpoints[2].addresses[0]: \"fd00::1\" is IPv6, the slice is IPv4; the endpoint is skipped",
            "endpoints[5].addresses: empty; the endpoint is skipped",
            "endpoints[6].addresses[0]: \"169.254.169.254\" is a link-local address; the endpoint is skipped",
        ]
    );
    let got: Vec<IpAddr> = converted.value.expect("used").endpoints.iter().map(|endpoint| endpoint.address).collect();
    assert_eq!(got, addresses(&["10.180.0.1", "10.180.0.2"]));

    let mapped =
        json!({"addressType": "IPv6", "endpoints": [{"addresses": ["::ffff:1.2.3.4"]}, {"addresses": ["fd00::1"]}]});
    let converted = convert_slice(mapped);
    let expected = "endpoints[0].addresses[0]: \"::ffff:1.2.3.4\" is IPv4, the slice is IPv6; the endpoint is skipped";
    assert_eq!(shown(&converted.rejects), [expected]);
    assert_eq!(converted.value.expect("used").endpoints.len(), 1);
}

#[test]
fn texts_are_shared_between_objects() {
    let mut pool = Pool::default();
    let object = slice_object(&json!({}));
    let names: Vec<_> =
        (0..2).map(|_| slice(&object, &options(), &mut pool).value.expect("used").ports[0].name.clone()).collect();
    assert!(arcstr::ArcStr::ptr_eq(&names[0], &names[1]));
}

fn node_object(patch: &Value) -> core::Node {
    let mut object = json!({"metadata": {"name": "n1"}});
    merge(&mut object, patch);
    serde_json::from_value(object).expect("a Node")
}

#[test]
fn nodes() {
    let converted = node(
        &node_object(&json!({
            "metadata": {"labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {
                "podCIDRs": ["10.180.0.0/24", "x", "fd00:1::/64"],
                "taints": [{"key": "other", "effect": "NoSchedule"}],
            },
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "Hostname", "address": "n1"},
                {"type": "ExternalIP", "address": "fd00::9"}, {"type": "InternalIP", "address": "bad"},
                {"type": "InternalIP", "address": "192.0.2.001"}, {"type": "InternalIP", "address": "192.0.2.2"},
            ]},
        })),
        &mut Pool::default(),
    );
    let fields: Vec<&str> = converted.rejects.iter().map(|reject| reject.field.as_str()).collect();
    assert_eq!(fields, ["status.addresses[3].address", "spec.podCIDRs[1]"]);
    let node = converted.value.expect("a node");
    assert_eq!(node.zone.as_deref(), Some("a"));
    assert_eq!(node.addresses, PerFamilyIp { v4: Some(address("192.0.2.1")), v6: Some(address("fd00::9")) });
    let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.180.0.0/24", "fd00:1::/64"]);
    assert!(!node.leaving);
}

#[test]
fn nodes_that_leave_and_nodes_without_a_zone() {
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "PreferNoSchedule"}]);
    let cases = [
        (json!({}), false),
        (json!({"metadata": {"labels": {"topology.kubernetes.io/zone": ""}}}), false),
        (json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}}), true),
        (json!({"spec": {"taints": taint}}), true),
    ];
    for (patch, leaving) in cases {
        let node = node(&node_object(&patch), &mut Pool::default()).value.expect("a node");
        assert_eq!((node.leaving, node.zone), (leaving, None), "{patch}");
    }
}

#[test]
fn service_cidrs() {
    let read = |object: Value| service_cidr(&serde_json::from_value(object).expect("a ServiceCIDR"));
    let converted =
        read(json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["172.30.0.1/16", "x", "fd00::/108"]}}));
    assert_eq!(converted.rejects.len(), 1);
    assert_eq!(converted.rejects[0].field, "spec.cidrs[1]");
    let value = converted.value.expect("a value");
    assert_eq!(&*value.name, "kubernetes");
    let cidrs: Vec<String> = value.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["172.30.0.0/16", "fd00::/108"]);
    assert!(read(json!({"metadata": {"name": "empty"}})).value.expect("a value").cidrs.is_empty());
    let nameless = read(json!({"metadata": {}, "spec": {"cidrs": ["172.30.0.0/16"]}}));
    assert_eq!((nameless.name, nameless.value, nameless.rejects.len()), (None, None, 1));
}

#[test]
fn events_of_objects() {
    let converter = Converter::new(options());
    let name = |text: &str| ObjectName::new("shop", text).expect("a name");
    let rejects = |object: &str, fields: &[&str], events: &[Event]| {
        let Some(Event::Rejects { object: of, rejects }) = events.last() else { panic!("no rejects: {events:?}") };
        assert_eq!(of.to_string(), object);
        assert_eq!(rejects.iter().map(|reject| &*reject.field).collect::<Vec<_>>(), fields, "{object}");
    };

    let events = converter.service(&service_object(&json!({})));
    assert!(matches!(&events[..], [Event::Service(service), _] if service.name == name("web")), "{events:?}");
    rejects("Service shop/web", &[], &events);
    let events = converter.service(&service_object(&json!({"spec": {"clusterIP": "None"}})));
    assert!(matches!(&events[..], [Event::ServiceGone(gone), _] if *gone == name("web")), "{events:?}");
    rejects("Service shop/web", &[], &events);
    let events = converter.service(&service_object(&json!({"spec": {"externalIPs": ["x"]}})));
    assert!(matches!(&events[..], [Event::Service(_), _]), "{events:?}");
    rejects("Service shop/web", &["spec.externalIPs[0]"], &events);
    let events = converter.service(&service_object(&json!({"metadata": {"name": null}})));
    assert_eq!(events.len(), 1, "{events:?}");
    rejects("Service shop/(no name)", &["metadata.name"], &events);

    let events = converter.slice(&slice_object(&json!({})));
    assert!(
        matches!(&events[..], [Event::Slice { slice, changed_at: None }, _] if slice.name == name("web-x")),
        "{events:?}"
    );
    let changed = |at: &str| json!({"metadata": {"annotations": {LAST_CHANGE: at}}});
    let events = converter.slice(&slice_object(&changed("2026-11-20T22:01:55.5Z")));
    let Event::Slice { slice, changed_at: Some(at) } = &events[0] else { panic!("{events:?}") };
    assert_eq!(slice.name, name("web-x"));
    assert_eq!(*at, std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_795_212_115_500));
    let events = converter.slice(&slice_object(&changed("yesterday")));
    assert!(matches!(&events[..], [Event::Slice { changed_at: None, .. }, _]), "{events:?}");
    rejects("EndpointSlice shop/web-x", &[&format!("metadata.annotations[{LAST_CHANGE}]")], &events);
    let bad: Vec<Value> = (0..1000).map(|i| json!({"addresses": [format!("x{i}")]})).collect();
    let events = converter.slice(&slice_object(&json!({ "endpoints": bad })));
    assert!(matches!(&events[..], [Event::Slice { slice, .. }, _] if slice.endpoints.is_empty()), "{events:?}");
    rejects("EndpointSlice shop/web-x", &["endpoints"], &events);
    let events = converter.slice(&slice_object(&json!({"addressType": "FQDN"})));
    assert!(matches!(&events[..], [Event::SliceGone(gone), _] if *gone == name("web-x")), "{events:?}");
    rejects("EndpointSlice shop/web-x", &["addressType"], &events);

    let events = converter.node(&node_object(&json!({})));
    assert!(matches!(&events[..], [Event::Node(_), _]), "{events:?}");
    rejects("Node n1", &[], &events);
    assert_eq!(converter.node(&node_object(&json!({"metadata": {"name": "n2"}}))), []);

    let cidr = json!({"metadata": {"name": "c"}, "spec": {"cidrs": ["x"]}});
    let events = converter.service_cidr(&serde_json::from_value(cidr).expect("a ServiceCIDR"));
    assert!(matches!(&events[..], [Event::ServiceCidr(cidr), _] if &*cidr.name == "c"), "{events:?}");
    rejects("ServiceCIDR c", &["spec.cidrs[0]"], &events);
}

/// Values that no API server would let through, and some that are hard on a careless reader.
const ODD: &[&str] =
    &["", " ", "None", "0", "/", "é/é", "1.2.3.4/", "::ffff:1.2.3.4", "::/0", "IPv6", "Local", "\u{0}"];

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

    /// Whatever the fields hold, there is a result, and it holds only what a model value may hold.
    #[test]
    fn any_object_gives_a_result(
        texts in prop::collection::vec(prop::sample::select(ODD), 12),
        number in any::<i32>(),
    ) {
        let text = |i: usize| texts[i];
        let converter = Converter::new(options());
        let events = converter.service(&service_object(&json!({
            "metadata": {"name": text(0), "namespace": text(1)},
            "spec": {
                "type": text(2), "clusterIP": text(3), "clusterIPs": [text(4), text(5)],
                "ipFamilies": [text(6), "IPv4"],
                "externalIPs": [text(7)], "loadBalancerSourceRanges": [text(8)], "sessionAffinity": text(9),
                "externalTrafficPolicy": text(10), "internalTrafficPolicy": text(11), "healthCheckNodePort": number,
                "ports": [{"port": number, "nodePort": number, "protocol": text(2)}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": text(3), "ipMode": text(4)}]}},
        })));
        let ends_with_rejects = matches!(events.last(), Some(Event::Rejects { .. }));
        prop_assert!(ends_with_rejects);
        let events = converter.slice(&slice_object(&json!({
            "addressType": if number % 2 == 0 { "IPv4" } else { "IPv6" },
            "metadata": {"labels": {"kubernetes.io/service-name": text(0)}},
            "ports": [{"name": text(1), "port": number, "protocol": text(2)}],
            "endpoints": [
                {"addresses": [text(3)]}, {"addresses": [text(4)], "hints": {"forZones": [{"name": text(5)}]}},
            ],
        })));
        if let Some(Event::Slice { slice, .. }) = events.first() {
            prop_assert!(slice.endpoints.iter().all(|endpoint| Family::of(endpoint.address) == slice.family));
        }
        converter.node(&node_object(&json!({
            "spec": {"podCIDRs": [text(6)]}, "status": {"addresses": [{"type": "InternalIP", "address": text(7)}]},
        })));
    }
}

#[test]
fn a_proxy_with_a_name_serves_what_is_labelled_for_it() {
    let named = Options { service_proxy_name: Some("trial".to_owned()), ..options() };
    assert_eq!(options().service_selector(), "!service.kubernetes.io/service-proxy-name");
    assert_eq!(named.service_selector(), "service.kubernetes.io/service-proxy-name=trial");
    for (label, by_name, by_none) in
        [(None, false, true), (Some("trial"), true, false), (Some("trial-2"), false, false)]
    {
        let labels = label.map(|label| [(SERVICE_PROXY_NAME_LABEL.to_owned(), label.to_owned())].into());
        let metadata = ObjectMeta { labels, ..ObjectMeta::default() };
        assert_eq!((named.serves(&metadata), options().serves(&metadata)), (by_name, by_none), "{label:?}");
    }
}
