//! A folder of manifests is followed, whatever happens in it.

use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::{Value, json};

use super::{
    CLIENT, CLIENT_V6, NODE_IP, NODE_IP_V6, Node, OTHER_IP, echo_server, echoes, ip, node_object, run_to_end, slice,
    socket, web, yaml,
};
use crate::support::objects::{SERVICE_CIDRS, service, service_cidr};
use crate::support::outcome::{Fate, Masquerade, Passed};
use crate::support::packet::Protocol;
use crate::support::world::{Look, Probe};

fn dropped(fate: &Fate) -> bool {
    *fate == Fate::Drop
}

fn untouched(fate: &Fate) -> bool {
    *fate == Fate::Pass(Passed::Out)
}

fn refused(fate: &Fate) -> bool {
    matches!(fate, Fate::Reject(_))
}

/// How many elements of the IPv4 table belong to a Service whose name begins so.
fn elements_of(node: &Node, prefix: &str) -> Result<usize, String> {
    let table = node.table("ip").map_err(|error| error.to_string())?;
    Ok(table.matches(&format!("comment \"shop/{prefix}")).count())
}

#[test]
fn files_that_come_change_and_go_are_followed() {
    let Some(mut node) = Node::new() else { return };
    node.write("cidr.yaml", &yaml(&[service_cidr()]));
    node.start(&json!({}));
    node.wait_fate("nothing is there yet", "172.30.1.1:80", dropped);
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    node.wait_forward("a file comes", "172.30.1.1:80", &["10.1.0.1:8080"]);
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.2:8080"])));
    node.wait_forward("it is written again", "172.30.1.1:80", &["10.1.0.2:8080"]);
    node.replace("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.3:8080"])));
    node.wait_forward("it is replaced", "172.30.1.1:80", &["10.1.0.3:8080"]);
    std::fs::rename(node.folder().join("web.yaml"), node.folder().join("shop.yml")).expect("a file can be moved");
    node.replace("shop.yml", &yaml(&web("web", "172.30.1.1", &["10.1.0.4:8080"])));
    node.wait_forward("it has another name", "172.30.1.1:80", &["10.1.0.4:8080"]);
    node.replace("shop.yml", &yaml(&web("web", "172.30.1.1", &["10.1.0.4:8080"])[..1]));
    node.wait_fate("a document goes", "172.30.1.1:80", refused);
    node.remove("shop.yml");
    node.wait_fate("a file goes", "172.30.1.1:80", dropped);
    node.stop();
}

/// Nothing tells when there are descriptors again.
#[test]
fn a_file_that_cannot_be_read_for_want_of_descriptors_is_read_later() {
    let Some(mut node) = Node::new() else { return };
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    node.start(&json!({}));
    node.wait_forward("at the start", "172.30.1.1:80", &["10.1.0.1:8080"]);
    node.daemon().limit_descriptors(3).expect("it can be limited");
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.2:8080"])));
    node.write("new.yaml", &yaml(&web("new", "172.30.1.2", &["10.1.0.3:8080"])));
    for file in ["web", "new"] {
        let line = format!("file {file}.yaml: the file: cannot be read (Too many open files");
        let line = node.wait_for_log("it cannot be read", |found| found.contains(&line));
        assert!(line.contains("it is tried again, and what it said before stays in force"), "{line}");
    }
    node.wait_forward("what it said before stays in force", "172.30.1.1:80", &["10.1.0.1:8080"]);
    node.daemon().limit_descriptors(1024).expect("it can be allowed more");
    node.wait_forward("it is read again", "172.30.1.1:80", &["10.1.0.2:8080"]);
    node.wait_forward("the new one, too", "172.30.1.2:80", &["10.1.0.3:8080"]);
    let told = node.log().lines().filter(|line| line.contains("the file: cannot be read (Too many")).count();
    assert_eq!(told, 2, "once for each file: {}", node.log());
    node.stop();
}

