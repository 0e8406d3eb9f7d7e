//! Walks netlink messages and their attributes. What comes in is never trusted: a length that cannot be ends the walk
//! with an error, and nothing is read beyond it.

use super::uapi;

/// Length of an attribute's header.
pub(super) const HEADER: usize = 4;
/// Length of a message's header.
const MESSAGE_HEADER: usize = 16;
/// Length of the header that all nftables messages have (`struct nfgenmsg`).
const GENERIC_HEADER: usize = 4;

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink message")]
pub(super) struct Malformed;

/// A netlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    /// `nlmsg_flags`.
    pub(super) flags: u16,
    /// `nlmsg_seq`.
    pub(super) sequence: u32,
    /// `nlmsg_pid`: the port id of the socket that it is for, or of the one whose change it tells about.
    pub(super) port: u32,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The message that these bytes begin with.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Message<'a>> {
        messages(bytes).next()?.ok()
    }

    /// The type of an nftables message (`uapi::msg`).
    pub(super) fn nftables(&self) -> Option<u16> {
        (self.kind & 0xff00 == uapi::SUBSYSTEM).then_some(self.kind & 0xff)
    }

    /// The family of an nftables message (`NFPROTO_*`).
    pub(super) fn family(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// The attributes of an nftables message.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        let rest = self.payload.get(GENERIC_HEADER..).unwrap_or_default();
        Attributes { rest, offset: MESSAGE_HEADER + GENERIC_HEADER }
    }
}

/// Splits bytes into messages.
pub(super) fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = split_message(rest);
        match message {
            Some((message, tail)) => {
                rest = tail;
                Some(Ok(message))
            }
            None => {
                rest = &[];
                Some(Err(Malformed))
            }
        }
    })
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = read_u32(bytes, 0)? as usize;
    let message = bytes.get(..length)?;
    let payload = message.get(MESSAGE_HEADER..)?;
    let (kind, flags) = (read_u16(bytes, 4)?, read_u16(bytes, 6)?);
    let (sequence, port) = (read_u32(bytes, 8)?, read_u32(bytes, 12)?);
    let tail = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Message { kind, flags, sequence, port, payload }, tail))
}

/// An attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attribute<'a> {
    /// Its type, without flags.
    pub(super) kind: u16,
    /// Whether it says that it holds attributes. The kernel does not say so in its dumps.
    pub(super) nested: bool,
    /// What it holds, without padding.
    pub(super) value: &'a [u8],
    /// Where its header is in the message.
    pub(super) offset: usize,
}

impl<'a> Attribute<'a> {
    /// The attributes that it holds.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes { rest: self.value, offset: self.offset + HEADER }
    }

    /// A number in network byte order.
    pub(super) fn number(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// A text that ends with NUL.
    pub(super) fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.value.strip_suffix(&[0])?).ok()
    }
}

/// The attributes of a piece of a message.
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Attributes<'a> {
    /// The attributes in these bytes; offsets count from `offset`.
    pub(super) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Attributes { rest: bytes, offset }
    }

    fn split(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(read_u16(self.rest, 0)?);
        let kind = read_u16(self.rest, 2)?;
        let value = self.rest.get(HEADER..length)?;
        let attribute = Attribute {
            kind: kind & uapi::NLA_TYPE_MASK,
            nested: kind & uapi::NLA_F_NESTED != 0,
            value,
            offset: self.offset,
        };
        let step = length.next_multiple_of(4);
        self.offset += step;
        self.rest = self.rest.get(step..).unwrap_or_default();
        Some(attribute)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let attribute = self.split();
        if attribute.is_none() {
            self.rest = &[];
        }
        Some(attribute.ok_or(Malformed))
    }
}

/// The attributes inside another one, as far as they can be read.
pub(super) fn children<'a>(attribute: &Attribute<'a>) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
    attribute.attributes().map_while(Result::ok)
}

/// The first attribute of a type.
pub(super) fn find<'a>(attributes: Attributes<'a>, kind: u16) -> Option<Attribute<'a>> {
    attributes.map_while(Result::ok).find(|attribute| attribute.kind == kind)
}

/// Two bytes in host order.
pub(super) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Four bytes in host order.
pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
