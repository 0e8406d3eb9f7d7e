//! The command line.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::{FLAGS, OUR_FLAGS, Overrides, Setting};
use crate::model::{Destination, Protocol, Source};
use crate::secrets::shown;

const EXIT_STATUS: &str = "\
Exit status: 0 on success and when stopped by SIGTERM or SIGINT; 1 on any error, for values that cannot be used, and when
the configuration file has changed in a way that needs a restart; 2 on a wrong command line.
Manual: nftproxyd(8).";

/// nftproxyd's command line. Without a subcommand it runs the proxy, since kube-proxy is called that way:
/// `nftproxyd --config=FILE`.
#[derive(Debug, Parser)]
#[command(name = "nftproxyd", version, about, long_about = None, disable_version_flag = true)]
#[command(args_conflicts_with_subcommands = true, args_override_self = true, after_help = EXIT_STATUS)]
pub struct Cli {
    /// What to do; `run` if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Proxy the Services of a cluster, or of a folder of manifests, until stopped; the rules stay when it stops
    #[command(args_override_self = true, after_help = EXIT_STATUS)]
    Run(Box<RunArgs>),
    /// Print the nft script of what would be installed for a folder of manifests; needs no root
    #[command(args_override_self = true, after_help = LOADING)]
    Render(RenderArgs),
    /// Say whether a configuration file can be used, what in it has no effect, and how the API server is reached
    CheckConfig(CheckConfigArgs),
    /// Look for what keeps Services on this node from working, and say how to mend it; changes nothing
    #[command(args_override_self = true, after_help = GRADES)]
    Doctor(Box<DoctorArgs>),
    /// List every frontend with its policy, endpoints and open connections, as the kernel has them
    #[command(after_help = COLUMNS)]
    Status(StatusArgs),
    /// Say what becomes of a connection to a Service, and why: what this node's tables, routes and connections make of it
    #[command(args_override_self = true, after_help = VERDICTS, allow_missing_positional = true)]
    Explain(Box<ExplainArgs>),
    /// Say what becomes of connections to an address or a Service while they are made, and who drops those that are dropped
    #[command(args_override_self = true, after_help = TRACED, allow_missing_positional = true)]
    Trace(Box<TraceArgs>),
    /// Remove nftproxyd's tables from the kernel, and nothing else
    Cleanup(CleanupArgs),
}

/// Options of `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Proxy what the manifests in DIR say (*.yaml, *.yml, *.json) and follow their changes, instead of a cluster
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Options that concern the node
    #[command(flatten)]
    pub node: NodeArgs,
    /// Write the configuration that is in force, with all defaults, to FILE and exit
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// When all Services are in place, remove what kube-proxy has left: its tables of nftables, its chains of iptables, its
    /// part of IPVS. Nothing of others. Stop kube-proxy first; its rules stay until then
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(value_parser = BoolishValueParser::new(), action = ArgAction::Set, hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    pub take_over: bool,
    /// Whether nobody else can change the tables while this runs, which takes Linux 6.9. auto: where the kernel can do it,
    /// and what is left at the end is as without it, which every nft can read back. on: also after the end, until the next
    /// start, nft before 1.1.0 cannot read a saved ruleset. off: everybody can change them, and it is repaired
    #[arg(long, value_enum, default_value_t, value_name = "WHEN", hide_possible_values = true)]
    pub table_owner: TableOwner,
    /// Set up connection tracking, check that the kernel can do what is needed, and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(value_parser = BoolishValueParser::new(), action = ArgAction::Set, hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    pub init_only: bool,
    /// Remove nftproxyd's tables and exit, as the subcommand does
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    #[arg(value_parser = BoolishValueParser::new(), action = ArgAction::Set, hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    pub cleanup: bool,
    /// Print the version and exit; raw also says what it was built of
    #[arg(short = 'V', long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_parser = version_form, value_name = "raw")]
    pub version: Option<String>,
}

/// Whether the tables are owned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum TableOwner {
    /// While it runs, where the kernel can do it
    #[default]
    Auto,
    /// They have to be, and stay as they are at the end
    On,
    /// Never
    Off,
}

