//! What the limit of a trace's table has not let pass: the rule with the limit counts what comes before it, and behind it.

use std::io;

use super::expressions::{COUNTER, terminated};
use super::hook::Watch;
use super::table;
use crate::model::Family;
use crate::netlink::{Attributes, Builder, DUMP, REQUEST, Socket, attributes, find};

/// `NFT_MSG_GETRULE`, `NFT_MSG_NEWRULE`.
const GET_RULE: u16 = table::SUBSYSTEM | 7;
const NEW_RULE: u16 = table::SUBSYSTEM | 6;
/// `NFTA_RULE_*`.
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const EXPRESSIONS: u16 = 4;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFTA_COUNTER_PACKETS`.
const PACKETS: u16 = 2;

/// How many packets the limit of this table has not let pass.
pub(super) fn over(socket: &mut Socket, name: &str, family: Family) -> io::Result<u64> {
    let request = Builder::message(GET_RULE, REQUEST | DUMP, socket.next_sequence(), &[table::number(family), 0, 0, 0])
        .attribute(TABLE, &terminated(name))
        .attribute(CHAIN, &terminated(Watch::TRACED));
    let mut found = None;
    socket.dump(&request.finish(), |message| {
        let text = |kind| find(message.attributes_after(4), kind).and_then(|attribute| attribute.text());
        // Old kernels do not filter.
        if message.kind == NEW_RULE && text(TABLE) == Some(name) && text(CHAIN) == Some(Watch::TRACED) {
            found = found.or(of_rule(message.attributes_after(4)));
        }
    })?;
    found.ok_or_else(|| io::Error::other("the rule with the limit is gone"))
}

/// What the first counter of a rule has more than the second; `None` of a rule without two.
fn of_rule(rule: Attributes<'_>) -> Option<u64> {
    let expressions = find(rule, EXPRESSIONS)?.value;
    let inside = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let name = terminated(COUNTER);
    let mut counts = attributes(expressions).filter_map(|(_, expression)| {
        inside(expression, NAME).filter(|it| *it == name)?;
        Some(u64::from_be_bytes(inside(inside(expression, DATA)?, PACKETS)?.try_into().ok()?))
    });
    // Both are read while packets pass.
    Some(counts.next()?.saturating_sub(counts.next()?))
}
