//! What only the daemon knows, asked of its metrics port and its health port.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than any answer has.
const LONGEST: usize = 16 << 20;

/// What the daemon says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Whether changes of Services reach the kernel in time; `None` if its health port is switched off or does not answer.
    pub healthy: Option<bool>,
    /// Whether load balancers are to use this node; `None` as with `healthy`.
    pub node_eligible: Option<bool>,
    /// By family.
    pub families: BTreeMap<&'static str, FamilyState>,
    /// Changes of Services that wait for a sync.
    pub service_changes_pending: u64,
    /// Changes of EndpointSlices that wait for a sync.
    pub endpoint_changes_pending: u64,
    /// Objects of which a part cannot be used, by kind; kinds without any are left out.
    pub rejected_objects: BTreeMap<String, u64>,
}

/// The table of a family.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyState {
    /// Whether the table holds all that it should, but for `refused_services`; `None` if the daemon is too old to say.
    pub in_sync: Option<bool>,
    /// Seconds since the last sync that succeeded; `None` before the first.
    pub synced_seconds_ago: Option<u64>,
    /// How long changes have been waiting, in seconds; 0 if none wait.
    pub lag_seconds: u64,
    /// Services of which the kernel refuses a change.
    pub refused_services: u64,
    /// How often the table was repaired.
    pub repairs: u64,
}

/// Asks the daemon that serves `/metrics` at this address. `now` is the time in seconds since 1970.
///
/// # Errors
/// Nobody answers there, or not nftproxyd.
pub async fn ask(metrics: SocketAddr, now: f64) -> io::Result<Daemon> {
    let metrics = local(metrics);
    let mut daemon = Daemon::read(&get(metrics, "/metrics").await?, now)
        .ok_or_else(|| io::Error::other("whoever answers there is not nftproxyd"))?;
    if let Some(health) = health_address(&get(metrics, "/configz").await?)
        && let Ok(body) = get(local(health), "/healthz").await
        && let Ok(body) = serde_json::from_str::<Value>(&body)
    {
        daemon.healthy = body["healthy"].as_bool();
        daemon.node_eligible = body["nodeEligible"].as_bool();
    }
    Ok(daemon)
}

/// Where a server that listens on all addresses can be reached.
fn local(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn health_address(configz: &str) -> Option<SocketAddr> {
    let configz: Value = serde_json::from_str(configz).ok()?;
    configz["kubeproxy.config.k8s.io"]["healthzBindAddress"].as_str()?.parse().ok()
}

/// The body of an answer, whatever its status: a daemon that is not healthy says so with 503.
async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    timeout(PATIENCE, exchange(address, path)).await?
}

async fn exchange(address: SocketAddr, path: &str) -> io::Result<String> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let answer = async move {
        let body = sender.send_request(request).await.map_err(io::Error::other)?.into_body();
        let bytes = Limited::new(body, LONGEST).collect().await.map_err(io::Error::other)?.to_bytes();
        String::from_utf8(bytes.into()).map_err(io::Error::other)
    };
    // The connection has to be driven meanwhile. It ends when the sender has gone with the answer.
    let (_, answer) = tokio::join!(connection, answer);
    answer
}

