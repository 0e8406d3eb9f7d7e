//! Echo requests, from everywhere, and what comes back.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::World;
use crate::support::packet::{ICMP, ICMPV6, Ip, internet_checksum};

/// What becomes of an echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// An answer has come back, from this address.
    Answered(IpAddr),
    /// An ICMP error has come back.
    Refused,
    /// It has gone on, to this address.
    GoneOn(IpAddr),
    /// Nothing.
    Lost,
}

/// The types of an echo request, an answer, and unreachable: RFC 792, RFC 4443.
const TYPES: [[u8; 3]; 2] = [[8, 0, 3], [128, 129, 1]];

impl World {
    /// Sends an echo request and looks for an answer for as long as `silence`. It is the node's own
    /// if its source is.
    pub(crate) fn ping(&mut self, source: IpAddr, destination: IpAddr, silence: Duration) -> Echo {
        self.marker += 1;
        let message = message(source, destination, self.marker);
        if self.is_local(source) {
            return self.run(move || from_node(source, destination, &message, silence));
        }
        let device = self.interfaces.iter().position(|i| i.cidrs.iter().any(|cidr| cidr.contains(&source)));
        let packet = packet(source, destination, &message);
        self.devices[device.map_or(0, |n| n + 1)].send(&packet).expect("a TUN device takes packets");
        let end = Instant::now() + silence;
        loop {
            let over = Instant::now() >= end;
            for device in &self.devices {
                match device.recv(&mut self.buffer) {
                    Ok(length) => {
                        let seen = Ip::parse(&self.buffer[..length]);
                        if let Some(echo) = seen.and_then(|seen| of_packet(&seen, &message)) {
                            return echo;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => panic!("cannot read from a TUN device: {error}"),
                }
            }
            if over {
                return Echo::Lost;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// What a packet says of an echo request.
fn of_packet(seen: &Ip<'_>, request: &[u8]) -> Option<Echo> {
    let [request_type, answer, unreachable] = TYPES[usize::from(seen.source.is_ipv6())];
    let kind = *seen.payload.first()?;
    let same = |message: &[u8]| message.get(4..8) == request.get(4..8);
    if kind == answer && same(seen.payload) {
        Some(Echo::Answered(seen.source))
    } else if kind == request_type && same(seen.payload) {
        Some(Echo::GoneOn(seen.destination))
    } else if kind == unreachable && same(Ip::parse(seen.payload.get(8..)?)?.payload) {
        Some(Echo::Refused)
    } else {
        None
    }
}

/// An echo request with this identifier: connection tracking takes those of one identifier for one connection.
fn message(source: IpAddr, destination: IpAddr, marker: u32) -> Vec<u8> {
    let mut message = vec![TYPES[usize::from(source.is_ipv6())][0], 0, 0, 0];
    message.extend((marker << 16 | 1).to_be_bytes());
    let mut summed = Vec::new();
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) {
        summed.extend([source.octets(), destination.octets()].concat());
        summed.extend([0, 0, 0, 8, 0, 0, 0, ICMPV6]);
    }
    summed.extend(&message);
    let checksum = internet_checksum(&summed);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

fn packet(source: IpAddr, destination: IpAddr, message: &[u8]) -> Vec<u8> {
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, ICMP, 0, 0];
            header.extend([source.octets(), destination.octets()].concat());
            let checksum = internet_checksum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 8, ICMPV6, 64];
            header.extend([source.octets(), destination.octets()].concat());
            header
        }
        _ => panic!("{source} and {destination} are of one family"),
    };
    packet.extend(message);
    packet
}

/// By a socket of the node, which hears nobody but the destination.
fn from_node(source: IpAddr, destination: IpAddr, message: &[u8], silence: Duration) -> Echo {
    let (domain, protocol) = match source {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("a raw socket");
    let at = |ip| SockAddr::from(SocketAddr::new(ip, 0));
    socket.bind(&at(source)).expect("the address is the node's");
    socket.connect(&at(destination)).expect("there is a route");
    match socket.send(message) {
        // What a rule drops or refuses on the way out.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Echo::Refused,
        sent => assert_eq!(sent.expect("the node can send"), message.len()),
    }
    let end = Instant::now() + silence;
    let mut buffer = [0; 512];
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left)).expect("a timeout");
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return Echo::Refused,
        };
        // IPv6 sockets leave out the header.
        let payload = match source {
            IpAddr::V4(_) => Ip::parse(&buffer[..length]).map(|ip| ip.payload),
            IpAddr::V6(_) => Some(&buffer[..length]),
        };
        let seen = |payload| Ip { source: destination, destination: source, protocol: 0, payload };
        match payload.and_then(|payload| of_packet(&seen(payload), message)) {
            // What the node sends to itself comes by as well.
            None | Some(Echo::GoneOn(_)) => {}
            Some(echo) => return echo,
        }
    }
    Echo::Lost
}
