//! Where our messages are not those of nft, for the sake of readers of other versions: the type of a slot in a set's
//! key (see `encode::type_code`), and the user data of maps to verdicts and kinds, where nft 1.0.6 keeps a `typeof` without any part
//! for a key that has type names (see `udata::set`).

use super::{Plain, Tree};
use crate::nftables::encode::{TYPE_CLASSID, TYPE_UID};
use crate::nftables::uapi::{self, msg};

/// nft's `TYPE_INTEGER`: what it makes of the `typeof` of a slot.
const TYPE_INTEGER: u32 = 4;

/// Our messages with nft's own number for the type of a slot in the keys of sets, and how many such slots there were.
pub(super) fn with_nfts_slots(mut all: Vec<Plain>) -> (Vec<Plain>, usize) {
    let mut slots = 0;
    for message in all.iter_mut().filter(|message| message.kind == msg::NEWSET) {
        for attribute in &mut message.attributes {
            // NFTA_SET_KEY_TYPE, a number in network byte order.
            let Tree::Leaf(4, value) = attribute else { continue };
            let mut code = u32::from_be_bytes(value.as_slice().try_into().expect("a number"));
            for shift in (0..30).step_by(6).filter(|shift| code >> shift & 0x3f == TYPE_UID).collect::<Vec<_>>() {
                code ^= (TYPE_UID ^ TYPE_INTEGER) << shift;
                slots += 1;
            }
            *value = code.to_be_bytes().to_vec();
        }
    }
    (all, slots)
}

/// nft's messages with our user data of maps whose types have names, and how many had to be changed.
pub(super) fn with_our_named_types(mut all: Vec<Plain>) -> (Vec<Plain>, usize) {
    // NFTNL_UDATA_SET_KEY_TYPEOF of 8 bytes: the expression is a concatenation (13), of nothing.
    let mut typeof_of_nothing = vec![3, 8, 0, 4];
    typeof_of_nothing.extend(13_u32.to_ne_bytes());
    typeof_of_nothing.extend([1, 0]);
    let mut maps = 0;
    for message in all.iter_mut().filter(|message| message.kind == msg::NEWSET) {
        let to = |data: u32| Tree::Leaf(uapi::NFTA_SET_DATA_TYPE, data.to_be_bytes().to_vec());
        if ![uapi::DATA_VERDICT, TYPE_CLASSID].iter().any(|data| message.attributes.contains(&to(*data))) {
            continue;
        }
        for attribute in &mut message.attributes {
            // NFTA_SET_USERDATA.
            let Tree::Leaf(13, value) = attribute else { continue };
            let at = value.windows(typeof_of_nothing.len()).position(|window| window == typeof_of_nothing);
            if let Some(at) = at {
                value.drain(at..at + typeof_of_nothing.len());
                maps += 1;
            }
        }
    }
    (all, maps)
}
