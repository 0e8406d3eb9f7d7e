use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use serde_json::Value;

use super::*;
use crate::http;
use crate::testing::in_network_namespace_async;

const SERVER: &str = "127.0.0.1:6443";

/// What came to the API server: method, path, body.
type Requests = Arc<Mutex<Vec<(Method, String, Value)>>>;

/// A server that takes every Event, and a client for it.
fn api_server() -> (Requests, Client, tokio::task::JoinHandle<()>) {
    async fn take(State(requests): State<Requests>, method: Method, uri: Uri, body: String) -> impl IntoResponse {
        let object: Value = serde_json::from_str(&body).expect("JSON");
        requests.lock().expect("nobody panics").push((method, uri.path().to_owned(), object));
        (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], body)
    }
    let requests = Requests::default();
    let app = Router::new().fallback(take).with_state(Arc::clone(&requests));
    let listener = http::bind(SERVER.parse().expect("an address")).expect("free");
    let serving = tokio::spawn(http::serve(listener, app, http::Budget::default()));
    (requests, client(), serving)
}

fn client() -> Client {
    let url = format!("http://{SERVER}").parse().expect("a URL");
    Client::try_from(kube::Config::new(url)).expect("a client")
}

fn service() -> ObjectName {
    ObjectName::new("shop", "web").expect("a name")
}

#[test]
fn events_are_those_of_kube_proxy() {
    in_network_namespace_async(async || {
        let (requests, client, serving) = api_server();
        let (events, notices) = Events::channel();
        events.say(Notice::starting());
        events.say(Notice::start_failed("FailedToStartMetricServer", "no room".to_owned()));
        let note = "é".repeat(600);
        events.say(Notice::health_check_failed(service(), note.clone()));
        events.say(Notice::health_check_failed(service(), note));
        drop(events);
        publish(client, "n1", "host-a", notices).await;
        serving.abort();

        let requests = requests.lock().expect("nobody panics").clone();
        let seen: Vec<_> = requests.iter().map(|(method, path, _)| (method.as_str(), path.as_str())).collect();
        const NODE_EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
        const SERVICE_EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";
        assert_eq!(seen[..3], [("POST", NODE_EVENTS), ("POST", NODE_EVENTS), ("POST", SERVICE_EVENTS)]);
        assert_eq!(seen[3].0, "PATCH", "the same again is counted");
        assert!(seen[3].1.starts_with(&format!("{SERVICE_EVENTS}/web.")), "{}", seen[3].1);
        assert_eq!(requests[3].2["series"]["count"], 2);

        let part = |request: usize| {
            let event = &requests[request].2;
            ["reason", "type", "action", "note", "reportingController", "reportingInstance"]
                .map(|field| event[field].as_str().unwrap_or("(none)").to_owned())
        };
        let by = ["kube-proxy", "kube-proxy-host-a"];
        assert_eq!(part(0), ["Starting", "Normal", "StartKubeProxy", "(none)", by[0], by[1]]);
        assert_eq!(part(1), ["FailedToStartMetricServer", "Warning", "StartKubeProxy", "no room", by[0], by[1]]);
        let note = "é".repeat(512);
        assert_eq!(part(2), ["FailedToStartServiceHealthcheck", "Warning", "Listen", &note, by[0], by[1]]);
        let regarding = |request: usize| requests[request].2["regarding"].clone();
        assert_eq!(regarding(0), serde_json::json!({"apiVersion": "v1", "kind": "Node", "name": "n1"}));
        assert_eq!(
            regarding(2),
            serde_json::json!({"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web"})
        );
    });
}

#[test]
fn an_event_waits_for_an_api_server_that_comes_late() {
    in_network_namespace_async(async || {
        let (events, notices) = Events::channel();
        events.say(Notice::starting());
        let publishing = tokio::spawn(async { publish(client(), "n1", "host-a", notices).await });
        // It has been refused once when this task goes on.
        sleep(FIRST_PAUSE / 2).await;
        let (requests, _, serving) = api_server();
        let deadline = Instant::now() + Duration::from_secs(60);
        while requests.lock().expect("nobody panics").is_empty() {
            assert!(Instant::now() < deadline, "it is not tried again");
            sleep(Duration::from_millis(5)).await;
        }
        drop(events);
        publishing.await.expect("it ends");
        serving.abort();
        assert_eq!(requests.lock().expect("nobody panics").len(), 1);
    });
}

#[test]
fn nobody_waits_for_an_api_server() {
    in_network_namespace_async(async || {
        Events::nowhere().say(Notice::starting());
        let (events, notices) = Events::channel();
        let started = Instant::now();
        for _ in 0..10 * WAITING {
            events.say(Notice::starting());
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(notices.len(), WAITING, "the rest is forgotten");
        drop(events);
        // There is no server: each is given up.
        publish(client(), "n1", "host-a", notices).await;
    });
}
