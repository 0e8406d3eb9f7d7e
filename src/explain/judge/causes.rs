//! Why a packet has its fate.

use std::net::SocketAddr;

use super::super::facts::{Does, Facts, Met, Silent, Table, ToEndpoint, Way};
use super::super::question::Asked;
use super::super::report::{Cause, Effect, Reason, Verdict};
use super::followed::{self, decides};
use super::words;
use crate::metrics::services::EndpointFacts;
use crate::ruleset::eval::{EvalError, Outcome, Trace};
use crate::ruleset::names::ChainName;
use crate::status::Policy;

/// So many names are given at most.
const NAMED: usize = 4;

/// All that can be said.
pub(super) fn causes(facts: &Facts) -> Vec<Cause> {
    let mut causes = Vec::new();
    of_table(facts, &mut causes);
    if let Some(Err(error @ EvalError::Interface(..))) = &facts.trace {
        let cause =
            decides(Reason::InterfaceUnknown, Verdict::Unsure, format!("table {}, {error}", facts.table_name()));
        causes.push(cause.fix("ask with --arriving-by INTERFACE"));
    }
    of_daemon(facts, &mut causes);
    of_node(facts, &mut causes);
    if let Some(trace) = facts.traced() {
        match &trace.outcome {
            Outcome::Reject | Outcome::Drop | Outcome::Pass if by_damage(facts).is_some() => {}
            Outcome::Reject => causes.push(refused(facts)),
            Outcome::Drop => causes.push(dropped(facts, trace)),
            Outcome::Pass => causes.push(passed(facts)),
            Outcome::Forward(_) => of_endpoints(facts, &mut causes),
        }
    }
    causes
}

fn note(reason: Reason, what: impl Into<String>) -> Cause {
    Cause { reason, effect: Effect::Note, endpoint: None, what: what.into(), fix: None }
}

impl Cause {
    fn at(self, endpoint: SocketAddr) -> Cause {
        Cause { endpoint: Some(endpoint), ..self }
    }
}

/// Whether our table is there and can be believed.
fn of_table(facts: &Facts, causes: &mut Vec<Cause>) {
    let table = facts.table_name();
    match &facts.table {
        Table::OfManifests => {}
        Table::There(_) => causes.extend(damaged(facts)),
        Table::Dormant => {
            let what = format!("table {table} is switched off (dormant): none of its rules sees a packet");
            causes.push(decides(Reason::NoTable, Verdict::NotOurs, what).fix("start nftproxyd, which awakes it"));
        }
        Table::Absent => {
            let what = format!("table {table} is not there: no Service is served on this node");
            causes.push(decides(Reason::NoTable, Verdict::NotOurs, what).fix("start nftproxyd"));
        }
    }
}

/// What is not as it has to be in our table, and whether that decides.
fn damaged(facts: &Facts) -> Option<Cause> {
    let table = facts.table_name();
    let Table::There(damage) = &facts.table else { return None };
    let error = match &facts.trace {
        Some(Err(EvalError::Interface(..))) => None,
        Some(Err(error)) => Some(format!("its rules cannot be followed: {error}")),
        _ => None,
    };
    let verdict = by_damage(facts);
    let mut all: Vec<String> = damage.iter().cloned().chain(error).collect();
    if all.is_empty() {
        verdict?;
        let service = facts.frontend.as_ref().map_or("the Service", |frontend| &frontend.service);
        all.push(format!("elements of {service} are missing"));
    }
    let what = format!("table {table} is not as it has to be: {}", all.join("; "));
    let cause = match verdict {
        Some(verdict) => decides(Reason::DamagedTable, verdict, what),
        None => note(Reason::DamagedTable, what),
    };
    Some(cause.fix("where the daemon runs, it is mended at once; else start nftproxyd"))
}

/// The packet's fate, where it is not the one that the table has for what is at its destination.
fn by_damage(facts: &Facts) -> Option<Verdict> {
    match facts.trace {
        Some(Err(EvalError::Interface(..))) => return None,
        Some(Err(_)) => return Some(Verdict::Unsure),
        _ => {}
    }
    let policy = facts.frontend.as_ref()?.policy;
    let trace = facts.traced()?;
    match &trace.outcome {
        Outcome::Pass => Some(Verdict::NotOurs),
        Outcome::Reject => (policy != Policy::Refused).then_some(Verdict::Refused),
        Outcome::Drop => {
            let is_meant = matches!(policy, Policy::Dropped | Policy::DroppedOutside) || ends_in_ranges(trace);
            (!is_meant).then_some(Verdict::Dropped)
        }
        Outcome::Forward(_) => None,
    }
}

