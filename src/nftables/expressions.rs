//! The expressions of a rule, as the kernel dumps them. Pure, and total.
//!
//! Only those that rules of ours are made of are read, and of those every attribute: what is left over and says anything
//! makes the expression one that is not read. So two rules that are read alike do the same. The numbers of attributes are
//! those of include/uapi/linux/netfilter/nf_tables.h.

use super::uapi;
use crate::netlink::{Attribute, Attributes, children, find};
use crate::sys::{Bytes, CName, Comparison, Expression, Lookup, PayloadBase, Register, RejectWith};

/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;

/// An expression of a rule, and its name in the kernel. Those that are not read are `None`.
pub(super) type Named = (String, Option<Expression>);

/// The expressions of the rule with these attributes, in order.
pub(super) fn expressions(rule: Attributes<'_>) -> Vec<Named> {
    let list = find(rule, uapi::NFTA_RULE_EXPRESSIONS);
    let of_one = |expression: Attribute<'_>| {
        let name = find(expression.attributes(), uapi::NFTA_EXPR_NAME).and_then(|name| name.text()).unwrap_or_default();
        // Those without any options have no data.
        let data = find(expression.attributes(), uapi::NFTA_EXPR_DATA);
        let attributes = data.map_or(Some(Vec::new()), |data| data.attributes().collect::<Result<_, _>>().ok());
        let read = attributes.and_then(|attributes| Fields(attributes).read(name));
        (name.to_owned(), read)
    };
    list.iter().flat_map(children).map(of_one).collect()
}

/// The attributes of an expression that have not been taken yet.
struct Fields<'a>(Vec<Attribute<'a>>);

impl<'a> Fields<'a> {
    fn read(mut self, name: &str) -> Option<Expression> {
        let expression = self.expression(name)?;
        // Numbers that are 0, and padding, say nothing.
        let says_nothing = self.0.iter().all(|attribute| attribute.value.iter().all(|byte| *byte == 0));
        says_nothing.then_some(expression)
    }

