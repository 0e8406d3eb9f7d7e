//! The frame of a family's table: the sets, still empty, and the chains with their rules. What is in the cluster
//! changes it only by way of [`FrameFacts`]; a Service is never a chain, a rule or a set.
//!
//! The way of a connection's first packet (`nat` chains see no other):
//!
//! ```text
//!  nat-prerouting: as services, without going there
//!  nat-output -> services: kind by @service-ips, else [ping?], unserved?, else kind by @service-nodeports
//!      kind --dispatch-->      [[nodeport-]source-ranges[-local] | external-local | nodeport-local]
//!                                    only for frontends that need them: another kind
//!      kind --dispatch-last--> [cluster-|masq-][sticky-]pick-N    mark, remembered endpoint, random slot: dnat
//!                            | ...sh-N, mh-N, rr-N-K              the same with a slot by hash, or the next one
//!                            | reject-it | drop
//!  nat-postrouting -> masquerade-marked | [remember], hairpin?    masquerade; remember the endpoint
//!  nat-input -> [remember]                                        endpoints on the node itself
//!      kind by @affinity-timeouts --dispatch-affinity--> remember-S
//! ```
//!
//! * What is installed for a frontend is a number, its kind, and one of three small maps says what becomes of a kind: see
//!   [`super::kinds`], which also says why. The number is in the packet's priority from one look-up to the next: both are
//!   in one rule, so that what is in no map is looked up in none by the priority that it came with. What picks an endpoint
//!   or remembers it clears the field, so that no queueing discipline, and nobody's rule behind ours, sees the number.
//! * Chains that pick among common numbers of endpoints are always there: a new rule that looks into `endpoints` makes the
//!   kernel walk the whole map.
//! * Base chains are of type `nat` only: an established connection meets none of our rules.
//! * The proxy's own connections to the API server pass `nat-output` by: see [`OWN_PRIORITY`].
//! * A `nat` chain runs only while connection tracking is on in the namespace, which `ct`, `dnat` or `masquerade` in
//!   any rule switches on. The frame always holds some, so that rejects and drops work before the first endpoint exists.
//! * Source translation is at priority 99, before the usual 100 of other programs: the first chain that translates ends
//!   the evaluation, and a masquerade by another program must not keep ours from clearing its mark.
//! * A packet that belongs to no Service should pay little: `fib` and set look-ups come last, only where they matter.
//! * Each chain entered and each rule costs every new connection some 20 to 110 instructions: chains that pick do all
//!   that they have to without handing over, what arrives meets the rules of `services` at once, and nothing asks for affinity until some frontend has it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arcstr::ArcStr;
use ipnet::IpNet;

use super::elements;
use super::extras::Extras;
use super::kinds::{Kind, MOST_SECONDS};
use super::names::{By, ChainName, Masquerade, Pick, SetName, TableName};
use super::phrases::{ADDRESS_KEY, ALLOWED_SOURCE_KEY, NODEPORT_KEY, Ranges, by_kind, goto, jump, rule};
use super::types::{Chain, DataDef, Element, Hashed, Hook, HookPoint, Rule, Selector, SetDef, Statement, Verdict};
use crate::model::{Family, Protocol};

/// How many clients of all frontends together are remembered; when the map is full a connection works but is not
/// remembered. The map is a hash that grows with its contents: the bound costs nothing until it is used.
pub const AFFINITY_SIZE: u32 = 262_144;

/// From so many percent of that on the map is about to be full, which is said.
pub const AFFINITY_HIGH: u32 = 90;

/// How many kinds ([`super::kinds`]) a table has room for: those that are always there, and one for each number of endpoints
/// that frontends of some sort have. A map of a fixed size is found in faster.
pub const DISPATCH_SIZE: u32 = 4_096;

/// The most endpoints on a node.
pub const LOCAL_ENDPOINTS_SIZE: u32 = 65_536;

/// The numbers of endpoints for which there are always chains, see [`common`].
pub const COMMON_SLOTS: u32 = 16;

