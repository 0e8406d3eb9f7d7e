//! Sockets of this network namespace that listen, and the processes that have them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use procfs::net::{TcpNetEntries, TcpState, UdpNetEntries, UdpState};
use procfs::process::{FDTarget, all_processes_with_root};
use procfs::{FromBufReadSI, current_system_info};

use crate::leftovers::NET;
use crate::model::{Family, Protocol};
use crate::printable::printable;

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// TCP, or UDP.
    pub protocol: Protocol,
    /// Where.
    pub at: SocketAddr,
    /// By which its process is found.
    pub inode: u64,
}

impl Listener {
    /// Whether it would hear of connections to this address and port, if no Service had them.
    pub fn hears(&self, address: IpAddr, port: u16) -> bool {
        self.at.port() == port && (self.at.ip() == address || self.is_everywhere(Family::of(address)))
    }

    /// Whether it listens on all addresses of a family. One of IPv6 has those of IPv4 as well, unless it has said otherwise,
    /// which is not to be seen.
    pub fn is_everywhere(&self, family: Family) -> bool {
        self.at.ip().is_unspecified() && (self.at.is_ipv6() || family == Family::V4)
    }
}

/// All that listen in this network namespace, on TCP and UDP.
///
/// # Errors
/// A file cannot be read.
pub fn list(root: &Path) -> io::Result<Vec<Listener>> {
    let mut all = Vec::new();
    for name in ["tcp", "tcp6"] {
        let entries = read(root, name)?.map_or_else(Vec::new, |TcpNetEntries(entries)| entries);
        let listening = entries.into_iter().filter(|entry| entry.state == TcpState::Listen);
        all.extend(listening.map(|entry| (Protocol::Tcp, entry.local_address, entry.inode)));
    }
    for name in ["udp", "udp6"] {
        let entries = read(root, name)?.map_or_else(Vec::new, |UdpNetEntries(entries)| entries);
        let unconnected = entries.into_iter().filter(|entry| entry.state == UdpState::Close);
        all.extend(unconnected.map(|entry| (Protocol::Udp, entry.local_address, entry.inode)));
    }
    Ok(all.into_iter().map(|(protocol, at, inode)| Listener { protocol, at, inode }).collect())
}

/// `None` without IPv6: then there are no files of it.
fn read<T: FromBufReadSI>(root: &Path, name: &str) -> io::Result<Option<T>> {
    let file = match File::open(root.join(NET).join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with('6') => return Ok(None),
        Err(error) => return Err(io::Error::new(error.kind(), format!("/proc/net/{name}: {error}"))),
    };
    T::from_buf_read(BufReader::new(file), current_system_info())
        .map(Some)
        .map_err(|error| io::Error::other(format!("/proc/net/{name}: {error}")))
}

/// The processes that have these sockets, by inode: `process 17 (sshd)`. Those that may not be looked at are left out.
pub fn processes(root: &Path, inodes: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut named = BTreeMap::new();
    for process in all_processes_with_root(root.join("proc")).into_iter().flatten().flatten() {
        for descriptor in process.fd().into_iter().flatten().flatten() {
            if let FDTarget::Socket(inode) = descriptor.target
                && inodes.contains(&inode)
            {
                let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
                named.entry(inode).or_insert_with(|| format!("process {} ({})", process.pid, printable(&name)));
            }
        }
    }
    named
}

/// Somebody who listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// The socket.
    pub listener: Listener,
    /// `process 17 (sshd)`; `None` of one that may not be looked at.
    pub process: Option<String>,
}

/// Who would hear of a connection to an address and port of this node: on the address itself first, then on all of them.
///
/// # Errors
/// A file of the kernel cannot be read.
pub fn who_listens(root: &Path, protocol: Protocol, address: IpAddr, port: u16) -> io::Result<Option<Listening>> {
    let mut hearing: Vec<Listener> = list(root)?;
    hearing.retain(|listener| listener.protocol == protocol && listener.hears(address, port));
    let Some(listener) = hearing.into_iter().min_by_key(|listener| listener.at.ip() != address) else {
        return Ok(None);
    };
    let process = processes(root, &BTreeSet::from([listener.inode])).remove(&listener.inode);
    Ok(Some(Listening { listener, process }))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::testing::in_network_namespace;

    #[test]
    fn who_listens_is_named() {
        in_network_namespace(|| {
            let _all = TcpListener::bind("0.0.0.0:7001").expect("the port is free");
            let _own = TcpListener::bind("127.0.0.2:7002").expect("the port is free");
            let _udp = UdpSocket::bind("[::1]:7003").expect("the port is free");
            let root = Path::new("/");
            let of = |protocol, address: &str, port| {
                let address = address.parse().expect("an address");
                who_listens(root, protocol, address, port).expect("the kernel says so")
            };
            let found = of(Protocol::Tcp, "127.0.0.1", 7001).expect("somebody listens");
            assert_eq!(found.listener.at, "0.0.0.0:7001".parse().expect("an address and a port"));
            let process = found.process.expect("it is this one");
            assert!(process.starts_with(&format!("process {} (", std::process::id())), "{process}");
            assert!(of(Protocol::Tcp, "127.0.0.2", 7002).is_some());
            assert!(of(Protocol::Udp, "::1", 7003).is_some());
            for (protocol, address, port) in [
                (Protocol::Tcp, "127.0.0.1", 7002),
                (Protocol::Udp, "127.0.0.1", 7001),
                (Protocol::Tcp, "::1", 7003),
                (Protocol::Tcp, "127.0.0.1", 7000),
                (Protocol::Tcp, "::1", 7001),
            ] {
                assert_eq!(of(protocol, address, port), None, "{address} {port}");
            }
        });
    }
}
