//! The table of a trace: what makes the kernel tell of the first packets of connections, for a while and not too many.
//! Messages as bytes; nothing is sent here.
//!
//! ```text
//! chain prerouting-first, output-first  (hook, before all others)
//!     ip daddr . meta l4proto . th dport @frontends goto traced        what was asked for, in one of three forms
//!     ip daddr . meta l4proto @addresses goto traced
//!     meta l4proto . th dport @nodeports fib daddr type local goto traced
//! chain traced
//!     ip saddr != FROM return
//!     ip saddr . th sport . ip daddr . th dport . meta l4proto @seen return
//!     tcp flags & (fin | syn | rst | ack) != syn return, and the like for SCTP
//!     counter limit rate R/second burst B packets counter add @seen { ... } meta nftrace set 1
//! chain HOOK-first, HOOK-last  (all hooks)  are empty: that a packet has come there is a message
//! ```
//!
//! Elements of all sets have a time-out: what was asked for is over then even where the program was killed, and the kernel
//! has kept the table (before Linux 5.12), or where it is stopped. Before rules of priority -200 connections are not
//! known yet, so a first packet is one of addresses and ports that were not seen before and, of protocols that have one, that
//! opens a connection.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::expressions::{self as expr, Nest, terminated};
use super::hook::{End, Hook, Watch};
use crate::model::{Family, Protocol};
use crate::netlink::{ACK, Builder, CREATE, REQUEST};

/// How the names of tables of traces begin.
pub(crate) const PREFIX: &str = "nftproxyd-trace-";
/// So many connections are traced each second at most, and so many at once.
pub(crate) const RATE: u32 = 25;
/// What the tables say about themselves.
const COMMENT: &str = "tells nftproxyd trace of first packets; goes when that ends";
/// So many connections are remembered at most; when there are more they are traced again.
const SEEN_SIZE: u32 = 65_535;

/// `NFNL_SUBSYS_NFTABLES << 8`.
pub(super) const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `struct nfgenmsg` of the beginning and the end of a batch: for nftables, whose number is in network byte order.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, 10];
/// `NLM_F_APPEND`.
const APPEND: u16 = 0x800;
/// `NLM_F_EXCL`.
const EXCLUSIVE: u16 = 0x200;
/// `NFT_TABLE_F_OWNER` (Linux 5.12).
const OWNER: u32 = 2;

/// What is traced: connections to an address, to a port, or to both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// The address; `None` for all of the node's.
    pub(crate) address: Option<IpAddr>,
    /// The protocol.
    pub(crate) protocol: Protocol,
    /// The port; `None` for all.
    pub(crate) port: Option<u16>,
}

/// What a table is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The family of the targets' addresses.
    pub(crate) family: Family,
    /// At least one.
    pub(crate) targets: &'a [Target],
    /// The clients; all if `None`.
    pub(crate) from: Option<IpNet>,
    /// How long, at most.
    pub(crate) time: Duration,
    /// Whether only this socket may change the table, which then goes with it.
    pub(crate) owned: bool,
}

/// A batch that is being made.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    family: Family,
    table: String,
    sequence: u32,
}

/// `NFPROTO_*`.
pub(crate) fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Makes the table of this name; the sequence numbers begin with `first`. Returns the last of a message that is answered.
pub(crate) fn make(table: &str, wanted: &Wanted<'_>, first: u32) -> (Vec<u8>, u32) {
    let mut batch = Batch::begin(table, wanted.family, first);
    batch.table(wanted.owned);
    batch.sets(wanted);
    batch.chains();
    batch.rules(wanted);
    batch.end()
}

/// Removes it.
pub(crate) fn remove(table: &str, family: Family, first: u32) -> (Vec<u8>, u32) {
    let mut batch = Batch::begin(table, family, first);
    batch.push(DELETE_TABLE, REQUEST | ACK, |message| message);
    batch.end()
}

/// A set of what is traced, with its key: the parts that it has of address, protocol and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set {
    name: &'static str,
    address: bool,
    port: bool,
}

const SETS: [Set; 3] = [
    Set { name: "frontends", address: true, port: true },
    Set { name: "addresses", address: true, port: false },
    Set { name: "nodeports", address: false, port: true },
];

impl Set {
    fn has(self, target: &Target) -> bool {
        target.address.is_some() == self.address && target.port.is_some() == self.port
    }