/// Priority of source translation and of remembering: just before `srcnat` (100).
pub const SOURCE_PRIORITY: i32 = 99;

/// Priority of destination translation, `dstnat`; that of tables with another name than the node's is one less.
pub const DESTINATION_PRIORITY: i32 = -100;

/// What tells the proxy's own connections to the API server: the `SO_PRIORITY` of their sockets ("nfpx"). No Service may
/// stand in their way: the proxy could not hear that the Service is gone.
///
/// Not a mark, as CNIs route by marks. A queueing discipline takes it for what has no priority, as 0: the last four
/// bits choose the same band of `pfifo_fast` and `prio`, and nobody has classes of this number. Only those with
/// CAP_NET_ADMIN or CAP_NET_RAW can set one above 6.
pub const OWN_PRIORITY: u32 = 0x6e66_7078;

/// What tells a packet of a pod (`detectLocalMode`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Detector {
    /// Its source is in this range, of the table's family.
    Source(IpNet),
    /// It came in by this interface.
    Interface(ArcStr),
    /// It came in by an interface whose name begins so.
    InterfacePrefix(ArcStr),
}

/// Which of the node's addresses accept node ports (`nodePortAddresses`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodePortScope {
    /// Every local address except loopback.
    All,
    /// Those in the set `nodeport-ips`.
    Listed,
}

/// All that the rules of the frame depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FrameFacts {
    /// The table's name.
    pub table: TableName,
    /// The table's family.
    pub family: Family,
    /// What is a pod. `None`: nothing is, and a cluster IP masquerades nobody (unless `masquerade_all`).
    pub detector: Option<Detector>,
    /// The bit of the packet mark that asks for masquerading (`masqueradeBit`); exactly one bit is set.
    pub mark: u32,
    /// `masqueradeAll`: every connection to a cluster IP is masqueraded.
    pub masquerade_all: bool,
    /// The ranges of cluster IPs; of the family, sorted, no overlaps. An unallocated address in one is dropped, unless it
    /// is the node's own.
    pub service_cidrs: Vec<IpNet>,
    /// Which addresses accept node ports.
    pub node_ports: NodePortScope,
    /// Whether a cluster IP is outside all of `service_cidrs`: those pay a set look-up in `services`.
    pub stray_cluster_ips: bool,
    /// Whether any frontend has session affinity; without one, `remember` has no rules and nobody jumps to it.
    pub affinity: bool,
    /// Whether any frontend is in `kept-ports` or `nodeport-kept-ports`, which otherwise nobody asks.
    pub keeps_ports: bool,
    /// Whether each frontend counts its connections. A map counts for all of its elements or for none, and cannot begin to.
    pub counters: bool,
    /// Which parts there are besides those that every table has.
    pub extras: Extras,
    /// This node's own address of the family, which answers the pings of Services. Nobody answers where it is not known.
    pub node_ip: Option<IpAddr>,
}

impl FrameFacts {
    /// The same for a table that does not hold all Services yet: nobody is refused for the sake of those that it lacks.
    pub fn before_all_services(&self) -> FrameFacts {
        FrameFacts { service_cidrs: Vec::new(), ..self.clone() }
    }

    /// When connections to a cluster IP are marked for masquerading.
    pub fn cluster_ip_masquerade(&self) -> Masquerade {
        match (&self.detector, self.masquerade_all) {
            (_, true) => Masquerade::Always,
            (None, false) => Masquerade::Never,
            (Some(_), false) => Masquerade::FromOutside,
        }
    }

    /// A rule for packets that are (not) of a pod; `None` without a detector.
    fn pod_rule(&self, is_pod: bool, then: Vec<Statement>) -> Option<Rule> {
        let mut statements = match self.detector.as_ref()? {
            Detector::Source(net) => vec![Statement::SourceIn { net: *net, negated: !is_pod }],
            Detector::Interface(name) => {
                vec![Statement::InputInterface { name: name.clone(), prefix: false, negated: !is_pod }]
            }
            Detector::InterfacePrefix(name) => {
                vec![Statement::InputInterface { name: name.clone(), prefix: true, negated: !is_pod }]
            }
        };
        statements.extend(then);
        Some(rule(statements))
    }
}

