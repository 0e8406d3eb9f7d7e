//! What becomes of the packets of Services in a chain that filters: which of them a rule, or the policy, drops. Pure, and
//! the same for nftables and for both kinds of iptables.
//!
//! Rules are understood as far as they speak of the state of a connection, of its translation or of our mark. Any other
//! condition may hold or not; an accept that may not hold lets nothing through, a drop that may hold drops.

use std::collections::BTreeMap;
use std::ops::{BitAnd, BitOr, Sub};

use super::names::{FORWARD, NODE_PORTS, is_chain};

/// The kernel follows no more jumps in a row (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;

/// Kinds of packets that belong to Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Packets(u8);

impl Packets {
    pub(crate) const NONE: Packets = Packets(0);
    /// First packets that are translated and have our mark: they will be masqueraded.
    pub(crate) const NEW_MARKED: Packets = Packets(1);
    /// First packets that are translated and have no mark.
    pub(crate) const NEW: Packets = Packets(1 << 1);
    /// Later packets of translated connections.
    pub(crate) const ESTABLISHED: Packets = Packets(1 << 2);
    /// ICMP errors about translated connections.
    pub(crate) const RELATED: Packets = Packets(1 << 3);
    /// First packets to the port of a Service's health check, which nobody translates.
    pub(crate) const CHECK: Packets = Packets(1 << 4);
    /// Later packets of connections that are not translated: of no Service, but `KUBE-FORWARD` accepts them too.
    pub(crate) const OTHERS: Packets = Packets(1 << 5);
    /// All that are translated.
    pub(crate) const TRANSLATED: Packets = Packets((1 << 4) - 1);
    const ALL: Packets = Packets((1 << 6) - 1);

    pub(crate) fn is_empty(self) -> bool {
        self == Packets::NONE
    }
}

impl BitAnd for Packets {
    type Output = Packets;
    fn bitand(self, other: Packets) -> Packets {
        Packets(self.0 & other.0)
    }
}

impl BitOr for Packets {
    type Output = Packets;
    fn bitor(self, other: Packets) -> Packets {
        Packets(self.0 | other.0)
    }
}

impl Sub for Packets {
    type Output = Packets;
    fn sub(self, other: Packets) -> Packets {
        Packets(self.0 & !other.0)
    }
}

/// Bits of a connection's state, in nft's `ct state` and in the match `conntrack` of iptables
/// (include/uapi/linux/netfilter/xt_conntrack.h, `XT_CONNTRACK_STATE_BIT`).
pub(super) mod state {
    pub(crate) const INVALID: u16 = 1;
    pub(crate) const ESTABLISHED: u16 = 1 << 1;
    pub(crate) const RELATED: u16 = 1 << 2;
    pub(crate) const NEW: u16 = 1 << 3;
    /// This and what follows in iptables alone: nft uses the bit for untracked packets.
    pub(crate) const SNAT: u16 = 1 << 6;
    pub(crate) const DNAT: u16 = 1 << 7;
    pub(crate) const UNTRACKED: u16 = 1 << 8;
}

/// Which packets a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    /// Those that it surely matches.
    surely: Packets,
    /// Those that it may match, these among them.
    maybe: Packets,
}

impl Match {
    pub(super) const ALL: Match = Match { surely: Packets::ALL, maybe: Packets::ALL };
    /// A condition that says nothing here.
    pub(super) const UNKNOWN: Match = Match { surely: Packets::NONE, maybe: Packets::ALL };
    /// That the destination was translated.
    pub(super) const TRANSLATED: Match = Match { surely: Packets::TRANSLATED, maybe: Packets::TRANSLATED };

    /// Both conditions.
    pub(super) fn and(self, other: Match) -> Match {
        Match { surely: self.surely & other.surely, maybe: self.maybe & other.maybe }
    }

    /// Whether it tells marked packets from others.
    pub(super) fn is_of_marked(self) -> bool {
        self.surely == Packets::NEW_MARKED
    }

    fn not(self) -> Match {
        Match { surely: Packets::ALL - self.maybe, maybe: Packets::ALL - self.surely }
    }

