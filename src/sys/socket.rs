//! libmnl's socket, and the system calls about it.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nftnl::nftnl_sys::libc;

/// Memory to receive into, aligned as libmnl wants it.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    words: Vec<u64>,
}

impl ReceiveBuffer {
    /// Room for so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        ReceiveBuffer { words: vec![0; bytes.div_ceil(8)] }
    }

    /// The memory, to be read.
    pub(crate) fn bytes(&self) -> &[u8] {
        let length = size_of_val(self.words.as_slice());
        // SAFETY: every byte of a number is initialised, bytes need no alignment, and length and lifetime are the slice's.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast::<u8>(), length) }
    }

    /// The memory, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let length = size_of_val(self.words.as_slice());
        // SAFETY: every byte of a number is initialised and any value of a byte makes a number, bytes need no alignment,
        // and length and lifetime are the slice's, which is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<u8>(), length) }
    }
}

/// A libmnl socket that may be moved to another thread.
pub(crate) struct Socket(mnl::Socket);

// SAFETY: libmnl's socket is a descriptor and an address, without any state that belongs to a thread, and is owned here.
unsafe impl Send for Socket {}

impl Socket {
    /// Opens a socket of a netlink protocol; it has no address yet.
    pub(crate) fn open(bus: mnl::Bus) -> io::Result<Socket> {
        mnl::Socket::open(bus).map(Socket)
    }

    /// Gives it an address of the kernel's choice, and subscribes to the groups in this mask.
    pub(crate) fn bind(&self, groups: u32) -> io::Result<()> {
        self.0.bind(groups, 0)
    }

    /// Its address: by it the kernel tells whose change it was.
    pub(crate) fn port(&self) -> u32 {
        self.0.portid()
    }

    /// Sends bytes in one piece; the number of bytes that were taken.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes)
    }

    /// Receives one datagram; its length. `ENOSPC` if it is longer than the buffer.
    pub(crate) fn receive(&self, buffer: &mut ReceiveBuffer) -> io::Result<usize> {
        self.0.recv_raw(buffer.bytes_mut())
    }
}

/// Sets an option of a netlink socket (`NETLINK_*` of include/uapi/linux/netlink.h).
pub(crate) fn set_option(socket: impl AsFd, option: c_int, value: c_int) -> io::Result<()> {
    let pointer = (&raw const value).cast::<c_void>();
    let length = size_of::<c_int>() as libc::socklen_t;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, as it is borrowed, and pointer and length are those of a number that outlives the call.
    let result = unsafe { libc::setsockopt(descriptor, libc::SOL_NETLINK, option, pointer, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the socket is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Socket").field(&self.0.as_raw_fd()).finish()
    }
}
