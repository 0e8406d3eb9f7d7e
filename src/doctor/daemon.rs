//! Whether the daemon runs and hears of changes, and what only it knows: objects with faults, health checks that it cannot
//! serve, and addresses and ranges that do not fit.

use std::net::SocketAddr;

use super::{Finding, Subject};
use crate::metrics::daemon::{Daemon, FamilyState, Standing};
use crate::printable::printable;
use crate::ruleset::base::AFFINITY_HIGH;
use crate::status::{self, AskError};

/// Asks the daemon whose metrics port has this address.
///
/// # Errors
/// See [`AskError`]; or no runtime can be had.
pub(super) fn ask(metrics: SocketAddr) -> Result<Daemon, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| AskError::NotReached(metrics, error))?.block_on(status::ask(metrics))
}

/// What there is to say about one that has not answered.
pub(super) fn absent(error: &AskError) -> Vec<Finding> {
    let what =
        format!("no daemon says how it is: {error}; what is in the kernel goes on working, changes do not arrive");
    let fix = "start it if it shall run: systemctl start nftproxyd, or look at its pod; \
               if it runs, give its metricsBindAddress with --config or --metrics-bind-address";
    let follows = "nobody can tell whether the API server is followed: only the daemon knows";
    vec![
        Finding::check(Subject::Daemon, what, fix),
        Finding::unread(Subject::ApiServer, follows, "when the daemon answers: nftproxyd doctor"),
    ]
}

/// What there is to say about one that has.
pub(super) fn judge(daemon: &Daemon) -> Vec<Finding> {
    let mut findings = vec![judge_daemon(daemon), judge_source(daemon)];
    if !daemon.awaited.is_empty() && daemon.ready != Some(false) {
        findings.push(Finding::check(
            Subject::Daemon,
            format!("the daemon waits for {}", printable(&daemon.awaited.join(", "))),
            "see who has the port: ss -ltnp; kube-proxy, which has the same, is to be stopped",
        ));
    }
    findings.extend(daemon.families.iter().filter_map(|(family, state)| judge_family(family, state)));
    findings.extend(judge_objects(daemon));
    findings.extend(daemon.families.iter().filter_map(|(family, state)| judge_clients(family, state)));
    findings.extend(daemon.overlaps.iter().map(|overlap| {
        Finding::check(
            Subject::ServiceAddresses,
            printable(overlap),
            "have cluster IPs given out of a range of which no node is part; addresses of the node stay reachable, but \
             connections to all others in the range that are no Service's are dropped",
        )
    }));
    findings.extend(daemon.obstacles.iter().map(|obstacle| {
        let fix = "take the address out of that object: kubectl get services,servicecidrs -A -o wide";
        Finding::check(Subject::ServiceAddresses, printable(obstacle), fix)
    }));
    findings.extend(judge_pod_ranges(daemon));
    findings.extend(daemon.failing_health_checks.iter().map(|(service, why)| {
        Finding::check(
            Subject::HealthChecks,
            format!(
                "the health check of Service {} cannot be served: load balancers take this node for dead",
                printable(service)
            ),
            "end what listens there, or give the Service another healthCheckNodePort; it is tried again every 5 s",
        )
        .proof(why)
    }));
    findings
}

fn judge_daemon(daemon: &Daemon) -> Finding {
    let since = daemon.started_seconds_ago.map(|seconds| format!(" since {seconds} s")).unwrap_or_default();
    let name = format!("nftproxyd {}{since}", printable(&daemon.version));
    if !daemon.healthy {
        return Finding::wrong(
            Subject::Daemon,
            format!("the daemon runs, but is not healthy: {name}: changes have waited for too long"),
            "look at its log, and at: nftproxyd status",
        );
    }
    if daemon.ready == Some(false) {
        return Finding::wrong(
            Subject::Daemon,
            format!("the daemon runs, but is not ready: {name}, waits for {}", printable(&daemon.awaited.join(", "))),
            "look at its log; what it waits for has to come",
        );
    }
    let ready = if daemon.ready == Some(true) { ", ready" } else { "" };
    Finding::ok(Subject::Daemon, format!("the daemon runs: {name}, healthy{ready}"))
}

