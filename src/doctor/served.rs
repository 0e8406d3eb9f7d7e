//! What the tables serve, as far as others of this node can be in its way.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Family, Protocol};
use crate::nftables::{DumpedElement, Kernel, KernelError};
use crate::ruleset::base;
use crate::ruleset::names::SetName;
use crate::ruleset::types::Value;

/// So many addresses of endpoints on this node are looked at.
const ENDPOINTS: usize = 64;

/// A frontend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Frontend {
    /// `None` for a node port.
    pub(super) address: Option<IpAddr>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    /// `namespace/name:port`.
    pub(super) service: String,
}

/// What one family's table serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Served {
    /// The node ports.
    pub(super) node_ports: Vec<Frontend>,
    /// The addresses that accept them, where they are listed.
    pub(super) node_port_ips: BTreeSet<IpAddr>,
    /// Frontends at an address of the node's own.
    pub(super) own: Vec<Frontend>,
    /// A cluster IP, if there is any.
    pub(super) cluster_ip: Option<IpAddr>,
    /// Addresses of endpoints on this node; not all where there are many.
    pub(super) local_endpoints: Vec<IpAddr>,
    /// For each that is wanted, a frontend, if there is one.
    pub(super) wanted: Vec<Option<Frontend>>,
}

/// Frontends that are looked for: one of each is enough.
pub(super) type Wanted<'a> = Vec<Box<dyn Fn(&Frontend) -> bool + 'a>>;

impl Served {
    /// Whether there is any Service.
    pub(super) fn is_served(&self) -> bool {
        self.cluster_ip.is_some() || !self.node_ports.is_empty()
    }
}

/// Reads it. `local` are the node's addresses.
///
/// # Errors
/// The table cannot be read.
pub(super) fn read(
    kernel: &mut impl Kernel,
    family: Family,
    local: &BTreeSet<IpAddr>,
    wanted: &Wanted<'_>,
) -> Result<Served, KernelError> {
    let mut served = Served::default();
    let found = RefCell::new(vec![None; wanted.len()]);
    let look = |frontend: &Frontend| {
        for (found, is_wanted) in found.borrow_mut().iter_mut().zip(wanted) {
            if found.is_none() && is_wanted(frontend) {
                *found = Some(frontend.clone());
            }
        }
    };
    let cluster_ips = each(kernel, family, SetName::ClusterIps, address, 1)?;
    served.cluster_ip = cluster_ips.into_iter().next();
    served.local_endpoints = each(kernel, family, SetName::LocalEndpoints, address, ENDPOINTS)?;
    served.node_port_ips = each(kernel, family, SetName::NodeportIps, address, usize::MAX)?.into_iter().collect();
    served.node_ports =
        each(kernel, family, SetName::ServiceNodeports, |element| frontend(element).inspect(&look), usize::MAX)?;
    served.own = each(
        kernel,
        family,
        SetName::ServiceIps,
        |element| {
            // Most are not, and are not kept.
            let frontend = frontend(element)?;
            look(&frontend);
            frontend.address.is_some_and(|address| local.contains(&address)).then_some(frontend)
        },
        usize::MAX,
    )?;
    served.wanted = found.into_inner();
    served.node_ports.sort_unstable();
    served.own.sort_unstable();
    Ok(served)
}

/// What is made of the elements of a set, at most so many.
fn each<T>(
    kernel: &mut impl Kernel,
    family: Family,
    set: SetName,
    make: impl Fn(&DumpedElement) -> Option<T>,
    most: usize,
) -> Result<Vec<T>, KernelError> {
    let mut made = Vec::new();
    kernel.read_elements(family, &base::set(set), &mut |element| match element {
        Some(element) if made.len() < most => made.extend(make(&element)),
        Some(_) => {}
        None => made.clear(),
    })?;
    Ok(made)
}

/// The address that the key of an element begins with.
fn address(element: &DumpedElement) -> Option<IpAddr> {
    match element.key.first() {
        Some(Value::Address(address)) => Some(*address),
        _ => None,
    }
}

/// The frontend that the key of an element names.
fn frontend(element: &DumpedElement) -> Option<Frontend> {
    let (address, protocol, port) = match element.key[..] {
        [Value::Address(address), Value::Protocol(protocol), Value::Port(port)] => (Some(address), protocol, port),
        [Value::Protocol(protocol), Value::Port(port)] => (None, protocol, port),
        _ => return None,
    };
    let service = element.comment.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
    Some(Frontend { address, protocol, port, service })
}