#[test]
fn many_files_of_all_formats_at_once_are_followed() {
    const FILES: usize = 100;
    let Some(mut node) = Node::new() else { return };
    node.start(&json!({}));
    let object = |nth: usize, round: usize| {
        let (high, low) = (nth / 250, nth % 250 + 1);
        web(&format!("many-{nth}"), &format!("172.30.{high}.{low}"), &[&format!("10.{round}.{high}.{low}:8080")])
    };
    let write = |round: usize| {
        for file in 0..FILES {
            // Three Services in each file.
            let objects: Vec<Value> = (file * 3..file * 3 + 3).flat_map(|nth| object(nth, round)).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            match file % 4 {
                0 => node.write(&format!("{file}.yaml"), &yaml(&objects)),
                1 => node.write(&format!("{file}.yml"), &yaml(&[list])),
                2 => node.replace(&format!("{file}.json"), &list.to_string()),
                _ => node.replace(&format!("{file}.json"), &objects.iter().map(Value::to_string).collect::<String>()),
            }
        }
    };
    write(1);
    let all = |wanted: &'static str| {
        move |node: &mut Node| {
            let frontends = elements_of(node, "many-")?;
            let endpoints = node.table("ip").map_err(|error| error.to_string())?.matches(wanted).count();
            if (frontends, endpoints) == (3 * FILES, 3 * FILES) {
                Ok(())
            } else {
                Err(format!("{frontends} frontends, {endpoints} endpoints"))
            }
        }
    };
    node.eventually("all files are there", all(" : 10.1."));
    let write = |round: usize, node: &Node| {
        for file in 0..FILES {
            let objects: Vec<Value> = (file * 3..file * 3 + 3).flat_map(|nth| object(nth, round)).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            let end = ["yaml", "yml", "json", "json"][file % 4];
            node.replace(&format!("{file}.{end}"), &list.to_string());
        }
    };
    write(2, &node);
    node.eventually("all files have changed", all(" : 10.2."));
    for file in std::fs::read_dir(node.folder()).expect("the folder is there") {
        std::fs::remove_file(file.expect("an entry").path()).expect("the manifest is there");
    }
    node.eventually("all files are gone", |node| match elements_of(node, "many-")? {
        0 => Ok(()),
        left => Err(format!("{left} frontends")),
    });
    node.stop();
}

#[test]
fn a_config_map_volume_of_the_kubelet_is_followed() {
    let Some(mut node) = Node::new() else { return };
    let folder = node.folder();
    let version = |name: &str, endpoint: &str| {
        std::fs::create_dir(folder.join(name)).expect("a folder can be made");
        let text = yaml(&web("web", "172.30.1.1", &[endpoint]));
        std::fs::write(folder.join(name).join("web.yaml"), text).expect("a file can be written");
    };
    version("..2026_01_01", "10.1.0.1:8080");
    symlink("..2026_01_01", folder.join("..data")).expect("a link can be made");
    symlink("..data/web.yaml", folder.join("web.yaml")).expect("a link can be made");
    node.start(&json!({}));
    node.wait_forward("the first version", "172.30.1.1:80", &["10.1.0.1:8080"]);
    version("..2026_01_02", "10.1.0.2:8080");
    symlink("..2026_01_02", folder.join("..data_tmp")).expect("a link can be made");
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("a link can be moved");
    std::fs::remove_dir_all(folder.join("..2026_01_01")).expect("the old version is there");
    node.wait_forward("the second version", "172.30.1.1:80", &["10.1.0.2:8080"]);
    node.stop();
}

/// Whoever may write manifests may not write the log.
#[test]
fn names_cannot_forge_lines_of_the_log() {
    let Some(mut node) = Node::new() else { return };
    let mut objects = web("web", "172.30.1.1", &["10.1.0.1:8080"]);
    node.write("good.yaml", &yaml(&objects));
    node.write("a\nforged by a file\u{1b}[2J.yaml", "a: [");
    objects[0]["metadata"]["name"] = json!("web\nforged by a name");
    objects[1]["metadata"]["name"] = json!("other");
    objects[1]["metadata"]["labels"]["kubernetes.io/service-name"] = json!("web\nforged by a label");
    node.write("names.yaml", &yaml(&objects));
    node.start(&json!({}));
    node.wait_forward("beside them", "172.30.1.1:80", &["10.1.0.1:8080"]);
    for word in ["a file", "a name", "a label"] {
        let line = node.wait_for_log(word, |line| line.contains(&format!("\\nforged by {word}")));
        assert!(line.contains(" WARN ") && !line.contains('\u{1b}'), "{line}");
    }
    assert!(!node.log().lines().any(|line| line.starts_with("forged")), "{}", node.log());
    node.stop();
}

