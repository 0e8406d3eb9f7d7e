//! Finds out what has to be known of this node: routes, rules of others, connections.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::connections::Connections;
use super::error::ExplainError;
use super::facts::{Does, Met, NodeFacts, ToEndpoint, Way};
use super::next_hops;
use super::question::Asked;
use crate::errors;
use crate::firewall::{self, Hook, Named, Passage, State, Tables, Verdict};
use crate::model::{Family, Protocol};
use crate::routing::{self, Link, Question, Refusal, ReversePath, Route};
use crate::ruleset::base::{DESTINATION_PRIORITY, SOURCE_PRIORITY};
use crate::ruleset::eval::{Outcome, Reached, Trace};
use crate::ruleset::names::TableName;
use crate::{listening, sysctl, threads};

/// How long an attempt to connect may take.
const PROBE: Duration = Duration::from_secs(1);
/// The device of loopback.
const LOOPBACK: &str = "lo";
/// For so long endpoints are looked at: each is taken past all rules of others.
const LONGEST: Duration = Duration::from_secs(10);
const CHANGED: &str = "a rule of others may change the packet's addresses or ports on its way";
const UNKNOWN_MARK: &str = "the packet's mark, which routes may depend on: a rule of others may set it";
/// So many endpoints are connected to at the same time.
const PROBES_AT_ONCE: usize = 32;

