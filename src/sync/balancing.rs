//! Services whose next connections go where the fewest are open: which they are, when to count, and how many slots each
//! endpoint gets by what was counted.
//!
//! Where none asks for it, nothing is counted. A count costs what it has seen, and what is installed by the one before: not what there
//! is of such Services.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arcstr::ArcStr;
use tracing::{info, warn};

use super::counter::{Counts, Tracked};
use crate::balance::{self, Balance, Rule};
use crate::model::claims::{Claims, Owner};
use crate::model::policy::{self, Target};
use crate::model::store::Store;
use crate::model::{Family, ObjectName, Protocol, Scheduler, Seen, Service, ServicePort};
use crate::ruleset::backend::Backend;
use crate::ruleset::slots::Shares;

/// How long it is after a count that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// About how much of a processor's time it takes to give a slot to another endpoint, in the daemon and in the kernel, and of
/// which part of a processor that is to be: as counting itself (`conntrack::period`).
const SLOT: Duration = Duration::from_micros(8);
const PARTS: u32 = 50;

/// After so many counts that may have left some out, nobody knows how many connections there are.
const MOST_INCOMPLETE: u32 = 10;

/// After so long a count that has not come is taken for failed.
const LATEST: Duration = Duration::from_secs(60);

/// A Service port in a family.
type PortKey = (ObjectName, Family, ArcStr, Protocol);

/// The port that a number stands for, and how many frontends it has.
type Numbered = (PortKey, u32);

/// What is known of the connections to one.
#[derive(Debug)]
struct Port {
    rule: Rule,
    balance: Balance<Backend>,
    /// When it was last counted.
    counted: Option<Instant>,
    /// None where nothing has been counted yet; empty where counts are of no use.
    shares: Option<Shares>,
}

/// All Service ports whose connections are counted.
#[derive(Debug, Default)]
pub(super) struct Balancing {
    ports: BTreeMap<PortKey, Port>,
    /// Those whose endpoints have slots by what was counted.
    by_counts: BTreeSet<PortKey>,
    /// What to count, with the port of each number; made anew where a Service has changed.
    tracked: Option<(Arc<Tracked>, Vec<Numbered>)>,
    /// The ports that numbers stand for in the count that is under way, and since when.
    asked: Option<(Vec<Numbered>, Instant)>,
    /// When to count again; `None`: at once.
    next: Option<Instant>,
    failing: bool,
    /// How many counts one after the other may have left some connections out.
    incomplete: u32,
}

impl Balancing {
    /// How many slots the endpoints of a Service port get: none where nothing is known yet, empty where turns are better.
    pub(super) fn of(&self, service: &ObjectName, port: &ServicePort, family: Family) -> Option<&Shares> {
        if self.ports.is_empty() {
            return None;
        }
        let key = (service.clone(), family, ArcStr::clone(&port.name), port.protocol);
        self.ports.get(&key)?.shares.as_ref()
    }

    /// A Service has changed, or who owns its frontends.
    pub(super) fn redefined(&mut self, name: &ObjectName, service: Option<&Service>, default: Scheduler) {
        let of_service = (name.clone(), Family::V4, ArcStr::new(), Protocol::Tcp)..;
        let known: Vec<PortKey> =
            self.ports.range(of_service).map(|(key, _)| key).take_while(|key| key.0 == *name).cloned().collect();
        let wanted: Vec<(PortKey, Rule)> = service
            .and_then(|service| Some((service, rule(service.scheduler.unwrap_or(default))?)))
            .into_iter()
            .flat_map(|(service, rule)| {
                let families = Family::ALL.into_iter().filter(|family| service.cluster_ips[*family].is_some());
                families.flat_map(move |family| {
                    let key = move |port: &ServicePort| (name.clone(), family, port.name.clone(), port.protocol);
                    service.ports.iter().map(move |port| (key(port), rule))
                })
            })
            .collect();
        if known.is_empty() && wanted.is_empty() {
            return;
        }
        self.tracked = None;
        for key in known.iter().filter(|key| wanted.iter().all(|(other, _)| other != *key)) {
            self.ports.remove(key);
            self.by_counts.remove(key);
        }
        for (key, rule) in wanted {
            let new = || Port { rule, balance: Balance::default(), counted: None, shares: None };
            self.ports.entry(key).or_insert_with(new).rule = rule;
        }
    }

