//! Messages of the kernel about packets that are traced (`NFT_MSG_TRACE`), read: bytes in, values out, and nothing trusted.
//!
//! Names and numbers are those of include/uapi/linux/netfilter/nf_tables.h; what is in which message is in
//! net/netfilter/nf_tables_trace.c.

use super::packet::Flow;
use crate::netlink::{Attribute, Message, children, find};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE`.
const TRACE: u16 = 10 << 8 | 17;
/// Length of `struct nfgenmsg`.
const GENERIC_HEADER: usize = 4;

// enum nft_trace_attributes.
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const NETWORK_HEADER: u16 = 8;
const TRANSPORT_HEADER: u16 = 9;
const IIF: u16 = 10;
const OIF: u16 = 12;
const POLICY: u16 = 16;
/// Since Linux 6.16, as the other `NFTA_TRACE_CT_*`.
const CT_STATE: u16 = 21;
/// `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`.
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

// enum nft_trace_types.
const TYPE_POLICY: u32 = 1;
const TYPE_RETURN: u32 = 2;
const TYPE_RULE: u32 = 3;

/// `NF_CT_STATE_BIT(IP_CT_NEW)` of include/uapi/linux/netfilter/nf_conntrack_common.h.
const STATE_NEW: u32 = 1 << 3;
/// `NF_CT_STATE_UNTRACKED_BIT`.
const STATE_UNTRACKED: u32 = 1 << 6;

/// A chain of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// `NFPROTO_*` of its table.
    pub(crate) family: u8,
    /// Its table.
    pub(crate) table: String,
    /// Its name.
    pub(crate) chain: String,
}

impl Place {
    /// What nft calls its family.
    pub(crate) fn family(&self) -> &'static str {
        match self.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "unspec",
        }
    }
}

/// What has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The rule with this handle.
    Rule(u64),
    /// The end of a chain's rules.
    End,
    /// The policy of a base chain.
    Policy,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// `accept`: the base chain is done with it, those behind it are not.
    Accept,
    /// `drop`; also `reject`, once the answer is on its way.
    Drop,
    /// Somebody else has the packet now.
    Stolen,
    /// It waits for a program.
    Queue,
    /// The next rule decides.
    Continue,
    /// `jump`, or `goto`, to this chain.
    To(String),
    /// Back to the chain that it came from.
    Return,
    /// A number that is not known here.
    Other(u32),
}

/// What connection tracking knows of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// It begins a connection.
    New,
    /// It belongs to a connection that was open before.
    Open,
    /// A rule has said that it is not to be tracked.
    Untracked,
}

/// A step of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The packet: the number of its buffer, which may be another's later.
    pub(crate) id: u32,
    /// Where it is.
    pub(crate) place: Place,
    /// What has decided.
    pub(crate) by: By,
    /// What was decided.
    pub(crate) verdict: Verdict,
    /// What its headers say, in the first message of each base chain, as it came to that chain.
    pub(crate) flow: Option<Flow>,
    /// The index of the device that it came in by; only where `flow` is.
    pub(crate) input: Option<u32>,
    /// The index of the device that it is to leave by; only where `flow` is.
    pub(crate) output: Option<u32>,
    /// What connection tracking knows of it, where the kernel says so (Linux 6.16); only where `flow` is.
    pub(crate) tracking: Option<Tracking>,
}

impl Step {
    /// Reads a message; `None` if it is another one, or makes no sense.
    pub(crate) fn read(message: &Message<'_>) -> Option<Step> {
        if message.kind != TRACE {
            return None;
        }
        let attributes = || message.attributes_after(GENERIC_HEADER);
        let attribute = |kind| find(attributes(), kind);
        let number = |kind| attribute(kind)?.number();
        let text = |kind| Some(attribute(kind)?.text()?.to_owned());
        let bytes = |kind| attribute(kind).map(|attribute| attribute.value).unwrap_or_default();
        let place = Place { family: *message.payload.first()?, table: text(TABLE)?, chain: text(CHAIN)? };
        let handle = attribute(RULE_HANDLE).and_then(|handle| Some(u64::from_be_bytes(handle.value.try_into().ok()?)));
        let (by, verdict) = match number(TYPE)? {
            TYPE_POLICY => (By::Policy, verdict(number(POLICY)?, None)),
            // Behind the last rule of a chain there is a rule without a handle.
            TYPE_RULE | TYPE_RETURN => (handle.map_or(By::End, By::Rule), verdict_of(&attribute(VERDICT)?)?),
            _ => return None,
        };
        Some(Step {
            id: number(ID)?,
            place,
            by,
            verdict,
            flow: Flow::read(bytes(NETWORK_HEADER), bytes(TRANSPORT_HEADER)),
            input: number(IIF),
            output: number(OIF),
            tracking: number(CT_STATE).map(|state| match state {
                STATE_UNTRACKED => Tracking::Untracked,
                state if state & STATE_NEW != 0 => Tracking::New,
                _ => Tracking::Open,
            }),
        })
    }
}

fn verdict_of(nest: &Attribute<'_>) -> Option<Verdict> {
    let inside = |kind| children(nest).find(|attribute| attribute.kind == kind);
    let chain = inside(VERDICT_CHAIN).and_then(|chain| chain.text().map(str::to_owned));
    Some(verdict(inside(VERDICT_CODE)?.number()?, chain))
}

/// `NFT_*` are below 0. Of the others (`NF_*` of include/uapi/linux/netfilter.h) the upper half is an errno or a queue.
fn verdict(code: u32, chain: Option<String>) -> Verdict {
    match (code.cast_signed(), chain) {
        (-1 | -2, _) => Verdict::Continue,
        (-3 | -4, Some(chain)) => Verdict::To(chain),
        (-5, _) => Verdict::Return,
        (..0, _) => Verdict::Other(code),
        _ => match code & 0xff {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            2 => Verdict::Stolen,
            3 => Verdict::Queue,
            _ => Verdict::Other(code),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::messages;
    use crate::trace::testing::{recorded, recording};

    #[test]
    fn what_the_kernel_has_said_is_read() {
        let steps = recorded("forwarded");
        let first = &steps[0];
        assert_eq!(first.place, Place { family: 2, table: "trc".to_owned(), chain: "tr".to_owned() });
        assert_eq!((first.by, &first.verdict, first.tracking), (By::Rule(11), &Verdict::Continue, None));
        assert_eq!((first.input, first.output), (Some(3), None));
        assert_eq!(first.flow.expect("headers").to_string(), "10.1.0.1:40348 -> 10.96.0.80:80 tcp");
        assert!(steps.iter().all(|step| step.id == first.id), "one packet: {steps:#?}");
        // The end of the rules, and then the policy of the base chain.
        assert_eq!((steps[1].by, &steps[1].verdict, steps[1].flow), (By::End, &Verdict::Continue, None));
        assert_eq!((steps[2].by, &steps[2].verdict), (By::Policy, &Verdict::Accept));
        assert_eq!((steps[3].tracking, &steps[3].verdict), (Some(Tracking::New), &Verdict::Accept));
        let last = steps.iter().rev().find_map(|step| Some((step.flow?, step.output))).expect("headers");
        assert_eq!((last.0.to_string().as_str(), last.1), ("10.2.0.254:46624 -> 10.2.0.1:8080 tcp", Some(5)));

        let refused = recorded("refused");
        assert_eq!(refused[3].verdict, Verdict::To("rej".to_owned()));
        assert_eq!((refused[4].by, &refused[4].verdict), (By::Rule(7), &Verdict::Drop));
    }

    #[test]
    fn verdicts_are_told_apart() {
        let chain = || Some("c".to_owned());
        for (code, wanted) in [
            (0, Verdict::Drop),
            (1 << 16, Verdict::Drop),
            (1, Verdict::Accept),
            (2, Verdict::Stolen),
            (7 << 16 | 3, Verdict::Queue),
            (5, Verdict::Other(5)),
            (u32::MAX, Verdict::Continue),
            (u32::MAX - 2, Verdict::To("c".to_owned())),
            (u32::MAX - 3, Verdict::To("c".to_owned())),
            (u32::MAX - 4, Verdict::Return),
            (1 << 31, Verdict::Other(1 << 31)),
        ] {
            assert_eq!(verdict(code, chain()), wanted, "{code:#x}");
        }
        assert_eq!(verdict(u32::MAX - 2, None), Verdict::Other(u32::MAX - 2), "a jump to nowhere");
    }

    fn read_everything(bytes: &[u8]) {
        messages(bytes).map_while(Result::ok).for_each(|message| drop(Step::read(&message)));
        // As if the header were right.
        let message = Message { kind: TRACE, flags: 0, sequence: 0, port: 0, payload: bytes };
        let _ = Step::read(&message);
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn random_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            read_everything(&bytes);
        }

        #[test]
        fn damaged_messages_are_harmless(
            nth in any::<prop::sample::Index>(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let all = recording("forwarded");
            let mut bytes = all[nth.index(all.len())].clone();
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            read_everything(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            read_everything(&bytes);
        }
    }
}
