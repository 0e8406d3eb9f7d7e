//! Files and what becomes of them.

use super::*;
use std::path::Path;

use crate::config::{Conntrack, LogFormat, Logging, Setting, effective};
use crate::model::Scheduler;

/// What kubeadm writes.
const KUBEADM: &str = include_str!("../../../testdata/kubeadm/config.conf");

fn document(text: &str) -> Document {
    crate::config::document(Path::new("config"), text).expect("it is YAML")
}

fn resolve_text(text: &str) -> Result<Loaded, ConfigError> {
    resolve(document(text), true, &Overrides::default(), "Host-A")
}

/// A file with these fields in the mode `nftables`.
fn file(fields: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: {KIND}\nmode: nftables\n{fields}\n")
}

fn config(fields: &str) -> Config {
    let loaded = resolve_text(&file(fields)).unwrap_or_else(|err| panic!("{fields}: {err}"));
    assert_eq!(loaded.warnings, [] as [&str; 0], "{fields}");
    loaded.config
}

fn problems(text: &str) -> Vec<String> {
    match resolve_text(text) {
        Err(ConfigError::Invalid { problems }) => problems.iter().map(Problem::to_string).collect(),
        other => panic!("{text}: {other:?}"),
    }
}

fn cidr(text: &str) -> IpNet {
    parse::cidr(text).expect("a range")
}

#[test]
fn what_kubeadm_writes() {
    let Loaded { config, warnings, .. } = resolve_text(KUBEADM).expect("it can be used");
    let expected = Config {
        service_proxy_name: None,
        scheduler: Scheduler::Random,
        count_connections: false,
        accounting: false,
        ping: false,
        reset_connections: false,
        node_name: "host-a".to_owned(),
        source: Source::Api { kubeconfig: "/var/lib/kube-proxy/kubeconfig.conf".into(), master: None },
        bind_address: Ipv4Addr::UNSPECIFIED.into(),
        healthz_bind_address: Some((Ipv4Addr::UNSPECIFIED, 10256).into()),
        metrics_bind_address: (Ipv4Addr::LOCALHOST, 10249).into(),
        bind_address_hard_fail: false,
        logging: Logging::default(),
        oom_score_adj: -999,
        conntrack: Conntrack {
            tcp_established_timeout: Duration::from_secs(86_400),
            tcp_close_wait_timeout: Duration::from_secs(3600),
            ..Conntrack::default()
        },
        detect_local: DetectLocal::ClusterCidr(PerFamily { v4: Some(cidr("10.244.0.0/16")), v6: None }),
        node_port_addresses: NodePortAddresses::All,
        localhost_node_ports: PerFamily::default(),
        masquerade_bit: 14,
        masquerade_all: false,
        min_sync_period: Duration::ZERO,
        sync_period: Duration::from_secs(30),
        allow_external_ips: true,
    };
    assert_eq!(config, expected);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("mode \"\": nftables is used instead of iptables"), "{warnings:?}");
}

