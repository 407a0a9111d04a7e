//! The steps of a backup one by one, for `benches/stages.rs` to time. No part of the interface.

use crate::{
    archive::{
        chunker::{Cut, Gear},
        compress::Compressor,
    },
    seal::{SealKey, sha256},
};

/// One of each, as a thread of the pipeline has them.
pub struct Stages {
    gear: Gear,
    compressor: Compressor,
    key: SealKey,
    sealed: Vec<u8>,
}

impl Stages {
    /// With a key of no use.
    #[must_use]
    pub fn new() -> Option<Self> {
        Some(Self {
            gear: Gear::new(b"secret"),
            compressor: Compressor::new(),
            key: SealKey::from_parts(&[1; 32], &[2; 16], &[3; 16])?,
            sealed: Vec::new(),
        })
    }

    /// Cuts; how many chunks these bytes are.
    #[must_use]
    pub fn cut(&self, mut bytes: &[u8]) -> usize {
        let mut chunks = 1;
        while let Some(size) = Cut::default().find(&self.gear, bytes) {
            bytes = &bytes[size..];
            chunks += 1;
        }
        chunks
    }

    /// Names a blob.
    #[must_use]
    pub fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        sha256(bytes)
    }

    /// Compresses a blob if that pays; how long it is then.
    pub fn compress(&mut self, bytes: &[u8]) -> Option<usize> {
        Some(self.compressor.compress(bytes, Some(0)).ok()?.0.len())
    }

    /// Seals a blob into a pack; how long it is then.
    pub fn seal(&mut self, bytes: &[u8]) -> Option<u32> {
        self.sealed.clear();
        self.key.seal_onto(bytes, &mut self.sealed)
    }
}
