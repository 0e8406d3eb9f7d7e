//! Forgets what the kernel remembers of clients whose endpoint is gone.
//!
//! The map `affinity` is written by the kernel: a client of a frontend is sent where it was sent before, whether that
//! endpoint still serves or not. So entries that lead to an endpoint that their frontend no longer has are deleted as
//! soon as it lost it. A packet that was under way during the change may write one more, hence a second look.
//!
//! Reading the map takes seconds when it is full, so a thread does it ([`super::reader`]), which gives what it reads in
//! slices. Only the engine's own socket may delete, where tables have an owner; it does so in small portions, when nothing
//! else waits. What is to be deleted is decided by what is installed when a slice comes, and again just before a portion is
//! sent: an endpoint may have come back. So it does no harm that a slice is old, or that the look was torn by a change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{debug, warn};

use crate::model::{Family, FrontendKey};
use crate::nftables::{Clients, Slice};
use crate::ruleset::backend::Backend;
use crate::ruleset::base::{AFFINITY_SIZE, Detector};
use crate::ruleset::frontend::{Action, Frontend};
use crate::ruleset::read::Remembered;

/// When to look a second time: by then the first packet of every connection that was under way has passed.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Looking costs time, in proportion to the square of the clients remembered: after a look, there is none for so many times
/// as long as it took. Longer would spare the processor, and leave clients at endpoints that are gone.
const SHARE: u32 = 4;

/// The same of looks that have no reason but to know how many clients there are, and to find what a look has missed: they
/// take a hundredth of a processor at most.
const SHARE_OF_ROUTINE: u32 = 100;

/// The least time between two of these.
const ROUTINE: Duration = Duration::from_secs(30);

/// So many entries are deleted in one transaction: a change that comes meanwhile waits for one of them, about 0.2 ms.
const PORTION: usize = 128;

/// The longest wait after a failure; the first is [`SECOND_LOOK`], and it doubles with each further one.
const LONGEST_RETRY: Duration = Duration::from_secs(64);

/// What a look is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To find the clients of endpoints that are gone.
    Forget,
    /// To know how many clients there are. Where the kernel does not count them it finds as much as the other.
    Count,
}

/// A look that is under way.
#[derive(Debug)]
struct Look {
    purpose: Purpose,
    began: Instant,
    /// Whether all has been read; what remains is to delete what was found.
    read: Option<Clients>,
    deleted: usize,
}

/// When the entries of one family have to be looked through, and what was found.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    due: Option<Instant>,
    second_look: Option<Instant>,
    routine: Option<Instant>,
    not_before: Option<Instant>,
    /// Endpoints that some clients of a frontend may not be sent to any more, although others may. Each until a look that
    /// succeeds at this time or later, its second: an entry that is written after that belongs to a client that may. So
    /// these are at most the endpoints that there are.
    lost: BTreeMap<FrontendKey, HashMap<Backend, Instant>>,
    /// The wait after the last failure, while it fails.
    failing: Option<Duration>,
    look: Option<Look>,
    /// What has to be deleted, as far as was known when it was read. At most as many as the map has room for.
    found: Vec<Remembered>,
    /// Portions that could not be deleted as a whole.
    parts: Vec<Vec<Remembered>>,
    /// Whether the last look was torn: the next is one through all.
    torn: bool,
}

