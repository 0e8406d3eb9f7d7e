//! Where the rules of a node come from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::api::{Api, synthetic};
use super::netns::{fed, ip, set_sysctl};
use super::network::{NODE, Network, POD_PORT, PODS, PODS_V6};
use super::scheduled::{OF_IPVS, Scheduled};

/// Who writes them.
pub(crate) enum Rules {
    /// Nobody, but connections are tracked.
    Tracking,
    /// A build of this project's daemon.
    Nftproxyd(PathBuf),
    /// The same, and its frontends count their connections.
    Counting(PathBuf),
    /// The same, and it serves node ports on localhost.
    Localhost(PathBuf),
    /// A build of kube-proxy, in this mode.
    KubeProxy(PathBuf, String),
    /// A file for `nft -f`, which need not have all of the Services.
    File(PathBuf),
    /// `ipvsadm`, and connections are tracked.
    Ipvs,
}

/// What there is to serve.
pub(crate) struct Cluster {
    pub(crate) services: usize,
    pub(crate) endpoints: usize,
    /// Schedulers of Services that name theirs, besides.
    pub(crate) schedulers: Vec<String>,
    /// Whether a proxy is told which addresses are pods'.
    pub(crate) knows_pods: bool,
}

/// Where to: its name, and the address for TCP.
pub(crate) type Destination = (String, SocketAddr);

/// A program at work, if any. It ends when this is dropped.
pub(crate) struct Running {
    process: Option<(Child, Api, tempfile::TempDir)>,
}

impl Rules {
    /// What of a cluster can be reached with it, and where.
    pub(crate) fn destinations(&self, cluster: &Cluster) -> Vec<Destination> {
        let services = cluster.services;
        let mut all = vec![("straight to a pod".to_owned(), SocketAddr::new(cluster.pod(), POD_PORT))];
        if !matches!(self, Rules::Tracking) {
            let numbers = [("first Service", 0), ("middle Service", services / 2), ("last Service", services - 1)];
            all.extend(
                numbers
                    .map(|(name, number)| (name.to_owned(), SocketAddr::new(synthetic::cluster_ip(number).into(), 80))),
            );
        }
        let scheduled = |service: &Scheduled| (service.title(), service.addresses()[0]);
        all.extend(self.scheduled(cluster).iter().map(scheduled));
        all
    }

    /// Where flows of one packet go: what that is, and its addresses, of which the second is an external IP and the third
    /// of IPv6.
    pub(crate) fn flows(&self, cluster: &Cluster) -> Vec<(String, [Option<SocketAddr>; 3])> {
        let pods = [Some(cluster.pod()), None, "fd00:10::1".parse().ok()];
        let pods = pods.map(|address| address.map(|address| SocketAddr::new(address, POD_PORT)));
        let scheduled = self.scheduled(cluster).into_iter().map(|service| {
            let [cluster_ip, external_ip, cluster_ip_v6] = service.addresses();
            let external_ip = (!matches!(self, Rules::Ipvs)).then_some(external_ip);
            (service.title(), [Some(cluster_ip), external_ip, Some(cluster_ip_v6)])
        });
        [("straight to a pod".to_owned(), pods)].into_iter().chain(scheduled).collect()
    }

    /// The Services with a scheduler that it can serve as they ask for.
    fn scheduled(&self, cluster: &Cluster) -> Vec<Scheduled> {
        match self {
            Rules::Tracking | Rules::File(_) => Vec::new(),
            Rules::Nftproxyd(_) | Rules::Counting(_) | Rules::Localhost(_) => cluster.scheduled(),
            Rules::KubeProxy(..) => cluster.scheduled().into_iter().filter(|it| it.scheduler == "random").collect(),
            Rules::Ipvs => Scheduled::all(&OF_IPVS, cluster.services, cluster.endpoints),
        }
    }