fn judge_source(daemon: &Daemon) -> Finding {
    if daemon.not_followed().next().is_some() {
        return Finding::wrong(
            Subject::ApiServer,
            format!("the daemon does not follow the API server: {}", status::kinds_text(daemon)),
            "look at the reason, at the way to the API server, and at the daemon's log; \
             what was known stays in force until then",
        );
    }
    if daemon.kinds.is_empty() {
        return Finding::ok(Subject::ApiServer, "manifests are read, no API server is followed");
    }
    Finding::ok(Subject::ApiServer, format!("the daemon {}", status::kinds_text(daemon)))
}

/// Whether the daemon gets into the kernel what it wants there.
fn judge_family(family: &str, state: &FamilyState) -> Option<Finding> {
    if state.standing == Standing::Failing {
        let reason = state.reason.as_deref().unwrap_or("its log says why");
        let what = format!("the daemon cannot write the table of {}", printable(family));
        return Some(Finding::wrong(Subject::Tables, what, "look at the reason and at its log").proof(reason));
    }
    (state.refused_services > 0).then(|| {
        let services = state.refused_services;
        let what = format!(
            "the kernel refuses changes of {services} Services in {}: they stay as they were",
            printable(family)
        );
        let finding = Finding::check(Subject::Tables, what, "look at the reasons; the daemon tries again");
        state.refused.iter().fold(finding, |finding, (service, why)| finding.proof(format!("{service}: {why}")))
    })
}

fn judge_objects(daemon: &Daemon) -> Option<Finding> {
    let kinds = daemon.rejected_objects.iter().map(|(kind, count)| format!("{count} {kind}"));
    let kinds = kinds.collect::<Vec<_>>().join(", ");
    (!kinds.is_empty()).then(|| {
        Finding::note(
            Subject::ApiServer,
            format!("objects with parts that cannot be used: {}", printable(&kinds)),
            "the daemon's log names them, with field and reason",
        )
    })
}

/// Whether there is room for clients of Services with session affinity.
fn judge_clients(family: &str, state: &FamilyState) -> Option<Finding> {
    let FamilyState { affinity_clients: clients, affinity_clients_limit: limit, .. } = state;
    let fills = *limit > 0 && clients.saturating_mul(100) >= limit.saturating_mul(AFFINITY_HIGH.into());
    fills.then(|| {
        Finding::check(
            Subject::Affinity,
            format!(
                "the kernel remembers {clients} {} clients of Services with session affinity, and has room for {limit}: when \
                 it is full, new clients of all of these Services may be sent elsewhere with each connection",
                printable(family)
            ),
            "see whose they are, as nftproxyd-ruleset(7) says under SESSION AFFINITY; keep spoofed clients away from that \
             Service, or give it a shorter sessionAffinityConfig.clientIP.timeoutSeconds",
        )
    })
}

/// Whether the pods of this node are in the range that `clusterCIDR` says: those outside count as clients from elsewhere.
fn judge_pod_ranges(daemon: &Daemon) -> Vec<Finding> {
    let (of_node, of_cluster) = (&daemon.pod_cidrs, &daemon.cluster_cidrs);
    let same_family = |pods: &&ipnet::IpNet| {
        of_cluster.iter().filter(|net| net.addr().is_ipv4() == pods.addr().is_ipv4()).collect::<Vec<_>>()
    };
    let outside = of_node.iter().filter(|pods| {
        let ranges = same_family(pods);
        !ranges.is_empty() && !ranges.iter().any(|range| range.contains(*pods))
    });
    let mut findings: Vec<Finding> = outside
        .map(|pods| {
            let ranges = same_family(&pods).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Finding::check(
                Subject::PodRange,
                "the pods of this node are not in clusterCIDR: all of their connections to Services are masqueraded, so that \
                 network policies and logs take them for the node's",
                "correct clusterCIDR in the configuration, or use detectLocalMode: NodeCIDR",
            )
            .proof(format!("spec.podCIDRs of the Node: {pods}; clusterCIDR: {ranges}"))
        })
        .collect();
    if findings.is_empty() && !of_node.is_empty() && !of_cluster.is_empty() {
        findings.push(Finding::ok(Subject::PodRange, "the pods of this node are in clusterCIDR"));
    }
    findings
}

#[cfg(test)]
mod tests;
