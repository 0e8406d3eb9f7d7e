//! Where the kernel would send a packet of this network namespace, and what else it asks for on the way: interfaces,
//! routes, neighbours, and settings below `/proc/sys/net`. It looks, and changes nothing.
//!
//! * `links`: interfaces, and the addresses of this node. `bridges`: those that have ports.
//! * `route`: the route of a packet. `neighbours`: whether the next hop answers.
//! * `settings`: whether an interface passes on what comes in by it.

mod bridges;
mod links;
mod neighbours;
mod route;
mod settings;

pub use bridges::{BRIDGE_SETTINGS, bridge_setting, shows_to_filters};
pub use links::{Link, links, local_addresses};
pub use neighbours::{Neighbour, neighbour};
pub use route::{Hop, Question, Refusal, Route, address_type, route};
pub use settings::{ReversePath, devices_with, forwards, of_device, reverse_path};
