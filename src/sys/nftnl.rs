//! Owned values over libnftnl.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use nftnl::nftnl_sys as ffi;

use super::expression::{Comparison, Expression, Lookup, PayloadBase, Register, RejectWith};

/// Attribute header, nested header and padding of one value, and then some.
const ATTRIBUTE: usize = 24;
/// Netlink and nfgenmsg headers.
pub(super) const HEADER: usize = 20;
/// `NFT_DATA_VALUE_MAXLEN`: the most bytes of a key or constant; libnftnl copies into arrays of this size.
const VALUE_MAX: usize = 64;

/// What libnftnl allocated, or the end of the process: like Rust's own collections, we do not go on without memory.
fn allocated<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

/// An owned libnftnl object, its payload limit and its destructor.
macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $alloc:ident, $free:ident) => {
        $(#[$doc])*
        pub(crate) struct $name {
            pub(super) raw: NonNull<ffi::$raw>,
            pub(super) bound: usize,
        }

        impl $name {
            fn alloc() -> Self {
                // SAFETY: takes nothing and returns null or a fresh object, which this value then owns alone.
                let raw = unsafe { ffi::$alloc() };
                $name { raw: allocated(raw), bound: HEADER + ATTRIBUTE }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from the matching allocation, is owned by this value alone, and is not used
                // after the drop.
                unsafe { ffi::$free(self.raw.as_ptr()) };
            }
        }
    };
}

owned! {
    /// A table.
    Table, nftnl_table, nftnl_table_alloc, nftnl_table_free
}
owned! {
    /// A chain.
    Chain, nftnl_chain, nftnl_chain_alloc, nftnl_chain_free
}
owned! {
    /// A rule with its expressions.
    Rule, nftnl_rule, nftnl_rule_alloc, nftnl_rule_free
}
owned! {
    /// The definition of a set or map.
    Set, nftnl_set, nftnl_set_alloc, nftnl_set_free
}

/// Defines typed setters of an owned object. The names make sure that libnftnl's setter of the same object is called;
/// the attributes are private to this module and of the right type.
macro_rules! setters {
    ($name:ident: $set_u32:ident, $set_str:ident, $set_data:ident) => {
        impl $name {
            #[allow(dead_code, reason = "a rule has no numbers")]
            fn u32(&mut self, attribute: u32, value: u32) {
                self.bound += ATTRIBUTE;
                // SAFETY: the object is alive, and callers in this module pass only attributes of this object that are
                // 32 bits wide.
                unsafe { ffi::$set_u32(self.raw.as_ptr(), attribute as u16, value) };
            }

            fn str(&mut self, attribute: u32, value: &CStr) {
                self.bound += ATTRIBUTE + value.count_bytes();
                // SAFETY: the object is alive, the text ends with NUL and is copied, and callers in this module pass
                // only attributes of this object that are texts.
                unsafe { ffi::$set_str(self.raw.as_ptr(), attribute as u16, value.as_ptr()) };
            }

            #[allow(dead_code, reason = "not every object has user data")]
            fn data(&mut self, attribute: u32, value: &[u8]) {
                self.bound += ATTRIBUTE + value.len();
                let length = value.len() as u32;
                // SAFETY: the object is alive, pointer and length are those of a slice that libnftnl copies into memory
                // that it allocates for this length, and callers in this module pass only such attributes.
                unsafe { ffi::$set_data(self.raw.as_ptr(), attribute as u16, value.as_ptr().cast::<c_void>(), length) };
            }
        }
    };
}

setters!(Table: nftnl_table_set_u32, nftnl_table_set_str, nftnl_table_set_data);
setters!(Chain: nftnl_chain_set_u32, nftnl_chain_set_str, nftnl_chain_set_data);
setters!(Rule: nftnl_rule_set_u32, nftnl_rule_set_str, nftnl_rule_set_data);
setters!(Set: nftnl_set_set_u32, nftnl_set_set_str, nftnl_set_set_data);

impl Table {
    /// A table with this name.
    pub(crate) fn new(name: &CStr) -> Self {
        let mut table = Table::alloc();
        table.str(ffi::NFTNL_TABLE_NAME, name);
        table
    }

