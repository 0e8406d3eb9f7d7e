//! What the cluster holds right now, and which Services an event concerns.
//!
//! The store is a pure function of the last version of each object: neither the order of events of different objects
//! nor relists leave a trace. An event costs what its own object costs, whatever the number of Services; the end of a
//! list costs a walk over what is known of that kind.
//!
//! Texts are held once: the name of a Service is shared by its slices, and that of a slice by the index.

mod lists;

use std::collections::BTreeMap;

use arcstr::ArcStr;
use ipnet::IpNet;
use smallvec::SmallVec;

use self::lists::{ListNumber, Lists};
use super::faults::Faults;
use super::{Event, Family, Kind, Node, ObjectName, Service, ServiceCidr, Slice, policy};
use crate::keyed::{Keyed, KeyedTable};

/// What an event changed. Nothing at all for an object that is identical to the stored one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Services to be looked at again, sorted, each once: they came, changed or went, or one of their slices did.
    pub services: Vec<ObjectName>,
    /// Those of them that came, changed or went themselves, sorted, with what they were before.
    pub redefined: Vec<(ObjectName, Option<Service>)>,
    /// The Services, and the families, of which a slice changed in what [`policy::serving`] says of UDP ports: flows may
    /// be stale although their rules stay as they are. Sorted, each once.
    pub udp_serving: Vec<(ObjectName, Family)>,
    /// The zone of the node changed: every Service has to be looked at again.
    pub all_services: bool,
    /// The ServiceCIDRs changed.
    pub service_cidrs: bool,
    /// Anything of the Node changed.
    pub node: bool,
    /// With this event every kind has been listed; true once in the life of a store.
    pub ready: bool,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// Slices changed.
    fn of(mut slices: SliceChanges) -> Self {
        slices.sort_unstable();
        let mut services: Vec<ObjectName> = slices.iter().map(|change| change.service.clone()).collect();
        services.dedup();
        let udp = slices.into_iter().filter(|change| change.udp).map(|change| (change.service, change.family));
        let mut udp_serving: Vec<(ObjectName, Family)> = udp.collect();
        udp_serving.dedup();
        Changes { services, udp_serving, ..Changes::default() }
    }

    /// `redefined` must be sorted.
    fn redefining(redefined: Vec<(ObjectName, Option<Service>)>) -> Self {
        let services = redefined.iter().map(|(name, _)| name.clone()).collect();
        Changes { services, redefined, ..Changes::default() }
    }
}

/// Nearly always what one slice was and is.
type SliceChanges = SmallVec<[SliceChange; 2]>;

/// A slice changed, in what was or is its Service and its family.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SliceChange {
    service: ObjectName,
    family: Family,
    /// Whether other endpoints of UDP ports may serve now.
    udp: bool,
}

impl SliceChange {
    fn new(before: Option<&Slice>, after: Option<&Slice>) -> impl Iterator<Item = SliceChange> {
        let udp = !policy::serve_udp_alike(before, after);
        let change = move |slice: &Slice| SliceChange { service: slice.service.clone(), family: slice.family, udp };
        [before.map(change), after.map(change)].into_iter().flatten()
    }
}

/// Everything that is known about the cluster.
#[derive(Debug, Default)]
pub struct Store {
    /// Never a group without Service and slices.
    groups: KeyedTable<Group>,
    /// Which group a slice is in.
    slices: KeyedTable<Filed>,
    node: Option<(Node, ListNumber)>,
    service_cidrs: BTreeMap<ArcStr, (ServiceCidr, ListNumber)>,
    faults: Faults,
    lists: Lists,
}

/// A Service and its slices, whichever came first.
#[derive(Debug)]
struct Group {
    /// Of the Service.
    name: ObjectName,
    service: Option<(Service, ListNumber)>,
    /// Sorted by name. Most Services have one.
    slices: SmallVec<[Slice; 1]>,
}

/// Where a slice is.
#[derive(Debug)]
struct Filed {
    /// Of the slice.
    name: ObjectName,
    service: ObjectName,
    list: ListNumber,
}

impl Keyed for Group {
    type Key = ObjectName;

    fn key(&self) -> &ObjectName {
        &self.name
    }
}

impl Keyed for Filed {
    type Key = ObjectName;

    fn key(&self) -> &ObjectName {
        &self.name
    }
}

