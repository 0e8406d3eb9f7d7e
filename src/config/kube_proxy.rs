//! KubeProxyConfiguration `v1alpha1` becomes a [`Config`]: defaults, checks, and the choice of the mode's section.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::fields::{ACCOUNTING, COUNT_CONNECTIONS, Fields, PING, RESET_CONNECTIONS, SCHEDULER, SERVICE_PROXY_NAME};
use super::flags::Flags;
use super::{Config, ConfigError, DetectLocal, Loaded, NodePortAddresses, Overrides, Problem, Source};
use crate::model::parse;
use crate::model::{Family, PerFamily, Scheduler};
use crate::printable::printable;
use crate::yaml::{Document, Duplicate, Tree};

pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(super) const KIND: &str = "KubeProxyConfiguration";
const DEFAULT_MASQUERADE_BIT: i64 = 14;
const DEFAULT_SYNC_PERIOD: Duration = Duration::from_secs(30);
/// kube-proxy syncs everything once in this time, and panics when it must wait longer.
const LONGEST_MIN_SYNC_PERIOD: Duration = Duration::from_secs(3600);
const HEALTHZ_PORT: u16 = 10256;
/// The port of `metricsBindAddress` where none is given.
pub const METRICS_PORT: u16 = 10249;
/// Those of a proxy that serves beside another. Nothing of Kubernetes has them.
const HEALTHZ_PORT_BESIDE: u16 = 10356;
/// The same.
pub const METRICS_PORT_BESIDE: u16 = 10349;
/// Bytes of an interface's name (`IFNAMSIZ` less the zero at its end).
const INTERFACE_NAME: usize = 15;

/// Feature gates that cannot be switched off.
const LOCKED_GATES: &[&str] = &["PreferSameTrafficDistribution", "MultiCIDRServiceAllocator", "NFTablesProxyMode"];
/// Feature gates that change nothing here.
const OTHER_GATES: &[&str] = &[
    "AllAlpha",
    "AllBeta",
    "ComponentFlagz",
    "ComponentStatusz",
    "ContextualLogging",
    "KubeProxyNFTablesLocalhostNodePorts",
    "LoggingAlphaOptions",
    "LoggingBetaOptions",
    "NativeHistograms",
    "WinDSR",
    "WinOverlay",
];

/// Whether a document is meant for kube-proxy, in any version.
pub(super) fn is_configuration(document: &Document) -> bool {
    let group = API_VERSION.split('/').next();
    let api_version = document.tree.text("apiVersion").unwrap_or_default();
    document.tree.text("kind") == Some(KIND) && api_version.split('/').next() == group
}

/// What a file would say that sets the mode and nothing else.
pub(super) fn without_file() -> Document {
    let text = |text: &str| Tree::String(text.to_owned());
    let tree = Tree::Map(vec![
        ("apiVersion".to_owned(), text(API_VERSION)),
        ("kind".to_owned(), text(KIND)),
        ("mode".to_owned(), text("nftables")),
    ]);
    Document { tree, line: 1, duplicates: Vec::new() }
}

/// The mode of kube-proxy that a file selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nftables,
    /// Also where none is selected.
    Iptables,
    Ipvs,
}

/// Makes the configuration of a file (or of what stands for one) and the command line. `host_name` is the name of the
/// host.
pub(super) fn resolve(
    document: Document,
    has_file: bool,
    overrides: &Overrides,
    host_name: &str,
) -> Result<Loaded, ConfigError> {
    let Document { mut tree, duplicates, .. } = document;
    let mut flags = Flags::apply(&overrides.flags, has_file, &mut tree);
    let mut fields = Fields::read(&tree);
    let mut problems = std::mem::take(&mut flags.problems);
    problems.append(&mut fields.problems);
    let mut resolver =
        Resolver { fields: &fields, flags: &flags, duplicates: &duplicates, problems, warnings: Vec::new() };
    let config = resolver.config(overrides, host_name);
    let Resolver { mut problems, warnings, .. } = resolver;
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded { config, warnings, text: String::new() }),
        _ => {
            problems.iter_mut().for_each(|problem| problem.field = flags.known_as(&problem.field));
            Err(ConfigError::Invalid { problems })
        }
    }
}

