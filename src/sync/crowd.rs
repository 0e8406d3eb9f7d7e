//! Says of which Services endpoints are left out, because a frontend has room for so many.

use std::collections::BTreeSet;

use tracing::{info, warn};

use crate::model::{Family, ObjectName};
use crate::ruleset::names::Pick;

/// The Services that were said to have too many endpoints in a family.
#[derive(Debug, Default)]
pub(super) struct Crowded(BTreeSet<ObjectName>);

impl Crowded {
    /// A Service was looked at: this many of its endpoints are left out. Said once, and when it is over.
    pub(super) fn note(&mut self, family: Family, service: &ObjectName, left_out: usize) {
        if left_out > 0 && self.0.insert(service.clone()) {
            warn!(
                "Service {service}: {left_out} of its {family} endpoints get no connections: there is room for {}; spread \
                 them over several Services",
                Pick::MOST_SLOTS
            );
        } else if left_out == 0 && self.0.remove(service) {
            info!("Service {service}: no {family} endpoint is left out any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::addresses::NodePortAddresses;
    use crate::config::DetectLocal;
    use crate::model::{
        Conditions, Endpoint, Event, Kind, PerFamily, Protocol, Scheduler, Service, ServicePort, Slice, SlicePort,
    };
    use crate::nftables::in_memory::InMemoryKernel;
    use crate::ruleset::names::TableName;
    use crate::sync::{Engine, Facts};
    use crate::testing::log::captured;

    /// A Service, and its slice with so many endpoints.
    fn service(endpoints: u32) -> [Event; 2] {
        let name = ObjectName::new("shop", "web").expect("a name");
        let port = NonZeroU16::MIN;
        let conditions = Conditions { ready: true, serving: true, terminating: false, local: false };
        let endpoint =
            |index: u32| Endpoint { address: (0x0a80_0000 + index).to_be_bytes().into(), conditions, hints: None };
        let service = Service {
            name: name.clone(),
            cluster_ips: PerFamily { v4: Some([10, 96, 0, 1].into()), v6: None },
            ports: [ServicePort { name: "".into(), protocol: Protocol::Tcp, port, node_port: None }].into(),
            external_ips: [].into(),
            load_balancer_ips: [].into(),
            has_external_ips: PerFamily::default(),
            source_ranges: None,
            ranges_everywhere: false,
            internal_policy: Default::default(),
            external_policy: Default::default(),
            affinity: None,
            scheduler: None,
            maglev_size: None,
            ping: None,
            accounting: false,
            reset_connections: false,
            health_check_node_port: None,
            created: 0,
        };
        let slice = Slice {
            name: name.clone(),
            service: name,
            family: Family::V4,
            ports: [SlicePort { name: "".into(), protocol: Protocol::Tcp, port }].into(),
            weight: 1,
            endpoints: (0..endpoints).map(endpoint).collect(),
            places: Default::default(),
        };
        [Event::Service(service), slice.into()]
    }

    #[test]
    fn endpoints_for_which_there_is_no_room_are_told_of() {
        let facts = Facts {
            table: TableName::NODE,
            detect_local: DetectLocal::NodeCidr,
            node_ports: NodePortAddresses::All,
            masquerade_bit: 14,
            masquerade_all: false,
            node_ips: PerFamily::default(),
            scheduler: Scheduler::Random,
            hashes: true,
            counters: false,
            ping: false,
            longest_retry: Duration::from_secs(1),
        };
        let mut engine = Engine::new(InMemoryKernel::recorder(), facts);
        Kind::ALL.into_iter().for_each(|kind| engine.apply(Event::ListStarted(kind)));
        Kind::ALL.into_iter().for_each(|kind| engine.apply(Event::ListDone(kind)));
        let mut said = |endpoints| {
            service(endpoints).into_iter().for_each(|event| engine.apply(event));
            captured(|| assert_eq!(engine.sync(Instant::now()).failures, 0))
        };
        assert!(said(65_540).contains("Service shop/web: 5 of its IPv4 endpoints get no connections"));
        assert!(!said(65_541).contains("shop/web"));
        assert!(said(65_535).contains("Service shop/web: no IPv4 endpoint is left out any more"));
    }

    #[test]
    fn it_is_said_once_and_when_it_is_over() {
        let mut crowded = Crowded::default();
        let [a, b] = ["a", "b"].map(|name| ObjectName::new("shop", name).expect("a name"));
        let mut said = |service, left_out| captured(|| crowded.note(Family::V4, service, left_out));
        assert_eq!(said(&a, 0), "");
        let line = said(&a, 4464);
        assert!(
            line.contains("Service shop/a: 4464 of its IPv4 endpoints get no connections: there is room for 65535"),
            "{line}"
        );
        assert_eq!(said(&a, 4465), "", "more of the same");
        assert!(said(&b, 1).contains("Service shop/b: 1 of"));
        assert!(said(&a, 0).contains("Service shop/a: no IPv4 endpoint is left out any more"));
        assert_eq!(said(&a, 0), "");
        assert!(said(&a, 1).contains("WARN"), "again");
    }
}
