//! Every field of a KubeProxyConfiguration (`kubeproxy.config.k8s.io/v1alpha1`, kube-proxy 1.36): its type, and what
//! becomes of it here.

use std::collections::{BTreeMap, BTreeSet};

use super::Problem;
use super::duration::GoDuration;
use crate::printable::printable;
use crate::yaml::{Scalar, Tree};

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    String,
    Bool,
    Int,
    Float,
    /// A text in Go's syntax.
    Duration,
    /// The same, or an integer of nanoseconds.
    DurationOrNanoseconds,
    Strings,
    /// Names with true or false.
    Switches,
    /// Of a form of its own, which is checked elsewhere.
    Any,
}

impl Type {
    pub(super) fn expected(self) -> &'static str {
        match self {
            Type::String => "must be a text",
            Type::Bool => "must be true or false",
            Type::Int => "must be an integer",
            Type::Float => "must be a number",
            Type::Duration => "must be a duration as text, such as \"30s\" or \"1h0m0s\"",
            Type::DurationOrNanoseconds => "must be a duration as text, such as \"5s\", or nanoseconds",
            Type::Strings => "must be a list of texts",
            Type::Switches => "must be names with true or false",
            Type::Any => "",
        }
    }
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It has the effect that it has in kube-proxy.
    Honoured,
    /// It has no effect, and needs none.
    Accepted,
    /// It has no effect; a warning where it is set to anything but false, zero or empty.
    Warned,
}

use Type::*;
use Use::*;

/// All fields, by path.
pub(super) const FIELDS: &[(&str, Type, Use)] = &[
    ("apiVersion", String, Honoured),
    ("kind", String, Honoured),
    ("featureGates", Switches, Honoured),
    ("clientConnection.kubeconfig", String, Honoured),
    ("clientConnection.acceptContentTypes", String, Accepted),
    ("clientConnection.contentType", String, Accepted),
    ("clientConnection.qps", Float, Accepted),
    ("clientConnection.burst", Int, Accepted),
    ("logging.format", String, Honoured),
    ("logging.flushFrequency", DurationOrNanoseconds, Accepted),
    ("logging.verbosity", Int, Honoured),
    ("logging.vmodule", Any, Accepted),
    ("logging.options", Any, Accepted),
    ("hostnameOverride", String, Honoured),
    ("bindAddress", String, Honoured),
    ("healthzBindAddress", String, Honoured),
    ("metricsBindAddress", String, Honoured),
    ("bindAddressHardFail", Bool, Honoured),
    ("enableProfiling", Bool, Warned),
    ("showHiddenMetricsForVersion", String, Accepted),
    ("configSyncPeriod", Duration, Accepted),
    ("oomScoreAdj", Int, Honoured),
    ("portRange", String, Accepted),
    ("windowsRunAsService", Bool, Warned),
    ("winkernel.networkName", String, Warned),
    ("winkernel.sourceVip", String, Warned),
    ("winkernel.enableDSR", Bool, Warned),
    ("winkernel.rootHnsEndpointName", String, Warned),
    ("winkernel.forwardHealthCheckVip", Bool, Warned),
    ("mode", String, Honoured),
    ("nftables.masqueradeBit", Int, Honoured),
    ("nftables.masqueradeAll", Bool, Honoured),
    ("nftables.syncPeriod", Duration, Honoured),
    ("nftables.minSyncPeriod", Duration, Honoured),
    ("iptables.masqueradeBit", Int, Honoured),
    ("iptables.masqueradeAll", Bool, Honoured),
    ("iptables.localhostNodePorts", Bool, Honoured),
    ("iptables.syncPeriod", Duration, Honoured),
    ("iptables.minSyncPeriod", Duration, Honoured),
    ("ipvs.syncPeriod", Duration, Honoured),
    ("ipvs.minSyncPeriod", Duration, Honoured),
    ("ipvs.scheduler", String, Honoured),
    ("ipvs.excludeCIDRs", Strings, Warned),
    ("ipvs.strictARP", Bool, Warned),
    ("ipvs.tcpTimeout", Duration, Warned),
    ("ipvs.tcpFinTimeout", Duration, Warned),
    ("ipvs.udpTimeout", Duration, Warned),
    ("detectLocalMode", String, Honoured),
    ("detectLocal.bridgeInterface", String, Honoured),
    ("detectLocal.interfaceNamePrefix", String, Honoured),
    ("clusterCIDR", String, Honoured),
    ("nodePortAddresses", Strings, Honoured),
    ("conntrack.maxPerCore", Int, Honoured),
    ("conntrack.min", Int, Honoured),
    ("conntrack.tcpEstablishedTimeout", Duration, Honoured),
    ("conntrack.tcpCloseWaitTimeout", Duration, Honoured),
    ("conntrack.tcpBeLiberal", Bool, Honoured),
    ("conntrack.udpTimeout", Duration, Honoured),
    ("conntrack.udpStreamTimeout", Duration, Honoured),
    // Ours: kube-proxy says of them that it does not know them, and goes on.
    ("serviceProxyName", String, Honoured),
    ("nftables.scheduler", String, Honoured),
    ("nftables.countConnections", Bool, Honoured),
    ("nftables.accounting", Bool, Honoured),
    ("nftables.ping", Bool, Honoured),
    ("nftables.resetConnections", Bool, Honoured),
];

