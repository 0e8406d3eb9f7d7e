//! Finds out what has to be known to explain a packet: of our own table, and of what the daemon says.

use std::collections::BTreeSet;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use super::connections::{self, Connections};
use super::error::ExplainError;
use super::facts::{DaemonFacts, Facts, Remembered, Table};
use super::judge;
use super::node::{Node, Place};
use super::question::Asked;
use super::report::{Cause, Effect, Explanation, Verdict};
use crate::metrics::daemon::{Daemon, Pods};
use crate::metrics::services::{PortFacts, Query, ServiceFacts};
use crate::model::{Destination, Family, FrontendAt, FrontendKey, ObjectName, PerFamily, Protocol};
use crate::nftables::{Kernel, KernelError, Rules};
use crate::ruleset::base;
use crate::ruleset::elements::{element_key, entry_set};
use crate::ruleset::eval::{Origin, Packet};
use crate::ruleset::kept;
use crate::ruleset::names::{ChainName, SetName, TableName};
use crate::ruleset::read::frontend_key;
use crate::ruleset::text;
use crate::ruleset::types::{Chain, Key, Statement, Value};
use crate::status;

/// For so long all is read again where tables were changed meanwhile, as the daemon itself does with every change.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// The client; this node, if it is not said.
    pub from: Option<IpAddr>,
    /// Where it connects to.
    pub to: Destination,
    /// The protocol; that of what is there, if it is not said.
    pub protocol: Option<Protocol>,
    /// The interface that the packet comes in by; that of the route back to the client, if it is not said.
    pub arriving_by: Option<String>,
    /// Whether endpoints are connected to.
    pub probe: bool,
}

/// Who knows what the kernel does not.
pub struct Informants<'a> {
    /// What the daemon says of itself; else why it does not.
    pub daemon: Result<Daemon, String>,
    /// Asks it for Services; none where it does not answer.
    pub services: &'a mut dyn FnMut(&Query) -> Vec<ServiceFacts>,
    /// Of which node is asked.
    pub place: Place<'a>,
}

/// One packet of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    to: SocketAddr,
    protocol: Protocol,
}

/// Explains all packets that a question is about: one, or one for each address and port of a Service.
///
/// # Errors
/// See [`ExplainError`].
pub fn explain(
    kernel: &mut impl Kernel,
    question: &Question,
    informants: &mut Informants<'_>,
) -> Result<Vec<Explanation>, ExplainError> {
    let until = Instant::now() + PATIENCE;
    let mut before = None;
    loop {
        let node = Node::read(kernel.table(), informants.place)?;
        if let Some(name) = question.arriving_by.as_ref().filter(|name| node.is_here() && !node.has_interface(name)) {
            return Err(ExplainError::NoInterface(name.clone()));
        }
        let mut all = look_at_all(kernel, question, &node, informants)?;
        let torn = node.torn();
        // Where endpoints come and go all the time no reading is of one moment: one that comes to the same as that before is
        // as good.
        let now = torn.as_ref().map(|_| outcome(&all));
        let is_as_before = now.is_some() && mem::replace(&mut before, now.clone()) == now;
        // Nobody is to be connected to twice.
        if torn.is_some() && !is_as_before && !question.probe && Instant::now() < until {
            continue;
        }
        for facts in all.iter_mut().filter_map(|facts| facts.node.as_mut()) {
            let again = if is_as_before { ", and read again came to the same" } else { "" };
            facts.unread.extend(torn.iter().map(|torn| (format!("{torn}{again}"), !is_as_before)));
        }
        let mut explanations: Vec<Explanation> = all.iter().map(judge::judge).collect();
        if torn.is_some() && !is_as_before {
            // Nor is a drop proven that was there in one of several readings.
            explanations.iter_mut().for_each(|explanation| explanation.verdict = Verdict::Unsure);
        }
        return Ok(explanations);
    }
}

/// What decides about each packet, and what becomes of it.
fn outcome(all: &[Facts]) -> Vec<(Verdict, Vec<Cause>)> {
    let decides = |cause: &Cause| matches!(cause.effect, Effect::Decides(_));
    let of = |facts| {
        let Explanation { verdict, causes, .. } = judge::judge(facts);
        (verdict, causes.into_iter().filter(decides).collect())
    };
    all.iter().map(of).collect()
}

