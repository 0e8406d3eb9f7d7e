//! The names of everything in our tables. They are what an administrator sees in `nft list ruleset`, so they are
//! part of the interface: fixed, readable, and shorter than the kernel's limit.

use std::fmt;

/// The name of our table, the same in both families.
///
/// There is one for each proxy on a node: that of the node, and those that serve only the Services that are labelled for
/// them (`service.kubernetes.io/service-proxy-name`), beside whoever serves the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    name: &'static str,
    guard: &'static str,
}

impl TableName {
    /// The table of the proxy that serves the node.
    pub const NODE: TableName = TableName { name: "nftproxyd", guard: "nftproxyd-guard" };

    /// The table of a proxy with a name of its own, which has to be the value of a label (no white space, no quotes). It is
    /// kept for ever: a process has one.
    pub fn of_proxy(name: &str) -> TableName {
        let of = |table: TableName, which: fn(TableName) -> &'static str| format!("{}.{name}", which(table)).leak();
        TableName { name: of(TableName::NODE, |table| table.name), guard: of(TableName::NODE, |table| table.guard) }
    }

    /// The name in the kernel.
    pub const fn as_str(self) -> &'static str {
        self.name
    }

    /// The name of the tables that guard it (`nftables::Guard`).
    pub const fn guard(self) -> &'static str {
        self.guard
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The comment of our table, so that whoever lists it knows where it comes from.
pub const TABLE_COMMENT: &str = "Kubernetes Services; written by nftproxyd";

/// A set or map of our table. There is a fixed number of them, whatever the cluster holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// Map address . protocol . port -> kind: cluster, external and load-balancer IPs. What a kind ([`super::kinds`])
    /// leads to is in `dispatch`.
    ServiceIps,
    /// Map protocol . port -> kind: node ports, on every accepted address of the node.
    ServiceNodeports,
    /// Map address . protocol . port . slot -> endpoint.
    Endpoints,
    /// Map protocol . port . slot -> endpoint.
    NodeportEndpoints,
    /// Interval set address . protocol . port . source: `loadBalancerSourceRanges`.
    AllowedSources,
    /// Map address . protocol . port -> kind, once the source is known to be allowed.
    AfterSourceRanges,
    /// [`SetName::AllowedSources`] of node ports: protocol . port . source. There only where it is needed.
    NodeportAllowedSources,
    /// [`SetName::AfterSourceRanges`] of node ports: protocol . port -> kind. There only where it is needed.
    NodeportAfterSourceRanges,
    /// Map address . protocol . port -> kind: `externalTrafficPolicy: Local`, sources inside the cluster.
    ClusterPolicy,
    /// The same, all other sources.
    LocalPolicy,
    /// [`SetName::ClusterPolicy`] of node ports: protocol . port -> kind.
    NodeportClusterPolicy,
    /// [`SetName::LocalPolicy`] of node ports.
    NodeportLocalPolicy,
    /// Dynamic map client . address . protocol . port -> endpoint: session affinity, written by the kernel.
    Affinity,
    /// Map address . protocol . port -> kind: which frontends have session affinity, and for how long.
    AffinityTimeouts,
    /// [`SetName::AffinityTimeouts`] of node ports: protocol . port -> kind.
    NodeportAffinityTimeouts,
    /// Set of the node's addresses that accept node ports.
    NodeportIps,
    /// Set of all cluster IPs.
    ClusterIps,
    /// Set of the addresses of Services that answer pings. There only where it is needed.
    PingIps,
    /// Set of the addresses of endpoints on this node: only their connections can be to themselves.
    LocalEndpoints,
    /// Set source . destination of endpoints on this node: a connection from one to itself.
    Hairpin,
    /// Set address . protocol . port: frontends whose endpoint is found by a hash of the client. Clients keep their port when
    /// they are masqueraded, so that a connection that the kernel has lost is told to go on where it was.
    KeptPorts,
    /// [`SetName::KeptPorts`] of node ports: protocol . port.
    NodeportKeptPorts,
    /// Map kind -> verdict: what is done with a connection to a frontend.
    Dispatch,
    /// The same after another look-up: it leads to chains that end, and to none that looks into it again. The kernel
    /// refuses a map that can be reached from itself.
    DispatchLast,
    /// Map kind -> verdict: where the client's endpoint is remembered. On other hooks than `dispatch`.
    DispatchAffinity,
}