/// A field that kube-proxy does not have: which Services are served.
pub(super) const SERVICE_PROXY_NAME: &str = "serviceProxyName";
/// Another one: how endpoints are chosen.
pub(super) const SCHEDULER: &str = "nftables.scheduler";
/// Another one: whether all connections are accounted for.
pub(super) const ACCOUNTING: &str = "nftables.accounting";
/// Another one: whether addresses of Services answer pings.
pub(super) const PING: &str = "nftables.ping";
/// Another one: whether all connections to endpoints that are gone are reset.
pub(super) const RESET_CONNECTIONS: &str = "nftables.resetConnections";
/// Another one: whether frontends count.
pub(super) const COUNT_CONNECTIONS: &str = "nftables.countConnections";

/// The type of the field with this path.
pub(super) fn type_of(path: &str) -> Option<Type> {
    FIELDS.iter().find(|(field, ..)| *field == path).map(|&(_, kind, _)| kind)
}

/// A field's value, of the type of the field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    String(std::string::String),
    Bool(bool),
    Int(i64),
    Float(f64),
    Duration(GoDuration),
    Strings(Vec<std::string::String>),
    Switches(BTreeMap<std::string::String, bool>),
    Any(Tree),
}

impl Value {
    fn read(tree: &Tree, wanted: Type) -> Option<Value> {
        Some(match (wanted, tree) {
            (String, Tree::String(text)) => Value::String(text.clone()),
            (Bool, Tree::Scalar(Scalar::Bool(value), _)) => Value::Bool(*value),
            (Int, Tree::Scalar(Scalar::Int(value), _)) => Value::Int(*value),
            (Float, Tree::Scalar(Scalar::Int(value), _)) => Value::Float(*value as f64),
            (Float, Tree::Scalar(Scalar::Float(value), _)) => Value::Float(*value),
            (Duration | DurationOrNanoseconds, Tree::String(text)) => Value::Duration(GoDuration::parse(text)?),
            (DurationOrNanoseconds, Tree::Scalar(Scalar::Int(value), _)) => Value::Duration(GoDuration(*value)),
            (Strings, Tree::List(items)) => {
                let text = |item: &Tree| match item {
                    Tree::String(text) => Some(text.clone()),
                    _ => None,
                };
                Value::Strings(items.iter().map(text).collect::<Option<_>>()?)
            }
            (Switches, Tree::Map(entries)) => {
                let switch = |(name, value): &(std::string::String, Tree)| match value {
                    Tree::Scalar(Scalar::Bool(value), _) => Some((name.clone(), *value)),
                    _ => None,
                };
                Value::Switches(entries.iter().map(switch).collect::<Option<_>>()?)
            }
            (Any, tree) => Value::Any(tree.clone()),
            _ => return None,
        })
    }

    /// Whether it is false, zero or empty.
    fn is_zero(&self) -> bool {
        match self {
            Value::String(text) => text.is_empty(),
            Value::Bool(value) => !value,
            Value::Int(value) => *value == 0,
            Value::Float(value) => *value == 0.0,
            Value::Duration(duration) => duration.0 == 0,
            Value::Strings(items) => items.is_empty(),
            Value::Switches(switches) => switches.is_empty(),
            Value::Any(_) => true,
        }
    }
}

/// What a value should be; where a text looks like something else, how to write it.
fn expected(wanted: Type, value: &Tree) -> std::string::String {
    match (wanted, value) {
        (String, Tree::Scalar(_, text)) => format!("{}: write {text:?}", wanted.expected()),
        _ => wanted.expected().to_owned(),
    }
}

