//! Tests of the whole: a node in a network namespace, and what becomes of the packets that come to it; and the sync
//! engine with kernels in memory and the machine's own.
//!
//! They need root and `ip`, `nft` and `setpriv`, some of them more. Without, they say that they are skipped, or fail where
//! `CI` is set: see `tests/support/netns/needs.rs`.

#[path = "../support/api/mod.rs"]
mod api;
#[path = "../support/certificates.rs"]
mod certificates;
mod conformance;
mod daemon;
mod followed;
mod image;
#[path = "../support/looks.rs"]
mod looks;
mod metrics;
#[path = "../support/netns/mod.rs"]
mod netns;
#[path = "../support/numbers.rs"]
mod numbers;
mod operate;
mod packets;
mod pages;
#[path = "../support/properties.rs"]
mod properties;
mod random;
mod scenarios;
mod shown;
mod support;
mod sync;
mod watch;
