//! Netlink messages as plain bytes (RFC 3549, include/uapi/linux/netlink.h): enough for the few questions that are not
//! about nftables, asked of connection tracking and of routing. Building and walking are pure and free of `unsafe`.
//!
//! Numbers are in the byte order of the machine, unless an attribute says otherwise.

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answer with an error message, of errno 0 on success.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_DUMP` (`NLM_F_ROOT | NLM_F_MATCH`): answer with all objects.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: the objects changed during the dump, some may be missing or doubled.
pub(super) const DUMP_INTERRUPTED: u16 = 0x10;

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
const ATTRIBUTE_HEADER: usize = 4;

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

/// A message as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `nlmsg_flags`.
    pub(crate) flags: u16,
    /// `nlmsg_seq`: that of the request it answers.
    pub(crate) sequence: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The errno of an error message, 0 for an acknowledgement; `None` for any other message.
    ///
    /// The end of a dump carries one too (`NLMSG_DONE` with a negative errno, if the dump broke off).
    pub(crate) fn errno(&self) -> Option<i32> {
        let ends = self.kind == ERROR || self.kind == DONE;
        ends.then(|| self.payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes).saturating_neg()))
    }
}

/// The messages of one datagram. What is cut off or has an impossible length ends the walk.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32::from_ne_bytes(*message.get(8..)?.first_chunk()?),
            payload: &message[HEADER..],
        })
    })
}

/// The attributes in a message (past its fixed part) or in a nested attribute: type without flags, and value. What is
/// cut off or has an impossible length ends the walk.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
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
        let read: Vec<Message<'_>> = messages(&twice).collect();
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
        for (bytes, expected) in [(&good[..], 1), (&good[..good.len() - 1], 0), (&good[..15], 0), (&[0; 64][..], 0)] {
            assert_eq!(messages(bytes).count(), expected);
        }
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut bytes = vec![0; 8];
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attributes(&bytes).count(), 0, "{length}");
        }
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_walked(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for message in messages(&bytes) {
                let _ = message.errno();
                let _ = attributes(message.payload).count();
            }
            let _ = attributes(&bytes).count();
        }
    }
}
