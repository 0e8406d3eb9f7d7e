//! What is in `deploy/` is what the program and Kubernetes understand.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use nftproxyd::config::{self, Overrides, Source};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

const KUBERNETES: &str = "deploy/kubernetes";

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn object<T: DeserializeOwned>(text: &str) -> T {
    serde_yaml::from_str(text).expect("a valid object")
}

fn pod_of(daemon_set: DaemonSet) -> PodSpec {
    daemon_set.spec.and_then(|spec| spec.template.spec).expect("a pod")
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn every_yaml_file_can_be_parsed() {
    let mut files = Vec::new();
    files_below(&in_repository("deploy"), &mut files);
    let mut documents = 0;
    for file in files {
        if !matches!(file.extension().and_then(|extension| extension.to_str()), Some("yaml" | "yml" | "conf")) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("text");
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value = Value::deserialize(document).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert!(value.is_mapping(), "{}: a document is no object", file.display());
            documents += 1;
        }
    }
    assert!(documents > 10, "only {documents} documents were found");
}

#[test]
fn the_configurations_can_be_used_without_a_warning() {
    for file in ["deploy/nftproxyd.yaml", "deploy/kubernetes/base/config/config.conf"] {
        let overrides = Overrides { hostname_override: Some("node-1".to_owned()), ..Overrides::default() };
        let loaded = config::load(Some(&in_repository(file)), &overrides).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.warnings, Vec::<String>::new(), "{file}");
        let Source::Api { kubeconfig, .. } = loaded.config.source else { panic!("{file} names no API server") };
        assert!(kubeconfig.is_absolute(), "{file}: {}", kubeconfig.display());
    }
}

#[test]
fn the_daemon_set_has_what_a_proxy_needs_and_no_more() {
    let pod = pod_of(object(&read(&format!("{KUBERNETES}/base/daemonset.yaml"))));
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let tolerations = pod.tolerations.expect("tolerations");
    assert!(tolerations.iter().any(|it| it.operator.as_deref() == Some("Exists") && it.key.is_none()));
    assert!(pod.volumes.expect("volumes").iter().all(|volume| volume.host_path.is_none()));

    let [container] = &pod.containers[..] else { panic!("one container") };
    let security = container.security_context.as_ref().expect("a security context");
    let capabilities = security.capabilities.as_ref().expect("capabilities");
    assert_eq!(security.privileged, None);
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    assert_eq!(capabilities.add.as_deref(), Some(&["NET_ADMIN".to_owned()][..]));
    for (probe, path) in [
        (&container.startup_probe, "/livez"),
        (&container.liveness_probe, "/livez"),
        (&container.readiness_probe, "/healthz"),
    ] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("a probe by HTTP");
        assert_eq!(get.path.as_deref(), Some(path));
    }
    assert!(container.ports.iter().flatten().any(|port| port.container_port == 10256));
}

#[test]
fn the_rights_are_those_of_a_node_proxier_or_less() {
    // API group, resource, verbs of the ClusterRole system:node-proxier of Kubernetes 1.36.
    const NODE_PROXIER: &[(&str, &str, &[&str])] = &[
        ("", "services", &["list", "watch"]),
        ("", "nodes", &["get", "list", "watch"]),
        ("discovery.k8s.io", "endpointslices", &["list", "watch"]),
        ("networking.k8s.io", "servicecidrs", &["list", "watch"]),
        ("", "events", &["create", "patch", "update"]),
        ("events.k8s.io", "events", &["create", "patch", "update"]),
    ];
    let text = read(&format!("{KUBERNETES}/base/rbac.yaml"));
    let mut documents = text.split("\n---\n");
    let role: ClusterRole = object(documents.next().expect("a role"));
    let binding: ClusterRoleBinding = object(documents.next().expect("a binding"));
    let account: ServiceAccount = object(&read(&format!("{KUBERNETES}/base/service-account.yaml")));

    let mut granted = 0;
    for rule in role.rules.expect("rules") {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let allowed = NODE_PROXIER.iter().find(|(g, r, _)| g == group && r == resource);
                let (.., verbs) = allowed.unwrap_or_else(|| panic!("{group}/{resource} is not for a proxy"));
                assert!(rule.verbs.iter().all(|verb| verbs.contains(&verb.as_str())), "{group}/{resource}");
                granted += 1;
            }
        }
    }
    assert_eq!(granted, NODE_PROXIER.len(), "something that is needed is not granted");
    assert_eq!(binding.role_ref.name, role.metadata.name.expect("a name"));
    assert_eq!(binding.subjects.expect("subjects")[0].name, account.metadata.name.expect("a name"));
}

#[test]
fn the_patches_for_kubeadm_are_for_its_container() {
    for file in ["swap-image.yaml", "clean-and-swap.yaml", "swap-back.yaml"] {
        let patch: Value = object(&read(&format!("{KUBERNETES}/kubeadm/{file}")));
        let pod = &patch["spec"]["template"]["spec"];
        let containers: Vec<Container> = serde_yaml::from_value(pod["containers"].clone()).expect("containers");
        let [container] = &containers[..] else { panic!("{file}: one container") };
        assert_eq!(container.name, "kube-proxy", "{file}");
        assert_eq!(container.command, None, "{file} changes the command line");
        assert!(container.image.is_some(), "{file} changes no image");
    }
}
