//! What a ruleset does to the first packet of a connection, told from its values alone: no kernel, no root. Or what a table
//! does that is somewhere else, and is asked for what the packet meets: see [`Sets`].
//!
//! It walks the rules as the kernel would (man page nft(8), "VERDICT STATEMENT"; net/netfilter/nf_nat_core.c for the
//! order of hooks) and follows every slot that `numgen random` could draw. What it does not understand is an error, never a
//! guess: a ruleset that it accepts is one that our own code could have made.

mod index;
mod walk;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use arcstr::ArcStr;

use super::Ruleset;
use super::base::OWN_PRIORITY;
use super::names::{ChainName, SetName};
use super::types::{Chain, Element, HookPoint, Key, SetDef};
use crate::model::{Family, Protocol};
use index::IndexedSets;
use walk::{Ending, Fate, State, Walk};

/// The first packet of a connection; it carries no mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source address, of the ruleset's family.
    pub source: IpAddr,
    /// Destination address, of the ruleset's family.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a packet enters the node's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A process of the node sends it.
    Node,
    /// The proxy itself sends it, on its way to the API server.
    Proxy,
    /// It arrives, by this interface if that is known. Rules that ask for the interface need it.
    Arrives(Option<ArcStr>),
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It reaches one of these; not empty.
    Forward(BTreeSet<Reached>),
    /// Its sender is told: a reset or an ICMP error.
    Reject,
    /// It is lost.
    Drop,
    /// It goes its way, its destination unchanged.
    Pass,
}

/// An endpoint that a packet can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reached {
    /// Address and port.
    pub endpoint: SocketAddr,
    /// Whether the endpoint sees an address of the node as the source.
    pub masqueraded: bool,
}

/// An outcome and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// The rules that matched, in order, each once even if several slots lead to it.
    pub steps: Vec<Step>,
}

/// A rule that matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// On which hook.
    pub hook: HookPoint,
    /// In which chain.
    pub chain: ChainName,
    /// The rule as nft prints it.
    pub rule: String,
    /// What a look-up found: a verdict, or the endpoints of all slots; empty where there was none.
    pub found: String,
}

/// A packet cannot be traced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The packet is not of the table's family.
    #[error("{0} is not an address of the {1} table: use the table of its family")]
    Family(IpAddr, Family),
    /// A rule asks for the input interface.
    #[error("chain {0}: \"{1}\" depends on the input interface: name the one by which the packet arrives")]
    Interface(ChainName, String),
    /// The ruleset contradicts itself.
    #[error("{0}: the ruleset is not one that the proxy makes")]
    Malformed(String),
    /// A chain that the packet comes to cannot be told as one of ours.
    #[error("{0}")]
    Unread(String),
    /// A set cannot be asked.
    #[error("set {0} cannot be read: {1}")]
    Set(SetName, String),
    /// The packet's fate depends on the slot that is drawn.
    #[error("some slots lead to {0}, others to {1}: slots are missing")]
    Mixed(Outcome, Outcome),
}

/// The sets and maps of a table, wherever they are.
pub trait Sets: fmt::Debug {
    /// The definition of a set.
    ///
    /// # Errors
    /// Why it cannot be looked into, in words: there is none, or it is another.
    fn def(&self, set: SetName) -> Result<&SetDef, &'static str>;

    /// The elements with these keys, or whose intervals hold them, each in the place of its key. Each fits the set's
    /// definition.
    ///
    /// # Errors
    /// Why that cannot be told, in words.
    fn find(&self, set: SetName, keys: &[Key]) -> Result<Vec<Option<Cow<'_, Element>>>, String>;
}

/// A ruleset, indexed for tracing any number of packets.
#[derive(Debug)]
pub struct Tracer<'a> {
    family: Family,
    sets: Box<dyn Sets + 'a>,
    chains: BTreeMap<ChainName, &'a Chain>,
    /// Those that are there, and cannot be told; with the reason.
    unread: BTreeMap<ChainName, String>,
    /// By hook, in order of priority.
    base_chains: Vec<&'a Chain>,
    local_addresses: &'a BTreeSet<IpAddr>,
}

impl<'a> Tracer<'a> {
    /// Checks and indexes a ruleset. Clients that are remembered are the elements of the map `affinity`. An address is
    /// local (`fib type local`) if it is in `local_addresses` or a loopback address.
    ///
    /// # Errors
    ///
    /// [`EvalError::Malformed`] if an element does not fit its set, or a set, key or chain is there twice.
    pub fn new(ruleset: &'a Ruleset, local_addresses: &'a BTreeSet<IpAddr>) -> Result<Self, EvalError> {
        let sets = Box::new(IndexedSets::new(ruleset)?);
        Tracer::over(ruleset.family, &ruleset.chains, sets, local_addresses)
    }

