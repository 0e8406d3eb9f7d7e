//! The clients that the kernel remembers, read beside the sync loop.
//!
//! The kernel fills the map `affinity` itself, with up to 262,144 clients. It gives them out in pieces of at most 32 KiB, some
//! 470 clients of IPv4, and for each piece it goes through the map from its beginning: a dump costs the square of their number.
//! Measured on Linux 6.18: 6 ms for 10,000 clients, 0.7 s for 150,000, 3.5 s for 262,000, up to 15 ms for one piece, which is
//! spent in the kernel at one go. Only smaller buffers make it dearer (4 times with 8 KiB), no larger one makes it cheaper.
//! No lock that a commit needs is held meanwhile.

use std::cell::Cell;
use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use super::decode;
use super::kernel::KernelError;
use super::numbers::protocol_family;
use super::request::{NftablesMessage as _, Request, Taken, open, unexpected};
use super::table::NOT_THERE;
use super::uapi::{self, msg};
use crate::model::Family;
use crate::netlink::{Message, Socket};
use crate::ruleset::base;
use crate::ruleset::names::{SetName, TableName};
use crate::ruleset::read::Remembered;

/// Some of the clients that are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// They, but for what is none of ours.
    pub clients: Vec<Remembered>,
    /// How long it took to read them.
    pub took: Duration,
}

/// What is known of all of them at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// How many there are.
    pub count: usize,
    /// Whether something has changed while they were read: some may be missing or doubled. A client that came twice is a sign
    /// of that too: nothing else tells that the kernel has enlarged its hash table between two pieces, which reorders it.
    pub torn: bool,
    /// How long it took to read them.
    pub took: Duration,
}

/// Reads the clients that the kernel remembers.
pub trait ReadClients {
    /// How many there are, where the kernel counts them (Linux 6.16).
    fn count(&mut self, family: Family) -> Result<Option<usize>, KernelError>;

    /// Gives all of them to `each`, slice by slice, as long as it returns true.
    fn read(&mut self, family: Family, each: &mut dyn FnMut(Slice) -> bool) -> Result<Clients, KernelError>;
}

/// Those of the network namespace of the thread that uses it first.
///
/// It keeps its socket: when one is closed, the kernel takes the lock that commits need, and may wait with it until what was
/// deleted last is freed, which takes 20 ms.
#[derive(Debug)]
pub struct LinuxClients {
    table: TableName,
    socket: Option<Socket>,
}

impl LinuxClients {
    /// Those of this table.
    pub fn of(table: TableName) -> LinuxClients {
        LinuxClients { table, socket: None }
    }

    fn texts(&self) -> [(u16, &'static str); 2] {
        [(uapi::NFTA_TABLE, self.table.as_str()), (uapi::NFTA_NAME, SetName::Affinity.as_str())]
    }

    /// Uses the socket; one on which something may still come is not used again.
    fn with_socket<T>(
        &mut self,
        ask: impl FnOnce(&mut Socket) -> Result<T, KernelError>,
        is_over: impl Fn(&T) -> bool,
    ) -> Result<T, KernelError> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => open()?,
        };
        let answer = ask(&mut socket)?;
        if is_over(&answer) {
            self.socket = Some(socket);
        }
        Ok(answer)
    }
}

impl ReadClients for LinuxClients {
    fn count(&mut self, family: Family) -> Result<Option<usize>, KernelError> {
        let texts = self.texts();
        let request = Request { kind: msg::GETSET, family: protocol_family(family), dump: false, texts: &texts };
        let mut count = None;
        let each = |message: Option<&Message<'_>>| {
            count = message.and_then(|message| decode::number_in(message.attributes(), uapi::NFTA_SET_COUNT));
        };
        match self.with_socket(|socket| request.ask(socket, each), |_| true)? {
            Ok(()) => Ok(count.and_then(|count| usize::try_from(count).ok())),
            Err(NOT_THERE) => Ok(Some(0)),
            Err(errno) => Err(unexpected("count the clients", errno)),
        }
    }

    fn read(&mut self, family: Family, each: &mut dyn FnMut(Slice) -> bool) -> Result<Clients, KernelError> {
        let (texts, set) = (self.texts(), base::set(SetName::Affinity));
        let request = Request { kind: msg::GETSETELEM, family: protocol_family(family), dump: true, texts: &texts };
        let (goes_on, mut since) = (Cell::new(true), Instant::now());
        let mut all = Clients { count: 0, torn: false, took: Duration::ZERO };
        let (mut seen, mut twice) = (Seen::default(), false);
        let visit = |message: &Message<'_>| {
            let elements = decode::elements(message, family, &set).inspect(|_| all.count += 1);
            let clients = elements.filter_map(|element| Remembered::read(&element.ok()?));
            let clients = clients.inspect(|client| twice |= !seen.is_new(client)).collect();
            let took = since.elapsed();
            all.took += took;
            goes_on.set(each(Slice { clients, took }));
            since = Instant::now();
        };
        let ask = |socket: &mut Socket| request.ask_while(socket, || goes_on.get(), visit);
        match self.with_socket(ask, |answer| *answer != Ok(Taken::Part))? {
            Ok(taken) => all.torn = taken != Taken::All || twice,
            // There is no map, or no longer.
            Err(NOT_THERE) => all.torn = true,
            Err(errno) => return Err(unexpected("read the clients", errno)),
        }
        Ok(all)
    }
}

/// Tells whether a client came before, by a hash of 64 bits: two that have the same cost one more look.
#[derive(Debug, Default)]
struct Seen {
    hasher: RandomState,
    hashes: HashSet<u64>,
}

impl Seen {
    fn is_new(&mut self, client: &Remembered) -> bool {
        let Remembered { client, destination, protocol, port, .. } = client;
        self.hashes.insert(self.hasher.hash_one((client, destination, protocol, port)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::Protocol;
    use crate::ruleset::backend::Backend;

    #[test]
    fn a_client_that_comes_twice_is_noticed_wherever_it_is_sent() {
        let port = NonZeroU16::MIN;
        let client = |last| Remembered {
            client: Ipv4Addr::new(10, 0, 0, last).into(),
            destination: Ipv4Addr::LOCALHOST.into(),
            protocol: Protocol::Tcp,
            port,
            backend: Backend { address: Ipv4Addr::LOCALHOST.into(), port },
        };
        let mut seen = Seen::default();
        assert!((1..=250).all(|last| seen.is_new(&client(last))));
        let elsewhere = Backend { address: Ipv4Addr::BROADCAST.into(), port };
        assert!(!seen.is_new(&Remembered { backend: elsewhere, ..client(9) }));
        assert!(seen.is_new(&Remembered { protocol: Protocol::Udp, ..client(9) }));
    }
}
