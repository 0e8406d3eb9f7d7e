//! The ruleset as text and as rules that decide: golden files, the packet tracer, and stock nft.
#![expect(clippy::unwrap_used, reason = "a failed test says where")]

mod eval;
mod golden;
mod nft;
mod sample;
