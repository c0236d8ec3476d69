//! New ids: UUIDv7 of the box's own time, in order of their making as far as the microsecond goes.

use std::sync::{Mutex, PoisonError};

use uuid::{Builder, Uuid};

/// Makes ids without thread-locals (the `uuid` crate's own source of randomness has one): a thread that ends may publish.
pub(crate) struct Ids {
    last: Mutex<Last>,
}

struct Last {
    /// `SplitMix64`'s state (Steele, Lea and Flood 2014), from a random seed. Ids need be unique, not secret.
    seed: u64,
    micros: u64,
    tail: u64,
}

impl Ids {
    pub(crate) fn new() -> Self {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        Ids { last: Mutex::new(Last { seed: high ^ low.rotate_left(32), micros: 0, tail: 0 }) }
    }

    /// Greater than every id before. `now` is in Unix microseconds: the 12 bits behind the milliseconds are the fraction of
    /// the millisecond (RFC 9562, section 6.2, method 3), the rest is random, and counted up within a microsecond.
    pub(crate) fn new_id(&self, now: i64) -> Uuid {
        let (micros, tail) = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let random = last.random();
            let now = u64::try_from(now).unwrap_or(0);
            if now > last.micros {
                // 61 of the 62 bits: counting up does not overflow.
                (last.micros, last.tail) = (now, random >> 3);
            } else {
                last.tail += 1 + (random & 0xffff);
            }
            (last.micros, last.tail)
        };
        let fraction = (micros % 1_000) * 4_096 / 1_000;
        let mut bytes = [0_u8; 10];
        bytes[..2].copy_from_slice(&u16::try_from(fraction).unwrap_or(0).to_be_bytes());
        bytes[2..].copy_from_slice(&tail.to_be_bytes());
        Builder::from_unix_timestamp_millis(micros / 1_000, &bytes).into_uuid()
    }
}

impl Last {
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_and_each_is_greater_than_the_one_before() {
        let ids = Ids::new();
        let times = (0..10_000_i64).map(|n| 1_700_000_000_000_000 + n / 3).chain((0..10_000).map(|_| 5));
        let made: Vec<Uuid> = times.map(|now| ids.new_id(now)).collect();
        assert!(made.iter().all(|id| id.get_version_num() == 7));
        assert!(made.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
