//! What libmnl's socket and the system calls about it need.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nftnl::nftnl_sys::libc;

/// Memory to receive into, aligned as libmnl wants it.
#[derive(Debug)]
pub(in crate::nftables) struct ReceiveBuffer {
    words: Vec<u64>,
}

impl ReceiveBuffer {
    /// Room for so many bytes.
    pub(in crate::nftables) fn new(bytes: usize) -> Self {
        ReceiveBuffer { words: vec![0; bytes.div_ceil(8)] }
    }

    /// The memory.
    pub(in crate::nftables) fn bytes_mut(&mut self) -> &mut [u8] {
        let length = size_of_val(self.words.as_slice());
        // SAFETY: every byte of a number is initialised and any value of a byte makes a number, bytes need no alignment,
        // and length and lifetime are the slice's, which is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<u8>(), length) }
    }
}

/// The socket's descriptor, borrowed.
pub(in crate::nftables) fn borrow(socket: &mnl::Socket) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open as long as the socket is borrowed.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// Sets a netlink option of the socket (`NETLINK_*` of include/uapi/linux/netlink.h).
pub(in crate::nftables) fn set_netlink_option(socket: &mnl::Socket, option: c_int, value: c_int) -> io::Result<()> {
    let pointer = (&raw const value).cast::<c_void>();
    let length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and pointer and length are those of a number that outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, pointer, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// SAFETY: libmnl's socket is a descriptor and an address, without any state that belongs to a thread, and is owned here.
unsafe impl Send for Socket {}

/// A libmnl socket that may be moved to another thread.
pub(in crate::nftables) struct Socket(pub(in crate::nftables) mnl::Socket);
