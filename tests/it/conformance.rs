//! The scenarios of `testdata/scenarios`, with the daemon as the proxy.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use serde_json::{Value, json};

use crate::api::Api;
use crate::support::objects::ObjectKey;
use crate::support::proxy::{ApiServer, Proxy, WithApi, WithManifests};
use crate::support::runner::assert_passes;
use crate::support::scenario::load_all;
use crate::support::world::World;

/// One test for each scenario and each way for objects to come in.
macro_rules! conformance {
    ($($test:ident => $scenario:literal,)*) => {
        const LISTED: &[&str] = &[$($scenario),*];

        mod manifests {
            $(conformance!(@test $test, crate::conformance::check($scenario, crate::conformance::with_manifests));)*
        }

        mod api {
            $(conformance!(@test $test, crate::conformance::check($scenario, crate::conformance::with_api));)*
        }
    };
    (@test $test:ident, $check:expr) => {
        #[test]
        fn $test() {
            $check;
        }
    };
}

conformance! {
    changes => "changes",
    cluster_ip => "cluster-ip",
    cluster_ip_ipv6 => "cluster-ip-ipv6",
    detect_local_bridge => "detect-local-bridge",
    detect_local_interface_prefix => "detect-local-interface-prefix",
    detect_local_node_cidr => "detect-local-node-cidr",
    dual_stack => "dual-stack",
    endpoint_slices => "endpoint-slices",
    external_ips => "external-ips",
    external_policy_cluster => "external-policy-cluster",
    external_policy_local => "external-policy-local",
    external_policy_local_no_local => "external-policy-local-no-local",
    host_network => "host-network",
    internal_policy => "internal-policy",
    lb_ip_mode => "lb-ip-mode",
    lb_source_ranges => "lb-source-ranges",
    load_balancer => "load-balancer",
    masquerade_all => "masquerade-all",
    masquerade_all_no_detection => "masquerade-all-no-detection",
    masquerade_base => "masquerade-base",
    masquerade_no_detection => "masquerade-no-detection",
    no_endpoints => "no-endpoints",
    node_port => "node-port",
    node_port_addresses_all => "node-port-addresses-all",
    node_port_addresses_ranges => "node-port-addresses-ranges",
    not_proxied => "not-proxied",
    odd_inputs => "odd-inputs",
    session_affinity => "session-affinity",
    shared_addresses => "shared-addresses",
    single_stack_ipv6 => "single-stack-ipv6",
    terminating_cluster => "terminating-cluster",
    terminating_local => "terminating-local",
    topology => "topology",
    udp_flow_before_service => "udp-flow-before-service",
    udp_flows => "udp-flows",
}

/// What policies, families, affinity and changes come to is the same whoever chooses among what they leave: each way to choose
/// a slot, with every scenario in which something is to be chosen. The schedulers that are not here have the rules of one that is.
mod schedulers {
    use super::{CHOOSING, FEW, Scheduled, check_scheduled};

    macro_rules! schedulers {
        ($($test:ident => ($name:literal, $gets:ident, $scenarios:ident),)*) => {
            $(#[test]
            fn $test() {
                check_scheduled($name, Scheduled::$gets, &$scenarios);
            })*
        };
    }

    schedulers! {
        rr => ("rr", AnyEndpoint, CHOOSING),
        sh => ("sh", OneForEach, CHOOSING),
        sh_port => ("sh-port", AnyEndpoint, CHOOSING),
        dh => ("dh", OneForEach, CHOOSING),
        // Its tables are large, and stock nft of every version lists them at the end.
        mh => ("mh", OneForEach, FEW),
    }
}

/// What a client gets that connects again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheduled {
    /// Each endpoint in time.
    AnyEndpoint,
    /// The same each time.
    OneForEach,
}

const CHOOSING: [&str; 13] = [
    "changes",
    "dual-stack",
    "external-policy-cluster",
    "external-policy-local",
    "host-network",
    "internal-policy",
    "lb-source-ranges",
    "masquerade-all",
    "node-port",
    "session-affinity",
    "terminating-local",
    "topology",
    "udp-flows",
];
const FEW: [&str; 3] = ["changes", "external-policy-local", "session-affinity"];

/// Some scenarios, with this scheduler.
fn check_scheduled(scheduler: &str, gets: Scheduled, scenarios: &[&str]) {
    let mut all = load_all().expect("all scenarios can be read");
    for name in scenarios {
        let mut scenario = all.remove(*name).unwrap_or_else(|| panic!("there is no scenario {name}"));
        let nftables = scenario.config.entry("nftables").or_insert_with(|| json!({}));
        nftables["scheduler"] = scheduler.into();
        if gets == Scheduled::OneForEach {
            scenario.each_forward(|forward| forward.sticky = true);
        }
        assert_passes(&scenario, with_manifests);
    }
}

/// No scenario is forgotten here, and each is listed once.
#[test]
fn every_scenario_is_listed_once() {
    let all = load_all().expect("all scenarios can be read");
    let found: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    let listed: BTreeSet<&str> = LISTED.iter().copied().collect();
    assert_eq!(found, listed, "testdata/scenarios and the list in tests/it/conformance.rs");
    assert_eq!(listed.len(), LISTED.len(), "a scenario is listed twice");
}

fn check(scenario: &str, make: impl FnOnce(&World) -> Result<Box<dyn Proxy>, String>) {
    let all = load_all().expect("all scenarios can be read");
    assert_passes(all.get(scenario).expect("it is listed"), make);
}

fn with_manifests(_: &World) -> Result<Box<dyn Proxy>, String> {
    Ok(Box::new(WithManifests::new()?))
}

fn with_api(world: &World) -> Result<Box<dyn Proxy>, String> {
    Ok(Box::new(WithApi::new(api_server(world)?)?))
}

/// The API server lives in the node: made on its thread, its socket is on the node's own 127.0.0.1.
fn api_server(world: &World) -> Result<Box<dyn ApiServer>, String> {
    let started = world.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(Api::start));
    started.map(|api| Box::new(api) as Box<dyn ApiServer>).map_err(|error| error.to_string())
}

impl ApiServer for Api {
    fn apply(&mut self, object: &Value) -> Result<(), String> {
        Api::apply(self, object.clone());
        Ok(())
    }

    fn delete(&mut self, key: &ObjectKey) -> Result<(), String> {
        Api::delete(self, &key.kind, &key.namespace, &key.name);
        Ok(())
    }

    fn kubeconfig(&self) -> String {
        Api::kubeconfig(self)
    }
}
