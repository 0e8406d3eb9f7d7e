//! Follows the node's addresses over rtnetlink (rtnetlink(7), include/uapi/linux/if_addr.h).

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::net::IpAddr;
use std::sync::mpsc;
use std::time::Duration;

use nix::libc;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::sync::watch::Sender;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::netlink::{Builder, Bus, DUMP, Dump, Message, REQUEST, Retry, Socket, asynchronous, attributes};
use crate::threads;

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

/// How often in a row a list that was torn by changes is asked for again at once.
const TORN_AT_ONCE: u32 = 5;

/// Listening that has not failed for so long works. One that fails again and again at once fills no log.
const PROVEN: Duration = Duration::from_secs(10);

/// What one question for all addresses gave: a list, and whether it is complete.
type Listed = io::Result<(BTreeSet<IpAddr>, Dump)>;

/// Follows the addresses on any interface of this network namespace, loopback and link-local ones included.
///
/// A notification says only that there is something to look at: the addresses are then listed again. So it does not
/// matter whether notifications were lost, and one address on two interfaces needs no counting.
///
/// What fails for the moment (rtnetlink is locked for longer than there is patience, the kernel has no memory, a list
/// is torn by changes again and again) is tried again with growing pauses, for ever. It is logged when that begins and
/// when it is over, and until then what is known stays.
pub struct Watch {
    notifications: AsyncFd<Socket>,
    /// Since when these are listened to.
    since: Instant,
    listening: Retry,
    lister: Lister,
    attempts: Attempts,
}

impl Watch {
    /// Begins to listen in the network namespace of this thread.
    ///
    /// # Errors
    /// No socket, or no thread, can be had.
    pub fn new() -> io::Result<Watch> {
        let mut socket = Some(Socket::open(Bus::Route)?);
        Watch::with(move || {
            let mut open = match socket.take() {
                Some(open) => open,
                None => Socket::open(Bus::Route)?,
            };
            let listed = list(&mut open)?;
            // One that failed may have more to say about it.
            socket = Some(open);
            Ok(listed)
        })
    }

    fn with(list: impl FnMut() -> Listed + Send + 'static) -> io::Result<Watch> {
        Ok(Watch {
            notifications: subscribe()?,
            since: Instant::now(),
            listening: Retry::default(),
            lister: Lister::spawn(list)?,
            attempts: Attempts::default(),
        })
    }

    /// All addresses, as soon as there is a complete list of them.
    pub async fn list(&mut self) -> BTreeSet<IpAddr> {
        loop {
            let outcome = self.lister.list().await;
            match self.attempts.judge(outcome) {
                Step::Take(addresses) => return addresses,
                Step::Again(pause) => sleep(pause).await,
            }
        }
    }

    /// Keeps `addresses` at what [`Watch::list`] would give, with one send for each real change (several within 100 ms
    /// are one). Returns when nobody listens any more.
    pub async fn follow(mut self, addresses: Sender<BTreeSet<IpAddr>>) {
        loop {
            let listed = tokio::select! {
                () = addresses.closed() => return,
                listed = self.list() => listed,
            };
            addresses.send_if_modified(|known| {
                let changed = *known != listed;
                if changed {
                    *known = listed;
                }
                changed
            });
            let noticed = tokio::select! {
                () = addresses.closed() => return,
                noticed = self.notice() => noticed,
            };
            if let Err(error) = noticed {
                tokio::select! {
                    () = addresses.closed() => return,
                    () = self.listen_again(error) => {}
                }
            }
        }
    }

    /// Waits until something has changed, or may have.
    async fn notice(&mut self) -> io::Result<()> {
        loop {
            self.notifications.readable_mut().await?.clear_ready();
            sleep(GATHER).await;
            if self.notifications.get_mut().drain()? {
                return Ok(());
            }
        }
    }

