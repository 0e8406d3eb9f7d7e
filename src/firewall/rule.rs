//! Rules as values, of nftables and of both kinds of iptables. Pure.

use ipnet::IpNet;

/// A rule: steps until one does not hold, or ends it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rule {
    pub(super) steps: Vec<Step>,
}

impl Rule {
    /// Whether it drops or refuses what it matches, or may.
    pub(super) fn may_drop(&self) -> bool {
        let drops = |step: &Step| match step {
            Step::Do(Action::Drop | Action::Reject | Action::Unknown(_)) => true,
            Step::LookUp { gives, .. } => *gives == Gives::Verdict,
            _ => false,
        };
        self.steps.iter().any(drops)
    }
}

/// A part of a rule. Places are bytes of the registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Puts something of the packet into registers.
    Load { to: usize, field: Field },
    /// Puts these bytes there.
    Put { to: usize, data: Vec<u8> },
    /// `& mask ^ xor`.
    Mask { from: usize, to: usize, mask: Vec<u8>, xor: Vec<u8> },
    /// Exchanges the bytes of each number of `size`.
    Swap { from: usize, to: usize, length: usize, size: usize },
    /// Nobody knows what is there now.
    Forget { to: usize, length: usize },
    /// Holds if a comparison does.
    Compare { from: usize, by: Comparison, data: Vec<u8> },
    /// Holds if what is there is in the range, or is not.
    Range { from: usize, inverted: bool, low: Vec<u8>, high: Vec<u8> },
    /// Holds if a set has what is there, or has not; a map gives a verdict, or puts its value `to`.
    LookUp { from: usize, set: String, inverted: bool, gives: Gives },
    /// A condition of iptables.
    Is { test: Test, inverted: bool },
    /// A condition that may hold or not, and why nobody can tell.
    May(String),
    /// Sets a mark from a register.
    Mark { of: Marked, from: usize },
    /// Sets a mark to its own bits or to another's, as targets of iptables do.
    Xmark { of: Marked, mask: u32, by: XmarkBy },
    /// The packet is not tracked.
    NoTrack,
    /// It is looked up in the zone that is there; `None` where nobody knows in which.
    Zone { from: Option<usize> },
    /// Changes addresses or ports of the packet, for all that is known.
    Mangle,
    /// Ends the rule.
    Do(Action),
}

/// What a look-up comes to beside whether it finds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gives {
    Nothing,
    Verdict,
    Data { to: usize },
}

/// Something that has a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marked {
    Packet,
    Connection,
}

/// What a mark becomes: `mark & !mask ^ ...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum XmarkBy {
    Value(u32),
    /// The other mark's bits in this mask.
    Other(u32),
}

/// What a rule does that ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Drop,
    Reject,
    Return,
    Jump(String),
    Goto(String),
    /// Source or destination is translated.
    Translate,
    /// The packet goes elsewhere.
    Give(String),
    /// Nobody knows, and why.
    Unknown(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// Something of a packet that nftables can load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// `NFT_PAYLOAD_*` as the base.
    Payload { base: u32, offset: usize, length: usize },
    /// `NFT_META_*`.
    Meta(u32),
    /// `NFT_CT_*`; whether it is about the direction of answers.
    Ct { key: u32, reply: bool },
    /// `NFT_FIB_RESULT_*` and `NFTA_FIB_F_*`.
    Fib { result: u32, flags: u32 },
}

/// An address and the bits of it that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Net {
    pub(super) value: Vec<u8>,
    pub(super) mask: Vec<u8>,
}

impl From<IpNet> for Net {
    fn from(net: IpNet) -> Net {
        match net {
            IpNet::V4(net) => Net { value: net.network().octets().to_vec(), mask: net.netmask().octets().to_vec() },
            IpNet::V6(net) => Net { value: net.network().octets().to_vec(), mask: net.netmask().octets().to_vec() },
        }
    }
}

/// First and last port of each range.
pub(super) type Ports = Vec<(u16, u16)>;

/// A condition of iptables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    Source(Net),
    Destination(Net),
    Protocol(u8),
    SourcePorts(Ports),
    DestinationPorts(Ports),
    EitherPorts(Ports),
    /// The beginning of the interface's name, and whether that is all of it.
    Input(String, bool),
    Output(String, bool),
    /// Bits of `XT_CONNTRACK_STATE_*`.
    States(u16),
    OriginalSource(Net),
    OriginalDestination(Net),
    OriginalSourcePorts(Ports),
    OriginalDestinationPorts(Ports),
    ConnectionProtocol(u8),
    /// That the packet goes the way of the first.
    IsOriginal,
    /// Whose, the value, and the mask.
    Mark(Marked, u32, u32),
    /// Value and mask of the flags of TCP.
    TcpFlags(u8, u8),
    /// A bit for each `RTN_*`.
    SourceType(u16),
    DestinationType(u16),
    /// That it is a fragment, but not the first.
    IsFragment,
}
