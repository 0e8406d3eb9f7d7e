//! A node in a network namespace, and the world around it.
//!
//! A TUN device `world0` is everything outside the node: the default routes go out of it, and packets from any address
//! come in by it. A packet whose source is an address of the node is sent by the node itself, so that it takes the
//! output path. What comes out again is told by its marker:
//!
//! * on a TUN device or delivered to the node, with another destination: forwarded
//! * the same with its own destination: passed
//! * only an ICMP error or a reset came back: rejected
//! * nothing: dropped
//!
//! An error by which the node's own stack says that nobody listens is never taken for a rejection: the packet has been
//! seen being delivered before.

mod ping;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::Deserialize;
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::namespace::{Namespace, skip};
use super::outcome::{Fate, Outcome, Passed};
use super::packet::{FirstPacket, Protocol, Refusal, Sighting};
use super::sockets::NodeSockets;
pub(crate) use ping::Echo;

use crate::netns::{self, fed, has, lacks_permission, set_sysctl, try_nft};

/// A device of the node besides `world0`: packets from `cidrs` come in by it, and packets to them go out of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// The node's addresses on it.
    #[serde(default)]
    pub(crate) ips: Vec<IpAddr>,
    #[serde(default)]
    pub(crate) cidrs: Vec<IpNet>,
}

/// Packets that differ in their source ports only, from each of the clients in turn.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// At least one.
    pub(crate) clients: Vec<IpAddr>,
    pub(crate) protocol: Protocol,
    pub(crate) destination: SocketAddr,
}

/// How closely to look at what becomes of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Packets for each endpoint that may be expected. Of `n` endpoints chosen at random, each is met with a
    /// probability of `1 - n * exp(-packets)` or more.
    pub(crate) packets_per_endpoint: usize,
    /// How long nothing must come out until a packet counts as dropped.
    pub(crate) silence: Duration,
}

impl Look {
    /// Enough almost always.
    pub(crate) const QUICK: Look = Look { packets_per_endpoint: 12, silence: Duration::from_millis(20) };
    /// Enough on a machine that has better things to do, too.
    pub(crate) const PATIENT: Look = Look { packets_per_endpoint: 30, silence: Duration::from_millis(500) };
}

/// A packet that was sent, and what was seen of it.
struct Shot {
    packet: FirstPacket,
    from_node: bool,
    came_out: Option<(SocketAddr, SocketAddr, bool)>,
    refused: Option<Refusal>,
}

/// A node. Everything in it is gone when it is dropped.
pub(crate) struct World {
    // Dropped in this order: what lives in the namespace before the namespace.
    sockets: NodeSockets,
    devices: Vec<tun::Device>,
    conntrack: Socket,
    /// The node's addresses; the first of a family is the one on `world0`.
    ips: Vec<IpAddr>,
    interfaces: Vec<Interface>,
    local: BTreeSet<IpAddr>,
    marker: u32,
    source_port: u16,
    flows: BTreeMap<(String, Protocol), u16>,
    buffer: Vec<u8>,
    namespace: Namespace,
}

/// Besides making it, its users look at it with nft, and start programs in it with setpriv.
const PROGRAMS: [&str; 3] = ["ip", "nft", "setpriv"];
/// The kernel makes TUN devices for whoever opens it (Documentation/networking/tuntap.rst).
const TUN: &str = "/dev/net/tun";
/// Source ports of probes; named flows have those below.
const SOURCE_PORTS: std::ops::Range<u16> = 20_000..60_000;
const FLOW_PORTS: u16 = 10_000;
/// How long each packet is waited for before the next one is sent. Later sightings count as well.
const PACE: Duration = Duration::from_millis(2);

impl World {
    /// Makes a node with these addresses: the first of each family is on `world0`, and so the one that masquerading
    /// picks; others are on a device of their own.
    ///
    /// `None`, said loudly, when this machine does not allow it; then there is nothing to test.
    pub(crate) fn new(ips: &[IpAddr], interfaces: &[Interface]) -> Option<World> {
        if !has(&PROGRAMS) {
            return None;
        }
        if !Path::new(TUN).exists() {
            netns::skip("TUN devices", format_args!("there is no {TUN}"));
            return None;
        }
        match World::make(ips, interfaces) {
            Ok(world) => Some(world),
            Err(error) if lacks_permission(&error) => {
                skip(&error);
                None
            }
            Err(error) => panic!("cannot make a node: {error}"),
        }
    }

