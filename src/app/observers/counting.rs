//! Counts what the sync loop does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use crate::conntrack;
use crate::diff::FrontendCounts;
use crate::metrics::{self, Metrics};
use crate::model::{Event, Family, Kind, ObjectName, PerFamily, Slice, TrafficPolicy, policy};
use crate::nftables::Kernel;
use crate::ruleset::base::AFFINITY_SIZE;
use crate::ruleset::extras::Extras;
use crate::ruleset::names::SetName;
use crate::sync::{Engine, FamilyReport, Report, Standing};

/// Service ports without a local endpoint: those of policy `internal`, and of policy `external`.
type NoLocal = [PerFamily<usize>; 2];

/// Turns what is heard of the sync loop into numbers. What it keeps is in proportion to what waits or is odd.
pub(super) struct Counting {
    metrics: Arc<Metrics>,
    started: SystemTime,
    /// When the changes happened that wait for a sync.
    waiting: PerFamily<BTreeMap<ObjectName, Vec<SystemTime>>>,
    changed_services: BTreeSet<ObjectName>,
    changed_slices: usize,
    no_local: BTreeMap<ObjectName, NoLocal>,
    no_local_sum: NoLocal,
}

impl Counting {
    pub(super) fn new(metrics: Arc<Metrics>) -> Counting {
        for kind in Kind::ALL {
            metrics.set_rejected_objects(&kind.to_string(), 0);
        }
        let started = SystemTime::now();
        Family::ALL.into_iter().for_each(|family| metrics.affinity_clients_limit[family].set(AFFINITY_SIZE.into()));
        Family::ALL.into_iter().for_each(|family| metrics.sync_last_queued[family].set(metrics::timestamp(started)));
        Counting {
            metrics,
            started,
            waiting: PerFamily::default(),
            changed_services: BTreeSet::new(),
            changed_slices: 0,
            no_local: BTreeMap::new(),
            no_local_sum: NoLocal::default(),
        }
    }

    /// An event comes, and is not in the engine yet.
    pub(super) fn hears<K: Kernel>(&mut self, engine: &Engine<K>, event: &Event) {
        match event {
            Event::Service(service) => {
                let changes = engine.store().service(&service.name) != Some(service);
                self.service_changes(&service.name, changes);
            }
            Event::ServiceGone(name) => self.service_changes(name, engine.store().service(name).is_some()),
            Event::Slice { slice, changed_at } => {
                self.metrics.endpoint_changes.inc();
                if !engine.store().slices(&slice.service).iter().any(|known| known.serves_as(slice)) {
                    self.slice_changes(slice, *changed_at);
                }
            }
            Event::SliceGone(_) => {
                self.metrics.endpoint_changes.inc();
                self.changed_slices += 1;
            }
            _ => {}
        }
    }

    /// Events have been taken in.
    pub(super) fn queued<K: Kernel>(&self, engine: &Engine<K>) {
        self.tell_standing(engine);
        let now = metrics::timestamp(SystemTime::now());
        for family in Family::ALL.into_iter().filter(|family| engine.is_family_behind(*family)) {
            self.metrics.sync_last_queued[family].set(now);
        }
        for (kind, objects) in engine.store().faults().by_kind() {
            self.metrics.set_rejected_objects(&kind.to_string(), objects);
        }
        self.metrics.service_changes_pending.set(self.changed_services.len() as f64);
        self.metrics.endpoint_changes_pending.set(self.changed_slices as f64);
    }

