//! The last changes and what became of them, for people who look. A change costs the same however many there were.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arcstr::ArcStr;
use jiff::Timestamp;

use crate::metrics::history::{Change, Outcome};
use crate::model::{Event, Family, Kind, ObjectName};
use crate::nftables::Kernel;
use crate::ruleset::names::TableName;
use crate::ruleset::text;
use crate::sync::{Engine, Report, Standing};

/// So many changes are kept: some 100 kB.
const KEPT: usize = 300;

/// The last changes, shared.
#[derive(Debug, Clone, Default)]
pub(in crate::app) struct History(Arc<Mutex<VecDeque<Done>>>);

/// A change, and what came of it.
#[derive(Debug)]
struct Done {
    heard: Heard,
    took: Option<Duration>,
    sync: Arc<Synced>,
    result: Outcome,
    reason: Option<Box<str>>,
}

/// What all changes of one sync have in common.
#[derive(Debug, Default)]
struct Synced {
    together: usize,
    transactions: usize,
    operations: usize,
    bytes: usize,
    in_kernel: Duration,
}

/// What has changed.
#[derive(Debug, Clone, Copy)]
enum What {
    /// An object of the cluster.
    Object(Kind),
    /// Our table, by somebody else, or it may have been: it was repaired.
    Table,
}

/// Something that was heard of, and has not been synced.
#[derive(Debug)]
struct Heard {
    at: SystemTime,
    since: Instant,
    what: What,
    name: ArcStr,
    service: Option<ObjectName>,
    gone: bool,
}

