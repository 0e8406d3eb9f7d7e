//! Whether our tables are there, and as they have to be: the kernel's are compared with what the daemon would make.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::thread::sleep;
use std::time::Duration;

use crate::metrics::daemon::{Daemon, FrameState, Pods};
use crate::model::Family;
use crate::nftables::{Kernel, KernelError, Snapshot, table_flag};
use crate::ruleset::base::{self, Detector, Frame, FrameFacts, NodePortScope};
use crate::ruleset::extras::Extras;
use crate::ruleset::names::{ChainName, SetName, TableName};
use crate::ruleset::types::{Chain, SetDef};

/// How a family's table is, but for the elements of Services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// Whether it is there.
    pub there: bool,
    /// What of it is not as it has to be, in words.
    pub damage: Vec<String>,
    /// What in it is not ours, in words.
    pub foreign: Vec<String>,
}

/// How often it is looked, if something is not as it should be: chains and rules are not read at one moment.
const LOOKS: u32 = 3;
/// The pause between two looks. A daemon that runs has mended it, or ended its change, by then.
const PAUSE: Duration = Duration::from_millis(300);
/// So many names are given at most.
const NAMED: usize = 6;

/// Looks at a family's table. A daemon says what the rules depend on; without, only what is the same on every node can be
/// compared.
///
/// # Errors
/// The kernel cannot be asked.
pub fn shape(kernel: &mut impl Kernel, family: Family, daemon: Option<&Daemon>) -> Result<Shape, KernelError> {
    let mut look = 1;
    loop {
        let shape = Seen::read(kernel, family, frame(daemon, family))?.shape();
        if look == LOOKS || shape.there && shape.damage.is_empty() && shape.foreign.is_empty() {
            return Ok(shape);
        }
        look += 1;
        sleep(PAUSE);
    }
}

/// What a daemon has said that a family's rules depend on.
pub fn frame(daemon: Option<&Daemon>, family: Family) -> Option<&FrameState> {
    daemon?.families.get(&family.to_string())?.frame.as_ref()
}

/// What the rules depend on, from what a daemon has said.
fn facts(table: TableName, family: Family, said: &FrameState) -> FrameFacts {
    FrameFacts {
        table,
        family,
        detector: said.pods.as_ref().map(|pods| match pods {
            Pods::Source(net) => Detector::Source(*net),
            Pods::Interface(name) => Detector::Interface(name.as_str().into()),
            Pods::InterfacePrefix(prefix) => Detector::InterfacePrefix(prefix.as_str().into()),
        }),
        mark: said.mark,
        masquerade_all: said.masquerade_all,
        service_cidrs: said.service_cidrs.clone(),
        node_ports: if said.node_ports_everywhere { NodePortScope::All } else { NodePortScope::Listed },
        stray_cluster_ips: said.stray_cluster_ips,
        affinity: said.affinity,
        keeps_ports: said.keeps_ports,
        counters: said.counters,
        extras: Extras { nodeport_ranges: said.nodeport_ranges, ping: said.ping },
        node_ip: said.node_ip,
    }
}

/// Two nodes that have nothing in common: what is the same on both is the same on all.
fn strangers(table: TableName, family: Family) -> [FrameFacts; 2] {
    let range = match family {
        Family::V4 => "192.0.2.0/24",
        Family::V6 => "2001:db8::/64",
    };
    let one = FrameFacts {
        table,
        family,
        detector: Some(Detector::Interface("x".into())),
        mark: 1,
        masquerade_all: false,
        service_cidrs: range.parse().into_iter().collect(),
        node_ports: NodePortScope::All,
        stray_cluster_ips: true,
        affinity: true,
        keeps_ports: true,
        counters: true,
        extras: Extras::ALL,
        node_ip: range.split('/').next().and_then(|address| address.parse().ok()),
    };
    let other = FrameFacts {
        detector: None,
        mark: 2,
        masquerade_all: true,
        service_cidrs: Vec::new(),
        node_ports: NodePortScope::Listed,
        stray_cluster_ips: false,
        affinity: false,
        keeps_ports: false,
        counters: false,
        extras: Extras::NONE,
        ..one.clone()
    };
    [one, other]
}

/// What can be expected of a table.
struct Expected {
    frame: Frame,
    /// What the rules depend on; two strangers where nobody has said it.
    facts: Vec<FrameFacts>,
    /// Other definitions that are as good: whether a map counts depends on the node as well.
    other_sets: Vec<SetDef>,
    /// Sets that are there on some nodes only.
    extra_sets: BTreeSet<SetName>,
}

