//! What the rules of several chains are made of.

use super::names::{ChainName, SetName};
use super::types::{Rule, Selector, Statement, Verdict};

/// Address . protocol . port: what a frontend with an address is looked up by.
pub(super) const ADDRESS_KEY: [Selector; 3] =
    [Selector::DestinationAddress, Selector::L4Proto, Selector::DestinationPort];

/// Protocol . port: what a node port is looked up by.
pub(super) const NODEPORT_KEY: [Selector; 2] = [Selector::L4Proto, Selector::DestinationPort];

/// The protocol is taken from the header: see [`Selector::HeaderProtocol`]. That of a node port has no address to begin with.
///
/// Kernels without "nft_set_pipapo: fix incorrect avx2 match of 5th field octet" (e042ed950d4e, Linux 6.15 and stable
/// releases since April 2025) can ignore the sixth byte of IPv6 addresses in such sets on machines with AVX2: on
/// Debian's 5.10.223 a source in the neighbouring /48 of an allowed one was let through.
pub(super) const ALLOWED_SOURCE_KEY: [Selector; 4] =
    [Selector::DestinationAddress, Selector::HeaderProtocol, Selector::DestinationPort, Selector::SourceAddress];

/// Where it is looked whether a source is allowed, and what follows.
pub(super) struct Ranges {
    key: &'static [Selector],
    sources: SetName,
    frontend: &'static [Selector],
    after: SetName,
}

impl Ranges {
    /// Of frontends with an address.
    pub(super) const OF_ADDRESS: Ranges = Ranges {
        key: &ALLOWED_SOURCE_KEY,
        sources: SetName::AllowedSources,
        frontend: &ADDRESS_KEY,
        after: SetName::AfterSourceRanges,
    };

    /// Of node ports.
    pub(super) const OF_NODEPORT: Ranges = Ranges {
        key: ALLOWED_SOURCE_KEY.split_at(1).1,
        sources: SetName::NodeportAllowedSources,
        frontend: &NODEPORT_KEY,
        after: SetName::NodeportAfterSourceRanges,
    };

    /// Drops who is not allowed, and looks up what is done with the others.
    pub(super) fn rules(&self) -> Vec<Rule> {
        vec![self.not_allowed(), rule(by_kind(self.frontend, self.after, SetName::DispatchLast))]
    }

    /// Drops who is not allowed, and hands the others over.
    pub(super) fn rules_before(&self, chain: ChainName) -> Vec<Rule> {
        vec![self.not_allowed(), rule([goto(chain)])]
    }

    fn not_allowed(&self) -> Rule {
        let not_in = Statement::InSet { key: self.key.to_vec(), set: self.sources, negated: true };
        rule([not_in, Statement::Verdict(Verdict::Drop)])
    }
}

pub(super) fn rule(statements: impl Into<Vec<Statement>>) -> Rule {
    Rule { statements: statements.into(), comment: None }
}

pub(super) fn goto(chain: ChainName) -> Statement {
    Statement::Verdict(Verdict::Goto(chain))
}

pub(super) fn jump(chain: ChainName) -> Statement {
    Statement::Verdict(Verdict::Jump(chain))
}

/// Looks up a kind, and then what is done with it. Only together, in one rule.
pub(super) fn by_kind(key: &[Selector], kinds: SetName, dispatch: SetName) -> [Statement; 2] {
    [
        Statement::PriorityFromMap { key: key.to_vec(), map: kinds },
        Statement::VerdictMap { key: vec![Selector::Priority], map: dispatch },
    ]
}