#[test]
fn what_is_wrong_is_said_once_and_the_rest_works() {
    let Some(mut node) = Node::new() else { return };
    let good = |name: &str, address: &str| yaml(&web(name, address, &["10.1.0.1:8080"]));
    let bad_field = |external_ip: &str| {
        let mut objects = web("bad-field", "172.30.1.2", &["10.1.0.2:8080"]);
        objects[0]["spec"]["externalIPs"] = json!(["198.51.100.1", external_ip]);
        yaml(&objects)
    };
    let mut bad_object = web("bad-object", "172.30.1.4", &["10.1.0.4:8080"]);
    bad_object[0]["spec"]["ports"] = json!("eighty");
    node.write("a.yaml", &format!("---\n{{: not\n{}", good("one", "172.30.1.1")));
    node.write("b.yaml", &bad_field("198.51.100.x"));
    node.write("c.yaml", &(good("three", "172.30.1.3") + &yaml(&bad_object)));
    node.write("d.yaml", &yaml(&[json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}})]));
    node.start(&json!({}));
    node.wait_forward("beside a bad document", "172.30.1.1:80", &["10.1.0.1:8080"]);
    node.wait_forward("beside a bad field", "172.30.1.2:80", &["10.1.0.2:8080"]);
    node.wait_forward("the good value of a bad field", "198.51.100.1:80", &["10.1.0.2:8080"]);
    node.wait_forward("beside a bad object", "172.30.1.3:80", &["10.1.0.1:8080"]);

    let faults: &[(&str, &[&str])] = &[
        ("a bad document", &["file a.yaml, document 1", "not YAML", "line 2"]),
        ("a bad field", &["shop/bad-field", "spec.externalIPs[1]", "198.51.100.x"]),
        ("a bad object", &["file c.yaml, document 3", "shop/bad-object", "spec.ports", "eighty"]),
        ("another kind", &["apps/v1 Deployment"]),
    ];
    for (what, words) in faults {
        node.wait_for_log(what, |line| words.iter().all(|word| line.contains(word)));
        let log = node.log();
        let lines = log.lines().filter(|line| line.contains(words[0]));
        assert_eq!(lines.count(), 1, "{what} is said once:\n{log}");
    }

    node.replace("a.yaml", &good("one", "172.30.1.1"));
    node.replace("b.yaml", &bad_field("198.51.100.2"));
    bad_object[0]["spec"]["ports"] = json!([{"name": "http", "port": 80}]);
    node.replace("c.yaml", &(good("three", "172.30.1.3") + &yaml(&bad_object)));
    for what in ["file a.yaml, document 1", "shop/bad-field", "file c.yaml, document 3"] {
        node.wait_for_log(what, |line| line.contains(what) && line.contains("nothing is wrong any more"));
    }
    node.wait_forward("the repaired field", "198.51.100.2:80", &["10.1.0.2:8080"]);
    node.wait_forward("the repaired object", "172.30.1.4:80", &["10.1.0.4:8080"]);
    node.stop();
}

#[test]
fn what_becomes_unreadable_keeps_what_it_said() {
    let Some(mut node) = Node::new() else { return };
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    node.start(&json!({}));
    // A link to itself, for root too.
    let link = node.file("link");
    symlink("web.yaml", &link).expect("a link can be made");
    std::fs::rename(&link, node.folder().join("web.yaml")).expect("a link can be moved");
    node.wait_for_log("an unreadable file", |line| line.contains("file web.yaml") && line.contains("cannot be read"));
    node.write("other.yaml", &yaml(&web("other", "172.30.1.2", &["10.1.0.2:8080"])));
    node.wait_forward("another file", "172.30.1.2:80", &["10.1.0.2:8080"]);
    node.wait_forward("the unreadable file", "172.30.1.1:80", &["10.1.0.1:8080"]);
    // Half of it, as an editor may leave it.
    node.replace("other.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: \"oth");
    node.wait_for_log("half a file", |line| line.contains("file other.yaml, document 1"));
    node.replace("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.3:8080"])));
    node.wait_forward("it can be read again", "172.30.1.1:80", &["10.1.0.3:8080"]);
    node.wait_forward("what half a file had said", "172.30.1.2:80", &["10.1.0.2:8080"]);
    node.stop();
}

