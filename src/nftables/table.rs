//! A table as such: whether it is there, its flags, and who owns it.

use nix::errno::Errno;

use super::decode;
use super::kernel::{KernelError, table_flag};
use super::numbers::protocol_family;
use super::owner::{Owner, Protection};
use super::request::{NftablesMessage as _, Request, unexpected};
use super::uapi::{self, msg};
use crate::model::Family;
use crate::netlink::Socket;

/// `ENOENT`: no object of this name.
pub(super) const NOT_THERE: i32 = Errno::ENOENT as i32;

/// What the kernel says of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    /// Its flags ([`table_flag`]).
    pub(super) flags: u32,
    /// The port id of the socket that owns it.
    pub(super) owner: Option<u32>,
}

impl Table {
    /// What protects it.
    pub(super) fn protection(self) -> Protection {
        match self.owner {
            Some(port) => Protection::Owner(Owner::of(port)),
            None if self.flags & table_flag::PERSIST != 0 => Protection::Orphan,
            None => Protection::None,
        }
    }
}

/// Asks for a table by its name.
pub(super) fn ask(socket: &mut Socket, family: Family, name: &str) -> Result<Option<Table>, KernelError> {
    let request = Request {
        kind: msg::GETTABLE,
        family: protocol_family(family),
        dump: false,
        texts: &[(uapi::NFTA_TABLE, name)],
    };
    let mut found = None;
    let answer = request.ask(socket, |message| {
        found = message.map(|message| {
            let number = |kind| decode::number_in(message.attributes(), kind);
            Table { flags: number(uapi::NFTA_TABLE_FLAGS).unwrap_or(0), owner: number(uapi::NFTA_TABLE_OWNER) }
        });
    })?;
    match answer {
        Ok(()) => Ok(found),
        Err(NOT_THERE) => Ok(None),
        Err(errno) => Err(unexpected("ask for the table", errno)),
    }
}
