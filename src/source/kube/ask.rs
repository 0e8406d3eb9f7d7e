//! Asks an API server for a kind of object. The client of kube is the transport; what is made of an answer stands in
//! `answer`.

use std::future::Future;
use std::time::Duration;

use axum::http::Request;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::{Request as Path, Status};
use kube::{Client, Resource};
use tokio::time::Instant;

use super::answer::{self, Change, Page};
use super::failure::Failure;
use super::history::Named;
use super::retry_after;
use crate::source::object::Object;

/// A server that does not begin to answer, or does not go on, for so long is asked again. API servers give up a request
/// after 60 s by themselves.
const PATIENCE: Duration = Duration::from_secs(65);
/// A page that has taken so long has to come with [`LEAST`] bytes a second: another connection may be a better one.
const SLOW: Duration = Duration::from_secs(20);
const LEAST: u64 = 1 << 10;
/// The same for a watch, which has nothing to look for first.
const WATCH_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a page: it is held as a whole.
const MAX_PAGE: usize = 64 << 20;
/// Bytes of an event: API servers take no object that is longer than 3 MiB.
const MAX_EVENT: usize = 16 << 20;
/// Bytes of an answer that says why there is nothing better.
const MAX_REFUSAL: usize = 64 << 10;

/// Asks for one kind.
#[derive(Clone)]
pub(super) struct Ask<T> {
    client: Client,
    path: Path,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl<T> Ask<T>
where
    T: Object + Resource<DynamicType = ()>,
{
    pub(super) fn new(client: Client) -> Ask<T> {
        Ask { client, path: Path::new(T::url_path(&(), None)), kind: std::marker::PhantomData }
    }

    /// A page of a list.
    pub(super) async fn list(&self, params: &ListParams) -> Result<Page<T>, Failure> {
        self.page(&self.path, params).await
    }

    /// A list in which there is nothing but this object, if any is given and it is there.
    pub(super) async fn look(&self, params: &ListParams, object: Option<&Named>) -> Result<Page<T>, Failure> {
        let Some(Named { namespace, name }) = object else { return self.list(params).await };
        let name = format!("metadata.name={name}");
        let others = params.field_selector.as_deref().filter(|others| *others != name);
        let params = params.clone().fields(&others.map_or(name.clone(), |others| format!("{others},{name}")));
        // In its namespace: there the server has to look for one key only.
        let namespace = Some(&**namespace).filter(|namespace| !namespace.is_empty());
        self.page(&Path::new(T::url_path(&(), namespace)), &params).await
    }

    async fn page(&self, path: &Path, params: &ListParams) -> Result<Page<T>, Failure> {
        let mut answer = self.send(path.list(params), PATIENCE).await?.into_data_stream();
        let mut text = BytesMut::new();
        let began = Instant::now();
        while let Some(frame) = in_time(PATIENCE, answer.next()).await? {
            text.extend_from_slice(&frame.map_err(Failure::Broken)?);
            let elapsed = began.elapsed();
            if elapsed > SLOW && text.len() as u64 / elapsed.as_secs() < LEAST {
                return Err(Failure::Late(elapsed));
            }
            if text.len() > MAX_PAGE {
                return Err(Failure::TooLong { objects: params.limit, limit: MAX_PAGE });
            }
        }
        answer::page(&text)
    }

    /// What happens after this version. Ends with the connection; an error that is [`Failure::Broken`] is the last.
    pub(super) async fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> Result<impl Stream<Item = Result<Change<T>, Failure>> + use<T>, Failure> {
        let body = self.send(self.path.watch(params, version), WATCH_PATIENCE).await?;
        Ok(lines(body.into_data_stream()).filter_map(move |text| {
            let change = match text {
                Ok(line) if line.is_complete => Some(answer::change(&line.text)),
                // The rest of a connection that broke: it comes again.
                Ok(line) => answer::change(&line.text).ok().map(Ok),
                Err(err) => Some(Err(err)),
            };
            std::future::ready(change)
        }))
    }

    /// The body of a good answer.
    async fn send(
        &self,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
        patience: Duration,
    ) -> Result<Body, Failure> {
        let request = request.map_err(|err| Failure::NotAsked(kube::Error::BuildRequest(err)))?;
        let answer = in_time(patience, self.client.send(request.map(Body::from))).await?.map_err(|err| match err {
            err @ (kube::Error::Service(_) | kube::Error::HyperError(_)) => Failure::NoAnswer(err),
            err => Failure::NotAsked(err),
        })?;
        let code = answer.status();
        if code.is_success() {
            return Ok(answer.into_body());
        }
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| retry_after::parse(value, Timestamp::now()));
        let text = in_time(patience, Limited::new(answer.into_body(), MAX_REFUSAL).collect()).await;
        let text = text.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let asked = matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Err(Failure::Refused { status: Box::new(refusal(code, &text)), retry_after: retry_after.filter(|_| asked) })
    }
}

