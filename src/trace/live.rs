//! A trace in the kernel: its tables, and the socket that hears of packets.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::decode::Step;
use super::limit;
use super::table::{self, PREFIX, Target, Wanted};
use crate::model::Family;
use crate::netlink::{Builder, Bus, DUMP, REQUEST, Socket, asynchronous, find, messages};

/// `NFNLGRP_NFTRACE`.
const GROUP: u32 = 9;
/// Room for messages: some 300 bytes each, of which a packet has as many as there are rules on its way.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;
/// How long a table outlives the time that it is made for, where nobody removes it.
const GRACE: Duration = Duration::from_secs(2);
/// `NETLINK_NETFILTER`.
const NETFILTER: &str = "12";
/// `NFT_MSG_GETTABLE`.
const GET_TABLE: u16 = 10 << 8 | 1;
/// `NFTA_TABLE_NAME`.
const TABLE_NAME: u16 = 1;
/// `NFTA_TABLE_OWNER`.
const TABLE_OWNER: u16 = 7;

/// What there is to trace in a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Targets {
    /// The family.
    pub(crate) family: Family,
    /// At least one.
    pub(crate) targets: Vec<Target>,
}

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Steps of packets; of others as well, where somebody else traces.
    Steps(Vec<Step>),
    /// There were more messages than fit into the socket's queue: some are lost.
    Lost,
}

/// A trace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The capability is missing.
    #[error("no permission to trace: run as root or with CAP_NET_ADMIN")]
    Permission,
    /// Something else.
    #[error("cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl TraceError {
    /// What it means that messages cannot be read.
    pub(crate) fn at_listening(source: io::Error) -> TraceError {
        TraceError::at("listen to the kernel")(source)
    }

    fn at(step: &'static str) -> impl Fn(io::Error) -> TraceError {
        move |source| match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => TraceError::Permission,
            _ => TraceError::Io { step, source },
        }
    }
}

/// Tables that have packets traced. They go when this goes: before Linux 5.12 not if the process is killed, but then they
/// trace nothing any more after their time, and the next trace removes them.
#[derive(Debug)]
pub(crate) struct Tracing {
    /// It owns the tables.
    socket: Socket,
    name: String,
    families: Vec<Family>,
}

impl Tracing {
    /// Makes the tables, which trace for about this time at most.
    pub(crate) fn start(all: &[Targets], from: Option<IpNet>, time: Duration) -> Result<Tracing, TraceError> {
        Tracing::make(all, from, time, true)
    }

    fn make(all: &[Targets], from: Option<IpNet>, time: Duration, owned: bool) -> Result<Tracing, TraceError> {
        let mut socket = Socket::open(Bus::Netfilter).map_err(TraceError::at("open a socket"))?;
        // The kernel gives no port to two sockets of a network namespace.
        let name = format!("{PREFIX}{}", socket.port());
        remove_stale(&mut socket).map_err(TraceError::at("remove the table of a trace that was killed"))?;
        let mut tracing = Tracing { socket, name, families: Vec::new() };
        for Targets { family, targets } in all {
            let time = time + GRACE;
            let mut wanted = Wanted { family: *family, targets, from, time, owned };
            let made = match tracing.commit(|name, first| table::make(name, &wanted, first)) {
                // What kernels say of flags that they do not know.
                Err(error)
                    if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) =>
                {
                    wanted.owned = false;
                    tracing.commit(|name, first| table::make(name, &wanted, first))
                }
                made => made,
            };
            made.map_err(TraceError::at("make the table of the trace"))?;
            tracing.families.push(*family);
        }
        Ok(tracing)
    }

    /// What its tables are called.
    pub(crate) fn table(&self) -> &str {
        &self.name
    }

    /// The families that have one.
    pub(crate) fn families(&self) -> &[Family] {
        &self.families
    }

    /// How many packets that open connections came, and were not let pass by the limit. Of a connection that is tried again
    /// there are several.
    pub(crate) fn over_limit(&mut self) -> Result<u64, TraceError> {
        let mut all = 0;
        for family in &self.families {
            let over = limit::over(&mut self.socket, &self.name, *family);
            all += over.map_err(TraceError::at("read how much the limit has kept from being traced"))?;
        }
        Ok(all)
    }

    fn commit(&mut self, batch: impl FnOnce(&str, u32) -> (Vec<u8>, u32)) -> io::Result<()> {
        commit(&mut self.socket, |first| batch(&self.name, first))
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        for family in std::mem::take(&mut self.families) {
            // What cannot be removed goes with the socket.
            let _ = self.commit(|name, first| table::remove(name, family, first));
        }
    }
}

