//! Rules of others by the addresses that they speak of, where `walk` looks at states alone.
//!
//! * Those that see packets of Services before they are tracked or translated: in chains at hooks `prerouting` and `output`
//!   ahead of destination translation. What is not tracked there is not translated; what is dropped does not come to a
//!   Service at all. Such a rule is understood if it speaks of destination, protocol and destination port alone. Of all
//!   others nothing is said, nor of what comes after a rule that may let packets pass.
//! * Those at hook `forward` that let packets to pods pass, as network plug-ins make them where the policy drops.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::values::{
    BITWISE_FROM, BITWISE_MASK, BITWISE_TO, CMP_AT_LEAST, CMP_AT_MOST, CMP_DATA, CMP_EQUAL, CMP_OPERATION,
    CMP_REGISTER, DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME, IMMEDIATE_DATA, LOAD_KEY, LOAD_TO,
    META_L4PROTO, META_MARK, META_NFPROTO, META_OUTPUT_NAME, PAYLOAD_BASE, PAYLOAD_LENGTH, PAYLOAD_OFFSET, PAYLOAD_TO,
    RANGE_FROM, RANGE_OPERATION, RANGE_REGISTER, RANGE_TO, VERDICT_CHAIN, VERDICT_CODE, XT_INFO, XT_NAME, be32, inside,
    string,
};
use crate::netlink::attributes;

/// The kernel follows no more jumps in a row.
const DEEPEST: usize = 16;

/// Which packets a rule is about; all of them where nothing is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Concern {
    /// A range of destinations.
    pub(crate) to: Option<IpNet>,
    /// A protocol, by number.
    pub(crate) protocol: Option<u8>,
    /// Destination ports, first and last.
    pub(crate) ports: Option<(u16, u16)>,
    /// The interface that a packet leaves by; a `+` or `*` at the end stands for the rest of the name.
    pub(crate) output: Option<String>,
    /// Whether a mark decides.
    pub(crate) marked: bool,
    /// Whether there is a condition that says nothing here.
    pub(crate) unknown: bool,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Deed {
    /// Nothing that matters.
    #[default]
    Other,
    /// The packet is not tracked.
    NoTrack,
    /// It is dropped or refused.
    Drop,
    /// It is let through.
    Accept,
    /// It may come back from this chain, or go elsewhere.
    Pass,
    /// It is led to a chain.
    Lead(String),
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EarlyRule {
    pub(crate) concern: Concern,
    pub(crate) deed: Deed,
}

/// A table's chains, as far as they matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EarlyTable {
    /// Base chains ahead of translation, each with its hook.
    pub(crate) bases: Vec<(String, &'static str)>,
    /// Base chains at hook `forward`.
    pub(crate) forward: Vec<String>,
    /// The rules of all chains.
    pub(crate) rules: BTreeMap<String, Vec<EarlyRule>>,
}

/// Whether a chain lets packets to pods pass that its policy, or its end, would drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Opens {
    /// Not by a rule that is understood.
    No,
    /// To some, or marks of another program decide.
    Some,
    /// To all.
    All,
}

/// Where packets go that are to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) range: IpNet,
    /// The interface that leads there, where it is one.
    pub(crate) device: Option<String>,
}

/// A rule that does something to packets that it is surely about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Early {
    /// `prerouting` or `output`.
    pub(crate) hook: &'static str,
    pub(crate) chain: String,
    /// Its number in the chain, from 0.
    pub(crate) nth: usize,
    pub(crate) concern: Concern,
    /// Whether it drops; it does not track otherwise.
    pub(crate) drops: bool,
}

