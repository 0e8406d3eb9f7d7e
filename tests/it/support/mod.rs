//! What the tests share: a node in a network namespace, packets, scenarios, and the proxies under test.

pub(crate) mod canary;
pub(crate) mod cluster;
pub(crate) mod daemon;
pub(crate) mod explained;
pub(crate) mod http;
pub(crate) mod judge;
pub(crate) mod namespace;
pub(crate) mod nft;
pub(crate) mod nft_versions;
pub(crate) mod objects;
pub(crate) mod outcome;
pub(crate) mod packet;
pub(crate) mod proxy;
pub(crate) mod runner;
pub(crate) mod scenario;
pub(crate) mod sockets;
pub(crate) mod world;