/// Of which node is asked.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Of this one. Files of the kernel are below this.
    Here(&'a Path),
    /// Of one that has these addresses, and of which no more is known: rules are those that manifests come to.
    Manifests(&'a BTreeSet<IpAddr>),
}

/// The node at one moment.
pub(super) struct Node {
    is_here: bool,
    /// Its addresses, each with its interface.
    addresses: Vec<(String, IpAddr)>,
    links: BTreeMap<u32, Link>,
    /// The tables of others.
    others: Result<Tables, String>,
    root: PathBuf,
}

impl Node {
    pub(super) fn read(own: TableName, place: Place<'_>) -> Result<Node, ExplainError> {
        let root = match place {
            Place::Here(root) => root,
            Place::Manifests(addresses) => return Ok(Node::of_manifests(addresses)),
        };
        let failed = |what| move |error| ExplainError::Node(what, error);
        let is_own =
            |family: &str, name: &str| ["ip", "ip6"].contains(&family) && name == own.as_str() || name == own.guard();
        Ok(Node {
            is_here: true,
            addresses: routing::local_addresses().map_err(failed("the addresses of this node"))?,
            links: routing::links().map_err(failed("the interfaces of this node"))?,
            others: Tables::read(root, &is_own).map_err(|error| errors::text(&error)),
            root: root.to_owned(),
        })
    }

    fn of_manifests(addresses: &BTreeSet<IpAddr>) -> Node {
        Node {
            is_here: false,
            addresses: addresses.iter().map(|address| ("node".to_owned(), *address)).collect(),
            links: BTreeMap::new(),
            others: Err(String::new()),
            root: PathBuf::new(),
        }
    }

    /// Whether it is this one.
    pub(super) fn is_here(&self) -> bool {
        self.is_here
    }

    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.iter().any(|(_, own)| *own == address)
    }

    pub(super) fn local(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|(_, address)| *address).collect()
    }

    /// The interface that has an address.
    pub(super) fn interface_of(&self, address: IpAddr) -> Option<String> {
        let found = self.addresses.iter().find(|(_, own)| *own == address).map(|(name, _)| name.clone());
        found.or_else(|| address.is_loopback().then(|| LOOPBACK.to_owned()))
    }

    /// Addresses that others may use: none of loopback, and none of a link alone.
    pub(super) fn usual_addresses(&self, family: Family) -> Vec<IpAddr> {
        let is_usual = |address: &IpAddr| {
            let of_link = matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
            Family::of(*address) == family && !address.is_loopback() && !of_link
        };
        self.addresses.iter().map(|(_, address)| *address).filter(is_usual).collect()
    }

    /// The interface that has the first of them.
    pub(super) fn usual_device(&self, family: Family) -> Option<String> {
        let first = self.usual_addresses(family).into_iter().next()?;
        self.interface_of(first)
    }

    /// The source of what this node sends to an address.
    pub(super) fn own_source(&self, to: IpAddr) -> Option<IpAddr> {
        let route = self.is_here.then(|| routing::route(&Question::to(to)).ok()).flatten();
        match route {
            Some(Route::By(hop)) => hop.source,
            Some(Route::Local) => Some(to),
            _ => self.usual_addresses(Family::of(to)).into_iter().next(),
        }
    }

    /// The interface that packets of a client come in by: that of the route back.
    pub(super) fn arrives_by(&self, from: IpAddr) -> Option<String> {
        match self.is_here.then(|| routing::route(&Question::to(from))) {
            Some(Ok(Route::By(hop))) => self.name(hop.device),
            _ => None,
        }
    }

    fn name(&self, device: u32) -> Option<String> {
        self.links.get(&device).map(|link| link.name.clone())
    }

    fn index(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index)
    }

    /// Everything about a packet but what our table does to it, which `trace` says. `mark` is the bit that asks for
    /// masquerading.
    pub(super) fn look(
        &self,
        asked: &Asked,
        protocol: Protocol,
        trace: Option<&Trace>,
        mark: Option<u32>,
        connections: &mut Connections<'_>,
        probe: bool,
    ) -> Result<NodeFacts, ExplainError> {
        let tracked = sysctl::tracked(&self.root).ok().filter(|tracked| tracked.is_full());
        let full = tracked.map(|tracked| (tracked.count, tracked.max));
        let mut facts = NodeFacts { connections: full, ..NodeFacts::default() };
        if self.is_local(asked.to.ip()) {
            self.listener(asked, protocol, &mut facts);
        }
        match &self.others {
            Err(why) => facts.unread.push((format!("the tables of others cannot be read: {why}"), true)),
            Ok(tables) => {
                facts.unread.extend(tables.unread().iter().map(|what| (format!("not read: {what}"), true)));
                facts.unread.extend(self.not_followed(tables, Family::of(asked.to.ip())));
            }
        }
        if asked.from_this_node {
            let route = self.first_route(asked, protocol)?;
            let ends = matches!(route, Way::Nowhere(_));
            facts.device = self.usual_device(Family::of(asked.to.ip()));
            facts.first_route = Some(route);
            if ends {
                return Ok(facts);
            }
        }
        let mut untouched = self.packet(asked, protocol, None, first_hook(asked));
        // The kernel routes what it sends before any chain sees it.
        untouched.output = match &facts.first_route {
            Some(Way::By(device, _)) => Some(device.clone()),
            Some(Way::Local) => Some(LOOPBACK.to_owned()),
            _ => None,
        };
        let first_device = untouched.output.clone();
        let ours = if trace.is_some() { Some(DESTINATION_PRIORITY) } else { None };
        if !asked.from_this_node {
            let ingress = firewall::Packet { hook: Hook::Ingress, ..untouched.clone() };
            facts.before.extend(self.meet(&ingress).met.into_iter().map(|met| told(Hook::Ingress, met)));
        }
        let passage = self.meet(&untouched);
        if is_changed(&passage) {
            facts.unread.push((CHANGED.to_owned(), true));
        }
        let first = passage.met.into_iter();
        let is_before = |met: &firewall::Met| ours.is_none_or(|ours| met.priority < ours);
        facts.before.extend(first.filter(is_before).map(|met| told(untouched.hook, met)));
        if facts.before.iter().any(Met::ends) {
            return Ok(facts);
        }
        if let Some(Trace { outcome: Outcome::Forward(reached), .. }) = trace {
            let counts = connections.to(protocol, asked.to)?;
            let until = Instant::now() + LONGEST;
            for (nth, it) in reached.iter().enumerate() {
                if Instant::now() > until {
                    let left =
                        format!("the way to {} of {} endpoints: it takes too long", reached.len() - nth, reached.len());
                    facts.unread.push((left, true));
                    break;
                }
                let mut to = counts.get(&it.endpoint).cloned().unwrap_or_default();
                let mark = mark.filter(|_| it.masqueraded);
                let doubt = self.to_endpoint((asked, protocol, first_device.as_deref()), *it, mark, &mut to)?;
                if let Some(doubt) = doubt
                    && !facts.unread.iter().any(|(what, _)| *what == doubt)
                {
                    facts.unread.push((doubt.to_owned(), true));
                }
                if !it.masqueraded {
                    facts.bridge = facts.bridge.or_else(|| self.bridge(asked, it.endpoint.ip()));
                }
                facts.to_endpoints.insert(it.endpoint, to);
            }
            if probe && protocol == Protocol::Tcp {
                connect(&mut facts.to_endpoints);
            }
            facts.not_probed = probe && protocol != Protocol::Tcp;
            // Attempts to connect have had them asked for.
            let name = |device| self.name(device).unwrap_or_else(|| format!("interface {device}"));
            let pause = || thread::sleep(next_hops::PAUSE);
            if let Err(error) = next_hops::find(&mut facts.to_endpoints, &mut routing::neighbour, &name, pause) {
                facts.unread.push((format!("whether next hops answer cannot be read: {error}"), false));
            }
        }
        Ok(facts)
    }

    fn first_route(&self, asked: &Asked, protocol: Protocol) -> Result<Way, ExplainError> {
        let transport = Some((protocol.number(), 0, asked.to.port()));
        let source = Some(asked.from).filter(|from| self.is_local(*from) && !from.is_unspecified());
        let question = Question { transport, source, ..Question::to(asked.to.ip()) };
        Ok(match routing::route(&question).map_err(|error| ExplainError::Node("a route", error))? {
            Route::By(hop) => self.by(hop),
            Route::Local => Way::Local,
            Route::Nowhere(why) => Way::Nowhere(why.to_string()),
        })
    }

    fn by(&self, hop: routing::Hop) -> Way {
        let name = self.name(hop.device).unwrap_or_else(|| format!("interface {}", hop.device));
        Way::By(name, hop.source)
    }

    /// The way to an endpoint, and the chains of others on it.
    fn to_endpoint(
        &self,
        (asked, protocol, first_device): (&Asked, Protocol, Option<&str>),
        Reached { endpoint, masqueraded }: Reached,
        mark: Option<u32>,
        to: &mut ToEndpoint,
    ) -> Result<Option<&'static str>, ExplainError> {
        let mut packet = self.packet(asked, protocol, Some(endpoint), first_hook(asked));
        packet.output = first_device.map(str::to_owned);
        let passage = self.meet(&packet);
        carry(&mut packet, &passage);
        let mut doubt = is_changed(&passage).then_some(CHANGED);
        // What comes behind our chain on the same hook, and does not meet what it masquerades with its mark unless it looks.
        let met = passage.met.into_iter().filter(|met| met.priority >= DESTINATION_PRIORITY);
        to.met.extend(met.map(|met| told(packet.hook, met)));
        packet.mark = packet.mark.map(|found| found | mark.unwrap_or(0));
        if packet.mark.is_none() {
            doubt = doubt.or(Some(UNKNOWN_MARK));
        }
        packet.output = None;
        let input = asked.arrives_by.as_deref().and_then(|name| self.index(name));
        let question = Question {
            source: Some(asked.from).filter(|from| !asked.from_this_node || self.is_local(*from)),
            mark: packet.mark.unwrap_or(0),
            input,
            transport: Some((protocol.number(), 0, endpoint.port())),
            ..Question::to(endpoint.ip())
        };
        let no_way_back = !asked.from_this_node && input.is_none();
        // The kernel takes a source of others for nothing but what has come in.
        let question = if no_way_back { Question { source: None, ..question } } else { question };
        let route = routing::route(&question).map_err(|error| ExplainError::Node("a route", error))?;
        let way = match route {
            Route::By(hop) => match self.not_forwarded(asked, endpoint.ip()) {
                Some(refused) => refused,
                None => {
                    to.next_hop = Some((hop.gateway.unwrap_or(endpoint.ip()), hop.device));
                    let source = if masqueraded { own_source(endpoint.ip(), hop) } else { hop.source };
                    self.by(routing::Hop { source, ..hop })
                }
            },
            Route::Local => Way::Local,
            Route::Nowhere(Refusal::Source) => self.reverse_path(asked),
            Route::Nowhere(why) => {
                self.not_forwarded(asked, endpoint.ip()).unwrap_or_else(|| Way::Nowhere(why.to_string()))
            }
        };
        let mut hooks = Vec::new();
        match &way {
            Way::By(device, _) => {
                packet.output = Some(device.clone());
                if !asked.from_this_node {
                    hooks.push(Hook::Forward);
                }
                hooks.extend([Hook::Postrouting, Hook::Egress]);
            }
            Way::Local => {
                if asked.from_this_node {
                    // It leaves by loopback, and comes in again.
                    hooks.extend([Hook::Postrouting, Hook::Egress, Hook::Ingress, Hook::Prerouting]);
                    packet.output = Some(LOOPBACK.to_owned());
                }
                hooks.push(Hook::Input);
            }
            _ => {}
        }
        for hook in hooks {
            packet.hook = hook;
            if hook == Hook::Postrouting {
                packet.translated_by = Some(SOURCE_PRIORITY);
            }
            if hook == Hook::Ingress {
                (packet.input, packet.output) = (packet.output.take(), None);
            }
            if to.met.iter().any(Met::ends) {
                break;
            }
            let passage = self.meet(&packet);
            carry(&mut packet, &passage);
            if is_changed(&passage) {
                doubt = doubt.or(Some(CHANGED));
            }
            to.met.extend(passage.met.into_iter().map(|met| told(hook, met)));
            if hook == Hook::Postrouting {
                // It is masqueraded, and no longer asks for it.
                packet.mark = packet.mark.map(|found| found & !mark.unwrap_or(0));
            }
        }
        to.way = Some(way);
        Ok(doubt)
    }

    /// Chains that packets are not taken through, where they could see this one: those of bridges where there is a bridge, and of
    /// ARP where next hops are asked for by it.
    fn not_followed(&self, tables: &Tables, family: Family) -> impl Iterator<Item = (String, bool)> {
        // `chain bridge NAME CHAIN`.
        let has_bridge = self.links.values().any(|link| link.kind == "bridge");
        let sees_it = move |chain: &String| match chain.split(' ').nth(1) {
            Some("bridge") => has_bridge,
            Some("arp") => family == Family::V4,
            _ => true,
        };
        let chains = tables.unexamined().into_iter().filter(sees_it);
        chains.map(|chain| (format!("not followed: {chain}, which may drop"), false))
    }

    /// Why what was said of tables of others is not of one moment, if it is not: rules were read once, elements of sets when a packet
    /// came to them.
    pub(super) fn torn(&self) -> Option<String> {
        match self.others.as_ref().ok()?.is_current() {
            Ok(true) => None,
            Ok(false) => {
                Some("the tables were changed while they were read: this may be of before and after".to_owned())
            }
            Err(error) => Some(format!("whether the tables were changed meanwhile cannot be read: {error}")),
        }
    }

    fn packet(&self, asked: &Asked, protocol: Protocol, endpoint: Option<SocketAddr>, hook: Hook) -> firewall::Packet {
        let to = endpoint.unwrap_or(asked.to);
        firewall::Packet {
            hook,
            source: asked.from,
            source_port: None,
            destination: to.ip(),
            destination_port: Some(to.port()),
            protocol: protocol.number(),
            input: asked.arrives_by.clone(),
            output: None,
            mark: Some(0),
            connection_mark: Some(0),
            state: State::New,
            dnat: endpoint.is_some(),
            original_destination: asked.to.ip(),
            original_port: Some(asked.to.port()),
            translated_by: endpoint.map(|_| DESTINATION_PRIORITY),
        }
    }

    fn meet(&self, packet: &firewall::Packet) -> Passage {
        let none = Passage {
            met: Vec::new(),
            mark: packet.mark,
            connection_mark: packet.connection_mark,
            tracked: Some(packet.state != State::Untracked),
            intact: true,
        };
        self.others.as_ref().map_or(none, |tables| tables.meet(packet))
    }

    /// Whether there is an interface of this name.
    pub(super) fn has_interface(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Whether the kernel passes nothing on that comes in by the packet's interface.
    fn not_forwarded(&self, asked: &Asked, to: IpAddr) -> Option<Way> {
        let device = asked.arrives_by.as_deref()?;
        let family = Family::of(to);
        if routing::forwards(&self.root, family, device).unwrap_or(true) {
            return None;
        }
        let name = match family {
            Family::V6 => "net.ipv6.conf.all.forwarding".to_owned(),
            Family::V4 if self.number("net/ipv4/ip_forward") == Some(0) => "net.ipv4.ip_forward".to_owned(),
            Family::V4 => format!("net.ipv4.conf.{}.forwarding", device.replace('.', "/")),
        };
        Some(Way::NotForwarded(format!("{name} = 0"), format!("sysctl -w {name}=1")))
    }

    /// Why the source of the packet is refused.
    fn reverse_path(&self, asked: &Asked) -> Way {
        let device = asked.arrives_by.as_deref().unwrap_or_default();
        let strict = match routing::reverse_path(&self.root, device) {
            Ok(ReversePath::Off) | Err(_) => None,
            Ok(ReversePath::Strict) => Some(1),
            Ok(ReversePath::Loose) => Some(2),
        };
        let Some(value) = strict.filter(|_| asked.from.is_ipv4()) else {
            let what = format!("{} is no source of what comes in by {device}", asked.from);
            return Way::ReversePath(what, format!("see ip route get {}", asked.from));
        };
        let name = format!("net.ipv4.conf.{}.rp_filter", device.replace('.', "/"));
        let fix = if value == 1 { format!("sysctl -w {name}=2") } else { format!("give {} a route", asked.from) };
        Way::ReversePath(format!("{name} = {value}"), fix)
    }

    fn number(&self, name: &str) -> Option<u64> {
        sysctl::read_number(&self.root.join("proc/sys").join(name)).ok()
    }

    /// Who listens where the packet is sent to.
    fn listener(&self, asked: &Asked, protocol: Protocol, facts: &mut NodeFacts) {
        match listening::who_listens(&self.root, protocol, asked.to.ip(), asked.to.port()) {
            Ok(found) => {
                facts.listener = found.map(|it| it.process.unwrap_or_else(|| "a process".to_owned()));
            }
            Err(error) => facts.unread.push((format!("who listens there cannot be read: {error}"), false)),
        }
    }

    /// Why what is answered may not be translated back: source and endpoint are ports of one bridge.
    fn bridge(&self, asked: &Asked, endpoint: IpAddr) -> Option<String> {
        let device = asked.arrives_by.as_deref()?;
        let (_, link) = self.links.iter().find(|(_, link)| link.name == device && link.kind == "bridge")?;
        let Ok(Route::By(hop)) = routing::route(&Question::to(endpoint)) else { return None };
        if self.name(hop.device).as_deref() != Some(device) || hop.gateway.is_some() {
            return None;
        }
        let is_shown = routing::shows_to_filters(&self.root, link, Family::of(endpoint)).unwrap_or(true);
        (!is_shown).then(|| {
            format!("client and endpoint are behind bridge {device}, whose answers pass connection tracking by")
        })
    }
}

