//! How many connections are open: of which frontends they are counted, and what a look at the table has seen.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::model::{Family, FrontendAt, FrontendKey, PerFamily, Protocol, Seen};

/// How often is looked where it takes next to nothing.
pub const PERIOD: Duration = Duration::from_secs(1);

/// Of the time of one processor, counting takes at most one part of so many.
const PARTS: u32 = 50;

/// How long it has to be at least from one look to the next, after the last one took so much time of a processor.
pub fn period(took: Duration) -> Duration {
    took.saturating_mul(PARTS).max(PERIOD)
}

/// The frontends whose connections are counted. Each belongs to a port of a Service, which has a number: what comes in
/// through any of its frontends is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counted {
    ports: HashMap<FrontendKey, usize>,
    /// For each family the protocols of its frontends.
    protocols: PerFamily<Vec<Protocol>>,
    /// Whether there are node ports, whatever the address.
    node_ports: PerFamily<bool>,
}

impl Counted {
    /// These frontends, each with the number of its port.
    pub fn new(frontends: impl IntoIterator<Item = (FrontendKey, usize)>) -> Counted {
        let mut counted = Counted::default();
        for (key, port) in frontends {
            counted.ports.insert(key, port);
            let protocols = &mut counted.protocols[key.family()];
            if !protocols.contains(&key.protocol) {
                protocols.push(key.protocol);
            }
            counted.node_ports[key.family()] |= matches!(key.at, FrontendAt::NodePort(_));
        }
        counted
    }

    /// Whether there is none of a family.
    pub fn is_empty(&self, family: Family) -> bool {
        self.protocols[family].is_empty()
    }