/// The part of a table that is there whatever the cluster holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Every set and map, in the order of [`SetName::ALL`]; of those of [`Extras`] the ones that are needed.
    pub sets: Vec<SetDef>,
    /// The [`common`] chains and the fixed ones, those in the order of [`ChainName::FIXED`]: the target of a jump comes
    /// first.
    pub chains: Vec<Chain>,
    /// The kinds that lead to them.
    pub elements: Vec<(SetName, Element)>,
}

/// The frame for these facts.
pub fn frame(facts: &FrameFacts) -> Frame {
    let common = common(facts);
    let kinds = Kind::fixed().into_iter().chain(common.iter().filter_map(|name| Kind::of_chain(*name)));
    Frame {
        sets: sets(facts).map(|name| set_for(name, facts)).collect(),
        chains: all_chains([], facts),
        elements: kinds.flat_map(elements::dispatch_elements).collect(),
    }
}

/// The sets of a table with these facts.
pub fn sets(facts: &FrameFacts) -> impl Iterator<Item = SetName> {
    let extras = facts.extras;
    SetName::ALL.into_iter().filter(move |set| extras.has_set(*set))
}

/// The chains made on demand that are there before anybody demands them: those for few endpoints, of cluster IPs, and of
/// load-balancer and external IPs, and those of [`Extras`].
pub fn common(facts: &FrameFacts) -> BTreeSet<ChainName> {
    let of = |masquerade| {
        let by = By::Random;
        let pick = move |slots| Pick { nodeport: false, masquerade, sticky: false, local: false, by, slots };
        (1..=COMMON_SLOTS).map(move |slots| ChainName::Pick(pick(slots)))
    };
    of(facts.cluster_ip_masquerade()).chain(of(Masquerade::Always)).chain(facts.extras.chains()).collect()
}

/// A chain that is made when first used; `None` for the fixed ones, for those of [`Extras`] that there are not, and for counts
/// that no chain can have: more than [`Pick::MOST_SLOTS`] slots, no slot, no second.
pub fn on_demand(name: ChainName, facts: &FrameFacts) -> Option<Chain> {
    let rules = match name {
        ChainName::Pick(pick) if (1..=Pick::MOST_SLOTS).contains(&pick.slots) => pick_rules(pick, facts),
        ChainName::RememberFor(seconds) if (1..=MOST_SECONDS).contains(&seconds) => remember_for_rules(seconds),
        ChainName::NodeportSourceRanges if facts.extras.nodeport_ranges => Ranges::OF_NODEPORT.rules(),
        ChainName::NodeportSourceRangesLocal if facts.extras.nodeport_ranges => {
            Ranges::OF_NODEPORT.rules_before(ChainName::NodeportLocal)
        }
        _ => return None,
    };
    Some(Chain { name, hook: None, rules })
}

/// The frame's chains and those made on demand of these names, in an order in which they can be created. Names that
/// [`on_demand`] does not know are left out.
pub fn all_chains(demanded: impl IntoIterator<Item = ChainName>, facts: &FrameFacts) -> Vec<Chain> {
    let mut names = common(facts);
    for name in demanded {
        names.extend(name.counter());
        names.insert(name);
    }
    // Those refer to fixed ones.
    let extra: Vec<ChainName> = ChainName::EXTRA.into_iter().filter(|name| names.remove(name)).collect();
    let mut chains: Vec<Chain> = names.into_iter().filter_map(|name| on_demand(name, facts)).collect();
    chains.extend(ChainName::FIXED.into_iter().filter_map(|name| fixed(name, facts)));
    chains.extend(extra.into_iter().filter_map(|name| on_demand(name, facts)));
    chains
}

