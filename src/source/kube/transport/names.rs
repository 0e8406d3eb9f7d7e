//! The addresses of a name.
//!
//! Looking one up takes a thread, which nobody can call back: whoever asks for the same name at the same time has the same
//! answer. A name that cannot be looked up is what it was: what keeps this node from its name servers, a Service or a range
//! that has their address, must not keep it from the API server.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tokio::time::timeout;
use tower::ServiceExt as _;
use tracing::debug;

/// When there is no answer for so long, and it is known what the name was, nobody waits any more.
const PATIENCE: Duration = Duration::from_secs(2);

type Found = Result<Arc<[IpAddr]>, Arc<io::Error>>;
type LookUp = BoxFuture<'static, Found>;

/// Looks up names, of which there is one at a time: that of the API server, or of the proxy before it.
#[derive(Debug, Clone, Default)]
pub(in crate::source::kube) struct Names(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    under_way: Option<(String, WeakShared<LookUp>)>,
    known: Option<(String, Arc<[IpAddr]>)>,
}

impl Names {
    /// The addresses of a host, which may be an address itself; in the order of the resolver.
    pub(super) async fn addresses(&self, host: &str) -> io::Result<Arc<[IpAddr]>> {
        match host.parse::<IpAddr>() {
            Ok(address) => Ok(Arc::from([address])),
            Err(_) => self.found(host, resolved).await,
        }
    }

    async fn found<F>(&self, host: &str, look_up: impl FnOnce(String) -> F) -> io::Result<Arc<[IpAddr]>>
    where
        F: Future<Output = io::Result<Arc<[IpAddr]>>> + Send + 'static,
    {
        let look_up = self.under_way(host, look_up);
        let known = self.with(|state| state.known.clone()).filter(|(name, _)| name == host);
        let found = match &known {
            Some(_) => timeout(PATIENCE, look_up).await.unwrap_or_else(|late| Err(Arc::new(late.into()))),
            None => look_up.await,
        };
        match (found, known) {
            (Ok(addresses), _) => {
                self.with(|state| state.known = Some((host.to_owned(), Arc::clone(&addresses))));
                Ok(addresses)
            }
            (Err(error), Some((_, addresses))) => {
                debug!("{host} cannot be looked up; its last addresses are used: {error}");
                Ok(addresses)
            }
            (Err(error), None) => Err(io::Error::new(error.kind(), error)),
        }
    }

    fn under_way<F>(&self, host: &str, look_up: impl FnOnce(String) -> F) -> Shared<LookUp>
    where
        F: Future<Output = io::Result<Arc<[IpAddr]>>> + Send + 'static,
    {
        self.with(|state| {
            let same = state.under_way.as_ref().filter(|(name, _)| name == host);
            if let Some(shared) = same.and_then(|(_, weak)| weak.upgrade()).filter(|shared| shared.peek().is_none()) {
                return shared;
            }
            let shared = look_up(host.to_owned()).map(|found| found.map_err(Arc::new)).boxed().shared();
            state.under_way = shared.downgrade().map(|weak| (host.to_owned(), weak));
            shared
        })
    }

    fn with<T>(&self, job: impl FnOnce(&mut State) -> T) -> T {
        // Nothing is ever half done in it.
        job(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the machine's resolver says. One that is waiting for a thread is not begun when nobody waits for it.
async fn resolved(host: String) -> io::Result<Arc<[IpAddr]>> {
    let name: Name = host.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    let found: Arc<[IpAddr]> = GaiResolver::new().oneshot(name).await?.map(|address| address.ip()).collect();
    if found.is_empty() { Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{Instant, sleep};

    use super::*;

    fn addresses(text: &str) -> Arc<[IpAddr]> {
        text.split(' ').map(|text| text.parse().expect("an address")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_cannot_be_looked_up_is_what_it_was() {
        let names = Names::default();
        let fails = |_| async { Err(io::Error::other("no server")) };
        let hangs = |_| std::future::pending();
        let is = |text: &'static str| move |_| async move { Ok(addresses(text)) };
        assert_eq!(names.found("a", fails).await.expect_err("never known").to_string(), "no server");
        assert_eq!(names.found("a", is("192.0.2.1 2001:db8::1")).await.ok(), Some(addresses("192.0.2.1 2001:db8::1")));
        assert_eq!(names.found("a", is("192.0.2.2")).await.ok(), Some(addresses("192.0.2.2")));
        assert_eq!(names.found("a", fails).await.ok(), Some(addresses("192.0.2.2")));
        let began = Instant::now();
        assert_eq!(names.found("a", hangs).await.ok(), Some(addresses("192.0.2.2")));
        assert_eq!(began.elapsed(), PATIENCE);
        assert!(names.found("b", fails).await.is_err(), "another name");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_together_are_answered_together() {
        let (names, asked) = (Names::default(), AtomicUsize::new(0));
        let slow = |_| {
            asked.fetch_add(1, Ordering::Relaxed);
            async {
                sleep(Duration::from_secs(1)).await;
                Ok(addresses("192.0.2.1"))
            }
        };
        let ask = || names.found("a", slow);
        let all = futures::future::join_all([ask(), ask(), ask()]).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(names.found("a", slow).await.is_ok());
        assert_eq!(asked.load(Ordering::Relaxed), 2, "an answer is not kept");
        // Nobody waits for this one any more.
        assert!(timeout(Duration::from_millis(1), names.found("b", slow)).await.is_err());
        assert!(names.found("b", slow).await.is_ok());
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn an_address_is_not_looked_up() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(Names::default().addresses(address).await.ok(), Some(addresses(address)));
        }
        let local = Names::default().addresses("localhost").await.expect("every machine knows it");
        assert!(local.iter().all(IpAddr::is_loopback), "{local:?}");
    }
}
