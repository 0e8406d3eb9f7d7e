//! Which ports of Services are refused or dropped, and why: for people who look.

use std::collections::BTreeMap;

use crate::diff::Installed;
use crate::model::{Family, ObjectName, PerFamily, Protocol, Slice};
use crate::nftables::Kernel;
use crate::ruleset::frontend::Action;
use crate::sync::{Engine, Report};

/// How many ports are told by name; of the others it is told how many there are.
const MOST_NAMED: usize = 20;

/// Some ports of Services of a family that are refused or dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::app) struct Named {
    /// The first of them by name, such as `shop/web:http`, with what becomes of connections and why.
    pub(in crate::app) ports: Vec<(String, String)>,
    /// How many more there are.
    pub(in crate::app) more: usize,
}

/// All of them. What it keeps is in proportion to what is not served.
#[derive(Debug, Default)]
pub(super) struct Unserved(PerFamily<Known>);

#[derive(Debug, Default)]
struct Known {
    ports: BTreeMap<ObjectName, Vec<(String, String)>>,
    count: usize,
}

impl Unserved {
    /// Looks at the Services that were synced; says in which families there is news.
    pub(super) fn update<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report) -> PerFamily<bool> {
        let mut news = PerFamily::default();
        for name in &report.examined {
            for family in Family::ALL {
                let known = &mut self.0[family];
                let found = look(engine, engine.installed(family), name, family);
                if known.ports.get(name).map_or(&[][..], Vec::as_slice) == found {
                    continue;
                }
                news[family] = true;
                known.count += found.len();
                let before =
                    if found.is_empty() { known.ports.remove(name) } else { known.ports.insert(name.clone(), found) };
                known.count -= before.map_or(0, |before| before.len());
            }
        }
        news
    }

    /// The first of them.
    pub(super) fn named(&self, family: Family) -> Named {
        let Known { ports, count } = &self.0[family];
        let ports: Vec<_> = ports.values().flatten().take(MOST_NAMED).cloned().collect();
        Named { more: count - ports.len(), ports }
    }
}

/// The ports of a Service that are refused or dropped, each with the reason.
fn look<K: Kernel>(
    engine: &Engine<K>,
    installed: &Installed,
    name: &ObjectName,
    family: Family,
) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (key, frontend) in installed.frontends_of(name) {
        let word = match frontend.action {
            Action::Reject => "refused",
            Action::Drop => "dropped",
            Action::Forward { .. } | Action::Split { .. } => continue,
        };
        let port = frontend.comment().to_string();
        // It may have several addresses: whether there are endpoints is the same for all.
        if found.iter().any(|(other, _)| *other == port) {
            continue;
        }
        let slices = engine.store().slices(name);
        let why = why(slices, family, &frontend.port_name, key.protocol, frontend.action == Action::Drop);
        found.push((port, format!("{word}: {why}")));
    }
    found
}

fn why(slices: &[Slice], family: Family, port: &str, protocol: Protocol, elsewhere: bool) -> String {
    if elsewhere {
        return "its traffic policy is Local, and only other nodes have endpoints".to_owned();
    }
    let of_family: Vec<&Slice> = slices.iter().filter(|slice| slice.family == family).collect();
    if of_family.is_empty() {
        return format!("there is no EndpointSlice of {family}");
    }
    let has_port = |slice: &&&Slice| slice.ports.iter().any(|it| *it.name == *port && it.protocol == protocol);
    let with_port: Vec<&&Slice> = of_family.iter().filter(has_port).collect();
    let count = |slices: &mut dyn Iterator<Item = &Slice>| slices.map(|slice| slice.endpoints.len()).sum::<usize>();
    match (count(&mut of_family.iter().copied()), count(&mut with_port.iter().map(|slice| **slice))) {
        (0, _) => "there are no endpoints".to_owned(),
        (_, 0) => format!("no endpoint has the port {port:?} ({})", protocol.name()),
        (_, all) => format!("none of {all} endpoints is ready"),
    }
}
