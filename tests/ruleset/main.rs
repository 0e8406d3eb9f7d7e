//! The ruleset as text and as rules that decide: golden files, the packet tracer, and stock nft.
#![expect(clippy::unwrap_used, reason = "a failed test says where")]

mod eval;
mod golden;
#[path = "../support/netns/mod.rs"]
mod netns;
mod nft;
mod sample;
