//! Where connections come from and go to, in the words of the command line.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use super::ObjectName;

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To an address: of a Service, of the node, or any other.
    Address {
        /// The address.
        address: IpAddr,
        /// The port; all of them if `None`.
        port: Option<u16>,
    },
    /// To a Service, wherever it is served on this node.
    Service {
        /// Its name.
        name: ObjectName,
        /// The name of a port of it, or its number; all of them if `None`.
        port: Option<String>,
    },
}

/// Where connections come from: an address, or a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source(pub IpNet);

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Destination, String> {
        if let Some((namespace, rest)) = text.split_once('/') {
            let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
            let is_word = |text: &str| !text.is_empty() && text.bytes().all(is_of_names);
            if ![namespace, name].into_iter().chain(port).all(is_word) {
                return Err("a Service is NAMESPACE/NAME or NAMESPACE/NAME:PORT".to_owned());
            }
            let name = ObjectName::new(namespace, name).ok_or("a Service is NAMESPACE/NAME")?;
            return Ok(Destination::Service { name, port: port.map(str::to_owned) });
        }
        if let Ok(to) = text.parse::<SocketAddr>() {
            if to.port() == 0 {
                return Err("port 0 is no port".to_owned());
            }
            return Ok(Destination::Address { address: to.ip(), port: Some(to.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let address = bare.parse().map_err(|_| {
            "must be ADDRESS, ADDRESS:PORT, [ADDRESS]:PORT of IPv6, NAMESPACE/NAME or NAMESPACE/NAME:PORT of a Service"
        })?;
        Ok(Destination::Address { address, port: None })
    }
}

/// Characters of the names of namespaces, Services and ports (RFC 1123 labels): no dots, as a range of addresses has.
fn is_of_names(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(|net| Source(net.trunc()))
            .map_err(|_| "must be an address, or a range such as 10.244.0.0/16".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let address =
            |address: &str, port| Ok(Destination::Address { address: address.parse().expect("an address"), port });
        let service = |namespace, name, port: Option<&str>| {
            let name = ObjectName::new(namespace, name).expect("a name");
            Ok(Destination::Service { name, port: port.map(str::to_owned) })
        };
        for (text, wanted) in [
            ("10.96.0.80", address("10.96.0.80", None)),
            ("10.96.0.80:80", address("10.96.0.80", Some(80))),
            ("fd00::1", address("fd00::1", None)),
            ("[fd00::1]", address("fd00::1", None)),
            ("[fd00::1]:443", address("fd00::1", Some(443))),
            ("shop/web", service("shop", "web", None)),
            ("shop/web:http", service("shop", "web", Some("http"))),
            ("shop/web:80", service("shop", "web", Some("80"))),
        ] {
            assert_eq!(text.parse(), wanted, "{text}");
        }
        for wrong in [
            "",
            "web",
            "shop/",
            "/web",
            "shop/web:",
            "a/b/c",
            "10.96.0.80:0",
            "10.96.0.80:99999",
            "10.96.0.0/16",
            "a b/c",
            "[fd00::1",
        ] {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sources_are_addresses_or_ranges() {
        let net = |text: &str| text.parse::<Source>().map(|source| source.0.to_string());
        assert_eq!(net("10.244.1.2"), Ok("10.244.1.2/32".to_owned()));
        assert_eq!(net("10.244.1.2/16"), Ok("10.244.0.0/16".to_owned()));
        assert_eq!(net("fd00::1"), Ok("fd00::1/128".to_owned()));
        assert!(net("10.244.1.2/33").is_err() && net("shop/web").is_err());
    }
}
