//! What a chain sees of a packet: connection tracking and translation are at priorities of their own, and what is set on
//! the way is seen by those behind. Pure.

use std::cell::OnceCell;
use std::io;
use std::net::IpAddr;

use super::bits::{Bits, Three};
use super::packet::{End, Hook, Packet, State, Turn};
use super::rule::{Action, Field};
use crate::leftovers::values::{
    CT_STATE, CT_STATUS, META_L4PROTO, META_MARK, META_NFPROTO, META_OUTPUT_NAME, STATUS_DNAT,
};

/// `NF_IP_PRI_CONNTRACK`.
const CONNTRACK: i32 = -200;
/// `NF_IP_PRI_NAT_DST`, and `NF_IP_PRI_NAT_SRC`.
pub(super) const TRANSLATION: (i32, i32) = (-100, 100);
/// `IFNAMSIZ`.
const NAME: usize = 16;
/// `IPPROTO_*` of protocols with ports at the beginning of their header.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
const TCP: u8 = 6;
/// `NF_CT_STATE_*`.
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 1 << 1;
const NEW: u32 = 1 << 3;
const UNTRACKED: u32 = 1 << 6;
/// Flags of TCP, and those of them that are known: not those of congestion notification, and of what has data not PSH.
const SYN: (u8, u8) = (0x02, 0x3f);
const SYN_ACK: (u8, u8) = (0x12, 0x3f);
const ACK: (u8, u8) = (0x10, 0x37);

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    /// Of a map of verdicts.
    pub(super) verdict: Option<Action>,
    /// Of any other map.
    pub(super) data: Vec<u8>,
    /// Whether it has a limit or the like, by which it may not match.
    pub(super) is_limited: bool,
}

/// What is asked for on the way.
pub(super) trait World {
    /// The element of a set that a key is in.
    ///
    /// # Errors
    /// Nobody can tell.
    fn element(&self, family: &str, table: &str, set: &str, key: &[u8]) -> io::Result<Option<Element>>;

    /// The length of the keys of a set, in bytes.
    fn key_length(&self, family: &str, table: &str, set: &str) -> Option<usize>;

    /// What an address is to this node, as `RTN_*`.
    ///
    /// # Errors
    /// Nobody can tell.
    fn address_type(&self, address: IpAddr) -> io::Result<u8>;

    /// The index of the device by which an address is reached with this mark, by way of `within` where that is given;
    /// `None` if it is not.
    ///
    /// # Errors
    /// Nobody can tell.
    fn device_to(&self, address: IpAddr, mark: u32, within: Option<u32>) -> io::Result<Option<u32>>;

    /// The index of a device.
    fn index(&self, device: &str) -> Option<u32>;
}

/// What changes on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carried {
    /// Of the packet, four bytes.
    pub(super) mark: Bits,
    /// Of the connection, four bytes.
    pub(super) connection_mark: Bits,
    /// Whether a rule has kept it from being tracked.
    pub(super) untracked: Three,
    /// Whether its headers are as the packet says.
    pub(super) intact: bool,
    /// The zone that it is looked up in, two bytes.
    pub(super) zone: Bits,
}

impl Carried {
    pub(super) fn of(packet: &Packet) -> Carried {
        let mark = |mark: Option<u32>| mark.map_or_else(|| Bits::unknown(4), |mark| Bits::known(&mark.to_ne_bytes()));
        Carried {
            mark: mark(packet.mark),
            connection_mark: mark(packet.connection_mark),
            untracked: (packet.state == State::Untracked).into(),
            intact: true,
            zone: Bits::known(&[0; 2]),
        }
    }

    /// What holds in both cases.
    pub(super) fn join(&self, other: &Carried) -> Carried {
        Carried {
            mark: self.mark.join(&other.mark),
            connection_mark: self.connection_mark.join(&other.connection_mark),
            untracked: self.untracked.join(other.untracked),
            intact: self.intact && other.intact,
            zone: self.zone.join(&other.zone),
        }
    }
}

/// What is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loaded {
    /// These bytes.
    Value(Bits),
    /// There is no such thing: the rule does not match.
    Nothing,
    /// Perhaps so many bytes, and nobody knows which.
    Unknown { length: usize, what: String },
}

