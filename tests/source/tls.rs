//! Credentials and certificates for an API server, and how they are replaced.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::kube::Client;
use ::kube::client::Body;
use axum::http;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt as _;
use nftproxyd::source::kube::connect;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;

use crate::api::{Api, Request};
use crate::certificates::{CLIENT, P256, P521, Pair, RSA_1024, RSA_2048, SERVER};
use crate::support::DEADLINE;

/// A folder with a kubeconfig and what it names.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("it can be written");
    }

    /// As careful writers do.
    fn replace(&self, name: &str, text: &str) {
        self.write("next", text);
        fs::rename(self.path("next"), self.path(name)).expect("it can be renamed");
    }

    /// A kubeconfig for a server.
    fn kubeconfig(&self, api: &Api, cluster: &Value, user: &Value) {
        let mut config: Value = serde_json::from_str(&api.kubeconfig()).expect("JSON");
        for (name, value) in cluster.as_object().expect("fields") {
            config["clusters"][0]["cluster"][name] = value.clone();
        }
        config["users"][0]["user"] = user.clone();
        self.replace("kubeconfig", &config.to_string());
    }

    async fn connect(&self) -> Client {
        connect(&self.path("kubeconfig"), None).await.expect("it can be used")
    }
}

/// Asks for something and returns what the server has seen of it. An error is that there was no answer.
async fn ask(client: &Client, api: &Api) -> Result<Request, String> {
    let before = api.requests().len();
    let asked = client.apiserver_version().await;
    let mut requests = api.requests().split_off(before);
    requests.pop().ok_or_else(|| format!("{:?}", asked.err()))
}

