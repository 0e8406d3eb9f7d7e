//! Follows the node's addresses over rtnetlink (rtnetlink(7), include/uapi/linux/if_addr.h).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::libc;
use tokio::sync::watch::Sender;

use crate::netlink::{Builder, Bus, DUMP, Dump, Message, REQUEST, Socket, asynchronous, attributes};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
/// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x10 | 0x100;
/// Length of `struct ifaddrmsg`.
const FAMILY_HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// How long changes are gathered before the addresses are listed again. On a busy node every pod that comes or goes adds
/// or removes an address.
const GATHER: Duration = Duration::from_millis(100);

/// How often a listing that the kernel interrupted is begun again.
const ATTEMPTS: usize = 5;

/// Lists every address on any interface of this network namespace, loopback and link-local ones included.
pub fn list() -> io::Result<BTreeSet<IpAddr>> {
    let mut socket = Socket::open(Bus::Route)?;
    list_with(&mut socket)
}

/// Keeps `addresses` at what [`list`] would give, with one send for each real change (several within 100 ms are one).
///
/// A notification says only that there is something to look at: the addresses are then listed again. So it does not
/// matter whether notifications were lost, and one address on two interfaces needs no counting.
///
/// Returns when nobody listens any more. Errors: the sockets failed; it can be called again.
pub async fn watch(addresses: Sender<BTreeSet<IpAddr>>) -> io::Result<()> {
    // Subscribed before the first listing, so that nothing falls between the two.
    let mut notifications = asynchronous(Socket::subscribe(Bus::Route, GROUPS)?)?;
    let mut lister = Socket::open(Bus::Route)?;
    loop {
        // The kernel may take a lock that others hold for long (rtnl_mutex).
        let listing = tokio::task::spawn_blocking(move || {
            let listed = list_with(&mut lister);
            (lister, listed)
        });
        let (socket, listed) = listing.await.map_err(io::Error::other)?;
        lister = socket;
        let listed = listed?;
        addresses.send_if_modified(|known| {
            let changed = *known != listed;
            if changed {
                *known = listed;
            }
            changed
        });
        loop {
            tokio::select! {
                () = addresses.closed() => return Ok(()),
                ready = notifications.readable_mut() => ready?.clear_ready(),
            }
            tokio::time::sleep(GATHER).await;
            if notifications.get_mut().drain()? {
                break;
            }
        }
    }
}

fn list_with(socket: &mut Socket) -> io::Result<BTreeSet<IpAddr>> {
    let mut attempts = 0;
    loop {
        let sequence = socket.next_sequence();
        // All zero: of every family, on every interface.
        let request = Builder::message(RTM_GETADDR, REQUEST | DUMP, sequence, &[0; FAMILY_HEADER]).finish();
        let mut found = BTreeSet::new();
        let ended = socket.dump(&request, |message| found.extend(parse(&message)))?;
        attempts += 1;
        if ended == Dump::Complete || attempts == ATTEMPTS {
            return Ok(found);
        }
    }
}