    /// When to count again, if anything is to be counted.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.asked {
            // It has been told that nothing came.
            Some(_) if self.failing => None,
            Some((_, since)) => Some(*since + LATEST),
            None => self.next.filter(|_| !self.ports.is_empty()),
        }
    }

    /// What to count now, if it is time. Goes through the Services that ask for it, where one of them has changed.
    pub(super) fn begin(&mut self, store: &Store, claims: &Claims, now: Instant) -> Option<Arc<Tracked>> {
        if self.ports.is_empty() || self.asked.is_some() || self.next.is_some_and(|next| next > now) {
            return None;
        }
        let Balancing { ports, tracked, .. } = self;
        let (tracked, keys) = tracked.get_or_insert_with(|| track(ports.keys(), store, claims));
        self.asked = Some((keys.clone(), now));
        Some(Arc::clone(tracked))
    }

    /// Whether the count that is under way takes too long: nobody knows any more how many connections there are.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        !self.failing && self.asked.as_ref().is_some_and(|(_, since)| *since + LATEST <= now)
    }

    /// Takes in a count; returns the Services whose slots change.
    pub(super) fn hear(&mut self, counts: Result<Counts, String>, store: &Store, now: Instant) -> BTreeSet<ObjectName> {
        let keys = self.asked.take().map(|(keys, _)| keys).unwrap_or_default();
        match counts {
            Ok(counts) => {
                self.next = Some(now + counts.pause);
                self.incomplete = if counts.incomplete { self.incomplete.saturating_add(1) } else { 0 };
                if self.incomplete >= MOST_INCOMPLETE {
                    return self.fail("the kernel's list of them is interrupted each time");
                }
                if counts.incomplete {
                    return BTreeSet::new();
                }
                if std::mem::take(&mut self.failing) {
                    info!("open connections are counted again");
                }
                self.balance(&keys, &counts, store, now)
            }
            Err(error) => {
                self.next = Some(now + AFTER_FAILURE);
                self.fail(&error)
            }
        }
    }

    /// Connections cannot be counted: what was known of them is of no use any more. Returns the Services whose slots change.
    pub(super) fn fail(&mut self, error: &str) -> BTreeSet<ObjectName> {
        if !std::mem::replace(&mut self.failing, true) {
            let services = self.ports.keys().map(|(service, ..)| service).collect::<BTreeSet<_>>().len();
            warn!(
                "open connections cannot be counted: {error}; the endpoints of {services} Services that go by them take turns"
            );
        }
        self.by_counts.clear();
        let mut changed = BTreeSet::new();
        // Those of which nothing is known yet may go by what an earlier run has counted.
        for (key, port) in &mut self.ports {
            if port.shares.as_ref().is_none_or(|shares| !shares.is_empty()) {
                port.shares = Some(Shares::new());
                port.balance = Balance::default();
                changed.insert(key.0.clone());
            }
        }
        changed
    }

    fn balance(&mut self, keys: &[Numbered], counts: &Counts, store: &Store, now: Instant) -> BTreeSet<ObjectName> {
        let mut seen: HashMap<usize, HashMap<SocketAddr, Seen>> = HashMap::new();
        for (number, endpoint, of_endpoint) in &counts.seen {
            seen.entry(*number).or_default().insert(*endpoint, *of_endpoint);
        }
        // In order, so that what is done is one and the same.
        let is_unknown = |key| self.ports.get(key).is_some_and(|port| port.shares.is_none());
        let numbers: BTreeSet<usize> = (0..keys.len())
            .filter(|number| {
                let (key, _) = &keys[*number];
                seen.contains_key(number) || self.by_counts.contains(key) || is_unknown(key)
            })
            .collect();
        let mut changed = BTreeSet::new();
        let mut slots = 0;
        for number in numbers {
            let ((key, frontends), none) = (&keys[number], HashMap::new());
            let Some(port) = self.ports.get_mut(key) else { continue };
            let endpoints = endpoints(key, store);
            let of_endpoints = seen.get(&number).unwrap_or(&none);
            let of_endpoint = |(backend, _): &(Backend, u16)| {
                of_endpoints.get(&SocketAddr::new(backend.address, backend.port.get())).copied().unwrap_or_default()
            };
            let seen: Vec<Seen> = endpoints.iter().map(of_endpoint).collect();
            // To the first count everything is as after a long time, and it says nothing of those that there are.
            let says_nothing = port.counted.is_none() && !of_endpoints.is_empty();
            let elapsed = port.counted.replace(now).map_or(Duration::MAX, |before| now - before);
            let shares = match port.balance.look(elapsed, &endpoints, &seen, port.rule) {
                balance::Shares::Turns => Shares::new(),
                balance::Shares::Slots(slots) => {
                    endpoints.iter().map(|(backend, _)| *backend).zip(slots).collect::<Shares>()
                }
            };
            if says_nothing {
                continue;
            }
            if shares.is_empty() {
                self.by_counts.remove(key);
            } else {
                self.by_counts.insert(key.clone());
            }
            if port.shares.as_ref() != Some(&shares) {
                slots += moved(port.shares.as_ref(), &shares) * frontends;
                port.shares = Some(shares);
                changed.insert(key.0.clone());
            }
        }
        // Where many slots change at each count, there are fewer counts.
        self.next = Some(now + counts.pause.max((SLOT * slots * PARTS).min(LATEST)));
        changed
    }
}