#[test]
fn without_a_file() {
    let loaded = resolve(without_file(), false, &Overrides::default(), "host-a").expect("it can be used");
    assert_eq!(loaded.warnings, [] as [&str; 0]);
    assert_eq!(loaded.config.node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(loaded.config.source, Source::Api { kubeconfig: PathBuf::new(), master: None });
    assert_eq!(loaded.config, config(""));
}

#[test]
fn flags_beat_the_file() {
    let tree = document(&file("hostnameOverride: from-file\nclientConnection: {kubeconfig: k}"));
    let names = [
        (Some(" From-Flag "), Ok("from-flag")),
        (Some(""), Ok("from-file")),
        (None, Ok("from-file")),
        (Some("  "), Err("--hostname-override")),
    ];
    for (flag, expected) in names {
        let overrides = Overrides { hostname_override: flag.map(str::to_owned), ..Overrides::default() };
        match (resolve(tree.clone(), true, &overrides, "host"), expected) {
            (Ok(loaded), Ok(name)) => assert_eq!(loaded.config.node_name, name),
            (Err(err), Err(field)) => assert!(err.to_string().contains(field), "{err}"),
            (result, _) => panic!("{flag:?}: {result:?}"),
        }
    }
    let overrides = Overrides { manifests: Some("folder".into()), ..Overrides::default() };
    let loaded = resolve(tree.clone(), true, &overrides, "host").expect("it can be used");
    assert_eq!(loaded.config.source, Source::Manifests("folder".into()));
    let overrides = Overrides { master: Some("https://192.0.2.1".into()), ..Overrides::default() };
    let loaded = resolve(tree.clone(), true, &overrides, "host").expect("it can be used");
    assert_eq!(loaded.config.source, Source::Api { kubeconfig: "k".into(), master: Some("https://192.0.2.1".into()) });
    assert!(resolve(without_file(), false, &Overrides::default(), " ").is_err(), "a host without a name");
}

#[test]
fn modes_select_their_sections() {
    let sections = "nftables: {masqueradeAll: true, masqueradeBit: 1, syncPeriod: 11s, minSyncPeriod: 1s}\n\
                    iptables: {masqueradeAll: true, masqueradeBit: 2, syncPeriod: 12s, minSyncPeriod: 2s}\n\
                    ipvs: {syncPeriod: 13s, minSyncPeriod: 3s}\n";
    let cases = [
        ("nftables", 1, 11, 1, NodePortAddresses::Primary, 0),
        ("iptables", 2, 12, 2, NodePortAddresses::All, 1),
        ("\"\"", 2, 12, 2, NodePortAddresses::All, 1),
        ("ipvs", 2, 13, 3, NodePortAddresses::All, 1),
    ];
    for (mode, bit, sync, min, node_ports, warnings) in cases {
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\nmode: {mode}\n{sections}");
        let loaded = resolve_text(&text).unwrap_or_else(|err| panic!("{mode}: {err}"));
        let config = loaded.config;
        assert_eq!((config.masquerade_bit, config.masquerade_all), (bit, true), "{mode}");
        assert_eq!((config.sync_period.as_secs(), config.min_sync_period.as_secs()), (sync, min), "{mode}");
        assert_eq!(config.node_port_addresses, node_ports, "{mode}");
        assert_eq!(loaded.warnings.len(), warnings, "{mode}: {:?}", loaded.warnings);
    }
}

#[test]
fn values_that_count() {
    let node_ports = |fields| config(fields).node_port_addresses;
    assert_eq!(node_ports("nodePortAddresses: []"), NodePortAddresses::Primary);
    assert_eq!(node_ports("nodePortAddresses: [primary]"), NodePortAddresses::Primary);
    let cidrs = vec![cidr("192.0.2.0/24"), cidr("::/0")];
    assert_eq!(node_ports("nodePortAddresses: [192.0.2.7/24, \"::/0\"]"), NodePortAddresses::Cidrs(cidrs));

    let local = |fields| config(fields).detect_local;
    assert_eq!(local("clusterCIDR: \"\""), DetectLocal::ClusterCidr(PerFamily::default()));
    let both = PerFamily { v4: Some(cidr("10.0.0.0/8")), v6: Some(cidr("fd00::/48")) };
    assert_eq!(local("clusterCIDR: \"fd00::/48,10.0.0.0/8\""), DetectLocal::ClusterCidr(both));
    assert_eq!(local("detectLocalMode: NodeCIDR\nclusterCIDR: not looked at"), DetectLocal::NodeCidr);
    let bridge = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}";
    assert_eq!(local(bridge), DetectLocal::BridgeInterface("cni0".to_owned()));
    let prefix = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}";
    assert_eq!(local(prefix), DetectLocal::InterfaceNamePrefix("veth".to_owned()));

    let healthz = |fields| config(fields).healthz_bind_address.expect("it is on").to_string();
    assert_eq!(healthz("bindAddress: \"::\""), "[::]:10256");
    assert_eq!(healthz("healthzBindAddress: 192.0.2.1"), "192.0.2.1:10256");
    assert_eq!(healthz("healthzBindAddress: \"::1\""), "[::1]:10256");
    assert_eq!(healthz("healthzBindAddress: \"[::1]:80\""), "[::1]:80");
    assert_eq!(healthz("healthzBindAddress: 127.0.0.1:1"), "127.0.0.1:1");

    assert_eq!(config("bindAddress: 192.0.2.010").bind_address.to_string(), "192.0.2.10");
    assert!(!config("featureGates: {AllowServiceExternalIPs: false, WinDSR: true}").allow_external_ips);
    assert_eq!(config("nftables: {masqueradeBit: 0}").masquerade_bit, 0);
    assert_eq!(config("nftables: {syncPeriod: 1.5h}").sync_period.as_secs(), 5400);
    let json = format!("{{\"apiVersion\": \"{API_VERSION}\", \"kind\": \"{KIND}\", \"mode\": \"nftables\"}}");
    assert!(resolve_text(&json).is_ok());
}

