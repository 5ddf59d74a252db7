//! Random choices that a seed repeats.

/// A generator (xorshift64*), good enough to choose what a test does next.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// Whether something of this many in a thousand happens.
    pub(crate) fn permille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    /// Bytes that compress to nothing, to half, or not at all.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let kind = self.below(3);
        let one = self.next().to_le_bytes();
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            let word = match kind {
                0 => one,
                1 if bytes.len() % 16 == 0 => one,
                _ => self.next().to_le_bytes(),
            };
            bytes.extend_from_slice(&word);
        }
        bytes.truncate(length);
        bytes
    }
}

/// How often, unless the environment says otherwise.
pub(crate) fn count(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}
