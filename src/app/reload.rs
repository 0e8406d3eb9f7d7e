//! What becomes of a change of the configuration file while the daemon runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::Signal;
use tokio::sync::watch::Sender;
use tracing::{error, info, warn};

use crate::config::{self, Config, NodePortAddresses, Overrides, Watch, effective};
use crate::localhost::{Ports, Timeouts};
use crate::model::PerFamily;
use crate::sysctl;

/// Fields, or sections, that are applied while the daemon runs.
const LIVE: [&str; 4] = ["conntrack", "iptables.localhostNodePorts", "nodePortAddresses", "oomScoreAdj"];

/// How long a connection on localhost that one side has closed may be silent, where the configuration does not say.
const HALF_CLOSED: Duration = Duration::from_secs(3_600);

/// The same for a client of UDP.
const SILENT: Duration = Duration::from_secs(30);

/// The file that a configuration was read from.
pub(super) struct File {
    /// Where it is.
    pub(super) path: PathBuf,
    /// What it said.
    pub(super) text: String,
    /// What the command line says besides.
    pub(super) overrides: Overrides,
}

/// Who is told what has changed.
pub(super) struct Live {
    /// What `/configz` shows.
    pub(super) in_force: Sender<String>,
    /// Node ports on localhost.
    pub(super) ports: Ports,
    /// The families in which they are served.
    pub(super) localhost: Sender<PerFamily<bool>>,
    /// Which addresses of the node accept node ports; whoever sends wakes the sync loop.
    pub(super) node_ports: Sender<NodePortAddresses>,
}

impl Live {
    /// Applies it.
    fn apply(&self, config: &Config) {
        sysctl::tune(Path::new("/"), &config.conntrack);
        sysctl::set_oom_score(Path::new("/"), config.oom_score_adj);
        self.ports.set_timeouts(timeouts(config));
        // Before what wakes whoever looks at it.
        self.localhost.send_replace(config.localhost_node_ports);
        self.node_ports.send_replace(config.node_port_addresses.clone());
        self.in_force.send_replace(configz(config));
    }
}

/// How long nothing may come on localhost: as connection tracking has it for what it tracks, where that is set.
pub(super) fn timeouts(config: &Config) -> Timeouts {
    let or = |set: Duration, otherwise| if set.is_zero() { otherwise } else { set };
    Timeouts {
        half_closed: or(config.conntrack.tcp_close_wait_timeout, HALF_CLOSED),
        silent: or(config.conntrack.udp_timeout, SILENT),
    }
}

/// The body of `/configz`.
pub(super) fn configz(config: &Config) -> String {
    json!({ "kubeproxy.config.k8s.io": effective(config) }).to_string()
}

/// Follows the file, and reads it again at each of `hangups` (the signal SIGHUP): what can be applied is, and a file that
/// cannot be used is reported and leaves what was in force.
///
/// # Errors
/// The file says something that takes a restart: kube-proxy ends with an error too, so that whoever started it does so
/// again.
pub(super) async fn follow(file: File, mut current: Config, told: Live, mut hangups: Signal) -> anyhow::Result<()> {
    let File { path, mut text, overrides } = file;
    let shown = path.display();
    let mut watch = match Watch::new(&path, text.clone()) {
        Ok(watch) => Some(watch),
        Err(reason) => {
            // A node on which others have used up all inotify watches shall have its Services all the same.
            warn!("cannot follow {shown}, so that changes take the signal SIGHUP or a restart: {reason}");
            None
        }
    };
    loop {
        text = tokio::select! {
            changed = changed(watch.as_mut()) => changed,
            Some(()) = hangups.recv() => match std::fs::read_to_string(&path) {
                Ok(again) if again == text => {
                    info!("SIGHUP: {shown} says what it said before");
                    continue;
                }
                Ok(again) => {
                    watch.iter_mut().for_each(|watch| watch.known(&again));
                    again
                }
                Err(reason) => {
                    error!("SIGHUP: {shown} cannot be read; what it said before stays in force: {reason}");
                    continue;
                }
            },
        };
        let loaded = match config::parse(&path, &text, &overrides) {
            Ok(loaded) => loaded,
            Err(reason) => {
                // Each problem has a line of its own there.
                let reason = reason.to_string().replace(":\n  ", ": ").replace("\n  ", "; ");
                error!("{shown} has changed and cannot be used; what it said before stays in force: {reason}");
                continue;
            }
        };
        let changes = changed_fields(&current, &loaded.config);
        loaded.warnings.iter().for_each(|warning| warn!("{warning}"));
        let (live, others): (Vec<_>, Vec<_>) = changes.iter().partition(|field| is_live(field));
        anyhow::ensure!(
            others.is_empty(),
            "{shown} has changed in {}: nftproxyd ends to be started again; the rules stay",
            list(&others)
        );
        current = loaded.config;
        if live.is_empty() {
            info!("{shown} has changed in nothing that counts");
        } else {
            told.apply(&current);
            info!("{shown} has changed in {}: applied", list(&live));
        }
    }
}

