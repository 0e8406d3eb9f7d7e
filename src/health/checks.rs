//! The health checks of Services: on the `healthCheckNodePort` of a Service with `externalTrafficPolicy: Local`, load
//! balancers ask whether this node has endpoints of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::Health;
use crate::addresses::Accepted;
use crate::http::{self, Budget};
use crate::model::{Family, ObjectName, PerFamily};

/// A Service's health check in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: NonZeroU16,
    /// Distinct addresses of endpoints that are ready and on this node, over all ports of the Service's slices.
    pub local_endpoints: usize,
}

/// The health checks that there should be.
pub type HealthChecks = BTreeMap<(ObjectName, Family), HealthCheck>;

/// A health check cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the health check of Service {service} on {address}: {source}")]
pub struct BindFailure {
    /// Whose health check.
    pub service: ObjectName,
    /// Where; its port is the `healthCheckNodePort`.
    pub address: SocketAddr,
    /// Why; `EADDRINUSE` where something else listens there, another Service's health check perhaps.
    #[source]
    pub source: io::Error,
}

/// Why one more is not served.
const NO_ROOM: &str =
    "the process may have no more file descriptors for this; raise the limit (LimitNOFILE= of the unit, or ulimit -Hn)";

/// The server of all health checks.
#[derive(Debug)]
pub struct CheckServer {
    listening: PerFamily<Accepted>,
    health: Health,
    budget: Budget,
    served: BTreeMap<(ObjectName, Family), Served>,
}

/// One health check that there should be.
#[derive(Debug)]
struct Served {
    target: Arc<Target>,
    /// Its sockets: all that it should have, or none.
    sockets: BTreeMap<SocketAddr, ServingTask>,
    /// Where the last attempt to listen failed, and why; it has been said.
    failed: Option<String>,
}

/// What a request needs to know.
#[derive(Debug)]
struct Target {
    service: ObjectName,
    local_endpoints: AtomicUsize,
    health: Health,
}

/// A task that serves a socket. Dropping it closes the socket and its connections soon; `stop` has closed them.
#[derive(Debug)]
struct ServingTask(JoinHandle<()>);

impl ServingTask {
    async fn stop(mut self) {
        self.0.abort();
        // What it ends with is the abort.
        let _ = (&mut self.0).await;
    }
}

impl Drop for ServingTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl CheckServer {
    /// A server without health checks and without addresses; `health` says whether the proxy is healthy.
    pub(crate) fn nowhere(health: Health, budget: Budget) -> CheckServer {
        let listening = PerFamily::from_fn(|_| Accepted::Only(BTreeSet::new()));
        CheckServer { listening, health, budget, served: BTreeMap::new() }
    }

    /// Changes the addresses that it listens on (`NodePortAddresses::listening`), from the next update on.
    pub fn listen_on(&mut self, listening: PerFamily<Accepted>) {
        self.listening = listening;
    }

    /// How many health checks of a family cannot be served at the moment.
    pub fn failing(&self, family: Family) -> usize {
        self.served.iter().filter(|((_, of), served)| *of == family && served.failed.is_some()).count()
    }

    /// Services whose health check cannot be served at the moment, by name, each with the address and the reason.
    pub fn failures(&self) -> BTreeMap<String, String> {
        let reason = |served: &Served| Some((served.target.service.to_string(), served.failed.clone()?));
        self.served.values().filter_map(reason).collect()
    }

    /// Makes the health checks be those of `wanted`: to be called after each successful sync. Opens and closes only the
    /// sockets that it has to; those that are not wanted are closed, with their connections, before it returns.
    ///
    /// What cannot be listened on is tried again at each update, and returned (and logged) when it fails for the first
    /// time. If one of several addresses fails, the health check is not served at all, so that it does not look healthy
    /// on some addresses and dead on others. Has to be called in a tokio runtime.
    pub async fn update(&mut self, wanted: &HealthChecks) -> Vec<BindFailure> {
        // First everything is closed: a port may go from one Service to another.
        self.close_unwanted(wanted).await;
        let mut failures = Vec::new();
        let mut room = self.budget.sockets().saturating_sub(self.served.values().map(|it| it.sockets.len()).sum());
        for (key, check) in wanted {
            let (service, family) = key;
            let served = self.served.entry(key.clone()).or_insert_with(|| Served {
                target: Arc::new(Target {
                    service: service.clone(),
                    local_endpoints: AtomicUsize::new(0),
                    health: self.health.clone(),
                }),
                sockets: BTreeMap::new(),
                failed: None,
            });
            served.target.local_endpoints.store(check.local_endpoints, Ordering::Relaxed);
            let addresses = sockets(&self.listening[*family], *family, check.port);
            match served.open(addresses, &self.budget, &mut room) {
                Ok(()) => served.failed = None,
                Err((address, source)) => {
                    for (_, socket) in std::mem::take(&mut served.sockets) {
                        socket.stop().await;
                        room += 1;
                    }
                    if served.failed.replace(format!("{address}: {source}")).is_none() {
                        let failure = BindFailure { service: service.clone(), address, source };
                        tracing::error!("{failure}; trying again");
                        failures.push(failure);
                    }
                }
            }
        }
        failures
    }

