//! How one kind is followed, whatever its API server does: what to ask next and when, what to make of an answer, and
//! what to say of it.
//!
//! Pure: an answer, an event, the end of a watch and the time go in; what is to be done comes out. It sees of objects
//! nothing but their versions.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::failure::{Failure, Scope};
use super::history::{Found, History, Named, Same};
use super::pace::{self, Failed, Pace, Pause};
use super::turns::Turns;
use super::version;
use crate::model::Kind;
use crate::source::following::{Followed, State};

/// A watch that lasted so long, or brought a change, is one that works; one that did not has failed, whatever the server
/// called it. (client-go has the same limit: `handleAnyWatch` in its `reflector.go`.)
pub(super) const LIVED: Duration = Duration::from_secs(1);

/// A kind that was followed and for which the server does not answer for so long is no longer followed.
pub(super) const OVERDUE: Duration = Duration::from_secs(4);

/// How soon to look whether a server does have an optional kind.
const FIRST_ABSENT_RETRY: Duration = Duration::from_secs(5);
/// The same, after some looks.
const ABSENT_RETRY: Duration = Duration::from_secs(300);

/// How long a watch is asked to last, at random, so that the proxies of a cluster do not come back all at once.
const WATCH: [Duration; 2] = [Duration::from_secs(200), Duration::from_secs(290)];

/// How long after another list all is listed again while watches come to nothing, though the server answers.
const POLLED: Duration = Duration::from_secs(30);

/// A watch that ends sooner, other than by its time, is one that is cut short.
const SHORT: Duration = Duration::from_secs(10);

/// A watch that ends so long before its time has ended in time.
const EARLY: Duration = Duration::from_secs(10);

/// A server that does not answer for so long was away, whether or not a request has failed meanwhile: packets may have been
/// lost.
const AWAY: Duration = Duration::from_secs(3);

/// When all is listed after a server was away, and what changed last has changed again: its store may have been restored.
/// At random, as all are after the same.
const SOON: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(8)];

/// The same where nothing tells: its store may have been restored, and have come past the version last seen. It costs what
/// an expired version costs at once, which is what a server that was started again answers as a rule.
const TO_BE_SURE: [Duration; 2] = [Duration::from_secs(300), Duration::from_secs(1800)];

/// Pages without an object in sequence that a list may have.
const MAX_EMPTY_PAGES: u32 = 10;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Todo {
    /// Nothing until then, or until something becomes better ([`Turns::recoveries`]).
    Wait(Instant),
    Ask(Ask),
}

/// What is to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// A page of the list; the first where there is no token.
    Page(Option<String>),
    /// What the server's version is, with a list of one object, which is the one that changed last: a list without a
    /// version in the question is answered from the server's store, whatever server it is. Where there is none to look
    /// for, or it cannot be looked for, any object.
    Look(Option<Named>),
    /// What happens after this version, for so long.
    Watch(String, Duration),
}

/// Where a page stands in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) is_last: bool,
}

/// How to go on after something has come to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// From where it was, unless the failure says that this cannot be.
    GoesOn,
    /// With a list: it is not known what has happened.
    Lists,
    /// The same without a pause: the server has answered as it should.
    ListsNow,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// With what came before in the same list.
    List {
        token: Option<String>,
        empty_pages: u32,
    },
    Watch,
}

/// A watch that has begun.
#[derive(Debug)]
struct Watching {
    began: Instant,
    from: String,
    /// How long it was asked to last.
    asked: Duration,
    /// Whether it was said that it works.
    works: bool,
    heard: bool,
}

/// Follows one kind.
#[derive(Debug)]
pub(super) struct Follower {
    kind: Kind,
    step: Step,
    watching: Option<Watching>,
    history: History,
    /// Whether it is known that the list may be of another store.
    is_warned: bool,
    /// How often the store was another one when all was last listed, or is being listed.
    store: u64,
    /// When to list all to be sure that it is the same store, watching until then.
    doubts: Option<Instant>,
    /// Whether an object can be looked for by its name.
    by_name: bool,
    /// Whether something happened after which the server may be behind that version: it says nothing at all on a watch
    /// then, not even a bookmark.
    unsure: bool,
    /// Whether there ever was a complete list.
    listed: bool,
    /// Whether the last list failed.
    list_failed: bool,
    /// Since when watches come to nothing.
    watches_fail: Option<Instant>,
    /// When the server's version was last looked for.
    looked: Option<Instant>,
    /// Whether what is to be asked goes with what was just answered, so that it needs no turn of its own.
    goes_on: bool,
    pace: Pace,
    /// Since when there has been no watch, or no page of a list.
    unheard: Instant,
    /// When to ask next, if nothing becomes better before.
    due: Instant,
    /// Not before then, whatever happens.
    not_before: Instant,
    /// How long it is until the next look for a kind that the server does not have.
    absent: Duration,
    /// Whether it asked at once because something had become better.
    went_on: bool,
    /// How often something had become better when it last failed.
    failed_at: Option<u64>,
    /// Since when it fails, for the log.
    failing: Option<Timestamp>,
    followed: Followed,
}

