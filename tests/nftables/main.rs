//! nf_tables over netlink against the kernel, each test in a network namespace of its own.

mod agreement;
mod counts;
mod frame;
mod kernel;
mod looked_up;
mod measure;
#[path = "../support/netns/mod.rs"]
mod netns;
#[path = "../support/properties.rs"]
mod properties;
