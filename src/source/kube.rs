//! Objects from an API server.
//!
//! One task for each kind lists it page by page, converts each object as it arrives, and then watches from where the
//! list ended, with bookmarks. What to ask when, and what to make of the answers, is decided by `follower`, which is pure:
//! kube's own `watcher` resumes in silence what ends at once, and a storm of that kind cannot be seen from outside of it.
//! What happens when things go wrong:
//!
//! - a connection breaks: the watch is resumed from the last version seen, so no change is lost;
//! - the server no longer has that version (410), or sends what is no event: the kind is listed again, and
//!   [`Event::ListDone`] says what is gone;
//! - the server's own version is behind the one last seen, as after its store was restored from a snapshot: the same. It
//!   is seen in a list, a bookmark or an event, and looked for before a watch is resumed, except where the watch before
//!   ended as it should: a server that is behind sends nothing on a watch, for ever (`version`);
//! - the server does not answer, or says that it cannot: the kinds take turns to ask it, about every second; when one of
//!   them has an answer, all go on (`turns`);
//! - the server refuses a kind, or its watches end at once with nothing in them: tried again with growing, jittered pauses
//!   for ever, and at once when another kind gets through (`pace`); not before the time that a server names with 429 or
//!   503, up to a minute; where watches come to nothing and lists do not, there is a list every half a minute at most;
//! - what is known stays in force; that a kind is not followed is logged when it begins, every few minutes, and when a
//!   watch has lasted again, and said in [`Following`];
//! - what comes is no list of the kind: that is a failure, not a list in which there is nothing;
//! - an object cannot be read: reported as [`Event::Rejects`], the stream goes on, and what the object said before
//!   stays in force until the next list. One whose name cannot be read is reported with its place in the list;
//! - a page is too long to be kept: asked for again with fewer objects in it.

mod answer;
mod ask;
mod connect;
mod failure;
mod follower;
mod guarded;
mod history;
mod output;
mod pace;
mod proxy;
mod retry_after;
mod server;
mod transport;
mod turns;
mod version;

use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, WatchParams};
use kube::{Client, Resource};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::answer::{Change, Page};
use self::ask::Ask;
pub use self::connect::{ConnectError, connect, connect_with, describe};
use self::failure::Failure;
use self::follower::{Follower, Todo};
use self::guarded::Guarded;
use self::history::{Found, Named};
use self::output::{Closed, Output};
use self::turns::{Line, Turns};
use super::convert::{Converter, HEADLESS_LABEL};
use super::following::Following;
use super::object::Object;
use crate::model::Event;

/// Objects in one answer to a list request. What a page holds is all that is ever in memory as a whole.
pub const PAGE_SIZE: u32 = 500;