/// Asks until the server has seen what is wanted.
async fn ask_until(client: &Client, api: &Api, what: &str, wanted: impl Fn(&Request) -> bool) {
    let end = Instant::now() + DEADLINE;
    loop {
        let seen = ask(client, api).await;
        if seen.as_ref().is_ok_and(&wanted) {
            return;
        }
        assert!(Instant::now() < end, "{what}: {seen:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn der(pair: &Pair) -> Vec<u8> {
    pem::parse(&pair.certificate).expect("PEM").into_contents()
}

#[tokio::test]
async fn a_token_is_replaced_however_its_file_is() {
    let (api, files) = (Api::local(), Files::new());
    // As the kubelet mounts it.
    let version = |name: &str, token: &str| {
        fs::create_dir(files.path(name)).expect("a folder");
        fs::write(files.path(name).join("token"), token).expect("a file");
        symlink(name, files.path("..data_tmp")).expect("a link");
        fs::rename(files.path("..data_tmp"), files.path("..data")).expect("it can be renamed");
    };
    version("..1", "one");
    symlink("..data/token", files.path("token")).expect("a link");
    files.kubeconfig(&api, &json!({}), &json!({"tokenFile": "token"}));
    let client = files.connect().await;
    let sent = |token: &'static str| move |request: &Request| request.authorization.as_deref() == Some(token);
    ask_until(&client, &api, "the first", sent("Bearer one")).await;
    version("..2", "two\n");
    fs::remove_dir_all(files.path("..1")).expect("it can be removed");
    ask_until(&client, &api, "by a link", sent("Bearer two")).await;
    files.replace("token", "  three \r\n\n");
    ask_until(&client, &api, "by its name", sent("Bearer three")).await;
    files.write("token", "four");
    ask_until(&client, &api, "in place", sent("Bearer four")).await;
    // What cannot be used leaves the one before in use.
    for broken in [" \n", "a\u{1}b"] {
        files.write("token", broken);
        sleep(Duration::from_millis(2500)).await;
        assert!(ask(&client, &api).await.as_ref().is_ok_and(sent("Bearer four")), "{broken:?}");
    }
    fs::remove_file(files.path("token")).expect("it can be removed");
    sleep(Duration::from_millis(2500)).await;
    assert!(ask(&client, &api).await.as_ref().is_ok_and(sent("Bearer four")), "missing");
    files.write("token", "five\n");
    ask_until(&client, &api, "mended", sent("Bearer five")).await;
    // Inline.
    files.kubeconfig(&api, &json!({}), &json!({"token": "six"}));
    ask_until(&client, &api, "in the kubeconfig", sent("Bearer six")).await;
}

#[tokio::test]
async fn a_token_that_is_refused_is_read_again_at_once() {
    let (api, files) = (Api::local(), Files::new());
    files.write("token", "one\n");
    files.kubeconfig(&api, &json!({}), &json!({"tokenFile": "token"}));
    let client = files.connect().await;
    api.set_token(Some("one"));
    assert_eq!(ask(&client, &api).await.expect("an answer").status, 404);
    files.write("token", "two\n");
    api.set_token(Some("two"));
    let before = api.requests().len();
    client.apiserver_version().await.expect_err("it has no /version");
    let statuses: Vec<_> = api.requests()[before..].iter().map(|request| request.status).collect();
    assert_eq!(statuses, [401, 404], "at once");
    // Nothing new: nothing is repeated.
    api.set_token(Some("three"));
    let before = api.requests().len();
    client.apiserver_version().await.expect_err("it is refused");
    let statuses: Vec<_> = api.requests()[before..].iter().map(|request| request.status).collect();
    assert_eq!(statuses, [401]);
}

#[tokio::test]
async fn certificates_are_replaced_on_both_sides() {
    let (api, files) = (Api::local(), Files::new());
    let [old, new] = [("old", P256), ("new", P521)].map(|(name, key)| Pair::authority(name, key));
    let servers = [&old, &new].map(|authority| authority.signs("kube-apiserver", P521, SERVER));
    let clients = [&old, &new].map(|authority| authority.signs("node-a", P521, CLIENT));
    api.set_tls(&servers[0].certificate, &servers[0].key, Some(&old.certificate));
    files.write("ca.crt", &old.certificate);
    files.write("client.crt", &clients[0].certificate);
    files.write("client.key", &clients[0].key);
    let cluster = json!({"certificate-authority": "ca.crt"});
    files.kubeconfig(&api, &cluster, &json!({"client-certificate": "client.crt", "client-key": "client.key"}));
    let client = files.connect().await;
    let by = |pair: &Pair| {
        let der = der(pair);
        move |request: &Request| request.certificate.as_ref() == Some(&der)
    };
    ask_until(&client, &api, "the first", by(&clients[0])).await;
    // A certificate without its key changes nothing.
    files.write("client.crt", &clients[1].certificate);
    sleep(Duration::from_millis(2500)).await;
    assert!(ask(&client, &api).await.as_ref().is_ok_and(by(&clients[0])));
    // Nor does half a file.
    let both = format!("{}{}", old.certificate, new.certificate);
    files.write("ca.crt", &both[..both.len() - 40]);
    sleep(Duration::from_millis(2500)).await;
    assert!(ask(&client, &api).await.as_ref().is_ok_and(by(&clients[0])));
    files.write("ca.crt", &both);
    files.write("client.key", &clients[1].key);
    // The server knows the new ones only, and has one of them.
    api.set_tls(&servers[1].certificate, &servers[1].key, Some(&new.certificate));
    api.disconnect_all();
    ask_until(&client, &api, "the second", by(&clients[1])).await;
    // In the kubeconfig.
    let last = new.signs("node-b", RSA_2048, CLIENT);
    let cluster = json!({"certificate-authority-data": STANDARD.encode(&new.certificate)});
    let user = json!({
        "client-certificate-data": STANDARD.encode(&last.certificate), "client-key-data": STANDARD.encode(&last.key),
    });
    files.write("ca.crt", &old.certificate);
    files.kubeconfig(&api, &cluster, &user);
    ask_until(&client, &api, "in the kubeconfig", by(&last)).await;
    // A kubeconfig that cannot be used changes nothing.
    files.write("kubeconfig", "{");
    sleep(Duration::from_millis(2500)).await;
    assert!(ask(&client, &api).await.as_ref().is_ok_and(by(&last)));
}

#[tokio::test]
async fn a_certificate_that_is_refused_is_explained() {
    let (api, files) = (Api::local(), Files::new());
    let [known, other] = ["known", "other"].map(|name| Pair::authority(name, P256));
    let server = known.signs("kube-apiserver", P256, SERVER);
    api.set_tls(&server.certificate, &server.key, Some(&known.certificate));
    let client = other.signs("node-a", P256, CLIENT);
    files.write("other.crt", &other.certificate);
    files.write("known.crt", &known.certificate);
    files.write("client.crt", &client.certificate);
    files.write("client.key", &client.key);
    files.kubeconfig(&api, &json!({"certificate-authority": "other.crt"}), &json!({}));
    let said = files.connect().await.apiserver_version().await.expect_err("it is not known").to_string();
    assert_eq!(
        said,
        format!(
            "ServiceError: the certificate of the API server (CN=kube-apiserver) is signed by CN=known, which is not \
             known to the authority of file {}: add it there",
            files.path("other.crt").display()
        )
    );
    let user = json!({"client-certificate": "client.crt", "client-key": "client.key"});
    files.kubeconfig(&api, &json!({"certificate-authority": "known.crt"}), &user);
    let said = files.connect().await.apiserver_version().await.expect_err("it is refused").to_string();
    assert!(said.contains("the API server refuses the connection") && said.contains("CN=node-a: renew it"), "{said}");
}

#[tokio::test]
async fn watches_end_where_another_server_is_to_be_asked_and_not_before() {
    let (api, other, files) = (Api::local(), Api::local(), Files::new());
    files.kubeconfig(&api, &json!({}), &json!({"token": "one"}));
    let client = files.connect().await;
    let watch = || async {
        let url = "/api/v1/services?watch=true&resourceVersion=0&timeoutSeconds=100";
        let asked = http::Request::get(url).body(Body::empty()).expect("a request");
        client.send(asked).await.expect("an answer").into_body()
    };
    let mut running = watch().await;
    let sent = |token: &'static str| move |request: &Request| request.authorization.as_deref() == Some(token);
    files.kubeconfig(&api, &json!({}), &json!({"token": "two"}));
    ask_until(&client, &api, "another token", sent("Bearer two")).await;
    let mut of_second = watch().await;
    let still = tokio::time::timeout(Duration::from_millis(300), running.frame()).await;
    assert!(still.is_err(), "it goes on");
    files.kubeconfig(&other, &json!({}), &json!({"token": "two"}));
    ask_until(&client, &other, "another server", sent("Bearer two")).await;
    for body in [&mut running, &mut of_second] {
        let end = tokio::time::timeout(DEADLINE, body.frame()).await.expect("it ends");
        assert!(end.expect("an error").is_err(), "it breaks off");
    }
}

/// A program that says what is in a file, and counts how often it is asked.
fn plugin(files: &Files, script: &str) -> Value {
    let text = format!("#!/bin/sh\necho run >>{0}/runs\n{script}\n", files.0.path().display());
    files.write("plugin", &text);
    let mut permissions = fs::metadata(files.path("plugin")).expect("it is there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(files.path("plugin"), permissions).expect("they can be set");
    json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "interactiveMode": "Never",
                    "provideClusterInfo": true, "env": [{"name": "FOLDER", "value": files.0.path()}]}})
}

