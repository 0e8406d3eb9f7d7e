//! Which ports of Services are refused or dropped, and why: for people who look.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use crate::diff::Installed;
use crate::model::policy::{DROPPED_BECAUSE, refused_because};
use crate::model::{Family, FrontendKey, ObjectName, PerFamily, Slice};
use crate::nftables::Kernel;
use crate::ruleset::frontend::{Action, Frontend};
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

/// The Services that have such ports. What it keeps is in proportion to what is not served.
#[derive(Debug, Default)]
pub(super) struct Unserved(PerFamily<Known>);

#[derive(Debug, Default)]
struct Known {
    /// How many ports of each.
    services: BTreeMap<ObjectName, u32>,
    ports: usize,
}

impl Unserved {
    /// Looks at the Services that were synced; says in which families there is news.
    pub(super) fn update<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report) -> PerFamily<bool> {
        let mut news = PerFamily::default();
        for name in &report.examined {
            for family in Family::ALL {
                let Known { services, ports } = &mut self.0[family];
                let found = unserved(engine.installed(family), name).count();
                let before = match found {
                    0 => services.remove(name),
                    _ => services.insert(name.clone(), u32::try_from(found).unwrap_or(u32::MAX)),
                };
                let before = before.map_or(0, |before| before as usize);
                *ports = *ports + found - before;
                // Whose ports they are is the same, perhaps, and the reason is another.
                news[family] |= found + before > 0;
            }
        }
        news
    }

    /// The first of them, with the reasons of now.
    pub(super) fn named<K: Kernel>(&self, engine: &Engine<K>, family: Family) -> Named {
        let Known { services, ports: all } = &self.0[family];
        let installed = engine.installed(family);
        let first = services.keys().flat_map(|name| unserved(installed, name)).take(MOST_NAMED);
        let told = first.map(|(key, frontend)| {
            let slices = engine.store().slices(&frontend.service);
            (frontend.comment().to_string(), why(slices, key, frontend))
        });
        let ports: Vec<(String, String)> = told.collect();
        Named { more: all.saturating_sub(ports.len()), ports }
    }
}

/// A frontend of each port of a Service that is refused or dropped. A port may have several addresses; whether there are
/// endpoints is the same for all.
fn unserved<'a>(
    installed: &'a Installed,
    service: &ObjectName,
) -> impl Iterator<Item = (&'a FrontendKey, &'a Frontend)> {
    let mut seen: SmallVec<[&str; 4]> = SmallVec::new();
    installed.frontends_of(service).filter(move |(_, frontend)| {
        let is_new = matches!(frontend.action, Action::Reject | Action::Drop) && !seen.contains(&&*frontend.port_name);
        if is_new {
            seen.push(&frontend.port_name);
        }
        is_new
    })
}

/// What becomes of connections to a frontend that leads nowhere, and why.
fn why(slices: &[Slice], key: &FrontendKey, frontend: &Frontend) -> String {
    if frontend.action == Action::Drop {
        return format!("dropped: {DROPPED_BECAUSE}");
    }
    format!("refused: {}", refused_because(slices, key.family(), &frontend.port_name, key.protocol))
}
