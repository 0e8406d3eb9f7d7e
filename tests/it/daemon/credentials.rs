//! Credentials of the daemon, and how they are replaced while it runs.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::node_with_api;
use super::{Node, PATIENCE, web};
use crate::api::{Api, Request};
use crate::certificates::{CLIENT, P256, P521, Pair, SERVER};
use crate::support::daemon::Daemon;
use crate::support::http::{self, Answer};

/// Starts the daemon with this cluster and this user, and these further arguments.
fn spawn(node: &mut Node, api: &Api, cluster: &Value, user: &Value, arguments: &[&str]) {
    let mut kubeconfig: Value = serde_json::from_str(&api.kubeconfig()).expect("JSON");
    for (name, value) in cluster.as_object().expect("fields") {
        kubeconfig["clusters"][0]["cluster"][name] = value.clone();
    }
    kubeconfig["users"][0]["user"] = user.clone();
    write(node, "kubeconfig", &kubeconfig.to_string());
    let path = node.file("kubeconfig");
    let config = node.write_config(&json!({"clientConnection": {"kubeconfig": path}}));
    let config = format!("--config={}", config.display());
    let arguments: Vec<_> = [&*config].iter().chain(arguments).map(|argument| (*argument).as_ref()).collect();
    node.spawn_with(&arguments);
}

fn write(node: &Node, name: &str, text: &str) {
    std::fs::write(node.file(name), text).expect("a file can be written");
}

