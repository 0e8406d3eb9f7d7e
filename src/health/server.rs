//! `/healthz`, `/livez` and `/readyz`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::Timestamp;
use serde::Serialize;
use tokio::net::TcpListener;

use super::{FamilyHealth, Health, HealthReport};
use crate::http::{self, Budget};

/// Answers for ever on `/healthz` (for load balancers: is this node to get connections?) and `/livez` (for whoever
/// restarts the proxy: does it work?), and on `/readyz` (is the start over?). Everything is closed when the future is
/// dropped.
///
/// `asked` is called with each question that kube-proxy has, too, and the status code of the answer. `held_up_by` says
/// what the start still waits for, in words; nothing once it is over.
pub(crate) async fn serve(
    listener: TcpListener,
    budget: Budget,
    health: Health,
    asked: impl Fn(Question, u16) + Send + Sync + 'static,
    held_up_by: impl Fn() -> Vec<String> + Send + Sync + 'static,
) {
    let state = Arc::new((health, asked));
    let app = Router::new();
    let app = [("/healthz", Question::Healthz), ("/livez", Question::Livez)].into_iter().fold(
        app,
        |app, (path, question)| {
            let state = Arc::clone(&state);
            let handler = async move || {
                let (health, asked) = &*state;
                let answer = answer(&health.report(), question == Question::Healthz);
                asked(question, answer.status().as_u16());
                answer
            };
            app.route(path, any(handler))
        },
    );
    let held_up_by = Arc::new(held_up_by);
    let app = app.route("/readyz", any(async move || readiness(&held_up_by())));
    http::serve(listener, app, budget).await;
}

/// What the health port is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Status,
}

#[derive(Serialize)]
struct Status {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyStatus>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyStatus>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: String,
    healthy: bool,
}

impl From<FamilyHealth> for FamilyStatus {
    fn from(report: FamilyHealth) -> Self {
        FamilyStatus { last_updated: rfc3339(report.last_updated), healthy: report.healthy }
    }
}

/// Whether the start is over, and if not what it waits for, a line each.
fn readiness(held_up_by: &[String]) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    if held_up_by.is_empty() {
        return (headers, "ok").into_response();
    }
    let lines: String = held_up_by.iter().map(|awaited| format!("waiting for: {awaited}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, headers, lines).into_response()
}

fn answer(report: &HealthReport, asks_for_node: bool) -> Response {
    let (status, body) = render(report, asks_for_node);
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, body).into_response()
}

/// The status and the body, which is one line without an end.
fn render(report: &HealthReport, asks_for_node: bool) -> (StatusCode, String) {
    let healthy = report.healthy();
    let ok = healthy && (report.node_eligible || !asks_for_node);
    let body = Body {
        // An odd rule of kube-proxy: who is fine was updated just now.
        last_updated: rfc3339(if ok { report.now } else { report.last_updated }),
        current_time: rfc3339(report.now),
        node_eligible: asks_for_node.then_some(report.node_eligible),
        healthy,
        status: Status { v4: report.families.v4.map(Into::into), v6: report.families.v6.map(Into::into) },
    };
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, serde_json::to_string(&body).expect("a structure of texts and booleans"))
}

