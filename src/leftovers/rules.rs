//! Rules of nftables as the kernel lists them, read as far as it matters whether they drop packets of Services. Pure.
//!
//! Rules of iptables-nft have expressions of both kinds: nftables' own, and matches and targets of iptables, whose names
//! and structures are those of include/uapi/linux/netfilter/.

use std::collections::BTreeMap;

use super::values::{
    BITWISE_FROM, BITWISE_MASK, BITWISE_OPERATION, BITWISE_TO, BITWISE_XOR, CMP_DATA, CMP_OPERATION, CMP_REGISTER,
    CT_STATE, CT_STATUS, DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME, IMMEDIATE_DATA, LOAD_KEY, LOAD_TO,
    LOOKUP_TO, META_MARK, STATUS_DNAT, VERDICT_CHAIN, VERDICT_CODE, XT_INFO, XT_NAME, XT_REVISION, be32, inside,
    string,
};
use super::walk::{Does, Match, Rule};
use crate::netlink::attributes;

/// `NF_CT_STATE_UNTRACKED_BIT`, and what is above: no states of [`state`].
const NO_STATES: u32 = !((1 << 6) - 1);
/// `match_flags`, `invert_flags` and `state_mask` in `struct xt_conntrack_mtinfo2` and `xt_conntrack_mtinfo3`, 16 bits each.
const CONNTRACK_FLAGS: [usize; 3] = [146, 148, 150];
/// `XT_CONNTRACK_STATE`.
const CONNTRACK_STATE: u16 = 1;
/// `XT_CONNTRACK_STATE_ALIAS`: it was written as match `state`.
const CONNTRACK_ALIAS: u16 = 1 << 13;
/// Targets of iptables that drop or refuse, beside the verdict.
const REFUSING: [&str; 4] = ["REJECT", "TARPIT", "DELUDE", "CHAOS"];

/// What is in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Mark,
    State,
    Status,
}

/// Reads the expressions of a rule, where `mark` is the bit that we mark with.
pub(super) fn rule(expressions: &[u8], mark: u32) -> Rule {
    let mut rule = Rule { matches: Match::ALL, does: Does::Other };
    let mut registers: BTreeMap<u32, (Loaded, Option<u32>)> = BTreeMap::new();
    for (_, expression) in attributes(expressions) {
        let data: BTreeMap<u16, &[u8]> = inside(expression, EXPRESSION_DATA).into_iter().flat_map(attributes).collect();
        let number = |kind| data.get(&kind).and_then(|bytes| be32(bytes));
        let bytes = |kind| data.get(&kind).copied().unwrap_or_default();
        let name = inside(expression, EXPRESSION_NAME).map(string).unwrap_or_default();
        let unknown = || Some(Match::UNKNOWN);
        let condition = match name.as_str() {
            "immediate" => {
                rule.does = verdict(bytes(IMMEDIATE_DATA)).unwrap_or(Does::Other);
                None
            }
            "reject" => {
                rule.does = Does::Drop;
                None
            }
            // A map of verdicts, of which any may be meant.
            "lookup" if number(LOOKUP_TO) == Some(0) => {
                rule.does = Does::Drop;
                unknown()
            }
            "target" => {
                if REFUSING.contains(&string(bytes(XT_NAME)).as_str()) {
                    rule.does = Does::Drop;
                }
                None
            }
            "match" => matched(&string(bytes(XT_NAME)), number(XT_REVISION), bytes(XT_INFO), mark),
            "counter" | "log" => None,
            "meta" | "ct" => {
                let loaded = match (name.as_str(), number(LOAD_KEY)) {
                    ("meta", Some(META_MARK)) => Some(Loaded::Mark),
                    ("ct", Some(CT_STATE)) => Some(Loaded::State),
                    ("ct", Some(CT_STATUS)) => Some(Loaded::Status),
                    _ => None,
                };
                // Without a register, it sets something.
                if let Some(register) = number(LOAD_TO) {
                    registers.remove(&register);
                    registers.extend(loaded.map(|loaded| (register, (loaded, None))));
                }
                None
            }
            "bitwise" => {
                let value = |kind| inside(bytes(kind), DATA_VALUE).and_then(host32);
                let from = number(BITWISE_FROM).and_then(|from| registers.get(&from).copied());
                let to = number(BITWISE_TO).unwrap_or_default();
                registers.remove(&to);
                let is_mask = number(BITWISE_OPERATION).unwrap_or_default() == 0 && value(BITWISE_XOR) == Some(0);
                if let (Some((loaded, None)), Some(mask), true) = (from, value(BITWISE_MASK), is_mask) {
                    registers.insert(to, (loaded, Some(mask)));
                }
                None
            }
            "cmp" => {
                let value = inside(bytes(CMP_DATA), DATA_VALUE).and_then(host32);
                let register = number(CMP_REGISTER).and_then(|register| registers.get(&register).copied());
                let equal = number(CMP_OPERATION).filter(|operation| *operation < 2).map(|operation| operation == 0);
                match (register, value, equal) {
                    (Some((loaded, Some(mask))), Some(value), Some(equal)) => {
                        Some(compared(loaded, mask, value, equal, mark))
                    }
                    _ => unknown(),
                }
            }
            _ => {
                // It may have loaded anything.
                registers.clear();
                unknown()
            }
        };
        rule.matches = condition.map_or(rule.matches, |condition| rule.matches.and(condition));
    }
    rule
}