/// What the chains of a priority see.
pub(super) struct View<'a> {
    pub(super) packet: &'a Packet,
    pub(super) world: &'a dyn World,
    /// Of the family of the chain's table.
    is_of_device: bool,
    /// Whether connection tracking has seen it, if it is tracked at all.
    pub(super) seen: Three,
    /// Whether it is translated, if it is to be.
    pub(super) dnat: Three,
    /// Whether the source of its connection is by now; `None` where it is not known.
    pub(super) snat: Option<bool>,
    /// Its addresses and ports.
    source: End,
    destination: End,
    /// Its headers, as long as nobody has changed them: each rule looks at them.
    headers: [OnceCell<Bits>; 2],
}

impl<'a> View<'a> {
    /// What a chain sees that is called at this priority; `translates` is whether that is its purpose.
    pub(super) fn at(packet: &'a Packet, world: &'a dyn World, family: &str, priority: i32, translates: bool) -> Self {
        // What the node sends to itself has all of it behind it as it comes back.
        let is_back = packet.input.as_deref() == Some("lo");
        let begins = match packet.hook {
            Hook::Ingress | Hook::Prerouting => !is_back,
            Hook::Output => true,
            _ => false,
        };
        // Of chains at the same priority, the later was registered, the sooner it is called.
        let behind = |border: i32| match (begins, packet.hook) {
            (false, _) => Three::Yes,
            (true, Hook::Ingress) => Three::No,
            (true, _) if priority == border => Three::Maybe,
            (true, _) => (priority > border).into(),
        };
        let (ahead, after) = TRANSLATION;
        let redirected = match behind(ahead) {
            Three::Maybe if translates => Three::No,
            behind => behind,
        };
        let dnat = match packet.turn {
            Turn::First => redirected.and(packet.dnat.into()),
            _ => packet.dnat.into(),
        };
        let moved = match packet.hook {
            Hook::Egress => Three::Yes,
            Hook::Ingress | Hook::Prerouting => is_back.into(),
            Hook::Forward | Hook::Output => Three::No,
            Hook::Input if is_back => Three::Yes,
            Hook::Input | Hook::Postrouting if priority == after && !translates => Three::Maybe,
            Hook::Input | Hook::Postrouting => (priority > after).into(),
        };
        let snat = match (packet.turn, moved) {
            (Turn::First, Three::No) => Some(false),
            (Turn::First, Three::Maybe) => packet.snat.filter(|snat| !snat),
            _ => packet.snat,
        };
        View {
            packet,
            world,
            is_of_device: family == "netdev",
            seen: behind(CONNTRACK),
            dnat,
            snat,
            source: either(moved, source(packet), packet.source_behind),
            destination: either(redirected, packet.destination_ahead, destination(packet)),
            headers: Default::default(),
        }
    }

    pub(super) fn source(&self, carried: &Carried) -> Option<Bits> {
        self.source_address(carried).map(address)
    }

    pub(super) fn destination(&self, carried: &Carried) -> Option<Bits> {
        self.destination_address(carried).map(address)
    }

    pub(super) fn source_address(&self, carried: &Carried) -> Option<IpAddr> {
        self.source.address.filter(|_| carried.intact)
    }

    pub(super) fn destination_address(&self, carried: &Carried) -> Option<IpAddr> {
        self.destination.address.filter(|_| carried.intact)
    }

    pub(super) fn source_port(&self, carried: &Carried) -> Option<u16> {
        self.source.port.filter(|_| carried.intact)
    }

    pub(super) fn destination_port(&self, carried: &Carried) -> Option<u16> {
        self.destination.port.filter(|_| carried.intact)
    }

    /// Source and destination of the connection as connection tracking has them, of the direction of the client or of that
    /// of answers.
    pub(super) fn tuple(&self, of_answers: bool, carried: &Carried) -> (End, End) {
        let packet = self.packet;
        match packet.turn {
            turn if turn.is_answer() == of_answers => (source(packet), packet.destination_ahead),
            // It changes as the first packet is translated.
            Turn::First if carried.intact => (self.destination, self.source),
            Turn::First => Default::default(),
            _ => (destination(packet), packet.source_behind),
        }
    }

    /// The flags of TCP that it has, and those of them that are known.
    pub(super) fn flags(&self) -> (u8, u8) {
        match self.packet.turn {
            Turn::First => SYN,
            Turn::Answer => SYN_ACK,
            Turn::Later | Turn::LaterAnswer => ACK,
        }
    }

