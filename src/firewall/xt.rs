//! Matches and targets of iptables in rules of iptables-nft: their names are those of the modules, their structures those
//! of include/uapi/linux/netfilter/xt_*.h, in the byte order of the machine. Pure.

use super::rule::{Action, Marked, Net, Step, Test, XmarkBy};
use crate::netlink::{u16_at, u32_at};

/// A match; `None` where it is not understood.
pub(super) fn matched(name: &str, revision: u32, info: &[u8]) -> Option<Vec<Step>> {
    let known = match (name, revision) {
        ("comment", _) => Some(Vec::new()),
        // `struct xt_mark_mtinfo1` and `struct xt_connmark_mtinfo1`: mark, mask, and whether it is inverted.
        ("mark" | "connmark", 1) => mark(name, info),
        ("tcp", 0) => tcp(info),
        ("udp", 0) => udp(info),
        ("multiport", 1) => multiport(info),
        ("addrtype", 1) => address_type(info),
        ("conntrack", 2 | 3) => conntrack(revision, info),
        _ => None,
    };
    // A match loads nothing.
    Some(known.unwrap_or_else(|| vec![Step::May(format!("it has the match {name} of iptables"))]))
}

fn is(test: Test, inverted: bool) -> Step {
    Step::Is { test, inverted }
}

fn mark(name: &str, info: &[u8]) -> Option<Vec<Step>> {
    let of = if name == "mark" { Marked::Packet } else { Marked::Connection };
    Some(vec![is(Test::Mark(of, u32_at(info, 0)?, u32_at(info, 4)?), *info.get(8)? != 0)])
}

/// First and last source port, and then those of the destination.
fn ports(info: &[u8], inverted: u8) -> Option<Vec<Step>> {
    let from = Test::SourcePorts(vec![(u16_at(info, 0)?, u16_at(info, 2)?)]);
    let to = Test::DestinationPorts(vec![(u16_at(info, 4)?, u16_at(info, 6)?)]);
    let is_said = |test: &Test, bit: u8| {
        let all =
            matches!(test, Test::SourcePorts(ports) | Test::DestinationPorts(ports) if ports[..] == [(0, u16::MAX)]);
        !all || inverted & bit != 0
    };
    let both = [(from, 1), (to, 2)].into_iter().filter(|(test, bit)| is_said(test, *bit));
    Some(both.map(|(test, bit)| is(test, inverted & bit != 0)).collect())
}

/// `struct xt_tcp`: behind the ports an option, the mask and the value of the flags, and what is inverted.
fn tcp(info: &[u8]) -> Option<Vec<Step>> {
    const FLAGS: u8 = 4;
    let [option, mask, value, inverted] = *info.get(8..)?.first_chunk()?;
    let mut steps = ports(info, inverted)?;
    if mask != 0 || value != 0 || inverted & FLAGS != 0 {
        steps.push(is(Test::TcpFlags(value, mask), inverted & FLAGS != 0));
    }
    if option != 0 {
        steps.push(Step::May("it asks for an option of TCP".to_owned()));
    }
    Some(steps)
}

/// `struct xt_udp`: behind the ports what is inverted.
fn udp(info: &[u8]) -> Option<Vec<Step>> {
    ports(info, *info.get(8)?)
}

/// `struct xt_multiport_v1`: which ports, how many, 15 of them, for each whether the next is the end of its range, and
/// whether all is inverted.
fn multiport(info: &[u8]) -> Option<Vec<Step>> {
    const MOST: usize = 15;
    const PORTS: usize = 2;
    const RANGES: usize = 32;
    const INVERTED: usize = 47;
    let count = usize::from(*info.get(1)?);
    let (mut list, mut nth) = (Vec::new(), 0);
    while nth < count.min(MOST) {
        let first = u16_at(info, PORTS + nth * 2)?;
        let is_range = *info.get(RANGES + nth)? != 0;
        let last = if is_range { u16_at(info, PORTS + (nth + 1) * 2)? } else { first };
        list.push((first, last));
        nth += if is_range { 2 } else { 1 };
    }
    let test = match info.first()? {
        0 => Test::SourcePorts(list),
        1 => Test::DestinationPorts(list),
        2 => Test::EitherPorts(list),
        _ => return None,
    };
    Some(vec![is(test, *info.get(INVERTED)? != 0)])
}