/// Options that every subcommand with a configuration has.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeArgs {
    /// A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's name, instead of hostnameOverride in the configuration or the host name
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Serve only Services whose label service.kubernetes.io/service-proxy-name is NAME, in tables of their own, beside the
    /// kube-proxy that serves all others; its ports are left to it
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,
    /// URL of the API server, instead of that in the kubeconfig
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// Flags that stand for fields of the configuration file
    #[command(flatten)]
    pub fields: FieldFlags,
}

/// The flags of [`FLAGS`] that were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldFlags(pub Vec<Setting>);

/// What can load the text of `render`.
const LOADING: &str =
    "nft 1.0.3 or later can load the text; with session affinity 1.0.6, and for IPv6 1.1.0 or 1.0.6.1";

/// Options of `render`.
#[derive(Debug, Clone, Args)]
pub struct RenderArgs {
    /// The folder of manifests
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Options that concern the node
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Options of `check-config`.
#[derive(Debug, Clone, Args)]
pub struct CheckConfigArgs {
    /// A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Options of `cleanup`.
#[derive(Debug, Clone, Args)]
pub struct CleanupArgs {
    /// Remove what kube-proxy has left instead, in all of its modes, and nothing of nftproxyd or of others
    #[arg(long, conflicts_with = "service_proxy_name")]
    pub kube_proxy: bool,
    /// Remove the tables of a proxy with this name instead
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,
    /// Wait until the kube-proxy of this node has written its rules and they serve what the tables serve: no connection fails
    /// in between
    #[arg(long, conflicts_with_all = ["kube_proxy", "service_proxy_name"])]
    pub after_kube_proxy: bool,
    /// Where that kube-proxy serves /metrics
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249", requires = "after_kube_proxy")]
    pub metrics_bind_address: SocketAddr,
    /// Then wait to be stopped: for a container, which would be started again and again
    #[arg(long, requires = "after_kube_proxy")]
    pub stay: bool,
}

/// What `status` shows.
const COLUMNS: &str = "\
POLICY says what becomes of new connections:
  Cluster          any endpoint
  Local            endpoints on this node only; at external addresses, clients inside of the
                   cluster may go to any
  dropped outside  those from outside are dropped: no endpoint is on this node
  refused          no endpoint
  dropped          the policy is Local, and no endpoint is on this node
  unknown          the elements of the table do not tell

\", ranges\": only the sources that are named below the table; \", damaged\": somebody else has
changed elements. SCHEDULER is how an endpoint is chosen, SHARE an endpoint's part of new
connections. POD, NODE, WEIGHT, endpoints that are not ready, and why something is not served
are asked of the daemon; all else is in the kernel, whether or not a daemon runs. WEIGHT is
shown where one is not 1. CONNECTIONS are those that the kernel tracks, also, for up to two
minutes, those that one side has closed; UNANSWERED those of them to which the endpoint has
said nothing yet: many of them mean that it is not reached. NEW/S is how many were not there
at the look before, by the second: those of UDP, too, as soon as the first packet has come.

Where frontends count (nftables.countConnections), CONNS is all connections since the frontend's
element was made, which a change of its endpoints does anew, and CONNS/S how many came since the
look before, by the second. Both count repetitions of what is refused or dropped, too. A line
of --rate and --watch says whether new connections of frontends are from their counters or
from connection tracking; those of endpoints always are from connection tracking.

Where a Service asks for accounting (annotation nftproxyd.io/accounting, nftables.accounting), the
daemon is asked on its metrics port, at /nftproxyd/accounting, what the connections to each
endpoint had that have ended, through all frontends of the port together: ENDED is how many, INPKTS
and INBYTES what came from clients, OUTPKTS and OUTBYTES what went back. At most 400 endpoints of
the node have totals. Connections that are open are not in them. Where none has ended for 15
minutes, they begin anew.

# nftproxyd status --history shop/web
2026-11-30 18:27:39.240 EndpointSlice shop/web-ipv4: written in 1364 us (10 operations, 784
bytes, kernel 91 us)

The exit status is 0; 1 where there is no table or it cannot be read; 2 of a wrong command
line; 3 where there is no frontend of what is asked for. JSON has daemon, daemonError,
servicesError, accountingError, tables, nodePorts, newWithinSeconds, newConnectionsFrom (by family: counters
or conntrack), frontends and, of what is asked for, services: what the daemon knows of them, as on /nftproxyd/services.";

/// Options of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Of what: NAMESPACE, NAMESPACE/NAME, NAMESPACE/NAME:PORT, ADDRESS, ADDRESS:PORT or *:NODEPORT [default: of all]. The exit
    /// status is 3 where there is no such frontend
    #[arg(value_name = "WHAT")]
    pub what: Option<String>,
    /// The last changes instead, from the memory of the daemon: when it heard of each, what was written, and after what time
    /// the kernel had it. Where there is none, that is said, and the exit status is 0
    #[arg(long, conflicts_with_all = ["rate", "watch"])]
    pub history: bool,
    /// Look twice, a second apart, and say how many new connections a second there are
    #[arg(long, conflicts_with = "watch")]
    pub rate: bool,
    /// Look again and again, every so many seconds [default: 2], until Ctrl-C or q; it sorts by new connections (r), connections
    /// (c) or name (n)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u16).range(1..=3600), conflicts_with = "output")]
    pub watch: Option<u16>,
    /// How to print it
    #[arg(short = 'o', long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Of a proxy with this name
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,
    /// Where the daemon serves /metrics, to be asked for its health [default: 127.0.0.1:10249, or 127.0.0.1:10349 of a
    /// proxy with a name]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<SocketAddr>,
}

/// What a report of `explain` means. The statuses are those of `explain::Verdict`.
const VERDICTS: &str = "\
A connection that would begin now is followed through what the kernel has: the tables of nftproxyd
and of others, routes, connections. Nothing is sent, unless --probe is given. A line for each place
that it passes, each endpoint that it may go to, with its share of new connections, its pod, the
device of the route, whom it sees as the client, and the connections that it has and has not
answered; the last line says what becomes of it, and why.

Of several the gravest decides the exit status:
  REACHED                it comes to an endpoint, as far as this node can tell    0
  REFUSED                its sender is told: a reset, an ICMP error, no route     3
  DROPPED                it is lost                                               4
  NOT OURS               no Service that is served here, or others translate it   5
  NOBODY CAN TELL        it depends on what cannot be known                       6
  REACHED, NOT ANSWERED  nobody there answers, or this node loses the answer      7
1 is an error, such as no permission; 2 a wrong command line.

What is followed is the first packet, to each endpoint; its answer, back to the client; and what
both send next, of TCP without the end: where one of these is lost, a line says it (answer, later).
Answers come in by the device that leads to the endpoint; of a rule that asks for the client's port,
nobody can tell, nor where what changes while it is read comes to something else each time. Not seen:
bridge and arp chains (those that may drop are named), flow tables, large packets, XDP, tc and IPVS.

JSON is a list of objects with packet, service, is, facts, way, endpoints, causes and verdict. A
cause has reason, effect, endpoint, what and fix. Reasons: no-endpoints, endpoints-not-ready,
internal-traffic-policy, external-traffic-policy, source-ranges, remembered-endpoint-gone,
no-such-port, free-cluster-ip, endpoint-does-not-answer, neighbour-does-not-answer, foreign-rule,
foreign-rule-unclear, answer-lost, later-packet-lost, translated-elsewhere, kube-proxy-leftover,
not-forwarded, reverse-path, interface-unknown, unread, connections-full, bridge, pod-masqueraded,
node-port-address, listener, no-route-to-endpoint, no-route-to-service, no-table, damaged-table,
daemon-down, not-followed, local-address and no-service.";

/// Options of `explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// The address of the client [default: this node]
    #[arg(value_name = "FROM")]
    pub from: Option<IpAddr>,
    /// ADDRESS or ADDRESS:PORT, IPv6 in brackets, of a Service, the node or anything else; or NAMESPACE/NAME or
    /// NAMESPACE/NAME:PORT of a Service, wherever it is served here
    #[arg(value_name = "TO")]
    pub to: Destination,
    /// The protocol [default: those of what is there; tcp where there is nothing]
    #[arg(long = "proto", value_enum, value_name = "PROTOCOL")]
    pub protocol: Option<L4Protocol>,
    /// The interface that packets of the client come in by [default: that of the route back to it]
    #[arg(long, value_name = "INTERFACE", requires = "from")]
    pub arriving_by: Option<String>,
    /// Connect to each endpoint from this node, by TCP, and say who does not answer within a second. To UDP and SCTP nothing
    /// is sent, which is said
    #[arg(long, conflicts_with = "manifests")]
    pub probe: bool,
    /// How to print it
    #[arg(short = 'o', long, value_enum, default_value_t = LineOutput::Text)]
    pub output: LineOutput,
    /// Of a proxy with this name
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,
    /// Where the daemon serves /metrics, to be asked for what the kernel does not have [default: 127.0.0.1:10249, or
    /// 127.0.0.1:10349 of a proxy with a name]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<SocketAddr>,
    /// Go by the rules that would be installed for the manifests in DIR, instead of this node's; needs no root
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// With --manifests, a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE", requires = "manifests")]
    pub config: Option<PathBuf>,
    /// With --manifests, the name of the node
    #[arg(long, value_name = "NAME", requires = "manifests")]
    pub hostname_override: Option<String>,
}