impl Expected {
    fn of(table: TableName, family: Family, said: Option<&FrameState>) -> Expected {
        let facts = said.map_or_else(|| strangers(table, family).to_vec(), |said| vec![facts(table, family, said)]);
        let mut frames: Vec<Frame> = facts.iter().map(base::frame).collect();
        let other = frames.pop();
        let mut frame = frames.pop().or(other.clone()).unwrap_or_else(|| base::frame(&facts[0]));
        let (mut other_sets, mut extra_sets) = (Vec::new(), BTreeSet::new());
        if let Some(other) = other {
            // Which chains are always there depends on the node as well.
            frame.chains.retain(|chain| other.chains.iter().any(|it| it.name == chain.name));
            frame.elements.retain(|element| other.elements.contains(element));
            extra_sets = frame.sets.iter().map(|set| set.name).collect();
            extra_sets.retain(|name| other.sets.iter().all(|set| set.name != *name));
            other_sets = other.sets.into_iter().filter(|set| !frame.sets.contains(set)).collect();
        }
        Expected { frame, facts, other_sets, extra_sets }
    }

    /// A chain with the rules that it must have; `None` if nobody can tell them.
    fn on_demand(&self, name: ChainName) -> Option<Chain> {
        let chains: Vec<Option<Chain>> = self.facts.iter().map(|facts| base::on_demand(name, facts)).collect();
        if self.is_certain(name) { chains.into_iter().next().flatten() } else { None }
    }

    /// Whether the rules of a chain are known.
    fn is_certain(&self, name: ChainName) -> bool {
        let chain = |facts| base::all_chains([name], facts).into_iter().find(|chain| chain.name == name);
        let mut chains = self.facts.iter().map(chain);
        let first = chains.next().flatten();
        chains.all(|chain| chain == first)
    }

    /// Whether a chain has rules on every node.
    fn has_rules(&self, name: ChainName) -> bool {
        let chains = self.facts.iter().map(|facts| base::all_chains([name], facts));
        chains.into_iter().all(|chains| chains.iter().any(|chain| chain.name == name && !chain.rules.is_empty()))
    }
}

/// What was seen of a table.
#[derive(Debug, Default)]
struct Seen {
    snapshot: Snapshot,
    missing_sets: BTreeSet<SetName>,
    missing_chains: BTreeSet<ChainName>,
    /// Chains whose rules are not those that they must have.
    other_rules: BTreeSet<ChainName>,
    /// Chains that have no rules, and must have some.
    empty: BTreeSet<ChainName>,
    /// Maps of verdicts that lack some, and how many.
    lacking: BTreeMap<SetName, usize>,
}

impl Seen {
    fn read(kernel: &mut impl Kernel, family: Family, said: Option<&FrameState>) -> Result<Seen, KernelError> {
        let expected = Expected::of(kernel.table(), family, said);
        let Frame { sets, chains, elements } = &expected.frame;
        let mut snapshot = kernel.dump(family, sets, chains, &|name| expected.on_demand(name))?;
        if !snapshot.table {
            return Ok(Seen::default());
        }
        if expected.other_sets.iter().any(|set| snapshot.other_sets.contains(&set.name)) {
            let as_good = kernel.dump(family, &expected.other_sets, &[], &|_| None)?.sets;
            snapshot.other_sets.retain(|name| !as_good.contains(name));
            snapshot.sets.extend(as_good);
        }
        let there = |name: &ChainName| {
            snapshot.chains.contains(name)
                || snapshot.other_rules.contains(name)
                || snapshot.other_chains.contains(name)
        };
        let missing_chains = chains.iter().map(|chain| chain.name).filter(|name| !there(name)).collect();
        let missing_sets: BTreeSet<SetName> = sets
            .iter()
            .map(|set| set.name)
            .filter(|name| !snapshot.sets.contains(name) && !snapshot.other_sets.contains(name))
            .filter(|name| !expected.extra_sets.contains(name))
            .collect();
        let other_rules = snapshot.other_rules.iter().copied().filter(|name| expected.is_certain(*name)).collect();
        // Whose rules cannot be told has some, at least.
        let emptied: Vec<Chain> = chains
            .iter()
            .filter(|chain| expected.has_rules(chain.name))
            .map(|chain| Chain { rules: Vec::new(), ..chain.clone() })
            .collect();
        let without_rules = |name| expected.has_rules(name).then_some(Chain { name, hook: None, rules: Vec::new() });
        let empty = kernel.dump(family, &[], &emptied, &without_rules)?.chains;
        let mut lacking = BTreeMap::new();
        for set in sets.iter().filter(|set| snapshot.sets.contains(&set.name)) {
            let wanted: Vec<_> = elements.iter().filter(|(name, _)| *name == set.name).collect();
            if !wanted.is_empty() {
                let found = kernel.elements(family, set)?;
                let lacks = wanted.iter().filter(|(_, element)| !found.contains(element)).count();
                lacking.extend((lacks > 0).then_some((set.name, lacks)));
            }
        }
        Ok(Seen { snapshot, missing_sets, missing_chains, other_rules, empty, lacking })
    }