/// A Service with a node port.
fn with_node_port(port: u16) -> Vec<Value> {
    let port = json!({"name": "http", "port": 80, "targetPort": 8080, "nodePort": port});
    let spec = json!({"type": "NodePort", "ports": [port]});
    vec![service("shop", "web", &[ip("172.30.1.1")], &spec), slice("web", &["10.1.0.1:8080"])]
}

#[test]
fn node_ports_follow_the_addresses_of_the_node() {
    let Some(mut node) = Node::new() else { return };
    node.write("web.yaml", &yaml(&with_node_port(30080)));
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.start(&json!({"nodePortAddresses": ["192.0.2.0/25", "198.51.100.0/24"]}));
    let delivered = |fate: &Fate| *fate == Fate::Pass(Passed::Delivered);
    for address in [NODE_IP, OTHER_IP] {
        node.wait_forward("an address from the beginning", &format!("{address}:30080"), &["10.1.0.1:8080"]);
    }
    for round in 0..3 {
        let what = format!("round {round}");
        node.wait_fate(&what, "198.51.100.9:30080", untouched);
        node.ip("addr add 198.51.100.9/32 dev alt0");
        node.wait_forward(&what, "198.51.100.9:30080", &["10.1.0.1:8080"]);
        node.ip("addr add 192.0.2.200/32 dev alt0");
        node.wait_fate("an address in no range", "192.0.2.200:30080", delivered);
        node.ip("addr del 198.51.100.9/32 dev alt0");
        node.ip("addr del 192.0.2.200/32 dev alt0");
        node.wait_fate(&what, "198.51.100.9:30080", untouched);
    }
    node.wait_forward("an address that stayed", &format!("{NODE_IP}:30080"), &["10.1.0.1:8080"]);
    node.stop();
}

#[test]
fn service_cidrs_take_effect_as_they_come_and_go() {
    let Some(mut node) = Node::new() else { return };
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    node.start(&json!({}));
    node.wait_fate("no ServiceCIDR", "172.30.9.9:80", untouched);
    node.write("cidr.yaml", &yaml(&[service_cidr()]));
    node.wait_fate("a ServiceCIDR", "172.30.9.9:80", dropped);
    let mut more = service_cidr();
    more["metadata"]["name"] = json!("more");
    more["spec"]["cidrs"] = json!(["172.31.0.0/16"]);
    node.write("more.yaml", &yaml(&[more]));
    node.wait_fate("another one", "172.31.9.9:80", dropped);
    node.remove("cidr.yaml");
    node.wait_fate("the first goes", "172.30.9.9:80", untouched);
    node.wait_fate("the other stays", "172.31.9.9:80", dropped);
    assert!(SERVICE_CIDRS[0].starts_with("172.30."), "the addresses of this test");
    node.wait_forward("the Service", "172.30.1.1:80", &["10.1.0.1:8080"]);
    node.stop();
}