/// What `trace` finds and what it cannot see. The statuses are those of `trace::report`.
const TRACED: &str = "\
Each connection has a line: when its first packet came (UTC), from whom and to what, the Service, and
the endpoint that it was sent to. Below it is what became of that packet: left by a device, delivered
to this node, dropped or rejected by a rule of nftables, or lost elsewhere, and between which hooks.

Exit status: 0 connections came, and all got through; 3 some were dropped, rejected or lost; 4 none
came, or nobody can tell what became of some, as where there were more than are traced; 1 on any
error; 2 on a wrong command line.

Not seen: what is dropped before nftables (XDP, tc, chains at a device's ingress) or by the endpoint;
who has dropped in legacy iptables; connections above 25 a second, whose first packets (of one that
is tried again each) are counted and said at the end; and connections that are open already, but for the next packet of those over UDP. What is traced is in a table of its own, which
goes with the program (before Linux 5.12 one that was killed leaves it, and it traces nothing after
S seconds). With legacy iptables the kernel may also log what is traced.

JSON is an object on each line: time, protocol, client, destination, input, service, endpoint,
endpointBy, masqueraded, masqueradedAs, outcome (left, delivered, dropped, rejected, taken, lost or
unknown), output, by (family, table, chain, handle and rule), behind and notes; null where it is
not known. The last has summary (connections, outcomes, by, messagesLost, and overLimit: how many
first packets were not traced; where as many connections as --count were, they are no reason for 4)
and exitStatus.";

/// Options of `trace`.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// Only connections of this client: an address, or a range
    #[arg(value_name = "FROM")]
    pub from: Option<Source>,
    /// ADDRESS or ADDRESS:PORT, IPv6 in brackets, of a Service, the node or anything else; or NAMESPACE/NAME or
    /// NAMESPACE/NAME:PORT of a Service, wherever it is served here
    #[arg(value_name = "TO")]
    pub to: Destination,
    /// Only this protocol
    #[arg(long = "proto", value_enum, value_name = "PROTOCOL")]
    pub protocol: Option<L4Protocol>,
    /// End after so many connections
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// End after so many seconds
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// How to print it
    #[arg(short = 'o', long, value_enum, default_value_t = LineOutput::Text)]
    pub output: LineOutput,
    /// Of a proxy with this name
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum L4Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl From<L4Protocol> for Protocol {
    fn from(protocol: L4Protocol) -> Protocol {
        match protocol {
            L4Protocol::Tcp => Protocol::Tcp,
            L4Protocol::Udp => Protocol::Udp,
            L4Protocol::Sctp => Protocol::Sctp,
        }
    }
}

/// How lines are printed while they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LineOutput {
    /// For people
    Text,
    /// For programs
    Json,
}