#[test]
fn values_that_cannot_be_used() {
    let cases = [
        ("bindAddress: \"[::1]\"", "bindAddress: \"[::1]\" is not an IP address"),
        ("healthzBindAddress: 1.2.3.4:0", "healthzBindAddress: \"1.2.3.4:0\" must be an IP address and a port"),
        ("healthzBindAddress: \"::1:x\"", "healthzBindAddress: \"::1:x\" must be"),
        ("featureGates: {X: 1}", "featureGates: {X: 1} must be names with true or false"),
        ("nftables: {masqueradeBit: 32}", "nftables.masqueradeBit: 32 must be from 0 to 31"),
        ("iptables: {masqueradeBit: -1}", "iptables.masqueradeBit: -1 must be from 0 to 31"),
        ("nftables: {syncPeriod: -1s}", "nftables.syncPeriod: -1s must not be negative"),
        ("nftables: {syncPeriod: 1s, minSyncPeriod: 2s}", "nftables.syncPeriod: 1s must not be shorter than"),
        ("nftables: {syncPeriod: 3h, minSyncPeriod: 2h}", "nftables.minSyncPeriod: 7200s must not be longer than 1h"),
        ("nftables: {syncPeriod: 30}", "nftables.syncPeriod: 30 must be a duration as text"),
        ("nftables: 5", "nftables: 5 must be a section"),
        ("metricsBindAddress: \"1.2.3.4:\"", "metricsBindAddress: \"1.2.3.4:\" must be an IP address and a port"),
        ("logging: {format: xml}", "logging.format: \"xml\" must be text or json"),
        ("logging: {verbosity: -1}", "logging.verbosity: -1 must be from 0 to 2147483647"),
        ("logging: {flushFrequency: -1}", "logging.flushFrequency: -0.000000001s must not be negative"),
        ("oomScoreAdj: 1001", "oomScoreAdj: 1001 must be from -1000 to 1000"),
        ("conntrack: {min: -1}", "conntrack.min: -1 must be from 0"),
        ("conntrack: {maxPerCore: 2147483648}", "conntrack.maxPerCore: 2147483648 must be from 0"),
        ("conntrack: {udpTimeout: -1s}", "conntrack.udpTimeout: -1s must not be negative"),
        ("configSyncPeriod: -1s", "configSyncPeriod: -1s must not be negative"),
        ("clientConnection: {burst: -1}", "clientConnection.burst: -1 must be from 0"),
        ("showHiddenMetricsForVersion: \"1\"", "showHiddenMetricsForVersion: \"1\" must be empty or"),
        ("showHiddenMetricsForVersion: \"1.x\"", "showHiddenMetricsForVersion: \"1.x\" must be empty or"),
        ("oomScoreAdj: \"5\"", "oomScoreAdj: \"5\" must be an integer"),
        ("conntrack: {tcpCloseWaitTimeout: 30}", "conntrack.tcpCloseWaitTimeout: 30 must be a duration"),
        ("detectLocalMode: Magic", "detectLocalMode: \"Magic\" must be"),
        ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface: \"\" must be set"),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: a-name-too-long-}",
            "detectLocal.bridgeInterface: \"a-name-too-long-\" is not a name of an interface",
        ),
        ("clusterCIDR: 10.0.0.0/8, fd00::/64", "clusterCIDR: \"10.0.0.0/8, fd00::/64\" \" fd00::/64\" is not a range"),
        ("clusterCIDR: \"10.0.0.0/8,\"", "clusterCIDR: \"10.0.0.0/8,\" \"\" is not a range"),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", "clusterCIDR: \"10.0.0.0/8,11.0.0.0/8\" has more than one IPv4 range"),
        ("nodePortAddresses: [primary, 10.0.0.0/33]", "nodePortAddresses[1]: \"10.0.0.0/33\" must be a range"),
        ("nodePortAddresses: [Primary]", "nodePortAddresses[0]: \"Primary\" must be a range"),
        ("nodePortAddresses: [10.0.0.1]", "nodePortAddresses[0]: \"10.0.0.1\" must be a range"),
        ("nodePortAddresses: 10.0.0.0/8", "nodePortAddresses: \"10.0.0.0/8\" must be a list of texts"),
        ("hostnameOverride: 5", "hostnameOverride: 5 must be a text: write \"5\""),
        ("hostnameOverride: on", "hostnameOverride: on must be a text: write \"on\""),
        ("bindAddressHardFail: \"yes\"", "bindAddressHardFail: \"yes\" must be true or false"),
        ("oomScoreAdj: 0.5", "oomScoreAdj: 0.5 must be an integer"),
        ("hostnameOverride: \" \"", "hostnameOverride: \" \" is not the name of a Node"),
    ];
    for (fields, expected) in cases {
        let found = problems(&file(fields));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{fields}: {found:?}");
    }
    assert!(problems("mode: kernelspace").len() == 3, "apiVersion, kind and mode");
    assert!(problems("[]")[0].starts_with("the file: [] must be a section"));
    assert_eq!(problems("").len(), 2, "apiVersion and kind");
}

