//! Hears about changes of our tables that somebody else made.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::kernel::KernelError;
use super::numbers::protocol_family;
use super::request::NftablesMessage as _;
use super::uapi::{self, msg};
use crate::model::{Family, PerFamily};
use crate::netlink::{Bus, Message, Socket, asynchronous, find, messages, subscribed};
use crate::ruleset::names::TableName;

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

/// Who listens to what others change, as far as whoever makes changes has to know ([`super::LinuxKernel::audience`]).
///
/// While anybody listens, the kernel describes every object of every transaction, also of our own, which is more than half
/// of what a large one costs.
#[derive(Debug, Clone)]
pub struct Audience {
    /// The table that is ours.
    table: TableName,
    /// The address of the socket whose changes are ours.
    own_port: u32,
    /// The socket of the [`Monitor`] that there is.
    listener: Arc<Mutex<Option<OwnedFd>>>,
}

impl Audience {
    pub(super) fn of(table: TableName, own_port: u32) -> Audience {
        Audience { table, own_port, listener: Arc::default() }
    }

    fn listener(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        // It is whole whatever has panicked.
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has whoever listens look away while something is done. Says also whether anybody may have missed something. Nobody
    /// is waited for: who begins to listen meanwhile does so.
    pub(super) fn without<T>(&self, done: impl FnOnce() -> T) -> (T, bool) {
        let listener = self.listener().as_ref().and_then(|socket| socket.try_clone().ok());
        let Some(socket) = listener else { return (done(), false) };
        let away = subscribed(&socket, uapi::GROUP_NFTABLES, false).is_ok();
        let result = done();
        // The kernel has made room for it already, so that it cannot fail but for a privilege that is lost.
        if away && let Err(error) = subscribed(&socket, uapi::GROUP_NFTABLES, true) {
            warn!("changes of nftables by others are not heard any more: {error}");
        }
        (result, away)
    }
}

/// A socket that the kernel tells about every change of nftables in its network namespace.
///
/// It hears nothing of what others do during a large transaction of our own ([`super::Committed::unheard`]). The
/// descriptor never blocks and can be waited for with `poll`.
pub struct Monitor {
    socket: Socket,
    audience: Audience,
    touched: PerFamily<Option<u32>>,
}

impl Monitor {
    /// Starts listening.
    pub fn open(audience: &Audience) -> Result<Monitor, KernelError> {
        let failed = |source: io::Error| KernelError::Io { step: "listen to changes", source };
        let socket = Socket::subscribe(Bus::Netfilter, 1 << (uapi::GROUP_NFTABLES - 1)).map_err(failed)?;
        socket.raise_receive_queue(RECEIVE_QUEUE);
        *audience.listener() = Some(socket.as_fd().try_clone_to_owned().map_err(failed)?);
        Ok(Monitor { socket, audience: audience.clone(), touched: PerFamily::default() })
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
            note(&message, &self.audience, &mut self.touched, &mut heard);
        }
        Ok(Some(heard))
    }
}

/// A transaction is told object by object, and ends with a message about the new generation.
fn note(message: &Message<'_>, audience: &Audience, touched: &mut PerFamily<Option<u32>>, heard: &mut Vec<Heard>) {
    match message.nftables() {
        Some(msg::NEWGEN) => {
            let generation = find(message.attributes(), uapi::NFTA_GEN_ID).and_then(|id| id.number()).unwrap_or(0);
            for family in Family::ALL {
                if let Some(port) = touched[family].take() {
                    heard.push(Heard::Foreign { family, port, generation });
                }
            }
        }
        Some(_) if message.port != audience.own_port => {
            let table = find(message.attributes(), uapi::NFTA_TABLE);
            if table.and_then(|name| name.text()) == Some(audience.table.as_str())
                && let Some(family) = Family::ALL.into_iter().find(|f| message.family() == Some(protocol_family(*f)))
            {
                touched[family] = Some(message.port);
            }
        }
        _ => {}
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It is the same socket, which would go on to listen.
        *self.audience.listener() = None;
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
