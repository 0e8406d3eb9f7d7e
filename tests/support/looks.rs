//! Looks at the clients that the kernel remembers, without a thread.

use std::time::{Duration, Instant};

use nftproxyd::model::Family;
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::nftables::{Clients, Slice};
use nftproxyd::ruleset::names::SetName;
use nftproxyd::ruleset::read::Remembered;
use nftproxyd::sync::{Engine, News, Report};

/// What a look finds that takes no time.
pub(crate) fn news(engine: &mut Engine<InMemoryKernel>, family: Family) -> Vec<News> {
    let elements = engine.kernel().elements_of(family, SetName::Affinity);
    let clients = elements.iter().filter_map(Remembered::read).collect();
    let took = Duration::ZERO;
    let all = Clients { count: elements.len(), torn: false, took };
    vec![News::Slice(Slice { clients, took }), News::End(Ok(all))]
}

/// Does the looks that are due, and forgets what they find. Returns what is reported of it.
pub(crate) fn look(engine: &mut Engine<InMemoryKernel>, now: Instant) -> Vec<Report> {
    let mut reports = Vec::new();
    while let Some((family, _)) = engine.look(now) {
        for news in news(engine, family) {
            reports.extend(engine.hear(family, news, now));
        }
        while engine.has_to_forget() {
            reports.push(engine.forget(now));
        }
    }
    reports
}
