//! The command line.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Ended, NODE_IP, NODE_NAME, Node, PATIENCE, difference, run_to_end, web, write_everything, yaml};

/// What every failure has in common: it is said once, on stderr, and nothing has panicked.
fn assert_fails(what: &str, ended: &Ended, status: i32, words: &[&str]) {
    let Ended { status: found, stdout, stderr } = ended;
    let report = format!("{what}: {found:?}\nstdout: {stdout}\nstderr: {stderr}");
    assert_eq!(*found, Some(status), "{report}");
    assert_eq!(stdout, "", "{report}");
    assert!(!stderr.contains("panicked"), "{report}");
    let errors = stderr.lines().filter(|line| line.to_lowercase().starts_with("error:"));
    assert_eq!(errors.count(), 1, "one error: {report}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not named: {report}");
    }
}

#[test]
fn errors_are_said_in_one_line() {
    let Some(node) = Node::new() else { return };
    let write = |name: &str, text: &str| {
        std::fs::write(node.file(name), text).expect("a file can be written");
        node.file(name).display().to_string()
    };
    let folder = node.folder().display().to_string();
    let header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n";
    let bad_values = write(
        "bad-values.yaml",
        &format!(
            "{header}clusterCIDR: 10.0.0.0/33\nnodePortAddresses: [nowhere/8]\nhealthzBindAddress: all\n\
             nftables: {{masqueradeBit: 77, minSyncPeriod: soon}}\n"
        ),
    );
    let other_kind = write("kind.yaml", "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n");
    let not_yaml = write("not.yaml", "{{{");
    let no_kubeconfig = write("a.yaml", &format!("{header}clientConnection: {{kubeconfig: /nowhere/kubeconfig}}\n"));
    let garbage = write("garbage", "clusters: 7\n");
    let bad_kubeconfig = write("b.yaml", &format!("{header}clientConnection: {{kubeconfig: {garbage}}}\n"));
    let in_cluster = write("c.yaml", header);

    let cases: &[(&str, &[&str], i32, &[&str])] = &[
        ("an unknown flag", &["run", "--manifest", &folder], 2, &["--manifest"]),
        ("an unknown flag without a subcommand", &["--confg=x"], 2, &["--confg"]),
        ("an unknown subcommand", &["start"], 2, &["start"]),
        ("a missing option", &["render"], 2, &["--manifests"]),
        ("no such folder", &["run", "--manifests", "/nowhere/manifests"], 1, &["/nowhere/manifests"]),
        ("no such folder to render", &["render", "--manifests", "/nowhere/manifests"], 1, &["/nowhere/manifests"]),
        ("no such configuration", &["--config=/nowhere/config"], 1, &["/nowhere/config"]),
        ("not a configuration", &["run", "--config", &not_yaml], 1, &["not.yaml", "YAML"]),
        (
            "a configuration of something else",
            &["run", "--manifests", &folder, "--config", &other_kind],
            1,
            &["KubeletConfiguration", "KubeProxyConfiguration"],
        ),
        (
            "bad values",
            &["run", "--manifests", &folder, "--config", &bad_values],
            1,
            &[
                "clusterCIDR",
                "10.0.0.0/33",
                "nodePortAddresses",
                "nowhere/8",
                "healthzBindAddress",
                "nftables.masqueradeBit",
                "77",
                "nftables.minSyncPeriod",
                "soon",
            ],
        ),
        ("no such kubeconfig", &["--config", &no_kubeconfig], 1, &["/nowhere/kubeconfig"]),
        ("not a kubeconfig", &["--config", &bad_kubeconfig], 1, &[&garbage]),
        ("not in a cluster", &["--config", &in_cluster], 1, &["clientConnection.kubeconfig"]),
    ];
    for (what, arguments, status, words) in cases {
        assert_fails(what, &run_to_end(&node, true, arguments), *status, words);
    }
    for (what, arguments) in [("run", &["run", "--manifests", &folder][..]), ("cleanup", &["cleanup"])] {
        let ended = run_to_end(&node, false, arguments);
        assert_fails(&format!("{what} without permission"), &ended, 1, &["CAP_NET_ADMIN"]);
    }
    assert_eq!(node.nft(&["list", "tables"]).expect("tables can be listed"), "", "nothing was written");
}

/// The last line, which is a failure's reason in JSON.
fn failure(what: &str, log: &str) -> String {
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{what}: {log}")));
    let lines: Vec<Value> = lines.collect();
    let last = lines.last().unwrap_or_else(|| panic!("{what}: nothing is said"));
    assert_eq!(last["level"], "ERROR", "{what}: {log}");
    last["timestamp"].as_str().unwrap_or_else(|| panic!("{what}: {log}")).parse::<jiff::Timestamp>().expect("a time");
    last["message"].as_str().unwrap_or_else(|| panic!("{what}: {log}")).to_owned()
}

