//! The clients of UDP that are remembered, and whose place a new one gets when there are too many.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use tokio::time::Instant;

use crate::model::FrontendKey;

/// A client of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) key: FrontendKey,
    pub(super) at: SocketAddr,
}

#[derive(Debug)]
struct Known<S> {
    client: Client,
    socket: S,
    /// When it, or what answers it, last sent anything.
    last: Instant,
}

/// Clients, each with a number and what is kept of it.
#[derive(Debug)]
pub(super) struct Clients<S> {
    next: u64,
    known: HashMap<u64, Known<S>>,
    numbers: HashMap<Client, u64>,
    by_age: BTreeSet<(Instant, u64)>,
    by_port: BTreeMap<FrontendKey, BTreeSet<(Instant, u64)>>,
    most_of_port: usize,
    most: usize,
}

impl<S> Clients<S> {
    /// At most so many of one port, and in all.
    pub(super) fn new(most_of_port: usize, most: usize) -> Clients<S> {
        Clients {
            next: 0,
            known: HashMap::new(),
            numbers: HashMap::new(),
            by_age: BTreeSet::new(),
            by_port: BTreeMap::new(),
            most_of_port,
            most,
        }
    }

    /// The number of a client that is known.
    pub(super) fn number(&self, client: &Client) -> Option<u64> {
        self.numbers.get(client).copied()
    }

    /// Whose number it is, and what is kept.
    pub(super) fn get(&self, number: u64) -> Option<(Client, &S)> {
        self.known.get(&number).map(|known| (known.client, &known.socket))
    }

    /// The number that the next one gets.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The client that has to go before another of this port can come: the one of which nothing was heard for the longest
    /// time, of those of the port if it has as many as it may have.
    pub(super) fn in_the_way(&self, key: &FrontendKey) -> Option<u64> {
        let oldest = |line: &BTreeSet<(Instant, u64)>| line.first().map(|(_, number)| *number);
        let of_port = self.by_port.get(key).filter(|line| line.len() >= self.most_of_port);
        of_port.and_then(oldest).or_else(|| oldest(&self.by_age).filter(|_| self.by_age.len() >= self.most))
    }

    /// The oldest of all.
    pub(super) fn oldest(&self) -> Option<(Instant, u64)> {
        self.by_age.first().copied()
    }

    /// A new client, which is not known yet.
    pub(super) fn insert(&mut self, client: Client, socket: S, now: Instant) {
        let number = self.next;
        self.next += 1;
        self.known.insert(number, Known { client, socket, last: now });
        self.numbers.insert(client, number);
        self.by_age.insert((now, number));
        self.by_port.entry(client.key).or_default().insert((now, number));
    }

    /// Something was heard of it.
    pub(super) fn heard(&mut self, number: u64, now: Instant) {
        if let Some(known) = self.known.get_mut(&number) {
            let before = (std::mem::replace(&mut known.last, now), number);
            for line in self.by_port.get_mut(&known.client.key).into_iter().chain([&mut self.by_age]) {
                line.remove(&before);
                line.insert((now, number));
            }
        }
    }

    /// Forgets it.
    pub(super) fn remove(&mut self, number: u64) -> Option<S> {
        let Known { client, socket, last } = self.known.remove(&number)?;
        self.numbers.remove(&client);
        self.by_age.remove(&(last, number));
        if let Some(line) = self.by_port.get_mut(&client.key) {
            line.remove(&(last, number));
            if line.is_empty() {
                self.by_port.remove(&client.key);
            }
        }
        Some(socket)
    }

    /// The numbers of the clients of a port.
    pub(super) fn of_port(&self, key: &FrontendKey) -> Vec<u64> {
        self.by_port.get(key).into_iter().flatten().map(|(_, number)| *number).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::localhost::plan::named;

    fn client(port: &str, at: u16) -> Client {
        Client { key: named(port).expect("a name"), at: SocketAddr::from(([127, 0, 0, 1], at)) }
    }

    #[test]
    fn the_one_that_was_silent_for_the_longest_time_goes_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clients = Clients::new(2, 3);
        let (a, b) = (client("udp4-1", 1).key, client("udp4-2", 1).key);
        clients.insert(client("udp4-1", 1), "a1", at(0));
        assert_eq!((clients.in_the_way(&a), clients.in_the_way(&b)), (None, None));
        clients.insert(client("udp4-1", 2), "a2", at(1));
        assert_eq!((clients.in_the_way(&a), clients.in_the_way(&b)), (Some(0), None), "two of one port");
        clients.heard(0, at(2));
        assert_eq!(clients.in_the_way(&a), Some(1));
        clients.insert(client("udp4-2", 1), "b1", at(3));
        assert_eq!((clients.in_the_way(&a), clients.in_the_way(&b)), (Some(1), Some(1)), "three in all");
        assert_eq!(clients.oldest(), Some((at(1), 1)));
        assert_eq!(clients.remove(1), Some("a2"));
        assert_eq!((clients.in_the_way(&a), clients.in_the_way(&b)), (None, None));
        assert_eq!(clients.number(&client("udp4-1", 2)), None);
        assert_eq!(clients.get(clients.number(&client("udp4-2", 1)).expect("it is known")).expect("it is").1, &"b1");
        assert_eq!((clients.of_port(&a), clients.of_port(&b)), (vec![0], vec![2]));
        assert_eq!((clients.remove(0), clients.remove(2), clients.remove(2)), (Some("a1"), Some("b1"), None));
        assert!(clients.by_age.is_empty() && clients.by_port.is_empty() && clients.numbers.is_empty());
    }
}
