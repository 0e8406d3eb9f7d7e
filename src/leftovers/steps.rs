//! Changes of tables of others, over netlink.

use std::io;

use super::names::{SIGN, SIGN_COMMENT, TABLE};
use super::tables::{SUBSYSTEM, family_header};
use super::values::terminated;
use crate::netlink::{ACK, Builder, Bus, CREATE, REQUEST, Socket};

const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `struct nfgenmsg` of the beginning and the end of a batch: for nftables, whose number is in network byte order.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, 10];
/// `NFNL_BATCH_GENID`: carry it out only if nothing has changed since.
const BATCH_GENERATION: u16 = 1;
/// Attributes of the messages.
const TABLE_ATTRIBUTE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const TABLE_USER_DATA: u16 = 6;
const CHAIN_USER_DATA: u16 = 12;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;

/// One change of what there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Of kube-proxy.
    DeleteTable {
        family: &'a str,
    },
    /// Of kube-proxy's name, with a chain that is the sign for Calico.
    AddTable {
        family: &'a str,
    },
    AddSign {
        family: &'a str,
    },
    DeleteRule {
        family: &'a str,
        table: &'a str,
        chain: &'a str,
        handle: u64,
    },
    /// All rules of a chain.
    DeleteRules {
        family: &'a str,
        table: &'a str,
        chain: &'a str,
    },
    DeleteChain {
        family: &'a str,
        table: &'a str,
        chain: &'a str,
    },
}

/// Carries them out together or not at all; with a generation, only if nothing has changed since.
pub(super) fn commit(steps: &[Step<'_>], generation: Option<u32>) -> io::Result<()> {
    let Some(last) = steps.len().checked_sub(1) else {
        return Ok(());
    };
    let mut socket = Socket::open(Bus::Netfilter)?;
    let first = socket.next_sequence();
    let begin = Builder::message(BATCH_BEGIN, REQUEST, first, &BATCH_HEADER);
    let mut batch = match generation {
        Some(id) => begin.attribute(BATCH_GENERATION, &id.to_be_bytes()),
        None => begin,
    }
    .finish();
    let mut answered = first;
    for (index, step) in steps.iter().enumerate() {
        answered = socket.next_sequence();
        batch.extend(step.message(if index == last { REQUEST | ACK } else { REQUEST }, answered));
    }
    batch.extend(Builder::message(BATCH_END, REQUEST, socket.next_sequence(), &BATCH_HEADER).finish());
    socket.execute_batch(&batch, first..=answered)
}

impl Step<'_> {
    fn message(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let message = |kind, family: &str, table: &str| {
            Builder::message(kind, flags, sequence, &family_header(family))
                .attribute(TABLE_ATTRIBUTE, &terminated(table))
        };
        match *self {
            Step::AddTable { family } => Builder::message(NEW_TABLE, flags | CREATE, sequence, &family_header(family))
                .attribute(TABLE_ATTRIBUTE, &terminated(TABLE))
                .attribute(TABLE_USER_DATA, &comment(SIGN_COMMENT)),
            Step::AddSign { family } => Builder::message(NEW_CHAIN, flags | CREATE, sequence, &family_header(family))
                .attribute(TABLE_ATTRIBUTE, &terminated(TABLE))
                .attribute(CHAIN_NAME, &terminated(SIGN))
                .attribute(CHAIN_USER_DATA, &comment(SIGN_COMMENT)),
            Step::DeleteTable { family } => message(DELETE_TABLE, family, TABLE),
            Step::DeleteRule { family, table, chain, handle } => message(DELETE_RULE, family, table)
                .attribute(RULE_CHAIN, &terminated(chain))
                .attribute(RULE_HANDLE, &handle.to_be_bytes()),
            Step::DeleteRules { family, table, chain } => {
                message(DELETE_RULE, family, table).attribute(RULE_CHAIN, &terminated(chain))
            }
            Step::DeleteChain { family, table, chain } => {
                message(DELETE_CHAIN, family, table).attribute(CHAIN_NAME, &terminated(chain))
            }
        }
        .finish()
    }
}

/// User data that is a comment (`NFTNL_UDATA_*_COMMENT`, 0): type, length, text.
fn comment(text: &str) -> Vec<u8> {
    let text = terminated(text);
    let length = u8::try_from(text.len()).expect("the texts are short");
    [&[0, length], &text[..]].concat()
}