impl Follower {
    pub(super) fn new(kind: Kind, now: Instant) -> Follower {
        Follower {
            kind,
            step: FIRST_PAGE,
            watching: None,
            history: History::default(),
            is_warned: false,
            store: 0,
            doubts: None,
            by_name: true,
            unsure: false,
            listed: false,
            list_failed: false,
            watches_fail: None,
            looked: None,
            goes_on: false,
            pace: Pace::default(),
            unheard: now,
            due: now,
            not_before: now,
            absent: Duration::ZERO,
            went_on: false,
            failed_at: None,
            failing: None,
            followed: Followed { state: State::Begins, since: now.into_std(), heard: None, reason: None },
        }
    }

    /// How the kind is followed.
    pub(super) fn followed(&self) -> &Followed {
        &self.followed
    }

    /// What to do now, while nothing is being asked.
    pub(super) fn todo(&mut self, now: Instant, turns: &mut Turns) -> Todo {
        if self.is_of_another_store(turns) {
            self.store = turns.stores();
            self.is_warned = true;
            self.step = FIRST_PAGE;
        }
        // Not again and again, where one kind gets through and this one does not.
        let may_go_on = self.pace.may_go_on_at().is_none_or(|at| at <= now);
        let fails_still = !may_go_on || self.failed_at.is_none_or(|recoveries| recoveries == turns.recoveries());
        self.went_on = !fails_still;
        let due = if fails_still { self.due.max(self.not_before) } else { self.not_before };
        if now < due {
            return Todo::Wait(due);
        }
        let failing = if fails_still { self.pace.failing_since() } else { None };
        if !std::mem::take(&mut self.goes_on)
            && let Err(next) = turns.take(now, self.kind, failing)
        {
            return Todo::Wait(next);
        }
        Todo::Ask(match &self.step {
            Step::List { token, .. } => Ask::Page(token.clone()),
            Step::Watch if self.looks() => Ask::Look(self.history.latest().filter(|_| self.by_name).cloned()),
            Step::Watch => Ask::Watch(self.history.version.clone(), pace::between(WATCH)),
        })
    }

    /// Whether another kind has seen that the store is another one: what is watched has to be listed again.
    pub(super) fn is_of_another_store(&self, turns: &Turns) -> bool {
        self.store != turns.stores()
    }

    /// When there has been no answer for too long to say that the kind is followed.
    pub(super) fn overdue_at(&self) -> Option<Instant> {
        let claims = matches!(self.followed.state, State::Begins | State::Follows) && self.watching.is_none();
        claims.then(|| self.unheard + OVERDUE)
    }

    /// It is that time.
    pub(super) fn overdue(&mut self, now: Instant) {
        let reason = Failure::Late(OVERDUE).to_string();
        self.says_it_fails(now, Pause::Turns, &reason);
        self.stands(now, State::Lost, Some(reason));
    }

    /// An object of the list that is under way came, or one that a watch has named, with its version.
    pub(super) fn saw(&mut self, namespace: &str, name: &str, version: &str, is_gone: bool) {
        self.history.saw(namespace, name, version, is_gone);
    }

    /// A list begins: what was there before may have been of another store.
    pub(super) fn list_begins(&mut self) {
        self.history.begins();
        self.by_name = true;
    }

