//! Accounts for connections by endpoint, on a thread of its own, while any Service asks for it.
//!
//! The kernel counts packets and bytes of each connection then (`nf_conntrack_acct`), and tells of each that ends, of whatever
//! Service or none, as it can tell no less: both cost all connections of the node something. Nobody is told to count no
//! more when nobody asks for it: others may have come to rely on it.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::observers::Ledger;
use crate::conntrack::{Account, Ended, Ends};
use crate::metrics::{EndpointOf, Had, Metrics};
use crate::sync::Told;
use crate::{sysctl, threads};

/// Starts the thread. It ends when nobody can change the list any more.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn account(ledger: Ledger, changed: watch::Receiver<()>, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    threads::spawn("accounting", move || {
        // Made here: without the thread, nobody could drop it where tasks run.
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return warn!("connections cannot be accounted for: {error}"),
        };
        runtime.block_on(listen(&ledger, changed, &metrics));
    })?;
    Ok(())
}

/// Listens while there is anything to account for.
async fn listen(ledger: &Ledger, mut changed: watch::Receiver<()>, metrics: &Metrics) {
    let mut lost = Told::default();
    while changed.wait_for(|()| !ledger.lock().is_empty()).await.is_ok() {
        let is_over = match Ends::open() {
            Ok(mut ends) => {
                sysctl::account(Path::new("/"));
                info!("connections are accounted for by endpoint");
                tokio::select! {
                    () = follow(&mut ends, ledger, metrics, &mut lost) => continue,
                    is_over = nothing_left(ledger, &mut changed, metrics) => {
                        if is_over {
                            info!("connections are not accounted for any more");
                        }
                        is_over
                    }
                }
            }
            Err(error) => {
                warn!("connections cannot be accounted for: cannot hear of those that end: {error}");
                // Until somebody asks anew.
                nothing_left(ledger, &mut changed, metrics).await
            }
        };
        if !is_over {
            return;
        }
    }
}

