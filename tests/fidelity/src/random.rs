//! A small generator of repeatable numbers and bytes (SplitMix64): no secrets depend on it.

/// A repeatable source of numbers: the same seed gives the same sequence for ever.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts a sequence of its own for `label`, so that adding one part of a tree does not change the others.
    #[must_use]
    pub fn labelled(seed: u64, label: &[u8]) -> Self {
        // FNV-1a over the label, started from the seed.
        let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(label.iter().fold(start, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// Fills `buffer` with bytes that no compressor can shrink.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    /// `len` bytes that no compressor can shrink.
    #[must_use]
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        self.fill(&mut buffer);
        buffer
    }

    /// `len` bytes that look like text and compress well.
    #[must_use]
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&[u8]; 8] = [
            b"lane ", b"back ", b"pool ", b"slot ", b"frame ", b"tide ", b"ring\n", b"disk ",
        ];
        let mut text = Vec::with_capacity(len + 8);
        while text.len() < len {
            text.extend_from_slice(WORDS[(self.next_u64() >> 61) as usize]);
        }
        text.truncate(len);
        text
    }
}
