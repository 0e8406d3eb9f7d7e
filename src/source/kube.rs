//! Objects from an API server.
//!
//! One task for each kind lists it page by page, converts each object as it arrives, and then watches from where the
//! list ended, with bookmarks. What happens when things go wrong:
//!
//! - a connection breaks: the watch is resumed from the last version seen, so no change is lost;
//! - the server no longer has that version (410), or sends what is no event: the kind is listed again, and
//!   [`Event::ListDone`] says what is gone;
//! - the server's own version is behind the one last seen, as after its store was restored from a snapshot: the same. It
//!   is seen in a list, a bookmark or an event, and looked for before a watch is resumed, except where the watch before
//!   ended as it should: a server that is behind sends nothing on a watch, for ever (`version`);
//! - the server does not answer: the kinds take turns to ask it, about every second; when one of them has an answer, all
//!   go on (`turns`);
//! - the server refuses or fails, or its watches end at once with nothing in them: tried again with
//!   growing, jittered pauses, for ever; what is known stays in force; logged when it begins, every few minutes, and when
//!   a watch has lasted again (`pace`); not before the time that a server names with 429 or 503, up to a minute;
//! - what comes is no list of the kind: that is a failure, not a list in which there is nothing;
//! - an object cannot be read: reported as [`Event::Rejects`], the stream goes on, and what the object said before
//!   stays in force until the next list. One whose name cannot be read is reported with its place in the list.

mod answer;
mod ask;
mod connect;
mod failure;
mod guarded;
mod pace;
mod proxy;
mod retry_after;
mod server;
mod transport;
mod turns;
mod version;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{ListParams, WatchParams};
use kube::{Client, Resource};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::answer::Change;
use self::ask::Ask;
pub use self::connect::{ConnectError, connect, connect_with};
use self::failure::Failure;
use self::guarded::{Guarded, key};
use self::pace::{Failed, LIVED, Pace};
use self::turns::Line;
use super::convert::{Converter, HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL};
use super::object::{self, Object};
use super::rejects::Reported;
use crate::model::{Event, Kind, ObjectRef, RefKind, Reject};

/// Objects in one answer to a list request. What a page holds is all that is ever in memory as a whole.
pub const PAGE_SIZE: u32 = 500;

/// How often to look whether a server has begun to have an optional kind.
const ABSENT_KIND_RETRY: Duration = Duration::from_secs(300);

/// A watch that lasted so long ended because its time was over: it is asked for with just under five minutes.
const WHOLE_WATCH: Duration = Duration::from_secs(240);

