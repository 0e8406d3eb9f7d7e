//! From events to synced tables, without I/O of its own or tasks. The time comes in as an argument; the clock is only
//! asked how long something took.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use arcstr::ArcStr;
use ipnet::IpNet;
use tracing::warn;

use super::affinity::Purpose;
use super::balancing::Balancing;
use super::cluster::Cluster;
use super::counter::{Counts, Tracked};
use super::facts::{Facts, Used, frame_facts, node_ips, service_cidrs, service_facts};
use super::obstacle::{Obstacle, obstacles};
use super::pass::Pass;
use super::question::{Knowledge, Question};
use super::reader::News;
use super::report::Report;
use super::sample::Sample;
use super::standing::Standing;
use super::table::Table;
use super::udp::Unchecked;
use crate::addresses::{Accepted, NodePortAddresses};
use crate::diff::Installed;
use crate::model::claims::Claims;
use crate::model::store::Store;
use crate::model::{Event, Family, ObjectName, PerFamily};
use crate::nftables::Kernel;
use crate::ruleset::Ruleset;
use crate::ruleset::base::FrameFacts;
use crate::ruleset::names::{SetName, TableName};
use crate::ruleset::service::ServiceFacts;

/// A range of cluster IPs that holds addresses of the node, which are no cluster IPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The name of the ServiceCIDR.
    pub object: ArcStr,
    /// The range, as the object has it.
    pub range: IpNet,
    /// The addresses of the node in it; not empty.
    pub addresses: BTreeSet<IpAddr>,
}

/// At most this many addresses of an overlap are named.
const NAMED: usize = 3;

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overlap { object, range, addresses } = self;
        let named: Vec<String> = addresses.iter().take(NAMED).map(ToString::to_string).collect();
        write!(f, "ServiceCIDR {object}: spec.cidrs: {range} holds addresses of this node: {}", named.join(", "))?;
        match addresses.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Objects in, transactions out.
pub struct Engine<K> {
    kernel: K,
    facts: Facts,
    /// Whether another proxy serves this node too.
    beside: bool,
    store: Store,
    claims: Claims,
    addresses: BTreeSet<IpAddr>,
    service_facts: PerFamily<ServiceFacts>,
    tables: PerFamily<Table>,
    /// Whether the node's addresses or the ServiceCIDRs have changed since [`Engine::overlaps`] told.
    overlaps_due: PerFamily<bool>,
    /// Where the API server was found past the tables.
    servers: BTreeSet<SocketAddr>,
    /// Whether anything has changed since [`Engine::obstacles`] told that it depends on.
    obstacles_due: bool,
    udp: PerFamily<Unchecked>,
    balancing: Balancing,
    /// See [`Engine::node_port_address`].
    node_port_address: PerFamily<Option<IpAddr>>,
}

impl<K: Kernel> Engine<K> {
    /// An engine that knows nothing of the cluster yet, and has not touched the kernel.
    pub fn new(kernel: K, facts: Facts) -> Engine<K> {
        let beside = facts.table != TableName::NODE;
        let store = Store::default();
        let claims = Claims::default();
        let addresses = BTreeSet::new();
        let tables = PerFamily::from_fn(|family| {
            let (frame, nodeport_ips) =
                frame_facts(family, (&facts, beside), &store, &claims, &addresses, Used::default());
            Table::new(frame, nodeport_ips, facts.longest_retry)
        });
        let service_facts = service_facts(&facts, &store);
        let overlaps_due = PerFamily::default();
        let udp = PerFamily::from_fn(|_| Unchecked::All);
        let (servers, obstacles_due) = (BTreeSet::new(), false);
        Engine {
            kernel,
            facts,
            beside,
            store,
            claims,
            addresses,
            service_facts,
            tables,
            overlaps_due,
            servers,
            obstacles_due,
            udp,
            balancing: Balancing::default(),
            node_port_address: PerFamily::default(),
        }
    }

