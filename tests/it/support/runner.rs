//! Runs scenarios.

use std::collections::BTreeMap;
use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::canary::Canary;
use super::explained;
use super::http::{self, Answer};
use super::judge::judge;
use super::nft_versions;
use super::objects::{ObjectKey, merge, with_defaults};
use super::outcome::Outcome;
use super::proxy::Proxy;
use super::scenario::{Check, ExpectHttp, Scenario, What};
use super::world::{Look, Probe, World};

/// How long to wait before something is called wrong that may only be late. Nothing waits when all is well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// How long a proxy may take to be in sync.
    pub(crate) sync: Duration,
    /// When packets that did not fare as they must are looked at again: at once, and when everything that a proxy does
    /// later than its rules (deleting connections, purging learnt endpoints) has had its time on a slow machine.
    pub(crate) further_looks: [Duration; 2],
    /// How long a flow may go on to the wrong place, and a request get the wrong answer: both are dealt with apart from
    /// the rules.
    pub(crate) afterwards: Duration,
}

impl Patience {
    /// Enough for a machine that is busy with other things.
    pub(crate) const USUAL: Patience = Patience {
        sync: Duration::from_secs(30),
        further_looks: [Duration::from_millis(50), Duration::from_millis(1500)],
        afterwards: Duration::from_secs(3),
    };
}

/// What came of a scenario.
#[derive(Debug)]
pub(crate) struct Report {
    scenario: String,
    pub(crate) checked: usize,
    /// One line for each packet that did not fare as it must, and for what kept the scenario from going on.
    pub(crate) failures: Vec<String>,
    /// The proxy's log and the rules, when there are failures.
    pub(crate) context: String,
    synced: Duration,
    took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { scenario, checked, failures, context, synced, took } = self;
        let failed = failures.len();
        writeln!(f, "{scenario}: {checked} checked, {failed} failed, {took:.2?} (in sync after {synced:.2?})")?;
        failures.iter().try_for_each(|failure| writeln!(f, "  FAIL {failure}"))?;
        f.write_str(context)
    }
}

/// Runs a scenario against the proxy that `make` makes. `None` where there can be no node, see [`World::new`].
pub(crate) fn run(
    scenario: &Scenario,
    patience: Patience,
    make: impl FnOnce(&World) -> Result<Box<dyn Proxy>, String>,
) -> Option<Report> {
    let begin = Instant::now();
    let mut report = Report {
        scenario: scenario.name.clone(),
        checked: 0,
        failures: Vec::new(),
        context: String::new(),
        synced: Duration::ZERO,
        took: Duration::ZERO,
    };
    let mut world = World::new(&scenario.node.ips, &scenario.node.interfaces)?;
    match make(&world) {
        Err(error) => report.failures.push(format!("cannot make the proxy: {error}")),
        Ok(mut proxy) => {
            let run = Run {
                world: &mut world,
                proxy: proxy.as_mut(),
                state: BTreeMap::new(),
                generation: 0,
                report: &mut report,
                patience,
                begin,
            };
            let result = run.all(scenario);
            report.failures.extend(result.err());
            // Whatever the rules are, stock nft must be able to print them.
            let listing = world.nft(&["list", "ruleset"], "");
            report.failures.extend(listing.as_ref().err().map(|error| format!("nft cannot list the rules: {error}")));
            report.failures.extend(nft_versions::cannot_read(&world));
            if !report.failures.is_empty() {
                let rules = listing.unwrap_or_else(|error| error.to_string());
                report.context = format!("--- log of the proxy\n{}\n--- rules\n{rules}\n", proxy.log());
            }
            report.failures.extend(proxy.stop().err());
        }
    }
    report.took = begin.elapsed();
    Some(report)
}

/// Runs a scenario and fails, with everything there is to know, unless all of it is as it must be.
///
/// # Panics
/// On any failure.
pub(crate) fn assert_passes(scenario: &Scenario, make: impl FnOnce(&World) -> Result<Box<dyn Proxy>, String>) {
    if let Some(report) = run(scenario, Patience::USUAL, make) {
        assert!(report.failures.is_empty(), "{report}");
        print!("{report}");
    }
}

struct Run<'a> {
    world: &'a mut World,
    proxy: &'a mut dyn Proxy,
    state: BTreeMap<ObjectKey, Value>,
    generation: u16,
    report: &'a mut Report,
    patience: Patience,
    begin: Instant,
}

