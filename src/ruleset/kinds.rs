//! What is done with a connection to a frontend, as a number: a *kind*.
//!
//! An element whose data is a verdict with a chain makes the kernel validate the table: it walks every element of every
//! verdict map that a base chain leads to, which takes the longer the more Services there are. An element whose data is a
//! number never does. So the elements of frontends hold the number of a kind, and the map `dispatch` has one verdict for each
//! kind in use, however many Services there are. Between the two look-ups the number is in the packet's priority, the one
//! field of a packet that a rule can both set from a map and look up, and that neither routing nor anybody's connection
//! tracking goes by. So nft shows it as a `classid`, in hexadecimal: `f020:a` is a frontend with ten endpoints whose
//! connections are masqueraded.
//!
//! | number | kind |
//! |---|---|
//! | `f000:N` | `pick-N`; to `f000` is added: |
//! | `f001:N`, `f002:N`, `f003:N` | `-local`; `sticky-`; both |
//! | `f010:N`, `f020:N` | `cluster-`; `masq-` |
//! | `f100:N` | `np-` |
//! | `f004:N`, `f008:N`, `f00c:N` | `sh`, `sh-port`, `dh` instead of `pick` |
//! | `f040:N`, `f044:N` | `mh`, `mh-port` |
//! | `f080:N` .. `f6cc:N` | `rr`, by one of 56 counters |
//! | `f800:1` .. `f800:6` | `drop`, `reject-it`, `source-ranges`, `source-ranges-local`, `external-local`, `nodeport-local` |
//! | `f800:7`, `f800:8` | `nodeport-source-ranges`, `nodeport-source-ranges-local`, where they are needed |
//! | `f9SS:SSSS` | `remember-S`: its seconds |
//!
//! Queueing disciplines take a priority for a class of theirs if its upper half is their own handle. Those from 8000 on are
//! given out by the kernel, which begins below; people use low ones.

use super::names::{By, ChainName, Masquerade, Pick};
use super::types::{Data, Value, Verdict};

/// What is done with a connection to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It is dropped.
    Drop,
    /// It is refused.
    Reject,
    /// Its source has to be allowed; `after-source-ranges` tells the rest.
    SourceRanges,
    /// Its source has to be allowed, then as [`Kind::ExternalLocal`].
    SourceRangesLocal,
    /// `cluster-policy` or `local-policy` tell the rest.
    ExternalLocal,
    /// The same for a node port.
    NodeportLocal,
    /// [`Kind::SourceRanges`] for a node port; `nodeport-after-source-ranges` tells the rest.
    NodeportSourceRanges,
    /// Its source has to be allowed, then as [`Kind::NodeportLocal`].
    NodeportSourceRangesLocal,
    /// It gets an endpoint.
    Pick(Pick),
    /// Its client is remembered for so many seconds.
    RememberFor(u32),
}

/// The kinds that are always there, in the order of their numbers, from 1 on.
const FIXED: [Kind; 6] =
    [Kind::Drop, Kind::Reject, Kind::SourceRanges, Kind::SourceRangesLocal, Kind::ExternalLocal, Kind::NodeportLocal];

/// Those with a number of their own: the same, and others.
const NUMBERED: [Kind; 8] = {
    let [drop, reject, ranges, ranges_local, external, nodeport] = FIXED;
    let (np_ranges, np_ranges_local) = (Kind::NodeportSourceRanges, Kind::NodeportSourceRangesLocal);
    [drop, reject, ranges, ranges_local, external, nodeport, np_ranges, np_ranges_local]
};

const FIXED_BASE: u32 = 0xf800_0000;
const REMEMBER_BASE: u32 = 0xf900_0000;
const PICK_BASE: u32 = 0xf000_0000;
const LOCAL: u32 = 0x0001_0000;
const STICKY: u32 = 0x0002_0000;
const FROM_OUTSIDE: u32 = 0x0010_0000;
const MASQUERADE: u32 = 0x0020_0000;
const NODEPORT: u32 = 0x0100_0000;
/// The bits that say how a slot is chosen, from the lowest of that number on: those that nothing else has.
const BY: [u32; 6] = [0x0004_0000, 0x0008_0000, 0x0040_0000, 0x0080_0000, 0x0200_0000, 0x0400_0000];
/// The number of the first counter in these bits.
const FIRST_TURN: u8 = 8;

/// The most seconds that fit; a day is the most that a Service can ask for.
pub const MOST_SECONDS: u32 = 0x00ff_ffff;

impl Kind {
    /// The kinds that are always there.
    pub const fn fixed() -> [Kind; 6] {
        FIXED
    }

