//! Values of which some bits are not known. Pure.

use std::cmp::Ordering;

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Three {
    No,
    Maybe,
    Yes,
}

impl Three {
    /// Both.
    pub(super) fn and(self, other: Three) -> Three {
        match (self, other) {
            (Three::No, _) | (_, Three::No) => Three::No,
            (Three::Yes, Three::Yes) => Three::Yes,
            _ => Three::Maybe,
        }
    }

    /// One or both.
    pub(super) fn or(self, other: Three) -> Three {
        self.not().and(other.not()).not()
    }

    pub(super) fn not(self) -> Three {
        match self {
            Three::No => Three::Yes,
            Three::Maybe => Three::Maybe,
            Three::Yes => Three::No,
        }
    }

    /// What is left to say where one or the other is the case.
    pub(super) fn join(self, other: Three) -> Three {
        if self == other { self } else { Three::Maybe }
    }

    /// The contrary where that is asked for.
    pub(super) fn inverted(self, inverted: bool) -> Three {
        if inverted { self.not() } else { self }
    }
}

impl From<bool> for Three {
    fn from(holds: bool) -> Three {
        if holds { Three::Yes } else { Three::No }
    }
}

/// Bytes, of which some bits are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits {
    /// 0 where a bit is not known.
    value: Vec<u8>,
    /// 1 where it is.
    known: Vec<u8>,
}

impl Bits {
    pub(super) fn known(bytes: &[u8]) -> Bits {
        Bits { value: bytes.to_vec(), known: vec![u8::MAX; bytes.len()] }
    }

    pub(super) fn unknown(length: usize) -> Bits {
        Bits { value: vec![0; length], known: vec![0; length] }
    }

    /// A number as the machine has it, of which the bits of `known` are known.
    pub(super) fn word(value: u32, known: u32) -> Bits {
        Bits { value: (value & known).to_ne_bytes().to_vec(), known: known.to_ne_bytes().to_vec() }
    }

    pub(super) fn len(&self) -> usize {
        self.value.len()
    }