/// Client . address . protocol . port. A node port's address is the one of the node that the client used.
const AFFINITY_KEY: [Selector; 4] =
    [Selector::SourceAddress, Selector::DestinationAddress, Selector::L4Proto, Selector::DestinationPort];

const ENDPOINT: [Selector; 2] = [Selector::DestinationAddress, Selector::DestinationPort];

/// The definition of a set as it is with these facts.
///
/// What counts are the two maps that every first packet of a connection to a frontend finds its element in: a packet that
/// is repeated because nobody answers finds it again only if connection tracking knows nothing of it, as where it was dropped
/// or refused.
pub fn set_for(name: SetName, facts: &FrameFacts) -> SetDef {
    SetDef { counter: facts.counters && name.is_entry(), ..set(name) }
}

/// The definition of a set, as far as it is the same in every table: whether it counts is not.
pub fn set(name: SetName) -> SetDef {
    // In a `typeof` only the type counts; the modulus is any.
    const SLOT: Selector = Selector::RandomSlot { modulus: 2, offset: 0 };
    let kinds = |key: &[Selector]| (key.to_vec(), DataDef::Values(vec![Selector::Priority]));
    let (key, data) = match name {
        SetName::ServiceIps
        | SetName::AfterSourceRanges
        | SetName::ClusterPolicy
        | SetName::LocalPolicy
        | SetName::AffinityTimeouts => kinds(&ADDRESS_KEY),
        SetName::ServiceNodeports
        | SetName::NodeportAfterSourceRanges
        | SetName::NodeportClusterPolicy
        | SetName::NodeportLocalPolicy
        | SetName::NodeportAffinityTimeouts => kinds(&NODEPORT_KEY),
        SetName::Endpoints => ([&ADDRESS_KEY[..], &[SLOT]].concat(), DataDef::Values(ENDPOINT.to_vec())),
        SetName::NodeportEndpoints => ([&NODEPORT_KEY[..], &[SLOT]].concat(), DataDef::Values(ENDPOINT.to_vec())),
        SetName::KeptPorts => (ADDRESS_KEY.to_vec(), DataDef::None),
        SetName::NodeportKeptPorts => (NODEPORT_KEY.to_vec(), DataDef::None),
        SetName::AllowedSources => (ALLOWED_SOURCE_KEY.to_vec(), DataDef::None),
        SetName::NodeportAllowedSources => (ALLOWED_SOURCE_KEY[1..].to_vec(), DataDef::None),
        SetName::Affinity => (AFFINITY_KEY.to_vec(), DataDef::Values(ENDPOINT.to_vec())),
        SetName::NodeportIps | SetName::ClusterIps | SetName::PingIps => {
            (vec![Selector::DestinationAddress], DataDef::None)
        }
        SetName::LocalEndpoints => (vec![Selector::SourceAddress], DataDef::None),
        SetName::Hairpin => (vec![Selector::SourceAddress, Selector::DestinationAddress], DataDef::None),
        SetName::Dispatch | SetName::DispatchLast | SetName::DispatchAffinity => {
            (vec![Selector::Priority], DataDef::Verdict)
        }
    };
    // A map that grows with the cluster has no size: it would be a limit, and memory for what may never come.
    let size = match name {
        SetName::Affinity => Some(AFFINITY_SIZE),
        SetName::LocalEndpoints => Some(LOCAL_ENDPOINTS_SIZE),
        SetName::Dispatch | SetName::DispatchLast | SetName::DispatchAffinity => Some(DISPATCH_SIZE),
        _ => None,
    };
    let (interval, dynamic) = (name.is_interval(), name == SetName::Affinity);
    SetDef { name, key, data, interval, dynamic, size, counter: false }
}

/// Whoever serves some Services beside another comes first: the other drops cluster IPs that it does not know.
fn destination_priority(facts: &FrameFacts) -> i32 {
    DESTINATION_PRIORITY - i32::from(facts.table != TableName::NODE)
}