    /// A page came, with this version, this token for the next and so many objects, which were named before.
    ///
    /// # Errors
    /// It is of no use.
    pub(super) fn page(
        &mut self,
        now: Instant,
        turns: &mut Turns,
        version: Option<&str>,
        rest: Option<&str>,
        objects: usize,
    ) -> Result<Place, Failure> {
        turns.serves(now, false);
        self.unheard = now;
        let Step::List { token, empty_pages } = &self.step else { return Ok(Place { is_last: true }) };
        if let Some(rest) = rest {
            let empty_pages = if objects == 0 { empty_pages + 1 } else { 0 };
            if token.as_deref() == Some(rest) || empty_pages > MAX_EMPTY_PAGES {
                return Err(Failure::Unreadable("a list that does not end: page after page is the same".to_owned()));
            }
            self.step = Step::List { token: Some(rest.to_owned()), empty_pages };
            self.goes_on = true;
            return Ok(Place { is_last: false });
        }
        let version = version.ok_or(Failure::NoVersion)?;
        let known = &self.history.version;
        let behind = version::is_before(version, known)
            .then(|| Failure::WentBack { known: known.clone(), now: version.to_owned() });
        let missing = self.history.ends().map(|missing| Failure::Vanished(missing.to_string()));
        if let Some(failure) = behind.or(missing).filter(|_| !self.is_warned) {
            self.says_it_went_back(&failure);
            self.tells_of_another_store(now, turns);
        }
        self.is_warned = false;
        version.clone_into(&mut self.history.version);
        if std::mem::take(&mut self.list_failed) {
            turns.recovered();
        }
        self.unsure = false;
        self.doubts = None;
        self.listed = true;
        self.step = Step::Watch;
        if self.followed.state == State::Lost {
            self.followed.reason = Some("listed; its watch has not lasted for a second yet".to_owned());
        }
        self.goes_on = self.watch_may_follow(turns);
        self.followed.heard = Some(now.into_std());
        Ok(Place { is_last: true })
    }

    /// What the server's version is, and that of the object that changed last. A store that is another one leads to a
    /// list.
    pub(super) fn looked(&mut self, now: Instant, turns: &mut Turns, version: &str, found: &Found) {
        turns.serves(now, false);
        let failure = match self.history.is_ahead(version).and_then(|()| self.history.is_the_same(found)) {
            Ok(same) => {
                self.unsure = false;
                self.looked = Some(now);
                if turns.was_away(self.unheard) || now.duration_since(self.unheard) >= AWAY {
                    let at = now + pace::between(if same == Same::Unknown { SOON } else { TO_BE_SURE });
                    self.doubts = Some(self.doubts.map_or(at, |doubts| doubts.min(at)));
                }
                self.goes_on = self.watch_may_follow(turns);
                return;
            }
            Err(failure) => failure,
        };
        if failure.is_another_store() {
            self.is_warned = true;
            self.tells_of_another_store(now, turns);
        }
        self.comes_to_nothing(now, turns, &failure, Then::ListsNow);
    }

    /// The head of the answer to a watch came.
    pub(super) fn watch_began(&mut self, now: Instant, turns: &mut Turns, asked: Duration) {
        turns.serves(now, true);
        self.watching =
            Some(Watching { began: now, from: self.history.version.clone(), asked, works: false, heard: false });
    }

    /// When the watch that is open has lasted long enough to say that it works.
    pub(super) fn lives_at(&self) -> Option<Instant> {
        self.watching.as_ref().filter(|watching| !watching.works).map(|watching| watching.began + LIVED)
    }

    /// The watch has lasted for [`LIVED`].
    ///
    /// # Errors
    /// It should have said that an object is gone, and has not. The watch is over; [`Follower::ended`] wants to know.
    pub(super) fn lived(&mut self, now: Instant, turns: &mut Turns) -> Result<(), Failure> {
        if let Some(vanished) = self.history.vanished() {
            return Err(Failure::Vanished(vanished.to_string()));
        }
        if let Some(watching) = &mut self.watching {
            watching.works = true;
            self.works(now, turns);
        }
        Ok(())
    }

    /// The watch says that everything up to this version is known: with a change, or without one (a bookmark).
    ///
    /// # Errors
    /// The server went back, or says nothing that can be used. The watch is over; [`Follower::ended`] wants to know.
    pub(super) fn heard(
        &mut self,
        now: Instant,
        turns: &mut Turns,
        version: &str,
        is_change: bool,
    ) -> Result<(), Failure> {
        if version.is_empty() {
            return Err(Failure::NoVersion);
        }
        self.history.is_ahead(version)?;
        version.clone_into(&mut self.history.version);
        self.followed.heard = Some(now.into_std());
        let Some(watching) = &mut self.watching else { return Ok(()) };
        watching.heard = true;
        // Not by any event: there are servers that send the same ones again and again.
        if is_change && !self.history.waits() && !watching.works && version != watching.from {
            watching.works = true;
            self.works(now, turns);
        }
        Ok(())
    }

    /// When all is to be listed to be sure, although the watch goes on.
    pub(super) fn doubts_at(&self) -> Option<Instant> {
        self.doubts
    }

