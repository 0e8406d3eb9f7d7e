//! Who owns a table.

use std::fmt;
use std::fs;

/// `NETLINK_NETFILTER`.
const NETFILTER: &str = "12";

/// What protects a table of ours that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// Nothing: everybody with the privilege may change it.
    None,
    /// Nothing any more: its owner has ended without giving it up.
    Orphan,
    /// Only its owner can change it.
    Owner(Owner),
}

/// The socket that owns a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its port id.
    pub port: u32,
    /// The process that has the socket, and its name, where it can be found.
    pub process: Option<(u32, String)>,
}

impl Owner {
    /// The owner with this port id, and what /proc says about it.
    pub(super) fn of(port: u32) -> Owner {
        let sockets = fs::read_to_string("/proc/thread-self/net/netlink").unwrap_or_default();
        Owner { port, process: inode(&sockets, port).and_then(process_with) }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "netlink port {}", self.port)?;
        match &self.process {
            Some((id, name)) => write!(f, " (process {id}, {name})"),
            None => Ok(()),
        }
    }
}

/// The inode of the netfilter socket with this port id in a text of `/proc/net/netlink`. Its columns begin with the
/// socket's address, its protocol and its port id; the inode is the last.
fn inode(sockets: &str, port: u32) -> Option<u64> {
    let port = port.to_string();
    sockets.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, NETFILTER, of, .., inode] = columns[..] else { return None };
        if of == port { inode.parse().ok() } else { None }
    })
}

/// The process that has the socket of this inode, and its name. Looks through the descriptors of all that it may look at.
fn process_with(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let is_it = |path: &std::path::Path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == wanted.as_str());
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let id = process.file_name().to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        descriptors.find(|descriptor| is_it(&descriptor.path()))?;
        let name = fs::read_to_string(process.path().join("comm")).ok()?;
        Some((id, name.trim_end().escape_default().to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_of_netfilter_are_told_from_others() {
        let sockets = "\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000000000000 0   4242       00000111 0        0        0     2        0        3022
0000000000000000 12  17         00000000 0        0        0     2        0        3023
0000000000000000 12  4294963054 00000000 0        0        0     2        0        3024
0000000000000000 12
";
        for (port, found) in
            [(17, Some(3023)), (4_294_963_054, Some(3024)), (4242, None), (1, None), (12, None), (3023, None)]
        {
            assert_eq!(inode(sockets, port), found, "{port}");
        }
        assert_eq!(inode("", 17), None);
    }

    #[test]
    fn a_process_is_named_where_it_has_the_socket() {
        let owner = |process: Option<(u32, &str)>| {
            let process = process.map(|(id, name)| (id, name.to_owned()));
            Owner { port: 17, process }.to_string()
        };
        assert_eq!(owner(None), "netlink port 17");
        assert_eq!(owner(Some((99, "nft"))), "netlink port 17 (process 99, nft)");
        let socket = crate::netlink::Socket::open(crate::netlink::Bus::Netfilter).expect("a socket");
        let Owner { process, .. } = Owner::of(socket.port());
        assert_eq!(process.map(|(id, _)| id), Some(std::process::id()));
        let port = socket.port();
        drop(socket);
        assert_eq!(Owner::of(port), Owner { port, process: None });
    }
}
