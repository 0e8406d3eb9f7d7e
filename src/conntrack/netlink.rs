//! Lists and deletes the kernel's entries over ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

mod ended;
mod open;

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use nix::libc;

pub use ended::Ends;
pub use open::Look;

use super::plan::{Flow, Tuple, Zones};
use crate::model::{Family, Protocol};
use crate::netlink::{ACK, Builder, Bus, DUMP, Dump, REQUEST, Socket, attributes};

/// `NFNL_SUBSYS_CTNETLINK << 8`, to which the message's own number is added.
const SUBSYSTEM: u16 = 1 << 8;
const CT_NEW: u16 = SUBSYSTEM;
const CT_GET: u16 = SUBSYSTEM | 1;
const CT_DELETE: u16 = SUBSYSTEM | 2;
/// Length of `struct nfgenmsg`, which all messages begin with.
const FAMILY_HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_STATUS_MASK: u16 = 26;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM` (net/netfilter/nf_internals.h): compare the protocol of the original tuple.
const FILTER_PROTOCOL: u32 = 1 << 3;
/// `IPS_SEEN_REPLY` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const SEEN_REPLY: u32 = 1 << 1;
/// `IPS_DST_NAT`: the destination was translated.
const TRANSLATED: u32 = 1 << 5;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// How often a listing that the kernel interrupted is begun again, as in kube-proxy.
const ATTEMPTS: usize = 5;

/// What a pass over the table of connections did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Entries looked at.
    pub seen: usize,
    /// Entries deleted.
    pub deleted: usize,
    /// Entries that should have been deleted and could not be.
    pub failed: usize,
    /// Whether the kernel interrupted every attempt, so that some entries may not have been looked at.
    pub incomplete: bool,
}

impl Swept {
    /// What two passes did together.
    pub(super) fn and(self, other: Swept) -> Swept {
        Swept {
            seen: self.seen + other.seen,
            deleted: self.deleted + other.deleted,
            failed: self.failed + other.failed,
            incomplete: self.incomplete || other.incomplete,
        }
    }
}

/// Connection tracking could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// The capability `CAP_NET_ADMIN` is missing.
    #[error("no permission to list connections: run as root or with CAP_NET_ADMIN")]
    Permission,
    /// The kernel cannot do it.
    #[error("the kernel cannot list connections: load the module nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)")]
    Unsupported,
    /// The socket failed.
    #[error("connection tracking: cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The kernel's table of connections, as far as it concerns Services.
pub trait Flows {
    /// Looks at every UDP entry of a family and deletes those for which `stale` says so. Memory does not grow with the
    /// table. An entry that is gone before it can be deleted, or was replaced by a new one, is left alone.
    fn delete_udp(&mut self, family: Family, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError>;

    /// The same for the entries of all protocols that have no answer. Others may be shown to `stale`, too.
    fn delete_unanswered(&mut self, family: Family, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError>;

    /// The same for the entries of TCP whose destination was translated and whose connection is not over. Others may be
    /// shown to `gone`, too.
    fn delete_tcp(&mut self, family: Family, gone: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError>;
}

/// Which entries the kernel is asked for. Older ones may give more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Udp,
    Unanswered,
    /// Those whose destination was translated, of one protocol or of all.
    Translated(Option<Protocol>),
}

/// The connection tracking of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    /// Lists; a second socket deletes meanwhile.
    list: Socket,
    delete: Socket,
    /// Whether the kernel is asked to list only what is wanted (a protocol: Linux >= 5.8, by status: >= 5.15).
    filter: bool,
}

impl Conntrack {
    /// Opens the two sockets that it takes. Needs `CAP_NET_ADMIN` when it is used.
    pub fn open() -> Result<Conntrack, FlowsError> {
        let open = || Socket::open(Bus::Netfilter);
        let failed = |source| FlowsError::Io { step: "open a netlink socket", source };
        Ok(Conntrack { list: open().map_err(failed)?, delete: open().map_err(failed)?, filter: true })
    }

    /// Hands every entry with ports of a family to `visit`. Returns whether the listing is complete: the kernel may
    /// interrupt it, and entries may be missing or doubled then.
    pub fn each(&mut self, family: Family, visit: &mut dyn FnMut(&Flow)) -> Result<bool, FlowsError> {
        let request = list_request(family, None, self.list.next_sequence());
        let listed = self.list.dump(&request, |message| {
            if let Some(flow) = (message.kind == CT_NEW).then(|| parse(message.payload)).flatten() {
                visit(&flow);
            }
        });
        listed.map(|dump| dump == Dump::Complete).map_err(failed_to_list)
    }

    /// The packets that are expected in answer to these: their source is where the rules have sent the first of them. `None`
    /// if it is not known. Looks in no zone but the first.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn reply(&mut self, protocol: Protocol, original: Tuple) -> Result<Option<Tuple>, FlowsError> {
        let family = Family::of(original.destination.ip());
        let request = Builder::message(CT_GET, REQUEST | ACK, self.list.next_sequence(), &family_header(family))
            .nested(CTA_TUPLE_ORIG, |tuple| with_tuple(tuple, protocol.number(), original, None))
            .finish();
        let mut reply = None;
        let asked = self.list.dump(&request, |message| {
            reply = (message.kind == CT_NEW).then(|| parse(message.payload)).flatten().map(|flow| flow.reply);
        });
        match asked {
            Ok(_) => Ok(reply),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(failed_to_list(error)),
        }
    }

    fn pass(
        &mut self,
        family: Family,
        wanted: Wanted,
        stale: &mut dyn FnMut(&Flow) -> bool,
        swept: &mut Swept,
    ) -> io::Result<Dump> {
        let request = list_request(family, self.filter.then_some(wanted), self.list.next_sequence());
        let delete = &mut self.delete;
        self.list.dump(&request, |message| {
            // An entry that cannot be read is none of ours: ours have addresses, ports and a known protocol.
            let Some(flow) = (message.kind == CT_NEW).then(|| parse(message.payload)).flatten() else { return };
            swept.seen += 1;
            if !stale(&flow) || open::is_over(message.payload) {
                return;
            }
            let request = delete_request(&flow, delete.next_sequence());
            match delete.execute(&request) {
                Ok(()) => swept.deleted += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => {
                    if swept.failed == 0 {
                        let (from, to) = (flow.original.source, flow.original.destination);
                        tracing::warn!(%from, %to, %error, "cannot delete a stale entry of connection tracking");
                    }
                    swept.failed += 1;
                }
            }
        })
    }
}

impl Flows for Conntrack {
    fn delete_udp(&mut self, family: Family, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
        self.delete(family, Wanted::Udp, stale)
    }

    fn delete_unanswered(&mut self, family: Family, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
        self.delete(family, Wanted::Unanswered, stale)
    }

    fn delete_tcp(&mut self, family: Family, gone: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
        self.delete(family, Wanted::Translated(Some(Protocol::Tcp)), gone)
    }
}

impl Conntrack {
    fn delete(
        &mut self,
        family: Family,
        wanted: Wanted,
        stale: &mut dyn FnMut(&Flow) -> bool,
    ) -> Result<Swept, FlowsError> {
        let mut swept = Swept::default();
        let mut attempts = 0;
        loop {
            match self.pass(family, wanted, stale, &mut swept) {
                Ok(Dump::Complete) => return Ok(swept),
                Ok(Dump::Interrupted) => {
                    attempts += 1;
                    if attempts == ATTEMPTS {
                        return Ok(Swept { incomplete: true, ..swept });
                    }
                }
                Err(error) if self.does_without_filter(&error) => {}
                Err(error) => return Err(failed_to_list(error)),
            }
        }
    }

    /// Whether it is worth to ask again, for everything, and to pick from that: Linux before 5.8, and any that knows less
    /// of filters, refuses them.
    fn does_without_filter(&mut self, error: &io::Error) -> bool {
        let is_refused = matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::EOPNOTSUPP));
        is_refused && std::mem::replace(&mut self.filter, false)
    }
}

fn failed_to_list(error: io::Error) -> FlowsError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => FlowsError::Permission,
        Some(Errno::EINVAL | Errno::EOPNOTSUPP) => FlowsError::Unsupported,
        _ => FlowsError::Io { step: "list connections", source: error },
    }
}

/// `struct nfgenmsg`: family, or none for all, version `NFNETLINK_V0`, resource 0.
fn family_header(family: impl Into<Option<Family>>) -> [u8; FAMILY_HEADER] {
    let number = match family.into() {
        None => libc::AF_UNSPEC,
        Some(Family::V4) => libc::AF_INET,
        Some(Family::V6) => libc::AF_INET6,
    };
    [u8::try_from(number).expect("the numbers of families are small"), 0, 0, 0]
}

fn list_request(family: impl Into<Option<Family>>, only: Option<Wanted>, sequence: u32) -> Vec<u8> {
    let request = Builder::message(CT_GET, REQUEST | DUMP, sequence, &family_header(family));
    let of = |request: Builder, protocol: Protocol| {
        request
            .nested(CTA_TUPLE_ORIG, |tuple| {
                tuple.nested(CTA_TUPLE_PROTO, |proto| proto.attribute(CTA_PROTO_NUM, &[protocol.number()]))
            })
            .nested(CTA_FILTER, |filter| filter.attribute(CTA_FILTER_ORIG_FLAGS, &FILTER_PROTOCOL.to_ne_bytes()))
    };
    let with_status = |request: Builder, status: u32, mask: u32| {
        request.attribute(CTA_STATUS, &status.to_be_bytes()).attribute(CTA_STATUS_MASK, &mask.to_be_bytes())
    };
    let request = match only {
        None => request,
        Some(Wanted::Udp) => of(request, Protocol::Udp),
        Some(Wanted::Unanswered) => with_status(request, 0, SEEN_REPLY),
        Some(Wanted::Translated(None)) => with_status(request, TRANSLATED, TRANSLATED),
        Some(Wanted::Translated(Some(protocol))) => with_status(of(request, protocol), TRANSLATED, TRANSLATED),
    };
    request.finish()
}

/// Deletes one entry, and no other that took its place meanwhile.
///
/// It is named by its reply tuple, where the endpoint is: a new entry of the same client through the same frontend goes
/// to another endpoint, or is as stale as this one. `CTA_ID` alone does not tell the two apart. It is a hash over the
/// original tuple and the entry's address in memory (`nf_ct_get_id`), and the kernel likes to use that memory again at
/// once. But with it an entry that has this reply tuple and another original one is safe.
fn delete_request(flow: &Flow, sequence: u32) -> Vec<u8> {
    let family = Family::of(flow.reply.destination.ip());
    let mut request = Builder::message(CT_DELETE, REQUEST | ACK, sequence, &family_header(family))
        .nested(CTA_TUPLE_REPLY, |tuple| with_tuple(tuple, flow.protocol, flow.reply, flow.zones.reply));
    if let Some(zone) = flow.zones.both {
        request = request.attribute(CTA_ZONE, &zone.to_be_bytes());
    }
    if let Some(id) = flow.id {
        request = request.attribute(CTA_ID, &id);
    }
    request.finish()
}

fn with_tuple(tuple: Builder, protocol: u8, Tuple { source, destination }: Tuple, zone: Option<u16>) -> Builder {
    let tuple = tuple
        .nested(CTA_TUPLE_IP, |ip| match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                ip.attribute(CTA_IP_V4_SRC, &from.octets()).attribute(CTA_IP_V4_DST, &to.octets())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                ip.attribute(CTA_IP_V6_SRC, &from.octets()).attribute(CTA_IP_V6_DST, &to.octets())
            }
            // Not a tuple; the kernel refuses it (EINVAL).
            _ => ip,
        })
        .nested(CTA_TUPLE_PROTO, |proto| {
            proto
                .attribute(CTA_PROTO_NUM, &[protocol])
                .attribute(CTA_PROTO_SRC_PORT, &source.port().to_be_bytes())
                .attribute(CTA_PROTO_DST_PORT, &destination.port().to_be_bytes())
        });
    match zone {
        Some(zone) => tuple.attribute(CTA_TUPLE_ZONE, &zone.to_be_bytes()),
        None => tuple,
    }
}

/// Reads an entry; `None` for one that has no ports, or of which a part is missing.
fn parse(payload: &[u8]) -> Option<Flow> {
    let (mut original, mut reply, mut id, mut zone, mut status) = (None, None, None, None, 0);
    for (kind, value) in attributes(payload.get(FAMILY_HEADER..)?) {
        match kind {
            CTA_TUPLE_ORIG => original = parse_tuple(value),
            CTA_TUPLE_REPLY => reply = parse_tuple(value),
            CTA_STATUS => status = value.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)),
            CTA_ID => id = value.first_chunk().copied(),
            CTA_ZONE => zone = be16(value),
            _ => {}
        }
    }
    let ((protocol, original, _), (_, reply, reply_zone)) = (original?, reply?);
    let (zones, answered) = (Zones { both: zone, reply: reply_zone }, status & SEEN_REPLY != 0);
    Some(Flow { protocol, original, reply, zones, answered, id })
}

/// Protocol, tuple, and the zone of this direction.
fn parse_tuple(value: &[u8]) -> Option<(u8, Tuple, Option<u16>)> {
    let (mut from, mut to, mut protocol, mut from_port, mut to_port, mut zone) = (None, None, None, None, None, None);
    for (kind, value) in attributes(value) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => from = address(value),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => to = address(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        CTA_PROTO_NUM => protocol = value.first().copied(),
                        CTA_PROTO_SRC_PORT => from_port = be16(value),
                        CTA_PROTO_DST_PORT => to_port = be16(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_ZONE => zone = be16(value),
            _ => {}
        }
    }
    let (source, destination) = (SocketAddr::new(from?, from_port?), SocketAddr::new(to?, to_port?));
    Some((protocol?, Tuple { source, destination }, zone))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

fn be16(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod netns_tests;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::{Message, messages};

    fn tuple(from: &str, to: &str) -> Tuple {
        Tuple { source: from.parse().expect("an address"), destination: to.parse().expect("an address") }
    }

    fn examples() -> [Flow; 2] {
        let v4 = Flow {
            protocol: 17,
            original: tuple("10.0.0.2:4000", "172.30.0.1:53"),
            reply: tuple("10.180.0.1:5353", "10.0.0.2:4000"),
            zones: Zones { both: Some(7), reply: None },
            answered: false,
            id: Some([1, 2, 3, 4]),
        };
        let v6 = Flow {
            protocol: 17,
            original: tuple("[fd00::2]:4000", "[fd00:1::1]:53"),
            reply: tuple("[fd00:2::1]:5353", "[fd00::2]:4000"),
            zones: Zones { both: None, reply: Some(9) },
            answered: true,
            id: None,
        };
        [v4, v6]
    }

    /// An entry as the kernel lists it.
    fn listed(flow: &Flow) -> Vec<u8> {
        let family = Family::of(flow.original.source.ip());
        let mut message = Builder::message(CT_NEW, 0, 1, &family_header(family));
        message = message.nested(CTA_TUPLE_ORIG, |nest| with_tuple(nest, flow.protocol, flow.original, None));
        message = message.nested(CTA_TUPLE_REPLY, |nest| with_tuple(nest, flow.protocol, flow.reply, flow.zones.reply));
        message = message.attribute(CTA_STATUS, &(if flow.answered { 0xa } else { 8_u32 }).to_be_bytes());
        if let Some(zone) = flow.zones.both {
            message = message.attribute(CTA_ZONE, &zone.to_be_bytes());
        }
        if let Some(id) = flow.id {
            message = message.attribute(CTA_ID, &id);
        }
        message.finish()
    }

    #[test]
    fn entries_are_read_and_asked_for_again() {
        for flow in examples() {
            let bytes = listed(&flow);
            let message = Message::first(&bytes).expect("one message");
            assert_eq!(parse(message.payload), Some(flow));

            let bytes = delete_request(&flow, 5);
            let message = Message::first(&bytes).expect("one message");
            assert_eq!((message.kind, message.flags, message.sequence), (CT_DELETE, REQUEST | ACK, 5));
            let wanted: Vec<u16> =
                [(true, CTA_TUPLE_REPLY), (flow.zones.both.is_some(), CTA_ZONE), (flow.id.is_some(), CTA_ID)]
                    .into_iter()
                    .filter_map(|(present, kind)| present.then_some(kind))
                    .collect();
            let parts: Vec<(u16, &[u8])> = attributes(&message.payload[FAMILY_HEADER..]).collect();
            assert_eq!(parts.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), wanted);
            assert_eq!(parse_tuple(parts[0].1), Some((17, flow.reply, flow.zones.reply)));
        }
    }

    #[test]
    fn entries_that_lack_a_part_are_none() {
        let [flow, _] = examples();
        let bytes = listed(&flow);
        let payload = Message::first(&bytes).expect("one message").payload;
        for length in 0..100 {
            assert_eq!(parse(&payload[..length.min(payload.len())]), None, "{length}");
        }
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
            let _ = parse_tuple(&bytes);
        }

        #[test]
        fn damaged_entries_can_be_parsed(at in 0_usize..200, with: u8) {
            for flow in examples() {
                let mut bytes = listed(&flow);
                let at = at % bytes.len();
                bytes[at] = with;
                for message in messages(&bytes).flatten() {
                    let _ = parse(message.payload);
                }
            }
        }
    }
}