/// Follows all kinds and sends what happens to `events`, until the receiver is dropped.
///
/// Only the Node named `node_name` is read. Slow receivers are waited for; nothing is queued beyond the channel and one
/// page for each kind.
///
/// # Panics
/// If one of its tasks panicked.
pub async fn watch(client: Client, node_name: &str, convert: Arc<Converter>, events: Sender<Event>) {
    let all = || ListParams::default().limit(PAGE_SIZE);
    let services = all().labels(&format!("!{SERVICE_PROXY_NAME_LABEL}")).fields("spec.clusterIP!=None");
    let slices = all().labels(&format!("!{HEADLESS_LABEL}"));
    let node = all().fields(&format!("metadata.name={node_name}"));

    let line = Arc::new(Line::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(follow::<Service>(client.clone(), Arc::clone(&line), services, Arc::clone(&convert), events.clone()));
    tasks.spawn(follow::<EndpointSlice>(
        client.clone(),
        Arc::clone(&line),
        slices,
        Arc::clone(&convert),
        events.clone(),
    ));
    tasks.spawn(follow::<Node>(client.clone(), Arc::clone(&line), node, Arc::clone(&convert), events.clone()));
    tasks.spawn(follow::<ServiceCIDR>(client, line, all(), convert, events.clone()));
    // Each task runs for ever, or until it cannot send: the first that ends ends all.
    let ended = tokio::select! {
        ended = tasks.join_next() => ended,
        () = events.closed() => None,
    };
    if let Some(Err(err)) = ended
        && err.is_panic()
    {
        std::panic::resume_unwind(err.into_panic());
    }
}

/// The receiver of events is gone.
struct Closed;

/// Follows one kind. Ends when the receiver of events is gone.
async fn follow<T>(
    client: Client,
    line: Arc<Line>,
    list: ListParams,
    convert: Arc<Converter>,
    events: Sender<Event>,
) -> Closed
where
    T: Object + Resource<DynamicType = ()> + std::fmt::Debug,
{
    let output = Output {
        convert,
        events,
        reported: Reported::default(),
        started: false,
        came: 0,
        nameless: Vec::new(),
        nameless_count: 0,
    };
    // With bookmarks, and a length that the client library asks for: just under five minutes.
    let watch = WatchParams {
        label_selector: list.label_selector.clone(),
        field_selector: list.field_selector.clone(),
        ..WatchParams::default()
    };
    let ask = Ask::<T>::new(client, line);
    let mut follower = Follower {
        ask,
        list,
        watch,
        output,
        link: Link::Listing,
        pace: Pace::default(),
        listed: false,
        version: String::new(),
        unsure: false,
    };
    loop {
        if let Err(closed) = follower.list_and_watch().await {
            return closed;
        }
    }
}

/// What is known about the link to the API server for one kind.
#[derive(Debug, PartialEq)]
enum Link {
    Listing,
    Watching,
    /// The server does not have the kind.
    Absent,
    Failing {
        since: Timestamp,
    },
}

/// Why a list has no end.
enum NoList {
    Closed(Closed),
    Failed(Failure),
}

impl From<Closed> for NoList {
    fn from(closed: Closed) -> NoList {
        NoList::Closed(closed)
    }
}

/// How a watch ended.
enum End {
    /// Properly, or with its connection.
    Over(Option<Failure>),
    /// The server no longer has the version that it was to begin with, or does not have it yet.
    Stale(Failure),
    /// The server does not answer, or refuses: to be tried again with the same version.
    Refused(Failure),
    /// With something that is no event, so that it is not known what happened.
    Unknown(Failure),
}

/// What a watch has brought.
#[derive(Default)]
struct Heard {
    anything: bool,
    /// The version of the last change; a bookmark is none.
    change: Option<String>,
}

/// How to go on.
enum Next {
    Watch,
    List,
}

struct Follower<T> {
    ask: Ask<T>,
    list: ListParams,
    watch: WatchParams,
    output: Output,
    link: Link,
    pace: Pace,
    /// Whether there ever was a complete list.
    listed: bool,
    /// The version last seen, from which a watch begins.
    version: String,
    /// Whether something happened after which the server may be behind that version.
    unsure: bool,
}

impl<T> Follower<T>
where
    T: Object + Resource<DynamicType = ()> + std::fmt::Debug,
{
    /// Returns when there has to be another list.
    async fn list_and_watch(&mut self) -> Result<(), Closed> {
        let version = self.list().await?;
        self.unsure = false;
        if version::is_before(&version, &self.version) {
            self.says_it_went_back(&Failure::WentBack { known: self.version.clone(), now: version.clone() });
        }
        self.version = version;
        while let Next::Watch = self.watch().await? {}
        Ok(())
    }

    /// Lists until it succeeds; returns the version of the list.
    async fn list(&mut self) -> Result<String, Closed> {
        loop {
            match self.list_once().await {
                Ok(version) => return Ok(version),
                Err(NoList::Closed(closed)) => return Err(closed),
                Err(NoList::Failed(failure)) => {
                    // Until it is known better there are none: the other kinds do not wait for them.
                    if self.may_be_absent(&failure) {
                        self.output.start_list(T::KIND).await?;
                        self.output.end_list(T::KIND).await?;
                    }
                    if self.is_absent(&failure) {
                        tokio::time::sleep(ABSENT_KIND_RETRY).await;
                    } else {
                        self.failed(&failure).await;
                    }
                }
            }
        }
    }

    async fn list_once(&mut self) -> Result<String, NoList> {
        self.output.begin_list();
        let mut params = self.list.clone();
        loop {
            let page = self.ask.list(&params).await.map_err(NoList::Failed)?;
            if page.rest.is_none() && page.version.is_none() {
                return Err(NoList::Failed(Failure::NoVersion));
            }
            self.output.start_list(T::KIND).await?;
            for object in page.items {
                self.output.object_of_list(object).await?;
            }
            params.continue_token = page.rest;
            if let (None, Some(version)) = (&params.continue_token, page.version) {
                self.output.end_list(T::KIND).await?;
                self.listed = true;
                return Ok(version);
            }
        }
    }

    /// Watches from the version last seen until the watch ends.
    async fn watch(&mut self) -> Result<Next, Closed> {
        let from = self.version.clone();
        let mut heard = Heard::default();
        let (end, lived) = match self.begin_watch().await {
            Ok(stream) => {
                // Counted from the head of the answer: a server that thinks for long has not been followed meanwhile.
                let began = Instant::now();
                (self.changes(pin!(stream), &mut heard).await?, began.elapsed())
            }
            Err(end) => (end, Duration::ZERO),
        };
        // A server that is behind says nothing at all, not even a bookmark.
        self.unsure = !(matches!(end, End::Over(None)) && lived >= WHOLE_WATCH && heard.anything);
        // Not by any event: there are servers that send the same ones again and again.
        if lived >= LIVED || heard.change.is_some_and(|changed| changed != from) {
            self.works();
            if let End::Over(err) = end {
                let error = err.map(|err| err.to_string());
                debug!(kind = %T::KIND, error, "watch ended; resuming it");
                if error.is_none() {
                    tokio::time::sleep(pace::short()).await;
                }
                return Ok(Next::Watch);
            }
        }
        match end {
            End::Stale(failure) if self.pace.expired() => {
                match failure {
                    Failure::WentBack { .. } => self.says_it_went_back(&failure),
                    _ => info!(
                        kind = %T::KIND,
                        reason = failure.to_string(),
                        "the API server does not have the version last seen; listing again"
                    ),
                }
                tokio::time::sleep(pace::short()).await;
                Ok(Next::List)
            }
            End::Stale(failure) | End::Unknown(failure) => {
                self.failed(&failure).await;
                Ok(Next::List)
            }
            End::Over(err) => {
                self.failed(&err.unwrap_or(Failure::EndsAtOnce(lived))).await;
                Ok(Next::Watch)
            }
            End::Refused(failure) => {
                self.failed(&failure).await;
                Ok(Next::Watch)
            }
        }
    }

    /// Asks for a watch, and before that, if need be, whether the server still has what it had.
    async fn begin_watch(&self) -> Result<impl Stream<Item = Result<Change<T>, Failure>> + use<T>, End> {
        if self.unsure && version::is_comparable(&self.version) {
            self.check_version().await?;
        }
        let watch = self.ask.watch(&self.watch, &self.version).await;
        watch.map_err(|failure| if failure.is_stale() { End::Stale(failure) } else { End::Refused(failure) })
    }

    /// Asks what the server's version is, with a list of one object: one without a version in the question is answered
    /// from the server's store, whatever server it is.
    async fn check_version(&self) -> Result<(), End> {
        let list = self.list.clone().limit(1);
        let page = self.ask.list(&list).await.map_err(End::Refused)?;
        self.goes_on(&page.version.unwrap_or_default()).map_err(End::Stale)
    }

    /// Whether a version that the server has now is not behind the one last seen.
    fn goes_on(&self, now: &str) -> Result<(), Failure> {
        if version::is_before(now, &self.version) {
            return Err(Failure::WentBack { known: self.version.clone(), now: now.to_owned() });
        }
        Ok(())
    }

    /// Sends what a watch brings.
    async fn changes(
        &mut self,
        mut stream: Pin<&mut impl Stream<Item = Result<Change<T>, Failure>>>,
        heard: &mut Heard,
    ) -> Result<End, Closed> {
        let mut lives = pin!(tokio::time::sleep(LIVED));
        let mut lived = false;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = &mut lives, if !lived => {
                    lived = true;
                    self.works();
                    continue;
                }
            };
            let (object, is_gone) = match event {
                None => return Ok(End::Over(None)),
                Some(Ok(Change::There(object))) => (object, false),
                Some(Ok(Change::Gone(object))) => (object, true),
                Some(Ok(Change::Bookmark(now))) => {
                    if now.is_empty() {
                        return Ok(End::Unknown(Failure::NoVersion));
                    }
                    if let Err(failure) = self.goes_on(&now) {
                        return Ok(End::Stale(failure));
                    }
                    self.version = now;
                    heard.anything = true;
                    continue;
                }
                Some(Ok(Change::Refused(status))) => {
                    let failure = Failure::Refused { status, retry_after: None };
                    return Ok(if failure.is_stale() { End::Stale(failure) } else { End::Unknown(failure) });
                }
                Some(Err(failure @ Failure::Broken(_))) => return Ok(End::Over(Some(failure))),
                Some(Err(failure)) => return Ok(End::Unknown(failure)),
            };
            let Some(now) = object.metadata.resource_version.clone().filter(|version| !version.is_empty()) else {
                return Ok(End::Unknown(Failure::NoVersion));
            };
            if let Err(failure) = self.goes_on(&now) {
                return Ok(End::Stale(failure));
            }
            if is_gone {
                self.output.gone(object).await?;
            } else {
                self.output.object(object).await?;
            }
            self.version.clone_from(&now);
            *heard = Heard { anything: true, change: Some(now) };
        }
    }

    /// Whether the server does not have this kind, or does not let it be read, although it may. Not once there was a
    /// list: what works stays.
    fn may_be_absent(&self, failure: &Failure) -> bool {
        T::KIND == Kind::ServiceCidr && !self.listed && matches!(failure.status(), Some(403 | 404))
    }

    /// Whether the server does not have this kind. One that does not let it be read may only be starting.
    fn is_absent(&mut self, failure: &Failure) -> bool {
        if !self.may_be_absent(failure) || failure.status() != Some(404) {
            return false;
        }
        if self.link != Link::Absent {
            self.link = Link::Absent;
            info!(
                reason = failure.to_string(),
                "no ServiceCIDRs to read (API servers have them since 1.33): unallocated Service addresses are not dropped"
            );
        }
        true
    }

    fn says_it_went_back(&self, failure: &Failure) {
        warn!(
            kind = %T::KIND,
            reason = failure.to_string(),
            "the API server went back, as one whose store was restored from a snapshot; only what it lists is in force"
        );
    }

    /// A watch works.
    fn works(&mut self) {
        self.pace.works();
        match std::mem::replace(&mut self.link, Link::Watching) {
            Link::Listing => debug!(kind = %T::KIND, "listed; watching"),
            Link::Absent => info!("there are ServiceCIDRs to read now"),
            Link::Failing { .. } => info!(kind = %T::KIND, "the API server answers again"),
            Link::Watching => {}
        }
    }

    /// Says it, if it is time to, and waits.
    async fn failed(&mut self, failure: &Failure) {
        let error = failure.to_string();
        let Failed { pause, say, attempts } = self.pace.failed(Instant::now(), failure.first_pause(), &error);
        let pause = pause.max(failure.retry_after());
        let since = match self.link {
            Link::Failing { since } => since,
            _ => Timestamp::now(),
        };
        self.link = Link::Failing { since };
        if say {
            let known = if self.listed { "what is known stays in force" } else { "nothing is known yet" };
            let since = format!("{since:.0}");
            warn!(kind = %T::KIND, error, attempts, since, "cannot read from the API server; {known}; trying again");
        } else {
            debug!(kind = %T::KIND, error, attempts, "still failing; trying again in {} ms", pause.as_millis());
        }
        tokio::time::sleep(pause).await;
    }
}

