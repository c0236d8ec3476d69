//! Maps and sets of rows by their `seq`.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

pub(crate) type SeqMap<V> = HashMap<i64, V, BuildHasherDefault<SeqHasher>>;
pub(crate) type SeqSet = HashSet<i64, BuildHasherDefault<SeqHasher>>;

/// A multiplication where the standard library's hasher takes a hundred instructions, several times for each event. That one holds
/// against keys of an attacker's choice; these are numbers that the box has counted, and no more of them than it has in hand.
#[derive(Default)]
pub(crate) struct SeqHasher(u64);

impl Hasher for SeqHasher {
    fn write_i64(&mut self, seq: i64) {
        // 2^64 by the golden ratio: neighbours lie far apart in the upper bits, which come down to where the map looks.
        let product = seq.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_i64(self.0.cast_signed().rotate_left(8) ^ i64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    /// A map of 1,024 places looks at the lowest ten bits first.
    #[test]
    fn numbers_at_any_regular_distance_lie_in_many_places() {
        let hasher = BuildHasherDefault::<SeqHasher>::default();
        for distance in (0..34).map(|bits| 1_i64 << bits) {
            let places: SeqSet =
                (1..=512).map(|count| (hasher.hash_one(count * distance) & 1_023).cast_signed()).collect();
            assert!(places.len() > 128, "{distance}: {} places for 512 numbers", places.len());
        }
    }
}