    /// Whether its protocol has ports.
    pub(super) fn has_ports(&self) -> bool {
        WITH_PORTS.contains(&self.packet.protocol)
    }

    /// Whether it has a connection here.
    pub(super) fn is_tracked(&self, carried: &Carried) -> Three {
        self.seen.and(carried.untracked.not())
    }

    /// `NF_CT_STATE_*`, as one of these bits; `None` where it may be several.
    pub(super) fn state(&self, carried: &Carried) -> Option<u32> {
        match (carried.untracked, self.seen) {
            (Three::Yes, _) => Some(UNTRACKED),
            (Three::No, Three::No) => Some(INVALID),
            (Three::No, Three::Yes) if self.packet.state == State::Established => Some(ESTABLISHED),
            (Three::No, Three::Yes) => Some(NEW),
            _ => None,
        }
    }

    pub(super) fn load(&self, field: Field, carried: &Carried) -> Loaded {
        match field {
            Field::Payload { base, offset, length } => self.payload(base, offset, length, carried),
            Field::Meta(key) => self.meta(key, carried),
            Field::Ct { key, reply } => self.ct(key, reply, carried),
            Field::Fib { result, flags } => self.fib(result, flags, carried),
        }
    }

    fn payload(&self, base: u32, offset: usize, length: usize, carried: &Carried) -> Loaded {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        let [network, transport] = &self.headers;
        let changed;
        let header = match (base, carried.intact) {
            (NETWORK, true) => network.get_or_init(|| self.network_header(carried)),
            (TRANSPORT, true) => transport.get_or_init(|| self.transport_header(carried)),
            (base, _) => {
                changed = match base {
                    NETWORK => self.network_header(carried),
                    TRANSPORT => self.transport_header(carried),
                    _ => Bits::unknown(0),
                };
                &changed
            }
        };
        if offset.saturating_add(length) <= header.len() {
            return Loaded::Value(header.part(offset, length));
        }
        let what = format!("bytes {offset} to {} of a header", offset.saturating_add(length));
        Loaded::Unknown { length, what }
    }

    fn network_header(&self, carried: &Carried) -> Bits {
        let is_v6 = self.packet.source.is_ipv6();
        let mut header = Bits::unknown(if is_v6 { 40 } else { 20 });
        let (protocol, source, destination) = if is_v6 { (6, 8, 24) } else { (9, 12, 16) };
        header.write(protocol, &Bits::known(&[self.packet.protocol]));
        if !is_v6 {
            // No options, and no fragment.
            header.write(0, &Bits::known(&[0x45]));
            header.write(6, &Bits::unknown(1).masked(&[0x40], &[]));
            header.write(7, &Bits::known(&[0]));
        }
        for (at, address) in [(source, self.source(carried)), (destination, self.destination(carried))] {
            if let Some(address) = address {
                header.write(at, &address);
            }
        }
        header
    }

    fn transport_header(&self, carried: &Carried) -> Bits {
        if !self.has_ports() {
            return Bits::unknown(8);
        }
        let is_tcp = self.packet.protocol == TCP;
        let mut header = Bits::unknown(if is_tcp { 20 } else { 8 });
        for (at, port) in [(0, self.source_port(carried)), (2, self.destination_port(carried))] {
            if let Some(port) = port {
                header.write(at, &Bits::known(&port.to_be_bytes()));
            }
        }
        if is_tcp {
            let (value, known) = self.flags();
            header.write(13, &Bits::unknown(1).masked(&[!known], &[value]));
        }
        header
    }

