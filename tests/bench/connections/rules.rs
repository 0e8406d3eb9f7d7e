//! Where the rules of a node come from.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::api::{Api, synthetic};
use super::network::{NODE, Network, POD_PORT, PODS};

/// Who writes them.
pub(crate) enum Rules {
    /// Nobody, but connections are tracked.
    Tracking,
    /// A build of this project's daemon.
    Nftproxyd(PathBuf),
    /// A build of kube-proxy, in this mode.
    KubeProxy(PathBuf, String),
    /// A file for `nft -f`, which need not have all of the Services.
    File(PathBuf),
}

/// A program at work, if any. It ends when this is dropped.
pub(crate) struct Running {
    process: Option<(Child, Api, tempfile::TempDir)>,
}

impl Rules {
    /// What of a cluster can be reached with it, and where.
    pub(crate) fn destinations(&self, services: usize, endpoints: usize) -> Vec<(&'static str, SocketAddrV4)> {
        let pod = synthetic::slice(services / 2, endpoints);
        let pod: Ipv4Addr = serde_json::from_value(pod["endpoints"][0]["addresses"][0].clone()).expect("an address");
        let mut all = vec![("straight to a pod", SocketAddrV4::new(pod, POD_PORT))];
        if !matches!(self, Rules::Tracking) {
            let numbers = [("first Service", 0), ("middle Service", services / 2), ("last Service", services - 1)];
            all.extend(numbers.map(|(name, number)| {
                let service = synthetic::service(number);
                let address = serde_json::from_value(service["spec"]["clusterIP"].clone()).expect("an address");
                (name, SocketAddrV4::new(address, 80))
            }));
        }
        all
    }

    /// Longer than it should take to write its rules.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(if matches!(self, Rules::File(_)) { 1 } else { 600 })
    }

    /// Starts it in the node of `network`, which this thread is then in. It has not yet written anything.
    pub(crate) fn start(&self, network: &Network, services: usize, endpoints: usize) -> Running {
        network.enter_node();
        let (program, first) = match self {
            Rules::Tracking => {
                // No hook looks at it, but tracking is on as long as there is a rule with `ct`.
                let rules = "table ip tracking { chain unused { ct state new; }; }";
                return load(Command::new("nft").arg(rules));
            }
            Rules::File(path) => return load(Command::new("nft").arg("-f").arg(path)),
            Rules::Nftproxyd(path) => (path, Some("run")),
            Rules::KubeProxy(path, _) => (path, None),
        };
        let api = Api::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports"));
        api.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": synthetic::NODE},
            "status": {"addresses": [{"type": "InternalIP", "address": NODE}]}}));
        api.apply(
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/12"]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        );
        for object in synthetic::cluster(services, endpoints) {
            api.apply(object);
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (kubeconfig, config) = (folder.path().join("kubeconfig"), folder.path().join("config.yaml"));
        std::fs::write(&kubeconfig, api.kubeconfig()).expect("a file");
        let mut text = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
            "hostnameOverride": synthetic::NODE, "clusterCIDR": PODS, "detectLocalMode": "ClusterCIDR",
            // The stand-in speaks nothing else.
            "clientConnection": {"kubeconfig": kubeconfig, "contentType": "application/json"},
            // Settings of the whole machine stay as they are.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
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