async fn in_time<T>(patience: Duration, what: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(patience, what).await.map_err(|_| Failure::Late(patience))
}

/// What an answer that is no good one says.
fn refusal(code: StatusCode, text: &[u8]) -> Status {
    let mut status = answer::status(text).unwrap_or_else(|| {
        let reason = code.canonical_reason().unwrap_or_default();
        Status::failure(&String::from_utf8_lossy(text), reason)
    });
    if status.code == 0 {
        status.code = code.as_u16();
    }
    status
}

struct TextLine {
    text: Bytes,
    /// Whether it had an end.
    is_complete: bool,
}

/// The lines of a body, without empty ones.
fn lines(frames: impl Stream<Item = kube::Result<Bytes>>) -> impl Stream<Item = Result<TextLine, Failure>> {
    let start = (Box::pin(frames), BytesMut::new(), 0);
    stream::unfold(Some(start), async |state| {
        let (mut frames, mut buffer, mut seen) = state?;
        loop {
            if let Some(end) = buffer[seen..].iter().position(|byte| *byte == b'\n') {
                let text = buffer.split_to(seen + end + 1).freeze();
                seen = 0;
                if text.trim_ascii().is_empty() {
                    continue;
                }
                return Some((Ok(TextLine { text, is_complete: true }), Some((frames, buffer, 0))));
            }
            seen = buffer.len();
            if seen > MAX_EVENT {
                return Some((Err(Failure::Unreadable(format!("an event of more than {MAX_EVENT} bytes"))), None));
            }
            match frames.next().await {
                Some(Ok(frame)) => buffer.extend_from_slice(&frame),
                Some(Err(err)) => return Some((Err(Failure::Broken(err)), None)),
                None if buffer.trim_ascii().is_empty() => return None,
                None => return Some((Ok(TextLine { text: buffer.freeze(), is_complete: false }), None)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_put_together() {
        let whole = b"one\n\n \ntwo\r\nthree";
        for cut in 0..whole.len() {
            let frames = [&whole[..cut], &whole[cut..]].map(|frame| Ok(Bytes::copy_from_slice(frame)));
            let lines = lines(stream::iter(frames)).collect::<Vec<_>>().await;
            let lines: Vec<_> = lines.into_iter().map(|line| line.expect("no error")).collect();
            let texts: Vec<_> = lines.iter().map(|line| (line.text.trim_ascii(), line.is_complete)).collect();
            assert_eq!(texts, [(&b"one"[..], true), (b"two", true), (b"three", false)], "cut at {cut}");
        }
    }

    #[test]
    fn refusals_are_told_in_the_servers_words() {
        let said = |code: u16, text: &str| {
            let code = StatusCode::from_u16(code).expect("a code");
            Failure::Refused { status: Box::new(refusal(code, text.as_bytes())), retry_after: None }.to_string()
        };
        let status = r#"{"kind":"Status","code":403,"reason":"Forbidden","message":"no, me"}"#;
        assert_eq!(said(403, status), "403 Forbidden: no, me");
        assert_eq!(
            said(429, "The apiserver is\n shutting down"),
            "429 Too Many Requests: The apiserver is shutting down"
        );
        assert_eq!(said(302, ""), "302 Found:");
        assert_eq!(said(500, r#"{"kind":"Pod"}"#), r#"500 Internal Server Error: {"kind":"Pod"}"#);
    }
}