    fn meta(&self, key: u32, carried: &Carried) -> Loaded {
        const PROTOCOL: u32 = 1;
        const INPUT: u32 = 4;
        const OUTPUT: u32 = 5;
        const INPUT_NAME: u32 = 6;
        const OWNERS: [u32; 2] = [10, 11];
        let Packet { input, output, hook, .. } = self.packet;
        let is_v6 = self.packet.source.is_ipv6();
        let device = |name: &Option<String>| match name.as_deref().map(|name| self.world.index(name)) {
            None => Loaded::Value(Bits::known(&[0; 4])),
            Some(Some(index)) => Loaded::Value(Bits::known(&index.to_ne_bytes())),
            Some(None) => Loaded::Unknown { length: 4, what: "the number of a device that is not there".to_owned() },
        };
        // What comes in has not always got an output device, and never has at these hooks.
        let output =
            output.as_ref().filter(|_| !matches!(hook, Hook::Ingress | Hook::Prerouting | Hook::Input)).cloned();
        let input = input.as_ref().filter(|_| !matches!(hook, Hook::Output | Hook::Egress)).cloned();
        match key {
            PROTOCOL => Loaded::Value(Bits::known(if is_v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] })),
            META_MARK => Loaded::Value(carried.mark.clone()),
            INPUT => device(&input),
            OUTPUT => device(&output),
            INPUT_NAME => Loaded::Value(name(input.as_deref())),
            META_OUTPUT_NAME => Loaded::Value(name(output.as_deref())),
            META_NFPROTO => {
                let family = if is_v6 { 10 } else { 2 };
                Loaded::Value(Bits::known(&[if self.is_of_device { 5 } else { family }]))
            }
            META_L4PROTO => Loaded::Value(Bits::known(&[self.packet.protocol])),
            // Nobody has a socket of what is only passed on.
            owner if OWNERS.contains(&owner) && *hook == Hook::Forward => Loaded::Nothing,
            _ => unknown_meta(key),
        }
    }

    fn ct(&self, key: u32, reply: bool, carried: &Carried) -> Loaded {
        const DIRECTION: u32 = 1;
        const MARK: u32 = 3;
        const L3PROTOCOL: u32 = 7;
        const PROTOCOL: u32 = 10;
        /// `IPS_SEEN_REPLY`, `IPS_ASSURED` and `IPS_CONFIRMED`.
        const LATER: u32 = 0b1110;
        const ANSWERED: u32 = 0b1010;
        /// `IPS_SRC_NAT`.
        const STATUS_SNAT: u32 = 1 << 4;
        let unknown = |length| Loaded::Unknown { length, what: ct_name(key) };
        if key == CT_STATE {
            let state = self.state(carried);
            let unknown = || Loaded::Value(Bits::unknown(4));
            return state.map_or_else(unknown, |state| Loaded::Value(Bits::known(&state.to_ne_bytes())));
        }
        match self.is_tracked(carried) {
            Three::No => return Loaded::Nothing,
            Three::Maybe => return unknown(16),
            Three::Yes => {}
        }
        let packet = self.packet;
        let is_new = packet.turn == Turn::First && packet.input.as_deref() != Some("lo");
        let is_v6 = packet.source.is_ipv6();
        let (from, to) = self.tuple(reply, carried);
        let ip = |of_v6: bool, known: Option<IpAddr>| match known {
            _ if of_v6 != is_v6 => Loaded::Nothing,
            Some(known) => Loaded::Value(address(known)),
            None => unknown(16),
        };
        let port = |port: Option<u16>| match port {
            Some(port) => Loaded::Value(Bits::known(&port.to_be_bytes())),
            None => unknown(2),
        };
        match key {
            DIRECTION => Loaded::Value(Bits::known(&[packet.turn.is_answer().into()])),
            CT_STATUS => {
                let (known, value) = match packet.turn {
                    Turn::First if is_new => (LATER, 0),
                    Turn::First => (0, 0),
                    _ => (ANSWERED, ANSWERED),
                };
                let snat = self.snat.filter(|_| carried.intact).map(|snat| if snat { STATUS_SNAT } else { 0 });
                let (known, value) = (known | snat.map_or(0, |_| STATUS_SNAT), value | snat.unwrap_or(0));
                let dnat = if self.dnat == Three::Maybe || !carried.intact { 0 } else { STATUS_DNAT };
                let value = value | if self.dnat == Three::Yes { STATUS_DNAT } else { 0 };
                Loaded::Value(Bits::word(value, known | dnat))
            }
            MARK => Loaded::Value(carried.connection_mark.clone()),
            L3PROTOCOL => Loaded::Value(Bits::known(&[if is_v6 { 10 } else { 2 }])),
            PROTOCOL => Loaded::Value(Bits::known(&[packet.protocol])),
            8 | 19 | 21 => ip(key == 21 || key == 8 && is_v6, from.address),
            9 | 20 | 22 => ip(key == 22 || key == 9 && is_v6, to.address),
            11 => port(from.port),
            12 => port(to.port),
            _ => unknown(16),
        }
    }

    fn fib(&self, result: u32, flags: u32, carried: &Carried) -> Loaded {
        const TYPE: u32 = 3;
        const DEVICE: u32 = 1;
        const SOURCE: u32 = 1;
        const DESTINATION: u32 = 1 << 1;
        const BY_MARK: u32 = 1 << 2;
        const INPUT: u32 = 1 << 3;
        const PRESENT: u32 = 1 << 5;
        let unknown = |why: String| Loaded::Unknown { length: 16, what: format!("what routing says{why}") };
        let of = match flags & (SOURCE | DESTINATION) {
            SOURCE => self.source_address(carried),
            DESTINATION => self.destination_address(carried),
            _ => None,
        };
        let Some(address) = of else { return unknown(String::new()) };
        let value = |number: u32| Loaded::Value(Bits::known(&number.to_ne_bytes()));
        match (result, flags & !(SOURCE | DESTINATION)) {
            (TYPE, 0) => match self.world.address_type(address) {
                Ok(kind) => value(kind.into()),
                Err(error) => unknown(format!(": {error}")),
            },
            // The reverse path: is the way back by the device that it came in by?
            (DEVICE, conditions) if flags & SOURCE != 0 && conditions & !(BY_MARK | INPUT | PRESENT) == 0 => {
                let mark = if conditions & BY_MARK == 0 { Some(0) } else { carried.mark.number() };
                let Some(mark) = mark else { return unknown(": the mark is not known".to_owned()) };
                let came_by = self.packet.input.as_deref().and_then(|name| self.world.index(name));
                let found = |index: Option<u32>| match conditions & PRESENT {
                    0 => value(index.unwrap_or(0)),
                    // One byte, and the rest of the register is empty.
                    _ => Loaded::Value(Bits::known(&[u8::from(index.is_some()), 0, 0, 0])),
                };
                // What comes back from loopback is right.
                if self.packet.hook == Hook::Prerouting && self.packet.input.as_deref() == Some("lo") {
                    return found(came_by);
                }
                let wanted = came_by.filter(|_| conditions & INPUT != 0);
                match self.world.device_to(address, mark, wanted.filter(|_| address.is_ipv6())) {
                    Ok(device) => found(device.filter(|device| wanted.is_none_or(|wanted| wanted == *device))),
                    Err(error) => unknown(format!(": {error}")),
                }
            }
            _ => unknown(String::new()),
        }
    }
}

