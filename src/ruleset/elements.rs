//! The elements of a frontend, and of what several Services share.

use std::net::IpAddr;

use arcstr::ArcStr;
use smallvec::smallvec;

use super::frontend::{Action, Backend, Frontend, Shared, Slots};
use super::names::{ChainName, Masquerade, Pick, SetName};
use super::ranges::Range;
use super::types::{Data, Element, Key, Value, Verdict};
use crate::model::{FrontendAt, FrontendKey, TrafficPolicy};

/// All elements of a frontend, in a fixed order.
pub fn elements(key: &FrontendKey, frontend: &Frontend) -> Vec<(SetName, Element)> {
    let mut sink = Elements { nodeport: is_node_port(key), key, elements: Vec::new() };
    let verdict = sink.action(&frontend.action);
    let first = match &frontend.allowed_sources {
        None => verdict,
        Some(allowed) => {
            sink.elements.extend(allowed.iter().map(|range| source_element(key, range)));
            sink.verdict(SetName::AfterSourceRanges, verdict, None);
            Verdict::Goto(ChainName::SourceRanges)
        }
    };
    let map = if sink.nodeport { SetName::ServiceNodeports } else { SetName::ServiceIps };
    sink.verdict(map, first, Some(frontend.comment()));
    sink.elements
}

/// An element of a verdict map of a frontend.
pub(super) fn verdict_element(key: &FrontendKey, verdict: Verdict, comment: Option<ArcStr>) -> Element {
    Element { key: element_key(key), key_end: None, data: Data::Verdict(verdict), comment }
}

/// The element of one of a frontend's slots.
pub(super) fn slot_element(key: &FrontendKey, slot: u32, backend: &Backend) -> (SetName, Element) {
    let map = if is_node_port(key) { SetName::NodeportEndpoints } else { SetName::Endpoints };
    let data = Data::Values(smallvec![Value::Address(backend.address), Value::Port(backend.port.get())]);
    (map, Element { key: longer_key(key, Value::Slot(slot)), key_end: None, data, comment: None })
}

/// The element of a range of sources that a frontend allows.
pub(super) fn source_element(key: &FrontendKey, range: &Range) -> (SetName, Element) {
    let with = |address| longer_key(key, Value::Address(address));
    let (key, key_end) = (with(range.first), Some(with(range.last)));
    (SetName::AllowedSources, Element { key, key_end, data: Data::None, comment: None })
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

struct Elements<'a> {
    nodeport: bool,
    key: &'a FrontendKey,
    elements: Vec<(SetName, Element)>,
}

impl Elements<'_> {
    /// Adds what an action needs and returns the verdict that leads to it.
    fn action(&mut self, action: &Action) -> Verdict {
        let nodeport = self.nodeport;
        let pick = |masquerade, sticky, local, slots: &Slots| {
            Verdict::Goto(ChainName::Pick(Pick { nodeport, masquerade, sticky, local, slots: slots.len() as u32 }))
        };
        match action {
            Action::Reject => Verdict::Goto(ChainName::RejectIt),
            Action::Drop => Verdict::Drop,
            Action::Forward { policy, masquerade, affinity, slots } => {
                let local = *policy == TrafficPolicy::Local;
                self.slots(slots, if local { Pick::LOCAL_OFFSET } else { 0 });
                self.affinity(*affinity);
                pick(*masquerade, affinity.is_some(), local, slots)
            }
            Action::Split { affinity, cluster, local } => {
                let sticky = affinity.is_some();
                self.slots(cluster, 0);
                self.slots(local, Pick::LOCAL_OFFSET);
                self.affinity(*affinity);
                let (cluster_map, local_map, chain) = if nodeport {
                    (SetName::NodeportClusterPolicy, SetName::NodeportLocalPolicy, ChainName::NodeportLocal)
                } else {
                    (SetName::ClusterPolicy, SetName::LocalPolicy, ChainName::ExternalLocal)
                };
                self.verdict(cluster_map, pick(Masquerade::Never, sticky, false, cluster), None);
                let outside =
                    if local.is_empty() { Verdict::Drop } else { pick(Masquerade::Never, sticky, true, local) };
                self.verdict(local_map, outside, None);
                Verdict::Goto(chain)
            }
        }
    }

    fn slots(&mut self, slots: &[Backend], offset: u32) {
        self.elements.extend((offset..).zip(slots).map(|(slot, backend)| slot_element(self.key, slot, backend)));
    }

    fn affinity(&mut self, affinity: Option<u32>) {
        let map = if self.nodeport { SetName::NodeportAffinityTimeouts } else { SetName::AffinityTimeouts };
        if let Some(seconds) = affinity {
            self.verdict(map, Verdict::Goto(ChainName::RememberFor(seconds)), None);
        }
    }

    fn verdict(&mut self, map: SetName, verdict: Verdict, comment: Option<ArcStr>) {
        self.elements.push((map, verdict_element(self.key, verdict, comment)));
    }
}
