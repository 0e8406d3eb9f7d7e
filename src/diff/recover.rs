//! Makes an [`Installed`] of what a table holds: the state that an earlier run left behind.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use arcstr::ArcStr;
use smallvec::SmallVec;

use super::installed::{Installed, Unit};
use crate::model::ObjectName;
use crate::ruleset::elements;
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::read::Contents;
use crate::ruleset::types::Element;

/// What a table was found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Its installed state.
    pub installed: Installed,
    /// Elements that cannot be part of anything of ours: to be deleted.
    pub unknown: Vec<(SetName, Element)>,
    /// What lacks of the verdicts for kinds: to be added, after those are deleted.
    pub missing: Vec<(SetName, Element)>,
    /// Chains that are not there, although a frontend leads to them or a chain hands over to them. They count as installed:
    /// to be made, in this order.
    pub lost: BTreeSet<ChainName>,
}

/// The installed state of a table with these contents and these chains. `common` are the chains made on demand that belong
/// to its frame: they count as there.
///
/// A frontend counts as installed if its elements are exactly those that the proxy would write for it; otherwise its
/// elements are kept as damaged and will be replaced. `known` gives the text that others hold already of the name of a
/// Service, if there is one: tens of thousands of names more would be kept for ever.
pub fn recover(
    contents: Contents,
    chains: impl IntoIterator<Item = ChainName>,
    common: BTreeSet<ChainName>,
    known: impl Fn(&ObjectName) -> Option<ObjectName>,
) -> Recovered {
    let mut installed = Installed::with_capacity(contents.frontends.len());
    // Sorted, so that the one with the counter is there before those that hand over to it.
    let chains: BTreeSet<ChainName> = chains.into_iter().filter(|chain| !ChainName::FIXED.contains(chain)).collect();
    let mut lost: BTreeSet<ChainName> = chains.iter().filter_map(|chain| chain.counter()).collect();
    lost.retain(|counter| !chains.contains(counter));
    lost.iter().chain(&chains).for_each(|chain| installed.chain_added(*chain));
    installed.shared = contents.shared.into_iter().map(|shared| (shared, 0)).collect();
    installed.nodeport_ips = contents.nodeport_ips;
    installed.unclaimed = true;
    installed.set_common(common);
    // The names of ports are few, and repeated by many Services.
    let mut port_names: HashSet<ArcStr> = HashSet::new();
    let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
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
                for (_, kind) in elements::kinds(&key, &frontend) {
                    needs(&mut installed, &mut lost, kind);
                    *kinds.entry(kind).or_default() += 1;
                }
                installed.place(key, Some(frontend));
            }
            Err(damaged) => {
                let of_elements = damaged.elements.iter().filter_map(|(_, element)| Kind::of_data(&element.data));
                for kind in of_elements {
                    needs(&mut installed, &mut lost, kind);
                    *kinds.entry(kind).or_default() += 1;
                }
                installed.damaged.insert(key, damaged.elements);
            }
        }
    }
    // When all chains are known.
    for (kind, uses) in kinds {
        (0..uses).for_each(|_| installed.count_use(kind, true));
    }
    let dispatch: BTreeSet<(SetName, Element)> = installed.dispatched().collect();
    let mut unknown = contents.unknown;
    unknown.extend(contents.dispatch.difference(&dispatch).cloned());
    let missing = dispatch.difference(&contents.dispatch).cloned().collect();
    Recovered { installed, unknown, missing, lost }
}

/// An element with this kind is there. Its chain has to be there, too: the element may stay as it is, so that nobody else would
/// notice, or go, and then it must have been counted among those that use the chain.
fn needs(installed: &mut Installed, lost: &mut BTreeSet<ChainName>, kind: Kind) {
    let needed = kind.with_counter().filter_map(Kind::on_demand);
    for chain in needed.filter(|chain| !installed.has_chain(*chain)).collect::<SmallVec<[_; 2]>>() {
        lost.insert(chain);
        installed.chain_added(chain);
    }
}
