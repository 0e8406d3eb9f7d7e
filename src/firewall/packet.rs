//! A packet, and what becomes of it. Pure.

use std::net::IpAddr;

use crate::model::Family;

/// Where on its way through the kernel a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// It has come in by a device, and nobody has looked at it.
    Ingress,
    /// It has come in.
    Prerouting,
    /// It is for this node.
    Input,
    /// It is for somebody else.
    Forward,
    /// This node sends it.
    Output,
    /// It is about to leave.
    Postrouting,
    /// It is given to a device.
    Egress,
}

impl Hook {
    /// As nft writes it.
    pub fn name(self) -> &'static str {
        match self {
            Hook::Ingress => "ingress",
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
            Hook::Egress => "egress",
        }
    }
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is the first of its connection.
    New,
    /// It is, or follows, an answer.
    Established,
    /// Nobody tracks it.
    Untracked,
}

/// Which packet of its connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The client's first; of TCP, a SYN.
    First,
    /// The first that comes back; of TCP, a SYN with an ACK.
    Answer,
    /// A later one of the client; of TCP, one with an ACK that neither opens nor ends the connection.
    Later,
    /// The same of what comes back.
    LaterAnswer,
}

impl Turn {
    /// Whether it comes back to the client.
    pub fn is_answer(self) -> bool {
        matches!(self, Turn::Answer | Turn::LaterAnswer)
    }
}

/// An address and a port, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    /// The address.
    pub address: Option<IpAddr>,
    /// Of protocols with ports.
    pub port: Option<u16>,
}

/// A packet at a hook. It is whole, and has no options ahead of its transport header. The kernel translates destinations
/// at hooks `prerouting` and `output`, at priority -100, and sources at `postrouting` and `input`, at 100: of answers, these
/// are what it undoes of the translation of the first packet's source, and of its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it is.
    pub hook: Hook,
    /// Which one of its connection it is.
    pub turn: Turn,
    /// The address that it comes from, ahead of the translation of sources.
    pub source: IpAddr,
    /// Of protocols with ports; `None` where it is not known.
    pub source_port: Option<u16>,
    /// The same behind that translation.
    pub source_behind: End,
    /// The address that it goes to, behind the translation of destinations.
    pub destination: IpAddr,
    /// Of protocols with ports; `None` where it is not known.
    pub destination_port: Option<u16>,
    /// The protocol's number.
    pub protocol: u8,
    /// The interface that it has come in by.
    pub input: Option<String>,
    /// The interface that it leaves by, where that is known at this hook.
    pub output: Option<String>,
    /// Its mark as it comes to this hook; `None` where it is not known.
    pub mark: Option<u32>,
    /// The mark of its connection; `None` where it is not known.
    pub connection_mark: Option<u32>,
    /// What connection tracking says of it.
    pub state: State,
    /// Where its sender has sent it to: the destination ahead of its translation.
    pub destination_ahead: End,
    /// Whether the destination of its connection is translated: that of a first packet at hooks `prerouting` and `output`
    /// behind priority -100, later in any case.
    pub dnat: bool,
    /// Whether the source of its connection is, that of a first packet at hooks `postrouting` and `input` behind priority 100;
    /// `None` where it is not known.
    pub snat: Option<bool>,
    /// The priority of the chain, not of those looked at, that translates it at this hook. Chains of others that translate
    /// come ahead of it with a lower priority, and not at all with a higher one.
    pub translated_by: Option<i32>,
}

impl Packet {
    /// Of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.destination)
    }
}

/// A rule, or the policy of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The chain that it is in, which need not be one at a hook.
    pub chain: String,
    /// Its number there, from 0; `None` for the policy.
    pub nth: Option<usize>,
    /// Its place and its text, as its own program prints it where that is installed.
    pub text: String,
}

/// What a base chain does to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It lets it pass.
    Passes,
    /// A rule drops it.
    Drops(Named),
    /// A rule refuses it, with an answer.
    Rejects(Named),
    /// No rule accepts it, and the policy drops it.
    DropsByPolicy(Named),
    /// A rule, or the policy, may drop or refuse it.
    MayDrop {
        /// The first that may.
        rule: Named,
        /// Why it cannot be told.
        why: String,
    },
    /// It translates its destination or its source, so that nobody after it does.
    NatElsewhere(Named),
    /// It is not tracked from here on, and so never translated.
    NoTrack(Named),
    /// It goes to a program, another device or a local socket.
    Takes {
        /// The rule that gives it away.
        rule: Named,
        /// To whom.
        to: String,
    },
    /// Nobody can tell.
    CannotTell {
        /// A rule that may do something; `None` where it is the whole.
        rule: Option<Named>,
        /// Why.
        why: String,
    },
}

impl Verdict {
    /// Whether the packet surely ends here.
    pub fn is_end(&self) -> bool {
        matches!(self, Verdict::Drops(_) | Verdict::Rejects(_) | Verdict::DropsByPolicy(_) | Verdict::Takes { .. })
    }
}

/// A base chain that a packet meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// The family of its table as nft writes it, or the program of legacy iptables.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its priority at the hook. Chains that translate are all called at -100, or 100, by their own among themselves.
    pub priority: i32,
    /// What it does.
    pub verdict: Verdict,
}

/// What becomes of a packet at a hook, as far as others decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The base chains, in the order of the kernel, up to one that ends its way.
    pub met: Vec<Met>,
    /// Its mark at the end of the hook; `None` where it is not known.
    pub mark: Option<u32>,
    /// That of its connection.
    pub connection_mark: Option<u32>,
    /// Whether it is tracked; `None` where it is not known.
    pub tracked: Option<bool>,
    /// Whether its addresses and ports surely are what the packet said: rules can write them.
    pub intact: bool,
    /// Whether a chain that comes behind [`Packet::translated_by`] would translate it, if nobody has; `None` where it cannot
    /// be told.
    pub translated_behind: Option<bool>,
    /// The zone of connection tracking that it is looked up in; `None` where it is not known. Elsewhere than at `prerouting`
    /// and `output` nobody sets it.
    pub zone: Option<u16>,
}
