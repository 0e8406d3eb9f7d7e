//! The page: asks the owner of the store, portion by portion, and writes what it says.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Answer, Ask, Query};
use crate::model::ObjectName;

/// How long the owner of the store may take for one answer: it may be in the middle of a sync.
const PATIENCE: Duration = Duration::from_secs(1);

/// So many Services are asked for at once.
const NAMES_AT_ONCE: usize = 64;

/// How the owner of the store is asked; says whether it takes the question. Too many may wait already.
pub type AskOwner = Box<dyn Fn(Ask, oneshot::Sender<Answer>) -> bool + Send + Sync>;

/// What `PATH` is served from.
pub struct Services(pub AskOwner);

/// There is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("too many ask at the same time")]
    Busy,
    #[error("the sync loop has not answered within {} s", PATIENCE.as_secs())]
    Late,
}

impl Services {
    /// Answers a request with this query.
    pub(in crate::metrics) async fn page(self: Arc<Services>, query: &str) -> Response {
        let query = match Query::parse(query) {
            Ok(query) => query,
            Err(error) => return line(StatusCode::BAD_REQUEST, &error),
        };
        let names = match self.names(query).await {
            Ok(names) => names,
            Err(error) => return line(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        };
        let mut listing = Listing { services: self, names, told: 0, separator: "[" };
        // While nothing is said yet it can be said that there is no answer. Afterwards the answer breaks off.
        let first = match listing.portion().await {
            Ok(first) => first,
            Err(error) => return line(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        };
        let body = stream::try_unfold((Some(first), listing), async |(first, mut listing)| {
            let portion = match first {
                Some(first) => first,
                None => listing.portion().await?,
            };
            Ok::<_, NoAnswer>(portion.map(|bytes| (bytes, (None, listing))))
        });
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        (headers, Body::from_stream(body)).into_response()
    }

    /// The names of those that are asked for, sorted.
    async fn names(&self, query: Query) -> Result<Vec<ObjectName>, NoAnswer> {
        let ask = match query {
            Query::Name(name) => return Ok(vec![name]),
            Query::All => Ask::All,
            Query::Address(address) => Ask::At(address),
            Query::Frontend { .. } => Ask::Owners(query),
        };
        let mut names = match self.ask(ask).await? {
            Answer::Names(names) => names,
            Answer::Facts { .. } => Vec::new(),
        };
        names.sort_unstable();
        Ok(names)
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, NoAnswer> {
        let (sender, answer) = oneshot::channel();
        if !(self.0)(ask, sender) {
            return Err(NoAnswer::Busy);
        }
        // The loop may have ended.
        timeout(PATIENCE, answer).await.ok().and_then(Result::ok).ok_or(NoAnswer::Late)
    }
}

/// A list of Services on its way, as JSON: never all of it at once in memory.
struct Listing {
    services: Arc<Services>,
    names: Vec<ObjectName>,
    /// How many of them have been told of.
    told: usize,
    /// What comes before the next Service.
    separator: &'static str,
}

impl Listing {
    /// The next portion, not empty; `None` behind the last.
    async fn portion(&mut self) -> Result<Option<Bytes>, NoAnswer> {
        let mut text = String::new();
        while text.is_empty() && self.told < self.names.len() {
            let rest = &self.names[self.told..];
            let ask = Ask::Services(rest[..rest.len().min(NAMES_AT_ONCE)].to_vec());
            let Answer::Facts { facts, looked_at } = self.services.ask(ask).await? else { break };
            // One is always looked at.
            self.told += looked_at.max(1);
            for facts in facts {
                text.push_str(self.separator);
                text.push_str(&serde_json::to_string(&facts).expect("a structure of texts and numbers"));
                self.separator = ",\n";
            }
        }
        if text.is_empty() {
            if self.separator.is_empty() {
                return Ok(None);
            }
            text.push_str(if self.separator == "[" { "[]" } else { "]" });
            self.separator = "";
        }
        Ok(Some(text.into()))
    }
}

fn line(status: StatusCode, text: &str) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, format!("{text}\n")).into_response()
}