    fn make(ips: &[IpAddr], interfaces: &[Interface]) -> io::Result<World> {
        let namespace = Namespace::new()?;
        let devices: Vec<String> =
            ["world0"].into_iter().chain(interfaces.iter().map(|i| i.name.as_str())).map(str::to_owned).collect();
        let commands = addresses_and_routes(ips, interfaces, &devices);
        let local: BTreeSet<IpAddr> = ips.iter().chain(interfaces.iter().flat_map(|i| &i.ips)).copied().collect();
        let addresses = local.clone();
        let (sockets, devices, conntrack) = namespace.run(move || {
            sysctls_before_devices()?;
            let mut tuns = Vec::new();
            for name in devices.iter().map(String::as_str).chain(["alt0"]) {
                let mut configuration = tun::Configuration::default();
                configuration.tun_name(name);
                let device = tun::create(&configuration).map_err(io::Error::from)?;
                device.set_nonblock()?;
                tuns.push(device);
            }
            fed(Command::new("ip").args(["-batch", "-"]), &commands)?;
            wait_for_v6_addresses(&addresses)?;
            let netfilter = SocketProtocol::from(nix::libc::NETLINK_NETFILTER);
            let conntrack = Socket::new(Domain::from(nix::libc::AF_NETLINK), Type::RAW, Some(netfilter))?;
            conntrack.set_read_timeout(Some(Duration::from_secs(10)))?;
            io::Result::Ok((NodeSockets::open()?, tuns, conntrack))
        })?;
        Ok(World {
            sockets,
            devices,
            conntrack,
            ips: ips.to_vec(),
            interfaces: interfaces.to_vec(),
            local,
            marker: 1 << 24,
            source_port: SOURCE_PORTS.start,
            flows: BTreeMap::new(),
            buffer: vec![0; 1 << 16],
            namespace,
        })
    }

