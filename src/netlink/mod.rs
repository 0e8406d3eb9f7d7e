//! Transactions to bytes, bytes to the kernel, and what is in the kernel back to values.
//!
//! Encoding and decoding are pure; only the socket does I/O. [`Kernel`] is the seam: the real one speaks netlink, the
//! fake one keeps the tables in memory.

mod kernel;

pub use kernel::{CommitError, Committed, Element as DumpedElement, Kernel, KernelError, Snapshot};