/// Whether a rule may write the packet's header. One that translates it is told anyhow.
fn is_changed(passage: &Passage) -> bool {
    let translates = |met: &firewall::Met| matches!(met.verdict, Verdict::NatElsewhere(_) | Verdict::CannotTell { .. });
    !passage.intact && !passage.met.iter().any(translates)
}

/// What a packet carries from one hook to the next.
fn carry(packet: &mut firewall::Packet, passage: &Passage) {
    (packet.mark, packet.connection_mark) = (passage.mark, passage.connection_mark);
    if passage.tracked == Some(false) {
        packet.state = State::Untracked;
    }
}

fn first_hook(asked: &Asked) -> Hook {
    if asked.from_this_node { Hook::Output } else { Hook::Prerouting }
}

/// A chain and what it does, in the words of an explanation.
fn told(hook: Hook, met: firewall::Met) -> Met {
    // The chain is named already, unless it is one that this one jumps to.
    let text = |rule: Named| match rule.text.split_once(", rule ") {
        Some((_, rest)) if rule.chain == met.chain => format!("rule {rest}"),
        _ => rule.text,
    };
    let does = match met.verdict {
        Verdict::Passes => Does::Passes,
        Verdict::Drops(rule) | Verdict::DropsByPolicy(rule) => Does::Drops(text(rule)),
        Verdict::Rejects(rule) => Does::Rejects(text(rule)),
        Verdict::MayDrop { rule, why } => Does::MayDrop(text(rule), why),
        Verdict::NatElsewhere(rule) => Does::Translates(text(rule)),
        Verdict::NoTrack(rule) => Does::NotTracked(text(rule)),
        Verdict::Takes { rule, to } => Does::Takes(text(rule), to),
        Verdict::CannotTell { rule, why } => Does::MayDrop(rule.map(text).unwrap_or_default(), why),
    };
    Met { hook: hook.name(), chain: format!("{} {} {}", met.family, met.table, met.chain), does }
}