fn commit(socket: &mut Socket, batch: impl FnOnce(u32) -> (Vec<u8>, u32)) -> io::Result<()> {
    let first = socket.next_sequence();
    let (bytes, last) = batch(first);
    socket.used_sequence(last);
    socket.execute_batch(&bytes, first..=last)
}

/// Removes tables of traces that nobody has any more: without an owner, and named for a socket that is not there.
fn remove_stale(socket: &mut Socket) -> io::Result<()> {
    for family in Family::ALL {
        let request =
            Builder::message(GET_TABLE, REQUEST | DUMP, socket.next_sequence(), &[table::number(family), 0, 0, 0]);
        let mut stale = Vec::new();
        socket.dump(&request.finish(), |message| {
            let attribute = |kind| find(message.attributes_after(4), kind);
            let name = attribute(TABLE_NAME).and_then(|name| name.text()).unwrap_or_default();
            if name.starts_with(PREFIX) && attribute(TABLE_OWNER).is_none() {
                stale.push(name.to_owned());
            }
        })?;
        let sockets =
            if stale.is_empty() { String::new() } else { fs::read_to_string("/proc/thread-self/net/netlink")? };
        let own = socket.port();
        for name in stale {
            let port = name.strip_prefix(PREFIX).and_then(|port| port.parse().ok());
            if port.is_none_or(|port| port == own || !has_socket(&sockets, port)) {
                match commit(socket, |first| table::remove(&name, family, first)) {
                    // Another trace was faster.
                    Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                    removed => removed?,
                }
            }
        }
    }
    Ok(())
}

/// Whether a text of `/proc/net/netlink` has a netfilter socket with this port: the second and the third column.
fn has_socket(sockets: &str, port: u32) -> bool {
    let port = port.to_string();
    sockets.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next() == Some(NETFILTER) && columns.next() == Some(&port)
    })
}

/// Hears of every packet that is traced in the network namespace.
#[derive(Debug)]
pub(crate) struct Ears(Socket);

impl Ears {
    /// Begins to listen.
    pub(crate) fn open() -> Result<Ears, TraceError> {
        let socket = Socket::subscribe(Bus::Netfilter, 1 << (GROUP - 1)).map_err(TraceError::at_listening)?;
        socket.raise_receive_queue(RECEIVE_QUEUE);
        Ok(Ears(socket))
    }

    /// The same, to be waited for in a tokio runtime.
    pub(crate) fn asynchronous(self) -> Result<AsyncFd<Ears>, TraceError> {
        asynchronous(self).map_err(TraceError::at_listening)
    }

    /// What has come since the last time; `None` if there is nothing more at the moment.
    pub(crate) fn read(&mut self) -> io::Result<Option<Heard>> {
        match self.0.receive() {
            Ok(bytes) => {
                let steps = messages(bytes).map_while(Result::ok).filter_map(|message| Step::read(&message));
                Ok(Some(Heard::Steps(steps.collect())))
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => Ok(None),
                Some(Errno::EINTR) => Ok(Some(Heard::Steps(Vec::new()))),
                Some(Errno::ENOBUFS) => Ok(Some(Heard::Lost)),
                _ => Err(error),
            },
        }
    }
}

impl AsFd for Ears {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Ears {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::testing::in_network_namespace;
    use crate::testing::netns::nft;

    fn targets(of: &[(Option<&str>, Option<u16>)], family: Family) -> Vec<Targets> {
        let target = |(address, port): &(Option<&str>, Option<u16>)| Target {
            address: address.map(|address| address.parse().expect("an address")),
            protocol: Protocol::Tcp,
            port: *port,
        };
        vec![Targets { family, targets: of.iter().map(target).collect() }]
    }