impl SetName {
    /// The maps with the element of a frontend that a packet finds first, and that says whose it is.
    pub const ENTRIES: [SetName; 2] = [SetName::ServiceIps, SetName::ServiceNodeports];

    /// Whether it is one of [`SetName::ENTRIES`].
    pub fn is_entry(self) -> bool {
        Self::ENTRIES.contains(&self)
    }

    /// Whether its elements are ranges of sources: it cannot be asked for one of them by its key.
    pub fn is_interval(self) -> bool {
        matches!(self, SetName::AllowedSources | SetName::NodeportAllowedSources)
    }

    /// Every set, in the order in which they are created and listed. Those of [`Extras`](super::extras::Extras) are not
    /// always there.
    pub const ALL: [SetName; 25] = [
        SetName::ServiceIps,
        SetName::ServiceNodeports,
        SetName::Endpoints,
        SetName::NodeportEndpoints,
        SetName::AllowedSources,
        SetName::AfterSourceRanges,
        SetName::NodeportAllowedSources,
        SetName::NodeportAfterSourceRanges,
        SetName::ClusterPolicy,
        SetName::LocalPolicy,
        SetName::NodeportClusterPolicy,
        SetName::NodeportLocalPolicy,
        SetName::Affinity,
        SetName::AffinityTimeouts,
        SetName::NodeportAffinityTimeouts,
        SetName::NodeportIps,
        SetName::ClusterIps,
        SetName::PingIps,
        SetName::LocalEndpoints,
        SetName::Hairpin,
        SetName::KeptPorts,
        SetName::NodeportKeptPorts,
        SetName::Dispatch,
        SetName::DispatchLast,
        SetName::DispatchAffinity,
    ];

    /// The name in the kernel.
    pub const fn as_str(self) -> &'static str {
        match self {
            SetName::ServiceIps => "service-ips",
            SetName::ServiceNodeports => "service-nodeports",
            SetName::Endpoints => "endpoints",
            SetName::NodeportEndpoints => "nodeport-endpoints",
            SetName::AllowedSources => "allowed-sources",
            SetName::AfterSourceRanges => "after-source-ranges",
            SetName::NodeportAllowedSources => "nodeport-allowed-sources",
            SetName::NodeportAfterSourceRanges => "nodeport-after-source-ranges",
            SetName::ClusterPolicy => "cluster-policy",
            SetName::LocalPolicy => "local-policy",
            SetName::NodeportClusterPolicy => "nodeport-cluster-policy",
            SetName::NodeportLocalPolicy => "nodeport-local-policy",
            SetName::Affinity => "affinity",
            SetName::AffinityTimeouts => "affinity-timeouts",
            SetName::NodeportAffinityTimeouts => "nodeport-affinity-timeouts",
            SetName::NodeportIps => "nodeport-ips",
            SetName::ClusterIps => "cluster-ips",
            SetName::PingIps => "ping-ips",
            SetName::LocalEndpoints => "local-endpoints",
            SetName::Hairpin => "hairpin",
            SetName::KeptPorts => "kept-ports",
            SetName::NodeportKeptPorts => "nodeport-kept-ports",
            SetName::Dispatch => "dispatch",
            SetName::DispatchLast => "dispatch-last",
            SetName::DispatchAffinity => "dispatch-affinity",
        }
    }

    /// The set of this name, if it is one of ours.
    pub fn parse(name: &str) -> Option<SetName> {
        SetName::ALL.into_iter().find(|set| set.as_str() == name)
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a connection is marked for masquerading on its way to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Never (a hairpin is recognised later).
    Never,
    /// When its source is not a pod of the cluster (`cluster-`).
    FromOutside,
    /// Always (`masq-`).
    Always,
}

