//! The sockets by which a test sees what is delivered to the node, and sends in the node's own name.

use std::io::{self, ErrorKind, IoSliceMut, Read as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, SockFilter, Socket, Type};

use super::packet::{ICMP, ICMPV6, Protocol, Sighting};

/// Raw sockets for both families. They are of the network namespace whose thread made them.
pub(crate) struct NodeSockets {
    received: Vec<Received>,
    out_v4: Socket,
    out_v6: Socket,
    buffer: Vec<u8>,
}

struct Received {
    socket: Socket,
    v4: bool,
    protocol: u8,
}

/// `IPPROTO_RAW`: the sender writes the IP header (raw(7), also for IPv6).
const WITH_HEADER: i32 = 255;
/// Room for many packets while the test gets no processor.
const RECEIVE_BUFFER: usize = 4 << 20;

impl NodeSockets {
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`.
    pub(crate) fn open() -> io::Result<NodeSockets> {
        let mut received = Vec::new();
        for (v4, icmp) in [(true, ICMP), (false, ICMPV6)] {
            for protocol in Protocol::ALL.map(Protocol::number).into_iter().chain([icmp]) {
                let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
                let socket = Socket::new(domain, Type::RAW, Some(i32::from(protocol).into()))?;
                socket.set_nonblocking(true)?;
                socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
                if !v4 {
                    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                }
                if protocol == Protocol::Tcp.number() {
                    socket.attach_filter(&beginnings_and_resets(v4))?;
                }
                received.push(Received { socket, v4, protocol });
            }
        }
        let out = |domain| {
            let socket = Socket::new(domain, Type::RAW, Some(WITH_HEADER.into()))?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        Ok(NodeSockets { received, out_v4: out(Domain::IPV4)?, out_v6: out(Domain::IPV6)?, buffer: vec![0; 1 << 16] })
    }

    /// Sends an IP packet to `destination` in the node's own name. That the node's rules or routes refuse it is a fate
    /// of the packet, not an error.
    pub(crate) fn send(&self, packet: &[u8], destination: IpAddr) -> io::Result<()> {
        let socket = if destination.is_ipv4() { &self.out_v4 } else { &self.out_v6 };
        match socket.send_to(packet, &SocketAddr::new(destination, 0).into()) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EPERM
                | Errno::EACCES
                | Errno::EINVAL
                | Errno::ECONNREFUSED
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Hands what has been delivered to the node since the last call to `see`.
    pub(crate) fn drain(&mut self, mut see: impl FnMut(Sighting)) -> io::Result<()> {
        for received in &mut self.received {
            loop {
                let sighting = if received.v4 {
                    received.socket.read(&mut self.buffer).map(|length| Sighting::of_packet(&self.buffer[..length]))
                } else {
                    read_v6(&received.socket, received.protocol, &mut self.buffer)
                };
                match sighting {
                    Ok(sighting) => sighting.into_iter().for_each(&mut see),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// A raw IPv6 socket never delivers the IP header (RFC 3542, section 3): the addresses come apart.
fn read_v6(socket: &Socket, protocol: u8, buffer: &mut [u8]) -> io::Result<Option<Sighting>> {
    let mut control = nix::cmsg_space!(nix::libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let destination = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let (source, length) = (message.address.map(|address| address.ip()), message.bytes);
    let (Some(source), Some(destination)) = (source, destination) else {
        return Err(io::Error::other("a raw IPv6 packet came without its addresses"));
    };
    Ok(Sighting::of_transport(source.into(), destination.into(), protocol, &buffer[..length]))
}

/// Lets only TCP segments through that begin or reset a connection, so that a proxy's own connections (to an API
/// server in the same namespace) do not flood the socket. In classic BPF; the bytes begin with the IP header for IPv4
/// and with the TCP header for IPv6.
fn beginnings_and_resets(v4: bool) -> Vec<SockFilter> {
    const FLAGS_AT: u32 = 13;
    let mut program = if v4 {
        vec![
            SockFilter::new(0xb1, 0, 0, 0),        // x = length of the IP header
            SockFilter::new(0x50, 0, 0, FLAGS_AT), // a = byte at x + 13
        ]
    } else {
        vec![SockFilter::new(0x30, 0, 0, FLAGS_AT)] // a = byte at 13
    };
    program.extend([
        SockFilter::new(0x45, 2, 0, 0x04), // RST: take it
        SockFilter::new(0x54, 0, 0, 0x12), // a = SYN and ACK
        SockFilter::new(0x15, 0, 1, 0x02), // SYN alone: take it
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ]);
    program
}
