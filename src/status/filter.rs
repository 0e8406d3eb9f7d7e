//! Of what somebody wants to know.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use super::{FrontendStatus, NodePortsStatus};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName};
use crate::printable::printable;

/// Which frontends are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Filter {
    /// All of them.
    #[default]
    All,
    /// Those of a namespace.
    Namespace(String),
    /// Those of a Service, or of one of its ports.
    Service(ObjectName, Option<String>),
    /// Those of an address; of one of the node, its node ports.
    Address(IpAddr),
    /// That of an address and port; of an address of the node, that node port.
    At(SocketAddr),
    /// A node port.
    NodePort(NonZeroU16),
}

impl Filter {
    /// Reads `NAMESPACE`, `NAMESPACE/NAME`, `NAMESPACE/NAME:PORT`, `ADDRESS`, `ADDRESS:PORT` or `*:NODEPORT`.
    ///
    /// # Errors
    /// A line that says that it is none of them.
    pub fn parse(text: &str) -> Result<Filter, String> {
        let none = || {
            format!(
                "{:?} is none of NAMESPACE, NAMESPACE/NAME, NAMESPACE/NAME:PORT, ADDRESS, ADDRESS:PORT and *:NODEPORT",
                printable(text)
            )
        };
        if let Some(port) = text.strip_prefix("*:") {
            return port.parse().map(Filter::NodePort).map_err(|_| none());
        }
        if let Ok(at) = text.parse() {
            return Ok(Filter::At(at));
        }
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Filter::Address(address));
        }
        if let Some((namespace, rest)) = text.split_once('/') {
            let (name, port) = match rest.split_once(':') {
                Some((name, port)) => (name, Some(port.to_owned())),
                None => (rest, None),
            };
            let service = ObjectName::new(namespace, name).filter(|_| is_label(namespace));
            return service.map(|service| Filter::Service(service, port)).ok_or_else(none);
        }
        if is_label(text) { Ok(Filter::Namespace(text.to_owned())) } else { Err(none()) }
    }

    /// Whether a frontend of this family can be meant.
    pub(super) fn concerns(&self, family: Family) -> bool {
        match self {
            Filter::Address(address) => Family::of(*address) == family,
            Filter::At(at) => Family::of(at.ip()) == family,
            Filter::All | Filter::Namespace(_) | Filter::Service(..) | Filter::NodePort(_) => true,
        }
    }

    /// Whether this one is.
    pub(super) fn takes(&self, key: &FrontendKey, frontend: &FrontendStatus, node_ports: &NodePortsStatus) -> bool {
        let at = |address: IpAddr| match key.at {
            FrontendAt::Address(own) => own == address,
            FrontendAt::NodePort(_) => node_ports.accept(address),
        };
        match self {
            Filter::All => true,
            Filter::Namespace(namespace) => frontend.namespace() == Some(namespace),
            Filter::Service(service, port) => {
                let (name, of_port) = frontend.service.split_once(':').unwrap_or((&frontend.service, ""));
                name == service.as_str() && port.as_ref().is_none_or(|port| port == of_port)
            }
            Filter::Address(address) => at(*address),
            Filter::At(to) => key.port.get() == to.port() && at(to.ip()),
            Filter::NodePort(port) => key.port == *port && matches!(key.at, FrontendAt::NodePort(_)),
        }
    }
}

impl FrontendStatus {
    /// The namespace of its Service; `None` where nothing tells whose it is.
    fn namespace(&self) -> Option<&str> {
        self.service.split_once('/').map(|(namespace, _)| namespace)
    }
}

impl NodePortsStatus {
    /// Whether an address accepts node ports.
    fn accept(&self, address: IpAddr) -> bool {
        if self.everywhere == Some(true) { is_of_node(address) } else { self.addresses.contains(&address) }
    }
}

/// Whether this node has the address, other than on loopback.
fn is_of_node(address: IpAddr) -> bool {
    let has = |interface: nix::ifaddrs::InterfaceAddress| {
        let found = interface.address?;
        let v4 = found.as_sockaddr_in().map(|found| IpAddr::V4(found.ip()));
        v4.or_else(|| found.as_sockaddr_in6().map(|found| IpAddr::V6(found.ip())))
    };
    !address.is_loopback() && nix::ifaddrs::getifaddrs().is_ok_and(|mut all| all.any(|one| has(one) == Some(address)))
}

/// Whether a text can be a namespace (RFC 1123): an address with a letter wrong is none.
fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_told_apart() {
        let service = |port: Option<&str>| {
            Filter::Service(ObjectName::new("shop", "web").expect("a name"), port.map(str::to_owned))
        };
        let address: IpAddr = "fd00::1".parse().expect("an address");
        let cases = [
            ("shop", Filter::Namespace("shop".to_owned())),
            ("shop/web", service(None)),
            ("shop/web:http", service(Some("http"))),
            ("10.96.0.80", Filter::Address([10, 96, 0, 80].into())),
            ("10.96.0.80:53", Filter::At(([10, 96, 0, 80], 53).into())),
            ("fd00::1", Filter::Address(address)),
            ("[fd00::1]", Filter::Address(address)),
            ("[fd00::1]:80", Filter::At((address, 80).into())),
            ("*:30080", Filter::NodePort(NonZeroU16::new(30080).expect("a port"))),
        ];
        for (text, filter) in cases {
            assert_eq!(Filter::parse(text), Ok(filter), "{text}");
        }
        for text in
            ["", "10.96.0", "10.96.0.80:0x50", "shop/", "/web", "shop/a/b", "*:0", "*:http", "a b", "10.0.0.1/24x y"]
        {
            let error = Filter::parse(text).expect_err(text);
            assert!(error.contains("is none of NAMESPACE, ") && !error.contains('\n'), "{error}");
        }
    }
}
