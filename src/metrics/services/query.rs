//! Which Services are asked for.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, Protocol};
use crate::printable::printable;

/// What no name has that the API server allows; in comments of tables others may write anything.
const ODD: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'/');

/// Which Services are asked for, as the query of an URL says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// All of them.
    All,
    /// The one of this name.
    Name(ObjectName),
    /// Those that have this cluster IP, external IP or load-balancer IP.
    Address(IpAddr),
    /// The one that a connection goes to: to an address and port, or to a node port (of both families); of every protocol
    /// where none is given.
    Frontend {
        /// The address; `None` for a node port.
        address: Option<IpAddr>,
        /// The port.
        port: NonZeroU16,
        /// The protocol.
        protocol: Option<Protocol>,
    },
}

impl Query {
    /// Reads the query of an URL.
    ///
    /// # Errors
    /// One line that says what cannot be used of it.
    pub fn parse(text: &str) -> Result<Query, String> {
        let (mut name, mut address, mut port, mut node_port, mut protocol) = (None, None, None, None, None);
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("{key}: not UTF-8"))?;
            let wrong = |what: &str| format!("{key}: {:?} is not {what}", printable(&value));
            let number = || value.parse::<NonZeroU16>().map_err(|_| wrong("a port from 1 to 65535"));
            let again = match key {
                "name" => {
                    let parts = value.split_once('/').and_then(|(namespace, name)| ObjectName::new(namespace, name));
                    name.replace(parts.ok_or_else(|| wrong("NAMESPACE/NAME"))?).is_some()
                }
                "address" => {
                    let ip = value.parse::<IpAddr>().map_err(|_| wrong("an IP address"))?;
                    address.replace(ip).is_some()
                }
                "port" => port.replace(number()?).is_some(),
                "nodePort" => node_port.replace(number()?).is_some(),
                "protocol" => {
                    let known = Protocol::from_name(&value);
                    protocol.replace(known.ok_or_else(|| wrong("tcp, udp or sctp"))?).is_some()
                }
                _ => return Err(format!("{}: there are name, address, port, protocol and nodePort", printable(key))),
            };
            if again {
                return Err(format!("{key}: given twice"));
            }
        }
        match (name, address, port, node_port, protocol) {
            (None, None, None, None, None) => Ok(Query::All),
            (Some(name), None, None, None, None) => Ok(Query::Name(name)),
            (None, Some(address), None, None, None) => Ok(Query::Address(address)),
            (None, Some(_), Some(port), None, protocol) => Ok(Query::Frontend { address, port, protocol }),
            (None, None, None, Some(port), protocol) => Ok(Query::Frontend { address: None, port, protocol }),
            _ => Err("name, address (with port and protocol), or nodePort (with protocol) stands alone".to_owned()),
        }
    }

    /// The frontends that may be meant, if it is them that are asked for.
    pub(super) fn keys(&self) -> Vec<FrontendKey> {
        let Query::Frontend { address, port, protocol } = self else { return Vec::new() };
        let places = match address {
            Some(address) => vec![FrontendAt::Address(*address)],
            None => Family::ALL.map(FrontendAt::NodePort).to_vec(),
        };
        let protocols = Protocol::ALL.into_iter().filter(|it| protocol.is_none_or(|wanted| wanted == *it));
        protocols
            .flat_map(|protocol| places.iter().map(move |at| FrontendKey { at: *at, protocol, port: *port }))
            .collect()
    }
}

impl fmt::Display for Query {
    /// As [`Query::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Query::All => Ok(()),
            Query::Name(name) => write!(f, "name={}", utf8_percent_encode(name.as_str(), ODD)),
            Query::Address(address) => write!(f, "address={address}"),
            Query::Frontend { address, port, protocol } => {
                match address {
                    Some(address) => write!(f, "address={address}&port={port}")?,
                    None => write!(f, "nodePort={port}")?,
                }
                protocol.map_or(Ok(()), |protocol| write!(f, "&protocol={protocol}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_they_are_written() {
        let texts = [
            "",
            "name=shop/web",
            "address=10.96.0.1",
            "address=fd00::1&port=80",
            "address=10.96.0.1&port=53&protocol=udp",
            "nodePort=30080",
            "nodePort=30080&protocol=sctp",
        ];
        for text in texts {
            assert_eq!(Query::parse(text).expect(text).to_string(), text);
        }
        let odd = Query::Name(ObjectName::new("shop", "a&b=c#%é").expect("a name"));
        assert_eq!(Query::parse(&odd.to_string()), Ok(odd));
        assert_eq!(Query::parse("name=shop%2Fweb"), Query::parse("name=shop/web"));
        assert_eq!(Query::parse("nodePort=1").expect("read").keys().len(), 6);
        assert_eq!(Query::parse("address=fd00::1&port=80&protocol=tcp").expect("read").keys().len(), 1);
    }

    #[test]
    fn what_is_no_query_is_said_in_a_line() {
        let cases = [
            ("name=web", "name: \"web\" is not NAMESPACE/NAME"),
            ("name=a/b/c", "name: \"a/b/c\" is not NAMESPACE/NAME"),
            ("name=a/b&name=a/b", "name: given twice"),
            ("address=web", "address: \"web\" is not an IP address"),
            ("nodePort=0", "nodePort: \"0\" is not a port from 1 to 65535"),
            ("address=::1&port=65536", "port: \"65536\" is not a port from 1 to 65535"),
            ("nodePort=1&protocol=TCP", "protocol: \"TCP\" is not tcp, udp or sctp"),
            ("x=1", "x: there are name, address, port, protocol and nodePort"),
            ("name=%FF", "name: not UTF-8"),
            ("port=1", "name, address (with port and protocol), or nodePort (with protocol) stands alone"),
            ("name=a/b&port=1", "name, address (with port and protocol), or nodePort (with protocol) stands alone"),
        ];
        for (text, expected) in cases {
            assert_eq!(Query::parse(text).expect_err(text), expected);
        }
    }
}
