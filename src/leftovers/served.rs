//! The addresses that kube-proxy's rules serve: whoever takes its place is to serve some of them at least.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::device;
use super::early;
use super::legacy;
use super::names::{SERVICE_CHAINS, SERVICES, TABLE};
use super::tables::{self, FAMILY_HEADER, SUBSYSTEM, dump_rules, family_header, jumps_of_rule};
use super::values::{inside, terminated};
use crate::netlink::{Builder, Bus, DUMP, REQUEST, Socket, attributes};

const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const KEY_VALUE: u16 = 1;
const RULE_EXPRESSIONS: u16 = 4;
/// The set of mode `nftables` that holds all cluster IPs.
const CLUSTER_IPS: &str = "cluster-ips";

/// Reads them: the cluster IPs of modes `nftables` and `iptables`, and all virtual addresses of mode `ipvs`. In proportion
/// to kube-proxy's rules, as is removing them.
///
/// # Errors
/// The tables cannot be read.
pub fn served_addresses(root: &Path) -> io::Result<BTreeSet<IpAddr>> {
    let mut found: BTreeSet<IpAddr> = device::addresses()?.iter().filter_map(|bytes| address(bytes)).collect();
    let listed = tables::list()?;
    let has = |family: &'static str, table: &str| listed.tables.contains_key(&(family, table.to_owned()));
    for family in ["ip", "ip6"] {
        let mut socket = Socket::open(Bus::Netfilter)?;
        if has(family, TABLE) {
            elements(&mut socket, family, |key| found.extend(address(key)))?;
        }
        if has(family, "nat") {
            dump_rules(&mut socket, family, "nat", |from, parts| found.extend(of_rule(from, parts)))?;
        }
    }
    legacy::saved_nat(root).iter().for_each(|saved| found.extend(of_saved(saved)));
    Ok(found)
}

/// The keys of all elements of kube-proxy's set of cluster IPs; none where there is no such set.
fn elements(socket: &mut Socket, family: &str, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let request = Builder::message(GET_ELEMENTS, REQUEST | DUMP, socket.next_sequence(), &family_header(family))
        .attribute(LIST_TABLE, &terminated(TABLE))
        .attribute(LIST_SET, &terminated(CLUSTER_IPS))
        .finish();
    let dumped = socket.dump(&request, |message| {
        let list = inside(message.payload.get(FAMILY_HEADER..).unwrap_or_default(), LIST_ELEMENTS);
        let elements = list.into_iter().flat_map(attributes);
        let keys = elements.filter_map(|(_, element)| inside(inside(element, ELEMENT_KEY)?, KEY_VALUE));
        keys.for_each(&mut each);
    });
    match dumped {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// The cluster IP that a rule of mode `iptables` sends to the chain of its Service.
fn of_rule(from: &str, parts: &BTreeMap<u16, &[u8]>) -> Option<IpAddr> {
    let leads_to_service = |to: &str| SERVICE_CHAINS.iter().any(|prefix| to.starts_with(prefix));
    if from != SERVICES || !jumps_of_rule(from, parts).any(|jump| leads_to_service(&jump.to)) {
        return None;
    }
    let to = early::rule(parts.get(&RULE_EXPRESSIONS).copied().unwrap_or_default()).concern.to?;
    (to.prefix_len() == to.max_prefix_len()).then_some(to.addr())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk().map(|bytes: &[u8; 4]| IpAddr::from(*bytes)),
        16 => bytes.first_chunk().map(|bytes: &[u8; 16]| IpAddr::from(*bytes)),
        _ => None,
    }
}

/// The cluster IPs in the output of `iptables-save`.
fn of_saved(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let words: Vec<&str> = line.strip_prefix("-A ")?.strip_prefix(SERVICES)?.split(' ').collect();
        let after = |flag: &str| words.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1]);
        let to = after("-j")?;
        let range = after("-d").filter(|_| SERVICE_CHAINS.iter().any(|prefix| to.starts_with(prefix)))?;
        range.split('/').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ips_are_told_from_other_addresses() {
        let text = "\
-A KUBE-SERVICES -d 172.30.1.7/32 -p tcp -m comment --comment \"shop/echo:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-X
-A KUBE-SERVICES -d 172.30.1.8/32 -p tcp -m tcp --dport 80 -j KUBE-SVL-X
-A KUBE-SERVICES -d 203.0.113.1/32 -p tcp -m tcp --dport 80 -j KUBE-EXT-X
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-X ! -s 10.0.0.0/8 -d 172.30.1.9/32 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d fd00::7/128 -p tcp -j KUBE-SVC-Y";
        let found: Vec<String> = of_saved(text).map(|address| address.to_string()).collect();
        assert_eq!(found, ["172.30.1.7", "172.30.1.8", "fd00::7"]);
    }
}