impl Sweeper {
    /// Takes note of what changes of frontends leave behind.
    pub(super) fn note<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a FrontendKey, Option<&'a Frontend>, Option<&'a Frontend>)>,
        now: Instant,
    ) {
        let until = self.earliest(now) + SECOND_LOOK;
        let mut leaves_any = false;
        for (key, old, new) in changes {
            let leaves_entries = leaves_stale_entries(old, new);
            leaves_any |= leaves_entries;
            if !leaves_entries && !self.lost.contains_key(key) {
                continue;
            }
            let (old, new) = (Reachable::of(old), Reachable::of(new));
            let by_some_only = new.by_some_only();
            let mut lost = self.lost.remove(key).unwrap_or_default();
            // What all clients may use again is not lost, and what none may is found without this.
            lost.retain(|backend, _| by_some_only.contains(backend));
            lost.extend(old.lost_in(&new).filter(|it| by_some_only.contains(it)).map(|backend| (*backend, until)));
            if !lost.is_empty() {
                self.lost.insert(*key, lost);
            }
        }
        if leaves_any {
            self.request(now);
        }
    }

    /// A frontend with affinity lost endpoints, or frontends with affinity were found at the start.
    pub(super) fn request(&mut self, now: Instant) {
        let at = self.earliest(now);
        self.due.get_or_insert(at);
        self.second_look = Some(at + SECOND_LOOK);
    }

    /// When a look that is asked for now can be.
    fn earliest(&self, now: Instant) -> Instant {
        self.not_before.map_or(now, |earliest| earliest.max(now))
    }

    /// When to begin a look, if there is none under way.
    pub(super) fn look_at(&self) -> Option<Instant> {
        let times = self.due.into_iter().chain(self.second_look).chain(self.routine);
        if self.look.is_some() { None } else { times.min() }
    }

    /// Whether it is time for a look, and for which. It then begins: [`Sweeper::has_read`] or [`Sweeper::fails`] has to
    /// follow.
    pub(super) fn begins(&mut self, now: Instant) -> Option<Purpose> {
        self.look_at().filter(|at| *at <= now)?;
        let of_routine = |at: Option<Instant>| at.is_none_or(|at| at > now);
        let counts = of_routine(self.due) && of_routine(self.second_look) && !self.torn;
        self.due = self.due.filter(|at| *at > now);
        self.second_look = self.second_look.filter(|at| *at > now);
        self.routine = None;
        self.torn = false;
        let purpose = if counts { Purpose::Count } else { Purpose::Forget };
        self.look = Some(Look { purpose, began: now, read: None, deleted: 0 });
        Some(purpose)
    }

    /// Some of the entries have been read; `frontend` is what is installed, `detector` that of the installed table.
    pub(super) fn takes<'a>(
        &mut self,
        slice: Slice,
        frontend: impl Fn(&FrontendKey) -> Option<&'a Frontend>,
        detector: Option<&Detector>,
    ) {
        let mut found = mem::take(&mut self.found);
        let mut remembering = self.remembering(|key| frontend(key), detector);
        found.extend(slice.clients.into_iter().filter(|client| remembering.is_stale(client)));
        found.truncate(AFFINITY_SIZE as usize);
        self.found = found;
    }

    /// All entries have been read.
    pub(super) fn has_read(&mut self, clients: Clients, family: Family, now: Instant) {
        if let Some(look) = &mut self.look {
            look.read = Some(clients);
        }
        self.may_end(family, now);
    }

    /// Whether there is something to be deleted.
    pub(super) fn has_found(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.read.is_some()) && !(self.found.is_empty() && self.parts.is_empty())
    }

    /// What to delete next; what need not be deleted any more is left out. It is not known whether each is still there.
    pub(super) fn portion<'a>(
        &mut self,
        frontend: impl Fn(&FrontendKey) -> Option<&'a Frontend>,
        detector: Option<&Detector>,
    ) -> Vec<Remembered> {
        let next = |sweeper: &mut Sweeper| {
            let most = sweeper.found.len().saturating_sub(PORTION);
            sweeper.parts.pop().unwrap_or_else(|| sweeper.found.split_off(most))
        };
        let mut portion = next(self);
        let mut remembering = self.remembering(|key| frontend(key), detector);
        portion.retain(|client| remembering.is_stale(client));
        portion
    }

    /// A portion has been deleted, or was none.
    pub(super) fn deleted(&mut self, count: usize, family: Family, now: Instant) {
        if let Some(look) = &mut self.look {
            look.deleted += count;
        }
        self.may_end(family, now);
    }

    /// One of a portion has run out meanwhile, which is no fault of anybody: it is found by halves.
    pub(super) fn halve(&mut self, mut portion: Vec<Remembered>, family: Family, now: Instant) {
        if portion.len() > 1 {
            let half = portion.split_off(portion.len() / 2);
            self.parts.extend([half, portion]);
        }
        self.may_end(family, now);
    }

    /// The look ends when all is read and deleted.
    fn may_end(&mut self, family: Family, now: Instant) {
        if self.has_found() {
            return;
        }
        let Some(look) = self.look.take_if(|look| look.read.is_some()) else { return };
        let Look { purpose, began, read: Some(clients), deleted } = look else { return };
        // It may have become as large as the map.
        self.found = Vec::new();
        self.torn = clients.torn;
        if purpose == Purpose::Forget {
            self.failing = None;
            self.lost.retain(|_, pairs| {
                pairs.retain(|_, until| *until > began);
                !pairs.is_empty()
            });
        }
        if deleted > 0 {
            debug!(%family, deleted, "forgot clients of endpoints that are gone");
        }
        self.rest(clients.took, now);
    }

    /// The look has failed, which is logged. The worst that happens is a client that is sent to an endpoint that is gone,
    /// until its entry runs out or the next look.
    pub(super) fn fails(&mut self, error: &dyn std::error::Error, family: Family, now: Instant) {
        if self.failing.is_none() {
            warn!(%family, "cannot forget the clients of endpoints that are gone: {error}; trying again");
        }
        let wait = self.failing.map_or(SECOND_LOOK, |wait| (wait * 2).min(LONGEST_RETRY));
        self.failing = Some(wait);
        self.second_look = Some(now + wait);
        let read = self.look.take().and_then(|look| look.read);
        (self.found, self.parts) = (Vec::new(), Vec::new());
        self.rest(read.map_or(Duration::ZERO, |clients| clients.took), now);
    }

    /// Nobody looks for so many times as long as it took.
    fn rest(&mut self, took: Duration, now: Instant) {
        self.not_before = Some(now + took * SHARE);
        self.routine = Some(now + (took * SHARE_OF_ROUTINE).max(ROUTINE));
    }

    /// To tell the entries that lead where a frontend, as `frontend` has it, would not send anybody.
    pub(super) fn remembering<'a, F: Fn(&FrontendKey) -> Option<&'a Frontend>>(
        &'a self,
        frontend: F,
        detector: Option<&Detector>,
    ) -> Remembering<'a, F> {
        let pods = match detector {
            Some(Detector::Source(pods)) => Some(*pods),
            Some(Detector::Interface(_) | Detector::InterfacePrefix(_)) | None => None,
        };
        Remembering { frontend, lost: &self.lost, pods, endpoints: HashMap::new() }
    }
}

