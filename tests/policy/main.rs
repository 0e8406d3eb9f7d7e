//! What nftproxyd does to packets: the whole behaviour, from objects of the API to what becomes of a connection.
//!
//! Objects are converted, taken in and synced as in the daemon, into a kernel in memory; then packets are followed
//! through the ruleset that came out of it. No root, no network, no clock.
//!
//! * [`combinations`]: every combination of Service, policy, endpoint state, source and configuration, against the rules
//!   told once more in [`rules`], in a few lines that can be compared with the words of the documentation.
//! * [`named_cases`]: the cases that people ask about, by number.
//! * [`unserved`]: what is refused, dropped or left alone, and who wins where two Services want the same.
//! * [`affinity`]: clients that are known.
//! * [`api_server`]: what has the address of the API server.

mod affinity;
mod api_server;
mod cluster;
mod combinations;
mod coverage;
mod example;
#[path = "../support/looks.rs"]
mod looks;
mod named_cases;
mod rules;
mod unserved;
