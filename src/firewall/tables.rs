//! Tables with their base chains and rules, whatever they were read from, and the way of a packet past all of them. Pure.

use super::bits::Three;
use super::packet::{Hook, Met, Named, Packet, Passage, State, Verdict};
use super::step;
use super::view::{Carried, TRANSLATION, View, World};
use super::walk::{At, Chains, End, Fate, Way, through};
use crate::leftovers::advice::Place;
use crate::leftovers::proof;
use crate::model::Family;

/// A chain at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) chain: String,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    /// Whether it is of type `nat`: it sees first packets alone, and the first that translates is the last.
    pub(super) translates: bool,
    /// Its policy.
    pub(super) drops: bool,
    /// The devices that it is for, at hooks `ingress` and `egress`; where a name ends with `*`, all that begin so.
    pub(super) devices: Vec<String>,
    /// Grows with the time that it was made, as far as that is known.
    pub(super) age: u64,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// As nft writes it, or the program of legacy iptables.
    pub(super) family: &'static str,
    pub(super) name: String,
    pub(super) bases: Vec<Base>,
    pub(super) chains: Chains,
    /// What the program of legacy iptables has printed.
    pub(super) saved: Option<String>,
}

impl Table {
    fn place(&self) -> Place<'_> {
        match self.saved {
            Some(_) => Place::Legacy(self.family, &self.name),
            None => Place::Nft(self.family, &self.name),
        }
    }

    /// Whether its chains see packets of a family at a hook.
    fn sees(&self, family: Family) -> bool {
        match self.family {
            "inet" | "netdev" => true,
            "ip" | "iptables-legacy" => family == Family::V4,
            "ip6" | "ip6tables-legacy" => family == Family::V6,
            _ => false,
        }
    }
}

/// When a base chain is called: those that translate are called together.
fn called_at(base: &Base) -> (i32, i32) {
    let (ahead, after) = TRANSLATION;
    match (base.translates, base.hook) {
        (true, Hook::Prerouting | Hook::Output) => (ahead, base.priority),
        (true, _) => (after, base.priority),
        (false, _) => (base.priority, i32::MIN),
    }
}

impl Base {
    fn is_met_by(&self, packet: &Packet) -> bool {
        let device = match packet.hook {
            Hook::Ingress => &packet.input,
            Hook::Egress => &packet.output,
            _ => return self.hook == packet.hook,
        };
        let is_meant = |name: &String| {
            let device = device.as_deref().unwrap_or_default();
            name.strip_suffix('*').map_or(name == device, |stem| device.starts_with(stem))
        };
        self.hook == packet.hook && self.devices.iter().any(is_meant)
    }
}

/// Takes a packet past all base chains of its hook; `tell` writes a rule as text.
pub(super) fn meet(
    tables: &[Table],
    world: &dyn World,
    packet: &Packet,
    tell: impl Fn(&Table, &At) -> Named,
) -> Passage {
    let seeing = tables.iter().filter(|table| table.sees(packet.family()));
    let mut bases: Vec<(&Table, &Base)> = seeing
        .flat_map(|table| table.bases.iter().map(move |base| (table, base)))
        .filter(|(_, base)| base.is_met_by(packet))
        .collect();
    // Of those at the same priority, the kernel calls the youngest first.
    bases.sort_by_key(|(_, base)| (called_at(base), u64::MAX - base.age));
    let mut carried = Carried::of(packet);
    let mut met = Vec::new();
    let mut is_translated = Three::No;
    let mut behind = Three::No;
    for (table, base) in bases {
        let (priority, _) = called_at(base);
        let view = View::at(packet, world, table.family, priority, base.translates);
        let of = step::Table { family: table.family, name: &table.name };
        let take = |carried: &Carried| through(&table.chains, of, &base.chain, base.drops, &view, carried);
        if base.translates {
            // What is sent by way of loopback has had its translation as it was sent.
            let is_back = packet.input.as_deref() == Some("lo");
            let is_first = packet.state == State::New && !is_back;
            if !is_first || is_translated == Three::Yes || carried.untracked == Three::Yes {
                continue;
            }
            if packet.translated_by.is_some_and(|ours| base.priority > ours) {
                behind = behind.or(match take(&carried).fate {
                    Fate::Surely(End::Translate(_)) => Three::Yes,
                    Fate::CannotTell(..) | Fate::Surely(End::Unknown(..)) => Three::Maybe,
                    Fate::Surely(_) | Fate::MayDrop(..) => Three::No,
                });
                continue;
            }
        }
        let way = take(&carried);
        let is_sure = is_translated == Three::No && carried.untracked != Three::Maybe || !base.translates;
        let verdict = verdict(&way, is_sure, |at| tell(table, at));
        carried = if is_sure { way.carried } else { carried.join(&way.carried) };
        let is_end = verdict.is_end();
        match &verdict {
            Verdict::NatElsewhere(_) => is_translated = Three::Yes,
            Verdict::CannotTell { .. } if base.translates => is_translated = is_translated.or(Three::Maybe),
            _ => {}
        }
        met.push(Met {
            family: table.family.to_owned(),
            table: table.name.clone(),
            chain: base.chain.clone(),
            priority: base.priority,
            verdict,
        });
        if is_end {
            break;
        }
    }
    let known = |is: Three| match is {
        Three::No => Some(false),
        Three::Yes => Some(true),
        Three::Maybe => None,
    };
    Passage {
        met,
        mark: carried.mark.number(),
        connection_mark: carried.connection_mark.number(),
        tracked: known(carried.untracked.not()),
        intact: carried.intact,
        translated_behind: known(behind),
        zone: carried.zone.bytes().and_then(|zone| Some(u16::from_ne_bytes(zone.try_into().ok()?))),
    }
}

