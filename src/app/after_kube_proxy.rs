//! `nftproxyd cleanup --after-kube-proxy`: the way back without a gap. Our tables serve until kube-proxy's rules do.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::time::sleep;
use tracing::{info, warn};

use super::signals::Signals;
use super::take_over::named;
use super::{cleanup, instance};
use crate::cli::CleanupArgs;
use crate::config::Logging;
use crate::nftables::{Kernel, LinuxKernel};
use crate::ruleset::base;
use crate::ruleset::names::{SetName, TableName};
use crate::ruleset::types::Value;
use crate::{leftovers, logging, status};

/// How often it is looked.
const AGAIN: Duration = Duration::from_millis(200);

/// How long cluster IPs are waited for that kube-proxy's rules do not serve though it has written them: a Service may have
/// gone since our tables were written, or have got a label that is for another proxy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits, removes, and waits to be stopped if that is asked for.
///
/// # Errors
/// Those of `cleanup`.
pub(super) fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    logging::init(Logging::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let (mut signals, _hangups) = runtime.block_on(async { Signals::listen() })?;
    runtime.block_on(async {
        tokio::select! {
            served = kube_proxy_serves(args) => served,
            () = signals.stop() => Err(anyhow::anyhow!("stopped before kube-proxy's rules served; nothing was removed")),
        }
    })?;
    cleanup::cleanup(TableName::NODE)?;
    if args.stay {
        info!("all is removed; this waits to be stopped");
        runtime.block_on(signals.stop());
    }
    Ok(())
}

/// Comes back when nothing is lost if our tables go.
async fn kube_proxy_serves(args: &CleanupArgs) -> anyhow::Result<()> {
    let mut kernel = LinuxKernel::open()?;
    let (mut said, mut since) = (false, None);
    // Nobody writes them any more.
    let mut ours = None;
    loop {
        if let Some(holder) = instance::holder(TableName::NODE).await {
            anyhow::bail!("{holder}: stop it first; nothing was removed");
        }
        if kernel.tables()?.is_empty() {
            return Ok(());
        }
        if status::kube_proxy_has_synced(args.metrics_bind_address).await {
            let ours = match &ours {
                Some(ours) => ours,
                None => ours.insert(served_here(&mut kernel)?),
            };
            let theirs = leftovers::served_addresses(Path::new("/")).context("kube-proxy's rules cannot be read")?;
            let missing: Vec<&IpAddr> = ours.difference(&theirs).collect();
            if missing.is_empty() {
                info!("kube-proxy's rules serve what the tables of nftproxyd serve");
                return Ok(());
            }
            let since: &mut Instant = since.get_or_insert_with(Instant::now);
            if since.elapsed() > PATIENCE {
                warn!(
                    "kube-proxy has written its rules, and {} cluster IPs that the tables of nftproxyd serve are not among \
                     them: {}; the tables go all the same",
                    missing.len(),
                    named(missing.into_iter())
                );
                return Ok(());
            }
        } else {
            since = None;
            if !said {
                info!("waiting for kube-proxy, whose metrics are at {}, to write its rules", args.metrics_bind_address);
                said = true;
            }
        }
        sleep(AGAIN).await;
    }
}

/// The cluster IPs of Services with endpoints that our tables serve. All of them is read.
fn served_here(kernel: &mut LinuxKernel) -> anyhow::Result<BTreeSet<IpAddr>> {
    let mut served = BTreeSet::new();
    for family in kernel.tables()? {
        let mut cluster_ips = BTreeSet::new();
        for element in kernel.elements(family, &base::set(SetName::ClusterIps))? {
            if let [Value::Address(address)] = element.key[..] {
                cluster_ips.insert(address);
            }
        }
        let frontends = status::read(kernel, &[family])?;
        let with_endpoints = frontends.iter().filter(|frontend| frontend.endpoints.iter().any(|it| !it.removed));
        let addresses = with_endpoints.filter_map(|frontend| frontend.address);
        served.extend(addresses.filter(|address| cluster_ips.contains(address)));
    }
    Ok(served)
}