/// Whether a change of a frontend may leave entries behind that must not be used any more.
fn leaves_stale_entries(old: Option<&Frontend>, new: Option<&Frontend>) -> bool {
    match (old.and_then(affinity), new.and_then(affinity)) {
        (Some(_), Some(_)) => Reachable::of(old).lost_in(&Reachable::of(new)).next().is_some(),
        // What an earlier life of the frontend left, or a node port's entries that look like its own.
        (None, Some(_)) => true,
        (Some(_), None) => true,
        (None, None) => false,
    }
}

fn affinity(frontend: &Frontend) -> Option<u32> {
    frontend.action.affinity()
}

/// The endpoints of a frontend: for clients inside the cluster, and for those outside.
struct Reachable<'a> {
    inside: &'a [Backend],
    outside: &'a [Backend],
}

impl<'a> Reachable<'a> {
    fn of(frontend: Option<&'a Frontend>) -> Self {
        let action = frontend.map_or(&Action::Drop, |frontend| &frontend.action);
        Reachable { inside: action.inside(), outside: action.outside() }
    }

    fn all(&self) -> impl Iterator<Item = &'a Backend> {
        self.inside.iter().chain(self.outside)
    }

    /// The endpoints that clients inside reach and those outside do not, or the other way round.
    fn by_some_only(&self) -> HashSet<&'a Backend> {
        let inside: HashSet<&Backend> = self.inside.iter().collect();
        let outside: HashSet<&Backend> = self.outside.iter().collect();
        inside.symmetric_difference(&outside).copied().collect()
    }

    /// The endpoints that clients inside, or those outside, no longer reach. An entry does not tell which of the two
    /// its client is, so either kind is forgotten, and chooses anew: all but those that are known to be pods.
    fn lost_in(&self, new: &Reachable<'_>) -> impl Iterator<Item = &'a Backend> {
        let lost = |old: &'a [Backend], new: &[Backend]| {
            let kept: HashSet<Backend> = new.iter().copied().collect();
            old.iter().filter(move |backend| !kept.contains(*backend))
        };
        lost(self.inside, new.inside).chain(lost(self.outside, new.outside))
    }
}

/// The endpoints of frontends with affinity, looked up as often as there are clients.
pub(super) struct Remembering<'a, F> {
    frontend: F,
    lost: &'a BTreeMap<FrontendKey, HashMap<Backend, Instant>>,
    /// The addresses of pods, where these are what tells a pod. An interface that a connection came by is not known
    /// afterwards.
    pods: Option<IpNet>,
    endpoints: HashMap<FrontendKey, HashSet<&'a Backend>>,
}

