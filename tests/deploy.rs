//! What is in `deploy/` is what the program and Kubernetes understand.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use nftproxyd::config::{self, Overrides, Source};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

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
        // Those of the chart: tests/chart.rs renders them.
        if path.ends_with("chart/templates") {
            continue;
        }
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
        (&container.readiness_probe, "/readyz"),
    ] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("a probe by HTTP");
        assert_eq!(get.path.as_deref(), Some(path));
    }
    assert!(container.ports.iter().flatten().any(|port| port.container_port == 10256));
}

/// That this is what the daemon asks is held by a test with the daemon.
#[test]
fn the_rights_are_what_is_asked_and_no_more_than_those_of_a_node_proxier() {
    // API group, resource, verbs: all of them are in the ClusterRole system:node-proxier of Kubernetes 1.36.
    const ASKED: [(&str, &str, &[&str]); 5] = [
        ("", "services", &["list", "watch"]),
        ("", "nodes", &["list", "watch"]),
        ("discovery.k8s.io", "endpointslices", &["list", "watch"]),
        ("networking.k8s.io", "servicecidrs", &["list", "watch"]),
        // The same Event again is counted in the first one, by a patch.
        ("events.k8s.io", "events", &["create", "patch"]),
    ];
    let text = read(&format!("{KUBERNETES}/base/rbac.yaml"));
    let mut documents = text.split("\n---\n");
    let role: ClusterRole = object(documents.next().expect("a role"));
    let binding: ClusterRoleBinding = object(documents.next().expect("a binding"));
    let account: ServiceAccount = object(&read(&format!("{KUBERNETES}/base/service-account.yaml")));

    let rules = role.rules.expect("rules");
    let mut granted = Vec::new();
    for rule in &rules {
        let verbs: Vec<&str> = rule.verbs.iter().map(String::as_str).collect();
        for group in rule.api_groups.iter().flatten() {
            let resources = rule.resources.iter().flatten();
            granted.extend(resources.map(|resource| (group.as_str(), resource.as_str(), verbs.clone())));
        }
    }
    assert_eq!(granted, ASKED.map(|(group, resource, verbs)| (group, resource, verbs.to_vec())));
    assert_eq!(binding.role_ref.name, role.metadata.name.expect("a name"));
    assert_eq!(binding.subjects.expect("subjects")[0].name, account.metadata.name.expect("a name"));
}

#[test]
fn the_patches_for_kubeadm_are_for_its_container() {
    let kubeadm: Vec<String> = read("testdata/kubeadm/command").lines().map(str::to_owned).collect();
    let taking_over: Vec<String> = kubeadm.iter().cloned().chain(["--take-over".to_owned()]).collect();
    for (file, command) in [
        ("swap-image.yaml", None),
        ("take-over.yaml", Some(taking_over)),
        ("clean-and-swap.yaml", None),
        ("swap-back.yaml", Some(kubeadm)),
    ] {
        let patch: Value = object(&read(&format!("{KUBERNETES}/kubeadm/{file}")));
        let pod = &patch["spec"]["template"]["spec"];
        let containers: Vec<Container> = serde_yaml::from_value(pod["containers"].clone()).expect("containers");
        let names: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
        assert!(names.iter().all(|name| ["kube-proxy", "clean-nftproxyd"].contains(name)), "{file}: {names:?}");
        let container = containers.iter().find(|container| container.name == "kube-proxy").expect("it is there");
        assert_eq!(container.command, command, "{file}: the command line is kubeadm's");
        assert!(container.image.is_some(), "{file} changes no image");
    }
}

