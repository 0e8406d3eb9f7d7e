//! Reads what is installed off the elements that a table holds: the state that an earlier run left behind.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use arcstr::ArcStr;
use smallvec::SmallVec;

use super::installed::{Installed, Placed, Unit};
use crate::keyed::KeyedTable;
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName};
use crate::ruleset::elements;
use crate::ruleset::frontend::{Action, Backend, Frontend, Shared, Slots};
use crate::ruleset::names::{ChainName, Pick, SetName};
use crate::ruleset::ranges::Range;
use crate::ruleset::types::{Data, Element, Key, Value, Verdict};

/// Takes in the elements of a table one by one, in any order, and says what is installed.
///
/// A frontend counts as installed if its elements are exactly those that the proxy would write for it; otherwise its
/// elements are kept as damaged and will be replaced. What is kept of an element meanwhile is all that an element of
/// ours can say, in a fraction of the memory: a table of 110,000 elements is read back within a few MiB.
#[derive(Debug)]
pub struct Recovery {
    family: Family,
    shared: BTreeSet<Shared>,
    nodeport_ips: BTreeSet<IpAddr>,
    frontends: HashMap<FrontendKey, Found>,
    unknown: Vec<(SetName, Element)>,
}

impl Recovery {
    /// Nothing has been read of this family's table.
    pub fn new(family: Family) -> Recovery {
        Recovery {
            family,
            shared: BTreeSet::new(),
            nodeport_ips: BTreeSet::new(),
            frontends: HashMap::new(),
            unknown: Vec::new(),
        }
    }

    /// Takes in an element. While the kernel resizes a hash table a dump may show one twice. (It may also miss some:
    /// they are added again, which does no harm.)
    pub fn element(&mut self, set: SetName, element: Element) {
        match (set, element.key.as_slice()) {
            (SetName::ClusterIps, [Value::Address(address)]) if is_plain(&element) => {
                self.shared.insert(Shared::ClusterIp(*address));
            }
            (SetName::Hairpin, [Value::Address(address), Value::Address(same)])
                if address == same && is_plain(&element) =>
            {
                self.shared.insert(Shared::Hairpin(*address));
            }
            (SetName::NodeportIps, [Value::Address(address)]) if is_plain(&element) => {
                self.nodeport_ips.insert(*address);
            }
            // Learnt by the kernel, not written by us.
            (SetName::Affinity, _) => {}
            _ => match frontend_key(self.family, set, &element) {
                Some(key) => self.frontends.entry(key).or_default().element(set, element),
                None => self.unknown.push((set, element)),
            },
        }
    }

    /// Forgets what came of a set: it is read again from the beginning.
    #[expect(clippy::disallowed_methods, reason = "each is treated alike")]
    pub fn forget(&mut self, set: SetName) {
        self.shared.retain(|shared| elements::shared_element(*shared).0 != set);
        if set == SetName::NodeportIps {
            self.nodeport_ips.clear();
        }
        let of_set = |key: &FrontendKey| matches!(key.at, FrontendAt::NodePort(_)) == is_nodeport(set);
        self.frontends.iter_mut().filter(|(key, _)| of_set(key)).for_each(|(_, found)| found.forget(set));
        self.frontends.retain(|_, found| !found.is_empty());
        self.unknown.retain(|(other, _)| *other != set);
    }

    /// The installed state of the table, which has these chains. Elements that cannot be part of any frontend are
    /// returned beside it. `known` gives the text that others hold already of the name of a Service, if there is one: tens of
    /// thousands of names more would be kept for ever.
    pub fn finish(
        self,
        chains: impl IntoIterator<Item = ChainName>,
        known: impl Fn(&ObjectName) -> Option<ObjectName>,
    ) -> (Installed, Vec<(SetName, Element)>) {
        let on_demand = |chain: &ChainName| matches!(chain, ChainName::Pick(_) | ChainName::RememberFor(_));
        let mut installed = Installed {
            chains: chains.into_iter().filter(on_demand).collect(),
            shared: self.shared.into_iter().map(|shared| (shared, 0)).collect(),
            nodeport_ips: self.nodeport_ips,
            frontends: KeyedTable::with_capacity(self.frontends.len()),
            unclaimed: true,
            ..Installed::default()
        };
        // The names of ports are few, and repeated by many Services.
        let mut port_names: HashSet<ArcStr> = HashSet::new();
        for (key, mut found) in self.frontends {
            found.normalize();
            match found.frontend().filter(|frontend| Found::of(&key, frontend) == found) {
                Some(mut frontend) => {
                    match port_names.get(&frontend.port_name) {
                        Some(shared) => frontend.port_name = ArcStr::clone(shared),
                        None => drop(port_names.insert(ArcStr::clone(&frontend.port_name))),
                    }
                    let new = || Unit::empty(known(&frontend.service).unwrap_or_else(|| frontend.service.clone()));
                    let unit = installed.units.get_or_insert_with(&frontend.service, new);
                    let at = unit.frontends.partition_point(|other| *other < key);
                    unit.frontends.reserve_exact(1);
                    unit.frontends.insert(at, key);
                    // The text that the Service's other frontends share.
                    frontend.service = unit.service.clone();
                    installed.frontends.insert(Placed { key, frontend });
                }
                None => drop(installed.damaged.insert(key, found.elements(&key))),
            }
        }
        (installed, self.unknown)
    }
}