/// Whether what the table holds follows the cluster.
fn of_daemon(facts: &Facts, causes: &mut Vec<Cause>) {
    match &facts.daemon {
        _ if facts.table == Table::OfManifests => {}
        Ok(daemon) if daemon.not_followed.is_empty() => {}
        Ok(daemon) => {
            let what = format!("the daemon does not follow the cluster, so this may be old: {}", daemon.not_followed);
            causes.push(note(Reason::NotFollowed, what).fix("nftproxyd doctor"));
        }
        Err(why) => {
            let what = format!("no daemon answers, so nobody changes what the kernel has: {why}");
            causes.push(note(Reason::DaemonDown, what));
        }
    }
}

/// What is wrong before our table is asked, and on the whole node.
fn of_node(facts: &Facts, causes: &mut Vec<Cause>) {
    let Some(node) = &facts.node else { return };
    if let Some(Way::Nowhere(why)) = &node.first_route {
        let what = format!("this node has no route to {} ({why}): connect fails at once", facts.asked.to.ip());
        let range = facts.in_service_cidr.map_or_else(|| facts.asked.to.ip().to_string(), |range| range.to_string());
        let device = node.device.as_deref().unwrap_or("DEVICE");
        let fix = format!("give the node a default route, or: {} route add {range} dev {device}", ip(facts));
        causes.push(decides(Reason::NoRouteToService, Verdict::Refused, what).fix(fix));
    }
    let Asked { from, from_this_node, arrives_by, .. } = &facts.asked;
    if !from_this_node && arrives_by.is_none() && !matches!(facts.trace, Some(Err(EvalError::Interface(..)))) {
        let what = format!(
            "this node has no route back to {from}: answers do not find it, and by which interface it comes in cannot be told"
        );
        let fix = format!("{} route get {from}", ip(facts));
        causes.push(decides(Reason::InterfaceUnknown, Verdict::Unsure, what).fix(fix));
    }
    for (what, may_decide) in &node.unread {
        let effect = if *may_decide { Effect::Decides(Verdict::Unsure) } else { Effect::Note };
        causes.push(Cause { effect, ..note(Reason::Unread, what) });
    }
    for met in &node.before {
        causes.extend(foreign(met));
    }
    let is_served = matches!(facts.traced().map(|trace| &trace.outcome), Some(Outcome::Forward(_)));
    if let Some((count, max)) = node.connections
        && is_served
    {
        let what = format!("the table of connections is full ({count} of {max}): new ones are dropped");
        let fix = format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(2));
        causes.push(decides(Reason::ConnectionsFull, Verdict::Dropped, what).fix(fix));
    }
    if let Some(listener) = &node.listener
        && (is_served || facts.local_at.is_some())
    {
        let to = facts.asked.to;
        let what = if is_served {
            format!("{listener} listens on {to}, which the Service hides: it gets no connection from elsewhere")
        } else {
            format!("{listener} listens on {to}, and answers there")
        };
        causes.push(note(Reason::Listener, what));
    }
    if let Some(bridge) = &node.bridge
        && is_served
    {
        let fix = "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1";
        causes.push(decides(Reason::Bridge, Verdict::Dropped, bridge.clone()).fix(fix));
    }
    let masqueraded = facts.reachable().any(|it| it.masqueraded);
    if let (Some(is_pod), Ok(daemon)) = (&facts.is_pod, &facts.daemon)
        && masqueraded
        && !daemon.masquerade_all
        && let Some(pods_are) = &daemon.pods_are
        && !facts.reachable().any(|it| it.endpoint.ip() == facts.asked.from)
    {
        let what = format!(
            "{} is a pod ({is_pod}), but not for the configuration ({pods_are}): endpoints see the node as the client",
            facts.asked.from
        );
        causes.push(note(Reason::PodMasqueraded, what).fix("set clusterCIDR to the range of all pods"));
    }
}

fn ip(facts: &Facts) -> &'static str {
    if facts.asked.to.is_ipv4() { "ip" } else { "ip -6" }
}