/// Applies a patch as `kubectl patch` does (a strategic merge), as far as the patches in `deploy/` go: objects are
/// merged, `null` deletes, and of the lists of a pod those are merged that have a key.
fn patched(object: &Value, patch: &Value) -> Value {
    let (Value::Mapping(old), Value::Mapping(patch)) = (object, patch) else { return patch.clone() };
    let mut merged = old.clone();
    for (field, change) in patch {
        let key = match field.as_str() {
            Some("containers" | "initContainers" | "volumes" | "env") => Some("name"),
            Some("volumeMounts") => Some("mountPath"),
            _ => None,
        };
        match (merged.get(field), change, key) {
            (_, Value::Null, _) => drop(merged.remove(field)),
            (old, Value::Sequence(changes), Some(key)) => {
                let old = old.and_then(Value::as_sequence).cloned().unwrap_or_default();
                merged.insert(field.clone(), merged_list(old, changes, key).into());
            }
            (old, change, _) => {
                let value = patched(old.unwrap_or(&Value::Mapping(Mapping::new())), change);
                merged.insert(field.clone(), value);
            }
        }
    }
    Value::Mapping(merged)
}

fn merged_list(mut list: Vec<Value>, changes: &[Value], key: &str) -> Vec<Value> {
    let mut new = Vec::new();
    for change in changes {
        let place = list.iter().position(|item| item[key] == change[key]);
        match (place, change["$patch"].as_str()) {
            (Some(place), Some("delete")) => drop(list.remove(place)),
            (None, Some("delete")) => {}
            (Some(place), _) => list[place] = patched(&list[place], change),
            (None, _) => new.push(change.clone()),
        }
    }
    // kubectl puts what is new first.
    new.into_iter().chain(list).collect()
}

/// kubeadm's DaemonSet after these patches, one after the other.
fn kubeadm_after(patches: &[&str]) -> (Value, PodSpec) {
    let mut object: Value = object(&read("testdata/kubeadm/daemonset.yaml"));
    for file in patches {
        let patch = self::object(&read(&format!("{KUBERNETES}/kubeadm/{file}.yaml")));
        object = patched(&object, &patch);
    }
    let pod = pod_of(serde_yaml::from_value(object.clone()).unwrap_or_else(|error| panic!("{patches:?}: {error}")));
    (object, pod)
}

#[test]
fn the_patches_for_kubeadm_change_the_image_and_nothing_of_the_command_line() {
    let (original, pod) = kubeadm_after(&[]);
    let command = fs::read_to_string(in_repository("testdata/kubeadm/command")).expect("it can be read");
    let command: Vec<_> = command.lines().map(str::to_owned).collect();
    assert_eq!(pod.containers[0].command.as_ref(), Some(&command));

    let proxy = |pod: &PodSpec| pod.containers.iter().find(|it| it.name == "kube-proxy").cloned().expect("it is there");
    let image = |pod: &PodSpec| proxy(pod).image.expect("an image");
    // What is there beside it, in its order.
    let beside = |pod: &PodSpec| {
        let all = pod.init_containers.iter().flatten().chain(&pod.containers);
        let names = all.map(|container| container.name.clone()).filter(|name| name != "kube-proxy");
        names.collect::<Vec<_>>().join(" ")
    };
    let ours = "nftproxyd:0.1.0";
    let theirs = image(&pod);
    for (patches, expected_image, expected_beside) in [
        (&["swap-image"][..], ours, ""),
        (&["clean-and-swap"], ours, "clean-kube-proxy"),
        (&["clean-and-swap", "clean-done"], ours, ""),
        (&["swap-image", "swap-back"], theirs.as_str(), "clean-nftproxyd"),
        (&["clean-and-swap", "swap-back"], theirs.as_str(), "clean-nftproxyd"),
        // Once more: nobody may remove the new rules at every start.
        (&["swap-image", "swap-back", "swap-image"], ours, ""),
        (&["swap-image", "swap-back", "clean-and-swap", "clean-done"], ours, ""),
        (&["take-over"], ours, ""),
        (&["take-over", "swap-back"], theirs.as_str(), "clean-nftproxyd"),
        (&["swap-image", "swap-back", "take-over"], ours, ""),
        (&["take-over", "swap-image"], ours, ""),
        (&["take-over", "swap-back", "back-done"], &theirs, ""),
        (&["take-over", "swap-back", "back-done", "take-over"], ours, ""),
    ] {
        let (_, pod) = kubeadm_after(patches);
        assert_eq!((image(&pod).as_str(), beside(&pod).as_str()), (expected_image, expected_beside), "{patches:?}");
        let container = proxy(&pod);
        // Once told to take over, it stays told until the way back.
        let taking_over = patches.contains(&"take-over") && expected_image == ours;
        let told = taking_over.then(|| "--take-over".to_owned());
        let expected: Vec<_> = command.iter().cloned().chain(told).collect();
        assert_eq!(container.command.as_ref(), Some(&expected), "{patches:?}");
        assert_eq!(container.liveness_probe.is_some(), expected_image == ours, "{patches:?}");
        // A rollout goes on when a take-over is done, which /healthz does not say.
        let ready = container.readiness_probe.and_then(|probe| probe.http_get?.path);
        assert_eq!(ready.as_deref(), (expected_image == ours).then_some("/readyz"), "{patches:?}");
        // What is mounted is there.
        let volumes: Vec<_> = pod.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
        let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
        for mount in containers.flat_map(|container| container.volume_mounts.iter().flatten()) {
            assert!(volumes.contains(&mount.name.as_str()), "{patches:?}: {}", mount.name);
        }
    }
    // The way back ends where it began.
    let (mut back, _) = kubeadm_after(&["swap-image", "swap-back", "back-done"]);
    let pod = back["spec"]["template"]["spec"].as_mapping_mut().expect("an object");
    assert_eq!(pod.remove("initContainers"), Some(Value::Sequence(Vec::new())), "kubectl leaves no empty list");
    assert_eq!(back, original);
}

