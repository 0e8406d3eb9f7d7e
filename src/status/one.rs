//! Frontends, one at a time: by their keys, so that the time it takes does not depend on how many others there are.

use std::collections::BTreeSet;
use std::slice::from_ref;

use super::{FrontendStatus, Frontends, StatusError, frontend as status_of, settled};
use crate::conntrack::{Conntrack, Flow};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName};
use crate::nftables::{Kernel, KernelError};
use crate::ruleset::base;
use crate::ruleset::elements::element_key;
use crate::ruleset::frontend::{self, Frontend};
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{Pick, SetName};
use crate::ruleset::read::{Contents, FrontendElements, frontend_key};
use crate::ruleset::types::{Element, Key, Value};

/// What is seen of a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The frontend that its elements were written for, or that they come closest to; `None` if they lead to none.
    pub frontend: Option<Frontend>,
    /// Whether its elements are not exactly what nftproxyd writes for any frontend. Never set while changes go on that may be
    /// the reason.
    pub damaged: bool,
}

impl Found {
    /// What the elements of a frontend say.
    pub(super) fn of(key: &FrontendKey, elements: FrontendElements) -> Found {
        match elements.read(key) {
            Ok(frontend) => Found { frontend: Some(frontend), damaged: false },
            Err(damaged) => Found { frontend: damaged.resembles, damaged: true },
        }
    }
}

/// Looks at one frontend; `None` if there is nothing of it. Takes one question to the kernel for each of its elements; only
/// the ranges of a frontend that allows some sources are read from among those of all others. An element of it that nothing
/// of the rest leads to, and that is neither its first slot nor the one after its last, is not seen.
///
/// # Errors
/// The kernel cannot be asked, or somebody else has put something there that means nothing to us.
pub fn look_at(kernel: &mut impl Kernel, key: &FrontendKey) -> Result<Option<Found>, KernelError> {
    // What was changed before does not count.
    kernel.undisturbed(key.family())?;
    let mut seen = settled(|| {
        let contents = contents(kernel, key)?;
        Ok((contents, kernel.undisturbed(key.family())?))
    })?;
    Ok(seen.remove(key))
}

/// The status of one frontend; `None` if there is nothing of it. For its connections all connections of the family are
/// looked through.
///
/// # Errors
/// Those of [`look_at`], and connections that cannot be read.
pub fn one(kernel: &mut impl Kernel, key: &FrontendKey) -> Result<Option<FrontendStatus>, StatusError> {
    let Some(seen) = look_at(kernel, key)? else { return Ok(None) };
    let mut flows = Vec::new();
    Conntrack::open()?.each(key.family(), &mut |flow| flows.extend(may_be_of(key, flow).then_some(*flow)))?;
    if let FrontendAt::NodePort(_) = key.at {
        without_others(kernel, key, &mut flows)?;
    }
    let mut frontends = Frontends([(*key, status_of(key, &seen))].into());
    flows.iter().for_each(|flow| frontends.count(flow, None));
    Ok(frontends.0.remove(key))
}

/// Whether a connection has the frontend's protocol and port, and its address if it has one.
fn may_be_of(key: &FrontendKey, flow: &Flow) -> bool {
    let to = flow.original.destination;
    let is_there = match key.at {
        FrontendAt::Address(address) => to.ip() == address,
        FrontendAt::NodePort(_) => true,
    };
    is_there && flow.protocol == key.protocol.number() && to.port() == key.port.get()
}

/// Takes out what is a connection to a frontend with an address: it is that one's, and no node port's.
pub(super) fn without_others(
    kernel: &mut impl Kernel,
    node_port: &FrontendKey,
    flows: &mut Vec<Flow>,
) -> Result<(), KernelError> {
    let at = |flow: &Flow| FrontendKey { at: FrontendAt::Address(flow.original.destination.ip()), ..*node_port };
    let addresses: BTreeSet<FrontendKey> = flows.iter().map(at).collect();
    let keys: Vec<Key> = addresses.iter().map(element_key).collect();
    let found = kernel.find(node_port.family(), &base::set(SetName::ServiceIps), &keys)?;
    let frontends = addresses.into_iter().zip(found).filter_map(|(address, found)| found.map(|_| address));
    let frontends: BTreeSet<FrontendKey> = frontends.collect();
    flows.retain(|flow| !frontends.contains(&at(flow)));
    Ok(())
}

