//! One family's table: what the kernel holds of it, which Services have to be looked at again, what went wrong.

mod chains;
mod replace;
mod send;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use chains::Idle;
use replace::Replaced;

use super::affinity::Sweeper;
use super::crowd::Crowded;
use super::failure::{FIRST_RETRY, Failure};
use super::mend::{frame_repairs, must_be_replaced};
use super::misfits::Misfits;
use super::pass::Pass;
use super::remembers::Remembers;
use super::report::SyncError;
use super::sample::Sample;
use super::standing::{MOST_NAMED, Refused, Standing};
use super::told::Told;
use crate::diff::{self, Installed, Operation, Recovered, Stage};
use crate::errors;
use crate::model::{Family, ObjectName};
use crate::nftables::{CommitError, Snapshot, table_flag};
use crate::ruleset::Ruleset;
use crate::ruleset::base::{self, FrameFacts};
use crate::ruleset::frontend::Frontend;
use crate::ruleset::names::SetName;
use crate::ruleset::read::Contents;
use crate::ruleset::service::ServicePart;
use crate::ruleset::text;
use crate::ruleset::types::Element;

/// About how many elements go into one transaction. It holds a mutex of the kernel that every other user of nftables
/// waits for; an element costs 3 to 4 microseconds there, so this is some 20 ms.
const ELEMENTS_PER_TRANSACTION: usize = 6_000;

/// A table of more ([`Cluster::squares`](super::cluster::Cluster::squares)), such as one with a set of 141,000 elements, is
/// not read at a start but written anew. To read takes the kernel a time in proportion to the squares: for 10,000 Services
/// of 10 endpoints a little less than to take all anew, for 100,000 of one more, for 10,000 of 50 five times as long. But
/// to write holds up other users of nftables, 2.5 us for each element, and takes the daemon memory; to read does not.
const READ_AT_MOST: u64 = 20_000_000_000;

/// How often a table is asked for that another program owns.
const OWNER_PAUSE: Duration = Duration::from_millis(100);

/// The least pause after a sync that somebody else disturbed. It is as long as that sync was, up to [`FIRST_RETRY`]: what is
/// undone again and again takes at most half of a processor, and there is at most one such sync for each change of others.
const DISTURBED_PAUSE: Duration = Duration::from_millis(20);

/// One family's table.
pub(super) struct Table {
    family: Family,
    facts: FrameFacts,
    /// The facts of the frame that the kernel holds.
    sent: FrameFacts,
    /// Whether `installed` and `sent` are what the kernel holds. If not, they are read back before anything is sent.
    known: bool,
    installed: Installed,
    nodeport_ips: BTreeSet<IpAddr>,
    dirty: BTreeSet<ObjectName>,
    /// Services that the kernel refuses.
    refused: BTreeMap<ObjectName, Failure>,
    /// Services with more endpoints than there is room for.
    crowded: Crowded,
    /// Services whose weights are not met.
    misfits: Misfits,
    /// Set while the whole table cannot be synced.
    failing: Option<Failure>,
    /// After a sync that somebody else disturbed: when to try again.
    paused: Option<Instant>,
    /// Whether there was one since the last that came to its end.
    contested: bool,
    /// What was said of repairs.
    repairs: Told,
    /// Whether a read-back after one found the table as it was known: others change tables of their own.
    only_others: bool,
    /// Whether, since it was read, somebody was at work and was taken for one of those.
    doubted: bool,
    /// Whether the table was made by this process and has never held all Services: it drops nothing yet.
    unfinished: bool,
    /// The longest wait between two attempts.
    longest_retry: Duration,
    /// Forgets the clients of endpoints that are gone.
    sweeper: Sweeper,
    /// How many clients the kernel remembers.
    remembers: Remembers,
    /// Deletes the chains that nobody uses.
    idle: Idle,
    /// How many elements each set has, without those that the kernel writes.
    elements: BTreeMap<SetName, usize>,
    /// Whether somebody else has changed the table, or may have, since it was last known.
    disturbed: bool,
    /// Whether it has been looked at before: a table whose elements are to be known is read, but at a start it may be faster to
    /// write it anew.
    looked: bool,
    /// Whether others may have changed something, since the table was last read, without being heard.
    unheard: bool,
    /// Whether nobody else shall be able to change the table.
    to_own: bool,
    /// Whether nobody else can.
    owned: bool,
}