fn fixed(name: ChainName, facts: &FrameFacts) -> Option<Chain> {
    let base = |hook, priority| Some(Hook { hook, priority });
    let mut hook = None;
    let rules = match name {
        // A reset is immediate; the kernel limits how many ICMP errors it sends.
        ChainName::RejectIt => {
            vec![rule([Statement::L4ProtoIs(Protocol::Tcp), Statement::RejectTcp]), rule([Statement::Reject])]
        }
        ChainName::Remember => remember_rules(facts),
        ChainName::SourceRanges => Ranges::OF_ADDRESS.rules(),
        ChainName::SourceRangesLocal => Ranges::OF_ADDRESS.rules_before(ChainName::ExternalLocal),
        ChainName::ExternalLocalFromNode => from_node_rules(facts, &ADDRESS_KEY, SetName::ClusterPolicy),
        ChainName::ExternalLocal => external_local_rules(
            facts,
            &ADDRESS_KEY,
            SetName::ClusterPolicy,
            ChainName::ExternalLocalFromNode,
            SetName::LocalPolicy,
        ),
        ChainName::NodeportLocalFromNode => from_node_rules(facts, &NODEPORT_KEY, SetName::NodeportClusterPolicy),
        ChainName::NodeportLocal => external_local_rules(
            facts,
            &NODEPORT_KEY,
            SetName::NodeportClusterPolicy,
            ChainName::NodeportLocalFromNode,
            SetName::NodeportLocalPolicy,
        ),
        // The kernel sends its refusal through the same hooks, as an answer of the connection that it refuses: a client that
        // has a cluster IP itself (a DNS cache of the node) would wait for ever.
        ChainName::Unserved => vec![
            Rule {
                comment: Some("a port that the cluster IP does not have"),
                ..rule([is_cluster_ip(), Statement::DirectionOriginal, goto(ChainName::RejectIt)])
            },
            // An address of the node's own is handed back, be it in a range by mistake: the node stays reachable, and
            // its node ports are looked up. Nobody else pays for the question.
            Rule {
                comment: Some("a cluster IP that is not allocated"),
                ..rule([
                    Statement::DirectionOriginal,
                    Statement::DestinationIsLocal { negated: true },
                    Statement::Verdict(Verdict::Drop),
                ])
            },
        ],
        ChainName::Services => services_rules(facts),
        ChainName::MasqueradeMarked => {
            let mut rules = remembering(facts);
            let clear = Statement::ClearMark(facts.mark);
            let masquerade = Statement::Masquerade { keep_port: false };
            if facts.keeps_ports {
                rules.push(rule([clear]));
                rules.extend(keeping_ports());
                rules.push(rule([masquerade]));
            } else {
                rules.push(rule([clear, masquerade]));
            }
            rules
        }
        ChainName::NatPrerouting => {
            hook = base(HookPoint::Prerouting, destination_priority(facts));
            services_rules(facts)
        }
        ChainName::NatOutput => {
            hook = base(HookPoint::Output, destination_priority(facts));
            // One comparison in the rule that there is anyhow. It sees what the socket has: whatever else may use the
            // field for what it has found out about a packet comes after it.
            let of_others = Statement::Priority { value: OWN_PRIORITY, negated: true };
            vec![rule([of_others, jump(ChainName::Services)])]
        }
        ChainName::NatInput => {
            hook = base(HookPoint::Input, SOURCE_PRIORITY);
            remembering(facts)
        }
        ChainName::NatPostrouting => {
            hook = base(HookPoint::Postrouting, SOURCE_PRIORITY);
            let mut rules = vec![rule([Statement::MarkHas(facts.mark), jump(ChainName::MasqueradeMarked)])];
            rules.extend(remembering(facts));
            rules.push(rule([
                // Here it ends for most, by a look-up that costs little.
                Statement::InSet { key: vec![Selector::SourceAddress], set: SetName::LocalEndpoints, negated: false },
                Statement::StatusDnat,
                Statement::InSet {
                    key: vec![Selector::SourceAddress, Selector::DestinationAddress],
                    set: SetName::Hairpin,
                    negated: false,
                },
                Statement::Masquerade { keep_port: false },
            ]));
            rules
        }
        ChainName::Pick(_)
        | ChainName::RememberFor(_)
        | ChainName::NodeportSourceRanges
        | ChainName::NodeportSourceRangesLocal => return None,
    };
    Some(Chain { name, hook, rules })
}