/// Says what arrives.
struct Output {
    convert: Arc<Converter>,
    events: Sender<Event>,
    reported: Reported,
    /// Whether [`Event::ListStarted`] was sent for the list that is under way.
    started: bool,
    /// Objects that came in that list.
    came: usize,
    /// What is wrong with those of them that have no name; not more than [`MAX_NAMELESS`].
    nameless: Vec<Reject>,
    /// How many of those there are.
    nameless_count: usize,
}

/// Objects without a name that are told one by one.
const MAX_NAMELESS: usize = 3;

impl Output {
    fn begin_list(&mut self) {
        self.started = false;
        (self.came, self.nameless_count) = (0, 0);
        self.nameless.clear();
    }

    /// Says that a list begins, once there is something to say about it.
    async fn start_list(&mut self, kind: Kind) -> Result<(), Closed> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        self.reported.list_started();
        self.send(Event::ListStarted(kind)).await
    }

    async fn end_list(&mut self, kind: Kind) -> Result<(), Closed> {
        if let Some(event) = self.report_nameless(kind)
            && self.reported.is_news(&event)
        {
            self.send(event).await?;
        }
        for event in self.reported.list_done() {
            self.send(event).await?;
        }
        self.send(Event::ListDone(kind)).await
    }

    /// What is wrong with the objects without a name, which are told together.
    fn report_nameless(&mut self, kind: Kind) -> Option<Event> {
        let mut rejects = std::mem::take(&mut self.nameless);
        let more = self.nameless_count - rejects.len();
        if more > 0 {
            rejects.push(Reject { field: "items".into(), reason: format!("{more} more without a name are not used") });
        }
        let object = ObjectRef { kind: RefKind::Api(kind), name: arcstr::literal!("without a name") };
        (!rejects.is_empty()).then_some(Event::Rejects { object, rejects })
    }

    async fn object_of_list<T: Object>(&mut self, object: Guarded<T>) -> Result<(), Closed> {
        if let (false, Err(reject)) = (object.is_named(), &object.object) {
            if self.nameless.len() < MAX_NAMELESS {
                let field = match &*reject.field {
                    "the object" => format!("items[{}]", self.came),
                    field => format!("items[{}].{field}", self.came),
                };
                self.nameless.push(Reject { field, reason: reject.reason.clone() });
            }
            self.nameless_count += 1;
        }
        self.came += 1;
        self.object(object).await
    }

    async fn object<T: Object>(&mut self, object: Guarded<T>) -> Result<(), Closed> {
        let Some(key) = key::<T>(&object.metadata) else { return Ok(()) };
        let events = match &object.object {
            Ok(object) => object::events(object, &key, &self.convert),
            Err(reject) => vec![Event::Rejects { object: key.object(), rejects: vec![reject.clone()] }],
        };
        drop(object);
        for event in events {
            if self.reported.is_news(&event) {
                self.send(event).await?;
            }
        }
        Ok(())
    }

    async fn gone<T: Object>(&mut self, object: Guarded<T>) -> Result<(), Closed> {
        let Some(key) = key::<T>(&object.metadata) else { return Ok(()) };
        let report = self.reported.withdraw(&key.object());
        for event in key.gone().into_iter().chain(report) {
            self.send(event).await?;
        }
        Ok(())
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}