async fn changed(watch: Option<&mut Watch>) -> String {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Says at each of `hangups` that there is no file to be read again.
pub(super) async fn without_a_file(mut hangups: Signal) -> anyhow::Result<()> {
    while hangups.recv().await.is_some() {
        info!("SIGHUP: there is no configuration file to read again (manifests are read when they change)");
    }
    std::future::pending().await
}

fn is_live(field: &str) -> bool {
    LIVE.iter().any(|live| field.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn list(fields: &[&String]) -> String {
    fields.iter().map(|field| field.as_str()).collect::<Vec<_>>().join(", ")
}

/// Paths of the fields in which two configurations differ.
fn changed_fields(old: &Config, new: &Config) -> BTreeSet<String> {
    let mut changed = BTreeSet::new();
    compare("", &effective(old), &effective(new), &mut changed);
    // Never silent about a difference that has no field of its own.
    if changed.is_empty() && old != new {
        changed.insert("what is in force".to_owned());
    }
    changed
}

fn compare(path: &str, old: &Value, new: &Value, changed: &mut BTreeSet<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().chain(new.keys()) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let of = |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or(Value::Null);
                compare(&path, &of(old), &of(new), changed);
            }
        }
        (old, new) if old == new => {}
        _ => drop(changed.insert(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(fields: &str) -> Config {
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n{fields}"
        );
        let overrides = Overrides { hostname_override: Some("n".to_owned()), ..Overrides::default() };
        config::parse(Path::new("f"), &text, &overrides).expect("it can be used").config
    }

    #[test]
    fn changes_are_named_and_sorted_out() {
        let cases = [
            ("", "", "", ""),
            ("", "syncPeriod: unknown", "", ""),
            (
                "",
                "conntrack: {min: 5, udpTimeout: 1s}\noomScoreAdj: 3",
                "conntrack.min conntrack.udpTimeout oomScoreAdj",
                "",
            ),
            ("clusterCIDR: 10.0.0.0/8", "clusterCIDR: 11.0.0.0/8\nconntrack: {min: 5}", "conntrack.min", "clusterCIDR"),
            ("nftables: {masqueradeAll: true}", "", "", "nftables.masqueradeAll"),
            ("", "nodePortAddresses: [10.0.0.0/8]", "nodePortAddresses", ""),
            ("", "iptables: {localhostNodePorts: true}", "iptables.localhostNodePorts", ""),
            (
                "nodePortAddresses: [primary]",
                "nodePortAddresses: [primary, localhost]",
                "iptables.localhostNodePorts nodePortAddresses",
                "",
            ),
            ("", "clientConnection: {kubeconfig: x}", "", "clientConnection.kubeconfig"),
            ("", "clientConnection: {qps: 7}", "", ""),
        ];
        for (old, new, live, others) in cases {
            let changes = changed_fields(&config(old), &config(new));
            let (found_live, found_others): (Vec<_>, Vec<_>) = changes.iter().partition(|field| is_live(field));
            assert_eq!(list(&found_live).replace(", ", " "), live, "{old} -> {new}");
            assert_eq!(list(&found_others).replace(", ", " "), others, "{old} -> {new}");
        }
    }
}
