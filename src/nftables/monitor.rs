//! Hears about changes of our tables that somebody else made.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::kernel::KernelError;
use super::numbers::protocol_family;
use super::request::NftablesMessage as _;
use super::uapi::{self, msg};
use crate::model::{Family, PerFamily};
use crate::netlink::{Bus, Message, Socket, asynchronous, find, messages};
use crate::ruleset::names::TABLE;

/// Room for notifications: a flush of everything tells every element.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;

/// What [`Monitor::read`] heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Another socket committed a change to our table of this family.
    Foreign {
        /// The table's family.
        family: Family,
        /// The other socket's port id, which is often its process id.
        port: u32,
        /// The number of the ruleset's generation that the change made.
        generation: u32,
    },
    /// Messages were lost: anything may have changed.
    Lost,
}

/// A socket that the kernel tells about every change of nftables in its network namespace.
///
/// While there is one, the kernel builds a message for each object and element of each transaction, also of our own
/// ones: start it after the first large transactions. The descriptor never blocks and can be waited for with `poll`.
pub struct Monitor {
    socket: Socket,
    own_port: u32,
    touched: PerFamily<Option<u32>>,
}

impl Monitor {
    /// Starts listening. `own_port` is [`super::LinuxKernel::port`] of the socket whose changes are ours.
    pub fn open(own_port: u32) -> Result<Monitor, KernelError> {
        let group = 1 << (uapi::GROUP_NFTABLES - 1);
        let opened = Socket::subscribe(Bus::Netfilter, group);
        let socket = opened.map_err(|source| KernelError::Io { step: "listen to changes", source })?;
        socket.raise_receive_queue(RECEIVE_QUEUE);
        Ok(Monitor { socket, own_port, touched: PerFamily::default() })
    }

    /// The same, to be waited for in a tokio runtime.
    pub fn asynchronous(self) -> Result<AsyncFd<Monitor>, KernelError> {
        asynchronous(self).map_err(|source| KernelError::Io { step: "listen to changes", source })
    }

    /// What was heard since the last time; empty if there is nothing more at the moment. Reads one piece of what waits,
    /// so call it until it returns `None`.
    pub fn read(&mut self) -> Result<Option<Vec<Heard>>, KernelError> {
        let bytes = match self.socket.receive() {
            Ok(bytes) => bytes,
            Err(error) => {
                return match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN | Errno::EINTR) => Ok(None),
                    Some(Errno::ENOBUFS) => {
                        self.touched = PerFamily::default();
                        Ok(Some(vec![Heard::Lost]))
                    }
                    _ => Err(KernelError::Io { step: "listen to changes", source: error }),
                };
            }
        };
        let mut heard = Vec::new();
        for message in messages(bytes) {
            let message = message.map_err(|error| KernelError::Protocol(error.to_string()))?;
            note(&message, self.own_port, &mut self.touched, &mut heard);
        }
        Ok(Some(heard))
    }
}

/// A transaction is told object by object, and ends with a message about the new generation.
fn note(message: &Message<'_>, own_port: u32, touched: &mut PerFamily<Option<u32>>, heard: &mut Vec<Heard>) {
    match message.nftables() {
        Some(msg::NEWGEN) => {
            let generation = find(message.attributes(), uapi::NFTA_GEN_ID).and_then(|id| id.number()).unwrap_or(0);
            for family in Family::ALL {
                if let Some(port) = touched[family].take() {
                    heard.push(Heard::Foreign { family, port, generation });
                }
            }
        }
        Some(_) if message.port != own_port => {
            let table = find(message.attributes(), uapi::NFTA_TABLE);
            if table.and_then(|name| name.text()) == Some(TABLE)
                && let Some(family) = Family::ALL.into_iter().find(|f| message.family() == Some(protocol_family(*f)))
            {
                touched[family] = Some(message.port);
            }
        }
        _ => {}
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