/// How a slot is chosen for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum By {
    /// At random (`pick`).
    #[default]
    Random,
    /// By the client's address (`sh`).
    Source,
    /// By the client's address and port (`sh-port`).
    SourceAndPort,
    /// By the address that the client connects to (`dh`).
    Destination,
    /// As [`By::Source`]; the slots are a Maglev table (`mh`).
    Maglev,
    /// As [`By::SourceAndPort`]; the slots are a Maglev table (`mh-port`).
    MaglevAndPort,
    /// In turns, by the counter of this number, below [`By::COUNTERS`] (`rr`).
    Turn(u8),
}

impl By {
    /// How many counters there are for a number of slots.
    pub const COUNTERS: u8 = 56;

    /// All but turns, with the words of the names of their chains.
    const WORDS: [(By, &'static str); 6] = [
        (By::Random, "pick"),
        (By::Source, "sh"),
        (By::SourceAndPort, "sh-port"),
        (By::Destination, "dh"),
        (By::Maglev, "mh"),
        (By::MaglevAndPort, "mh-port"),
    ];

    /// The word in the names of chains.
    pub fn word(self) -> &'static str {
        By::WORDS.into_iter().find(|(by, _)| *by == self).map_or("rr", |(_, word)| word)
    }

    /// What it is called as a scheduler: that of the frontends whose chain this is, or the one that it works like.
    pub fn scheduler(self) -> &'static str {
        match self {
            By::Random => "random",
            other => other.word(),
        }
    }

    /// Whether the same client always gets the same endpoint.
    pub fn is_by_client(self) -> bool {
        matches!(self, By::Source | By::SourceAndPort | By::Maglev | By::MaglevAndPort)
    }
}

/// A chain that picks one of `slots` slots of a frontend: there is one for each combination that is in use, shared
/// by all frontends. `cluster-sticky-pick-2` marks, looks for a remembered endpoint, and picks one of two. Only chains that
/// take turns hand over to another, which has the counter: `cluster-rr-3-0` marks and goes on as `rr-3-0`, so that
/// connections to all addresses of a Service take turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    /// For a node port: the key has no address (`np-`).
    pub nodeport: bool,
    /// What to mark first.
    pub masquerade: Masquerade,
    /// Look for a remembered endpoint first (`sticky-`).
    pub sticky: bool,
    /// Use the slots of endpoints on this node, which start at [`Pick::LOCAL_OFFSET`] (`-local`).
    pub local: bool,
    /// How a slot is chosen.
    pub by: By,
    /// The number of slots, at least 1.
    pub slots: u32,
}

impl Pick {
    /// The first slot of a frontend's endpoints on this node, where a traffic policy Local is about them: kept apart from
    /// the cluster's, which `externalTrafficPolicy: Local` needs as well.
    pub const LOCAL_OFFSET: u32 = 65_536;

    /// The chain that this one hands over to, after it has marked or looked for a remembered endpoint.
    pub fn counter(self) -> Option<Pick> {
        let counter = Pick { masquerade: Masquerade::Never, sticky: false, ..self };
        (matches!(self.by, By::Turn(_)) && self != counter).then_some(counter)
    }

    /// The most slots that a frontend has in the cluster, and again on this node: a kind ([`super::kinds`]) has 16
    /// bits for their number.
    pub const MOST_SLOTS: u32 = 65_535;
}

