//! The route of a packet, as the kernel would take it (rtnetlink(7), include/uapi/linux/rtnetlink.h).

use std::fmt;
use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::netlink::{ACK, Builder, Bus, REQUEST, Socket, attributes};

const RTM_GETROUTE: u16 = 26;
/// Length of `struct rtmsg`; family, length of destination and of source, and the type are its bytes.
const HEADER: usize = 12;
const FAMILY: usize = 0;
const DESTINATION_LENGTH: usize = 1;
const SOURCE_LENGTH: usize = 2;
const TYPE: usize = 7;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
/// `IPPROTO_*`.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// `RTN_*`.
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;
const BROADCAST: u8 = 3;
const MULTICAST: u8 = 5;
const REFUSING: [(u8, Refusal); 3] = [(6, Refusal::Blackhole), (7, Refusal::Unreachable), (8, Refusal::Prohibited)];

/// A packet whose route is asked for. What is not given is as of a socket that has not said: rules of routing may ask for
/// any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Where it goes.
    pub destination: IpAddr,
    /// Where it comes from. The kernel takes one of the node's own for what the node sends, and any for what has come in.
    pub source: Option<IpAddr>,
    /// Its mark.
    pub mark: u32,
    /// The index of the interface that it has come in by; none if the node sends it.
    pub input: Option<u32>,
    /// The index of the interface that it has to leave by.
    pub output: Option<u32>,
    /// Its protocol, source port and destination port.
    pub transport: Option<(u8, u16, u16)>,
}

impl Question {
    /// That of a packet which the node sends, of which no more is known.
    pub fn to(destination: IpAddr) -> Question {
        Question { destination, source: None, mark: 0, input: None, output: None, transport: None }
    }
}

/// The next hop of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The index of the interface that it leaves by.
    pub device: u32,
    /// The router it is given to; none if its destination is a neighbour.
    pub gateway: Option<IpAddr>,
    /// The source that it gets if it has none.
    pub source: Option<IpAddr>,
}

/// Why a packet is sent nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no route.
    NoRoute,
    /// A route says so, with an answer.
    Unreachable,
    /// A route says so, with another answer.
    Prohibited,
    /// A route says so, silently.
    Blackhole,
    /// There is a route, but what comes in by the interface is not passed on. Said of IPv4 alone: of IPv6, the kernel asks
    /// for that later, see [`super::forwards`].
    NotForwarded,
    /// The source of a packet that has come in is none: its way back is another interface and that is filtered, or it is an
    /// address of this node, of loopback or of nobody. Said of IPv4 alone.
    Source,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NoRoute => "no route",
            Refusal::Unreachable => "unreachable",
            Refusal::Prohibited => "prohibit",
            Refusal::Blackhole => "blackhole",
            Refusal::NotForwarded => "not forwarded",
            Refusal::Source => "source refused",
        })
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// It is sent.
    By(Hop),
    /// It is for the node itself.
    Local,
    /// It is sent nowhere.
    Nowhere(Refusal),
}

/// Looks up the way of a packet in this network namespace.
///
/// # Errors
/// The kernel does not say; no interface has the index.
pub fn route(question: &Question) -> io::Result<Route> {
    let refusal = match ask(question)? {
        Ok((_, route)) => return Ok(route),
        Err(refusal) => refusal,
    };
    if question.input.is_none() || question.destination.is_ipv6() {
        return Ok(Route::Nowhere(refusal));
    }
    // The kernel says the same of what a route refuses and of what it does not take from there: whether it is the route,
    // what the node would send itself tells.
    let sent = ask(&Question { input: None, source: None, ..*question })?.err();
    Ok(Route::Nowhere(match (refusal, sent) {
        (Refusal::Blackhole, Some(Refusal::Blackhole)) => Refusal::Blackhole,
        (Refusal::Blackhole, _) => Refusal::Source,
        (Refusal::NoRoute | Refusal::Unreachable, Some(of_route)) => of_route,
        (Refusal::NoRoute | Refusal::Unreachable, None) => Refusal::NotForwarded,
        (refusal, _) => refusal,
    }))
}