    /// The keys of those that are in it.
    fn keys(self, targets: &[Target]) -> Vec<Vec<u8>> {
        let key = |target: &Target| {
            let mut key = target.address.map(octets).unwrap_or_default();
            key.extend([target.protocol.number(), 0, 0, 0]);
            key.extend(target.port.into_iter().flat_map(|port| port.to_be_bytes().into_iter().chain([0, 0])));
            key
        };
        let mut keys: Vec<Vec<u8>> = targets.iter().filter(|target| self.has(target)).map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn parts(self) -> impl Iterator<Item = expr::Part> {
        let parts = [self.address.then_some(expr::Part::DestinationAddress), Some(expr::Part::Protocol)];
        parts.into_iter().chain([self.port.then_some(expr::Part::DestinationPort)]).flatten()
    }
}

/// What a connection is known by.
const SEEN: [expr::Part; 5] = [
    expr::Part::SourceAddress,
    expr::Part::SourcePort,
    expr::Part::DestinationAddress,
    expr::Part::DestinationPort,
    expr::Part::Protocol,
];

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Batch {
    fn begin(table: &str, family: Family, first: u32) -> Batch {
        let bytes = Builder::message(BATCH_BEGIN, REQUEST, first, &BATCH_HEADER).finish();
        Batch { bytes, family, table: table.to_owned(), sequence: first }
    }

    /// Ends it. The last message before the end asks for an answer.
    fn end(mut self) -> (Vec<u8>, u32) {
        let last = self.sequence;
        self.bytes.extend(Builder::message(BATCH_END, REQUEST, last.wrapping_add(1), &BATCH_HEADER).finish());
        (self.bytes, last)
    }

    /// Appends a message about the table; `NFTA_*_TABLE` is 1 in all of them.
    fn push(&mut self, kind: u16, flags: u16, fill: impl FnOnce(Builder) -> Builder) {
        self.sequence = self.sequence.wrapping_add(1);
        let message = Builder::message(kind, flags, self.sequence, &[number(self.family), 0, 0, 0]);
        self.bytes.extend(fill(message.attribute(1, &terminated(&self.table))).finish());
    }

    fn table(&mut self, owned: bool) {
        let flags: u32 = if owned { OWNER } else { 0 };
        // Another with this name is an error. NFTA_TABLE_FLAGS and NFTA_TABLE_USERDATA.
        self.push(NEW_TABLE, REQUEST | CREATE | EXCLUSIVE, |message| {
            message.attribute(2, &flags.to_be_bytes()).attribute(6, &comment(COMMENT))
        });
    }

    fn sets(&mut self, wanted: &Wanted<'_>) {
        // NFT_SET_TIMEOUT; NFT_SET_EVAL, of a set that rules write.
        const TIMEOUT: u32 = 0x10;
        const EVAL: u32 = 0x20;
        for set in SETS {
            let keys = set.keys(wanted.targets);
            if !keys.is_empty() {
                let parts: Vec<expr::Part> = set.parts().collect();
                self.set(set.name, &parts, TIMEOUT, None);
                self.elements(set.name, &keys, wanted.time);
            }
        }
        self.set("seen", &SEEN, TIMEOUT | EVAL, Some(SEEN_SIZE));
    }

    fn set(&mut self, name: &str, parts: &[expr::Part], flags: u32, size: Option<u32>) {
        let family = self.family;
        let length: usize = parts.iter().map(|part| part.padded(family)).sum();
        let kind = parts.iter().fold(0, |kind, part| kind << 6 | part.type_of_nft(family));
        // A number that holds within the batch; it has to be there.
        let id = self.sequence;
        self.push(NEW_SET, REQUEST | CREATE, |message| {
            // NFTA_SET_NAME, NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN, NFTA_SET_ID.
            let message = message
                .attribute(2, &terminated(name))
                .attribute(3, &flags.to_be_bytes())
                .attribute(4, &u32::to_be_bytes(kind))
                .attribute(5, &u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes())
                .attribute(10, &id.to_be_bytes());
            // NFTA_SET_DESC, NFTA_SET_DESC_SIZE.
            match size {
                Some(size) => message.nested(9, |desc| desc.attribute(1, &size.to_be_bytes())),
                None => message,
            }
        });
    }

    fn elements(&mut self, set: &str, keys: &[Vec<u8>], time: Duration) {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // A list is an attribute, whose length has 16 bits; an element takes 60 bytes at most.
        for keys in keys.chunks(500) {
            self.push(NEW_ELEMENTS, REQUEST | CREATE, |message| {
                // NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY,
                // NFTA_SET_ELEM_TIMEOUT.
                message.attribute(2, &terminated(set)).nested(3, |list| {
                    keys.iter().fold(list, |list, key| {
                        list.nested(1, |element| {
                            element.nested(1, |data| data.attribute(1, key)).attribute(4, &milliseconds.to_be_bytes())
                        })
                    })
                })
            });
        }
    }

    fn chains(&mut self) {
        let chain = |message: Builder, name: &str| message.attribute(3, &terminated(name));
        self.push(NEW_CHAIN, REQUEST | CREATE, |message| chain(message, Watch::TRACED));
        for watch in Watch::all() {
            let hook = u32::from(watch.hook as u8);
            self.push(NEW_CHAIN, REQUEST | CREATE, |message| {
                // NFTA_CHAIN_HOOK, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_CHAIN_TYPE.
                chain(message, &watch.to_string())
                    .nested(4, |inner| {
                        inner.attribute(1, &hook.to_be_bytes()).attribute(2, &watch.priority().to_be_bytes())
                    })
                    .attribute(7, &terminated("filter"))
            });
        }
    }

    fn rules(&mut self, wanted: &Wanted<'_>) {
        let family = self.family;
        if let Some(from) = wanted.from.filter(|from| from.prefix_len() > 0) {
            let (net, mask) = (octets(from.network()), octets(from.netmask()));
            let mut rule = vec![expr::load(expr::Part::SourceAddress, family, 0)];
            rule.push(expr::mask(&mask));
            rule.push(expr::unequal(&net));
            rule.push(expr::back());
            self.rule(Watch::TRACED, &rule, 0);
        }
        let seen = expr::load_all(&SEEN, family);
        let known = seen.iter().cloned().chain([expr::is_in("seen"), expr::back()]);
        self.rule(Watch::TRACED, &known.collect::<Vec<_>>(), 0);
        for protocol in Protocol::ALL {
            if let Some(opens) = opening(protocol) {
                let mut rule = vec![expr::load(expr::Part::Protocol, family, 0), expr::equal(&[protocol.number()])];
                rule.extend(opens);
                rule.push(expr::back());
                self.rule(Watch::TRACED, &rule, 0);
            }
        }
        // What is above the limit is not remembered: it may be traced when it comes again.
        // The first counter has what came, the second what was let pass.
        let mut rule = vec![expr::counter(), expr::limit(RATE), expr::counter()];
        rule.extend(seen);
        rule.push(expr::add_to("seen", wanted.time));
        rule.extend(expr::have_traced());
        self.rule(Watch::TRACED, &rule, 0);
        for hook in [Hook::Prerouting, Hook::Output] {
            let chain = Watch { hook, end: End::First }.to_string();
            // The last is answered.
            for (nth, set) in self.used(wanted).into_iter().enumerate().rev() {
                let parts: Vec<expr::Part> = set.parts().collect();
                let mut rule = expr::load_all(&parts, family);
                rule.push(expr::is_in(set.name));
                if !set.address {
                    rule.extend(expr::is_of_the_node());
                }
                rule.push(expr::goto(Watch::TRACED));
                self.rule(&chain, &rule, if hook == Hook::Output && nth == 0 { ACK } else { 0 });
            }
        }
    }

    fn used(&self, wanted: &Wanted<'_>) -> Vec<Set> {
        SETS.into_iter().filter(|set| wanted.targets.iter().any(|target| set.has(target))).collect()
    }

    fn rule(&mut self, chain: &str, expressions: &[Nest], flags: u16) {
        self.push(NEW_RULE, REQUEST | CREATE | APPEND | flags, |message| {
            // NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_LIST_ELEM.
            message.attribute(2, &terminated(chain)).nested(4, |list| {
                expressions.iter().fold(list, |list, expression| list.nested(1, |element| expression.write(element)))
            })
        });
    }
}

/// What finds that a packet does not open a connection: TCP without SYN alone, SCTP with another first chunk than INIT.
fn opening(protocol: Protocol) -> Option<[Nest; 3]> {
    match protocol {
        Protocol::Tcp => Some([expr::transport(13, 1), expr::mask(&[0x17]), expr::unequal(&[0x02])]),
        Protocol::Sctp => Some([expr::transport(12, 1), expr::mask(&[0xff]), expr::unequal(&[1])]),
        Protocol::Udp => None,
    }
}

/// User data that is a comment (`NFTNL_UDATA_TABLE_COMMENT`, 0): type, length, text.
fn comment(text: &str) -> Vec<u8> {
    let text = terminated(text);
    [&[0, u8::try_from(text.len()).unwrap_or(u8::MAX)], &text[..]].concat()
}