/// `struct xt_addrtype_info_v1`: a bit for each type of the source, and of the destination, and what is inverted, or asked
/// for an interface.
fn address_type(info: &[u8]) -> Option<Vec<Step>> {
    const INVERT: [u32; 2] = [1, 2];
    const BY_INTERFACE: u32 = 4 | 8;
    let (source, destination, flags) = (u16_at(info, 0)?, u16_at(info, 2)?, u32_at(info, 4)?);
    if flags & BY_INTERFACE != 0 {
        return None;
    }
    let both =
        [(source, Test::SourceType(source), INVERT[0]), (destination, Test::DestinationType(destination), INVERT[1])];
    let said = both.into_iter().filter(|(types, ..)| *types != 0);
    Some(said.map(|(_, test, bit)| is(test, flags & bit != 0)).collect())
}

/// `struct xt_conntrack_mtinfo2` and 3: addresses and masks of 16 bytes each, the expiry, protocol and ports, what is asked
/// for and what is inverted, and states. The third has the last port of ranges at the end, and ports as the machine has
/// them.
fn conntrack(revision: u32, info: &[u8]) -> Option<Vec<Step>> {
    const PROTOCOL: usize = 136;
    const PORTS: [usize; 2] = [138, 140];
    const FLAGS: [usize; 3] = [146, 148, 150];
    const LAST_PORTS: [usize; 2] = [154, 156];
    /// `XT_CONNTRACK_*`.
    const STATE: u16 = 1;
    const OF_PROTOCOL: u16 = 1 << 1;
    const ORIGINAL_SOURCE: u16 = 1 << 2;
    const ORIGINAL_DESTINATION: u16 = 1 << 3;
    const ORIGINAL_PORTS: [u16; 2] = [1 << 8, 1 << 9];
    const DIRECTION: u16 = 1 << 12;
    const ALIAS: u16 = 1 << 13;
    const UNDERSTOOD: u16 = STATE
        | OF_PROTOCOL
        | ORIGINAL_SOURCE
        | ORIGINAL_DESTINATION
        | ORIGINAL_PORTS[0]
        | ORIGINAL_PORTS[1]
        | DIRECTION
        | ALIAS;
    let [Some(flags), Some(inverted), Some(states)] = FLAGS.map(|at| u16_at(info, at)) else { return None };
    let net = |nth: usize| {
        let part = |at: usize| info.get(at..at + 16).map(<[u8]>::to_vec);
        Some(Net { value: part(nth * 32)?, mask: part(nth * 32 + 16)? })
    };
    let port = |nth: usize| {
        let (first, last) = (u16_at(info, PORTS[nth])?, u16_at(info, LAST_PORTS[nth])?);
        Some(if revision == 2 { (u16::from_be(first), u16::from_be(first)) } else { (first, last) })
    };
    let mut steps = Vec::new();
    let mut said = |flag: u16, test: Option<Test>| {
        if flags & flag != 0 {
            steps.push(is(test?, inverted & flag != 0));
        }
        Some(())
    };
    said(STATE, Some(Test::States(states)))?;
    said(DIRECTION, Some(Test::IsOriginal))?;
    said(OF_PROTOCOL, u8::try_from(u16_at(info, PROTOCOL)?).ok().map(Test::ConnectionProtocol))?;
    said(ORIGINAL_SOURCE, net(0).map(Test::OriginalSource))?;
    said(ORIGINAL_DESTINATION, net(1).map(Test::OriginalDestination))?;
    if flags & ORIGINAL_PORTS[0] != 0 {
        said(ORIGINAL_PORTS[0], port(0).map(|port| Test::OriginalSourcePorts(vec![port])))?;
    }
    if flags & ORIGINAL_PORTS[1] != 0 {
        said(ORIGINAL_PORTS[1], port(1).map(|port| Test::OriginalDestinationPorts(vec![port])))?;
    }
    if flags & !UNDERSTOOD != 0 {
        steps.push(Step::May("it asks for more of the connection than is understood".to_owned()));
    }
    Some(steps)
}

