//! Status for people.

use std::fmt::Write as _;

use super::{EndpointStatus, FrontendStatus, Policy};
use crate::printable::printable;

const HEADINGS: [&str; 8] =
    ["SERVICE", "FRONTEND", "POLICY", "SCHEDULER", "AFFINITY", "ENDPOINT", "SHARE", "CONNECTIONS"];

/// A table: one line for each endpoint; what is the same as on the line above is left out.
pub fn table(frontends: &[FrontendStatus]) -> String {
    let mut lines: Vec<[String; 8]> = vec![HEADINGS.map(str::to_owned)];
    for frontend in frontends {
        let mut policy = match frontend.policy {
            Policy::Cluster => "Cluster",
            Policy::Local => "Local",
            Policy::Refused => "refused",
            Policy::DroppedOutside => "dropped outside",
            Policy::Dropped => "dropped",
            Policy::Unknown => "unknown",
        }
        .to_owned();
        if frontend.source_ranges {
            policy.push_str(", ranges");
        }
        if frontend.damaged {
            policy.push_str(", damaged");
        }
        let affinity = frontend.affinity_seconds.map(|seconds| format!("{seconds}s"));
        let address = match frontend.address {
            Some(address) => std::net::SocketAddr::new(address, frontend.port).to_string(),
            None => format!("*:{} ({})", frontend.port, frontend.family),
        };
        let mut left = [
            printable(&frontend.service).into_owned(),
            format!("{} {address}", frontend.protocol),
            policy,
            frontend.scheduler.unwrap_or("-").to_owned(),
            affinity.unwrap_or_else(|| "-".to_owned()),
        ];
        for endpoint in &frontend.endpoints {
            let removed = if endpoint.removed { " (removed)" } else { "" };
            let [service, address, policy, scheduler, affinity] = left;
            let right = format!("{}{removed}", endpoint.address);
            let connections = endpoint.connections.to_string();
            lines.push([service, address, policy, scheduler, affinity, right, share(endpoint), connections]);
            left = Default::default();
        }
        if frontend.endpoints.is_empty() {
            let [service, address, policy, scheduler, affinity] = left;
            let none = || "-".to_owned();
            lines.push([service, address, policy, scheduler, affinity, none(), none(), none()]);
        }
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(widths) {
            let _ = write!(row, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

/// The part of new connections that an endpoint gets.
#[expect(clippy::cast_precision_loss, reason = "there are at most 65,535 slots")]
fn share(endpoint: &EndpointStatus) -> String {
    match endpoint.of {
        0 => "-".to_owned(),
        all => format!("{:.1}%", endpoint.slots as f64 * 100.0 / all as f64),
    }
}