impl Table {
    pub(super) fn new(facts: FrameFacts, nodeport_ips: BTreeSet<IpAddr>, longest_retry: Duration) -> Table {
        Table {
            family: facts.family,
            sent: facts.clone(),
            facts,
            known: false,
            installed: Installed::default(),
            nodeport_ips,
            dirty: BTreeSet::new(),
            refused: BTreeMap::new(),
            crowded: Crowded::default(),
            misfits: Misfits::default(),
            failing: None,
            paused: None,
            contested: false,
            repairs: Told::default(),
            only_others: false,
            doubted: false,
            unfinished: false,
            longest_retry,
            sweeper: Sweeper::default(),
            remembers: Remembers::default(),
            idle: Idle::default(),
            elements: BTreeMap::new(),
            disturbed: false,
            looked: false,
            unheard: false,
            to_own: false,
            owned: false,
        }
    }

    /// What it is called in messages.
    fn name(&self) -> text::Title {
        text::table(self.facts.table, self.family)
    }

    pub(super) fn facts(&self) -> &FrameFacts {
        &self.facts
    }

    /// What the frame that the kernel holds depends on, if it is known.
    pub(super) fn frame(&self) -> Option<&FrameFacts> {
        self.known.then_some(&self.sent)
    }

    pub(super) fn installed(&self) -> &Installed {
        &self.installed
    }

    pub(super) fn elements(&self) -> &BTreeMap<SetName, usize> {
        &self.elements
    }

    pub(super) fn refused(&self) -> usize {
        self.refused.len()
    }

    /// How many clients the kernel remembers.
    pub(super) fn remembered(&self) -> usize {
        self.remembers.count()
    }

    /// Before the first sync: whether nobody else shall be able to change the table.
    pub(super) fn own(&mut self, own: bool) {
        self.to_own = own;
    }

    /// Whether it is known that nobody else can change the table.
    pub(super) fn is_owned(&self) -> bool {
        self.owned && self.known
    }

    /// The facts that the frame depends on have changed.
    pub(super) fn set_facts(&mut self, facts: FrameFacts) {
        self.facts = facts;
    }

    /// The addresses that accept node ports have changed.
    pub(super) fn set_nodeport_ips(&mut self, addresses: BTreeSet<IpAddr>) {
        self.nodeport_ips = addresses;
    }

    /// A Service has to be looked at again.
    pub(super) fn touch(&mut self, name: &ObjectName) {
        if !self.dirty.contains(name) {
            self.dirty.insert(name.clone());
        }
    }

    /// The kernel's table may not be what it was: read it back at the next sync.
    pub(super) fn distrust(&mut self) {
        self.known = false;
        self.disturbed = true;
    }