/// Follows all kinds and sends what happens to `events`, until the receiver is dropped; how each kind is followed is said
/// in `following`.
///
/// Only the Node named `node_name` is read. Slow receivers are waited for; nothing is queued beyond the channel and one
/// page for each kind.
///
/// # Panics
/// If one of its tasks panicked.
pub async fn watch(
    client: Client,
    node_name: &str,
    convert: Arc<Converter>,
    events: Sender<Event>,
    following: Arc<Following>,
) {
    let all = ListParams::default;
    let services = all().labels(&convert.options().service_selector()).fields("spec.clusterIP!=None");
    let slices = all().labels(&format!("!{HEADLESS_LABEL}"));
    let node = all().fields(&format!("metadata.name={node_name}"));

    let shared = Shared { client, line: Arc::new(Line::new(Instant::now())), following };
    let output = || Output::new(Arc::clone(&convert), events.clone());
    let mut tasks = JoinSet::new();
    // The first shows whether anybody answers: it is the one with the shortest list.
    tasks.spawn(Task::<Node>::new(&shared, node, output()).follow());
    tasks.spawn(Task::<Service>::new(&shared, services, output()).follow());
    tasks.spawn(Task::<EndpointSlice>::new(&shared, slices, output()).follow());
    tasks.spawn(Task::<ServiceCIDR>::new(&shared, all(), output()).follow());
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

/// What the tasks of all kinds share.
struct Shared {
    client: Client,
    line: Arc<Line>,
    following: Arc<Following>,
}

/// Does for a kind what its follower decides.
struct Task<T> {
    ask: Ask<T>,
    selectors: ListParams,
    /// Objects of a page. Less than [`PAGE_SIZE`] where one was too long.
    page_size: u32,
    /// Whether the last list had an end.
    is_whole: bool,
    follower: Follower,
    line: Arc<Line>,
    following: Arc<Following>,
    output: Output,
}

impl<T> Task<T>
where
    T: Object + Resource<DynamicType = ()> + std::fmt::Debug,
{
    fn new(shared: &Shared, selectors: ListParams, output: Output) -> Task<T> {
        Task {
            ask: Ask::new(shared.client.clone()),
            selectors,
            page_size: PAGE_SIZE,
            is_whole: false,
            follower: Follower::new(T::KIND, Instant::now()),
            line: Arc::clone(&shared.line),
            following: Arc::clone(&shared.following),
            output,
        }
    }

    /// Ends when the receiver of events is gone.
    async fn follow(mut self) -> Closed {
        loop {
            if let Err(closed) = self.step().await {
                return closed;
            }
        }
    }

    /// Tells the follower something, and everybody how the kind is followed.
    fn tell<R>(&mut self, what: impl FnOnce(&mut Follower, Instant, &mut Turns) -> R) -> R {
        let result = self.line.with(|turns| what(&mut self.follower, Instant::now(), turns));
        self.following.set(T::KIND, self.follower.followed());
        result
    }

    async fn step(&mut self) -> Result<(), Closed> {
        let mut recoveries = self.line.recoveries();
        match self.tell(Follower::todo) {
            Todo::Wait(until) => {
                let better = async { drop(recoveries.changed().await) };
                let wait = async {
                    tokio::select! { () = sleep_until(until) => {} () = better => {} }
                };
                self.in_time(wait).await;
                Ok(())
            }
            Todo::Ask(follower::Ask::Page(token)) => self.page(token).await,
            Todo::Ask(follower::Ask::Look(object)) => {
                let ask = self.ask.clone();
                match self.in_time(ask.look(&self.selectors.clone().limit(1), object.as_ref())).await {
                    Ok(page) => {
                        let version = page.version.as_deref().unwrap_or_default();
                        let found = found(object.as_ref(), &page);
                        self.tell(|follower, now, turns| follower.looked(now, turns, version, &found));
                        Ok(())
                    }
                    Err(failure) => self.failed(&failure).await,
                }
            }
            Todo::Ask(follower::Ask::Watch(version, length)) => {
                // With bookmarks.
                let params = WatchParams {
                    label_selector: self.selectors.label_selector.clone(),
                    field_selector: self.selectors.field_selector.clone(),
                    timeout: Some(length.as_secs() as u32),
                    ..WatchParams::default()
                };
                let ask = self.ask.clone();
                match self.in_time(ask.watch(&params, &version)).await {
                    Ok(stream) => {
                        self.tell(|follower, now, turns| follower.watch_began(now, turns, length));
                        let failure = self.changes(stream).await?;
                        self.tell(|follower, now, turns| follower.ended(now, turns, failure));
                        Ok(())
                    }
                    Err(failure) => self.failed(&failure).await,
                }
            }
        }
    }

    async fn page(&mut self, token: Option<String>) -> Result<(), Closed> {
        if token.is_none() {
            if std::mem::take(&mut self.is_whole) {
                // It may have been one object.
                self.page_size = (self.page_size * 4).min(PAGE_SIZE);
            }
            self.output.begin_list();
            self.follower.list_begins();
        }
        let mut params = self.selectors.clone().limit(self.page_size);
        params.continue_token = token;
        let ask = self.ask.clone();
        let page = match self.in_time(ask.list(&params)).await {
            Ok(page) => page,
            Err(failure) => return self.failed(&failure).await,
        };
        page.items.iter().for_each(|object| saw(&mut self.follower, &object.metadata, false));
        let (version, rest, objects) = (page.version.as_deref(), page.rest.as_deref(), page.items.len());
        match self.tell(|follower, now, turns| follower.page(now, turns, version, rest, objects)) {
            Ok(place) => {
                self.output.start_list(T::KIND).await?;
                for object in page.items {
                    self.output.object_of_list(object).await?;
                }
                if place.is_last {
                    self.is_whole = true;
                    self.output.end_list(T::KIND).await?;
                }
                Ok(())
            }
            Err(failure) => self.failed(&failure).await,
        }
    }

    async fn failed(&mut self, failure: &Failure) -> Result<(), Closed> {
        if matches!(failure, Failure::TooLong { .. }) {
            self.page_size = (self.page_size / 4).max(1);
        }
        if self.tell(|follower, now, turns| follower.failed(now, turns, failure)) {
            // Until it is known better there are none: the other kinds do not wait for them.
            self.output.begin_list();
            self.output.start_list(T::KIND).await?;
            self.output.end_list(T::KIND).await?;
        }
        Ok(())
    }

    /// Waits for this, and says meanwhile when it has taken too long for the kind to be followed.
    async fn in_time<R>(&mut self, what: impl Future<Output = R>) -> R {
        let mut what = pin!(what);
        let Some(at) = self.follower.overdue_at() else { return what.await };
        tokio::select! {
            result = &mut what => return result,
            () = sleep_until(at) => {}
        }
        self.tell(|follower, now, _| follower.overdue(now));
        what.await
    }

    /// Sends what a watch brings, until it ends: properly where there is no failure.
    async fn changes(
        &mut self,
        stream: impl Stream<Item = Result<Change<T>, Failure>>,
    ) -> Result<Option<Failure>, Closed> {
        let mut stream = pin!(stream);
        let mut recoveries = self.line.recoveries();
        loop {
            if self.line.with(|turns| self.follower.is_of_another_store(turns)) {
                return Ok(Some(Failure::OtherKind));
            }
            let lives_at = self.follower.lives_at();
            let doubts_at = self.follower.doubts_at();
            let event = tokio::select! {
                () = sleep_until(doubts_at.unwrap_or_else(Instant::now)), if doubts_at.is_some() => {
                    self.tell(|follower, now, _| follower.doubted(now));
                    return Ok(None);
                }
                _ = recoveries.changed() => continue,
                event = stream.next() => event,
                () = sleep_until(lives_at.unwrap_or_else(Instant::now)), if lives_at.is_some() => {
                    if let Err(failure) = self.tell(Follower::lived) {
                        return Ok(Some(failure));
                    }
                    continue;
                }
            };
            let (object, is_gone) = match event {
                None => return Ok(None),
                Some(Err(failure)) => return Ok(Some(failure)),
                Some(Ok(Change::Refused(status))) => {
                    return Ok(Some(Failure::Refused { status, retry_after: None }));
                }
                Some(Ok(Change::Bookmark(version))) => {
                    if let Err(failure) = self.heard(&version, false) {
                        return Ok(Some(failure));
                    }
                    continue;
                }
                Some(Ok(Change::There(object))) => (object, false),
                Some(Ok(Change::Gone(object))) => (object, true),
            };
            if let Err(failure) = self.heard(object.metadata.resource_version.as_deref().unwrap_or_default(), true) {
                return Ok(Some(failure));
            }
            saw(&mut self.follower, &object.metadata, is_gone);
            if is_gone {
                self.output.gone(object).await?;
            } else {
                self.output.object(object).await?;
            }
        }
    }

    fn heard(&mut self, version: &str, is_change: bool) -> Result<(), Failure> {
        self.tell(|follower, now, turns| follower.heard(now, turns, version, is_change))
    }
}

/// Tells the follower of an object.
fn saw(follower: &mut Follower, metadata: &ObjectMeta, is_gone: bool) {
    let [namespace, name, version] = [&metadata.namespace, &metadata.name, &metadata.resource_version]
        .map(|text| text.as_deref().unwrap_or_default());
    follower.saw(namespace, name, version, is_gone);
}

/// What a page says of an object.
fn found<T>(object: Option<&Named>, page: &Page<T>) -> Found {
    let Some(object) = object else { return Found::Nothing };
    let is_it = |item: &&Guarded<T>| {
        let text = |field: &Option<String>, wanted: &str| field.as_deref().unwrap_or_default() == wanted;
        text(&item.metadata.name, &object.name) && text(&item.metadata.namespace, &object.namespace)
    };
    match page.items.iter().find(is_it) {
        Some(item) => Found::There(item.metadata.resource_version.clone().unwrap_or_default()),
        None if page.items.is_empty() => Found::Gone,
        // The server does not care for what it is asked.
        None => Found::Nothing,
    }
}