#[test]
fn every_file_that_a_kustomization_names_is_there() {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kustomization {
        #[serde(default)]
        resources: Vec<String>,
        #[serde(default)]
        patches: Vec<Patch>,
        #[serde(default)]
        config_map_generator: Vec<Generator>,
    }
    #[derive(Deserialize)]
    struct Patch {
        path: String,
    }
    #[derive(Deserialize)]
    struct Generator {
        files: Vec<String>,
    }
    for folder in ["base", "components/conntrack"] {
        let folder = format!("{KUBERNETES}/{folder}");
        let kustomization: Kustomization = object(&read(&format!("{folder}/kustomization.yaml")));
        let patches: Vec<_> = kustomization.patches.into_iter().map(|patch| patch.path).collect();
        let files: Vec<_> = kustomization.config_map_generator.into_iter().flat_map(|it| it.files).collect();
        let named: Vec<_> = kustomization.resources.iter().chain(&patches).chain(&files).collect();
        assert!(!named.is_empty(), "{folder}");
        for file in named {
            assert!(in_repository(&format!("{folder}/{file}")).is_file(), "{folder}/{file}");
        }
        // A patch is for an object of the base.
        for patch in patches {
            let patch: Value = object(&read(&format!("{folder}/{patch}")));
            let base: Value = object(&read(&format!("{KUBERNETES}/base/daemonset.yaml")));
            for field in ["apiVersion", "kind"] {
                assert_eq!(patch[field], base[field], "{folder}");
            }
            assert_eq!(patch["metadata"]["name"], base["metadata"]["name"], "{folder}");
            let pod = pod_of(serde_yaml::from_value(patched(&base, &patch)).expect("a DaemonSet"));
            assert_eq!(pod.init_containers.expect("one more")[0].name, "sysctls");
            assert_eq!(pod.containers.len(), 1);
        }
    }
}

