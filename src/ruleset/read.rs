//! From the elements of a table back to what they were written for: the inverse of [`super::elements`].
//!
//! [`Contents`] takes in all elements of a table, [`FrontendElements`] those of one frontend. Elements that the proxy
//! would write for some frontend are read as that frontend; everything else is kept element by element, so that it can be
//! deleted one by one. Nothing of an element is lost on the way, and little memory is used for it: what is kept is all
//! that an element of ours can say, so a table of 110,000 elements is read within a few MiB.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::num::NonZeroU16;

use arcstr::ArcStr;
use smallvec::SmallVec;

use super::backend::Backend;
use super::elements;
use super::frontend::{Action, Frontend, Shared};
use super::kinds::Kind;
use super::names::{By, Pick, SetName};
use super::ranges::Range;
use super::slots::Slots;
use super::types::{Data, Element, Value};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, Protocol, TrafficPolicy};

/// What one family's table holds, as its elements say. They come in one by one, in any order.
#[derive(Debug)]
pub struct Contents {
    family: Family,
    /// What several Services may need.
    pub shared: BTreeSet<Shared>,
    /// The addresses of the node that accept node ports.
    pub nodeport_ips: BTreeSet<IpAddr>,
    /// The elements of each frontend; never none.
    pub frontends: HashMap<FrontendKey, FrontendElements>,
    /// The elements of the maps that kinds are looked up in.
    pub dispatch: BTreeSet<(SetName, Element)>,
    /// Elements that cannot be part of any frontend.
    pub unknown: Vec<(SetName, Element)>,
}

impl Contents {
    /// Nothing has been read of this family's table.
    pub fn new(family: Family) -> Contents {
        Contents {
            family,
            shared: BTreeSet::new(),
            nodeport_ips: BTreeSet::new(),
            frontends: HashMap::new(),
            dispatch: BTreeSet::new(),
            unknown: Vec::new(),
        }
    }

    /// Takes in an element. While the kernel resizes a hash table a dump may show one twice. (It may also miss some.)
    pub fn element(&mut self, set: SetName, element: Element) {
        match (set, element.key.as_slice()) {
            (SetName::ClusterIps, [Value::Address(address)]) if is_plain(&element) => {
                self.shared.insert(Shared::ClusterIp(*address));
            }
            (SetName::PingIps, [Value::Address(address)]) if is_plain(&element) => {
                self.shared.insert(Shared::Ping(*address));
            }
            (SetName::LocalEndpoints, [Value::Address(address)]) if is_plain(&element) => {
                self.shared.insert(Shared::LocalEndpoint(*address));
            }
            (SetName::Hairpin, [Value::Address(address), Value::Address(same)])
                if address == same && is_plain(&element) =>
            {
                self.shared.insert(Shared::Hairpin(*address));
            }
            (SetName::NodeportIps, [Value::Address(address)]) if is_plain(&element) => {
                self.nodeport_ips.insert(*address);
            }
            // Learnt by the kernel, not written by us: see `Remembered`.
            (SetName::Affinity, _) => {}
            (SetName::Dispatch | SetName::DispatchLast | SetName::DispatchAffinity, _) => {
                self.dispatch.insert((set, element));
            }
            _ => match frontend_key(self.family, set, &element) {
                Some(key) => self.frontends.entry(key).or_default().add(set, element),
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
        self.dispatch.retain(|(other, _)| *other != set);
        self.unknown.retain(|(other, _)| *other != set);
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
            | SetName::NodeportAllowedSources
            | SetName::NodeportAfterSourceRanges
            | SetName::NodeportClusterPolicy
            | SetName::NodeportLocalPolicy
            | SetName::NodeportAffinityTimeouts
            | SetName::NodeportKeptPorts
    )
}

/// How many values of an element's key are the frontend's key.
fn own_length(set: SetName) -> usize {
    if is_nodeport(set) { 2 } else { 3 }
}

/// The frontend that an element of a set of frontends belongs to: its key begins with the frontend's.
pub fn frontend_key(family: Family, set: SetName, element: &Element) -> Option<FrontendKey> {
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

/// The elements of one frontend.
///
/// Invariant: nothing of an element is lost, so that equal values stand for equal elements, and
/// `elements` gives them back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FrontendElements {
    /// Elements of maps to kinds.
    kinds: SmallVec<[(SetName, Kind); 1]>,
    /// Of the frontend's entry, if that is among the kinds.
    comment: Option<ArcStr>,
    /// Elements of the endpoint maps.
    slots: SmallVec<[(u32, Backend); 1]>,
    /// Whether there is the element that says that clients keep their port.
    keeps_port: bool,
    /// Elements of the allowed sources.
    sources: Vec<Range>,
    /// Elements that no frontend has.
    strange: Vec<(SetName, Element)>,
}

/// Elements of a frontend that the proxy would write for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// All of them, sorted, each once.
    pub elements: Vec<(SetName, Element)>,
    /// The frontend that they come closest to, if they lead to one at all: some of its elements are missing, or there are
    /// more.
    pub resembles: Option<Frontend>,
}

impl FrontendElements {
    /// The elements that the proxy would write for a frontend.
    fn of(key: &FrontendKey, frontend: &Frontend) -> FrontendElements {
        let mut found = FrontendElements::default();
        for (set, element) in elements::elements(key, frontend) {
            found.add(set, element);
        }
        found.normalize();
        found
    }

