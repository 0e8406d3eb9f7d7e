//! What facts come to: pure.

mod causes;
mod followed;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::facts::{Facts, Met, NodeFacts, ToEndpoint, Way};
use super::report::{Cause, Effect, EndpointReport, Explanation, Stage, Verdict};
use crate::ruleset::eval::{Outcome, Reached, Trace};
use crate::ruleset::types::HookPoint;

/// Explains what becomes of the packet.
pub(super) fn judge(facts: &Facts) -> Explanation {
    let mut causes = causes::causes(facts);
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.effect));
    let endpoints = endpoints(facts, &causes);
    let verdict = verdict(facts, &causes, &endpoints);
    Explanation {
        packet: facts.asked.clone(),
        service: facts.frontend.as_ref().map(|frontend| frontend.service.clone()),
        is: words::what(facts),
        facts: words::facts(facts),
        way: way(facts),
        endpoints,
        causes,
        verdict,
    }
}

/// The gravest of what may become of it: what is wrong with the whole way, or at one of the endpoints.
fn verdict(facts: &Facts, causes: &[Cause], endpoints: &[EndpointReport]) -> Verdict {
    let whole = causes.iter().filter(|cause| cause.endpoint.is_none()).filter_map(decided);
    let by_table = match (&facts.trace, facts.traced().map(|trace| &trace.outcome)) {
        (_, Some(Outcome::Forward(_))) => Verdict::Reached,
        (_, Some(Outcome::Reject)) => Verdict::Refused,
        (_, Some(Outcome::Drop)) => Verdict::Dropped,
        // What ends it before is among the causes.
        _ if facts.ends_before() => Verdict::Reached,
        (_, Some(Outcome::Pass)) | (None, None) => Verdict::NotOurs,
        (Some(_), None) => Verdict::Unsure,
    };
    let of_endpoints = endpoints.iter().map(|endpoint| endpoint.verdict);
    let worst = whole.chain(of_endpoints).max().unwrap_or(Verdict::Reached);
    worst.max(by_table)
}

fn decided(cause: &Cause) -> Option<Verdict> {
    match cause.effect {
        Effect::Decides(verdict) => Some(verdict),
        Effect::Note => None,
    }
}

fn endpoints(facts: &Facts, causes: &[Cause]) -> Vec<EndpointReport> {
    let nothing = ToEndpoint::default();
    let remembered = facts.remembered.map(|remembered| remembered.endpoint);
    facts
        .reachable()
        .map(|Reached { endpoint: address, masqueraded }| {
            let to = facts.node.as_ref().and_then(|node| node.to_endpoints.get(&address)).unwrap_or(&nothing);
            let share = facts
                .frontend
                .iter()
                .flat_map(|frontend| &frontend.endpoints)
                .find(|it| it.address == address && it.of > 0 && remembered.is_none());
            let place = facts.service.as_ref().and_then(|service| {
                service.endpoints.iter().find(|it| it.address == address.ip() && it.port == address.port())
            });
            let (by, from) = match &to.way {
                Some(Way::By(interface, from)) => (Some(interface.clone()), *from),
                Some(Way::Local) => (Some("local".to_owned()), None),
                _ => (None, None),
            };
            let of_it = causes.iter().filter(|cause| cause.endpoint == Some(address)).filter_map(decided);
            EndpointReport {
                address,
                #[expect(clippy::cast_precision_loss, reason = "there are at most 65,535 slots")]
                share: share.map(|it| it.slots as f64 / it.of as f64),
                pod: place.and_then(|it| it.pod.clone()),
                node: place.and_then(|it| it.node.clone()),
                by,
                sees: masqueraded.then(|| from.map_or_else(|| "?".to_owned(), |from| from.to_string())),
                answered: to.answered,
                unanswered: to.unanswered,
                verdict: of_it.max().unwrap_or(Verdict::Reached),
            }
        })
        .collect()
}