fn services_rules(facts: &FrameFacts) -> Vec<Rule> {
    let mut rules = vec![rule(by_kind(&ADDRESS_KEY, SetName::ServiceIps, SetName::Dispatch))];
    if let Some(node_ip) = facts.node_ip.filter(|_| facts.extras.ping) {
        // Not `redirect`: the interface of a pod may have no address. Who pings is answered by an address that is translated
        // back, be it a pod, somebody outside, or the node.
        let within =
            Statement::InSet { key: vec![Selector::DestinationAddress], set: SetName::PingIps, negated: false };
        rules.push(rule([Statement::EchoRequest, within, Statement::DnatTo(node_ip)]));
    }
    for net in &facts.service_cidrs {
        rules.push(rule([Statement::DestinationIn { net: *net, negated: false }, jump(ChainName::Unserved)]));
    }
    if facts.stray_cluster_ips {
        rules.push(rule([is_cluster_ip(), goto(ChainName::RejectIt)]));
    }
    let mut nodeport = match facts.node_ports {
        NodePortScope::All => {
            let outside = Statement::DestinationIn { net: loopback(facts.family), negated: true };
            vec![outside, Statement::DestinationIsLocal { negated: false }]
        }
        NodePortScope::Listed => {
            vec![Statement::InSet {
                key: vec![Selector::DestinationAddress],
                set: SetName::NodeportIps,
                negated: false,
            }]
        }
    };
    nodeport.extend(by_kind(&NODEPORT_KEY, SetName::ServiceNodeports, SetName::Dispatch));
    rules.push(rule(nodeport));
    rules
}

/// `externalTrafficPolicy: Local`. Pods and the node itself go the way that they would take by the balancer outside and
/// back: to any endpoint of the cluster. Everybody else reaches the endpoints of this node.
fn external_local_rules(
    facts: &FrameFacts,
    key: &[Selector],
    cluster: SetName,
    from_node: ChainName,
    local: SetName,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    rules.extend(facts.pod_rule(true, by_kind(key, cluster, SetName::DispatchLast).into()));
    rules.push(rule([Statement::SourceIsLocal, goto(from_node)]));
    rules.push(rule(by_kind(key, local, SetName::DispatchLast)));
    rules
}

fn from_node_rules(facts: &FrameFacts, key: &[Selector], cluster: SetName) -> Vec<Rule> {
    vec![rule([Statement::SetMark(facts.mark)]), rule(by_kind(key, cluster, SetName::DispatchLast))]
}

fn pick_rules(pick: Pick, facts: &FrameFacts) -> Vec<Rule> {
    let mark = Statement::SetMark(facts.mark);
    let marking = match (pick.masquerade, facts.cluster_ip_masquerade()) {
        (Masquerade::Always, _) | (Masquerade::FromOutside, Masquerade::Always) => Some(rule([mark])),
        (Masquerade::FromOutside, Masquerade::FromOutside) => facts.pod_rule(false, vec![mark]),
        (Masquerade::Never, _) | (_, Masquerade::Never) => None,
    };
    // Does not match where the client is not known.
    let remembered = Statement::DnatMap { key: AFFINITY_KEY.to_vec(), map: SetName::Affinity };
    let (frontend, map) = if pick.nodeport {
        (&NODEPORT_KEY[..], SetName::NodeportEndpoints)
    } else {
        (&ADDRESS_KEY[..], SetName::Endpoints)
    };
    let (modulus, offset) = (pick.slots, if pick.local { Pick::LOCAL_OFFSET } else { 0 });
    let hashed = |of| Selector::HashedSlot { of, modulus, offset };
    let slot = match pick.by {
        By::Random => Selector::RandomSlot { modulus, offset },
        By::Source | By::Maglev => hashed(Hashed::Source),
        By::SourceAndPort | By::MaglevAndPort => hashed(Hashed::SourceAndPort),
        By::Destination => hashed(Hashed::Destination),
        By::Turn(_) => Selector::NextSlot { modulus, offset },
    };
    let chosen = Statement::DnatMap { key: [frontend, &[slot]].concat(), map };
    // The kind has done its work. In a rule of its own this would cost twice as much.
    let clear = Statement::SetPriority(0);
    let picking = match (pick.counter(), pick.sticky) {
        (None, false) => vec![rule([clear, chosen])],
        (None, true) => vec![rule([clear, remembered]), rule([chosen])],
        (Some(counter), false) => vec![rule([goto(ChainName::Pick(counter))])],
        (Some(counter), true) => vec![rule([clear, remembered]), rule([goto(ChainName::Pick(counter))])],
    };
    marking.into_iter().chain(picking).collect()
}

