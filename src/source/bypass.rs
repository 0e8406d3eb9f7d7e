//! How a client gets past the Services of this node.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::sync::watch;

/// What the tables of this node let pass.
#[derive(Debug, Clone)]
pub struct Bypass {
    /// `SO_PRIORITY` of the sockets that no Service stands in the way of.
    pub priority: u32,
    /// To be told all addresses of the API server, or of the proxy before it, when a connection to one of them has been
    /// made so.
    pub reached: watch::Sender<BTreeSet<SocketAddr>>,
}
