//! Sockets to an API server, or to the proxy before it, and what is spoken on them.

mod either_way;
mod names;
mod sockets;

use std::env;
use std::time::Duration;

use axum::http::{HeaderValue, Request, Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use hyper::rt::{Read, Write};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connection;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, DynBody};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder};
use tower_http::ServiceExt as _;
use tower_http::trace::TraceLayer;

use self::either_way::EitherWay;
pub(super) use self::names::Names;
use self::sockets::Sockets;
use crate::source::bypass::Bypass;

/// A connection that is not there after so long, with all that comes before the first request, is given up: proxies and TLS.
const READY: Duration = Duration::from_secs(30);
/// A connection on which nothing arrives for so long is given up: the other end may be gone without a word, behind one
/// that goes on acknowledging. API servers send a bookmark on each watch about once a minute.
const SILENCE: Duration = Duration::from_secs(90);
/// As in kube's client.
const WRITTEN: Duration = Duration::from_secs(295);

/// Sends requests that have the whole URL in them.
pub(super) type Transport = BoxCloneSyncService<Request<Body>, Response<Box<DynBody>>, BoxError>;

/// Where connections go.
pub(super) struct Way<'a> {
    pub(super) server: &'a Uri,
    pub(super) proxy: Option<&'a Uri>,
    pub(super) tls: ClientConfig,
    /// The name that the server's certificate has to have, where it is not that of the URL.
    pub(super) server_name: Option<&'a ServerName<'static>>,
    /// Past the Services of this node, where there is such a way.
    pub(super) bypass: Option<&'a Bypass>,
    pub(super) names: &'a Names,
}

/// Makes what sends requests. Nothing is connected yet.
pub(super) fn transport(way: &Way<'_>) -> Transport {
    let Some(proxy) = way.proxy else { return over(way, |sockets| sockets) };
    match proxy.scheme_str() {
        Some("socks5") => over(way, |sockets| SocksV5::new(proxy.clone(), sockets)),
        // The proxy is spoken to as the server is, as Go does.
        Some("https") => over(way, |sockets| tunnel(proxy, with_tls(sockets, way.tls.clone(), None))),
        _ => over(way, |sockets| tunnel(proxy, sockets)),
    }
}

fn tunnel<C>(proxy: &Uri, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.clone(), connector);
    match proxy_authorization(proxy) {
        Some(value) => tunnel.with_auth(value),
        None => tunnel,
    }
}

/// Whether only the tables lead to the server: in pods, it is named by a cluster IP.
fn is_behind_tables(way: &Way<'_>) -> bool {
    let host = way.server.host().map(|host| host.trim_matches(['[', ']']));
    way.proxy.is_none() && host.is_some() && env::var("KUBERNETES_SERVICE_HOST").ok().as_deref() == host
}

fn with_tls<C>(connector: C, tls: ClientConfig, server_name: Option<&ServerName<'static>>) -> HttpsConnector<C> {
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let builder = match server_name {
        Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name.clone())),
        None => builder,
    };
    builder.enable_http1().wrap_connector(connector)
}

fn over<C>(way: &Way<'_>, connector: impl Fn(Sockets) -> C) -> Transport
where
    C: tower::Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let with = |priority| {
        with_tls(connector(Sockets { priority, names: way.names.clone() }), way.tls.clone(), way.server_name)
    };
    let past = way.bypass.map(|bypass| (with(Some(bypass.priority)), bypass.clone()));
    let mut connector = TimeoutConnector::new(EitherWay::new(past, with(None), is_behind_tables(way)));
    connector.set_connect_timeout(Some(READY));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_write_timeout(Some(WRITTEN));
    let client = Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let client = ServiceBuilder::new().layer(TraceLayer::new_for_http()).map_err(BoxError::from).service(client);
    let client = client.map_response_body(|body| Box::new(BodyExt::map_err(body, BoxError::from)) as Box<DynBody>);
    BoxCloneSyncService::new(client)
}

/// `Proxy-Authorization` for the user in a proxy's URL.
fn proxy_authorization(proxy: &Uri) -> Option<HeaderValue> {
    let (user, _) = proxy.authority()?.as_str().rsplit_once('@')?;
    let user: Vec<u8> = percent_encoding::percent_decode_str(user).collect();
    HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(user))).ok()
}