/// What an address is to this node, as `RTN_*` of include/uapi/linux/rtnetlink.h; an address of others that cannot be
/// reached is one of others (`RTN_UNICAST`).
///
/// # Errors
/// The kernel does not say.
pub fn address_type(address: IpAddr) -> io::Result<u8> {
    if address.is_multicast() {
        return Ok(MULTICAST);
    }
    if matches!(address, IpAddr::V4(ip) if ip.is_broadcast() || ip.octets()[0] == 0) {
        return Ok(BROADCAST);
    }
    Ok(match ask(&Question::to(address))? {
        Ok((kind @ (LOCAL | BROADCAST | MULTICAST), _)) => kind,
        _ => UNICAST,
    })
}

/// The type of the route and what it comes to, or why there is none.
fn ask(question: &Question) -> io::Result<Result<(u8, Route), Refusal>> {
    let mut socket = Socket::open(Bus::Route)?;
    let request = request(question, socket.next_sequence());
    let mut found = None;
    let asked = socket.dump(&request, |message| found = found.take().or_else(|| read(message.payload)));
    match asked.map_err(|error| (error.raw_os_error().map(Errno::from_raw), error)) {
        Ok(_) => found.ok_or_else(|| io::Error::other("no answer about a route")),
        Err((Some(Errno::ENETUNREACH), _)) => Ok(Err(Refusal::NoRoute)),
        Err((Some(Errno::EHOSTUNREACH), _)) => Ok(Err(Refusal::Unreachable)),
        Err((Some(Errno::EACCES), _)) => Ok(Err(Refusal::Prohibited)),
        // Older kernels told the filter from other sources that cannot be.
        Err((Some(Errno::EXDEV), _)) => Ok(Err(Refusal::Source)),
        // What the kernel says of a route of type blackhole, and of sources.
        Err((Some(Errno::EINVAL), _)) => Ok(Err(Refusal::Blackhole)),
        Err((_, error)) => Err(error),
    }
}

fn request(question: &Question, sequence: u32) -> Vec<u8> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let destination = bytes(question.destination);
    let bits = if question.destination.is_ipv6() { 128 } else { 32 };
    let mut header = [0; HEADER];
    header[FAMILY] = if question.destination.is_ipv6() { AF_INET6 } else { AF_INET };
    header[DESTINATION_LENGTH] = bits;
    header[SOURCE_LENGTH] = question.source.map_or(0, |_| bits);
    let mut request = Builder::message(RTM_GETROUTE, REQUEST | ACK, sequence, &header).attribute(RTA_DST, &destination);
    if let Some(source) = question.source {
        request = request.attribute(RTA_SRC, &bytes(source));
    }
    for (kind, index) in [(RTA_IIF, question.input), (RTA_OIF, question.output)] {
        if let Some(index) = index {
            request = request.attribute(kind, &index.to_ne_bytes());
        }
    }
    if question.mark != 0 {
        request = request.attribute(RTA_MARK, &question.mark.to_ne_bytes());
    }
    // The kernel asks by ports of these alone (`rtm_getroute_parse_ip_proto`).
    if let Some((protocol @ (TCP | UDP), source, destination)) = question.transport {
        request = request
            .attribute(RTA_IP_PROTO, &[protocol])
            .attribute(RTA_SPORT, &source.to_be_bytes())
            .attribute(RTA_DPORT, &destination.to_be_bytes());
    }
    request.finish()
}