/// A chain of our table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainName {
    /// Refuses: a reset for TCP, an ICMP error for the rest.
    RejectIt,
    /// Picks an endpoint.
    Pick(Pick),
    /// Remembers the client's endpoint for so many seconds.
    RememberFor(u32),
    /// Looks whether a connection's frontend has affinity.
    Remember,
    /// Drops sources that are not allowed.
    SourceRanges,
    /// The same, for a frontend of [`ChainName::ExternalLocal`].
    SourceRangesLocal,
    /// `externalTrafficPolicy: Local` of an address.
    ExternalLocal,
    /// ... for a connection of the node itself.
    ExternalLocalFromNode,
    /// `externalTrafficPolicy: Local` of a node port.
    NodeportLocal,
    /// ... for a connection of the node itself.
    NodeportLocalFromNode,
    /// [`ChainName::SourceRanges`] of node ports. There only where it is needed.
    NodeportSourceRanges,
    /// The same, for a frontend of [`ChainName::NodeportLocal`].
    NodeportSourceRangesLocal,
    /// A destination in a Service range that no Service has with this port. It comes back from there if it is local.
    Unserved,
    /// The dispatch: is this a Service?
    Services,
    /// Base chain: packets that arrive.
    NatPrerouting,
    /// Base chain: packets of the node itself.
    NatOutput,
    /// Base chain: packets delivered to the node.
    NatInput,
    /// Base chain: packets that leave.
    NatPostrouting,
    /// Masquerades a marked connection.
    MasqueradeMarked,
}

impl ChainName {
    /// The chains that are always there, in an order in which each is created before it is referred to.
    pub const FIXED: [ChainName; 15] = [
        ChainName::RejectIt,
        ChainName::Remember,
        ChainName::SourceRanges,
        ChainName::ExternalLocalFromNode,
        ChainName::ExternalLocal,
        ChainName::SourceRangesLocal,
        ChainName::NodeportLocalFromNode,
        ChainName::NodeportLocal,
        ChainName::Unserved,
        ChainName::Services,
        ChainName::MasqueradeMarked,
        ChainName::NatPrerouting,
        ChainName::NatOutput,
        ChainName::NatInput,
        ChainName::NatPostrouting,
    ];

    /// The chains with a name of their own that are made on demand, and refer to fixed ones.
    pub const EXTRA: [ChainName; 2] = [ChainName::NodeportSourceRanges, ChainName::NodeportSourceRangesLocal];