fn is_plain(element: &Element) -> bool {
    element.data == Data::None && element.comment.is_none() && element.key_end.is_none()
}

/// Whether a set is about node ports: its keys have no address.
fn is_nodeport(set: SetName) -> bool {
    matches!(
        set,
        SetName::ServiceNodeports
            | SetName::NodeportEndpoints
            | SetName::NodeportClusterPolicy
            | SetName::NodeportLocalPolicy
            | SetName::NodeportAffinityTimeouts
    )
}

/// How many values of an element's key are the frontend's key.
fn own_length(set: SetName) -> usize {
    if is_nodeport(set) { 2 } else { 3 }
}

/// The frontend that an element belongs to: its key begins with the frontend's.
fn frontend_key(family: Family, set: SetName, element: &Element) -> Option<FrontendKey> {
    let (at, rest) = match element.key.as_slice() {
        rest if is_nodeport(set) => (FrontendAt::NodePort(family), rest),
        [Value::Address(address), rest @ ..] => (FrontendAt::Address(*address), rest),
        _ => return None,
    };
    match rest {
        [Value::Protocol(protocol), Value::Port(port), ..] => {
            Some(FrontendKey { at, protocol: *protocol, port: NonZeroU16::new(*port)? })
        }
        _ => None,
    }
}

/// The elements of one frontend. Invariant: nothing of an element is lost, so that equal values stand for equal elements,
/// and [`Found::elements`] gives them back.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Elements of verdict maps.
    verdicts: SmallVec<[(SetName, Verdict); 1]>,
    /// Of the frontend's entry, if that is among the verdicts.
    comment: Option<ArcStr>,
    /// Elements of the endpoint maps.
    slots: SmallVec<[(u32, Backend); 1]>,
    /// Elements of the allowed sources.
    sources: Vec<Range>,
    /// Elements that no frontend has.
    strange: Vec<(SetName, Element)>,
}

impl Found {
    /// The elements that the proxy would write for a frontend.
    fn of(key: &FrontendKey, frontend: &Frontend) -> Found {
        let mut found = Found::default();
        for (set, element) in elements::elements(key, frontend) {
            found.element(set, element);
        }
        found.normalize();
        found
    }

    fn element(&mut self, set: SetName, element: Element) {
        if self.regular(set, &element).is_none() {
            self.strange.push((set, element));
        }
    }

