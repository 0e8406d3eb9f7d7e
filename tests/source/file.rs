//! A folder of manifests as a source.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nftproxyd::model::Event;
use nftproxyd::source::file::{FolderError, REMOVAL_GRACE, load_once, watch};
use tempfile::TempDir;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;

use crate::support::{DEADLINE, NODE, Picture, converter};

/// Makes a document with a Service in the namespace `default`.
fn service(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {address}, ports: [{{port: 80}}]}}\n"
    )
}

/// A document with a Service that has a faulty field.
fn faulty(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: many}}]}}\n")
}

/// A folder, and a source at work on it.
struct Watched {
    root: TempDir,
    picture: Picture,
    events: Receiver<Event>,
    task: JoinHandle<Result<(), FolderError>>,
    barriers: usize,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    /// Watches the folder `manifests`, which holds these files.
    async fn start(files: &[(&str, String)]) -> Watched {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = root.path().join("manifests");
        fs::create_dir(&folder).expect("created");
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("written");
        }
        let (sender, events) = channel(16);
        let task = tokio::spawn(watch(folder, NODE.to_owned(), converter(), sender));
        let mut watched = Watched { root, picture: Picture::default(), events, task, barriers: 0 };
        watched.until("the folder is listed", Picture::listed).await;
        watched
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("removed");
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Picture) -> bool) {
        self.picture.until(&mut self.events, what, done).await;
    }

    async fn until_service(&mut self, name: &str, address: Option<&str>) {
        let what = format!("Service {name} has {address:?}");
        let name = format!("default/{name}");
        self.until(&what, |picture| picture.services.get(&name).map(String::as_str) == address).await;
    }

    async fn until_report(&mut self, object: &str, text: &str) {
        let what = format!("{object} is reported with {text}");
        let matches = |lines: &Vec<String>| lines.iter().any(|line| line.contains(text));
        self.until(&what, |picture| picture.rejects.get(object).is_some_and(matches)).await;
    }

    async fn until_no_reports(&mut self) {
        self.until("there are no reports", |picture| picture.rejects.is_empty()).await;
    }

    /// Waits until all that was done to the folder before has had its effect.
    async fn settle(&mut self) {
        self.barriers += 1;
        let name = format!("barrier-{}", self.barriers);
        self.write("zz-barrier.yaml", &service(&name, "10.9.9.9"));
        self.until_service(&name, Some("10.9.9.9")).await;
        self.remove("zz-barrier.yaml");
        self.until_service(&name, None).await;
    }
}

fn load(folder: &Path) -> Picture {
    let mut picture = Picture::default();
    load_once(folder, NODE, converter(), &mut |event| picture.apply(event)).expect("it can be read");
    picture
}

#[test]
fn everything_that_a_manifest_can_hold() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
    write("several.yaml", &format!("# two\n{}{}", service("a", "10.0.0.1"), service("b", "10.0.0.2")));
    write(
        "list.yml",
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: c, namespace: shop}, spec: {clusterIP: 10.0.0.3, ports: [{port: 80}]}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: x}}\n",
    );
    write(
        "typed.json",
        r#"{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "d"}, "spec": {"clusterIP": "10.0.0.4", "ports": [{"port": 80}]}}]}"#,
    );
    write(
        "slice.json",
        r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "a-1", "labels": {"kubernetes.io/service-name": "a"}}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"]}]}
        {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.0.0.0/16"]}}"#,
    );
    write(
        "nodes.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: worker-a, labels: {topology.kubernetes.io/zone: z}}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: worker-b}\n",
    );
    write(
        "not-proxied.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: e}\nspec: {clusterIP: None}\n---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: f}\n",
    );
    write(".hidden.yaml", &service("hidden", "10.0.0.9"));
    write("editor.yaml~", &service("backup", "10.0.0.9"));
    write("notes.txt", &service("text", "10.0.0.9"));
    fs::create_dir(folder.path().join("sub")).expect("created");
    write("sub/deep.yaml", &service("deep", "10.0.0.9"));

    let picture = load(folder.path());
    assert!(picture.listed());
    assert_eq!(picture.rejects, [].into());
    let services =
        [("default/a", "10.0.0.1"), ("default/b", "10.0.0.2"), ("default/d", "10.0.0.4"), ("shop/c", "10.0.0.3")];
    assert_eq!(picture.services.iter().map(|(name, at)| (name.as_str(), at.as_str())).collect::<Vec<_>>(), services);
    assert_eq!(picture.slices, [("default/a-1".to_owned(), 1)].into());
    assert_eq!(picture.node, Some(Some("z".to_owned())));
    assert_eq!(picture.service_cidrs, ["kubernetes".to_owned()].into());
}

