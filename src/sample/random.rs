//! Randomness that is a pure function of a seed and a place, so that any row can be computed alone.

/// A well-mixed number from any number (the finalizer of SplitMix64).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A well-mixed number from several.
pub fn hash<const N: usize>(parts: [u64; N]) -> u64 {
    parts.into_iter().fold(0, |state, part| mix(state ^ part))
}

/// A permutation of `0..len`: a Feistel network over the next power of four, walked until it is back in range.
#[derive(Debug, Clone)]
pub struct Shuffle {
    len: u64,
    half_bits: u32,
    seed: u64,
}

impl Shuffle {
    pub fn new(len: u64, seed: u64) -> Self {
        let bits = u64::BITS - len.max(4).saturating_sub(1).leading_zeros();
        Self {
            len,
            half_bits: bits.div_ceil(2),
            seed,
        }
    }

    /// Where `index`, which must be below the length, goes.
    pub fn place(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            value = self.rounds(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn rounds(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (hash([self.seed ^ round, right]) & mask));
        }
        (left << self.half_bits) | right
    }
}
