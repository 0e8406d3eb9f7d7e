//! A rule as the kernel executes it: expressions that move data between registers.

use std::ffi::CString;

use smallvec::SmallVec;

/// Bytes of a register or of a constant: at most 64 (`NFT_DATA_VALUE_MAXLEN`).
pub(crate) type Bytes = SmallVec<[u8; 16]>;

/// The name of a set or chain.
pub(crate) type CName = CString;

/// A register, counted in units of 4 bytes from 0 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Register(u8);

impl Register {
    /// The number of 4-byte units that there are (`NFT_REG32_COUNT`).
    pub(crate) const COUNT: usize = 16;
    /// Where the allocation of each statement begins.
    pub(crate) const FIRST: Register = Register(0);

    /// The register so many bytes further on, rounded up to whole units.
    pub(crate) fn after(self, bytes: usize) -> Register {
        Register(self.0 + bytes.div_ceil(4) as u8)
    }

    /// Its number on the wire. As nft and the kernel do, the name of the 16-byte register where one begins here
    /// (`NFT_REG_1`..), and that of the 4-byte register otherwise (`NFT_REG32_00`..).
    pub(crate) fn number(self) -> u32 {
        let unit = u32::from(self.0);
        if unit.is_multiple_of(4) { 1 + unit / 4 } else { 8 + unit }
    }

    /// The register of this number on the wire; `None` for that of verdicts, and for numbers that there are not.
    pub(crate) fn of_number(number: u32) -> Option<Register> {
        let unit = match number {
            1..=4 => (number - 1) * 4,
            8..=23 => number - 8,
            _ => return None,
        };
        u8::try_from(unit).ok().map(Register)
    }
}

/// Where a payload expression counts from (`enum nft_payload_bases`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PayloadBase {
    /// The IP header.
    Network,
    /// The TCP, UDP or SCTP header.
    Transport,
}

/// How two values are compared (`enum nft_cmp_ops`; ranges know the first two only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Comparison {
    /// Equal, or inside.
    Equal,
    /// Not equal, or outside.
    NotEqual,
}

/// What a look-up does besides matching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lookup {
    /// It is a set: the rule goes on if the key is in it.
    In,
    /// It is a set: the rule goes on if the key is not in it.
    NotIn,
    /// It is a map: its value is written here.
    Data(Register),
    /// It is a verdict map: its verdict is done.
    Verdict,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RejectWith {
    /// A TCP reset.
    TcpReset,
    /// "Destination unreachable" with this code, of the family's ICMP.
    Icmp(u8),
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(not(test), expect(dead_code, reason = "ranges and counters are ready and tested, not used"))]
pub(crate) enum Expression {
    /// Loads a part of the packet.
    Payload { base: PayloadBase, offset: u32, len: u32, dreg: Register },
    /// Loads a property of the packet (`enum nft_meta_keys`).
    MetaLoad { key: u32, dreg: Register },
    /// Sets a property of the packet.
    MetaSet { key: u32, sreg: Register },
    /// Loads a property of the connection (`enum nft_ct_keys`), or of one of its directions (`enum ip_conntrack_dir`).
    Ct { key: u32, direction: Option<u8>, dreg: Register },
    /// Loads the type of the packet's source or destination address (`RTN_*`).
    FibType { destination: bool, dreg: Register },
    /// Ends the rule unless the register compares so.
    Cmp { sreg: Register, comparison: Comparison, data: Bytes },
    /// `dreg = (sreg & mask) ^ xor`; both constants have the same length.
    Bitwise { sreg: Register, dreg: Register, mask: Bytes, xor: Bytes },
    /// Ends the rule unless the register is (not) between two constants, which have the same length.
    Range { sreg: Register, comparison: Comparison, from: Bytes, to: Bytes },
    /// Looks a key up.
    Lookup { set: CName, sreg: Register, lookup: Lookup },
    /// A number below `modulus`, plus `offset`: a random one, or the next one, from 0 on.
    Number { dreg: Register, random: bool, modulus: u32, offset: u32 },
    /// The Jenkins hash of `len` bytes of registers, modulo `modulus`, plus `offset`. Without a seed, the kernel picks.
    Hash { sreg: Register, dreg: Register, len: u32, modulus: u32, seed: Option<u32>, offset: u32 },
    /// Writes an element into a dynamic map, or refreshes it.
    Update { set: CName, key: Register, data: Register, timeout_ms: u64 },
    /// Destination NAT to the address in this register, and the port in that, if there is one; `family` is `NFPROTO_*`.
    Dnat { family: u8, address: Register, port: Option<Register> },
    /// Source NAT to the address of the outgoing interface, with flags (`NF_NAT_RANGE_*`).
    Masquerade { flags: u32 },
    /// Refuses the packet.
    Reject(RejectWith),
    /// Loads a constant.
    Immediate { dreg: Register, data: Bytes },
    /// Decides: a code (`NF_*`, `NFT_*`), and the chain of a jump or goto.
    Verdict { code: u32, chain: Option<CName> },
    /// Counts packets and bytes, from these numbers on.
    Counter { packets: u64, bytes: u64 },
}