#[test]
fn faults_are_named() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("f.yaml", "a: [", "file f.yaml, document 1", "the document: not YAML ("),
        ("f.yaml", &format!("{}---\na: ]\n", service("a", "10.0.0.1")), "file f.yaml, document 2", "not YAML"),
        (
            "f.json",
            "{",
            "file f.json, document 1",
            "the document: not JSON (EOF while parsing an object at line 1 column 1)",
        ),
        ("f.yaml", "text", "file f.yaml, document 1", "the document: is not an object"),
        ("f.yaml", "kind: Service", "file f.yaml, document 1", "apiVersion: is missing"),
        ("f.yaml", "apiVersion: v1", "file f.yaml, document 1", "kind: is missing"),
        ("f.yaml", "apiVersion: v1\nkind: Service", "file f.yaml, document 1", "metadata.name: is missing"),
        ("f.yaml", &service("a/b", "10.0.0.1"), "file f.yaml, document 1", "metadata.name: \"a/b\" is not a name"),
        (
            "f.yaml",
            &faulty("a"),
            "file f.yaml, document 1",
            "spec.ports[0].port: Service default/a: invalid type: string \"many\"",
        ),
        (
            "f.yaml",
            "apiVersion: v1\nkind: List\nitems:\n- 5\n",
            "file f.yaml, document 1",
            "items[0]: is not an object",
        ),
        ("f.yaml", "apiVersion: v1\nkind: List\nitems: x\n", "file f.yaml, document 1", "items: is not a list"),
        (
            "f.yaml",
            "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  spec: {type: 5}\n",
            "file f.yaml, document 1",
            "items[0].spec.type: Service default/a: 5 is a number; write \"5\"; the object is not used",
        ),
        (
            "f.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: 123}",
            "file f.yaml, document 1",
            "metadata.name: 123 is a number; write \"123\"; the Service is not used",
        ),
        (
            "f.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: off}",
            "file f.yaml, document 1",
            "metadata.namespace: off is a switch (true or false); write \"off\"; the Service is not used",
        ),
        (
            "f.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: on}}",
            "file f.yaml, document 1",
            "metadata.labels.service.kubernetes.io/service-proxy-name: Service default/a: on is a switch (true or false); write \"on\"",
        ),
        (
            "f.yaml",
            "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: ClusterIP\n  type: NodePort\n",
            "file f.yaml, document 1",
            "the document: has keys that come twice: spec.type (lines 6 and 7); the document is not used",
        ),
        (
            "f.json",
            r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a"}, "kind": "Service"}"#,
            "file f.json, document 1",
            "the document: has keys that come twice: kind; the document is not used",
        ),
        (
            "f.yaml",
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}\n",
            "file f.yaml, document 1",
            "apiVersion: EndpointSlice default/a: discovery.k8s.io/v1beta1 is not read; write discovery.k8s.io/v1",
        ),
    ];
    for (name, text, object, report) in cases {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join(name), text).expect("written");
        fs::write(folder.path().join("good.yaml"), service("good", "10.0.0.5")).expect("written");
        let picture = load(folder.path());
        let lines = picture.rejects.get(*object).unwrap_or_else(|| panic!("{text}: {:?}", picture.rejects));
        assert!(lines.len() == 1 && lines[0].contains(report), "{text}: {lines:?}");
        assert!(picture.services.contains_key("default/good"), "{text}");
    }
}

#[test]
fn a_folder_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = folder.path().join("missing");
    let err = load_once(&missing, NODE, converter(), &mut |_| ()).expect_err("it is missing");
    assert!(err.to_string().contains(&missing.display().to_string()), "{err}");
}

#[tokio::test]
async fn a_folder_that_is_missing_at_start_is_an_error() {
    let (sender, _events) = channel(16);
    let watch = watch("/nowhere/at-all".into(), NODE.to_owned(), converter(), sender);
    let result = tokio::time::timeout(DEADLINE, watch).await.expect("it answers");
    assert!(matches!(&result, Err(FolderError::Unreadable { .. })), "{result:?}");
}

