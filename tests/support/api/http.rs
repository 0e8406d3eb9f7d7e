//! Requests and answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::selector::Selector;
use super::store::{Seen, WatchEvent};
use super::wire::Faulty;
use super::{Ahead, Faults, Gone, KINDS, Lists, Request, Resource, Shared, Verb, Watches, lock, tls};

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Query = BTreeMap<String, String>;

/// A watch without `timeoutSeconds` ends after this.
const WATCH_TIMEOUT: Duration = Duration::from_secs(1800);

/// Serves until `stopped`.
pub fn run(listener: TcpListener, shared: Arc<Shared>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
        tokio::select! {
            () = accept(listener, shared) => {}
            _ = stopped => {}
        }
    });
    runtime.shutdown_background();
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        let stream = Faulty::new(stream, Arc::clone(&shared));
        tokio::spawn(async move {
            let mut closing = shared.connections.subscribe();
            let connection = async {
                let tls = lock(&shared.tls).clone();
                match tls {
                    None => serve(&shared, stream, None).await,
                    Some(config) => {
                        let Ok((stream, certificate)) = tls::accept(config, stream).await else { return };
                        serve(&shared, stream, certificate).await;
                    }
                }
            };
            tokio::select! {
                () = connection => {}
                _ = closing.changed() => {}
            }
        });
    }
}

async fn serve(
    shared: &Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    certificate: Option<Vec<u8>>,
) {
    let answer = service_fn(|request| answer(Arc::clone(shared), request, certificate.clone()));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
    certificate: Option<Vec<u8>>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if request.method() != Method::GET
        && let Some(target) = target_of(&path)
    {
        return Ok(write(&shared, target, request).await);
    }
    let mut query = parse_query(request.uri().query().unwrap_or(""));
    let resource = match target_of(&path) {
        Some(Target { resource, namespace, name: None }) => {
            let fields = query.entry("fieldSelector".to_owned()).or_default();
            *fields = format!("metadata.namespace={namespace},{fields}");
            Some(resource)
        }
        _ => resource_of(&path),
    };
    let text = |key: &str| query.get(key).cloned().unwrap_or_default();
    let mut record = Request {
        resource: resource.map_or(path.clone(), |resource| resource.plural.to_owned()),
        verb: match resource {
            None => Verb::Other,
            Some(_) if matches!(text("watch").as_str(), "1" | "true") => Verb::Watch,
            Some(_) => Verb::List,
        },
        method: request.method().to_string(),
        authorization: request.headers().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned),
        certificate,
        version: query.get("resourceVersion").cloned(),
        selectors: (text("labelSelector"), text("fieldSelector")),
        limit: text("limit").parse().ok(),
        continued: query.contains_key("continue"),
        status: 0,
    };

    let faults = lock(&shared.faults).clone();
    if record.verb == Verb::List && !faults.list_delay.is_zero() {
        tokio::time::sleep(faults.list_delay).await;
    }
    let wanted = faults.token.as_ref().map(|token| format!("Bearer {token}"));
    let response = match (faults.status, resource) {
        _ if wanted.is_some() && record.authorization != wanted => status(401, "Unauthorized"),
        (Some(code), _) => {
            let mut response = status(code, "told to fail");
            if let Some(value) = faults.retry_after {
                let value = value.parse().expect("the value of a header");
                response.headers_mut().insert(hyper::header::RETRY_AFTER, value);
            }
            response
        }
        (None, None) if request.method() == Method::POST && path.ends_with("/events") => {
            create_event(&shared, request).await
        }
        (None, Some(resource)) if faults.forbidden.iter().any(|plural| plural == resource.plural) => {
            status(403, "told to forbid it")
        }
        (None, Some(resource)) if !faults.absent.iter().any(|plural| plural == resource.plural) => {
            if request.method() != Method::GET {
                status(405, "only GET")
            } else if query.contains_key("sendInitialEvents") {
                // As servers without the feature do; clients then list.
                status(422, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
            } else if record.verb == Verb::Watch {
                match unfollowed(&shared, resource, &query, faults.watches) {
                    Some(response) => response,
                    None => watch(&shared, resource, &query, &faults),
                }
            } else {
                list(&shared, resource, &query, faults.lists)
            }
        }
        (None, _) => status(404, "the server could not find the requested resource"),
    };
    record.status = response.status().as_u16();
    lock(&shared.requests).push(record);
    Ok(response)
}