    /// Whether others may have changed the table since it was read, whatever the kernel says now.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Whether a sync at `now` would do anything.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        match self.paused.or(self.failing.as_ref().map(|failure| failure.at)) {
            Some(at) => at <= now,
            None => self.is_behind() || self.wake_at().is_some_and(|at| at <= now),
        }
    }

    /// Whether something is to be done, apart from what the kernel refused.
    pub(super) fn is_behind(&self) -> bool {
        !self.known
            || !self.dirty.is_empty()
            || self.nodeport_ips != *self.installed.nodeport_ips()
            || self.failing.is_some()
            || self.sent != self.facts
    }

    /// How the table stands to what is wanted of it.
    pub(super) fn standing(&self) -> Standing<'_> {
        match &self.failing {
            _ if self.paused.is_some() => Standing::Behind,
            Some(failure) => Standing::Failing(&failure.error),
            None if self.is_behind() => Standing::Behind,
            None if !self.refused.is_empty() => Standing::InLineBut(Refused(&self.refused)),
            None => Standing::InLine,
        }
    }

    /// When to sync again although nothing happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let refused = self.refused.values().map(|failure| failure.at).min();
        self.paused
            .or(self.failing.as_ref().map(|failure| failure.at))
            .or_else(|| refused.into_iter().chain(self.idle.wake_at()).min())
    }

    /// A Service that has endpoints, the one of `before` if it still has any.
    pub(super) fn sample(&self, before: Option<&Sample>) -> Option<Sample> {
        if self.installed.frontend_counts().served == 0 {
            return None;
        }
        let has_endpoints = |frontend: &&Frontend| !frontend.action.inside().is_empty();
        let kept = before.and_then(|before| {
            self.installed.frontend(&before.key).filter(has_endpoints).map(|frontend| (&before.key, frontend))
        });
        let (key, frontend) =
            kept.or_else(|| self.installed.frontends().find(|(_, frontend)| has_endpoints(frontend)))?;
        let elements = self.installed.elements(key).into_iter().filter(|(set, _)| !set.is_interval());
        Some(Sample {
            service: frontend.service.clone(),
            family: self.family,
            key: *key,
            facts: self.sent.clone(),
            owned: self.owned,
            elements: elements.collect(),
        })
    }

    /// Everything that the table should hold by now.
    pub(super) fn ruleset(&self) -> Ruleset {
        let mut elements: BTreeMap<SetName, Vec<Element>> = BTreeMap::new();
        for (set, element) in self.installed.all_elements() {
            elements.entry(set).or_default().push(element);
        }
        let sets = base::frame(&self.facts).sets.into_iter().map(|def| {
            let elements = elements.remove(&def.name).unwrap_or_default();
            (def, elements)
        });
        Ruleset {
            table: self.facts.table,
            family: self.family,
            sets: sets.collect(),
            chains: base::all_chains(self.installed.chains(), &self.facts),
        }
    }

    /// Brings the kernel's table in line.
    pub(super) fn sync(&mut self, pass: &mut Pass<'_>) {
        let now = pass.now;
        let started = Instant::now();
        self.paused = None;
        let due = self.refused.iter().filter(|(_, failure)| failure.at <= now).map(|(name, _)| name.clone());
        self.dirty.extend(due);
        let table = self.name();
        match self.attempt(pass) {
            Ok(()) => {
                self.unfinished = false;
                let again = self.failing.take().is_some() | mem::take(&mut self.contested);
                match (again, self.standing()) {
                    (false, _) => {}
                    (true, Standing::InLineBut(refused)) => {
                        info!("table {table} is in sync again but for {refused}");
                    }
                    (true, _) => info!("table {table} is in sync again"),
                }
                let report = pass.report.family(self.family);
                report.repaired = mem::take(&mut self.disturbed) && !report.commits.is_empty();
                // That others were at work for longer, and it is over, has been said above.
                if report.repaired
                    && !again
                    && let Some(before) = self.repairs.again(now)
                {
                    info!("table {table} is repaired{before}");
                }
                self.tidy(pass);
                if mem::take(&mut self.unheard) && !self.owned {
                    self.distrust();
                }
            }
            Err(error) if error.is_disturbance() => {
                if !mem::replace(&mut self.contested, true) {
                    warn!("table {table} cannot be synced yet: {error}; it is read back until it can");
                }
                debug!("table {table}: {}", errors::text(&error));
                self.distrust();
                let took = started.elapsed();
                self.paused = Some(now + took + took.clamp(DISTURBED_PAUSE, FIRST_RETRY));
                pass.report.failures += 1;
                pass.report.fatal.get_or_insert(error);
            }
            Err(error) => {
                let mut failure = Failure::after(self.failing.as_ref(), errors::text(&error), now, self.longest_retry);
                if matches!(error, SyncError::Commit(CommitError::Owned(_))) {
                    // Another one of us is about to end, as a rule.
                    failure = failure.within(OWNER_PAUSE, now);
                }
                if self.failing.as_ref().is_none_or(|previous| previous.error != failure.error) {
                    let wait = failure.wait.as_millis();
                    error!("table {table} cannot be synced: {}; next try in {wait} ms", failure.error);
                }
                self.failing = Some(failure);
                // A kernel that did nothing still holds what it held, unless others were at work.
                self.known &= matches!(
                    error,
                    SyncError::Commit(CommitError::Busy | CommitError::Permission | CommitError::Owned(_))
                ) && self.is_undisturbed(pass);
                pass.report.failures += 1;
                pass.report.fatal.get_or_insert(error);
            }
        }
        if let more @ 1.. = pass.newly_refused.saturating_sub(MOST_NAMED) {
            error!("table {table}: and {more} more Services are refused; they stay as they were and are tried again");
        }
    }

    fn attempt(&mut self, pass: &mut Pass<'_>) -> Result<(), SyncError> {
        let mut read_back = false;
        loop {
            if !self.known {
                self.read_back(pass)?;
                read_back = true;
            }
            match self.send_changes(pass, read_back) {
                Ok(()) => return Ok(()),
                Err(SyncError::Commit(error)) if !read_back && worth_reading_back(&error) => {
                    // Somebody may have changed the table; with its real state in hand the error may go away.
                    warn!("{}; reading the kernel's table back", errors::text(&error));
                    self.known = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the kernel's table, repairs its frame and marks every Service to be looked at again.
    fn read_back(&mut self, pass: &mut Pass<'_>) -> Result<(), SyncError> {
        (self.unheard, self.doubted) = (false, false);
        let mut facts = if self.unfinished { self.facts.before_all_services() } else { self.facts.clone() };
        let mut frame = base::frame(&facts);
        pass.report.family(self.family).full = true;
        let mut snapshot = self.look(pass, &frame)?;
        if self.keeps_extras(&snapshot) {
            facts.extras = self.facts.extras;
            frame = base::frame(&facts);
            snapshot = self.look(pass, &frame)?;
        }
        if !snapshot.table {
            self.unfinished = true;
            facts = facts.before_all_services();
            frame = base::frame(&facts);
        }
        // From here to the end of the sync the work is proportional to what there is: it is a start or a repair.
        self.dirty.append(&mut pass.cluster.services());
        self.dirty.extend(self.installed.services().cloned());
        let starts = !mem::replace(&mut self.looked, true);
        if must_be_replaced(&frame, &snapshot, self.to_own) {
            return self.replace_other(pass, &snapshot);
        }
        if starts && snapshot.table && pass.cluster.squares(self.family) > READ_AT_MOST {
            match self.replace_at_once(pass, &snapshot)? {
                Replaced::Whole => {
                    info!("table {} is so large that it has been written anew", self.name());
                    self.tell_flags(&snapshot);
                    return Ok(());
                }
                // Then it takes longer.
                Replaced::Refused { error, .. } => debug!("it cannot be written anew: {}", errors::text(&error)),
            }
        }
        let mut contents = Contents::new(self.family);
        for set in frame.sets.iter().filter(|set| !set.dynamic && snapshot.sets.contains(&set.name)) {
            let foreign = pass.kernel.read_elements(self.family, set, &mut |element| match element {
                Some(element) => contents.element(set.name, element),
                None => contents.forget(set.name),
            })?;
            snapshot.foreign_other.extend(foreign);
        }
        if !snapshot.foreign_other.is_empty() {
            return self.replace_other(pass, &snapshot);
        }
        let chains = snapshot.chains.iter().chain(&snapshot.other_rules).copied();
        // What was known before goes first: both at once would be most of the memory that the daemon uses.
        self.installed = Installed::default();
        let common = base::common(&self.facts);
        let Recovered { installed, unknown, missing, lost } =
            diff::recover(contents, chains, common, |name| pass.cluster.known(name));
        self.installed = installed;
        let on_demand = |name| base::on_demand(name, &self.facts);
        let mut transaction = frame_repairs(self.family, &frame, &snapshot, &lost, on_demand, self.to_own);
        let counts = mem::replace(&mut self.elements, self.installed.element_counts());
        let same = self.elements.iter().eq(counts.iter().filter(|(_, count)| **count > 0));
        for (set, element) in unknown {
            *self.elements.entry(set).or_default() += 1;
            transaction.operations.push(Operation::DeleteElements(set, vec![element]));
        }
        for (set, _) in &missing {
            *self.elements.entry(*set).or_default() -= 1;
        }
        transaction.elements(Operation::AddElements, missing);
        // Cheaper than to compare all, and not yet in doubt when somebody has in fact changed the table.
        let as_known = snapshot.table && same && transaction.is_empty();
        self.only_others = as_known && (self.only_others || self.contested);
        match self.send(pass, &transaction) {
            Ok(()) => {
                self.sent = facts;
                self.known = true;
            }
            Err(SyncError::Commit(error @ CommitError::Refused { .. })) => {
                // Foreign chains that refer to each other, say, or changes since the dump.
                let table = self.name();
                warn!("table {table} cannot be repaired and is replaced: {}", errors::text(&error));
                self.replace(pass, &snapshot)?;
            }
            Err(error) => return Err(error),
        }
        self.tell_flags(&snapshot);
        self.dirty.extend(self.installed.services().cloned());
        if self.facts.affinity {
            // Endpoints may have gone while nobody looked.
            self.sweeper.request(pass.now);
        }
        Ok(())
    }

    /// Says which flags were in the way. Only for a table that is mended.
    fn tell_flags(&self, before: &Snapshot) {
        let table = self.name();
        match before.table_flags {
            0 => {}
            table_flag::OWNED if self.to_own => {}
            table_flag::DORMANT => {
                warn!("table {table} was dormant, so that none of its rules had an effect; it is awake again");
            }
            flags => warn!("table {table} had the flags {flags:#x}, of which it needs none; they are gone"),
        }
    }

    /// The kernel holds this, and the frame of these facts.
    fn is_now(&mut self, installed: Installed, facts: FrameFacts) {
        self.installed = installed;
        self.sent = facts;
        self.known = true;
    }

    /// Sends what has to be changed, some thousand elements at a time, no Service's part divided.
    ///
    /// Cluster IPs that no Service has are dropped only when all Services are in place: until then another proxy may
    /// serve those that are still to come.
    fn send_changes(&mut self, pass: &mut Pass<'_>, read_back: bool) -> Result<(), SyncError> {
        let drops_nothing_yet = self.sent.service_cidrs.is_empty() && !self.dirty.is_empty();
        self.send_frame(pass, if drops_nothing_yet { self.facts.before_all_services() } else { self.facts.clone() })?;
        while !self.dirty.is_empty() {
            let mut stage = Stage::default();
            let mut names = Vec::new();
            while stage.weight() < ELEMENTS_PER_TRANSACTION
                && let Some(name) = self.dirty.pop_first()
            {
                let wanted = pass.cluster.wanted(&name, self.family, &self.installed);
                self.note_shortage(pass, &name, &wanted);
                stage.service(&self.installed, &name, wanted);
                names.push(name);
            }
            if let Err(error) = self.send_services(pass, stage, &names, read_back) {
                self.dirty.extend(names);
                return Err(error);
            }
        }
        if self.nodeport_ips != *self.installed.nodeport_ips() {
            let mut stage = Stage::default();
            stage.nodeport_ips(self.nodeport_ips.clone());
            self.send_stage(pass, stage)?;
        }
        if self.installed.has_unclaimed() && (read_back || self.refused.is_empty()) {
            // A Service that is refused keeps what was found of it.
            let spared = self.refused.keys().map(|name| pass.cluster.wanted(name, self.family, &self.installed));
            let spared: Vec<ServicePart> = spared.collect();
            let mut stage = Stage::default();
            stage.unclaimed(&self.installed, &spared);
            self.send_stage(pass, stage)?;
        }
        self.send_frame(pass, self.facts.clone())
    }

    /// Sends the changes of some Services. If the kernel refuses them, and nobody else has a hand in it, they are halved
    /// until those are found that it does refuse; these stay as they were and do not keep back the others.
    fn send_services(
        &mut self,
        pass: &mut Pass<'_>,
        stage: Stage,
        names: &[ObjectName],
        read_back: bool,
    ) -> Result<(), SyncError> {
        let error = match self.send_stage(pass, stage) {
            Ok(()) => {
                names.iter().for_each(|name| drop(self.refused.remove(name)));
                return Ok(());
            }
            Err(SyncError::Commit(error @ CommitError::Refused { .. })) => error,
            Err(error) => return Err(error),
        };
        let [name] = names else {
            let (first, second) = names.split_at(names.len() / 2);
            for half in [first, second] {
                let mut stage = Stage::default();
                for name in half {
                    stage.service(&self.installed, name, pass.cluster.wanted(name, self.family, &self.installed));
                }
                self.send_services(pass, stage, half, read_back)?;
            }
            return Ok(());
        };
        let previous = self.refused.get(name);
        if previous.is_none() && !read_back {
            return Err(error.into());
        }
        let failure = Failure::after(previous, errors::text(&error), pass.now, self.longest_retry);
        if previous.is_none_or(|previous| previous.error != failure.error) {
            pass.newly_refused += 1;
            if pass.newly_refused <= MOST_NAMED {
                error!(service = %name, "{}; the Service stays as it was and is tried again", failure.error);
            }
        }
        self.refused.insert(name.clone(), failure);
        pass.report.failures += 1;
        Ok(())
    }

    /// Says what a Service asks for and does not get.
    fn note_shortage(&mut self, pass: &mut Pass<'_>, name: &ObjectName, wanted: &ServicePart) {
        self.crowded.note(self.family, name, wanted.left_out);
        if let Some(why) = self.misfits.note(self.family, name, wanted.misfit) {
            pass.report.misfits.push((name.clone(), why));
        }
    }

    fn send_stage(&mut self, pass: &mut Pass<'_>, stage: Stage) -> Result<(), SyncError> {
        let transaction = stage.transaction(self.family, &self.installed, |name| base::on_demand(name, &self.facts));
        self.send(pass, &transaction)?;
        let changes = stage.frontends().map(|(key, new)| (key, self.installed.frontend(key), new));
        self.sweeper.note(changes, pass.now);
        pass.report.note_stage(&stage, &self.installed);
        stage.commit(&mut self.installed, &transaction);
        Ok(())
    }
}

/// Whether an error is a reason to read the table back, once, and go on from there.
fn worth_reading_back(error: &CommitError) -> bool {
    matches!(error, CommitError::Refused { .. } | CommitError::Unknown(_))
}