/// The facts of all packets that a question is about.
fn look_at_all(
    kernel: &mut impl Kernel,
    question: &Question,
    node: &Node,
    informants: &mut Informants<'_>,
) -> Result<Vec<Facts>, ExplainError> {
    let mut owns = Owns::default();
    let Targets { packets, unknown } = targets(kernel, question, node, informants, &mut owns)?;
    let mut list = connections::list;
    let mut connections = Connections::new(packets.iter().map(|it| (it.protocol, it.to)), &mut list);
    let mut all = Vec::new();
    for target in packets {
        let own = owns.of(Family::of(target.to.ip()), kernel, node, informants.daemon.as_ref().ok())?;
        let mut facts = look(kernel, question, target, node, informants, own, &mut connections)?;
        facts.node.iter_mut().for_each(|node| node.unread.extend(unknown.iter().map(|what| (what.clone(), false))));
        all.push(facts);
    }
    Ok(all)
}

/// What a question is about.
#[derive(Default)]
struct Targets {
    packets: Vec<Target>,
    /// What else it may be about, as a table is not there that would tell, in words.
    unknown: Vec<String>,
}

impl From<Vec<Target>> for Targets {
    fn from(packets: Vec<Target>) -> Targets {
        Targets { packets, unknown: Vec::new() }
    }
}

/// The packets that a question is about.
fn targets(
    kernel: &mut impl Kernel,
    question: &Question,
    node: &Node,
    informants: &mut Informants<'_>,
    owns: &mut Owns,
) -> Result<Targets, ExplainError> {
    let wanted = |protocol: Protocol| question.protocol.is_none_or(|wanted| wanted == protocol);
    match &question.to {
        Destination::Address { address, port: Some(port) } => {
            let Some(port) = NonZeroU16::new(*port) else { return Ok(Targets::default()) };
            let of = |protocol| Target { to: SocketAddr::new(*address, port.get()), protocol };
            if let Some(protocol) = question.protocol {
                return Ok(vec![of(protocol)].into());
            }
            let mut found = Vec::new();
            for protocol in Protocol::ALL {
                let here = [FrontendAt::Address(*address), FrontendAt::NodePort(Family::of(*address))];
                for at in &here[..if node.is_local(*address) { 2 } else { 1 }] {
                    let key = FrontendKey { at: *at, protocol, port };
                    if !found.contains(&of(protocol)) && has(kernel, &key)? {
                        found.push(of(protocol));
                    }
                }
            }
            Ok(if found.is_empty() { vec![of(Protocol::Tcp)] } else { found }.into())
        }
        Destination::Address { address, port: None } => {
            let mut found: BTreeSet<Target> = whose(kernel, *address)?
                .into_iter()
                .map(|(key, _)| key)
                .filter(|key| wanted(key.protocol))
                .map(|key| Target { to: SocketAddr::new(*address, key.port.get()), protocol: key.protocol })
                .collect();
            if found.is_empty() {
                // Of an address without a Service, every port is as good as this one.
                let protocol = question.protocol.unwrap_or(Protocol::Tcp);
                found.insert(Target { to: SocketAddr::new(*address, 80), protocol });
            }
            Ok(found.into_iter().collect::<Vec<_>>().into())
        }
        Destination::Service { name, port } => {
            // A name of a port has a letter.
            let number: Option<u16> = port.as_ref().and_then(|port| port.parse().ok());
            let port_name = port.as_deref().filter(|_| number.is_none());
            let (mut found, mut unknown) = (Vec::new(), Vec::new());
            let is_asked = |family| question.from.is_none_or(|from| Family::of(from) == family);
            for family in Family::ALL.into_iter().filter(|family| is_asked(*family)) {
                let own = owns.of(family, kernel, node, informants.daemon.as_ref().ok())?;
                if own.table == Table::Absent {
                    // Where nothing is served, what would be is known to the daemon alone.
                    let known = (informants.services)(&Query::Name(name.clone())).into_iter().next();
                    match known {
                        Some(facts) => found.extend(said_to_have(&facts, family, port_name, number)),
                        None => unknown.push(gone(kernel.table(), family)),
                    }
                    continue;
                }
                let accepting = own.accepting.first().copied();
                for key in status::of_service(kernel, family, name, port_name)? {
                    let address = match key.at {
                        FrontendAt::Address(address) => Some(address),
                        FrontendAt::NodePort(_) => accepting,
                    };
                    let is_meant = number.is_none_or(|number| key.port.get() == number);
                    let to = address.filter(|_| is_meant).map(|address| SocketAddr::new(address, key.port.get()));
                    found.extend(to.map(|to| Target { to, protocol: key.protocol }));
                }
            }
            found.retain(|target| wanted(target.protocol));
            if found.is_empty() {
                let families = Family::ALL.into_iter().filter(|family| is_asked(*family));
                let tables = families.map(|family| text::table(kernel.table(), family).to_string());
                let tables = tables.collect::<Vec<_>>().join(" or ");
                return Err(no_service(tables, name, port.as_deref(), node, informants, &unknown));
            }
            Ok(Targets { packets: found, unknown })
        }
    }
}

