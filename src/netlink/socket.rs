//! A netlink socket that talks to the kernel and to nobody else.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use mnl::Bus;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout, SndBuf, SndBufForce};
use nix::sys::socket::{NetlinkAddr, connect, setsockopt};
use nix::sys::time::TimeVal;
use tokio::io::unix::AsyncFd;

use super::message::{DUMP_INTERRUPTED, End, Message, messages};
use crate::sys::{self, ReceiveBuffer};

/// The kernel's dumps come in pieces of at most 32 KiB, its notifications in pieces of one page or one message.
const BUFFER: usize = 128 * 1024;

/// After how long a missing answer is an error, so that no thread can hang. The kernel answers before sending returns;
/// waiting is for the unforeseen.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the kernel counts of its own when it measures what is sent: generous.
const OVERHEAD: usize = 64 * 1024;

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dump {
    /// It is complete.
    Complete,
    /// Objects changed meanwhile: some may be missing or doubled.
    Interrupted,
}

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: sys::Socket,
    sequence: u32,
    buffer: ReceiveBuffer,
    /// The size that the send buffer was last raised to.
    send_buffer: usize,
}

impl Socket {
    /// Opens a socket of a netlink protocol for requests; it waits for answers.
    pub(crate) fn open(bus: Bus) -> io::Result<Socket> {
        let socket = Socket::new(bus, 0)?;
        let timeout = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, ReceiveTimeout, &timeout)?;
        Ok(socket)
    }

    /// Opens a socket that gets the notifications of `groups` (a mask; bit 0 is group 1); it never waits.
    pub(crate) fn subscribe(bus: Bus, groups: u32) -> io::Result<Socket> {
        let socket = Socket::new(bus, groups)?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(socket)
    }

    fn new(bus: Bus, groups: u32) -> io::Result<Socket> {
        let socket = sys::Socket::open(bus)?;
        // Not for programs that are started, such as a plug-in for credentials.
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        socket.bind(groups)?;
        // The kernel is port 0. It refuses to pass on what other processes send to a socket that is connected to it.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Socket { socket, sequence: 0, buffer: ReceiveBuffer::new(BUFFER), send_buffer: 0 })
    }

    /// Asks for errors that say which attribute was refused, and do not repeat the message. Both options are old (Linux
    /// 4.3 and 4.12).
    pub(crate) fn want_clear_errors(&self) -> io::Result<()> {
        sys::set_option(self, libc::NETLINK_CAP_ACK, 1)?;
        sys::set_option(self, libc::NETLINK_EXT_ACK, 1)
    }

    /// Makes room for so many bytes of answers or notifications. Without CAP_NET_ADMIN in the first user namespace only
    /// the limit of net.core.rmem_max is granted; then less fits, and too much is noticed (`ENOBUFS`).
    pub(crate) fn raise_receive_queue(&self, bytes: usize) {
        if setsockopt(self, RcvBufForce, &bytes).is_err() {
            let _ = setsockopt(self, RcvBuf, &bytes);
        }
    }

    /// The socket's address, by which the kernel tells whose change it was.
    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// The sequence number for the next request. It only counts up, so late answers are told from those that are waited
    /// for.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// From now on sequence numbers follow this one, which a batch has used.
    pub(crate) fn used_sequence(&mut self, sequence: u32) {
        self.sequence = sequence;
    }

    /// Sends a request with the flag `ACK` and waits for its result.
    pub(crate) fn execute(&mut self, request: &[u8]) -> io::Result<()> {
        self.dump(request, |_| {}).map(drop)
    }

    /// Sends messages that the kernel carries out together or not at all, with the sequence numbers `sequences`, of which
    /// the last asks for an acknowledgement. The result is the first error of any of them.
    pub(crate) fn execute_batch(&mut self, batch: &[u8], sequences: RangeInclusive<u32>) -> io::Result<()> {
        self.send(batch)?;
        loop {
            for message in messages(self.wait()?) {
                let message = message.map_err(io::Error::other)?;
                match message.end().filter(|_| sequences.contains(&message.sequence)) {
                    Some(End::Done) if message.sequence == *sequences.end() => return Ok(()),
                    Some(End::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                    _ => {}
                }
            }
        }
    }

    /// Sends a request, with the sequence number that was last given out, and hands each object of the answer to `visit`
    /// as it arrives.
    pub(crate) fn dump(&mut self, request: &[u8], mut visit: impl FnMut(Message<'_>)) -> io::Result<Dump> {
        let dump = self.visit(request, || true, |message| visit(*message))?;
        dump.ok_or_else(|| io::Error::other("a dump without an end"))
    }

    /// The same as long as `goes_on`, which is asked before each piece: `None` if there was more, which still comes.
    pub(crate) fn dump_while(
        &mut self,
        request: &[u8],
        goes_on: impl Fn() -> bool,
        visit: impl FnMut(&Message<'_>),
    ) -> io::Result<Option<Dump>> {
        self.visit(request, goes_on, visit)
    }

    fn visit(
        &mut self,
        request: &[u8],
        goes_on: impl Fn() -> bool,
        mut visit: impl FnMut(&Message<'_>),
    ) -> io::Result<Option<Dump>> {
        self.send(request)?;
        let sequence = self.sequence;
        let mut interrupted = false;
        while goes_on() {
            for message in messages(self.wait()?) {
                let message = message.map_err(io::Error::other)?;
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.end() {
                    None => visit(&message),
                    Some(End::Done) => return Ok(Some(if interrupted { Dump::Interrupted } else { Dump::Complete })),
                    Some(End::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
        Ok(None)
    }

    /// Reads away what has arrived; says whether there was anything, or whether some of it was lost.
    pub(crate) fn drain(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.receive() {
                Ok(_) => any = true,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    // There was more than the buffer, or the queue, of the socket holds.
                    Some(Errno::ENOSPC | Errno::ENOBUFS) => any = true,
                    Some(Errno::EINTR) => {}
                    Some(Errno::EAGAIN) => return Ok(any),
                    _ => return Err(error),
                },
            }
        }
    }

    /// Sends bytes in one piece: the kernel carries out a batch only if it has all of it.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The kernel counts its own overhead as well. Without the privilege for more, it says that the buffer is small.
        let wanted = bytes.len() + OVERHEAD;
        if wanted > self.send_buffer {
            if setsockopt(self, SndBufForce, &wanted).is_err() {
                let _ = setsockopt(self, SndBuf, &wanted);
            }
            self.send_buffer = wanted;
        }
        let sent = self.socket.send(bytes)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the kernel took only a part of a message")) }
    }

    /// Receives one datagram: messages, to be walked by [`messages`]. `EAGAIN` when nothing came in time, `ENOBUFS` when
    /// something was lost.
    pub(crate) fn receive(&mut self) -> io::Result<&[u8]> {
        let length = self.socket.receive(&mut self.buffer)?;
        Ok(self.buffer.bytes().get(..length).unwrap_or_default())
    }

    /// Waits for one datagram, for as long as there is patience.
    fn wait(&mut self) -> io::Result<&[u8]> {
        let length = loop {
            match self.socket.receive(&mut self.buffer) {
                Ok(length) => break length,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => {}
                    Some(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT.into()),
                    _ => return Err(error),
                },
            }
        };
        Ok(self.buffer.bytes().get(..length).unwrap_or_default())
    }
}

/// Has a socket get the notifications of a group from now on, or not. Any descriptor of it will do.
pub(crate) fn subscribed(socket: impl AsFd, group: u32, is_subscribed: bool) -> io::Result<()> {
    let option = if is_subscribed { libc::NETLINK_ADD_MEMBERSHIP } else { libc::NETLINK_DROP_MEMBERSHIP };
    sys::set_option(socket, option, group.cast_signed())
}

/// A descriptor that a tokio task can wait for. What is wrapped owns its descriptor and never changes it, as [`Socket`].
pub(crate) fn asynchronous<T: AsRawFd>(socket: T) -> io::Result<AsyncFd<T>> {
    #[expect(
        deprecated,
        reason = "the safe constructor; its successor is unsafe for types that do not own their descriptor"
    )]
    AsyncFd::new(socket)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