    /// The socket of the notifications has failed: makes another. Something may have changed meanwhile.
    async fn listen_again(&mut self, mut error: io::Error) {
        if self.since.elapsed() >= PROVEN {
            self.listening.works();
        }
        let mut said = false;
        loop {
            let again = self.listening.failed();
            if again.first {
                said = true;
                warn!("cannot listen to changes of the node's addresses: {error}; it is tried again");
            }
            sleep(again.pause).await;
            match subscribe() {
                Ok(socket) => break self.notifications = socket,
                Err(another) => error = another,
            }
        }
        self.since = Instant::now();
        if said {
            info!("changes of the node's addresses are listened to again");
        }
    }
}

fn subscribe() -> io::Result<AsyncFd<Socket>> {
    asynchronous(Socket::subscribe(Bus::Route, GROUPS)?)
}

/// A thread that asks for the addresses: the kernel may take a lock that others hold for long (`rtnl_mutex`). It ends
/// with this.
struct Lister {
    requests: mpsc::Sender<oneshot::Sender<Listed>>,
}

impl Lister {
    fn spawn(mut list: impl FnMut() -> Listed + Send + 'static) -> io::Result<Lister> {
        let (requests, inbox) = mpsc::channel::<oneshot::Sender<Listed>>();
        let body = move || inbox.into_iter().for_each(|answer| drop(answer.send(list())));
        threads::spawn("addresses", body)?;
        Ok(Lister { requests })
    }

    async fn list(&self) -> Listed {
        let (answer, listed) = oneshot::channel();
        self.requests.send(answer).map_err(io::Error::other)?;
        listed.await.map_err(io::Error::other)?
    }
}

/// What becomes of the answers to one question after the other.
#[derive(Debug, Default)]
struct Attempts {
    retry: Retry,
    /// How many lists in a row were torn.
    torn: u32,
}

/// What to do after an answer.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// These are the addresses.
    Take(BTreeSet<IpAddr>),
    /// Ask again after this time.
    Again(Duration),
}

impl Attempts {
    /// A torn list is never taken for the truth: an address that it lacks would lose its node ports.
    fn judge(&mut self, outcome: Listed) -> Step {
        match outcome {
            Ok((addresses, Dump::Complete)) => {
                self.torn = 0;
                if self.retry.works() {
                    info!("the node's addresses are followed again");
                }
                Step::Take(addresses)
            }
            Ok((_, Dump::Interrupted)) => {
                self.torn += 1;
                if self.torn <= TORN_AT_ONCE {
                    return Step::Again(Duration::ZERO);
                }
                Step::Again(self.failed(&"they change faster than they can be listed"))
            }
            Err(error) => Step::Again(self.failed(&error)),
        }
    }

    /// How long to wait after a failure, which is said if it is the first.
    fn failed(&mut self, error: &impl Display) -> Duration {
        let again = self.retry.failed();
        if again.first {
            warn!("cannot follow the node's addresses: {error}; what is known of them stays, and it is tried again");
        }
        again.pause
    }
}

