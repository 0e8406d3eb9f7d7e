//! What connections to endpoints had, as a daemon says that accounts for them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::daemon::{OF_ALL, ask_page};
use super::{AskError, FrontendStatus};
use crate::metrics::endpoints::{EndpointTotals, PATH, Totals};
use crate::model::ObjectName;
use crate::ruleset::frontend::comment;

/// Asks the daemon whose metrics port has this address; it answers with an empty list where it accounts for nothing.
///
/// # Errors
/// See [`AskError`].
pub async fn ask_accounted(metrics: SocketAddr) -> Result<Vec<EndpointTotals>, AskError> {
    ask_page(metrics, PATH, OF_ALL).await
}

/// Adds it to the endpoints of frontends. All frontends of a port of a Service have the same: the kernel tells of an end at an
/// endpoint.
pub fn add_accounted(frontends: &mut [FrontendStatus], accounted: &[EndpointTotals]) {
    let mut totals: BTreeMap<(String, SocketAddr), Totals> = BTreeMap::new();
    for of in accounted {
        let Some(service) = of.service.split_once('/').and_then(|(namespace, name)| ObjectName::new(namespace, name))
        else {
            continue;
        };
        // As the table has it, where a long name is cut.
        totals.insert((comment(&service, &of.port).to_string(), of.endpoint), of.totals);
    }
    for frontend in frontends {
        for endpoint in &mut frontend.endpoints {
            endpoint.totals = totals.get(&(frontend.service.clone(), endpoint.address)).copied();
        }
    }
}
