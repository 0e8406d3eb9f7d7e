//! User data: what nft keeps in the kernel for itself, so that its listing reads as it was written. Lists of type,
//! length (one byte each) and value; numbers in host byte order. The kernel does not look at it.
//!
//! Facts from nftables 1.0.6: src/mnl.c `mnl_nft_set_add`, `set_key_expression`; src/expression.c
//! `concat_expr_build_udata`; `*_expr_build_udata` in src/payload.c, meta.c, ct.c and numgen.c; libnftnl's udata.h.

use smallvec::{SmallVec, smallvec};

use super::uapi;
use crate::model::Family;
use crate::ruleset::types::{DataDef, Selector, SetDef};

/// The most bytes of a comment that nft itself accepts (`NFTNL_UDATA_COMMENT_MAXLEN`), without the NUL.
pub(super) const COMMENT_MAX: usize = 128;

/// `NFTNL_UDATA_{TABLE,RULE,SET_ELEM}_COMMENT` are all 0.
const COMMENT: u8 = 0;
const SET_KEY_BYTE_ORDER: u8 = 0;
const SET_DATA_BYTE_ORDER: u8 = 1;
const SET_KEY_TYPEOF: u8 = 3;
const SET_DATA_TYPEOF: u8 = 4;
const SET_DATA_INTERVAL: u8 = 6;
/// `NFTNL_UDATA_SET_TYPEOF_EXPR`, and the same number inside a concatenation.
const TYPEOF_EXPR: u8 = 0;
/// `NFTNL_UDATA_SET_TYPEOF_DATA`, and the same number inside a concatenation.
const TYPEOF_DATA: u8 = 1;

// enum expr_types of nft's include/expression.h.
const EXPR_PAYLOAD: u32 = 7;
const EXPR_META: u32 = 9;
const EXPR_CT: u32 = 12;
const EXPR_CONCAT: u32 = 13;
const EXPR_NUMGEN: u32 = 23;

// enum proto_desc_id of nft's include/proto.h.
const DESC_TH: u32 = 11;
const DESC_IP: u32 = 12;
const DESC_IP6: u32 = 13;

// enum byteorder of nft's include/datatype.h.
const ORDER_NONE: u32 = 0;
const ORDER_HOST: u32 = 1;
const ORDER_BIG: u32 = 2;

/// A comment of a table, rule or element, cut to what nft accepts.
pub(super) fn comment(text: &str, out: &mut Vec<u8>) {
    let end = (0..=COMMENT_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = &text[..end];
    // A NUL would end the text for nft, and nothing of ours holds one.
    let text = text.split('\0').next().unwrap_or_default();
    out.extend([COMMENT, text.len() as u8 + 1]);
    out.extend(text.as_bytes());
    out.push(0);
}

/// The comment in user data that the kernel gave back.
pub(super) fn read_comment(udata: &[u8]) -> Option<&str> {
    let mut rest = udata;
    while let [kind, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return std::str::from_utf8(value.strip_suffix(&[0])?).ok();
        }
        rest = &tail[value.len()..];
    }
    None
}

/// What `typeof` says about a set or map. A verdict map has none: nft 0.9.4 to 0.9.8 crash over a verdict in it,
/// whatever they are asked to do with whichever table (src/netlink.c `set_make_key`). Nor has a map to kinds. Their types
/// alone say as much, and every nft reads them.
pub(super) fn set(family: Family, set: &SetDef) -> Vec<u8> {
    let mut out = Vec::with_capacity(192);
    let is_map = set.data != DataDef::None;
    put_u32(&mut out, SET_KEY_BYTE_ORDER, byte_order(&set.key));
    match &set.data {
        DataDef::None => {}
        DataDef::Values(data) => put_u32(&mut out, SET_DATA_BYTE_ORDER, byte_order(data)),
        DataDef::Verdict => put_u32(&mut out, SET_DATA_BYTE_ORDER, ORDER_NONE),
    }
    let by_name = set.data == DataDef::Verdict || set.data == DataDef::Values(vec![Selector::Priority]);
    if !by_name {
        nest(&mut out, SET_KEY_TYPEOF, |out| type_of_all(family, &set.key, out));
    }
    if let DataDef::Values(data) = &set.data
        && !by_name
    {
        nest(&mut out, SET_DATA_TYPEOF, |out| type_of_all(family, data, out));
    }
    if is_map {
        put_u32(&mut out, SET_DATA_INTERVAL, 0);
    }
    out
}