    fn expression(&mut self, name: &str) -> Option<Expression> {
        Some(match name {
            "payload" => Expression::Payload {
                dreg: self.register(1)?,
                base: match self.number(2)? {
                    1 => PayloadBase::Network,
                    2 => PayloadBase::Transport,
                    _ => return None,
                },
                offset: self.number(3)?,
                len: self.number(4)?,
            },
            "meta" => {
                let key = self.number(2)?;
                match self.register(1) {
                    Some(dreg) => Expression::MetaLoad { key, dreg },
                    None => Expression::MetaSet { key, sreg: self.register(3)? },
                }
            }
            "ct" => {
                let (dreg, key) = (self.register(1)?, self.number(2)?);
                let direction = match self.take(3).map(|direction| direction.value) {
                    None => None,
                    Some([direction]) => Some(*direction),
                    Some(_) => return None,
                };
                Expression::Ct { key, direction, dreg }
            }
            // NFT_FIB_RESULT_ADDRTYPE; NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR.
            "fib" => match (self.register(1)?, self.number(2)?, self.number(3)?) {
                (dreg, 3, 1) => Expression::FibType { destination: false, dreg },
                (dreg, 3, 2) => Expression::FibType { destination: true, dreg },
                _ => return None,
            },
            "cmp" => Expression::Cmp {
                sreg: self.register(1)?,
                // NFT_CMP_EQ, NFT_CMP_NEQ.
                comparison: match self.number(2)? {
                    0 => Comparison::Equal,
                    1 => Comparison::NotEqual,
                    _ => return None,
                },
                data: self.data(3)?,
            },
            "bitwise" => {
                let (sreg, dreg, len) = (self.register(1)?, self.register(2)?, self.number(3)?);
                let (mask, xor) = (self.data(4)?, self.data(5)?);
                let fits = |data: &Bytes| u32::try_from(data.len()) == Ok(len);
                (fits(&mask) && fits(&xor)).then_some(Expression::Bitwise { sreg, dreg, mask, xor })?
            }
            "lookup" => {
                let (set, sreg) = (self.text(1)?, self.register(2)?);
                // NFT_LOOKUP_F_INV.
                let lookup = match (self.number(3), self.number(5).unwrap_or(0)) {
                    (None, 0) => Lookup::In,
                    (None, 1) => Lookup::NotIn,
                    (Some(VERDICT), 0) => Lookup::Verdict,
                    (Some(dreg), 0) => Lookup::Data(Register::of_number(dreg)?),
                    _ => return None,
                };
                Expression::Lookup { set, sreg, lookup }
            }
            "numgen" => Expression::Number {
                dreg: self.register(1)?,
                modulus: self.number(2)?,
                // NFT_NG_INCREMENTAL, NFT_NG_RANDOM.
                random: match self.number(3)? {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
                offset: self.number(4).unwrap_or(0),
            },
            // The type, NFT_HASH_JENKINS, is 0.
            "hash" => Expression::Hash {
                sreg: self.register(1)?,
                dreg: self.register(2)?,
                len: self.number(3)?,
                modulus: self.number(4)?,
                seed: self.number(5),
                offset: self.number(6).unwrap_or(0),
            },
            "dynset" => {
                let set = self.text(1)?;
                // NFT_DYNSET_OP_UPDATE.
                if self.number(3)? != 1 {
                    return None;
                }
                let (key, data) = (self.register(4)?, self.register(5)?);
                let timeout = self.take(6)?.value.try_into().ok()?;
                Expression::Update { set, key, data, timeout_ms: u64::from_be_bytes(timeout) }
            }
            "nat" => {
                // NFT_NAT_DNAT.
                if self.number(1)? != 1 {
                    return None;
                }
                let family = u8::try_from(self.number(2)?).ok()?;
                let (address, port) = (self.register(3)?, self.register(5));
                // The kernel says what it was not told: that the ranges have one address and one port, if there is a port.
                let ends = (self.register(4).unwrap_or(address), self.register(6).or(port));
                let flags = self.number(7).unwrap_or(0) & !uapi::NAT_ADDRESS_AND_PORT;
                (ends == (address, port) && flags == 0).then_some(Expression::Dnat { family, address, port })?
            }
            "masq" => Expression::Masquerade { flags: self.number(1).unwrap_or(0) },
            // NFT_REJECT_ICMP_UNREACH, NFT_REJECT_TCP_RST; that has no code, whatever is sent.
            "reject" => match (self.number(1)?, self.take(2).map(|code| code.value)) {
                (0, Some([code])) => Expression::Reject(RejectWith::Icmp(*code)),
                (1, _) => Expression::Reject(RejectWith::TcpReset),
                _ => return None,
            },
            "immediate" => match self.number(1)? {
                VERDICT => {
                    let verdict = find(self.take(2)?.attributes(), uapi::NFTA_DATA_VERDICT)?;
                    let code = find(verdict.attributes(), uapi::NFTA_VERDICT_CODE)?.number()?;
                    let chain = find(verdict.attributes(), uapi::NFTA_VERDICT_CHAIN).map(|chain| c_name(&chain));
                    Expression::Verdict { code, chain: chain.map_or(Some(None), |name| name.map(Some))? }
                }
                dreg => Expression::Immediate { dreg: Register::of_number(dreg)?, data: self.data(2)? },
            },
            _ => return None,
        })
    }

    /// The first attribute of a type.
    fn take(&mut self, kind: u16) -> Option<Attribute<'a>> {
        let at = self.0.iter().position(|attribute| attribute.kind == kind)?;
        Some(self.0.remove(at))
    }

    fn number(&mut self, kind: u16) -> Option<u32> {
        self.take(kind)?.number()
    }

    fn register(&mut self, kind: u16) -> Option<Register> {
        Register::of_number(self.number(kind)?)
    }

    fn text(&mut self, kind: u16) -> Option<CName> {
        c_name(&self.take(kind)?)
    }

    fn data(&mut self, kind: u16) -> Option<Bytes> {
        find(self.take(kind)?.attributes(), uapi::NFTA_DATA_VALUE).map(|data| Bytes::from_slice(data.value))
    }
}

fn c_name(attribute: &Attribute<'_>) -> Option<CName> {
    CName::new(attribute.text()?).ok()
}
