//! Two ways to the same server: past the Services of this node, and as everybody goes.
//!
//! An external IP of a Service can be the address of the API server, and a ServiceCIDR can hold it. What is in the tables
//! must not keep this process from hearing that it is gone. But there may be nothing past the Services: where the API
//! server is named by a cluster IP, as in pods, the tables are what leads to it. So there are both, one after the other: a
//! server that is away is not asked twice in one attempt.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::uri::Scheme;
use axum::http::{Extensions, Uri};
use futures::future::{BoxFuture, Either, select};
use hyper_util::client::legacy::connect::Connection;
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceExt as _};
use tracing::debug;

use super::sockets::{Reached, Unconnected};
use crate::source::bypass::Bypass;

/// When the way that is tried first has not led to the server for so long, with TLS, the other is tried beside it.
const HEAD_START: Duration = Duration::from_secs(1);

/// Connects by whichever way leads to the server.
#[derive(Clone)]
pub(super) struct EitherWay<C> {
    /// With a priority that the tables know; `None`: there is only the usual one.
    past: Option<(C, Bypass)>,
    usual: C,
    /// The one that worked last, or the other where it has failed since.
    usual_first: Arc<AtomicBool>,
    /// Whether the other has ever worked.
    past_works: Arc<AtomicBool>,
}

impl<C> EitherWay<C> {
    /// `usual_first`: before any has worked.
    pub(super) fn new(past: Option<(C, Bypass)>, usual: C, usual_first: bool) -> EitherWay<C> {
        EitherWay { past, usual, usual_first: Arc::new(AtomicBool::new(usual_first)), past_works: Arc::default() }
    }
}

impl<C> Service<Uri> for EitherWay<C>
where
    C: Service<Uri> + Clone + Send + 'static,
    C::Response: Connection + Send,
    C::Future: Send,
    C::Error: Into<BoxError>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let EitherWay { past, usual, usual_first, past_works } = self.clone();
        Box::pin(async move {
            let Some((past, bypass)) = past else { return usual.oneshot(to).await.map_err(Into::into) };
            let first = usual_first.load(Ordering::Relaxed);
            if past_works.load(Ordering::Relaxed) && to.scheme() != Some(&Scheme::HTTPS) {
                // Without TLS nobody could tell the server from who has its address.
                let connection = past.oneshot(to).await.map_err(Into::into)?;
                tell(&bypass, &connection);
                return Ok(connection);
            }
            let connect = |way: C| {
                let to = to.clone();
                async move { way.oneshot(to).await.map_err(Into::into) }
            };
            let (past, usual) = (connect(past), connect(usual));
            let connected = if first {
                earlier(usual, past).await
            } else {
                earlier(past, usual).await.map(|(connection, was_first)| (connection, !was_first))
            };
            let (connection, was_usual) = connected.inspect_err(|_| usual_first.store(!first, Ordering::Relaxed))?;
            usual_first.store(was_usual, Ordering::Relaxed);
            if was_usual != first {
                let way = if was_usual { "as everybody goes" } else { "past the Services of this node" };
                debug!("the API server is reached {way}, and not the other way");
            }
            if !was_usual {
                past_works.store(true, Ordering::Relaxed);
                tell(&bypass, &connection);
            }
            Ok(connection)
        })
    }
}

/// Tells where a connection past the tables has led to.
fn tell(bypass: &Bypass, connection: &impl Connection) {
    let mut extensions = Extensions::new();
    connection.connected().get_extras(&mut extensions);
    let Some(Reached(addresses)) = extensions.get() else { return };
    bypass.reached.send_if_modified(|known| {
        let differs = *known != **addresses;
        if differs {
            known.clone_from(addresses);
        }
        differs
    });
}

/// The result of the first, or of the second where the first is not there in time; and whether it is of the first. Where
/// both fail the error is that of the first, unless only the second met anybody at all.
async fn earlier<T>(
    first: impl Future<Output = Result<T, BoxError>>,
    second: impl Future<Output = Result<T, BoxError>>,
) -> Result<(T, bool), BoxError> {
    let mut first = pin!(first);
    let of_first = |connection| (connection, true);
    let of_second = |connection| (connection, false);
    if let Ok(result) = timeout(HEAD_START, &mut first).await {
        return result.map(of_first);
    }
    match select(first, pin!(second)).await {
        Either::Left((Ok(connection), _)) => Ok(of_first(connection)),
        Either::Right((Ok(connection), _)) => Ok(of_second(connection)),
        Either::Left((Err(error), second)) => second.await.map(of_second).map_err(|other| more_telling(error, other)),
        Either::Right((Err(other), first)) => first.await.map(of_first).map_err(|error| more_telling(error, other)),
    }
}

fn more_telling(first: BoxError, second: BoxError) -> BoxError {
    if !met_somebody(&first) && met_somebody(&second) { second } else { first }
}

fn met_somebody(error: &BoxError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if error.is::<Unconnected>() {
            return false;
        }
        cause = error.source();
    }
    true
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    /// After so many milliseconds it is connected, or fails.
    async fn after(milliseconds: u64, result: Result<(), &str>) -> Result<(), BoxError> {
        sleep(Duration::from_millis(milliseconds)).await;
        result.map_err(Into::into)
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_way_is_tried_when_the_first_does_not_lead_there_in_time() {
        let never = 1_000_000;
        for (first, second, expected, milliseconds) in [
            ((10, Ok(())), (0, Ok(())), Ok(true), 10),
            ((10, Err("first")), (10, Ok(())), Err("first"), 10),
            ((never, Ok(())), (10, Ok(())), Ok(false), 1_010),
            ((1_005, Ok(())), (10, Ok(())), Ok(true), 1_005),
            ((2_000, Err("first")), (2_000, Ok(())), Ok(false), 3_000),
            ((5_000, Ok(())), (10, Err("second")), Ok(true), 5_000),
            ((5_000, Err("first")), (10, Err("second")), Err("first"), 5_000),
        ] {
            let began = Instant::now();
            let found = earlier(after(first.0, first.1), after(second.0, second.1)).await;
            let found = found.map(|((), of_first)| of_first).map_err(|err| err.to_string());
            assert_eq!(found.as_ref().map_err(|err| &err[..]), expected.as_ref().map_err(|err| *err));
            assert_eq!(began.elapsed().as_millis(), milliseconds, "{first:?} {second:?}");
        }
    }
}
