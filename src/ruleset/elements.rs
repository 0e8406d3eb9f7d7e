//! The elements of a frontend, and of what several Services share.

use std::net::IpAddr;

use arcstr::ArcStr;
use smallvec::{SmallVec, smallvec};

use super::backend::Backend;
use super::frontend::{Action, Frontend, Shared};
use super::kinds::Kind;
use super::names::{Masquerade, Pick, SetName};
use super::ranges::Range;
use super::slots::Slots;
use super::types::{Data, Element, Key, Value};
use crate::model::{FrontendAt, FrontendKey, TrafficPolicy};

/// All elements of a frontend, in a fixed order.
pub fn elements(key: &FrontendKey, frontend: &Frontend) -> Vec<(SetName, Element)> {
    let mut elements = Vec::new();
    let mut slots = |slots: &[Backend], offset: u32| {
        elements.extend((offset..).zip(slots).map(|(slot, backend)| slot_element(key, slot, backend)));
    };
    match &frontend.action {
        Action::Reject | Action::Drop => {}
        Action::Forward { policy: TrafficPolicy::Cluster, slots: all, .. } => slots(all, 0),
        Action::Forward { policy: TrafficPolicy::Local, slots: local, .. } => slots(local, Pick::LOCAL_OFFSET),
        Action::Split { cluster, local, .. } => {
            slots(cluster, 0);
            slots(local, Pick::LOCAL_OFFSET);
        }
    }
    elements.extend(frontend.action.keeps_ports().then(|| kept_port_element(key)));
    elements.extend(frontend.allowed_sources.iter().flatten().map(|range| source_element(key, range)));
    let entry = entry_set(key);
    elements.extend(kinds(key, frontend).into_iter().map(|(map, kind)| {
        let comment = (map == entry).then(|| frontend.comment());
        (map, kind_element(key, kind, comment))
    }));
    elements
}

/// The kinds of a frontend, each with the map that it is in.
pub fn kinds(key: &FrontendKey, frontend: &Frontend) -> SmallVec<[(SetName, Kind); 4]> {
    let nodeport = is_node_port(key);
    let map = |of_address, of_node_port| if nodeport { of_node_port } else { of_address };
    let pick = |masquerade, sticky, local, slots: &Slots| {
        Kind::Pick(Pick { nodeport, masquerade, sticky, local, by: slots.by, slots: slots.len() as u32 })
    };
    let mut kinds = SmallVec::new();
    if let Some(seconds) = frontend.action.affinity() {
        let timeouts = map(SetName::AffinityTimeouts, SetName::NodeportAffinityTimeouts);
        kinds.push((timeouts, Kind::RememberFor(seconds)));
    }
    let kind = match &frontend.action {
        Action::Reject => Kind::Reject,
        Action::Drop => Kind::Drop,
        Action::Forward { policy, masquerade, affinity, slots } => {
            pick(*masquerade, affinity.is_some(), *policy == TrafficPolicy::Local, slots)
        }
        Action::Split { affinity, cluster, local } => {
            let sticky = affinity.is_some();
            let inside = pick(Masquerade::Never, sticky, false, cluster);
            let outside = if local.is_empty() { Kind::Drop } else { pick(Masquerade::Never, sticky, true, local) };
            kinds.push((map(SetName::ClusterPolicy, SetName::NodeportClusterPolicy), inside));
            kinds.push((map(SetName::LocalPolicy, SetName::NodeportLocalPolicy), outside));
            if nodeport { Kind::NodeportLocal } else { Kind::ExternalLocal }
        }
    };
    let first = match (&frontend.allowed_sources, kind) {
        (None, kind) => kind,
        // What it leads to looks up in turn: two look-ups after the first would take one map of verdicts more.
        (Some(_), Kind::ExternalLocal) => Kind::SourceRangesLocal,
        (Some(_), Kind::NodeportLocal) => Kind::NodeportSourceRangesLocal,
        (Some(_), kind) => {
            kinds.push((map(SetName::AfterSourceRanges, SetName::NodeportAfterSourceRanges), kind));
            if nodeport { Kind::NodeportSourceRanges } else { Kind::SourceRanges }
        }
    };
    kinds.push((entry_set(key), first));
    kinds
}