/// How many slots change hands.
fn moved(before: Option<&Shares>, now: &Shares) -> u32 {
    let had = |backend| before.and_then(|before| before.get(backend)).copied().unwrap_or(0);
    let gains = now.iter().map(|(backend, slots)| slots.saturating_sub(had(backend))).sum();
    let all = before.map_or(0, |before| before.values().sum());
    // All of them, where turns are better from now on.
    if now.is_empty() { all } else { gains }
}

/// The frontends of these ports, each with the number of its port.
fn track<'a>(
    ports: impl Iterator<Item = &'a PortKey>,
    store: &Store,
    claims: &Claims,
) -> (Arc<Tracked>, Vec<Numbered>) {
    let (mut tracked, mut keys) = (Tracked::new(), Vec::new());
    for key @ (name, family, port_name, protocol) in ports {
        let Some(service) = store.service(name) else { continue };
        let is_it = |port: &&ServicePort| port.name == *port_name && port.protocol == *protocol;
        let before = tracked.len();
        for port in service.ports.iter().filter(is_it) {
            let frontends = service.frontends(port, *family);
            let owned = frontends.filter(|(key, role)| {
                claims.owner(key) == Some(Owner { service: name, port: &port.name, role: *role })
            });
            tracked.extend(owned.map(|(key, _)| (key, keys.len())));
        }
        keys.push((key.clone(), u32::try_from(tracked.len() - before).unwrap_or(u32::MAX)));
    }
    (Arc::new(tracked), keys)
}

/// The endpoints that connections of a Service port may go to on this node, with their weights.
fn endpoints((name, family, port_name, protocol): &PortKey, store: &Store) -> Vec<(Backend, u16)> {
    let Some(service) = store.service(name) else { return Vec::new() };
    let zone = store.node().and_then(|node| node.zone.as_deref());
    let is_it = |port: &&ServicePort| port.name == *port_name && port.protocol == *protocol;
    let Some(port) = service.ports.iter().find(is_it) else { return Vec::new() };
    let choice = policy::choose(service, port, *family, store.slices(name), zone);
    let mut targets: Vec<Target> = choice.cluster.into_iter().chain(choice.local).collect();
    targets.sort_unstable();
    targets.dedup();
    targets.iter().map(|target| (Backend::from(target), target.weight)).collect()
}

/// What a scheduler looks at, if it is the number of connections.
fn rule(scheduler: Scheduler) -> Option<Rule> {
    Some(match scheduler {
        Scheduler::LeastConnections => Rule::Lc,
        Scheduler::WeightedLeastConnections => Rule::Wlc,
        Scheduler::ShortestExpectedDelay => Rule::Sed,
        Scheduler::NeverQueue => Rule::Nq,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
