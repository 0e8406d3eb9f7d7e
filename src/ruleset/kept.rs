//! Clients that keep their endpoint when their table is replaced.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use smallvec::smallvec;

use super::read::Remembered;
use super::types::{Data, Element, Key, Value};
use crate::model::Protocol;

/// A client that the kernel remembers, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The client, and where it is sent.
    pub client: Remembered,
    /// How long it is remembered after each new connection.
    pub timeout: Duration,
    /// How much of that is left.
    pub expires: Duration,
}

impl Kept {
    /// The element of the map `affinity`, without its times.
    pub fn element(&self) -> Element {
        element(&self.client)
    }
}

/// The key of the map `affinity` for what a client connects to.
pub fn key(client: IpAddr, destination: IpAddr, protocol: Protocol, port: NonZeroU16) -> Key {
    smallvec![Value::Address(client), Value::Address(destination), Value::Protocol(protocol), Value::Port(port.get())]
}

/// The element of the map `affinity` that says this of a client.
pub fn element(client: &Remembered) -> Element {
    let Remembered { client, destination, protocol, port, backend } = *client;
    Element {
        key: key(client, destination, protocol, port),
        key_end: None,
        data: Data::Values(smallvec![Value::Address(backend.address), Value::Port(backend.port.get())]),
        comment: None,
    }
}
