//! What kube-proxy leaves on a node, in each of its modes: told from what is kubelet's or a stranger's, and removed.
//!
//! kube-proxy leaves its rules in place when it stops, so that nothing is interrupted. Whoever takes its place has them
//! beside its own until they are removed: [`remove`] does that. Nothing here touches a table of nftproxyd.
//!
//! * `names`: which chains, sets and devices are kube-proxy's. Pure.
//! * `plan`: which rules and chains of a table have to go, and which are in use by others. Pure.
//! * `tables`: tables, chains and rules as the kernel lists them.
//! * `nft`, `legacy`, `ipvs`, `ipset`, `device`: find and remove, each in its part of the kernel.

mod device;
mod ipset;
mod ipvs;
mod legacy;
mod names;
mod nft;
mod plan;
pub(crate) mod tables;

use std::io;
use std::path::Path;

pub(crate) use names::{TABLE, is_chain};

/// Files of the network namespace of this thread: a process may have threads in several.
const NET: &str = "proc/thread-self/net";

/// What has become of kube-proxy's leftovers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is gone, one line each.
    pub removed: Vec<String>,
    /// What is still there.
    pub remains: Vec<Remaining>,
}

/// Something that could not be removed, or that was left on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remaining {
    /// What it is, and why it is still there.
    pub what: String,
    /// What an administrator can do about it.
    pub fix: String,
}

/// Removes what kube-proxy has left in this network namespace: tables of nftables, chains of iptables, virtual servers
/// of IPVS with their device, and IP sets.
///
/// What decides about packets goes first and at once: kube-proxy's tables, and the rules that lead into its chains, in
/// one transaction. Connections are not touched; those of IPVS cannot live without their virtual server.
///
/// Chains and rules of kubelet and of others stay, and so does what they refer to. kube-proxy has to be stopped: one that
/// runs writes its rules again.
pub fn remove(root: &Path) -> Outcome {
    let mut outcome = Outcome::default();
    let node_ports = ipset::node_ports(root);
    nft::remove(&mut outcome);
    legacy::remove(root, &mut outcome);
    ipvs::remove(root, &node_ports, &mut outcome);
    device::remove(&mut outcome);
    ipset::remove(root, &mut outcome);
    outcome
}

impl Outcome {
    /// Notes what has become of one thing.
    fn note(&mut self, what: impl Into<String>, result: io::Result<()>, fix: impl Into<String>) {
        let what = what.into();
        match result {
            Ok(()) => self.removed.push(what),
            Err(error) => self.remains.push(Remaining { what: format!("{what} ({error})"), fix: fix.into() }),
        }
    }
}