impl Store {
    /// Takes in an event. [`Event::Rejects`] changes no Service, only [`Store::faults`].
    pub fn apply(&mut self, event: Event) -> Changes {
        match event {
            Event::ListStarted(kind) => {
                self.lists.list_started(kind);
                Changes::default()
            }
            Event::ListDone(kind) => self.list_done(kind),
            Event::Service(service) => self.put_service(service),
            Event::ServiceGone(name) => {
                let gone = self.remove_service(&name);
                Changes::redefining(gone.map(|service| (name, Some(service))).into_iter().collect())
            }
            Event::Slice { slice, .. } => self.put_slice(slice),
            Event::SliceGone(name) => {
                let gone = self.remove_slice(&name);
                Changes::of(SliceChange::new(gone.as_ref(), None).collect())
            }
            Event::Node(node) => self.set_node(Some(node)),
            Event::NodeGone => self.set_node(None),
            Event::ServiceCidr(cidr) => self.put_service_cidr(cidr),
            Event::ServiceCidrGone(name) => {
                Changes { service_cidrs: self.service_cidrs.remove(&name).is_some(), ..Changes::default() }
            }
            Event::Rejects { object, rejects } => {
                self.faults.note(object, rejects);
                Changes::default()
            }
        }
    }

    /// Whether every kind has been listed once: before that, what is missing here may well exist.
    pub fn complete(&self) -> bool {
        self.lists.awaited().is_empty()
    }

    /// The kinds that have not been listed yet.
    pub fn awaited(&self) -> Vec<Kind> {
        self.lists.awaited()
    }

