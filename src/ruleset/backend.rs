//! Where a connection to a frontend may go.

use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::model::policy::Target;

/// Where a frontend's connections may go: an address and port that a connection is translated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's port.
    pub port: NonZeroU16,
}

impl From<&Target> for Backend {
    fn from(target: &Target) -> Backend {
        Backend { address: target.address, port: target.port }
    }
}