/// What a report of `doctor` means. The statuses are those of `doctor::Grade`.
const GRADES: &str = "\
Each line begins with a grade; the gravest decides the exit status:
  ok      as it should be                                                0
  note    good to know, and mostly meant so                              0
  unread  it could not be read, so nobody can tell                       4
  check   some traffic is lost or goes elsewhere, or will                3
  WRONG   Services do not work with this, or do not follow the cluster   1
2 is a wrong command line; 1 also a configuration that cannot be used. What follows \"seen:\"
shows it, what follows \"fix:\" can be typed or done about it.

JSON is an object with grade, exitStatus and findings: objects with subject, grade (in lower
case), what, proof (a list of texts) and fix. The subjects are daemon, api-server, tables, owner,
kernel, forwarding, reverse-path, bridges, connections, affinity, route, pod-range, node-ports,
health-checks, service-addresses, route-localnet, firewall, raw, kube-proxy, calico and nft.

The daemon looks once by itself, when it has started: what is to check or wrong is a warning in
its log, and all together one Event FoundByDoctor of the Node.

What becomes of the connections of one client to one Service, nftproxyd-explain(8) says.";

/// Options of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// How to print it
    #[arg(short = 'o', long, value_enum, default_value_t = DoctorOutput::Text)]
    pub output: DoctorOutput,
    /// Those of the daemon
    #[command(flatten)]
    pub node: FewNodeArgs,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DoctorOutput {
    /// For people
    Text,
    /// For programs
    Json,
}

