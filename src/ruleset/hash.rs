//! The hash by which packets are spread over slots, and endpoints over them: the kernel's `jhash`.
//!
//! Everything that goes in is the same on all nodes, and after every restart: so they all choose alike.

use std::net::IpAddr;

use super::types::Hashed;

/// The seed of every hash in our rules. Any will do, as long as it is the same everywhere: a rule without one gets a random
/// one from the kernel. Of two Services with the same endpoints a client gets different ones all the same, as the order of
/// their slots depends on the Service.
pub const HASH_SEED: u32 = 0x6e66_7078;

/// `JHASH_INITVAL` of include/linux/jhash.h.
const INITIAL: u32 = 0xdead_beef;

/// The Jenkins hash of include/linux/jhash.h (`lookup3.c` of Bob Jenkins, 2006, in the public domain), of a little-endian
/// machine.
pub fn jhash(bytes: &[u8], seed: u32) -> u32 {
    // Its callers hash addresses and names.
    let mut a = INITIAL.wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).wrapping_add(seed);
    let (mut b, mut c) = (a, a);
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    };
    let mut rest = bytes;
    while rest.len() > 12 {
        a = a.wrapping_add(word(&rest[..4]));
        b = b.wrapping_add(word(&rest[4..8]));
        c = c.wrapping_add(word(&rest[8..12]));
        mix(&mut a, &mut b, &mut c);
        rest = &rest[12..];
    }
    if rest.is_empty() {
        return c;
    }
    let part = |from: usize| word(&rest[from.min(rest.len())..(from + 4).min(rest.len())]);
    a = a.wrapping_add(part(0));
    b = b.wrapping_add(part(4));
    c = c.wrapping_add(part(8));
    finish(&mut a, &mut b, &mut c);
    c
}

/// `__jhash_mix`.
fn mix(a: &mut u32, b: &mut u32, c: &mut u32) {
    for turn in [4, 6, 8, 16, 19, 4] {
        // The next step is the same with the roles moved on by one.
        *a = a.wrapping_sub(*c) ^ c.rotate_left(turn);
        *c = c.wrapping_add(*b);
        (*a, *b, *c) = (*b, *c, *a);
    }
}

/// `__jhash_final`.
fn finish(a: &mut u32, b: &mut u32, c: &mut u32) {
    for (step, turn) in [14, 11, 25, 16, 4, 14, 24].into_iter().enumerate() {
        let (to, from) = match step % 3 {
            0 => (&mut *c, *b),
            1 => (&mut *a, *c),
            _ => (&mut *b, *a),
        };
        *to = (*to ^ from).wrapping_sub(from.rotate_left(turn));
    }
}

/// The slot below `modulus` that the kernel makes of a hash (`reciprocal_scale` of include/linux/kernel.h).
pub fn slot(hash: u32, modulus: u32) -> u32 {
    ((u64::from(hash) * u64::from(modulus)) >> 32) as u32
}

/// The slot that a rule hashes to, where that does not depend on the client's port.
pub fn slot_of(of: Hashed, source: IpAddr, destination: IpAddr, modulus: u32) -> Option<u32> {
    let address = match of {
        Hashed::Source => source,
        Hashed::Destination => destination,
        Hashed::SourceAndPort => return None,
    };
    let hash = match address {
        IpAddr::V4(address) => jhash(&address.octets(), HASH_SEED),
        IpAddr::V6(address) => jhash(&address.octets(), HASH_SEED),
    };
    Some(slot(hash, modulus))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lookup3.c gives (`hashlittle` of its self-test, whose seed is the kernel's too).
    #[test]
    fn it_is_the_hash_of_lookup3() {
        assert_eq!(jhash(b"", 0), 0xdead_beef);
        assert_eq!(jhash(b"", 0xdead_beef), 0xbd5b_7dde);
        assert_eq!(jhash(b"Four score and seven years ago", 0), 0x1777_0551);
        assert_eq!(jhash(b"Four score and seven years ago", 1), 0xcd62_8161);
    }

    #[test]
    fn slots_are_below_the_modulus() {
        for (hash, modulus, expected) in [(0, 3, 0), (u32::MAX, 3, 2), (0x8000_0000, 10, 5), (u32::MAX, 1, 0)] {
            assert_eq!(slot(hash, modulus), expected);
        }
    }
}
