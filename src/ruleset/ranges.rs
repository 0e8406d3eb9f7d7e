//! Ranges of addresses for interval sets. nft merges overlapping ranges in user space; whoever speaks netlink has to do
//! it himself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// All addresses from `first` to `last`, both included and of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// The lowest.
    pub first: IpAddr,
    /// The highest.
    pub last: IpAddr,
}

impl Range {
    /// The addresses of a CIDR, whatever its host bits.
    pub fn of(net: &IpNet) -> Range {
        Range { first: net.network(), last: net.broadcast() }
    }

    /// One address.
    pub fn single(address: IpAddr) -> Range {
        Range { first: address, last: address }
    }
}

/// The same addresses in as few ranges as possible, sorted. Adjacent ranges become one.
pub fn merge(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(open) if touches(open, &range) => open.last = open.last.max(range.last),
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether `next`, which does not begin before `open`, overlaps it or follows it without a gap.
fn touches(open: &Range, next: &Range) -> bool {
    if next.first <= open.last {
        return open.first.is_ipv4() == next.first.is_ipv4();
    }
    match (open.last, next.first) {
        (IpAddr::V4(last), IpAddr::V4(first)) => last.to_bits().checked_add(1).map(Ipv4Addr::from_bits) == Some(first),
        (IpAddr::V6(last), IpAddr::V6(first)) => last.to_bits().checked_add(1).map(Ipv6Addr::from_bits) == Some(first),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(nets: &[&str]) -> Vec<String> {
        let ranges = nets.iter().map(|net| Range::of(&net.parse().expect("a CIDR"))).collect();
        merge(ranges).iter().map(|range| format!("{}-{}", range.first, range.last)).collect()
    }

    #[test]
    fn overlapping_and_adjacent_ranges_become_one() {
        assert_eq!(merged(&[]), Vec::<String>::new());
        assert_eq!(merged(&["10.0.0.0/24", "10.0.0.0/24"]), ["10.0.0.0-10.0.0.255"]);
        assert_eq!(merged(&["10.0.1.0/24", "10.0.0.0/24"]), ["10.0.0.0-10.0.1.255"]);
        assert_eq!(merged(&["10.0.0.0/8", "10.2.0.0/16"]), ["10.0.0.0-10.255.255.255"]);
        assert_eq!(merged(&["10.0.0.0/24", "10.0.2.0/24"]), ["10.0.0.0-10.0.0.255", "10.0.2.0-10.0.2.255"]);
        assert_eq!(
            merged(&["255.255.255.255/32", "0.0.0.0/32"]),
            ["0.0.0.0-0.0.0.0", "255.255.255.255-255.255.255.255"]
        );
        assert_eq!(merged(&["fd00::/65", "fd00:0:0:0:8000::/65"]), ["fd00::-fd00::ffff:ffff:ffff:ffff"]);
        assert_eq!(
            merged(&["::/0", "0.0.0.0/0"]),
            ["0.0.0.0-255.255.255.255", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
    }
}