    /// The protocol of all in a family, if they have the same.
    pub(super) fn only_protocol(&self, family: Family) -> Option<Protocol> {
        match self.protocols[family][..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The number of the port that a connection belongs to, by its protocol and its first destination. A node port is one on
    /// any address: who else would have it translated?
    pub(super) fn port(&self, protocol: u8, to: SocketAddr) -> Option<usize> {
        let (protocol, port) = (Protocol::from_number(protocol)?, NonZeroU16::new(to.port())?);
        let find = |at| self.ports.get(&FrontendKey { at, protocol, port }).copied();
        let family = Family::of(to.ip());
        let by_address = find(FrontendAt::Address(to.ip()));
        by_address.or_else(|| self.node_ports[family].then(|| find(FrontendAt::NodePort(family))).flatten())
    }
}

/// The open connections, from look to look.
#[derive(Debug, Clone, Default)]
pub struct Open {
    seen: HashMap<(usize, SocketAddr), Seen>,
    /// The connections of the last look, by the kernel's numbers for them, each with the number of that look. No address
    /// is kept: a million take 18 MiB at most. Numbers of 32 bits: of 100,000 connections one or two are not told apart.
    known: HashTable<(u32, u32)>,
    look: u32,
}

impl Open {
    /// What the last look has seen of the connections of a port to an endpoint.
    pub fn of(&self, port: usize, endpoint: (IpAddr, NonZeroU16)) -> Seen {
        let (address, number) = endpoint;
        self.seen.get(&(port, SocketAddr::new(address, number.get()))).copied().unwrap_or_default()
    }

    /// What the last look has seen of all, in no order.
    #[expect(clippy::disallowed_methods, reason = "who sorts them knows by what")]
    pub fn iter(&self) -> impl Iterator<Item = ((usize, SocketAddr), Seen)> {
        self.seen.iter().map(|(of, seen)| (*of, *seen))
    }

    /// The number of open connections that are counted.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// A look begins.
    pub(super) fn begin(&mut self) {
        self.seen.clear();
        self.look = self.look.wrapping_add(1);
    }

    /// A connection is open. One that the kernel lists twice counts once.
    pub(super) fn add(&mut self, port: usize, endpoint: SocketAddr, id: u32) {
        let look = self.look;
        let is_new = match self.known.entry(spread(id), |(known, _)| *known == id, |(known, _)| spread(*known)) {
            Entry::Occupied(mut entry) => {
                let (_, last) = entry.get_mut();
                if std::mem::replace(last, look) == look {
                    return;
                }
                false
            }
            Entry::Vacant(entry) => {
                entry.insert((id, look));
                true
            }
        };
        let seen = self.seen.entry((port, endpoint)).or_default();
        seen.open += 1;
        seen.new += u32::from(is_new);
    }

    /// A look has ended: what it has not seen is forgotten.
    pub(super) fn end(&mut self) {
        let look = self.look;
        self.known.retain(|(_, last)| *last == look);
        // After a peak the room for it is given back.
        if self.known.capacity() > 1024 && self.known.len() < self.known.capacity() / 8 {
            self.known.shrink_to(self.known.len() * 2, |(known, _)| spread(*known));
        }
    }

    /// A look has failed. What it has seen is not all; the next one tells what is new since the last that was whole.
    pub(super) fn fail(&mut self) {
        self.seen.clear();
        let look = self.look;
        self.known.iter_mut().for_each(|(_, last)| *last = look);
    }
}

/// The kernel's numbers are hashes with a key that nobody knows (`nf_ct_get_id`), of 32 bits; the table goes by the highest
/// and the lowest of 64.
fn spread(id: u32) -> u64 {
    u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("a socket address")
    }

    fn key(at: FrontendAt, protocol: Protocol, port: u16) -> FrontendKey {
        FrontendKey { at, protocol, port: NonZeroU16::new(port).expect("a port") }
    }

    #[test]
    fn connections_belong_to_the_port_of_their_frontend() {
        let counted = Counted::new([
            (key(FrontendAt::Address(at("10.96.0.1:1").ip()), Protocol::Tcp, 80), 5),
            (key(FrontendAt::Address(at("192.0.2.1:1").ip()), Protocol::Tcp, 30080), 6),
            (key(FrontendAt::NodePort(Family::V4), Protocol::Tcp, 30080), 5),
            (key(FrontendAt::Address(at("[fd00::1]:1").ip()), Protocol::Udp, 53), 7),
            (key(FrontendAt::Address(at("[fd00::1]:1").ip()), Protocol::Sctp, 53), 8),
        ]);
        for (protocol, to, port) in [
            (6, "10.96.0.1:80", Some(5)),
            (17, "10.96.0.1:80", None),
            (6, "10.96.0.1:81", None),
            (6, "192.0.2.9:30080", Some(5)),
            (6, "192.0.2.1:30080", Some(6)),
            (6, "[fd00::9]:30080", None),
            (17, "[fd00::1]:53", Some(7)),
            (132, "[fd00::1]:53", Some(8)),
            (1, "10.96.0.1:80", None),
            (6, "10.96.0.1:0", None),
        ] {
            assert_eq!(counted.port(protocol, at(to)), port, "{protocol} {to}");
        }
        assert_eq!(counted.only_protocol(Family::V4), Some(Protocol::Tcp));
        assert_eq!(counted.only_protocol(Family::V6), None);
        assert!(!counted.is_empty(Family::V4) && !counted.is_empty(Family::V6));
        assert!(Counted::default().is_empty(Family::V4));
    }

    #[test]
    fn what_stayed_is_told_from_what_is_new() {
        let mut open = Open::default();
        let mut look = |entries: &[(usize, &str, u32)], fails: bool| {
            open.begin();
            entries.iter().for_each(|(port, endpoint, id)| open.add(*port, at(endpoint), *id));
            let end = if fails { Open::fail } else { Open::end };
            end(&mut open);
            let of = |port, address: &str| {
                let Seen { open, new } = open.of(port, (at(address).ip(), NonZeroU16::new(80).expect("a port")));
                (open, new)
            };
            (of(1, "10.0.0.1:80"), of(1, "10.0.0.2:80"), of(2, "10.0.0.1:80"))
        };
        let first = [(1, "10.0.0.1:80", 11), (1, "10.0.0.1:80", 12), (1, "10.0.0.2:80", 13), (2, "10.0.0.1:80", 14)];
        assert_eq!(look(&first, false), ((2, 2), (1, 1), (1, 1)));
        assert_eq!(look(&first, false), ((2, 0), (1, 0), (1, 0)));
        // One has ended, one is new, and one is listed twice.
        let second = [(1, "10.0.0.1:80", 11), (1, "10.0.0.2:80", 13), (1, "10.0.0.2:80", 13), (1, "10.0.0.2:80", 15)];
        assert_eq!(look(&second, false), ((1, 0), (2, 1), (0, 0)));
        // What ended is new when it comes again.
        assert_eq!(look(&first, false), ((2, 1), (1, 0), (1, 1)));
        // A look that failed sees nothing, and forgets nothing.
        assert_eq!(look(&first[..1], true), ((0, 0), (0, 0), (0, 0)));
        assert_eq!(look(&first, false), ((2, 0), (1, 0), (1, 0)));
        assert_eq!(look(&[], false), ((0, 0), (0, 0), (0, 0)));
        assert_eq!(look(&first, false), ((2, 2), (1, 1), (1, 1)));
    }

    #[test]
    fn room_is_given_back_after_a_peak() {
        let mut open = Open::default();
        for count in [100_000, 10] {
            open.begin();
            (0..count).for_each(|id| open.add(0, at("10.0.0.1:80"), id));
            open.end();
            assert_eq!(open.len(), count as usize);
        }
        assert!(open.known.capacity() < 1024, "{}", open.known.capacity());
    }

    #[test]
    fn counting_takes_a_fiftieth_of_a_processor() {
        for (took, least) in [(0, 1_000), (1, 1_000), (20, 1_000), (40, 2_000), (100, 5_000), (3_000, 150_000)] {
            assert_eq!(period(Duration::from_millis(took)), Duration::from_millis(least));
        }
        assert_eq!(period(Duration::MAX), Duration::MAX);
    }
}
