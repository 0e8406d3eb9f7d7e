//! The connections that clients have by what is asked about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::error::ExplainError;
use super::facts::ToEndpoint;
use crate::conntrack::{Conntrack, Flow};
use crate::model::{Family, PerFamily, Protocol};
use crate::status::StatusError;

/// Hands every connection of a family to a function.
type List<'a> = &'a mut dyn FnMut(Family, &mut dyn FnMut(&Flow)) -> Result<(), ExplainError>;

/// Counted by endpoint, for each protocol, address and port that they were made to.
type Counts = BTreeMap<(u8, SocketAddr), BTreeMap<SocketAddr, ToEndpoint>>;

/// Connections by address, port and protocol that they were made to, and by endpoint. All connections of a family are listed once
/// for each question, however many packets it is about, when the first of them is looked at.
pub(super) struct Connections<'a> {
    list: List<'a>,
    wanted: BTreeSet<(u8, SocketAddr)>,
    found: PerFamily<Option<Counts>>,
}

impl<'a> Connections<'a> {
    /// Those of these packets; `list` lists them.
    pub(super) fn new(packets: impl Iterator<Item = (Protocol, SocketAddr)>, list: List<'a>) -> Connections<'a> {
        let wanted = packets.map(|(protocol, to)| (protocol.number(), to)).collect();
        Connections { list, wanted, found: PerFamily::default() }
    }

    /// Those to an address and port, counted by endpoint. Of one that the endpoint has refused the kernel knows nothing more: it
    /// forgets an entry at once whose only answer is a reset (net/netfilter/nf_conntrack_proto_tcp.c).
    ///
    /// # Errors
    /// They cannot be listed.
    pub(super) fn to(
        &mut self,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Result<BTreeMap<SocketAddr, ToEndpoint>, ExplainError> {
        let family = Family::of(to.ip());
        let Connections { list, wanted, found } = self;
        let found = match &mut found[family] {
            Some(found) => found,
            none => {
                let mut all = Counts::new();
                list(family, &mut |flow| {
                    let key = (flow.protocol, flow.original.destination);
                    if wanted.contains(&key) {
                        let to = all.entry(key).or_default().entry(flow.reply.source).or_default();
                        to.answered += usize::from(flow.answered);
                        to.unanswered += usize::from(!flow.answered);
                    }
                })?;
                none.insert(all)
            }
        };
        Ok(found.get(&(protocol.number(), to)).cloned().unwrap_or_default())
    }
}

/// Lists the connections that the kernel tracks.
pub(super) fn list(family: Family, each: &mut dyn FnMut(&Flow)) -> Result<(), ExplainError> {
    let mut conntrack = Conntrack::open().map_err(StatusError::from)?;
    conntrack.each(family, each).map_err(StatusError::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_listed_once_for_all_packets_of_a_question() {
        let socket = |text: &str| -> SocketAddr { text.parse().expect("an address and a port") };
        let flow = |to, endpoint, answered| Flow {
            answered,
            ..Flow::translated(Protocol::Tcp, ["203.0.113.7:4000", to, endpoint])
        };
        let all = [
            flow("172.30.1.1:80", "10.1.0.1:8080", true),
            flow("172.30.1.1:80", "10.1.0.1:8080", false),
            flow("172.30.1.1:443", "10.1.0.1:8443", true),
            flow("172.30.1.2:80", "10.1.0.1:8080", true),
        ];
        let mut listed = Vec::new();
        let mut list = |family, each: &mut dyn FnMut(&Flow)| {
            listed.push(family);
            if family == Family::V4 {
                all.iter().for_each(each);
            }
            Ok(())
        };
        let packets = ["172.30.1.1:80", "172.30.1.1:443", "172.30.1.3:80", "[fd00::1]:80"].map(socket);
        let mut connections = Connections::new(packets.into_iter().map(|to| (Protocol::Tcp, to)), &mut list);
        let mut counted = |protocol, to| -> Vec<(String, usize, usize)> {
            let found = connections.to(protocol, socket(to)).expect("they can be listed").into_iter();
            found.map(|(endpoint, to)| (endpoint.to_string(), to.answered, to.unanswered)).collect()
        };
        assert_eq!(counted(Protocol::Tcp, "172.30.1.1:80"), [("10.1.0.1:8080".to_owned(), 1, 1)]);
        assert_eq!(counted(Protocol::Tcp, "172.30.1.1:443"), [("10.1.0.1:8443".to_owned(), 1, 0)]);
        assert_eq!(counted(Protocol::Udp, "172.30.1.1:80"), []);
        assert_eq!(counted(Protocol::Tcp, "172.30.1.3:80"), []);
        assert_eq!(counted(Protocol::Tcp, "[fd00::1]:80"), []);
        assert_eq!(counted(Protocol::Tcp, "172.30.1.1:80"), [("10.1.0.1:8080".to_owned(), 1, 1)]);
        assert_eq!(listed, Family::ALL);
    }
}