    /// Sets flags (`NFT_TABLE_F_*`) and user data.
    pub(crate) fn describe(&mut self, flags: u32, user_data: &[u8]) {
        self.u32(ffi::NFTNL_TABLE_FLAGS, flags);
        self.data(ffi::NFTNL_TABLE_USERDATA, user_data);
    }
}

impl Chain {
    /// A chain of this name in a table.
    pub(crate) fn new(table: &CStr, name: &CStr) -> Self {
        let mut chain = Chain::alloc();
        chain.str(ffi::NFTNL_CHAIN_TABLE, table);
        chain.str(ffi::NFTNL_CHAIN_NAME, name);
        chain
    }

    /// Makes it a base chain: type, hook number (`enum nf_inet_hooks`) and priority; `accept` is its policy.
    pub(crate) fn attach(&mut self, kind: &CStr, hook: u32, priority: i32) {
        self.str(ffi::NFTNL_CHAIN_TYPE, kind);
        self.u32(ffi::NFTNL_CHAIN_HOOKNUM, hook);
        self.bound += ATTRIBUTE;
        // SAFETY: the object is alive, and the attribute is a signed number of 32 bits.
        unsafe { ffi::nftnl_chain_set_s32(self.raw.as_ptr(), ffi::NFTNL_CHAIN_PRIO as u16, priority) };
        // NF_ACCEPT is 1.
        self.u32(ffi::NFTNL_CHAIN_POLICY, 1);
    }
}

impl Rule {
    /// A rule of a chain; all of them, in a request to delete.
    pub(crate) fn new(table: &CStr, chain: &CStr) -> Self {
        let mut rule = Rule::alloc();
        rule.str(ffi::NFTNL_RULE_TABLE, table);
        rule.str(ffi::NFTNL_RULE_CHAIN, chain);
        rule
    }

    /// Sets its user data.
    pub(crate) fn user_data(&mut self, user_data: &[u8]) {
        self.data(ffi::NFTNL_RULE_USERDATA, user_data);
    }

    /// Appends an expression.
    pub(crate) fn push(&mut self, expression: NftnlExpr) {
        self.bound += expression.bound;
        let raw = expression.raw;
        std::mem::forget(expression);
        // SAFETY: both objects are alive; the rule takes the expression over and frees it, which is why the owned value
        // was forgotten.
        unsafe { ffi::nftnl_rule_add_expr(self.raw.as_ptr(), raw.as_ptr()) };
    }
}

impl Set {
    /// A set of this name in a table.
    pub(crate) fn new(table: &CStr, name: &CStr) -> Self {
        let mut set = Set::alloc();
        set.str(ffi::NFTNL_SET_TABLE, table);
        set.str(ffi::NFTNL_SET_NAME, name);
        set
    }

    /// Sets what it holds: `NFT_SET_*` flags, nft's type code and the length of the key.
    pub(crate) fn key(&mut self, id: u32, flags: u32, kind: u32, length: u32) {
        self.u32(ffi::NFTNL_SET_ID, id);
        self.u32(ffi::NFTNL_SET_FLAGS, flags);
        self.u32(ffi::NFTNL_SET_KEY_TYPE, kind);
        self.u32(ffi::NFTNL_SET_KEY_LEN, length);
    }

    /// Makes it a map: nft's type code and the length of the data.
    pub(crate) fn map_to(&mut self, kind: u32, length: u32) {
        self.u32(ffi::NFTNL_SET_DATA_TYPE, kind);
        self.u32(ffi::NFTNL_SET_DATA_LEN, length);
    }

    /// Limits the number of elements.
    pub(crate) fn size(&mut self, size: u32) {
        self.u32(ffi::NFTNL_SET_DESC_SIZE, size);
    }

    /// Describes the fields of an interval set's key by their lengths in bytes, at most 16 of them.
    pub(crate) fn fields(&mut self, lengths: &[u8]) {
        // libnftnl copies into an array of NFT_REG32_COUNT bytes.
        assert!(lengths.len() <= Register::COUNT, "more fields than registers");
        self.bound += ATTRIBUTE * lengths.len();
        self.data(ffi::NFTNL_SET_DESC_CONCAT, lengths);
    }

    /// Sets its user data.
    pub(crate) fn user_data(&mut self, user_data: &[u8]) {
        self.data(ffi::NFTNL_SET_USERDATA, user_data);
    }