#[test]
fn a_failure_is_json_where_the_log_is() {
    let Some(mut node) = Node::new() else { return };
    let folder = node.folder().display().to_string();
    #[rustfmt::skip]
    let cases: &[(&[&str], &str)] = &[
        (&["--config=/nowhere/config"], "/nowhere/config"),
        (&["--manifests=/nowhere/manifests"], "/nowhere/manifests"),
        (&["--manifests", &folder, "--cluster-cidr=10.0.0.0/33"], "10.0.0.0/33"),
        (&[], "kubeconfig"),
    ];
    for (arguments, word) in cases {
        let ended = run_to_end(&node, true, &[&["run", "--logging-format=json"], *arguments].concat());
        assert_eq!((ended.status, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
        let why = failure(word, &ended.stderr);
        assert!(why.contains(word) && !why.starts_with("Error"), "{why}");
    }

    let logging = json!({"logging": {"format": "json"}, "clusterCIDR": "10.0.0.0/8"});
    node.spawn(&logging);
    node.wait_for_log("in sync", |line| line.contains("in sync"));
    let named = node.log().lines().filter(|line| line.contains("\"Using nftables Proxier\"")).count();
    assert_eq!(named, 1, "{}", node.log());
    node.write_config(&json!({"logging": {"format": "json"}, "clusterCIDR": "10.1.0.0/16"}));
    let mut daemon = node.daemon.take().expect("it was started");
    let end = Instant::now() + PATIENCE;
    while daemon.alive() {
        assert!(Instant::now() < end, "it has not ended: {}", daemon.log());
        sleep(Duration::from_millis(5));
    }
    assert_eq!(daemon.terminate(PATIENCE).expect("it has ended").code(), Some(1));
    let why = failure("another clusterCIDR", &daemon.log());
    assert!(why.contains("has changed in clusterCIDR: nftproxyd ends to be started again"), "{why}");
}

#[test]
fn what_is_rendered_without_root_is_what_the_daemon_installs() {
    let Some(mut node) = Node::unprotected() else { return };
    write_everything(&node);
    let mut bad = web("bad", "172.30.1.8", &["10.1.0.8:8080"]);
    bad[0]["spec"]["externalIPs"] = json!(["nowhere"]);
    node.write("bad.yaml", &(yaml(&bad) + "---\n{: not\n"));
    let config = node.write_config(&json!({"detectLocalMode": "NodeCIDR"}));
    let (folder, config) = (node.folder().display().to_string(), config.display().to_string());

    let rendered = run_to_end(&node, false, &["render", "--manifests", &folder, "--config", &config]);
    assert_eq!(rendered.status, Some(0), "{}", rendered.stderr);
    for words in [["shop/bad", "spec.externalIPs[0]"], ["file bad.yaml, document 3", "not YAML"]] {
        let named = rendered.stderr.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        assert_eq!(named.count(), 1, "{words:?}:\n{}", rendered.stderr);
    }
    assert_eq!(node.nft(&["list", "tables"]).expect("tables can be listed"), "", "nothing was written");

    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    let installed = node.tables().expect("both tables are there");
    node.stop();
    node.nft(&["flush", "ruleset"]).expect("the tables can go");
    node.world.nft(&["-f", "-"], &rendered.stdout).unwrap_or_else(|error| panic!("{error}\n{}", rendered.stdout));
    let loaded = node.tables().expect("both tables are there");
    // The text gives examples of the types of maps with kinds, the daemon their names.
    let named = |tables: &str| tables.lines().filter(|line| line.contains("classid")).count();
    let untyped = |tables: &str| {
        let typed = |line: &str| line.contains("classid") || line.contains("typeof") && line.contains("meta priority");
        tables.lines().filter(|line| !typed(line)).map(|line| format!("{line}\n")).collect::<String>()
    };
    assert_eq!((named(&installed), named(&loaded)), (2 * 12, 0));
    assert_eq!(difference(&untyped(&installed), &untyped(&loaded)), "");
    assert_eq!(untyped(&loaded), untyped(&installed));

    // nft cannot be told to keep all that the daemon does for the sake of older ones: it replaces the table, once.
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    assert_eq!(
        node.log().matches("was not as this version makes it; it has been replaced").count(),
        2,
        "{}",
        node.log()
    );
    assert_eq!(node.tables().expect("both tables are there"), installed);
    node.stop();
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    let line = node.wait_for_log("in sync", |line| line.contains(" in sync services="));
    assert!(line.contains("operations=0 "), "{line}");
    node.stop();
}

/// Without root and without a node: by what would be installed.
#[test]
fn manifests_are_explained_without_root() {
    let Some(node) = Node::new() else { return };
    let nodes = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}]}});
    let mut objects = web("web", "172.30.0.1", &["10.1.0.1:8080", "10.1.0.2:8080"]);
    objects[0]["spec"]["type"] = "NodePort".into();
    objects[0]["spec"]["ports"][0]["nodePort"] = 30080.into();
    objects.push(web("empty", "172.30.0.2", &["10.1.0.9:8080"]).remove(0));
    objects.push(nodes);
    node.write("all.yaml", &yaml(&objects));
    let folder = node.folder().display().to_string();
    for (what, status, words) in [
        (
            "172.30.0.1:80",
            0,
            &["(this node) -> 172.30.0.1:80 tcp", "shop/web:", "cluster IP", "10.1.0.2:8080", "=> REACHED"][..],
        ),
        ("203.0.113.7 192.0.2.10:30080", 0, &["node port", "masquerades it", "=> REACHED"]),
        ("203.0.113.7 shop/empty", 3, &["=> REFUSED: it has no endpoint"]),
        ("203.0.113.7 127.0.0.1:30080", 5, &["not served on loopback addresses", "fix: connect to 192.0.2.10:30080"]),
        ("203.0.113.7 198.51.100.1:80", 5, &["=> NOT OURS: no Service has 198.51.100.1"]),
        (
            "shop/nothing",
            1,
            &["nothing in table ip nftproxyd or ip6 nftproxyd is of Service shop/nothing: no manifest"],
        ),
        ("203.0.113.7 shop/nothing", 1, &["nothing in table ip nftproxyd is of Service shop/nothing: no manifest"]),
        ("2001:db8::1 172.30.0.1:80", 1, &["2001:db8::1 and 172.30.0.1 are of different families"]),
    ] {
        let mut arguments = vec!["explain", "--manifests", &folder, "--hostname-override", NODE_NAME];
        arguments.extend(what.split(' '));
        let ended = run_to_end(&node, false, &arguments);
        assert_eq!(ended.status, Some(status), "{what}: {ended:?}");
        let text = format!("{}{}", ended.stdout, ended.stderr);
        words.iter().for_each(|word| assert!(text.contains(word), "{what}: {word}\n{text}"));
    }
}

