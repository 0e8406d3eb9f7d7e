//! Hears of connections that end.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::{CT_DELETE, CTA_STATUS, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, FAMILY_HEADER, TRANSLATED, parse_tuple};
use crate::conntrack::ended::{Ended, Traffic};
use crate::netlink::{Bus, Socket, asynchronous, attributes, messages};

/// `NFNLGRP_CONNTRACK_DESTROY` of include/uapi/linux/netfilter/nfnetlink_compat.h, as a bit.
const GROUP: u32 = 1 << 2;
/// Room for what waits to be read: some 80,000 connections that end at once. The kernel takes it only as it is needed.
const RECEIVE_QUEUE: usize = 64 * 1024 * 1024;
/// So many pieces are read before anybody else has a turn.
const PIECES: usize = 1_000;

const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_COUNTERS_PACKETS: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;

/// A socket that the kernel tells of every connection that ends in the network namespace, while it is open.
#[derive(Debug)]
pub struct Ends {
    socket: Socket,
}

impl Ends {
    /// Begins to listen. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// There is no socket to be had.
    pub fn open() -> io::Result<AsyncFd<Ends>> {
        Ends::with_room(RECEIVE_QUEUE)
    }

    /// The same with room for so many bytes that wait to be read, which the kernel doubles (net.core.rmem_max may be less).
    ///
    /// # Errors
    /// There is no socket to be had.
    pub(crate) fn with_room(bytes: usize) -> io::Result<AsyncFd<Ends>> {
        let socket = Socket::subscribe(Bus::Netfilter, GROUP)?;
        socket.raise_receive_queue(bytes);
        asynchronous(Ends { socket })
    }

    /// Gives the translated connections among those that have ended since the last time to `each`. Says whether some have been
    /// lost.
    ///
    /// # Errors
    /// `WouldBlock` when all have been read; anything else is the end of this socket.
    pub fn read(&mut self, mut each: impl FnMut(Ended)) -> io::Result<bool> {
        for _ in 0..PIECES {
            let bytes = match self.socket.receive() {
                Ok(bytes) => bytes,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => continue,
                    Some(Errno::ENOBUFS) => return Ok(true),
                    _ => return Err(error),
                },
            };
            for message in messages(bytes).map_while(Result::ok).filter(|message| message.kind == CT_DELETE) {
                parse(message.payload).into_iter().for_each(&mut each);
            }
        }
        Ok(false)
    }
}

impl AsRawFd for Ends {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Reads what a message says of a connection; `None` for one that was not translated, or of which a part is missing.
fn parse(payload: &[u8]) -> Option<Ended> {
    let (mut to, mut from, mut status) = (None, None, 0);
    let (mut original, mut reply) = (Traffic::default(), Traffic::default());
    for (kind, value) in attributes(payload.get(FAMILY_HEADER..)?) {
        match kind {
            CTA_TUPLE_ORIG => to = parse_tuple(value),
            CTA_TUPLE_REPLY => from = parse_tuple(value),
            CTA_STATUS => status = value.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)),
            CTA_COUNTERS_ORIG => original = traffic(value),
            CTA_COUNTERS_REPLY => reply = traffic(value),
            _ => {}
        }
    }
    let ((protocol, to, _), (_, from, _)) = (to?, from?);
    let is_translated = status & TRANSLATED != 0;
    is_translated.then_some(Ended { protocol, to: to.destination, endpoint: from.source, original, reply })
}

fn traffic(value: &[u8]) -> Traffic {
    let mut traffic = Traffic::default();
    for (kind, value) in attributes(value) {
        let number = value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        match kind {
            CTA_COUNTERS_PACKETS => traffic.packets = number,
            CTA_COUNTERS_BYTES => traffic.bytes = number,
            _ => {}
        }
    }
    traffic
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::conntrack::{Conntrack, Flows as _};
    use crate::model::Family;
    use crate::testing::in_network_namespace_async;
    use crate::testing::netns::{ip, nft, set_sysctl};

    /// What a flow of one packet costs from its beginning to its end, of the node to itself and translated, with nothing, with
    /// the kernel counting, and with somebody who hears of its end, each by turns. Under `kernel-vm --icount` and the like the
    /// nanoseconds are instructions.
    #[test]
    #[ignore = "a measurement"]
    fn cost() {
        const FLOWS: u16 = 5_000;
        const WAYS: [&str; 3] = ["plain", "counted", "counted and heard of"];
        const RULE: &str = "add table ip t
add chain ip t c { type nat hook output priority -100; }
add rule ip t c ip daddr 10.0.0.1 dnat to 127.0.0.1
";
        in_network_namespace_async(async || {
            ip("link set lo up");
            ip("route add 10.0.0.0/8 dev lo");
            nft(&["-f", "-"], RULE);
            let _sink = UdpSocket::bind("127.0.0.1:53").expect("a socket");
            let mut conntrack = Conntrack::open().expect("a socket");
            let mut sums = [[0.0; 2]; 3];
            for _ in 0..4 {
                for (way, sums) in sums.iter_mut().enumerate() {
                    set_sysctl("netfilter/nf_conntrack_acct", if way == 0 { "0" } else { "1" }).expect("it can be set");
                    let mut ends = (way == 2).then(|| Ends::open().expect("a socket"));
                    let begun = Instant::now();
                    for port in 0..FLOWS {
                        let socket = UdpSocket::bind(("127.0.0.1", 10_000 + port)).expect("a socket");
                        socket.send_to(b"?", "10.0.0.1:53").expect("there is a route");
                    }
                    let began = begun.elapsed();
                    let deleted = conntrack.delete_udp(Family::V4, &mut |_| true).expect("they can be deleted").deleted;
                    let ended = begun.elapsed() - began;
                    assert!(deleted >= usize::from(FLOWS), "{deleted}");
                    let begun = Instant::now();
                    let mut heard = 0;
                    if let Some(ends) = &mut ends {
                        while let Ok(lost) = ends.get_mut().read(|_| heard += 1) {
                            assert!(!lost);
                        }
                        assert!(heard >= usize::from(FLOWS), "{heard}");
                        println!("to read: {} ns", begun.elapsed().as_nanos() / u128::from(FLOWS));
                    }
                    for (sum, time) in sums.iter_mut().zip([began, ended]) {
                        *sum += time.as_nanos() as f64 / f64::from(FLOWS) / 4.0;
                    }
                }
            }
            for (way, [began, ended]) in WAYS.iter().zip(sums) {
                println!("{way}: {began:.0} ns to begin, {ended:.0} ns to end");
            }
        });
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn anything_can_be_parsed(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}