/// The elements of a kind in the maps of verdicts that it may be looked up in.
pub fn dispatch_elements(kind: Kind) -> impl Iterator<Item = (SetName, Element)> {
    let maps: &[SetName] = match kind {
        Kind::Drop | Kind::Reject | Kind::Pick(_) => &[SetName::Dispatch, SetName::DispatchLast],
        Kind::SourceRanges
        | Kind::SourceRangesLocal
        | Kind::ExternalLocal
        | Kind::NodeportLocal
        | Kind::NodeportSourceRanges
        | Kind::NodeportSourceRangesLocal => &[SetName::Dispatch],
        Kind::RememberFor(_) => &[SetName::DispatchAffinity],
    };
    let element = move || Element {
        key: smallvec![Value::Class(kind.class())],
        key_end: None,
        data: Data::Verdict(kind.verdict()),
        comment: None,
    };
    maps.iter().map(move |map| (*map, element()))
}

/// An element of a map of a frontend to a kind.
pub(super) fn kind_element(key: &FrontendKey, kind: Kind, comment: Option<ArcStr>) -> Element {
    Element { key: element_key(key), key_end: None, data: kind.data(), comment }
}

/// The element of one of a frontend's slots.
pub(super) fn slot_element(key: &FrontendKey, slot: u32, backend: &Backend) -> (SetName, Element) {
    let map = if is_node_port(key) { SetName::NodeportEndpoints } else { SetName::Endpoints };
    let data = Data::Values(smallvec![Value::Address(backend.address), Value::Port(backend.port.get())]);
    (map, Element { key: longer_key(key, Value::Slot(slot)), key_end: None, data, comment: None })
}

/// The element of a frontend whose clients keep their port.
pub(super) fn kept_port_element(key: &FrontendKey) -> (SetName, Element) {
    let set = if is_node_port(key) { SetName::NodeportKeptPorts } else { SetName::KeptPorts };
    (set, Element { key: element_key(key), key_end: None, data: Data::None, comment: None })
}

/// The element of a range of sources that a frontend allows.
pub(super) fn source_element(key: &FrontendKey, range: &Range) -> (SetName, Element) {
    let set = if is_node_port(key) { SetName::NodeportAllowedSources } else { SetName::AllowedSources };
    let with = |address| longer_key(key, Value::Address(address));
    let (key, key_end) = (with(range.first), Some(with(range.last)));
    (set, Element { key, key_end, data: Data::None, comment: None })
}

/// The map with the entry of a frontend, one of [`SetName::ENTRIES`].
pub fn entry_set(key: &FrontendKey) -> SetName {
    if is_node_port(key) { SetName::ServiceNodeports } else { SetName::ServiceIps }
}

fn is_node_port(key: &FrontendKey) -> bool {
    matches!(key.at, FrontendAt::NodePort(_))
}

fn longer_key(key: &FrontendKey, last: Value) -> Key {
    let mut key = element_key(key);
    key.push(last);
    key
}

/// The element of a shared need.
pub fn shared_element(shared: Shared) -> (SetName, Element) {
    let element = |key: Key| Element { key, key_end: None, data: Data::None, comment: None };
    match shared {
        Shared::ClusterIp(address) => (SetName::ClusterIps, element(smallvec![Value::Address(address)])),
        Shared::Ping(address) => (SetName::PingIps, element(smallvec![Value::Address(address)])),
        Shared::LocalEndpoint(address) => (SetName::LocalEndpoints, element(smallvec![Value::Address(address)])),
        Shared::Hairpin(address) => {
            (SetName::Hairpin, element(smallvec![Value::Address(address), Value::Address(address)]))
        }
    }
}

/// The element of an address of the node that accepts node ports.
pub fn nodeport_ip_element(address: IpAddr) -> (SetName, Element) {
    let key = smallvec![Value::Address(address)];
    (SetName::NodeportIps, Element { key, key_end: None, data: Data::None, comment: None })
}

/// The key of a frontend in its maps: `address . protocol . port`, for a node port `protocol . port`.
pub fn element_key(key: &FrontendKey) -> Key {
    let mut values = Key::new();
    if let FrontendAt::Address(address) = key.at {
        values.push(Value::Address(address));
    }
    values.extend([Value::Protocol(key.protocol), Value::Port(key.port.get())]);
    values
}