    /// Takes in what a source says. Costs what the event costs, not what there is.
    pub fn apply(&mut self, event: Event) {
        let changes = self.store.apply(event);
        changes.services.iter().for_each(|name| self.touch(name));
        changes.udp_serving.into_iter().for_each(|(name, family)| self.udp[family].add(name));
        for (name, before) in &changes.redefined {
            let updated = self.claims.update(name, before.as_ref(), self.store.service(name));
            updated.others.iter().for_each(|other| self.touch(other));
            updated.clashes.iter().for_each(|clash| warn!("{clash}"));
            for name in updated.others.iter().chain([name]) {
                self.balancing.redefined(name, self.store.service(name), self.facts.scheduler);
            }
            if let Some(service) = self.store.service(name) {
                self.use_also(Used::by(service, &self.facts));
            }
        }
        self.obstacles_due |= !changes.redefined.is_empty() || changes.service_cidrs || changes.node;
        let facts_changed = changes.node && self.update_service_facts();
        if changes.all_services || facts_changed {
            self.touch_all();
        }
        if changes.service_cidrs {
            self.update_service_cidrs();
        }
        let stray = |family| self.tables[family].facts().stray_cluster_ips != self.claims.stray(family);
        if changes.node || changes.service_cidrs || Family::ALL.into_iter().any(stray) {
            self.update_facts();
        }
    }

    /// Ranges of cluster IPs have changed, or whether they are of any interest.
    fn update_service_cidrs(&mut self) {
        let ranges = PerFamily::from_fn(|family| service_cidrs(self.beside, &self.store, family));
        self.claims.set_service_cidrs(ranges, self.store.services());
        self.overlaps_due = PerFamily::from_fn(|_| true);
    }

    /// Before the first sync: another proxy serves this node too, until [`Engine::serve_alone`] says otherwise. It may know
    /// cluster IPs that are not known here: none is dropped.
    pub fn serve_beside(&mut self) {
        self.beside = true;
    }

    /// Nobody else serves this node any more. In proportion to the Services, once.
    pub fn serve_alone(&mut self) {
        // A proxy with a name always serves beside another.
        if mem::replace(&mut self.beside, self.facts.table != TableName::NODE) {
            self.update_service_cidrs();
            self.update_facts();
        }
    }

