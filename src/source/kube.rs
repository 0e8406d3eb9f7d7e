//! Objects from an API server.
//!
//! One task for each kind lists it page by page, converts each object as it arrives, and then watches from where the
//! list ended (`kube::runtime::watcher`, with bookmarks). What happens when things go wrong:
//!
//! - a connection breaks: the watch is resumed from the last version seen, so no change is lost;
//! - the server no longer has that version (410): the kind is listed again, and [`Event::ListDone`] says what is gone;
//! - the server cannot be reached, refuses or fails: tried again with growing, jittered pauses, for ever; what is known
//!   stays in force; logged when it begins and when it ends;
//! - an object cannot be read: reported as [`Event::Rejects`], the stream goes on, and what the object said before
//!   stays in force until the next list.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeSeed as _;
use serde::{Deserialize, Deserializer};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::exchange::{Listener, Listening};
use super::object::{self, Object};
use super::rejects::Reported;
use super::shape::Shape;
use super::{Convert, Key};
use crate::errors;
use crate::model::convert::{HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL};
use crate::model::{Event, Kind, Reject};

/// Objects in one answer to a list request. What a page holds is all that is ever in memory as a whole.
pub const PAGE_SIZE: u32 = 500;
/// A page that takes longer is asked for again. API servers give up after 60 s by themselves.
const PAGE_TIMEOUT: Duration = Duration::from_secs(90);
/// A connection on which nothing arrives for so long is given up: the other end may be gone without a word. API servers
/// send a bookmark on each watch about once a minute.
const SILENCE: Duration = Duration::from_secs(90);
/// Pauses between attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How often to look whether a server has begun to have, or to allow, an optional kind.
const ABSENT_KIND_RETRY: Duration = Duration::from_secs(300);