/// [`NodeArgs`], of which only those are shown that matter to somebody who looks: all are taken, so that it can be called
/// with the flags of the daemon.
#[derive(Debug, Clone, Default)]
pub struct FewNodeArgs(pub NodeArgs);

impl FewNodeArgs {
    /// Those that matter.
    const SHOWN: [&str; 4] = ["config", "metrics-bind-address", "conntrack-max-per-core", "conntrack-min"];
}

impl Args for FewNodeArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let before: Vec<clap::Id> = command.get_arguments().map(|arg| arg.get_id().clone()).collect();
        NodeArgs::augment_args(command).mut_args(|arg| {
            if before.contains(arg.get_id()) {
                return arg;
            }
            let shown = Self::SHOWN.contains(&arg.get_id().as_str());
            arg.hide(!shown).help_heading(None::<&str>)
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FewNodeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<FewNodeArgs, clap::Error> {
        Ok(FewNodeArgs(NodeArgs::from_arg_matches(matches)?))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

impl Cli {
    /// The command that is meant.
    pub fn command(self) -> Command {
        self.command.unwrap_or(Command::Run(Box::new(self.run)))
    }
}

impl NodeArgs {
    /// What they say about the configuration.
    pub fn overrides(&self, manifests: Option<PathBuf>) -> Overrides {
        Overrides {
            hostname_override: self.hostname_override.clone(),
            master: self.master.clone(),
            service_proxy_name: self.service_proxy_name.clone(),
            manifests,
            flags: self.fields.0.clone(),
        }
    }
}

impl Args for FieldFlags {
    fn augment_args(mut command: clap::Command) -> clap::Command {
        for flag in FLAGS {
            let mut arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Append);
            if flag.name == "v" {
                arg = arg.short('v');
            }
            arg = if flag.is_switch() {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
            } else {
                arg.num_args(1).allow_hyphen_values(true).value_name(flag.value)
            };
            let heading = match flag.name {
                name if OUR_FLAGS.contains(&name) => None,
                _ if flag.beats_file => Some("Log"),
                _ => Some("Instead of a configuration file"),
            };
            command = command.arg(arg.help(flag.help).hide(flag.help.is_empty()).help_heading(heading));
        }
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FieldFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<FieldFlags, clap::Error> {
        let given = FLAGS.iter().flat_map(|flag| {
            let values = matches.get_many::<String>(flag.name).into_iter().flatten();
            values.map(|value| Setting { flag: flag.name, value: value.clone() })
        });
        Ok(FieldFlags(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Forms of `--version`: with a version (`v1.36.2`) kube-proxy goes on and pretends to be it.
fn version_form(text: &str) -> Result<String, String> {
    let is_version = text
        .strip_prefix('v')
        .is_some_and(|rest| rest.split('.').count() == 3 && rest.starts_with(|c: char| c.is_ascii_digit()));
    if ["true", "false", "raw"].contains(&text) || is_version {
        return Ok(text.to_owned());
    }
    Err("must be true, false, raw, or a version such as v1.36.2".to_owned())
}

impl RunArgs {
    /// What was given, as kube-proxy logs it at verbosity 1: `--x="y"`.
    pub fn given(&self) -> Vec<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let switch = |on: bool| on.then(|| "true".to_owned());
        let owner = Some(self.table_owner).filter(|owner| *owner != TableOwner::default());
        let own = [
            ("config", path(&self.node.config)),
            ("hostname-override", self.node.hostname_override.clone()),
            ("manifests", path(&self.manifests)),
            // There may be a password in it.
            ("master", self.node.master.as_deref().map(shown)),
            ("table-owner", owner.and_then(|owner| Some(owner.to_possible_value()?.get_name().to_owned()))),
            ("take-over", switch(self.take_over)),
            ("service-proxy-name", self.node.service_proxy_name.clone()),
            ("init-only", switch(self.init_only)),
            ("version", self.version.clone()),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let fields = self.node.fields.0.iter().map(|setting| (setting.flag, setting.value.clone()));
        own.chain(fields).map(|(name, value)| format!("--{name}={value:?}")).collect()
    }
}

/// The same command line with hyphens in the names of flags where kube-proxy takes underscores too.
pub fn with_hyphens(line: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    line.into_iter().map(|word| match word.to_str().and_then(|text| text.strip_prefix("--")) {
        Some(flag) => {
            let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
            format!("--{}{value}", name.replace('_', "-")).into()
        }
        None => word,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(with_hyphens(line.split_whitespace().map(OsString::from))).map(Cli::command)
    }

    fn parse(line: &str) -> Command {
        try_parse(line).unwrap_or_else(|err| panic!("{line}: {err}"))
    }

    fn run(line: &str) -> RunArgs {
        match parse(line) {
            Command::Run(args) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn it_can_be_called_as_kube_proxy_is() {
        let args = run("nftproxyd --config=/var/lib/kube-proxy/config.conf --hostname-override=n1 -v 2");
        assert_eq!(args.node.config.as_deref(), Some("/var/lib/kube-proxy/config.conf".as_ref()));
        assert_eq!(args.node.hostname_override.as_deref(), Some("n1"));
        assert_eq!(args.node.fields.0, [Setting { flag: "v", value: "2".to_owned() }]);
        assert!(!args.cleanup && !args.init_only && args.version.is_none());
        assert!(run("nftproxyd run --manifests d").manifests.is_some());
        assert!(matches!(parse("nftproxyd"), Command::Run(_)));
        assert!(matches!(
            parse("nftproxyd cleanup"),
            Command::Cleanup(CleanupArgs { kube_proxy: false, after_kube_proxy: false, .. })
        ));
        assert!(matches!(parse("nftproxyd render --manifests d"), Command::Render(_)));
        assert!(matches!(parse("nftproxyd status -o json"), Command::Status(StatusArgs { output: Output::Json, .. })));
        assert!(matches!(parse("nftproxyd check-config f"), Command::CheckConfig(_)));
        assert!(matches!(
            parse("nftproxyd cleanup --kube-proxy"),
            Command::Cleanup(CleanupArgs { kube_proxy: true, .. })
        ));
        assert!(run("nftproxyd --config=f --take-over").take_over && run("nftproxyd run --take-over").take_over);
        assert!(!run("nftproxyd").take_over && !run("nftproxyd --take-over=false").take_over);
        assert!(run("nftproxyd --cleanup").cleanup && !run("nftproxyd --cleanup=false").cleanup);
        assert_eq!(run("nftproxyd --version=raw").version.as_deref(), Some("raw"));
        assert_eq!(run("nftproxyd --version=v1.30.0").version.as_deref(), Some("v1.30.0"));
        let given = run("nftproxyd --config f --take-over --v=1 --profiling").given();
        assert_eq!(given, ["--config=\"f\"", "--take-over=\"true\"", "--v=\"1\"", "--profiling=\"true\""]);
        let given = run("nftproxyd --master=https://me:secret@h:6443").given();
        assert_eq!(given, ["--master=\"https://me:***@h:6443\""]);
        assert_eq!(run("nftproxyd --version").version.as_deref(), Some("true"));
        let twice = run("nftproxyd --config=a --config b --master=u");
        assert_eq!((twice.node.config, twice.node.master), (Some("b".into()), Some("u".to_owned())));
    }

    #[test]
    fn the_help_of_doctor_has_its_exit_statuses() {
        for grade in crate::doctor::Grade::ALL {
            let begins = format!("  {:<8}", grade.word());
            let line = GRADES.lines().find(|line| line.starts_with(&begins)).expect("it is in the help");
            assert!(line.ends_with(&format!("   {}", grade.exit_status())), "{line}");
        }
        let Command::Doctor(args) = parse("nftproxyd doctor -o json --conntrack-min=7 --cluster-cidr 10.0.0.0/8 -v2")
        else {
            panic!("it is a command");
        };
        let flags: Vec<&str> = args.node.0.fields.0.iter().map(|setting| setting.flag).collect();
        assert_eq!((args.output, flags), (DoctorOutput::Json, vec!["v", "cluster-cidr", "conntrack-min"]));
    }

    #[test]
    fn every_flag_of_kube_proxy_is_taken() {
        for flag in FLAGS {
            let value = if flag.is_switch() { "" } else { "=1" };
            let expected = if flag.is_switch() { "true" } else { "1" };
            for name in [flag.name.to_owned(), flag.name.replace('-', "_")] {
                let args = run(&format!("nftproxyd --{name}{value}"));
                assert_eq!(args.node.fields.0, [Setting { flag: flag.name, value: expected.to_owned() }], "--{name}");
            }
        }
        let spellings = [
            ("-v=3", "v", "3"),
            ("-v3", "v", "3"),
            ("--v 3", "v", "3"),
            ("--profiling=false", "profiling", "false"),
            ("--oom_score_adj -998", "oom-score-adj", "-998"),
            ("--cluster-cidr a_b", "cluster-cidr", "a_b"),
        ];
        for (line, flag, value) in spellings {
            let args = run(&format!("nftproxyd {line}"));
            assert_eq!(args.node.fields.0, [Setting { flag, value: value.to_owned() }], "{line}");
        }
        let order = run("nftproxyd --nodeport-addresses=a --nodeport-addresses=b").node.fields.0;
        assert_eq!(order.iter().map(|setting| setting.value.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_trace_has_a_destination_and_perhaps_a_source() {
        let trace = |line: &str| match parse(line) {
            Command::Trace(args) => *args,
            other => panic!("{line}: {other:?}"),
        };
        let bare = trace("nftproxyd trace shop/web:http");
        assert!(bare.from.is_none() && bare.protocol.is_none());
        assert_eq!((bare.to, bare.count, bare.seconds), ("shop/web:http".parse().expect("a Service"), 100, 10));
        let full = trace("nftproxyd trace --proto udp -o json --count 1 10.244.0.0/16 [fd00::1]:53 --seconds 60");
        assert_eq!(full.from, Some("10.244.0.0/16".parse().expect("a range")));
        assert_eq!(full.to, "[fd00::1]:53".parse().expect("an address"));
        assert_eq!(full.protocol.map(Protocol::from), Some(Protocol::Udp));
        for wrong in
            ["", " web", " shop/web 10.0.0.1", " --count 0 a/b", " --seconds 0 a/b", " --proto icmp a/b", " a/b c/d"]
        {
            assert!(try_parse(&format!("nftproxyd trace{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let lines = [
            "nftproxyd --confg=x",
            "nftproxyd run stray",
            "nftproxyd --config=x cleanup",
            "nftproxyd render",
            "nftproxyd --profiling false",
            "nftproxyd --version=1.2",
            "nftproxyd check-config",
        ];
        for line in lines {
            assert!(try_parse(line).is_err(), "{line}");
        }
    }
}