impl EarlyTable {
    /// What `iptables-save` prints of table `raw` or `mangle`.
    pub(crate) fn of_saved(saved: &str) -> EarlyTable {
        let mut table = EarlyTable::default();
        for line in saved.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap_or_default();
                let hook =
                    [("PREROUTING", "prerouting"), ("OUTPUT", "output")].into_iter().find(|(base, _)| *base == name);
                table.bases.extend(hook.map(|(name, hook)| (name.to_owned(), hook)));
                table.forward.extend((name == "FORWARD").then(|| name.to_owned()));
                table.rules.entry(name.to_owned()).or_default();
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let words: Vec<&str> = rule.split(' ').collect();
                if let Some((chain, words)) = words.split_first() {
                    table.rules.entry((*chain).to_owned()).or_default().push(saved_rule(words));
                }
            }
        }
        table
    }

    /// The rules that surely do something to what they are about.
    pub(crate) fn found(&self) -> Vec<Early> {
        let mut found = Vec::new();
        for (chain, hook) in &self.bases {
            self.walk(chain, hook, &Concern::default(), DEEPEST, &mut found);
        }
        found
    }

    /// Whether a base chain lets packets to these targets pass.
    pub(crate) fn opens(&self, base: &str, targets: &[Target]) -> Opens {
        let mut accepted = Vec::new();
        self.accepted(base, &Concern::default(), DEEPEST, &mut accepted);
        let passes = |target: &&Target| accepted.iter().any(|concern| concern.covers(target));
        match targets.iter().filter(passes).count() {
            0 if accepted.iter().any(|concern| concern.marked && concern.to.is_none()) => Opens::Some,
            0 => Opens::No,
            // Those of this node are not all.
            some if some == targets.len() && targets.iter().any(|target| target.device.is_none()) => Opens::All,
            _ => Opens::Some,
        }
    }

    /// What rules that accept are about, as far as packets may come there. Returns whether they may come back.
    fn accepted(&self, chain: &str, outer: &Concern, depth: usize, found: &mut Vec<Concern>) -> bool {
        let mut open = true;
        for EarlyRule { concern, deed } in self.rules.get(chain).into_iter().flatten() {
            let both = outer.and(concern);
            match deed {
                Deed::Accept => found.push(both),
                Deed::Lead(to) if depth > 0 => {
                    let comes_back = self.accepted(to, &both, depth - 1, found);
                    // Others have not gone there.
                    open &= comes_back || *concern != Concern::default();
                }
                Deed::Drop => open &= *concern != Concern::default(),
                _ => {}
            }
            if !open {
                break;
            }
        }
        open
    }

    /// Returns whether packets surely come to the end of the chain.
    fn walk(&self, chain: &str, hook: &'static str, outer: &Concern, depth: usize, found: &mut Vec<Early>) -> bool {
        for (nth, EarlyRule { concern, deed }) in self.rules.get(chain).into_iter().flatten().enumerate() {
            let concern = outer.and(concern);
            match deed {
                Deed::Other => {}
                // What comes here afterwards, nobody can tell.
                Deed::Pass | Deed::Accept => return false,
                Deed::Lead(to) => {
                    if depth == 0 || !self.walk(to, hook, &concern, depth - 1, found) {
                        return false;
                    }
                }
                Deed::NoTrack | Deed::Drop if concern.unknown || concern.marked || concern.output.is_some() => {}
                Deed::NoTrack | Deed::Drop => {
                    let drops = *deed == Deed::Drop;
                    found.push(Early { hook, chain: chain.to_owned(), nth, concern, drops });
                }
            }
        }
        true
    }
}

impl Concern {
    /// What both are about; unknown if that cannot be said in these words.
    fn and(&self, other: &Concern) -> Concern {
        let mut both = self.clone();
        both.unknown |= other.unknown;
        let mut contrary = false;
        contrary |= both.to.is_some() && other.to.is_some() && both.to != other.to;
        contrary |= both.protocol.is_some() && other.protocol.is_some() && both.protocol != other.protocol;
        contrary |= both.ports.is_some() && other.ports.is_some() && both.ports != other.ports;
        both.to = both.to.or(other.to);
        both.protocol = both.protocol.or(other.protocol);
        both.ports = both.ports.or(other.ports);
        both.marked |= other.marked;
        match (&both.output, &other.output) {
            (Some(mine), Some(others)) => contrary |= mine != others,
            (None, others) => both.output.clone_from(others),
            (Some(_), None) => {}
        }
        both.unknown |= contrary;
        both
    }