    /// Takes in an element whose key begins with the frontend's.
    fn add(&mut self, set: SetName, element: Element) {
        if self.regular(set, &element).is_none() {
            self.strange.push((set, element));
        }
    }

    /// Takes in an element of the usual shape.
    fn regular(&mut self, set: SetName, element: &Element) -> Option<()> {
        let entry = set.is_entry();
        let interval = set.is_interval();
        if element.key_end.is_some() != interval || (element.comment.is_some() && !entry) {
            return None;
        }
        let own = element.key.get(own_length(set)..)?;
        match (set, own, &element.data) {
            (_, [Value::Address(first)], Data::None) if interval => {
                let end = element.key_end.as_ref()?;
                let (same, [Value::Address(last)]) = end.split_at_checked(own_length(set))? else { return None };
                if !element.key.starts_with(same) {
                    return None;
                }
                self.sources.push(Range { first: *first, last: *last });
            }
            (SetName::Endpoints | SetName::NodeportEndpoints, [Value::Slot(slot)], Data::Values(values)) => {
                self.slots.push((*slot, backend(values)?));
            }
            (SetName::KeptPorts | SetName::NodeportKeptPorts, [], Data::None) => self.keeps_port = true,
            (_, [], data) if !interval => {
                let kind = Kind::of_data(data)?;
                // A key is in a map once. Another kind for it: the map was changed while it was read.
                if self.kinds.iter().any(|(other, known)| *other == set && *known != kind) {
                    return None;
                }
                if entry {
                    if self.kind(set).is_some() && self.comment != element.comment {
                        return None;
                    }
                    self.comment.clone_from(&element.comment);
                }
                if self.kind(set).is_none() {
                    self.kinds.push((set, kind));
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn forget(&mut self, set: SetName) {
        self.kinds.retain(|(other, _)| *other != set);
        match set {
            SetName::ServiceIps | SetName::ServiceNodeports => self.comment = None,
            SetName::Endpoints | SetName::NodeportEndpoints => self.slots = SmallVec::new(),
            ranges if ranges.is_interval() => self.sources = Vec::new(),
            SetName::KeptPorts | SetName::NodeportKeptPorts => self.keeps_port = false,
            _ => {}
        }
        self.strange.retain(|(other, _)| *other != set);
    }

    fn is_empty(&self) -> bool {
        let FrontendElements { kinds, comment: _, slots, keeps_port, sources, strange } = self;
        kinds.is_empty() && slots.is_empty() && !keeps_port && sources.is_empty() && strange.is_empty()
    }

    /// The frontend that these elements were written for.
    ///
    /// # Errors
    /// They are not exactly what the proxy writes for a frontend.
    pub fn read(mut self, key: &FrontendKey) -> Result<Frontend, Damaged> {
        self.normalize();
        match self.resembles() {
            Some(frontend) if FrontendElements::of(key, &frontend) == self => Ok(frontend),
            resembles => Err(Damaged { elements: self.elements(key), resembles }),
        }
    }

    /// Orders what came in any order, and keeps each element once.
    fn normalize(&mut self) {
        self.kinds.sort_unstable();
        self.slots.sort_unstable();
        self.slots.dedup();
        self.sources.sort_unstable();
        self.sources.dedup();
        self.strange.sort_unstable();
        self.strange.dedup();
    }

    fn kind(&self, set: SetName) -> Option<Kind> {
        self.kinds.iter().find(|(other, _)| *other == set).map(|(_, kind)| *kind)
    }

    /// All elements, sorted.
    fn elements(&self, key: &FrontendKey) -> Vec<(SetName, Element)> {
        let mut elements = self.strange.clone();
        elements.extend(self.kinds.iter().map(|(set, kind)| {
            let comment = self.comment.clone().filter(|_| set.is_entry());
            (*set, elements::kind_element(key, *kind, comment))
        }));
        elements.extend(self.slots.iter().map(|(slot, backend)| elements::slot_element(key, *slot, backend)));
        elements.extend(self.keeps_port.then(|| elements::kept_port_element(key)));
        elements.extend(self.sources.iter().map(|range| elements::source_element(key, range)));
        elements.sort_unstable();
        elements
    }

    /// The frontend that these elements may have been written for. What it says is checked by writing it again.
    fn resembles(&self) -> Option<Frontend> {
        let either = |one, other| self.kind(one).or_else(|| self.kind(other));
        let entry = either(SetName::ServiceIps, SetName::ServiceNodeports)?;
        let (service, port_name) = owner(self.comment.as_ref()?)?;
        let (guarded, kind) = match entry {
            Kind::SourceRanges => (true, self.kind(SetName::AfterSourceRanges)?),
            Kind::SourceRangesLocal => (true, Kind::ExternalLocal),
            Kind::NodeportSourceRanges => (true, self.kind(SetName::NodeportAfterSourceRanges)?),
            Kind::NodeportSourceRangesLocal => (true, Kind::NodeportLocal),
            kind => (false, kind),
        };
        let affinity = match either(SetName::AffinityTimeouts, SetName::NodeportAffinityTimeouts) {
            Some(Kind::RememberFor(seconds)) => Some(seconds),
            _ => None,
        };
        // Slots are sorted; gaps are found by writing them again.
        let (cluster, local) = self.slots.split_at(self.slots.partition_point(|(slot, _)| *slot < Pick::LOCAL_OFFSET));
        let backends = |by, slots: &[(u32, Backend)]| {
            let list = slots.iter().map(|(_, backend)| *backend).collect();
            Slots { by, list }
        };
        let by = |one, other| match either(one, other) {
            Some(Kind::Pick(pick)) => pick.by,
            _ => By::Random,
        };
        let action = match kind {
            Kind::Drop => Action::Drop,
            Kind::Reject => Action::Reject,
            Kind::Pick(Pick { masquerade, local: on_node, by, .. }) => {
                let (policy, slots) =
                    if on_node { (TrafficPolicy::Local, local) } else { (TrafficPolicy::Cluster, cluster) };
                Action::Forward { policy, masquerade, affinity, slots: backends(by, slots) }
            }
            Kind::ExternalLocal | Kind::NodeportLocal => {
                let cluster = backends(by(SetName::ClusterPolicy, SetName::NodeportClusterPolicy), cluster);
                let local = backends(by(SetName::LocalPolicy, SetName::NodeportLocalPolicy), local);
                Action::Split { affinity, cluster, local }
            }
            _ => return None,
        };
        Some(Frontend {
            service,
            port_name: port_name.into(),
            action,
            allowed_sources: guarded.then(|| self.sources.as_slice().into()),
        })
    }
}

/// Whose an element is, as its comment says: the Service, and the name of its port.
pub(super) fn owner(comment: &str) -> Option<(ObjectName, &str)> {
    let (service, port_name) = comment.split_once(':').unwrap_or((comment, ""));
    let (namespace, name) = service.split_once('/')?;
    Some((ObjectName::new(namespace, name)?, port_name))
}

fn backend(values: &[Value]) -> Option<Backend> {
    let [Value::Address(address), Value::Port(port)] = values else { return None };
    Some(Backend { address: *address, port: NonZeroU16::new(*port)? })
}

/// A client that the kernel remembers: an element of the map `affinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// The client.
    pub client: IpAddr,
    /// What it connected to: an address of a Service, or of the node.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// The port that it connected to.
    pub port: NonZeroU16,
    /// Where it is sent.
    pub backend: Backend,
}

impl Remembered {
    /// Reads an element of the map `affinity`; `None` if it is not one that our rules write.
    pub fn read(element: &Element) -> Option<Remembered> {
        let (key, Data::Values(values)) = (element.key.as_slice(), &element.data) else { return None };
        let [Value::Address(client), Value::Address(destination), Value::Protocol(protocol), Value::Port(port)] = key
        else {
            return None;
        };
        let (client, destination, protocol) = (*client, *destination, *protocol);
        Some(Remembered { client, destination, protocol, port: NonZeroU16::new(*port)?, backend: backend(values)? })
    }

    /// The frontend, if the address that the client used is a Service's.
    pub fn by_address(&self) -> FrontendKey {
        FrontendKey { at: FrontendAt::Address(self.destination), protocol: self.protocol, port: self.port }
    }

    /// The frontend, if the address that the client used is the node's.
    pub fn by_node_port(&self) -> FrontendKey {
        let at = FrontendAt::NodePort(Family::of(self.destination));
        FrontendKey { at, protocol: self.protocol, port: self.port }
    }
}

#[cfg(test)]
mod tests;