/// A target.
pub(super) fn target(name: &str, revision: u32, info: &[u8]) -> Vec<Step> {
    match (name, revision) {
        // `struct xt_mark_tginfo2`: mark and mask.
        ("MARK", 2) => match u32_at(info, 0).zip(u32_at(info, 4)) {
            Some((value, mask)) => vec![Step::Xmark { of: Marked::Packet, mask, by: XmarkBy::Value(value) }],
            None => unknown(name),
        },
        ("CONNMARK", 1 | 2) => connmark(revision, info).unwrap_or_else(|| unknown(name)),
        // `struct xt_ct_target_info` begins with its flags, of which the first is `XT_CT_NOTRACK`, and the zone.
        ("CT", _) if u16_at(info, 0).is_some_and(|flags| flags & 1 != 0) => vec![Step::NoTrack],
        ("CT", _) => zone(u16_at(info, 2).filter(|_| u16_at(info, 0) == Some(0))),
        _ => named(name),
    }
}

/// Puts a packet into a zone; `None` where it is one of a direction, or by its mark.
pub(super) fn zone(number: Option<u16>) -> Vec<Step> {
    // Matches have nothing in registers.
    const FREE: usize = 16;
    let put = number.map(|number| Step::Put { to: FREE, data: number.to_ne_bytes().to_vec() });
    let zone = Step::Zone { from: number.map(|_| FREE) };
    put.into_iter().chain([zone]).collect()
}

/// What a target does that is the same whatever its options are.
pub(super) fn named(name: &str) -> Vec<Step> {
    let action = match name {
        "ACCEPT" => Action::Accept,
        "DROP" | "TARPIT" | "DELUDE" | "CHAOS" => Action::Drop,
        "RETURN" => Action::Return,
        "REJECT" => Action::Reject,
        "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => Action::Translate,
        "NFQUEUE" | "QUEUE" => Action::Give("a program that listens to its queue".to_owned()),
        "SYNPROXY" => Action::Give("a proxy for SYN".to_owned()),
        "NOTRACK" => return vec![Step::NoTrack],
        "LOG" | "NFLOG" | "ULOG" | "TRACE" | "TCPMSS" | "DSCP" | "TOS" | "ECN" | "TTL" | "HL" | "CHECKSUM"
        | "CLASSIFY" | "AUDIT" | "SET" | "CT" | "TEE" | "SECMARK" | "CONNSECMARK" | "RATEEST" | "IDLETIMER" | "LED"
        | "TCPOPTSTRIP" => {
            return Vec::new();
        }
        _ => return unknown(name),
    };
    vec![Step::Do(action)]
}

fn unknown(name: &str) -> Vec<Step> {
    vec![Step::Do(Action::Unknown(format!("it has the target {name} of iptables")))]
}

/// `struct xt_connmark_tginfo1` and 2: value, mask of the connection's, mask of the packet's, a shift in the second, and
/// which way.
fn connmark(revision: u32, info: &[u8]) -> Option<Vec<Step>> {
    const SHIFT: usize = 13;
    let (value, of_connection, of_packet) = (u32_at(info, 0)?, u32_at(info, 4)?, u32_at(info, 8)?);
    let way = if revision == 2 { 14 } else { 12 };
    if revision == 2 && *info.get(SHIFT)? != 0 {
        return None;
    }
    Some(vec![match info.get(way)? {
        0 => Step::Xmark { of: Marked::Connection, mask: of_connection, by: XmarkBy::Value(value) },
        1 => Step::Xmark { of: Marked::Connection, mask: of_connection, by: XmarkBy::Other(of_packet) },
        2 => Step::Xmark { of: Marked::Packet, mask: of_packet, by: XmarkBy::Other(of_connection) },
        _ => return None,
    }])
}
