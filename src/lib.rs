//! nftproxyd makes the virtual addresses of Kubernetes Services work on a node, with nothing but nftables.
//!
//! Data flows one way:
//!
//! ```text
//!  source ------> model ------> ruleset ------> diff ------> nftables -----> kernel
//!  (objects in)   (services)    (wanted)        (plan)       (bytes, socket)
//!      I/O          pure          pure           pure         encode pure, socket I/O
//!         sync drives the line; only facts (a dump, the result of a commit) come back to it
//! ```
//!
//! Who may use whom: `model` uses nobody. `source` uses `model` (it turns what it reads into model values at once, so
//! that no full Kubernetes object is kept). `ruleset` uses `model`, `diff` uses both, `nftables` uses all three. `sync`
//! and `app` may use everything. Beside the line stand `addresses` (of the node), `conntrack`, `health`, `metrics`,
//! `events`, `sysctl`, `leftovers` (of kube-proxy), `doctor`, `status` and `config`.
//! `tests/architecture.rs` holds the code to all of this.
//!
//! A Service is *data*: elements of a fixed number of nftables sets and maps, never a chain or a rule of its own.
//! [`ruleset`] says how a packet finds its endpoint; [`diff`] how a change of one Service becomes a transaction of
//! a few elements.

pub mod addresses;
pub mod app;
pub mod cli;
pub mod config;
pub mod conntrack;
pub mod diff;
pub mod doctor;
pub mod errors;
pub mod events;
pub mod health;
mod http;
pub mod keyed;
pub mod leftovers;
mod logging;
pub mod metrics;
pub mod model;
mod netlink;
pub mod nftables;
pub mod ruleset;
pub mod source;
pub mod status;
pub mod sync;
pub mod sys;
pub mod sysctl;
mod threads;

#[cfg(test)]
mod testing;
