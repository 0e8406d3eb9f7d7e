//! Questions to nf_tables, and what all of its messages have.

use std::io;

use nix::errno::Errno;

use super::kernel::KernelError;
use super::uapi;
use crate::netlink::{ACK, Attributes, Builder, Bus, DUMP, Dump, Message, REQUEST, Socket};

/// How often a dump is repeated that the kernel reports as torn by a change.
const DUMP_ATTEMPTS: usize = 20;

/// Length of `struct nfgenmsg`, which all nftables messages begin with.
const GENERIC_HEADER: usize = 4;

/// What a message of nftables has besides its netlink header.
pub(super) trait NftablesMessage<'a> {
    /// The type (`uapi::msg`); `None` for a message of another subsystem.
    fn nftables(&self) -> Option<u16>;
    /// The family (`NFPROTO_*`).
    fn family(&self) -> Option<u8>;
    /// The attributes.
    fn attributes(&self) -> Attributes<'a>;
}

impl<'a> NftablesMessage<'a> for Message<'a> {
    fn nftables(&self) -> Option<u16> {
        (self.kind & 0xff00 == uapi::SUBSYSTEM).then_some(self.kind & 0xff)
    }

    fn family(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    fn attributes(&self) -> Attributes<'a> {
        self.attributes_after(GENERIC_HEADER)
    }
}

/// Opens a socket for questions and transactions.
pub(super) fn open() -> Result<Socket, KernelError> {
    Socket::open(Bus::Netfilter).map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPROTONOSUPPORT) => KernelError::Unsupported,
        _ => KernelError::Io { step: "open a socket", source },
    })
}

/// How much of a dump was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// All of it.
    All,
    /// All of it, but something has changed meanwhile: some objects may be missing or doubled.
    Torn,
    /// A part: the rest still comes, and the socket is of no use any more.
    Part,
}

/// A question to the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// Of `uapi::msg`.
    pub(super) kind: u16,
    /// `NFPROTO_*`, or 0 for all.
    pub(super) family: u8,
    /// Ask for all that match, not for one object.
    pub(super) dump: bool,
    /// Texts by attribute type.
    pub(super) texts: &'a [(u16, &'a str)],
}

impl Request<'_> {
    /// Asks, and gives every message of the answer to `each`. A dump that was torn by a change is begun anew: `each` is
    /// then called with `None` first.
    ///
    /// # Errors
    /// What the kernel refuses is `Ok(Err(errno))`, as the number that it is; it may mean only that an object is not there.
    pub(super) fn ask(
        &self,
        socket: &mut Socket,
        mut each: impl FnMut(Option<&Message<'_>>),
    ) -> Result<Result<(), i32>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            each(None);
            let request = self.encode(socket.next_sequence());
            match socket.dump(&request, |message| each(Some(&message))) {
                Ok(Dump::Complete) => return Ok(Ok(())),
                Ok(Dump::Interrupted) => {}
                Err(error) => match error.raw_os_error() {
                    Some(code) if code == Errno::EINTR as i32 => {}
                    Some(code) if !is_of_socket(code) => return Ok(Err(code)),
                    _ => return Err(KernelError::Io { step: "ask the kernel", source: error }),
                },
            }
        }
        Err(KernelError::Restless)
    }

    /// Asks for all that match, and takes what comes as long as `goes_on`, torn by a change or not. What the kernel refuses is
    /// an errno.
    pub(super) fn ask_while(
        &self,
        socket: &mut Socket,
        goes_on: impl Fn() -> bool,
        each: impl FnMut(&Message<'_>),
    ) -> Result<Result<Taken, i32>, KernelError> {
        let request = self.encode(socket.next_sequence());
        match socket.dump_while(&request, goes_on, each) {
            Ok(Some(Dump::Complete)) => Ok(Ok(Taken::All)),
            Ok(Some(Dump::Interrupted)) => Ok(Ok(Taken::Torn)),
            Ok(None) => Ok(Ok(Taken::Part)),
            Err(error) => match error.raw_os_error() {
                Some(code) if code == Errno::EINTR as i32 => Ok(Ok(Taken::Torn)),
                Some(code) if !is_of_socket(code) => Ok(Err(code)),
                _ => Err(KernelError::Io { step: "ask the kernel", source: error }),
            },
        }
    }

    fn encode(&self, sequence: u32) -> Vec<u8> {
        let flags = REQUEST | if self.dump { DUMP } else { ACK };
        let header = [self.family, 0, 0, 0];
        let message = Builder::message(uapi::SUBSYSTEM | self.kind, flags, sequence, &header);
        // A text ends with NUL.
        let texts = self.texts.iter();
        texts
            .fold(message, |message, (kind, text)| message.attribute(*kind, &[text.as_bytes(), &[0]].concat()))
            .finish()
    }
}

/// Whether an error can only be one of the socket, and says nothing of what was asked for.
fn is_of_socket(code: i32) -> bool {
    matches!(Errno::from_raw(code), Errno::ETIMEDOUT | Errno::ENOBUFS | Errno::ENOSPC | Errno::EBADF)
}

/// What it means that the kernel refused a question with this errno.
pub(super) fn unexpected(step: &'static str, errno: i32) -> KernelError {
    match Errno::from_raw(errno) {
        Errno::EPERM | Errno::EACCES => KernelError::Permission,
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT => KernelError::Unsupported,
        _ => KernelError::Io { step, source: io::Error::from_raw_os_error(errno) },
    }
}