impl Run<'_> {
    /// Failed checks go to the report; an error is what keeps the scenario from going on.
    fn all(mut self, scenario: &Scenario) -> Result<(), String> {
        self.change(&scenario.initial_objects(), &[])?;
        let config = configuration(scenario);
        self.proxy.start(self.world, &config)?;
        self.sync().map_err(|error| format!("at the beginning: {error}"))?;
        self.report.synced = self.begin.elapsed();
        self.checks("", &scenario.packets);
        for step in &scenario.steps {
            self.change(&step.apply, &step.delete)?;
            self.sync().map_err(|error| format!("{}: {error}", step.name))?;
            sleep(Duration::from_secs_f64(step.wait));
            self.checks(&format!("{}: ", step.name), &step.packets);
        }
        Ok(())
    }

    /// Changes objects, the canary last.
    fn change(&mut self, apply: &[Value], delete: &[ObjectKey]) -> Result<(), String> {
        for key in delete {
            self.state.remove(key);
            self.proxy.delete(self.world, key).map_err(|error| format!("cannot delete {key:?}: {error}"))?;
        }
        self.generation += 1;
        let canary = Canary::new(self.world, self.generation).objects();
        for object in apply.iter().map(with_defaults).chain(canary) {
            let key = ObjectKey::of(&object);
            self.proxy.apply(self.world, &object).map_err(|error| format!("cannot apply {key:?}: {error}"))?;
            self.state.insert(key, object);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), String> {
        let canary = Canary::new(self.world, self.generation);
        canary.wait(self.world, self.patience.sync, || self.proxy.alive())
    }

    fn checks(&mut self, place: &str, checks: &[Check]) {
        let endpoints = most_endpoints(self.state.values());
        for check in checks {
            let result = match &check.what {
                What::Packet { probe, flow: None, expect } => {
                    self.packets(probe, endpoints, |outcome| judge(expect, outcome))
                }
                What::Packet { probe, flow: Some(flow), expect } => {
                    self.flow(flow, probe, |outcome| judge(expect, outcome))
                }
                What::Http { server, path, expect } => self.request(|world| http::get(world, *server, path), expect),
            };
            self.report.checked += 1;
            if let Err(wrong) = result {
                self.report.failures.push(format!("{place}{}: {wrong}", describe(check)));
            }
        }
    }

    fn packets(
        &mut self,
        probe: &Probe,
        endpoints: usize,
        judge: impl Fn(&Outcome) -> Result<(), String>,
    ) -> Result<(), String> {
        let look = |world: &mut World, look| {
            let outcome = world.probe(probe, endpoints, look);
            judge(&outcome)?;
            if self.proxy.is_explained() { explained::agrees(world, probe, &outcome) } else { Ok(()) }
        };
        let mut result = look(self.world, Look::QUICK);
        for pause in self.patience.further_looks {
            if result.is_err() {
                sleep(pause);
                result = look(self.world, Look::PATIENT);
            }
        }
        result
    }

    fn flow(
        &mut self,
        flow: &str,
        probe: &Probe,
        judge: impl Fn(&Outcome) -> Result<(), String>,
    ) -> Result<(), String> {
        until_fine(self.patience.afterwards, |first| {
            let look = if first { Look::QUICK } else { Look::PATIENT };
            judge(&self.world.probe_flow(flow, probe, look))
        })
    }

    fn request(&mut self, get: impl Fn(&World) -> Answer, expect: &ExpectHttp) -> Result<(), String> {
        until_fine(self.patience.afterwards, |_| {
            let answer = get(self.world);
            let fine = match expect {
                ExpectHttp::Refused => answer == Answer::Refused,
                ExpectHttp::Status(status) => answer == Answer::Status(*status),
            };
            if fine { Ok(()) } else { Err(format!("expected {expect:?}, got {answer:?}")) }
        })
    }
}

/// Tries until it is fine or the time is over; the last try begins after that. The first try is told so.
fn until_fine(patience: Duration, mut attempt: impl FnMut(bool) -> Result<(), String>) -> Result<(), String> {
    let end = Instant::now() + patience;
    let mut first = true;
    loop {
        let over = Instant::now() >= end;
        let result = attempt(first);
        if result.is_ok() || over {
            return result;
        }
        first = false;
        sleep(Duration::from_millis(50));
    }
}

fn configuration(scenario: &Scenario) -> Value {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": scenario.node.name,
        "clientConnection": {"kubeconfig": "", "qps": 1000, "burst": 2000},
        "conntrack": {"maxPerCore": 0},
        "nftables": {"minSyncPeriod": "10ms", "syncPeriod": "30s"}
    });
    merge(&mut config, &Value::Object(scenario.config.clone()));
    config
}

/// The most endpoints that a Service has in one family.
fn most_endpoints<'a>(objects: impl Iterator<Item = &'a Value>) -> usize {
    let mut counts: BTreeMap<[String; 3], usize> = BTreeMap::new();
    for slice in objects.filter(|object| object["kind"] == "EndpointSlice") {
        let metadata = &slice["metadata"];
        let of = [&metadata["namespace"], &metadata["labels"]["kubernetes.io/service-name"], &slice["addressType"]];
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        *counts.entry(of.map(Value::to_string)).or_default() +=
            endpoints.filter_map(|endpoint| endpoint["addresses"].as_array().map(Vec::len)).sum::<usize>();
    }
    counts.into_values().max().unwrap_or(0)
}

fn describe(check: &Check) -> String {
    let what = match &check.what {
        What::Packet { probe, .. } => {
            let more = match probe.clients.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{} {}{more} -> {}", probe.protocol, probe.clients[0], probe.destination)
        }
        What::Http { server, path, .. } => format!("GET http://{server}{path}"),
    };
    match &check.name {
        Some(name) => format!("{name} [{what}]"),
        None => what,
    }
}