/// The kind at this path, over all namespaces.
fn resource_of(path: &str) -> Option<&'static Resource> {
    KINDS.iter().find(|resource| {
        let prefix = if resource.api_version.contains('/') { "apis" } else { "api" };
        path == format!("/{prefix}/{}/{}", resource.api_version, resource.plural)
    })
}

/// A collection in a namespace, or an object in it.
struct Target {
    resource: &'static Resource,
    namespace: String,
    name: Option<String>,
}

fn target_of(path: &str) -> Option<Target> {
    let (prefix, rest) = path.split_once("/namespaces/")?;
    let parts: Vec<&str> = rest.split('/').collect();
    let (namespace, plural, name) = match parts.as_slice() {
        [namespace, plural] => (namespace, plural, None),
        [namespace, plural, name] => (namespace, plural, Some((*name).to_owned())),
        _ => return None,
    };
    let resource = resource_of(&format!("{prefix}/{plural}"))?;
    Some(Target { resource, namespace: (*namespace).to_owned(), name })
}

/// Creates, replaces or deletes an object; whether it is there already is not looked at.
async fn write(shared: &Shared, target: Target, request: hyper::Request<Incoming>) -> Response<Body> {
    let Target { resource, namespace, name } = target;
    if request.method() == Method::DELETE {
        let deleted = name.is_some_and(|name| lock(&shared.store).delete(resource.kind, &namespace, &name));
        shared.changed.send_modify(|count| *count += 1);
        return if deleted { status(200, "deleted") } else { status(404, "there is no such object") };
    }
    let code = if request.method() == Method::POST { 201 } else { 200 };
    let Ok(body) = request.into_body().collect().await else { return status(400, "the object does not come") };
    match serde_json::from_slice::<Value>(&body.to_bytes()) {
        Ok(object) if object["kind"] == resource.kind && object["metadata"]["namespace"] == namespace => {
            let version = lock(&shared.store).apply(object.clone());
            shared.changed.send_modify(|count| *count += 1);
            let mut object = object;
            object["metadata"]["resourceVersion"] = version.to_string().into();
            respond(code, full(object.to_string()))
        }
        Ok(_) => status(400, "the object does not belong at this path"),
        Err(error) => status(400, &error.to_string()),
    }
}

/// Takes an Event, and returns it as it came.
async fn create_event(shared: &Shared, request: hyper::Request<Incoming>) -> Response<Body> {
    let Ok(body) = request.into_body().collect().await else { return status(400, "no body") };
    let body = body.to_bytes();
    let Ok(event) = serde_json::from_slice(&body) else { return status(400, "no JSON") };
    lock(&shared.events).push(event);
    respond(201, full(body))
}

fn list(shared: &Shared, resource: &Resource, query: &Query, lists: Lists) -> Response<Body> {
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|&limit| limit > 0);
    let token = query.get("continue").map(|token| token.split_once(':').unwrap_or((token, "")));
    let from = match token.map(|(version, key)| (version.parse(), key)) {
        None => None,
        Some((Ok(version), key)) => Some((version, key)),
        Some((Err(_), _)) => return status(400, "continue token is not valid"),
    };
    let listed = lock(&shared.store).list(resource.plural, &selector(query), limit.unwrap_or(usize::MAX), from);
    let Ok(page) = listed else {
        return status(410, "The provided continue parameter is too old");
    };
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some(last) = page.rest {
        metadata["continue"] = format!("{}:{last}", page.version).into();
    }
    let size = page.objects.iter().map(|object| object.text.len() + 1).sum::<usize>();
    if let Lists::OfKind(kind) = lists {
        let list = json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": []});
        return respond(200, full(list.to_string()));
    }
    let mut text = String::with_capacity(size + 512);
    text.push_str(&format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
        resource.kind, resource.api_version
    ));
    for (index, object) in page.objects.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&object.text);
    }
    let mut text = text.into_bytes();
    if let (Lists::With(more), "Service", None) = (lists, resource.kind, metadata.get("continue")) {
        text.extend_from_slice(if page.objects.is_empty() { b"" } else { b"," });
        text.extend_from_slice(more);
    }
    text.extend_from_slice(b"]}");
    respond(200, full(text))
}

