//! A netlink socket: options, sending in one piece, receiving, dumps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::attributes::{Message, messages};
use super::kernel::KernelError;
use super::sys::{self, ReceiveBuffer};
use super::{decode, uapi};

/// How long the kernel may take to answer. It answers before sending returns; waiting is for the unforeseen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel's dumps come in pieces of at most 32 KiB, its notifications in pieces of one page or one message.
const RECEIVE_BUFFER: usize = 128 * 1024;
/// Room for answers: an error takes less than 1 KiB of the socket's memory, so thousands fit.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;
/// How often a dump is repeated that the kernel reports as torn by a change.
const DUMP_ATTEMPTS: usize = 20;

// include/uapi/linux/netlink.h.
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_CAP_ACK: i32 = 10;
const NETLINK_EXT_ACK: i32 = 11;

/// A socket that speaks to the kernel's netfilter.
pub(super) struct Socket {
    socket: sys::Socket,
    buffer: ReceiveBuffer,
    /// The size that the send buffer was last raised to.
    send_buffer: usize,
}

impl Socket {
    /// Opens a socket with a port id of the kernel's choice.
    pub(super) fn open() -> Result<Socket, KernelError> {
        let step = |step: &'static str| move |source: io::Error| KernelError::Io { step, source };
        let socket = mnl::Socket::open(mnl::Bus::Netfilter).map_err(|error| match error.raw_os_error() {
            Some(code) if code == Errno::EPROTONOSUPPORT as i32 => KernelError::Unsupported,
            _ => step("open a socket")(error),
        })?;
        socket.bind(0, 0).map_err(step("bind a socket"))?;
        // Both are old (Linux 4.3 and 4.12), and only make errors smaller and clearer.
        for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
            sys::set_netlink_option(&socket, option, 1).map_err(step("set a socket option"))?;
        }
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&sys::borrow(&socket), sockopt::ReceiveTimeout, &timeout)
            .map_err(io::Error::from)
            .map_err(step("set a socket's time-out"))?;
        let mut socket =
            Socket { socket: sys::Socket(socket), buffer: ReceiveBuffer::new(RECEIVE_BUFFER), send_buffer: 0 };
        socket.raise_receive_queue();
        Ok(socket)
    }

    /// Joins the group that tells about changes of nftables, and never blocks from now on.
    pub(super) fn listen(&mut self) -> Result<(), KernelError> {
        sys::set_netlink_option(&self.socket.0, NETLINK_ADD_MEMBERSHIP, uapi::GROUP_NFTABLES.cast_signed())
            .map_err(|source| KernelError::Io { step: "listen to changes", source })?;
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(self.as_fd(), flags)
            .map_err(|error| KernelError::Io { step: "listen to changes", source: error.into() })?;
        Ok(())
    }

    /// The socket's address, by which the kernel tells whose change it was.
    pub(super) fn port(&self) -> u32 {
        self.socket.0.portid()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.socket.0)
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.socket.0.as_raw_fd()
    }

    fn raise_receive_queue(&mut self) {
        // Without CAP_NET_ADMIN in the first user namespace only the limit of net.core.rmem_max is granted; then fewer
        // answers fit, and too many are noticed (ENOBUFS).
        if setsockopt(&self.as_fd(), sockopt::RcvBufForce, &RECEIVE_QUEUE).is_err() {
            let _ = setsockopt(&self.as_fd(), sockopt::RcvBuf, &RECEIVE_QUEUE);
        }
    }

    /// Sends bytes in one piece.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The kernel counts its own overhead as well, and doubles what it is asked for.
        let wanted = bytes.len() + 64 * 1024;
        if wanted > self.send_buffer {
            if setsockopt(&self.as_fd(), sockopt::SndBufForce, &wanted).is_err() {
                let _ = setsockopt(&self.as_fd(), sockopt::SndBuf, &wanted);
            }
            self.send_buffer = wanted;
        }
        let sent = self.socket.0.send(bytes)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the kernel took only a part of a batch")) }
    }

    /// Waits for something to come in.
    pub(super) fn receive(&mut self) -> io::Result<&[u8]> {
        let buffer = self.buffer.bytes_mut();
        let length = self.socket.0.recv_raw(buffer)?;
        Ok(buffer.get(..length).unwrap_or_default())
    }

    /// Sends a request and gives every message of the answer to `each`. Returns the errno if the kernel refuses (0 means
    /// success), and the number of messages otherwise. A dump that was torn by a change is begun anew: `each` is
    /// then called with `None` first.
    pub(super) fn request(
        &mut self,
        request: &Request<'_>,
        sequence: &mut u32,
        mut each: impl FnMut(Option<&Message<'_>>) -> Result<(), KernelError>,
    ) -> Result<Result<(), Errno>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            each(None)?;
            *sequence = sequence.wrapping_add(1);
            self.send(&request.encode(*sequence)).map_err(|error| refused("send a request", error))?;
            let mut torn = false;
            let errno = loop {
                let bytes = match self.receive() {
                    Ok(bytes) => bytes,
                    Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => continue,
                    Err(error) => return Err(refused("receive an answer", error)),
                };
                let mut finished = None;
                for message in messages(bytes) {
                    let message = message.map_err(|error| KernelError::Protocol(error.to_string()))?;
                    if message.sequence != *sequence {
                        continue;
                    }
                    torn |= message.flags & uapi::NLM_F_DUMP_INTR != 0;
                    if let Some(answer) = decode::answer(&message) {
                        finished = Some(Errno::from_raw(answer.errno));
                    } else if message.kind == uapi::NLMSG_DONE {
                        finished = Some(Errno::UnknownErrno);
                    } else {
                        each(Some(&message))?;
                        // A single object comes without the flag; the acknowledgement follows it.
                    }
                }
                if let Some(errno) = finished {
                    break errno;
                }
            };
            match errno {
                Errno::EPERM | Errno::EACCES => return Err(KernelError::Permission),
                Errno::EINTR => {}
                _ if torn => {}
                Errno::UnknownErrno => return Ok(Ok(())),
                errno => return Ok(Err(errno)),
            }
        }
        Err(KernelError::Restless)
    }
}

fn refused(step: &'static str, source: io::Error) -> KernelError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => KernelError::Permission,
        _ => KernelError::Io { step, source },
    }
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
    fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut out = vec![0; 4];
        let flags = uapi::NLM_F_REQUEST | if self.dump { uapi::NLM_F_DUMP } else { uapi::NLM_F_ACK };
        out.extend((uapi::SUBSYSTEM | self.kind).to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend([0; 4]);
        out.extend([self.family, 0, 0, 0]);
        for (kind, text) in self.texts {
            // Names of ours, far shorter than 64 KiB.
            out.extend((text.len() as u16 + 5).to_ne_bytes());
            out.extend(kind.to_ne_bytes());
            out.extend(text.as_bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        let length = out.len() as u32;
        out[..4].copy_from_slice(&length.to_ne_bytes());
        out
    }
}
