//! Status for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::{EndpointState, EndpointStatus, FrontendStatus, NewFrom, NodePortsStatus, Picture, Policy};
use crate::metrics::endpoints::Totals;
use crate::metrics::services::ServiceFacts;
use crate::printable::printable;

const HEADINGS: [&str; COLUMNS] = [
    "SERVICE",
    "FRONTEND",
    "POLICY",
    "SCHEDULER",
    "AFFINITY",
    "CONNS",
    "CONNS/S",
    "ENDPOINT",
    "POD",
    "NODE",
    "WEIGHT",
    "SHARE",
    "CONNECTIONS",
    "UNANSWERED",
    "NEW/S",
    "ENDED",
    "INPKTS",
    "OUTPKTS",
    "INBYTES",
    "OUTBYTES",
];
const COLUMNS: usize = 20;
/// The columns of which what is the same as on the line above is left out.
const OF_FRONTEND: usize = 7;
/// Those that are left out where there is nothing to say in them.
const CONNS: usize = 5;
const CONNS_NEW: usize = 6;
const POD: usize = 8;
const NODE: usize = 9;
const WEIGHT: usize = 10;
const NEW: usize = 14;
/// The last ones are those of accounting.
const ENDED: usize = 15;

/// A table: one line for each endpoint; what is the same as on the line above is left out.
pub fn table(picture: &Picture) -> String {
    let Picture { frontends, since, .. } = picture;
    let mut lines: Vec<[String; COLUMNS]> = vec![HEADINGS.map(str::to_owned)];
    for frontend in frontends {
        let mut left = left(frontend, *since);
        for endpoint in &frontend.endpoints {
            lines.push(line(left, right(endpoint, *since)));
            left = Default::default();
        }
        if frontend.endpoints.is_empty() {
            lines.push(line(left, std::array::from_fn(|_| "-".to_owned())));
        }
    }
    let is_told = |column: usize| match column {
        CONNS | CONNS_NEW | POD | NODE | NEW | ENDED.. => {
            lines.iter().skip(1).any(|line| !["-", ""].contains(&&*line[column]))
        }
        WEIGHT => lines.iter().skip(1).any(|line| !["-", "1"].contains(&&*line[column])),
        _ => true,
    };
    let columns: Vec<usize> = (0..COLUMNS).filter(|column| is_told(*column)).collect();
    let told = lines.iter().map(|line| columns.iter().map(|column| line[*column].clone()).collect::<Vec<String>>());
    cell_table(&told.collect::<Vec<_>>())
}

/// Lines whose cells stand below each other.
pub(super) fn cell_table<L: AsRef<[String]>>(lines: &[L]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        let line = line.as_ref();
        widths.resize(widths.len().max(line.len()), 0);
        line.iter().zip(&mut widths).for_each(|(cell, width)| *width = (*width).max(cell.chars().count()));
    }
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.as_ref().iter().zip(&widths) {
            let _ = write!(row, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

pub(super) fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// Where new connections are taken from, in words.
pub fn new_from_text(picture: &Picture) -> String {
    let mut families = picture.new_from.iter();
    let name = |new_from: &NewFrom| match new_from {
        NewFrom::Counters => "by counters of the frontends",
        NewFrom::Conntrack => "in connection tracking",
    };
    let Some((_, first)) = families.next() else { return "nowhere: there is no frontend".to_owned() };
    if families.all(|(_, other)| other == first) {
        return name(first).to_owned();
    }
    let each = picture.new_from.iter().map(|(family, new_from)| format!("{} ({family})", name(new_from)));
    each.collect::<Vec<_>>().join(", ")
}

/// How many a second there were in this time.
#[expect(clippy::cast_precision_loss, reason = "it is rounded anyway")]
pub(super) fn per_second(number: Option<u64>, time: Option<Duration>) -> String {
    match (number, time) {
        (Some(number), Some(time)) if !time.is_zero() => format!("{:.1}", number as f64 / time.as_secs_f64()),
        _ => "-".to_owned(),
    }
}

fn line(left: [String; OF_FRONTEND], right: [String; COLUMNS - OF_FRONTEND]) -> [String; COLUMNS] {
    let mut cells = left.into_iter().chain(right);
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

fn left(frontend: &FrontendStatus, since: Option<Duration>) -> [String; OF_FRONTEND] {
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
    [
        printable(&frontend.service).into_owned(),
        at(frontend),
        policy,
        printable(scheduler(frontend)).into_owned(),
        affinity.unwrap_or_else(|| "-".to_owned()),
        number(frontend.counted),
        // Without a counter its endpoints have it.
        per_second(frontend.new_connections.filter(|_| frontend.counted.is_some()), since),
    ]
}

/// Protocol, address and port.
pub(super) fn at(frontend: &FrontendStatus) -> String {
    let FrontendStatus { protocol, port, family, .. } = frontend;
    match frontend.address {
        Some(address) => format!("{protocol} {}", SocketAddr::new(address, *port)),
        None => format!("{protocol} *:{port} ({family})"),
    }
}

/// What the table tells, and of those that it cannot tell apart the one that is configured.
fn scheduler(frontend: &FrontendStatus) -> &str {
    match (frontend.scheduler, frontend.configured_scheduler.as_deref()) {
        (Some("rr"), Some(name @ ("wrr" | "lc" | "wlc" | "sed" | "nq"))) => name,
        (found, _) => found.unwrap_or("-"),
    }
}

fn right(endpoint: &EndpointStatus, since: Option<Duration>) -> [String; COLUMNS - OF_FRONTEND] {
    let state = match (endpoint.removed, endpoint.state) {
        (true, _) => " (removed)",
        (false, Some(EndpointState::NotReady)) => " (not ready)",
        (false, Some(EndpointState::Terminating)) => " (terminating)",
        (false, Some(EndpointState::Ready) | None) => "",
    };
    let total = |of: fn(&Totals) -> u64| number(endpoint.totals.as_ref().map(of));
    let name = |name: &Option<String>| name.as_deref().map_or_else(|| "-".to_owned(), |it| printable(it).into_owned());
    [
        format!("{}{state}", endpoint.address),
        name(&endpoint.pod),
        name(&endpoint.node),
        endpoint.weight.map_or_else(|| "-".to_owned(), |weight| weight.to_string()),
        share(endpoint),
        endpoint.connections.to_string(),
        endpoint.unanswered.to_string(),
        per_second(endpoint.new_connections, since),
        total(|totals| totals.ended),
        total(|totals| totals.packets_in),
        total(|totals| totals.packets_out),
        total(|totals| totals.bytes_in),
        total(|totals| totals.bytes_out),
    ]
}

/// The part of new connections that an endpoint gets.
#[expect(clippy::cast_precision_loss, reason = "there are at most 65,535 slots")]
fn share(endpoint: &EndpointStatus) -> String {
    match endpoint.of {
        0 => "-".to_owned(),
        all => format!("{:.1}%", endpoint.slots as f64 * 100.0 / all as f64),
    }
}

/// A line for each frontend that allows only some sources, or is refused or dropped for a known reason, and for each address
/// that one of these Services wants and another has; at most so many.
pub fn notes(frontends: &[FrontendStatus], services: &[ServiceFacts], most: usize) -> String {
    let mut notes = Vec::new();
    for (service, port) in services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port))) {
        let lost =
            port.lost.iter().map(|lost| format!("{}: {} belongs to {}", service.name, lost.frontend, lost.owner));
        notes.extend(lost.map(|line| printable(&line).into_owned()));
    }
    for frontend in frontends {
        let head = || format!("{} {}", printable(&frontend.service), at(frontend));
        if let Some(why) = &frontend.unserved {
            let fate = match frontend.policy {
                Policy::Refused => "refused",
                Policy::DroppedOutside => "dropped from outside",
                _ => "dropped",
            };
            notes.push(format!("{}: {fate}: {}", head(), printable(why)));
        }
        if let Some(sources) = &frontend.allowed_sources {
            let sources = if sources.is_empty() { "nobody".to_owned() } else { sources.join(", ") };
            notes.push(format!("{}: only from {sources}", head()));
        }
    }
    let mut text: String = notes.iter().take(most).map(|note| format!("{note}\n")).collect();
    if notes.len() > most {
        let _ = writeln!(text, "and {} more such lines: ask for a Service or a namespace", notes.len() - most);
    }
    text
}