#[test]
fn cleanup_removes_our_tables_and_nothing_else() {
    let Some(mut node) = Node::new() else { return };
    let cleanup = |node: &Node, removed: &[&str]| {
        let ended = run_to_end(node, true, &["cleanup"]);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        assert_eq!(ended.stderr, "");
        for table in removed {
            assert!(ended.stdout.contains(table), "{table}: {}", ended.stdout);
        }
        assert!(!node.nft(&["list", "tables"]).expect("tables can be listed").contains(" nftproxyd\n"));
    };
    cleanup(&node, &[]);
    const OTHERS: &str = "table ip other {\n set s { type inet_service; elements = { 1, 2 }; }\n}
        table inet nftproxyd-not-ours {\n chain c { type filter hook input priority 0; accept; }\n}\n";
    node.world.nft(&["-f", "-"], OTHERS).expect("other tables can be made");
    let others = node.nft(&["list", "ruleset"]).expect("rules can be listed");
    write_everything(&node);
    node.start(&json!({}));
    node.stop();
    cleanup(&node, &["ip nftproxyd", "ip6 nftproxyd"]);
    assert_eq!(node.nft(&["list", "ruleset"]).expect("rules can be listed"), others);

    node.start(&json!({}));
    node.stop();
    node.nft(&["delete", "table", "ip", "nftproxyd"]).expect("it is there");
    cleanup(&node, &["ip6 nftproxyd"]);
    cleanup(&node, &[]);
    assert_eq!(node.nft(&["list", "ruleset"]).expect("rules can be listed"), others);
}

#[test]
fn the_owner_of_a_table_is_named() {
    let Some(mut node) = Node::new() else { return };
    let mut nft = Command::new("nft");
    nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut nft = node.world.spawn(nft).expect("nft can be started");
    let input = nft.stdin.as_mut().expect("it is piped");
    input.write_all(b"add table ip nftproxyd { flags owner; }\n").expect("nft reads");
    node.eventually("there is an owner", |node| match node.nft(&["list", "tables"]) {
        Ok(tables) if tables.contains("table ip nftproxyd") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let owner = format!("belongs to netlink port {0} (process {0}, nft)", nft.id());
    // A permission is not what root lacks; who lacks it is told so, owner or not.
    let ended = run_to_end(&node, true, &["cleanup"]);
    assert_fails("cleanup of an owned table", &ended, 1, &["table ip nftproxyd", &owner]);
    assert!(!ended.stderr.contains("root"), "{}", ended.stderr);
    let ended = run_to_end(&node, false, &["cleanup"]);
    assert_fails("cleanup without permission", &ended, 1, &["CAP_NET_ADMIN"]);
    assert!(!ended.stderr.contains("belongs to"), "{}", ended.stderr);

    write_everything(&node);
    node.spawn(&json!({}));
    let line = node.wait_for_log("it names the owner", |line| line.contains(&owner));
    assert!(line.contains("table ip nftproxyd cannot be synced") && !line.contains("root"), "{line}");
    // The kernel removes an owner's table when the owner goes.
    nft.kill().expect("it runs");
    nft.wait().expect("it is our child");
    node.wait_forward("the table is ours", "172.30.1.1:80", &["10.1.0.1:8080"]);
    assert_eq!(node.log().matches("belongs to netlink port").count(), 1, "{}", node.log());
    node.stop();
}
