//! What the start waits for, by name: once all of it has come, the proxy is ready.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::model::{Family, Kind};
use crate::ruleset::names::TableName;
use crate::ruleset::text;
use crate::sync::Standing;

/// How long a start may take before the log says what it waits for.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// The pause from the first such line to the second. It doubles with each further one.
const PAUSE: Duration = Duration::from_secs(10);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(320);

/// Something that the start waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Awaited {
    /// The first list of a kind that is complete.
    FirstList(Kind),
    /// A family's table is in line, but perhaps for Services that the kernel refuses.
    Table(TableName, Family),
    /// `--take-over` has done what it does.
    TakeOver,
    /// The health port is open, at this address.
    HealthPort(SocketAddr),
    /// The metrics port is open, at this address.
    MetricsPort(SocketAddr),
}

impl Awaited {
    /// Whether the proxy is not ready without it.
    ///
    /// A port is only named: what Services need is there without it, and who has it may be the kube-proxy that goes when
    /// this proxy is ready. Where the port matters more, `bindAddressHardFail` ends the process.
    fn holds_up(self) -> bool {
        !matches!(self, Awaited::HealthPort(_) | Awaited::MetricsPort(_))
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Awaited::FirstList(kind) => write!(f, "the first list of {kind}s"),
            Awaited::Table(name, family) => write!(f, "table {}", text::table(*name, *family)),
            Awaited::TakeOver => f.write_str("the take-over from kube-proxy"),
            Awaited::HealthPort(address) => write!(f, "the health port {address}"),
            Awaited::MetricsPort(address) => write!(f, "the metrics port {address}"),
        }
    }
}

/// What is still awaited. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waits {
    /// With the reason, if it is known.
    awaited: BTreeMap<Awaited, Option<String>>,
    /// Whether nothing has held it up at some time. That stays so.
    ready: bool,
}

impl Waits {
    fn new(awaited: impl IntoIterator<Item = Awaited>) -> Waits {
        let awaited: BTreeMap<Awaited, Option<String>> = awaited.into_iter().map(|awaited| (awaited, None)).collect();
        let ready = !awaited.keys().any(|awaited| awaited.holds_up());
        Waits { awaited, ready }
    }

    /// Returns whether that is news.
    fn comes(&mut self, awaited: Awaited) -> bool {
        let news = self.awaited.remove(&awaited).is_some();
        self.ready |= news && !self.awaited.keys().any(|awaited| awaited.holds_up());
        news
    }

    /// Returns whether that is news. What had come can be lost again until all is there; then the start is over.
    fn awaits(&mut self, awaited: Awaited, reason: Option<&str>) -> bool {
        if self.ready && awaited.holds_up()
            || self.awaited.get(&awaited).is_some_and(|before| before.as_deref() == reason)
        {
            return false;
        }
        self.awaited.insert(awaited, reason.map(str::to_owned));
        true
    }

    /// In words, each with its reason.
    fn named(&self, which: impl Fn(Awaited) -> bool) -> Vec<String> {
        let named = self.awaited.iter().filter(|(awaited, _)| which(**awaited));
        let named = named.map(|(awaited, reason)| match reason {
            Some(reason) => format!("{awaited} ({reason})"),
            None => awaited.to_string(),
        });
        named.collect()
    }
}

/// What is still awaited, shared. Those who bring it about say that it has come; one that ends without a word is awaited
/// for ever, so that a panic or the end of the process is not taken for its coming.
#[derive(Debug, Clone)]
pub(super) struct Readiness {
    waits: Arc<watch::Sender<Waits>>,
    table: TableName,
}

impl Readiness {
    /// Of a start that waits for all lists, the tables of this name and `others`. All that there is to wait for is known from the
    /// first moment: what comes early makes nothing ready.
    pub(super) fn new(table: TableName, others: impl IntoIterator<Item = Awaited>) -> Readiness {
        let lists = Kind::ALL.into_iter().map(Awaited::FirstList);
        let tables = Family::ALL.into_iter().map(|family| Awaited::Table(table, family));
        Readiness { waits: Arc::new(watch::Sender::new(Waits::new(lists.chain(tables).chain(others)))), table }
    }

    /// It has come.
    pub(super) fn comes(&self, awaited: Awaited) {
        self.waits.send_if_modified(|waits| waits.comes(awaited));
    }

    /// It has not come yet, or is lost again, for this reason if there is one.
    pub(super) fn awaits(&self, awaited: Awaited, reason: Option<&str>) {
        self.waits.send_if_modified(|waits| waits.awaits(awaited, reason));
    }

    /// The tables stand like this. All at once: one that comes as another is lost completes nothing.
    pub(super) fn tables<'a>(&self, standing: impl Fn(Family) -> Standing<'a>) {
        self.waits.send_if_modified(|waits| {
            let (come, lost): (Vec<Family>, _) =
                Family::ALL.into_iter().partition(|family| standing(*family).is_in_line());
            let mut news = false;
            for family in lost {
                let reason = if let Standing::Failing(reason) = standing(family) { Some(reason) } else { None };
                news |= waits.awaits(Awaited::Table(self.table, family), reason);
            }
            come.into_iter().for_each(|family| news |= waits.comes(Awaited::Table(self.table, family)));
            news
        });
    }

    /// Waits until nothing holds it up.
    pub(super) async fn ready(&self) {
        // We hold the sender.
        let _ = self.waits.subscribe().wait_for(|waits| waits.ready).await;
    }

    /// All that is awaited, in words, also what holds up nothing.
    pub(super) fn awaited(&self) -> Vec<String> {
        self.waits.borrow().named(|_| true)
    }

    /// What holds it up, in words: nothing, from the moment on when the proxy is ready.
    pub(super) fn held_up_by(&self) -> Vec<String> {
        self.waits.borrow().named(Awaited::holds_up)
    }

    /// Calls `ready` when nothing holds it up any more, and logs from time to time what is awaited. Ends when nothing is.
    pub(super) async fn follow(self, ready: impl FnOnce()) {
        let mut waits = self.waits.subscribe();
        let mut ready = Some(ready);
        let (mut next, mut pause) = (Instant::now() + FIRST_WORD, PAUSE);
        loop {
            let now = waits.borrow_and_update().clone();
            if let Some(ready) = ready.take_if(|_| now.ready) {
                info!("ready");
                ready();
            }
            if now.awaited.is_empty() {
                return;
            }
            tokio::select! {
                // We hold the sender.
                _ = waits.changed() => {}
                () = sleep_until(next) => {
                    info!("waiting for: {}", now.named(|_| true).join(", "));
                    next += pause;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