fn byte_order(exprs: &[Selector]) -> u32 {
    match exprs {
        [Selector::RandomSlot { .. } | Selector::L4Proto | Selector::Priority] => ORDER_HOST,
        [_] => ORDER_BIG,
        _ => ORDER_NONE,
    }
}

fn type_of_all(family: Family, exprs: &[Selector], out: &mut Vec<u8>) {
    if let [expr] = exprs {
        return type_of(family, *expr, out);
    }
    put_u32(out, TYPEOF_EXPR, EXPR_CONCAT);
    nest(out, TYPEOF_DATA, |out| {
        for (position, expr) in exprs.iter().enumerate() {
            nest(out, position as u8, |out| type_of(family, *expr, out));
        }
    });
}

fn type_of(family: Family, expr: Selector, out: &mut Vec<u8>) {
    // The field's number in the header's description: enum ip_hdr_fields, ip6_hdr_fields, th_hdr_fields.
    let ip = |v4: u32, v6: u32| match family {
        Family::V4 => [DESC_IP, v4],
        Family::V6 => [DESC_IP6, v6],
    };
    let (kind, numbers): (u32, SmallVec<[u32; 3]>) = match expr {
        Selector::SourceAddress => (EXPR_PAYLOAD, ip(11, 8).into_iter().collect()),
        Selector::DestinationAddress => (EXPR_PAYLOAD, ip(12, 9).into_iter().collect()),
        Selector::HeaderProtocol => (EXPR_PAYLOAD, ip(9, 6).into_iter().collect()),
        Selector::DestinationPort => (EXPR_PAYLOAD, smallvec![DESC_TH, 2]),
        Selector::L4Proto => (EXPR_META, smallvec![uapi::meta::L4PROTO]),
        Selector::Priority => (EXPR_META, smallvec![uapi::meta::PRIORITY]),
        // NFT_NG_RANDOM is 1. All slots are of one type, which sets have from this one.
        Selector::RandomSlot { modulus, offset }
        | Selector::NextSlot { modulus, offset }
        | Selector::HashedSlot { modulus, offset, .. } => (EXPR_NUMGEN, smallvec![1, modulus, offset]),
        Selector::OriginalSource => (EXPR_CT, smallvec![ct_address(family, true), uapi::ct::ORIGINAL.into()]),
        Selector::OriginalDestination => (EXPR_CT, smallvec![ct_address(family, false), uapi::ct::ORIGINAL.into()]),
        Selector::OriginalPort => (EXPR_CT, smallvec![uapi::ct::PROTO_DST, uapi::ct::ORIGINAL.into()]),
        Selector::ReplySource => (EXPR_CT, smallvec![ct_address(family, true), uapi::ct::REPLY.into()]),
        Selector::ReplyPort => (EXPR_CT, smallvec![uapi::ct::PROTO_SRC, uapi::ct::REPLY.into()]),
    };
    put_u32(out, TYPEOF_EXPR, kind);
    nest(out, TYPEOF_DATA, |out| {
        for (position, number) in numbers.iter().enumerate() {
            put_u32(out, position as u8, *number);
        }
    });
}

fn ct_address(family: Family, source: bool) -> u32 {
    use uapi::ct;
    match (family, source) {
        (Family::V4, true) => ct::SRC_IP,
        (Family::V4, false) => ct::DST_IP,
        (Family::V6, true) => ct::SRC_IP6,
        (Family::V6, false) => ct::DST_IP6,
    }
}

fn put_u32(out: &mut Vec<u8>, kind: u8, value: u32) {
    out.extend([kind, 4]);
    out.extend(value.to_ne_bytes());
}

/// A value that is itself a list; the length is known afterwards. Ours fit into one byte: a key has at most five parts
/// of at most 26 bytes.
fn nest(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend([kind, 0]);
    let start = out.len();
    fill(out);
    out[start - 1] = (out.len() - start) as u8;
}