    /// That a connection is in one of these states ([`state`]), or in none of them.
    pub(super) fn states(states: u16, inverted: bool) -> Match {
        let mut found = Match { surely: Packets::NONE, maybe: Packets::NONE };
        for (packets, has) in [
            (Packets::NEW_MARKED, state::NEW | state::DNAT),
            (Packets::NEW, state::NEW | state::DNAT),
            (Packets::ESTABLISHED, state::ESTABLISHED | state::DNAT),
            (Packets::RELATED, state::RELATED | state::DNAT),
            (Packets::CHECK, state::NEW),
            (Packets::OTHERS, state::ESTABLISHED),
        ] {
            if states & has != 0 {
                found.surely = found.surely | packets;
                found.maybe = found.maybe | packets;
            }
        }
        if states & state::SNAT != 0 {
            // The source is translated later than any filter looks at the first packet.
            found.maybe = found.maybe | Packets::ESTABLISHED | Packets::RELATED | Packets::OTHERS;
        }
        if inverted { found.not() } else { found }
    }

    /// That a packet's mark is `value` in the bits of `mask`, or is not; where `ours` is the bit that we mark with.
    pub(super) fn mark(value: u32, mask: u32, inverted: bool, ours: u32) -> Match {
        if mask != ours || value & !ours != 0 {
            return Match::UNKNOWN;
        }
        // Nobody knows who marks later packets.
        let maybe = Packets::ESTABLISHED | Packets::RELATED | Packets::OTHERS;
        let marked = Match { surely: Packets::NEW_MARKED, maybe: Packets::NEW_MARKED | maybe };
        if (value == ours) == inverted { marked.not() } else { marked }
    }
}

/// What a rule does with a packet that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Does {
    /// The packet is through this chain.
    Accept,
    /// It is dropped or refused.
    Drop,
    /// It goes through another chain, and comes back from there unless it `goes`.
    Lead {
        /// The other chain.
        to: String,
        /// Whether it does not come back here (`goto`, `-g`).
        goes: bool,
    },
    /// It comes back to where it was led here from.
    Return,
    /// Nothing that matters here.
    Other,
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(super) matches: Match,
    pub(super) does: Does,
}

/// A chain, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: String,
    /// The hook that it is at.
    pub(crate) hook: Option<&'static str>,
    /// Whether what no rule accepts is dropped there.
    pub(crate) drops: bool,
    /// Whether it is at a hook and sees all packets; a chain that translates sees first packets alone.
    pub(crate) filters: bool,
    /// Its rules in their order, where they were asked for.
    pub(crate) rules: Vec<Rule>,
}

/// A place where packets of Services are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lost {
    maybe: Packets,
    /// Those that a rule without any other condition drops, or the policy: what no rule before it accepts.
    surely: Packets,
}

/// A chain, and the number of a rule there; without, the policy.
type Place<'a> = (&'a str, Option<usize>);

struct Walk<'a> {
    chains: BTreeMap<&'a str, &'a Chain>,
    without: &'a dyn Fn(&str) -> bool,
    lost: BTreeMap<Place<'a>, Lost>,
    /// By chain, packets that come in and those of them that come in surely: the packets that come out.
    walked: BTreeMap<(&'a str, Packets, Packets), Packets>,
}

impl<'a> Walk<'a> {
    /// What is lost of `packets` on their way through a base chain, if rules that lead to some chains are not there.
    fn through(
        chains: &'a [Chain],
        base: &'a Chain,
        packets: Packets,
        without: &'a dyn Fn(&str) -> bool,
    ) -> BTreeMap<Place<'a>, Lost> {
        let chains = chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
        let mut walk = Walk { chains, without, lost: BTreeMap::new(), walked: BTreeMap::new() };
        let left = walk.chain(base, packets, Packets::ALL, DEEPEST);
        if base.drops {
            walk.lose((&base.name, None), left, left);
        }
        walk.lost
    }

    fn lose(&mut self, place: Place<'a>, maybe: Packets, surely: Packets) {
        if !maybe.is_empty() {
            let lost = self.lost.entry(place).or_insert(Lost { maybe: Packets::NONE, surely: Packets::NONE });
            *lost = Lost { maybe: lost.maybe | maybe, surely: lost.surely | surely };
        }
    }

    /// The packets that come out again at the end of a chain, of those that may come in `here`.
    fn chain(&mut self, chain: &'a Chain, mut here: Packets, surely: Packets, depth: usize) -> Packets {
        let key = (chain.name.as_str(), here, surely);
        if let Some(out) = self.walked.get(&key) {
            return *out;
        }
        let mut returned = Packets::NONE;
        for (nth, Rule { matches, does }) in chain.rules.iter().enumerate() {
            let met = here & matches.maybe;
            if met.is_empty() {
                continue;
            }
            let stay = here - matches.surely;
            match does {
                Does::Accept => here = stay,
                Does::Drop => {
                    self.lose((&chain.name, Some(nth)), met, here & matches.surely & surely);
                    here = stay;
                }
                Does::Return => {
                    returned = returned | met;
                    here = stay;
                }
                Does::Lead { to, .. } if (self.without)(to) => {}
                Does::Lead { to, goes } => {
                    let next = self.chains.get(to.as_str()).copied().filter(|_| depth > 0);
                    let out = next.map_or(met, |next| self.chain(next, met, matches.surely & surely, depth - 1));
                    (here, returned) = if *goes { (stay, returned | out) } else { (stay | out, returned) };
                }
                Does::Other => {}
            }
        }
        self.walked.insert(key, here | returned);
        here | returned
    }
}

