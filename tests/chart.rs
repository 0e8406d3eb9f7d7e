//! The Helm chart: what it makes by default is `deploy/kubernetes/base`, object by object; its values are the fields of the
//! configuration; and what cannot be used is refused in one line, before anything is installed.

#[path = "support/netns/mod.rs"]
mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nftproxyd::config::{self, DetectLocal, Overrides, field_paths};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// What belongs to the chart, and not to what it makes.
const OF_THE_CHART: [&str; 4] =
    ["app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"];

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(text: &str) -> Vec<Value> {
    let values = serde_yaml::Deserializer::from_str(text).map(|one| Value::deserialize(one).expect("YAML"));
    values.filter(|value| !value.is_null()).collect()
}

fn document(text: &str) -> Value {
    let [value] = &documents(text)[..] else { panic!("one document") };
    value.clone()
}

/// helm or kubectl, as `tests/helm` has unpacked them.
fn program(name: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().expect("it runs");
    let found = here.ancestors().map(|folder| folder.join("helm").join(name)).find(|path| path.is_file());
    if found.is_none() {
        netns::skip(name, "run tests/helm");
    }
    found
}

/// Runs helm with the chart, and with nothing of who runs the test.
fn helm(arguments: &[&str], values: &Value) -> Option<Output> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("values.yaml");
    fs::write(&file, values.to_string()).expect("written");
    let mut command = Command::new(program("helm")?);
    command.args(arguments).arg(in_repository("deploy/chart")).arg("--values").arg(&file);
    command.args(["--namespace", "kube-system"]).env_clear().env("HOME", folder.path());
    Some(command.output().expect("it can be run"))
}

/// What the chart makes of these values.
fn rendered(values: &Value) -> Option<Vec<Value>> {
    let output = helm(&["template", "nftproxyd"], values)?;
    assert!(output.status.success(), "{values}: {}", String::from_utf8_lossy(&output.stderr));
    Some(documents(&String::from_utf8(output.stdout).expect("text")))
}

/// What `kubectl apply --kustomize` would send for a folder.
fn kustomized(folder: &Path) -> Option<Vec<Value>> {
    let output = Command::new(program("kubectl")?).arg("kustomize").arg(folder).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(documents(&String::from_utf8(output.stdout).expect("text")))
}

/// The two values that belong to a cluster, as the base has them.
fn of_the_base() -> Value {
    let config = document(&read(&in_repository("deploy/kubernetes/base/config/config.conf")));
    let kubeconfig = document(&read(&in_repository("deploy/kubernetes/base/config/kubeconfig.conf")));
    json!({
        "apiServer": kubeconfig["clusters"][0]["cluster"]["server"],
        "config": {"clusterCIDR": config["clusterCIDR"]},
    })
}

/// The objects by kind and name, without what belongs to the chart, and with the text of a ConfigMap read.
fn comparable(objects: Vec<Value>) -> BTreeMap<(String, String), Value> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let comparable = objects.into_iter().map(|mut object| {
        without_names_of_the_chart(&mut object);
        if object["kind"] == "ConfigMap" {
            for content in object["data"].as_object_mut().expect("documents").values_mut() {
                *content = document(content.as_str().expect("text"));
            }
        }
        ((text(&object["kind"]), text(&object["metadata"]["name"])), object)
    });
    comparable.collect()
}

/// Also of hashes at the end of names: kustomize's is another one than ours.
fn without_names_of_the_chart(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !OF_THE_CHART.contains(&name.as_str()));
            fields.values_mut().for_each(without_names_of_the_chart);
        }
        Value::Array(items) => items.iter_mut().for_each(without_names_of_the_chart),
        Value::String(text) => {
            if let Some((name, hash)) = text.rsplit_once('-')
                && hash.len() == 10
                && name == "nftproxyd"
            {
                *text = format!("{name}-HASH");
            }
        }
        _ => {}
    }
}

#[test]
fn what_it_makes_by_default_is_the_base() {
    let (Some(chart), Some(base)) = (rendered(&of_the_base()), kustomized(&in_repository("deploy/kubernetes/base")))
    else {
        return;
    };
    let (chart, base) = (comparable(chart), comparable(base));
    assert_eq!(chart.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>());
    assert_eq!(chart.len(), 5);
    for (key, object) in &base {
        assert_eq!(chart[key], *object, "{key:?}: the chart on the left, the base on the right");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let new = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &new);
        } else {
            fs::copy(&path, &new).expect("copied");
        }
    }
}