/// A range that holds the node's own addresses, by mistake, does not cut the node off, and is named.
#[test]
fn a_service_cidr_that_holds_the_nodes_addresses_leaves_it_reachable() {
    const OUTSIDE: [&str; 2] = [CLIENT, CLIENT_V6];
    const PODS: [&str; 2] = ["10.1.0.9", "fd00:1::9"];
    // From the addresses where Services would be: kubelet and the like, ssh, NTP, health checks, and node ports.
    const TO_THE_NODE: [(Protocol, &str, &str); 5] = [
        (Protocol::Tcp, ":22", "delivered"),
        (Protocol::Udp, ":123", "delivered"),
        (Protocol::Tcp, ":10256", "delivered"),
        (Protocol::Tcp, ":30080", "forwarded"),
        (Protocol::Tcp, ":30081", "delivered"),
    ];
    let Some(mut node) = Node::new() else { return };
    let overlapping = |ranges: &[&str]| {
        yaml(&[json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "overlapping"},
            "spec": {"cidrs": ranges}
        })])
    };
    let both = overlapping(&["192.0.2.0/24", "2001:db8::/120"]);
    node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
    node.write("cidr.yaml", &yaml(&[service_cidr()]));
    let mut services = with_node_port(30080);
    let mut six = web("six", "fd00:172:30::1", &["[fd00:1::1]:8080"]);
    six[0]["spec"]["type"] = json!("NodePort");
    six[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    services.extend(six);
    node.write("services.yaml", &yaml(&services));
    node.write("overlapping.yaml", &both);

    let answered = |node: &mut Node| {
        let mut wrong = Vec::new();
        for (index, address) in [NODE_IP, NODE_IP_V6].into_iter().enumerate() {
            for source in [OUTSIDE[index], PODS[index], address] {
                for (protocol, port, wanted) in TO_THE_NODE {
                    let to = if index == 0 { format!("{address}{port}") } else { format!("[{address}]{port}") };
                    let probe = Probe { clients: vec![ip(source)], protocol, destination: socket(&to) };
                    let fate = match node.world.probe_once(&probe, Duration::from_millis(20)) {
                        Fate::Pass(Passed::Delivered) => "delivered",
                        Fate::Forward { .. } => "forwarded",
                        Fate::Pass(_) => "gone elsewhere",
                        Fate::Drop => "dropped",
                        Fate::Reject(_) => "refused",
                    };
                    if fate != wanted {
                        wrong.push(format!("{source} -> {protocol:?} {to} {fate}"));
                    }
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("{} of 30 not answered: {wrong:#?}", wrong.len())) }
    };
    let told = |node: &Node| {
        let log = node.log();
        let of = |text: &str| log.lines().filter(|line| line.contains("overlapping") && line.contains(text)).count();
        (of("WARN"), of("holds no address of this node any more"))
    };
    let cidrs_are = |node: &mut Node, what: &str, neighbour: &dyn Fn(&Fate) -> bool| {
        for (to, fate) in [("192.0.2.99:22", neighbour), ("[2001:db8::99]:22", neighbour)] {
            node.wait_fate(what, to, fate);
        }
        node.wait_fate(what, "172.30.9.9:80", dropped);
        node.wait_fate(what, "[fd00:172:30::9:9]:80", dropped);
        node.wait_fate(what, "172.30.1.1:81", refused);
        node.wait_fate(what, "[fd00:172:30::1]:81", refused);
        node.eventually(what, answered);
    };
    let wait_told = |node: &mut Node, wanted: (usize, usize)| {
        node.eventually("it is said", |node| {
            let told = told(node);
            if told == wanted { Ok(()) } else { Err(format!("{told:?}, not {wanted:?}")) }
        });
    };

    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    cidrs_are(&mut node, "at the start", &dropped);
    wait_told(&mut node, (2, 0));
    let log = node.log();
    for named in ["192.0.2.0/24 holds addresses of this node: 192.0.2.10, 192.0.2.77;", "2001:db8::/120 holds"] {
        assert!(log.contains(&format!("ServiceCIDR overlapping: spec.cidrs: {named}")), "{log}");
    }
    let doctor = |node: &Node| {
        let report = run_to_end(node, true, &["doctor"]).stdout;
        let line = |line: &&str| line.starts_with("check  ServiceCIDR overlapping: spec.cidrs: ");
        report.lines().filter(line).map(str::to_owned).collect::<Vec<_>>()
    };
    let of_both =
        ["192.0.2.0/24 holds addresses of this node: 192.0.2.10, 192.0.2.77", "2001:db8::/120 holds addresses"];
    let found = doctor(&node);
    assert!(found.len() == 2 && (0..2).all(|nth| found[nth].contains(of_both[nth])), "{found:?}");
    // A server of the node, asked by a client of the node.
    echo_server(&node, socket("192.0.2.10:2222"));
    node.world.run(|| {
        let connect = || TcpStream::connect_timeout(&socket("192.0.2.10:2222"), Duration::from_secs(30));
        (0..10).for_each(|_| echoes(&mut connect().expect("the node reaches itself"), "ssh").expect("an echo"));
    });

    node.remove("overlapping.yaml");
    cidrs_are(&mut node, "without", &untouched);
    wait_told(&mut node, (2, 2));
    assert_eq!(doctor(&node), [""; 0]);
    node.write("overlapping.yaml", &both);
    cidrs_are(&mut node, "added while it runs", &dropped);
    wait_told(&mut node, (4, 2));

    // More of the same is news; what has nothing to do with it is not.
    node.ip("address add 192.0.2.99/32 dev alt0");
    node.wait_fate("a new address", "192.0.2.99:22", |fate| matches!(fate, Fate::Pass(Passed::Delivered)));
    wait_told(&mut node, (5, 2));
    node.ip("address add 198.51.100.9/32 dev alt0");
    node.replace("services.yaml", &yaml(&[services, web("dns", "192.0.2.53", &["10.1.0.5:8080"])].concat()));
    node.wait_forward("a Service in the range", "192.0.2.53:80", &["10.1.0.5:8080"]);
    // As a DNS cache of the node does.
    node.ip("address add 192.0.2.53/32 dev alt0");
    node.replace(
        "cidr.yaml",
        &yaml(&[
            service_cidr(),
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "third"},
                "spec": {"cidrs": ["172.31.0.0/16"]}
            }),
        ]),
    );
    node.wait_fate("a third range", "172.31.0.1:80", dropped);
    node.wait_fate("a bound cluster IP", "192.0.2.53:81", refused);
    node.replace("overlapping.yaml", &overlapping(&["192.0.2.0/24"]));
    wait_told(&mut node, (5, 3));
    let log = node.log();
    assert!(!log.contains("192.0.2.53,") && !log.contains("ServiceCIDR third: spec"), "{log}");
    node.stop();
}

