//! The node's own addresses, and which of them accept node ports.
//!
//! kube-proxy computes them at full syncs only, so a new address waits up to an hour; here [`Watch`] follows them.

mod watch;

pub use watch::Watch;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::{Family, PerFamily};

/// The setting `nodePortAddresses`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NodePortAddresses {
    /// `["primary"]`, the default: the node's own IP of each family.
    #[default]
    Primary,
    /// Every local address.
    All,
    /// Local addresses inside these ranges. A family without a range accepts on every local address.
    Cidrs(Vec<IpNet>),
    /// Words, from Kubernetes 1.37 on together with others and with ranges. A family that none of them names an address of
    /// accepts on none.
    Words {
        /// `primary`.
        primary: bool,
        /// `localhost`: 127.0.0.0/8 and ::1.
        localhost: bool,
        /// Ranges beside the words.
        cidrs: Vec<IpNet>,
    },
}

/// What `localhost` stands for in a family.
fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(Ipv4Addr::LOCALHOST.into(), 8),
        Family::V6 => IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128),
    }
}

/// The addresses of one family that were chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Every local address of the family, whatever is added later.
    All,
    /// These.
    Only(BTreeSet<IpAddr>),
}

impl NodePortAddresses {
    /// The addresses on which rules accept node ports. Loopback is never among them: `All` means every address that is
    /// local (`fib daddr type local`) except 127.0.0.0/8 and ::1.
    ///
    /// `node` are the node's IPs as detected. Where only one family has one, `primary` names no address of the other, which
    /// accepts on none; where none has (or loopback addresses, which stand for that in kube-proxy), both accept on every
    /// address. `local` are all addresses on interfaces of the node, as
    /// [`Watch`] gives them.
    pub fn accepted(&self, node: &PerFamily<Option<IpAddr>>, local: &BTreeSet<IpAddr>) -> PerFamily<Accepted> {
        self.choose(node, local, |address| !address.is_loopback())
    }

    /// The addresses on which the health checks of Services listen: as [`NodePortAddresses::accepted`], but with
    /// loopback addresses that are in a range, and without link-local IPv6 addresses, on which nobody can listen
    /// without naming an interface.
    pub fn listening(&self, node: &PerFamily<Option<IpAddr>>, local: &BTreeSet<IpAddr>) -> PerFamily<Accepted> {
        self.choose(node, local, |address| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
    }

    fn choose(
        &self,
        node: &PerFamily<Option<IpAddr>>,
        local: &BTreeSet<IpAddr>,
        usable: impl Fn(&IpAddr) -> bool,
    ) -> PerFamily<Accepted> {
        let primary = PerFamily::from_fn(|family| node[family].filter(|address| !address.is_loopback()));
        let no_primary = primary.v4.is_none() && primary.v6.is_none();
        PerFamily::from_fn(|family| {
            let of_family =
                |cidrs: &[IpNet]| cidrs.iter().filter(|range| Family::of(range.addr()) == family).copied().collect();
            // With whether a family without any is open.
            let (ranges, open): (Vec<IpNet>, bool) = match self {
                NodePortAddresses::Primary => (primary[family].map(IpNet::from).into_iter().collect(), no_primary),
                NodePortAddresses::All => (Vec::new(), true),
                NodePortAddresses::Cidrs(cidrs) => (of_family(cidrs), true),
                NodePortAddresses::Words { primary: word, localhost, cidrs } => {
                    let mut ranges: Vec<IpNet> = of_family(cidrs);
                    ranges.extend(primary[family].filter(|_| *word).map(IpNet::from));
                    ranges.extend(localhost.then(|| loopback(family)));
                    (ranges, *word && no_primary && cidrs.is_empty())
                }
            };
            if ranges.is_empty() && !open {
                return Accepted::Only(BTreeSet::new());
            }
            if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
                return Accepted::All;
            }
            let chosen = local.iter().filter(|address| usable(address));
            Accepted::Only(
                chosen.filter(|address| ranges.iter().any(|range| range.contains(*address))).copied().collect(),
            )
        })
    }
}