    /// All of them, if they are known.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        self.known.iter().all(|known| *known == u8::MAX).then_some(&self.value)
    }

    /// A number as the machine has it, if it is known.
    pub(super) fn number(&self) -> Option<u32> {
        self.bytes()?.try_into().map(u32::from_ne_bytes).ok()
    }

    /// So many of them from here on; what lies beyond the end is not known.
    pub(super) fn part(&self, at: usize, length: usize) -> Bits {
        let end = at.saturating_add(length).min(self.len());
        let mut part = Bits {
            value: self.value.get(at..end).unwrap_or_default().to_vec(),
            known: self.known.get(at..end).unwrap_or_default().to_vec(),
        };
        part.value.resize(length, 0);
        part.known.resize(length, 0);
        part
    }

    /// Puts others in their place, as far as there is room.
    pub(super) fn write(&mut self, at: usize, other: &Bits) {
        let places = self.value.iter_mut().zip(&mut self.known).skip(at);
        for ((value, known), (new, new_known)) in places.zip(other.value.iter().zip(&other.known)) {
            (*value, *known) = (*new, *new_known);
        }
    }

    /// Takes `& mask ^ xor` of each; a mask that is too short keeps nothing of the rest.
    pub(super) fn masked(&self, mask: &[u8], xor: &[u8]) -> Bits {
        let at = |bytes: &[u8], nth: usize| bytes.get(nth).copied().unwrap_or(0);
        let known: Vec<u8> = self.known.iter().enumerate().map(|(nth, known)| known | !at(mask, nth)).collect();
        let value = self.value.iter().zip(&known).enumerate();
        let value = value.map(|(nth, (value, known))| ((value & at(mask, nth)) ^ at(xor, nth)) & known).collect();
        Bits { value, known }
    }

    /// Exchanges the bytes of each number of so many.
    pub(super) fn swapped(&self, size: usize) -> Bits {
        let swap = |bytes: &[u8]| bytes.chunks(size.max(1)).flat_map(|chunk| chunk.iter().rev().copied()).collect();
        Bits { value: swap(&self.value), known: swap(&self.known) }
    }

    /// What is known where it is these or the others.
    pub(super) fn join(&self, other: &Bits) -> Bits {
        let length = self.len().min(other.len());
        let known: Vec<u8> =
            (0..length).map(|nth| self.known[nth] & other.known[nth] & !(self.value[nth] ^ other.value[nth])).collect();
        let value = self.value.iter().zip(&known).map(|(value, known)| value & known).collect();
        Bits { value, known }
    }

    /// Whether they are these bytes.
    pub(super) fn equals(&self, bytes: &[u8]) -> Three {
        if self.len() != bytes.len() {
            return Three::No;
        }
        let parts = || self.value.iter().zip(&self.known).zip(bytes);
        if parts().any(|((value, known), byte)| (value ^ byte) & known != 0) {
            return Three::No;
        }
        if self.bytes().is_some() { Three::Yes } else { Three::Maybe }
    }

    /// Whether they come before these bytes, the first being the highest.
    pub(super) fn is_less(&self, bytes: &[u8]) -> Three {
        let highest: Vec<u8> = self.value.iter().zip(&self.known).map(|(value, known)| value | !known).collect();
        match (self.value.as_slice().cmp(bytes), highest.as_slice().cmp(bytes)) {
            (_, Ordering::Less) => Three::Yes,
            (Ordering::Less, _) => Three::Maybe,
            _ => Three::No,
        }
    }

    /// Whether they come before these bytes, or are these.
    pub(super) fn is_at_most(&self, bytes: &[u8]) -> Three {
        let highest: Vec<u8> = self.value.iter().zip(&self.known).map(|(value, known)| value | !known).collect();
        match (self.value.as_slice().cmp(bytes), highest.as_slice().cmp(bytes)) {
            (Ordering::Greater, _) => Three::No,
            (_, Ordering::Greater) => Three::Maybe,
            _ => Three::Yes,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All values that these may have; of few unknown bits.
    fn all(bits: &Bits) -> Vec<Vec<u8>> {
        let mut all = vec![bits.value.clone()];
        for (nth, known) in bits.known.iter().enumerate() {
            for bit in (0..8).map(|bit| 1_u8 << bit).filter(|bit| known & bit == 0) {
                let set = all.iter().cloned().map(|mut bytes| {
                    bytes[nth] |= bit;
                    bytes
                });
                all = all.iter().cloned().chain(set.collect::<Vec<_>>()).collect();
            }
        }
        all
    }

    fn three(holds: impl Iterator<Item = bool>) -> Three {
        holds.map(Three::from).reduce(Three::join).expect("there is one")
    }

    fn few_unknown() -> impl Strategy<Value = Bits> {
        let bits = (any::<[u8; 2]>(), prop::collection::vec(0..16_usize, 0..6));
        bits.prop_map(|(value, unknown)| {
            let mut bits = Bits::known(&value);
            for nth in unknown {
                bits.known[nth / 8] &= !(1 << (nth % 8));
                bits.value[nth / 8] &= !(1 << (nth % 8));
            }
            bits
        })
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn what_is_said_holds_for_all_values(bits in few_unknown(), other in few_unknown(), bytes: [u8; 2], mask: [u8; 2]) {
            let values = all(&bits);
            prop_assert_eq!(bits.equals(&bytes), three(values.iter().map(|value| value[..] == bytes)));
            // Of a value in between that no unknown bits come to, it is enough not to be wrong.
            let less = three(values.iter().map(|value| value[..] < bytes[..]));
            prop_assert!(bits.is_less(&bytes) == less);
            let at_most = three(values.iter().map(|value| value[..] <= bytes[..]));
            prop_assert!(bits.is_at_most(&bytes) == at_most);
            let mut masked: Vec<Vec<u8>> =
                values.iter().map(|value| (0..2).map(|nth| (value[nth] & mask[nth]) ^ bytes[nth]).collect()).collect();
            masked.sort();
            masked.dedup();
            let mut found = all(&bits.masked(&mask, &bytes));
            found.sort();
            prop_assert_eq!(found, masked);
            let joined = all(&bits.join(&other));
            prop_assert!(values.iter().chain(&all(&other)).all(|value| joined.contains(value)));
        }
    }

    #[test]
    fn parts_are_put_together() {
        let mut bits = Bits::unknown(4);
        bits.write(1, &Bits::known(&[1, 2]));
        assert_eq!(bits.part(1, 2).bytes(), Some(&[1, 2][..]));
        assert_eq!(bits.part(1, 2).swapped(2).bytes(), Some(&[2, 1][..]));
        assert_eq!((bits.part(0, 2).bytes(), bits.part(9, 2).len()), (None, 2));
        bits.write(3, &Bits::known(&[3, 4]));
        assert_eq!((bits.len(), bits.part(1, 3).bytes()), (4, Some(&[1, 2, 3][..])));
        assert_eq!(Bits::word(0x4001, 0x4000).masked(&0x4000_u32.to_ne_bytes(), &[]).number(), Some(0x4000));
        assert_eq!((Three::Maybe.or(Three::Yes), Three::Maybe.and(Three::No)), (Three::Yes, Three::No));
    }
}
