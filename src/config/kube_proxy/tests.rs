//! Files and what becomes of them.

use super::*;

/// What kubeadm writes.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null,
            udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s,
       tcpTimeout: 0s, udpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"#;

fn resolve_text(text: &str) -> Result<Loaded, ConfigError> {
    resolve(&Tree::parse(text).expect("it is YAML"), &Overrides::default(), "Host-A")
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
    let Loaded { config, warnings } = resolve_text(KUBEADM).expect("it can be used");
    let expected = Config {
        node_name: "host-a".to_owned(),
        source: Source::Api { kubeconfig: "/var/lib/kube-proxy/kubeconfig.conf".into(), master: None },
        bind_address: Ipv4Addr::UNSPECIFIED.into(),
        healthz_bind_address: (Ipv4Addr::UNSPECIFIED, 10256).into(),
        metrics_bind_address: (Ipv4Addr::LOCALHOST, 10249).into(),
        bind_address_hard_fail: false,
        logging: Logging::default(),
        detect_local: DetectLocal::ClusterCidr(PerFamily { v4: Some(cidr("10.244.0.0/16")), v6: None }),
        node_port_addresses: NodePortAddresses::All,
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
    let loaded = resolve(&without_file(), &Overrides::default(), "host-a").expect("it can be used");
    assert_eq!(loaded.warnings, [] as [&str; 0]);
    assert_eq!(loaded.config.node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(loaded.config.source, Source::Api { kubeconfig: PathBuf::new(), master: None });
    assert_eq!(loaded.config, config(""));
}

#[test]
fn flags_beat_the_file() {
    let tree = Tree::parse(&file("hostnameOverride: from-file\nclientConnection: {kubeconfig: k}")).expect("YAML");
    let names = [
        (Some(" From-Flag "), Ok("from-flag")),
        (Some(""), Ok("from-file")),
        (None, Ok("from-file")),
        (Some("  "), Err("--hostname-override")),
    ];
    for (flag, expected) in names {
        let overrides = Overrides { hostname_override: flag.map(str::to_owned), ..Overrides::default() };
        match (resolve(&tree, &overrides, "host"), expected) {
            (Ok(loaded), Ok(name)) => assert_eq!(loaded.config.node_name, name),
            (Err(err), Err(field)) => assert!(err.to_string().contains(field), "{err}"),
            (result, _) => panic!("{flag:?}: {result:?}"),
        }
    }
    let overrides = Overrides { manifests: Some("folder".into()), ..Overrides::default() };
    let loaded = resolve(&tree, &overrides, "host").expect("it can be used");
    assert_eq!(loaded.config.source, Source::Manifests("folder".into()));
    let overrides = Overrides { master: Some("https://192.0.2.1".into()), ..Overrides::default() };
    let loaded = resolve(&tree, &overrides, "host").expect("it can be used");
    assert_eq!(loaded.config.source, Source::Api { kubeconfig: "k".into(), master: Some("https://192.0.2.1".into()) });
    assert!(resolve(&without_file(), &Overrides::default(), " ").is_err(), "a host without a name");
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

    let healthz = |fields| config(fields).healthz_bind_address.to_string();
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
        ("featureGates: {NFTablesProxyMode: false}", "featureGates.NFTablesProxyMode: false cannot be switched off"),
        ("featureGates: {X: 1}", "featureGates: {X: 1} must be names with true or false"),
        ("nftables: {masqueradeBit: 32}", "nftables.masqueradeBit: 32 must be from 0 to 31"),
        ("iptables: {masqueradeBit: -1}", "iptables.masqueradeBit: -1 must be from 0 to 31"),
        ("nftables: {syncPeriod: -1s}", "nftables.syncPeriod: \"a negative duration\" must not be negative"),
        ("nftables: {syncPeriod: 1s, minSyncPeriod: 2s}", "nftables.syncPeriod: 1s must not be shorter than"),
        ("nftables: {syncPeriod: 3h, minSyncPeriod: 2h}", "nftables.minSyncPeriod: 7200s must not be longer than 1h"),
        ("nftables: {syncPeriod: 30}", "nftables.syncPeriod: 30 must be a duration as text"),
        ("nftables: 5", "nftables: 5 must be a section"),
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
        ("nodePortAddresses: [primary, 10.0.0.0/8]", "nodePortAddresses[0]: \"primary\" cannot be used together"),
        ("nodePortAddresses: [10.0.0.1]", "nodePortAddresses[0]: \"10.0.0.1\" must be a range"),
        ("nodePortAddresses: 10.0.0.0/8", "nodePortAddresses: \"10.0.0.0/8\" must be a list of texts"),
        ("hostnameOverride: 5", "hostnameOverride: 5 must be a text"),
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
        "bindAddress: x\nhealthzBindAddress: y\nclusterCIDR: z\nnodePortAddresses: [a, b]\noomScoreAdj: c",
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
        "Mode: x\nmetadata: {name: y}\nudpIdleTimeout: 250ms\nnftables: {new: 1, syncPeriod: 1s, syncPeriod: 2s}\n\
         ipvs: {strictARP: true, scheduler: rr}\nenableProfiling: true\nfeatureGates: {Nonsense: true}\n\
         iptables: {localhostNodePorts: true}",
    );
    let loaded = resolve_text(&text).expect("it can be used");
    let expected = [
        "unknown fields are ignored: Mode, metadata, nftables.new, udpIdleTimeout",
        "of fields that are given twice the last counts: nftables.syncPeriod",
        "these fields have no effect with nftables: enableProfiling, iptables.localhostNodePorts, ipvs.scheduler, ipvs.strictARP",
        "unknown feature gates are ignored: Nonsense",
    ];
    assert_eq!(loaded.warnings, expected);
    assert_eq!(loaded.config.sync_period.as_secs(), 2);
}
