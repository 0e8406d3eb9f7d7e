//! Node ports on localhost.

use prometheus::Counter;
use prometheus::Gauge;

use super::{NONE, Registering, table};
use crate::model::{PerFamily, Protocol};

/// One value for each protocol.
#[derive(Debug)]
pub struct PerProtocol<T>([T; 3]);

impl<T> PerProtocol<T> {
    fn from_fn(make: impl FnMut(Protocol) -> T) -> PerProtocol<T> {
        PerProtocol(Protocol::ALL.map(make))
    }

    /// The value of a protocol.
    pub fn of(&self, protocol: Protocol) -> &T {
        let [tcp, udp, sctp] = &self.0;
        match protocol {
            Protocol::Tcp => tcp,
            Protocol::Udp => udp,
            Protocol::Sctp => sctp,
        }
    }
}

/// What is counted of node ports on 127.0.0.1 and ::1.
#[derive(Debug)]
pub struct Localhost {
    /// Sockets that listen.
    pub listeners: PerFamily<Gauge>,
    /// Attempts to listen that failed.
    pub failures: PerFamily<Counter>,
    /// Connections taken; of UDP clients that are remembered.
    pub connections: PerProtocol<Counter>,
    /// Bytes to Services, and back.
    pub bytes: PerProtocol<[Counter; 2]>,
    /// Further endpoints that were tried, as the one before did not answer.
    pub retries: PerProtocol<Counter>,
    /// Connections that were refused, as no endpoint answered or there is none.
    pub refused: PerProtocol<Counter>,
    /// Clients of UDP that were forgotten to make room for others.
    pub evicted: Counter,
}

impl Localhost {
    pub(super) fn new(table: &Registering) -> Localhost {
        let of = |vector: &prometheus::CounterVec, protocol: Protocol| vector.with_label_values(&[protocol.name()]);
        let connections = table.counters(&table::LOCALHOST_CONNECTIONS);
        let bytes = table.counters(&table::LOCALHOST_BYTES);
        let retries = table.counters(&table::LOCALHOST_RETRIES);
        let refused = table.counters(&table::LOCALHOST_REFUSED);
        Localhost {
            listeners: table.gauge(&table::LOCALHOST_LISTENERS),
            failures: table.counter(&table::LOCALHOST_FAILURES),
            connections: PerProtocol::from_fn(|protocol| of(&connections, protocol)),
            bytes: PerProtocol::from_fn(|protocol| {
                ["original", "reply"].map(|direction| bytes.with_label_values(&[protocol.name(), direction]))
            }),
            retries: PerProtocol::from_fn(|protocol| of(&retries, protocol)),
            refused: PerProtocol::from_fn(|protocol| of(&refused, protocol)),
            evicted: table.counters(&table::LOCALHOST_EVICTED).with_label_values(NONE),
        }
    }
}