    fn number_of(by: By) -> u8 {
        match by {
            By::Random => 0,
            By::Source => 1,
            By::SourceAndPort => 2,
            By::Destination => 3,
            By::Maglev => 4,
            By::MaglevAndPort => 5,
            By::Turn(counter) => FIRST_TURN + counter.min(By::COUNTERS - 1),
        }
    }

    fn by_of_number(number: u8) -> Option<By> {
        Some(match number {
            0 => By::Random,
            1 => By::Source,
            2 => By::SourceAndPort,
            3 => By::Destination,
            4 => By::Maglev,
            5 => By::MaglevAndPort,
            _ => By::Turn(number.checked_sub(FIRST_TURN)?),
        })
    }

    /// Its number. Slots and seconds beyond what there can be are cut.
    pub fn class(self) -> u32 {
        match self {
            Kind::Pick(pick) => {
                let masquerade = match pick.masquerade {
                    Masquerade::Never => 0,
                    Masquerade::FromOutside => FROM_OUTSIDE,
                    Masquerade::Always => MASQUERADE,
                };
                let flag = |set: bool, flag| if set { flag } else { 0 };
                PICK_BASE
                    | flag(pick.nodeport, NODEPORT)
                    | masquerade
                    | flag(pick.sticky, STICKY)
                    | flag(pick.local, LOCAL)
                    | (0..).zip(BY).map(|(at, bit)| flag(Kind::number_of(pick.by) >> at & 1 != 0, bit)).sum::<u32>()
                    | pick.slots.min(Pick::MOST_SLOTS)
            }
            Kind::RememberFor(seconds) => REMEMBER_BASE | seconds.min(MOST_SECONDS),
            other => FIXED_BASE | (1..).zip(NUMBERED).find(|(_, it)| *it == other).map_or(0, |(number, _)| number),
        }
    }

    /// The kind of this number, if it is one.
    pub fn of_class(class: u32) -> Option<Kind> {
        let kind = match class >> 24 {
            0xf8 => *NUMBERED.get(usize::try_from(class ^ FIXED_BASE).ok()?.checked_sub(1)?)?,
            0xf9 => Kind::RememberFor(class ^ REMEMBER_BASE),
            _ => Kind::Pick(Pick {
                nodeport: class & NODEPORT != 0,
                masquerade: match class & (FROM_OUTSIDE | MASQUERADE) {
                    0 => Masquerade::Never,
                    FROM_OUTSIDE => Masquerade::FromOutside,
                    _ => Masquerade::Always,
                },
                sticky: class & STICKY != 0,
                local: class & LOCAL != 0,
                by: Kind::by_of_number((0..).zip(BY).map(|(at, bit)| u8::from(class & bit != 0) << at).sum())?,
                slots: class & Pick::MOST_SLOTS,
            }),
        };
        // Every bit has to mean something, and there are no chains of nothing.
        let some = !matches!(kind, Kind::RememberFor(0) | Kind::Pick(Pick { slots: 0, .. }));
        (some && kind.class() == class).then_some(kind)
    }

    /// The kind that a chain is for, if it is one that frontends lead to.
    pub fn of_chain(chain: ChainName) -> Option<Kind> {
        Some(match chain {
            ChainName::Pick(pick) => Kind::Pick(pick),
            ChainName::RememberFor(seconds) => Kind::RememberFor(seconds),
            ChainName::RejectIt => Kind::Reject,
            ChainName::SourceRanges => Kind::SourceRanges,
            ChainName::SourceRangesLocal => Kind::SourceRangesLocal,
            ChainName::ExternalLocal => Kind::ExternalLocal,
            ChainName::NodeportLocal => Kind::NodeportLocal,
            ChainName::NodeportSourceRanges => Kind::NodeportSourceRanges,
            ChainName::NodeportSourceRangesLocal => Kind::NodeportSourceRangesLocal,
            _ => return None,
        })
    }

    /// What the dispatch maps say for it.
    pub fn verdict(self) -> Verdict {
        Verdict::Goto(match self {
            Kind::Drop => return Verdict::Drop,
            Kind::Reject => ChainName::RejectIt,
            Kind::SourceRanges => ChainName::SourceRanges,
            Kind::SourceRangesLocal => ChainName::SourceRangesLocal,
            Kind::ExternalLocal => ChainName::ExternalLocal,
            Kind::NodeportLocal => ChainName::NodeportLocal,
            Kind::NodeportSourceRanges => ChainName::NodeportSourceRanges,
            Kind::NodeportSourceRangesLocal => ChainName::NodeportSourceRangesLocal,
            Kind::Pick(pick) => ChainName::Pick(pick),
            Kind::RememberFor(seconds) => ChainName::RememberFor(seconds),
        })
    }