/// What a chain of somebody else does that matters.
fn foreign(met: &Met) -> Option<Cause> {
    let Met { hook, chain, does } = met;
    let (cause, rule) = match does {
        Does::Passes => return None,
        Does::Drops(rule) => {
            (decides(Reason::ForeignRule, Verdict::Dropped, format!("{chain} ({hook}) drops it: {rule}")), rule)
        }
        Does::Rejects(rule) => {
            (decides(Reason::ForeignRule, Verdict::Refused, format!("{chain} ({hook}) refuses it: {rule}")), rule)
        }
        Does::MayDrop(rule, why) => {
            let what = format!("{chain} ({hook}) may drop it, which cannot be told ({why}): {rule}");
            (decides(Reason::ForeignRuleUnclear, Verdict::Unsure, what), rule)
        }
        Does::Translates(rule) => {
            let what = format!("{chain} ({hook}) translates it before nftproxyd can: {rule}");
            (decides(Reason::TranslatedElsewhere, Verdict::NotOurs, what), rule)
        }
        Does::Takes(rule, to) => {
            let what = format!("{chain} ({hook}) gives it to {to}: {rule}");
            (decides(Reason::TranslatedElsewhere, Verdict::NotOurs, what), rule)
        }
        Does::NotTracked(rule) => {
            let what = format!("{chain} ({hook}) has it not tracked, so that nobody can translate it: {rule}");
            (decides(Reason::ForeignRule, Verdict::NotOurs, what), rule)
        }
    };
    Some(followed::cleaned(cause, chain, rule))
}

fn refused(facts: &Facts) -> Cause {
    let to = facts.asked.to;
    if facts.frontend.is_none() {
        let others = words::neighbours(facts);
        let what = format!("no Service has {to} {}; {}: {others}", facts.asked.protocol, to.ip());
        return decides(Reason::NoSuchPort, Verdict::Refused, what);
    }
    let Some(service) = &facts.service else {
        return decides(Reason::NoEndpoints, Verdict::Refused, "it has no endpoint that is ready");
    };
    let candidates = words::candidates(facts, service);
    if candidates.is_empty() {
        let what = match (service.slices, service.endpoints.len()) {
            (0, _) => "there is no EndpointSlice of this Service".to_owned(),
            (slices, 0) => format!("its {} no endpoint", words::has(slices, "EndpointSlice")),
            (_, others) => {
                format!(
                    "no EndpointSlice has a port of this name and protocol; {} of other ports",
                    words::count(others, "endpoint")
                )
            }
        };
        let fix = "kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME; see whether its selector matches pods";
        return decides(Reason::NoEndpoints, Verdict::Refused, format!("it has no endpoint: {what}"))
            .fix(named(fix, &service.name));
    }
    let what = format!("0 of {} ready: {}", words::count(candidates.len(), "endpoint"), conditions(&candidates));
    let fix = named("kubectl get pods -n NAMESPACE -o wide: look at their readiness", &service.name);
    decides(Reason::EndpointsNotReady, Verdict::Refused, what).fix(fix)
}

/// A command for a Service.
fn named(command: &str, service: &str) -> String {
    let (namespace, name) = service.split_once('/').unwrap_or((service, service));
    command.replace("NAMESPACE", namespace).replace("NAME", name)
}

/// The first endpoints, each with what it is.
fn conditions(endpoints: &[&EndpointFacts]) -> String {
    let one = |endpoint: &&EndpointFacts| {
        let state = match (endpoint.ready, endpoint.serving, endpoint.terminating) {
            (_, true, true) => "terminating",
            (_, false, true) => "terminating, not serving",
            (true, ..) => "ready",
            (false, ..) => "not ready",
        };
        let pod = endpoint.pod.as_ref().map(|pod| format!(" ({pod})")).unwrap_or_default();
        format!("{}{pod} {state}", SocketAddr::new(endpoint.address, endpoint.port))
    };
    listed(endpoints.iter().map(one))
}

fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let all = names.len();
    let first: Vec<String> = names.take(NAMED).collect();
    let more = if all > NAMED { format!(" and {} more", all - NAMED) } else { String::new() };
    first.join(", ") + &more
}