/// What to say about a way; `is_sure` is whether the packet surely comes there.
fn verdict(way: &Way, is_sure: bool, tell: impl Fn(&At) -> Named) -> Verdict {
    const AFTER: &str = "a chain ahead of it may translate the packet, and then it is not asked";
    let may = |at: &At, why: &str| Verdict::MayDrop { rule: tell(at), why: why.to_owned() };
    let cannot = |at: Option<&At>, why: &str| Verdict::CannotTell { rule: at.map(&tell), why: why.to_owned() };
    match &way.fate {
        Fate::MayDrop(at, why) => may(at, why),
        Fate::CannotTell(at, why) => cannot(at.as_ref(), why),
        Fate::Surely(End::Pass) => match &way.untracks {
            Some((at, Three::Yes)) => Verdict::NoTrack(tell(at)),
            Some((at, _)) => {
                cannot(Some(at), "it may keep the packet from being tracked, and so from being translated")
            }
            None => Verdict::Passes,
        },
        Fate::Surely(End::Drop(at) | End::Reject(at)) if !is_sure => may(at, AFTER),
        Fate::Surely(End::Translate(at) | End::Give(at, _)) if !is_sure => cannot(Some(at), AFTER),
        Fate::Surely(End::Drop(at)) if at.1.is_none() => Verdict::DropsByPolicy(tell(at)),
        Fate::Surely(End::Drop(at)) => Verdict::Drops(tell(at)),
        Fate::Surely(End::Reject(at)) => Verdict::Rejects(tell(at)),
        Fate::Surely(End::Translate(at)) => Verdict::NatElsewhere(tell(at)),
        Fate::Surely(End::Give(at, to)) => Verdict::Takes { rule: tell(at), to: to.clone() },
        Fate::Surely(End::Unknown(at, why)) => cannot(Some(at), why),
    }
}

/// A rule, or a policy, as its own program prints it.
pub(super) fn told(table: &Table, at: &At) -> Named {
    let place = table.place();
    let (chain, nth) = at;
    let text = match nth {
        Some(nth) => proof::Rule { place: &place, chain, nth: *nth, saved: table.saved.as_deref() }.text(),
        None => proof::policy(&place, chain),
    };
    Named { chain: chain.clone(), nth: *nth, text }
}

/// Base chains of families that packets are not taken through, with a rule or a policy that drops.
pub(super) fn unexamined(tables: &[Table]) -> Vec<String> {
    let of_others = tables.iter().filter(|table| ["bridge", "arp"].contains(&table.family));
    let may_drop =
        |table: &Table, base: &Base| base.drops || table.chains.values().flatten().any(|rule| rule.may_drop());
    of_others
        .flat_map(|table| {
            table.bases.iter().filter(|base| may_drop(table, base)).map(|base| table.place().chain_name(&base.chain))
        })
        .collect()
}