    /// The chain that is made when this kind is first used; `None` where there is always one, or none is needed.
    pub fn on_demand(self) -> Option<ChainName> {
        match self {
            Kind::Pick(pick) => Some(ChainName::Pick(pick)),
            Kind::RememberFor(seconds) => Some(ChainName::RememberFor(seconds)),
            Kind::NodeportSourceRanges => Some(ChainName::NodeportSourceRanges),
            Kind::NodeportSourceRangesLocal => Some(ChainName::NodeportSourceRangesLocal),
            _ => None,
        }
    }

    /// The kind whose chain has the counter, if its own chain hands over to it.
    pub fn counter(self) -> Option<Kind> {
        match self {
            Kind::Pick(pick) => pick.counter().map(Kind::Pick),
            _ => None,
        }
    }

    /// The kinds whose chains have to be there for it: that with the counter first, and itself.
    pub fn with_counter(self) -> impl Iterator<Item = Kind> {
        self.counter().into_iter().chain([self])
    }

    /// Its number as the data of an element.
    pub fn data(self) -> Data {
        Data::Values([Value::Class(self.class())].into_iter().collect())
    }

    /// The kind that an element's data is the number of.
    pub fn of_data(data: &Data) -> Option<Kind> {
        match data {
            Data::Values(values) => match values[..] {
                [Value::Class(class)] => Kind::of_class(class),
                _ => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all() -> Vec<Kind> {
        let mut all = NUMBERED.to_vec();
        all.extend([1, 60, 10_800, 86_400, MOST_SECONDS].map(Kind::RememberFor));
        for nodeport in [false, true] {
            for masquerade in [Masquerade::Never, Masquerade::FromOutside, Masquerade::Always] {
                for sticky in [false, true] {
                    for local in [false, true] {
                        for slots in [1, 2, 16, 65_535] {
                            let pick = Pick { nodeport, masquerade, sticky, local, by: By::Random, slots };
                            let by = (0..6).filter_map(Kind::by_of_number).chain((0..By::COUNTERS).map(By::Turn));
                            all.extend(by.map(|by| Kind::Pick(Pick { by, ..pick })));
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn numbers_are_read_back() {
        let all = all();
        let numbers: BTreeSet<u32> = all.iter().map(|kind| kind.class()).collect();
        assert_eq!(numbers.len(), all.len(), "each has its own");
        for kind in all {
            assert_eq!(Kind::of_class(kind.class()), Some(kind), "{kind:?}");
            assert_eq!(Kind::of_data(&kind.data()), Some(kind));
            assert!(
                kind == Kind::Drop
                    || matches!(kind.verdict(), Verdict::Goto(chain) if Kind::of_chain(chain) == Some(kind))
            );
        }
    }

    #[test]
    fn what_is_no_kind_is_none() {
        let ours =
            [0xf000_0000, 0xf048_0001, 0xf030_0001, 0xf04c_0001, 0xf800_0000, 0xf800_0009, 0xf801_0001, 0xf900_0000];
        // `none` and `root` of nft, the proxy's own, and what sockets have.
        for class in ours.into_iter().chain([0, u32::MAX, 0x6e66_7078, 1, 6, 0x0001_0010, 0xe000_0001]) {
            assert_eq!(Kind::of_class(class), None, "{class:x}");
        }
    }

    #[test]
    fn numbers_do_not_change() {
        let (masquerade, by) = (Masquerade::Never, By::Random);
        let pick = Pick { nodeport: false, masquerade, sticky: false, local: false, by, slots: 3 };
        let cases = [
            (Kind::Pick(pick), 0xf000_0003),
            (Kind::Pick(Pick { masquerade: Masquerade::FromOutside, slots: 10, ..pick }), 0xf010_000a),
            (Kind::Pick(Pick { nodeport: true, masquerade: Masquerade::Always, sticky: true, ..pick }), 0xf122_0003),
            (Kind::Pick(Pick { sticky: true, local: true, slots: 65_535, ..pick }), 0xf003_ffff),
            (Kind::Pick(Pick { by: By::Source, ..pick }), 0xf004_0003),
            (Kind::Pick(Pick { by: By::MaglevAndPort, slots: 1_021, ..pick }), 0xf044_03fd),
            (Kind::Pick(Pick { by: By::Turn(0), masquerade: Masquerade::FromOutside, ..pick }), 0xf090_0003),
            (Kind::Pick(Pick { by: By::Turn(55), ..pick }), 0xf6cc_0003),
            (Kind::Drop, 0xf800_0001),
            (Kind::Reject, 0xf800_0002),
            (Kind::NodeportLocal, 0xf800_0006),
            (Kind::NodeportSourceRangesLocal, 0xf800_0008),
            (Kind::RememberFor(10_800), 0xf900_2a30),
            (Kind::RememberFor(86_400), 0xf901_5180),
        ];
        for (kind, class) in cases {
            assert_eq!(kind.class(), class, "{kind:?}");
        }
    }
}