/// Asks once for every address.
fn list(socket: &mut Socket) -> Listed {
    let sequence = socket.next_sequence();
    // All zero: of every family, on every interface.
    let request = Builder::message(RTM_GETADDR, REQUEST | DUMP, sequence, &[0; FAMILY_HEADER]).finish();
    let mut found = BTreeSet::new();
    let ended = socket.dump(&request, |message| found.extend(parse(&message)))?;
    Ok((found, ended))
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::netlink::messages;
    use crate::testing::{in_network_namespace, in_network_namespace_async, run};

    const DEADLINE: Duration = Duration::from_secs(20);

    fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn listed() -> BTreeSet<IpAddr> {
        let (addresses, ended) = list(&mut Socket::open(Bus::Route).expect("a socket")).expect("a list");
        assert_eq!(ended, Dump::Complete);
        addresses
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
            assert_eq!(listed(), set(&expected));
        });
    }

    #[test]
    fn many_addresses_are_listed_completely() {
        in_network_namespace(|| {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let lines = (0..3000).map(|n| format!("addr add 10.1.{}.{}/32 dev lo\n", n / 250, n % 250));
            std::fs::write(file.path(), lines.collect::<String>()).expect("writable");
            run(&["ip", "-batch", file.path().to_str().expect("a plain path")]);
            assert_eq!(listed().len(), 3002);
        });
    }

    #[test]
    fn changes_are_followed() {
        in_network_namespace_async(async || {
            let (sender, mut addresses) = tokio::sync::watch::channel(BTreeSet::new());
            let watching = tokio::spawn(Watch::new().expect("sockets and a thread").follow(sender));
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
            ended.expect("it does not panic");
        });
    }

    #[test]
    fn what_changes_nothing_is_not_sent() {
        in_network_namespace_async(async || {
            let (sender, mut addresses) = tokio::sync::watch::channel(BTreeSet::new());
            let watching = tokio::spawn(Watch::new().expect("sockets and a thread").follow(sender));
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

    #[test]
    fn only_a_complete_list_is_believed() {
        let complete = |texts: &[&str]| Ok((set(texts), Dump::Complete));
        let torn = |texts: &[&str]| Ok((set(texts), Dump::Interrupted));
        let failed = |errno| Err(io::Error::from_raw_os_error(errno));
        let again = |milliseconds| Step::Again(Duration::from_millis(milliseconds));
        let mut attempts = Attempts::default();
        let mut judge = |outcome| attempts.judge(outcome);
        assert_eq!(judge(complete(&["192.0.2.1"])), Step::Take(set(&["192.0.2.1"])));
        // Nobody waits long for a list that was torn, if it happens a few times.
        for _ in 0..TORN_AT_ONCE {
            assert_eq!(judge(torn(&[])), again(0));
        }
        assert_eq!(judge(torn(&["192.0.2.1"])), again(100));
        assert_eq!(judge(torn(&[])), again(200));
        assert_eq!(judge(failed(libc::ENOBUFS)), again(400));
        assert_eq!(judge(complete(&[])), Step::Take(set(&[])));
        assert_eq!(judge(failed(libc::ETIMEDOUT)), again(100));
        assert_eq!(judge(failed(libc::ETIMEDOUT)), again(200));
        assert_eq!(judge(torn(&[])), again(0));
        assert_eq!(judge(complete(&["192.0.2.2"])), Step::Take(set(&["192.0.2.2"])));
        assert_eq!(judge(torn(&[])), again(0));
    }

    #[test]
    fn what_is_known_stays_until_there_is_a_complete_list() {
        in_network_namespace_async(async || {
            // The first list is good, then there are hiccups, then it is good again.
            let hiccups =
                [libc::ETIMEDOUT, libc::ENOBUFS].map(|errno| move || Err(io::Error::from_raw_os_error(errno)));
            let mut calls = 0;
            let mut socket = Socket::open(Bus::Route).expect("a socket");
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            let watch = Watch::with(move || {
                calls += 1;
                count.store(calls, Ordering::Relaxed);
                match calls {
                    2 => hiccups[0](),
                    3 => hiccups[1](),
                    4..=10 => Ok((BTreeSet::new(), Dump::Interrupted)),
                    _ => list(&mut socket),
                }
            });
            let (sender, mut addresses) = tokio::sync::watch::channel(BTreeSet::new());
            let watching = tokio::spawn(watch.expect("sockets and a thread").follow(sender));
            let mut seen = Vec::new();
            for wanted in [2, 3] {
                while addresses.borrow_and_update().len() != wanted {
                    let changed = tokio::time::timeout(DEADLINE, addresses.changed()).await;
                    changed.expect("in time").expect("it watches");
                    seen.push(addresses.borrow().len());
                }
                run(&["ip", "addr", "replace", "192.0.2.1/32", "dev", "lo"]);
            }
            assert_eq!(seen, [2, 3], "after {} questions", asked.load(Ordering::Relaxed));
            assert!(asked.load(Ordering::Relaxed) > 10);
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
