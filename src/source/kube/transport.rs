//! The connections to an API server that is reached without a proxy: what kube's client makes by itself, but for the
//! socket options, which it gives nobody the means to set.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Config;
use kube::client::{Body, ClientBuilder, ConfigExt as _, DynBody};
use tower::util::BoxService;
use tower::{BoxError, ServiceBuilder, ServiceExt as _};
use tower_http::ServiceExt as _;
use tower_http::trace::TraceLayer;

/// A connection on which nothing is sent or received for so long is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(10);
/// And again, until there is an answer.
const AGAIN: Duration = Duration::from_secs(5);
/// What was sent, or asked, and not acknowledged for so long breaks the connection (`TCP_USER_TIMEOUT`, tcp(7)).
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// As in kube's client.
pub(super) type Service = BoxService<axum::http::Request<Body>, axum::http::Response<Box<DynBody>>, BoxError>;

/// Makes a client, without its layers for whoever listens. `proxy_url` and `default_retry` are not looked at.
pub(super) fn direct(config: &Config) -> kube::Result<ClientBuilder<Service>> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_keepalive(Some(IDLE));
    connector.set_keepalive_interval(Some(AGAIN));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let client = Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .layer(TraceLayer::new_for_http())
        .map_err(BoxError::from)
        .service(client);
    let service =
        service.map_response_body(|body| Box::new(BodyExt::map_err(body, BoxError::from)) as Box<DynBody>).boxed();
    Ok(ClientBuilder::new(service, config.default_namespace.clone()))
}
