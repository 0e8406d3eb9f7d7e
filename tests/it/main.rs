//! Tests of the whole: a node in a network namespace, and what becomes of the packets that come to it; and the sync
//! engine with kernels in memory and the machine's own.
//!
//! They need root and `ip`, `nft` and `setpriv`; without the permission to make network namespaces they say that they
//! are skipped, or fail where `CI` is set.

#[path = "../support/api/mod.rs"]
mod api;
mod conformance;
mod daemon;
mod image;
mod metrics;
mod operate;
mod packets;
mod random;
mod scenarios;
mod support;
mod sync;