    /// Longer than it should take to write its rules.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(if matches!(self, Rules::File(_) | Rules::Ipvs) { 1 } else { 600 })
    }

    /// Starts it in the node of `network`, which this thread is then in. It has not yet written anything.
    pub(crate) fn start(&self, network: &Network, cluster: &Cluster) -> Running {
        network.enter_node();
        let (program, first) = match self {
            Rules::Tracking => return track(),
            Rules::Ipvs => {
                self.restore(cluster);
                return track();
            }
            Rules::File(path) => return load(Command::new("nft").arg("-f").arg(path)),
            Rules::Nftproxyd(path) | Rules::Counting(path) | Rules::Localhost(path) => (path, Some("run")),
            Rules::KubeProxy(path, _) => (path, None),
        };
        let api = Api::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports"));
        api.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": synthetic::NODE},
            "status": {"addresses": [{"type": "InternalIP", "address": NODE}]}}));
        api.apply(
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/12", "fd00:96::/64"]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        );
        for object in synthetic::cluster(cluster.services, cluster.endpoints) {
            api.apply(object);
        }
        cluster.scheduled().iter().flat_map(Scheduled::objects).for_each(|object| {
            api.apply(object);
        });
        let folder = tempfile::tempdir().expect("a folder");
        let (kubeconfig, config) = (folder.path().join("kubeconfig"), folder.path().join("config.yaml"));
        std::fs::write(&kubeconfig, api.kubeconfig()).expect("a file");
        let mut text = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
            "hostnameOverride": synthetic::NODE, "detectLocalMode": "ClusterCIDR",
            // The stand-in speaks nothing else.
            "clientConnection": {"kubeconfig": kubeconfig, "contentType": "application/json"},
            // Settings of the whole machine stay as they are.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
        if cluster.knows_pods {
            text["clusterCIDR"] = json!(format!("{PODS},{PODS_V6}"));
        }
        if let Rules::Counting(_) = self {
            text["nftables"] = json!({"countConnections": true});
        }
        if let Rules::Localhost(_) = self {
            text["iptables"] = json!({"localhostNodePorts": true});
        }
        if let Rules::KubeProxy(_, mode) = self {
            text["mode"] = json!(mode);
            // The stand-in does not send a list as a watch.
            text["featureGates"] = json!({"WatchListClient": false});
        }
        std::fs::write(&config, text.to_string()).expect("a file");
        let log = std::fs::File::create(folder.path().join("log")).expect("a file");
        let child =
            Command::new(program).args(first).arg("--config").arg(config).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Running { process: Some((child, api, folder)) }
    }

    /// Has IPVS serve a cluster in this thread's network namespace.
    fn restore(&self, cluster: &Cluster) {
        set_sysctl("ipv4/vs/conntrack", "1").expect("a setting of IPVS");
        let mut text = String::new();
        for number in 0..cluster.services {
            let address = SocketAddr::new(synthetic::cluster_ip(number).into(), 80);
            text += &format!("-A -t {address} -s rr\n");
            let slice = synthetic::slice(number, cluster.endpoints);
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let pod = endpoint["addresses"][0].as_str().expect("an address");
                text += &format!("-a -t {address} -r {pod}:{POD_PORT} -m -w 1\n");
            }
        }
        self.scheduled(cluster).iter().for_each(|service| text += &service.of_ipvs());
        fed(Command::new("ipvsadm").arg("--restore"), &text).expect("ipvsadm has listed");
        for (_, address) in self.destinations(cluster).iter().skip(1) {
            ip(&format!("address add {}/32 dev lo", address.ip()));
        }
        for (_, [.., address]) in self.flows(cluster).iter().skip(1) {
            let address = address.expect("all are of both families").ip();
            ip(&format!("address add {address}/128 dev lo nodad"));
        }
    }
}

impl Running {
    /// Tells its API server of an object.
    pub(crate) fn apply(&self, object: Value) {
        if let Some((_, api, _)) = &self.process {
            api.apply(object);
        }
    }
}

impl Cluster {
    /// Services that name their scheduler.
    fn scheduled(&self) -> Vec<Scheduled> {
        Scheduled::all(&self.schedulers, self.services, self.endpoints)
    }

    /// Any pod.
    fn pod(&self) -> IpAddr {
        let slice = synthetic::slice(self.services / 2, self.endpoints);
        serde_json::from_value(slice["endpoints"][0]["addresses"][0].clone()).expect("an address")
    }
}

/// Whether IPVS can be used in this thread's network namespace; what there is instead.
pub(crate) fn has_ipvs() -> Result<(), String> {
    fed(Command::new("ipvsadm").arg("-Ln"), "")
        .map(drop)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

fn track() -> Running {
    // No hook looks at it, but tracking is on as long as there is a rule with `ct`.
    let chain = "{ chain unused { ct state new; }; }";
    load(Command::new("nft").arg(format!("table ip tracking {chain}; table ip6 tracking {chain}")))
}

fn load(nft: &mut Command) -> Running {
    assert!(nft.status().is_ok_and(|status| status.success()), "cannot do: {nft:?}");
    Running { process: None }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((child, _, _)) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
