//! Why what follows the first packet of a connection is lost.

use super::super::facts::{Does, Facts, Followed, Met, ToEndpoint, Way, Which};
use super::super::report::{Cause, Effect, Reason, Stage, Verdict};
use super::words;

pub(super) fn decides(reason: Reason, verdict: Verdict, what: impl Into<String>) -> Cause {
    Cause { reason, effect: Effect::Decides(verdict), endpoint: None, what: what.into(), fix: None }
}

impl Cause {
    pub(super) fn fix(self, fix: impl Into<String>) -> Cause {
        Cause { fix: Some(fix.into()), ..self }
    }
}

/// The same, with what is to be done where the rule is one of kube-proxy.
pub(super) fn cleaned(cause: Cause, chain: &str, rule: &str) -> Cause {
    if chain.contains("kube-proxy") || chain.contains("KUBE-") || rule.contains("KUBE-") {
        Cause {
            reason: Reason::KubeProxyLeftover,
            ..cause.fix("stop kube-proxy, then: nftproxyd cleanup --kube-proxy")
        }
    } else {
        cause
    }
}

/// What the packet is called.
fn name(which: Which) -> &'static str {
    match which {
        Which::Answer => "the answer",
        Which::Later => "what the client sends after the answer",
        Which::LaterAnswer => "what the endpoint sends after its first answer",
    }
}

/// That it does not come to where it should.
fn lost(which: Which, what: String) -> Cause {
    match which {
        Which::Answer | Which::LaterAnswer => decides(Reason::AnswerLost, Verdict::NotServed, what),
        Which::Later => decides(Reason::LaterPacketLost, Verdict::Dropped, what),
    }
}

/// All that can be said of what follows a packet that comes to an endpoint. Of a rule that may drop one, it is not said of
/// the next.
pub(super) fn causes(facts: &Facts, to: &ToEndpoint) -> Vec<Cause> {
    let mut doubtful: Vec<&Met> = to.met.iter().collect();
    let mut causes = Vec::new();
    for followed in &to.followed {
        for met in &followed.met {
            if !matches!(met.does, Does::MayDrop(..)) || !doubtful.contains(&met) {
                causes.extend(foreign(followed.which, met));
                doubtful.push(met);
            }
        }
        causes.extend(of_way(facts, followed));
    }
    causes
}

/// Why it does not come there, whatever chains do.
fn of_way(facts: &Facts, Followed { which, way, met, other_zone }: &Followed) -> Option<Cause> {
    let name = name(*which);
    if *other_zone {
        let what = format!("a rule has {name} looked up in another zone of connection tracking than the first packet");
        return Some(lost(*which, what).fix("nft list ruleset | grep zone; iptables -t raw -S | grep zone"));
    }
    if met.iter().any(Met::ends) {
        return None;
    }
    match way {
        Way::By(..) | Way::Local => None,
        Way::Nowhere(why) => {
            let to = if *which == Which::Later { String::new() } else { format!(" to {}", facts.asked.from) };
            Some(lost(*which, format!("{name} has no route{to} ({why})")))
        }
        Way::NotForwarded(setting, fix) => Some(lost(*which, format!("{name} is not forwarded ({setting})")).fix(fix)),
        Way::ReversePath(setting, fix) => {
            Some(lost(*which, format!("the kernel drops {name} for its source ({setting})")).fix(fix))
        }
    }
}

/// What a chain of somebody else does to it that matters.
fn foreign(which: Which, met: &Met) -> Option<Cause> {
    /// What lets packets of connections pass, ahead of what drops them.
    const ESTABLISHED: &str = "have a rule ahead of it: ct state established,related accept";
    let Met { hook, chain, does } = met;
    let name = name(which);
    let unclear = |what: String| decides(Reason::ForeignRuleUnclear, Verdict::Unsure, what);
    let (cause, rule) = match does {
        Does::Passes => return None,
        Does::Drops(rule) => (lost(which, format!("{chain} ({hook}) drops {name}: {rule}")).fix(ESTABLISHED), rule),
        Does::Rejects(rule) => (lost(which, format!("{chain} ({hook}) refuses {name}: {rule}")).fix(ESTABLISHED), rule),
        Does::MayDrop(rule, why) => {
            (unclear(format!("{chain} ({hook}) may drop {name}, which cannot be told ({why}): {rule}")), rule)
        }
        // Nobody asks them of what has a connection.
        Does::Translates(rule) => (unclear(format!("{chain} ({hook}) may translate {name}: {rule}")), rule),
        Does::Takes(rule, to) => (unclear(format!("{chain} ({hook}) gives {name} to {to}: {rule}")), rule),
        Does::NotTracked(rule) => {
            let what = format!("{chain} ({hook}) has {name} not tracked, so that nobody translates it: {rule}");
            (lost(which, what), rule)
        }
    };
    Some(cleaned(cause, chain, rule))
}

/// Where it does not simply pass.
pub(super) fn stages(followed: &Followed) -> Vec<Stage> {
    let Followed { which, way, met, other_zone } = followed;
    let place = match which {
        Which::Answer | Which::LaterAnswer => "answer",
        Which::Later => "later",
    };
    let chains = met.iter().filter(|met| met.does != Does::Passes);
    let mut stages: Vec<Stage> = chains
        .map(|met| Stage { place, at: format!("{} ({})", met.chain, met.hook), does: words::does(&met.does) })
        .collect();
    if *other_zone {
        stages.push(Stage {
            place,
            at: "connection tracking".to_owned(),
            does: "LOOKED UP in another zone".to_owned(),
        });
    } else if !matches!(way, Way::By(..) | Way::Local) && !met.iter().any(Met::ends) {
        stages.push(Stage { place, at: "routing".to_owned(), does: words::route(way) });
    }
    stages
}