fn runs(files: &Files) -> usize {
    fs::read_to_string(files.path("runs")).map_or(0, |text| text.lines().count())
}

fn credential(status: &Value) -> String {
    json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}).to_string()
}

/// So many seconds from now.
fn later(seconds: i64) -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds)).to_string()
}

#[tokio::test]
async fn a_plugin_is_run_again_when_its_token_expires_or_is_refused() {
    let (api, files) = (Api::local(), Files::new());
    let user = plugin(&files, "echo \"$KUBERNETES_EXEC_INFO\" >$FOLDER/asked; cat $FOLDER/said");
    files.kubeconfig(&api, &json!({}), &user);
    let client = files.connect().await;
    assert_eq!(runs(&files), 0, "not before it is needed");
    let sent = |token: &'static str| move |request: &Request| request.authorization.as_deref() == Some(token);
    files.write("said", &credential(&json!({"token": "one", "expirationTimestamp": later(3600)})));
    for _ in 0..3 {
        assert!(ask(&client, &api).await.as_ref().is_ok_and(sent("Bearer one")));
    }
    assert_eq!(runs(&files), 1);
    let asked: Value =
        serde_json::from_str(&fs::read_to_string(files.path("asked")).expect("it was asked")).expect("JSON");
    assert_eq!(asked["spec"]["cluster"]["server"], format!("{}/", api.url()));
    assert_eq!((&asked["kind"], &asked["spec"]["interactive"]), (&json!("ExecCredential"), &json!(false)));
    // Refused when it is some seconds old.
    files.write("said", &credential(&json!({"token": "two", "expirationTimestamp": later(11)})));
    api.set_token(Some("two"));
    sleep(Duration::from_secs(5)).await;
    assert!(ask(&client, &api).await.is_ok_and(|request| request.status == 404), "repeated");
    assert_eq!(runs(&files), 2);
    // Just before it expires.
    files.write("said", &credential(&json!({"token": "three"})));
    api.set_token(None);
    ask_until(&client, &api, "the third", sent("Bearer three")).await;
    assert_eq!(runs(&files), 3);
    // One who refuses all does not have it run all the time.
    api.set_token(Some("none"));
    for _ in 0..5 {
        assert_eq!(ask(&client, &api).await.expect("an answer").status, 401);
    }
    assert_eq!(runs(&files), 3);
}

