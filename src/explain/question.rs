//! The packet that is asked about.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

/// The first packet of a connection, as it is explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// Its source.
    pub from: IpAddr,
    /// Whether a process of this node sends it.
    pub from_this_node: bool,
    /// The interface that it comes in by: the one that is said, else that of the route back to its source. `None` for those
    /// of this node, and where there is no such route.
    pub arrives_by: Option<String>,
    /// Its destination.
    pub to: SocketAddr,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.from)?;
        if self.from_this_node {
            f.write_str(" (this node)")?;
        }
        write!(f, " -> {} {}", self.to, self.protocol)?;
        match &self.arrives_by {
            Some(interface) => write!(f, ", arriving by {interface}"),
            None => Ok(()),
        }
    }
}
