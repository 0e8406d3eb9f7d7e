//! Tells of every request to the API server and its answer, for the numbers that all Kubernetes clients keep.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use kube::client::Body;
use tower::{Layer, Service};

/// A request and the head of its answer: a watch goes on after that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The method of HTTP.
    pub method: String,
    /// Whom was asked: a name or address, with the port where it is in the URL.
    pub host: String,
    /// The status code; `None` if there was no answer.
    pub code: Option<u16>,
    /// From asking to the head of the answer.
    pub elapsed: Duration,
}

/// Hears of every exchange.
pub type ExchangeListener = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// Puts a listener into a client.
#[derive(Clone)]
pub(super) struct ReportExchanges {
    pub(super) listener: ExchangeListener,
    /// [`Exchange::host`]: a request has it only once it has passed all layers of the client.
    pub(super) host: String,
}

impl<S> Layer<S> for ReportExchanges {
    type Service = Reporting<S>;

    fn layer(&self, inner: S) -> Reporting<S> {
        Reporting { inner, listening: self.clone() }
    }
}

/// A client that is listened to.
#[derive(Clone)]
pub(super) struct Reporting<S> {
    inner: S,
    listening: ReportExchanges,
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<S, B> Service<axum::http::Request<Body>> for Reporting<S>
where
    S: Service<axum::http::Request<Body>, Response = axum::http::Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: axum::http::Request<Body>) -> Self::Future {
        let method = request.method().to_string();
        let started = Instant::now();
        let answer = self.inner.call(request);
        let ReportExchanges { listener, host } = self.listening.clone();
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            listener(&Exchange { method, host, code, elapsed: started.elapsed() });
            answer
        })
    }
}
