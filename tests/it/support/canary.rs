//! How a test learns that a proxy has done all it was told: a Service that changes last.
//!
//! No knowledge of the proxy's rules is needed: it is in sync when the canary's newest port leads to the canary's
//! newest endpoint, in each IP family of the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::objects::{endpoint_slice, family_name, service};
use super::outcome::Fate;
use super::packet::Protocol;
use super::world::{Probe, World};

/// The namespace of the canary's objects.
pub(crate) const NAMESPACE: &str = "canary";
/// The name of the canary's Service.
pub(crate) const NAME: &str = "sync-canary";
const CLUSTER_IPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 30, 255, 250)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0xf, 0xfffa)),
];
const CLIENTS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 250)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xca, 0, 0, 0, 0, 1))];
const PORT_NAME: &str = "c";

/// The canary of one sync point: generation 1, 2, ...
pub(crate) struct Canary {
    generation: u16,
    /// Places in the tables above.
    families: Vec<usize>,
}

impl Canary {
    /// The canary for the families that the node has.
    pub(crate) fn new(world: &World, generation: u16) -> Canary {
        let families = (0..2).filter(|nth| world.has_family(CLUSTER_IPS[*nth].is_ipv4())).collect();
        Canary { generation, families }
    }

    /// Its Service and slices, with defaults.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let ips: Vec<IpAddr> = self.families.iter().map(|nth| CLUSTER_IPS[*nth]).collect();
        let port = json!({"name": PORT_NAME, "port": self.generation, "protocol": "UDP"});
        let mut objects = vec![service(NAMESPACE, NAME, &ips, &json!({"ports": [port]}))];
        for nth in &self.families {
            let name = format!("{NAME}-{}", family_name(CLUSTER_IPS[*nth])).to_lowercase();
            let endpoints = [(self.endpoint(*nth), "elsewhere")];
            objects.push(endpoint_slice(NAMESPACE, &name, NAME, (PORT_NAME, Protocol::Udp), &endpoints));
        }
        objects
    }

    /// 198.19.0.0/16 and `fd00:198:19::/112`, which scenarios keep away from.
    fn endpoint(&self, family: usize) -> SocketAddr {
        let [high, low] = self.generation.to_be_bytes();
        let ip = if CLUSTER_IPS[family].is_ipv4() {
            Ipv4Addr::new(198, 19, high, low).into()
        } else {
            Ipv6Addr::new(0xfd00, 0x198, 0x19, 0, 0, 0, 0, self.generation).into()
        };
        SocketAddr::new(ip, 9)
    }

    /// Waits until the canary is reached in all families.
    ///
    /// # Errors
    /// Which families it is not reached in, when the time is over or `alive` no more.
    pub(crate) fn wait(
        &self,
        world: &mut World,
        patience: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let end = Instant::now() + patience;
        let mut missing = self.families.clone();
        loop {
            let over = Instant::now() >= end;
            missing.retain(|nth| {
                let destination = SocketAddr::new(CLUSTER_IPS[*nth], self.generation);
                let probe = Probe { clients: vec![CLIENTS[*nth]], protocol: Protocol::Udp, destination };
                let fate = world.probe_once(&probe, Duration::from_millis(5));
                !matches!(fate, Fate::Forward { endpoint, .. } if endpoint == self.endpoint(*nth))
            });
            let names: Vec<&str> = missing.iter().map(|nth| family_name(CLUSTER_IPS[*nth])).collect();
            if missing.is_empty() {
                return Ok(());
            } else if !alive() {
                return Err("the proxy has ended".to_owned());
            } else if over {
                return Err(format!("not in sync after {patience:?}: {}", names.join(" and ")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
