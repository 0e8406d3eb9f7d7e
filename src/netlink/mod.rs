//! Netlink itself: messages as plain bytes, and a socket that talks to the kernel. Who asks about connections, addresses
//! or routes builds on it.

mod message;
mod socket;

pub(crate) use message::{ACK, Builder, DUMP, Message, REQUEST, attributes};
pub(crate) use socket::{Dump, Socket};

#[cfg(test)]
pub(crate) use message::messages;