/// The bit that a rule looks for in packets' marks.
pub(super) fn mark(expressions: &[u8]) -> Option<u32> {
    (0..u32::BITS).map(|bit| 1 << bit).find(|mark| rule(expressions, *mark).matches.is_of_marked())
}

/// What a verdict does.
fn verdict(data: &[u8]) -> Option<Does> {
    /// `NF_*` and `NFT_*` of include/uapi/linux/netfilter.h and nf_tables.h.
    const DROP: i32 = 0;
    const ACCEPT: i32 = 1;
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    const RETURN: i32 = -5;
    let verdict = inside(data, DATA_VERDICT)?;
    let code = inside(verdict, VERDICT_CODE).and_then(be32)?.cast_signed();
    let to = || inside(verdict, VERDICT_CHAIN).map(string);
    Some(match code {
        DROP => Does::Drop,
        ACCEPT => Does::Accept,
        RETURN => Does::Return,
        JUMP | GOTO => Does::Lead { to: to()?, goes: code == GOTO },
        _ => Does::Other,
    })
}

/// A comparison of what is left by a mask with a value.
fn compared(loaded: Loaded, mask: u32, value: u32, equal: bool, ours: u32) -> Match {
    // For one bit there are two ways to say each of "it is set" and "it is not".
    let is_set = match value {
        0 => !equal,
        _ if value == mask && (mask.is_power_of_two() || loaded == Loaded::Mark) => equal,
        _ => return Match::UNKNOWN,
    };
    match loaded {
        Loaded::Mark => Match::mark(mask, mask, !is_set, ours),
        Loaded::State => match u16::try_from(mask & !NO_STATES) {
            Ok(states) if mask & NO_STATES == 0 => Match::states(states, !is_set),
            _ => Match::UNKNOWN,
        },
        Loaded::Status if mask == STATUS_DNAT && is_set => Match::TRANSLATED,
        Loaded::Status => Match::UNKNOWN,
    }
}

/// A match of iptables.
fn matched(name: &str, revision: Option<u32>, info: &[u8], ours: u32) -> Option<Match> {
    match (name, revision) {
        ("comment", _) => None,
        // `struct xt_mark_mtinfo1`: mark, mask, and whether it is inverted.
        ("mark", Some(1)) => {
            let number = |at| info.get(at..).and_then(host32);
            let parts = number(0).zip(number(4)).zip(info.get(8));
            Some(
                parts
                    .map_or(Match::UNKNOWN, |((value, mask), inverted)| Match::mark(value, mask, *inverted != 0, ours)),
            )
        }
        ("conntrack", Some(2 | 3)) => {
            let number = |at| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
            let [Some(flags), Some(inverted), Some(states)] = CONNTRACK_FLAGS.map(number) else {
                return Some(Match::UNKNOWN);
            };
            let by_state = match flags & CONNTRACK_STATE {
                0 => Match::UNKNOWN,
                _ => Match::states(states, inverted & CONNTRACK_STATE != 0),
            };
            Some(if flags & !CONNTRACK_ALIAS == CONNTRACK_STATE { by_state } else { by_state.and(Match::UNKNOWN) })
        }
        _ => Some(Match::UNKNOWN),
    }
}

/// A number in the byte order of the machine, such as those in registers.
fn host32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}