#[tokio::test]
async fn files_that_come_change_and_go() {
    let mut watched = Watched::start(&[("a.yaml", service("a", "10.0.0.1"))]).await;
    watched.until_service("a", Some("10.0.0.1")).await;
    watched.write("b.yaml", &service("b", "10.0.0.2"));
    watched.until_service("b", Some("10.0.0.2")).await;
    watched.write("a.yaml", &service("a", "10.0.1.1"));
    watched.until_service("a", Some("10.0.1.1")).await;
    watched.remove("b.yaml");
    watched.until_service("b", None).await;

    // Replaced in one step, by a name that is not read.
    watched.write(".a.yaml.new", &service("a", "10.0.2.1"));
    fs::rename(watched.path(".a.yaml.new"), watched.path("a.yaml")).expect("renamed");
    watched.until_service("a", Some("10.0.2.1")).await;
    // Moved in and out.
    let outside = watched.root.path().join("outside.yaml");
    fs::write(&outside, service("c", "10.0.0.3")).expect("written");
    fs::rename(&outside, watched.path("c.yaml")).expect("renamed");
    watched.until_service("c", Some("10.0.0.3")).await;
    fs::rename(watched.path("c.yaml"), &outside).expect("renamed");
    watched.until_service("c", None).await;
    // Linked.
    symlink(&outside, watched.path("soft.yaml")).expect("linked");
    watched.until_service("c", Some("10.0.0.3")).await;
    watched.remove("soft.yaml");
    watched.until_service("c", None).await;
    fs::hard_link(&outside, watched.path("hard.yaml")).expect("linked");
    watched.until_service("c", Some("10.0.0.3")).await;

    for number in 0..200 {
        watched.write(&format!("many-{number}.yaml"), &service(&format!("many-{number}"), "10.0.3.3"));
    }
    watched.until("all are there", |picture| picture.services.len() == 202).await;
    for number in 0..200 {
        watched.remove(&format!("many-{number}.yaml"));
    }
    watched.until("all are gone", |picture| picture.services.len() == 2).await;
    assert!(watched.picture.rejects.is_empty());
    assert!(watched.picture.lists.values().all(|&lists| lists == 1));
}

#[tokio::test]
async fn what_moves_between_files_is_never_gone() {
    let mut watched = Watched::start(&[("m.yaml", service("a", "10.0.0.1"))]).await;
    for to in ["z.yaml", "b.yaml", "m.yaml"] {
        let from = fs::read_dir(watched.path("")).expect("read").next().expect("one file").expect("read").path();
        fs::rename(from, watched.path(to)).expect("renamed");
        watched.write("other.yaml", &service("other", "10.0.0.9"));
        watched.until_service("other", Some("10.0.0.9")).await;
        watched.remove("other.yaml");
        watched.until_service("other", None).await;
        assert!(watched.picture.rejects.is_empty(), "{:?}", watched.picture.rejects);
    }
    // As editors do it: away, then written anew.
    let began = Instant::now();
    watched.remove("m.yaml");
    watched.write("m.yaml", &service("a", "10.0.0.2"));
    let in_time = began.elapsed() < REMOVAL_GRACE;
    watched.until_service("a", Some("10.0.0.2")).await;
    // On a machine so busy that these two steps took too long, that it is gone for a moment is right.
    assert!(!in_time || !watched.picture.gone.contains(&"default/a".to_owned()), "{:?}", watched.picture.gone);
}

#[tokio::test]
async fn the_later_file_wins_and_the_other_comes_back() {
    let mut watched = Watched::start(&[("b.yaml", service("a", "10.0.0.2"))]).await;
    watched.write("a.yaml", &service("a", "10.0.0.1"));
    watched
        .until_report("file a.yaml, document 1", "Service default/a is not used from here: it is also in file b.yaml")
        .await;
    assert_eq!(watched.picture.services["default/a"], "10.0.0.2");
    watched.write("c.yaml", &service("a", "10.0.0.3"));
    watched.until_service("a", Some("10.0.0.3")).await;
    watched.until_report("file b.yaml, document 1", "file c.yaml").await;
    watched.until_report("file a.yaml, document 1", "file c.yaml").await;

    watched.write("b.yaml", &service("b", "10.0.0.9"));
    watched.until("b.yaml is no longer reported", |picture| picture.rejects.len() == 1).await;
    watched.remove("c.yaml");
    watched.until_service("a", Some("10.0.0.1")).await;
    watched.until_no_reports().await;

    // Within one file, and back.
    watched.write("a.yaml", &format!("{}{}", service("a", "10.0.0.1"), service("a", "10.0.0.8")));
    watched.until_service("a", Some("10.0.0.8")).await;
    watched.until_report("file a.yaml, document 1", "it is also in document 2").await;
    watched.write("a.yaml", &service("a", "10.0.0.1"));
    watched.until_service("a", Some("10.0.0.1")).await;
    watched.until_no_reports().await;
    assert!(!watched.picture.gone.contains(&"default/a".to_owned()), "{:?}", watched.picture.gone);
}