#[test]
fn all_problems_are_named_at_once() {
    let found = problems(&file(
        "bindAddress: x\nhealthzBindAddress: w\nclusterCIDR: z\nnodePortAddresses: [A, b/8]\noomScoreAdj: c",
    ));
    let fields: Vec<_> = found.iter().filter_map(|problem| problem.split(':').next()).collect();
    let expected = [
        "oomScoreAdj",
        "bindAddress",
        "healthzBindAddress",
        "clusterCIDR",
        "nodePortAddresses[0]",
        "nodePortAddresses[1]",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn oddities_are_warned_about() {
    let text = file(
        "Mode: x\nmetadata: {name: w}\n\"a\\nb\": 1\nudpIdleTimeout: 250ms\nnftables: {new: 1, syncPeriod: 1s, syncPeriod: 2s}\n\
         ipvs: {strictARP: true, scheduler: rr}\nenableProfiling: true\nfeatureGates: {Nonsense: true, \"b\\nc\": true}\n\
         iptables: {localhostNodePorts: false}",
    );
    let loaded = resolve_text(&text).expect("it can be used");
    let expected = [
        "unknown fields are ignored: Mode, a\\nb, metadata, nftables.new, udpIdleTimeout",
        "of fields that are given twice the last counts: nftables.syncPeriod (line 8)",
        "no effect with nftables: enableProfiling, ipvs.strictARP",
        "unknown feature gates are ignored: Nonsense, b\\nc",
        "ipvs.scheduler: no effect in this mode; nftables.scheduler has one",
    ];
    assert_eq!(loaded.warnings, expected);
    assert_eq!(loaded.config.sync_period.as_secs(), 2);
}

#[test]
fn values_are_read_by_the_rules_of_yaml_1_1() {
    let all = config(
        "bindAddressHardFail: yes\nnftables: {masqueradeAll: On, masqueradeBit: 0o17}\noomScoreAdj: -0755\n\
         conntrack: {maxPerCore: 131_072, min: 1e5, tcpBeLiberal: y}\nlogging: {verbosity: 2.0}\n\
         featureGates: {AllowServiceExternalIPs: no}",
    );
    assert!(
        all.bind_address_hard_fail && all.masquerade_all && all.conntrack.tcp_be_liberal && !all.allow_external_ips
    );
    assert_eq!((all.masquerade_bit, all.oom_score_adj, all.logging.verbosity), (15, -493, 2));
    assert_eq!((all.conntrack.max_per_core, all.conntrack.min), (Some(131_072), Some(100_000)));
    // A text is never taken for anything else.
    assert_eq!(config("hostnameOverride: \"on\"").node_name, "on");
    assert_eq!(config("conntrack: {maxPerCore: 1.31072e5}").conntrack.max_per_core, Some(131_072));
}

#[test]
fn the_configuration_is_found_among_documents() {
    let ours = file("oomScoreAdj: 7");
    let other = "apiVersion: v1\nkind: ConfigMap\n";
    let texts = [
        format!("\u{feff}{ours}"),
        format!("---\n{ours}---\n"),
        format!("{ours}...\n# nothing\n---\n"),
        format!("{other}---\n{ours}"),
        format!("\u{feff}{ours}---\n{other}"),
        format!(
            "\u{feff}{{\"apiVersion\": \"{API_VERSION}\", \"kind\": \"{KIND}\", \"mode\": \"nftables\", \"oomScoreAdj\": 7}}"
        ),
    ];
    for text in texts {
        assert_eq!(resolve_text(&text).unwrap_or_else(|err| panic!("{text}: {err}")).config.oom_score_adj, 7, "{text}");
    }
    let refused = |text: &str| {
        let err = crate::config::parse(Path::new("/etc/c"), text, &Overrides::default()).expect_err(text);
        err.to_string()
    };
    assert_eq!(
        refused(&format!("{other}---\n{other}")),
        "configuration file /etc/c: none of its 2 documents has the kind KubeProxyConfiguration"
    );
    assert_eq!(
        refused(&format!("{ours}---\n{ours}")),
        "configuration file /etc/c: more than one of its documents has the kind KubeProxyConfiguration, those from lines \
         1 and 5; leave one"
    );
    assert!(refused(&format!("{ours}---\na: [\n")).contains("not YAML: "));
}

#[test]
fn numbers_and_durations() {
    let all = config(
        "conntrack: {maxPerCore: 0, min: 7, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 1m, tcpBeLiberal: true, \
         udpTimeout: 2s, udpStreamTimeout: 3s}\noomScoreAdj: 0\nmetricsBindAddress: 0.0.0.0\n\
         bindAddressHardFail: true\nlogging: {format: json, verbosity: 4}",
    );
    let expected = Conntrack {
        max_per_core: Some(0),
        min: Some(7),
        tcp_established_timeout: Duration::ZERO,
        tcp_close_wait_timeout: Duration::from_secs(60),
        tcp_be_liberal: true,
        udp_timeout: Duration::from_secs(2),
        udp_stream_timeout: Duration::from_secs(3),
    };
    assert_eq!(all.conntrack, expected);
    assert_eq!((all.oom_score_adj, all.bind_address_hard_fail), (0, true));
    assert_eq!(all.metrics_bind_address.to_string(), "0.0.0.0:10249");
    assert_eq!(all.logging, Logging { format: LogFormat::Json, verbosity: 4 });
    assert_eq!(config("bindAddress: \"::\"").metrics_bind_address.to_string(), "[::1]:10249");
}

#[test]
fn options_of_logging_are_checked() {
    config("logging: {vmodule: [{filePattern: main, verbosity: 4}], options: {text: {infoBufferSize: \"0Ki\"}}}");
    config(
        "featureGates: {LoggingAlphaOptions: true}\nlogging: {options: {json: {splitStream: true, infoBufferSize: 64Ki}}}",
    );
    let cases = [
        ("vmodule: [{filePattern: \"a=b\"}]", "logging.vmodule[0]: \"a=b\" must not be empty"),
        ("vmodule: [{filePattern: a, verbosity: -1}]", "logging.vmodule[0]: -1 must be from 0"),
        ("vmodule: [{verbosity: 1}]", "logging.vmodule[0]: \"\" must be a filePattern"),
        ("vmodule: x", "logging.vmodule[0]: \"\" must be a filePattern"),
        ("vmodule: 5", "logging.vmodule: 5 must be a list"),
        ("format: json\n  vmodule: [{filePattern: a}]", "logging.vmodule: 1 can only be used with"),
        ("options: {text: {splitStream: true}}", "logging.options.text.splitStream: true can only be used with the"),
        ("options: {text: {splitStream: 3}}", "logging.options.text.splitStream: 3 must be true or false"),
        ("options: {json: {infoBufferSize: 1Ki}}", "logging.options.json.infoBufferSize: \"1Ki\" can only"),
        ("options: {json: {infoBufferSize: x}}", "logging.options.json.infoBufferSize: \"x\" must be a size"),
    ];
    for (fields, expected) in cases {
        let found = problems(&file(&format!("logging:\n  {fields}")));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{fields}: {found:?}");
    }
    assert!(with_flags(None, "vmodule=main=4,x*=2 log-text-split-stream=false").is_ok());
    let Err(ConfigError::Invalid { problems }) = with_flags(None, "vmodule=main log-json-split-stream=true") else {
        panic!("neither can be used")
    };
    let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, ["--vmodule[0]", "--log-json-split-stream"]);
}

fn with_flags(file: Option<&str>, line: &str) -> Result<Loaded, ConfigError> {
    let flags = line.split_whitespace().map(|word| {
        let (name, value) = word.split_once('=').expect("a name and a value");
        let flag = crate::config::FLAGS.iter().find(|flag| flag.name == name).expect("a flag");
        Setting { flag: flag.name, value: value.to_owned() }
    });
    let overrides = Overrides { flags: flags.collect(), ..Overrides::default() };
    let document = file.map_or_else(without_file, document);
    resolve(document, file.is_some(), &overrides, "host")
}

#[test]
fn flags_take_the_place_of_a_file() {
    let same = [
        ("cluster-cidr=10.0.0.0/8", "clusterCIDR: 10.0.0.0/8"),
        ("kubeconfig=/k", "clientConnection: {kubeconfig: /k}"),
        ("masquerade-all=true", "nftables: {masqueradeAll: true}"),
        ("iptables-sync-period=7s iptables-min-sync-period=2s", "nftables: {syncPeriod: 7s, minSyncPeriod: 2s}"),
        (
            "nodeport-addresses=10.0.0.0/8,11.0.0.0/8 nodeport-addresses=::/0",
            "nodePortAddresses: [10.0.0.0/8, 11.0.0.0/8, \"::/0\"]",
        ),
        ("feature-gates=WinDSR=true,AllowServiceExternalIPs=0", "featureGates: {AllowServiceExternalIPs: false}"),
        (
            "feature-gates=AllowServiceExternalIPs=0 feature-gates=AllowServiceExternalIPs=1",
            "featureGates: {AllowServiceExternalIPs: true}",
        ),
        ("conntrack-min=5 conntrack-min=6 conntrack-tcp-be-liberal=true", "conntrack: {min: 6, tcpBeLiberal: true}"),
        ("v=4 logging-format=json", "logging: {verbosity: 4, format: json}"),
        ("healthz-bind-address=127.0.0.1", "healthzBindAddress: 127.0.0.1:10256"),
        (
            "healthz-bind-address=127.0.0.1 healthz-port=80 metrics-port=81",
            "healthzBindAddress: 127.0.0.1:80\nmetricsBindAddress: 127.0.0.1:81",
        ),
        ("oom-score-adj=-998 bind-address= boot-id-file=x", "oomScoreAdj: -998"),
    ];
    for (line, fields) in same {
        let of_flags = with_flags(None, line).unwrap_or_else(|err| panic!("{line}: {err}"));
        let mut of_file = config(fields);
        of_file.node_name = "host".to_owned();
        assert_eq!(of_flags.config, of_file, "{line}");
    }
    let off = with_flags(None, "healthz-port=0").expect("it can be used");
    assert_eq!(off.config.healthz_bind_address, None);
    let ipvs = with_flags(None, "proxy-mode=ipvs ipvs-sync-period=9s ipvs-scheduler=rr").expect("it can be used");
    assert_eq!(ipvs.config.sync_period.as_secs(), 9);
    assert_eq!(ipvs.config.scheduler, Scheduler::RoundRobin);
}

#[test]
fn flags_beside_a_file_are_ignored_but_for_those_of_the_log() {
    let loaded = with_flags(Some(&file("clusterCIDR: 10.0.0.0/8")), "v=3 cluster-cidr=11.0.0.0/8 conntrack-min=x v=5");
    let loaded = loaded.expect("it can be used");
    assert_eq!(loaded.config.logging.verbosity, 5);
    assert_eq!(loaded.config.detect_local, config("clusterCIDR: 10.0.0.0/8").detect_local);
    assert_eq!(loaded.warnings, ["flags that do not count beside --config: --cluster-cidr, --conntrack-min"]);
}

#[test]
fn problems_name_the_flag() {
    let line = "conntrack-min=x v=-1 healthz-port=99999 metrics-port=0 nodeport-addresses=::/0,Y proxy-mode=userspace";
    let Err(ConfigError::Invalid { problems }) = with_flags(None, line) else { panic!("{line} cannot be used") };
    let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    let expected =
        ["--conntrack-min", "--healthz-port", "--proxy-mode", "--metrics-port", "--v", "--nodeport-addresses[1]"];
    assert_eq!(fields, expected);
}

#[test]
fn what_is_effective_can_be_read_back() {
    let files = [
        file(""),
        file(
            "nodePortAddresses: [10.0.0.0/8]\nclusterCIDR: \"10.0.0.0/8,fd00::/64\"\noomScoreAdj: 3\n\
             nftables: {masqueradeBit: 3, masqueradeAll: true, minSyncPeriod: 1500ms}\n\
             conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s}\nfeatureGates: {AllowServiceExternalIPs: false}",
        ),
        file("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\nlogging: {format: json}"),
        file("serviceProxyName: trial"),
        file("nodePortAddresses: [primary, 10.0.0.0/8]"),
    ];
    for text in files {
        let before = resolve_text(&text).expect("it can be used").config;
        let after = resolve_text(&effective(&before).to_string()).expect("it can be used");
        assert_eq!(after.config, before);
        assert_eq!(after.warnings, [] as [&str; 0]);
    }
    let before = Config {
        service_proxy_name: Some("trial".to_owned()),
        healthz_bind_address: Some("0.0.0.0:9".parse().expect("an address")),
        metrics_bind_address: "127.0.0.1:8".parse().expect("an address"),
        ..resolve_text(KUBEADM).expect("it can be used").config
    };
    let after = resolve_text(&effective(&before).to_string()).expect("it can be used");
    let everywhere = NodePortAddresses::Cidrs(vec![cidr("0.0.0.0/0"), cidr("::/0")]);
    assert_eq!(after.config, Config { node_port_addresses: everywhere, ..before });
    let all = effective(&after.config);
    for (path, ..) in crate::config::fields::FIELDS.iter().filter(|(path, ..)| *path != "logging.vmodule") {
        let pointer = format!("/{}", path.replace('.', "/"));
        assert!(all.pointer(&pointer).is_some(), "{path}");
    }
}

#[test]
fn a_proxy_with_a_name_leaves_kube_proxys_ports_to_it() {
    let loaded = |text: &str, flag: Option<&str>| {
        let overrides = Overrides { service_proxy_name: flag.map(str::to_owned), ..Overrides::default() };
        resolve(document(&file(text)), true, &overrides, "host-a")
    };
    let of = |text: &str, flag| {
        let Loaded { config, warnings, .. } = loaded(text, flag).expect("it can be used");
        let ports = (config.healthz_bind_address.map(|at| at.port()), config.metrics_bind_address.port());
        (config.service_proxy_name, ports, warnings.len())
    };
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(of("", None), (None, (Some(10256), 10249), 0));
    assert_eq!(of("serviceProxyName: a", None), (named("a"), (Some(10356), 10349), 0));
    assert_eq!(of("serviceProxyName: a", Some("b")), (named("b"), (Some(10356), 10349), 0), "the flag counts");
    assert_eq!(of("serviceProxyName: a", Some("")), (None, (Some(10256), 10249), 0));
    // What kube-proxy's own file says means kube-proxy.
    let kube_proxys = "healthzBindAddress: 0.0.0.0:10256\nmetricsBindAddress: 10.0.0.1:10249";
    assert_eq!(of(kube_proxys, Some("a")), (named("a"), (Some(10356), 10349), 2));
    let swapped = "healthzBindAddress: 0.0.0.0:10249\nmetricsBindAddress: 10.0.0.1:10256";
    assert_eq!(of(swapped, Some("a")), (named("a"), (Some(10356), 10349), 2));
    assert_eq!(of("healthzBindAddress: 0.0.0.0:9", Some("a")), (named("a"), (Some(9), 10349), 0));
    for bad in ["a b", "-a", "a.", "a/b", "\u{e9}", &"x".repeat(64), "a\"b"] {
        assert!(loaded("", Some(bad)).is_err(), "{bad}");
    }
}

/// What files of Kubernetes 1.34 to 1.38 may say, and how often that is warned of: deploy/releases.md.
#[test]
fn a_file_of_another_release_never_ends_the_process() {
    let page = include_str!("../../../deploy/releases.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|row| {
        let (fields, rest) = row.split_once("` |")?;
        Some((fields, rest.trim_end_matches('|').rsplit('|').next()?.trim()))
    });
    let mut count = 0;
    for (fields, here) in rows {
        let text = if fields.contains("mode:") {
            format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}")
        } else {
            file(fields)
        };
        let loaded = resolve_text(&text).unwrap_or_else(|error| panic!("{fields}: {error}"));
        assert_eq!(loaded.warnings.is_empty(), !here.contains("warning"), "{fields}: {here}: {:?}", loaded.warnings);
        count += 1;
    }
    assert!(count > 10, "{count} rows");
}

