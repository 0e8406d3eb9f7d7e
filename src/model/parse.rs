//! Addresses and CIDRs as Kubernetes objects may hold them: more tolerant than `std::net`, because objects that are
//! older than the API server's `StrictIPCIDRValidation` (beta and on by default in 1.36) keep what was accepted then.
//!
//! The rules are those of Go's `net.ParseIP` before Go 1.17, which Kubernetes keeps as `ParseIPSloppy`: octets with
//! leading zeros are decimal, never octal, and an IPv4-mapped IPv6 address is an IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Bits of an IPv6 address in front of a mapped IPv4 address (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;
/// Enough of a bad value to recognise it; values come from objects and may be of any length.
const SHOWN: usize = 64;

/// Why a text is not an address or a range. The text is quoted with control characters escaped, and cut if very long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not an address.
    #[error("{0} is not an IP address")]
    Address(String),
    /// No `/`.
    #[error("{0} is not a CIDR: there is no \"/\" and prefix length after the address")]
    NoPrefix(String),
    /// What is in front of the `/` is not an address.
    #[error("{0} is not a CIDR: no IP address in front of the \"/\"")]
    CidrAddress(String),
    /// The prefix length is not a number, or is too long.
    #[error("{text} is not a CIDR: the prefix length must be a number from 0 to {longest}")]
    Prefix {
        /// The whole text.
        text: String,
        /// 32 or 128.
        longest: u8,
    },
}

/// Reads an address. `172.30.0.041` is 172.30.0.41, `::ffff:1.2.3.4` is 1.2.3.4; white space and IPv6 zones are errors.
pub fn address(text: &str) -> Result<IpAddr, ParseError> {
    tolerant(text).map(|address| address.to_canonical()).ok_or_else(|| ParseError::Address(shown(text)))
}

/// Whether a text, not empty, can be the value of a label (`IsValidLabelValue` of apimachinery).
pub fn is_label_value(text: &str) -> bool {
    let at_end = |c: char| c.is_ascii_alphanumeric();
    let inside = |c: char| at_end(c) || ['-', '_', '.'].contains(&c);
    text.len() <= 63 && text.starts_with(at_end) && text.ends_with(at_end) && text.chars().all(inside)
}

/// Why an address is none that packets can be sent to from here: the API server's check of endpoints and external IPs
/// (`ValidateEndpointIP` of Kubernetes 1.36).
pub fn special(address: IpAddr) -> Option<&'static str> {
    if let Some(why) = nowhere(address) {
        return Some(why);
    }
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local.then_some("a link-local address")
}

/// Why an address cannot be a Service's at all.
pub fn nowhere(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        None
    }
}

/// Reads a CIDR and masks its host bits: `203.0.113.7/025` is 203.0.113.0/25. A range within the IPv4-mapped part of
/// IPv6 is an IPv4 range. White space is an error.
pub fn cidr(text: &str) -> Result<IpNet, ParseError> {
    let (before, after) = text.split_once('/').ok_or_else(|| ParseError::NoPrefix(shown(text)))?;
    let address = tolerant(before).ok_or_else(|| ParseError::CidrAddress(shown(text)))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = decimal(after, longest).ok_or_else(|| ParseError::Prefix { text: shown(text), longest })?;
    Ok(net(address, prefix))
}

/// The range of `prefix` bits around an address; a prefix that is too long counts as the whole address.
fn net(address: IpAddr, prefix: u8) -> IpNet {
    match (address, address.to_canonical()) {
        (IpAddr::V6(_), IpAddr::V4(mapped)) if prefix >= MAPPED_PREFIX => net(mapped.into(), prefix - MAPPED_PREFIX),
        (IpAddr::V4(v4), _) => Ipv4Net::new(v4, prefix).unwrap_or_else(|_| v4.into()).trunc().into(),
        (IpAddr::V6(v6), _) => Ipv6Net::new(v6, prefix).unwrap_or_else(|_| v6.into()).trunc().into(),
    }
}

/// Reads an address; an IPv4-mapped one stays IPv6.
fn tolerant(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return ipv4(text).map(IpAddr::V4);
    }
    match text.rsplit_once(':') {
        // The dotted tail of an IPv6 address may have leading zeros too.
        Some((head, tail)) if tail.contains('.') => {
            let [a, b, c, d] = ipv4(tail)?.octets();
            format!("{head}:{a:02x}{b:02x}:{c:02x}{d:02x}").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        }
        _ => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    }
}

/// Four decimal octets, with any number of leading zeros.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.').map(|octet| decimal(octet, u8::MAX));
    let mut next = || parts.next().flatten();
    let octets = [next()?, next()?, next()?, next()?];
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// A decimal number up to `largest`, digits only, with any number of leading zeros.
fn decimal(text: &str, largest: u8) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let significant = text.trim_start_matches('0');
    let number = if significant.is_empty() { 0 } else { significant.parse::<u8>().ok()? };
    (number <= largest).then_some(number)
}

