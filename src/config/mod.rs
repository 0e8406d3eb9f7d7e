//! What the proxy is to do: read at start, from a configuration file of kube-proxy or its flags.

mod checks;
mod duration;
mod effective;
mod fields;
mod flags;
mod kube_proxy;
mod logging;
mod sanity;
mod watch;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

pub use self::effective::effective;
pub(crate) use self::flags::OURS as OUR_FLAGS;
pub use self::flags::{FLAGS, Flag};
pub use self::kube_proxy::{METRICS_PORT, METRICS_PORT_BESIDE};
pub use self::sanity::{Host, sanity};
pub use self::watch::Watch;
pub use crate::addresses::NodePortAddresses;
use crate::model::{PerFamily, Scheduler};
use crate::yaml::{self, Document, Tree};

/// Everything that is configured, checked and ready for use.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name of this node's Node, in lower case: `--hostname-override`, else `hostnameOverride`, else the host's name.
    pub node_name: String,
    /// `serviceProxyName`, `--service-proxy-name`: only Services whose label `service.kubernetes.io/service-proxy-name` has
    /// this value are served, beside whoever serves the others. The value of a label, not empty. `None`: those without the
    /// label.
    pub service_proxy_name: Option<String>,
    /// Where objects come from.
    pub source: Source,
    /// `bindAddress`: where it is a specific address, it is this node's, whatever its Node says.
    pub bind_address: IpAddr,
    /// `healthzBindAddress`; `None` for `--healthz-port=0`, which switches the server off.
    pub healthz_bind_address: Option<SocketAddr>,
    /// `metricsBindAddress`.
    pub metrics_bind_address: SocketAddr,
    /// `bindAddressHardFail`: an address of these two that cannot be listened on ends the process.
    pub bind_address_hard_fail: bool,
    /// `logging`.
    pub logging: Logging,
    /// `oomScoreAdj`, -1000..=1000, default -999: written to `/proc/self/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `conntrack`.
    pub conntrack: Conntrack,
    /// `detectLocalMode` with what it needs: which traffic comes from pods of this node.
    pub detect_local: DetectLocal,
    /// `nodePortAddresses`.
    pub node_port_addresses: NodePortAddresses,
    /// The families in which node ports are served on localhost too: both where `iptables.localhostNodePorts` is true, in
    /// whatever mode, or `nodePortAddresses` has the word `localhost` or `all`; those of which a range there has 127.0.0.1 or
    /// ::1 and not all addresses.
    pub localhost_node_ports: PerFamily<bool>,
    /// `masqueradeBit` of the selected mode, 0..=31: the bit of the packet mark that asks for masquerading.
    pub masquerade_bit: u8,
    /// `masqueradeAll` of the selected mode: masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// How endpoints are chosen where a Service does not say: `scheduler`, `--scheduler`; else in mode ipvs `ipvs.scheduler`,
    /// `--ipvs-scheduler`, which is `rr` where it is empty; else `random`.
    pub scheduler: Scheduler,
    /// `countConnections`, `--count-connections`: each frontend counts its connections, which costs each of them a little.
    pub count_connections: bool,
    /// `accounting`, `--accounting`: the connections of all Services are accounted for by endpoint, not only of those that ask
    /// for it.
    pub accounting: bool,
    /// `ping`, `--ping`: addresses of all Services answer pings, not only of those that ask for it.
    pub ping: bool,
    /// `resetConnections`, `--reset-connections`: connections to endpoints that are gone are reset of all Services, not only of
    /// those that ask for it.
    pub reset_connections: bool,
    /// `minSyncPeriod` of the selected mode: least time from the end of one sync to the beginning of the next. Zero
    /// unless set (kube-proxy waits for a second), at most an hour.
    pub min_sync_period: Duration,
    /// `syncPeriod` of the selected mode, default 30 s: pause before a failed sync is tried again; twice that is the
    /// time after which the proxy counts as unhealthy.
    pub sync_period: Duration,
    /// Feature gate `AllowServiceExternalIPs`, default true.
    pub allow_external_ips: bool,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Logging {
    /// `logging.format`.
    pub format: LogFormat,
    /// `logging.verbosity`, as of klog: 0 and 1 for what matters, 2 to 4 for debugging, 5 and more for everything.
    pub verbosity: u32,
}

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

/// How the kernel is to track connections. `None` and zero leave a setting of the kernel as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conntrack {
    /// `conntrack.maxPerCore`; `None` where it is not set, which means 32768, but never lowers the limit.
    pub max_per_core: Option<u32>,
    /// `conntrack.min`; `None` where it is not set, which means 131072, but never lowers the limit.
    pub min: Option<u32>,
    /// `conntrack.tcpEstablishedTimeout`, default 24 h.
    pub tcp_established_timeout: Duration,
    /// `conntrack.tcpCloseWaitTimeout`, default 1 h.
    pub tcp_close_wait_timeout: Duration,
    /// `conntrack.tcpBeLiberal`: packets outside of the TCP window do not count as invalid.
    pub tcp_be_liberal: bool,
    /// `conntrack.udpTimeout`.
    pub udp_timeout: Duration,
    /// `conntrack.udpStreamTimeout`.
    pub udp_stream_timeout: Duration,
}

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An API server.
    Api {
        /// `clientConnection.kubeconfig`; empty: the service account of the pod.
        kubeconfig: PathBuf,
        /// `--master`: URL that overrides the kubeconfig's.
        master: Option<String>,
    },
    /// `--manifests`: a folder.
    Manifests(PathBuf),
}