#[test]
fn with_sysctls_it_is_the_overlay_with_the_component() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&in_repository("deploy/kubernetes"), folder.path());
    let overlay = folder.path().join("overlay");
    fs::create_dir(&overlay).expect("a folder");
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../base"],
        "components": ["../components/conntrack"],
    });
    fs::write(overlay.join("kustomization.yaml"), kustomization.to_string()).expect("written");
    let mut values = of_the_base();
    values["setSysctls"] = true.into();
    let (Some(chart), Some(overlay)) = (rendered(&values), kustomized(&overlay)) else { return };
    let (chart, overlay) = (comparable(chart), comparable(overlay));
    let daemon_set = ("DaemonSet".to_owned(), "nftproxyd".to_owned());
    assert!(overlay[&daemon_set]["spec"]["template"]["spec"]["initContainers"][0].is_object());
    assert_eq!(chart[&daemon_set], overlay[&daemon_set]);
    // What the component asks of who uses it.
    let config = &chart[&("ConfigMap".to_owned(), "nftproxyd-HASH".to_owned())]["data"]["config.conf"];
    assert_eq!(config["conntrack"], Value::Null);
    values["config"]["conntrack"] = json!({"maxPerCore": 65536, "udpTimeout": "10s"});
    let chart = comparable(rendered(&values).expect("helm is there"));
    let config = &chart[&("ConfigMap".to_owned(), "nftproxyd-HASH".to_owned())]["data"]["config.conf"];
    assert_eq!(config["conntrack"], values["config"]["conntrack"]);
}

#[test]
fn the_monitor_is_the_one_beside_the_alerts_and_finds_the_pods() {
    let mut values = of_the_base();
    values["serviceMonitor"] = json!({"enabled": true, "labels": {"release": "prometheus"}});
    values["config"]["metricsBindAddress"] = "0.0.0.0:10250".into();
    let Some(objects) = rendered(&values) else { return };
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).expect("it is there");
    let (service, monitor, daemon_set) = (of_kind("Service"), of_kind("ServiceMonitor"), of_kind("DaemonSet"));
    let is_within = |selector: &Value, labels: &Value| {
        let selector = selector.as_object().expect("labels");
        !selector.is_empty() && selector.iter().all(|(name, value)| labels[name] == *value)
    };
    assert!(is_within(&service["spec"]["selector"], &daemon_set["spec"]["template"]["metadata"]["labels"]));
    assert!(is_within(&monitor["spec"]["selector"]["matchLabels"], &service["metadata"]["labels"]));
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(service["spec"]["ports"][0]["port"], 10250);

    let theirs = documents(&read(&in_repository("deploy/servicemonitor.yaml")));
    for field in ["jobLabel", "endpoints"] {
        assert_eq!(monitor["spec"][field], theirs[1]["spec"][field], "{field}");
    }
    let job = |service: &Value| service["metadata"]["labels"]["k8s-app"].clone();
    assert_eq!(job(service), job(&theirs[0]));
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    for values in [json!({}), of_the_base()] {
        let Some(output) = helm(&["lint", "--strict"], &values) else { return };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !said.contains("[WARNING]"), "{said}");
    }
}

/// The paths of the leaves of a schema of objects.
fn leaves(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        found.insert(path.to_owned());
        return;
    };
    // Whatever is misspelt is refused.
    assert_eq!(schema["additionalProperties"], false, "{path}");
    for (name, schema) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        leaves(schema, &path, found);
    }
}

#[test]
fn its_values_have_every_field_of_the_configuration() {
    let schema: Value = serde_json::from_str(&read(&in_repository("deploy/chart/values.schema.json"))).expect("JSON");
    let mut found = BTreeSet::new();
    leaves(&schema["properties"]["config"], "", &mut found);
    // What the schema has beyond that, the daemon warns of.
    let missing: Vec<_> = field_paths().filter(|field| !found.contains(*field)).collect();
    assert_eq!(missing, Vec::<&str>::new());
    // And every value has a default, but for what Helm adds itself.
    let values = document(&read(&in_repository("deploy/chart/values.yaml")));
    let names = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
    let mut known = names(&schema["properties"]);
    assert!(known.remove("global"));
    assert_eq!(names(&values), known);
}

