//! Who sends a packet to whom, from the beginnings of its headers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::Protocol;

/// Bits of an IPv4 header's fragment field that are the offset (RFC 791).
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Source and destination of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    /// The transport protocol; `None` if it is another than those of Services, or behind an extension header of IPv6, of
    /// which the kernel shows the first 40 bytes only.
    pub(crate) protocol: Option<Protocol>,
    /// Who sends it.
    pub(crate) source: SocketAddr,
    /// To whom.
    pub(crate) destination: SocketAddr,
}

impl Flow {
    /// Reads the beginnings of a network and a transport header; `None` if they are none of IPv4 or IPv6 with ports.
    pub(crate) fn read(network: &[u8], transport: &[u8]) -> Option<Flow> {
        let (protocol, source, destination): (u8, IpAddr, IpAddr) = match network.first()? >> 4 {
            4 => {
                let fragment = u16::from_be_bytes(*network.get(6..)?.first_chunk()?);
                if fragment & FRAGMENT_OFFSET != 0 {
                    return None;
                }
                let address = |at: usize| Some(Ipv4Addr::from(*network.get(at..)?.first_chunk::<4>()?).into());
                (*network.get(9)?, address(12)?, address(16)?)
            }
            6 => {
                let address = |at: usize| Some(Ipv6Addr::from(*network.get(at..)?.first_chunk::<16>()?).into());
                (*network.get(6)?, address(8)?, address(24)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(*transport.get(at..)?.first_chunk()?));
        Some(Flow {
            protocol: Protocol::from_number(protocol),
            source: SocketAddr::new(source, port(0)?),
            destination: SocketAddr::new(destination, port(2)?),
        })
    }

    /// Whether both go from and to the same, as far as it is known of both.
    pub(crate) fn is(&self, other: &Flow) -> bool {
        let same = self.protocol == other.protocol || self.protocol.is_none() || other.protocol.is_none();
        same && self.source == other.source && self.destination == other.destination
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.map_or("?", Protocol::name);
        write!(f, "{} -> {} {protocol}", self.source, self.destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_both_families_are_read() {
        let mut v4 = [0; 20];
        (v4[0], v4[6], v4[9]) = (0x45, 0x40, 6);
        v4[12..].copy_from_slice(&[10, 1, 0, 1, 10, 96, 0, 80]);
        let transport = [0x9d, 0x9c, 0, 80, 1, 2];
        let flow = Flow::read(&v4, &transport).expect("a packet");
        assert_eq!(flow.to_string(), "10.1.0.1:40348 -> 10.96.0.80:80 tcp");
        let mut v6 = [0; 40];
        (v6[0], v6[6], v6[23], v6[39]) = (0x60, 17, 1, 2);
        let flow = Flow::read(&v6, &transport).expect("a packet");
        assert_eq!(flow.to_string(), "[::1]:40348 -> [::2]:80 udp");

        // Behind an extension header: what is known is not another protocol.
        v6[6] = 44;
        let unknown = Flow::read(&v6, &transport).expect("a packet");
        assert!(unknown.protocol.is_none() && unknown.is(&flow) && flow.is(&unknown));
        assert_eq!(unknown.to_string(), "[::1]:40348 -> [::2]:80 ?");

        // A later fragment begins with anything.
        v4[7] = 1;
        assert_eq!(Flow::read(&v4, &transport), None);
        for (network, transport) in
            [(&v6[..39], &transport[..]), (&v6, &transport[..3]), (&[], &[]), (&[0x70; 40], &[])]
        {
            assert_eq!(Flow::read(network, transport), None, "{network:?}");
        }
    }
}
