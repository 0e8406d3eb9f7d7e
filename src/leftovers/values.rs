//! What the values of attributes hold, and the numbers of those that more than one reader looks for.

use crate::netlink::attributes;

/// `NFTA_EXPR_*`.
pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;
/// `NFTA_DATA_*`.
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_*`.
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;
/// `NFTA_IMMEDIATE_*`.
pub(super) const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_CMP_*`.
pub(super) const CMP_REGISTER: u16 = 1;
pub(super) const CMP_OPERATION: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
/// `NFTA_BITWISE_*`.
pub(super) const BITWISE_FROM: u16 = 1;
pub(super) const BITWISE_TO: u16 = 2;
pub(super) const BITWISE_MASK: u16 = 4;
/// `NFTA_MATCH_*` and `NFTA_TARGET_*`.
pub(super) const XT_NAME: u16 = 1;
pub(super) const XT_INFO: u16 = 3;

/// The value of an attribute inside of another.
pub(super) fn inside(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text as netlink has it.
pub(super) fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A text that may end in a zero.
pub(super) fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// A number in network byte order.
pub(super) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