impl Accepted {
    /// The addresses themselves: for `All` those of `local` that are of the family and not loopback.
    pub fn addresses(&self, family: Family, local: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let is_ours = |address: &&IpAddr| Family::of(**address) == family && !address.is_loopback();
        match self {
            Accepted::All => local.iter().filter(is_ours).copied().collect(),
            Accepted::Only(addresses) => addresses.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: [&str; 9] = [
        "10.0.0.1",
        "10.0.1.1",
        "127.0.0.1",
        "127.0.0.53",
        "192.0.2.1",
        "2001:db8::1",
        "2001:db8:1::1",
        "::1",
        "fe80::1",
    ];

    fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn cidrs(texts: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Cidrs(texts.iter().map(|text| text.parse().expect("a range")).collect())
    }

    fn node(v4: &str, v6: &str) -> PerFamily<Option<IpAddr>> {
        PerFamily { v4: v4.parse().ok(), v6: v6.parse().ok() }
    }

    #[test]
    fn addresses_are_chosen_as_kube_proxy_does() {
        let all = || Accepted::All;
        let only = |texts: &[&str]| Accepted::Only(set(texts));
        let dual = node("192.0.2.1", "2001:db8::1");
        #[rustfmt::skip]
        let cases = [
            // setting, node IPs, IPv4, IPv6
            (NodePortAddresses::Primary, dual, only(&["192.0.2.1"]), only(&["2001:db8::1"])),
            (NodePortAddresses::Primary, node("192.0.2.1", ""), only(&["192.0.2.1"]), only(&[])),
            (NodePortAddresses::Primary, node("", "2001:db8::1"), only(&[]), only(&["2001:db8::1"])),
            (NodePortAddresses::Primary, node("127.0.0.1", "2001:db8::1"), only(&[]), only(&["2001:db8::1"])),
            (NodePortAddresses::Primary, node("", ""), all(), all()),
            (NodePortAddresses::Primary, node("127.0.0.1", "::1"), all(), all()),
            // An address that the cloud translates is on no interface.
            (NodePortAddresses::Primary, node("203.0.113.9", "2001:db8::1"), only(&[]), only(&["2001:db8::1"])),
            (NodePortAddresses::All, dual, all(), all()),
            (cidrs(&[]), dual, all(), all()),
            (cidrs(&["0.0.0.0/0"]), dual, all(), all()),
            (cidrs(&["::/0", "10.0.0.0/16"]), dual, only(&["10.0.0.1", "10.0.1.1"]), all()),
            (cidrs(&["10.0.0.0/8", "0.0.0.0/0"]), dual, all(), all()),
            (cidrs(&["10.0.1.0/24", "192.0.2.0/24"]), dual, only(&["10.0.1.1", "192.0.2.1"]), all()),
            (cidrs(&["10.0.1.0/24", "2001:db8:1::/48"]), dual, only(&["10.0.1.1"]), only(&["2001:db8:1::1"])),
            (cidrs(&["198.51.100.0/24", "fe80::/10"]), dual, only(&[]), only(&["fe80::1"])),
            (cidrs(&["127.0.0.0/8", "::1/128"]), dual, only(&[]), only(&[])),
        ];
        let words = |primary, localhost, texts: &[&str]| {
            let cidrs = texts.iter().map(|text| text.parse().expect("a range")).collect();
            NodePortAddresses::Words { primary, localhost, cidrs }
        };
        #[rustfmt::skip]
        let of_words = [
            (words(true, true, &[]), dual, only(&["192.0.2.1"]), only(&["2001:db8::1"])),
            (words(true, false, &["10.0.1.0/24"]), dual, only(&["10.0.1.1", "192.0.2.1"]), only(&["2001:db8::1"])),
            (words(true, false, &["10.0.1.0/24"]), node("192.0.2.1", ""), only(&["10.0.1.1", "192.0.2.1"]), only(&[])),
            (words(true, false, &["::/0"]), dual, only(&["192.0.2.1"]), all()),
            (words(false, true, &[]), dual, only(&[]), only(&[])),
            (words(false, true, &["10.0.1.0/24"]), dual, only(&["10.0.1.1"]), only(&[])),
            (words(true, false, &[]), node("", ""), all(), all()),
        ];
        let cases = cases.into_iter().chain(of_words);
        let local = set(&LOCAL);
        for (setting, node, v4, v6) in cases {
            assert_eq!(setting.accepted(&node, &local), PerFamily { v4, v6 }, "{setting:?} {node:?}");
        }
    }

    #[test]
    fn health_checks_listen_on_loopback_and_not_on_link_local_addresses() {
        let setting = cidrs(&["127.0.0.0/31", "192.0.2.0/24", "fe80::/10", "::1/128"]);
        let listening = setting.listening(&node("", ""), &set(&LOCAL));
        assert_eq!(listening.v4, Accepted::Only(set(&["127.0.0.1", "192.0.2.1"])));
        assert_eq!(listening.v6, Accepted::Only(set(&["::1"])));
        let setting = NodePortAddresses::Words { primary: true, localhost: true, cidrs: Vec::new() };
        let listening = setting.listening(&node("192.0.2.1", ""), &set(&LOCAL));
        assert_eq!(listening.v4, Accepted::Only(set(&["127.0.0.1", "127.0.0.53", "192.0.2.1"])));
        assert_eq!(listening.v6, Accepted::Only(set(&["::1"])));
    }

    #[test]
    fn all_stands_for_the_addresses_of_the_family() {
        let local = set(&LOCAL);
        assert_eq!(Accepted::All.addresses(Family::V4, &local), set(&["10.0.0.1", "10.0.1.1", "192.0.2.1"]));
        assert_eq!(Accepted::All.addresses(Family::V6, &local), set(&["2001:db8::1", "2001:db8:1::1", "fe80::1"]));
        assert_eq!(Accepted::Only(set(&["10.0.0.1"])).addresses(Family::V4, &local), set(&["10.0.0.1"]));
    }
}
