//! Tables, sets, maps, chains, rules and elements as values, in nft's words. Every value has a text form (`text`) and
//! a wire form (`crate::nftables`); both come from here, so what an administrator reads is what the kernel got.

use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;
use smallvec::SmallVec;

use super::names::{ChainName, SetName};
use crate::model::Protocol;

/// Something that a rule can look at. As a key of a set it also says the type of that part of the key (`typeof`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Selector {
    /// `ip saddr` / `ip6 saddr`.
    SourceAddress,
    /// `ip daddr` / `ip6 daddr`.
    DestinationAddress,
    /// `meta l4proto`: the transport protocol, past extension headers.
    L4Proto,
    /// `ip protocol` / `ip6 nexthdr`: used in interval sets, where `meta l4proto` costs a byteorder expression that
    /// newer kernels refuse for one byte.
    HeaderProtocol,
    /// `th dport`.
    DestinationPort,
    /// `meta priority`: where a frontend's element puts what is to be done, for the look-up that follows.
    Priority,
    /// `numgen random mod N offset O`: a slot.
    RandomSlot {
        /// N, at least 1.
        modulus: u32,
        /// O.
        offset: u32,
    },
    /// `numgen inc mod N offset O`: the next slot, by the rule's own counter.
    NextSlot {
        /// N, at least 1.
        modulus: u32,
        /// O.
        offset: u32,
    },
    /// `jhash ip saddr mod N seed S offset O` and the like: a slot that depends on the packet alone. The seed is always
    /// [`HASH_SEED`](super::hash::HASH_SEED), so that all nodes choose alike.
    HashedSlot {
        /// Of what.
        of: Hashed,
        /// N, at least 1.
        modulus: u32,
        /// O.
        offset: u32,
    },
    /// `ct original ip saddr` / `ct original ip6 saddr`: the source before any translation.
    OriginalSource,
    /// `ct original ip daddr` / `ct original ip6 daddr`.
    OriginalDestination,
    /// `ct original proto-dst`: the destination port before any translation. nft prints and reads it only in a rule
    /// that says `meta l4proto P` first.
    OriginalPort,
    /// `ct reply ip saddr` / `ct reply ip6 saddr`: who answers; the endpoint, once the destination is translated.
    ReplySource,
    /// `ct reply proto-src`: the port that answers; the same condition as for [`Selector::OriginalPort`].
    ReplyPort,
}

/// What a slot is hashed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hashed {
    /// `ip saddr` / `ip6 saddr`.
    Source,
    /// `ip saddr . th sport` / `ip6 saddr . th sport`.
    SourceAndPort,
    /// `ip daddr` / `ip6 daddr`.
    Destination,
}

/// One part of an element's key or data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// An address of the table's family.
    Address(IpAddr),
    /// A transport protocol.
    Protocol(Protocol),
    /// A port.
    Port(u16),
    /// A slot number (host byte order, as numgen makes it).
    Slot(u32),
    /// A packet priority, nft's `classid`, as `MAJOR << 16 | MINOR` (host byte order): see [`super::kinds`].
    Class(u32),
}

/// A key: one value, or several concatenated.
pub type Key = SmallVec<[Value; 4]>;

/// What a rule or a map element decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// `drop`.
    Drop,
    /// `goto CHAIN`.
    Goto(ChainName),
    /// `jump CHAIN`.
    Jump(ChainName),
}

/// What an element of a set or map holds besides its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// An element of a set.
    None,
    /// An element of a map.
    Values(SmallVec<[Value; 2]>),
    /// An element of a verdict map.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Its key; the first key of an interval.
    pub key: Key,
    /// The last key of an interval (inclusive), in sets with [`SetDef::interval`]; otherwise `None`.
    pub key_end: Option<Key>,
    /// What it maps to.
    pub data: Data,
    /// Shown by `nft list`; at most 128 bytes (nft's `NFTNL_UDATA_COMMENT_MAXLEN`), cut by whoever makes it.
    pub comment: Option<ArcStr>,
}

impl Element {
    /// Whether this is the element for a key: it has the key, or each part of the key is in its interval.
    pub fn matches(&self, key: &[Value]) -> bool {
        let last = self.key_end.as_ref().unwrap_or(&self.key);
        let mut parts = key.iter().zip(self.key.iter().zip(last));
        key.len() == self.key.len() && parts.all(|(it, (first, last))| (first..=last).contains(&it))
    }
}

/// What a set's elements map to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DataDef {
    /// It is a set.
    None,
    /// It is a map to these values.
    Values(Vec<Selector>),
    /// It is a verdict map.
    Verdict,
}