pub(super) struct Resolver<'a> {
    pub(super) fields: &'a Fields,
    flags: &'a Flags,
    duplicates: &'a [Duplicate],
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Resolver<'_> {
    /// Looks at everything, so that all problems are found, even where it is clear that there will be no result.
    fn config(&mut self, overrides: &Overrides, host_name: &str) -> Option<Config> {
        self.identity();
        self.oddities();
        let mode = self.mode();
        let node_name = self.node_name(overrides, host_name);
        let service_proxy_name = self.service_proxy_name(overrides);
        let bind_address = self.bind_address();
        let beside = service_proxy_name.as_ref().is_some_and(Option::is_some);
        let healthz_bind_address = self.healthz_bind_address(bind_address, beside);
        let metrics_bind_address = self.metrics_bind_address(bind_address, beside);
        let logging = self.logging();
        let oom_score_adj = self.oom_score_adj();
        let conntrack = self.conntrack();
        self.check_unused(mode == Some(Mode::Ipvs));
        let allow_external_ips = self.feature_gates();
        let masquerade_bit = self.masquerade_bit(mode);
        let masquerade_all = self.fields.bool(match mode {
            Some(Mode::Nftables) => "nftables.masqueradeAll",
            _ => "iptables.masqueradeAll",
        });
        let (min_sync_period, sync_period) = self.sync_periods(mode);
        let scheduler = self.scheduler(mode);
        let detect_local = self.detect_local();
        let (node_port_addresses, localhost_node_ports) = self.node_port_addresses(mode).unzip();
        Some(Config {
            node_name: node_name?,
            service_proxy_name: service_proxy_name?,
            source: self.source(overrides),
            bind_address: bind_address?,
            healthz_bind_address: healthz_bind_address?,
            metrics_bind_address: metrics_bind_address?,
            bind_address_hard_fail: self.fields.bool("bindAddressHardFail"),
            logging: logging?,
            oom_score_adj: oom_score_adj?,
            conntrack: conntrack?,
            detect_local: detect_local?,
            node_port_addresses: node_port_addresses?,
            localhost_node_ports: localhost_node_ports?,
            masquerade_bit: masquerade_bit?,
            masquerade_all,
            scheduler: scheduler?,
            count_connections: self.fields.bool(COUNT_CONNECTIONS),
            accounting: self.fields.bool(ACCOUNTING),
            ping: self.fields.bool(PING),
            reset_connections: self.fields.bool(RESET_CONNECTIONS),
            min_sync_period,
            sync_period,
            allow_external_ips,
        })
    }

    pub(super) fn problem<T>(
        &mut self,
        field: &str,
        value: impl std::fmt::Debug,
        reason: impl Into<String>,
    ) -> Option<T> {
        // A field of the wrong type has been named already.
        if !self.problems.iter().any(|problem| problem.field == field) {
            self.problems.push(Problem::new(field, format_args!("{value:?}"), reason));
        }
        None
    }

    fn identity(&mut self) {
        for (field, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            let found = self.fields.string(field);
            if found != wanted {
                self.problem::<()>(field, found, format!("must be {wanted:?}"));
            }
        }
    }

    fn oddities(&mut self) {
        let list = |paths: &mut dyn Iterator<Item = &str>| paths.collect::<Vec<_>>().join(", ");
        let fields = self.fields;
        let without_effect = fields.without_effect().into_iter().map(|path| self.flags.known_as(path));
        let without_effect: Vec<_> = without_effect.collect();
        let ignored: Vec<_> = self.flags.ignored.iter().map(|flag| format!("--{flag}")).collect();
        // As kube-proxy has it, which reads the file a second time then, less strictly.
        let duplicates: Vec<_> = self.duplicates.iter().map(ToString::to_string).collect();
        let lists = [
            ("unknown fields are ignored", list(&mut fields.unknown.iter().map(String::as_str))),
            ("of fields that are given twice the last counts", list(&mut duplicates.iter().map(String::as_str))),
            ("no effect with nftables", list(&mut without_effect.iter().map(String::as_str))),
            ("flags that do not count beside --config", list(&mut ignored.iter().map(String::as_str))),
        ];
        for (what, paths) in lists {
            if !paths.is_empty() {
                self.warnings.push(format!("{what}: {paths}"));
            }
        }
    }

    fn mode(&mut self) -> Option<Mode> {
        let mode = self.fields.string("mode");
        match mode {
            "nftables" => Some(Mode::Nftables),
            "" | "iptables" => {
                let later = if mode.is_empty() {
                    "; kube-proxy is going to take an empty mode for nftables, whose NodePorts are on the primary address \
                     alone: say which is meant"
                } else {
                    ""
                };
                let localhost = match self.fields.bool("iptables.localhostNodePorts") {
                    true => "",
                    false => " except 127.0.0.1 (iptables.localhostNodePorts: true has it served)",
                };
                self.warnings.push(format!(
                    "mode {mode:?}: nftables is used instead of iptables; NodePorts are served on all addresses\
                     {localhost}{later}"
                ));
                Some(Mode::Iptables)
            }
            "ipvs" => {
                self.warnings.push(
                    "mode \"ipvs\": nftables is used instead, with the same scheduler; strictARP has no effect, and \
                     Service addresses are no longer addresses of the node"
                        .to_owned(),
                );
                Some(Mode::Ipvs)
            }
            _ => self.problem("mode", mode, "must be nftables, iptables, ipvs or empty (nftables is what runs)"),
        }
    }

    fn node_name(&mut self, overrides: &Overrides, host_name: &str) -> Option<String> {
        let given = self.fields.string("hostnameOverride");
        let (field, name) = match &overrides.hostname_override {
            Some(name) if !name.is_empty() => ("--hostname-override", name.as_str()),
            _ if !given.is_empty() => ("hostnameOverride", given),
            _ => ("the host's name", host_name),
        };
        let trimmed = name.trim().to_lowercase();
        if trimmed.is_empty() {
            return self.problem(field, name, "is not the name of a Node");
        }
        Some(trimmed)
    }

    /// `Some(None)` where there is none.
    fn service_proxy_name(&mut self, overrides: &Overrides) -> Option<Option<String>> {
        let (field, name) = match &overrides.service_proxy_name {
            Some(name) => ("--service-proxy-name", name.as_str()),
            None => (SERVICE_PROXY_NAME, self.fields.string(SERVICE_PROXY_NAME)),
        };
        if name.is_empty() {
            return Some(None);
        }
        if !parse::is_label_value(name) {
            let reason = "cannot be the value of a label: at most 63 letters, digits, -, _ and ., with a letter or digit at both ends";
            return self.problem(field, name, reason);
        }
        Some(Some(name.to_owned()))
    }

    /// The port that kube-proxy has is left to it by who serves beside it.
    fn left_to_kube_proxy(&mut self, field: &str, address: SocketAddr, own: u16, beside: bool) -> SocketAddr {
        if !beside || ![HEALTHZ_PORT, METRICS_PORT].contains(&address.port()) {
            return address;
        }
        let moved = SocketAddr::new(address.ip(), own);
        if !self.fields.string(field).is_empty() {
            self.warnings
                .push(format!("{field}: port {} is left to the kube-proxy beside; {moved} is used", address.port()));
        }
        moved
    }

    fn source(&self, overrides: &Overrides) -> Source {
        match &overrides.manifests {
            Some(folder) => Source::Manifests(folder.clone()),
            None => {
                let kubeconfig = PathBuf::from(self.fields.string("clientConnection.kubeconfig"));
                Source::Api { kubeconfig, master: overrides.master.clone() }
            }
        }
    }

    fn bind_address(&mut self) -> Option<IpAddr> {
        match self.fields.string("bindAddress") {
            "" => Some(Ipv4Addr::UNSPECIFIED.into()),
            text => parse::address(text).ok().or_else(|| self.problem("bindAddress", text, "is not an IP address")),
        }
    }

    /// `Some(None)` if the server is switched off.
    fn healthz_bind_address(&mut self, bind_address: Option<IpAddr>, beside: bool) -> Option<Option<SocketAddr>> {
        if self.flags.healthz_port == Some(0) {
            return Some(None);
        }
        let port = self.flags.healthz_port.and_then(|port| u16::try_from(port).ok()).unwrap_or(HEALTHZ_PORT);
        let any = match bind_address {
            Some(IpAddr::V6(_)) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        let address = self.address_and_port("healthzBindAddress", any, port)?;
        Some(Some(self.left_to_kube_proxy("healthzBindAddress", address, HEALTHZ_PORT_BESIDE, beside)))
    }

    fn metrics_bind_address(&mut self, bind_address: Option<IpAddr>, beside: bool) -> Option<SocketAddr> {
        if self.flags.metrics_port == Some(0) {
            return self.problem(
                "--metrics-port",
                0,
                "must be a port from 1 to 65535: the server cannot be switched off",
            );
        }
        let port = self.flags.metrics_port.and_then(|port| u16::try_from(port).ok()).unwrap_or(METRICS_PORT);
        let local = match bind_address {
            Some(IpAddr::V6(_)) => IpAddr::from(Ipv6Addr::LOCALHOST),
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        let address = self.address_and_port("metricsBindAddress", local, port)?;
        Some(self.left_to_kube_proxy("metricsBindAddress", address, METRICS_PORT_BESIDE, beside))
    }

    /// An address, with or without a port.
    fn address_and_port(&mut self, field: &str, default: IpAddr, default_port: u16) -> Option<SocketAddr> {
        let text = self.fields.string(field);
        if text.is_empty() {
            return Some(SocketAddr::new(default, default_port));
        }
        if let Ok(address) = parse::address(text) {
            return Some(SocketAddr::new(address, default_port));
        }
        let parsed = text.rsplit_once(':').and_then(|(address, port)| {
            let address = match address.strip_prefix('[') {
                Some(inner) => inner.strip_suffix(']')?,
                // Without brackets nobody knows which colon is the last.
                None => Some(address).filter(|address| !address.contains(':'))?,
            };
            let port: u16 = port.parse().ok().filter(|&port| port != 0)?;
            Some(SocketAddr::new(parse::address(address).ok()?, port))
        });
        let example = SocketAddr::new(default, default_port);
        let expected = format!("must be an IP address and a port from 1 to 65535, as {example}");
        parsed.or_else(|| self.problem(field, text, expected))
    }

    /// Returns whether external IPs are allowed.
    fn feature_gates(&mut self) -> bool {
        let mut allow_external_ips = true;
        let mut unknown = Vec::new();
        for (gate, on) in self.fields.switches("featureGates") {
            if gate == "AllowServiceExternalIPs" {
                allow_external_ips = on;
            } else if LOCKED_GATES.contains(&gate) {
                // Some could in earlier releases.
                if !on {
                    self.warnings.push(format!("featureGates.{gate}: false has no effect: it cannot be switched off"));
                }
            } else if !OTHER_GATES.contains(&gate) {
                unknown.push(gate);
            }
        }
        if !unknown.is_empty() {
            self.warnings.push(format!("unknown feature gates are ignored: {}", printable(&unknown.join(", "))));
        }
        allow_external_ips
    }

    fn masquerade_bit(&mut self, mode: Option<Mode>) -> Option<u8> {
        let nftables = self.fields.int("nftables.masqueradeBit").unwrap_or(DEFAULT_MASQUERADE_BIT);
        let iptables = self.fields.int("iptables.masqueradeBit").unwrap_or(DEFAULT_MASQUERADE_BIT);
        let mut check = |field, bit: i64| match u8::try_from(bit) {
            Ok(bit @ 0..=31) => Some(bit),
            _ => self.problem(field, bit, "must be from 0 to 31"),
        };
        // As in kube-proxy, that of iptables is checked in every mode.
        let iptables = check("iptables.masqueradeBit", iptables);
        if mode == Some(Mode::Nftables) { check("nftables.masqueradeBit", nftables) } else { iptables }
    }

    /// Returns `minSyncPeriod` and `syncPeriod`.
    fn sync_periods(&mut self, mode: Option<Mode>) -> (Duration, Duration) {
        let (min_field, field) = match mode {
            Some(Mode::Nftables) => ("nftables.minSyncPeriod", "nftables.syncPeriod"),
            Some(Mode::Ipvs) => ("ipvs.minSyncPeriod", "ipvs.syncPeriod"),
            Some(Mode::Iptables) | None => ("iptables.minSyncPeriod", "iptables.syncPeriod"),
        };
        let mut period = |field, default| match self.fields.duration(field) {
            None => default,
            Some(given) => given.get().unwrap_or_else(|| {
                self.problem::<()>(field, given, "must not be negative");
                default
            }),
        };
        let (min, sync) = (period(min_field, Duration::ZERO), period(field, DEFAULT_SYNC_PERIOD));
        if min > LONGEST_MIN_SYNC_PERIOD {
            self.problem::<()>(min_field, min, "must not be longer than 1h");
        }
        if sync < min {
            self.problem::<()>(field, sync, format!("must not be shorter than {min_field}, {min:?}"));
        }
        (min, sync)
    }

    /// That of mode ipvs may be one that IPVS has and we have not: a file that worked goes on to work.
    fn scheduler(&mut self, mode: Option<Mode>) -> Option<Scheduler> {
        const OF_IPVS: &str = "ipvs.scheduler";
        let (own, of_ipvs) = (self.fields.string(SCHEDULER), self.fields.string(OF_IPVS));
        let ipvs = mode == Some(Mode::Ipvs);
        if !of_ipvs.is_empty() && (!ipvs || !own.is_empty()) {
            let (known_as, own_known_as) = (self.flags.known_as(OF_IPVS), self.flags.known_as(SCHEDULER));
            self.warnings.push(match ipvs {
                true => format!("{known_as}: no effect, as {own_known_as} counts"),
                false => format!("{known_as}: no effect in this mode; {own_known_as} has one"),
            });
        }
        let chosen = if !own.is_empty() {
            let names = Scheduler::ALL.map(|(_, name)| name).join(", ");
            let known = Scheduler::parse(own).ok();
            known.or_else(|| self.problem(SCHEDULER, own, format!("must be one of {names}")))?
        } else {
            match of_ipvs {
                _ if !ipvs => Scheduler::Random,
                "" => Scheduler::RoundRobin,
                name => Scheduler::parse(name).unwrap_or_else(|unknown| {
                    let known_as = self.flags.known_as(OF_IPVS);
                    self.warnings.push(format!("{known_as}: {unknown}; endpoints are chosen at random"));
                    Scheduler::Random
                }),
            }
        };
        if matches!(chosen, Scheduler::Maglev | Scheduler::MaglevWithPort) {
            let known_as = self.flags.known_as(if own.is_empty() { OF_IPVS } else { SCHEDULER });
            self.warnings.push(format!(
                "{known_as}: {chosen} takes a third of a megabyte of the kernel's memory for each address and port of every \
                 Service; the annotation nftproxyd.io/scheduler asks for it where it is needed"
            ));
        }
        Some(chosen)
    }

    fn detect_local(&mut self) -> Option<DetectLocal> {
        let mode = self.fields.string("detectLocalMode");
        match mode {
            "" | "ClusterCIDR" => self.cluster_cidr().map(DetectLocal::ClusterCidr),
            "NodeCIDR" => Some(DetectLocal::NodeCidr),
            "BridgeInterface" => self.interface("detectLocal.bridgeInterface").map(DetectLocal::BridgeInterface),
            "InterfaceNamePrefix" => {
                self.interface("detectLocal.interfaceNamePrefix").map(DetectLocal::InterfaceNamePrefix)
            }
            _ => self.problem(
                "detectLocalMode",
                mode,
                "must be ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix or empty",
            ),
        }
    }

    fn interface(&mut self, field: &str) -> Option<String> {
        let name = self.fields.string(field);
        if name.is_empty() {
            return self.problem(field, name, "must be set for this detectLocalMode");
        }
        if name.len() > INTERFACE_NAME || name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
            return self.problem(field, name, "is not a name of an interface (at most 15 bytes)");
        }
        Some(name.to_owned())
    }

    fn cluster_cidr(&mut self) -> Option<PerFamily<Option<IpNet>>> {
        const FIELD: &str = "clusterCIDR";
        let text = self.fields.string(FIELD);
        let mut cidrs: PerFamily<Option<IpNet>> = PerFamily::default();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let Ok(cidr) = parse::cidr(part) else {
                return self.problem(FIELD, text, format!("{part:?} is not a range such as 10.244.0.0/16"));
            };
            let family = Family::of(cidr.addr());
            if cidrs[family].replace(cidr).is_some() {
                return self.problem(FIELD, text, format!("has more than one {family} range"));
            }
        }
        Some(cidrs)
    }

    /// The addresses of the node, and the families in which localhost is one of them.
    fn node_port_addresses(&mut self, mode: Option<Mode>) -> Option<(NodePortAddresses, PerFamily<bool>)> {
        const FIELD: &str = "nodePortAddresses";
        let texts = self.fields.strings(FIELD);
        let is_asked_for = self.fields.bool("iptables.localhostNodePorts");
        if texts.is_empty() {
            let nftables = mode == Some(Mode::Nftables);
            let addresses = if nftables { NodePortAddresses::Primary } else { NodePortAddresses::All };
            return Some((addresses, PerFamily::from_fn(|_| is_asked_for)));
        }
        let (mut primary, mut localhost, mut all) = (false, false, false);
        let (mut cidrs, mut unknown, mut bad) = (Vec::new(), Vec::new(), false);
        for (index, text) in texts.iter().enumerate() {
            match (text.as_str(), parse::cidr(text)) {
                ("primary", _) => primary = true,
                ("localhost", _) => localhost = true,
                ("all", _) => all = true,
                (_, Ok(cidr)) => cidrs.push(cidr),
                (word, Err(_)) if is_word(word) => unknown.push(word),
                (_, Err(_)) => {
                    let expected =
                        "must be a range such as 192.0.2.0/24, or one of the words primary, localhost and all";
                    self.problem::<()>(&format!("{FIELD}[{index}]"), text, expected);
                    bad = true;
                }
            }
        }
        if bad {
            return None;
        }
        // It names addresses beside the others: without it fewer accept, which is safe.
        if !unknown.is_empty() {
            primary |= cidrs.is_empty() && !localhost && !all;
            let instead = if primary && unknown.len() == texts.len() { "; primary is used instead" } else { "" };
            self.warnings.push(format!("{FIELD}: unknown words are ignored: {}{instead}", unknown.join(", ")));
        }
        // A range of all addresses is how those of the node were named before there was a word for them.
        let in_range = |ip: IpAddr| cidrs.iter().any(|cidr| cidr.prefix_len() > 0 && cidr.contains(&ip));
        let of_ranges =
            PerFamily { v4: in_range(Ipv4Addr::LOCALHOST.into()), v6: in_range(Ipv6Addr::LOCALHOST.into()) };
        let on_localhost = PerFamily::from_fn(|family| is_asked_for || localhost || all || of_ranges[family]);
        let addresses = match (all, primary, localhost) {
            (true, ..) => NodePortAddresses::All,
            (false, true, false) if cidrs.is_empty() => NodePortAddresses::Primary,
            (false, false, false) => NodePortAddresses::Cidrs(cidrs),
            (false, primary, localhost) => NodePortAddresses::Words { primary, localhost, cidrs },
        };
        Some((addresses, on_localhost))
    }
}

/// Whether a text is one of those that later releases may give a meaning to.
fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

#[cfg(test)]
mod tests;
