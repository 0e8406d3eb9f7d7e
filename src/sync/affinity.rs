//! Forgets what the kernel remembers of clients whose endpoint is gone.
//!
//! The map `affinity` is written by the kernel: a client of a frontend is sent where it was sent before, whether that
//! endpoint still serves or not. So entries that lead to an endpoint that their frontend no longer has are deleted as
//! soon as it lost it. A packet that was under way during the change may write one more, hence a second look.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::diff::{Installed, Operation, Transaction};
use crate::model::{Family, FrontendKey};
use crate::nftables::{CommitError, Kernel, KernelError};
use crate::ruleset::base;
use crate::ruleset::frontend::{Action, Backend, Frontend};
use crate::ruleset::names::SetName;
use crate::ruleset::read::Remembered;

/// When to look a second time: by then the first packet of every connection that was under way has passed.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Looking costs time in proportion to the clients remembered: it may take at most one part in so many.
const SHARE: u32 = 10;

/// So many entries are deleted in one transaction: it fails as a whole if one of them runs out just then.
const DELETIONS_PER_TRANSACTION: usize = 500;

/// How often the map is read again because an entry ran out just then.
const ATTEMPTS: usize = 5;

/// The longest wait after a failure; the first is [`SECOND_LOOK`], and it doubles with each further one.
const LONGEST_RETRY: Duration = Duration::from_secs(64);

/// When the entries of one family have to be looked through.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    due: Option<Instant>,
    second_look: Option<Instant>,
    not_before: Option<Instant>,
    /// Endpoints that some clients of a frontend may not be sent to any more, although others may.
    lost: HashSet<(FrontendKey, Backend)>,
    /// The wait after the last failure, while it fails.
    failing: Option<Duration>,
}

impl Sweeper {
    /// Takes note of what changes of frontends leave behind.
    pub(super) fn note<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a FrontendKey, Option<&'a Frontend>, Option<&'a Frontend>)>,
        now: Instant,
    ) {
        let mut leaves_any = false;
        for (key, old, new) in changes.filter(|(_, old, new)| leaves_stale_entries(*old, *new)) {
            leaves_any = true;
            let (old, new) = (Reachable::of(old), Reachable::of(new));
            let still_used: HashSet<&Backend> = new.all().collect();
            self.lost.extend(old.lost_in(&new).filter(|it| still_used.contains(it)).map(|backend| (*key, *backend)));
        }
        if leaves_any {
            self.request(now);
        }
    }

    /// A frontend with affinity lost endpoints, or frontends with affinity were found at the start.
    pub(super) fn request(&mut self, now: Instant) {
        let at = self.not_before.map_or(now, |earliest| earliest.max(now));
        self.due.get_or_insert(at);
        self.second_look = Some(at + SECOND_LOOK);
    }

    /// When to call [`Sweeper::sweep`].
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.second_look).min()
    }

    /// Deletes stale entries, if it is time. Failures are logged: the worst that happens is a client that is sent to an
    /// endpoint that is gone, until its entry runs out or the next sweep. Returns whether nothing failed.
    pub(super) fn sweep(
        &mut self,
        kernel: &mut dyn Kernel,
        family: Family,
        installed: &Installed,
        now: Instant,
    ) -> bool {
        if self.wake_at().is_none_or(|at| at > now) {
            return true;
        }
        self.due = None;
        self.second_look = self.second_look.filter(|at| *at > now);
        let started = Instant::now();
        let forgotten = forget_stale(kernel, family, installed, &self.lost);
        match &forgotten {
            Ok(entries) => {
                self.failing = None;
                if *entries > 0 {
                    debug!(%family, entries, "forgot clients of endpoints that are gone");
                }
            }
            Err(error) => {
                if self.failing.is_none() {
                    warn!(%family, "cannot forget the clients of endpoints that are gone: {error}; trying again");
                }
                let wait = self.failing.map_or(SECOND_LOOK, |wait| (wait * 2).min(LONGEST_RETRY));
                self.failing = Some(wait);
                self.second_look = Some(now + wait);
            }
        }
        if self.second_look.is_none() {
            self.lost.clear();
        }
        self.not_before = Some(now + started.elapsed() * SHARE);
        forgotten.is_ok()
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

    /// The endpoints that clients inside, or those outside, no longer reach. An entry does not tell which of the two
    /// its client is, so either kind is forgotten, and chooses anew.
    fn lost_in(&self, new: &Reachable<'_>) -> impl Iterator<Item = &'a Backend> {
        let lost = |old: &'a [Backend], new: &[Backend]| {
            let kept: HashSet<Backend> = new.iter().copied().collect();
            old.iter().filter(move |backend| !kept.contains(*backend))
        };
        lost(self.inside, new.inside).chain(lost(self.outside, new.outside))
    }
}

/// Returns how many entries were deleted.
fn forget_stale(
    kernel: &mut dyn Kernel,
    family: Family,
    installed: &Installed,
    lost: &HashSet<(FrontendKey, Backend)>,
) -> Result<usize, SweepError> {
    let set = base::set(SetName::Affinity);
    let mut remembering = Remembering::new(installed, lost);
    let mut attempt = 1;
    let mut deleted = 0;
    'look: loop {
        // What is no entry of ours is left alone.
        let mut stale = kernel.elements(family, &set)?;
        stale.retain(|entry| Remembered::read(entry).is_some_and(|entry| remembering.is_stale(&entry)));
        for some in stale.chunks(DELETIONS_PER_TRANSACTION) {
            let operations = vec![Operation::DeleteElements(SetName::Affinity, some.to_vec())];
            match kernel.commit(&Transaction { family, operations }) {
                Ok(_) => deleted += some.len(),
                Err(CommitError::Refused { .. } | CommitError::Busy) if attempt < ATTEMPTS => {
                    attempt += 1;
                    continue 'look;
                }
                Err(error) => return Err(error.into()),
            }
        }
        return Ok(deleted);
    }
}

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Read(#[from] KernelError),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// The endpoints of frontends with affinity, looked up as often as there are clients.
struct Remembering<'a> {
    installed: &'a Installed,
    lost: &'a HashSet<(FrontendKey, Backend)>,
    endpoints: HashMap<FrontendKey, HashSet<&'a Backend>>,
}

impl<'a> Remembering<'a> {
    fn new(installed: &'a Installed, lost: &'a HashSet<(FrontendKey, Backend)>) -> Self {
        Remembering { installed, lost, endpoints: HashMap::new() }
    }

    /// Whether an entry leads where its frontend would not send anybody now.
    fn is_stale(&mut self, entry: &Remembered) -> bool {
        // An address that is a frontend's own comes before the node ports, as in the rules.
        let by_address = entry.by_address();
        let key = if self.installed.frontend(&by_address).is_some() { by_address } else { entry.by_node_port() };
        let endpoints = self.endpoints.entry(key).or_insert_with(|| {
            let frontend = self.installed.frontend(&key).filter(|frontend| affinity(frontend).is_some());
            Reachable::of(frontend).all().collect()
        });
        !endpoints.contains(&entry.backend) || self.lost.contains(&(key, entry.backend))
    }
}