#[tokio::test]
async fn what_was_said_stays_in_force_while_a_document_is_faulty() {
    let text = |middle: &str, last: &str| format!("{}{middle}{}", service("first", "10.0.0.1"), service("last", last));
    let mut watched = Watched::start(&[("f.yaml", text(&service("middle", "10.0.0.2"), "10.0.0.3"))]).await;
    // The object is faulty, or nothing of the document can be told; the others follow.
    for (round, fault) in
        [faulty("middle"), "---\na: [\n".to_owned(), "---\nkind: Service\n".to_owned()].iter().enumerate()
    {
        let last = format!("10.0.1.{round}");
        watched.write("f.yaml", &text(fault, &last));
        watched.until_service("last", Some(&last)).await;
        watched.until("it is reported", |picture| picture.rejects.contains_key("file f.yaml, document 2")).await;
        assert_eq!(watched.picture.services["default/middle"], "10.0.0.2");
        // Another document of the file goes, later than the fault came.
        watched.write("f.yaml", &format!("{}{fault}", service("first", "10.0.0.1")));
        watched.until_service("last", None).await;
        assert_eq!(watched.picture.services["default/middle"], "10.0.0.2");
        watched.write("f.yaml", &text(&service("middle", "10.0.0.2"), "10.0.0.3"));
        watched.until_no_reports().await;
        watched.until_service("last", Some("10.0.0.3")).await;
    }
    assert!(!watched.picture.gone.contains(&"default/middle".to_owned()));
    // A faulty document that goes takes with it what it held on to.
    watched.write("f.yaml", &text("---\na: [\n", "10.0.0.3"));
    watched.until_report("file f.yaml, document 2", "not YAML").await;
    watched.write("f.yaml", &text("", "10.0.0.3"));
    watched.until_service("middle", None).await;
    watched.until_no_reports().await;
}

/// Puts something that is no file in the place of `a.yaml`.
fn replace_by_a_folder(watched: &Watched) {
    let elsewhere = watched.path(".link");
    symlink(watched.root.path(), &elsewhere).expect("linked");
    fs::rename(elsewhere, watched.path("a.yaml")).expect("renamed");
}

#[tokio::test]
async fn what_was_said_stays_in_force_while_a_file_is_unreadable() {
    let mut watched = Watched::start(&[("a.yaml", service("a", "10.0.0.1"))]).await;
    replace_by_a_folder(&watched);
    watched.until_report("file a.yaml", "cannot be read").await;
    assert_eq!(watched.picture.services["default/a"], "10.0.0.1");
    watched.remove("a.yaml");
    watched.write("a.yaml", &service("a", "10.0.0.2"));
    watched.until_service("a", Some("10.0.0.2")).await;
    watched.until_no_reports().await;
    replace_by_a_folder(&watched);
    watched.until_report("file a.yaml", "cannot be read").await;
    watched.remove("a.yaml");
    watched.until_service("a", None).await;
    watched.until_no_reports().await;
}