    /// Whether all packets to a target are meant, whatever their protocol and port.
    fn covers(&self, target: &Target) -> bool {
        let to = self.to.is_none_or(|to| to.contains(&target.range));
        let output = self.output.as_deref().is_none_or(|pattern| {
            let stem = pattern.strip_suffix(['+', '*']);
            target
                .device
                .as_deref()
                .is_some_and(|device| stem.map_or(device == pattern, |stem| device.starts_with(stem)))
        });
        let is_known = !self.unknown && !self.marked && self.protocol.is_none() && self.ports.is_none();
        is_known && to && output && (self.to.is_some() || self.output.is_some())
    }
}

/// What the words after the name of its chain say of a rule of iptables.
fn saved_rule(words: &[&str]) -> EarlyRule {
    let mut rule = EarlyRule::default();
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        match word {
            "-d" => match value().parse() {
                Ok(net) => rule.concern.to = Some(net),
                Err(_) => rule.concern.unknown = true,
            },
            "-o" => rule.concern.output = Some(value().to_owned()),
            "--mark" => {
                rule.concern.marked = true;
                value();
            }
            "-p" => match protocol(value()) {
                Some(number) => rule.concern.protocol = Some(number),
                None => rule.concern.unknown = true,
            },
            "--dport" => match ports(value()) {
                Some(ports) => rule.concern.ports = Some(ports),
                None => rule.concern.unknown = true,
            },
            "-m" => {
                if !["tcp", "udp", "comment", "mark"].contains(&value()) {
                    rule.concern.unknown = true;
                }
            }
            "--comment" => skip_quoted(&mut words),
            "-j" => {
                let target = value();
                let rest: Vec<&str> = words.by_ref().collect();
                rule.deed = match target {
                    "NOTRACK" => Deed::NoTrack,
                    "CT" if rest.contains(&"--notrack") => Deed::NoTrack,
                    "DROP" | "REJECT" => Deed::Drop,
                    "ACCEPT" => Deed::Accept,
                    "RETURN" => Deed::Pass,
                    "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "CT" | "TCPMSS" | "DSCP" | "TOS" | "TRACE" => Deed::Other,
                    other => Deed::Lead(other.to_owned()),
                };
            }
            // Not back from there.
            "-g" => rule.deed = Deed::Pass,
            _ => rule.concern.unknown = true,
        }
    }
    rule
}

/// Takes the words of a comment, which may have spaces between quotes.
fn skip_quoted<'a>(words: &mut impl Iterator<Item = &'a str>) {
    let Some(first) = words.next() else { return };
    let ends = |word: &str| word.ends_with('"') && !word.ends_with("\\\"");
    if first.starts_with('"') && (first.len() == 1 || !ends(first)) {
        words.find(|word| ends(word));
    }
}

fn protocol(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        number => number.parse().ok(),
    }
}

fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// What is in a register: a field of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Loaded {
    /// Of a family, with the mask if not all of it counts.
    Destination(bool, Option<Vec<u8>>),
    Protocol,
    Port,
    Family,
    Mark,
    Output,
}