    async fn close_unwanted(&mut self, wanted: &HealthChecks) {
        let mut unwanted = Vec::new();
        self.served.retain(|key, served| {
            let check = wanted.get(key);
            let keep = check.map(|check| sockets(&self.listening[key.1], key.1, check.port)).unwrap_or_default();
            for (address, socket) in std::mem::take(&mut served.sockets) {
                if keep.contains(&address) {
                    served.sockets.insert(address, socket);
                } else {
                    unwanted.push(socket);
                }
            }
            check.is_some()
        });
        for socket in unwanted {
            socket.stop().await;
        }
    }
}

impl Served {
    /// Opens the sockets that are missing, until one fails or there is no room for more.
    fn open(
        &mut self,
        wanted: BTreeSet<SocketAddr>,
        budget: &Budget,
        room: &mut usize,
    ) -> Result<(), (SocketAddr, io::Error)> {
        for address in wanted {
            if !self.sockets.contains_key(&address) {
                let listener = match *room {
                    0 => Err(io::Error::other(NO_ROOM)),
                    _ => http::listen(address, false),
                };
                let listener = listener.map_err(|error| (address, error))?;
                *room -= 1;
                let app = Router::new().fallback(answer).with_state(Arc::clone(&self.target));
                let serving = tokio::spawn(http::serve(listener, app, budget.clone()));
                self.sockets.insert(address, ServingTask(serving));
            }
        }
        Ok(())
    }
}

/// Where a health check listens.
fn sockets(listening: &Accepted, family: Family, port: NonZeroU16) -> BTreeSet<SocketAddr> {
    let everywhere = || match family {
        Family::V4 => BTreeSet::from([IpAddr::from(Ipv4Addr::UNSPECIFIED)]),
        Family::V6 => BTreeSet::from([IpAddr::from(Ipv6Addr::UNSPECIFIED)]),
    };
    let addresses = match listening {
        Accepted::All => everywhere(),
        Accepted::Only(addresses) => addresses.clone(),
    };
    addresses.into_iter().map(|address| SocketAddr::new(address, port.get())).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: BodyService<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct BodyService<'a> {
    namespace: &'a str,
    name: &'a str,
}

async fn answer(Shared(target): Shared<Arc<Target>>) -> Response {
    let local_endpoints = target.local_endpoints.load(Ordering::Relaxed);
    let healthy = target.health.healthy();
    let status = if local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), local_endpoints.to_string()),
    ];
    (status, headers, body(&target.service, local_endpoints, healthy)).into_response()
}

