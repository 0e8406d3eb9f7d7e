//! Which sockets are wanted, and what is behind each: values in, values out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, PerFamily, Protocol, ServicePortName};

/// What is behind a node port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Whose it is.
    pub port: ServicePortName,
    /// The cluster IP and port of the Service: the way where no address of the node accepts node ports.
    pub cluster_ip: Option<SocketAddr>,
    /// The endpoints that the node's own connections may use, as they are installed; none where they are refused or dropped.
    /// Sorted, without duplicates.
    pub endpoints: Box<[SocketAddr]>,
}

/// Where connections to a node port go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// An address that the tables translate; `None` where there is none.
    pub(super) to: Option<SocketAddr>,
    /// What is behind it.
    pub(super) served: Arc<Served>,
}

/// The sockets that are wanted.
///
/// Invariant: a port is in `wanted` if and only if it is in the list of the Service that it names, and its family is on.
#[derive(Debug, Default)]
pub(super) struct Plan {
    on: PerFamily<bool>,
    /// The address of the node that accepts node ports.
    nodes: PerFamily<Option<IpAddr>>,
    wanted: BTreeMap<FrontendKey, Arc<Served>>,
    services: BTreeMap<ObjectName, Vec<FrontendKey>>,
    /// Whether it is to be listened on has changed since this was last taken.
    changed: BTreeSet<FrontendKey>,
}

impl Plan {
    /// The families in which anything is listened on.
    pub(super) fn on(&self) -> PerFamily<bool> {
        self.on
    }

    /// Listens in these families from now on. Of one that is off all is forgotten: that goes through all node ports, when
    /// the configuration has changed.
    pub(super) fn switch(&mut self, on: PerFamily<bool>) {
        self.on = on;
        let (wanted, changed) = (&mut self.wanted, &mut self.changed);
        self.services.retain(|_, keys| {
            keys.retain(|key| {
                let stays = on[key.family()];
                if !stays {
                    wanted.remove(key);
                    changed.insert(*key);
                }
                stays
            });
            !keys.is_empty()
        });
    }

    /// Connections go to these addresses of the node from now on.
    pub(super) fn lead_to(&mut self, nodes: PerFamily<Option<IpAddr>>) {
        self.nodes = nodes;
    }

    /// A Service has these node ports now, and no others. Costs what it has.
    pub(super) fn serve(&mut self, service: &ObjectName, ports: impl IntoIterator<Item = (FrontendKey, Served)>) {
        let before = self.services.remove(service).unwrap_or_default();
        let mut keys = Vec::new();
        for (key, served) in ports {
            if self.on[key.family()] {
                keys.push(key);
                if self.wanted.insert(key, Arc::new(served)).is_none() {
                    self.changed.insert(key);
                }
            }
        }
        for key in before.into_iter().filter(|key| !keys.contains(key)) {
            // Another Service may have it by now.
            if self.wanted.get(&key).is_some_and(|served| served.port.service == *service) {
                self.wanted.remove(&key);
                self.changed.insert(key);
            }
        }
        if !keys.is_empty() {
            self.services.insert(service.clone(), keys);
        }
    }

    /// Some ports of which it may have changed whether they are to be listened on, and whether they are; at most so many.
    pub(super) fn changes(&mut self, most: usize) -> Vec<(FrontendKey, bool)> {
        let mut changes = Vec::new();
        while changes.len() < most
            && let Some(key) = self.changed.pop_first()
        {
            changes.push((key, self.wanted.contains_key(&key)));
        }
        changes
    }

    /// Where connections to a port go; `None` of one that is not wanted.
    pub(super) fn way(&self, key: &FrontendKey) -> Option<Way> {
        let served = Arc::clone(self.wanted.get(key)?);
        let node = self.nodes[key.family()].map(|node| SocketAddr::new(node, key.port.get()));
        Some(Way { to: node.or(served.cluster_ip), served })
    }
}

/// Where a node port is listened on: the one address of loopback that all programs know.
pub(super) fn address(key: &FrontendKey) -> SocketAddr {
    let ip = match key.family() {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, key.port.get())
}

