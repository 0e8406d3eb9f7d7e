//! A netlink socket that talks to the kernel and to nobody else.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SndBufForce};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, recv, send, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;

use super::message::{DUMP_INTERRUPTED, Message, messages};

/// Larger than what the kernel puts into one datagram of a dump (32 KiB).
const BUFFER: usize = 64 * 1024;

/// Seconds after which a missing answer is an error, so that no thread can hang.
const PATIENCE: i64 = 10;

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dump {
    /// It is complete.
    Complete,
    /// Objects changed meanwhile: some may be missing or doubled.
    Interrupted,
}

/// A connected netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a netlink protocol for requests; it waits for answers.
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Socket> {
        let socket = Socket::new(protocol, SockFlag::empty(), 0)?;
        setsockopt(&socket.descriptor, ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(socket)
    }

    /// Opens a socket that gets the notifications of `groups` (a mask, `RTMGRP_*`); it never waits.
    pub(crate) fn subscribe(protocol: SockProtocol, groups: u32) -> io::Result<Socket> {
        Socket::new(protocol, SockFlag::SOCK_NONBLOCK, groups)
    }

    fn new(protocol: SockProtocol, flags: SockFlag, groups: u32) -> io::Result<Socket> {
        let descriptor = socket(AddressFamily::Netlink, SockType::Raw, flags | SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // The kernel is port 0. It refuses to pass on what other processes send to a socket that is connected to it.
        connect(descriptor.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Socket { descriptor, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// The sequence number for the next request.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request with the flag `ACK` and waits for its result.
    pub(crate) fn execute(&mut self, request: &[u8]) -> io::Result<()> {
        self.send(request)?;
        loop {
            let (received, sequence) = (self.receive()?, self.sequence);
            let results = messages(&self.buffer[..received]).filter(|message| message.sequence == sequence);
            if let Some(errno) = results.filter_map(|message| message.errno()).next() {
                return result(errno);
            }
        }
    }

    /// Sends messages that the kernel carries out together or not at all, with the sequence numbers `sequences`, of which
    /// the last asks for an acknowledgement. The result is the first error of any of them.
    pub(crate) fn execute_batch(&mut self, batch: &[u8], sequences: RangeInclusive<u32>) -> io::Result<()> {
        // A default buffer holds a few hundred messages. Without the privilege for more, the kernel says that it is small.
        let _ = setsockopt(&self.descriptor, SndBufForce, &(2 * batch.len()));
        self.send(batch)?;
        loop {
            let received = self.receive()?;
            for message in messages(&self.buffer[..received]).filter(|message| sequences.contains(&message.sequence)) {
                match message.errno() {
                    Some(0) if message.sequence == *sequences.end() => return Ok(()),
                    Some(errno) if errno != 0 => return result(errno),
                    _ => {}
                }
            }
        }
    }

    /// Sends a request with the flag `DUMP` and hands each object to `visit` as it arrives.
    pub(crate) fn dump(&mut self, request: &[u8], mut visit: impl FnMut(Message<'_>)) -> io::Result<Dump> {
        self.send(request)?;
        let mut interrupted = false;
        loop {
            let (received, sequence) = (self.receive()?, self.sequence);
            for message in messages(&self.buffer[..received]).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.errno() {
                    None => visit(message),
                    Some(errno) => {
                        result(errno)?;
                        return Ok(if interrupted { Dump::Interrupted } else { Dump::Complete });
                    }
                }
            }
        }
    }

    /// Reads away what has arrived; says whether there was anything, or whether some of it was lost.
    pub(crate) fn drain(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match recv(self.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                // ENOBUFS: there was more than the buffer of the socket holds.
                Ok(_) | Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(any),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let sent = send(self.as_raw_fd(), request, MsgFlags::empty())?;
        if sent == request.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }

    /// Receives one datagram into the buffer; its length.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) if length <= self.buffer.len() => return Ok(length),
                Ok(_) => return Err(Errno::EMSGSIZE.into()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

fn result(errno: i32) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
