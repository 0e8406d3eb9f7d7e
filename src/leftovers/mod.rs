//! What kube-proxy leaves on a node, in each of its modes: told from what is kubelet's or a stranger's, and removed.
//!
//! kube-proxy leaves its rules in place when it stops, so that nothing is interrupted. Whoever takes its place has them
//! beside its own until they are removed: [`remove`] does that. Nothing here touches a table of nftproxyd.
//!
//! * `names`: which chains, sets and devices are kube-proxy's. Pure.
//! * `plan`: which rules and chains of a table have to go, and which are in use by others. Pure.
//! * `walk`: which packets of Services the rules of a chain drop, and which chains of kube-proxy keep them from it. Pure.
//! * `tables`, `rules`: tables, chains and rules as the kernel lists them.
//! * `early`: rules that see packets before they are tracked or translated.
//! * `advice`: the command that lets Services through a chain that drops. Pure.
//! * `steps`: changes of tables of others.
//! * `proof`: rules as their own programs print them.
//! * `served`: which addresses its rules serve.
//! * `sign`: what takes the place of kube-proxy's table where Calico looks for it.
//! * `nft`, `legacy`, `ipvs`, `ipset`, `device`: find and remove, each in its part of the kernel.

pub(crate) mod advice;
mod device;
pub(crate) mod early;
mod ipset;
mod ipvs;
pub(crate) mod legacy;
mod names;
mod nft;
mod plan;
pub(crate) mod proof;
mod rules;
mod served;
pub(crate) mod sign;
mod steps;
pub(crate) mod tables;
#[cfg(test)]
mod tests;
pub(crate) mod values;
pub(crate) mod walk;

use std::io;
use std::path::Path;

pub(crate) use names::{TABLE, is_chain};
pub use served::served_addresses;
pub use sign::remove_sign;

/// Files of the network namespace of this thread: a process may have threads in several.
pub(crate) const NET: &str = "proc/thread-self/net";

/// What has become of kube-proxy's leftovers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is gone, one line each.
    pub removed: Vec<String>,
    /// What was left because packets of Services pass by it; and how to do without.
    pub kept: Vec<Remaining>,
    /// What is still there otherwise.
    pub remains: Vec<Remaining>,
    /// What of others drops the traffic of Services on its way through the node. Looked for even where there is nothing of
    /// kube-proxy: the rules of its mode `iptables` that had accepted it are only in the kernel, and do not survive a
    /// start of the node.
    pub dropping: Vec<Remaining>,
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
///
/// What accepts packets where the rest of the host's rules would drop them stays as well, and is removed when they do not
/// any more. `mark` is the bit that we mark packets with.
pub fn remove(root: &Path, mark: u32) -> Outcome {
    let mut outcome = Outcome::default();
    let node_ports = ipset::node_ports(root);
    nft::remove(mark, &mut outcome);
    legacy::remove(root, mark, &mut outcome);
    ipvs::remove(root, &node_ports, &mut outcome);
    device::remove(&mut outcome);
    ipset::remove(root, &mut outcome);
    outcome
}

/// The bit of packets' marks that the rules of ours in this network namespace use, if there are any.
pub fn installed_mark(table: &str) -> Option<u32> {
    // Who may not list tables may not change them either, and is told so then.
    tables::mark_of(table).unwrap_or_default()
}

impl Outcome {
    /// Notes that a chain stays because packets of Services pass by it, which has this name among chains, as has the one
    /// at a hook that leads there.
    fn keep(&mut self, place: &advice::Place<'_>, chains: &[walk::Chain], from: &str, chain: &str) {
        let what = format!(
            "chain {chain} of {}, with the rule that leads there: {from} drops packets that it accepts",
            place.table_name()
        );
        let fix = advice::without(place, chains, from, chain);
        self.kept.push(Remaining { what, fix });
    }

    /// Notes what has become of one thing.
    fn note(&mut self, what: impl Into<String>, result: io::Result<()>, fix: impl Into<String>) {
        let what = what.into();
        match result {
            Ok(()) => self.removed.push(what),
            Err(error) => self.remains.push(Remaining { what: format!("{what} ({error})"), fix: fix.into() }),
        }
    }
}