#[test]
fn words_of_node_port_addresses_can_be_together() {
    let of = |list: &str| {
        let loaded = resolve_text(&file(&format!("nodePortAddresses: [{list}]"))).expect("it can be used");
        (loaded.config.node_port_addresses, loaded.warnings.join("; "))
    };
    let words = |primary, localhost, texts: &[&str]| NodePortAddresses::Words {
        primary,
        localhost,
        cidrs: texts.iter().map(|text| cidr(text)).collect(),
    };
    let quiet = String::new;
    assert_eq!(of("all"), (NodePortAddresses::All, quiet()));
    assert_eq!(of("primary, all"), (NodePortAddresses::All, quiet()));
    assert_eq!(of("primary, primary"), (NodePortAddresses::Primary, quiet()));
    assert_eq!(of("primary, 10.0.0.0/8"), (words(true, false, &["10.0.0.0/8"]), quiet()));
    assert_eq!(of("primary, localhost"), (words(true, true, &[]), quiet()));
    assert_eq!(of("localhost, \"fd00::/8\"").0, words(false, true, &["fd00::/8"]));
    // What is not known opens nothing.
    let (alone, warning) = of("secondary");
    assert_eq!(alone, NodePortAddresses::Primary);
    assert_eq!(warning, "nodePortAddresses: unknown words are ignored: secondary; primary is used instead");
    let (beside, warning) = of("secondary, 10.0.0.0/8");
    assert_eq!(beside, NodePortAddresses::Cidrs(vec![cidr("10.0.0.0/8")]));
    assert_eq!(warning, "nodePortAddresses: unknown words are ignored: secondary");
}

