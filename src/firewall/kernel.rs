//! Tables of nftables as the kernel has them, and what it is asked on the way of a packet: elements of sets, by their
//! keys, and routing. No set is listed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use super::decode;
use super::packet::Hook;
use super::tables::{Base, Table};
use super::view::{Element, World};
use crate::leftovers::tables::{
    ATTEMPTS, CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, DROP, FAMILY_HEADER, GET_CHAIN, GET_TABLE,
    HOOK_NUMBER, HOOK_PRIORITY, RULE_EXPRESSIONS, SUBSYSTEM, TABLE_NAME, dump_rules, family_header, family_name,
};
use crate::leftovers::values::{DATA_VALUE, EXPRESSION_NAME, be32, inside, string, terminated};
use crate::netlink::{ACK, Builder, Bus, DUMP, Dump, REQUEST, Socket, attributes};
use crate::routing::{self, Question, Route};

const GET_SET: u16 = SUBSYSTEM | 10;
const GET_ELEMENT: u16 = SUBSYSTEM | 13;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// `NFTA_GEN_ID`.
const GENERATION: u16 = 1;
/// `NFTA_TABLE_FLAGS` and `NFTA_TABLE_HANDLE`, and `NFT_TABLE_F_DORMANT`.
const TABLE_FLAGS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
const DORMANT: u32 = 1;
/// `NFTA_CHAIN_HANDLE`.
const CHAIN_HANDLE: u16 = 2;
/// `NFTA_HOOK_DEV`, `NFTA_HOOK_DEVS`, `NFTA_DEVICE_NAME` and `NFTA_DEVICE_PREFIX`.
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const DEVICE_NAME: u16 = 1;
const DEVICE_PREFIX: u16 = 2;
/// `NFTA_SET_*`.
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_KEY_LENGTH: u16 = 5;
/// `NFTA_SET_ELEM_LIST_*` and `NFTA_LIST_ELEM`.
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
/// `NFTA_SET_ELEM_*`, and `NFT_SET_ELEM_CATCHALL`.
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_EXPRESSION: u16 = 7;
const ELEMENT_EXPRESSIONS: u16 = 11;
const CATCH_ALL: u32 = 2;
/// Of expressions at elements, those that match always.
const HARMLESS: [&str; 2] = ["counter", "last"];

/// The attributes of a message.
type Parts<'a> = BTreeMap<u16, &'a [u8]>;

/// By family, table and set.
type SetKey = (String, String, String);

/// What was read at once.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) tables: Vec<Table>,
    pub(super) kernel: Kernel,
}

/// The kernel of this network namespace, as it was asked first.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: RefCell<Socket>,
    /// Changes with each transaction of anybody.
    generation: u32,
    key_lengths: BTreeMap<SetKey, usize>,
    /// Devices, by name.
    devices: BTreeMap<String, u32>,
}

/// Reads all tables but those that `is_left_out` names by family and name.
///
/// # Errors
/// They cannot be listed, or change all the time.
pub(super) fn read(is_left_out: &dyn Fn(&str, &str) -> bool) -> io::Result<Look> {
    for _ in 0..ATTEMPTS {
        match try_read(is_left_out) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(look) if look.kernel.is_current()? => return Ok(look),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("the tables change all the time"))
}