/// RFC 3339 in UTC, with as many digits of a nanosecond as it takes, as Go writes it.
fn rfc3339(time: SystemTime) -> String {
    // Out of range (before the year -9999) only with a clock that is absurdly wrong.
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::health::{Moment, State};
    use crate::model::{Family, PerFamily};
    use crate::testing::http::{Client, request};
    use crate::testing::{in_network_namespace_async, run};

    fn at(nanoseconds: u64) -> SystemTime {
        // 2026-11-20T22:01:55Z
        UNIX_EPOCH + Duration::from_secs(1_795_212_115) + Duration::from_nanos(nanoseconds)
    }

    #[test]
    fn times_are_written_as_go_does() {
        for (nanoseconds, expected) in [
            (642_888_819, "2026-11-20T22:01:55.642888819Z"),
            (642_888_810, "2026-11-20T22:01:55.64288881Z"),
            (0, "2026-11-20T22:01:55Z"),
        ] {
            assert_eq!(rfc3339(at(nanoseconds)), expected);
        }
    }

    #[test]
    fn bodies_are_those_of_kube_proxy() {
        let family =
            |nanoseconds, healthy| Some(FamilyHealth { last_updated: at(nanoseconds), healthy, waiting: None });
        let report = |node_eligible, v4, v6| HealthReport {
            now: at(9),
            last_updated: at(2),
            node_eligible,
            families: PerFamily { v4: family(1, v4), v6: family(2, v6) },
        };
        let time = |nanoseconds: u32| format!("2026-11-20T22:01:55.00000000{nanoseconds}Z");
        let (now, newest, v4_time, v6_time) = (time(9), time(2), time(1), time(2));
        #[rustfmt::skip]
        let cases = [
            // node eligible, IPv4 and IPv6 healthy, status and lastUpdated of /healthz, the same of /livez
            (true, true, true, 200, &now, 200, &now),
            (false, true, true, 503, &newest, 200, &now),
            (true, false, true, 503, &newest, 503, &newest),
            (true, true, false, 503, &newest, 503, &newest),
            (false, false, false, 503, &newest, 503, &newest),
        ];
        for (eligible, v4, v6, healthz, healthz_updated, livez, livez_updated) in cases {
            let healthy = v4 && v6;
            let report = report(eligible, v4, v6);
            let rest = format!(
                r#""healthy":{healthy},"status":{{"IPv4":{{"lastUpdated":"{v4_time}","healthy":{v4}}},"IPv6":{{"lastUpdated":"{v6_time}","healthy":{v6}}}}}}}"#
            );
            let (status, body) = render(&report, true);
            assert_eq!(status.as_u16(), healthz);
            assert_eq!(
                body,
                format!(
                    r#"{{"lastUpdated":"{healthz_updated}","currentTime":"{now}","nodeEligible":{eligible},{rest}"#
                )
            );
            let (status, body) = render(&report, false);
            assert_eq!(status.as_u16(), livez);
            assert_eq!(body, format!(r#"{{"lastUpdated":"{livez_updated}","currentTime":"{now}",{rest}"#));
        }
    }

    #[test]
    fn a_family_that_is_not_proxied_is_not_in_the_body() {
        let state = State::new([Family::V6], Duration::from_secs(30), Moment { wall: at(0), ..Moment::now() });
        let (_, body) = render(&state.report(Moment { wall: at(0), ..Moment::now() }), false);
        assert!(
            body.ends_with(r#""status":{"IPv6":{"lastUpdated":"2026-11-20T22:01:55Z","healthy":true}}}"#),
            "{body}"
        );
    }

    #[test]
    fn all_paths_are_served_on_both_families() {
        in_network_namespace_async(async || {
            let health = Health::new(State::new(Family::ALL, Duration::from_secs(30), Moment::now()));
            let listener = http::bind("0.0.0.0:10256".parse().expect("an address")).expect("free");
            let held_up_by = Arc::new(Mutex::new(vec![
                "the first list of Nodes".to_owned(),
                "table ip6 nftproxyd (why)".to_owned(),
            ]));
            let of_start = Arc::clone(&held_up_by);
            let (serving, answers) = {
                let (sender, answers) = std::sync::mpsc::channel();
                let asked = move |question, code| sender.send((question, code)).expect("the test listens");
                (
                    tokio::spawn(serve(listener, Budget::default(), health.clone(), asked, move || {
                        of_start.lock().expect("no panic").clone()
                    })),
                    answers,
                )
            };
            for address in ["127.0.0.1:10256", "[::1]:10256"] {
                for (method, path, status) in [
                    ("GET", "/healthz", 503),
                    ("GET", "/livez", 200),
                    ("POST", "/livez", 200),
                    ("GET", "/", 404),
                    ("GET", "/healthz/", 404),
                ] {
                    let answer = request(address, method, path).await;
                    assert_eq!(answer.status, status, "{method} {path}");
                    if status != 404 {
                        assert_eq!(answer.header("content-type"), Some("application/json"));
                        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
                        assert!(answer.body.starts_with(r#"{"lastUpdated":""#), "{}", answer.body);
                    }
                }
            }
            let of_one_client = [(Question::Healthz, 503), (Question::Livez, 200), (Question::Livez, 200)];
            assert_eq!(answers.try_iter().collect::<Vec<_>>(), [of_one_client, of_one_client].concat());
            let awaited = "waiting for: the first list of Nodes\nwaiting for: table ip6 nftproxyd (why)\n";
            for (now_held_up_by, status, body) in [(true, 503, awaited), (false, 200, "ok")] {
                if !now_held_up_by {
                    held_up_by.lock().expect("no panic").clear();
                }
                let answer = request("[::1]:10256", "GET", "/readyz").await;
                assert_eq!((answer.status, answer.body.as_str()), (status, body));
                assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
                assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            }
            assert_eq!(answers.try_iter().count(), 0, "kube-proxy has nothing to count that as");
            health.set_node_eligible(true);
            assert_eq!(request("[::1]:10256", "GET", "/healthz").await.status, 200);

            let mut client = Client::connect("127.0.0.1:10256").await;
            assert_eq!(client.request("GET", "/livez").await.status, 200);
            serving.abort();
            client.closed().await;
        });
    }

    #[test]
    fn one_address_is_that_address() {
        in_network_namespace_async(async || {
            run(&["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"]);
            // All at once: none is wider than it says.
            let addresses = ["192.0.2.1:10256", "127.0.0.1:10256", "[::1]:10256"];
            let listen = |address: &str| http::bind(address.parse().expect("an address"));
            let open: Vec<TcpListener> = addresses.iter().map(|address| listen(address).expect(address)).collect();
            let refused = listen("[::]:10256").expect_err("it would be on all of them");
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            drop(open);
        });
    }
}
