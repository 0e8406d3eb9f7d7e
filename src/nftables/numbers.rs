//! What our values are called and numbered in C.

use super::uapi;
use crate::model::Family;
use crate::ruleset::types::Verdict;
use crate::sys::CName;

/// `NFPROTO_*` of a family.
pub(super) fn protocol_family(family: Family) -> u8 {
    match family {
        Family::V4 => uapi::NFPROTO_IPV4,
        Family::V6 => uapi::NFPROTO_IPV6,
    }
}

/// A verdict's code and chain.
pub(super) fn verdict(verdict: Verdict) -> (u32, Option<CName>) {
    match verdict {
        Verdict::Drop => (uapi::NF_DROP, None),
        Verdict::Goto(chain) => (uapi::NFT_GOTO, Some(c_name(&chain.to_string()))),
        Verdict::Jump(chain) => (uapi::NFT_JUMP, Some(c_name(&chain.to_string()))),
    }
}

/// Our own names hold no NUL: they are fixed texts and numbers.
pub(super) fn c_name(name: &str) -> CName {
    CName::new(name).unwrap_or_default()
}