#[test]
fn the_version_is_the_same_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    let mut files = Vec::new();
    files_below(&in_repository(KUBERNETES), &mut files);
    let mut named = 0;
    let others = ["deploy/Containerfile", "deploy/chart/Chart.yaml", "README.md"].map(in_repository);
    for file in files.into_iter().chain(others) {
        let text = fs::read_to_string(&file).expect("text");
        for before in ["image: nftproxyd:", "newTag: ", "--tag nftproxyd:", "\nversion: ", "\nappVersion: "] {
            for after in text.split(before).skip(1) {
                let tag = after.split_whitespace().next();
                assert_eq!(tag, Some(version), "{}: {before}", file.display());
                named += 1;
            }
        }
    }
    // Names of files on the page.
    let page = read("deploy/install.md");
    for after in ["nftproxyd-", "nftproxyd_", "nftproxyd:"].iter().flat_map(|before| page.split(before).skip(1)) {
        if after.starts_with(|first: char| first.is_ascii_digit()) {
            assert!(after.starts_with(version), "deploy/install.md: {}", after.lines().next().unwrap_or_default());
            named += 1;
        }
    }
    assert!(named >= 18, "only {named} images were found");
    let changelog = read("deploy/debian/changelog");
    assert!(changelog.starts_with(&format!("nftproxyd ({version}-1) ")), "{changelog}");
}

#[test]
fn the_unit_reloads_by_a_signal_that_the_manual_knows() {
    let unit = read("deploy/nftproxyd.service");
    let reload = unit.lines().find_map(|line| line.strip_prefix("ExecReload=")).expect("it can be reloaded");
    let signal = reload.strip_prefix("/bin/kill -").and_then(|rest| rest.strip_suffix(" $MAINPID"));
    let signal = signal.expect("by a signal to the daemon");
    let manual = read("man/nftproxyd.8");
    assert!(manual.contains(&format!(".It Dv SIG{signal}\nRead the configuration file again")), "{signal}");
}

/// The DaemonSet of a trial serves what is labelled for it, and leaves kube-proxy's ports to kube-proxy.
#[test]
fn a_trial_has_a_name_and_ports_of_its_own() {
    let kustomization: Value = object(&read(&format!("{KUBERNETES}/components/trial/kustomization.yaml")));
    let patch: Value = object(kustomization["patches"][0]["patch"].as_str().expect("a text"));
    let patch = serde_json::to_value(patch).expect("JSON");
    let base: Value = object(&read(&format!("{KUBERNETES}/base/daemonset.yaml")));
    let mut daemon_set = serde_json::to_value(base).expect("JSON");
    for change in patch.as_array().expect("a list") {
        let path = change["path"].as_str().expect("a path");
        match path.strip_suffix("/-") {
            Some(list) => {
                let list = daemon_set.pointer_mut(list).and_then(|list| list.as_array_mut()).expect(path);
                list.push(change["value"].clone());
            }
            None => *daemon_set.pointer_mut(path).expect(path) = change["value"].clone(),
        }
    }
    let pod = pod_of(serde_json::from_value(daemon_set).expect("a DaemonSet"));
    let args = pod.containers[0].args.clone().expect("arguments");
    let name = args.iter().find_map(|arg| arg.strip_prefix("--service-proxy-name="));
    let overrides = Overrides {
        hostname_override: Some("node-1".to_owned()),
        service_proxy_name: name.map(str::to_owned),
        ..Overrides::default()
    };
    let file = in_repository(&format!("{KUBERNETES}/base/config/config.conf"));
    let config = config::load(Some(&file), &overrides).expect("it can be used").config;
    assert_eq!(config.service_proxy_name.as_deref(), Some("trial"));
    let ports: Vec<_> =
        pod.containers[0].ports.iter().flatten().map(|port| (port.name.as_deref(), port.container_port)).collect();
    let health = config.healthz_bind_address.expect("it is served").port();
    let expected =
        [(Some("healthz"), i32::from(health)), (Some("metrics"), i32::from(config.metrics_bind_address.port()))];
    assert_eq!(ports, expected);
}