/// Forgets in time what is gone, until nothing is left to account for; `false` if the process is about to end before that.
async fn nothing_left(ledger: &Ledger, changed: &mut watch::Receiver<()>, metrics: &Metrics) -> bool {
    loop {
        let next = {
            let mut accounts = ledger.lock();
            let forgotten = accounts.forget_old(Instant::now().into_std());
            metrics.accounting_forgotten(forgotten.in_time, forgotten.for_room);
            if accounts.is_empty() {
                return true;
            }
            accounts.next_to_forget()
        };
        let in_time = async {
            match next {
                Some(next) => sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changed.changed() => match changed {
                Ok(()) => {}
                Err(_) => return false,
            },
            () = in_time => {}
        }
    }
}

/// Listens until the socket fails, which is said; then it is opened anew.
async fn follow(ends: &mut AsyncFd<Ends>, ledger: &Ledger, metrics: &Metrics, told: &mut Told) {
    loop {
        let mut ready = match ends.readable_mut().await {
            Ok(ready) => ready,
            Err(error) => return warn!("cannot hear of connections that end: {error}"),
        };
        let now = Instant::now().into_std();
        match ready.get_inner_mut().read(|ended| book(&ended, ledger, metrics, now)) {
            Ok(false) => {}
            Ok(true) => {
                metrics.accounting_lost.inc();
                if let Some(before) = told.again(now) {
                    warn!("more connections end than can be accounted for{before}: some are missing");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return warn!("cannot hear of connections that end: {error}"),
        }
        // Whoever wants it to end has a turn.
        tokio::task::yield_now().await;
    }
}

fn book(ended: &Ended, ledger: &Ledger, metrics: &Metrics, now: std::time::Instant) {
    let Some(Account { service, port }) = ledger.lock().of(ended, now).cloned() else { return };
    let both = |of: fn(crate::conntrack::Traffic) -> u64| [of(ended.original), of(ended.reply)];
    let had = Had { packets: both(|traffic| traffic.packets), bytes: both(|traffic| traffic.bytes) };
    metrics.endpoints.ended(EndpointOf { service, port, endpoint: ended.endpoint }, had, now);
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::conntrack::{Conntrack, Flows as _, KEPT};
    use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, Protocol};
    use crate::testing::in_network_namespace;
    use crate::testing::log::captured;
    use crate::testing::netns::{ip, nft};

    fn service() -> ObjectName {
        ObjectName::new("shop", "web").expect("a name")
    }

    fn frontend() -> FrontendKey {
        let at = FrontendAt::Address([10, 0, 0, 1].into());
        FrontendKey { at, protocol: Protocol::Udp, port: 53.try_into().expect("not 0") }
    }

    fn open(ledger: &Ledger) {
        ledger.lock().account(&service(), [(frontend(), "dns".into())], Instant::now().into_std());
    }

    /// The value of a series.
    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        let text = metrics.text();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_until_what_is_gone_is_forgotten_though_nothing_is_synced() {
        let (ledger, metrics, (changes, mut changed)) = (Ledger::default(), Metrics::new(), watch::channel(()));
        open(&ledger);
        let start = Instant::now();
        let closing = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            ledger.lock().account(&service(), [], Instant::now().into_std());
            changes.send_replace(());
        };
        let (is_over, ()) = tokio::join!(nothing_left(&ledger, &mut changed, &metrics), closing);
        assert!(is_over);
        let took = start.elapsed().saturating_sub(Duration::from_secs(60) + KEPT);
        assert!(start.elapsed() >= Duration::from_secs(60) + KEPT && took < Duration::from_secs(1), "{took:?}");
        let forgotten =
            |reason| value(&metrics, &format!("nftproxyd_accounting_forgotten_total{{reason=\"{reason}\"}}"));
        assert_eq!([forgotten("time"), forgotten("room")], [Some(1.0), Some(0.0)]);

        // What nobody wants is over at once, and so is the process.
        open(&ledger);
        ledger.lock().forget(&service(), []);
        assert!(nothing_left(&ledger, &mut changed, &metrics).await);
        open(&ledger);
        drop(changes);
        assert!(!nothing_left(&ledger, &mut changed, &metrics).await);
        assert_eq!(forgotten("time"), Some(1.0));
    }

    #[test]
    fn ends_that_are_lost_are_counted_and_said_and_those_after_are_not() {
        in_network_namespace(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let log = captured(|| runtime.block_on(lose()));
            let said = log.matches("more connections end than can be accounted for: some are missing").count();
            assert_eq!(said, 1, "{log}");
        });
    }

    async fn lose() {
        const FLOWS: u16 = 500;
        ip("link set lo up");
        ip("route add 10.0.0.0/8 dev lo");
        let rule = "add table ip t
add chain ip t c { type nat hook output priority -100; }
add rule ip t c ip daddr 10.0.0.1 dnat to 127.0.0.1
";
        nft(&["-f", "-"], rule);
        let _sink = UdpSocket::bind("127.0.0.1:53").expect("a socket");
        let mut conntrack = Conntrack::open().expect("a socket");
        let mut flows = |first: u16, number: u16| {
            for port in first..first + number {
                let socket = UdpSocket::bind(("127.0.0.1", port)).expect("a socket");
                socket.send_to(b"?", "10.0.0.1:53").expect("there is a route");
            }
            let deleted = conntrack.delete_udp(Family::V4, &mut |_| true).expect("they can be deleted").deleted;
            assert_eq!(deleted, usize::from(number));
        };
        let (ledger, metrics) = (Ledger::default(), Metrics::new());
        open(&ledger);
        // The least that the kernel grants.
        let mut ends = Ends::with_room(1).expect("a socket");
        let mut told = Told::default();
        let series = "nftproxyd_endpoint_connections_total{namespace=\"shop\",service=\"web\",port=\"dns\",endpoint=\"127.0.0.1:53\"}";
        let lost = || value(&metrics, "nftproxyd_accounting_lost_total");
        assert_eq!(lost(), Some(0.0));
        flows(10_000, 1);
        let mut read = async || {
            let reading = follow(&mut ends, &ledger, &metrics, &mut told);
            tokio::time::timeout(Duration::from_millis(200), reading).await.expect_err("it goes on");
        };
        read().await;
        assert_eq!((value(&metrics, series), lost()), (Some(1.0), Some(0.0)));

        // Nobody reads meanwhile.
        flows(20_000, FLOWS);
        read().await;
        let counted = value(&metrics, series).expect("it is there");
        assert!(counted < f64::from(FLOWS), "{counted}");
        assert_eq!(lost(), Some(1.0));

        flows(30_000, 1);
        read().await;
        assert_eq!((value(&metrics, series), lost()), (Some(counted + 1.0), Some(1.0)));
    }
}