    /// Runs `job` on a thread in the node: its sockets, threads and child processes live there.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.namespace.run(job)
    }

    /// Starts a program in the node.
    pub(crate) fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move || command.spawn())
    }

    /// Runs `nft` in the node with `ruleset` as its input and returns what it prints.
    ///
    /// # Errors
    /// What `nft` says on failure.
    pub(crate) fn nft(&self, arguments: &[&str], ruleset: &str) -> io::Result<String> {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let ruleset = ruleset.to_owned();
        self.run(move || try_nft(&arguments, &ruleset))
    }

    /// Forgets all connections.
    pub(crate) fn flush_conntrack(&self) -> io::Result<()> {
        const DELETE: u16 = 1 << 8 | 2; // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
        const REQUEST_AND_ACK: u16 = 1 | 4;
        let mut message = Vec::new();
        message.extend(20_u32.to_ne_bytes());
        message.extend(DELETE.to_ne_bytes());
        message.extend(REQUEST_AND_ACK.to_ne_bytes());
        message.extend([0; 12]); // sequence, port; then any family, version 0, no resource
        self.conntrack.send(&message)?;
        let mut answer = [0; 64];
        (&self.conntrack).read_exact(&mut answer[..20])?;
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }

    /// Whether `ip` is an address of the node.
    pub(crate) fn is_local(&self, ip: IpAddr) -> bool {
        self.local.contains(&ip) || ip.is_loopback()
    }

    /// Whether the node has addresses of IPv4 (`true`) or IPv6 (`false`).
    pub(crate) fn has_family(&self, v4: bool) -> bool {
        self.ips.iter().any(|ip| ip.is_ipv4() == v4)
    }

    /// Sends packets until all of about `endpoints` endpoints must have been met, or it is clear that there are none.
    pub(crate) fn probe(&mut self, probe: &Probe, endpoints: usize, look: Look) -> Outcome {
        let mut shots = Vec::new();
        loop {
            let outcome = self.outcome(&shots);
            let clients = probe.clients.len();
            let wanted = match outcome.endpoints().len() {
                0 => clients.max(3),
                met => (look.packets_per_endpoint * endpoints.max(met).max(2)).max(if clients > 1 {
                    3 * clients
                } else {
                    0
                }),
            };
            if shots.len() >= wanted {
                return outcome;
            }
            while shots.len() < wanted {
                let client = probe.clients[shots.len() % clients];
                let port = self.next_source_port();
                self.shoot(&mut shots, client, port, probe, PACE);
            }
            self.watch(&mut shots, 0, look.silence);
        }
    }

    /// Sends one packet of the flow of this name: it has the same source port every time.
    pub(crate) fn probe_flow(&mut self, name: &str, probe: &Probe, look: Look) -> Outcome {
        let next = FLOW_PORTS + u16::try_from(self.flows.len()).expect("a test has few flows");
        let port = *self.flows.entry((name.to_owned(), probe.protocol)).or_insert(next);
        let mut shots = Vec::new();
        self.shoot(&mut shots, probe.clients[0], port, probe, look.silence);
        self.outcome(&shots)
    }

    /// Sends one packet and looks for as long as `silence`; for those who try again anyway.
    pub(crate) fn probe_once(&mut self, probe: &Probe, silence: Duration) -> Fate {
        let mut shots = Vec::new();
        let port = self.next_source_port();
        self.shoot(&mut shots, probe.clients[0], port, probe, silence);
        self.fate(&shots[0])
    }

    fn next_source_port(&mut self) -> u16 {
        let port = self.source_port;
        self.source_port = if port + 1 == SOURCE_PORTS.end { SOURCE_PORTS.start } else { port + 1 };
        port
    }

    /// Sends a packet and watches for it, at most for `patience`.
    fn shoot(&mut self, shots: &mut Vec<Shot>, client: IpAddr, source_port: u16, probe: &Probe, patience: Duration) {
        self.marker += 1;
        let packet = FirstPacket {
            source: SocketAddr::new(client, source_port),
            destination: probe.destination,
            protocol: probe.protocol,
            marker: self.marker,
        };
        let from_node = self.is_local(client);
        let bytes = packet.to_bytes();
        if from_node {
            self.sockets.send(&bytes, probe.destination.ip()).expect("the node can send");
        } else {
            let device = self.interfaces.iter().position(|i| i.cidrs.iter().any(|c| c.contains(&client)));
            self.devices[device.map_or(0, |n| n + 1)].send(&bytes).expect("a TUN device takes packets");
        }
        shots.push(Shot { packet, from_node, came_out: None, refused: None });
        let last = shots.len() - 1;
        self.watch(shots, last, patience);
    }

    /// Looks for what has come out until it is known of all packets from the `first` on, or for as long as `patience`.
    fn watch(&mut self, shots: &mut [Shot], first: usize, patience: Duration) {
        let end = Instant::now() + patience;
        let mut pause = Duration::from_micros(20);
        loop {
            // The clock is read before the look, so that the last look is at the end or after it.
            let over = Instant::now() >= end;
            self.drain(shots);
            let waiting = &shots[first..];
            if waiting.iter().all(|shot| shot.came_out.is_some() || shot.refused.is_some()) {
                if waiting.iter().any(|shot| shot.came_out.is_none()) {
                    // A refusal may have been read a moment before the delivery that caused it.
                    self.drain(shots);
                }
                return;
            }
            if over {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    /// Notes everything that there is to be seen.
    fn drain(&mut self, shots: &mut [Shot]) {
        let Some(first) = shots.first().map(|shot| shot.packet.marker) else { return };
        let mut note = |sighting: Sighting, delivered: bool| {
            let Some(nth) = sighting.marker().checked_sub(first).and_then(|nth| usize::try_from(nth).ok()) else {
                return;
            };
            let Some(shot) = shots.get_mut(nth) else { return };
            match sighting {
                Sighting::First { source, destination, .. } => shot.came_out = Some((source, destination, delivered)),
                Sighting::Refused { how, .. } => shot.refused = shot.refused.or(Some(how)),
            }
        };
        for device in &self.devices {
            loop {
                match device.recv(&mut self.buffer) {
                    Ok(length) => Sighting::of_packet(&self.buffer[..length]).into_iter().for_each(|s| note(s, false)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => panic!("cannot read from a TUN device: {error}"),
                }
            }
        }
        self.sockets.drain(|sighting| note(sighting, true)).expect("the node's sockets can be read");
    }

    fn outcome(&self, shots: &[Shot]) -> Outcome {
        let mut outcome = Outcome::default();
        for shot in shots {
            outcome.add(shot.packet.source.ip(), self.fate(shot));
        }
        outcome
    }

    fn fate(&self, shot: &Shot) -> Fate {
        let sent = shot.packet;
        match (shot.came_out, shot.refused) {
            (Some((source, destination, delivered)), _) => {
                if destination != sent.destination {
                    let masqueraded = if source != sent.source {
                        Some(true) // the same address with another port as well
                    } else if shot.from_node && self.masquerade_ip(destination.ip(), delivered) == Some(source.ip()) {
                        None
                    } else {
                        Some(false)
                    };
                    Fate::Forward { endpoint: destination, source: source.ip(), masqueraded }
                } else if source != sent.source {
                    Fate::Pass(Passed::SourceChanged)
                } else {
                    Fate::Pass(if delivered { Passed::Delivered } else { Passed::Out })
                }
            }
            (None, Some(refusal)) => Fate::Reject(refusal),
            (None, None) => Fate::Drop,
        }
    }

    /// The address that masquerading gives to packets to `destination`.
    fn masquerade_ip(&self, destination: IpAddr, delivered: bool) -> Option<IpAddr> {
        let by = self.interfaces.iter().find(|i| !delivered && i.cidrs.iter().any(|c| c.contains(&destination)));
        by.into_iter()
            .flat_map(|interface| &interface.ips)
            .chain(&self.ips)
            .find(|ip| ip.is_ipv4() == destination.is_ipv4())
            .copied()
    }
}

/// Commands for `ip -batch`.
fn addresses_and_routes(ips: &[IpAddr], interfaces: &[Interface], devices: &[String]) -> String {
    let mut commands = "link set lo up\nlink set alt0 up\n".to_owned();
    let mut add = |command: String| commands.extend([command.as_str(), "\n"]);
    for device in devices {
        add(format!("link set {device} up"));
    }
    let address = |ip: &IpAddr, device: &str| match ip {
        IpAddr::V4(ip) => format!("addr add {ip}/32 dev {device}"),
        IpAddr::V6(ip) => format!("addr add {ip}/128 dev {device} nodad"),
    };
    for (nth, ip) in ips.iter().enumerate() {
        let first = ips[..nth].iter().all(|other| other.is_ipv4() != ip.is_ipv4());
        add(address(ip, if first { "world0" } else { "alt0" }));
    }
    for interface in interfaces {
        for ip in &interface.ips {
            add(address(ip, &interface.name));
        }
        for cidr in &interface.cidrs {
            add(format!("route add {cidr} dev {}", interface.name));
        }
    }
    add("route add 0.0.0.0/0 dev world0".to_owned());
    add("route add ::/0 dev world0".to_owned());
    commands
}

/// Makes a router of the namespace that answers every packet at once, whatever the settings of the machine that it has
/// begun with. Devices take over what `default` says when they are made; only `lo` is there before. Written by a thread of the namespace: `/proc/sys/net` is that of whoever opens it.
fn sysctls_before_devices() -> io::Result<()> {
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/lo/rp_filter", "0"),
        ("ipv4/conf/all/route_localnet", "0"),
        ("ipv4/conf/default/route_localnet", "0"),
        ("ipv4/conf/lo/route_localnet", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        // No limits of ICMP errors, neither for each address nor for all; some of these came with later kernels.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv4/icmp_ratemask", "0"),
        ("ipv4/icmp_msgs_per_sec", "1000000"),
        ("ipv4/icmp_msgs_burst", "1000000"),
        ("ipv6/icmp/ratelimit", "0"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/lo/disable_ipv6", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/dad_transmits", "0"),
        ("ipv6/conf/default/addr_gen_mode", "1"), // no link-local addresses
        ("ipv6/conf/default/router_solicitations", "0"),
        // Named flows live as long as the test, however slow the machine is.
        ("netfilter/nf_conntrack_udp_timeout", "600"),
    ] {
        match set_sysctl(name, value) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Waits until packets to the IPv6 addresses are delivered: the kernel makes their local routes in the background, even
/// when duplicate address detection is off. By a thread of the namespace.
fn wait_for_v6_addresses(addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    const LOCAL: u32 = 0x8000_0000; // RTF_LOCAL, linux/ipv6_route.h
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let over = Instant::now() >= end;
        let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
        let local: BTreeSet<&str> = routes
            .lines()
            .filter_map(|route| {
                // destination, its prefix length, source, its prefix length, next hop, metric, two counts, flags, device
                let fields: Vec<&str> = route.split_whitespace().collect();
                let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
                (flags & LOCAL != 0).then_some(fields[0])
            })
            .collect();
        let missing = addresses.iter().find(|address| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => !local.contains(format!("{:032x}", address.to_bits()).as_str()),
        });
        match missing {
            None => return Ok(()),
            Some(address) if over => {
                return Err(io::Error::other(format!("{address} does not become an address of the node")));
            }
            Some(_) => std::thread::sleep(Duration::from_micros(500)),
        }
    }
}