#[tokio::test]
async fn a_byte_that_is_no_utf_8_spoils_one_document() {
    let mut watched =
        Watched::start(&[("a.yaml", format!("{}{}", service("a", "10.0.0.1"), service("b", "10.0.0.2")))]).await;
    let mut text = format!("{}# ", service("a", "10.0.0.1")).into_bytes();
    text.push(0xff);
    text.extend(format!("\n{}", service("b", "10.0.1.2")).as_bytes());
    fs::write(watched.path("a.yaml"), text).expect("written");
    watched.until_service("b", Some("10.0.1.2")).await;
    watched
        .until_report("file a.yaml, document 1", "the document: not UTF-8 (the byte 0xff in line 6); the document")
        .await;
    assert_eq!(watched.picture.services["default/a"], "10.0.0.1", "what it said before");
    let mut json = br#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": ""#.to_vec();
    json.push(0xff);
    json.extend(br#""}}{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}, "spec": {"clusterIP": "10.0.0.3", "ports": [{"port": 80}]}}"#);
    fs::write(watched.path("c.json"), json).expect("written");
    watched.until_service("c", Some("10.0.0.3")).await;
    watched.until_report("file c.json, document 1", "not UTF-8 (the byte 0xff in line 1)").await;
}

#[test]
fn what_is_nested_too_deep_holds_nobody_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
    write("a.yaml", &format!("a: 1\nb: {}", "[".repeat(200_000)));
    write("b.yaml", &format!("{}---\n{}", service("b", "10.0.0.2"), "{a: ".repeat(50_000)));
    write("c.yaml", &(0..1000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect::<String>());
    write("d.json", &"[".repeat(200_000));
    write("z.yaml", &service("z", "10.0.0.9"));
    let began = Instant::now();
    let picture = load(folder.path());
    // It was minutes.
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    assert_eq!(picture.services.keys().collect::<Vec<_>>(), ["default/b", "default/z"]);
    let expected = [
        ("file a.yaml, document 1", "not YAML (nested deeper than 128 levels at line 2 column 132)"),
        ("file b.yaml, document 2", "not YAML (nested deeper than 128 levels at line 7 column "),
        ("file c.yaml, document 1", "not YAML (nested deeper than 128 levels at line 129 column "),
        ("file d.json, document 1", "not JSON (recursion limit exceeded at line 1 column 128)"),
    ];
    for (object, report) in expected {
        let lines = picture.rejects.get(object).unwrap_or_else(|| panic!("{object}: {:?}", picture.rejects));
        assert!(lines.len() == 1 && lines[0].contains(report), "{object}: {lines:?}");
    }
}

#[test]
fn many_documents_that_cannot_be_used_are_some_reports() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nameless = "---\napiVersion: v1\nkind: Service\nspec: {ports: [{port: 80}]}\n";
    fs::write(folder.path().join("many.yaml"), nameless.repeat(5_000) + &service("web", "10.96.0.1")).expect("written");
    let picture = load(folder.path());
    assert!(picture.services.contains_key("default/web"), "the rest works");
    assert_eq!(picture.rejects.len(), 21, "{:?}", picture.rejects.keys());
    assert_eq!(picture.rejects["file many.yaml"], ["documents: 4980 more have parts that cannot be used"]);
    assert!(picture.rejects["file many.yaml, document 20"][0].starts_with("metadata.name: "), "{:?}", picture.rejects);
}

#[test]
fn values_are_read_by_the_rules_of_yaml_1_1() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "\u{feff}apiVersion: v1\nkind: Service\nmetadata: {name: \"on\"}\n\
                spec: {clusterIP: 10.0.0.1, ports: [{name: \"no\", port: 8e1, nodePort: 30_080}, {port: 0x50, protocol: UDP}]}\n\
                ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                metadata: {name: on-1, labels: {kubernetes.io/service-name: \"on\"}}\naddressType: IPv4\n\
                ports: [{name: null, port: 0120}, {port: 8080.0, protocol: UDP}]\n\
                endpoints: [{addresses: [10.1.0.1], conditions: {ready: no, serving: Yes, terminating: on}}]\n---\n";
    fs::write(folder.path().join("a.yaml"), text).expect("written");
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    load_once(folder.path(), NODE, converter(), &mut |event| match event {
        Event::Service(service) => services.push(service),
        Event::Slice { slice, .. } => slices.push(slice),
        Event::Rejects { object, rejects } => panic!("{object}: {rejects:?}"),
        _ => {}
    })
    .expect("it can be read");
    let ports: Vec<_> = services[0].ports.iter().map(|port| (&*port.name, port.port.get(), port.node_port)).collect();
    assert_eq!(services[0].name.as_str(), "default/on");
    assert_eq!(ports, [("no", 80, std::num::NonZeroU16::new(30_080)), ("", 80, None)]);
    let ports: Vec<_> = slices[0].ports.iter().map(|port| (&*port.name, port.port.get())).collect();
    assert_eq!(ports, [("", 80), ("", 8080)], "a port without a name is the unnamed one");
    let conditions = slices[0].endpoints[0].conditions;
    assert_eq!((conditions.ready, conditions.serving, conditions.terminating), (false, true, true));
}