fn dropped(facts: &Facts, trace: &Trace) -> Cause {
    let to = facts.asked.to;
    if ends_in_ranges(trace) {
        let ranges =
            facts.frontend.as_ref().map(|it| it.allowed_sources.clone().unwrap_or_default()).into_iter().flatten();
        let ranges: Vec<String> = ranges.collect();
        let all = if ranges.is_empty() { "none of this family".to_owned() } else { listed(ranges.into_iter()) };
        let what = format!("{} is in none of loadBalancerSourceRanges ({all})", facts.asked.from);
        return decides(Reason::SourceRanges, Verdict::Dropped, what)
            .fix("add its range to spec.loadBalancerSourceRanges");
    }
    if facts.frontend.is_none() {
        let range = facts.in_service_cidr.map_or_else(|| "the range of cluster IPs".to_owned(), |it| it.to_string());
        let what = format!("no Service has {}, which is in {range}: an address that is not given out", to.ip());
        return decides(Reason::FreeClusterIp, Verdict::Dropped, what);
    }
    let external = words::is_external(facts);
    let (reason, policy) = if external {
        (Reason::ExternalTrafficPolicy, "externalTrafficPolicy")
    } else {
        (Reason::InternalTrafficPolicy, "internalTrafficPolicy")
    };
    let elsewhere = facts.service.as_ref().map(|service| words::candidates(facts, service)).unwrap_or_default();
    let elsewhere: Vec<_> = elsewhere.into_iter().filter(|endpoint| endpoint.ready && !endpoint.local).collect();
    let mut what = format!("{policy} is Local, and this node has no endpoint that is ready");
    if !elsewhere.is_empty() {
        what.push_str(&format!("; elsewhere: {}", places(&elsewhere)));
    }
    let cause = decides(reason, Verdict::Dropped, what);
    match facts.frontend.as_ref().map(|frontend| frontend.address) {
        Some(None) => cause.fix("connect to a node that has an endpoint"),
        Some(Some(_)) if external => {
            cause.fix("the load balancer must not send here: it has to ask the health check of the Service")
        }
        _ => cause,
    }
}

/// Whether the source of the packet has it dropped.
fn ends_in_ranges(trace: &Trace) -> bool {
    let ranges = [
        ChainName::SourceRanges,
        ChainName::SourceRangesLocal,
        ChainName::NodeportSourceRanges,
        ChainName::NodeportSourceRangesLocal,
    ];
    trace.steps.last().is_some_and(|step| ranges.contains(&step.chain) && step.rule.ends_with("drop"))
}

fn places(endpoints: &[&EndpointFacts]) -> String {
    listed(endpoints.iter().map(|endpoint| {
        let node = endpoint.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        format!("{}{node}", SocketAddr::new(endpoint.address, endpoint.port))
    }))
}

/// Our table does not know it.
fn passed(facts: &Facts) -> Cause {
    let to = facts.asked.to;
    if let Some(node_port) = &facts.node_port {
        let listener = facts.node.as_ref().and_then(|node| node.listener.as_ref());
        if let Some(daemon) = listener.filter(|who| to.ip().is_loopback() && who.ends_with("(nftproxyd)")) {
            let what = format!(
                "{} of {} is a node port, which {daemon} serves on {}: it connects to an address of the node that accepts node \
                 ports",
                to.port(),
                node_port.service,
                to.ip()
            );
            return decides(Reason::NodePortAddress, Verdict::NotOurs, what);
        }
        let what = if to.ip().is_loopback() {
            format!(
                "{} of {} is a node port, and those are not served on loopback addresses",
                to.port(),
                node_port.service
            )
        } else {
            let accepting = listed(facts.accepting.iter().map(ToString::to_string).collect::<Vec<_>>().into_iter());
            format!(
                "{} of {} is a node port, and those are served on {accepting} only (nodePortAddresses)",
                to.port(),
                node_port.service
            )
        };
        let fix = facts.accepting.iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
        let cause = decides(Reason::NodePortAddress, Verdict::NotOurs, what);
        return match fix {
            Some(address) => cause.fix(format!("connect to {}", SocketAddr::new(*address, to.port()))),
            None => cause,
        };
    }
    if let Some(interface) = &facts.local_at {
        let nobody = facts.node.as_ref().is_some_and(|node| node.listener.is_none());
        let nobody = if nobody {
            format!(", and nobody listens on {} {}", facts.asked.protocol, to.port())
        } else {
            String::new()
        };
        let what = format!("{} is an address of this node ({interface}){nobody}", to.ip());
        return decides(Reason::LocalAddress, Verdict::NotOurs, what);
    }
    if facts.neighbours.is_empty() {
        return decides(Reason::NoService, Verdict::NotOurs, format!("no Service has {}", to.ip()));
    }
    let what = format!("no Service has {to} {}; {}: {}", facts.asked.protocol, to.ip(), words::neighbours(facts));
    decides(Reason::NoSuchPort, Verdict::NotOurs, what)
}

