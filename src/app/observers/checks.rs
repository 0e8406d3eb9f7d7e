//! The health checks of Services: what each answers, and the servers that do.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use super::Known;
use crate::addresses::Accepted;
use crate::app::LISTEN_AGAIN;
use crate::events::{Events, Notice};
use crate::health::{BindFailure, CheckServer, HealthCheck, HealthChecks};
use crate::metrics::Metrics;
use crate::model::{Family, ObjectName, PerFamily, policy};
use crate::nftables::Kernel;
use crate::sync::{Engine, Report};

/// The health checks of Services and where they listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::app) struct Checks {
    checks: HealthChecks,
    /// `None` before the first sync.
    listening: Option<PerFamily<Accepted>>,
}

/// Looks at the Services that were synced; says whether any health check has changed.
pub(super) fn update_checks<K: Kernel>(checks: &mut Checks, engine: &Engine<K>, report: &Report) -> bool {
    let mut changed = false;
    for name in &report.examined {
        for family in Family::ALL {
            let key = (name.clone(), family);
            let wanted = health_check(engine, name, family);
            changed |= checks.checks.get(&key) != wanted.as_ref();
            match wanted {
                Some(check) => drop(checks.checks.insert(key, check)),
                None => drop(checks.checks.remove(&key)),
            }
        }
    }
    let listening = engine.health_check_addresses();
    if checks.listening.as_ref() != Some(&listening) {
        checks.listening = Some(listening);
        changed = true;
    }
    changed
}

fn health_check<K: Kernel>(engine: &Engine<K>, name: &ObjectName, family: Family) -> Option<HealthCheck> {
    let service = engine.store().service(name).filter(|service| service.cluster_ips[family].is_some())?;
    let port = service.health_check_node_port?;
    Some(HealthCheck { port, local_endpoints: policy::ready_on_this_node(family, engine.store().slices(name)) })
}

/// Serves the health checks of Services for ever.
pub(in crate::app) async fn serve_health_checks(
    mut checks: watch::Receiver<Checks>,
    mut server: CheckServer,
    metrics: Arc<Metrics>,
    node_name: String,
    events: Events,
    known: Known,
) -> anyhow::Result<()> {
    let mut failing = false;
    loop {
        // An address that is new on the node cannot be listened on at once, and no event says when it can.
        let changed = if failing {
            timeout(LISTEN_AGAIN, checks.changed()).await.unwrap_or(Ok(()))
        } else {
            checks.changed().await
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
        let Checks { checks: wanted, listening } = checks.borrow_and_update().clone();
        if let Some(listening) = listening {
            server.listen_on(listening);
        }
        for BindFailure { service, address, source } in server.update(&wanted).await {
            let port = address.port();
            let note = format!("node {node_name} failed to start healthcheck \"{service}\" on port {port}: {source}");
            events.say(Notice::health_check_failed(service, note));
        }
        failing = false;
        for family in Family::ALL {
            let number = server.failing(family);
            metrics.health_checks_failing[family].set(number as f64);
            failing |= number > 0;
        }
        known.failing_health_checks(server.failures());
    }
}
