//! Parts of the frame that few clusters need. They are there from the first Service on that asks for them, and until the table
//! is made anew: whoever has no such Service has a table without them.

use super::names::{ChainName, SetName};

/// Which of these parts a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Extras {
    /// Node ports that only some sources may reach.
    pub nodeport_ranges: bool,
    /// Addresses of Services that answer pings.
    pub ping: bool,
}

impl Extras {
    /// None of them.
    pub const NONE: Extras = Extras { nodeport_ranges: false, ping: false };

    /// All of them.
    pub const ALL: Extras = Extras { nodeport_ranges: true, ping: true };

    /// What a set belongs to; none for those that are always there.
    pub fn of_set(set: SetName) -> Extras {
        let nodeport_ranges = matches!(set, SetName::NodeportAllowedSources | SetName::NodeportAfterSourceRanges);
        Extras { nodeport_ranges, ping: set == SetName::PingIps }
    }

    /// These, and others.
    #[must_use]
    pub fn with(self, other: Extras) -> Extras {
        Extras { nodeport_ranges: self.nodeport_ranges || other.nodeport_ranges, ping: self.ping || other.ping }
    }

    /// Whether a table with these has a set.
    pub fn has_set(self, set: SetName) -> bool {
        self.with(Extras::of_set(set)) == self
    }

    /// The chains of these.
    pub fn chains(self) -> impl Iterator<Item = ChainName> {
        ChainName::EXTRA.into_iter().filter(move |_| self.nodeport_ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_and_chains_are_there_with_their_part_only() {
        let extra = |extras: Extras| SetName::ALL.into_iter().filter(|set| !extras.has_set(*set)).collect::<Vec<_>>();
        assert_eq!(extra(Extras::ALL), []);
        let ranges = [SetName::NodeportAllowedSources, SetName::NodeportAfterSourceRanges];
        assert_eq!(extra(Extras::NONE), [ranges[0], ranges[1], SetName::PingIps]);
        assert_eq!(extra(Extras { ping: true, ..Extras::NONE }), ranges);
        assert_eq!(Extras::NONE.chains().count(), 0);
        assert!(Extras::ALL.chains().eq(ChainName::EXTRA));
        assert_eq!(ranges.map(Extras::of_set), [Extras { nodeport_ranges: true, ping: false }; 2]);
        assert_eq!(Extras { ping: true, ..Extras::NONE }.chains().count(), 0);
        assert_eq!(Extras::NONE.with(Extras::ALL), Extras::ALL);
    }
}
