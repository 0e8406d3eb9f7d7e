//! What the tests of both sources share: the conversion, and a picture of what events add up to.

#![expect(unreachable_pub, reason = "for the other modules of this test binary")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nftproxyd::model::{Event, Family, Kind, Reject};
use nftproxyd::source::convert::{Converter, Options};
use tokio::sync::mpsc::Receiver;

/// Generous: it only decides how long a failing test takes.
pub const DEADLINE: Duration = Duration::from_secs(20);
pub const NODE: &str = "worker-a";

/// The conversion that a daemon on the node [`NODE`] uses.
pub fn converter() -> Arc<Converter> {
    Arc::new(Converter::new(Options {
        node_name: NODE.to_owned(),
        allow_external_ips: false,
        service_proxy_name: None,
    }))
}

/// What events add up to.
#[derive(Debug, Default)]
pub struct Picture {
    /// Services by `namespace/name`, with their cluster IP.
    pub services: BTreeMap<String, String>,
    /// Slices by `namespace/name`, with the number of their endpoints.
    pub slices: BTreeMap<String, usize>,
    /// The zone of this node.
    pub node: Option<Option<String>>,
    pub service_cidrs: BTreeSet<String>,
    /// What is wrong with what, as `field: reason`.
    pub rejects: BTreeMap<String, Vec<String>>,
    /// How often a Service was said to be there.
    pub service_events: usize,
    /// Everything that was said to be gone, one by one, in that order.
    pub gone: Vec<String>,
    /// How many lists of each kind were completed.
    pub lists: BTreeMap<Kind, usize>,
    /// Names that came in the list of each kind that is under way.
    listing: BTreeMap<Kind, BTreeSet<String>>,
}

impl Picture {
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::ListStarted(kind) => {
                self.listing.insert(kind, BTreeSet::new());
            }
            Event::ListDone(kind) => self.list_done(kind),
            Event::Service(service) => {
                let name = service.name.as_str().to_owned();
                self.came(Kind::Service, &name);
                self.service_events += 1;
                let address = Family::ALL.into_iter().find_map(|family| service.cluster_ips[family]);
                self.services.insert(name, address.map(|address| address.to_string()).unwrap_or_default());
            }
            Event::ServiceGone(name) => {
                self.services.remove(name.as_str());
                self.gone.push(name.to_string());
            }
            Event::Slice { slice, .. } => {
                let name = slice.name.as_str().to_owned();
                self.came(Kind::EndpointSlice, &name);
                self.slices.insert(name, slice.endpoints.len());
            }
            Event::SliceGone(name) => drop(self.slices.remove(name.as_str())),
            Event::Node(node) => {
                self.came(Kind::Node, NODE);
                self.node = Some(node.zone.map(|zone| zone.to_string()));
            }
            Event::NodeGone => self.node = None,
            Event::ServiceCidr(cidr) => {
                self.came(Kind::ServiceCidr, &cidr.name);
                self.service_cidrs.insert(cidr.name.to_string());
            }
            Event::ServiceCidrGone(name) => drop(self.service_cidrs.remove(&*name)),
            Event::Rejects { object, rejects } if rejects.is_empty() => {
                assert!(self.rejects.remove(&object.to_string()).is_some(), "{object} had no report to withdraw");
            }
            Event::Rejects { object, rejects } => {
                self.rejects.insert(object.to_string(), rejects.iter().map(Reject::to_string).collect());
            }
        }
    }

    fn came(&mut self, kind: Kind, name: &str) {
        if let Some(names) = self.listing.get_mut(&kind) {
            names.insert(name.to_owned());
        }
    }

    fn list_done(&mut self, kind: Kind) {
        let came = self.listing.remove(&kind).expect("a list that is done had begun");
        match kind {
            Kind::Service => self.services.retain(|name, _| came.contains(name)),
            Kind::EndpointSlice => self.slices.retain(|name, _| came.contains(name)),
            Kind::Node if came.is_empty() => self.node = None,
            Kind::Node => {}
            Kind::ServiceCidr => self.service_cidrs.retain(|name| came.contains(name)),
        }
        *self.lists.entry(kind).or_default() += 1;
    }

    /// Applies events until `done`.
    pub async fn until(&mut self, events: &mut Receiver<Event>, what: &str, done: impl Fn(&Picture) -> bool) {
        let wait = async {
            while !done(self) {
                let event = events.recv().await.unwrap_or_else(|| panic!("{what}: the source ended"));
                self.apply(event);
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            panic!("{what}: not within {DEADLINE:?}: {self:#?}");
        }
    }

    /// Whether every kind has been listed.
    pub fn listed(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.lists.contains_key(kind))
    }
}