/// The answer to a watch that is not to be followed.
fn unfollowed(shared: &Shared, resource: &Resource, query: &Query, watches: Watches) -> Option<Response<Body>> {
    let stream = |lines: Vec<io::Result<String>>| {
        let frames = lines.into_iter().map(|line| line.map(|line| Frame::data(Bytes::from(line))));
        respond(200, BodyExt::boxed_unsync(StreamBody::new(futures::stream::iter(frames))))
    };
    let mut response = match watches {
        Watches::Follow => return None,
        Watches::Empty | Watches::EmptyAndClose => respond(200, full("")),
        Watches::Cut => {
            // The head goes out before the body is looked at a second time.
            let cut = futures::stream::once(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Err(io::Error::other("cut"))
            });
            respond(200, BodyExt::boxed_unsync(StreamBody::new(cut)))
        }
        Watches::End => stream(Vec::new()),
        Watches::Redirect => respond(302, full("")),
        Watches::Html(code) => respond(code, full("<html>\n<body>Please log in.</body>\n</html>\n")),
        Watches::Bookmark => stream(vec![Ok(bookmark(resource, lock(&shared.store).bookmark()) + "\n")]),
        Watches::Gone(gone) => too_old(gone),
        Watches::Replay => {
            let page = lock(&shared.store).list(resource.plural, &selector(query), usize::MAX, None);
            let objects = page.expect("without a version, none is too old").objects;
            let lines = objects.iter().map(|object| format!("{{\"type\":\"ADDED\",\"object\":{}}}\n", object.text));
            stream(lines.map(Ok).collect())
        }
        Watches::Garbage => then_nothing("hello\n".into()),
        Watches::Raw(bytes) => then_nothing(bytes.into()),
        Watches::OldBookmark => then_nothing((bookmark(resource, 1) + "\n").into()),
        Watches::OldEvents => {
            let page = lock(&shared.store).list(resource.plural, &selector(query), usize::MAX, None);
            let objects = page.expect("without a version, none is too old").objects;
            let lines = objects.iter().map(|object| {
                let mut value: Value = serde_json::from_str(&object.text).expect("a text that was a value");
                value["metadata"]["resourceVersion"] = "1".into();
                format!("{}\n", json!({"type": "MODIFIED", "object": value}))
            });
            then_nothing(lines.collect::<String>().into())
        }
    };
    let headers = response.headers_mut();
    match watches {
        Watches::EmptyAndClose => drop(headers.insert("connection", HeaderValue::from_static("close"))),
        Watches::Redirect => drop(headers.insert("location", HeaderValue::from_static("/login"))),
        Watches::Html(_) => drop(headers.insert("content-type", HeaderValue::from_static("text/html"))),
        _ => {}
    }
    Some(response)
}

/// A watch that sends this and then stays open.
fn then_nothing(lines: Bytes) -> Response<Body> {
    let lines = futures::stream::once(async { Ok(Frame::data(lines)) });
    respond(200, BodyExt::boxed_unsync(StreamBody::new(lines.chain(futures::stream::pending()))))
}

/// The answer to a watch whose version is too old.
fn too_old(gone: Gone) -> Response<Body> {
    let message = "too old resource version";
    match gone {
        Gone::AsStatus => status(410, message),
        Gone::InStream => {
            respond(200, full(format!("{}\n", json!({"type": "ERROR", "object": status_object(410, message)}))))
        }
    }
}