fn read(payload: &[u8]) -> Option<Result<(u8, Route), Refusal>> {
    let kind = *payload.get(TYPE)?;
    if kind == LOCAL {
        return Some(Ok((kind, Route::Local)));
    }
    if let Some((_, refusal)) = REFUSING.iter().find(|(refusing, _)| *refusing == kind) {
        return Some(Err(*refusal));
    }
    let mut hop = Hop { device: 0, gateway: None, source: None };
    for (kind, value) in attributes(payload.get(HEADER..)?) {
        match kind {
            RTA_OIF => hop.device = u32::from_ne_bytes(*value.first_chunk()?),
            RTA_GATEWAY => hop.gateway = address(value),
            // The family comes first: a router of the other one.
            RTA_VIA => hop.gateway = value.get(2..).and_then(address),
            RTA_PREFSRC => hop.source = address(value),
            _ => {}
        }
    }
    (hop.device != 0).then_some(Ok((kind, Route::By(hop))))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use nix::net::if_::if_nametoindex;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::netns::{ip, set_sysctl};
    use crate::testing::{in_network_namespace, run};

    fn parsed(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn to(text: &str) -> Route {
        route(&Question::to(parsed(text))).expect("it can be asked")
    }

    /// Two pairs of devices, of which `va` and `vb` have addresses.
    fn devices() -> (u32, u32) {
        for (device, peer, address) in [("va", "va0", "192.0.2.1/24"), ("vb", "vb0", "198.51.100.1/24")] {
            run(&["ip", "link", "add", device, "type", "veth", "peer", "name", peer]);
            run(&["ip", "link", "set", device, "up"]);
            run(&["ip", "link", "set", peer, "up"]);
            run(&["ip", "addr", "add", address, "dev", device]);
        }
        (if_nametoindex("va").expect("it is there"), if_nametoindex("vb").expect("it is there"))
    }

    #[test]
    fn the_kernel_says_where_what_the_node_sends_goes() {
        in_network_namespace(|| {
            let (a, b) = devices();
            for refusing in ["unreachable 203.0.113.0/26", "blackhole 203.0.113.64/26", "prohibit 203.0.113.128/26"] {
                ip(&format!("route add {refusing}"));
            }
            ip("route add 10.1.0.0/16 via 192.0.2.9 src 192.0.2.1");
            ip("rule add fwmark 7 lookup 100");
            ip("route add 10.1.0.0/16 via 198.51.100.9 table 100");
            ip("rule add ipproto udp dport 53 lookup 101");
            ip("route add 10.1.0.0/16 dev vb table 101");
            let hop = |device, gateway: Option<&str>, source: &str| {
                Route::By(Hop { device, gateway: gateway.map(parsed), source: Some(parsed(source)) })
            };
            assert_eq!(to("192.0.2.9"), hop(a, None, "192.0.2.1"));
            assert_eq!(to("10.1.0.1"), hop(a, Some("192.0.2.9"), "192.0.2.1"));
            let question = Question::to(parsed("10.1.0.1"));
            let of = |question: &Question| route(question).expect("it can be asked");
            assert_eq!(of(&Question { mark: 7, ..question }), hop(b, Some("198.51.100.9"), "198.51.100.1"));
            let sctp = Question { transport: Some((132, 9, 53)), ..question };
            assert_eq!(of(&sctp), of(&question), "the kernel has no routes by its ports");
            assert_eq!(of(&Question { transport: Some((17, 9, 53)), ..question }), hop(b, None, "198.51.100.1"));
            assert_eq!(
                of(&Question { transport: Some((6, 9, 53)), ..question }),
                hop(a, Some("192.0.2.9"), "192.0.2.1")
            );
            assert_eq!(to("192.0.2.1"), Route::Local);
            for (address, refusal) in [
                ("10.96.0.1", Refusal::NoRoute),
                ("fd00::1", Refusal::NoRoute),
                ("203.0.113.1", Refusal::Unreachable),
                ("203.0.113.65", Refusal::Blackhole),
                ("203.0.113.129", Refusal::Prohibited),
            ] {
                assert_eq!(to(address), Route::Nowhere(refusal), "{address}");
            }
            for (address, kind) in [
                ("192.0.2.1", LOCAL),
                ("127.9.9.9", LOCAL),
                ("192.0.2.255", BROADCAST),
                ("224.0.0.1", MULTICAST),
                ("192.0.2.7", UNICAST),
                ("10.96.0.1", UNICAST),
                ("203.0.113.65", UNICAST),
                ("::1", LOCAL),
                ("fd00::1", UNICAST),
                ("ff02::1", MULTICAST),
            ] {
                assert_eq!(address_type(parsed(address)).expect("it can be asked"), kind, "{address}");
            }
        });
    }

    #[test]
    fn the_kernel_says_what_it_does_with_what_comes_in() {
        in_network_namespace(|| {
            let (a, b) = devices();
            for setting in ["ipv4/conf/all/rp_filter", "ipv4/conf/va/rp_filter", "ipv4/conf/vb/rp_filter"] {
                set_sysctl(setting, "0").expect("it can be set");
            }
            set_sysctl("ipv4/ip_forward", "1").expect("it can be set");
            for refusing in ["unreachable 203.0.113.0/26", "blackhole 203.0.113.64/26", "prohibit 203.0.113.128/26"] {
                ip(&format!("route add {refusing}"));
            }
            let of = |source: &str, destination: &str| {
                let question = Question::to(parsed(destination));
                route(&Question { source: Some(parsed(source)), input: Some(a), ..question }).expect("it can be asked")
            };
            let nowhere = Route::Nowhere;
            let by_b = |route: Route| matches!(route, Route::By(hop) if hop.device == b);
            assert!(by_b(of("192.0.2.7", "198.51.100.7")));
            assert_eq!(of("192.0.2.7", "198.51.100.1"), Route::Local);
            assert_eq!(of("192.0.2.7", "203.0.113.1"), nowhere(Refusal::Unreachable));
            assert_eq!(of("192.0.2.7", "203.0.113.65"), nowhere(Refusal::Blackhole));
            assert_eq!(of("192.0.2.7", "203.0.113.129"), nowhere(Refusal::Prohibited));
            assert_eq!(of("192.0.2.7", "10.9.9.9"), nowhere(Refusal::NoRoute));
            // A source whose way back is another device passes, and is refused where that is filtered.
            assert!(by_b(of("198.51.100.8", "198.51.100.7")));
            set_sysctl("ipv4/conf/va/rp_filter", "1").expect("it can be set");
            assert_eq!(of("198.51.100.8", "198.51.100.7"), nowhere(Refusal::Source));
            // Loosely, any way back will do.
            set_sysctl("ipv4/conf/va/rp_filter", "2").expect("it can be set");
            assert!(by_b(of("198.51.100.8", "198.51.100.7")));
            assert_eq!(of("10.9.9.9", "198.51.100.7"), nowhere(Refusal::Source));
            // Those that nobody has.
            for source in ["127.0.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255"] {
                assert_eq!(of(source, "198.51.100.7"), nowhere(Refusal::Source), "{source}");
            }
            set_sysctl("ipv4/conf/va/forwarding", "0").expect("it can be set");
            assert_eq!(of("192.0.2.7", "198.51.100.7"), nowhere(Refusal::NotForwarded));
            assert_eq!(of("192.0.2.7", "10.9.9.9"), nowhere(Refusal::NoRoute));
            assert_eq!(of("192.0.2.7", "198.51.100.1"), Route::Local, "what is for the node comes in all the same");
        });
    }

    #[test]
    fn of_ipv6_the_route_alone_is_asked_for() {
        in_network_namespace(|| {
            let (a, b) = devices();
            ip("addr add fd01::1/64 dev va nodad");
            ip("addr add fd02::1/64 dev vb nodad");
            for refusing in ["unreachable fd08::/64", "blackhole fd07::/64", "prohibit fd06::/64"] {
                ip(&format!("-6 route add {refusing}"));
            }
            for input in [None, Some(a)] {
                let of = |destination: &str| {
                    let source = input.map(|_| parsed("fd01::7"));
                    let question = Question { source, input, ..Question::to(parsed(destination)) };
                    route(&question).expect("it can be asked")
                };
                assert!(matches!(of("fd02::7"), Route::By(hop) if hop.device == b && hop.gateway.is_none()));
                assert_eq!(of("fd02::1"), Route::Local);
                for (destination, refusal) in [
                    ("fd09::1", Refusal::NoRoute),
                    ("fd08::1", Refusal::Unreachable),
                    ("fd07::1", Refusal::Blackhole),
                    ("fd06::1", Refusal::Prohibited),
                ] {
                    assert_eq!(of(destination), Route::Nowhere(refusal), "{destination} {input:?}");
                }
            }
        });
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = read(&bytes);
        }
    }
}