/// What a base chain does to packets of translated connections that nobody has made a rule for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They pass.
    Pass,
    /// What no rule accepts is dropped, but a rule accepts all of them.
    Accepted,
    /// The same, but for first packets without our mark, which will not be masqueraded.
    AcceptedIfMarked,
    /// They are dropped by the policy.
    DroppedByPolicy,
    /// They are dropped or refused by a rule.
    DroppedByRule,
}

/// What becomes of them, if rules that lead to some chains are not there.
pub(crate) fn fate(chains: &[Chain], base: &Chain, without: &dyn Fn(&str) -> bool) -> Fate {
    let lost = Walk::through(chains, base, Packets::TRANSLATED, without);
    let surely = lost.values().fold(Packets::NONE, |all, lost| all | lost.surely);
    let by_rule = lost.iter().any(|((_, rule), lost)| rule.is_some() && !lost.surely.is_empty());
    match surely {
        Packets::NONE if base.drops => Fate::Accepted,
        Packets::NONE => Fate::Pass,
        Packets::NEW => Fate::AcceptedIfMarked,
        _ if by_rule => Fate::DroppedByRule,
        _ => Fate::DroppedByPolicy,
    }
}

/// The rule, by its chain and its number there, that drops all that comes to it; `None` if it is the policy, or if nothing
/// is dropped.
pub(crate) fn culprit<'a>(chains: &'a [Chain], base: &'a Chain) -> Option<(&'a str, usize)> {
    let lost = Walk::through(chains, base, Packets::TRANSLATED, &|_| false);
    lost.into_iter().find_map(|((chain, rule), lost)| rule.filter(|_| !lost.surely.is_empty()).map(|nth| (chain, nth)))
}

/// Chains of kube-proxy in a table of iptables without which packets of Services would be dropped that pass now, each with
/// the base chain that leads there.
///
/// * `KUBE-FORWARD` accepts what is marked to be masqueraded, and what belongs to connections; where the rest of `FORWARD`
///   may drop any of that, it stays.
/// * `KUBE-NODEPORTS` accepts, in table `filter`, the ports of health checks; where `INPUT` drops by default, it stays.
///
/// Its other chains accept nothing: they refuse, or mark and translate, which nftproxyd does itself.
pub(crate) fn needed(chains: &[Chain]) -> Vec<(String, String)> {
    let leads = |base: &Chain, chain: &str| {
        base.rules.iter().any(|rule| matches!(&rule.does, Does::Lead { to, .. } if to == chain))
    };
    let mut needed = Vec::new();
    let mut need = |base: &Chain, chain: &str| needed.push((base.name.clone(), chain.to_owned()));
    for base in chains.iter().filter(|chain| chain.filters) {
        if base.hook == Some("forward") && leads(base, FORWARD) {
            let packets = Packets::TRANSLATED | Packets::OTHERS;
            let with = Walk::through(chains, base, packets, &|to| is_chain(to) && to != FORWARD);
            let without = Walk::through(chains, base, packets, &is_chain);
            let before = |place| with.get(place).map_or(Packets::NONE, |lost: &Lost| lost.maybe);
            if without.iter().any(|(place, lost)| !(lost.maybe - before(place)).is_empty()) {
                need(base, FORWARD);
            }
        }
        let accepts = |chain: &Chain| chain.name == NODE_PORTS && chain.rules.iter().any(|r| r.does == Does::Accept);
        if base.hook == Some("input") && leads(base, NODE_PORTS) && chains.iter().any(accepts) {
            let without = Walk::through(chains, base, Packets::CHECK, &is_chain);
            if without.values().any(|lost| !lost.surely.is_empty()) {
                need(base, NODE_PORTS);
            }
        }
    }
    needed
}