/// Byte for byte what kube-proxy answers: indented with tabs, no end of line at the end.
fn body(service: &ObjectName, local_endpoints: usize, service_proxy_healthy: bool) -> Vec<u8> {
    let service = BodyService { namespace: service.namespace(), name: service.name() };
    let body = Body { service, local_endpoints, service_proxy_healthy };
    let mut bytes = Vec::with_capacity(160);
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    body.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format))
        .expect("a structure of texts and numbers, written to memory");
    bytes
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::health::{Moment, State};
    use crate::testing::http::{Client, refused, request};
    use crate::testing::{in_network_namespace_async, run};

    const ALL: PerFamily<Accepted> = PerFamily { v4: Accepted::All, v6: Accepted::All };

    fn health() -> Health {
        Health::new(State::new(Family::ALL, Duration::from_secs(30), Moment::now()))
    }

    fn server(listening: PerFamily<Accepted>, health: Health) -> CheckServer {
        CheckServer { listening, ..CheckServer::nowhere(health, Budget::default()) }
    }

    fn only(v4: &[&str], v6: &[&str]) -> PerFamily<Accepted> {
        let set = |texts: &[&str]| Accepted::Only(texts.iter().map(|text| text.parse().expect("an IP")).collect());
        PerFamily { v4: set(v4), v6: set(v6) }
    }

    fn checks(checks: &[(&str, Family, u16, usize)]) -> HealthChecks {
        let name = |name| ObjectName::new("default", name).expect("a name");
        let port = |port| NonZeroU16::new(port).expect("a port");
        let check = |&(service, family, at, local_endpoints)| {
            ((name(service), family), HealthCheck { port: port(at), local_endpoints })
        };
        checks.iter().map(check).collect()
    }

    /// Updates until all is served. A port may be taken a little longer than until it was closed: when another test
    /// starts a program, there is a copy of every open socket until that runs.
    async fn settle(server: &mut CheckServer, wanted: &HealthChecks) {
        let deadline = Instant::now() + Duration::from_secs(20);
        server.update(wanted).await;
        while !server.failures().is_empty() {
            assert!(Instant::now() < deadline, "{server:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            server.update(wanted).await;
        }
    }

    #[test]
    fn the_answer_is_that_of_kube_proxy() {
        in_network_namespace_async(async || {
            let health = health();
            let mut server = server(ALL, health.clone());
            let wanted = checks(&[("lb1", Family::V4, 32000, 2), ("lb1", Family::V6, 32000, 0)]);
            settle(&mut server, &wanted).await;
            for (address, status, count) in [("127.0.0.1:32000", 200, 2), ("[::1]:32000", 503, 0)] {
                for (method, path) in [("GET", "/"), ("GET", "/any/path?q"), ("POST", "/healthz"), ("DELETE", "/")] {
                    let answer = request(address, method, path).await;
                    assert_eq!(answer.status, status);
                    assert_eq!(answer.header("content-type"), Some("application/json"));
                    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
                    assert_eq!(answer.header("x-load-balancing-endpoint-weight"), Some(&*count.to_string()));
                    let expected = format!(
                        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"lb1\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
                    );
                    assert_eq!(answer.body, expected);
                }
            }
        });
    }

    #[test]
    fn an_unhealthy_proxy_gets_no_connections() {
        in_network_namespace_async(async || {
            // Nothing may wait, not even for a moment.
            let health = Health::new(State::new(Family::ALL, Duration::ZERO, Moment::now()));
            let mut server = server(ALL, health.clone());
            server.update(&checks(&[("lb1", Family::V4, 32000, 1)])).await;
            assert_eq!(request("127.0.0.1:32000", "GET", "/").await.status, 200);
            health.change_queued(Family::V6);
            let answer = request("127.0.0.1:32000", "GET", "/").await;
            assert_eq!((answer.status, answer.header("x-load-balancing-endpoint-weight")), (503, Some("1")));
            assert!(answer.body.contains("\"serviceProxyHealthy\": false"), "{}", answer.body);
        });
    }

    #[test]
    fn an_update_touches_only_what_changed() {
        in_network_namespace_async(async || {
            let mut server = server(ALL, health());
            let update = checks(&[("a", Family::V4, 32000, 1), ("b", Family::V4, 32001, 1)]);
            settle(&mut server, &update).await;
            let (mut a, mut b) = (Client::connect("127.0.0.1:32000").await, Client::connect("127.0.0.1:32001").await);
            assert_eq!(a.request("GET", "/").await.status, 200);
            assert_eq!(b.request("GET", "/").await.status, 200);

            // A new count does not disturb a connection.
            server.update(&checks(&[("a", Family::V4, 32000, 0), ("b", Family::V4, 32001, 3)])).await;
            assert_eq!(a.request("GET", "/").await.status, 503);
            assert_eq!(b.request("GET", "/").await.header("x-load-balancing-endpoint-weight"), Some("3"));

            // Another port closes those of the old one.
            server.update(&checks(&[("a", Family::V4, 32002, 1), ("b", Family::V4, 32001, 1)])).await;
            a.closed().await;
            assert!(refused("127.0.0.1:32000").await);
            assert_eq!(request("127.0.0.1:32002", "GET", "/").await.status, 200);
            assert_eq!(b.request("GET", "/").await.status, 200);

            // A port goes from one Service to another, which comes first in order.
            settle(&mut server, &checks(&[("a", Family::V4, 32001, 7)])).await;
            b.closed().await;
            let answer = request("127.0.0.1:32001", "GET", "/").await;
            assert!(answer.body.contains("\"name\": \"a\""), "{}", answer.body);

            server.update(&HealthChecks::new()).await;
            assert!(refused("127.0.0.1:32001").await && refused("127.0.0.1:32002").await);
        });
    }

    #[test]
    fn given_addresses_are_the_only_ones() {
        in_network_namespace_async(async || {
            run(&["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"]);
            run(&["ip", "addr", "add", "192.0.2.2/32", "dev", "lo"]);
            let mut server = server(only(&["192.0.2.1", "127.0.0.1"], &["::1"]), health());
            let wanted = checks(&[("a", Family::V4, 32000, 1), ("a", Family::V6, 32000, 1)]);
            settle(&mut server, &wanted).await;
            for address in ["192.0.2.1:32000", "127.0.0.1:32000", "[::1]:32000"] {
                assert_eq!(request(address, "GET", "/").await.status, 200);
            }
            assert!(refused("192.0.2.2:32000").await);

            let mut stays = Client::connect("127.0.0.1:32000").await;
            server.listen_on(only(&["192.0.2.2", "127.0.0.1"], &[]));
            settle(&mut server, &wanted).await;
            assert_eq!(stays.request("GET", "/").await.status, 200);
            assert_eq!(request("192.0.2.2:32000", "GET", "/").await.status, 200);
            assert!(refused("192.0.2.1:32000").await && refused("[::1]:32000").await);
        });
    }

    #[test]
    fn what_cannot_be_listened_on_is_said_once_and_tried_again() {
        in_network_namespace_async(async || {
            run(&["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"]);
            let other = std::net::TcpListener::bind("192.0.2.1:32000").expect("free");
            let mut server = server(only(&["127.0.0.1", "192.0.2.1"], &[]), health());
            let wanted =
                checks(&[("a", Family::V4, 32000, 1), ("b", Family::V4, 32001, 1), ("c", Family::V4, 32001, 1)]);
            let failures = server.update(&wanted).await;
            let failed: Vec<(&str, SocketAddr)> =
                failures.iter().map(|failure| (failure.service.name(), failure.address)).collect();
            let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
            assert_eq!(failed, [("a", at("192.0.2.1:32000")), ("c", at("127.0.0.1:32001"))]);
            assert!(failures.iter().all(|failure| failure.source.kind() == io::ErrorKind::AddrInUse));
            assert!(refused("127.0.0.1:32000").await, "all or none of its addresses");
            assert!(request("127.0.0.1:32001", "GET", "/").await.body.contains("\"name\": \"b\""));

            assert!(server.update(&wanted).await.is_empty(), "said once");
            drop(other);
            settle(&mut server, &checks(&[("a", Family::V4, 32000, 1), ("b", Family::V4, 32001, 1)])).await;
            assert_eq!(request("127.0.0.1:32000", "GET", "/").await.status, 200);
            assert_eq!(request("192.0.2.1:32000", "GET", "/").await.status, 200);

            // It was mended: the next failure is a new one.
            server.update(&checks(&[("b", Family::V4, 32001, 1)])).await;
            assert!(refused("192.0.2.1:32000").await);
            let other = std::net::TcpListener::bind("192.0.2.1:32000").expect("free");
            assert_eq!(server.update(&wanted).await.len(), 2);
            drop(other);
        });
    }

    #[test]
    fn descriptors_are_kept_for_others() {
        in_network_namespace_async(async || {
            let mut server = CheckServer { budget: Budget::of(136), ..server(ALL, health()) };
            let few = [("a", Family::V4, 32000, 1), ("b", Family::V4, 32001, 1), ("b", Family::V6, 32001, 1)];
            let failures = server.update(&checks(&few)).await;
            let [BindFailure { service, source, .. }] = &failures[..] else { panic!("{failures:?}") };
            assert_eq!((service.name(), source.to_string().as_str()), ("b", NO_ROOM));
            assert_eq!(PerFamily::from_fn(|family| server.failing(family)), PerFamily { v4: 0, v6: 1 });
            settle(&mut server, &checks(&few[1..])).await;
            assert_eq!(request("[::1]:32001", "GET", "/").await.status, 200);
            assert_eq!(server.failing(Family::V6), 0);
        });
    }

    #[test]
    fn a_server_that_is_dropped_closes_everything() {
        in_network_namespace_async(async || {
            let mut server = server(ALL, health());
            server.update(&checks(&[("a", Family::V4, 32000, 1)])).await;
            let mut client = Client::connect("127.0.0.1:32000").await;
            assert_eq!(client.request("GET", "/").await.status, 200);
            drop(server);
            client.closed().await;
            assert!(refused("127.0.0.1:32000").await);
        });
    }
}
