//! Whether the daemon runs and hears of changes, and what it has found wrong with objects.

use std::net::SocketAddr;

use super::Finding;
use crate::metrics::daemon::{Daemon, FamilyState};
use crate::printable::printable;
use crate::ruleset::base::AFFINITY_HIGH;
use crate::status::{self, AskError};

/// Asks the daemon whose metrics port has this address. The first finding is about the daemon itself.
pub(super) fn ask(metrics: SocketAddr) -> Vec<Finding> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Finding::doubtful(format!("the daemon cannot be asked: {error}"), "try again")],
    };
    let answer = runtime.block_on(status::ask(metrics));
    let mut findings = vec![judge(&answer)];
    findings.extend(answer.iter().flat_map(|daemon| &daemon.overlaps).map(|overlap| {
        Finding::doubtful(
            printable(overlap),
            "have cluster IPs given out of a range of which no node is part; addresses of the node stay reachable, but \
             connections to all others in the range that are no Service's are dropped",
        )
    }));
    findings.extend(
        answer.iter().flat_map(|daemon| &daemon.families).filter_map(|(family, state)| judge_clients(family, state)),
    );
    findings
}

/// Whether there is room for clients of Services with session affinity.
fn judge_clients(family: &str, state: &FamilyState) -> Option<Finding> {
    let FamilyState { affinity_clients: clients, affinity_clients_limit: limit, .. } = state;
    let fills = *limit > 0 && clients.saturating_mul(100) >= limit.saturating_mul(AFFINITY_HIGH.into());
    fills.then(|| {
        Finding::doubtful(
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

fn judge(answer: &Result<Daemon, AskError>) -> Finding {
    let daemon = match answer {
        Ok(daemon) => daemon,
        Err(error) => {
            return Finding::doubtful(
                format!(
                    "no daemon says how it is: {error}; what is in the kernel goes on working, changes do not arrive"
                ),
                "start it if it shall run: systemctl start nftproxyd, or look at its pod; \
                 if it runs, give its metricsBindAddress with --config",
            );
        }
    };
    if daemon.not_followed().next().is_some() {
        return Finding::wrong(
            format!("the daemon does not follow the API server: {}", status::kinds_text(daemon)),
            "look at the reason, at the way to the API server, and at the daemon's log; \
             what was known stays in force until then",
        );
    }
    if daemon.kinds.is_empty() {
        return Finding::fine("the daemon runs, and reads manifests");
    }
    Finding::fine(format!("the daemon runs and {}", status::kinds_text(daemon)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;

    use super::*;
    use crate::doctor::Grade;
    use crate::metrics::daemon::{Followed, KindState, Standing};

    fn daemon(kinds: &[(&str, Followed)]) -> Daemon {
        let state = |followed| KindState { followed, since_seconds: 3, heard_seconds_ago: Some(4), reason: None };
        Daemon {
            version: "0.1.0".to_owned(),
            healthy: true,
            node_eligible: true,
            awaited: Vec::new(),
            kinds: kinds.iter().map(|(kind, followed)| ((*kind).to_owned(), state(*followed))).collect(),
            families: BTreeMap::new(),
            service_changes_pending: 0,
            endpoint_changes_pending: 0,
            rejected_objects: BTreeMap::new(),
            overlaps: Vec::new(),
            ready: Some(true),
            started_seconds_ago: Some(7),
            obstacles: Vec::new(),
            pod_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            wanted_connections: Some(9),
            failing_health_checks: BTreeMap::new(),
        }
    }

    #[test]
    fn a_map_that_fills_is_doubtful() {
        let found = |clients, limit| {
            let state = FamilyState {
                standing: Standing::InLine,
                reason: None,
                in_line_seconds_ago: Some(0),
                synced_seconds_ago: None,
                lag_seconds: 0,
                refused_services: 0,
                refused: BTreeMap::new(),
                repairs: 0,
                affinity_clients: clients,
                affinity_clients_limit: limit,
                frame: None,
            };
            judge_clients("IPv4", &state)
        };
        for (clients, limit) in [(0, 0), (5, 0), (0, 262_144), (235_929, 262_144)] {
            assert_eq!(found(clients, limit), None);
        }
        for clients in [235_930, 262_144, u64::MAX] {
            let finding = found(clients, 262_144).expect("it fills");
            assert_eq!(finding.grade, Grade::Doubtful);
            assert!(finding.what.contains(&format!("remembers {clients} IPv4 clients")), "{finding:?}");
        }
    }

    #[test]
    fn a_daemon_that_hears_of_nothing_is_not_fine() {
        let follows = judge(&Ok(daemon(&[("Service", Followed::Follows), ("ServiceCIDR", Followed::Absent)])));
        assert_eq!((follows.grade, follows.what.contains("follows Service;")), (Grade::Fine, true), "{follows:?}");
        assert_eq!(judge(&Ok(daemon(&[]))).grade, Grade::Fine);
        for followed in [Followed::Begins, Followed::Lost, Followed::Unknown] {
            let lost = judge(&Ok(daemon(&[("Node", Followed::Follows), ("Service", followed)])));
            assert_eq!(lost.grade, Grade::Wrong, "{followed:?}");
            assert!(lost.what.contains("NOT FOLLOWED: Service for 3 s"), "{lost:?}");
        }
        let address = "127.0.0.1:10249".parse().expect("an address");
        let refused = judge(&Err(AskError::NotReached(address, io::ErrorKind::ConnectionRefused.into())));
        assert_eq!(refused.grade, Grade::Doubtful);
    }
}
