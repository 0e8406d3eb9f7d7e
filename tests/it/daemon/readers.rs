//! The nft of other Debian releases reads our tables, and does its everyday work beside them: what an old nft cannot
//! read in one table keeps it from all others.
//!
//! `tests/nft-versions` fetches them. Where one is not there, its test says that it is skipped, or fails where `CI` is
//! set.

use std::collections::BTreeMap;
use std::process::Output;

use nftproxyd::ruleset::names::SetName;
use serde_json::{Value, json};

use super::guard;
use super::take_over::{Clients, connect, node_with_echo};
use super::{Node, echoes, ip, run_to_end, slice_of, socket, write_everything, yaml};
use crate::support::nft::{assert_same, blocks};
use crate::support::nft_versions::Nft;
use crate::support::objects::{endpoint_slice, service};
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;

/// The tables of a listing, each by its sets and chains.
type Tables = BTreeMap<String, BTreeMap<String, Vec<String>>>;

impl Nft {
    /// Runs it in the node.
    fn output(&self, node: &Node, arguments: &[&str], input: &str) -> Output {
        let (nft, input) = (self.clone(), input.to_owned());
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        node.world.run(move || nft.output_here(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &input))
    }

    /// Runs it in the node; it has to succeed, and to complain about nothing that it reads.
    #[track_caller]
    fn run(&self, node: &Node, arguments: &[&str], input: &str) -> String {
        let output = self.output(node, arguments, input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let name = self.0.display();
        assert!(output.status.success() && stderr.is_empty(), "{name} {arguments:?}: {}: {stderr}", output.status);
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn tables(&self, node: &Node) -> Tables {
        tables(&self.run(node, &["list", "ruleset"], ""))
    }
}

fn tables(listing: &str) -> Tables {
    let mut tables: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in listing.lines() {
        if line.starts_with("table ") {
            // 0.9.8 does not say which program owns a table.
            name = line.split(" # progname").next().unwrap_or(line).to_owned();
        }
        tables.entry(name.clone()).or_default().extend([line, "\n"]);
    }
    tables.into_iter().map(|(name, text)| (name, blocks(&text))).collect()
}

/// The Services of [`write_everything`], and one of each kind that has all: both families, all protocols, all kinds of
/// addresses, policies.
pub(super) fn write_more(node: &Node) {
    write_everything(node);
    let ports = [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53), ("assoc", Protocol::Sctp, 99)];
    let kinds = [
        (
            "all",
            json!({"sessionAffinity": "ClientIP",
                "loadBalancerSourceRanges": ["203.0.113.0/24", "198.18.0.0/15", "2001:db8:c::/48"]}),
        ),
        ("local", json!({"externalTrafficPolicy": "Local"})),
        ("inside", json!({"internalTrafficPolicy": "Local"})),
        ("none", json!({"sessionAffinity": "ClientIP"})),
        ("pinged", json!({})),
        ("guarded", json!({"loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:c::/48"]})),
        ("guarded-local", json!({"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["203.0.113.0/24"]})),
    ];
    let mut objects = Vec::new();
    for (nth, (name, spec)) in (1_u16..).zip(kinds) {
        let cluster_ips = [ip(&format!("172.30.2.{nth}")), ip(&format!("fd00:172:30::2:{nth}"))];
        let mut object = service("shop", name, &cluster_ips, &spec);
        object["spec"]["type"] = json!("LoadBalancer");
        if name == "pinged" {
            object["metadata"]["annotations"] = json!({"nftproxyd.io/ping": "true"});
        }
        if name.starts_with("guarded") {
            object["metadata"]["annotations"] = json!({"nftproxyd.io/source-ranges-everywhere": "true"});
        }
        object["spec"]["externalIPs"] = json!([format!("198.51.100.1{nth}"), format!("2001:db8:e::1{nth}")]);
        let addresses = [format!("198.51.100.2{nth}"), format!("2001:db8:e::2{nth}")];
        object["status"]["loadBalancer"]["ingress"] = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let port = |(name, protocol, number): &(&str, Protocol, u16)| {
            let protocol = format!("{protocol:?}").to_uppercase();
            json!({"name": name, "protocol": protocol, "port": number, "targetPort": 8000 + number,
                "nodePort": 30_000 + 100 * nth + number})
        };
        object["spec"]["ports"] = ports.iter().map(port).collect();
        objects.push(object);
        for (port, protocol, number) in ports.iter().filter(|_| name != "none") {
            for (word, pods) in [("4", "10.1.0."), ("6", "[fd00:1::")] {
                let end = if word == "6" { "]" } else { "" };
                let pod = |last: u16| socket(&format!("{pods}{last}{end}:{}", 8000 + number));
                let endpoints = [(pod(1), super::NODE_NAME), (pod(2), "elsewhere"), (pod(3), "elsewhere")];
                let slice = format!("{name}-{port}-{word}");
                objects.push(endpoint_slice("shop", &slice, name, (port, *protocol), &endpoints));
            }
        }
    }
    // Slots of two digits.
    let endpoints: Vec<String> = (1..=12).map(|last| format!("10.1.1.{last}:8080")).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let port = json!({"name": "http", "port": 80, "targetPort": 8080});
    objects.push(service("shop", "many", &[ip("172.30.2.9")], &json!({"ports": [port]})));
    objects.push(slice_of("many", ("http", Protocol::Tcp), &endpoints));
    node.write("more.yaml", &yaml(&objects));
}

/// A node whose tables hold everything, also clients that are remembered, and what they hold by `nftproxyd render`.
fn full_node() -> Option<(Node, Tables)> {
    let mut node = Node::unprotected()?;
    write_more(&node);
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    for address in ["172.30.1.2:80", "[fd00:172:30::2:1]:80"] {
        let client = ip(if address.starts_with('[') { "2001:db8:c::7" } else { super::CLIENT });
        node.eventually("a client is served", |node| match node.fate_from(client, Protocol::Tcp, address) {
            Fate::Forward { .. } => Ok(()),
            fate => Err(format!("{address}: {fate:?}")),
        });
    }
    for family in ["ip", "ip6"] {
        let affinity = node.nft(&["list", "map", family, "nftproxyd", "affinity"]).expect("a listing");
        assert!(affinity.contains(" expires "), "nobody is remembered: {affinity}");
    }
    let (folder, config) = (node.folder(), node.file("config.yaml"));
    let arguments = ["render", "--manifests", &folder.display().to_string(), "--config", &config.display().to_string()];
    let rendered = run_to_end(&node, true, &arguments);
    assert_eq!(rendered.status, Some(0), "{}", rendered.stderr);
    Some((node, tables(&rendered.stdout)))
}

/// Whether a line of a set is about the set, not one of its elements.
fn is_definition(line: &str) -> bool {
    ["type ", "typeof ", "size ", "flags "].iter().any(|word| line.starts_with(word))
}

/// The tables without what the kernel itself has written into them.
fn without_clients(mut tables: Tables) -> Tables {
    for blocks in tables.values_mut() {
        blocks.get_mut("map affinity {").into_iter().for_each(|lines| lines.retain(|line| is_definition(line)));
    }
    tables
}

/// The tables with each line as a version of nft has it.
fn spelt(tables: &Tables, spell: impl Fn(&str, &str) -> String) -> Tables {
    let lines = |table: &str, lines: &Vec<String>| {
        // The one line that all versions shorten.
        let all = lines.iter().map(|line| line.replace("meta l4proto tcp reject with", "reject with"));
        all.map(|line| spell(table, &line)).collect()
    };
    let blocks = |table: &str, blocks: &BTreeMap<String, Vec<String>>| {
        blocks.iter().map(|(name, block)| (name.clone(), lines(table, block))).collect()
    };
    tables.iter().map(|(name, table)| (name.clone(), blocks(name, table))).collect()
}

/// nft lists the tables as they are rendered, each line spelt its own way, and everything else works beside them.
fn reads(suite: &str, spell: impl Fn(&str, &str) -> String) -> Option<(Nft, Node, Tables)> {
    let nft = Nft::of(suite)?;
    let (node, rendered) = full_node()?;
    let listed = nft.tables(&node);
    let mut expected = spelt(&rendered, spell);
    if guard::stands(&node) {
        let flags = if suite == "bullseye" { "flags ," } else { "flags owner" };
        expected.extend(["ip", "ip6"].map(|family| (format!("table {family} nftproxyd-guard {{"), guard_with(flags))));
    }
    assert_eq!(listed.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (table, blocks) in without_clients(listed.clone()) {
        assert_same(&blocks, &expected[&table], format!("{suite}, {table}"));
    }
    // That the tables are as full as they were meant to be.
    let of = |table: &str, block: &str| &listed[&format!("table {table} nftproxyd {{")][&format!("{block} {{")];
    let has = |table, block, line: &str| {
        assert!(of(table, block).iter().any(|is| is == line), "{suite}: no {line}: {:#?}", of(table, block));
    };
    has("ip", "map endpoints", "172.30.2.9 . tcp . 80 . 11 : 10.1.1.12 . 8080");
    has("ip", "map endpoints", "198.51.100.22 . sctp . 99 . 65536 : 10.1.0.1 . 8099");
    has("ip6", "map nodeport-endpoints", "udp . 30153 . 2 : fd00:1::3 . 8053");
    has("ip", "map service-ips", "172.30.2.4 . udp . 53 comment \"shop/none:dns\" : f800:2");
    has("ip", "map dispatch", "f800:2 : goto reject-it");
    has("ip", "set nodeport-allowed-sources", "sctp . 30799 . 203.0.113.0/24");
    has("ip6", "set ping-ips", "2001:db8:e::25");
    has("ip", "chain nat-prerouting", "icmp type echo-request ip daddr @ping-ips dnat to 192.0.2.10");
    has("ip", "map dispatch", "f800:8 : goto nodeport-source-ranges-local");
    for (table, client) in [("ip", "203.0.113.7 . 172.30.1.2"), ("ip6", "2001:db8:c::7 . fd00:172:30::2:1")] {
        let elements: Vec<_> = of(table, "map affinity").iter().filter(|line| !is_definition(line)).collect();
        assert!(elements.len() == 1 && elements[0].starts_with(client), "{suite}: {elements:?}");
    }
    assert!(of("ip", "map endpoints").len() > 100, "{suite}");

    everyday_work(&nft, &node);
    for (table, blocks) in without_clients(nft.tables(&node)) {
        assert_same(&blocks, &expected[&table], format!("{suite}, {table} afterwards"));
    }
    assert!(!node.log().contains("repaired") && !node.log().contains("replaced"), "{}", node.log());
    Some((nft, node, rendered))
}

/// The guard's table of a family.
fn guard_with(flags: &str) -> BTreeMap<String, Vec<String>> {
    let blocks: [(&str, &[&str]); 3] = [
        (
            "table",
            &[
                flags,
                r#"comment "keeps open connections translated while tables are flushed; goes when nftproxyd ends""#,
            ],
        ),
        ("chain nat-input {", &["type nat hook input priority filter; policy accept;"]),
        (
            "chain connections {",
            &[r#"ct status dnat comment "no packet comes here; that it is there keeps connection tracking on""#],
        ),
    ];
    let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
    blocks.into_iter().map(|(name, block)| (name.to_owned(), lines(block))).collect()
}

/// What administrators and firewalls do with other tables, and with ours by name.
fn everyday_work(nft: &Nft, node: &Node) {
    let run = |arguments: &str| nft.run(node, &[arguments], "");
    let guard = if guard::stands(node) { guard::GUARD } else { "" };
    assert_eq!(run("list tables"), guard.to_owned() + guard::TABLES);
    run("add table inet other");
    run("add chain inet other input { type filter hook input priority 0; policy accept; }");
    run("add rule inet other input tcp dport 22 accept");
    run("insert rule inet other input tcp dport 23 drop");
    run("add set inet other ports { type inet_service; }");
    run("add map inet other names { type inet_service : verdict; }");
    run("add element inet other ports { 22, 80 }");
    run("add element inet other names { 22 : accept }");
    run("delete element inet other ports { 80 }");
    run("get element inet other ports { 22 }");
    let file = node.file("other.nft");
    let text = "table inet other {\n\tchain more {\n\t\ttcp dport @ports accept\n\t}\n}\n\
                add element inet other ports { 443 }\n";
    std::fs::write(&file, text).expect("a file can be written");
    let file = file.display().to_string();
    nft.run(node, &["-c", "-f", &file], "");
    nft.run(node, &["-f", &file], "");
    let with_handles = nft.run(node, &["-a", "list chain inet other input"], "");
    let handle = with_handles.lines().find_map(|line| line.split_once("tcp dport 23 drop # handle "));
    let (_, handle) = handle.unwrap_or_else(|| panic!("no handle: {with_handles}"));
    run(&format!("delete rule inet other input handle {handle}"));
    let other = run("list table inet other");
    for line in ["elements = { 22, 443 }", "tcp dport 22 accept", "tcp dport @ports accept"] {
        assert!(other.contains(line), "no {line}: {other}");
    }
    assert!(!other.contains("tcp dport 23"), "{other}");
    run("delete table inet other");

    // As firewalld speaks to libnftables.
    let firewalld = |add: Value| {
        let commands = json!({"nftables": [{"metainfo": {"json_schema_version": 1}}, {"add": add}]});
        nft.run(node, &["-j", "-e", "-a", "-f", "-"], &commands.to_string());
    };
    let (family, table, chain) = ("inet", "firewalld", "filter_INPUT");
    firewalld(json!({"table": {"family": family, "name": table}}));
    firewalld(json!({"chain": {"family": family, "table": table, "name": chain,
        "type": "filter", "hook": "input", "prio": 10}}));
    firewalld(json!({"set": {"family": family, "table": table, "name": "sources", "type": "ipv4_addr"}}));
    firewalld(json!({"element": {"family": family, "table": table, "name": "sources", "elem": ["203.0.113.9"]}}));
    let state = json!({"match": {"op": "in", "left": {"ct": {"key": "state"}},
        "right": {"set": ["established", "related"]}}});
    firewalld(json!({"rule": {"family": family, "table": table, "chain": chain, "expr": [state, {"accept": null}]}}));
    let listed = run("list table inet firewalld");
    assert!(
        listed.contains("elements = { 203.0.113.9 }") && listed.contains("ct state { established, related } accept"),
        "{listed}"
    );
    run("delete table inet firewalld");

    run("list map ip nftproxyd service-ips");
    run("list chain ip6 nftproxyd services");
    run("get element ip nftproxyd service-ips { 172.30.1.1 . tcp . 80 }");
    run("list tables");
}

/// The JSON listing holds every element.
fn reads_as_json((nft, node, rendered): (Nft, Node, Tables)) {
    // 1.0.6 leaves out the updates of `affinity`, says so, and goes on.
    let output = nft.output(&node, &["-j", "list", "ruleset"], "");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut sets = 0;
    for object in listed["nftables"].as_array().expect("a list") {
        for kind in ["set", "map"] {
            let Some(set) = object.get(kind) else { continue };
            let text = |field: &str| set[field].as_str().unwrap_or_else(|| panic!("no {field}: {set}"));
            if text("name") == "affinity" {
                continue;
            }
            let table = &rendered[&format!("table {} nftproxyd {{", text("family"))];
            let lines = &table[&format!("{kind} {} {{", text("name"))];
            let elements = set.get("elem").and_then(Value::as_array).map_or(0, Vec::len);
            assert_eq!(elements, lines.iter().filter(|line| !is_definition(line)).count(), "{}", text("name"));
            sets += 1;
        }
    }
    // All but one of each table.
    assert_eq!(sets, 2 * (SetName::ALL.len() - 1));
}

/// nft 0.9.8 has other words for a few things, knows no `numgen` in a `typeof`, and loses the port behind an update's
/// address. It takes every IPv6 prefix in a concatenation that is shorter than 64 bits for one of 64.
fn as_in_bullseye(table: &str, line: &str) -> String {
    let address = if table.contains("ip6") { "ipv6_addr" } else { "ipv4_addr" };
    if line.starts_with("typeof") && line.contains("numgen") {
        let key = if line.contains("daddr . meta") { format!("{address} . ") } else { String::new() };
        return format!("type {key}inet_proto . inet_service . uid : {address} . inet_service");
    }
    let line = line.replace("dnat ip to", "dnat ip addr . port to").replace("dnat ip6 to", "dnat ip6 addr . port to");
    line.replace(" . ct reply proto-src }", " }").replace("2001:db8:c::/48", "2001:db8:c::/64")
}

#[test]
fn debian_11() {
    reads("bullseye", as_in_bullseye);
}

#[test]
fn debian_12() {
    if let Some(read) = reads("bookworm", |_, line| line.to_owned()) {
        reads_as_json(read);
    }
}

#[test]
fn debian_13() {
    // It knows the names of priorities in more hooks.
    let spell = |_: &str, line: &str| {
        line.replace("output priority -100", "output priority dstnat")
            .replace("input priority 99", "input priority srcnat - 1")
    };
    if let Some(read) = reads("trixie", spell) {
        reads_as_json(read);
    }
}

/// The nft of the host decides what the doctor has to say about it: it loads what it lists, or not.
#[test]
fn the_doctor_says_what_the_nft_of_the_host_cannot_read_back() {
    let Some((mut node, _)) = full_node() else { return };
    let doctor = |node: &Node| run_to_end(node, true, &["doctor"]).stdout;
    let says = |node: &Node| {
        doctor(node).contains("cannot read back what it lists of session affinity in table ip6 nftproxyd")
    };
    let listing = node.nft(&["list", "table", "ip6", "nftproxyd"]).expect("the table is there");
    let said = says(&node);
    node.stop();
    node.nft(&["flush", "ruleset"]).expect("the tables can go");
    let reads_back = node.world.nft(&["-f", "-"], &listing).is_ok();
    assert_eq!(said, !reads_back, "{}", doctor(&node));
    node.nft(&["flush", "ruleset"]).expect("the tables can go");
    assert!(!says(&node), "there is no table");
    write_everything(&node);
    std::fs::remove_file(node.folder().join("more.yaml")).expect("it is there");
    node.start(&json!({}));
    let remembers = node.nft(&["list", "table", "ip6", "nftproxyd"]).expect("the table is there").contains("remember-");
    assert_eq!(says(&node), remembers && !reads_back, "{}", doctor(&node));
    node.stop();
}

/// What nft makes of `typeof` everywhere is what the daemon itself wrote at first. The table is replaced in one
/// transaction: parts of it cannot be changed in place.
#[test]
fn a_table_that_old_nft_cannot_read_is_replaced_without_a_gap() {
    let (Some(old_nft), Some(new_nft)) = (Nft::of("bullseye"), Nft::of("trixie")) else { return };
    let Some(mut node) = node_with_echo() else { return };
    node.table_owner = "off";
    node.start(&json!({}));
    let wanted = old_nft.tables(&node);
    node.stop();
    let mut script = "delete table ip nftproxyd\ndelete table ip6 nftproxyd\n".to_owned();
    let mut verdict_maps = 0;
    for line in new_nft.run(&node, &["list", "ruleset"], "").lines() {
        if let Some(types) = line.trim().strip_prefix("type ").and_then(|rest| rest.strip_suffix(" : verdict")) {
            assert_eq!(types, "classid");
            script.push_str("typeof meta priority : verdict\n");
            verdict_maps += 1;
        } else {
            script.extend([line, "\n"]);
        }
    }
    assert_eq!(verdict_maps, 2 * 3, "{script}");
    new_nft.run(&node, &["-f", "-"], &script);
    assert!(!old_nft.output(&node, &["list", "tables"], "").status.success(), "it can read them already");

    let mut stream = connect(&node);
    echoes(&mut stream, "before").expect("the table works");
    let clients = Clients::start(&node);
    node.start(&json!({}));
    let served = clients.stop();
    assert!(served > 10, "{served} connections are too few to say anything");
    echoes(&mut stream, "afterwards").expect("the connection lives");
    for family in ["ip", "ip6"] {
        let line = format!("table {family} nftproxyd was not as this version makes it; it has been replaced");
        assert_eq!(node.log().matches(&line).count(), 1, "{}", node.log());
    }
    assert_eq!(old_nft.tables(&node), wanted);
    node.stop();

    // Once is enough.
    node.start(&json!({}));
    let line = node.wait_for_log("in sync", |line| line.contains(" in sync services="));
    assert!(line.contains("operations=0 "), "{line}");
    node.stop();
}
