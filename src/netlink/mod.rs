//! Netlink itself: messages as plain bytes, and the one socket that talks to the kernel. nftables, connection tracking,
//! addresses and what finds kube-proxy's rules build on it.

mod message;
mod retry;
mod socket;

pub(crate) use message::{
    ACK, ATTRIBUTE_HEADER, Attribute, Attributes, Builder, CREATE, DUMP, End, Message, REQUEST, attributes, children,
    find, messages, u16_at, u32_at,
};
pub(crate) use mnl::Bus;
pub(crate) use retry::Retry;
pub(crate) use socket::{Dump, Socket, asynchronous, subscribed};
