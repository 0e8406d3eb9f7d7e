//! The memory that libnftnl writes messages into.

use std::ffi::{c_char, c_int};

use nftnl::nftnl_sys::{self as ffi, libc};

use super::nftnl::{Chain, ELEMENT_MAX, HEADER, Rule, Set, SetElement, Table};

/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
const SET_ELEM_LIST_ELEMENTS: u16 = 3;
/// `NLA_F_NESTED`: the attribute holds attributes.
const NESTED: u16 = 0x8000;
/// The header of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    /// `NLM_F_*`, besides `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    /// Comes back in the answer.
    pub(crate) sequence: u32,
}

/// Messages one after the other in one piece of memory, aligned to 4 bytes as netlink wants it. What lies beyond the
/// last message is given up when that message is finished.
#[derive(Debug, Clone, Default)]
pub(crate) struct Messages {
    words: Vec<u32>,
}

impl Messages {
    /// Everything that was written.
    pub(crate) fn bytes(&self) -> &[u8] {
        as_bytes(&self.words)
    }

    /// The number of bytes written.
    pub(crate) fn len(&self) -> usize {
        self.words.len() * 4
    }

    /// Writes a message without attributes that starts or ends a batch.
    pub(crate) fn batch(&mut self, begin: bool, sequence: u32) {
        let start = self.reserve(HEADER);
        let buffer = self.at(start).cast::<c_char>();
        let write = if begin { ffi::nftnl_batch_begin } else { ffi::nftnl_batch_end };
        // SAFETY: the buffer is aligned to 4 bytes and has room for the headers, which is all that is written.
        unsafe { write(buffer, sequence) };
        self.finish(start);
    }

    /// Writes a message about a table.
    pub(crate) fn table(&mut self, header: Header, table: &Table) {
        self.write(header, table.bound, |message| {
            // SAFETY: both are alive, and there is room for the object's `bound` after the header.
            unsafe { ffi::nftnl_table_nlmsg_build_payload(message, table.raw.as_ptr()) };
        });
    }

    /// Writes a message about a chain.
    pub(crate) fn chain(&mut self, header: Header, chain: &Chain) {
        self.write(header, chain.bound, |message| {
            // SAFETY: both are alive, and there is room for the object's `bound` after the header.
            unsafe { ffi::nftnl_chain_nlmsg_build_payload(message, chain.raw.as_ptr()) };
        });
    }

    /// Writes a message about a rule.
    pub(crate) fn rule(&mut self, header: Header, rule: &Rule) {
        self.write(header, rule.bound, |message| {
            // SAFETY: both are alive, and there is room for the object's `bound` after the header.
            unsafe { ffi::nftnl_rule_nlmsg_build_payload(message, rule.raw.as_ptr()) };
        });
    }

    /// Writes a message about a set or map.
    pub(crate) fn set(&mut self, header: Header, set: &Set) {
        self.write(header, set.bound, |message| {
            // SAFETY: both are alive, and there is room for the object's `bound` after the header.
            unsafe { ffi::nftnl_set_nlmsg_build_payload(message, set.raw.as_ptr()) };
        });
    }

    /// Writes a message about elements of a set, as many as fit: `fill` makes the n-th element, or says that there are
    /// no more. Returns how many there are in the message.
    ///
    /// The list is one attribute, whose length has 16 bits.
    pub(crate) fn elements(
        &mut self,
        header: Header,
        set: &Set,
        element: &mut SetElement,
        mut fill: impl FnMut(usize, &mut SetElement) -> bool,
    ) -> usize {
        const LIST_MAX: usize = u16::MAX as usize;
        let start = self.reserve(HEADER + set.bound + LIST_MAX);
        let message = self.header(start, header);
        // SAFETY: both are alive, there is room for the set's `bound`, and a set without elements writes only the names of
        // table and set.
        unsafe { ffi::nftnl_set_elems_nlmsg_build_payload(message, set.raw.as_ptr()) };

        let list = start + self.message_len(start) / 4;
        let nested = u32::from(SET_ELEM_LIST_ELEMENTS | NESTED);
        self.set_message_len(start, self.message_len(start) + 4);
        let mut count = 0;
        loop {
            let length = self.message_len(start) - (list - start) * 4;
            self.words[list] = attribute_header(length as u16, nested as u16);
            if length + ELEMENT_MAX > LIST_MAX || !fill(count, element) {
                break;
            }
            count += 1;
            let message = self.at(start).cast::<libc::nlmsghdr>();
            // SAFETY: both are alive; the header says where the message ends, and there is room for the largest element
            // (`SetElement` limits each of its parts), as was just checked.
            unsafe { ffi::nftnl_set_elem_nlmsg_build(message, element.raw.as_ptr(), count as c_int) };
        }
        self.finish(start);
        count
    }

    /// Adds flags to the message that starts at this byte.
    pub(crate) fn add_flags(&mut self, at: usize, flags: u16) {
        let word = &mut self.words[at / 4 + 1];
        let mut bytes = word.to_ne_bytes();
        let old = u16::from_ne_bytes([bytes[2], bytes[3]]);
        bytes[2..].copy_from_slice(&(old | flags).to_ne_bytes());
        *word = u32::from_ne_bytes(bytes);
    }

    fn write(&mut self, header: Header, bound: usize, build: impl FnOnce(*mut libc::nlmsghdr)) {
        let start = self.reserve(HEADER + bound);
        build(self.header(start, header));
        self.finish(start);
    }

    fn header(&mut self, start: usize, header: Header) -> *mut libc::nlmsghdr {
        let buffer = self.at(start).cast::<c_char>();
        let Header { kind, family, flags, sequence } = header;
        // SAFETY: the buffer is aligned to 4 bytes and has room for the headers, which is all that is written.
        unsafe { ffi::nftnl_nlmsg_build_hdr(buffer, kind, family.into(), flags, sequence) }
    }

    /// Room for so many bytes more; returns the index of its first word.
    fn reserve(&mut self, bytes: usize) -> usize {
        let start = self.words.len();
        self.words.resize(start + bytes.div_ceil(4), 0);
        start
    }

    fn at(&mut self, start: usize) -> *mut u32 {
        self.words[start..].as_mut_ptr()
    }

    /// The length field of the message that starts at a word.
    fn message_len(&self, start: usize) -> usize {
        self.words[start] as usize
    }

    fn set_message_len(&mut self, start: usize, length: usize) {
        self.words[start] = length as u32;
    }

    /// Gives back what was reserved and not used.
    fn finish(&mut self, start: usize) {
        let end = start + self.message_len(start).div_ceil(4);
        assert!(end <= self.words.len(), "a message is longer than what was reserved for it");
        self.words.truncate(end);
    }
}

fn attribute_header(length: u16, kind: u16) -> u32 {
    let [a, b] = length.to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// The same memory as bytes.
fn as_bytes(words: &[u32]) -> &[u8] {
    // SAFETY: every byte of a number is initialised, bytes need no alignment, and length and lifetime are the slice's.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), size_of_val(words)) }
}