/// The frontends of a Service in one family, or only those of its port of this name, sorted. Reads the entries of all
/// frontends, once for each question by name: nothing else of the table says whose they are.
///
/// # Errors
/// The kernel cannot be asked.
pub fn of_service(
    kernel: &mut impl Kernel,
    family: Family,
    service: &ObjectName,
    port_name: Option<&str>,
) -> Result<Vec<FrontendKey>, KernelError> {
    let is_wanted = |element: &Element| {
        let comment = element.comment.as_deref().unwrap_or_default();
        match port_name {
            Some(port_name) => comment == &*frontend::comment(service, port_name),
            None => {
                let port = comment.strip_prefix(service.as_str());
                port.is_some_and(|port| port.is_empty() || port.starts_with(':'))
            }
        }
    };
    let mut keys = BTreeSet::new();
    for set in SetName::ENTRIES {
        let mut of_set = BTreeSet::new();
        kernel.read_elements(family, &base::set(set), &mut |element| match element {
            None => of_set.clear(),
            Some(element) => {
                of_set.extend(frontend_key(family, set, &element).filter(|_| is_wanted(&element)));
            }
        })?;
        keys.append(&mut of_set);
    }
    Ok(keys.into_iter().collect())
}

/// The elements of one frontend.
fn contents(kernel: &mut impl Kernel, key: &FrontendKey) -> Result<Contents, KernelError> {
    let (family, own) = (key.family(), element_key(key));
    let (single, slots, sources): (&[SetName], _, _) = match key.at {
        FrontendAt::Address(_) => (&OF_ADDRESS, SetName::Endpoints, SetName::AllowedSources),
        FrontendAt::NodePort(_) => (&OF_NODE_PORT, SetName::NodeportEndpoints, SetName::NodeportAllowedSources),
    };
    let mut contents = Contents::new(family);
    let mut kinds = Vec::new();
    for &set in single {
        for element in kernel.find(family, &base::set(set), from_ref(&own))?.into_iter().flatten() {
            kinds.extend(Kind::of_data(&element.data));
            contents.element(set, element);
        }
    }
    for (is_local, first) in [(false, 0), (true, Pick::LOCAL_OFFSET)] {
        let slots_of = |kind: &Kind| match kind {
            Kind::Pick(pick) if pick.local == is_local => Some(pick.slots),
            _ => None,
        };
        let last = first + kinds.iter().filter_map(slots_of).max().unwrap_or(0);
        let slot_key = |slot: u32| own.iter().copied().chain([Value::Slot(slot)]).collect::<Key>();
        let mut keys: Vec<Key> = (first..=last).map(slot_key).collect();
        // The one after the last is not there, unless there are more than anybody looks up.
        for next in last + 1.. {
            let found = kernel.find(family, &base::set(slots), &keys)?;
            let ends = found.last().is_none_or(Option::is_none);
            found.into_iter().flatten().for_each(|element| contents.element(slots, element));
            if ends {
                break;
            }
            keys = vec![slot_key(next)];
        }
    }
    if kinds.iter().any(guards) {
        let mut ranges = Vec::new();
        kernel.read_elements(family, &base::set(sources), &mut |element| match element {
            None => ranges.clear(),
            Some(element) => ranges.extend(Some(element).filter(|element| element.key.starts_with(&own))),
        })?;
        ranges.into_iter().for_each(|element| contents.element(sources, element));
    }
    Ok(contents)
}

/// Whether only some sources are allowed.
fn guards(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::SourceRanges | Kind::SourceRangesLocal | Kind::NodeportSourceRanges | Kind::NodeportSourceRangesLocal
    )
}

/// The sets that have at most one element of a frontend with an address.
const OF_ADDRESS: [SetName; 6] = [
    SetName::ServiceIps,
    SetName::AfterSourceRanges,
    SetName::ClusterPolicy,
    SetName::LocalPolicy,
    SetName::AffinityTimeouts,
    SetName::KeptPorts,
];

/// The same of a node port.
const OF_NODE_PORT: [SetName; 6] = [
    SetName::ServiceNodeports,
    SetName::NodeportAfterSourceRanges,
    SetName::NodeportClusterPolicy,
    SetName::NodeportLocalPolicy,
    SetName::NodeportAffinityTimeouts,
    SetName::NodeportKeptPorts,
];