impl<'a, F: Fn(&FrontendKey) -> Option<&'a Frontend>> Remembering<'a, F> {
    /// Whether an entry leads where its frontend would not send anybody now.
    pub(super) fn is_stale(&mut self, entry: &Remembered) -> bool {
        // An address that is a frontend's own comes before the node ports, as in the rules.
        let by_address = entry.by_address();
        let key = if (self.frontend)(&by_address).is_some() { by_address } else { entry.by_node_port() };
        let endpoints = self.endpoints.entry(key).or_insert_with(|| {
            let frontend = (self.frontend)(&key).filter(|frontend| affinity(frontend).is_some());
            Reachable::of(frontend).all().collect()
        });
        if !endpoints.contains(&entry.backend) {
            return true;
        }
        let is_lost = self.lost.get(&key).is_some_and(|lost| lost.contains_key(&entry.backend));
        // A policy for clients outside does not concern pods.
        is_lost && !(self.is_pod(entry) && self.inside(&key).contains(&entry.backend))
    }

    fn is_pod(&self, entry: &Remembered) -> bool {
        self.pods.is_some_and(|pods| pods.contains(&entry.client))
    }

    fn inside(&self, key: &FrontendKey) -> &'a [Backend] {
        Reachable::of((self.frontend)(key)).inside
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::FrontendAt;
    use crate::model::{ObjectName, Protocol};
    use crate::nftables::CommitError;

    const NOBODY: Clients = Clients { count: 0, torn: false, took: Duration::ZERO };

    fn backend(nth: u32) -> Backend {
        let [_, a, b, c] = nth.to_be_bytes();
        Backend { address: [10, a, b, c].into(), port: NonZeroU16::MIN }
    }

    fn frontend(action: Action) -> Frontend {
        let service = ObjectName::new("shop", "web").expect("a name");
        Frontend { service, port_name: "http".into(), action, allowed_sources: None }
    }

    /// Clients outside reach the first of these only.
    fn split(all: &[Backend]) -> Frontend {
        let slots = |backends: &[Backend]| backends.iter().copied().collect();
        frontend(Action::Split { affinity: Some(60), cluster: slots(all), local: slots(&all[..1]) })
    }

    /// Everybody reaches all of these.
    fn open(all: &[Backend]) -> Frontend {
        let slots = all.iter().copied().collect();
        let masquerade = crate::ruleset::names::Masquerade::Always;
        let policy = crate::model::TrafficPolicy::Cluster;
        frontend(Action::Forward { policy, masquerade, affinity: Some(60), slots })
    }

    #[test]
    fn what_is_lost_never_grows_beyond_what_there_is() {
        let key = FrontendKey {
            at: FrontendAt::NodePort(Family::V4),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN.saturating_add(30_000),
        };
        for fails in [false, true] {
            let mut sweeper = Sweeper::default();
            let mut now = Instant::now();
            let mut old = open(&[backend(1), backend(2)]);
            for nth in 2..1_000 {
                // One goes elsewhere, and clients outside lose it; then it goes altogether.
                let between = split(&[backend(1), backend(nth)]);
                let next = open(&[backend(1), backend(nth + 1)]);
                for new in [between, next] {
                    sweeper.note([(&key, Some(&old), Some(&new))].into_iter(), now);
                    let lost: usize = sweeper.lost.values().map(HashMap::len).sum();
                    assert!(lost <= 1, "{lost} after {nth} endpoints");
                    old = new;
                }
                now += Duration::from_millis(100);
                if sweeper.begins(now).is_some() {
                    match fails {
                        true => sweeper.fails(&CommitError::Permission, Family::V4, now),
                        false => sweeper.has_read(NOBODY, Family::V4, now),
                    }
                }
            }
            sweeper.note([(&key, Some(&old), None)].into_iter(), now);
            assert!(sweeper.lost.is_empty());
        }
    }

    #[test]
    fn each_loss_has_its_own_end() {
        let key = |port| FrontendKey {
            at: FrontendAt::NodePort(Family::V4),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(port).expect("a port"),
        };
        let (whole, part) = (open(&[backend(1), backend(2)]), split(&[backend(1), backend(2)]));
        let mut sweeper = Sweeper::default();
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let look = |sweeper: &mut Sweeper, at| {
            if sweeper.begins(at).is_some() {
                sweeper.has_read(NOBODY, Family::V4, at);
            }
            sweeper.lost.keys().map(|key| key.port.get()).collect::<Vec<u16>>()
        };
        sweeper.note([(&key(1), Some(&whole), Some(&part))].into_iter(), ms(0));
        assert_eq!(look(&mut sweeper, ms(0)), [1]);
        sweeper.note([(&key(2), Some(&whole), Some(&part))].into_iter(), ms(600));
        assert_eq!(look(&mut sweeper, ms(600)), [1, 2]);
        // Something else of the second changes: nothing is lost anew.
        sweeper.note([(&key(2), Some(&part), Some(&part))].into_iter(), ms(900));
        sweeper.note([(&key(3), Some(&whole), Some(&part))].into_iter(), ms(1_200));
        assert_eq!(look(&mut sweeper, ms(1_200)), [2, 3]);
        assert_eq!(look(&mut sweeper, ms(2_200)), [] as [u16; 0]);
        assert_eq!(sweeper.look_at(), Some(ms(2_200) + ROUTINE));
    }
}