    /// Has each element count the packets that find it, from zero on.
    pub(crate) fn count(&mut self) {
        let expression = NftnlExpr::new(c"counter");
        self.bound += expression.bound;
        let raw = expression.raw;
        std::mem::forget(expression);
        // SAFETY: both objects are alive; the set takes the expression over and frees it, which is why the owned value was
        // forgotten.
        unsafe { ffi::nftnl_set_add_expr(self.raw.as_ptr(), raw.as_ptr()) };
    }
}

/// An expression of a rule.
pub(crate) struct NftnlExpr {
    raw: NonNull<ffi::nftnl_expr>,
    bound: usize,
}

impl Drop for NftnlExpr {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `nftnl_expr_alloc` and is owned by this value alone: `Rule::push`, which gives it
        // away, forgets the value.
        unsafe { ffi::nftnl_expr_free(self.raw.as_ptr()) };
    }
}

impl NftnlExpr {
    fn new(name: &CStr) -> Self {
        // SAFETY: the name ends with NUL; null is returned for an unknown name, all of ours are in libnftnl 1.2.4.
        let raw = unsafe { ffi::nftnl_expr_alloc(name.as_ptr()) };
        NftnlExpr { raw: allocated(raw), bound: 2 * ATTRIBUTE + name.count_bytes() }
    }

    fn u8(mut self, attribute: u32, value: u8) -> Self {
        self.bound += ATTRIBUTE;
        // SAFETY: the object is alive, and callers in this module pass only attributes that are 8 bits wide.
        unsafe { ffi::nftnl_expr_set_u8(self.raw.as_ptr(), attribute as u16, value) };
        self
    }

    fn u32(mut self, attribute: u32, value: u32) -> Self {
        self.bound += ATTRIBUTE;
        // SAFETY: the object is alive, and callers in this module pass only attributes that are 32 bits wide.
        unsafe { ffi::nftnl_expr_set_u32(self.raw.as_ptr(), attribute as u16, value) };
        self
    }

    fn u64(mut self, attribute: u32, value: u64) -> Self {
        self.bound += ATTRIBUTE;
        // SAFETY: the object is alive, and callers in this module pass only attributes that are 64 bits wide.
        unsafe { ffi::nftnl_expr_set_u64(self.raw.as_ptr(), attribute as u16, value) };
        self
    }

    fn register(self, attribute: u32, register: Register) -> Self {
        self.u32(attribute, register.number())
    }

    fn str(mut self, attribute: u32, value: &CStr) -> Self {
        self.bound += ATTRIBUTE + value.count_bytes();
        // SAFETY: the object is alive, the text ends with NUL and is copied, and callers in this module pass only
        // attributes that are texts.
        unsafe { ffi::nftnl_expr_set_str(self.raw.as_ptr(), attribute as u16, value.as_ptr()) };
        self
    }

    fn data(mut self, attribute: u32, value: &[u8]) -> Self {
        assert!(value.len() <= VALUE_MAX, "a constant of more than 64 bytes");
        self.bound += ATTRIBUTE + value.len();
        let (pointer, length) = (value.as_ptr().cast::<c_void>(), value.len() as u32);
        // SAFETY: the object is alive, pointer and length are those of a slice, libnftnl copies it into an array of 64
        // bytes, which was checked above, and callers in this module pass only such attributes.
        unsafe { ffi::nftnl_expr_set(self.raw.as_ptr(), attribute as u16, pointer, length) };
        self
    }

    fn comparison(self, attribute: u32, comparison: Comparison) -> Self {
        // NFT_CMP_EQ and NFT_RANGE_EQ are 0, NFT_CMP_NEQ and NFT_RANGE_NEQ are 1.
        self.u32(attribute, u32::from(comparison == Comparison::NotEqual))
    }