/// The fields that a file sets, and what is odd about it.
#[derive(Debug, Default)]
pub(super) struct Fields {
    values: BTreeMap<&'static str, Value>,
    /// Paths that no field has.
    pub(super) unknown: BTreeSet<std::string::String>,
    /// Values of the wrong type.
    pub(super) problems: Vec<Problem>,
}

impl Fields {
    /// Reads a document. `null` is the same as absent.
    pub(super) fn read(tree: &Tree) -> Fields {
        let mut fields = Fields::default();
        fields.section(tree, "");
        fields
    }

    fn section(&mut self, tree: &Tree, prefix: &str) {
        let entries = match tree {
            Tree::Map(entries) => entries,
            Tree::Null => return,
            other => {
                let field = if prefix.is_empty() { "the file" } else { prefix.trim_end_matches('.') };
                return self.problems.push(Problem::new(field, other, "must be a section with fields"));
            }
        };
        let last: BTreeMap<&str, usize> =
            entries.iter().enumerate().map(|(index, (key, _))| (key.as_str(), index)).collect();
        for (index, (key, value)) in entries.iter().enumerate() {
            let path = format!("{prefix}{key}");
            if last.get(key.as_str()) != Some(&index) {
                // The last one counts; the caller knows which came twice.
            } else if let Some(&(path, wanted, _)) = FIELDS.iter().find(|(field, ..)| *field == path) {
                if *value != Tree::Null {
                    match Value::read(value, wanted) {
                        Some(value) => drop(self.values.insert(path, value)),
                        None => self.problems.push(Problem::new(path, value, expected(wanted, value))),
                    }
                }
            } else if FIELDS
                .iter()
                .any(|(field, ..)| field.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')))
            {
                self.section(value, &format!("{path}."));
            } else {
                self.unknown.insert(printable(&path).into_owned());
            }
        }
    }

    /// Fields that have no effect although the file wants one.
    pub(super) fn without_effect(&self) -> Vec<&'static str> {
        let warned = FIELDS.iter().filter(|(_, _, usage)| *usage == Warned).map(|&(path, ..)| path);
        warned.filter(|path| self.values.get(path).is_some_and(|value| !value.is_zero())).collect()
    }

    /// A text; absent is empty.
    pub(super) fn string(&self, path: &str) -> &str {
        match self.get(path, String) {
            Some(Value::String(text)) => text,
            _ => "",
        }
    }

    /// A switch; absent is false.
    pub(super) fn bool(&self, path: &str) -> bool {
        matches!(self.get(path, Bool), Some(Value::Bool(true)))
    }

    /// An integer.
    pub(super) fn int(&self, path: &str) -> Option<i64> {
        match self.get(path, Int) {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// A duration; zero is absent.
    pub(super) fn duration(&self, path: &str) -> Option<GoDuration> {
        self.exact_duration(path).filter(|duration| duration.0 != 0)
    }

    /// A duration that may be zero.
    pub(super) fn exact_duration(&self, path: &str) -> Option<GoDuration> {
        match self.get(path, type_of(path).unwrap_or(Duration)) {
            Some(Value::Duration(duration)) => Some(*duration),
            _ => None,
        }
    }

    /// A list of texts; absent is empty.
    pub(super) fn strings(&self, path: &str) -> &[std::string::String] {
        match self.get(path, Strings) {
            Some(Value::Strings(items)) => items,
            _ => &[],
        }
    }

    /// Names with true or false, sorted.
    pub(super) fn switches(&self, path: &str) -> impl Iterator<Item = (&str, bool)> {
        let switches = match self.get(path, Switches) {
            Some(Value::Switches(switches)) => Some(switches),
            _ => None,
        };
        switches.into_iter().flatten().map(|(name, &value)| (name.as_str(), value))
    }

    /// What stands at a field of a form of its own.
    pub(super) fn tree(&self, path: &str) -> Option<&Tree> {
        match self.get(path, Any) {
            Some(Value::Any(tree)) => Some(tree),
            _ => None,
        }
    }

    fn get(&self, path: &str, wanted: Type) -> Option<&Value> {
        debug_assert!(
            FIELDS.iter().any(|(field, kind, _)| (*field, *kind) == (path, wanted)),
            "{path} is a field of type {wanted:?}"
        );
        self.values.get(path)
    }
}