/// The places in the order in which the packet comes to them, those of several endpoints together.
fn way(facts: &Facts) -> Vec<Stage> {
    let mut way = Vec::new();
    let ours = |hook| facts.traced().and_then(|trace| our_stage(facts, trace, hook));
    let no_node = NodeFacts::default();
    let node = facts.node.as_ref().unwrap_or(&no_node);
    if let Some(route) = &node.first_route {
        way.push(route_stage(route, &facts.asked.to.ip().to_string()));
    }
    if matches!(node.first_route, Some(Way::Nowhere(_))) {
        return way;
    }
    way.extend(node.before.iter().map(stage_of));
    if facts.ends_before() {
        return way;
    }
    way.extend(ours(HookPoint::Prerouting));
    way.extend(ours(HookPoint::Output));
    // What several endpoints have in common is said once.
    let mut routes: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
    let mut met: Vec<Stage> = Vec::new();
    let mut follow: Vec<Stage> = Vec::new();
    for Reached { endpoint, .. } in facts.reachable() {
        let Some(to) = node.to_endpoints.get(&endpoint) else { continue };
        if let Some(route) = &to.way {
            routes.entry(route_stage(route, "").at).or_default().push(endpoint);
        }
        for stage in to.met.iter().map(stage_of) {
            if !met.contains(&stage) {
                met.push(stage);
            }
        }
        for stage in to.followed.iter().flat_map(followed::stages) {
            if !follow.contains(&stage) {
                follow.push(stage);
            }
        }
    }
    for (at, endpoints) in routes {
        let does = match &endpoints[..] {
            [one] => format!("to {one}"),
            several => format!("to {} endpoints", several.len()),
        };
        way.push(Stage { place: "routing", at, does });
    }
    let order = |stage: &Stage| ["input", "forward", "output", "postrouting"].iter().position(|it| *it == stage.place);
    met.sort_by_key(order);
    way.extend(met);
    // What is sent nowhere, or ends on the way, does not come to the last hooks.
    let goes_on =
        |to: &ToEndpoint| matches!(to.way, Some(Way::By(..) | Way::Local) | None) && !to.met.iter().any(Met::ends);
    if facts.node.is_none() || node.to_endpoints.values().any(goes_on) {
        way.extend(ours(HookPoint::Input));
        way.extend(ours(HookPoint::Postrouting));
    }
    way.extend(follow);
    way
}

fn route_stage(route: &Way, to: &str) -> Stage {
    Stage { place: "routing", at: words::route(route), does: format!("to {to}") }
}

fn stage_of(met: &Met) -> Stage {
    Stage { place: met.hook, at: met.chain.clone(), does: words::does(&met.does) }
}

/// The chains of ours that it goes through on a hook, and what comes of it.
fn our_stage(facts: &Facts, trace: &Trace, hook: HookPoint) -> Option<Stage> {
    let steps: Vec<_> = trace.steps.iter().filter(|step| step.hook == hook).collect();
    let mut chains: Vec<String> = steps.iter().map(|step| step.chain.to_string()).collect();
    chains.dedup();
    let begins = matches!(hook, HookPoint::Prerouting | HookPoint::Output);
    let (place, base) = match hook {
        HookPoint::Prerouting => ("prerouting", "nat-prerouting"),
        HookPoint::Input => ("input", "nat-input"),
        HookPoint::Output => ("output", "nat-output"),
        HookPoint::Postrouting => ("postrouting", "nat-postrouting"),
    };
    let is_first = (hook == HookPoint::Output) == facts.asked.from_this_node;
    if chains.is_empty() {
        if !begins || !is_first {
            return None;
        }
        chains.push(base.to_owned());
    }
    let does = match &trace.outcome {
        _ if !begins => {
            let masquerades = steps.iter().any(|step| step.rule.contains("masquerade"));
            (if masquerades { "masquerades it" } else { "remembers its endpoint" }).to_owned()
        }
        Outcome::Forward(reached) if facts.remembered.is_some() && reached.len() == 1 => {
            "sends it to where its client is remembered".to_owned()
        }
        Outcome::Forward(reached) if reached.len() == 1 => {
            let endpoint = reached.iter().next().map(|it| it.endpoint.to_string()).unwrap_or_default();
            format!("sends it to {endpoint}")
        }
        Outcome::Forward(reached) => format!("sends it to one of {} endpoints", reached.len()),
        Outcome::Reject => "REFUSES it".to_owned(),
        Outcome::Drop => "DROPS it".to_owned(),
        Outcome::Pass => "does not know it".to_owned(),
    };
    Some(Stage { place, at: format!("{} {}", facts.table_name(), chains.join(" -> ")), does })
}