/// Why there is no connection to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file, or a file that it names, cannot be used.
    #[error(
        "kubeconfig {path}: {source}. Check clientConnection.kubeconfig (or --kubeconfig); \
         leave it empty to use the pod's service account"
    )]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// There is no kubeconfig and this is not a pod with a service account.
    #[error(
        "no kubeconfig is given and there is no service account to use ({0}). \
         Set clientConnection.kubeconfig in the configuration file, or run in a pod with a service account"
    )]
    NotInCluster(String),
    /// `--master` is not a URL.
    #[error("--master {0:?} is not the URL of an API server, such as https://192.0.2.1:6443")]
    Master(String),
    /// No client can be made of the configuration.
    #[error("no client for the API server {url}: {reason}")]
    Client {
        /// The API server.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

/// Makes a client; the server is not contacted yet.
///
/// `kubeconfig`: the file; empty means the service account of the pod that this runs in. `master`, if any, overrides
/// the server's URL.
///
/// # Errors
/// The configuration cannot be used.
pub async fn connect(kubeconfig: &Path, master: Option<&str>) -> Result<Client, ConnectError> {
    connect_with(kubeconfig, master, Arc::new(|_| {})).await
}

/// The same, with somebody who hears of every request and its answer.
///
/// # Errors
/// The configuration cannot be used.
pub async fn connect_with(kubeconfig: &Path, master: Option<&str>, listener: Listener) -> Result<Client, ConnectError> {
    let mut config = if !kubeconfig.as_os_str().is_empty() {
        from_kubeconfig(kubeconfig, master).await?
    } else if let Some(master) = master {
        kube::Config::new(parse_master(master)?)
    } else {
        kube::Config::incluster().map_err(|err| ConnectError::NotInCluster(errors::text(&err)))?
    };
    // The watchers below try again by themselves, and say so.
    config.default_retry = false;
    config.read_timeout = Some(SILENCE);
    let url = config.cluster_url.to_string();
    // Not the authority, which may have a password in it.
    let host = config.cluster_url.host().unwrap_or_default();
    let host = config.cluster_url.port_u16().map_or(host.to_owned(), |port| format!("{host}:{port}"));
    let client = ClientBuilder::try_from(config);
    let builder = client.map_err(|err| ConnectError::Client { url, reason: errors::text(&err) })?;
    Ok(builder.with_layer(&Listening { listener, host }).build())
}

async fn from_kubeconfig(path: &Path, master: Option<&str>) -> Result<kube::Config, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig { path: path.display().to_string(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
    if let Some(master) = master {
        config.cluster_url = parse_master(master)?;
    }
    take_token(&mut config.auth_info);
    Ok(config)
}

/// kube's client sends the file of a token as it is, and no header can have the end of a line in it. Written by hand, the
/// file has one; kube-proxy takes it off.
fn take_token(auth: &mut kube::config::AuthInfo) {
    let Some(file) = auth.token_file.as_ref().filter(|_| auth.token.is_none()) else { return };
    // A file that cannot be read is named by the client.
    let Ok(token) = std::fs::read_to_string(file) else { return };
    let trimmed = token.trim();
    if trimmed.len() != token.len() {
        warn!("{file} has blanks around the token: they are taken off, and the file is not read again when it changes");
        auth.token = Some(trimmed.to_owned().into());
    }
}

fn parse_master<T: std::str::FromStr>(master: &str) -> Result<T, ConnectError> {
    let url = if master.contains("://") { master.to_owned() } else { format!("http://{master}") };
    url.parse().map_err(|_| ConnectError::Master(master.to_owned()))
}

/// Follows all kinds and sends what happens to `events`, until the receiver is dropped.
///
/// Only the Node named `node_name` is read. Slow receivers are waited for; nothing is queued beyond the channel and one
/// page for each kind.
///
/// # Panics
/// When a task of it panicked.
pub async fn watch(client: Client, node_name: &str, convert: Arc<dyn Convert>, events: Sender<Event>) {
    let everything = watcher::Config::default().page_size(PAGE_SIZE);
    let services = everything.clone().labels(&format!("!{SERVICE_PROXY_NAME_LABEL}")).fields("spec.clusterIP!=None");
    let slices = everything.clone().labels(&format!("!{HEADLESS_LABEL}"));
    let node = everything.clone().fields(&format!("metadata.name={node_name}"));

    let mut tasks = JoinSet::new();
    tasks.spawn(follow::<Service>(client.clone(), services, Arc::clone(&convert), events.clone()));
    tasks.spawn(follow::<EndpointSlice>(client.clone(), slices, Arc::clone(&convert), events.clone()));
    tasks.spawn(follow::<Node>(client.clone(), node, Arc::clone(&convert), events.clone()));
    tasks.spawn(follow::<ServiceCIDR>(client, everything, convert, events.clone()));
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
async fn follow<T>(client: Client, config: watcher::Config, convert: Arc<dyn Convert>, events: Sender<Event>) -> Closed
where
    T: Object + Resource<DynamicType = ()> + std::fmt::Debug,
{
    let output = Output { convert, events, reported: Reported::default(), started: false };
    let mut follower =
        Follower { kind: T::KIND, output, link: Link::Listing, backoff: Backoff::default(), listed: false };
    loop {
        let stream = watcher(Api::<Guarded<T>>::all(client.clone()), config.clone());
        match follower.follow(stream).await {
            Ok(Restart) => {}
            Err(closed) => return closed,
        }
    }
}

/// The stream can do no more; begin again with a list.
struct Restart;

/// What is known about the link to the API server for one kind.
#[derive(Debug, PartialEq)]
enum Link {
    Listing,
    Watching,
    /// With what was logged.
    Failing(String),
}

struct Follower {
    kind: Kind,
    output: Output,
    link: Link,
    backoff: Backoff,
    /// Whether there ever was a complete list.
    listed: bool,
}

impl Follower {
    async fn follow<T: Object>(
        &mut self,
        stream: impl futures::Stream<Item = watcher::Result<watcher::Event<Guarded<T>>>>,
    ) -> Result<Restart, Closed> {
        let mut stream = pin!(stream);
        let mut listing = true;
        loop {
            let next = if listing {
                let Ok(next) = tokio::time::timeout(PAGE_TIMEOUT, stream.next()).await else {
                    self.failed(format!("no answer within {} s", PAGE_TIMEOUT.as_secs()));
                    return Ok(Restart);
                };
                next
            } else {
                stream.next().await
            };
            match next {
                None => return Ok(Restart),
                Some(Ok(event)) => {
                    match event {
                        watcher::Event::Init => {
                            listing = true;
                            self.output.begin_list();
                            continue;
                        }
                        watcher::Event::InitApply(object) => {
                            self.output.start_list(T::KIND).await?;
                            self.output.object(object).await?;
                        }
                        watcher::Event::InitDone => {
                            listing = false;
                            self.output.start_list(T::KIND).await?;
                            self.output.end_list(T::KIND).await?;
                            self.listed = true;
                        }
                        watcher::Event::Apply(object) => self.output.object(object).await?,
                        watcher::Event::Delete(object) => self.output.gone(object).await?,
                    }
                    if !listing {
                        self.works();
                    }
                }
                Some(Err(err)) => {
                    if self.is_absent(&err) {
                        self.output.start_list(T::KIND).await?;
                        self.output.end_list(T::KIND).await?;
                        tokio::time::sleep(ABSENT_KIND_RETRY).await;
                        continue;
                    }
                    match &err {
                        // A watch that ends is resumed; only a failure to do so is worth a line.
                        watcher::Error::WatchFailed(err) => {
                            debug!(kind = %self.kind, error = errors::text(err), "watch ended; resuming it");
                        }
                        watcher::Error::WatchError(status) if status.code == 410 => {
                            info!(kind = %self.kind, "the API server no longer has the version last seen; listing again");
                        }
                        _ => self.failed(describe(&err)),
                    }
                    tokio::time::sleep(self.backoff.next()).await;
                    // The watcher would repeat a watch that the server refuses with a plain 410 for ever.
                    if let watcher::Error::WatchStartFailed(kube::Error::Api(status)) = &err
                        && status.code == 410
                    {
                        return Ok(Restart);
                    }
                }
            }
        }
    }

    /// Whether the server does not have this kind, or does not let it be read, although it may: then there are none.
    /// Not once there was a list: what works stays.
    fn is_absent(&mut self, err: &watcher::Error) -> bool {
        let watcher::Error::InitialListFailed(kube::Error::Api(status)) = err else { return false };
        if self.kind != Kind::ServiceCidr || self.listed || !matches!(status.code, 403 | 404) {
            return false;
        }
        if self.change(Link::Failing(status.code.to_string())) {
            info!(
                reason = describe(err),
                "no ServiceCIDRs to read (API servers have them since 1.33): unallocated Service addresses are not dropped"
            );
        }
        true
    }

    /// Returns whether the state is another than before.
    fn change(&mut self, link: Link) -> bool {
        let changed = self.link != link;
        self.link = link;
        changed
    }

    fn works(&mut self) {
        self.backoff = Backoff::default();
        let before = std::mem::replace(&mut self.link, Link::Watching);
        match before {
            Link::Listing => debug!(kind = %self.kind, "listed; watching"),
            Link::Failing(_) => info!(kind = %self.kind, "the API server answers again"),
            Link::Watching => {}
        }
    }

    fn failed(&mut self, error: String) {
        if self.change(Link::Failing(error.clone())) {
            let known = if self.listed { "what is known stays in force" } else { "nothing is known yet" };
            warn!(kind = %self.kind, error, "cannot read from the API server; {known}; trying again");
        }
    }
}

/// Says what arrives.
struct Output {
    convert: Arc<dyn Convert>,
    events: Sender<Event>,
    reported: Reported,
    /// Whether [`Event::ListStarted`] was sent for the list that is under way.
    started: bool,
}

impl Output {
    fn begin_list(&mut self) {
        self.started = false;
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
        for event in self.reported.list_done() {
            self.send(event).await?;
        }
        self.send(Event::ListDone(kind)).await
    }

    async fn object<T: Object>(&mut self, object: Guarded<T>) -> Result<(), Closed> {
        let Some(key) = key::<T>(&object.metadata) else { return Ok(()) };
        let events = match &object.object {
            Ok(object) => object::events(object, &key, &*self.convert),
            Err(reject) => vec![Event::Rejects { object: key.to_string(), rejects: vec![reject.clone()] }],
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
        let report = self.reported.withdraw(&key.to_string());
        for event in key.gone().into_iter().chain(report) {
            self.send(event).await?;
        }
        Ok(())
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

fn key<T: Object>(metadata: &ObjectMeta) -> Option<Key> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Key::new(T::KIND, &text(&metadata.namespace), &text(&metadata.name))
}

/// An object that may be faulty, so that one that cannot be read does not stop the list or watch it comes in. (Unlike
/// `kube::core::DeserializeGuard` it says which field is at fault, and copies nothing.)
#[derive(Debug, Clone)]
struct Guarded<T> {
    /// Of a faulty object: name, namespace and version only.
    metadata: ObjectMeta,
    object: Result<T, Reject>,
}

impl<'de, T: Object> Deserialize<'de> for Guarded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Shape::of(T::KIND).deserialize(deserializer)?;
        let text = |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Guarded { metadata, object: object::parse(&value) })
    }
}

impl<T: Resource> Resource for Guarded<T> {
    type DynamicType = T::DynamicType;
    type Scope = T::Scope;

    fn kind(dt: &T::DynamicType) -> std::borrow::Cow<'_, str> {
        T::kind(dt)
    }

    fn group(dt: &T::DynamicType) -> std::borrow::Cow<'_, str> {
        T::group(dt)
    }

    fn version(dt: &T::DynamicType) -> std::borrow::Cow<'_, str> {
        T::version(dt)
    }

    fn plural(dt: &T::DynamicType) -> std::borrow::Cow<'_, str> {
        T::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Pauses that double from one attempt to the next, each shortened by up to a half at random, so that the proxies of a
/// cluster do not come back all at once.
#[derive(Debug, Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let longest = BACKOFF.0.saturating_mul(1 << self.attempts.min(20)).min(BACKOFF.1);
        self.attempts += 1;
        // Every `RandomState` has other keys: all the randomness that is needed here.
        let share = RandomState::new().hash_one(self.attempts) % 1000;
        longest.mul_f64(1.0 - share as f64 / 2000.0)
    }
}

/// What the server answered where it did, else what went wrong on the way.
fn describe(err: &watcher::Error) -> String {
    match err {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        err => errors::text(err),
    }
}