/// Reads the expressions of a rule of nftables.
pub(super) fn rule(expressions: &[u8]) -> EarlyRule {
    let mut rule = EarlyRule::default();
    let mut registers: BTreeMap<u32, Loaded> = BTreeMap::new();
    for (_, expression) in attributes(expressions) {
        let data: BTreeMap<u16, &[u8]> = inside(expression, EXPRESSION_DATA).into_iter().flat_map(attributes).collect();
        let number = |kind| data.get(&kind).and_then(|bytes| be32(bytes));
        let bytes = |kind| data.get(&kind).copied().unwrap_or_default();
        let name = inside(expression, EXPRESSION_NAME).map(string).unwrap_or_default();
        match name.as_str() {
            "counter" | "log" => {}
            "notrack" => rule.deed = Deed::NoTrack,
            "reject" => rule.deed = Deed::Drop,
            "immediate" => rule.deed = verdict(bytes(IMMEDIATE_DATA)),
            "target" => {
                // `struct xt_ct_target_info` begins with its flags, of which the first is `XT_CT_NOTRACK`.
                let is_notrack = bytes(XT_INFO).first_chunk().is_some_and(|flags| u16::from_ne_bytes(*flags) & 1 != 0);
                rule.deed = match string(bytes(XT_NAME)).as_str() {
                    "NOTRACK" => Deed::NoTrack,
                    "CT" if is_notrack => Deed::NoTrack,
                    "REJECT" => Deed::Drop,
                    _ => Deed::Other,
                };
            }
            "match" => matched(&string(bytes(XT_NAME)), bytes(XT_INFO), &mut rule.concern),
            "payload" => {
                let parts = [PAYLOAD_BASE, PAYLOAD_OFFSET, PAYLOAD_LENGTH].map(number);
                let loaded = match parts {
                    // Of a prefix of whole bytes, no more is loaded.
                    [Some(1), Some(16), Some(1..=4)] => Some(Loaded::Destination(false, None)),
                    [Some(1), Some(24), Some(1..=16)] => Some(Loaded::Destination(true, None)),
                    [Some(1), Some(9), Some(1)] | [Some(1), Some(6), Some(1)] => Some(Loaded::Protocol),
                    [Some(2), Some(2), Some(2)] => Some(Loaded::Port),
                    _ => None,
                };
                let to = number(PAYLOAD_TO).unwrap_or_default();
                registers.remove(&to);
                match loaded {
                    Some(loaded) => drop(registers.insert(to, loaded)),
                    None => rule.concern.unknown = true,
                }
            }
            "meta" => {
                let to = number(LOAD_TO).unwrap_or_default();
                registers.remove(&to);
                match number(LOAD_KEY) {
                    Some(META_L4PROTO) => drop(registers.insert(to, Loaded::Protocol)),
                    Some(META_NFPROTO) => drop(registers.insert(to, Loaded::Family)),
                    Some(META_MARK) => drop(registers.insert(to, Loaded::Mark)),
                    Some(META_OUTPUT_NAME) => drop(registers.insert(to, Loaded::Output)),
                    _ => rule.concern.unknown = true,
                }
            }
            "bitwise" => {
                let mask = inside(bytes(BITWISE_MASK), DATA_VALUE).map(<[u8]>::to_vec);
                let from = number(BITWISE_FROM).and_then(|from| registers.remove(&from));
                match (from, number(BITWISE_TO), mask) {
                    (Some(Loaded::Destination(is_v6, None)), Some(to), Some(mask)) => {
                        registers.insert(to, Loaded::Destination(is_v6, Some(mask)));
                    }
                    (Some(Loaded::Mark), Some(to), _) => drop(registers.insert(to, Loaded::Mark)),
                    _ => rule.concern.unknown = true,
                }
            }
            "cmp" => {
                let loaded = number(CMP_REGISTER).and_then(|register| registers.get(&register));
                let value = inside(bytes(CMP_DATA), DATA_VALUE).unwrap_or_default();
                compared(loaded, number(CMP_OPERATION), value, &mut rule.concern);
            }
            "range" if number(RANGE_OPERATION) == Some(0) => {
                let loaded = number(RANGE_REGISTER).and_then(|register| registers.get(&register));
                let port = |kind| inside(bytes(kind), DATA_VALUE).and_then(be16);
                match (loaded, port(RANGE_FROM), port(RANGE_TO)) {
                    (Some(Loaded::Port), Some(first), Some(last)) => rule.concern.ports = Some((first, last)),
                    _ => rule.concern.unknown = true,
                }
            }
            _ => rule.concern.unknown = true,
        }
    }
    rule
}