    /// It is that time; the watch is over.
    pub(super) fn doubted(&mut self, now: Instant) {
        debug!(kind = %self.kind, "listing again, to be sure that it is the same store after the server was away");
        self.watching = None;
        self.unheard = now;
        self.step = FIRST_PAGE;
    }

    /// The watch ended: properly where there is no failure.
    pub(super) fn ended(&mut self, now: Instant, turns: &mut Turns, failure: Option<Failure>) {
        let Some(watching) = self.watching.take() else { return };
        self.unheard = now;
        let lived = now.duration_since(watching.began);
        let is_broken = matches!(failure, Some(Failure::Broken(_)));
        if let Some(failure) = failure.as_ref().filter(|_| !is_broken) {
            // What happened is not known.
            return self.comes_to_nothing(now, turns, failure, Then::Lists);
        }
        if lived < LIVED && !watching.works {
            let failure = failure.unwrap_or(Failure::EndsAtOnce(lived));
            return self.comes_to_nothing(now, turns, &failure, Then::GoesOn);
        }
        let is_whole = !is_broken && watching.heard && lived + EARLY >= watching.asked;
        let is_short = lived < SHORT && !is_whole;
        if !is_short {
            self.pace.lasted();
        }
        // One that ends properly again and again was looked after a moment ago.
        let looked = self.looked.is_some_and(|at| now.duration_since(at) < SHORT);
        self.unsure |= is_broken || (lived >= LIVED && !is_whole && !looked);
        if is_broken && lived >= LIVED {
            // When to ask next is for `turns` to say, and the first time is soon.
            turns.lost(now);
        }
        self.due =
            now + if is_short { self.pace.cut_short(watching.from != self.history.version) } else { pace::short() };
        debug!(kind = %self.kind, error = failure.map(|failure| failure.to_string()), "watch ended; resuming it");
    }

    /// What was asked failed. Returns whether the server has none of it, so far as it can be known: nobody shall wait for
    /// the kind.
    pub(super) fn failed(&mut self, now: Instant, turns: &mut Turns, failure: &Failure) -> bool {
        if self.by_name && self.looks() && self.history.latest().is_some() && failure.scope() == Scope::Kind {
            debug!(kind = %self.kind, error = failure.to_string(), "an object cannot be looked for by its name");
            self.by_name = false;
            turns.answers(now);
            self.goes_on = true;
            return false;
        }
        if !self.may_be_absent(failure) {
            self.list_failed = matches!(self.step, Step::List { .. });
            self.comes_to_nothing(now, turns, failure, Then::GoesOn);
            return false;
        }
        if failure.status() == Some(404) {
            turns.answers(now);
            if self.followed.state != State::Absent {
                info!(
                    reason = failure.to_string(),
                    "no ServiceCIDRs to read (API servers have them since 1.33): unallocated Service addresses are not dropped"
                );
            }
            self.stands(now, State::Absent, Some(failure.to_string()));
            // It may have been a gateway, or a server that is starting.
            self.absent = (self.absent * 2).clamp(FIRST_ABSENT_RETRY, ABSENT_RETRY);
            self.due = now + self.absent;
            self.failed_at = Some(turns.recoveries());
        } else {
            // Or only not yet, as where the server is starting.
            self.comes_to_nothing(now, turns, failure, Then::GoesOn);
        }
        true
    }