/// A value of an object as it is quoted in messages.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses() {
        let cases = [
            ("172.30.0.041", "172.30.0.41"),
            ("1.2.3.004", "1.2.3.4"),
            ("10.180.00.001", "10.180.0.1"),
            ("0000.0.0.00000000255", "0.0.0.255"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::ffff:1.2.3.004", "1.2.3.4"),
            ("::FFFF:0102:0304", "1.2.3.4"),
            ("fd00::1", "fd00::1"),
            ("FD00:0:0::0001", "fd00::1"),
            ("64:ff9b::192.0.2.033", "64:ff9b::c000:221"),
            ("::", "::"),
        ];
        for (text, expected) in cases {
            let expected: IpAddr = expected.parse().expect("a strict address");
            assert_eq!(address(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn not_addresses() {
        let long = "9".repeat(1000);
        let cases = [
            "",
            " ",
            "None",
            " 1.2.3.4",
            "1.2.3.4 ",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.",
            ".1.2.3",
            "1.2.3.256",
            "+1.2.3.4",
            "1.2.3.-4",
            "0x1.2.3.4",
            "1.2.3.4/32",
            "fe80::1%eth0",
            "::1::",
            "12345::",
            "::1.2.3",
            "::1.2.3.256",
            "[::1]",
            ":",
            "1.2.3.4:80",
            "١.2.3.4",
            &long,
        ];
        for text in cases {
            let error = address(text).expect_err(text).to_string();
            assert!(error.ends_with(" is not an IP address") && error.len() < 120, "{error}");
        }
        assert_eq!(address("a\nb").expect_err("bad").to_string(), r#""a\nb" is not an IP address"#);
    }

    #[test]
    fn addresses_of_no_use() {
        let cases = [
            ("0.0.0.0", Some("the unspecified address"), true),
            ("::", Some("the unspecified address"), true),
            ("127.9.9.9", Some("a loopback address"), true),
            ("::1", Some("a loopback address"), true),
            ("224.0.0.1", Some("a multicast address"), true),
            ("ff02::1", Some("a multicast address"), true),
            ("239.1.2.3", Some("a multicast address"), true),
            ("169.254.169.254", Some("a link-local address"), false),
            ("fe80::1", Some("a link-local address"), false),
            ("::ffff:127.0.0.1", Some("a loopback address"), true),
            ("10.0.0.1", None, false),
            ("255.255.255.255", None, false),
            ("fd00::1", None, false),
        ];
        for (text, why, for_all) in cases {
            let address = address(text).expect("an address");
            assert_eq!((special(address), nowhere(address).is_some()), (why, for_all), "{text}");
        }
    }

    #[test]
    fn cidrs() {
        let cases = [
            ("203.0.113.000/025", "203.0.113.0/25"),
            ("203.0.113.7/25", "203.0.113.0/25"),
            ("1.2.3.4/32", "1.2.3.4/32"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("fd00::1/64", "fd00::/64"),
            ("fd00::1/128", "fd00::1/128"),
            ("::ffff:1.2.3.4/120", "1.2.3.0/24"),
            ("::ffff:1.2.3.4/96", "0.0.0.0/0"),
            ("::ffff:1.2.3.4/80", "::/80"),
            ("::/0", "::/0"),
        ];
        for (text, expected) in cases {
            let expected: IpNet = expected.parse().expect("a strict CIDR");
            assert_eq!(cidr(text), Ok(expected), "{text}");
        }
        let bad = [
            ("", "no \"/\""),
            ("1.2.3.4", "no \"/\""),
            ("1.2.3/24", "no IP address in front"),
            (" 1.2.3.0/24", "no IP address in front"),
            ("1.2.3.0/33", "from 0 to 32"),
            ("1.2.3.0/", "from 0 to 32"),
            ("1.2.3.0/24/24", "from 0 to 32"),
            ("1.2.3.0/-1", "from 0 to 32"),
            ("1.2.3.0/255.255.255.0", "from 0 to 32"),
            ("fd00::/129", "from 0 to 128"),
            ("fd00::/999", "from 0 to 128"),
        ];
        for (text, reason) in bad {
            let error = cidr(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-f:./ é]{0,24}") {
            let _ = address(&text);
            let _ = cidr(&text);
        }

        #[test]
        fn strict_addresses_are_read_as_std_does(bits in any::<u128>(), short in any::<u32>(), prefix in 0u8..=128) {
            for strict in [IpAddr::from(Ipv4Addr::from(short)), IpAddr::from(Ipv6Addr::from(bits))] {
                prop_assert_eq!(address(&strict.to_string()), Ok(strict.to_canonical()));
                let longest = if strict.is_ipv4() { 32 } else { 128 };
                let strict = IpNet::new(strict, prefix.min(longest)).expect("a prefix that fits");
                prop_assume!(strict.addr().to_canonical() == strict.addr());
                prop_assert_eq!(cidr(&strict.to_string()), Ok(strict.trunc()));
            }
        }
    }
}
