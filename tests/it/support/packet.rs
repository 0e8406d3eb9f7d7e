//! First packets of connections, and how they are told again wherever they come out.
//!
//! Each packet carries a 32 bit marker that survives address translation and is quoted by whoever refuses the packet:
//! the sequence number of a TCP SYN, the last bytes of a UDP datagram, the initiate tag of an SCTP INIT.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Deserialize;

/// The transport protocols that a Service port can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub(crate) const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The IANA protocol number.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    fn from_number(number: u8) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// ICMP for IPv4, by its IANA protocol number.
pub(crate) const ICMP: u8 = 1;
/// ICMP for IPv6, by its IANA protocol number.
pub(crate) const ICMPV6: u8 = 58;

const UDP_GREETING: &[u8; 8] = b"marker: ";
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const SCTP_INIT: u8 = 1;

/// The first packet of a connection. Both addresses are of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstPacket {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: Protocol,
    /// Not 0, which SCTP forbids as an initiate tag.
    pub(crate) marker: u32,
}

impl FirstPacket {
    /// The packet from the first byte of the IP header, all checksums filled in.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let payload = self.transport();
        let length = u16::try_from(payload.len()).expect("a first packet is short");
        let mut packet = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0];
                header.extend((20 + length).to_be_bytes());
                header.extend(&self.marker.to_be_bytes()[2..]); // identification
                header.extend([0, 0, 64, self.protocol.number(), 0, 0]); // no fragment, TTL, checksum
                header.extend(source.octets());
                header.extend(destination.octets());
                let checksum = internet_checksum(&header);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([self.protocol.number(), 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => panic!("{self:?}: a packet has two addresses of one family"),
        };
        packet.extend(payload);
        packet
    }

    fn transport(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        match self.protocol {
            Protocol::Tcp => {
                bytes.extend(self.marker.to_be_bytes());
                bytes.extend([0; 4]); // acknowledges nothing
                bytes.extend([6 << 4, TCP_SYN]); // 24 bytes of header
                bytes.extend(64240_u16.to_be_bytes()); // window
                bytes.extend([0; 4]); // checksum, urgent pointer
                bytes.extend([2, 4, 5, 0xb4]); // maximum segment size 1460
                let checksum = self.transport_checksum(&bytes);
                bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
            }
            Protocol::Udp => {
                bytes.extend(20_u16.to_be_bytes());
                bytes.extend([0; 2]);
                bytes.extend(UDP_GREETING);
                bytes.extend(self.marker.to_be_bytes());
                // 0 means "no checksum" (RFC 768), so it is sent as its other representation.
                let checksum = match self.transport_checksum(&bytes) {
                    0 => 0xffff,
                    checksum => checksum,
                };
                bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
            }
            Protocol::Sctp => {
                bytes.extend([0; 8]); // verification tag, checksum
                bytes.extend([SCTP_INIT, 0, 0, 20]);
                bytes.extend(self.marker.to_be_bytes()); // initiate tag
                bytes.extend(106_496_u32.to_be_bytes()); // receive window
                bytes.extend([0, 10, 0, 10]); // streams out and in
                bytes.extend(self.marker.to_be_bytes()); // initial sequence number
                let checksum = crc32c(&bytes);
                bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
            }
        }
        bytes
    }

    fn transport_checksum(self, transport: &[u8]) -> u16 {
        let mut bytes = Vec::with_capacity(40 + transport.len());
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            (source, destination) => {
                for address in [source, destination] {
                    if let IpAddr::V6(address) = address {
                        bytes.extend(address.octets());
                    }
                }
            }
        }
        // The pseudo headers of both families sum up to the same: addresses, length, protocol.
        let length = u32::try_from(transport.len()).expect("a first packet is short");
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0, 0, self.protocol.number()]);
        bytes.extend(transport);
        internet_checksum(&bytes)
    }
}

/// The checksum of IP, TCP and UDP (RFC 1071): the complement of the one's complement sum of 16 bit words.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("the carries are folded in")
}

/// The checksum of SCTP (RFC 9260, appendix A).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// How a packet was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    TcpReset,
    SctpAbort,
    PortUnreachable,
    Prohibited,
    /// Another ICMP error.
    Icmp {
        kind: u8,
        code: u8,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::TcpReset => f.write_str("tcp reset"),
            Refusal::SctpAbort => f.write_str("sctp abort"),
            Refusal::PortUnreachable => f.write_str("icmp port unreachable"),
            Refusal::Prohibited => f.write_str("icmp prohibited"),
            Refusal::Icmp { kind, code } => write!(f, "icmp type {kind} code {code}"),
        }
    }
}