    /// The same for a table whose sets are asked only for what a packet is looked up by.
    ///
    /// # Errors
    ///
    /// [`EvalError::Malformed`] if a chain is there twice.
    pub fn over(
        family: Family,
        chains: &'a [Chain],
        sets: Box<dyn Sets + 'a>,
        local_addresses: &'a BTreeSet<IpAddr>,
    ) -> Result<Self, EvalError> {
        let mut by_name = BTreeMap::new();
        for chain in chains {
            if by_name.insert(chain.name, chain).is_some() {
                return Err(malformed(format_args!("chain {} is there twice", chain.name)));
            }
        }
        let mut base_chains: Vec<&Chain> = chains.iter().filter(|chain| chain.hook.is_some()).collect();
        base_chains.sort_by_key(|chain| chain.hook.map(|hook| hook.priority));
        Ok(Tracer { family, sets, chains: by_name, unread: BTreeMap::new(), base_chains, local_addresses })
    }

    /// Chains that are there and cannot be told, each with the reason: what comes to one cannot be followed.
    #[must_use]
    pub fn without(self, unread: BTreeMap<ChainName, String>) -> Self {
        Tracer { unread, ..self }
    }

    /// Follows a packet.
    ///
    /// # Errors
    ///
    /// Where the packet or the ruleset leave a question open: see [`EvalError`].
    pub fn trace(&self, packet: &Packet) -> Result<Trace, EvalError> {
        self.walk(packet, false)
    }

    /// Follows an echo request, whose port and protocol do not count. Who answers it is reached at port 0.
    ///
    /// # Errors
    /// Those of [`Tracer::trace`].
    pub fn ping(&self, source: IpAddr, destination: IpAddr, origin: Origin) -> Result<Trace, EvalError> {
        let packet = Packet { source, destination, protocol: Protocol::Udp, port: 0, origin };
        self.walk(&packet, true)
    }

    fn walk(&self, packet: &Packet, is_ping: bool) -> Result<Trace, EvalError> {
        for address in [packet.source, packet.destination] {
            if Family::of(address) != self.family {
                return Err(EvalError::Family(address, self.family));
            }
        }
        let mut walk = Walk { tracer: self, packet, is_ping, hook: HookPoint::Prerouting, steps: Vec::new() };
        let priority = if packet.origin == Origin::Proxy { OWN_PRIORITY } else { 0 };
        let start = State { destination: SocketAddr::new(packet.destination, packet.port), mark: 0, priority };
        let sent_here = matches!(packet.origin, Origin::Node | Origin::Proxy);
        let first = if sent_here { HookPoint::Output } else { HookPoint::Prerouting };
        let mut fates = BTreeSet::new();
        for (ending, mut state) in walk.on_hook(first, start)? {
            match ending {
                Ending::Translated(endpoint) => state.destination = endpoint,
                Ending::Open => {}
                other => {
                    fates.insert(walk.fate(other, state)?);
                    continue;
                }
            }
            // What the node sends to itself passes postrouting on its way out; by the time it comes in again its
            // translations are settled, and nat chains are not asked.
            let local = self.is_local(state.destination.ip()) && !sent_here;
            let second = if local { HookPoint::Input } else { HookPoint::Postrouting };
            for (ending, state) in walk.on_hook(second, state)? {
                fates.insert(walk.fate(ending, state)?);
            }
        }
        Ok(Trace { outcome: outcome(fates)?, steps: walk.steps })
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local_addresses.contains(&address)
    }
}

fn outcome(fates: BTreeSet<Fate>) -> Result<Outcome, EvalError> {
    let mut result: Option<Outcome> = None;
    for fate in fates {
        let one = match fate {
            Fate::Reached(reached) => Outcome::Forward(BTreeSet::from([reached])),
            Fate::Reject => Outcome::Reject,
            Fate::Drop => Outcome::Drop,
            Fate::Pass => Outcome::Pass,
        };
        result = Some(match (result, one) {
            (None, one) => one,
            (Some(Outcome::Forward(mut all)), Outcome::Forward(one)) => {
                all.extend(one);
                Outcome::Forward(all)
            }
            (Some(before), one) => return Err(EvalError::Mixed(before, one)),
        });
    }
    result.ok_or_else(|| malformed(format_args!("no rule and no policy decides")))
}

fn malformed(what: fmt::Arguments<'_>) -> EvalError {
    EvalError::Malformed(what.to_string())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Forward(endpoints) => {
                f.write_str("forward to ")?;
                for (position, reached) in endpoints.iter().enumerate() {
                    let comma = if position == 0 { "" } else { ", " };
                    let masqueraded = if reached.masqueraded { " (masqueraded)" } else { "" };
                    write!(f, "{comma}{}{masqueraded}", reached.endpoint)?;
                }
                Ok(())
            }
            Outcome::Reject => f.write_str("reject"),
            Outcome::Drop => f.write_str("drop"),
            Outcome::Pass => f.write_str("pass"),
        }
    }
}

impl fmt::Display for Trace {
    /// One line for each hook, each rule below it, and the outcome.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hook = None;
        for step in &self.steps {
            if hook != Some(step.hook) {
                writeln!(f, "{}:", step.hook)?;
                hook = Some(step.hook);
            }
            writeln!(f, "  {}: {}", step.chain, step.rule)?;
            if !step.found.is_empty() {
                writeln!(f, "    found {}", step.found)?;
            }
        }
        write!(f, "=> {}", self.outcome)
    }
}