/// The source that masquerading gives to what leaves by this hop.
fn own_source(to: IpAddr, hop: routing::Hop) -> Option<IpAddr> {
    let question = Question { output: Some(hop.device), ..Question::to(to) };
    match routing::route(&question) {
        Ok(Route::By(hop)) => hop.source,
        _ => None,
    }
}

/// Connects to each endpoint, and says who does not answer.
fn connect(endpoints: &mut BTreeMap<SocketAddr, ToEndpoint>) {
    let addresses: Vec<SocketAddr> = endpoints.keys().copied().collect();
    for some in addresses.chunks(PROBES_AT_ONCE) {
        let results: Vec<(SocketAddr, io::Result<()>)> = thread::scope(|scope| {
            let attempt = |address: SocketAddr| {
                threads::spawn_scoped(scope, "probe", move || TcpStream::connect_timeout(&address, PROBE).map(drop))
            };
            let attempts: Vec<_> = some.iter().map(|address| (*address, attempt(*address))).collect();
            let ended = |thread: io::Result<thread::ScopedJoinHandle<'_, io::Result<()>>>| {
                thread?.join().unwrap_or_else(|_| Err(io::Error::other("the attempt has failed")))
            };
            attempts.into_iter().map(|(address, thread)| (address, ended(thread))).collect()
        });
        for (address, result) in results {
            if let Some(to) = endpoints.get_mut(&address) {
                to.probe = Some(result.map_err(|error| error.to_string()));
            }
        }
    }
}
