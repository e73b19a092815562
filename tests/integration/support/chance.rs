//! Chance that can be repeated.

use std::ops::Range;
use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
pub(crate) struct Chance(u64);

impl Chance {
    /// Each stream of a seed has its own.
    pub(crate) fn new(seed: u32, stream: usize) -> Self {
        Self(u64::from(seed) << 32 | stream as u64)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }

    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub(crate) fn time(&mut self, milliseconds: Range<usize>) -> Duration {
        let length = milliseconds.start + self.below(milliseconds.len());
        Duration::from_millis(length as u64)
    }

    pub(crate) async fn pause(&mut self, milliseconds: Range<usize>) {
        tokio::time::sleep(self.time(milliseconds)).await;
    }
}
