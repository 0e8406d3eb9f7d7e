//! Makes an [`Installed`] of what a table holds: the state that an earlier run left behind.

use std::collections::HashSet;

use arcstr::ArcStr;

use super::installed::{Installed, Placed, Unit};
use crate::keyed::KeyedTable;
use crate::model::ObjectName;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::read::Contents;
use crate::ruleset::types::Element;

/// The installed state of a table with these contents and these chains. Elements that cannot be part of any frontend are
/// returned beside it.
///
/// A frontend counts as installed if its elements are exactly those that the proxy would write for it; otherwise its
/// elements are kept as damaged and will be replaced. `known` gives the text that others hold already of the name of a
/// Service, if there is one: tens of thousands of names more would be kept for ever.
pub fn recover(
    contents: Contents,
    chains: impl IntoIterator<Item = ChainName>,
    known: impl Fn(&ObjectName) -> Option<ObjectName>,
) -> (Installed, Vec<(SetName, Element)>) {
    let on_demand = |chain: &ChainName| matches!(chain, ChainName::Pick(_) | ChainName::RememberFor(_));
    let mut installed = Installed {
        chains: chains.into_iter().filter(on_demand).collect(),
        shared: contents.shared.into_iter().map(|shared| (shared, 0)).collect(),
        nodeport_ips: contents.nodeport_ips,
        frontends: KeyedTable::with_capacity(contents.frontends.len()),
        unclaimed: true,
        ..Installed::default()
    };
    // The names of ports are few, and repeated by many Services.
    let mut port_names: HashSet<ArcStr> = HashSet::new();
    for (key, elements) in contents.frontends {
        match elements.read(&key) {
            Ok(mut frontend) => {
                match port_names.get(&frontend.port_name) {
                    Some(shared) => frontend.port_name = ArcStr::clone(shared),
                    None => drop(port_names.insert(ArcStr::clone(&frontend.port_name))),
                }
                let new = || Unit::empty(known(&frontend.service).unwrap_or_else(|| frontend.service.clone()));
                let unit = installed.units.get_or_insert_with(&frontend.service, new);
                let at = unit.frontends.partition_point(|other| *other < key);
                unit.frontends.reserve_exact(1);
                unit.frontends.insert(at, key);
                // The text that the Service's other frontends share.
                frontend.service = unit.service.clone();
                installed.frontends.insert(Placed { key, frontend });
            }
            Err(damaged) => drop(installed.damaged.insert(key, damaged.elements)),
        }
    }
    (installed, contents.unknown)
}
