//! Random values of a machine, from a seed that its owner gives: the same seed, the same values.

/// See the module's text.
pub(super) struct Draw {
    seed: [u8; 32],
    drawn: u64,
}

impl std::fmt::Debug for Draw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Draw")
    }
}

impl Draw {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, drawn: 0 }
    }

    /// 128 bits that nobody guesses who does not know the seed.
    pub(super) fn identity(&mut self) -> [u8; 16] {
        self.drawn += 1;
        let hash = blake3::keyed_hash(&self.seed, &self.drawn.to_le_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        bytes
    }

    /// Something from `half` to `whole`, all of it if `whole` is 0 or 1.
    pub(super) fn between_half_and(&mut self, whole: u64) -> u64 {
        let identity = self.identity();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&identity[..8]);
        whole - u64::from_le_bytes(bytes) % (whole / 2 + 1)
    }
}