/// How traffic from pods of this node is told from other traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// Its source is in the pod range of the cluster, where one is known for the family (`clusterCIDR`).
    ClusterCidr(PerFamily<Option<IpNet>>),
    /// Its source is in a pod range of the Node (`spec.podCIDRs`).
    NodeCidr,
    /// It comes in by this bridge; 1..=15 bytes.
    BridgeInterface(String),
    /// It comes in by an interface whose name begins so; 1..=15 bytes.
    InterfaceNamePrefix(String),
}

/// What the command line says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--hostname-override`: beats the file.
    pub hostname_override: Option<String>,
    /// `--master`: beats the kubeconfig.
    pub master: Option<String>,
    /// `--service-proxy-name`: beats the file.
    pub service_proxy_name: Option<String>,
    /// `--manifests`.
    pub manifests: Option<PathBuf>,
    /// The flags that stand for fields, in their order. Most of them count only where there is no file.
    pub flags: Vec<Setting>,
}

impl Overrides {
    /// Whether the command line asks for a log in JSON, whatever else is wrong with the configuration.
    pub fn wants_json(&self) -> bool {
        let format = self.flags.iter().rfind(|setting| setting.flag == "logging-format");
        format.is_some_and(|setting| setting.value == "json")
    }
}

/// A flag of [`FLAGS`] that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// [`Flag::name`].
    pub flag: &'static str,
    /// Its value.
    pub value: String,
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, or name of the flag.
    pub field: String,
    /// The value, as it was written.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Problem {
    fn new(field: &str, value: impl fmt::Display, reason: impl Into<String>) -> Problem {
        Problem { field: field.to_owned(), value: value.to_string(), reason: reason.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.field, self.value, self.reason)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: std::io::Error,
    },
    /// The file is neither YAML nor JSON.
    #[error("configuration file {}: not YAML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The file has several documents, and it cannot be told which is meant.
    #[error("configuration file {}: {reason}", path.display())]
    Documents {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// Some values cannot be used; all of them are named.
    #[error("the configuration cannot be used:{}", lines(problems))]
    Invalid {
        /// What is wrong, in the order of the file first, then in that of the checks. Not empty.
        problems: Vec<Problem>,
    },
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// A configuration, and what an administrator should know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is ignored, and what is different from kube-proxy: one line each.
    pub warnings: Vec<String>,
    /// The file as it was read; empty where there is none.
    pub text: String,
}

/// Reads the configuration; without a file, everything that no flag sets has its default, and the mode is `nftables`.
///
/// # Errors
/// The file cannot be read, or values in it cannot be used.
pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Loaded, ConfigError> {
    let Some(path) = file else {
        return kube_proxy::resolve(kube_proxy::without_file(), false, overrides, &host_name());
    };
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(path, &text, overrides)
}

/// The same for a file with these contents.
///
/// # Errors
/// The contents cannot be used.
pub fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<Loaded, ConfigError> {
    let document = document(path, text)?;
    let loaded = kube_proxy::resolve(document, true, overrides, &host_name())?;
    Ok(Loaded { text: text.to_owned(), ..loaded })
}

/// The document of a file that is the configuration.
fn document(path: &Path, text: &str) -> Result<Document, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{')
        && let Ok(document) = yaml::json(text)
    {
        return Ok(document);
    }
    let syntax = |err: yaml::Error| ConfigError::Syntax { path: path.to_owned(), reason: err.to_string() };
    let mut documents = yaml::documents(text).map_err(syntax)?;
    documents.retain(|document| document.tree != Tree::Null);
    if documents.len() > 1 {
        let all = documents.len();
        documents.retain(kube_proxy::is_configuration);
        let reason = match &documents[..] {
            [_] => None,
            [] => Some(format!("none of its {all} documents has the kind {}", kube_proxy::KIND)),
            [first, second, ..] => Some(format!(
                "more than one of its documents has the kind {}, those from lines {} and {}; leave one",
                kube_proxy::KIND,
                first.line,
                second.line
            )),
        };
        if let Some(reason) = reason {
            return Err(ConfigError::Documents { path: path.to_owned(), reason });
        }
    }
    Ok(documents.pop().unwrap_or(Document { tree: Tree::Null, line: 1, duplicates: Vec::new() }))
}

/// Paths of all fields that a configuration file may have, such as `conntrack.min`, in no particular order.
pub fn field_paths() -> impl Iterator<Item = &'static str> {
    fields::FIELDS.iter().map(|(path, ..)| *path)
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
