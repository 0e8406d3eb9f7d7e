//! What the tests of both sources share: a simple conversion, and a picture of what events add up to.

#![expect(unreachable_pub, reason = "for the other modules of this test binary")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arcstr::ArcStr;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nftproxyd::model::{
    Event, Family, Kind, Node, ObjectName, PerFamily, Reject, Service, ServiceCidr, ServicePort, Slice, TrafficPolicy,
};
use nftproxyd::source::Convert;
use tokio::sync::mpsc::Receiver;

/// Generous: it only decides how long a failing test takes.
pub const DEADLINE: Duration = Duration::from_secs(20);
pub const NODE: &str = "worker-a";

/// Converts as little as tells objects apart: the cluster IP of a Service, the number of endpoints of a slice.
#[derive(Default)]
pub struct Plain {
    /// How many Services were converted.
    pub services: AtomicUsize,
}

fn object_name(metadata: &ObjectMeta) -> ObjectName {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    ObjectName::new(&text(&metadata.namespace), &text(&metadata.name)).expect("sources pass on named objects only")
}

impl Convert for Plain {
    fn service(&self, service: &core::Service) -> Vec<Event> {
        self.services.fetch_add(1, Ordering::Relaxed);
        let name = object_name(&service.metadata);
        let spec = service.spec.clone().unwrap_or_default();
        let Some(Ok(address)) = spec.cluster_ip.as_ref().map(|address| address.parse()) else {
            return vec![Event::ServiceGone(name)];
        };
        let mut cluster_ips = PerFamily::default();
        cluster_ips[Family::of(address)] = Some(address);
        let rejects = spec.external_ips.unwrap_or_default().into_iter().enumerate().map(|(index, address)| Reject {
            field: format!("spec.externalIPs[{index}]"),
            reason: format!("{address}: not wanted"),
        });
        let rejects = Event::Rejects { object: format!("Service {name}"), rejects: rejects.collect() };
        let service = Service {
            name,
            cluster_ips,
            ports: Box::<[ServicePort]>::default(),
            external_ips: Box::default(),
            load_balancer_ips: Box::default(),
            has_external_ips: PerFamily::default(),
            source_ranges: Box::default(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
            created: i64::MAX,
        };
        vec![Event::Service(service), rejects]
    }

    fn slice(&self, slice: &EndpointSlice) -> Vec<Event> {
        let name = object_name(&slice.metadata);
        let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
            Some(nftproxyd::model::Endpoint {
                address: endpoint.addresses.first()?.parse().ok()?,
                conditions: nftproxyd::model::Conditions {
                    ready: true,
                    serving: true,
                    terminating: false,
                    local: endpoint.node_name.as_deref() == Some(NODE),
                },
                hints: None,
            })
        });
        let endpoints = endpoints.collect();
        let ports = Box::default();
        vec![Slice { service: name.clone(), name, family: Family::V4, ports, endpoints }.into()]
    }

    fn node(&self, node: &core::Node) -> Vec<Event> {
        let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get("topology.kubernetes.io/zone"));
        vec![Event::Node(Node { zone: zone.map(|zone| zone.as_str().into()), ..Node::default() })]
    }

    fn service_cidr(&self, cidr: &ServiceCIDR) -> Vec<Event> {
        let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        let cidrs = cidrs.map(|cidr| cidr.parse().expect("valid in these tests")).collect();
        let name: ArcStr = cidr.metadata.name.as_deref().unwrap_or_default().into();
        vec![Event::ServiceCidr(ServiceCidr { name, cidrs })]
    }
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
                assert!(self.rejects.remove(&object).is_some(), "{object} had no report to withdraw");
            }
            Event::Rejects { object, rejects } => {
                self.rejects.insert(object, rejects.iter().map(Reject::to_string).collect());
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
