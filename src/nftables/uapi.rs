//! Numbers of the kernel's netlink interface that we use, from include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h and
//! netlink.h. Everything that has no C library at hand (lowering, decoding, the tests' comparison) takes them from here.

/// `NFNL_SUBSYS_NFTABLES << 8`: upper half of every message type of nftables.
pub(super) const SUBSYSTEM: u16 = 10 << 8;
/// `NFNLGRP_NFTABLES`: notifications of changes.
pub(super) const GROUP_NFTABLES: u32 = 7;

/// `NLM_F_ACK`.
pub(super) const NLM_F_ACK: u16 = 4;
/// `NLM_F_ECHO`: whoever asks for a change is told of it as others are.
pub(super) const NLM_F_ECHO: u16 = 8;
/// `NLM_F_EXCL`: creating what is there is an error.
pub(super) const NLM_F_EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// `enum nf_tables_msg_types`.
pub(super) mod msg {
    pub(in crate::nftables) const NEWTABLE: u16 = 0;
    pub(in crate::nftables) const GETTABLE: u16 = 1;
    pub(in crate::nftables) const DELTABLE: u16 = 2;
    pub(in crate::nftables) const NEWCHAIN: u16 = 3;
    pub(in crate::nftables) const GETCHAIN: u16 = 4;
    pub(in crate::nftables) const DELCHAIN: u16 = 5;
    pub(in crate::nftables) const NEWRULE: u16 = 6;
    pub(in crate::nftables) const GETRULE: u16 = 7;
    pub(in crate::nftables) const DELRULE: u16 = 8;
    pub(in crate::nftables) const NEWSET: u16 = 9;
    pub(in crate::nftables) const GETSET: u16 = 10;
    pub(in crate::nftables) const DELSET: u16 = 11;
    pub(in crate::nftables) const NEWSETELEM: u16 = 12;
    pub(in crate::nftables) const GETSETELEM: u16 = 13;
    pub(in crate::nftables) const DELSETELEM: u16 = 14;
    pub(in crate::nftables) const NEWGEN: u16 = 15;
    pub(in crate::nftables) const GETGEN: u16 = 16;
    pub(in crate::nftables) const NEWOBJ: u16 = 18;
    pub(in crate::nftables) const GETOBJ: u16 = 19;
    pub(in crate::nftables) const NEWFLOWTABLE: u16 = 22;
    pub(in crate::nftables) const GETFLOWTABLE: u16 = 23;
}

/// `NFTA_TABLE_FLAGS`.
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
/// `NFTA_*_TABLE` is 1 in every message that names a table; `NFTA_TABLE_NAME` too.
pub(super) const NFTA_TABLE: u16 = 1;
/// `NFTA_TABLE_OWNER`: the port id of the socket that owns a table (Linux 5.12).
pub(super) const NFTA_TABLE_OWNER: u16 = 7;
/// `NFTA_SET_NAME`, `NFTA_OBJ_NAME`, `NFTA_FLOWTABLE_NAME`, `NFTA_SET_ELEM_LIST_SET`, `NFTA_RULE_CHAIN`.
pub(super) const NFTA_NAME: u16 = 2;
/// `NFTA_CHAIN_NAME`.
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
/// `NFTA_CHAIN_HOOK`, `NFTA_CHAIN_TYPE`.
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
/// `NFTA_CHAIN_POLICY`.
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
/// `NFTA_CHAIN_TYPE`.
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_HOOKNUM`.
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
/// `NFTA_HOOK_PRIORITY`.
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
/// `NFTA_RULE_EXPRESSIONS`.
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_LIST_ELEM`.
pub(super) const NFTA_LIST_ELEM: u16 = 1;
/// `NFTA_EXPR_NAME`.
pub(super) const NFTA_EXPR_NAME: u16 = 1;
/// `NFTA_EXPR_DATA`.
pub(super) const NFTA_EXPR_DATA: u16 = 2;
/// `NFTA_SET_ID`: a number that holds within a transaction only.
pub(super) const NFTA_SET_ID: u16 = 10;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_KEY`.
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
/// `NFTA_SET_ELEM_DATA`.
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
/// `NFTA_SET_ELEM_FLAGS`.
pub(super) const NFTA_SET_ELEM_FLAGS: u16 = 3;
/// `NFT_SET_ELEM_CATCHALL`.
pub(super) const NFT_SET_ELEM_CATCHALL: u32 = 0x2;
/// `NFTA_SET_ELEM_TIMEOUT`.
pub(super) const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
/// `NFTA_SET_ELEM_EXPIRATION`.
pub(super) const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
/// `NFTA_SET_ELEM_USERDATA`.
pub(super) const NFTA_SET_ELEM_USERDATA: u16 = 6;
/// `NFTA_SET_ELEM_EXPR`: what it carries out when it is found, and what came of that.
pub(super) const NFTA_SET_ELEM_EXPR: u16 = 7;
/// `NFTA_SET_ELEM_KEY_END`.
pub(super) const NFTA_SET_ELEM_KEY_END: u16 = 10;
/// `NFTA_DATA_VALUE`.
pub(super) const NFTA_DATA_VALUE: u16 = 1;
/// `NFTA_DATA_VERDICT`.
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`.
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
/// `NFTA_VERDICT_CHAIN`.
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
/// `NFTA_GEN_ID`, `NFTA_GEN_PROC_PID`.
pub(super) const NFTA_GEN_ID: u16 = 1;

