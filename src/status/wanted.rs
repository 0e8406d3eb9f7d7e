//! Which frontends a filter can mean, where that is known without reading all: these are asked for by their keys.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use super::{Filter, FrontendStatus, NodePortsStatus, frame, frontend, look_at, of_service};
use crate::metrics::daemon::{Daemon, Standing};
use crate::metrics::services::ServiceFacts;
use crate::model::{Family, FrontendAt, FrontendKey, Protocol};
use crate::nftables::{Kernel, KernelError};

/// More are not asked for one by one: each takes some ten questions, and one for each of its slots.
const MOST: usize = 32;

/// What the daemon says of the Service that the filter names, where that is all that the table of a family has of it: nothing is
/// pending or refused, and the table holds what is wanted. Else what was taken away from the Service may still be there.
pub(super) fn certain<'a>(
    daemon: Option<&Daemon>,
    family: Family,
    named: Option<&'a ServiceFacts>,
) -> Option<&'a ServiceFacts> {
    let daemon = daemon?;
    let state = daemon.families.get(&family.to_string())?;
    let is_certain = state.standing == Standing::InLine
        && state.refused_services == 0
        && state.lag_seconds == 0
        && daemon.service_changes_pending == 0
        // Who says nothing of its frame does not know what is in the kernel.
        && frame(Some(daemon), family).is_some();
    named.filter(|_| is_certain)
}

/// The frontends that are asked for, each by its key; `None` where all have to be read: they are many, may be anywhere, or are
/// damaged, or there seems to be none of them. What is left of a frontend that no packet finds any more, beside others that are
/// asked for, is seen only with all.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) fn by_key(
    kernel: &mut impl Kernel,
    family: Family,
    filter: &Filter,
    node_ports: &NodePortsStatus,
    named: Option<&ServiceFacts>,
) -> Result<Option<BTreeMap<FrontendKey, FrontendStatus>>, KernelError> {
    let node_port = FrontendAt::NodePort(family);
    let keys = match filter {
        Filter::At(to) => NonZeroU16::new(to.port())
            .map(|port| of_port(&[FrontendAt::Address(to.ip()), node_port], port))
            .unwrap_or_default(),
        Filter::NodePort(port) => of_port(&[node_port], *port),
        Filter::Service(service, port) => {
            if let Some(facts) = named
                && let Some(found) =
                    look_at_all(kernel, &facts.frontends(family).map(|(key, _)| key).collect(), filter, node_ports)?
            {
                return Ok(Some(found));
            }
            // The table says whose a frontend is with its entry alone, so the entries of all are read, but nothing else.
            let keys: BTreeSet<_> = of_service(kernel, family, service, port.as_deref())?.into_iter().collect();
            if keys.is_empty() {
                return Ok(Some(BTreeMap::new()));
            }
            keys
        }
        // What is left of a damaged frontend may be at any port.
        Filter::All | Filter::Namespace(_) | Filter::Address(_) => return Ok(None),
    };
    look_at_all(kernel, &keys, filter, node_ports)
}

/// Those of them that the filter takes; `None` where there is none of them, one is damaged, or they are too many.
fn look_at_all(
    kernel: &mut impl Kernel,
    keys: &BTreeSet<FrontendKey>,
    filter: &Filter,
    node_ports: &NodePortsStatus,
) -> Result<Option<BTreeMap<FrontendKey, FrontendStatus>>, KernelError> {
    if keys.len() > MOST {
        return Ok(None);
    }
    let mut all = BTreeMap::new();
    for key in keys {
        let found = match look_at(kernel, key) {
            // Who reads all passes over what means nothing.
            Err(KernelError::Strange(_)) => return Ok(None),
            found => found?,
        };
        let found = found.map(|found| frontend(key, &found)).filter(|found| filter.takes(key, found, node_ports));
        // Of what is damaged, more is seen with all.
        if found.as_ref().is_some_and(|found| found.damaged) {
            return Ok(None);
        }
        all.extend(found.map(|found| (*key, found)));
    }
    Ok(Some(all).filter(|all| !all.is_empty()))
}

fn of_port(ats: &[FrontendAt], port: NonZeroU16) -> BTreeSet<FrontendKey> {
    let keys = |at: &FrontendAt| Protocol::ALL.map(|protocol| FrontendKey { at: *at, protocol, port });
    ats.iter().flat_map(keys).collect()
}

#[cfg(test)]
mod tests;