/// What a packet that came out somewhere says about a first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sighting {
    /// It is the first packet itself, with the addresses it has by now.
    First { marker: u32, source: SocketAddr, destination: SocketAddr },
    /// It refuses the first packet.
    Refused { marker: u32, how: Refusal },
}

impl Sighting {
    /// The marker of the first packet it is about.
    pub(crate) fn marker(&self) -> u32 {
        match self {
            Sighting::First { marker, .. } | Sighting::Refused { marker, .. } => *marker,
        }
    }

    /// What an IP packet says; `None` for everything that is not about a first packet.
    pub(crate) fn of_packet(packet: &[u8]) -> Option<Sighting> {
        let ip = Ip::parse(packet)?;
        Sighting::of_transport(ip.source, ip.destination, ip.protocol, ip.payload)
    }

    /// What the payload of an IP packet says, for sockets that deliver the addresses apart.
    pub(crate) fn of_transport(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Option<Sighting> {
        match (protocol, source) {
            (ICMP, IpAddr::V4(_)) | (ICMPV6, IpAddr::V6(_)) => {
                let how = icmp_refusal(source.is_ipv4(), *payload.first()?, *payload.get(1)?)?;
                let quoted = Ip::parse(payload.get(8..)?)?;
                match Mark::parse(Protocol::from_number(quoted.protocol)?, quoted.payload)? {
                    Mark::First(marker) => Some(Sighting::Refused { marker, how }),
                    Mark::Refused(..) => None,
                }
            }
            _ => match Mark::parse(Protocol::from_number(protocol)?, payload)? {
                Mark::First(marker) => Some(Sighting::First {
                    marker,
                    source: SocketAddr::new(source, u16_at(payload, 0)?),
                    destination: SocketAddr::new(destination, u16_at(payload, 2)?),
                }),
                Mark::Refused(marker, how) => Some(Sighting::Refused { marker, how }),
            },
        }
    }
}

/// ICMP types and codes: RFC 792 and RFC 1812 for IPv4, RFC 4443 for IPv6.
fn icmp_refusal(v4: bool, kind: u8, code: u8) -> Option<Refusal> {
    match (v4, kind, code) {
        (true, 3, 3) | (false, 1, 4) => Some(Refusal::PortUnreachable),
        (true, 3, 9 | 10 | 13) | (false, 1, 1) => Some(Refusal::Prohibited),
        (true, 3 | 11, _) | (false, 1 | 3, _) => Some(Refusal::Icmp { kind, code }),
        _ => None,
    }
}

/// A marker in a transport header.
enum Mark {
    First(u32),
    Refused(u32, Refusal),
}

impl Mark {
    /// `transport` may be cut off where an ICMP error stops to quote.
    fn parse(protocol: Protocol, transport: &[u8]) -> Option<Mark> {
        match protocol {
            Protocol::Tcp => match transport.get(13) {
                Some(flags) if flags & TCP_RST != 0 => {
                    Some(Mark::Refused(u32_at(transport, 8)?.wrapping_sub(1), Refusal::TcpReset))
                }
                _ => Some(Mark::First(u32_at(transport, 4)?)),
            },
            Protocol::Udp => Some(Mark::First(u32_at(transport, 16)?)),
            Protocol::Sctp => match u32_at(transport, 4)? {
                0 => Some(Mark::First(u32_at(transport, 16)?)),
                tag => Some(Mark::Refused(tag, Refusal::SctpAbort)),
            },
        }
    }
}

/// An IP packet without options or extension headers.
pub(crate) struct Ip<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) payload: &'a [u8],
}

impl Ip<'_> {
    pub(crate) fn parse(packet: &[u8]) -> Option<Ip<'_>> {
        match packet.first()? >> 4 {
            4 => Some(Ip {
                source: Ipv4Addr::from(*array_at(packet, 12)?).into(),
                destination: Ipv4Addr::from(*array_at(packet, 16)?).into(),
                protocol: *packet.get(9)?,
                payload: packet.get(usize::from(packet[0] & 15) * 4..)?,
            }),
            6 => Some(Ip {
                source: Ipv6Addr::from(*array_at(packet, 8)?).into(),
                destination: Ipv6Addr::from(*array_at(packet, 24)?).into(),
                protocol: *packet.get(6)?,
                payload: packet.get(40..)?,
            }),
            _ => None,
        }
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).copied().map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).copied().map(u32::from_be_bytes)
}
