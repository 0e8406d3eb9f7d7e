//! Services that name their scheduler, behind those of the cluster: TCP and UDP 80, of both families, each with an external IP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use super::api::synthetic;

/// What IPVS is measured with.
pub(crate) const OF_IPVS: [&str; 4] = ["rr", "lc", "sh", "mh"];

/// Schedulers that do not count weights take turns alike in any case.
const WEIGHTS: [&str; 2] = ["1", "3"];

/// A Service with a scheduler.
#[derive(Debug, Clone)]
pub(crate) struct Scheduled {
    pub(crate) scheduler: String,
    /// Its place among them.
    place: u8,
    /// Its number in the cluster.
    index: usize,
    endpoints: usize,
}

impl Scheduled {
    /// One for each of these, in a cluster of so many Services x endpoints.
    pub(crate) fn all(schedulers: &[impl AsRef<str>], services: usize, endpoints: usize) -> Vec<Scheduled> {
        let one = |(place, scheduler): (u8, &_)| Scheduled {
            scheduler: AsRef::<str>::as_ref(scheduler).to_owned(),
            place,
            index: services + usize::from(place),
            endpoints,
        };
        (0..).zip(schedulers).map(one).collect()
    }

    /// What a report calls it.
    pub(crate) fn title(&self) -> String {
        format!("Service by {}", self.scheduler)
    }

    /// Its cluster IP, its external IP, and its cluster IP of IPv6.
    pub(crate) fn addresses(&self) -> [SocketAddr; 3] {
        let place = u16::from(self.place);
        let all: [IpAddr; 3] = [
            synthetic::cluster_ip(self.index).into(),
            Ipv4Addr::new(198, 51, 100, self.place).into(),
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, place).into(),
        ];
        all.map(|address| SocketAddr::new(address, 80))
    }

    /// Its endpoints of IPv4 or IPv6.
    pub(crate) fn endpoints(&self, of_ipv6: bool) -> Vec<IpAddr> {
        let pod = |number: usize| {
            let index = self.index * self.endpoints + number;
            if of_ipv6 {
                let [high, low] = [index >> 16, index & 0xffff].map(|part| u16::try_from(part).expect("two bytes"));
                return Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, high, low).into();
            }
            let address = &synthetic::slice(self.index, self.endpoints)["endpoints"][number]["addresses"][0];
            serde_json::from_value(address.clone()).expect("an address")
        };
        (0..self.endpoints).map(pod).collect()
    }

    /// Its objects. With `wrr`, half of the endpoints have a weight of their own.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let mut service = synthetic::service(self.index);
        let [cluster_ip, external_ip, cluster_ip_v6] = self.addresses().map(|address| address.ip());
        service["metadata"]["annotations"] = json!({"nftproxyd.io/scheduler": self.scheduler});
        service["spec"]["clusterIPs"] = json!([cluster_ip, cluster_ip_v6]);
        service["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        service["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
        service["spec"]["externalIPs"] = json!([external_ip]);
        let ports = |key: &str, port: u16| {
            let port = |(name, protocol)| json!({"name": name, key: port, "protocol": protocol});
            Value::from([("http", "TCP"), ("udp", "UDP")].map(port).to_vec())
        };
        service["spec"]["ports"] = ports("port", 80);
        let slice = |of_ipv6: bool, part: usize, weight: Option<&str>| {
            let mut slice = synthetic::slice(self.index, self.endpoints);
            slice["metadata"]["name"] = json!(format!("scheduled-{}-{of_ipv6}-{part}", self.index));
            slice["addressType"] = json!(if of_ipv6 { "IPv6" } else { "IPv4" });
            slice["ports"] = ports("port", super::network::POD_PORT);
            let endpoints = slice["endpoints"].as_array_mut().expect("a list");
            for (endpoint, address) in endpoints.iter_mut().zip(self.endpoints(of_ipv6)) {
                endpoint["addresses"] = json!([address]);
            }
            if let Some(weight) = weight {
                slice["metadata"]["annotations"] = json!({"nftproxyd.io/weight": weight});
                let all = std::mem::take(slice["endpoints"].as_array_mut().expect("a list"));
                let of_part = all.into_iter().skip(part).step_by(WEIGHTS.len());
                slice["endpoints"] = of_part.collect();
            }
            slice
        };
        let slices = [false, true].into_iter().flat_map(|of_ipv6| {
            if self.scheduler == "wrr" {
                return (0..).zip(WEIGHTS).map(|(part, weight)| slice(of_ipv6, part, Some(weight))).collect();
            }
            vec![slice(of_ipv6, 0, None)]
        });
        [service].into_iter().chain(slices).collect()
    }

    /// What `ipvsadm --restore` reads to make the same: of its cluster IPs, for TCP and UDP.
    pub(crate) fn of_ipvs(&self) -> String {
        let [cluster_ip, _, cluster_ip_v6] = self.addresses();
        let mut text = String::new();
        for (address, endpoints) in [(cluster_ip, self.endpoints(false)), (cluster_ip_v6, self.endpoints(true))] {
            for protocol in ["-t", "-u"] {
                text += &format!("-A {protocol} {address} -s {}\n", self.scheduler);
                for pod in &endpoints {
                    let pod = SocketAddr::new(*pod, super::network::POD_PORT);
                    text += &format!("-a {protocol} {address} -r {pod} -m -w 1\n");
                }
            }
        }
        text
    }
}