    /// Takes in an element of the usual shape.
    fn regular(&mut self, set: SetName, element: &Element) -> Option<()> {
        let entry = is_entry(set);
        let interval = set == SetName::AllowedSources;
        if element.key_end.is_some() != interval || (element.comment.is_some() && !entry) {
            return None;
        }
        // The key begins with the frontend's: that is how the element came here.
        let own = element.key.get(own_length(set)..)?;
        match (set, own, &element.data) {
            (SetName::AllowedSources, [Value::Address(first)], Data::None) => {
                let end = element.key_end.as_ref()?;
                let (same, [Value::Address(last)]) = end.split_at_checked(own_length(set))? else { return None };
                if !element.key.starts_with(same) {
                    return None;
                }
                self.sources.push(Range { first: *first, last: *last });
            }
            (SetName::Endpoints | SetName::NodeportEndpoints, [Value::Slot(slot)], Data::Values(values)) => {
                let [Value::Address(address), Value::Port(port)] = values.as_slice() else { return None };
                self.slots.push((*slot, Backend { address: *address, port: NonZeroU16::new(*port)? }));
            }
            (_, [], Data::Verdict(verdict)) if !interval => {
                // A key is in a map once: another verdict for it was read of another moment.
                if self.verdicts.iter().any(|(other, known)| *other == set && known != verdict) {
                    return None;
                }
                if entry {
                    if self.verdict(set).is_some() && self.comment != element.comment {
                        return None;
                    }
                    self.comment.clone_from(&element.comment);
                }
                if self.verdict(set).is_none() {
                    self.verdicts.push((set, *verdict));
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn forget(&mut self, set: SetName) {
        self.verdicts.retain(|(other, _)| *other != set);
        match set {
            SetName::ServiceIps | SetName::ServiceNodeports => self.comment = None,
            SetName::Endpoints | SetName::NodeportEndpoints => self.slots = SmallVec::new(),
            SetName::AllowedSources => self.sources = Vec::new(),
            _ => {}
        }
        self.strange.retain(|(other, _)| *other != set);
    }

    fn is_empty(&self) -> bool {
        self.verdicts.is_empty() && self.slots.is_empty() && self.sources.is_empty() && self.strange.is_empty()
    }

    /// Orders what came in any order, and keeps each element once.
    fn normalize(&mut self) {
        self.verdicts.sort_unstable();
        self.slots.sort_unstable();
        self.slots.dedup();
        self.sources.sort_unstable();
        self.sources.dedup();
        self.strange.sort_unstable();
        self.strange.dedup();
    }

    fn verdict(&self, set: SetName) -> Option<Verdict> {
        self.verdicts.iter().find(|(other, _)| *other == set).map(|(_, verdict)| *verdict)
    }

    /// All elements, sorted.
    fn elements(&self, key: &FrontendKey) -> Vec<(SetName, Element)> {
        let nodeport = matches!(key.at, FrontendAt::NodePort(_));
        let own = |value: Option<Value>| elements::element_key(key).into_iter().chain(value).collect::<Key>();
        let mut elements = self.strange.clone();
        elements.extend(self.verdicts.iter().map(|(set, verdict)| {
            let comment = self.comment.clone().filter(|_| is_entry(*set));
            (*set, Element { key: own(None), key_end: None, data: Data::Verdict(*verdict), comment })
        }));
        let endpoints = if nodeport { SetName::NodeportEndpoints } else { SetName::Endpoints };
        elements.extend(self.slots.iter().map(|(slot, Backend { address, port })| {
            let data = Data::Values([Value::Address(*address), Value::Port(port.get())].into_iter().collect());
            (endpoints, Element { key: own(Some(Value::Slot(*slot))), key_end: None, data, comment: None })
        }));
        elements.extend(self.sources.iter().map(|Range { first, last }| {
            let (key, key_end) = (own(Some(Value::Address(*first))), Some(own(Some(Value::Address(*last)))));
            (SetName::AllowedSources, Element { key, key_end, data: Data::None, comment: None })
        }));
        elements.sort_unstable();
        elements
    }

    /// The frontend that these elements may have been written for. What it says is checked by writing it again.
    fn frontend(&self) -> Option<Frontend> {
        let either = |one, other| self.verdict(one).or_else(|| self.verdict(other));
        let entry = either(SetName::ServiceIps, SetName::ServiceNodeports)?;
        let comment = self.comment.as_ref()?;
        let (service, port_name) = comment.split_once(':').unwrap_or((comment, ""));
        let (namespace, name) = service.split_once('/')?;
        let guarded = entry == Verdict::Goto(ChainName::SourceRanges);
        let verdict = if guarded { self.verdict(SetName::AfterSourceRanges)? } else { entry };
        let affinity = match either(SetName::AffinityTimeouts, SetName::NodeportAffinityTimeouts) {
            Some(Verdict::Goto(ChainName::RememberFor(seconds))) => Some(seconds),
            _ => None,
        };
        // Slots are sorted; gaps are found by writing them again.
        let (cluster, local) = self.slots.split_at(self.slots.partition_point(|(slot, _)| *slot < Pick::LOCAL_OFFSET));
        let backends = |slots: &[(u32, Backend)]| slots.iter().map(|(_, backend)| *backend).collect::<Slots>();
        let action = match verdict {
            Verdict::Drop => Action::Drop,
            Verdict::Goto(ChainName::RejectIt) => Action::Reject,
            Verdict::Goto(ChainName::Pick(Pick { masquerade, .. })) => {
                Action::Forward { masquerade, affinity, slots: backends(cluster) }
            }
            Verdict::Goto(ChainName::ExternalLocal | ChainName::NodeportLocal) => {
                Action::Split { affinity, cluster: backends(cluster), local: backends(local) }
            }
            _ => return None,
        };
        Some(Frontend {
            service: ObjectName::new(namespace, name)?,
            port_name: port_name.into(),
            action,
            allowed_sources: guarded.then(|| self.sources.as_slice().into()),
        })
    }
}

/// Whether the elements of a map are what leads to a frontend, and say whose it is.
fn is_entry(set: SetName) -> bool {
    matches!(set, SetName::ServiceIps | SetName::ServiceNodeports)
}
