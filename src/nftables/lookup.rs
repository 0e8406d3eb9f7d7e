//! Elements, asked for by their key.

use std::io;

use nix::errno::Errno;

use super::decode;
use super::encode::{check_element, pack};
use super::kernel::KernelError;
use super::numbers::protocol_family;
use super::request::unexpected;
use super::table::NOT_THERE;
use super::uapi::{self, msg};
use crate::model::Family;
use crate::netlink::{ACK, Builder, Message, REQUEST, Socket};
use crate::ruleset::names::{SetName, TableName};
use crate::ruleset::types::{Data, Element, Key, SetDef};

/// What is being done.
const STEP: &str = "read an element";
/// `EINVAL`.
const INVALID: i32 = Errno::EINVAL as i32;
/// How many elements the kernel is asked for, or tells of, at once. It takes 4 KiB or more for each before it is read (before
/// Linux 5.11 where it tells of changes); without CAP_NET_ADMIN in the first user namespace there are 416 KiB.
pub(super) const AT_ONCE: usize = 64;

/// Gives every message of the kernel's answer to `each`: the elements with these keys, in a message for each, up to the first
/// that is not there. Up to [`AT_ONCE`] keys fit into a message, and the answers into the socket. A set of ranges gives one
/// that holds the
/// key: nft_set_pipapo.c looks it up as for a packet (`nft_pipapo_get`, since there are such sets, Linux 5.6). There is no
/// answer where there is no such element, set or table.
pub(super) fn get(
    socket: &mut Socket,
    table: TableName,
    family: Family,
    set: SetName,
    keys: &[&Key],
    mut each: impl FnMut(&Message<'_>),
) -> Result<(), KernelError> {
    let refused =
        |reason: String| KernelError::Io { step: STEP, source: io::Error::new(io::ErrorKind::InvalidInput, reason) };
    for key in keys {
        let named = Element { key: (*key).clone(), key_end: None, data: Data::None, comment: None };
        check_element(family, &named).map_err(refused)?;
    }
    let request = request(socket, table, family, set, |list| {
        keys.iter().fold(list, |list, key| {
            list.nested(uapi::NFTA_LIST_ELEM, |element| {
                element.nested(uapi::NFTA_SET_ELEM_KEY, |data| data.attribute(uapi::NFTA_DATA_VALUE, &pack(key)))
            })
        })
    });
    match socket.dump(&request, |message| each(&message)) {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(NOT_THERE) => Ok(()),
            Some(code) => Err(unexpected(STEP, code)),
            None => Err(KernelError::Io { step: STEP, source: error }),
        },
    }
}

/// Whether a set has an element that stands for all keys that it does not have (`*`, Linux 5.13): none of ours has.
pub(super) fn stands_for_all(
    socket: &mut Socket,
    table: TableName,
    family: Family,
    set: &SetDef,
) -> Result<bool, KernelError> {
    let flags = uapi::NFT_SET_ELEM_CATCHALL.to_be_bytes();
    let request = request(socket, table, family, set.name, |list| {
        list.nested(uapi::NFTA_LIST_ELEM, |element| element.attribute(uapi::NFTA_SET_ELEM_FLAGS, &flags))
    });
    let mut found = false;
    match socket.dump(&request, |_| found = true) {
        Ok(_) => Ok(found),
        Err(error) => match error.raw_os_error() {
            // Older kernels do not know the flag, and have no such elements.
            Some(NOT_THERE | INVALID) => Ok(false),
            Some(code) => Err(unexpected(STEP, code)),
            None => Err(KernelError::Io { step: STEP, source: error }),
        },
    }
}

/// A question for a list of elements.
fn request(
    socket: &mut Socket,
    table: TableName,
    family: Family,
    set: SetName,
    elements: impl FnOnce(Builder) -> Builder,
) -> Vec<u8> {
    let text = |text: &str| [text.as_bytes(), &[0]].concat();
    let (kind, header) = (uapi::SUBSYSTEM | msg::GETSETELEM, [protocol_family(family), 0, 0, 0]);
    Builder::message(kind, REQUEST | ACK, socket.next_sequence(), &header)
        .attribute(uapi::NFTA_TABLE, &text(table.as_str()))
        .attribute(uapi::NFTA_NAME, &text(set.as_str()))
        .nested(uapi::NFTA_SET_ELEM_LIST_ELEMENTS, elements)
        .finish()
}

/// The element with this key, or one whose range holds it, as far as the kernel says so.
///
/// # Errors
/// Also an element that is none of the set's shape, which somebody else has put there.
pub(super) fn look_up(
    socket: &mut Socket,
    table: TableName,
    family: Family,
    set: &SetDef,
    key: &Key,
) -> Result<Option<Element>, KernelError> {
    let mut found = Ok(None);
    get(socket, table, family, set.name, &[key], |message| {
        for element in decode::elements(message, family, set) {
            match element {
                Ok(element) if element.matches(key) => found = Ok(Some(element)),
                Ok(_) => {}
                Err(words) => found = Err(words),
            }
        }
    })?;
    found.map_err(KernelError::Strange)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::{Operation, Transaction};
    use crate::model::Protocol;
    use crate::nftables::kernel::Kernel as _;
    use crate::nftables::linux::LinuxKernel;
    use crate::nftables::request::open;
    use crate::ruleset::base;
    use crate::ruleset::types::Value;
    use crate::testing::in_network_namespace;

    /// What no other test tells, as then all ranges are looked through.
    #[test]
    fn a_range_is_found_by_what_is_in_it() {
        in_network_namespace(|| {
            for (family, destination, [first, inside, last, beside]) in [
                (Family::V4, "10.96.0.1", ["192.0.2.3", "192.0.2.77", "192.0.2.200", "192.0.2.201"]),
                (Family::V6, "fd00::1", ["2001:db8::3", "2001:db8::7:0:0:1", "2001:db8:0:1::9", "2001:db8:0:1::a"]),
            ] {
                let address = |text: &str| Value::Address(text.parse().expect("an address"));
                let key = |source| -> Key {
                    let port = [Value::Protocol(Protocol::Tcp), Value::Port(80)];
                    [address(destination), port[0], port[1], address(source)].into_iter().collect()
                };
                let set = base::set(SetName::AllowedSources);
                let range = Element { key: key(first), key_end: Some(key(last)), data: Data::None, comment: None };
                let add = Operation::AddElements(set.name, vec![range.clone()]);
                let operations = vec![Operation::AddTable, Operation::AddSet(set.clone()), add];
                let mut kernel = LinuxKernel::open().expect("a socket");
                kernel.commit(&Transaction { family, operations }).expect("the kernel takes it");
                let mut socket = open().expect("a socket");
                let mut found = |source| look_up(&mut socket, TableName::NODE, family, &set, &key(source));
                for source in [first, inside, last] {
                    assert_eq!(found(source).expect("an answer"), Some(range.clone()), "{source}");
                }
                assert_eq!(found(beside).expect("an answer"), None);
            }
        });
    }
}