    /// What could not be used of objects and files.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// A Service, if there is one of this name that is to be proxied.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.groups.get(name)?.service.as_ref().map(|(service, _)| service)
    }

    /// The slices of a Service, of both families, sorted by name; also if the Service is not known (yet).
    pub fn slices(&self, service: &ObjectName) -> &[Slice] {
        self.groups.get(service).map_or(&[], |group| &group.slices)
    }

    /// The Service of a slice, if there is one of this name.
    pub fn service_of(&self, slice: &ObjectName) -> Option<&ObjectName> {
        self.slices.get(slice).map(|filed| &filed.service)
    }

    /// All Services, in no order. For the cold start, the resync, and a change of the zone or of a ServiceCIDR; never in
    /// the path of a change of one Service.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.groups.iter_unordered().filter_map(|group| group.service.as_ref()).map(|(service, _)| service)
    }

    /// This node's Node.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref().map(|(node, _)| node)
    }

    /// The zone that this node is in.
    pub fn zone(&self) -> Option<&str> {
        self.node()?.zone.as_deref()
    }

    /// All ServiceCIDRs, by name.
    pub fn service_cidr_objects(&self) -> impl Iterator<Item = &ServiceCidr> {
        self.service_cidrs.values().map(|(object, _)| object)
    }

    /// The union of all ServiceCIDRs of a family: sorted ranges that neither overlap nor touch.
    pub fn service_cidrs(&self, family: Family) -> Vec<IpNet> {
        let ranges = self.service_cidrs.values().flat_map(|(object, _)| &object.cidrs);
        let ranges: Vec<IpNet> = ranges.filter(|range| Family::of(range.addr()) == family).copied().collect();
        let mut merged = IpNet::aggregate(&ranges);
        merged.sort_unstable();
        merged
    }

    fn put_service(&mut self, mut service: Service) -> Changes {
        let list = self.lists.now(Kind::Service);
        let group = self.group(&service.name);
        // The text of the name that the group's slices share already.
        service.name = group.name.clone();
        let before = match &mut group.service {
            Some((known, stamp)) if *known == service => {
                *stamp = list;
                return Changes::default();
            }
            known => known.replace((service, list)).map(|(before, _)| before),
        };
        Changes::redefining(vec![(group.name.clone(), before)])
    }

    /// The group of a Service, empty if nothing is known of it.
    fn group(&mut self, service: &ObjectName) -> &mut Group {
        let empty = || Group { name: service.clone(), service: None, slices: SmallVec::new() };
        self.groups.get_or_insert_with(service, empty)
    }

    /// Returns what was removed.
    fn remove_service(&mut self, name: &ObjectName) -> Option<Service> {
        let (service, _) = self.groups.get_mut(name)?.service.take()?;
        self.drop_if_empty(name);
        Some(service)
    }

    fn put_slice(&mut self, mut slice: Slice) -> Changes {
        let list = self.lists.now(Kind::EndpointSlice);
        // Its Service is another one than before: the old one loses it.
        let moved = self.slices.get(&slice.name).is_some_and(|filed| filed.service != slice.service);
        let left = if moved { self.remove_slice(&slice.name) } else { None };

        // The texts of the names that are kept already.
        let service = self.group(&slice.service).name.clone();
        let new = || Filed { name: slice.name.clone(), service: service.clone(), list };
        let filed = self.slices.get_or_insert_with(&slice.name, new);
        filed.list = list;
        slice.name = filed.name.clone();
        slice.service = service.clone();

        let group = self.group(&service);
        let changed: SliceChanges = match group.position(&slice.name) {
            Ok(at) if group.slices[at].serves_as(&slice) => {
                group.slices[at].places = slice.places;
                return Changes::default();
            }
            Ok(at) => {
                let changed = SliceChange::new(Some(&group.slices[at]), Some(&slice)).collect();
                group.slices[at] = slice;
                changed
            }
            Err(at) => {
                let changed = SliceChange::new(None, Some(&slice)).collect();
                group.slices.reserve_exact(1);
                group.slices.insert(at, slice);
                changed
            }
        };
        Changes::of(SliceChange::new(left.as_ref(), None).chain(changed).collect())
    }

    /// Returns what was removed.
    fn remove_slice(&mut self, name: &ObjectName) -> Option<Slice> {
        let service = self.slices.remove(name)?.service;
        let group = self.groups.get_mut(&service)?;
        let slice = group.position(name).ok().map(|at| group.slices.remove(at));
        self.drop_if_empty(&service);
        slice
    }

    fn drop_if_empty(&mut self, service: &ObjectName) {
        if self.groups.get(service).is_some_and(|group| group.service.is_none() && group.slices.is_empty()) {
            self.groups.remove(service);
        }
    }

    fn set_node(&mut self, node: Option<Node>) -> Changes {
        let changes = Changes {
            node: node.as_ref() != self.node(),
            all_services: node.as_ref().and_then(|node| node.zone.as_deref()) != self.zone(),
            ..Changes::default()
        };
        self.node = node.map(|node| (node, self.lists.now(Kind::Node)));
        changes
    }

    fn put_service_cidr(&mut self, cidr: ServiceCidr) -> Changes {
        let list = self.lists.now(Kind::ServiceCidr);
        let name = ArcStr::clone(&cidr.name);
        let same = self.service_cidrs.get(&name).is_some_and(|(known, _)| *known == cidr);
        self.service_cidrs.insert(name, (cidr, list));
        Changes { service_cidrs: !same, ..Changes::default() }
    }

    /// What did not come in the list that ends is gone.
    fn list_done(&mut self, kind: Kind) -> Changes {
        let list = self.lists.now(kind);
        let mut changes = match kind {
            Kind::Service => {
                let services = self.groups.iter_unordered().filter_map(|group| group.service.as_ref());
                let gone = services.filter(|(_, stamp)| *stamp != list).map(|(service, _)| service.name.clone());
                let mut gone: Vec<ObjectName> = gone.collect();
                gone.sort_unstable();
                let redefined = gone.into_iter().map(|name| {
                    let before = self.remove_service(&name);
                    (name, before)
                });
                Changes::redefining(redefined.collect())
            }
            Kind::EndpointSlice => {
                let gone = self.slices.iter_unordered().filter(|filed| filed.list != list);
                let gone: Vec<ObjectName> = gone.map(|filed| filed.name.clone()).collect();
                let gone = gone.iter().filter_map(|name| self.remove_slice(name));
                Changes::of(
                    gone.flat_map(|slice| SliceChange::new(Some(&slice), None).collect::<SliceChanges>()).collect(),
                )
            }
            Kind::Node if self.node.as_ref().is_some_and(|(_, stamp)| *stamp != list) => self.set_node(None),
            Kind::Node => Changes::default(),
            Kind::ServiceCidr => {
                let before = self.service_cidrs.len();
                self.service_cidrs.retain(|_, (_, stamp)| *stamp == list);
                Changes { service_cidrs: self.service_cidrs.len() != before, ..Changes::default() }
            }
        };
        changes.ready = self.lists.list_done(kind);
        changes
    }
}

impl Group {
    /// Where a slice is, or belongs.
    fn position(&self, name: &ObjectName) -> Result<usize, usize> {
        self.slices.binary_search_by(|slice| slice.name.cmp(name))
    }
}

#[cfg(test)]
mod tests;