    /// Decides when and what to ask next.
    fn comes_to_nothing(&mut self, now: Instant, turns: &mut Turns, failure: &Failure, then: Then) {
        let scope = match failure {
            Failure::NoAnswer(_) if turns.has_answered(now) => Scope::Kind,
            _ => failure.scope(),
        };
        let is_watch = self.step == Step::Watch && !self.looks();
        match scope {
            Scope::Silent => turns.lost(now),
            Scope::Server => turns.refuses(now, is_watch),
            Scope::Kind => turns.answers(now),
        }
        self.unsure |= scope == Scope::Silent || matches!(failure, Failure::Broken(_) | Failure::EndsAtOnce(_));
        self.goes_on = false;
        if scope != Scope::Kind {
            turns.is_away(now);
        }
        self.failed_at = Some(turns.recoveries());
        if std::mem::take(&mut self.went_on) {
            self.pace.went_on_in_vain(now);
        }
        if is_watch {
            self.watches_fail.get_or_insert(now);
        }
        // As long as the server answers nobody, there is no point in asking for more than a watch.
        let may_be_polled = scope == Scope::Kind
            && self.watches_fail.is_some_and(|since| now.duration_since(since) >= POLLED)
            && self.followed.heard.is_none_or(|heard| now.into_std().duration_since(heard) >= POLLED);
        // What is behind the first page of a list, or of no use, was work for the server.
        let is_dear = matches!(self.step, Step::List { token: Some(_), .. }) || failure.is_useless_list();
        let lists_anew = then != Then::GoesOn || failure.is_stale();
        if lists_anew || self.step != Step::Watch || may_be_polled {
            self.step = FIRST_PAGE;
        }
        let reason = failure.to_string();
        // Once in a while a list is due: after an outage, or where it took too long for its version.
        let lists_now = then == Then::ListsNow || (lists_anew && scope == Scope::Kind && self.pace.lists_now(now));
        if lists_now && failure.is_stale() {
            match failure {
                _ if failure.is_another_store() => self.says_it_went_back(failure),
                Failure::OtherKind | Failure::Vanished(_) => info!(kind = %self.kind, reason, "listing again"),
                _ => info!(
                    kind = %self.kind,
                    reason,
                    "the API server does not know the version last seen, as is usual after its start; listing again"
                ),
            }
            self.stands(now, State::Lost, Some(reason));
            self.due = now + pace::short();
            self.goes_on = true;
            // What watches came to was this.
            self.watches_fail = None;
            return;
        }
        let pause = match scope {
            Scope::Silent | Scope::Server if !is_dear => Pause::Turns,
            Scope::Kind if lists_now => Pause::Short,
            _ if is_dear => Pause::GrowsToList,
            Scope::Kind if lists_anew => Pause::GrowsToList,
            _ => Pause::Grows,
        };
        self.due = now + self.says_it_fails(now, pause, &reason);
        self.not_before = now + failure.retry_after();
        self.stands(now, State::Lost, Some(reason));
    }

    /// This kind has seen that the store is another one; so are all others to know.
    fn tells_of_another_store(&mut self, now: Instant, turns: &mut Turns) {
        turns.another_store(now);
        self.store = turns.stores();
    }

    /// Whether a watch may follow at once on a good answer to another question.
    fn watch_may_follow(&self, turns: &Turns) -> bool {
        self.watches_fail.is_none() && !turns.refuses_watches()
    }

    /// Whether a look comes before the watch.
    fn looks(&self) -> bool {
        self.unsure && version::is_comparable(&self.history.version)
    }

    /// Whether the server does not have this kind, or does not let it be read, although it may. Not once there was a
    /// list: what works stays.
    fn may_be_absent(&self, failure: &Failure) -> bool {
        self.kind == Kind::ServiceCidr && !self.listed && matches!(failure.status(), Some(403 | 404))
    }

    /// A watch works.
    fn works(&mut self, now: Instant, turns: &mut Turns) {
        let was_said = self.pace.works();
        if self.failed_at.take().is_some() {
            turns.recovered();
        }
        match self.followed.state {
            State::Begins => debug!(kind = %self.kind, "listed; watching"),
            State::Absent => info!("there are ServiceCIDRs to read now"),
            State::Lost if was_said => info!(kind = %self.kind, "the API server answers again"),
            State::Lost | State::Follows => {}
        }
        self.failing = None;
        self.watches_fail = None;
        self.stands(now, State::Follows, None);
    }

    fn stands(&mut self, now: Instant, state: State, reason: Option<String>) {
        if self.followed.state != state {
            (self.followed.state, self.followed.since) = (state, now.into_std());
        }
        self.followed.reason = reason;
    }

    fn says_it_went_back(&self, failure: &Failure) {
        warn!(
            kind = %self.kind,
            reason = failure.to_string(),
            "the API server went back, as one whose store was restored from a snapshot; only what it lists is in force"
        );
    }

    /// Says it, if it is time to. Returns how long to wait.
    fn says_it_fails(&mut self, now: Instant, pause: Pause, error: &str) -> Duration {
        let Failed { pause, say, attempts } = self.pace.failed(now, pause, error);
        let since = *self.failing.get_or_insert_with(Timestamp::now);
        if say {
            let known = if self.listed { "what is known stays in force" } else { "nothing is known yet" };
            let since = format!("{since:.0}");
            warn!(kind = %self.kind, error, attempts, since, "cannot read from the API server; {known}; trying again");
        } else {
            debug!(kind = %self.kind, error, attempts, "still failing; trying again in {} ms", pause.as_millis());
        }
        pause
    }
}

const FIRST_PAGE: Step = Step::List { token: None, empty_pages: 0 };

#[cfg(test)]
mod tests;
