//! What the sync loop and the health checks know that the status tells: what it takes to judge the node from outside.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::metrics::daemon::{FrameState, Pods};
use crate::model::{Family, PerFamily};
use crate::nftables::Kernel;
use crate::ruleset::base::{Detector, FrameFacts, NodePortScope};
use crate::sync::{Engine, Obstacle};

/// What is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::app) struct Facts {
    /// What the frames in the kernel depend on, where they are known to be there.
    pub(in crate::app) frames: PerFamily<Option<FrameFacts>>,
    /// `spec.podCIDRs` of the Node.
    pub(in crate::app) pod_cidrs: Vec<IpNet>,
    /// What has the address of the API server, in words.
    pub(in crate::app) obstacles: Vec<String>,
    /// Services whose health check cannot be served, by name, with the address and the reason.
    pub(in crate::app) failing_health_checks: BTreeMap<String, String>,
    /// Whether any Service asks for the reset of connections to endpoints that are gone.
    pub(in crate::app) resets_connections: bool,
}

/// The same, shared.
#[derive(Debug, Clone, Default)]
pub(in crate::app) struct Known(Arc<watch::Sender<Facts>>);

impl Known {
    /// What is known now.
    pub(in crate::app) fn get(&self) -> Facts {
        self.0.borrow().clone()
    }

    /// To be called whenever something may have changed in what the engine knows. Costs the same whatever there is.
    pub(super) fn tell<K: Kernel>(&self, engine: &Engine<K>) {
        let pod_cidrs = || engine.store().node().map(|node| &node.pod_cidrs[..]).unwrap_or_default();
        self.0.send_if_modified(|facts| {
            let same = Family::ALL.into_iter().all(|family| facts.frames[family].as_ref() == engine.frame(family))
                && facts.pod_cidrs == pod_cidrs();
            if !same {
                facts.frames = PerFamily::from_fn(|family| engine.frame(family).cloned());
                facts.pod_cidrs = pod_cidrs().to_vec();
            }
            !same
        });
    }

    pub(super) fn obstacles(&self, obstacles: &[Obstacle]) {
        self.0.send_modify(|facts| facts.obstacles = obstacles.iter().map(ToString::to_string).collect());
    }

    pub(super) fn resets_connections(&self, resets: bool) {
        self.0.send_if_modified(|facts| std::mem::replace(&mut facts.resets_connections, resets) != resets);
    }

    pub(super) fn failing_health_checks(&self, failing: BTreeMap<String, String>) {
        self.0.send_if_modified(|facts| {
            let news = facts.failing_health_checks != failing;
            facts.failing_health_checks = failing;
            news
        });
    }
}

/// As the status has it.
pub(in crate::app) fn frame_state(facts: &FrameFacts) -> FrameState {
    FrameState {
        pods: facts.detector.as_ref().map(|detector| match detector {
            Detector::Source(net) => Pods::Source(*net),
            Detector::Interface(name) => Pods::Interface(name.to_string()),
            Detector::InterfacePrefix(prefix) => Pods::InterfacePrefix(prefix.to_string()),
        }),
        mark: facts.mark,
        masquerade_all: facts.masquerade_all,
        service_cidrs: facts.service_cidrs.clone(),
        node_ports_everywhere: facts.node_ports == NodePortScope::All,
        stray_cluster_ips: facts.stray_cluster_ips,
        affinity: facts.affinity,
        keeps_ports: facts.keeps_ports,
        counters: facts.counters,
        nodeport_ranges: facts.extras.nodeport_ranges,
        ping: facts.extras.ping,
        node_ip: facts.node_ip,
    }
}
