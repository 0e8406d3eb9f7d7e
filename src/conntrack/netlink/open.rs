//! Counts open connections: lists them over ctnetlink, and reads of each no more than it takes.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::*;
use crate::conntrack::open::{Counted, Open};

const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_SCTP: u16 = 3;
/// `CTA_PROTOINFO_TCP_STATE` and `CTA_PROTOINFO_SCTP_STATE`.
const STATE: u16 = 1;

/// `enum tcp_conntrack`: `SYN_SENT`, `SYN_RECV`, `ESTABLISHED`. All later ones are of connections that one side has closed,
/// whose entries stay for up to two minutes (`FIN_WAIT`, `TIME_WAIT`): no load for the endpoint, and of short connections
/// they would be many times those that are open.
const OPEN_TCP: [u8; 3] = [1, 2, 3];
/// `enum sctp_conntrack`: `COOKIE_WAIT`, `COOKIE_ECHOED`, `ESTABLISHED`, `HEARTBEAT_SENT`; the others are closed, or shut
/// down.
const OPEN_SCTP: [u8; 4] = [2, 3, 4, 8];

/// `TIME_WAIT` and `CLOSE`: nobody waits for anything any more.
const OVER_TCP: [u8; 2] = [7, 8];

/// What a look took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// Entries that the kernel listed.
    pub listed: usize,
    /// Whether the kernel interrupted the listing, so that entries may be missing.
    pub incomplete: bool,
    /// Time of a processor: the kernel's listing and our reading. [`period`](crate::conntrack::period) makes of it how long
    /// to wait.
    pub took: Duration,
}

impl Conntrack {
    /// Counts the open connections of these frontends, in one listing: the kernel walks its whole table for each, whatever
    /// there is in it (12 ms for 262,144 buckets, and 2 to 3 us for an entry that it lists, open or closed). Without
    /// frontends it is not asked. After an error nothing is counted, and the next look is one as after a longer time.
    ///
    /// A connection of UDP is open for as long as the kernel has its entry: 30 seconds after the last packet, or 120.
    pub fn count(&mut self, counted: &Counted, open: &mut Open) -> Result<Look, FlowsError> {
        open.begin();
        let family = match Family::ALL.map(|family| counted.is_empty(family)) {
            [true, true] => {
                open.end();
                return Ok(Look::default());
            }
            [false, true] => Some(Family::V4),
            [true, false] => Some(Family::V6),
            [false, false] => None,
        };
        let start = processor_time();
        let mut listed = 0;
        let dump = self.listed(family, counted, open, &mut listed).inspect_err(|_| open.fail())?;
        open.end();
        let took = processor_time().saturating_sub(start);
        Ok(Look { listed, incomplete: dump == Dump::Interrupted, took })
    }

    fn listed(
        &mut self,
        family: Option<Family>,
        counted: &Counted,
        open: &mut Open,
        listed: &mut usize,
    ) -> Result<Dump, FlowsError> {
        loop {
            // The kernel compares a protocol in one family alone (EOPNOTSUPP).
            let wanted = Wanted::Translated(family.and_then(|family| counted.only_protocol(family)));
            let request = list_request(family, self.filter.then_some(wanted), self.list.next_sequence());
            let result = self.list.dump(&request, |message| {
                *listed += 1;
                if message.kind == CT_NEW
                    && let Some((port, endpoint, id)) = connection(message.payload, counted)
                {
                    open.add(port, endpoint, id);
                }
            });
            let error = match result {
                Ok(dump) => return Ok(dump),
                Err(error) => error,
            };
            if !self.does_without_filter(&error) {
                return Err(failed_to_list(error));
            }
        }
    }
}

/// What this thread has used of a processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Reads an entry, if it is an open connection that is counted: the number of its port, its endpoint, and its own number.
fn connection(payload: &[u8], counted: &Counted) -> Option<(usize, SocketAddr, u32)> {
    let (mut port, mut endpoint, mut is_translated, mut id) = (None, None, false, 0);
    for (kind, value) in attributes(payload.get(FAMILY_HEADER..)?) {
        match kind {
            CTA_TUPLE_ORIG => {
                // It comes first, and of most entries nothing else has to be read.
                let (protocol, to) = end_of(value, [CTA_IP_V4_DST, CTA_IP_V6_DST], CTA_PROTO_DST_PORT)?;
                port = Some(counted.port(protocol, to)?);
            }
            CTA_TUPLE_REPLY => {
                let (_, from) = end_of(value, [CTA_IP_V4_SRC, CTA_IP_V6_SRC], CTA_PROTO_SRC_PORT)?;
                endpoint = Some(from);
            }
            CTA_STATUS => is_translated = u32::from_be_bytes(*value.first_chunk()?) & TRANSLATED != 0,
            CTA_PROTOINFO if !is_open(value) => return None,
            CTA_ID => id = u32::from_be_bytes(*value.first_chunk()?),
            _ => {}
        }
    }
    Some((port?, endpoint.filter(|_| is_translated)?, id))
}

/// The protocol of a tuple, and one of its two ends.
fn end_of(tuple: &[u8], addresses: [u16; 2], port: u16) -> Option<(u8, SocketAddr)> {
    let (mut protocol, mut ip, mut number) = (None, None, None);
    for (kind, value) in attributes(tuple) {
        match kind {
            CTA_TUPLE_IP => {
                ip = attributes(value).find(|(kind, _)| addresses.contains(kind)).and_then(|(_, value)| address(value));
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    if kind == CTA_PROTO_NUM {
                        protocol = value.first().copied();
                    } else if kind == port {
                        number = be16(value);
                    }
                }
            }
            _ => {}
        }
    }
    Some((protocol?, SocketAddr::new(ip?, number?)))
}

/// Whether a connection of TCP is over, of which the kernel keeps an entry for up to two minutes.
pub(super) fn is_over(payload: &[u8]) -> bool {
    let mut parts = payload.get(FAMILY_HEADER..).into_iter().flat_map(attributes);
    let info = parts.find(|(kind, _)| *kind == CTA_PROTOINFO).map(|(_, info)| info);
    info.into_iter()
        .flat_map(attributes)
        .any(|(kind, value)| kind == CTA_PROTOINFO_TCP && state(value).is_some_and(|state| OVER_TCP.contains(&state)))
}

fn state(info: &[u8]) -> Option<u8> {
    attributes(info).find(|(kind, _)| *kind == STATE).and_then(|(_, state)| state.first().copied())
}

/// Whether a connection is open by its protocol's state. One that hardware forwards has none, and is.
fn is_open(info: &[u8]) -> bool {
    attributes(info).all(|(kind, value)| match (kind, state(value)) {
        (CTA_PROTOINFO_TCP, Some(state)) => OPEN_TCP.contains(&state),
        (CTA_PROTOINFO_SCTP, Some(state)) => OPEN_SCTP.contains(&state),
        _ => true,
    })
}

#[cfg(test)]
mod tests;
