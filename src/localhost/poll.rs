//! All sockets that listen, as one thing to wait for.
//!
//! A task for each, or a place with the runtime, would take some hundred bytes of memory for each node port; here it takes
//! what the kernel takes (epoll(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

use crate::netlink::asynchronous;

/// How many sockets that have something are looked at before others have a turn.
const AT_ONCE: usize = 64;

struct Instance(Epoll);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Sockets that are waited for together, each under a number.
pub(super) struct Poll(AsyncFd<Instance>);

impl Poll {
    /// None yet. To be made where tasks run.
    pub(super) fn new() -> io::Result<Poll> {
        Ok(Poll(asynchronous(Instance(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))?))
    }

    /// Waits for this one as well.
    pub(super) fn add(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        Ok(self.0.get_ref().0.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, number))?)
    }

    /// Does not wait for this one any more. To be called before it is closed: others may have it open as well.
    pub(super) fn remove(&self, socket: impl AsFd) {
        // It is there.
        let _ = self.0.get_ref().0.delete(socket);
    }

    /// The numbers of some that have something to be read, or an error, as soon as there are any. What is left there is told
    /// of again.
    pub(super) async fn ready(&self) -> io::Result<Vec<u64>> {
        let mut events = [EpollEvent::empty(); AT_ONCE];
        loop {
            let mut ready = self.0.readable().await?;
            let found = self.0.get_ref().0.wait(&mut events, EpollTimeout::ZERO)?;
            if found > 0 {
                return Ok(events[..found].iter().map(EpollEvent::data).collect());
            }
            ready.clear_ready();
        }
    }
}
