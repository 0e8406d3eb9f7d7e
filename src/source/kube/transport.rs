//! Sockets to an API server, or to the proxy before it, and what is spoken on them.

use std::time::Duration;

use axum::http::{HeaderValue, Request, Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use hyper::rt::{Read, Write};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, DynBody};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder};
use tower_http::ServiceExt as _;
use tower_http::trace::TraceLayer;

/// A connection that is not there after so long, for each address of a name, is given up: nobody answers.
const CONNECTED: Duration = Duration::from_secs(10);
/// The same with all that comes before the first request: proxies and TLS.
const READY: Duration = Duration::from_secs(30);
/// A connection on which nothing is sent or received for so long is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(10);
/// And again, until there is an answer.
const AGAIN: Duration = Duration::from_secs(5);
/// What was sent, or asked, and not acknowledged for so long breaks the connection (`TCP_USER_TIMEOUT`, tcp(7)).
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// A connection on which nothing arrives for so long is given up: the other end may be gone without a word, behind one
/// that goes on acknowledging. API servers send a bookmark on each watch about once a minute.
const SILENCE: Duration = Duration::from_secs(90);
/// As in kube's client.
const WRITTEN: Duration = Duration::from_secs(295);

/// Sends requests that have the whole URL in them.
pub(super) type Transport = BoxCloneSyncService<Request<Body>, Response<Box<DynBody>>, BoxError>;

/// Where connections go.
pub(super) struct Way<'a> {
    pub(super) proxy: Option<&'a Uri>,
    pub(super) tls: ClientConfig,
    /// The name that the server's certificate has to have, where it is not that of the URL.
    pub(super) server_name: Option<&'a ServerName<'static>>,
}

/// Makes what sends requests. Nothing is connected yet.
pub(super) fn transport(way: Way<'_>) -> Transport {
    let Way { proxy, tls, server_name } = way;
    let Some(proxy) = proxy else { return over(sockets(), tls, server_name) };
    let authorization = proxy_authorization(proxy);
    let tunnel = match proxy.scheme_str() {
        Some("socks5") => return over(SocksV5::new(proxy.clone(), sockets()), tls, server_name),
        // The proxy is spoken to as the server is, as Go does.
        Some("https") => {
            let to_proxy = with_tls(sockets(), tls.clone(), None);
            let tunnel = Tunnel::new(proxy.clone(), to_proxy);
            return match authorization {
                Some(value) => over(tunnel.with_auth(value), tls, server_name),
                None => over(tunnel, tls, server_name),
            };
        }
        _ => Tunnel::new(proxy.clone(), sockets()),
    };
    match authorization {
        Some(value) => over(tunnel.with_auth(value), tls, server_name),
        None => over(tunnel, tls, server_name),
    }
}

/// The one place where sockets are made, whatever is at their other end.
fn sockets() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECTED));
    connector.set_keepalive(Some(IDLE));
    connector.set_keepalive_interval(Some(AGAIN));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    connector
}

fn with_tls<C>(connector: C, tls: ClientConfig, server_name: Option<&ServerName<'static>>) -> HttpsConnector<C> {
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let builder = match server_name {
        Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name.clone())),
        None => builder,
    };
    builder.enable_http1().wrap_connector(connector)
}

fn over<C>(connector: C, tls: ClientConfig, server_name: Option<&ServerName<'static>>) -> Transport
where
    C: tower::Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let mut connector = TimeoutConnector::new(with_tls(connector, tls, server_name));
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