/// The address in an `RTM_NEWADDR` message, if it has one of IPv4 or IPv6.
fn parse(message: &Message<'_>) -> Option<IpAddr> {
    if message.kind != RTM_NEWADDR {
        return None;
    }
    let family = i32::from(*message.payload.first()?);
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(message.payload.get(FAMILY_HEADER..)?) {
        let value = || match family {
            libc::AF_INET => <[u8; 4]>::try_from(value).map(IpAddr::from).ok(),
            libc::AF_INET6 => <[u8; 16]>::try_from(value).map(IpAddr::from).ok(),
            _ => None,
        };
        match kind {
            IFA_LOCAL => local = value(),
            IFA_ADDRESS => address = value(),
            _ => {}
        }
    }
    // With a point-to-point link IFA_ADDRESS is the peer's; IPv6 has no IFA_LOCAL otherwise.
    local.or(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::messages;
    use crate::testing::{in_network_namespace, in_network_namespace_async, run};

    const DEADLINE: Duration = Duration::from_secs(20);

    fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn every_kind_of_address_is_listed() {
        in_network_namespace(|| {
            run(&["ip", "link", "add", "d0", "type", "veth", "peer", "d1"]);
            run(&["ip", "link", "set", "d0", "addrgenmode", "none", "up"]);
            run(&["ip", "addr", "add", "192.0.2.1/24", "dev", "d0"]);
            run(&["ip", "addr", "add", "192.0.2.2/24", "dev", "d0"]);
            run(&["ip", "addr", "add", "198.51.100.1", "peer", "198.51.100.9", "dev", "d0"]);
            run(&["ip", "addr", "add", "2001:db8::1/64", "dev", "d0"]);
            run(&["ip", "addr", "add", "2001:db8:1::1", "peer", "2001:db8:1::9", "dev", "d0"]);
            run(&["ip", "addr", "add", "fe80::1/64", "dev", "d0"]);
            let expected = [
                "127.0.0.1",
                "::1",
                "192.0.2.1",
                "192.0.2.2",
                "198.51.100.1",
                "2001:db8::1",
                "2001:db8:1::1",
                "fe80::1",
            ];
            assert_eq!(list().expect("a listing"), set(&expected));
        });
    }

    #[test]
    fn many_addresses_are_listed_completely() {
        in_network_namespace(|| {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let lines = (0..3000).map(|n| format!("addr add 10.1.{}.{}/32 dev lo\n", n / 250, n % 250));
            std::fs::write(file.path(), lines.collect::<String>()).expect("writable");
            run(&["ip", "-batch", file.path().to_str().expect("a plain path")]);
            assert_eq!(list().expect("a listing").len(), 3002);
        });
    }

    #[test]
    fn changes_are_followed() {
        in_network_namespace_async(async || {
            let (sender, mut addresses) = tokio::sync::watch::channel(BTreeSet::new());
            let watching = tokio::spawn(watch(sender));
            let mut expect = async |texts: &[&str]| {
                let expected = set(texts);
                let reached = tokio::time::timeout(DEADLINE, addresses.wait_for(|known| *known == expected)).await;
                assert!(reached.is_ok_and(|known| known.is_ok()), "{expected:?}");
            };
            expect(&["127.0.0.1", "::1"]).await;
            run(&["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"]);
            expect(&["127.0.0.1", "::1", "192.0.2.1"]).await;
            run(&["ip", "addr", "add", "2001:db8::1/128", "dev", "lo"]);
            expect(&["127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"]).await;
            run(&["ip", "addr", "del", "192.0.2.1/32", "dev", "lo"]);
            expect(&["127.0.0.1", "::1", "2001:db8::1"]).await;
            // The same address twice: it is there until both are gone.
            run(&["ip", "link", "add", "d0", "type", "veth", "peer", "d1"]);
            run(&["ip", "link", "set", "d0", "addrgenmode", "none", "up"]);
            run(&["ip", "addr", "add", "192.0.2.2/24", "dev", "d0"]);
            run(&["ip", "addr", "add", "192.0.2.2/32", "dev", "lo"]);
            run(&["ip", "addr", "add", "192.0.2.3/32", "dev", "d0"]);
            expect(&["127.0.0.1", "::1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]).await;
            run(&["ip", "link", "del", "d0"]);
            expect(&["127.0.0.1", "::1", "2001:db8::1", "192.0.2.2"]).await;

            drop(addresses);
            let ended = tokio::time::timeout(DEADLINE, watching).await.expect("it ends with its listeners");
            assert!(matches!(ended, Ok(Ok(()))));
        });
    }

    #[test]
    fn what_changes_nothing_is_not_sent() {
        in_network_namespace_async(async || {
            let (sender, mut addresses) = tokio::sync::watch::channel(BTreeSet::new());
            let watching = tokio::spawn(watch(sender));
            addresses.wait_for(|known| known.len() == 2).await.expect("it watches");
            addresses.mark_unchanged();
            // Two notifications, no change. Waiting too short a time here could only hide a mistake, never make one.
            run(&["ip", "addr", "add", "127.0.0.1/32", "dev", "lo"]);
            run(&["ip", "addr", "del", "127.0.0.1/32", "dev", "lo"]);
            tokio::time::sleep(GATHER * 3).await;
            assert!(!addresses.has_changed().expect("it watches"));
            run(&["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"]);
            tokio::time::timeout(DEADLINE, addresses.changed()).await.expect("in time").expect("it watches");
            assert_eq!(addresses.borrow().len(), 3);
            watching.abort();
        });
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse(&Message { kind: RTM_NEWADDR, flags: 0, sequence: 0, port: 0, payload: &bytes });
            let _ = messages(&bytes).flatten().filter_map(|message| parse(&message)).count();
        }
    }
}