/// What is wrong behind our table.
fn of_endpoints(facts: &Facts, causes: &mut Vec<Cause>) {
    if let Some(remembered) = facts.remembered
        && facts.reachable().any(|it| it.endpoint == remembered.endpoint)
        && facts
            .frontend
            .as_ref()
            .is_some_and(|it| !it.endpoints.iter().any(|it| it.address == remembered.endpoint && !it.removed))
    {
        let Asked { from, to, protocol, .. } = &facts.asked;
        let what = format!(
            "the client is remembered at {} for {} s still, which the Service does not have",
            remembered.endpoint, remembered.seconds_left
        );
        let fix = format!(
            "nft delete element {} affinity '{{ {from} . {} . {protocol} . {} }}'; nftproxyd forgets such clients where it runs",
            facts.table_name(),
            to.ip(),
            to.port()
        );
        causes.push(decides(Reason::RememberedEndpointGone, Verdict::NotServed, what).fix(fix));
    }
    let Some(node) = &facts.node else { return };
    for reached in facts.reachable() {
        if let Some(to) = node.to_endpoints.get(&reached.endpoint) {
            of_endpoint(facts, reached.endpoint, to, causes);
        }
    }
}

/// A next hop that has not answered. The next packet has it asked for again, so it is not said to be lost.
fn unanswered(Silent { address, device, state }: &Silent, endpoint: SocketAddr) -> Cause {
    let asked = if address.is_ipv4() { "ARP" } else { "ND" };
    let router = if *address == endpoint.ip() { "" } else { ", the router on the way" };
    let what = format!("nobody answers {asked} for {address} on {device} ({state}){router}");
    let fix = format!("ip neigh show {address} dev {device}; see whether a pod or node with this address is there");
    decides(Reason::NeighbourDoesNotAnswer, Verdict::NotServed, what).fix(fix).at(endpoint)
}

fn of_endpoint(facts: &Facts, endpoint: SocketAddr, to: &ToEndpoint, causes: &mut Vec<Cause>) {
    match &to.way {
        Some(Way::Nowhere(why)) => {
            let what = format!("this node has no route to it ({why})");
            let fix = format!(
                "{} route get {}; see whether the network of pods works on this node",
                ip(facts),
                endpoint.ip()
            );
            causes.push(decides(Reason::NoRouteToEndpoint, Verdict::Dropped, what).fix(fix).at(endpoint));
        }
        Some(Way::NotForwarded(setting, fix)) => {
            let what = format!("packets are not forwarded ({setting})");
            causes.push(decides(Reason::NotForwarded, Verdict::Dropped, what).fix(fix).at(endpoint));
        }
        Some(Way::ReversePath(setting, fix)) => {
            let what = format!("the kernel drops packets of {} for their source ({setting})", facts.asked.from);
            causes.push(decides(Reason::ReversePath, Verdict::Dropped, what).fix(fix).at(endpoint));
        }
        Some(Way::By(..) | Way::Local) | None => {}
    }
    causes.extend(to.met.iter().filter_map(foreign).map(|cause| cause.at(endpoint)));
    causes.extend(followed::causes(facts, to).into_iter().map(|cause| cause.at(endpoint)));
    if let Some(silent) = &to.silent {
        causes.push(unanswered(silent, endpoint));
    }
    let port = "see whether the pod listens on this port (targetPort), and what filters on its node";
    match &to.probe {
        Some(Err(why)) => {
            let what = format!("it does not answer this node ({why})");
            causes.push(decides(Reason::EndpointDoesNotAnswer, Verdict::NotServed, what).fix(port).at(endpoint));
        }
        Some(Ok(())) => {}
        None if to.answered == 0 && to.unanswered > 0 => {
            let what = format!("it has answered none of {}", words::count(to.unanswered, "connection"));
            causes.push(decides(Reason::EndpointDoesNotAnswer, Verdict::NotServed, what).fix(port).at(endpoint));
        }
        None => {}
    }
}