#[tokio::test]
async fn a_plugin_gives_certificates() {
    let (api, files) = (Api::local(), Files::new());
    let authority = Pair::authority("ca", P256);
    let server = authority.signs("kube-apiserver", P256, SERVER);
    api.set_tls(&server.certificate, &server.key, Some(&authority.certificate));
    files.write("ca.crt", &authority.certificate);
    let user = plugin(&files, "cat $FOLDER/said");
    files.kubeconfig(&api, &json!({"certificate-authority": "ca.crt"}), &user);
    let client = files.connect().await;
    // Each is used up at once.
    for name in ["one", "two"] {
        let pair = authority.signs(name, P256, CLIENT);
        files.write(
            "said",
            &credential(&json!({
                "clientCertificateData": pair.certificate, "clientKeyData": pair.key, "expirationTimestamp": later(1),
            })),
        );
        ask_until(&client, &api, name, |request| request.certificate == Some(der(&pair))).await;
    }
}

#[tokio::test]
async fn a_plugin_that_fails_is_said_without_what_it_prints_and_tried_again() {
    let (api, files) = (Api::local(), Files::new());
    for (script, expected) in [
        ("echo SECRET; printf 'no\\nluck\\033[1m' >&2; exit 3", "it fails with exit status: 3: no luck [1m"),
        ("echo SECRET", "what it prints is no ExecCredential (JSON)"),
        (
            "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1beta1\"}'",
            "what it prints is no ExecCredential of client.authentication.k8s.io/v1, as exec.apiVersion asks for",
        ),
        (
            "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{}}'",
            "what it prints has neither a token nor a certificate",
        ),
        ("kill -9 $$", "it fails with signal: 9 (SIGKILL)"),
    ] {
        let user = plugin(&files, script);
        files.kubeconfig(&api, &json!({}), &user);
        let client = files.connect().await;
        let said = client.apiserver_version().await.expect_err("it fails").to_string();
        let name = files.path("./plugin").display().to_string();
        assert!(said.ends_with(&format!("exec plugin {name}: {expected}")), "{said}");
        assert!(!said.contains("SECRET"), "{said}");
        let before = runs(&files);
        let again = client.apiserver_version().await.expect_err("it has failed").to_string();
        assert_eq!((again, runs(&files)), (said, before), "not at once");
        // It recovers.
        plugin(&files, &format!("echo '{}'", credential(&json!({"token": "t"}))));
        ask_until(&client, &api, script, |request| request.authorization.as_deref() == Some("Bearer t")).await;
    }
}

