//! An explanation for people.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::report::{Cause, Effect, EndpointReport, Explanation, Stage, Verdict};
use crate::printable::printable;

/// So many endpoints are shown at least; more only if something is wrong with them.
const SHOWN: usize = 16;

/// A block of lines; its last begins with what becomes of the packet.
pub fn text(explanation: &Explanation) -> String {
    let Explanation { packet, service, is, facts, way, endpoints, causes, verdict } = explanation;
    let mut text = format!("{}\n", printable(&packet.to_string()));
    let what = service.as_ref().map_or_else(|| is.clone(), |service| format!("{service}, {is}"));
    let _ = writeln!(text, "{}", printable(&what));
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, fact) in facts {
        let _ = writeln!(text, "  {name:width$}  {}", printable(fact));
    }
    stages(&mut text, way);
    table(&mut text, endpoints);
    let decides = |cause: &&Cause| matches!(cause.effect, Effect::Decides(_));
    for cause in causes.iter().filter(|cause| !decides(cause)) {
        line(&mut text, "note: ", &cause.what, cause.fix.as_deref());
    }
    let some = match endpoints.iter().filter(|endpoint| endpoint.verdict == *verdict).count() {
        0 => String::new(),
        count if count < endpoints.len() && *verdict != Verdict::Reached => {
            format!(" at {count} of {} endpoints", endpoints.len())
        }
        _ => String::new(),
    };
    let result = format!("=> {}{some}", verdict.words());
    match &together(causes.iter().filter(decides), endpoints.len())[..] {
        [] => {
            let _ = writeln!(text, "{result}");
        }
        [(what, fix)] => line(&mut text, &format!("{result}: "), what, fix.as_deref()),
        several => {
            let _ = writeln!(text, "{result}");
            several.iter().for_each(|(what, fix)| line(&mut text, "   ", what, fix.as_deref()));
        }
    }
    text
}

/// Causes with what can be done: what is the same for several endpoints is said once.
fn together<'a>(causes: impl Iterator<Item = &'a Cause>, endpoints: usize) -> Vec<(String, Option<String>)> {
    let mut kinds: Vec<(&Cause, Vec<SocketAddr>)> = Vec::new();
    for cause in causes {
        let same = |(other, _): &&mut (&Cause, _)| {
            (other.reason, &other.what, other.endpoint.is_some())
                == (cause.reason, &cause.what, cause.endpoint.is_some())
        };
        match kinds.iter_mut().find(same) {
            Some((_, at)) => at.extend(cause.endpoint),
            None => kinds.push((cause, cause.endpoint.into_iter().collect())),
        }
    }
    let told = |(cause, at): (&Cause, Vec<SocketAddr>)| {
        let what = match &at[..] {
            [] => cause.what.clone(),
            [one] => format!("{one}: {}", cause.what),
            all if all.len() == endpoints => format!("all {endpoints} endpoints: {}", cause.what),
            [first, .., last] => format!("{} endpoints ({first} to {last}): {}", at.len(), cause.what),
        };
        (what, cause.fix.clone())
    };
    kinds.into_iter().map(told).collect()
}

fn line(text: &mut String, begin: &str, what: &str, fix: Option<&str>) {
    let _ = writeln!(text, "{begin}{}", printable(what));
    if let Some(fix) = fix {
        let _ = writeln!(text, "   fix: {}", printable(fix));
    }
}

/// A numbered line for each place, those of the same place under one number.
fn stages(text: &mut String, way: &[Stage]) {
    let mut place = "";
    let mut number = 0;
    for Stage { place: next, at, does } in way {
        let mut head = String::new();
        if *next != place {
            (place, number) = (next, number + 1);
            head = format!("{number} {place}");
        }
        let _ = writeln!(text, "{head:<14}{}: {}", printable(at), printable(does));
    }
}

const HEADINGS: [&str; 8] = ["ENDPOINT", "SHARE", "POD", "NODE", "BY", "SEES", "ANSWERED", "UNANSWERED"];

fn table(text: &mut String, endpoints: &[EndpointReport]) {
    if endpoints.is_empty() {
        return;
    }
    // Those with which something is wrong come first, where not all are shown.
    let mut shown: Vec<&EndpointReport> = endpoints.iter().collect();
    if shown.len() > SHOWN {
        shown.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.verdict));
        let wrong = shown.iter().filter(|endpoint| endpoint.verdict != Verdict::Reached).count();
        shown.truncate(wrong.clamp(SHOWN, SHOWN * 4));
    }
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(shown.iter().map(|endpoint| {
        [
            endpoint.address.to_string(),
            endpoint.share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share * 100.0)),
            or_dash(&endpoint.pod),
            or_dash(&endpoint.node),
            or_dash(&endpoint.by),
            endpoint.sees.clone().unwrap_or_else(|| "client".to_owned()),
            endpoint.answered.to_string(),
            endpoint.unanswered.to_string(),
        ]
        .map(|cell| printable(&cell).into_owned())
    }));
    let widths: [usize; HEADINGS.len()] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    if shown.len() < endpoints.len() {
        let _ = writeln!(text, "  and {} more (-o json has all)", endpoints.len() - shown.len());
    }
}