impl History {
    /// The last changes, the newest last; at most so many.
    pub(in crate::app) fn last(&self, most: usize) -> Vec<Change> {
        let all = self.lock();
        all.iter().skip(all.len().saturating_sub(most)).map(Done::told).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Done>> {
        // Each step leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Done {
    fn told(&self) -> Change {
        let Done { heard, took, sync, result, reason } = self;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Change {
            at: Timestamp::try_from(heard.at).map(|at| format!("{at:.3}")).unwrap_or_default(),
            kind: match heard.what {
                What::Object(kind) => kind.to_string(),
                What::Table => "table".to_owned(),
            },
            name: heard.name.to_string(),
            service: heard.service.as_ref().map(ToString::to_string),
            gone: heard.gone,
            together: sync.together as u64,
            operations: sync.operations as u64,
            transactions: sync.transactions as u64,
            bytes: sync.bytes as u64,
            took_microseconds: took.map(micros),
            kernel_microseconds: micros(sync.in_kernel),
            result: *result,
            reason: reason.as_deref().map(str::to_owned),
        }
    }
}

/// Writes the history.
#[derive(Debug)]
pub(super) struct Recorder {
    history: History,
    /// The name of the Node.
    node: ArcStr,
    /// The name of the tables.
    table: TableName,
    /// The last of those that wait for a sync, at most [`KEPT`].
    waiting: VecDeque<Heard>,
    /// How many wait, with those that are not kept.
    number: usize,
}

impl Recorder {
    pub(super) fn new(history: History, node: &str, table: TableName) -> Recorder {
        Recorder { history, node: node.into(), table, waiting: VecDeque::new(), number: 0 }
    }

    /// An event comes, and is not in the engine yet. One that repeats what is known is no change.
    pub(super) fn hears<K: Kernel>(&mut self, engine: &Engine<K>, event: &Event) {
        let store = engine.store();
        let (kind, name, service, gone) = match event {
            Event::Service(service) if store.service(&service.name) != Some(service) => {
                (Kind::Service, service.name.shared(), Some(&service.name), false)
            }
            Event::ServiceGone(name) if store.service(name).is_some() => {
                (Kind::Service, name.shared(), Some(name), true)
            }
            Event::Slice { slice, .. } if !store.slices(&slice.service).iter().any(|known| known.serves_as(slice)) => {
                (Kind::EndpointSlice, slice.name.shared(), Some(&slice.service), false)
            }
            Event::SliceGone(name) => match store.service_of(name) {
                Some(service) => (Kind::EndpointSlice, name.shared(), Some(service), true),
                None => return,
            },
            Event::ServiceCidr(cidr) if !store.service_cidr_objects().any(|known| known == cidr) => {
                (Kind::ServiceCidr, &cidr.name, None, false)
            }
            Event::ServiceCidrGone(name) if store.service_cidr_objects().any(|known| known.name == *name) => {
                (Kind::ServiceCidr, name, None, true)
            }
            Event::Node(node) if store.node() != Some(node) => (Kind::Node, &self.node, None, false),
            Event::NodeGone if store.node().is_some() => (Kind::Node, &self.node, None, true),
            _ => return,
        };
        let (name, service) = (name.clone(), service.cloned());
        if self.waiting.len() == KEPT {
            self.waiting.pop_front();
        }
        self.number += 1;
        let what = What::Object(kind);
        self.waiting.push_back(Heard { at: SystemTime::now(), since: Instant::now(), what, name, service, gone });
    }

    /// What has come is in the engine. Where no table lacks anything, no sync will follow.
    pub(super) fn queued<K: Kernel>(&mut self, engine: &Engine<K>) {
        if self.number > 0 && engine.is_complete() && !engine.is_behind() {
            self.done(Synced::default(), |_| (None, Outcome::Nothing, None));
        }
    }

    /// A sync has ended.
    pub(super) fn synced<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report) {
        self.repaired(report);
        if self.number == 0 {
            return;
        }
        let Report { transactions, operations, bytes, in_kernel, .. } = *report;
        let sync = Synced { transactions, operations, bytes, in_kernel, together: 0 };
        self.done(sync, |heard| {
            let result = match failure(engine, heard.service.as_ref()) {
                Some(reason) => (Outcome::Failed, Some(reason.into())),
                None if operations == 0 => (Outcome::Nothing, None),
                None => (Outcome::Written, None),
            };
            (Some(heard.since.elapsed()), result.0, result.1)
        });
    }

    /// A table that was not as it should be is one of the changes that are synced together.
    fn repaired(&mut self, report: &Report) {
        for family in Family::ALL {
            let Some(done) = report.families[family].as_ref().filter(|done| done.repaired) else { continue };
            let since = Instant::now().checked_sub(done.elapsed).unwrap_or_else(Instant::now);
            let name = text::table(self.table, family).to_string().into();
            self.number += 1;
            self.waiting.push_back(Heard {
                at: SystemTime::now(),
                since,
                what: What::Table,
                name,
                service: None,
                gone: false,
            });
        }
    }

    /// Moves all that waits to the history.
    fn done(&mut self, sync: Synced, mut outcome: impl FnMut(&Heard) -> (Option<Duration>, Outcome, Option<Box<str>>)) {
        let sync = Arc::new(Synced { together: std::mem::take(&mut self.number), ..sync });
        let mut all = self.history.lock();
        for heard in self.waiting.drain(..) {
            let (took, result, reason) = outcome(&heard);
            if all.len() >= KEPT {
                all.pop_front();
            }
            all.push_back(Done { heard, took, sync: Arc::clone(&sync), result, reason });
        }
    }
}

/// Why what a Service wants is not in the tables.
fn failure<'a, K: Kernel>(engine: &'a Engine<K>, service: Option<&ObjectName>) -> Option<&'a str> {
    Family::ALL.into_iter().find_map(|family| match engine.standing(family) {
        Standing::Failing(reason) => Some(reason),
        Standing::Behind => Some("the table is not in line yet"),
        Standing::InLineBut(refused) => {
            let mut services = refused.services();
            services.find(|(name, _)| Some(*name) == service).map(|(_, reason)| reason)
        }
        Standing::InLine => None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::config::{self, Overrides};
    use crate::model::Node;
    use crate::nftables::in_memory::{Fault, InMemoryKernel};
    use crate::source::convert::{Converter, Options};

    /// The sync loop, step by step.
    struct Proxy {
        engine: Engine<InMemoryKernel>,
        recorder: Recorder,
        history: History,
        convert: Converter,
    }

    impl Proxy {
        fn new() -> Proxy {
            let overrides = Overrides { hostname_override: Some("n1".to_owned()), ..Overrides::default() };
            let config = config::load(None, &overrides).expect("defaults are valid").config;
            let engine = Engine::new(InMemoryKernel::new(), crate::app::facts(&config));
            let history = History::default();
            let options = Options { node_name: "n1".to_owned(), allow_external_ips: true, service_proxy_name: None };
            let recorder = Recorder::new(history.clone(), "n1", TableName::NODE);
            let mut proxy = Proxy { engine, recorder, history, convert: Converter::new(options) };
            for kind in Kind::ALL {
                proxy.hear([Event::ListStarted(kind), Event::ListDone(kind)]);
            }
            proxy.sync();
            proxy
        }

        fn hear(&mut self, events: impl IntoIterator<Item = Event>) {
            for event in events {
                self.recorder.hears(&self.engine, &event);
                self.engine.apply(event);
            }
            self.recorder.queued(&self.engine);
        }

        fn sync(&mut self) {
            let report = self.engine.sync(Instant::now());
            self.recorder.synced(&self.engine, &report);
        }

        fn service(&self, name: &str, last: u8) -> Vec<Event> {
            let object = json!({
                "metadata": {"namespace": "shop", "name": name},
                "spec": {
                    "clusterIP": format!("10.96.0.{last}"), "clusterIPs": [format!("10.96.0.{last}")],
                    "ipFamilies": ["IPv4"], "type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]
                },
            });
            self.convert.service(&serde_json::from_value(object).expect("a Service"))
        }

        fn slice(&self, of: &str, pod: &str, last: u8) -> Vec<Event> {
            let object = json!({
                "metadata": {
                    "namespace": "shop", "name": format!("{of}-x"), "labels": {"kubernetes.io/service-name": of}
                },
                "addressType": "IPv4",
                "ports": [{"port": 8080, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": [format!("10.180.0.{last}")], "targetRef": {"kind": "Pod", "name": pod}}
                ],
            });
            self.convert.slice(&serde_json::from_value(object).expect("a slice"))
        }

        /// The newest changes, as few words.
        fn last(&self, most: usize) -> Vec<String> {
            let word = |it: &Change| {
                let gone = if it.gone { " gone" } else { "" };
                let sent = if it.operations > 0 { "" } else { " nothing" };
                let took = if it.took_microseconds.is_some() { "" } else { " unsynced" };
                format!("{} {}{gone} {:?} {}{sent}{took}", it.kind, it.name, it.result, it.together)
            };
            self.history.last(most).iter().map(word).collect()
        }
    }

    #[test]
    fn what_became_of_each_change_is_told() {
        let mut proxy = Proxy::new();
        assert_eq!(proxy.last(9), [""; 0], "there was nothing in the lists");
        let events = [proxy.service("web", 1), proxy.slice("web", "web-a", 1)].concat();
        proxy.hear(events);
        assert_eq!(proxy.last(9), [""; 0], "it waits for a sync");
        proxy.sync();
        let both = ["Service shop/web Written 2", "EndpointSlice shop/web-x Written 2"];
        assert_eq!(proxy.last(9), both);
        // It comes again as it was, and with another name of a pod.
        proxy.hear([proxy.service("web", 1), proxy.slice("web", "web-b", 1)].concat());
        proxy.sync();
        assert_eq!(proxy.last(9), both);
        proxy.hear(proxy.slice("none", "x", 9));
        proxy.sync();
        assert_eq!(proxy.last(1), ["EndpointSlice shop/none-x Nothing 1 nothing"], "of no Service");
        let name = ObjectName::new("shop", "web-x").expect("a name");
        proxy.hear([Event::SliceGone(name.clone()), Event::SliceGone(name)]);
        proxy.sync();
        assert_eq!(proxy.last(1), ["EndpointSlice shop/web-x gone Written 1"]);
        let last = proxy.history.last(1).remove(0);
        assert_eq!((last.service.as_deref(), last.transactions), (Some("shop/web"), 1));
        assert!(last.at.ends_with('Z') && last.at.contains('T'), "{}", last.at);
    }

    #[test]
    fn changes_of_the_node_and_repairs_are_changes() {
        let mut proxy = Proxy::new();
        proxy.hear([proxy.service("web", 1), vec![Event::Node(Node::default())]].concat());
        proxy.sync();
        assert_eq!(proxy.last(1), ["Node n1 Written 2"]);
        proxy.hear([Event::Node(Node::default())]);
        assert_eq!(proxy.last(1), ["Node n1 Written 2"], "it is as it was");
        proxy.hear([Event::NodeGone]);
        proxy.sync();
        assert_eq!(proxy.last(1), ["Node n1 gone Nothing 1 nothing unsynced"]);
        Family::ALL.iter().for_each(|family| proxy.engine.distrust(*family));
        proxy.sync();
        assert_eq!(proxy.last(1), ["Node n1 gone Nothing 1 nothing unsynced"], "nobody has changed anything");
        for family in Family::ALL {
            proxy.engine.kernel().delete_table(family);
            proxy.engine.distrust(family);
        }
        proxy.hear(proxy.service("other", 2));
        proxy.sync();
        let all = ["Service shop/other Written 3", "table ip nftproxyd Written 3", "table ip6 nftproxyd Written 3"];
        assert_eq!(proxy.last(3), all);
    }

    #[test]
    fn what_the_kernel_does_not_take_has_failed() {
        let mut proxy = Proxy::new();
        proxy.engine.kernel().on_commit(|_, _| Some(Fault::Permission));
        proxy.hear(proxy.service("web", 1));
        proxy.sync();
        assert_eq!(proxy.last(9), ["Service shop/web Failed 1 nothing"]);
        assert!(proxy.history.last(1)[0].reason.is_some());
    }

    #[test]
    fn the_last_are_kept_however_many_there_are() {
        let mut proxy = Proxy::new();
        for round in 0..2 {
            let events: Vec<Event> = (0..400).flat_map(|n| proxy.slice(&format!("s-{n:03}"), "x", 1 + round)).collect();
            proxy.hear(events);
            proxy.sync();
        }
        let all = proxy.history.last(usize::MAX);
        assert_eq!((all.len(), all[0].together), (KEPT, 400));
        assert_eq!((&*all[0].name, &*all[KEPT - 1].name), ("shop/s-100-x", "shop/s-399-x"));
        assert_eq!(proxy.last(2).len(), 2);
    }
}
