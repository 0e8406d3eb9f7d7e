//! Which service port owns an address and port that more than one asks for.
//!
//! The API server keeps cluster IPs and node ports unique, but not external and load-balancer IPs, and manifests in a
//! folder are checked by nobody. The kernel's maps hold one verdict per key, so one claim wins, always the same:
//! cluster IPs first, then the older Service, then namespace/name, then the name of the port. What loses is served by
//! its Service's other frontends, and gets the key as soon as the winner lets go.

mod claim;
mod stray;

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use ipnet::IpNet;
use smallvec::SmallVec;

use self::claim::{Claim, claims_of};
use self::stray::Stray;
use super::{Family, FrontendKey, ObjectName, PerFamily, Role, Service, ServicePortName};

/// All claims of all Services.
#[derive(Debug, Default)]
pub struct Claims {
    /// Who claims a key, the owner first; never empty. Nearly always one claim, kept in place.
    keys: HashMap<FrontendKey, SmallVec<[Claim; 1]>>,
    /// Keys that different service ports claim.
    contested: BTreeSet<FrontendKey>,
    stray: Stray,
}

/// The service port that a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The Service.
    pub service: &'a ObjectName,
    /// The name of its port.
    pub port: &'a str,
    /// Why it owns the key: as a cluster IP, a load-balancer IP, an external IP or a node port.
    pub role: Role,
}

/// What an update of one Service did to others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Updated {
    /// Other Services that lost or gained a key: to be looked at again. Sorted, each once.
    pub others: Vec<ObjectName>,
    /// Keys of this Service whose claims changed and that more than one service port claims now, sorted: worth a line
    /// in the log. A Service that comes again unchanged gives none.
    pub clashes: Vec<Clash>,
}

/// A key that several service ports claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// What is claimed.
    pub key: FrontendKey,
    /// Who gets it.
    pub owner: ServicePortName,
    /// Who does not, the next in line first: at least one, at most [`Clash::NAMED`].
    pub losers: Vec<ServicePortName>,
    /// The number of claims beyond those.
    pub more: usize,
}

impl Clash {
    /// So many losers are named, or a thousand Services that claim one address would fill the log.
    pub const NAMED: usize = 8;
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is claimed by more than one Service port: {} has it, not ", self.key, self.owner)?;
        for (i, loser) in self.losers.iter().enumerate() {
            write!(f, "{}{loser}", if i == 0 { "" } else { ", " })?;
        }
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

impl Claims {
    /// Takes in the present version of a Service, `None` if it is gone; `before` is the version that was taken in last.
    /// Costs what the old and the new version claim (and who else claims the same), whatever the number of Services.
    pub fn update(&mut self, name: &ObjectName, before: Option<&Service>, service: Option<&Service>) -> Updated {
        let wanted = service.map(claims_of).unwrap_or_default();
        let former = before.map(claims_of).unwrap_or_default();
        let mut keys: Vec<FrontendKey> = wanted.iter().chain(&former).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys.dedup();
        let cluster_ips = |service: Option<&Service>| service.map(|service| service.cluster_ips).unwrap_or_default();
        self.stray.replace(&cluster_ips(before), &cluster_ips(service));

        let mut wanted = &wanted[..];
        let mut updated = Updated::default();
        for key in keys {
            let (here, rest) = wanted.split_at(wanted.partition_point(|(of, _)| *of == key));
            wanted = rest;
            self.update_key(key, name, here, &mut updated);
        }
        updated.others.sort_unstable();
        updated.others.dedup();
        updated
    }

    /// Who owns a key.
    pub fn owner(&self, key: &FrontendKey) -> Option<Owner<'_>> {
        let claim = self.keys.get(key)?.first()?;
        Some(Owner { service: &claim.service, port: &claim.port, role: claim.role })
    }

    /// All keys that different service ports claim, sorted. Costs what is contested: normally nothing.
    pub fn clashes(&self) -> Vec<Clash> {
        self.contested.iter().filter_map(|key| clash(*key, self.keys.get(key)?)).collect()
    }

    /// Sets the ServiceCIDRs of both families. Loops over all Services, which are those that were taken in, unlike
    /// anything else here; ServiceCIDRs change only when a cluster's administrator adds a range.
    pub fn set_service_cidrs<'a>(&mut self, cidrs: PerFamily<Vec<IpNet>>, services: impl Iterator<Item = &'a Service>) {
        self.stray = Stray::new(cidrs, services.map(|service| &service.cluster_ips));
    }

    /// Whether some Service has a cluster IP outside all ServiceCIDRs of the family (without ServiceCIDRs: any Service
    /// with a cluster IP). Then the ranges alone do not tell which destinations are cluster IPs.
    pub fn stray(&self, family: Family) -> bool {
        self.stray.any(family)
    }

    /// Replaces the claims of one Service on one key by `wanted`.
    fn update_key(
        &mut self,
        key: FrontendKey,
        name: &ObjectName,
        wanted: &[(FrontendKey, Claim)],
        updated: &mut Updated,
    ) {
        let claims = self.keys.entry(key).or_default();
        let unchanged = claims.iter().filter(|claim| claim.service == *name).eq(wanted.iter().map(|(_, claim)| claim));
        if unchanged {
            return;
        }
        let owner_before = claims.first().cloned();
        claims.retain(|claim| claim.service != *name);
        claims.extend(wanted.iter().map(|(_, claim)| claim.clone()));
        claims.sort_unstable();

        if owner_before.as_ref() != claims.first() {
            let others = [owner_before.as_ref(), claims.first()].into_iter().flatten();
            updated.others.extend(others.map(|claim| &claim.service).filter(|other| *other != name).cloned());
        }
        match clash(key, claims) {
            Some(clash) => {
                self.contested.insert(key);
                // One that this Service left is no news: it is told when a claim is made.
                if !wanted.is_empty() {
                    updated.clashes.push(clash);
                }
            }
            None => {
                self.contested.remove(&key);
            }
        }
        if claims.is_empty() {
            self.keys.remove(&key);
        } else {
            claims.shrink_to_fit();
        }
    }
}

/// What is to be said of a key's claims: nothing if they are all of one service port (an external IP that is also its
/// load-balancer IP).
fn clash(key: FrontendKey, claims: &[Claim]) -> Option<Clash> {
    let name_of = |claim: &Claim| ServicePortName {
        service: claim.service.clone(),
        port: claim.port.clone(),
        protocol: key.protocol,
    };
    let (first, rest) = claims.split_first()?;
    let owner = name_of(first);
    let mut losers: Vec<ServicePortName> = Vec::new();
    let mut more = 0;
    for claim in rest {
        if losers.len() == Clash::NAMED {
            more += 1;
            continue;
        }
        let name = name_of(claim);
        if name != owner && !losers.contains(&name) {
            losers.push(name);
        }
    }
    (!losers.is_empty()).then_some(Clash { key, owner, losers, more })
}

#[cfg(test)]
mod tests;