fn try_read(is_left_out: &dyn Fn(&str, &str) -> bool) -> io::Result<Look> {
    let mut socket = Socket::open(Bus::Netfilter)?;
    let generation = generation(&mut socket)?;
    let mut found = Found::default();
    for kind in [GET_TABLE, GET_CHAIN, GET_SET] {
        let request = Builder::message(kind, REQUEST | DUMP, socket.next_sequence(), &[0; FAMILY_HEADER]).finish();
        let ended = socket.dump(&request, |message| {
            found.take(kind, message.payload);
        })?;
        if ended == Dump::Interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    let mut tables = Vec::new();
    for ((family, name), mut table) in found.tables {
        if is_left_out(family, &name) || table.bases.is_empty() {
            continue;
        }
        dump_rules(&mut socket, family, &name, |chain, parts| {
            let expressions = parts.get(&RULE_EXPRESSIONS).copied().unwrap_or_default();
            table.chains.entry(chain.to_owned()).or_default().push(decode::rule(expressions));
        })?;
        tables.push(table);
    }
    let devices = routing::links()?.into_iter().map(|(index, link)| (link.name, index)).collect();
    let kernel = Kernel { socket: RefCell::new(socket), generation, key_lengths: found.key_lengths, devices };
    Ok(Look { tables, kernel })
}

/// What the listings say.
#[derive(Debug, Default)]
struct Found {
    /// By family and name.
    tables: BTreeMap<(&'static str, String), Table>,
    /// Handles of tables, which grow with time.
    handles: BTreeMap<(&'static str, String), u64>,
    key_lengths: BTreeMap<SetKey, usize>,
}

impl Found {
    /// Takes in a message; `None` of one that cannot be read, or that does not matter.
    fn take(&mut self, kind: u16, payload: &[u8]) -> Option<()> {
        let family = family_name(*payload.first()?)?;
        let parts: Parts<'_> = attributes(payload.get(FAMILY_HEADER..)?).collect();
        let text = |kind: u16| parts.get(&kind).map(|bytes| string(bytes));
        let handle = |kind: u16| parts.get(&kind).and_then(|bytes| Some(u64::from_be_bytes(*bytes.first_chunk()?)));
        match kind {
            GET_TABLE => {
                let flags = parts.get(&TABLE_FLAGS).and_then(|flags| be32(flags)).unwrap_or_default();
                // Its chains are at no hook.
                if flags & DORMANT != 0 {
                    return None;
                }
                let name = text(TABLE_NAME)?;
                self.handles.insert((family, name.clone()), handle(TABLE_HANDLE).unwrap_or_default());
                let (bases, chains) = (Vec::new(), BTreeMap::new());
                let table = Table { family, name: name.clone(), bases, chains, saved: None };
                self.tables.insert((family, name), table);
            }
            GET_CHAIN => {
                let key = (family, text(CHAIN_TABLE)?);
                let age = (self.handles.get(&key)? << 32) | handle(CHAIN_HANDLE).unwrap_or_default();
                let table = self.tables.get_mut(&key)?;
                table.bases.push(base(family, &parts, age)?);
            }
            _ => {
                let length = parts.get(&SET_KEY_LENGTH).and_then(|length| be32(length));
                let key = (family.to_owned(), text(SET_TABLE)?, text(SET_NAME)?);
                self.key_lengths.insert(key, usize::try_from(length?).ok()?);
            }
        }
        Some(())
    }
}

/// A chain at a hook; `None` of one that is at none.
fn base(family: &str, parts: &Parts<'_>, age: u64) -> Option<Base> {
    /// By number: `NF_INET_*`, `NF_NETDEV_*`, `NF_BR_*` and `NF_ARP_*`.
    const HOOKS: [Hook; 6] =
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting, Hook::Ingress];
    const OF_DEVICES: [Hook; 2] = [Hook::Ingress, Hook::Egress];
    const OF_ARP: [Hook; 3] = [Hook::Input, Hook::Output, Hook::Forward];
    let hook: Parts<'_> = attributes(parts.get(&CHAIN_HOOK)?).collect();
    let number = usize::try_from(be32(hook.get(&HOOK_NUMBER)?)?).ok()?;
    let known: &[Hook] = match family {
        "netdev" => &OF_DEVICES,
        "arp" => &OF_ARP,
        _ => &HOOKS,
    };
    let listed = hook.get(&HOOK_DEVICES).into_iter().flat_map(|devices| attributes(devices));
    let mut devices: Vec<String> = listed
        .filter_map(|(kind, name)| match kind {
            DEVICE_NAME => Some(string(name)),
            DEVICE_PREFIX => Some(format!("{}*", string(name))),
            _ => None,
        })
        .collect();
    devices.extend(hook.get(&HOOK_DEVICE).map(|name| string(name)));
    Some(Base {
        chain: string(parts.get(&CHAIN_NAME)?),
        hook: *known.get(number)?,
        priority: be32(hook.get(&HOOK_PRIORITY)?)?.cast_signed(),
        translates: parts.get(&CHAIN_TYPE).is_some_and(|kind| string(kind) == "nat"),
        drops: parts.get(&CHAIN_POLICY).and_then(|policy| be32(policy)) == Some(DROP),
        devices,
        age,
    })
}

fn generation(socket: &mut Socket) -> io::Result<u32> {
    let request = Builder::message(GET_GENERATION, REQUEST | ACK, socket.next_sequence(), &[0; FAMILY_HEADER]).finish();
    let mut found = None;
    socket.dump(&request, |message| {
        let parts = message.payload.get(FAMILY_HEADER..).unwrap_or_default();
        found = inside(parts, GENERATION).and_then(be32);
    })?;
    found.ok_or_else(|| io::Error::other("the kernel does not say which generation its tables are of"))
}

impl Kernel {
    /// Whether nobody has changed a table since it was asked first.
    pub(super) fn is_current(&self) -> io::Result<bool> {
        Ok(generation(&mut self.socket.borrow_mut())? == self.generation)
    }

    /// Asks for the element of a key, or for the one of all other keys.
    fn ask(&self, family: &str, table: &str, set: &str, key: Option<&[u8]>) -> io::Result<Option<Element>> {
        let mut socket = self.socket.borrow_mut();
        let sequence = socket.next_sequence();
        let request = Builder::message(GET_ELEMENT, REQUEST | ACK, sequence, &family_header(family))
            .attribute(LIST_TABLE, &terminated(table))
            .attribute(LIST_SET, &terminated(set))
            .nested(LIST_ELEMENTS, |list| {
                list.nested(LIST_ELEMENT, |element| match key {
                    Some(key) => element.nested(ELEMENT_KEY, |data| data.attribute(DATA_VALUE, key)),
                    None => element.attribute(ELEMENT_FLAGS, &CATCH_ALL.to_be_bytes()),
                })
            })
            .finish();
        let mut found = None;
        let asked = socket.dump(&request, |message| found = found.take().or_else(|| element(message.payload)));
        match asked {
            Ok(_) => found.map(Some).ok_or_else(|| io::Error::other("no answer about an element")),
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The element in a message.
fn element(payload: &[u8]) -> Option<Element> {
    let list = inside(payload.get(FAMILY_HEADER..)?, LIST_ELEMENTS)?;
    let parts: Parts<'_> = attributes(inside(list, LIST_ELEMENT)?).collect();
    let data = parts.get(&ELEMENT_DATA).copied().unwrap_or_default();
    let one = parts.get(&ELEMENT_EXPRESSION).into_iter().copied();
    let several = parts.get(&ELEMENT_EXPRESSIONS).into_iter().flat_map(|list| attributes(list)).map(|(_, one)| one);
    let is_harmless = |expression: &[u8]| {
        inside(expression, EXPRESSION_NAME).is_some_and(|name| HARMLESS.contains(&string(name).as_str()))
    };
    Some(Element {
        verdict: decode::action(data).flatten(),
        data: inside(data, DATA_VALUE).unwrap_or_default().to_vec(),
        is_limited: one.chain(several).any(|expression| !is_harmless(expression)),
    })
}

impl World for Kernel {
    fn element(&self, family: &str, table: &str, set: &str, key: &[u8]) -> io::Result<Option<Element>> {
        match self.ask(family, table, set, Some(key))? {
            Some(element) => Ok(Some(element)),
            // A kernel that knows no element for all others takes the request for a bad one.
            None => match self.ask(family, table, set, None) {
                Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(None),
                result => result,
            },
        }
    }

    fn key_length(&self, family: &str, table: &str, set: &str) -> Option<usize> {
        self.key_lengths.get(&(family.to_owned(), table.to_owned(), set.to_owned())).copied()
    }

    fn address_type(&self, address: IpAddr) -> io::Result<u8> {
        routing::address_type(address)
    }

    fn device_to(&self, address: IpAddr, mark: u32, within: Option<u32>) -> io::Result<Option<u32>> {
        let question = Question { mark, output: within, ..Question::to(address) };
        Ok(match routing::route(&question)? {
            Route::By(hop) => Some(hop.device),
            Route::Local | Route::Nowhere(_) => None,
        })
    }

    fn index(&self, device: &str) -> Option<u32> {
        self.devices.get(device).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_taken_in(bytes in proptest::collection::vec(any::<u8>(), 0..128), kind in 0..3_usize) {
            let mut found = Found::default();
            let key = ("inet", "t".to_owned());
            found.handles.insert(key, 1);
            let _ = found.take([GET_TABLE, GET_CHAIN, GET_SET][kind], &bytes);
            let _ = element(&bytes);
            let _ = decode::rule(&bytes);
        }
    }
}
