//! Netlink messages as plain bytes (RFC 3549, include/uapi/linux/netlink.h): the only code that builds and walks them
//! by hand. Pure, and free of `unsafe`.
//!
//! What comes in is never trusted: a length that cannot be ends the walk, and nothing is read beyond it. Numbers are in
//! the byte order of the machine, unless an attribute says otherwise.

use nix::libc;

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answer with an error message, of errno 0 on success.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_DUMP` (`NLM_F_ROOT | NLM_F_MATCH`): answer with all objects.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`: make it if it is not there.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_DUMP_INTR`: the objects changed during the dump, some may be missing or doubled.
pub(super) const DUMP_INTERRUPTED: u16 = 0x10;

/// `NLM_F_CAPPED`: an error that does not repeat the message.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: an error with attributes.
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_OFFS`: where in the message the attribute is that was refused.
const ATTR_OFFSET: u16 = 2;

/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`: without the flags for "nested" and "network byte order".
const TYPE_MASK: u16 = 0x3fff;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
pub(crate) const ATTRIBUTE_HEADER: usize = 4;

/// A message, or the contents of a nested attribute, that is being built. Every part is padded to four bytes.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// Begins a message whose fixed part (`struct nfgenmsg`, `struct ifaddrmsg`) is `family_header`.
    pub(crate) fn message(kind: u16, flags: u16, sequence: u32, family_header: &[u8]) -> Builder {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0_u32.to_ne_bytes()); // the length, known at the end
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes()); // the kernel knows the port
        bytes.extend_from_slice(family_header);
        Builder { bytes }.padded()
    }

    /// Appends an attribute of at most 65,531 bytes.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Builder {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("attributes here are a few bytes long");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.padded()
    }

    /// Appends an attribute that holds attributes.
    pub(crate) fn nested(self, kind: u16, fill: impl FnOnce(Builder) -> Builder) -> Builder {
        let inner = fill(Builder { bytes: Vec::new() });
        self.attribute(kind | NESTED, &inner.bytes)
    }

    /// The bytes to send.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages here are a few hundred bytes long");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }

    fn padded(mut self) -> Builder {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }
}

/// Bytes that are no message or attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink message")]
pub(crate) struct Malformed;

/// A message as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `nlmsg_flags`.
    pub(crate) flags: u16,
    /// `nlmsg_seq`: that of the request it answers.
    pub(crate) sequence: u32,
    /// `nlmsg_pid`: the port id of the socket that it is for, or of the one whose change it tells about.
    pub(crate) port: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All was done, or all was listed.
    Done,
    /// The kernel refused, or the dump broke off, with this errno: as the kernel has it, known to libc or not.
    Errno(i32),
}

impl<'a> Message<'a> {
    /// The message that these bytes begin with.
    pub(crate) fn first(bytes: &'a [u8]) -> Option<Message<'a>> {
        messages(bytes).next()?.ok()
    }

    /// How the answer ends, if it does with this message: an acknowledgement, an error, or the end of a dump, which
    /// carries an errno too if it broke off. An end without a number is one with `EBADMSG`: nothing is known then.
    pub(crate) fn end(&self) -> Option<End> {
        let number = || self.payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        let number = match self.kind {
            ERROR => number(),
            // Dumps of generic netlink may end without a payload.
            DONE if self.payload.is_empty() => Some(0),
            DONE => number(),
            _ => return None,
        };
        Some(match number {
            Some(0) => End::Done,
            // The number of elements that some dumps end with is not an error; errors are negative.
            Some(number) if number > 0 && self.kind == DONE => End::Done,
            Some(number) => End::Errno(number.checked_neg().filter(|errno| *errno > 0).unwrap_or(libc::EBADMSG)),
            None => End::Errno(libc::EBADMSG),
        })
    }

    /// Where in the message that was refused the culprit is (`NLMSGERR_ATTR_OFFS`), if the kernel knows; counted from
    /// the beginning of its header.
    pub(crate) fn culprit(&self) -> Option<usize> {
        if self.kind != ERROR || self.flags & ACK_TLVS == 0 {
            return None;
        }
        // The errno is followed by the header of the refused message and, unless capped, by the rest of it.
        let length = u32_at(self.payload, 4)? as usize;
        let capped = self.flags & CAPPED != 0;
        let skip = if capped { 4 + HEADER } else { length.checked_next_multiple_of(4)?.checked_add(4)? };
        let attributes = Attributes::new(self.payload.get(skip..).unwrap_or_default(), 0);
        u32_at(find(attributes, ATTR_OFFSET)?.value, 0).map(|offset| offset as usize)
    }

    /// The attributes that follow a fixed part of so many bytes (`struct nfgenmsg`, `struct ifaddrmsg`).
    pub(crate) fn attributes_after(&self, fixed: usize) -> Attributes<'a> {
        Attributes::new(self.payload.get(fixed..).unwrap_or_default(), HEADER + fixed)
    }
}

/// Splits a datagram, or a batch, into messages. What is cut off or has an impossible length ends the walk with an error.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = split_message(rest);
        rest = message.map_or(&[], |(_, tail)| tail);
        Some(message.map(|(message, _)| message).ok_or(Malformed))
    })
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let payload = bytes.get(..length)?.get(HEADER..)?;
    let (kind, flags) = (u16_at(bytes, 4)?, u16_at(bytes, 6)?);
    let (sequence, port) = (u32_at(bytes, 8)?, u32_at(bytes, 12)?);
    let tail = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Message { kind, flags, sequence, port, payload }, tail))
}

/// An attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attribute<'a> {
    /// Its type, without flags.
    pub(crate) kind: u16,
    /// Whether it says that it holds attributes. The kernel does not say so in all of its dumps.
    pub(crate) nested: bool,
    /// What it holds, without padding.
    pub(crate) value: &'a [u8],
    /// Where its header is in the message.
    pub(crate) offset: usize,
}

impl<'a> Attribute<'a> {
    /// The attributes that it holds.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes { rest: self.value, offset: self.offset + ATTRIBUTE_HEADER }
    }

    /// A number of four bytes in network byte order.
    pub(crate) fn number(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// A text that ends with NUL.
    pub(crate) fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.value.strip_suffix(&[0])?).ok()
    }
}

/// Walks the attributes of a piece of a message.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Attributes<'a> {
    /// The attributes in these bytes; offsets count from `offset`.
    pub(crate) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Attributes { rest: bytes, offset }
    }

    fn split(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)?;
        let value = self.rest.get(ATTRIBUTE_HEADER..length)?;
        let attribute = Attribute { kind: kind & TYPE_MASK, nested: kind & NESTED != 0, value, offset: self.offset };
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

/// The attributes in these bytes, type and value, as far as they can be read.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    Attributes::new(bytes, 0).map_while(Result::ok).map(|attribute| (attribute.kind, attribute.value))
}

/// The attributes inside another one, as far as they can be read.
pub(crate) fn children<'a>(attribute: &Attribute<'a>) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
    attribute.attributes().map_while(Result::ok)
}

/// The first attribute of a type.
pub(crate) fn find<'a>(attributes: Attributes<'a>, kind: u16) -> Option<Attribute<'a>> {
    attributes.map_while(Result::ok).find(|attribute| attribute.kind == kind)
}

/// Two bytes in the byte order of the machine.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// Four bytes in the byte order of the machine.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        let bytes = Builder::message(0x1234, REQUEST | ACK, 7, &[1, 2, 3])
            .attribute(5, b"odd")
            .nested(6, |inner| inner.attribute(1, &[9]).attribute(2, &[]))
            .finish();
        let twice = [bytes.clone(), bytes.clone()].concat();
        let read: Vec<Message<'_>> = messages(&twice).map(|message| message.expect("whole")).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0], read[1]);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (0x1234, REQUEST | ACK, 7));
        assert_eq!(read[0].payload[..4], [1, 2, 3, 0]);
        let outer: Vec<(u16, &[u8])> = attributes(&read[0].payload[4..]).collect();
        assert_eq!(outer[0], (5, &b"odd"[..]));
        assert_eq!(outer[1].0, 6);
        assert_eq!(attributes(outer[1].1).collect::<Vec<_>>(), [(1, &[9][..]), (2, &[][..])]);
    }

    #[test]
    fn impossible_lengths_end_the_walk() {
        let good = Builder::message(1, 0, 0, &[]).attribute(1, &[1, 2, 3, 4]).finish();
        for (bytes, whole) in
            [(&good[..], true), (&good[..good.len() - 1], false), (&good[..15], false), (&[0; 64], false)]
        {
            assert_eq!(messages(bytes).map(|message| message.is_ok()).collect::<Vec<_>>(), [whole]);
        }
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut bytes = vec![0; 8];
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attributes(&bytes).count(), 0, "{length}");
        }
    }

    /// An end with this kind and payload.
    fn end(kind: u16, payload: &[u8]) -> Option<End> {
        let bytes = Builder::message(kind, 0, 1, payload).finish();
        // The builder pads; what comes in may be shorter.
        let message = Message::first(&bytes).expect("a message");
        Message { payload: &message.payload[..payload.len()], ..message }.end()
    }

    #[test]
    fn errors_say_which_attribute_was_refused() {
        let payload = |errno: i32, length: u32, rest: &[u8]| {
            let mut bytes = errno.to_ne_bytes().to_vec();
            bytes.extend(length.to_ne_bytes());
            bytes.extend([0; 12]);
            bytes.extend(rest);
            bytes
        };
        // NLMSGERR_ATTR_OFFS = 44.
        let offset = [8, 0, 2, 0, 44, 0, 0, 0];
        let mut repeated = vec![0xff; 24];
        repeated.extend(offset);
        let cases = [
            (payload(0, 20, &[]), CAPPED, End::Done, None),
            (payload(-2, 20, &[]), CAPPED, End::Errno(2), None),
            (payload(-17, 20, &offset), CAPPED | ACK_TLVS, End::Errno(17), Some(44)),
            (payload(-17, 40, &repeated), ACK_TLVS, End::Errno(17), Some(44)),
            (payload(-17, u32::MAX, &repeated), ACK_TLVS, End::Errno(17), None),
            (vec![1, 2], ACK_TLVS, End::Errno(libc::EBADMSG), None),
        ];
        for (payload, flags, end, culprit) in cases {
            let message = Message { kind: ERROR, flags, sequence: 0, port: 0, payload: &payload };
            assert_eq!((message.end(), message.culprit()), (Some(end), culprit), "{payload:?}");
        }
    }

    #[test]
    fn only_success_is_success() {
        let errno = |errno: i32| (-errno).to_ne_bytes();
        assert_eq!(end(ERROR, &errno(0)), Some(End::Done), "an acknowledgement");
        assert_eq!(end(ERROR, &errno(libc::ENOENT)), Some(End::Errno(libc::ENOENT)));
        // ENOTSUPP of the kernel, which no C library knows.
        assert_eq!(end(ERROR, &errno(524)), Some(End::Errno(524)));
        assert_eq!(end(DONE, &errno(0)), Some(End::Done));
        assert_eq!(end(DONE, &[]), Some(End::Done));
        assert_eq!(end(DONE, &errno(524)), Some(End::Errno(524)), "a dump that broke off");
        assert_eq!(end(DONE, &errno(libc::EINTR)), Some(End::Errno(libc::EINTR)));
        for (kind, payload) in [(ERROR, &[][..]), (ERROR, &[0, 0]), (DONE, &[0]), (ERROR, &i32::MIN.to_ne_bytes())] {
            assert_eq!(end(kind, payload), Some(End::Errno(libc::EBADMSG)), "{kind} {payload:?}");
        }
        assert_eq!(end(ERROR, &5_i32.to_ne_bytes()), Some(End::Errno(libc::EBADMSG)), "no errno");
        assert_eq!(end(0x0a00, &errno(0)), None, "an object");
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_walked(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for kind in [ERROR, DONE] {
                for flags in [0, ACK_TLVS, ACK_TLVS | CAPPED] {
                    let message = Message { kind, flags, sequence: 0, port: 0, payload: &bytes };
                    let _ = (message.end(), message.culprit());
                }
            }
            for message in messages(&bytes).flatten() {
                let _ = attributes(message.payload).count();
            }
            let _ = attributes(&bytes).count();
        }
    }
}