#[tokio::test]
async fn what_a_plugin_leaves_running_is_not_waited_for() {
    let (api, files) = (Api::local(), Files::new());
    let said = credential(&json!({"token": "t"}));
    let user = plugin(&files, &format!("sleep 60 >/dev/null & echo '{said}'"));
    files.kubeconfig(&api, &json!({}), &user);
    let client = files.connect().await;
    let asked = tokio::time::timeout(Duration::from_secs(20), ask(&client, &api)).await.expect("at once");
    assert_eq!(asked.expect("an answer").authorization.as_deref(), Some("Bearer t"));
}

/// A proxy for CONNECT that is spoken to with TLS: it counts connections.
async fn proxy_with_tls(pair: &Pair) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
    let config = builder.expect("the usual versions").with_no_client_auth();
    let config = config.with_single_cert(vec![der(pair).into()], key).expect("they fit together");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            counting.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut client = BufReader::new(stream);
                let (mut target, mut line) = (String::new(), String::new());
                client.read_line(&mut target).await?;
                while client.read_line(&mut line).await? > 2 {
                    line.clear();
                }
                let target = target.split(' ').nth(1).expect("CONNECT TARGET HTTP/1.1").to_owned();
                let mut server = tokio::net::TcpStream::connect(target).await?;
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_server_is_reached_through_a_proxy_with_tls() {
    let (api, files) = (Api::local(), Files::new());
    let authority = Pair::authority("ca", P256);
    let server = authority.signs("kube-apiserver", P256, SERVER);
    api.set_tls(&server.certificate, &server.key, None);
    let (proxy, count) = proxy_with_tls(&authority.signs("proxy", P521, SERVER)).await;
    files.write("ca.crt", &authority.certificate);
    let cluster = json!({"certificate-authority": "ca.crt", "proxy-url": format!("https://me:secret@{proxy}")});
    files.kubeconfig(&api, &cluster, &json!({}));
    let client = files.connect().await;
    assert_eq!(ask(&client, &api).await.expect("an answer").status, 404);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// A server of openssl, which takes certificates that our own library does not.
struct OtherServer(Child);

impl Drop for OtherServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn certificates_that_only_others_serve_are_explained() {
    let files = Files::new();
    let authority = Pair::authority("kubernetes", P256);
    files.write("ca.crt", &authority.certificate);
    let weak = authority.signs("weak", RSA_1024, SERVER);
    let old = authority.signs_version_1("old");
    for (pair, version, expected) in [
        (&weak, "-tls1_3", "(CN=weak) has a key of RSA with 1024 bits: 2048 or more are needed"),
        (&weak, "-tls1_2", "(CN=weak) has a key of RSA with 1024 bits: 2048 or more are needed"),
        (&old, "-tls1_3", "(CN=old) is of X.509 version 1: make one of version 3"),
    ] {
        files.write("server.crt", &pair.certificate);
        files.write("server.key", &pair.key);
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("loopback has free ports").to_string();
        let server = Command::new("openssl")
            .args(["s_server", "-quiet", "-www", version, "-cipher", "DEFAULT@SECLEVEL=0", "-accept", &address])
            .arg("-cert")
            .arg(files.path("server.crt"))
            .arg("-key")
            .arg(files.path("server.key"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let _server = OtherServer(server.expect("openssl is installed: see deploy/setup-debian"));
        let config = json!({
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{address}"), "certificate-authority": "ca.crt"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c"}}],
            "current-context": "c",
        });
        files.write("kubeconfig", &config.to_string());
        let client = files.connect().await;
        let end = Instant::now() + DEADLINE;
        loop {
            let said = client.apiserver_version().await.expect_err("it is refused").to_string();
            if said.ends_with(expected) {
                break;
            }
            // It is not there yet.
            assert!(said.contains("onnect") && Instant::now() < end, "{version} {expected}: {said}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}
