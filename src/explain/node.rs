//! This node: its addresses, interfaces and settings, and the tables of others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::error::ExplainError;
use super::facts::{Does, Met, Way};
use crate::errors;
use crate::firewall::{self, Hook, Named, Passage, State, Tables, Verdict};
use crate::model::Family;
use crate::routing::{self, Link, Question, ReversePath, Route};
use crate::ruleset::names::TableName;
use crate::sysctl;

/// The device of loopback.
pub(super) const LOOPBACK: &str = "lo";

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
    pub(super) links: BTreeMap<u32, Link>,
    /// The tables of others.
    pub(super) others: Result<Tables, String>,
    pub(super) root: PathBuf,
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

    /// The name of an interface.
    pub(super) fn name(&self, device: u32) -> Option<String> {
        self.links.get(&device).map(|link| link.name.clone())
    }

    /// The index of an interface.
    pub(super) fn index(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index)
    }

    /// The way by a hop.
    pub(super) fn by(&self, hop: routing::Hop) -> Way {
        let name = self.name(hop.device).unwrap_or_else(|| format!("interface {}", hop.device));
        Way::By(name, hop.source)
    }

    /// What tables of others do to a packet; nothing where they could not be read.
    pub(super) fn meet(&self, packet: &firewall::Packet) -> Passage {
        let none = Passage {
            met: Vec::new(),
            mark: packet.mark,
            connection_mark: packet.connection_mark,
            tracked: Some(packet.state != State::Untracked),
            intact: true,
            translated_behind: Some(false),
            zone: Some(0),
        };
        self.others.as_ref().map_or(none, |tables| tables.meet(packet))
    }

    /// Whether there is an interface of this name.
    pub(super) fn has_interface(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Whether the kernel passes nothing on that comes in by this interface.
    pub(super) fn not_forwarded(&self, device: &str, family: Family) -> Option<Way> {
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

    /// Chains that packets are not taken through, where they could see this one: those of bridges where there is a bridge, and of
    /// ARP where next hops are asked for by it.
    pub(super) fn not_followed(&self, tables: &Tables, family: Family) -> impl Iterator<Item = (String, bool)> {
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

    /// Why a source is refused of what comes in by this interface.
    pub(super) fn reverse_path(&self, device: &str, source: Option<IpAddr>) -> Way {
        let from = source.map_or_else(|| "its source".to_owned(), |source| source.to_string());
        let strict = match routing::reverse_path(&self.root, device) {
            Ok(ReversePath::Off) | Err(_) => None,
            Ok(ReversePath::Strict) => Some(1),
            Ok(ReversePath::Loose) => Some(2),
        };
        let Some(value) = strict.filter(|_| source.is_some_and(|source| source.is_ipv4())) else {
            let what = format!("{from} is no source of what comes in by {device}");
            return Way::ReversePath(what, format!("see ip route get {from}"));
        };
        let name = format!("net.ipv4.conf.{}.rp_filter", device.replace('.', "/"));
        let fix = if value == 1 { format!("sysctl -w {name}=2") } else { format!("give {from} a route") };
        Way::ReversePath(format!("{name} = {value}"), fix)
    }

    fn number(&self, name: &str) -> Option<u64> {
        sysctl::read_number(&self.root.join("proc/sys").join(name)).ok()
    }
}

/// Whether a rule may write the packet's header. One that translates it is told anyhow.
pub(super) fn is_changed(passage: &Passage) -> bool {
    let translates = |met: &firewall::Met| matches!(met.verdict, Verdict::NatElsewhere(_) | Verdict::CannotTell { .. });
    !passage.intact && !passage.met.iter().any(translates)
}

/// What a packet carries from one hook to the next.
pub(super) fn carry(packet: &mut firewall::Packet, passage: &Passage) {
    (packet.mark, packet.connection_mark) = (passage.mark, passage.connection_mark);
    if passage.tracked == Some(false) {
        packet.state = State::Untracked;
    }
}

/// A chain and what it does, in the words of an explanation.
pub(super) fn told(hook: Hook, met: firewall::Met) -> Met {
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
