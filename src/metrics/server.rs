//! The metrics port, as kube-proxy has it: paths, status codes, headers and bodies.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tokio::task::yield_now;

use super::daemon::{self, Daemon};
use super::endpoints;
use super::history;
use super::services::{self, Services};
use super::zpages::ZPages;
use super::{Metrics, readings};
use crate::http::{self, Budget};

/// The same type that Go's library gives to the text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

struct Shared {
    metrics: Arc<Metrics>,
    configz: Receiver<String>,
    exposition: Exposition,
}

/// The text of `/metrics`. Those who ask while others do get the same one, so that many cost no more time and memory than
/// one; it is never older than the question.
#[derive(Default)]
struct Exposition(Mutex<Option<Made>>);

/// When a text was made, and the text while somebody still reads it.
struct Made {
    at: Instant,
    text: Weak<[u8]>,
}

impl Exposition {
    async fn text(&self, make: impl FnOnce() -> String) -> Bytes {
        let asked = Instant::now();
        // Those whose question is here have asked before it is made.
        yield_now().await;
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = made.as_ref().filter(|made| made.at >= asked).and_then(|made| made.text.upgrade());
        let text = text.unwrap_or_else(|| {
            let at = Instant::now();
            let text = Arc::from(make().into_bytes());
            *made = Some(Made { at, text: Arc::downgrade(&text) });
            text
        });
        Bytes::from_owner(text)
    }
}

/// Answers for ever on `/metrics`, `/metrics/slis`, `/proxyMode`, `/healthz`, `/healthz/ping`, `/configz`, `/statusz`, `/flagz`,
/// [`daemon::PATH`], [`services::PATH`], [`history::PATH`] and [`endpoints::PATH`].
///
/// `configz` is the body of `/configz`: the configuration in force at the time, as JSON. `/healthz` only says that somebody answers;
/// whether the proxy works is told on the health port, and by `status`.
pub(crate) async fn serve(
    listener: TcpListener,
    budget: Budget,
    metrics: Arc<Metrics>,
    configz: Receiver<String>,
    status: impl Fn() -> Daemon + Send + Sync + 'static,
    zpages: ZPages,
    services: Services,
) {
    let zpages = Arc::new(zpages);
    let flagz = Arc::clone(&zpages);
    let changes = Arc::clone(&zpages);
    let services = Arc::new(services);
    let status = Arc::new(status);
    let status = move || {
        let status = serde_json::to_string(&status()).expect("a structure of texts and numbers");
        std::future::ready(body(StatusCode::OK, JSON, status))
    };
    let app = Router::new()
        .route("/metrics", any(exposition))
        .route("/metrics/slis", any(slis))
        .route("/proxyMode", any(async || plain(StatusCode::OK, "nftables")))
        .route("/healthz", any(healthz))
        .route("/healthz/ping", any(async || plain(StatusCode::OK, "ok")))
        .route(
            "/configz",
            any(async |State(shared): State<Arc<Shared>>| body(StatusCode::OK, JSON, shared.configz.borrow().clone())),
        )
        .route("/statusz", any(async move |headers: HeaderMap| zpages.statusz(&headers)))
        .route("/flagz", any(async move |headers: HeaderMap| flagz.flagz(&headers)))
        .route(daemon::PATH, any(status))
        .route(history::PATH, any(async move || body(StatusCode::OK, JSON, changes.history())))
        .route(endpoints::PATH, any(accounting))
        .route(
            services::PATH,
            any(async move |RawQuery(query): RawQuery| services.page(&query.unwrap_or_default()).await),
        )
        .fallback(async || plain(StatusCode::NOT_FOUND, "404 page not found\n"))
        .with_state(Arc::new(Shared { metrics, configz, exposition: Exposition::default() }));
    http::serve(listener, app, budget).await;
}

async fn exposition(State(shared): State<Arc<Shared>>) -> Response {
    let start = readings::start_time().map_or(0, |time| time as u64).to_string();
    let headers = [(header::CONTENT_TYPE, EXPOSITION), (HeaderName::from_static("process-start-time-unix"), &start)];
    shared.metrics.connections.refresh().await;
    (headers, shared.exposition.text(|| shared.metrics.text()).await).into_response()
}

async fn accounting(State(shared): State<Arc<Shared>>) -> Response {
    let totals = shared.metrics.endpoints.totals(Instant::now());
    body(StatusCode::OK, JSON, serde_json::to_string(&totals).expect("a list of texts and numbers"))
}

/// What service levels are computed from; `DELETE` sets it back.
async fn slis(method: Method, State(shared): State<Arc<Shared>>) -> Response {
    if method == Method::DELETE {
        shared.metrics.reset_slis();
        return plain(StatusCode::OK, "metrics reset\n");
    }
    ([(header::CONTENT_TYPE, EXPOSITION)], shared.metrics.slis_text()).into_response()
}

async fn healthz(RawQuery(query): RawQuery, State(shared): State<Arc<Shared>>) -> Response {
    shared.metrics.healthcheck();
    let verbose = query.unwrap_or_default().split('&').any(|word| word.split('=').next() == Some("verbose"));
    plain(StatusCode::OK, if verbose { "[+]ping ok\nhealthz check passed\n" } else { "ok" })
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    body(status, PLAIN, text.to_owned())
}

fn body(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers = [(header::CONTENT_TYPE, content_type), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests;
