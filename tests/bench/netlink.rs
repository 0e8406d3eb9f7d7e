//! As little of nftables' netlink as it takes to read elements and to send them again. Nothing of it is nftproxyd's own
//! code: it shows what the kernel needs, not how well the daemon asks.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

// include/uapi/linux/netlink.h, netfilter/nfnetlink.h and netfilter/nf_tables.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWSET: u16 = SUBSYSTEM << 8 | 9;
const GETSET: u16 = SUBSYSTEM << 8 | 10;
const NEWSETELEM: u16 = SUBSYSTEM << 8 | 12;
const GETSETELEM: u16 = SUBSYSTEM << 8 | 13;
const DELSETELEM: u16 = SUBSYSTEM << 8 | 14;
/// Of connection tracking; without attributes it deletes all that there is.
const DELETE_CONNECTIONS: u16 = 1 << 8 | 2;
const TABLE: u16 = 1;
const SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;

/// The header of a message and what follows it in all of nftables' messages.
const HEADER: usize = 20;
/// Elements of about so many bytes go into one message, whose list has a length of 16 bits.
const MESSAGE: usize = 32 * 1024;
/// Messages of about so many bytes go into one transaction, as many elements as the daemon sends at once.
const TRANSACTION: usize = 512 * 1024;

/// A set of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Set {
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
}

/// Whether elements are added or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Delete,
    Add,
}

/// A socket to netfilter of the network namespace in which it was opened.
pub(crate) struct Nftables {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Nftables {
    pub(crate) fn open() -> Result<Nftables> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::SndBufForce, &(4 * TRANSACTION))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(4 * TRANSACTION))?;
        Ok(Nftables { socket, buffer: vec![0; 128 * 1024] })
    }

    /// The sets of a table.
    pub(crate) fn sets(&mut self, family: u8, table: &str) -> Result<Vec<Set>> {
        let mut sets = Vec::new();
        self.dump(family, GETSET, &[(TABLE, table)], |kind, attributes| {
            let name = attributes.clone().find(|(kind, _)| *kind == SET);
            let of_table = attributes.clone().any(|(kind, value)| kind == TABLE && text(value) == table);
            if let Some((_, name)) = name.filter(|_| kind == NEWSET && of_table) {
                sets.push(Set { family, table: table.to_owned(), name: text(name).to_owned() });
            }
        })?;
        Ok(sets)
    }

    /// The elements of a set, each as the kernel writes it.
    pub(crate) fn elements(&mut self, set: &Set) -> Result<Vec<Vec<u8>>> {
        let mut elements = Vec::new();
        self.dump(set.family, GETSETELEM, &[(TABLE, &set.table), (SET, &set.name)], |kind, mut attributes| {
            let list = attributes.find(|(kind, _)| *kind == ELEMENTS);
            if let Some((_, list)) = list.filter(|_| kind == NEWSETELEM) {
                elements.extend(Attributes(list).map(|(_, element)| element.to_vec()));
            }
        })?;
        Ok(elements)
    }

    /// Sends a transaction. Returns the time until the kernel has answered.
    pub(crate) fn commit(&mut self, transaction: &Transaction) -> Result<Duration> {
        let start = Instant::now();
        self.exchange(&transaction.0).context("the kernel refuses a transaction")?;
        Ok(start.elapsed())
    }

    /// Deletes everything, as `nft flush ruleset` does.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let mut batch = Batch::begin();
        batch.sequence += 1;
        batch.last = batch.bytes.len();
        batch.bytes.extend(Message::new(DELTABLE, NLM_F_REQUEST, 0, batch.sequence).finish());
        self.exchange(&batch.end().0).context("the kernel refuses to flush everything")
    }

    /// Makes connection tracking forget every connection.
    pub(crate) fn forget_connections(&mut self) -> Result<()> {
        let request = Message::new(DELETE_CONNECTIONS, NLM_F_REQUEST | NLM_F_ACK, 0, 1);
        self.exchange(&request.finish()).context("the kernel keeps its connections")
    }

    /// Sends what is answered by one acknowledgement, or by errors before it.
    fn exchange(&mut self, bytes: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::empty())?;
        let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        let answer = self.buffer.get(..length).and_then(|answer| answer.get(16..20)).context("a strange answer")?;
        match i32::from_ne_bytes(answer.try_into()?) {
            0 => Ok(()),
            errno => Err(Errno::from_raw(-errno).into()),
        }
    }

    fn dump(
        &mut self,
        family: u8,
        kind: u16,
        texts: &[(u16, &str)],
        mut each: impl FnMut(u16, Attributes<'_>),
    ) -> Result<()> {
        let mut request = Message::new(kind, NLM_F_REQUEST | NLM_F_DUMP, family, 0);
        texts.iter().for_each(|(kind, text)| request.text(*kind, text));
        send(self.socket.as_raw_fd(), &request.finish(), MsgFlags::empty())?;
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((kind, payload, after)) = first_message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => bail!("the kernel refuses to list elements"),
                    kind => each(kind, Attributes(payload.get(4..).unwrap_or_default())),
                }
                rest = after;
            }
        }
    }
}

