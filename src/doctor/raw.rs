//! Rules of others that see packets of Services before they are tracked or translated: with `notrack` they are never
//! translated, with a drop they do not come to any Service.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::served::{Frontend, Wanted};
use super::{Finding, Subject};
use crate::leftovers::advice::Place;
use crate::leftovers::early::{Concern, Early, EarlyTable};
use crate::leftovers::legacy::Table;
use crate::leftovers::proof;
use crate::leftovers::tables::EarlyTables;
use crate::model::Family;

/// So many rules are looked at.
const RULES: usize = 100;

/// A rule, and where it is.
pub(super) struct Suspect<'a> {
    place: Place<'a>,
    /// Whether iptables' own command is to be used there.
    is_of_iptables: bool,
    saved: Option<&'a str>,
    early: Early,
}

/// The rules that may concern Services.
pub(super) fn suspects<'a>(listed: &'a EarlyTables, legacy: &'a [Table]) -> Vec<Suspect<'a>> {
    let mut suspects = Vec::new();
    for ((family, name), table) in listed {
        let is_of_iptables = *family != "inet" && table.bases.iter().any(|(chain, hook)| *chain == hook.to_uppercase());
        suspects.extend(table.found().into_iter().map(|early| Suspect {
            place: Place::Nft(family, name),
            is_of_iptables,
            saved: None,
            early,
        }));
    }
    for Table { program, name, saved } in legacy {
        // The others are behind the translation.
        if !["raw", "mangle"].contains(&name.as_str()) {
            continue;
        }
        let Ok(saved) = saved else { continue };
        suspects.extend(EarlyTable::of_saved(saved).found().into_iter().map(|early| Suspect {
            place: Place::Legacy(program, name),
            is_of_iptables: true,
            saved: Some(saved),
            early,
        }));
    }
    suspects.truncate(RULES);
    suspects
}

impl Suspect<'_> {
    /// Whether it is about packets of a family.
    fn is_of(&self, family: Family) -> bool {
        let by_place = match self.place {
            Place::Nft("ip", _) | Place::Legacy("iptables-legacy", _) => family == Family::V4,
            Place::Nft("ip6", _) | Place::Legacy("ip6tables-legacy", _) => family == Family::V6,
            _ => true,
        };
        by_place && self.early.concern.to.is_none_or(|to| Family::of(to.addr()) == family)
    }
}

/// What is to be looked for among the frontends of a family: one that each suspect is about. `local` are the node's
/// addresses: what goes to them is answered here, as by a DNS cache of the node that has the address of a Service.
pub(super) fn wanted<'a>(suspects: &'a [Suspect<'a>], family: Family, local: &'a BTreeSet<IpAddr>) -> Wanted<'a> {
    let about = move |concern: &Concern, frontend: &Frontend| {
        let to = match (concern.to, frontend.address) {
            (None, _) => true,
            (Some(to), Some(address)) => to.contains(&address) && !local.contains(&address),
            (Some(to), None) => local.iter().any(|address| to.contains(address)),
        };
        to && is_about_port(concern, frontend)
    };
    let wanted = suspects.iter().map(|suspect| -> Box<dyn Fn(&Frontend) -> bool + 'a> {
        if suspect.is_of(family) {
            Box::new(move |frontend| about(&suspect.early.concern, frontend))
        } else {
            Box::new(|_| false)
        }
    });
    wanted.collect()
}

fn is_about_port(concern: &Concern, frontend: &Frontend) -> bool {
    let protocol = concern.protocol.is_none_or(|protocol| protocol == frontend.protocol.number());
    protocol && concern.ports.is_none_or(|(first, last)| (first..=last).contains(&frontend.port))
}

/// Whether packets to a frontend at an address of the node's own are kept from translation by a rule for that address, so
/// that they come to who listens there: it is meant so, as by a DNS cache of the node.
pub(super) fn is_left_alone(suspects: &[Suspect<'_>], frontend: &Frontend) -> bool {
    suspects.iter().any(|Suspect { early: Early { concern, drops, .. }, .. }| {
        let is_there = concern.to.zip(frontend.address).is_some_and(|(to, address)| to.contains(&address));
        is_there && !drops && is_about_port(concern, frontend)
    })
}

/// What there is to say about the suspects; `about` is the frontend that one was found to be about, by its number.
pub(super) fn judge(suspects: &[Suspect<'_>], about: impl Fn(usize) -> Option<Frontend>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, suspect) in suspects.iter().enumerate() {
        let Some(frontend) = &about(number) else { continue };
        let Early { hook, chain, nth, drops, .. } = &suspect.early;
        let rule = proof::Rule { place: &suspect.place, chain, nth: *nth, saved: suspect.saved };
        let whose = if *hook == "output" { "of this node " } else { "" };
        let what = if *drops {
            format!(
                "a rule of {} drops connections {whose}to Services, before they are translated",
                suspect.place.chain_name(chain)
            )
        } else {
            format!(
                "a rule of {} takes packets {whose}to Services out of connection tracking: they are never translated",
                suspect.place.chain_name(chain)
            )
        };
        let at = frontend.address.map_or_else(
            || format!("node port {}", frontend.port),
            |address| std::net::SocketAddr::new(address, frontend.port).to_string(),
        );
        let fix = format!("if it is not meant so: {}", rule.deletion(suspect.is_of_iptables));
        findings.push(Finding::check(Subject::Raw, what, fix).proof(rule.text()).proof(format!(
            "{at} ({}) is Service {}'s",
            frontend.protocol.name(),
            crate::printable::printable(&frontend.service)
        )));
    }
    findings
}
