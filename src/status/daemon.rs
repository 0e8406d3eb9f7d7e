//! What only the daemon knows, asked of its metrics port.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::patient::{Limits, Patient};
use crate::metrics::daemon::{Daemon, FamilyState, Followed, FrontendsState, PATH, Standing};
use crate::metrics::services::{self, Query, ServiceFacts};
use crate::printable::printable;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than any answer about one thing has.
const OF_ONE: Limits = Limits { first: PATIENCE, whole: PATIENCE, longest: 16 << 20 };
/// Of a list of Services: that of 44,000 has some 50 MB, and is made before its first byte is sent.
pub(super) const OF_ALL: Limits =
    Limits { first: Duration::from_secs(20), whole: Duration::from_secs(20), longest: 128 << 20 };

/// What the metrics of nftproxyd have, and those of nobody else.
const OURS: &str = "nftproxyd_build_info{";

/// The daemon has not said how it is.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers.
    #[error("not reached at {0} ({1})")]
    NotReached(SocketAddr, #[source] io::Error),
    /// nftproxyd answers, of a version without this path.
    #[error("at {0} is an older nftproxyd, which does not say how it is (it has no {1}): restart it with this version")]
    Older(SocketAddr, String),
    /// nftproxyd answers, of a version that says it in another way.
    #[error("at {0} is an nftproxyd of another version, whose {1} cannot be read ({2}): use its own status")]
    OtherForm(SocketAddr, String, #[source] serde_json::Error),
    /// Somebody else answers.
    #[error("at {0} is not nftproxyd")]
    Stranger(SocketAddr),
    /// It cannot answer at the moment.
    #[error("at {0} has no answer: {1}")]
    NoAnswer(SocketAddr, String),
}

/// Asks the daemon whose metrics port has this address.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(metrics: SocketAddr) -> Result<Daemon, AskError> {
    let address = local(metrics);
    let get = async |path| get(address, path).await.map_err(|error| AskError::NotReached(metrics, error));
    let (status, body) = get(PATH).await?;
    let read = serde_json::from_str(&body);
    if status == StatusCode::OK
        && let Ok(daemon) = read
    {
        return Ok(daemon);
    }
    // kube-proxy has the same port, and answers 404 as well.
    let (_, exposition) = get("/metrics").await?;
    match read {
        _ if !exposition.contains(OURS) => Err(AskError::Stranger(metrics)),
        Err(error) if status == StatusCode::OK => Err(AskError::OtherForm(metrics, PATH.to_owned(), error)),
        _ => Err(AskError::Older(metrics, PATH.to_owned())),
    }
}

/// Asks the daemon whose metrics port has this address what it knows of these Services. One that has answered [`ask`] is
/// an nftproxyd: an older one knows nothing of them.
///
/// # Errors
/// See [`AskError`].
pub async fn ask_services(metrics: SocketAddr, query: &Query) -> Result<Vec<ServiceFacts>, AskError> {
    let limits = if matches!(query, Query::All) { OF_ALL } else { OF_ONE };
    ask_page(metrics, &format!("{}?{query}", services::PATH), limits).await
}

/// Asks for a list.
pub(super) async fn ask_page<T: DeserializeOwned>(
    metrics: SocketAddr,
    path: &str,
    limits: Limits,
) -> Result<Vec<T>, AskError> {
    let not_reached = |error| AskError::NotReached(metrics, error);
    let (status, body) = exchange(local(metrics), path, limits).await.map_err(not_reached)?;
    let read = serde_json::from_str(&body);
    if status == StatusCode::OK
        && let Ok(list) = read
    {
        return Ok(list);
    }
    let (_, exposition) = get(local(metrics), "/metrics").await.map_err(not_reached)?;
    if !exposition.contains(OURS) {
        return Err(AskError::Stranger(metrics));
    }
    match (status, read) {
        (StatusCode::OK, Err(error)) => Err(AskError::OtherForm(metrics, path.to_owned(), error)),
        (StatusCode::NOT_FOUND, _) => Err(AskError::Older(metrics, path.to_owned())),
        _ => Err(AskError::NoAnswer(metrics, printable(body.trim_end()).into_owned())),
    }
}

