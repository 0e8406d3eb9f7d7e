//! A stand-in for a Kubernetes API server: list and watch of the kinds that the proxy reads, over real HTTP/1.1.
//!
//! It pages, filters, watches and expires versions like the real one, and it can be told to misbehave. It is not one:
//! there is no validation, no defaulting, no authentication and no conflict. Objects are written by method call, or over
//! HTTP where they have a namespace.
//!
//! The server has a thread and a runtime of its own, so that a busy test does not slow it down and a test without a
//! runtime can use it.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "this is the interface for tests, though no crate can reach it")]

mod http;
mod selector;
mod store;
pub mod synthetic;
mod tls;
mod wire;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

pub use store::Snapshot;
use store::Store;
pub use wire::Wire;

/// The plural of each kind in URLs, the group and version, the kind, and whether it has namespaces.
pub const KINDS: [Resource; 4] = [
    Resource { plural: "services", api_version: "v1", kind: "Service", namespaced: true },
    Resource { plural: "nodes", api_version: "v1", kind: "Node", namespaced: false },
    Resource { plural: "endpointslices", api_version: "discovery.k8s.io/v1", kind: "EndpointSlice", namespaced: true },
    Resource { plural: "servicecidrs", api_version: "networking.k8s.io/v1", kind: "ServiceCIDR", namespaced: false },
];

/// A kind that the server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    pub plural: &'static str,
    pub api_version: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Plural of the kind, or the path where it is none of the kinds.
    pub resource: String,
    pub verb: Verb,
    /// `GET`, `POST` and so on.
    pub method: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The certificate of the client, in DER.
    pub certificate: Option<Vec<u8>>,
    /// `resourceVersion` of the query, if any.
    pub version: Option<String>,
    /// `labelSelector` and `fieldSelector` of the query, empty where there is none.
    pub selectors: (String, String),
    /// `limit` of the query.
    pub limit: Option<usize>,
    /// Whether a `continue` token came with it.
    pub continued: bool,
    /// Status of the answer.
    pub status: u16,
}

/// Kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    List,
    Watch,
    Other,
}

/// How a version that is too old is refused on watch. Real servers do either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gone {
    /// Status 200, then an `ERROR` event with code 410.
    #[default]
    InStream,
    /// Status 410.
    AsStatus,
}

/// What becomes of watches from a version that the server does not have yet. Real servers do any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ahead {
    /// Nothing comes until the server has that version.
    #[default]
    Silent,
    /// Status 504, "Too large resource version".
    AsStatus,
    /// Status 200, then an `ERROR` event that says the same.
    InStream,
}

/// What becomes of watches that begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Watches {
    /// They are followed.
    #[default]
    Follow,
    /// Status 200 and no body; the connection is kept.
    Empty,
    /// Status 200 and no body; the connection is closed.
    EmptyAndClose,
    /// The connection breaks after the head of the answer.
    Cut,
    /// The stream ends at once, properly.
    End,
    /// Status 302.
    Redirect,
    /// This status and a page of HTML, from a gateway that stands before the server.
    Html(u16),
    /// A bookmark, then the stream ends.
    Bookmark,
    /// The version is too old, whatever it is.
    Gone(Gone),
    /// All objects that there are, whatever version was asked for, then the stream ends.
    Replay,
    /// A line that is no event, then nothing more.
    Garbage,
    /// These bytes, then nothing more.
    Raw(&'static [u8]),
    /// A bookmark with version 1, then nothing more.
    OldBookmark,
    /// All objects that there are, with version 1, then nothing more.
    OldEvents,
}

/// What becomes of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lists {
    /// They are as they should be.
    #[default]
    Whole,
    /// Each is an empty one of this kind, of `v1`.
    OfKind(&'static str),
    /// The last page of those of Services ends with these bytes among its objects.
    With(&'static [u8]),
}

/// How the server misbehaves.
#[derive(Debug, Clone, Default)]
struct Faults {
    list_delay: Duration,
    /// Answer all requests with this status.
    status: Option<u16>,
    /// With this `Retry-After`.
    retry_after: Option<String>,
    /// Answer requests without this token with 401.
    token: Option<String>,
    /// Plurals of kinds that do not exist.
    absent: Vec<String>,
    /// Plurals of kinds that may not be read.
    forbidden: Vec<String>,
    gone: Gone,
    ahead: Ahead,
    watches: Watches,
    lists: Lists,
    wire: Wire,
}

struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    /// What connections begin with.
    tls: Mutex<Option<Arc<rustls::ServerConfig>>>,
    requests: Mutex<Vec<Request>>,
    /// Bodies of Events that were sent.
    events: Mutex<Vec<Value>>,
    /// Counts up at each change and bookmark, to wake watches.
    changed: watch::Sender<u64>,
    /// Counts up when connections are to be closed.
    connections: watch::Sender<u64>,
    /// Counts up when watches are to end.
    ended: watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds the lock")
}

/// A running server. Stops when dropped.
pub struct Api {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    /// Starts a server on any port of 127.0.0.1.
    pub fn local() -> Api {
        Api::start(TcpListener::bind("127.0.0.1:0").expect("loopback has free ports"))
    }