/// `NF_ACCEPT`.
pub(super) const NF_ACCEPT: u32 = 1;
/// `NF_DROP`.
pub(super) const NF_DROP: u32 = 0;
/// `NFT_JUMP` (-3).
pub(super) const NFT_JUMP: u32 = u32::MAX - 2;
/// `NFT_GOTO` (-4).
pub(super) const NFT_GOTO: u32 = u32::MAX - 3;

/// `NFPROTO_IPV4`.
pub(super) const NFPROTO_IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
pub(super) const NFPROTO_IPV6: u8 = 10;

/// `enum nft_set_flags`.
pub(super) mod set_flag {
    pub(in crate::nftables) const INTERVAL: u32 = 0x4;
    pub(in crate::nftables) const MAP: u32 = 0x8;
    pub(in crate::nftables) const TIMEOUT: u32 = 0x10;
    pub(in crate::nftables) const EVAL: u32 = 0x20;
    pub(in crate::nftables) const CONCAT: u32 = 0x80;
}

/// `enum nft_meta_keys`.
pub(super) mod meta {
    pub(in crate::nftables) const PRIORITY: u32 = 2;
    pub(in crate::nftables) const MARK: u32 = 3;
    pub(in crate::nftables) const IIFNAME: u32 = 6;
    pub(in crate::nftables) const L4PROTO: u32 = 16;
}

/// `enum nft_ct_keys`.
pub(super) mod ct {
    pub(in crate::nftables) const DIRECTION: u32 = 1;
    pub(in crate::nftables) const STATUS: u32 = 2;
    pub(in crate::nftables) const PROTO_SRC: u32 = 11;
    pub(in crate::nftables) const PROTO_DST: u32 = 12;
    pub(in crate::nftables) const SRC_IP: u32 = 19;
    pub(in crate::nftables) const DST_IP: u32 = 20;
    pub(in crate::nftables) const SRC_IP6: u32 = 21;
    pub(in crate::nftables) const DST_IP6: u32 = 22;
    /// `IP_CT_DIR_ORIGINAL` of include/uapi/linux/netfilter/nf_conntrack_tuple_common.h.
    pub(in crate::nftables) const ORIGINAL: u8 = 0;
    /// `IP_CT_DIR_REPLY`.
    pub(in crate::nftables) const REPLY: u8 = 1;
}

/// `IPS_DST_NAT` of include/uapi/linux/netfilter/nf_conntrack_common.h.
pub(super) const IPS_DST_NAT: u32 = 1 << 5;
/// `RTN_LOCAL` of include/uapi/linux/rtnetlink.h.
pub(super) const RTN_LOCAL: u32 = 2;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of include/uapi/linux/netfilter/nf_nat.h.
pub(super) const NAT_RANDOM_FULLY: u32 = 1 << 4;
/// `IPPROTO_ICMP` and `IPPROTO_ICMPV6`, each with the type of an echo request (include/uapi/linux/icmp.h, icmpv6.h).
pub(super) const ECHO_REQUEST: [(u8, u8); 2] = [(1, 8), (58, 128)];
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`: what the kernel adds where there are an address and a port.
pub(super) const NAT_ADDRESS_AND_PORT: u32 = 0b11;
/// `IFNAMSIZ`: an interface's name with its NUL.
pub(super) const IFNAMSIZ: usize = 16;
/// `NFTA_RULE_USERDATA`.
pub(super) const NFTA_RULE_USERDATA: u16 = 7;
/// `NFTA_SET_COUNT`: of elements (Linux 6.16).
pub(super) const NFTA_SET_COUNT: u16 = 20;
/// `NFTA_SET_FLAGS`.
pub(super) const NFTA_SET_FLAGS: u16 = 3;
/// `NFTA_SET_DATA_TYPE`.
pub(super) const NFTA_SET_DATA_TYPE: u16 = 6;
/// `NFTA_SET_DATA_LEN`.
pub(super) const NFTA_SET_DATA_LEN: u16 = 7;
/// `NFTA_COUNTER_BYTES`.
pub(super) const NFTA_COUNTER_BYTES: u16 = 1;
/// `NFTA_COUNTER_PACKETS`.
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;
/// `NFTA_SET_EXPR`: what each element carries out when it is found (Linux 5.7).
pub(super) const NFTA_SET_EXPR: u16 = 17;
/// `NFTA_SET_EXPRESSIONS`: the same where they are several (Linux 5.11).
pub(super) const NFTA_SET_EXPRESSIONS: u16 = 18;
/// `NFT_DATA_VERDICT`: the data type of verdict maps.
pub(super) const DATA_VERDICT: u32 = 0xffff_ff00;
