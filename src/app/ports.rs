//! The ports for probes and for Prometheus.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tokio::time::sleep;
use tracing::{info, warn};

use super::LISTEN_AGAIN;
use super::ready::{Awaited, Readiness};
use crate::events::{Events, Notice};
use crate::health::{self, Health, Question};
use crate::http::{self, Budget};
use crate::metrics::daemon::Daemon;
use crate::metrics::services::Services;
use crate::metrics::{self, Metrics, ZPages};

/// How an address that cannot be listened on is dealt with.
#[derive(Clone)]
pub(super) struct BindPolicy {
    /// Whether it ends the process (`bindAddressHardFail`); otherwise it is tried again.
    pub(super) hard_fail: bool,
    pub(super) events: Events,
    pub(super) readiness: Readiness,
    pub(super) budget: Budget,
}

/// Serves `/healthz`, `/livez` and `/readyz` for ever.
pub(super) async fn serve_health(
    bind_policy: BindPolicy,
    address: SocketAddr,
    health: Health,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let listener =
        bind_policy.bind(address, "/healthz", "FailedToStartProxierHealthcheck", Awaited::HealthPort).await?;
    info!(%address, "serving /healthz, /livez and /readyz");
    let readiness = bind_policy.readiness;
    let asked = move |question, code| match question {
        Question::Healthz => metrics.healthz_answered(code),
        Question::Livez => metrics.livez_answered(code),
    };
    health::serve(listener, bind_policy.budget, health, asked, move || readiness.held_up_by()).await;
    Ok(())
}

/// Serves `/metrics` and the rest of the metrics port for ever.
pub(super) async fn serve_metrics(
    bind_policy: BindPolicy,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    configz: Receiver<String>,
    status: impl Fn() -> Daemon + Send + Sync + 'static,
    zpages: ZPages,
    services: Services,
) -> anyhow::Result<()> {
    let listener = bind_policy.bind(address, "/metrics", "FailedToStartMetricServer", Awaited::MetricsPort).await?;
    info!(%address, "serving /metrics");
    metrics::serve(listener, bind_policy.budget, metrics, configz, status, zpages, services).await;
    Ok(())
}

impl BindPolicy {
    async fn bind(
        &self,
        address: SocketAddr,
        path: &str,
        reason: &'static str,
        port: fn(SocketAddr) -> Awaited,
    ) -> io::Result<TcpListener> {
        let mut said = false;
        loop {
            let error = match http::bind(address) {
                Ok(listener) => {
                    self.readiness.comes(port(address));
                    return Ok(listener);
                }
                Err(error) => error,
            };
            self.readiness.awaits(port(address), Some(&error.to_string()));
            let what = format!("cannot listen on {address} for {path} ({error})");
            if self.hard_fail {
                self.events.say(Notice::start_failed(reason, what.clone()));
                return Err(io::Error::new(error.kind(), format!("{what}, and bindAddressHardFail is set")));
            }
            if !std::mem::replace(&mut said, true) {
                warn!("{what}; trying again every {} s", LISTEN_AGAIN.as_secs());
            }
            sleep(LISTEN_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::health::{Moment, State};
    use crate::model::Family;
    use crate::ruleset::names::TableName;
    use crate::testing::http::request;
    use crate::testing::in_network_namespace_async;

    const ADDRESS: &str = "127.0.0.1:10249";

    #[test]
    fn a_busy_port_ends_the_process_only_if_told_so() {
        in_network_namespace_async(async || {
            let address = ADDRESS.parse().expect("an address");
            let taken = http::bind(address).expect("free");
            let (events, mut notices) = Events::channel();
            let health_address = ADDRESS.parse().map(Awaited::HealthPort).expect("an address");
            let readiness = Readiness::new(TableName::NODE, [health_address, Awaited::MetricsPort(address)]);
            let bind_policy =
                BindPolicy { hard_fail: true, events, readiness: readiness.clone(), budget: Budget::default() };
            let status = || unreachable!("nobody asks");
            let metrics = Arc::new(Metrics::new());
            let health = Health::new(State::new(Family::ALL, Duration::from_secs(30), Moment::now()));

            let ended = serve_metrics(
                bind_policy.clone(),
                address,
                Arc::clone(&metrics),
                tokio::sync::watch::channel(String::new()).1,
                status,
                ZPages { status: Box::new(String::new), flags: Default::default(), history: Box::new(Vec::new) },
                Services(Box::new(|_, _| false)),
            )
            .await;
            let error = ended.expect_err("the port is taken").to_string();
            assert!(error.starts_with(&format!("cannot listen on {ADDRESS} for /metrics (")), "{error}");
            assert_eq!(notices.recv().await.expect("it is said").reason, "FailedToStartMetricServer");
            let ended = serve_health(bind_policy.clone(), address, health.clone(), Arc::clone(&metrics)).await;
            ended.expect_err("the port is taken");
            assert_eq!(notices.recv().await.expect("it is said").reason, "FailedToStartProxierHealthcheck");

            let patient = BindPolicy { hard_fail: false, ..bind_policy };
            let serving = tokio::spawn(serve_health(patient, address, health, Arc::clone(&metrics)));
            tokio::task::yield_now().await;
            assert!(!serving.is_finished());
            let awaited = readiness.awaited();
            let named = format!("the health port {ADDRESS} (Address already in use (os error 98))");
            assert!(awaited.contains(&named), "{awaited:?}");
            drop(taken);
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            while tokio::net::TcpStream::connect(ADDRESS).await.is_err() {
                assert!(tokio::time::Instant::now() < deadline, "it does not try again");
                sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(request(ADDRESS, "GET", "/healthz").await.status, 503);
            assert_eq!(request(ADDRESS, "GET", "/livez").await.status, 200);
            assert!(!readiness.awaited().iter().any(|awaited| awaited.contains("health port")));
            let answer = request(ADDRESS, "GET", "/readyz").await;
            let lines: Vec<String> =
                readiness.held_up_by().iter().map(|awaited| format!("waiting for: {awaited}\n")).collect();
            assert_eq!((answer.status, answer.body), (503, lines.concat()));
            assert!(notices.try_recv().is_err(), "nothing is said of what may yet succeed");
            serving.abort();
            let text = metrics.text();
            for sample in
                ["kubeproxy_proxy_healthz_total{code=\"503\"} 1\n", "kubeproxy_proxy_livez_total{code=\"200\"} 1\n"]
            {
                assert!(text.contains(sample), "{sample}");
            }
        });
    }
}
