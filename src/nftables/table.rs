//! A table as such: whether it is there, its flags, and who owns it.

use nix::errno::Errno;

use super::decode;
use super::kernel::{KernelError, table_flag};
use super::numbers::protocol_family;
use super::owner::{Owner, Protection};
use super::request::{NftablesMessage as _, Request, unexpected};
use super::uapi::{self, msg};
use crate::model::Family;
use crate::netlink::{Message, Socket};

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

/// Asks for all objects of a kind in a table. `each` gets every message of it; `None` means: forget what came. Nothing comes
/// where the table, or what the texts name, is not there.
pub(super) fn dump(
    socket: &mut Socket,
    table: &str,
    family: u8,
    (get, new): (u16, u16),
    (step, texts): (&'static str, &[(u16, &str)]),
    mut each: impl FnMut(Option<&Message<'_>>),
) -> Result<(), KernelError> {
    let texts: Vec<(u16, &str)> = std::iter::once((uapi::NFTA_TABLE, table)).chain(texts.iter().copied()).collect();
    let request = Request { kind: get, family, dump: true, texts: &texts };
    let answer = request.ask(socket, |message| match message {
        // Old kernels do not filter by table.
        Some(message) if message.nftables() != Some(new) || !decode::is_of_table(message, family, table) => {}
        message => each(message),
    })?;
    match answer {
        Ok(()) | Err(NOT_THERE) => Ok(()),
        Err(errno) => Err(unexpected(step, errno)),
    }
}