/// Bytes that the kernel takes as a whole or not at all.
pub(crate) struct Transaction(Vec<u8>);

impl Transaction {
    /// One with all of this, in this order.
    pub(crate) fn of(changes: &[(Verb, &Set, Vec<&[u8]>)]) -> Transaction {
        let mut transaction = Batch::begin();
        for (verb, set, elements) in changes {
            let mut rest = elements.as_slice();
            while !rest.is_empty() {
                rest = transaction.add(*verb, set, rest);
            }
        }
        transaction.end()
    }

    /// As many as it takes to add these elements.
    pub(crate) fn adding(set: &Set, elements: &[&[u8]]) -> Vec<Transaction> {
        let mut transactions = Vec::new();
        let mut rest = elements;
        while !rest.is_empty() {
            let mut batch = Batch::begin();
            while !rest.is_empty() && batch.bytes.len() < TRANSACTION {
                rest = batch.add(Verb::Add, set, rest);
            }
            transactions.push(batch.end());
        }
        transactions
    }
}

struct Batch {
    bytes: Vec<u8>,
    /// Where the last message begins: it is the one that is answered.
    last: usize,
    sequence: u32,
}

impl Batch {
    fn begin() -> Batch {
        let mut begin = Message::new(BATCH_BEGIN, NLM_F_REQUEST, 0, 0);
        begin.set_subsystem();
        Batch { bytes: begin.finish(), last: 0, sequence: 0 }
    }

    /// Adds one message with as many elements as fit. Returns the others.
    fn add<'a, 'e>(&mut self, verb: Verb, set: &Set, elements: &'a [&'e [u8]]) -> &'a [&'e [u8]] {
        let (kind, flags) = if verb == Verb::Add { (NEWSETELEM, NLM_F_CREATE) } else { (DELSETELEM, 0) };
        self.sequence += 1;
        let mut message = Message::new(kind, NLM_F_REQUEST | flags, set.family, self.sequence);
        message.text(TABLE, &set.table);
        message.text(SET, &set.name);
        let mut list = Vec::new();
        let mut count = 0;
        for element in elements {
            if list.len() > MESSAGE {
                break;
            }
            attribute(&mut list, ELEMENT, element);
            count += 1;
        }
        attribute(&mut message.0, ELEMENTS, &list);
        self.last = self.bytes.len();
        self.bytes.extend(message.finish());
        &elements[count..]
    }

    fn end(mut self) -> Transaction {
        let flags = self.last + 6;
        let asked = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | NLM_F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&asked.to_ne_bytes());
        let mut end = Message::new(BATCH_END, NLM_F_REQUEST, 0, self.sequence + 1);
        end.set_subsystem();
        self.bytes.extend(end.finish());
        Transaction(self.bytes)
    }
}

/// A message that is being made.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, family: u8, sequence: u32) -> Message {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([family, 0, 0, 0]);
        Message(bytes)
    }

    /// A batch says whose it is.
    fn set_subsystem(&mut self) {
        self.0[HEADER - 2..HEADER].copy_from_slice(&SUBSYSTEM.to_be_bytes());
    }

    fn text(&mut self, kind: u16, text: &str) {
        let value: Vec<u8> = text.bytes().chain([0]).collect();
        attribute(&mut self.0, kind, &value);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("messages are short");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).expect("lists are divided before they get too long");
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Type and payload of the first message, and what comes after it.
fn first_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, bytes.get(16..length)?, after))
}

/// Attributes, each with its type without flags and its value.
#[derive(Clone)]
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap_or_default().trim_end_matches('\0')
}