/// The name of a port's socket with the service manager: `tcp4-30080`.
pub(super) fn name(key: &FrontendKey) -> String {
    let family = match key.family() {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    format!("{}{family}-{}", key.protocol, key.port)
}

/// The port whose socket has this name.
pub(super) fn named(name: &str) -> Option<FrontendKey> {
    let (kind, port) = name.split_once('-')?;
    let (protocol, family) = kind.split_at_checked(kind.len().checked_sub(1)?)?;
    let family = match family {
        "4" => Family::V4,
        "6" => Family::V6,
        _ => return None,
    };
    let protocol = Protocol::from_name(protocol)?;
    let port = NonZeroU16::new(port.parse().ok()?)?;
    Some(FrontendKey { at: FrontendAt::NodePort(family), protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> FrontendKey {
        named(text).expect("a name")
    }

    fn service(name: &str) -> ObjectName {
        ObjectName::new("shop", name).expect("a name")
    }

    fn of(name: &str, ports: &[&str]) -> (ObjectName, Vec<(FrontendKey, Served)>) {
        let service = service(name);
        let served = |key: FrontendKey| Served {
            port: ServicePortName { service: service.clone(), port: "http".into(), protocol: key.protocol },
            cluster_ip: Some("172.30.0.1:80".parse().expect("an address and a port")),
            endpoints: Box::new([]),
        };
        let ports = ports.iter().map(|port| (key(port), served(key(port)))).collect();
        (service, ports)
    }

    fn serve(plan: &mut Plan, name: &str, ports: &[&str]) {
        let (service, ports) = of(name, ports);
        plan.serve(&service, ports);
    }

    /// What has changed, as `+tcp4-1 -tcp4-2`.
    fn changes(plan: &mut Plan) -> String {
        let sign = |wanted| if wanted { '+' } else { '-' };
        let changes = plan.changes(usize::MAX).into_iter();
        changes.map(|(key, wanted)| format!("{}{}", sign(wanted), name(&key))).collect::<Vec<_>>().join(" ")
    }

    const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

    #[test]
    fn names_are_read_back() {
        for text in ["tcp4-30080", "udp6-1", "sctp4-65535"] {
            assert_eq!(name(&key(text)), text);
        }
        for text in ["", "-", "4-1", "tcp4", "tcp5-1", "icmp4-1", "tcp4-0", "tcp4-65536", "tcp4-1-2", "tcpé-1"] {
            assert_eq!(named(text), None, "{text}");
        }
        assert_eq!(address(&key("udp6-53")).to_string(), "[::1]:53");
        assert_eq!(address(&key("tcp4-53")).to_string(), "127.0.0.1:53");
    }

    #[test]
    fn nothing_is_wanted_where_it_is_off() {
        let mut plan = Plan::default();
        serve(&mut plan, "a", &["tcp4-1", "tcp6-1"]);
        assert_eq!(changes(&mut plan), "");
        plan.switch(PerFamily { v4: false, v6: true });
        serve(&mut plan, "a", &["tcp4-1", "tcp6-1"]);
        assert_eq!(changes(&mut plan), "+tcp6-1");
        assert!(plan.way(&key("tcp4-1")).is_none());
        plan.switch(PerFamily::default());
        assert_eq!(changes(&mut plan), "-tcp6-1");
        assert!(plan.services.is_empty() && plan.wanted.is_empty());
    }

    #[test]
    fn sockets_follow_the_ports_of_a_service() {
        let mut plan = Plan::default();
        plan.switch(BOTH);
        serve(&mut plan, "a", &["tcp4-1", "udp4-1", "tcp6-1"]);
        assert_eq!(plan.changes(2).len(), 2, "no more than are asked for");
        assert_eq!(plan.changes(2).len(), 1);
        serve(&mut plan, "a", &["tcp4-1", "udp4-2"]);
        assert_eq!(changes(&mut plan), "+udp4-2 -udp4-1 -tcp6-1".replace("+udp4-2 -udp4-1", "-udp4-1 +udp4-2"));
        serve(&mut plan, "a", &["tcp4-1", "udp4-2"]);
        assert_eq!(changes(&mut plan), "", "nothing new");
        serve(&mut plan, "a", &[]);
        assert_eq!(changes(&mut plan), "-tcp4-1 -udp4-2");
        assert!(plan.services.is_empty() && plan.wanted.is_empty());
    }

    #[test]
    fn a_port_that_another_service_has_taken_stays() {
        for later_loses in [true, false] {
            let mut plan = Plan::default();
            plan.switch(BOTH);
            serve(&mut plan, "a", &["tcp4-1"]);
            changes(&mut plan);
            let steps: [(&str, &[&str]); 2] = [("b", &["tcp4-1"]), ("a", &[])];
            let order = if later_loses { [0, 1] } else { [1, 0] };
            order.into_iter().for_each(|step| serve(&mut plan, steps[step].0, steps[step].1));
            assert_eq!(plan.way(&key("tcp4-1")).expect("it is wanted").served.port.service, service("b"));
            assert!(plan.changes(9).iter().all(|(_, wanted)| *wanted));
        }
    }

    #[test]
    fn connections_go_to_the_node_and_else_to_the_cluster_ip() {
        let mut plan = Plan::default();
        plan.switch(BOTH);
        serve(&mut plan, "a", &["tcp4-30080", "tcp6-30080"]);
        plan.lead_to(PerFamily { v4: Some("192.0.2.1".parse().expect("an IP")), v6: None });
        let to = |text| plan.way(&key(text)).expect("it is wanted").to.map(|to| to.to_string());
        assert_eq!(to("tcp4-30080").as_deref(), Some("192.0.2.1:30080"));
        assert_eq!(to("tcp6-30080").as_deref(), Some("172.30.0.1:80"));
    }
}