/// The answer to a watch from a version that is still to come (`NewTooLargeResourceVersionError` of apiserver).
fn too_large(ahead: Ahead, asked: u64, version: u64) -> Response<Body> {
    let message = format!("Too large resource version: {asked}, current: {version}");
    let mut object = status_object(504, &message);
    object["reason"] = "Timeout".into();
    object["details"] = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                               "retryAfterSeconds": 1});
    match ahead {
        Ahead::InStream => respond(200, full(format!("{}\n", json!({"type": "ERROR", "object": object})))),
        _ => respond(504, full(object.to_string())),
    }
}

fn bookmark(resource: &Resource, version: u64) -> String {
    let metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    json!({"type": "BOOKMARK", "object":
           {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}})
    .to_string()
}

fn watch(shared: &Arc<Shared>, resource: &'static Resource, query: &Query, faults: &Faults) -> Response<Body> {
    let selector = selector(query);
    let asked = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let changed = shared.changed.subscribe();
    let began = lock(&shared.store).watch_from(asked);
    let Ok(seen) = began else {
        return too_old(faults.gone);
    };
    let version = lock(&shared.store).version();
    if asked > version && faults.ahead != Ahead::Silent {
        return too_large(faults.ahead, asked, version);
    }
    let timeout = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let watching = Watching {
        shared: Arc::clone(shared),
        resource,
        selector,
        bookmarks: query.get("allowWatchBookmarks").is_some_and(|value| matches!(value.as_str(), "1" | "true")),
        seen,
        changed,
        connection: *shared.connections.borrow(),
        ended: shared.ended.subscribe(),
        ends: Instant::now() + timeout.unwrap_or(WATCH_TIMEOUT),
    };
    let lines = futures::stream::unfold(watching, |mut watching| async move {
        let lines = watching.next().await?;
        Some((Ok(Frame::data(Bytes::from(lines))), watching))
    });
    respond(200, BodyExt::boxed_unsync(StreamBody::new(lines)))
}

struct Watching {
    shared: Arc<Shared>,
    resource: &'static Resource,
    selector: Selector,
    bookmarks: bool,
    seen: Seen,
    changed: tokio::sync::watch::Receiver<u64>,
    /// How often connections had been closed when this one was new.
    connection: u64,
    ended: tokio::sync::watch::Receiver<u64>,
    ends: Instant,
}

impl Watching {
    /// The next lines, or the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            self.changed.borrow_and_update();
            let events = lock(&self.shared.store).events(self.resource.plural, &self.selector, &mut self.seen);
            // What happens after the connections are closed never gets through, even if the socket is open a bit longer.
            if *self.shared.connections.borrow() != self.connection {
                std::future::pending::<()>().await;
            }
            let mut lines = String::new();
            for event in events {
                match event {
                    WatchEvent::Object(what, object) => {
                        lines.push_str(&format!(r#"{{"type":"{what}","object":{}}}"#, object.text));
                    }
                    WatchEvent::Bookmark(version) if self.bookmarks => {
                        lines.push_str(&bookmark(self.resource, version));
                    }
                    WatchEvent::Bookmark(_) => continue,
                }
                lines.push('\n');
            }
            if !lines.is_empty() {
                return Some(lines);
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                _ = self.ended.changed() => return None,
                () = tokio::time::sleep_until(self.ends) => return None,
            }
        }
    }
}

fn selector(query: &Query) -> Selector {
    let text = |key: &str| query.get(key).map_or("", String::as_str);
    Selector::parse(text("labelSelector"), text("fieldSelector"))
}

fn status_object(code: u16, message: &str) -> serde_json::Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        422 => "Invalid",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "message": message,
           "status": if code < 400 { "Success" } else { "Failure" },
           "reason": reason, "code": code})
}

fn status(code: u16, message: &str) -> Response<Body> {
    respond(code, full(status_object(code, message).to_string()))
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn respond(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a status code");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn parse_query(query: &str) -> Query {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

/// Undoes percent encoding and `+` for a space.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                &after[2..]
            }
            (b'+', _) => {
                bytes.push(b' ');
                after
            }
            (&byte, _) => {
                bytes.push(byte);
                after
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