    /// Starts a server on this socket, which may belong to another network namespace than the test.
    pub fn start(listener: TcpListener) -> Api {
        let address = listener.local_addr().expect("the socket is bound");
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::default()),
            faults: Mutex::new(Faults::default()),
            tls: Mutex::new(None),
            requests: Mutex::new(Vec::new()),
            events: Mutex::new(Vec::new()),
            changed: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            ended: watch::Sender::new(0),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let of_server = Arc::clone(&shared);
        let thread = std::thread::spawn(move || http::run(listener, of_server, stopped));
        Api { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        let scheme = if lock(&self.shared.tls).is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// A kubeconfig file for this server.
    pub fn kubeconfig(&self) -> String {
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "default", "cluster": {"server": self.url()}}],
            "users": [{"name": "default", "user": {}}],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
            "current-context": "default",
        })
        .to_string()
    }

    /// From now on connections begin with TLS, with this certificate and key (PEM). Clients are asked for certificates
    /// where there is an authority for these; others than its own are refused. Connections that there are go on.
    pub fn set_tls(&self, certificate: &str, key: &str, clients: Option<&str>) {
        *lock(&self.shared.tls) = Some(tls::config(certificate, key, clients));
    }

    /// Answers requests without this token with 401.
    pub fn set_token(&self, token: Option<&str>) {
        lock(&self.shared.faults).token = token.map(str::to_owned);
    }

    /// Creates or replaces an object; returns its version. `apiVersion`, `kind` and the name must be there.
    ///
    /// # Panics
    /// The kind is not one of the server's.
    pub fn apply(&self, object: Value) -> u64 {
        let version = lock(&self.shared.store).apply(object);
        self.wake();
        version
    }

    /// Deletes an object; `namespace` is empty for kinds without. Returns whether it was there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let deleted = lock(&self.shared.store).delete(kind, namespace, name);
        self.wake();
        deleted
    }

    /// Forgets all versions before a new, current one, which no client knows: watches that begin or resume and lists
    /// that continue are refused with 410. Watches that are running go on.
    pub fn expire(&self) {
        lock(&self.shared.store).expire();
    }

    /// Something happens that no client watches: the version goes up. Returns the new version.
    pub fn advance(&self) -> u64 {
        lock(&self.shared.store).advance()
    }

    /// Forgets all versions before the current one.
    pub fn compact(&self) {
        lock(&self.shared.store).compact();
    }

    /// Sends a bookmark with the current version to all watches that want bookmarks. Returns the version.
    pub fn bookmark(&self) -> u64 {
        let version = lock(&self.shared.store).bookmark();
        self.wake();
        version
    }

    /// What there is, to come back to with [`Api::restore`].
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.shared.store).snapshot()
    }

    /// Goes back to what there was, with the version of then. Watches that are running, and clients, are not told.
    pub fn restore(&self, snapshot: Snapshot) {
        lock(&self.shared.store).restore(snapshot);
    }

    /// Ends all watches properly; the connections stay.
    pub fn end_watches(&self) {
        self.shared.ended.send_modify(|count| *count += 1);
    }

    /// Closes all connections at once, in the middle of whatever they carry.
    pub fn disconnect_all(&self) {
        self.shared.connections.send_modify(|count| *count += 1);
    }

    /// How long the server thinks before it answers a list request.
    pub fn set_list_delay(&self, delay: Duration) {
        lock(&self.shared.faults).list_delay = delay;
    }

    /// Answers all requests with this status (`None`: works again). Watches that are running go on.
    pub fn set_status(&self, status: Option<u16>) {
        lock(&self.shared.faults).status = status;
    }

    /// With which `Retry-After` requests are answered that [`Api::set_status`] refuses.
    pub fn set_retry_after(&self, value: &str) {
        lock(&self.shared.faults).retry_after = Some(value.to_owned());
    }

    /// Kinds (plurals) that the server does not have: 404.
    pub fn set_absent(&self, plurals: &[&str]) {
        lock(&self.shared.faults).absent = plurals.iter().map(|&plural| plural.to_owned()).collect();
    }

    /// Kinds (plurals) that may not be read: 403.
    pub fn set_forbidden(&self, plurals: &[&str]) {
        lock(&self.shared.faults).forbidden = plurals.iter().map(|&plural| plural.to_owned()).collect();
    }

    /// How versions that are too old are refused on watch.
    pub fn set_gone(&self, gone: Gone) {
        lock(&self.shared.faults).gone = gone;
    }

    /// What becomes of watches from a version that is still to come.
    pub fn set_ahead(&self, ahead: Ahead) {
        lock(&self.shared.faults).ahead = ahead;
    }

    /// What becomes of watches that begin from now on. Those that are running go on.
    pub fn set_watches(&self, watches: Watches) {
        lock(&self.shared.faults).watches = watches;
    }

    /// What becomes of lists from now on.
    pub fn set_lists(&self, lists: Lists) {
        lock(&self.shared.faults).lists = lists;
    }

    /// What becomes of what is sent from now on, on all connections.
    pub fn set_wire(&self, wire: Wire) {
        lock(&self.shared.faults).wire = wire;
    }

    /// All requests so far, in the order of their answers.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// The requests so far for one kind (plural) and verb.
    pub fn requests_for(&self, plural: &str, verb: Verb) -> Vec<Request> {
        let requests = lock(&self.shared.requests);
        requests.iter().filter(|request| request.resource == plural && request.verb == verb).cloned().collect()
    }

    /// The Events that clients have created so far.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.shared.events).clone()
    }

    fn wake(&self) {
        self.shared.changed.send_modify(|count| *count += 1);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the API server stand-in panicked");
        }
    }
}
