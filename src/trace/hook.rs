//! The points of a packet's way where a trace looks: its own chains, one at each end of each hook.

use std::fmt;

/// A hook of families `ip` and `ip6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    /// Of packets that arrive, before routing.
    Prerouting,
    /// Of packets to the node.
    Input,
    /// Of packets that pass through.
    Forward,
    /// Of packets of the node itself.
    Output,
    /// Of packets that leave.
    Postrouting,
}

impl Hook {
    /// All, in the order of `enum nf_inet_hooks`.
    pub(crate) const ALL: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

    /// What nft calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// Before all other chains of a hook, or behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// Before.
    First,
    /// Behind.
    Last,
}

/// One of the points. Its `Display` is the name of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Watch {
    /// The hook.
    pub(crate) hook: Hook,
    /// Its beginning or end.
    pub(crate) end: End,
}

impl Watch {
    /// The chain whose last rule has a packet traced.
    pub(crate) const TRACED: &str = "traced";

    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Watch> {
        Hook::ALL.into_iter().flat_map(|hook| [End::First, End::Last].map(|end| Watch { hook, end }))
    }

    /// The point whose chain has this name.
    pub(crate) fn parse(chain: &str) -> Option<Watch> {
        Watch::all().find(|watch| watch.to_string() == chain)
    }

    /// The priority of its chain. At the beginning, before what defragments (`NF_IP_PRI_CONNTRACK_DEFRAG`, -400) and tracks,
    /// so that nothing can drop a packet unseen; at the end, behind all but what confirms connections
    /// (`NF_IP_PRI_CONNTRACK_CONFIRM`).
    pub(crate) fn priority(self) -> i32 {
        match self.end {
            End::First => i32::MIN,
            End::Last => i32::MAX - 1,
        }
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.end {
            End::First => "first",
            End::Last => "last",
        };
        write!(f, "{}-{end}", self.hook.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_known_by_the_names_of_their_chains() {
        assert_eq!(Watch::all().count(), 10);
        for watch in Watch::all() {
            assert_eq!(Watch::parse(&watch.to_string()), Some(watch));
        }
        assert_eq!(Watch::parse("forward"), None);
    }
}
