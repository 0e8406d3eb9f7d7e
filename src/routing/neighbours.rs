//! Whether a neighbour is known to answer, as the kernel has it (rtnetlink(7), include/uapi/linux/neighbour.h).

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::netlink::{ACK, Builder, Bus, REQUEST, Socket, u16_at};

const RTM_GETNEIGH: u16 = 30;
/// Length of `struct ndmsg`; family, index and state are at these bytes.
const HEADER: usize = 12;
const INDEX: usize = 4;
const STATE: usize = 8;
const NDA_DST: u16 = 1;
/// `NUD_*`.
const INCOMPLETE: u16 = 0x01;
const FAILED: u16 = 0x20;

/// What is known of a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// Nobody has asked for it lately.
    NotAsked,
    /// It is being asked for and has not answered.
    Waiting,
    /// It has not answered: packets to it are refused, or lost.
    Failed,
    /// Its address is known.
    Known,
}

/// What is known of an address behind the interface of this index. It is not asked for.
///
/// # Errors
/// The kernel does not say; it can be asked for a single one since Linux 5.0.
pub fn neighbour(address: IpAddr, device: u32) -> io::Result<Neighbour> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let (family, bytes) = match address {
        IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
    };
    let mut header = [0; HEADER];
    header[0] = family;
    header[INDEX..INDEX + 4].copy_from_slice(&device.to_ne_bytes());
    let mut socket = Socket::open(Bus::Route)?;
    let request = Builder::message(RTM_GETNEIGH, REQUEST | ACK, socket.next_sequence(), &header)
        .attribute(NDA_DST, &bytes)
        .finish();
    let mut found = None;
    match socket.dump(&request, |message| found = found.or(read(message.payload))) {
        Ok(_) => found.ok_or_else(|| io::Error::other("no answer about a neighbour")),
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(Neighbour::NotAsked),
        Err(error) => Err(error),
    }
}

fn read(payload: &[u8]) -> Option<Neighbour> {
    Some(match u16_at(payload, STATE)? {
        0 => Neighbour::NotAsked,
        state if state & FAILED != 0 => Neighbour::Failed,
        state if state & INCOMPLETE != 0 => Neighbour::Waiting,
        _ => Neighbour::Known,
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::net::if_::if_nametoindex;

    use super::*;
    use crate::testing::in_network_namespace;
    use crate::testing::netns::ip;

    #[test]
    fn who_does_not_answer_is_found() {
        in_network_namespace(|| {
            ip("link add va type veth peer name vb");
            ip("link set vb up");
            ip("link set va up");
            ip("addr add 192.0.2.1/24 dev va");
            ip("addr add 2001:db8::1/64 dev va nodad");
            ip("neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev va");
            ip("neigh add 2001:db8::7 lladdr 02:00:00:00:00:07 dev va");
            let index = if_nametoindex("va").expect("it is there");
            let of = |address: &str| {
                neighbour(address.parse().expect("an address"), index).expect("the kernel can be asked")
            };
            assert_eq!([of("192.0.2.7"), of("2001:db8::7")], [Neighbour::Known; 2]);
            assert_eq!([of("192.0.2.9"), of("2001:db8::9")], [Neighbour::NotAsked; 2]);
            // Nobody is there.
            let socket = UdpSocket::bind("192.0.2.1:0").expect("a socket");
            socket.send_to(b"?", "192.0.2.9:9").expect("it is waited for");
            assert_eq!(of("192.0.2.9"), Neighbour::Waiting);
            let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while of("192.0.2.9") == Neighbour::Waiting && std::time::Instant::now() < end {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            assert_eq!(of("192.0.2.9"), Neighbour::Failed);
            assert!(neighbour("192.0.2.9".parse().expect("an address"), 4_000).is_err());
        });
    }

    #[test]
    fn short_answers_are_none() {
        assert_eq!(read(&[0; STATE + 1]), None);
        assert_eq!(read(&[0; HEADER]), Some(Neighbour::NotAsked));
    }
}