    #[test]
    fn the_table_is_what_nft_lists() {
        in_network_namespace(|| {
            for (family, address, from, name) in
                [(Family::V4, "10.96.0.80", "10.1.0.0/16", "ip"), (Family::V6, "fd00::80", "fd00:1::/64", "ip6")]
            {
                let wanted = targets(&[(Some(address), Some(80)), (Some(address), None), (None, Some(30080))], family);
                let from: IpNet = from.parse().expect("a range");
                let tracing = Tracing::start(&wanted, Some(from), Duration::from_secs(100)).expect("a table");
                let listed = nft(&["list", "table", name, tracing.table()], "");
                for line in [
                    format!("{name} daddr . meta l4proto . th dport @frontends goto traced"),
                    format!("{name} daddr . meta l4proto @addresses goto traced"),
                    "meta l4proto . th dport @nodeports fib daddr type local goto traced".to_owned(),
                    format!("{name} saddr != {from} return"),
                    format!("{name} saddr . th sport . {name} daddr . th dport . meta l4proto @seen return"),
                    "@th,96,8 != 0x1 return".to_owned(),
                    "counter packets 0 bytes 0 limit rate 25/second burst 25 packets counter packets 0 bytes 0 "
                        .to_owned(),
                    "meta nftrace set 1".to_owned(),
                    format!("{address} . tcp . 80 timeout 1m42s"),
                    "type filter hook prerouting priority -2147483648; policy accept;".to_owned(),
                    "type filter hook postrouting priority 2147483646; policy accept;".to_owned(),
                    "flags owner".to_owned(),
                ] {
                    assert!(listed.contains(&line), "{line}:\n{listed}");
                }
                // As different versions of nft say it.
                let syn =
                    ["tcp flags != syn / fin,syn,rst,ack return", "tcp flags & (fin | syn | rst | ack) != syn return"];
                assert!(syn.iter().any(|line| listed.contains(line)), "{listed}");
                drop(tracing);
                assert_eq!(nft(&["list", "tables"], ""), "");
            }
        });
    }

    #[test]
    fn what_a_kernel_without_owners_keeps_ends_and_is_removed() {
        in_network_namespace(|| {
            let wanted = targets(&[(Some("10.96.0.80"), Some(80))], Family::V4);
            let make = || Tracing::make(&wanted, None, Duration::ZERO, false).expect("a table");
            // The first socket of a process has its number, which the next one would get.
            let (running, killed) = (make(), make());
            let name = killed.table().to_owned();
            // As a process that is killed.
            let Tracing { socket, .. } = &mut *std::mem::ManuallyDrop::new(killed);
            drop(std::mem::replace(socket, Socket::open(Bus::Route).expect("a socket")));
            let elements = || nft(&["list", "set", "ip", &name, "frontends"], "");
            assert!(elements().contains("10.96.0.80 . tcp . 80"), "{}", elements());
            let end = std::time::Instant::now() + Duration::from_secs(30);
            while elements().contains("10.96.0.80") {
                assert!(std::time::Instant::now() < end, "{}", elements());
                std::thread::sleep(Duration::from_millis(50));
            }
            let next = make();
            let tables = nft(&["list", "tables"], "");
            assert!(!tables.contains(&format!("{name}\n")), "{tables}");
            assert!(tables.contains(running.table()) && tables.contains(next.table()), "{tables}");
        });
    }

    #[test]
    fn messages_that_do_not_fit_are_missed() {
        in_network_namespace(|| {
            let mut ears = Ears::open().expect("a socket");
            assert_eq!(ears.read().expect("it can be read"), None);
            nft(
                &["-f", "-"],
                "table ip t {\n chain o {\n  type filter hook output priority 0;\n  meta l4proto udp meta nftrace set 1\n }\n}\n",
            );
            nix::sys::socket::setsockopt(&ears, nix::sys::socket::sockopt::RcvBuf, &1).expect("it can be set");
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
            for _ in 0..100 {
                let _ = socket.send_to(b"x", "127.0.0.1:9");
            }
            let mut heard = Vec::new();
            while let Some(more) = ears.read().expect("it can be read") {
                heard.push(more);
            }
            assert!(heard.contains(&Heard::Lost), "{heard:?}");
            // What had fitted is there.
            let steps = |heard: &Heard| matches!(heard, Heard::Steps(steps) if steps[0].place.table == "t");
            assert!(heard.iter().any(steps), "{heard:?}");
        });
    }

    #[test]
    fn sockets_of_others_are_told_apart() {
        let sockets = "\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000000000000 0   4242       00000111 0        0        0     2        0        3022
0000000000000000 12  17         00000000 0        0        0     2        0        3023
";
        assert!(has_socket(sockets, 17));
        assert!(!has_socket(sockets, 4242) && !has_socket(sockets, 12) && !has_socket("", 17));
    }
}