/// The mode of the kube-proxy that serves its metrics there; `None` where nobody does, or nftproxyd.
pub async fn kube_proxy_mode(metrics: SocketAddr) -> Option<String> {
    let Err(AskError::Stranger(_)) = ask(metrics).await else { return None };
    let (status, mode) = get(local(metrics), "/proxyMode").await.ok()?;
    let is_mode = |mode: &str| ["iptables", "ipvs", "nftables", "userspace", "kernelspace"].contains(&mode);
    Some(mode.trim().to_owned()).filter(|mode| status == StatusCode::OK && is_mode(mode))
}

/// Whether the kube-proxy that serves its metrics there says that it has written its rules, in every family that it tells of.
pub async fn kube_proxy_has_synced(metrics: SocketAddr) -> bool {
    let Ok((StatusCode::OK, text)) = get(local(metrics), "/metrics").await else { return false };
    has_synced(&text)
}

fn has_synced(exposition: &str) -> bool {
    let of_syncs = exposition.lines().filter(|line| line.starts_with(LAST_SYNC));
    let times: Vec<f64> = of_syncs.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    !times.is_empty() && times.iter().all(|time| *time > 0.0)
}

/// When kube-proxy has written its rules last, in seconds; 0 before.
const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

/// Where a server that listens on all addresses can be reached.
fn local(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// The status and the body of an answer.
async fn get(address: SocketAddr, path: &str) -> io::Result<(StatusCode, String)> {
    exchange(address, path, OF_ONE).await
}

async fn exchange(address: SocketAddr, path: &str, limits: Limits) -> io::Result<(StatusCode, String)> {
    let stream = timeout(limits.first, TcpStream::connect(address)).await??;
    let stream = TokioIo::new(Patient::new(stream, limits));
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let answer = async move {
        let (head, body) = sender.send_request(request).await.map_err(of_hyper)?.into_parts();
        let bytes = body.collect().await.map_err(of_hyper)?.to_bytes();
        Ok((head.status, String::from_utf8(bytes.into()).map_err(io::Error::other)?))
    };
    // The connection has to be driven meanwhile. It ends when the sender has gone with the answer.
    let (driven, answer) = tokio::join!(connection, answer);
    // Why the connection has ended says more than that it has.
    answer.map_err(|error| driven.err().map_or(error, of_hyper))
}

/// What hyper says, or better, what has made it say so.
fn of_hyper(error: hyper::Error) -> io::Error {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.map(|cause| io::Error::new(cause.kind(), cause.to_string())).unwrap_or_else(|| io::Error::other(error))
}

/// For people, some lines.
pub fn daemon_text(daemon: &Daemon) -> String {
    let follows_all = daemon.not_followed().next().is_none();
    let healthy = if daemon.healthy { "healthy" } else { "NOT HEALTHY" };
    let mut text = format!("daemon    nftproxyd {}, {healthy}", printable(&daemon.version));
    if !follows_all {
        // Health is about what is known (see its doc), as with kube-proxy.
        text.push_str(if daemon.healthy {
            ", but DOES NOT FOLLOW the API server"
        } else {
            ", DOES NOT FOLLOW the API server"
        });
    }
    if !daemon.node_eligible {
        text.push_str("; the node is not for load balancers (unknown, or being deleted)");
    }
    text.push('\n');
    if !daemon.kinds.is_empty() {
        let _ = writeln!(text, "cluster   {}", printable(&kinds_text(daemon)));
    }
    for (family, state) in &daemon.families {
        let _ = writeln!(text, "{}      {}", printable(family), printable(&family_text(state, follows_all)));
    }
    if !daemon.awaited.is_empty() {
        let _ = writeln!(text, "start     waits for {}", printable(&daemon.awaited.join(", ")));
    }
    if !daemon.failing_health_checks.is_empty() {
        let failing = daemon.failing_health_checks.iter().map(|(service, why)| format!("{service} ({why})"));
        let failing = failing.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "checks    NOT SERVED: {}", printable(&failing));
    }
    if !daemon.rejected_objects.is_empty() {
        let kinds = daemon.rejected_objects.iter().map(|(kind, count)| format!("{count} {kind}"));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "objects   with parts that cannot be used: {} (see the log)", printable(&kinds));
    }
    text
}