    /// The name of a chain that has one of its own; `None` for those that are named by numbers.
    const fn fixed_str(self) -> Option<&'static str> {
        Some(match self {
            ChainName::RejectIt => "reject-it",
            ChainName::Remember => "remember",
            ChainName::SourceRanges => "source-ranges",
            ChainName::SourceRangesLocal => "source-ranges-local",
            ChainName::ExternalLocal => "external-local",
            ChainName::ExternalLocalFromNode => "external-local-from-node",
            ChainName::NodeportLocal => "nodeport-local",
            ChainName::NodeportLocalFromNode => "nodeport-local-from-node",
            ChainName::NodeportSourceRanges => "nodeport-source-ranges",
            ChainName::NodeportSourceRangesLocal => "nodeport-source-ranges-local",
            ChainName::Unserved => "unserved",
            ChainName::Services => "services",
            ChainName::NatPrerouting => "nat-prerouting",
            ChainName::NatOutput => "nat-output",
            ChainName::NatInput => "nat-input",
            ChainName::NatPostrouting => "nat-postrouting",
            ChainName::MasqueradeMarked => "masquerade-marked",
            ChainName::Pick(_) | ChainName::RememberFor(_) => return None,
        })
    }

    /// The chain that this one hands over to, if it is one that takes turns: it has to be there first.
    pub fn counter(self) -> Option<ChainName> {
        match self {
            ChainName::Pick(pick) => pick.counter().map(ChainName::Pick),
            _ => None,
        }
    }

    /// The chain of this name, if it is one of ours: the inverse of `Display`.
    pub fn parse(name: &str) -> Option<ChainName> {
        let mut named = ChainName::FIXED.into_iter().chain(ChainName::EXTRA);
        if let Some(chain) = named.find(|chain| chain.fixed_str() == Some(name)) {
            return Some(chain);
        }
        let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n > 0 && n.to_string() == text);
        if let Some(rest) = name.strip_prefix("remember-") {
            return number(rest).map(ChainName::RememberFor);
        }
        let strip = |text: &mut &str, prefix: &str| match text.strip_prefix(prefix) {
            Some(rest) => {
                *text = rest;
                true
            }
            None => false,
        };
        let mut rest = name;
        let nodeport = strip(&mut rest, "np-");
        let masquerade = if strip(&mut rest, "cluster-") {
            Masquerade::FromOutside
        } else if strip(&mut rest, "masq-") {
            Masquerade::Always
        } else {
            Masquerade::Never
        };
        let sticky = strip(&mut rest, "sticky-");
        let words = [(By::Turn(0), "rr")].into_iter().chain(By::WORDS);
        let has = |(by, word): (By, &str)| {
            let rest = rest.strip_prefix(word)?.strip_prefix('-')?;
            let (local, rest) = rest.strip_prefix("local-").map_or((false, rest), |rest| (true, rest));
            let (by, slots) = match by {
                By::Turn(_) => {
                    let (slots, turn) = rest.split_once('-')?;
                    let turn = turn.parse().ok().filter(|it: &u8| *it < By::COUNTERS && it.to_string() == turn)?;
                    (By::Turn(turn), number(slots)?)
                }
                by => (by, number(rest)?),
            };
            Some(ChainName::Pick(Pick { nodeport, masquerade, sticky, local, by, slots }))
        };
        words.into_iter().find_map(has)
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainName::Pick(pick) => {
                let nodeport = if pick.nodeport { "np-" } else { "" };
                let masquerade = match pick.masquerade {
                    Masquerade::Never => "",
                    Masquerade::FromOutside => "cluster-",
                    Masquerade::Always => "masq-",
                };
                let sticky = if pick.sticky { "sticky-" } else { "" };
                let local = if pick.local { "-local" } else { "" };
                write!(f, "{nodeport}{masquerade}{sticky}{}{local}-{}", pick.by.word(), pick.slots)?;
                match pick.by {
                    By::Turn(counter) => write!(f, "-{counter}"),
                    _ => Ok(()),
                }
            }
            ChainName::RememberFor(seconds) => write!(f, "remember-{seconds}"),
            fixed => f.write_str(fixed.fixed_str().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_fit() {
        // NFT_NAME_MAXLEN of include/uapi/linux/netfilter/nf_tables.h is 256; nft 1.0.6 itself refuses chain names
        // of 128 and more.
        let mut names: Vec<ChainName> = [&ChainName::FIXED[..], &ChainName::EXTRA].concat();
        names.push(ChainName::RememberFor(86_400));
        for nodeport in [false, true] {
            for masquerade in [Masquerade::Never, Masquerade::FromOutside, Masquerade::Always] {
                for sticky in [false, true] {
                    for local in [false, true] {
                        let by = By::WORDS.into_iter().map(|(by, _)| by);
                        let by = by.chain([0, 9, By::COUNTERS - 1].map(By::Turn));
                        let pick = Pick { nodeport, masquerade, sticky, local, by: By::Random, slots: u32::MAX };
                        names.extend(by.map(|by| ChainName::Pick(Pick { by, ..pick })));
                    }
                }
            }
        }
        for name in names {
            let text = name.to_string();
            assert!(text.len() < 64, "{text}");
            assert_eq!(ChainName::parse(&text), Some(name), "{text}");
        }
        for foreign in [
            "",
            "pick-",
            "pick-0",
            "pick-01",
            "pick-+1",
            "sticky-masq-pick-1",
            "remember-x",
            "services2",
            "rr-3",
            "rr-3-56",
            "rr-3-01",
            "rr-0-1",
            "sh-3-1",
            "mh-port-",
        ] {
            assert_eq!(ChainName::parse(foreign), None, "{foreign}");
        }
        for set in SetName::ALL {
            assert_eq!(SetName::parse(set.as_str()), Some(set));
        }
    }
}