#[test]
fn the_pod_ranges_of_the_node_decide_about_masquerading() {
    let Some(mut node) = Node::new() else { return };
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    node.write("node.yaml", &yaml(&[node_object(&["10.5.0.0/24"])]));
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    let masqueraded = |node: &mut Node, client: &str, wanted: Masquerade| {
        let destination = "172.30.1.1:80".parse().expect("an address and a port");
        let probe = Probe { clients: vec![ip(client)], protocol: Protocol::Tcp, destination };
        node.eventually(&format!("{client} is masqueraded: {wanted:?}"), |node| {
            let outcome = node.world.probe(&probe, 1, Look::QUICK);
            match outcome.masquerade(&"10.1.0.1:8080".parse().expect("an address and a port")) {
                seen if seen == wanted => Ok(()),
                _ => Err(outcome.to_string()),
            }
        });
    };
    for (ranges, inside, outside) in [
        (&["10.5.0.0/24"][..], Some("10.5.0.9"), Some("10.6.0.9")),
        (&["10.6.0.0/24", "fd00:6::/64"], Some("10.6.0.9"), Some("10.5.0.9")),
        // None: nothing is known of where pods are, so nothing is masqueraded.
        (&[], Some("10.5.0.9"), None),
        (&["10.5.0.0/24"], Some("10.5.0.9"), Some("10.6.0.9")),
    ] {
        node.replace("node.yaml", &yaml(&[node_object(ranges)]));
        if let Some(client) = inside {
            masqueraded(&mut node, client, Masquerade::No);
        }
        if let Some(client) = outside {
            masqueraded(&mut node, client, Masquerade::Yes);
        }
    }
    node.stop();
}

#[test]
fn the_zone_of_the_node_is_followed() {
    let Some(mut node) = Node::new() else { return };
    let in_zone = |zone: Option<&str>| {
        let mut object = node_object(&[]);
        if let Some(zone) = zone {
            object["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
        }
        yaml(&[object])
    };
    let mut objects = web("zoned", "172.30.1.8", &["10.1.0.1:8080", "10.1.0.2:8080"]);
    for (endpoint, zone) in [(0, "a"), (1, "b")] {
        objects[1]["endpoints"][endpoint]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    node.write("zoned.yaml", &yaml(&objects));
    node.write("node.yaml", &in_zone(Some("a")));
    node.start(&json!({}));
    // A dozen connections that all go to one of two endpoints by chance are one case in 2048.
    let only = |node: &mut Node, what: &str, endpoint: &str| {
        node.eventually(what, |node| {
            let at = socket(endpoint);
            match (0..12)
                .map(|_| node.fate(Protocol::Tcp, "172.30.1.8:80"))
                .find(|fate| !matches!(fate, Fate::Forward { endpoint, .. } if *endpoint == at))
            {
                None => Ok(()),
                Some(fate) => Err(format!("{fate:?}")),
            }
        });
    };
    only(&mut node, "zone a", "10.1.0.1:8080");
    node.replace("node.yaml", &in_zone(Some("b")));
    only(&mut node, "zone b", "10.1.0.2:8080");
    node.replace("node.yaml", &in_zone(None));
    for endpoint in ["10.1.0.1:8080", "10.1.0.2:8080"] {
        node.wait_forward("no zone", "172.30.1.8:80", &[endpoint]);
    }
    node.stop();
}
