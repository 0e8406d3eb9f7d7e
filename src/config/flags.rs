//! The flags of kube-proxy 1.36, and the fields that they stand for.

use std::collections::BTreeMap;

use super::fields::{self, Type};
use super::{Problem, Setting};
use crate::yaml::{Scalar, Tree};

/// A flag of kube-proxy that takes the place of fields of the configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Its name, without the dashes in front.
    pub name: &'static str,
    /// Paths of the fields that it sets. Empty for a flag that is accepted and has no effect, and for a port, which is
    /// joined with an address.
    pub fields: &'static [&'static str],
    /// What stands for the value in the help; empty for a switch.
    pub value: &'static str,
    /// What it is for. Empty for a flag that no help shows.
    pub help: &'static str,
    /// Whether it counts beside `--config`, and beats the file; all others are ignored there.
    pub beats_file: bool,
}

impl Flag {
    /// Whether it may be given without a value, which then is `true`.
    pub fn is_switch(&self) -> bool {
        self.value.is_empty()
    }
}

const fn flag(name: &'static str, fields: &'static [&'static str], value: &'static str, help: &'static str) -> Flag {
    Flag { name, fields, value, help, beats_file: false }
}

const fn beating(name: &'static str, fields: &'static [&'static str], value: &'static str, help: &'static str) -> Flag {
    Flag { name, fields, value, help, beats_file: true }
}

/// Joined with `healthzBindAddress`; 0 switches the server off.
pub(super) const HEALTHZ_PORT: &str = "healthz-port";
/// Joined with `metricsBindAddress`.
pub(super) const METRICS_PORT: &str = "metrics-port";

const SCHEDULER: &str = "scheduler";
const COUNT_CONNECTIONS: &str = "count-connections";
const ACCOUNTING: &str = "accounting";
const PING: &str = "ping";
const RESET_CONNECTIONS: &str = "reset-connections";
/// Those that kube-proxy does not have.
pub(crate) const OURS: [&str; 5] = [SCHEDULER, COUNT_CONNECTIONS, ACCOUNTING, PING, RESET_CONNECTIONS];

/// Every flag of kube-proxy, and those of ours, but those that the command line has a meaning of its own for (`--config`, `--master`,
/// `--hostname-override`, `--write-config-to`, `--cleanup`, `--init-only`, `--version`, `--help`).
pub const FLAGS: &[Flag] = &[
    beating("v", &["logging.verbosity"], "LEVEL", "Say more in the log: 2 for each sync, 5 for each transaction"),
    beating("vmodule", &["logging.vmodule"], "PATTERN=LEVEL,...", "No effect"),
    beating("logging-format", &["logging.format"], "FORMAT", "How the log is written: text or json [default: text]"),
    beating("log-flush-frequency", &["logging.flushFrequency"], "DURATION", "No effect: each line is written at once"),
    beating("log-text-split-stream", &["logging.options.text.splitStream"], "", "No effect"),
    beating("log-json-split-stream", &["logging.options.json.splitStream"], "", "No effect"),
    beating("log-text-info-buffer-size", &["logging.options.text.infoBufferSize"], "SIZE", "No effect"),
    beating("log-json-info-buffer-size", &["logging.options.json.infoBufferSize"], "SIZE", "No effect"),
    flag("feature-gates", &["featureGates"], "NAME=BOOL,...", "Switch features on or off"),
    flag(
        "kubeconfig",
        &["clientConnection.kubeconfig"],
        "FILE",
        "How to reach the API server [default: as a pod of the cluster]",
    ),
    flag("kube-api-content-type", &["clientConnection.contentType"], "TYPE", "No effect: JSON is spoken"),
    flag("kube-api-qps", &["clientConnection.qps"], "NUMBER", "No effect: only lists and watches are asked for"),
    flag("kube-api-burst", &["clientConnection.burst"], "NUMBER", "No effect, as --kube-api-qps"),
    flag(
        "bind-address",
        &["bindAddress"],
        "IP",
        "This node's address, if it is to be another than in its Node object [default: 0.0.0.0]",
    ),
    flag(
        "healthz-bind-address",
        &["healthzBindAddress"],
        "IP[:PORT]",
        "Where /healthz and /livez are served [default: 0.0.0.0:10256]",
    ),
    flag(
        "metrics-bind-address",
        &["metricsBindAddress"],
        "IP[:PORT]",
        "Where /metrics and /proxyMode are served [default: 127.0.0.1:10249]",
    ),
    flag(HEALTHZ_PORT, &[], "PORT", ""),
    flag(METRICS_PORT, &[], "PORT", ""),
    flag(
        "bind-address-hard-fail",
        &["bindAddressHardFail"],
        "",
        "Fail if the addresses for health or metrics cannot be listened on",
    ),
    flag("profiling", &["enableProfiling"], "", "No effect"),
    flag("show-hidden-metrics-for-version", &["showHiddenMetricsForVersion"], "VERSION", "No effect: none is hidden"),
    flag(
        "proxy-mode",
        &["mode"],
        "MODE",
        "nftables, iptables or ipvs: nftables is what runs; the others choose defaults",
    ),
    beating(
        SCHEDULER,
        &["nftables.scheduler"],
        "NAME",
        "How endpoints are chosen where a Service does not say, in any mode: random, rr, wrr, sh, dh, mh, lc, ...",
    ),
    beating(
        COUNT_CONNECTIONS,
        &["nftables.countConnections"],
        "",
        "Count the connections to each address and port of a Service",
    ),
    beating(
        ACCOUNTING,
        &["nftables.accounting"],
        "",
        "Account for the connections of all Services by endpoint: packets and bytes",
    ),
    beating(PING, &["nftables.ping"], "", "Answer pings of the addresses of all Services that have endpoints"),
    beating(
        RESET_CONNECTIONS,
        &["nftables.resetConnections"],
        "",
        "Reset the TCP connections of all Services to endpoints that are gone",
    ),
    flag(
        "iptables-masquerade-bit",
        &["iptables.masqueradeBit"],
        "BIT",
        "The bit of the packet mark that asks for masquerading, in modes iptables and ipvs [default: 14]",
    ),
    flag(
        "masquerade-all",
        &["nftables.masqueradeAll", "iptables.masqueradeAll"],
        "",
        "Masquerade all traffic to cluster IPs",
    ),
    flag(
        "iptables-localhost-nodeports",
        &["iptables.localhostNodePorts"],
        "",
        "Serve NodePorts on 127.0.0.1 and ::1 too",
    ),
    flag(
        "iptables-sync-period",
        &["nftables.syncPeriod", "iptables.syncPeriod"],
        "DURATION",
        "Pause before a failed sync is tried again [default: 30s]",
    ),
    flag(
        "iptables-min-sync-period",
        &["nftables.minSyncPeriod", "iptables.minSyncPeriod"],
        "DURATION",
        "Least time between two syncs [default: 0s]",
    ),
    flag("ipvs-sync-period", &["ipvs.syncPeriod"], "DURATION", "As --iptables-sync-period, in mode ipvs"),
    flag("ipvs-min-sync-period", &["ipvs.minSyncPeriod"], "DURATION", "As --iptables-min-sync-period, in mode ipvs"),
    flag("ipvs-scheduler", &["ipvs.scheduler"], "NAME", "How endpoints are chosen, in mode ipvs [default: rr]"),
    flag("ipvs-exclude-cidrs", &["ipvs.excludeCIDRs"], "CIDR,...", "No effect: there are no IPVS rules"),
    flag("ipvs-strict-arp", &["ipvs.strictARP"], "", "No effect: Service addresses are not addresses of the node"),
    flag("ipvs-tcp-timeout", &["ipvs.tcpTimeout"], "DURATION", "No effect"),
    flag("ipvs-tcpfin-timeout", &["ipvs.tcpFinTimeout"], "DURATION", "No effect"),
    flag("ipvs-udp-timeout", &["ipvs.udpTimeout"], "DURATION", "No effect"),
    flag(
        "detect-local-mode",
        &["detectLocalMode"],
        "MODE",
        "How traffic from pods is told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
    ),
    flag("pod-bridge-interface", &["detectLocal.bridgeInterface"], "NAME", "The bridge of BridgeInterface"),
    flag("pod-interface-name-prefix", &["detectLocal.interfaceNamePrefix"], "PREFIX", "That of InterfaceNamePrefix"),
    flag("cluster-cidr", &["clusterCIDR"], "CIDR[,CIDR]", "The addresses of pods"),
    flag(
        "nodeport-addresses",
        &["nodePortAddresses"],
        "CIDR|WORD,...",
        "The node's addresses that serve NodePorts: ranges, and the words primary (those of its Node object) and all",
    ),
    flag("oom-score-adj", &["oomScoreAdj"], "NUMBER", "From -1000 to 1000; less is killed later [default: -999]"),
    flag(
        "conntrack-max-per-core",
        &["conntrack.maxPerCore"],
        "NUMBER",
        "Tracked connections for each CPU; 0 leaves the limit alone [default: 32768]",
    ),
    flag("conntrack-min", &["conntrack.min"], "NUMBER", "Least number of tracked connections [default: 131072]"),
    flag(
        "conntrack-tcp-timeout-established",
        &["conntrack.tcpEstablishedTimeout"],
        "DURATION",
        "How long an idle TCP connection is tracked; 0s leaves it alone [default: 24h]",
    ),
    flag(
        "conntrack-tcp-timeout-close-wait",
        &["conntrack.tcpCloseWaitTimeout"],
        "DURATION",
        "The same in CLOSE_WAIT [default: 1h]",
    ),
    flag(
        "conntrack-tcp-be-liberal",
        &["conntrack.tcpBeLiberal"],
        "",
        "Do not call packets outside of the TCP window invalid",
    ),
    flag(
        "conntrack-udp-timeout",
        &["conntrack.udpTimeout"],
        "DURATION",
        "How long a UDP flow without an answer is tracked; 0s leaves it alone",
    ),
    flag("conntrack-udp-timeout-stream", &["conntrack.udpStreamTimeout"], "DURATION", "The same with answers"),
    flag("config-sync-period", &["configSyncPeriod"], "DURATION", "No effect"),
    flag("boot-id-file", &[], "FILES", ""),
    flag("machine-id-file", &[], "FILES", ""),
];

/// What the flags say.
#[derive(Debug, Default)]
pub(super) struct Flags {
    /// Values of the wrong form.
    pub(super) problems: Vec<Problem>,
    /// Flags that do not count because there is a file.
    pub(super) ignored: Vec<&'static str>,
    /// `--healthz-port`.
    pub(super) healthz_port: Option<i64>,
    /// `--metrics-port`.
    pub(super) metrics_port: Option<i64>,
    /// The flag that set a field.
    origins: BTreeMap<&'static str, &'static str>,
}

impl Flags {
    /// Writes what the flags say into the document, in their order: the last of a name counts, lists grow.
    pub(super) fn apply(settings: &[Setting], has_file: bool, document: &mut Tree) -> Flags {
        let mut flags = Flags::default();
        let mut lists: BTreeMap<&'static str, Tree> = BTreeMap::new();
        for setting in settings {
            let Some(flag) = FLAGS.iter().find(|flag| flag.name == setting.flag) else {
                debug_assert!(false, "--{} is no flag", setting.flag);
                continue;
            };
            if has_file && !flag.beats_file {
                if !flags.ignored.contains(&flag.name) {
                    flags.ignored.push(flag.name);
                }
                continue;
            }
            flags.take(flag, &setting.value, &mut lists, document);
        }
        flags
    }

    fn take(&mut self, flag: &'static Flag, text: &str, lists: &mut BTreeMap<&'static str, Tree>, document: &mut Tree) {
        let refuse = |expected: &str| Problem::new(&format!("--{}", flag.name), format_args!("{text:?}"), expected);
        let Some(&first) = flag.fields.first() else {
            let slot = match flag.name {
                HEALTHZ_PORT => &mut self.healthz_port,
                METRICS_PORT => &mut self.metrics_port,
                _ => return,
            };
            match text.parse() {
                Ok(port @ 0..=65535) => *slot = Some(port),
                _ => self.problems.push(refuse("must be a port from 0 to 65535")),
            }
            return;
        };
        let kind = fields::type_of(first).unwrap_or(if flag.is_switch() { Type::Bool } else { Type::Any });
        let Some(value) = value(kind, text) else {
            return self.problems.push(refuse(kind.expected()));
        };
        let value = match (lists.get(flag.name).cloned(), value) {
            (Some(Tree::List(mut all)), Tree::List(more)) => {
                all.extend(more);
                Tree::List(all)
            }
            (Some(Tree::Map(mut all)), Tree::Map(more)) => {
                all.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
                all.extend(more);
                Tree::Map(all)
            }
            (_, value) => value,
        };
        lists.insert(flag.name, value.clone());
        for field in flag.fields {
            self.origins.insert(field, flag.name);
            document.set(field, value.clone());
        }
    }

    /// The name under which the user knows a field: the flag, if one has set it.
    pub(super) fn known_as(&self, field: &str) -> String {
        let (path, rest) = field.split_at(field.find('[').unwrap_or(field.len()));
        match self.origins.get(path) {
            Some(flag) => format!("--{flag}{rest}"),
            None => field.to_owned(),
        }
    }
}

/// Reads the text of a flag; `None` if it is not of the type.
fn value(kind: Type, text: &str) -> Option<Tree> {
    Some(match kind {
        Type::Bool => Tree::scalar(Scalar::Bool(go_bool(text)?)),
        Type::Int => Tree::scalar(Scalar::Int(text.parse().ok()?)),
        Type::Float => Tree::scalar(Scalar::Float(text.parse().ok()?)),
        Type::String | Type::Duration | Type::DurationOrNanoseconds | Type::Any => {
            if matches!(kind, Type::Duration | Type::DurationOrNanoseconds) {
                super::duration::GoDuration::parse(text)?;
            }
            Tree::String(text.to_owned())
        }
        Type::Strings => Tree::List(parts(text).map(|part| Tree::String(part.to_owned())).collect()),
        Type::Switches => {
            let switch = |part: &str| {
                let (name, value) = part.split_once('=')?;
                Some((name.trim().to_owned(), Tree::scalar(Scalar::Bool(go_bool(value.trim())?))))
            };
            Tree::Map(parts(text).map(switch).collect::<Option<_>>()?)
        }
    })
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|_| !text.is_empty())
}

/// Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_name_fields_that_are_there() {
        for flag in FLAGS {
            for field in flag.fields {
                let kind = fields::type_of(field);
                let known = kind.is_some() || field.starts_with("logging.options.");
                assert!(known, "--{}: {field}", flag.name);
                assert!(kind != Some(Type::Bool) || flag.is_switch(), "--{} is a switch", flag.name);
            }
            assert_eq!(FLAGS.iter().filter(|other| other.name == flag.name).count(), 1, "--{}", flag.name);
        }
    }

    #[test]
    fn texts_of_flags_are_read() {
        let cases = [
            (Type::Bool, "T", Some("true")),
            (Type::Bool, "yes", None),
            (Type::Int, "-999", Some("-999")),
            (Type::Int, "1.5", None),
            (Type::Int, "", None),
            (Type::Duration, "1h", Some("\"1h\"")),
            (Type::Duration, "5", None),
            (Type::Strings, "a,b", Some("[\"a\", \"b\"]")),
            (Type::Strings, "", Some("[]")),
            (Type::Switches, "A=true,B=0", Some("{A: true, B: false}")),
            (Type::Switches, "A", None),
            (Type::Switches, "A=x", None),
        ];
        for (kind, text, expected) in cases {
            assert_eq!(value(kind, text).map(|tree| tree.to_string()).as_deref(), expected, "{kind:?} {text:?}");
        }
    }
}