/// An end ahead of its translation, or behind it.
fn either(is_behind: Three, ahead: End, behind: End) -> End {
    match is_behind {
        Three::No => ahead,
        Three::Yes => behind,
        Three::Maybe => End {
            address: ahead.address.filter(|_| ahead.address == behind.address),
            port: ahead.port.filter(|_| ahead.port == behind.port),
        },
    }
}

fn source(packet: &Packet) -> End {
    End { address: Some(packet.source), port: packet.source_port }
}

fn destination(packet: &Packet) -> End {
    End { address: Some(packet.destination), port: packet.destination_port }
}

fn unknown_meta(key: u32) -> Loaded {
    let what = match key {
        0 => "the length",
        2 => "the priority",
        4 | 6 => "the interface it came in by",
        8 | 9 => "the type of an interface",
        10 | 11 => "whose socket it is",
        13 => "the realm",
        18..=19 => "the type of the packet",
        20 => "the CPU",
        21 | 22 => "the group of an interface",
        23 => "the control group",
        24 => "chance",
        30..=32 => "the time",
        _ => "something of the packet",
    };
    Loaded::Unknown { length: 16, what: what.to_owned() }
}

fn ct_name(key: u32) -> String {
    let what = match key {
        4 => "the security mark of the connection",
        5 => "when the connection expires",
        6 => "the helper of the connection",
        13 => "the labels of the connection",
        14..=16 => "how much the connection has sent",
        17 => "the zone of the connection",
        _ => "something of the connection",
    };
    what.to_owned()
}

/// The name of a device as the kernel keeps it.
fn name(device: Option<&str>) -> Bits {
    let mut bytes = device.unwrap_or_default().as_bytes().to_vec();
    bytes.resize(NAME, 0);
    Bits::known(&bytes)
}

fn address(address: IpAddr) -> Bits {
    match address {
        IpAddr::V4(ip) => Bits::known(&ip.octets()),
        IpAddr::V6(ip) => Bits::known(&ip.octets()),
    }
}