/// For people, which ports of Services are refused or dropped, and why: a line for each family, and one for each of the first
/// of them.
pub fn unserved_text(daemon: &Daemon) -> String {
    let mut text = String::new();
    for (family, FrontendsState { served, refused, dropped, unserved, unserved_more }) in &daemon.frontends {
        let all = served + refused + dropped;
        let family = printable(family);
        let _ = writeln!(text, "frontends {family}: {all}, of which {refused} are refused, {dropped} dropped");
        for (port, why) in unserved {
            let _ = writeln!(text, "          {} {}", printable(port), printable(why));
        }
        if *unserved_more > 0 {
            let _ = writeln!(text, "          and {unserved_more} more ports of Services");
        }
    }
    text
}

/// How the kinds are followed: those that are not, with the reason.
pub fn kinds_text(daemon: &Daemon) -> String {
    let lost: Vec<String> = daemon
        .not_followed()
        .map(|(kind, state)| {
            let mut text = format!("{kind} for {} s", state.since_seconds);
            if let Some(reason) = &state.reason {
                let _ = write!(text, ": {reason}");
            }
            text + &match state.heard_seconds_ago {
                Some(seconds) => format!(" (last heard of {seconds} s ago)"),
                None => " (nothing is known yet)".to_owned(),
            }
        })
        .collect();
    if !lost.is_empty() {
        return format!("NOT FOLLOWED: {}", lost.join("; "));
    }
    let follows = daemon.kinds.iter().filter(|(_, state)| state.followed == Followed::Follows);
    let mut text = format!("follows {}", follows.map(|(kind, _)| kind.as_str()).collect::<Vec<_>>().join(", "));
    if let Some(seconds) = daemon.kinds.values().filter_map(|state| state.heard_seconds_ago).max() {
        let _ = write!(text, "; heard of each within {seconds} s");
    }
    text
}

