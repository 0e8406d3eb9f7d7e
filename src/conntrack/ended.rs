//! Connections that have ended, and whose they were.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::model::{Family, FrontendAt, FrontendKey, Protocol};

/// A connection that the kernel has forgotten, with what it counted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The transport protocol's number.
    pub protocol: u8,
    /// Where its first packet was sent to.
    pub to: SocketAddr,
    /// Who answered, or would have: where it was translated to.
    pub endpoint: SocketAddr,
    /// What came from the client.
    pub original: Traffic,
    /// What came back.
    pub reply: Traffic,
}

/// Packets and their bytes with the IP header; 0 where the kernel does not count (`nf_conntrack_acct`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The frontends whose connections are accounted for, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts<T>(BTreeMap<FrontendKey, T>);

impl<T> Default for Accounts<T> {
    fn default() -> Self {
        Accounts(BTreeMap::new())
    }
}

impl<T> Accounts<T> {
    /// This frontend's are this one's from now on.
    pub fn open(&mut self, frontend: FrontendKey, whose: T) {
        self.0.insert(frontend, whose);
    }

    /// This frontend's are nobody's any more.
    pub fn close(&mut self, frontend: &FrontendKey) {
        self.0.remove(frontend);
    }

    /// Whose it is.
    pub fn owner(&self, frontend: &FrontendKey) -> Option<&T> {
        self.0.get(frontend)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose a connection was. A Service's address goes before a node port, as in the rules; a connection that was sent to
    /// the same port of another machine was not translated.
    pub fn of(&self, ended: &Ended) -> Option<&T> {
        if ended.to == ended.endpoint {
            return None;
        }
        let (protocol, port) = (Protocol::from_number(ended.protocol)?, ended.to.port().try_into().ok()?);
        let at = |at| FrontendKey { at, protocol, port };
        let by_address = self.0.get(&at(FrontendAt::Address(ended.to.ip())));
        by_address.or_else(|| self.0.get(&at(FrontendAt::NodePort(Family::of(ended.to.ip())))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(protocol: u8, to: &str, endpoint: &str) -> Ended {
        let [to, endpoint] = [to, endpoint].map(|text| text.parse().expect("a socket address"));
        Ended { protocol, to, endpoint, original: Traffic::default(), reply: Traffic::default() }
    }

    #[test]
    fn a_connection_is_of_the_frontend_that_it_was_sent_to() {
        let key = |at, port: u16| FrontendKey { at, protocol: Protocol::Tcp, port: port.try_into().expect("not 0") };
        let address = key(FrontendAt::Address([10, 96, 0, 1].into()), 30_080);
        let mut accounts = Accounts::default();
        accounts.open(address, "address");
        accounts.open(key(FrontendAt::NodePort(Family::V4), 30_080), "node port");
        let of = |accounts: &Accounts<&'static str>, protocol, to, endpoint| {
            accounts.of(&ended(protocol, to, endpoint)).copied()
        };
        let endpoint = "10.1.0.1:8080";
        assert_eq!(of(&accounts, 6, "10.96.0.1:30080", endpoint), Some("address"));
        assert_eq!(of(&accounts, 6, "192.0.2.10:30080", endpoint), Some("node port"));
        assert_eq!(of(&accounts, 6, "192.0.2.10:30081", endpoint), None);
        assert_eq!(of(&accounts, 17, "10.96.0.1:30080", endpoint), None, "of another protocol");
        assert_eq!(of(&accounts, 1, "10.96.0.1:30080", endpoint), None);
        assert_eq!(of(&accounts, 6, "[fd00::1]:30080", "[fd00::2]:8080"), None, "of another family");
        assert_eq!(of(&accounts, 6, "198.51.100.1:30080", "198.51.100.1:30080"), None, "it was not translated");
        accounts.close(&address);
        assert_eq!(of(&accounts, 6, "10.96.0.1:30080", endpoint), Some("node port"));
        assert!(!accounts.is_empty());
    }
}