fn gone(table: TableName, family: Family) -> String {
    let table = text::table(table, family);
    format!("table {table} is not there: nothing is served in {family}, and nobody tells what would be")
}

/// The packets to a Service's addresses of a family, as the daemon has them.
fn said_to_have(facts: &ServiceFacts, family: Family, port_name: Option<&str>, number: Option<u16>) -> Vec<Target> {
    let target = |(key, port): (FrontendKey, &PortFacts)| {
        let FrontendAt::Address(address) = key.at else { return None };
        let is_meant =
            port_name.is_none_or(|name| port.name == name) && number.is_none_or(|number| port.port == number);
        is_meant.then(|| Target { to: SocketAddr::new(address, key.port.get()), protocol: key.protocol })
    };
    facts.frontends(family).filter_map(target).collect()
}

fn no_service(
    tables: String,
    name: &ObjectName,
    port: Option<&str>,
    node: &Node,
    informants: &mut Informants<'_>,
    unknown: &[String],
) -> ExplainError {
    let known = (informants.services)(&Query::Name(name.clone()));
    let why = match (&informants.daemon, known.is_empty()) {
        (Err(_), _) if !node.is_here() => ": no manifest has it with a cluster IP".to_owned(),
        (Err(why), _) => format!(" (the daemon could tell more, but: {why})"),
        (Ok(_), true) => ": there is no such Service, or it has no cluster IP".to_owned(),
        (Ok(_), false) => ", though the daemon knows it: see nftproxyd doctor".to_owned(),
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let why = [&[why][..], unknown].concat().join("; ");
    ExplainError::NoService { tables, service: format!("{name}{port}"), why }
}

fn has(kernel: &mut impl Kernel, key: &FrontendKey) -> Result<bool, KernelError> {
    is_in(kernel, key.family(), entry_set(key), element_key(key))
}

/// Whether a set has an element with this key.
fn is_in(kernel: &mut impl Kernel, family: Family, set: SetName, key: Key) -> Result<bool, KernelError> {
    Ok(kernel.find(family, &base::set(set), &[key])?.iter().any(Option::is_some))
}

/// What Services have at an address, with whose it is. All entries of the family are read, once for each question.
fn whose(kernel: &mut impl Kernel, address: IpAddr) -> Result<Vec<(FrontendKey, String)>, KernelError> {
    let mut found = Vec::new();
    let (family, set) = (Family::of(address), SetName::ServiceIps);
    kernel.read_elements(family, &base::set(set), &mut |element| {
        let Some(element) = element else { return found.clear() };
        let key = frontend_key(family, set, &element).filter(|key| key.at == FrontendAt::Address(address));
        found.extend(key.map(|key| (key, element.comment.as_deref().unwrap_or("?").to_owned())));
    })?;
    Ok(found)
}

/// Our table of one family.
struct Own {
    rules: Option<Rules>,
    table: Table,
    /// The addresses of the node that accept node ports, those that somebody would use first.
    accepting: Vec<IpAddr>,
}

impl Own {
    fn read(
        kernel: &mut impl Kernel,
        family: Family,
        node: &Node,
        daemon: Option<&Daemon>,
    ) -> Result<Own, KernelError> {
        let rules = Rules::read(kernel, family)?;
        let table = match &rules {
            None => Table::Absent,
            Some(rules) if rules.is_dormant() => Table::Dormant,
            Some(_) if !node.is_here() => Table::OfManifests,
            Some(_) => {
                let shape = status::shape(kernel, family, daemon)?;
                Table::There(shape.damage.into_iter().chain(shape.foreign).collect())
            }
        };
        let chains = rules.as_ref().map(Rules::chains).unwrap_or_default();
        let asks = |statement: &Statement| matches!(statement, Statement::InSet { set: SetName::NodeportIps, .. });
        let accepting = if statements(chains, ChainName::NatPrerouting).any(asks) {
            status::accepting(kernel, family)?
        } else {
            node.usual_addresses(family)
        };
        Ok(Own { rules, table, accepting })
    }
}

/// Our tables, each read when it is first asked for: all packets of a question are judged by the same rules.
#[derive(Default)]
struct Owns(PerFamily<Option<Own>>);

impl Owns {
    fn of(
        &mut self,
        family: Family,
        kernel: &mut impl Kernel,
        node: &Node,
        daemon: Option<&Daemon>,
    ) -> Result<&Own, KernelError> {
        Ok(match &mut self.0[family] {
            Some(own) => own,
            none => none.insert(Own::read(kernel, family, node, daemon)?),
        })
    }
}

fn statements(chains: &[Chain], name: ChainName) -> impl Iterator<Item = &Statement> {
    chains.iter().filter(move |chain| chain.name == name).flat_map(|chain| &chain.rules).flat_map(|it| &it.statements)
}

fn look(
    kernel: &mut impl Kernel,
    question: &Question,
    target: Target,
    node: &Node,
    informants: &mut Informants<'_>,
    Own { rules, table, accepting }: &Own,
    connections: &mut Connections<'_>,
) -> Result<Facts, ExplainError> {
    let Target { to, protocol } = target;
    let family = Family::of(to.ip());
    let asked = asked(question, target, node)?;
    let chains = rules.as_ref().map(Rules::chains).unwrap_or_default();
    let packet = Packet {
        source: asked.from,
        destination: to.ip(),
        protocol,
        port: to.port(),
        origin: if asked.from_this_node {
            Origin::Node
        } else {
            Origin::Arrives(asked.arrives_by.as_deref().map(Into::into))
        },
    };
    let port = NonZeroU16::new(to.port()).unwrap_or(NonZeroU16::MIN);
    let key = |at| FrontendKey { at, protocol, port };
    let (by_address, by_port) = (key(FrontendAt::Address(to.ip())), key(FrontendAt::NodePort(family)));
    let no_table = rules.as_ref().is_none_or(Rules::is_dormant);
    let mut frontend = if no_table { None } else { status::look_at(kernel, &by_address)? };
    let mut found_by = by_address;
    let mut node_port = None;
    if !no_table && frontend.is_none() && node.is_local(to.ip()) {
        node_port = status::look_at(kernel, &by_port)?;
        if accepting.contains(&to.ip()) {
            (frontend, found_by) = (node_port.take(), by_port);
        }
    }
    let neighbours = if frontend.is_none() && !no_table && !node.is_local(to.ip()) {
        let one = |(key, service): (FrontendKey, String)| (key.port.get(), key.protocol.name(), service);
        whose(kernel, to.ip())?.into_iter().map(one).collect()
    } else {
        Vec::new()
    };
    let client = kept::key(asked.from, to.ip(), protocol, port);
    let has_affinity =
        frontend.as_ref().and_then(|seen| seen.frontend.as_ref()).is_some_and(|it| it.action.affinity().is_some());
    let remembered = if has_affinity { kernel.client(family, &client)? } else { None };
    let remembered = remembered.map(|kept| Remembered {
        endpoint: SocketAddr::new(kept.client.backend.address, kept.client.backend.port.get()),
        seconds_left: kept.expires.as_secs(),
    });
    let address = |ip| [Value::Address(ip)].into_iter().collect();
    let local_endpoint = !no_table && is_in(kernel, family, SetName::LocalEndpoints, address(asked.from))?;
    let is_cluster_ip = !no_table && is_in(kernel, family, SetName::ClusterIps, address(to.ip()))?;
    let in_service_cidr = statements(chains, ChainName::NatPrerouting).find_map(|statement| match statement {
        Statement::DestinationIn { net, negated: false } if net.contains(&to.ip()) => Some(*net),
        _ => None,
    });
    let mark = statements(chains, ChainName::NatPostrouting).find_map(|statement| match statement {
        Statement::MarkHas(bits) => Some(*bits),
        _ => None,
    });
    let trace = match (rules, no_table) {
        (Some(rules), false) => {
            let local = node.local();
            Some(rules.tracer(kernel, &local).and_then(|tracer| tracer.trace(&packet)))
        }
        _ => None,
    };
    let service = frontend.as_ref().or(node_port.as_ref()).and_then(|seen| seen.frontend.as_ref());
    let service = service.and_then(|it| (informants.services)(&Query::Name(it.service.clone())).into_iter().next());
    let is_pod = if local_endpoint {
        Some("it is an endpoint on this node".to_owned())
    } else {
        let ranges = informants.daemon.iter().flat_map(|daemon| &daemon.pod_cidrs);
        let range = ranges.into_iter().find(|range| range.contains(&asked.from));
        range.map(|range| format!("it is in podCIDRs {range} of this Node"))
    };
    let forwards = trace.as_ref().and_then(|trace| trace.as_ref().ok());
    let node_facts = if node.is_here() {
        Some(node.look(&asked, protocol, forwards, mark, connections, question.probe)?)
    } else {
        None
    };
    Ok(Facts {
        own: kernel.table(),
        local_at: node.interface_of(to.ip()),
        table: table.clone(),
        trace,
        frontend: frontend.map(|seen| status::frontend(&found_by, &seen)),
        is_cluster_ip,
        neighbours,
        node_port: node_port.map(|seen| status::frontend(&by_port, &seen)),
        accepting: accepting.clone(),
        in_service_cidr,
        remembered,
        service,
        daemon: informants.daemon.as_ref().map(|daemon| daemon_facts(daemon, family)).map_err(Clone::clone),
        is_pod,
        node: node_facts,
        asked,
    })
}

/// The packet: whom it comes from, and by which interface.
fn asked(question: &Question, Target { to, protocol }: Target, node: &Node) -> Result<Asked, ExplainError> {
    let from = match question.from {
        Some(from) if Family::of(from) != Family::of(to.ip()) => return Err(ExplainError::Families(from, to.ip())),
        Some(from) if from.is_unspecified() || from.is_multicast() || is_broadcast(from) => {
            return Err(ExplainError::NoSource(from));
        }
        Some(from) => from,
        None => node.own_source(to.ip()).unwrap_or(match to.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }),
    };
    let from_this_node = question.from.is_none_or(|from| node.is_local(from));
    let arrives_by = match &question.arriving_by {
        _ if from_this_node => None,
        Some(name) => Some(name.clone()),
        None => node.arrives_by(from),
    };
    Ok(Asked { from, from_this_node, arrives_by, to, protocol: protocol.name() })
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(ip) if ip.is_broadcast())
}

fn daemon_facts(daemon: &Daemon, family: Family) -> DaemonFacts {
    let frame = status::frame(Some(daemon), family);
    let follows_all = daemon.not_followed().next().is_none();
    DaemonFacts {
        not_followed: if follows_all { String::new() } else { status::kinds_text(daemon) },
        pods_are: frame.and_then(|frame| frame.pods.as_ref()).map(|pods| match pods {
            Pods::Source(net) => format!("pods have {net}"),
            Pods::Interface(name) => format!("pods come in by {name}"),
            Pods::InterfacePrefix(prefix) => format!("pods come in by {prefix}*"),
        }),
        masquerade_all: frame.is_some_and(|frame| frame.masquerade_all),
    }
}