impl Daemon {
    /// Reads Prometheus' text format; `None` if it is not nftproxyd's.
    fn read(exposition: &str, now: f64) -> Option<Daemon> {
        let samples: Vec<Sample<'_>> = exposition.lines().filter_map(Sample::read).collect();
        let of = |name: &str| samples.iter().filter(move |sample| sample.name == name).collect::<Vec<_>>();
        let one = |name: &str, family: &str| {
            of(name).into_iter().find(|sample| sample.label("ip_family") == (!family.is_empty()).then_some(family))
        };
        let count = |name: &str, family: &str| one(name, family).map_or(0, |sample| sample.value.max(0.0) as u64);
        let version = of("nftproxyd_build_info").first()?.label("version")?.to_owned();
        let state = |family: &'static str| {
            let time = |name: &str| one(name, family).map_or(0.0, |sample| sample.value);
            let synced = time("kubeproxy_sync_proxy_rules_last_timestamp_seconds");
            let queued = time("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds");
            let state = FamilyState {
                in_sync: one("nftproxyd_in_sync", family).map(|sample| sample.value == 1.0),
                synced_seconds_ago: (synced > 0.0).then(|| (now - synced).max(0.0) as u64),
                lag_seconds: if queued > synced { (now - queued).max(0.0) as u64 } else { 0 },
                refused_services: count("nftproxyd_refused_services", family),
                repairs: count("nftproxyd_repairs_total", family),
            };
            (family, state)
        };
        let rejected = of("nftproxyd_rejected_objects").into_iter().filter(|sample| sample.value > 0.0);
        Some(Daemon {
            version,
            healthy: None,
            node_eligible: None,
            families: ["IPv4", "IPv6"].into_iter().map(state).collect(),
            service_changes_pending: count("kubeproxy_sync_proxy_rules_service_changes_pending", ""),
            endpoint_changes_pending: count("kubeproxy_sync_proxy_rules_endpoint_changes_pending", ""),
            rejected_objects: rejected
                .filter_map(|sample| Some((sample.label("kind")?.to_owned(), sample.value as u64)))
                .collect(),
        })
    }

    /// For people, some lines.
    pub fn text(&self) -> String {
        let word = |value: Option<bool>, yes: &'static str, no: &'static str| match value {
            Some(true) => yes,
            Some(false) => no,
            None => "of unknown health",
        };
        let mut text =
            format!("daemon    nftproxyd {}, {}", self.version, word(self.healthy, "healthy", "NOT HEALTHY"));
        if self.node_eligible == Some(false) {
            text.push_str("; the node is not for load balancers (unknown, or being deleted)");
        }
        text.push('\n');
        for (family, state) in &self.families {
            let _ = match (state.synced_seconds_ago, state.in_sync) {
                (Some(seconds), Some(false)) => {
                    write!(text, "{family}      NOT IN SYNC, was {seconds} s ago (see the log)")
                }
                (Some(seconds), _) => write!(text, "{family}      in sync {seconds} s ago"),
                (None, _) => write!(text, "{family}      NEVER IN SYNC"),
            };
            if state.lag_seconds > 0 {
                let _ = write!(text, "; CHANGES HAVE WAITED FOR {} s", state.lag_seconds);
            }
            if state.refused_services > 0 {
                let _ = write!(text, "; the kernel refuses {} Services (see the log)", state.refused_services);
            }
            if state.repairs > 0 {
                let _ = write!(text, "; repaired {} times", state.repairs);
            }
            text.push('\n');
        }
        if !self.rejected_objects.is_empty() {
            let kinds = self.rejected_objects.iter().map(|(kind, count)| format!("{count} {kind}"));
            let kinds = kinds.collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "objects   with parts that cannot be used: {kinds} (see the log)");
        }
        text
    }
}

/// A line of Prometheus' text format. Labels' values have no escapes in what is looked for here.
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    fn read(line: &'a str) -> Option<Sample<'a>> {
        let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        Some(Sample { name, labels: labels.trim_end_matches('}'), value: value.parse().ok()? })
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        let pairs = self.labels.split(',').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(found, _)| *found == name).map(|(_, value)| value.trim_matches('"')).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPOSITION: &str = r#"# HELP nftproxyd_build_info x
nftproxyd_build_info{arch="x86_64",version="0.1.0"} 1
nftproxyd_in_sync{ip_family="IPv4"} 1
nftproxyd_in_sync{ip_family="IPv6"} 0
kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1000.5
kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} 0
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 1000
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} 1003
kubeproxy_sync_proxy_rules_service_changes_pending 4
nftproxyd_rejected_objects{kind="Node"} 0
nftproxyd_rejected_objects{kind="Service"} 2
nftproxyd_refused_services{ip_family="IPv4"} 1
nftproxyd_repairs_total{ip_family="IPv4"} 3
"#;

    #[test]
    fn what_the_daemon_says_is_understood() {
        let mut daemon = Daemon::read(EXPOSITION, 1010.0).expect("it is nftproxyd");
        assert_eq!(daemon.service_changes_pending, 4);
        assert_eq!(
            daemon.text(),
            "daemon    nftproxyd 0.1.0, of unknown health\n\
             IPv4      in sync 9 s ago; the kernel refuses 1 Services (see the log); repaired 3 times\n\
             IPv6      NEVER IN SYNC; CHANGES HAVE WAITED FOR 7 s\n\
             objects   with parts that cannot be used: 2 Service (see the log)\n"
        );
        (daemon.healthy, daemon.node_eligible) = (Some(true), Some(false));
        assert!(daemon.text().starts_with("daemon    nftproxyd 0.1.0, healthy; the node is not for load balancers"));
        assert_eq!(Daemon::read("go_goroutines 5\n", 0.0), None, "somebody else");
        // It was in sync, and is not now.
        let lost =
            EXPOSITION.replace("nftproxyd_in_sync{ip_family=\"IPv4\"} 1", "nftproxyd_in_sync{ip_family=\"IPv4\"} 0");
        let text = Daemon::read(&lost, 1010.0).expect("it is nftproxyd").text();
        assert!(text.contains("\nIPv4      NOT IN SYNC, was 9 s ago (see the log); the kernel"), "{text}");
    }

    #[test]
    fn servers_on_all_addresses_are_asked_on_loopback() {
        for (address, expected) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("192.0.2.1:1", "192.0.2.1:1")]
        {
            assert_eq!(local(address.parse().expect("an address")).to_string(), expected);
        }
        let configz = r#"{"kubeproxy.config.k8s.io":{"healthzBindAddress":"[::]:10256"}}"#;
        assert_eq!(health_address(configz), "[::]:10256".parse().ok());
        assert_eq!(health_address(r#"{"kubeproxy.config.k8s.io":{"healthzBindAddress":""}}"#), None);
    }
}
