//! What the tables that serve say of Services: which address and port is whose. Read from the kernel, so that it is right
//! whether a daemon runs or not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use arcstr::ArcStr;

use super::connections::Connection;
use super::live::Targets;
use super::table::Target;
use crate::model::{Destination, Family, FrontendAt, ObjectName, Protocol};
use crate::nftables::{Kernel as _, KernelError, LinuxKernel};
use crate::routing;
use crate::ruleset::base;
use crate::ruleset::names::{SetName, TableName};
use crate::ruleset::read::frontend_key;

/// All Services are gone through again after this pause at the earliest.
const AGAIN: Duration = Duration::from_secs(1);

/// A frontend: where, of which protocol, which port.
type Key = (FrontendAt, Protocol, u16);

/// The names of all frontends.
pub(crate) struct Services {
    kernel: LinuxKernel,
    families: Vec<Family>,
    /// `namespace/name:port`, the comments of their elements.
    names: BTreeMap<Key, ArcStr>,
    /// The node's addresses but those of loopback.
    local: BTreeSet<IpAddr>,
    /// When that was read.
    at: Instant,
}

/// Nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub enum NoTarget {
    /// No Service, or no port of it.
    #[error("table {0} serves no {1} here: nftproxyd status lists what it serves")]
    NotServed(TableName, String),
    /// The client cannot be one of it.
    #[error("{0} is not of the same family of addresses as what is to be traced")]
    OtherFamily(String),
}

impl Services {
    /// Reads the tables of this name, if there are any, and the node's addresses.
    pub(crate) fn read(table: TableName) -> Result<Services, KernelError> {
        let kernel = LinuxKernel::of(table)?;
        let mut services = Services {
            kernel,
            families: Vec::new(),
            names: BTreeMap::new(),
            local: BTreeSet::new(),
            at: Instant::now(),
        };
        services.read_again()?;
        Ok(services)
    }

    /// Goes through all Services: once at the beginning, and when a connection comes after a change.
    fn read_again(&mut self) -> Result<(), KernelError> {
        self.at = Instant::now();
        let (families, mut names) = (self.kernel.tables()?, BTreeMap::new());
        for family in families.iter().copied() {
            self.kernel.undisturbed(family)?;
            for set in SetName::ENTRIES {
                let mut found = Vec::new();
                self.kernel.read_elements(family, &base::set(set), &mut |element| match element {
                    Some(element) => {
                        let key = frontend_key(family, set, &element);
                        found.extend(key.map(|it| (it.at, it.protocol, it.port.get())).zip(element.comment));
                    }
                    None => found.clear(),
                })?;
                names.extend(found);
            }
        }
        (self.families, self.names) = (families, names);
        // Where they cannot be listed node ports have no name.
        let addresses = routing::local_addresses().into_iter().flatten().map(|(_, address)| address);
        self.local = addresses.filter(|address| !address.is_loopback()).collect();
        Ok(())
    }

    /// Whether anything is served in a family.
    pub(crate) fn serves(&self, family: Family) -> bool {
        self.families.contains(&family)
    }

    /// Whose a connection is, by the address and port that it was made to.
    pub(crate) fn name(&mut self, connection: &Connection) -> Option<ArcStr> {
        if self.at.elapsed() >= AGAIN && self.have_changed() {
            // What was read before is better than nothing.
            let _ = self.read_again();
        }
        self.find(connection)
    }

    fn have_changed(&mut self) -> bool {
        let Services { kernel, families, .. } = self;
        let undisturbed = |family: &Family| kernel.undisturbed(*family).unwrap_or(true);
        // A table that comes is seen where there was none.
        families.len() < Family::ALL.len() || !families.iter().all(undisturbed)
    }

    fn find(&self, connection: &Connection) -> Option<ArcStr> {
        let (protocol, to) = (connection.flow.protocol?, connection.flow.destination);
        let at = |at| self.names.get(&(at, protocol, to.port()));
        let is_node_port = connection.by_node_port || self.local.contains(&to.ip());
        let by_port = || is_node_port.then(|| at(FrontendAt::NodePort(Family::of(to.ip())))).flatten();
        at(FrontendAt::Address(to.ip())).or_else(by_port).cloned()
    }

    /// What to trace.
    pub(crate) fn targets(
        &self,
        destination: &Destination,
        protocol: Option<Protocol>,
    ) -> Result<Vec<Targets>, NoTarget> {
        let protocols: Vec<Protocol> =
            Protocol::ALL.into_iter().filter(|it| protocol.is_none_or(|p| p == *it)).collect();
        let mut all: BTreeSet<(Family, Target)> = BTreeSet::new();
        match destination {
            Destination::Address { address, port } => all.extend(
                protocols
                    .into_iter()
                    .map(|protocol| (Family::of(*address), Target { address: Some(*address), protocol, port: *port })),
            ),
            Destination::Service { name, port } => {
                let wanted = |(_, protocol, number): &Key, comment: &str| {
                    protocols.contains(protocol) && is_of(comment, name, port.as_deref(), *number)
                };
                let of_it = self.names.iter().filter(|(key, comment)| wanted(key, comment));
                all.extend(of_it.map(|((at, protocol, port), _)| match at {
                    FrontendAt::Address(address) => (
                        Family::of(*address),
                        Target { address: Some(*address), protocol: *protocol, port: Some(*port) },
                    ),
                    FrontendAt::NodePort(family) => {
                        (*family, Target { address: None, protocol: *protocol, port: Some(*port) })
                    }
                }));
                if all.is_empty() {
                    let port = port.as_ref().map(|port| format!(":{port}")).unwrap_or_default();
                    let over = protocol.map(|protocol| format!(" over {protocol}")).unwrap_or_default();
                    return Err(NoTarget::NotServed(self.kernel.table(), format!("{}{port}{over}", name.as_str())));
                }
            }
        }
        let of = |family| all.iter().filter(move |(of, _)| *of == family).map(|(_, target)| *target).collect();
        let families = Family::ALL.map(|family| Targets { family, targets: of(family) });
        Ok(families.into_iter().filter(|family| !family.targets.is_empty()).collect())
    }
}

/// Whether the comment of a frontend with this port is that of a port of the Service: by its name, or by its number.
fn is_of(comment: &str, name: &ObjectName, port: Option<&str>, number: u16) -> bool {
    let (service, port_name) = comment.split_once(':').unwrap_or((comment, ""));
    service == name.as_str() && port.is_none_or(|port| port == port_name || port == number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_names_and_numbers() {
        let name = ObjectName::new("shop", "web").expect("a name");
        for (comment, port, wanted) in [
            ("shop/web:http", None, true),
            ("shop/web:http", Some("http"), true),
            ("shop/web:http", Some("80"), true),
            ("shop/web", Some("80"), true),
            ("shop/web", None, true),
            ("shop/web:http", Some("https"), false),
            ("shop/web:http", Some("8"), false),
            ("shop/web-2:http", None, false),
            ("shop/we", None, false),
        ] {
            assert_eq!(is_of(comment, &name, port, 80), wanted, "{comment} {port:?}");
        }
    }
}