    /// The node's own addresses have changed.
    pub fn set_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.addresses = addresses;
        self.overlaps_due = PerFamily::from_fn(|_| true);
        self.obstacles_due = true;
        self.update_facts();
    }

    /// Other addresses of the node accept node ports from now on.
    pub fn set_node_ports(&mut self, node_ports: NodePortAddresses) {
        if self.facts.node_ports != node_ports {
            self.facts.node_ports = node_ports;
            self.obstacles_due = true;
            self.update_facts();
        }
    }

    /// The API server, or the proxy before it, was reached past the tables: it has these addresses.
    pub fn set_servers(&mut self, servers: BTreeSet<SocketAddr>) {
        self.servers = servers;
        self.obstacles_due = true;
    }

    /// What has the address of the API server, if that may have changed since it was last told. Costs the same whatever
    /// the number of Services.
    pub fn obstacles(&mut self) -> Option<Vec<Obstacle>> {
        if !self.obstacles_due || !self.is_complete() {
            return None;
        }
        self.obstacles_due = false;
        let ranges = self.store.service_cidr_objects();
        let nodeport_ips = || self.node_port_addresses();
        Some(obstacles(&self.servers, &self.claims, ranges, &self.addresses, nodeport_ips))
    }

    /// The ranges of cluster IPs that hold addresses of the node, if that may have changed since it was last told, and when
    /// this family is in sync: a node can have a cluster IP on an interface (of its DNS cache, or left by kube-proxy's
    /// mode ipvs), and which are cluster IPs is known then. Goes through the node's addresses when they or the ranges have
    /// changed.
    pub fn overlaps(&mut self, family: Family) -> Option<Vec<Overlap>> {
        if !self.overlaps_due[family] || self.beside || !self.is_complete() || self.is_family_behind(family) {
            return None;
        }
        self.overlaps_due[family] = false;
        let installed = self.tables[family].installed();
        let own = |range: &IpNet| -> BTreeSet<IpAddr> {
            let inside = self.addresses.iter().filter(|address| range.contains(*address));
            inside.filter(|address| !installed.has_cluster_ip(**address)).copied().collect()
        };
        let ranges = self.store.service_cidr_objects().flat_map(|object| {
            let ranges = object.cidrs.iter().filter(|range| Family::of(range.addr()) == family);
            ranges.map(|range| Overlap { object: object.name.clone(), range: *range, addresses: own(range) })
        });
        Some(ranges.filter(|overlap| !overlap.addresses.is_empty()).collect())
    }

    /// Before the first sync: whether nobody else shall be able to change the tables. It takes Linux 6.9.
    pub fn own_tables(&mut self, own: bool) {
        Family::ALL.into_iter().for_each(|family| self.tables[family].own(own));
    }

    /// Whether nobody else can change this family's table.
    pub fn owns(&self, family: Family) -> bool {
        self.tables[family].is_owned()
    }

    /// Leaves tables behind that everybody may change, if they are owned. What this process knows of them is of no use
    /// afterwards.
    pub fn disown_tables(&mut self, now: Instant) -> Report {
        let mut report = Report::default();
        let cluster = Cluster {
            store: &self.store,
            claims: &self.claims,
            facts: &self.service_facts,
            balancing: &self.balancing,
        };
        for family in Family::ALL {
            let mut pass = Pass::new(&mut self.kernel, &cluster, now, &mut report);
            if let Err(error) = self.tables[family].disown(&mut pass) {
                report.failures += 1;
                report.fatal.get_or_insert(error);
            }
        }
        report
    }

    /// Somebody else has touched a table, or may have: read it back at the next sync. Nobody can touch one that is owned.
    pub fn distrust(&mut self, family: Family) {
        if !self.owns(family) {
            self.tables[family].distrust();
        }
    }

    /// Distrusts the tables unless the kernel can tell that nobody has touched any since they were read.
    pub fn check_undisturbed(&mut self) {
        for family in Family::ALL {
            let undisturbed = self.kernel.undisturbed(family).unwrap_or(false) && !self.tables[family].is_doubted();
            if !self.owns(family) && !undisturbed {
                self.distrust(family);
            }
        }
    }

    /// What is known of the cluster.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Answers somebody who wants to know something of the cluster.
    pub fn answer(&self, question: Question) {
        question.answer(Knowledge { store: &self.store, claims: &self.claims });
    }

    /// What is installed in a family's table.
    pub fn installed(&self, family: Family) -> &Installed {
        self.tables[family].installed()
    }

    /// Everything that a family's table should hold by now.
    pub fn ruleset(&self, family: Family) -> Ruleset {
        self.tables[family].ruleset()
    }

    /// How many elements are in each set of a family's table, without those that the kernel writes.
    pub fn elements(&self, family: Family) -> &BTreeMap<SetName, usize> {
        self.tables[family].elements()
    }

    /// The number of Services of which the kernel refuses something in a family.
    pub fn refused(&self, family: Family) -> usize {
        self.tables[family].refused()
    }

    /// The addresses of the node that accept node ports, of both families.
    pub fn node_port_addresses(&self) -> BTreeSet<IpAddr> {
        let accepted = self.facts.node_ports.accepted(&node_ips(&self.facts, &self.store), &self.addresses);
        Family::ALL.into_iter().flat_map(|family| accepted[family].addresses(family, &self.addresses)).collect()
    }

    /// The address of the node by which the node itself reaches its node ports: its own IP if that accepts them, else the
    /// first that does. None of those that are good on one link only.
    pub fn node_port_address(&self, family: Family) -> Option<IpAddr> {
        self.node_port_address[family]
    }

    /// The kernel.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// What the frame that the kernel holds of a family depends on; `None` while that is not known.
    pub fn frame(&self, family: Family) -> Option<&FrameFacts> {
        self.tables[family].frame()
    }

    /// Whether every kind of object has been listed: before that, nothing is written.
    pub fn is_complete(&self) -> bool {
        self.store.complete()
    }

    /// Whether a sync at `now` would do anything.
    pub fn is_due(&self, now: Instant) -> bool {
        self.is_complete() && Family::ALL.iter().any(|family| self.tables[*family].is_due(now))
    }

    /// Whether a table lacks something that it should hold, as far as is known.
    pub fn is_behind(&self) -> bool {
        Family::ALL.into_iter().any(|family| self.is_family_behind(family))
    }

    /// Whether this family's table lacks something that it should hold, as far as is known.
    pub fn is_family_behind(&self, family: Family) -> bool {
        self.is_complete() && self.tables[family].is_behind()
    }

    /// How a family's table stands to what is wanted of it.
    pub fn standing(&self, family: Family) -> Standing<'_> {
        if self.is_complete() { self.tables[family].standing() } else { Standing::Behind }
    }

    /// Whether the tables of all families hold all that the kernel takes: the end of a start.
    pub fn is_in_line(&self) -> bool {
        Family::ALL.into_iter().all(|family| self.standing(family).is_in_line())
    }

    /// A Service with endpoints, as the table of a family must hold it; `None` where the table is not in line, or there is
    /// none. It is that of `before` for as long as that has endpoints; else the frontends are gone through up to the first that has.
    pub fn sample(&self, family: Family, before: Option<&Sample>) -> Option<Sample> {
        if self.standing(family).is_in_line() { self.tables[family].sample(before) } else { None }
    }

    /// Where the health checks of Services listen.
    pub fn health_check_addresses(&self) -> PerFamily<Accepted> {
        self.facts.node_ports.listening(&node_ips(&self.facts, &self.store), &self.addresses)
    }

    /// When to sync again although nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        Family::ALL.iter().filter_map(|family| self.tables[*family].wake_at()).min()
    }

    /// Brings both tables in line, as far as it is time: one that failed is left alone until its next attempt is due. A
    /// family that fails does not keep back the other.
    pub fn sync(&mut self, now: Instant) -> Report {
        let mut report = Report::default();
        if !self.is_complete() {
            return report;
        }
        let cluster = Cluster {
            store: &self.store,
            claims: &self.claims,
            facts: &self.service_facts,
            balancing: &self.balancing,
        };
        for family in Family::ALL {
            if self.tables[family].is_due(now) {
                let mut pass = Pass::new(&mut self.kernel, &cluster, now, &mut report);
                let started = Instant::now();
                self.tables[family].sync(&mut pass);
                report.family(family).elapsed = started.elapsed();
                let table = &self.tables[family];
                self.udp[family].synced(family, !table.is_behind(), table.installed(), &mut report);
            }
        }
        report
    }

    /// When to look at the clients that the kernel remembers.
    pub fn look_at(&self) -> Option<Instant> {
        Family::ALL.iter().filter_map(|family| self.tables[*family].look_at()).min()
    }

    /// The look at a family's clients that begins now, if there is one to begin. What it finds is to be told by
    /// [`Engine::hear`].
    pub fn look(&mut self, now: Instant) -> Option<(Family, Purpose)> {
        Family::ALL.into_iter().find_map(|family| Some((family, self.tables[family].begins_look(now)?)))
    }

    /// Takes in what a look has found. Costs what that is. At its end there is something to report.
    pub fn hear(&mut self, family: Family, news: News, now: Instant) -> Option<Report> {
        match news {
            News::Slice(slice) => {
                self.tables[family].looks_at(slice);
                None
            }
            News::End(end) => {
                let mut report = Report::default();
                self.tables[family].has_looked(end, &mut report, now);
                Some(report)
            }
        }
    }

    /// Whether there are clients to forget.
    pub fn has_to_forget(&self) -> bool {
        Family::ALL.into_iter().any(|family| self.tables[family].has_to_forget())
    }

    /// Forgets some clients of endpoints that are gone: one small transaction.
    pub fn forget(&mut self, now: Instant) -> Report {
        let mut report = Report::default();
        let cluster = Cluster {
            store: &self.store,
            claims: &self.claims,
            facts: &self.service_facts,
            balancing: &self.balancing,
        };
        if let Some(family) = Family::ALL.into_iter().find(|family| self.tables[*family].has_to_forget()) {
            self.tables[family].forget(&mut Pass::new(&mut self.kernel, &cluster, now, &mut report));
        }
        report
    }

    /// When to count connections, if any Service goes by them.
    pub fn count_at(&self) -> Option<Instant> {
        self.balancing.wake_at().filter(|_| self.is_complete())
    }

    /// The frontends whose connections are to be counted now, if it is time to. What comes of it is to be told by
    /// [`Engine::hear_counts`].
    pub fn begin_count(&mut self, now: Instant) -> Option<Arc<Tracked>> {
        if !self.is_complete() {
            return None;
        }
        if self.balancing.is_overdue(now) {
            let changed = self.balancing.fail("there is no answer for a minute");
            changed.iter().for_each(|name| self.touch(name));
        }
        self.balancing.begin(&self.store, &self.claims, now)
    }

    /// Takes in what was counted, or why nothing was. Services get other slots where that is due to it.
    pub fn hear_counts(&mut self, counts: Result<Counts, String>, now: Instant) {
        let changed = self.balancing.hear(counts, &self.store, now);
        changed.iter().for_each(|name| self.touch(name));
    }

    /// How many clients the kernel remembers in a family, when last counted.
    pub fn clients(&self, family: Family) -> usize {
        self.tables[family].remembered()
    }

    fn touch(&mut self, name: &ObjectName) {
        Family::ALL.iter().for_each(|family| self.tables[*family].touch(name));
    }

    /// Returns whether what every Service depends on has changed: whether pods can be told apart, the node's own address.
    fn update_service_facts(&mut self) -> bool {
        let now = service_facts(&self.facts, &self.store);
        mem::replace(&mut self.service_facts, now) != now
    }

    /// Marks all Services to be looked at. In proportion to them: only for a change of a fact that all depend on, which is
    /// the node's zone or what comes from its address.
    fn touch_all(&mut self) {
        let names: Vec<ObjectName> = self.store.services().map(|service| service.name.clone()).collect();
        names.iter().for_each(|name| self.touch(name));
    }

    /// Rules that some Service needs are there from then on.
    fn use_also(&mut self, more: Used) {
        for family in Family::ALL {
            let facts = self.tables[family].facts();
            let now = Used::of(facts);
            let all = now.with(more);
            if all != now {
                let Used { affinity, keeps_ports, extras } = all;
                let facts = FrameFacts { affinity, keeps_ports, extras, ..facts.clone() };
                self.tables[family].set_facts(facts);
            }
        }
    }

    fn update_facts(&mut self) {
        let service_facts = service_facts(&self.facts, &self.store);
        if service_facts != self.service_facts {
            self.service_facts = service_facts;
            self.touch_all();
        }
        for family in Family::ALL {
            let used = Used::of(self.tables[family].facts());
            let (facts, nodeport_ips) =
                frame_facts(family, (&self.facts, self.beside), &self.store, &self.claims, &self.addresses, used);
            self.tables[family].set_facts(facts);
            self.tables[family].set_nodeport_ips(nodeport_ips);
        }
        let (node_ips, accepted) = (node_ips(&self.facts, &self.store), self.node_port_addresses());
        self.node_port_address = PerFamily::from_fn(|family| {
            let is_usable = |address: &&IpAddr| {
                Family::of(**address) == family && !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
            };
            let own = node_ips[family].filter(|own| accepted.contains(own));
            own.or_else(|| accepted.iter().find(is_usable).copied())
        });
    }
}