/// Which addresses accept node ports, a line for each family that has such frontends.
pub fn node_ports_text(frontends: &[FrontendStatus], node_ports: &BTreeMap<String, NodePortsStatus>) -> String {
    let mut text = String::new();
    for (family, status) in node_ports {
        if !frontends.iter().any(|frontend| frontend.address.is_none() && frontend.family == *family) {
            continue;
        }
        let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
        let accept = match (status.everywhere, &addresses[..]) {
            (Some(true), _) => "at all addresses of the node but loopback".to_owned(),
            (Some(false), []) => "at NO address of the node (nodePortAddresses)".to_owned(),
            (None, []) => "at all addresses of the node or at none: only the daemon can tell".to_owned(),
            (_, addresses) => format!("at {}", addresses.join(", ")),
        };
        let _ = writeln!(text, "nodeports {family}: {accept}");
    }
    text
}

/// One line: how many there are of all.
pub fn totals(picture: &Picture) -> String {
    let Picture { frontends, since, .. } = picture;
    let services: BTreeSet<&str> =
        frontends.iter().map(|it| it.service.split(':').next().unwrap_or_default()).collect();
    let with = |policy: Policy| frontends.iter().filter(|frontend| frontend.policy == policy).count();
    let serving = frontends.iter().flat_map(|frontend| {
        frontend.endpoints.iter().filter(|it| it.slots > 0).map(|it| (&*frontend.service, it.address))
    });
    let serving: BTreeSet<(&str, SocketAddr)> = serving.collect();
    let (mut connections, mut unanswered) = (0, 0);
    let new = frontends.iter().filter_map(|frontend| frontend.new_connections).sum();
    for endpoint in frontends.iter().flat_map(|frontend| &frontend.endpoints) {
        connections += endpoint.connections;
        unanswered += endpoint.unanswered;
    }
    let fates = [
        (with(Policy::Refused), "refused"),
        (with(Policy::Dropped), "dropped"),
        (with(Policy::DroppedOutside), "dropped from outside"),
    ];
    let fates = fates.iter().filter(|(number, _)| *number > 0).map(|(number, fate)| format!("{number} {fate}"));
    let fates = match fates.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => none,
        some => format!(" ({some})"),
    };
    let rate = match since {
        Some(_) => format!(", {} new a second", per_second(Some(new), *since)),
        None => String::new(),
    };
    format!(
        "total: {}, {}{fates}, {}, {} ({unanswered} unanswered){rate}\n",
        counted(services.len(), "Service"),
        counted(frontends.len(), "frontend"),
        counted(serving.len(), "endpoint"),
        counted(connections, "connection"),
    )
}

fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