/// A named set or map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SetDef {
    /// Its name.
    pub name: SetName,
    /// `typeof` of the key.
    pub key: Vec<Selector>,
    /// `typeof` of the data.
    pub data: DataDef,
    /// `flags interval`: elements are ranges.
    pub interval: bool,
    /// `flags dynamic,timeout`: written by rules.
    pub dynamic: bool,
    /// `size N`: at most N elements. The kernel then makes a table of that size at once, in which it finds faster.
    pub size: Option<u32>,
    /// `counter`: each element counts the packets that find it, from when it is added on.
    pub counter: bool,
}

/// How a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hook {
    /// Where.
    pub hook: HookPoint,
    /// Order among the base chains of a hook, lower first (`enum nf_ip_hook_priorities` in
    /// include/uapi/linux/netfilter_ipv4.h). Its type is always `nat`, its policy `accept`.
    pub priority: i32,
}

/// A hook of a `type nat` base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HookPoint {
    /// Before routing of packets that arrive.
    Prerouting,
    /// Before delivery to the node.
    Input,
    /// Packets of the node itself.
    Output,
    /// Before leaving.
    Postrouting,
}

/// A chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Its name.
    pub name: ChainName,
    /// Set for a base chain.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A rule: statements in order; the first that does not match ends it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What it does.
    pub statements: Vec<Statement>,
    /// Shown by `nft list`.
    pub comment: Option<&'static str>,
}

/// A part of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// `ip saddr [!=] NET`: the source address is (not) in a range.
    SourceIn {
        /// The range; of the table's family.
        net: IpNet,
        /// `!=`.
        negated: bool,
    },
    /// `ip daddr [!=] NET`.
    DestinationIn {
        /// The range; of the table's family.
        net: IpNet,
        /// `!=`.
        negated: bool,
    },
    /// `iifname [!=] "NAME"`, or `"NAME*"`.
    InputInterface {
        /// The name, or its beginning; at most 15 bytes.
        name: ArcStr,
        /// Every name that begins so.
        prefix: bool,
        /// `!=`.
        negated: bool,
    },
    /// `meta l4proto P`.
    L4ProtoIs(Protocol),
    /// `icmp type echo-request` / `icmpv6 type echo-request`: a ping.
    EchoRequest,
    /// `fib saddr type local`.
    SourceIsLocal,
    /// `fib daddr type [!=] local`.
    DestinationIsLocal {
        /// `!=`.
        negated: bool,
    },
    /// `ct status dnat`.
    StatusDnat,
    /// `ct direction original`: not an answer, such as the reset or ICMP error that refuses a first packet.
    DirectionOriginal,
    /// `meta priority [!=] MAJOR:MINOR`: for what a process of the node sends, the `SO_PRIORITY` of its socket.
    Priority {
        /// `MAJOR << 16 | MINOR`.
        value: u32,
        /// `!=`.
        negated: bool,
    },
    /// `meta priority set MAJOR:MINOR`; `none` where both are 0, as before anybody has set it.
    SetPriority(u32),
    /// `meta priority set KEY map @MAP`: to what the map holds; no match if it holds nothing.
    PriorityFromMap {
        /// What is looked up.
        key: Vec<Selector>,
        /// Where.
        map: SetName,
    },
    /// `meta mark & BITS != 0`.
    MarkHas(u32),
    /// `meta mark set meta mark | BITS`.
    SetMark(u32),
    /// `meta mark set meta mark & ~BITS`.
    ClearMark(u32),
    /// `KEY [!=] @SET`.
    InSet {
        /// What is looked up.
        key: Vec<Selector>,
        /// Where.
        set: SetName,
        /// `!=`.
        negated: bool,
    },
    /// `KEY vmap @MAP`.
    VerdictMap {
        /// What is looked up.
        key: Vec<Selector>,
        /// Where.
        map: SetName,
    },
    /// `dnat ip to KEY map @MAP`: to the address and port that the map holds; no match if it holds none.
    DnatMap {
        /// What is looked up.
        key: Vec<Selector>,
        /// Where.
        map: SetName,
    },
    /// `dnat to ADDRESS`.
    DnatTo(IpAddr),
    /// `update @MAP { KEY timeout T : DATA }`.
    Update {
        /// The dynamic map.
        map: SetName,
        /// The element's key.
        key: Vec<Selector>,
        /// The element's life, in seconds, refreshed by each update.
        timeout: u32,
        /// The element's data.
        data: Vec<Selector>,
    },
    /// `masquerade fully-random`; or without that, to the port of the client unless it is taken.
    Masquerade {
        /// Without.
        keep_port: bool,
    },
    /// `reject with tcp reset`.
    RejectTcp,
    /// `reject`: ICMP port unreachable.
    Reject,
    /// A verdict.
    Verdict(Verdict),
}