/// Notes a comparison of a field with a value.
fn compared(loaded: Option<&Loaded>, operation: Option<u32>, value: &[u8], concern: &mut Concern) {
    let noted = match (loaded, operation) {
        (Some(Loaded::Destination(is_v6, mask)), Some(CMP_EQUAL)) => {
            let length =
                mask.as_ref().map_or(value.len() * 8, |mask| mask.iter().map(|byte| byte.count_ones() as usize).sum());
            let to = network(*is_v6, value, length);
            concern.to = to.or(concern.to);
            to.is_some()
        }
        (Some(Loaded::Protocol), Some(CMP_EQUAL)) => {
            concern.protocol = value.first().copied();
            concern.protocol.is_some()
        }
        (Some(Loaded::Port), Some(operation)) => {
            let (first, last) = concern.ports.unwrap_or((0, u16::MAX));
            let ports = be16(value).and_then(|port| match operation {
                CMP_EQUAL => Some((port, port)),
                CMP_AT_LEAST => Some((port, last)),
                CMP_AT_MOST => Some((first, port)),
                _ => None,
            });
            concern.ports = ports.or(concern.ports);
            ports.is_some()
        }
        (Some(Loaded::Mark), _) => {
            concern.marked = true;
            true
        }
        (Some(Loaded::Output), Some(CMP_EQUAL)) => {
            // With the zero at its end it is the whole name.
            let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
            let rest = if value.contains(&0) { "" } else { "*" };
            concern.output = Some(format!("{}{rest}", String::from_utf8_lossy(name)));
            true
        }
        // Which family it is, the addresses say.
        (Some(Loaded::Family), Some(CMP_EQUAL)) => true,
        _ => false,
    };
    concern.unknown |= !noted;
}

fn network(is_v6: bool, value: &[u8], length: usize) -> Option<IpNet> {
    let mut bytes = value.to_vec();
    bytes.resize(if is_v6 { 16 } else { 4 }, 0);
    let address: IpAddr =
        if is_v6 { <[u8; 16]>::try_from(bytes).ok()?.into() } else { <[u8; 4]>::try_from(bytes).ok()?.into() };
    IpNet::new(address, u8::try_from(length).ok()?).ok()
}

/// Notes a match of iptables: `struct xt_tcp` and `struct xt_udp` have first and last source port, and then those of the
/// destination, in the byte order of the machine.
fn matched(name: &str, info: &[u8], concern: &mut Concern) {
    /// What `xt_tcp` has behind the ports: an option, two masks of flags, and what is inverted. `xt_udp` has the last alone.
    const REST: usize = 8;
    let port = |at: usize| info.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u16::from_ne_bytes(*bytes));
    let rest = if name == "tcp" { 4 } else { 1 };
    match name {
        "comment" => {}
        "mark" => concern.marked = true,
        "tcp" | "udp" => match [0, 2, 4, 6].map(port) {
            [Some(0), Some(u16::MAX), Some(first), Some(last)]
                if info.get(REST..REST + rest).is_some_and(|rest| rest.iter().all(|byte| *byte == 0)) =>
            {
                if (first, last) != (0, u16::MAX) {
                    concern.ports = Some((first, last));
                }
            }
            _ => concern.unknown = true,
        },
        _ => concern.unknown = true,
    }
}

fn verdict(data: &[u8]) -> Deed {
    /// `NF_*` and `NFT_*` of include/uapi/linux/netfilter.h and nf_tables.h.
    const DROP: i32 = 0;
    const ACCEPT: i32 = 1;
    const JUMP: i32 = -3;
    let Some(verdict) = inside(data, DATA_VERDICT) else { return Deed::Other };
    let code = inside(verdict, VERDICT_CODE).and_then(be32).map(u32::cast_signed);
    match (code, inside(verdict, VERDICT_CHAIN).map(string)) {
        (Some(DROP), _) => Deed::Drop,
        (Some(ACCEPT), _) => Deed::Accept,
        (Some(JUMP), Some(chain)) => Deed::Lead(chain),
        // Return, goto, queue: afterwards nobody can tell.
        _ => Deed::Pass,
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