/// The configuration of a rendered chart, as the daemon reads it.
fn loaded(objects: &[Value]) -> config::Loaded {
    let config_map = objects.iter().find(|object| object["kind"] == "ConfigMap").expect("a ConfigMap");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("config.conf");
    fs::write(&file, config_map["data"]["config.conf"].as_str().expect("text")).expect("written");
    let overrides = Overrides { hostname_override: Some("node-1".to_owned()), ..Overrides::default() };
    config::load(Some(&file), &overrides).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_file_of_kubeadm_can_be_put_into_the_values() {
    let kubeadm = document(&read(&in_repository("testdata/kubeadm/config.conf")));
    let mut values = json!({"apiServer": "https://192.0.2.10:6443", "config": kubeadm});
    let Some(objects) = rendered(&values) else { return };
    let config::Source::Api { kubeconfig, .. } = loaded(&objects).config.source else { panic!("no API server") };
    assert_eq!(kubeconfig, Path::new("/var/lib/nftproxyd/kubeconfig.conf"));

    values["config"] = json!({"mode": "nftables", "clusterCIDR": "10.42.0.0/16,fd00:42::/56"});
    let loaded = loaded(&rendered(&values).expect("helm is there"));
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn what_is_set_arrives() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let mut values = of_the_base();
    for (field, value) in [
        ("image", json!({"repository": "registry.example/nftproxyd", "tag": "1.2.3", "pullPolicy": "Always"})),
        ("imagePullSecrets", json!([{"name": "registry"}])),
        ("extraArgs", json!(["--take-over", "-v=2"])),
        ("resources", json!({"limits": {"memory": "256Mi"}})),
        ("priorityClassName", "mine".into()),
        ("tolerations", json!([{"key": "mine", "operator": "Exists"}])),
        ("podAnnotations", json!({"mine": "true"})),
        ("podLabels", json!({"team": "network"})),
        ("updateStrategy", json!({"type": "OnDelete", "rollingUpdate": null})),
        ("fullnameOverride", "proxy".into()),
    ] {
        values[field] = value;
    }
    values["config"]["healthzBindAddress"] = "[::]:10266".into();
    let Some(objects) = rendered(&values) else { return };
    let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("it is there");
    let (template, spec) = (&daemon_set["spec"]["template"], &daemon_set["spec"]["template"]["spec"]);
    let container = &spec["containers"][0];
    assert_eq!(daemon_set["metadata"]["name"], "proxy");
    assert_eq!(daemon_set["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    assert_eq!(container["image"], "registry.example/nftproxyd:1.2.3");
    assert_eq!(container["imagePullPolicy"], "Always");
    let arguments = container["args"].as_array().expect("arguments");
    assert_eq!(arguments[arguments.len() - 2..], [json!("--take-over"), json!("-v=2")]);
    assert_eq!(container["ports"][0], json!({"name": "healthz", "containerPort": 10266}));
    assert_eq!(container["resources"]["limits"]["memory"], "256Mi");
    assert_eq!(spec["imagePullSecrets"], values["imagePullSecrets"]);
    assert_eq!(spec["priorityClassName"], "mine");
    assert_eq!(spec["tolerations"], values["tolerations"]);
    assert_eq!(template["metadata"]["annotations"]["mine"], "true");
    assert_eq!(template["metadata"]["labels"]["team"], "network");
    // All that names another object names one of these.
    let names: Vec<_> = objects.iter().map(|object| &object["metadata"]["name"]).collect();
    assert!(names.contains(&&spec["volumes"][0]["configMap"]["name"]), "{names:?}");
    let binding = objects.iter().find(|object| object["kind"] == "ClusterRoleBinding").expect("it is there");
    for name in [&spec["serviceAccountName"], &binding["roleRef"]["name"], &binding["subjects"][0]["name"]] {
        assert_eq!(name, "proxy");
    }

    values["image"] = json!({"digest": digest});
    let objects = rendered(&values).expect("helm is there");
    let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("it is there");
    let image = &daemon_set["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(*image, format!("nftproxyd@{digest}"));
}

/// As `config::load` has it: a proxy with a name leaves kube-proxy's ports to kube-proxy.
#[test]
fn the_ports_of_a_trial_are_those_that_it_uses() {
    let mut values = of_the_base();
    values["config"]["serviceProxyName"] = "trial".into();
    for (health, metrics) in
        [("0.0.0.0:10256", "127.0.0.1:10249"), ("", ""), ("0.0.0.0", "0.0.0.0:9"), ("[::]:10249", "[::1]:8")]
    {
        values["config"]["healthzBindAddress"] = health.into();
        values["config"]["metricsBindAddress"] = metrics.into();
        let Some(objects) = rendered(&values) else { return };
        let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("it is there");
        let ports = &daemon_set["spec"]["template"]["spec"]["containers"][0]["ports"];
        let config = loaded(&objects).config;
        let expected = [config.healthz_bind_address.expect("it is served").port(), config.metrics_bind_address.port()];
        let found = [0, 1].map(|nth| ports[nth]["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok()));
        assert_eq!(found, expected.map(Some), "{health} {metrics}");
    }
}

/// A change of the configuration is another ConfigMap, so that it rolls the pods and stops at the first that it does not suit.
#[test]
fn another_configuration_has_another_name() {
    let name = |values: &Value| {
        let objects = rendered(values)?;
        let config_map = objects.iter().find(|object| object["kind"] == "ConfigMap").expect("a ConfigMap");
        Some(config_map["metadata"]["name"].as_str().expect("a name").to_owned())
    };
    let mut values = of_the_base();
    let Some(first) = name(&values) else { return };
    assert_eq!(name(&values).as_ref(), Some(&first));
    values["config"]["mode"] = "iptables".into();
    assert_ne!(name(&values), Some(first));
}

#[test]
fn what_cannot_be_used_is_refused_with_its_name() {
    let good = of_the_base();
    for (path, value, expected) in [
        ("apiServer", json!(""), "apiServer: set the URL of the API server"),
        ("apiServer", json!("192.0.2.10:6443"), "'/apiServer'"),
        ("config/mode", json!("ebpf"), "'/config/mode'"),
        ("config/clusterCidr", json!("10.0.0.0/8"), "'clusterCidr' not allowed"),
        ("config/clusterCIDR", json!("10.0.0.0"), "'/config/clusterCIDR'"),
        ("config/nodePortAddresses", json!("primary"), "'/config/nodePortAddresses'"),
        (
            "config/conntrack",
            json!({"maxPerCore": 32768}),
            "config.conntrack.maxPerCore: a container that is not privileged",
        ),
        ("config/conntrack", json!({"udpTimeout": "soon"}), "'/config/conntrack/udpTimeout'"),
        ("image/digest", json!("latest"), "'/image/digest'"),
        ("tolerations", json!({}), "'/tolerations'"),
        ("extraArgs", json!(["take-over"]), "'/extraArgs/0'"),
        ("serviceMonitor/enabled", json!(true), "Prometheus cannot reach config.metricsBindAddress"),
        ("replicas", json!(2), "'replicas' not allowed"),
    ] {
        let mut values = good.clone();
        let mut place = &mut values;
        for name in path.split('/') {
            place = &mut place[name];
        }
        *place = value;
        let Some(output) = helm(&["template", "nftproxyd"], &values) else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{path} is accepted");
        assert!(said.contains(expected), "{path}: {said}");
    }
}

/// The commands with the chart on the page, with what they set.
#[test]
fn the_commands_of_the_page_are_accepted() {
    let page = read(&in_repository("deploy/install.md")).replace("\\\n", " ");
    let commands: Vec<_> = page.lines().filter(|line| line.contains("helm install nftproxyd deploy/chart ")).collect();
    assert!(commands.len() >= 6, "{commands:?}");
    for command in commands {
        let words: Vec<_> = command.split_whitespace().collect();
        let settings = words.windows(2).filter(|pair| pair[0] == "--set").flatten().map(|word| word.trim_matches('\''));
        let arguments: Vec<_> = ["template", "nftproxyd"].into_iter().chain(settings).collect();
        assert!(arguments.iter().any(|argument| argument.starts_with("apiServer=https://")), "{command}");
        let Some(output) = helm(&arguments, &json!({})) else { return };
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        let objects = documents(&String::from_utf8(output.stdout).expect("text"));
        let DetectLocal::ClusterCidr(ranges) = loaded(&objects).config.detect_local else { panic!("{command}") };
        assert!(ranges.v4.is_some(), "{command}");
    }
}
