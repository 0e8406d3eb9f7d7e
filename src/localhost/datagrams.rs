//! UDP: each client has a socket of its own towards the Service, by which connection tracking tells it from others.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::clients::{Client, Clients};
use super::descriptors::{Descriptors, Taken};
use super::poll::Poll;
use super::ports::Ports;
use super::sockets::{datagrams_to, is_exhausted};
use crate::metrics::Metrics;
use crate::model::{FrontendKey, Protocol};

/// Clients that are remembered: of one port, and in all. Each takes a descriptor.
const MOST: (usize, usize) = (1_024, 8_192);

/// The longest datagram, and more.
const LONGEST: usize = 1 << 16;

/// How many datagrams of a socket are passed on before others have a turn.
const AT_ONCE: usize = 64;

/// What is known of all clients.
pub(super) struct Datagrams {
    ports: Ports,
    metrics: Arc<Metrics>,
    descriptors: Descriptors,
    clients: Clients<(UdpSocket, Taken)>,
    buffer: Box<[u8]>,
    /// Whether it was said that there are no descriptors left.
    said: bool,
}

/// The number of a client with [`Poll`]; those of sockets that listen are even.
fn poll_number(client: u64) -> u64 {
    client << 1 | 1
}

/// The client whose number with [`Poll`] this is.
pub(super) fn client_of(number: u64) -> Option<u64> {
    (number & 1 == 1).then_some(number >> 1)
}

impl Datagrams {
    pub(super) fn new(ports: Ports, metrics: Arc<Metrics>, descriptors: Descriptors) -> Datagrams {
        let buffer = vec![0; LONGEST].into_boxed_slice();
        let clients = Clients::new(MOST.0, MOST.1);
        Datagrams { ports, metrics, descriptors, clients, buffer, said: false }
    }

    /// A socket that listens has something.
    pub(super) fn questions(&mut self, poll: &Poll, key: &FrontendKey, listener: &UdpSocket) {
        for _ in 0..AT_ONCE {
            let (length, at) = match listener.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Of an answer that could not be delivered before.
                Err(_) => continue,
            };
            let client = Client { key: *key, at };
            if let Err(error) = self.pass_on(poll, client, length) {
                debug!("{key}: a datagram of {at} is lost: {error}");
            }
        }
    }

    fn pass_on(&mut self, poll: &Poll, client: Client, length: usize) -> io::Result<()> {
        let mut number = self.clients.number(&client);
        for is_last in [false, true] {
            let known = match number.take() {
                Some(known) => known,
                None => self.open(poll, client)?,
            };
            let Some((_, (socket, _))) = self.clients.get(known) else { return Ok(()) };
            match socket.send(self.buffer.get(..length).unwrap_or_default()) {
                Ok(sent) => {
                    self.clients.heard(known, Instant::now());
                    let [there, _] = self.metrics.localhost.bytes.of(Protocol::Udp);
                    there.inc_by(sent as f64);
                    return Ok(());
                }
                // What was sent before was refused: this one goes anew.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.refused(poll, known);
                    if is_last {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a client known that is not.
    fn open(&mut self, poll: &Poll, client: Client) -> io::Result<u64> {
        let Some(to) = self.ports.way(&client.key).and_then(|way| way.to) else {
            return Err(io::Error::other("there is no way to the Service"));
        };
        while let Some(number) = self.clients.in_the_way(&client.key) {
            self.evict(poll, number);
        }
        let make = |descriptors: &Descriptors| {
            let taken = descriptors.take(1).ok_or(Errno::EMFILE)?;
            Ok::<_, io::Error>((datagrams_to(to)?, taken))
        };
        let socket = match make(&self.descriptors) {
            Err(error) if is_exhausted(&error) => {
                if !std::mem::replace(&mut self.said, true) {
                    warn!("no further client of UDP can be served on localhost but in the place of another: {error}");
                }
                let Some((_, oldest)) = self.clients.oldest() else { return Err(error) };
                self.evict(poll, oldest);
                make(&self.descriptors)?
            }
            other => other?,
        };
        let number = self.clients.next();
        poll.add(&socket.0, poll_number(number))?;
        self.clients.insert(client, socket, Instant::now());
        self.metrics.localhost.connections.of(Protocol::Udp).inc();
        Ok(number)
    }

    /// Something came back to a client, or an error.
    pub(super) fn answers<'a>(
        &mut self,
        poll: &Poll,
        number: u64,
        listener: impl FnOnce(&FrontendKey) -> Option<&'a UdpSocket>,
    ) {
        let Some((client, (socket, _))) = self.clients.get(number) else { return };
        let Some(listener) = listener(&client.key) else { return };
        let [_, back] = self.metrics.localhost.bytes.of(Protocol::Udp);
        for _ in 0..AT_ONCE {
            match socket.recv(&mut self.buffer) {
                Ok(length) => {
                    // As on any network, what cannot be delivered is lost.
                    if listener.send_to(self.buffer.get(..length).unwrap_or_default(), client.at).is_ok() {
                        back.inc_by(length as f64);
                    }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return self.refused(poll, number),
                Err(_) => break,
            }
        }
        self.clients.heard(number, Instant::now());
    }

    /// Nobody is there (an ICMP error says so).
    fn refused(&mut self, poll: &Poll, number: u64) {
        self.metrics.localhost.refused.of(Protocol::Udp).inc();
        self.forget(poll, number);
    }

    fn evict(&mut self, poll: &Poll, number: u64) {
        self.metrics.localhost.evicted.inc();
        self.forget(poll, number);
    }

    fn forget(&mut self, poll: &Poll, number: u64) {
        if let Some((socket, _)) = self.clients.remove(number) {
            poll.remove(&socket);
        }
    }

    /// A port is not listened on any more: nobody could be answered.
    pub(super) fn closed(&mut self, poll: &Poll, key: &FrontendKey) {
        self.clients.of_port(key).into_iter().for_each(|number| self.forget(poll, number));
    }

    /// Forgets clients that have been silent for long, and says when the next may have been.
    pub(super) fn expire(&mut self, poll: &Poll) -> Option<Instant> {
        let idle: Duration = self.ports.timeouts().silent;
        let now = Instant::now();
        loop {
            let (last, number) = self.clients.oldest()?;
            if last + idle > now {
                return Some(last + idle);
            }
            self.forget(poll, number);
        }
    }
}