/// One rule for each protocol: nft cannot print `proto-dst` or `proto-src` without knowing it.
fn remember_for_rules(seconds: u32) -> Vec<Rule> {
    let update = Statement::Update {
        map: SetName::Affinity,
        key: vec![Selector::OriginalSource, Selector::OriginalDestination, Selector::L4Proto, Selector::OriginalPort],
        timeout: seconds,
        // Not the packet's destination: nft would take it for a sign of the protocol, leave `meta l4proto` out of the
        // listing, and then not be able to read the listing back.
        data: vec![Selector::ReplySource, Selector::ReplyPort],
    };
    let updates = Protocol::ALL.into_iter().map(|protocol| rule([Statement::L4ProtoIs(protocol), update.clone()]));
    [rule([Statement::SetPriority(0)])].into_iter().chain(updates).collect()
}

/// Remembers the endpoint of a connection that got one, where any frontend has affinity.
fn remembering(facts: &FrameFacts) -> Vec<Rule> {
    facts.affinity.then(|| rule([Statement::StatusDnat, jump(ChainName::Remember)])).into_iter().collect()
}

/// Masquerades clients of frontends that find endpoints by a hash.
fn keeping_ports() -> Vec<Rule> {
    let by_protocol = |key: &[Selector], set| {
        Protocol::ALL.map(|protocol| {
            let within = Statement::InSet { key: key.to_vec(), set, negated: false };
            rule([Statement::L4ProtoIs(protocol), within, Statement::Masquerade { keep_port: true }])
        })
    };
    let address = [Selector::OriginalDestination, Selector::L4Proto, Selector::OriginalPort];
    let by_address = by_protocol(&address, SetName::KeptPorts);
    by_address.into_iter().chain(by_protocol(&address[1..], SetName::NodeportKeptPorts)).collect()
}

fn remember_rules(facts: &FrameFacts) -> Vec<Rule> {
    if !facts.affinity {
        return Vec::new();
    }
    let by_protocol = |key: &[Selector], map| {
        Protocol::ALL.map(|protocol| {
            let [kind, verdict] = by_kind(key, map, SetName::DispatchAffinity);
            rule([Statement::L4ProtoIs(protocol), kind, verdict])
        })
    };
    let mut rules = Vec::new();
    rules.extend(by_protocol(
        &[Selector::OriginalDestination, Selector::L4Proto, Selector::OriginalPort],
        SetName::AffinityTimeouts,
    ));
    rules.extend(by_protocol(&[Selector::L4Proto, Selector::OriginalPort], SetName::NodeportAffinityTimeouts));
    rules
}

fn loopback(family: Family) -> IpNet {
    let (address, prefix) = match family {
        Family::V4 => (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
        Family::V6 => (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    };
    IpNet::new_assert(address, prefix)
}

fn is_cluster_ip() -> Statement {
    Statement::InSet { key: vec![Selector::DestinationAddress], set: SetName::ClusterIps, negated: false }
}
