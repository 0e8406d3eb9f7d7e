//! Flows of one UDP datagram from a client to the backend of the same network: the first packet of a connection by itself.
//!
//! The datagrams are made beforehand, each with a source of its own, and sent by a raw socket; when the call returns, the
//! backend has it. So a time is that of the sender, of two pairs of veth devices, and of what the node does.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::network::Network;

/// Of `IPPROTO_RAW` (include/uapi/linux/in.h): the sender writes the header.
const RAW: i32 = 255;
const UDP: u8 = 17;
const PAYLOAD: &[u8; 4] = b"flow";
/// Of the UDP header and what follows.
const LENGTH: u16 = 8 + PAYLOAD.len() as u16;
/// The sources of a client's address; then comes the next address.
const PORTS: std::ops::Range<u32> = 1_024..61_024;
/// So many flows begin a turn and do not count.
const WARM_UP: usize = 10;
/// A datagram that a busy machine delivers later is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A way from the client to a pod.
pub(crate) struct Flows<'a> {
    network: &'a Network,
    to: SocketAddr,
    socket: Socket,
    sent: Cell<u32>,
}

impl<'a> Flows<'a> {
    /// To an address that reaches a pod.
    pub(crate) fn new(network: &'a Network, to: SocketAddr) -> Flows<'a> {
        network.enter_client();
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW))).expect("root may have raw sockets");
        Flows { network, to, socket, sent: Cell::new(0) }
    }

    /// How long one takes, of `count` in a row.
    ///
    /// # Panics
    /// One does not arrive.
    pub(crate) fn take(&self, count: usize) -> Duration {
        self.network.enter_client();
        let to = self.address();
        let send = |packet: Vec<u8>| {
            self.socket.send_to(&packet, &to).expect("the client has a route");
        };
        (0..WARM_UP).map(|_| self.packet()).for_each(send);
        self.arrive(WARM_UP);
        let packets: Vec<Vec<u8>> = (0..count).map(|_| self.packet()).collect();
        let start = Instant::now();
        for packet in &packets {
            self.socket.send_to(packet, &to).expect("the client has a route");
        }
        let taken = start.elapsed() / u32::try_from(count).expect("a small number");
        self.arrive(count);
        taken
    }

    /// Waits until a datagram arrives; whether one does.
    pub(crate) fn is_reached(&self, patience: Duration) -> bool {
        self.network.enter_client();
        let end = Instant::now() + patience;
        let to = self.address();
        loop {
            if self.socket.send_to(&self.packet(), &to).is_ok() && self.arrived(1, Duration::from_millis(100)) == 1 {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
        }
    }

    /// A raw socket has no ports.
    fn address(&self) -> SockAddr {
        SocketAddr::new(self.to.ip(), 0).into()
    }

    fn arrive(&self, count: usize) {
        let arrived = self.arrived(count, PATIENCE);
        assert_eq!(arrived, count, "of {count} flows to {} {arrived} arrive", self.to);
    }

    /// How many of so many are there.
    fn arrived(&self, count: usize, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        let mut arrived = 0;
        while arrived < count && Instant::now() < deadline {
            match self.network.datagrams.recv(&mut [0; 16]) {
                Ok(length) => {
                    assert_eq!(length, PAYLOAD.len(), "a datagram of somebody else");
                    arrived += 1;
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        arrived
    }

    /// The next flow's datagram.
    fn packet(&self) -> Vec<u8> {
        let number = self.sent.replace(self.sent.get() + 1);
        let ports = PORTS.end - PORTS.start;
        let port = u16::try_from(PORTS.start + number % ports).expect("a port");
        let further = number / ports;
        let [client, client_v6] = self.network.clients;
        match (client, client_v6, self.to.ip()) {
            (IpAddr::V4(client), _, IpAddr::V4(to)) => {
                packet_v4(Ipv4Addr::from(u32::from(client) + (further << 8)), port, to, self.to.port())
            }
            (_, IpAddr::V6(client), IpAddr::V6(to)) => {
                packet_v6(Ipv6Addr::from(u128::from(client) + u128::from(further)), port, to, self.to.port())
            }
            _ => unreachable!("the client has an address of either family"),
        }
    }
}

/// Without a checksum, as IPv4 allows; the kernel writes that of the header.
fn packet_v4(from: Ipv4Addr, from_port: u16, to: Ipv4Addr, to_port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + LENGTH).to_be_bytes());
    // Identification, no fragment; hops, protocol, checksum.
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(datagram(from_port, to_port, 0));
    packet
}

fn packet_v6(from: Ipv6Addr, from_port: u16, to: Ipv6Addr, to_port: u16) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(LENGTH.to_be_bytes());
    packet.extend([UDP, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    // RFC 8200, 8.1: over addresses, length and protocol as well.
    let mut summed: Vec<u8> = from.octets().into_iter().chain(to.octets()).chain([0, UDP]).collect();
    summed.extend(LENGTH.to_be_bytes());
    summed.extend(datagram(from_port, to_port, 0));
    let words = summed.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).expect("it has been folded");
    packet.extend(datagram(from_port, to_port, if checksum == 0 { 0xffff } else { checksum }));
    packet
}

fn datagram(from_port: u16, to_port: u16, checksum: u16) -> Vec<u8> {
    let header = [from_port, to_port, LENGTH, checksum].into_iter().flat_map(u16::to_be_bytes);
    header.chain(*PAYLOAD).collect()
}