fn family_text(state: &FamilyState, follows_all: bool) -> String {
    // Nobody can be in sync with what was not heard of.
    let in_sync = if follows_all { "in sync" } else { "in sync with what is known" };
    let named: Vec<String> = state.refused.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    let more = state.refused_services.saturating_sub(named.len() as u64);
    let mut text = match (state.standing, state.in_line_seconds_ago) {
        (Standing::InLine, _) if named.is_empty() => in_sync.to_owned(),
        (Standing::InLine, _) => format!("{in_sync} but for {}", named.join(", ")),
        (Standing::Unknown, _) => "in a state that this version does not know".to_owned(),
        (Standing::Behind | Standing::Failing, Some(seconds)) => format!("NOT IN SYNC, was {seconds} s ago"),
        (Standing::Behind | Standing::Failing, None) if state.synced_seconds_ago.is_some() => "NOT IN SYNC".to_owned(),
        (Standing::Behind | Standing::Failing, None) => "NEVER IN SYNC".to_owned(),
    };
    if !named.is_empty() && more > 0 {
        let _ = write!(text, " and {more} more");
    }
    if let Some(reason) = &state.reason {
        let _ = write!(text, ": {reason}");
    }
    if let Some(seconds) = state.synced_seconds_ago {
        let _ = write!(text, "; last synced {seconds} s ago");
    }
    if state.lag_seconds > 0 {
        let _ = write!(text, "; CHANGES HAVE WAITED FOR {} s", state.lag_seconds);
    }
    if named.is_empty() && more > 0 {
        let _ = write!(text, "; the kernel refuses {more} Services (see the log)");
    }
    if state.repairs > 0 {
        let _ = write!(text, "; repaired {} times", state.repairs);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::http::{Budget, bind};
    use crate::metrics::daemon::KindState;
    use crate::metrics::services::Services;
    use crate::metrics::{self, Metrics};
    use crate::testing::in_network_namespace_async;

    fn state(standing: Standing) -> FamilyState {
        FamilyState {
            standing,
            reason: None,
            in_line_seconds_ago: Some(if standing == Standing::InLine { 0 } else { 12 }),
            synced_seconds_ago: Some(9),
            lag_seconds: 0,
            refused_services: 0,
            refused: Default::default(),
            repairs: 0,
            affinity_clients: 0,
            affinity_clients_limit: 262_144,
            frame: None,
        }
    }

    fn daemon() -> Daemon {
        let v6 = FamilyState {
            in_line_seconds_ago: None,
            synced_seconds_ago: None,
            lag_seconds: 7,
            ..state(Standing::Behind)
        };
        Daemon {
            version: "0.1.0".to_owned(),
            healthy: true,
            node_eligible: true,
            awaited: vec!["table ip6 nftproxyd (no permission)".to_owned()],
            kinds: BTreeMap::new(),
            families: [("IPv4".to_owned(), state(Standing::InLine)), ("IPv6".to_owned(), v6)].into(),
            frontends: BTreeMap::new(),
            service_changes_pending: 4,
            endpoint_changes_pending: 0,
            rejected_objects: [("Service".to_owned(), 2)].into(),
            overlaps: Vec::new(),
            ready: Some(true),
            started_seconds_ago: Some(5),
            obstacles: Vec::new(),
            pod_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            wanted_connections: Some(9),
            failing_health_checks: BTreeMap::new(),
            resets_connections: false,
        }
    }

    #[test]
    fn what_the_daemon_says_is_put_in_words() {
        let mut daemon = daemon();
        assert_eq!(
            daemon_text(&daemon),
            "daemon    nftproxyd 0.1.0, healthy\n\
             IPv4      in sync; last synced 9 s ago\n\
             IPv6      NEVER IN SYNC; CHANGES HAVE WAITED FOR 7 s\n\
             start     waits for table ip6 nftproxyd (no permission)\n\
             objects   with parts that cannot be used: 2 Service (see the log)\n"
        );
        daemon.failing_health_checks.insert("shop/lb".to_owned(), "0.0.0.0:31999: in use".to_owned());
        assert!(daemon_text(&daemon).contains("\nchecks    NOT SERVED: shop/lb (0.0.0.0:31999: in use)\n"));
        daemon.awaited = vec!["a\nIPv4      in sync".to_owned()];
        assert!(daemon_text(&daemon).contains("start     waits for a\\nIPv4      in sync\n"), "nobody adds a line");
        (daemon.healthy, daemon.node_eligible) = (false, false);
        assert!(
            daemon_text(&daemon)
                .starts_with("daemon    nftproxyd 0.1.0, NOT HEALTHY; the node is not for load balancers")
        );

        let but = FamilyState { refused_services: 2, repairs: 3, ..state(Standing::InLine) };
        let expected = "in sync; last synced 9 s ago; the kernel refuses 2 Services (see the log); repaired 3 times";
        assert_eq!(family_text(&but, true), expected);
        let named = FamilyState { refused: [("shop/web".to_owned(), "why".to_owned())].into(), ..but };
        let expected = "in sync but for shop/web (why) and 1 more; last synced 9 s ago; repaired 3 times";
        assert_eq!(family_text(&named, true), expected);
        let all = FamilyState { refused_services: 1, repairs: 0, ..named };
        assert_eq!(family_text(&all, true), "in sync but for shop/web (why); last synced 9 s ago");
        assert_eq!(family_text(&state(Standing::Behind), true), "NOT IN SYNC, was 12 s ago; last synced 9 s ago");
        let failing = FamilyState { reason: Some("no permission".to_owned()), ..state(Standing::Failing) };
        assert_eq!(family_text(&failing, true), "NOT IN SYNC, was 12 s ago: no permission; last synced 9 s ago");
        let never = FamilyState { in_line_seconds_ago: None, synced_seconds_ago: None, ..failing.clone() };
        assert_eq!(family_text(&never, true), "NEVER IN SYNC: no permission");
        // Of a version that does not say when it was.
        let before = FamilyState { in_line_seconds_ago: None, ..failing };
        assert_eq!(family_text(&before, true), "NOT IN SYNC: no permission; last synced 9 s ago");
    }

    #[test]
    fn what_is_not_served_is_named_with_the_reason() {
        let frontends = FrontendsState {
            served: 7,
            refused: 1,
            dropped: 2,
            unserved: [("shop/web:http".to_owned(), "refused: there\nare no endpoints".to_owned())].into(),
            unserved_more: 3,
        };
        let daemon = Daemon { frontends: [("IPv4".to_owned(), frontends)].into(), ..daemon() };
        assert_eq!(
            unserved_text(&daemon),
            "frontends IPv4: 10, of which 1 are refused, 2 dropped\n          \
             shop/web:http refused: there\\nare no endpoints\n          and 3 more ports of Services\n"
        );
    }

    #[test]
    fn nothing_is_claimed_of_what_is_not_followed() {
        let kind = |followed, since_seconds, heard_seconds_ago, reason: Option<&str>| KindState {
            followed,
            since_seconds,
            heard_seconds_ago,
            reason: reason.map(str::to_owned),
        };
        let mut daemon = Daemon { awaited: Vec::new(), rejected_objects: BTreeMap::new(), ..daemon() };
        daemon.families.remove("IPv6");
        daemon.kinds.insert("Service".to_owned(), kind(Followed::Follows, 70, Some(12), None));
        daemon.kinds.insert("ServiceCIDR".to_owned(), kind(Followed::Absent, 70, None, Some("404")));
        assert_eq!(
            daemon_text(&daemon),
            "daemon    nftproxyd 0.1.0, healthy\n\
             cluster   follows Service; heard of each within 12 s\n\
             IPv4      in sync; last synced 9 s ago\n"
        );
        daemon.kinds.insert("Node".to_owned(), kind(Followed::Lost, 33, Some(40), Some("refused")));
        daemon.kinds.insert("Service".to_owned(), kind(Followed::Begins, 2, None, None));
        assert_eq!(
            daemon_text(&daemon),
            "daemon    nftproxyd 0.1.0, healthy, but DOES NOT FOLLOW the API server\n\
             cluster   NOT FOLLOWED: Node for 33 s: refused (last heard of 40 s ago); \
             Service for 2 s (nothing is known yet)\n\
             IPv4      in sync with what is known; last synced 9 s ago\n"
        );
    }

    #[test]
    fn versions_may_differ() {
        let said = json!({
            "version": "9.0.0", "healthy": true, "nodeEligible": true, "news": {"of": "later"},
            "families": {"IPv4": {"standing": "Dozing", "syncedSecondsAgo": 1, "lagSeconds": 0, "refusedServices": 0,
                                  "repairs": 0, "mood": 7}},
            "serviceChangesPending": 0, "endpointChangesPending": 0,
        });
        let later: Daemon = serde_json::from_value(said).expect("it is understood");
        assert_eq!(later.families["IPv4"].standing, Standing::Unknown);
        assert!(
            daemon_text(&later).contains("IPv4      in a state that this version does not know; last synced 1 s ago\n")
        );
    }

    /// Serves these answers, whatever is asked but for `/metrics`, and asks.
    async fn answered(status: u16, body: &str, exposition: &str) -> Result<Daemon, AskError> {
        let listener = bind("127.0.0.1:10249".parse().expect("an address")).expect("free");
        let address = listener.local_addr().expect("it listens");
        let (body, exposition) = (body.to_owned(), exposition.to_owned());
        let status = StatusCode::from_u16(status).expect("a status code");
        let app = axum::Router::new()
            .route("/metrics", axum::routing::any(async || exposition))
            .fallback(async move || (status, body));
        let serving = tokio::spawn(crate::http::serve(listener, app, Budget::default()));
        let asked = ask(address).await;
        serving.abort();
        assert!(serving.await.is_err_and(|error| error.is_cancelled()));
        asked
    }

    #[test]
    fn who_answers_is_told_apart() {
        in_network_namespace_async(async || {
            const OURS: &str = "nftproxyd_build_info{arch=\"x86_64\",version=\"0.1.0\"} 1\n";
            let address: SocketAddr = "127.0.0.1:10249".parse().expect("an address");
            let error = ask(address).await.expect_err("nobody listens").to_string();
            assert!(error.starts_with("not reached at 127.0.0.1:10249 ("), "{error}");
            let cases = [
                (404, "404 page not found\n", OURS, "at 127.0.0.1:10249 is an older nftproxyd, which does not say"),
                (200, "{}", OURS, "at 127.0.0.1:10249 is an nftproxyd of another version, whose /nftproxyd/status"),
                (404, "404 page not found\n", "go_goroutines 5\n", "at 127.0.0.1:10249 is not nftproxyd"),
                (200, "It works!", "It works!", "at 127.0.0.1:10249 is not nftproxyd"),
            ];
            for (status, body, exposition, expected) in cases {
                let error = answered(status, body, exposition).await.expect_err(expected).to_string();
                assert!(error.starts_with(expected), "{error}");
            }

            let listener = bind(address).expect("free");
            let configz = tokio::sync::watch::channel(String::new()).1;
            let zpages =
                metrics::ZPages { status: Box::new(String::new), flags: BTreeMap::new(), history: Box::new(Vec::new) };
            let metrics = Metrics::new().into();
            let serving = tokio::spawn(metrics::serve(
                listener,
                Budget::default(),
                metrics,
                configz,
                daemon,
                zpages,
                Services(Box::new(|_, _| false)),
            ));
            // A server on all addresses is asked on loopback.
            let everywhere = SocketAddr::new([0; 4].into(), 10249);
            assert_eq!(ask(everywhere).await.expect("it is nftproxyd"), daemon());
            serving.abort();
        });
    }

    /// Sends this for ever to whoever asks; nothing at all where it is empty.
    fn endless(address: SocketAddr, head: &'static str, more: &'static str) {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind(address).expect("free");
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let more = more.repeat(if more.is_empty() { 0 } else { 65_536 / more.len() });
                std::thread::spawn(move || {
                    // What comes before it is asked for is an error of another kind.
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(head.as_bytes());
                    while stream.write_all(more.as_bytes()).is_ok() {
                        if more.is_empty() {
                            std::thread::sleep(Duration::from_secs(60));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn an_answer_without_an_end_has_one() {
        in_network_namespace_async(async || {
            for (port, head, more, reason) in [
                (1, "", "HTTP/1.1 100 Continue\r\n\r\n", "too long"),
                (2, "HTTP/1.1 200 OK\r\n\r\n", "[[[[", "the answer is too long"),
                (3, "", "", "it takes too long"),
            ] {
                let address = SocketAddr::new([127, 0, 0, 1].into(), port);
                endless(address, head, more);
                let begun = std::time::Instant::now();
                let error = crate::status::ask_history(address).await.expect_err("it is endless").to_string();
                let of_history = begun.elapsed();
                assert!(error.contains(reason), "{port}: {error}");
                let error = ask(address).await.expect_err("it is endless").to_string();
                let of_status = begun.elapsed() - of_history;
                assert!(error.contains("too long"), "{port}: {error}");
                let limit = Duration::from_secs(6);
                assert!(of_history < limit && of_status < limit, "{port}: {of_history:?} {of_status:?}");
            }
        });
    }

    #[test]
    fn who_cannot_answer_is_told_by_what_was_asked() {
        in_network_namespace_async(async || {
            const OURS: &str = "nftproxyd_build_info{version=\"0.1.0\"} 1\n";
            for (status, exposition, expected) in [
                (200, OURS, "whose /nftproxyd/history cannot be read"),
                (404, OURS, "it has no /nftproxyd/history"),
                (200, "", "is not nftproxyd"),
                (404, "", "is not nftproxyd"),
            ] {
                let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("free");
                let address = listener.local_addr().expect("it listens");
                let status = StatusCode::from_u16(status).expect("a status code");
                let app = axum::Router::new()
                    .route("/metrics", axum::routing::any(async move || exposition))
                    .fallback(async move || (status, "{}"));
                let serving = tokio::spawn(crate::http::serve(listener, app, Budget::default()));
                let error = crate::status::ask_history(address).await.expect_err(expected).to_string();
                serving.abort();
                assert!(error.contains(expected), "{error}");
            }
        });
    }

    #[test]
    fn servers_on_all_addresses_are_asked_on_loopback() {
        for (address, expected) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("192.0.2.1:1", "192.0.2.1:1")]
        {
            assert_eq!(local(address.parse().expect("an address")).to_string(), expected);
        }
    }
}