/// Waits until the last request was one that is wanted.
fn wait_for_request(node: &mut Node, api: &Api, what: &str, wanted: impl Fn(&Request) -> bool) {
    node.eventually(what, |_| match api.requests().last() {
        Some(request) if wanted(request) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Lines of the log with this in them.
fn lines(node: &Node, text: &str) -> Vec<String> {
    node.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

#[test]
fn everything_is_replaced_while_packets_flow() {
    let Some((mut node, api)) = node_with_api() else { return };
    let [old, new] = [("old", P521), ("new", P256)].map(|(name, key)| Pair::authority(name, key));
    let servers = [&old, &new].map(|authority| authority.signs("kube-apiserver", P521, SERVER));
    let clients = [&old, &new].map(|authority| authority.signs("node-a", P521, CLIENT));
    api.set_tls(&servers[0].certificate, &servers[0].key, Some(&old.certificate));
    api.set_token(Some("one"));
    for (name, text) in [
        ("ca.crt", &*old.certificate),
        ("client.crt", &*clients[0].certificate),
        ("client.key", &*clients[0].key),
        ("token", "one\n"),
    ] {
        write(&node, name, text);
    }
    for object in web("web", "172.30.1.1", &["10.1.0.1:8080"]) {
        api.apply(object);
    }
    let user = json!({"client-certificate": "client.crt", "client-key": "client.key", "tokenFile": "token"});
    spawn(&mut node, &api, &json!({"certificate-authority": "ca.crt"}), &user, &[]);
    node.wait_for_log("in sync", |line| line.contains(" in sync services=1 "));
    node.wait_forward("it works", "172.30.1.1:80", &["10.1.0.1:8080"]);

    // What does not fit together is said once, and changes nothing.
    write(&node, "client.crt", &clients[1].certificate);
    let unfit = "does not belong to the certificate (CN=node-a); what was in use for the API server stays in use";
    let line = node.wait_for_log("it is said", |line| line.contains(unfit));
    assert!(line.contains("WARN") && line.contains("client-key: file ") && line.contains("client.key"), "{line}");
    api.apply(web("two", "172.30.1.2", &["10.1.0.2:8080"])[0].clone());
    api.apply(web("two", "172.30.1.2", &["10.1.0.2:8080"])[1].clone());
    node.wait_forward("watches go on", "172.30.1.2:80", &["10.1.0.2:8080"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lines(&node, unfit).len(), 1, "{}", node.log());

    // All at once, and the server has only the new ones.
    let began = Instant::now();
    write(&node, "ca.crt", &format!("{}{}", old.certificate, new.certificate));
    write(&node, "client.key", &clients[1].key);
    write(&node, "token", "two");
    let line = node.wait_for_log("it is said", |line| line.contains("there is now in use"));
    assert!(began.elapsed() < PATIENCE, "{line}");
    for part in ["the token of file ", "the client certificate CN=node-a of file ", "(2 certificates)", "INFO"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    api.set_tls(&servers[1].certificate, &servers[1].key, Some(&new.certificate));
    api.set_token(Some("two"));
    api.disconnect_all();
    for object in web("three", "172.30.1.3", &["10.1.0.3:8080"]) {
        api.apply(object);
    }
    node.wait_forward("a new Service", "172.30.1.3:80", &["10.1.0.3:8080"]);
    let der = pem::parse(&clients[1].certificate).expect("PEM").into_contents();
    wait_for_request(&mut node, &api, "the new certificate", |request| {
        request.certificate.as_ref() == Some(&der) && request.authorization.as_deref() == Some("Bearer two")
    });
    for (to, endpoint) in [("172.30.1.1:80", "10.1.0.1:8080"), ("172.30.1.2:80", "10.1.0.2:8080")] {
        node.wait_forward("nothing is lost", to, &[endpoint]);
    }
    assert_eq!(lines(&node, "there is now in use").len(), 1, "{}", node.log());
    assert!(!node.log().contains("Bearer"), "{}", node.log());
    node.stop();
}

/// A program that is asked for credentials.
fn plugin(node: &Node, script: &str) -> Value {
    let path = node.file("plugin");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file can be written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("it can be made executable");
    json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": path, "interactiveMode": "Never"}})
}

#[test]
fn a_plugin_that_hangs_keeps_nobody_waiting() {
    // The last Events are waited for so long, where anybody could take them.
    const LAST_EVENTS: Duration = Duration::from_secs(2);
    let Some((mut node, api)) = node_with_api() else { return };
    let user = plugin(&node, &format!("echo $$ >{}; sleep 600", node.file("pid").display()));
    let stopped_after = |node: &mut Node| {
        let _ = std::fs::remove_file(node.file("pid"));
        spawn(node, &api, &json!({}), &user, &[]);
        node.eventually("it is run", |node| match std::fs::read_to_string(node.file("pid")) {
            Ok(text) if text.ends_with('\n') => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let pid = std::fs::read_to_string(node.file("pid")).expect("it is there").trim().to_owned();
        node.eventually("health is served", |node| {
            match http::get(&node.world, (Ipv4Addr::LOCALHOST, 10256).into(), "/livez") {
                Answer::Status(_) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let began = Instant::now();
        node.stop();
        let after = began.elapsed();
        // With all that it has started.
        node.eventually("the plugin ends", |_| match std::path::Path::new("/proc").join(&pid).exists() {
            false => Ok(()),
            true => Err("running".to_owned()),
        });
        after
    };
    // The machine may have other things to do, once or twice.
    let after: Vec<_> = (0..3).map(|_| stopped_after(&mut node)).collect();
    assert!(after.iter().any(|after| *after < LAST_EVENTS), "{after:?}");
    assert_eq!(api.requests(), [], "nothing without credentials");
}

#[test]
fn a_plugin_that_fails_is_run_again() {
    let Some((mut node, api)) = node_with_api() else { return };
    for object in web("web", "172.30.1.1", &["10.1.0.1:8080"]) {
        api.apply(object);
    }
    let said = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "SECRET"},
    });
    // Twice.
    let script = format!(
        "echo '{said}'\necho run >>{0}\n[ $(wc -l <{0}) -gt 2 ] || {{ echo no luck >&2; exit 3; }}",
        node.file("runs").display()
    );
    let user = plugin(&node, &script);
    api.set_token(Some("SECRET"));
    spawn(&mut node, &api, &json!({}), &user, &["-v=9"]);
    let wanted = "plugin: it fails with exit status: 3: no luck";
    node.wait_for_log("it is said", |line| line.contains("WARN") && line.contains(wanted));
    node.wait_for_log("in sync", |line| line.contains(" in sync services=1 "));
    assert!(!node.log().contains("SECRET"), "{}", node.log());
    node.stop();
}

#[test]
fn passwords_in_urls_are_shown_nowhere() {
    let Some((mut node, api)) = node_with_api() else { return };
    for object in web("web", "172.30.1.1", &["10.1.0.1:8080"]) {
        api.apply(object);
    }
    let server = format!("http://bob:SECRET@{}", api.address());
    let user = json!({"username": "bob", "password": "SECRET"});
    spawn(&mut node, &api, &json!({"server": server}), &user, &["-v=9", &format!("--master={server}")]);
    node.wait_for_log("in sync", |line| line.contains(" in sync services=1 "));
    let flag = node.wait_for_log("flags", |line| line.contains("FLAG: --master="));
    assert!(flag.contains("bob:***@"), "{flag}");
    let remark = lines(&node, "has a user in it, who is not used");
    assert_eq!(remark.len(), 1, "{remark:?}");
    let mut shown = node.log();
    for path in ["/configz", "/metrics", "/nftproxyd/status"] {
        shown += &http::body(&node.world, (Ipv4Addr::LOCALHOST, 10249).into(), path).unwrap_or_default();
    }
    for part in ["clientConnection", "nftproxyd_in_sync", "awaited"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // "Ym9iOlNFQ1JFVA==": the header.
    for secret in ["SECRET", "Ym9iOlNFQ1JFVA"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    let sent: Vec<_> = api.requests().into_iter().filter_map(|request| request.authorization).collect();
    assert!(!sent.is_empty() && sent.iter().all(|value| value == "Basic Ym9iOlNFQ1JFVA=="), "{sent:?}");
    node.stop();
}

#[test]
fn what_is_wrong_with_a_certificate_is_one_line() {
    let Some(mut node) = Node::new() else { return };
    let listener = node.world.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("loopback has free ports");
    let api = Api::start(listener);
    let [known, other] = ["known", "other"].map(|name| Pair::authority(name, P256));
    let server = known.signs("kube-apiserver", P256, SERVER);
    api.set_tls(&server.certificate, &server.key, None);
    write(&node, "ca.crt", &other.certificate);
    spawn(&mut node, &api, &json!({"certificate-authority": "ca.crt"}), &json!({}), &[]);
    let wanted = "the certificate of the API server (CN=kube-apiserver) is signed by CN=known, which is not known to";
    let line = node.wait_for_log("it is said", |line| line.contains(wanted));
    assert!(line.contains("ca.crt: add it there"), "{line}");
    // Mended.
    write(&node, "ca.crt", &known.certificate);
    node.wait_for_log("in sync", |line| line.contains(" in sync services=0 "));
    node.stop();
}

#[test]
fn the_service_account_of_a_pod_is_followed() {
    let Some((mut node, api)) = node_with_api() else { return };
    let authority = Pair::authority("kubernetes", P256);
    let server = authority.signs("kube-apiserver", P256, SERVER);
    api.set_tls(&server.certificate, &server.key, None);
    api.set_token(Some("one"));
    for object in web("web", "172.30.1.1", &["10.1.0.1:8080"]) {
        api.apply(object);
    }
    // As the kubelet mounts it.
    let account = node.file("account");
    let version = |name: &str, token: &str| {
        std::fs::create_dir_all(account.join(name)).expect("a folder");
        for (file, text) in [("token", token), ("ca.crt", &authority.certificate), ("namespace", "kube-system")] {
            std::fs::write(account.join(name).join(file), text).expect("a file can be written");
        }
        symlink(name, account.join("..data_tmp")).expect("a link");
        std::fs::rename(account.join("..data_tmp"), account.join("..data")).expect("it can be renamed");
    };
    version("..1", "one");
    for file in ["token", "ca.crt", "namespace"] {
        symlink(format!("..data/{file}"), account.join(file)).expect("a link");
    }
    let pod = "account=/var/run/secrets/kubernetes.io/serviceaccount && mount -t tmpfs none /var/run &&
        mkdir -p $account && mount --bind \"$1\" $account && shift && exec env KUBERNETES_SERVICE_HOST=127.0.0.1 \"$@\"";
    let config = node.write_config(&json!({}));
    let (account_path, port) = (account.display().to_string(), api.address().port());
    let (port, config) = (format!("KUBERNETES_SERVICE_PORT={port}"), format!("--config={}", config.display()));
    let arguments = ["--mount", "sh", "-c", pod, "sh", &account_path, &port, super::PROGRAM, &config];
    let arguments: Vec<_> = arguments.into_iter().chain(["--hostname-override=node-0"]).collect();
    let daemon = Daemon::start_program(&node.world, "unshare", &arguments).expect("it can be started");
    node.daemon = Some(daemon);
    node.wait_for_log("in sync", |line| line.contains(" in sync services=1 "));
    // One that is not seen yet when it is needed.
    version("..2", "two");
    api.set_token(Some("two"));
    api.disconnect_all();
    for object in web("two", "172.30.1.2", &["10.1.0.2:8080"]) {
        api.apply(object);
    }
    node.wait_forward("a new Service", "172.30.1.2:80", &["10.1.0.2:8080"]);
    node.wait_for_log("it is said", |line| {
        line.contains("there is now in use: the token of file /var/run/secrets/kubernetes.io/serviceaccount/token")
    });
    version("..3", " \n");
    let line =
        node.wait_for_log("it is said", |line| line.contains("serviceaccount/token: it is empty; what was in use"));
    assert!(line.contains("WARN") && line.contains("the service account of this pod: "), "{line}");
    node.stop();
}