    /// A sync has ended.
    pub(super) fn synced<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report) {
        let now = SystemTime::now();
        self.tell_standing(engine);
        for family in Family::ALL {
            if let Some(done) = &report.families[family] {
                self.family_synced(family, done, engine.standing(family), now);
            }
            self.metrics.refused_services[family].set(engine.refused(family) as f64);
            self.metrics.services[family].set(engine.installed(family).service_count() as f64);
            let FrontendCounts { served, refused, dropped } = engine.installed(family).frontend_counts();
            for (gauge, count) in self.metrics.frontends.iter().zip([served, refused, dropped]) {
                gauge[family].set(count as f64);
            }
            let elements = engine.elements(family);
            let extras = engine.frame(family).map_or(Extras::NONE, |frame| frame.extras);
            // The kernel writes the map `affinity` itself.
            for set in SetName::ALL.into_iter().filter(|set| *set != SetName::Affinity && extras.has_set(*set)) {
                self.metrics.set_map_elements(family, set.as_str(), elements.get(&set).copied().unwrap_or(0));
            }
        }
        self.changed_services.clear();
        self.changed_slices = 0;
        self.metrics.service_changes_pending.set(0.0);
        self.metrics.endpoint_changes_pending.set(0.0);
        for name in &report.examined {
            self.look_for_local_endpoints(engine, name);
        }
        for (policy, sums) in self.metrics.no_local_endpoints.iter().zip(&self.no_local_sum) {
            Family::ALL.into_iter().for_each(|family| policy[family].set(sums[family] as f64));
        }
    }

    /// Clients have been forgotten, or not, or counted.
    pub(super) fn forgot<K: Kernel>(&self, engine: &Engine<K>, report: &Report) {
        for family in Family::ALL {
            self.metrics.affinity_clients[family].set(engine.clients(family) as f64);
            if let Some(done) = &report.families[family] {
                count_transactions(&self.metrics, family, done);
            }
        }
    }

    fn tell_standing<K: Kernel>(&self, engine: &Engine<K>) {
        for family in Family::ALL {
            self.metrics.in_sync[family].set(f64::from(u8::from(engine.standing(family).is_in_line())));
        }
    }

    fn family_synced(&mut self, family: Family, done: &FamilyReport, standing: Standing<'_>, now: SystemTime) {
        let metrics = &self.metrics;
        let seconds = done.elapsed.as_secs_f64();
        metrics.sync_duration[family].observe(seconds);
        let kind = if done.full { &metrics.sync_full_duration } else { &metrics.sync_partial_duration };
        kind[family].observe(seconds);
        count_transactions(metrics, family, done);
        metrics.repairs[family].inc_by(f64::from(u8::from(done.repaired)));
        // Those of a sync that failed are not measured, as in kube-proxy: they would tell of the failure. Nor are those of
        // a Service that is refused.
        let waiting = std::mem::take(&mut self.waiting[family]);
        if standing.is_in_line() {
            metrics.sync_last[family].set(metrics::timestamp(now));
            let refused =
                |name: &ObjectName| matches!(standing, Standing::InLineBut(refused) if refused.contains(name));
            for since in waiting.into_iter().filter(|(name, _)| !refused(name)).flat_map(|(_, times)| times) {
                let latency = now.duration_since(since).unwrap_or_default();
                metrics.network_programming[family].observe(latency.as_secs_f64());
            }
        }
    }

    fn service_changes(&mut self, name: &ObjectName, changes: bool) {
        self.metrics.service_changes.inc();
        if changes {
            self.changed_services.insert(name.clone());
        }
    }

    fn slice_changes(&mut self, slice: &Slice, changed_at: Option<SystemTime>) {
        self.changed_slices += 1;
        // What happened before the start would tell how long the proxy was not there.
        if let Some(at) = changed_at.filter(|at| *at > self.started) {
            self.waiting[slice.family].entry(slice.service.clone()).or_default().push(at);
        }
    }

    /// Counts the ports of a Service that only local endpoints may serve, and that have only others.
    fn look_for_local_endpoints<K: Kernel>(&mut self, engine: &Engine<K>, name: &ObjectName) {
        let found = no_local_endpoints(engine, name);
        let before = if found == NoLocal::default() {
            self.no_local.remove(name)
        } else {
            self.no_local.insert(name.clone(), found)
        };
        for (policy, sums) in self.no_local_sum.iter_mut().enumerate() {
            for family in Family::ALL {
                sums[family] += found[policy][family];
                sums[family] -= before.map_or(0, |before| before[policy][family]);
            }
        }
    }
}

fn count_transactions(metrics: &Metrics, family: Family, done: &FamilyReport) {
    for commit in &done.commits {
        metrics.transaction_operations[family].observe(commit.operations as f64);
        metrics.transaction_bytes[family].observe(commit.bytes as f64);
        metrics.transaction_kernel[family].observe(commit.elapsed.as_secs_f64());
    }
    metrics.sync_failures[family].inc_by(done.failed_commits as f64);
    metrics.cleanup_failures[family].inc_by(done.failed_cleanups as f64);
}

fn no_local_endpoints<K: Kernel>(engine: &Engine<K>, name: &ObjectName) -> NoLocal {
    let mut found = NoLocal::default();
    let Some(service) = engine.store().service(name) else { return found };
    let local = |policy| policy == TrafficPolicy::Local;
    if !local(service.internal_policy) && !local(service.external_policy) {
        return found;
    }
    let slices = engine.store().slices(name);
    for family in Family::ALL.into_iter().filter(|family| service.cluster_ips[*family].is_some()) {
        for port in &service.ports {
            let external = local(service.external_policy) && policy::external(service, port, family);
            if !local(service.internal_policy) && !external {
                continue;
            }
            let choice = policy::choose(service, port, family, slices, engine.store().zone());
            if choice.any && choice.local.is_empty() {
                found[0][family] += usize::from(local(service.internal_policy));
                found[1][family] += usize::from(external);
            }
        }
    }
    found
}

/// Counts what a pass over the table of connections did.
pub(super) fn count_sweep(metrics: &Metrics, pass: &conntrack::Sweep) {
    for family in Family::ALL {
        if let Some(result) = &pass.families[family] {
            metrics.conntrack_duration[family].observe(pass.elapsed[family].as_secs_f64());
            if let Ok(swept) = result {
                metrics.conntrack_deleted[family].inc_by(swept.deleted as f64);
            }
        }
        if let Some(Ok(swept)) = &pass.resets[family] {
            metrics.connections_reset[family].inc_by(swept.deleted as f64);
        }
    }
}

#[cfg(test)]
mod tests;