    /// libnftnl's form of an expression.
    pub(crate) fn build(expression: &Expression) -> Self {
        match expression {
            Expression::Payload { base, offset, len, dreg } => {
                // NFT_PAYLOAD_NETWORK_HEADER and NFT_PAYLOAD_TRANSPORT_HEADER.
                let base = match base {
                    PayloadBase::Network => 1,
                    PayloadBase::Transport => 2,
                };
                NftnlExpr::new(c"payload")
                    .register(ffi::NFTNL_EXPR_PAYLOAD_DREG, *dreg)
                    .u32(ffi::NFTNL_EXPR_PAYLOAD_BASE, base)
                    .u32(ffi::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)
                    .u32(ffi::NFTNL_EXPR_PAYLOAD_LEN, *len)
            }
            Expression::MetaLoad { key, dreg } => {
                NftnlExpr::new(c"meta").u32(ffi::NFTNL_EXPR_META_KEY, *key).register(ffi::NFTNL_EXPR_META_DREG, *dreg)
            }
            Expression::MetaSet { key, sreg } => {
                NftnlExpr::new(c"meta").u32(ffi::NFTNL_EXPR_META_KEY, *key).register(ffi::NFTNL_EXPR_META_SREG, *sreg)
            }
            Expression::Ct { key, direction, dreg } => {
                let expr =
                    NftnlExpr::new(c"ct").u32(ffi::NFTNL_EXPR_CT_KEY, *key).register(ffi::NFTNL_EXPR_CT_DREG, *dreg);
                // IP_CT_DIR_ORIGINAL is 0.
                match direction {
                    Some(direction) => expr.u8(ffi::NFTNL_EXPR_CT_DIR, *direction),
                    None => expr,
                }
            }
            Expression::FibType { destination, dreg } => NftnlExpr::new(c"fib")
                .register(ffi::NFTNL_EXPR_FIB_DREG, *dreg)
                // NFT_FIB_RESULT_ADDRTYPE.
                .u32(ffi::NFTNL_EXPR_FIB_RESULT, 3)
                // NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR.
                .u32(ffi::NFTNL_EXPR_FIB_FLAGS, if *destination { 2 } else { 1 }),
            Expression::Cmp { sreg, comparison, data } => NftnlExpr::new(c"cmp")
                .register(ffi::NFTNL_EXPR_CMP_SREG, *sreg)
                .comparison(ffi::NFTNL_EXPR_CMP_OP, *comparison)
                .data(ffi::NFTNL_EXPR_CMP_DATA, data),
            Expression::Bitwise { sreg, dreg, mask, xor } => NftnlExpr::new(c"bitwise")
                .register(ffi::NFTNL_EXPR_BITWISE_SREG, *sreg)
                .register(ffi::NFTNL_EXPR_BITWISE_DREG, *dreg)
                .u32(ffi::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
                .data(ffi::NFTNL_EXPR_BITWISE_MASK, mask)
                .data(ffi::NFTNL_EXPR_BITWISE_XOR, xor),
            Expression::Range { sreg, comparison, from, to } => NftnlExpr::new(c"range")
                .register(ffi::NFTNL_EXPR_RANGE_SREG, *sreg)
                .comparison(ffi::NFTNL_EXPR_RANGE_OP, *comparison)
                .data(ffi::NFTNL_EXPR_RANGE_FROM_DATA, from)
                .data(ffi::NFTNL_EXPR_RANGE_TO_DATA, to),
            Expression::Lookup { set, sreg, lookup } => {
                let expr = NftnlExpr::new(c"lookup")
                    .register(ffi::NFTNL_EXPR_LOOKUP_SREG, *sreg)
                    .str(ffi::NFTNL_EXPR_LOOKUP_SET, set);
                match lookup {
                    Lookup::In => expr,
                    // NFT_LOOKUP_F_INV.
                    Lookup::NotIn => expr.u32(ffi::NFTNL_EXPR_LOOKUP_FLAGS, 1),
                    Lookup::Data(register) => expr.register(ffi::NFTNL_EXPR_LOOKUP_DREG, *register),
                    // NFT_REG_VERDICT.
                    Lookup::Verdict => expr.u32(ffi::NFTNL_EXPR_LOOKUP_DREG, 0),
                }
            }
            Expression::Number { dreg, random, modulus, offset } => NftnlExpr::new(c"numgen")
                .register(ffi::NFTNL_EXPR_NG_DREG, *dreg)
                // NFT_NG_INCREMENTAL, NFT_NG_RANDOM.
                .u32(ffi::NFTNL_EXPR_NG_TYPE, u32::from(*random))
                .u32(ffi::NFTNL_EXPR_NG_MODULUS, *modulus)
                .u32(ffi::NFTNL_EXPR_NG_OFFSET, *offset),
            Expression::Hash { sreg, dreg, len, modulus, seed, offset } => {
                let expr = NftnlExpr::new(c"hash")
                    .register(ffi::NFTNL_EXPR_HASH_SREG, *sreg)
                    .register(ffi::NFTNL_EXPR_HASH_DREG, *dreg)
                    .u32(ffi::NFTNL_EXPR_HASH_LEN, *len)
                    .u32(ffi::NFTNL_EXPR_HASH_MODULUS, *modulus)
                    .u32(ffi::NFTNL_EXPR_HASH_OFFSET, *offset)
                    // NFT_HASH_JENKINS.
                    .u32(ffi::NFTNL_EXPR_HASH_TYPE, 0);
                match seed {
                    Some(seed) => expr.u32(ffi::NFTNL_EXPR_HASH_SEED, *seed),
                    None => expr,
                }
            }
            Expression::Update { set, key, data, timeout_ms } => NftnlExpr::new(c"dynset")
                .register(ffi::NFTNL_EXPR_DYNSET_SREG_KEY, *key)
                .register(ffi::NFTNL_EXPR_DYNSET_SREG_DATA, *data)
                // NFT_DYNSET_OP_UPDATE.
                .u32(ffi::NFTNL_EXPR_DYNSET_OP, 1)
                .str(ffi::NFTNL_EXPR_DYNSET_SET_NAME, set)
                .u64(ffi::NFTNL_EXPR_DYNSET_TIMEOUT, *timeout_ms),
            Expression::Dnat { family, address, port } => {
                let expr = NftnlExpr::new(c"nat")
                    // NFT_NAT_DNAT.
                    .u32(ffi::NFTNL_EXPR_NAT_TYPE, 1)
                    .u32(ffi::NFTNL_EXPR_NAT_FAMILY, u32::from(*family))
                    .register(ffi::NFTNL_EXPR_NAT_REG_ADDR_MIN, *address);
                match port {
                    Some(port) => expr.register(ffi::NFTNL_EXPR_NAT_REG_PROTO_MIN, *port),
                    None => expr,
                }
            }
            Expression::Masquerade { flags: 0 } => NftnlExpr::new(c"masq"),
            Expression::Masquerade { flags } => NftnlExpr::new(c"masq").u32(ffi::NFTNL_EXPR_MASQ_FLAGS, *flags),
            // NFT_REJECT_ICMP_UNREACH and NFT_REJECT_TCP_RST.
            Expression::Reject(RejectWith::Icmp(code)) => {
                NftnlExpr::new(c"reject").u32(ffi::NFTNL_EXPR_REJECT_TYPE, 0).u8(ffi::NFTNL_EXPR_REJECT_CODE, *code)
            }
            Expression::Reject(RejectWith::TcpReset) => {
                NftnlExpr::new(c"reject").u32(ffi::NFTNL_EXPR_REJECT_TYPE, 1).u8(ffi::NFTNL_EXPR_REJECT_CODE, 0)
            }
            Expression::Immediate { dreg, data } => NftnlExpr::new(c"immediate")
                .register(ffi::NFTNL_EXPR_IMM_DREG, *dreg)
                .data(ffi::NFTNL_EXPR_IMM_DATA, data),
            Expression::Verdict { code, chain } => {
                // NFT_REG_VERDICT.
                let expr = NftnlExpr::new(c"immediate").u32(ffi::NFTNL_EXPR_IMM_DREG, 0);
                let expr = match chain {
                    Some(chain) => expr.str(ffi::NFTNL_EXPR_IMM_CHAIN, chain),
                    None => expr,
                };
                expr.u32(ffi::NFTNL_EXPR_IMM_VERDICT, *code)
            }
            Expression::Counter { packets, bytes } => NftnlExpr::new(c"counter")
                .u64(ffi::NFTNL_EXPR_CTR_PACKETS, *packets)
                .u64(ffi::NFTNL_EXPR_CTR_BYTES, *bytes),
        }
    }
}

/// One element of a set, which is filled again and again so that a long list costs no allocation of its own.
pub(crate) struct SetElement {
    pub(super) raw: NonNull<ffi::nftnl_set_elem>,
}

/// What an element of a map holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ElementValue<'a> {
    /// Nothing: it is an element of a set.
    None,
    /// At most 64 bytes.
    Data(&'a [u8]),
    /// A verdict's code and, for goto and jump, the chain.
    Verdict(u32, Option<&'a CStr>),
}

/// The most bytes that an element takes: two keys, data or a verdict with a chain's name, user data, and headers.
pub(super) const ELEMENT_MAX: usize = 2 * (VALUE_MAX + ATTRIBUTE) + NAME_MAX + USER_DATA_MAX + 8 * ATTRIBUTE;
/// `NFT_NAME_MAXLEN`.
const NAME_MAX: usize = 256;
/// `NFT_USERDATA_MAXLEN`.
const USER_DATA_MAX: usize = 256;

impl SetElement {
    /// An element without anything.
    pub(crate) fn new() -> Self {
        // SAFETY: takes nothing and returns null or a fresh object, which this value then owns alone.
        let raw = unsafe { ffi::nftnl_set_elem_alloc() };
        SetElement { raw: allocated(raw) }
    }

    fn set(&mut self, attribute: u32, value: Option<&[u8]>, max: usize) {
        let Some(value) = value else {
            // SAFETY: the object is alive, and the attribute is one of an element.
            unsafe { ffi::nftnl_set_elem_unset(self.raw.as_ptr(), attribute as u16) };
            return;
        };
        assert!(value.len() <= max, "an element's attribute is too long");
        let (pointer, length) = (value.as_ptr().cast::<c_void>(), value.len() as u32);
        // SAFETY: the object is alive, pointer and length are those of a slice, and libnftnl copies it: keys and data into
        // arrays of 64 bytes, which was checked above, times as what they are, all others into memory that it allocates.
        unsafe { ffi::nftnl_set_elem_set(self.raw.as_ptr(), attribute as u16, pointer, length) };
    }

    /// Sets the key, and the last key of an interval; at most 64 bytes.
    pub(crate) fn key(&mut self, key: &[u8], end: Option<&[u8]>) {
        self.set(ffi::NFTNL_SET_ELEM_KEY, Some(key), VALUE_MAX);
        self.set(ffi::NFTNL_SET_ELEM_KEY_END, end, VALUE_MAX);
    }

    /// Sets what a map's element holds.
    pub(crate) fn value(&mut self, value: ElementValue<'_>) {
        // Data and chain share memory in libnftnl, so the old one has to go before the new one comes.
        self.set(ffi::NFTNL_SET_ELEM_CHAIN, None, 0);
        self.set(ffi::NFTNL_SET_ELEM_VERDICT, None, 0);
        self.set(ffi::NFTNL_SET_ELEM_DATA, None, 0);
        match value {
            ElementValue::None => {}
            ElementValue::Data(data) => self.set(ffi::NFTNL_SET_ELEM_DATA, Some(data), VALUE_MAX),
            ElementValue::Verdict(code, chain) => {
                self.set(ffi::NFTNL_SET_ELEM_VERDICT, Some(&code.to_ne_bytes()), 4);
                if let Some(chain) = chain {
                    self.set(ffi::NFTNL_SET_ELEM_CHAIN, Some(chain.to_bytes_with_nul()), NAME_MAX);
                }
            }
        }
    }

    /// Sets for how long the element is there and how much of that is left, in milliseconds; without them it is there for
    /// as long as its set says.
    pub(crate) fn times(&mut self, times: Option<(u64, u64)>) {
        let bytes = |time: u64| time.to_ne_bytes();
        let (timeout, expires) = times.unzip();
        self.set(ffi::NFTNL_SET_ELEM_TIMEOUT, timeout.map(bytes).as_ref().map(|bytes| bytes.as_slice()), 8);
        self.set(ffi::NFTNL_SET_ELEM_EXPIRATION, expires.map(bytes).as_ref().map(|bytes| bytes.as_slice()), 8);
    }

    /// Sets the user data; at most 256 bytes.
    pub(crate) fn user_data(&mut self, user_data: Option<&[u8]>) {
        self.set(ffi::NFTNL_SET_ELEM_USERDATA, user_data, USER_DATA_MAX);
    }
}

impl Drop for SetElement {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `nftnl_set_elem_alloc`, is owned by this value alone and not used afterwards.
        unsafe { ffi::nftnl_set_elem_free(self.raw.as_ptr()) };
    }
}
