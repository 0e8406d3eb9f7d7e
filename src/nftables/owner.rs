//! Who owns a table.

use std::fmt;
use std::fs;

/// `NETLINK_NETFILTER`.
const NETFILTER: &str = "12";

/// The socket that owns a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its port id.
    pub port: u32,
    /// The name of the process of this number, if there is one and it may be the owner: the first socket of a process has
    /// the process's number, as a rule.
    pub process: Option<String>,
}

impl Owner {
    /// The owner with this port id, and what /proc says about it.
    pub(super) fn of(port: u32) -> Owner {
        let process = || {
            let sockets = fs::read_to_string("/proc/thread-self/net/netlink").ok()?;
            let name = fs::read_to_string(format!("/proc/{port}/comm")).ok()?;
            has_socket(&sockets, port).then(|| name.trim_end().escape_default().to_string())
        };
        Owner { port, process: process() }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "netlink port {}", self.port)?;
        match &self.process {
            Some(name) => write!(f, " (perhaps process {}, {name})", self.port),
            None => Ok(()),
        }
    }
}

/// Whether this text of `/proc/net/netlink` has a netfilter socket with this port id. Its columns begin with the
/// socket's address, its protocol and its port id.
fn has_socket(sockets: &str, port: u32) -> bool {
    let port = port.to_string();
    sockets.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next() == Some(NETFILTER) && columns.next() == Some(&port)
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
        for (port, there) in [(17, true), (4_294_963_054, true), (4242, false), (1, false), (12, false)] {
            assert_eq!(has_socket(sockets, port), there, "{port}");
        }
        assert!(!has_socket("", 17));
    }

    #[test]
    fn a_process_is_only_a_guess() {
        let owner = |process: Option<&str>| Owner { port: 17, process: process.map(str::to_owned) };
        assert_eq!(owner(None).to_string(), "netlink port 17");
        assert_eq!(owner(Some("nft")).to_string(), "netlink port 17 (perhaps process 17, nft)");
        // Port ids that the kernel makes up are beyond all process numbers.
        assert_eq!(Owner::of(u32::MAX), Owner { port: u32::MAX, process: None });
    }
}
