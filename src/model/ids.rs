//! Names, families and protocols: the small values that everything else is keyed by.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::{Index, IndexMut};

use arcstr::ArcStr;

/// An IP family. A dual-stack Service is two single-family Services that share a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, the table `ip nftproxyd`.
    V4,
    /// IPv6, the table `ip6 nftproxyd`.
    V6,
}

impl Family {
    /// Both families, in the order in which they are always visited.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

impl fmt::Display for Family {
    /// Kubernetes' spelling (`Service.spec.ipFamilies`): `IPv4`, `IPv6`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// One value for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PerFamily<T> {
    /// The value for IPv4.
    pub v4: T,
    /// The value for IPv6.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// Makes the value of each family by a function.
    pub fn from_fn(mut make: impl FnMut(Family) -> T) -> Self {
        PerFamily { v4: make(Family::V4), v6: make(Family::V6) }
    }
}

impl<T> Index<Family> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// A transport protocol that a Service can have (`ServicePort.protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the default of the API.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP (without multi-homing).
    Sctp,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The number in the IP header (IANA "Assigned Internet Protocol Numbers").
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol with this number, if it is one of the three.
    pub const fn from_number(number: u8) -> Option<Protocol> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// The protocol of this name, as [`Protocol::name`] has it.
    pub fn from_name(name: &str) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// nft's word for it: `tcp`, `udp`, `sctp`.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a namespaced object, kept as one shared text `namespace/name`.
///
/// Invariant: there is exactly one `/`, and each part is such as [`ObjectName::is_part`] wants it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(ArcStr);

impl ObjectName {
    /// Whether a text can be a namespace or a name. The API server allows much less; this much keeps texts apart that are
    /// made of names: comments in tables, lines of the log.
    pub fn is_part(part: &str) -> bool {
        let strange = |c: char| matches!(c, '/' | '"' | '\\') || c.is_control() || c.is_whitespace();
        !part.is_empty() && !part.contains(strange)
    }

    /// Joins the two parts; `None` where one cannot be such.
    pub fn new(namespace: &str, name: &str) -> Option<ObjectName> {
        (Self::is_part(namespace) && Self::is_part(name)).then(|| ObjectName(format!("{namespace}/{name}").into()))
    }

    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// The shared text.
    pub fn shared(&self) -> &ArcStr {
        &self.0
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What joins a port of a Service with the ports of its EndpointSlices: Service, port *name* and protocol. Port
/// numbers and `targetPort` play no part in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// The port's name; empty for the only port of a Service that has no name.
    pub port: ArcStr,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    /// `namespace/name:port`, or `namespace/name` for an unnamed port, as kube-proxy prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() { write!(f, "{}", self.service) } else { write!(f, "{}:{}", self.service, self.port) }
    }
}

/// Where a connection to a Service arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAt {
    /// A cluster IP, external IP or load-balancer IP.
    Address(IpAddr),
    /// Every accepted address of the node in this family.
    NodePort(Family),
}

/// What a packet's destination must be to be a connection to a Service; at most one service port owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The address.
    pub at: FrontendAt,
    /// Protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: NonZeroU16,
}

impl FrontendKey {
    /// The family whose table it is in.
    pub fn family(&self) -> Family {
        match self.at {
            FrontendAt::Address(address) => Family::of(address),
            FrontendAt::NodePort(family) => family,
        }
    }
}

impl fmt::Display for FrontendKey {
    /// `tcp 10.96.0.1:80`, `udp [fd00::1]:53`, `tcp node port 30080 (IPv4)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            FrontendAt::Address(address) => {
                write!(f, "{} {}", self.protocol, SocketAddr::new(address, self.port.get()))
            }
            FrontendAt::NodePort(family) => write!(f, "{} node port {} ({family})", self.protocol, self.port),
        }
    }
}
