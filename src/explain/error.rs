//! Why a packet cannot be explained.

use std::net::IpAddr;

use crate::nftables::KernelError;
use crate::status::StatusError;

/// A packet cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The tables, or the connections, cannot be read.
    #[error(transparent)]
    Kernel(#[from] StatusError),
    /// Nothing in the tables is of a Service of this name.
    #[error("nothing in table {tables} is of Service {service}{why}")]
    NoService {
        /// The tables that were asked, one of each family that the packet may have.
        tables: String,
        /// Its name, with that of the port that is asked for.
        service: String,
        /// Why, or who could tell.
        why: String,
    },
    /// Source and destination are of different families.
    #[error("{0} and {1} are of different families")]
    Families(IpAddr, IpAddr),
    /// No packet comes from such an address.
    #[error("{0} is no address of a client: it is unspecified, of all (broadcast), or of a group (multicast)")]
    NoSource(IpAddr),
    /// The packet cannot come in by this.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// What the node is asked for cannot be read.
    #[error("cannot read {0}")]
    Node(&'static str, #[source] std::io::Error),
}

impl From<KernelError> for ExplainError {
    fn from(error: KernelError) -> ExplainError {
        StatusError::from(error).into()
    }
}
