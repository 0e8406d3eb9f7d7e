//! What the values of attributes hold, and the numbers of those that more than one reader looks for.

use crate::netlink::attributes;

/// `NFTA_EXPR_*`.
pub(crate) const EXPRESSION_NAME: u16 = 1;
pub(crate) const EXPRESSION_DATA: u16 = 2;
/// `NFTA_DATA_*`.
pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_*`.
pub(crate) const VERDICT_CODE: u16 = 1;
pub(crate) const VERDICT_CHAIN: u16 = 2;
/// `NFTA_IMMEDIATE_*`.
pub(crate) const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_CMP_*`.
pub(crate) const CMP_REGISTER: u16 = 1;
pub(crate) const CMP_OPERATION: u16 = 2;
pub(crate) const CMP_DATA: u16 = 3;
/// `NFTA_BITWISE_*`.
pub(crate) const BITWISE_FROM: u16 = 1;
pub(crate) const BITWISE_TO: u16 = 2;
pub(crate) const BITWISE_MASK: u16 = 4;
pub(crate) const BITWISE_XOR: u16 = 5;
pub(crate) const BITWISE_OPERATION: u16 = 6;
/// `NFTA_PAYLOAD_*`.
pub(crate) const PAYLOAD_TO: u16 = 1;
pub(crate) const PAYLOAD_BASE: u16 = 2;
pub(crate) const PAYLOAD_OFFSET: u16 = 3;
pub(crate) const PAYLOAD_LENGTH: u16 = 4;
/// `NFTA_META_*` and `NFTA_CT_*`.
pub(crate) const LOAD_TO: u16 = 1;
pub(crate) const LOAD_KEY: u16 = 2;
/// `NFT_META_*`.
pub(crate) const META_MARK: u32 = 3;
pub(crate) const META_OUTPUT_NAME: u32 = 7;
pub(crate) const META_NFPROTO: u32 = 15;
pub(crate) const META_L4PROTO: u32 = 16;
/// `NFT_CT_*`.
pub(crate) const CT_STATE: u32 = 0;
pub(crate) const CT_STATUS: u32 = 2;
/// `IPS_DST_NAT`.
pub(crate) const STATUS_DNAT: u32 = 1 << 5;
/// `NFTA_LOOKUP_DREG`.
pub(crate) const LOOKUP_TO: u16 = 3;
/// `NFTA_RANGE_*`.
pub(crate) const RANGE_REGISTER: u16 = 1;
pub(crate) const RANGE_OPERATION: u16 = 2;
pub(crate) const RANGE_FROM: u16 = 3;
pub(crate) const RANGE_TO: u16 = 4;
/// `NFT_CMP_*`.
pub(crate) const CMP_EQUAL: u32 = 0;
pub(crate) const CMP_AT_MOST: u32 = 3;
pub(crate) const CMP_AT_LEAST: u32 = 5;
/// `NFTA_MATCH_*` and `NFTA_TARGET_*`.
pub(crate) const XT_NAME: u16 = 1;
pub(crate) const XT_REVISION: u16 = 2;
pub(crate) const XT_INFO: u16 = 3;

/// The value of an attribute inside of another.
pub(crate) fn inside(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text as netlink has it.
pub(crate) fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A text that may end in a zero.
pub(crate) fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// A number in network byte order.
pub(crate) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