#[tokio::test]
async fn half_written_files_are_not_seen() {
    let mut watched = Watched::start(&[("a.yaml", service("a", "10.0.0.1"))]).await;
    for name in ["a.yaml", "new.yaml"] {
        let mut file = fs::File::create(watched.path(name)).expect("created");
        file.write_all(b"apiVersion: v1\nkind: [").expect("written");
        file.sync_all().expect("synced");
        watched.settle().await;
        let reports = watched.picture.rejects.keys().filter(|object| object.contains(&format!("file {name}")));
        assert_eq!(reports.collect::<Vec<_>>(), [] as [&String; 0]);
        assert_eq!(watched.picture.services["default/a"], "10.0.0.1");
        drop(file);
        watched.until_report(&format!("file {name}, document 1"), "not YAML").await;
    }
    assert_eq!(watched.picture.services["default/a"], "10.0.0.1");
}

#[tokio::test]
async fn volumes_of_the_kubelet() {
    let mut watched = Watched::start(&[]).await;
    let version = |watched: &Watched, name: &str, files: &[(&str, String)]| {
        fs::create_dir(watched.path(name)).expect("created");
        for (file, text) in files {
            fs::write(watched.path(name).join(file), text).expect("written");
        }
        symlink(name, watched.path("..data_tmp")).expect("linked");
        fs::rename(watched.path("..data_tmp"), watched.path("..data")).expect("renamed");
    };
    version(&watched, "..1", &[("a.yaml", service("a", "10.0.0.1")), ("b.yaml", service("b", "10.0.0.2"))]);
    for file in ["a.yaml", "b.yaml"] {
        symlink(format!("..data/{file}"), watched.path(file)).expect("linked");
    }
    watched.until_service("a", Some("10.0.0.1")).await;
    watched.until_service("b", Some("10.0.0.2")).await;

    version(&watched, "..2", &[("a.yaml", service("a", "10.0.1.1")), ("c.yaml", service("c", "10.0.0.3"))]);
    symlink("..data/c.yaml", watched.path("c.yaml")).expect("linked");
    watched.remove("b.yaml");
    fs::remove_dir_all(watched.path("..1")).expect("removed");
    watched.until_service("a", Some("10.0.1.1")).await;
    watched.until_service("b", None).await;
    watched.until_service("c", Some("10.0.0.3")).await;
    assert!(watched.picture.rejects.is_empty());
}

#[tokio::test]
async fn a_folder_that_is_replaced() {
    let mut watched =
        Watched::start(&[("a.yaml", service("a", "10.0.0.1")), ("b.yaml", service("b", "10.0.0.2"))]).await;
    let (folder, root) = (watched.path(""), watched.root.path().to_owned());
    fs::rename(&folder, root.join("away")).expect("renamed");
    watched.until("it is missed", |picture| !picture.rejects.is_empty()).await;
    assert_eq!(watched.picture.services.len(), 2, "what it said stays in force");

    fs::create_dir(root.join("next")).expect("created");
    fs::write(root.join("next/a.yaml"), service("a", "10.0.1.1")).expect("written");
    fs::rename(root.join("next"), &folder).expect("renamed");
    watched.until_service("a", Some("10.0.1.1")).await;
    watched.until_service("b", None).await;
    watched.until_no_reports().await;
    watched.write("c.yaml", &service("c", "10.0.0.3"));
    watched.until_service("c", Some("10.0.0.3")).await;

    // Files of the folder that was moved away are none of ours.
    fs::write(root.join("away/d.yaml"), service("d", "10.0.0.4")).expect("written");
    watched.settle().await;
    assert!(!watched.picture.services.contains_key("default/d"));
}

#[tokio::test]
async fn only_what_changed_is_read() {
    const SERVICES: usize = 2000;
    let text = |changed: &str| {
        let at = |number| if number == 77 { changed } else { "10.0.0.1" };
        (0..SERVICES).map(|number| service(&format!("s-{number}"), at(number))).collect::<String>()
    };
    let mut watched = Watched::start(&[("big.yaml", text("10.0.0.1"))]).await;
    assert_eq!(watched.picture.services.len(), SERVICES);
    assert_eq!(watched.picture.service_events, SERVICES);
    watched.write("big.yaml", &text("10.0.0.2"));
    watched.until_service("s-77", Some("10.0.0.2")).await;
    // All that it says comes before what follows.
    watched.settle().await;
    assert_eq!(watched.picture.service_events - SERVICES, 1 + 1, "the one that changed, and the one to settle");
}

#[tokio::test]
async fn ends_with_its_receiver() {
    let mut watched = Watched::start(&[]).await;
    watched.events.close();
    let result = tokio::time::timeout(DEADLINE, &mut watched.task).await.expect("it ends").expect("it does not panic");
    assert!(result.is_ok());
}