#[test]
fn localhost_is_served_where_it_is_asked_for() {
    let of = |fields: &str| {
        let config = resolve_text(&file(fields)).expect("it can be used").config;
        let again = resolve_text(&effective(&config).to_string()).expect("it can be used").config;
        assert_eq!(again.localhost_node_ports, config.localhost_node_ports, "{fields}");
        (config.localhost_node_ports.v4, config.localhost_node_ports.v6)
    };
    let cases = [
        ("", (false, false)),
        ("mode: iptables", (false, false)),
        ("iptables: {localhostNodePorts: null}", (false, false)),
        ("iptables: {localhostNodePorts: false}", (false, false)),
        ("nodePortAddresses: [primary]", (false, false)),
        // The addresses of the node.
        ("nodePortAddresses: [0.0.0.0/0, \"::/0\"]", (false, false)),
        ("nodePortAddresses: [10.0.0.0/8, \"fd00::/8\"]", (false, false)),
        ("iptables: {localhostNodePorts: true}", (true, true)),
        ("mode: iptables\niptables: {localhostNodePorts: true}", (true, true)),
        ("mode: ipvs\niptables: {localhostNodePorts: true}\nnodePortAddresses: [10.0.0.0/8]", (true, true)),
        ("nodePortAddresses: [all]", (true, true)),
        ("mode: iptables\nnodePortAddresses: [all]", (true, true)),
        ("nodePortAddresses: [localhost]", (true, true)),
        ("nodePortAddresses: [primary, localhost]", (true, true)),
        ("nodePortAddresses: [127.0.0.0/8]", (true, false)),
        ("nodePortAddresses: [127.0.0.1/32, 10.0.0.0/8]", (true, false)),
        ("nodePortAddresses: [\"::1/128\", primary]", (false, true)),
        ("nodePortAddresses: [127.0.0.0/8, \"::1/128\"]", (true, true)),
        ("nodePortAddresses: [127.0.0.53/32]", (false, false)),
    ];
    for (fields, expected) in cases {
        assert_eq!(of(fields), expected, "{fields}");
    }
    let loaded = with_flags(None, "iptables-localhost-nodeports=true");
    assert_eq!(loaded.expect("it can be used").config.localhost_node_ports, PerFamily { v4: true, v6: true });
}