    /// What is in the table that is not ours.
    fn strangers(&self) -> BTreeSet<String> {
        let Snapshot { foreign_chains, foreign_sets, foreign_other, .. } = &self.snapshot;
        let chains = foreign_chains.iter().filter(|name| ChainName::parse(name).is_none());
        let chains = chains.map(|name| format!("chain {name}"));
        chains
            .chain(foreign_sets.iter().map(|name| format!("set {name}")))
            .chain(foreign_other.iter().cloned())
            .collect()
    }

    fn shape(&self) -> Shape {
        if !self.snapshot.table {
            return Shape::default();
        }
        let mut damage = Vec::new();
        if self.snapshot.table_flags & table_flag::DORMANT != 0 {
            damage.push("it is dormant: none of its chains sees a packet".to_owned());
        }
        named(&mut damage, "missing chains", &self.missing_chains);
        named(&mut damage, "chains without the rules that they must have", &self.empty);
        named(&mut damage, "chains with other rules", &self.other_rules.difference(&self.empty).copied().collect());
        named(&mut damage, "chains at another hook or priority", &self.snapshot.other_chains);
        named(&mut damage, "missing sets", &self.missing_sets);
        named(&mut damage, "sets that are defined otherwise", &self.snapshot.other_sets);
        damage.extend(self.lacking.iter().map(|(map, lacks)| format!("map {map} lacks {lacks} of its verdicts")));
        let mut foreign = Vec::new();
        named(&mut foreign, "not of nftproxyd", &self.strangers());
        Shape { there: true, damage, foreign }
    }
}

/// Names some of them, if there are any.
fn named<T: Display + Ord>(lines: &mut Vec<String>, what: &str, names: &BTreeSet<T>) {
    if names.is_empty() {
        return;
    }
    let first = names.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    lines.push(format!("{what}: {first}{more}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::{Operation, Transaction};
    use crate::nftables::in_memory::InMemoryKernel;

    #[test]
    fn whether_a_table_has_to_count_is_known_to_its_daemon_alone() {
        let said = |counters| FrameState {
            pods: None,
            mark: 1,
            masquerade_all: false,
            service_cidrs: Vec::new(),
            node_ports_everywhere: true,
            stray_cluster_ips: false,
            affinity: false,
            keeps_ports: false,
            counters,
            nodeport_ranges: false,
            ping: false,
            node_ip: None,
        };
        for counters in [false, true] {
            let Frame { sets, chains, elements } = base::frame(&facts(TableName::NODE, Family::V4, &said(counters)));
            let mut transaction = Transaction::new(Family::V4);
            let operations = &mut transaction.operations;
            operations.push(Operation::AddTable);
            operations.extend(sets.into_iter().map(Operation::AddSet));
            operations.extend(chains.iter().cloned().map(Operation::AddChain));
            operations.extend(chains.into_iter().filter(|chain| !chain.rules.is_empty()).map(Operation::AddRules));
            transaction.elements(Operation::AddElements, elements);
            let mut kernel = InMemoryKernel::new();
            kernel.commit(&transaction).expect("a table can be made");
            let mut damage = |said: Option<&FrameState>| {
                Seen::read(&mut kernel, Family::V4, said).expect("it can be read").shape().damage
            };
            assert_eq!(damage(Some(&said(counters))), [""; 0]);
            assert_eq!(damage(None), [""; 0]);
            let other = ["sets that are defined otherwise: service-ips, service-nodeports"];
            assert_eq!(damage(Some(&said(!counters))), other);
        }
    }
}