#[test]
fn the_scheduler_is_that_of_the_mode_or_ours() {
    let said = |text: &str| {
        let loaded = resolve_text(&file(text)).expect("it can be used");
        let about = loaded.warnings.into_iter().find(|warning| warning.contains("ipvs.scheduler"));
        (loaded.config.scheduler, about)
    };
    let none = |scheduler| (scheduler, None);
    assert_eq!(said("mode: nftables"), none(Scheduler::Random));
    assert_eq!(said("mode: ipvs"), none(Scheduler::RoundRobin));
    assert_eq!(said("mode: ipvs\nipvs: {scheduler: wlc}"), none(Scheduler::WeightedLeastConnections));
    assert_eq!(said("mode: nftables\nnftables: {scheduler: sh-port}"), none(Scheduler::SourceHashWithPort));
    let (scheduler, warning) = said("mode: ipvs\nipvs: {scheduler: mh}");
    assert_eq!(scheduler, Scheduler::Maglev);
    assert!(
        warning
            .is_some_and(|it| it.starts_with("ipvs.scheduler: mh takes a third of a megabyte of the kernel's memory"))
    );
    assert_eq!(said("mode: iptables\nnftables: {scheduler: rr}"), none(Scheduler::RoundRobin));
    let (scheduler, warning) = said("mode: iptables\nipvs: {scheduler: lc}");
    assert_eq!(scheduler, Scheduler::Random);
    assert_eq!(warning.as_deref(), Some("ipvs.scheduler: no effect in this mode; nftables.scheduler has one"));
    let (scheduler, warning) = said("mode: ipvs\nipvs: {scheduler: lc}\nnftables: {scheduler: sh}");
    assert_eq!(scheduler, Scheduler::SourceHash);
    assert_eq!(warning.as_deref(), Some("ipvs.scheduler: no effect, as nftables.scheduler counts"));
    // A file that worked goes on to work.
    let (scheduler, warning) = said("mode: ipvs\nipvs: {scheduler: lblcr}");
    assert_eq!(scheduler, Scheduler::Random);
    let warning = warning.expect("a warning");
    assert!(
        warning.starts_with("ipvs.scheduler: \"lblcr\" is not a scheduler; there are random, rr, wrr,"),
        "{warning}"
    );
    assert!(warning.ends_with("(lc comes closest); endpoints are chosen at random"), "{warning}");

    let Err(ConfigError::Invalid { problems }) = resolve_text(&file("nftables: {scheduler: best}")) else {
        panic!("it cannot be used")
    };
    let names = "random, rr, wrr, sh, sh-port, dh, mh, mh-port, lc, wlc, sed, nq";
    assert_eq!(problems[0].to_string(), format!("nftables.scheduler: \"best\" must be one of {names}"));
    let of_flag = with_flags(Some(&file("nftables: {scheduler: rr}")), "scheduler=lc").expect("it can be used");
    assert_eq!(of_flag.config.scheduler, Scheduler::LeastConnections, "the flag beats the file");
}

#[test]
fn connections_are_counted_where_that_is_asked_for() {
    let counts = |text: &str, flags: &str| {
        with_flags(Some(&file(text)), flags).expect("it can be used").config.count_connections
    };
    assert!(!counts("mode: nftables", ""));
    assert!(counts("mode: nftables\nnftables: {countConnections: true}", ""));
    assert!(counts("mode: ipvs\nnftables: {countConnections: true}", ""), "in any mode");
    assert!(counts("mode: nftables", "count-connections=true"));
    assert!(!counts("nftables: {countConnections: true}", "count-connections=false"), "the flag beats the file");
    let pings = |text: &str, flags: &str| with_flags(Some(&file(text)), flags).expect("it can be used").config.ping;
    assert!(!pings("mode: nftables", "") && pings("nftables: {ping: true}", "") && pings("mode: ipvs", "ping=true"));
    let Err(ConfigError::Invalid { problems }) = resolve_text(&file("nftables: {countConnections: 1}")) else {
        panic!("it can be used")
    };
    assert_eq!(problems[0].to_string(), "nftables.countConnections: 1 must be true or false");
}
