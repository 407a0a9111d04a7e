//! Compresses blobs, where that pays.

use crate::error::RepoError;

/// Blobs from this size on are sampled first.
const SAMPLED_BYTES_MIN: usize = 64 << 10;

/// Two samples of this size, at one and at three quarters of a blob.
const SAMPLE_BYTES: usize = 16 << 10;

/// The level that samples are compressed with.
const SAMPLE_LEVEL: i32 = 1;

/// What is not shorter by one part in so many is left as it is.
const GAIN_MIN: usize = 50;

/// One thread's compressor: its contexts and its buffer are used again for each blob.
pub(crate) struct Compressor {
    contexts: Option<Contexts>,
    out: Vec<u8>,
}

struct Contexts {
    whole: zstd::bulk::Compressor<'static>,
    level: i32,
    sample: zstd::bulk::Compressor<'static>,
}

impl Contexts {
    fn new(level: i32) -> std::io::Result<Self> {
        Ok(Self {
            whole: zstd::bulk::Compressor::new(level)?,
            level,
            sample: zstd::bulk::Compressor::new(SAMPLE_LEVEL)?,
        })
    }
}

impl Compressor {
    pub(crate) fn new() -> Self {
        Self {
            contexts: None,
            out: Vec::new(),
        }
    }

    /// The bytes as they shall be stored, and whether they are compressed. `level` is that of zstd; nothing is compressed
    /// where it is `None`.
    pub(crate) fn compress<'a>(
        &'a mut self,
        plain: &'a [u8],
        level: Option<i32>,
    ) -> Result<(&'a [u8], bool), RepoError> {
        let Some(level) = level else {
            return Ok((plain, false));
        };
        let contexts = match &mut self.contexts {
            Some(contexts) => contexts,
            none => none.insert(Contexts::new(level).map_err(failed)?),
        };
        if contexts.level != level {
            let whole = &mut contexts.whole;
            whole.set_compression_level(level).map_err(failed)?;
            contexts.level = level;
        }
        let room = zstd::zstd_safe::compress_bound(plain.len());
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        if plain.len() >= SAMPLED_BYTES_MIN {
            let mut left = 0;
            for at in [plain.len() / 4, plain.len() / 4 * 3] {
                let sample = &plain[at..(at + SAMPLE_BYTES).min(plain.len())];
                left += contexts
                    .sample
                    .compress_to_buffer(sample, &mut self.out[..])
                    .map_err(failed)?;
            }
            if !pays(2 * SAMPLE_BYTES, left) {
                return Ok((plain, false));
            }
        }
        let bytes = contexts
            .whole
            .compress_to_buffer(plain, &mut self.out[..])
            .map_err(failed)?;
        match pays(plain.len(), bytes) {
            true => Ok((&self.out[..bytes], true)),
            false => Ok((plain, false)),
        }
    }
}

fn pays(before: usize, after: usize) -> bool {
    after + before / GAIN_MIN < before
}

fn failed(error: std::io::Error) -> RepoError {
    RepoError::Engine {
        doing: "compressing",
        what: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::noise;

    #[test]
    fn only_what_becomes_shorter_is_compressed() {
        let mut compressor = Compressor::new();
        let text = b"all work and no play ".repeat(10_000);
        for (plain, compressed) in [
            (&text[..], true),
            (&text[..100], true),
            (&noise(1, 300_000), false),
            (&noise(1, 50), false),
            (b"", false),
        ] {
            let (stored, is_compressed) = compressor.compress(plain, Some(0)).unwrap();
            assert_eq!(is_compressed, compressed, "{} bytes", plain.len());
            match compressed {
                true => assert_eq!(zstd::bulk::decompress(stored, plain.len()).unwrap(), plain),
                false => assert_eq!(stored, plain),
            }
        }
        // Where both samples are noise no more is tried.
        let mut sampled = vec![0; 400_000];
        for at in [100_000, 300_000] {
            sampled[at..at + SAMPLE_BYTES].copy_from_slice(&noise(2, SAMPLE_BYTES));
        }
        let as_it_is = compressor.compress(&sampled, Some(0)).unwrap();
        assert_eq!(as_it_is, (&sampled[..], false));
        let none = compressor.compress(&text, None).unwrap();
        assert_eq!(none, (&text[..], false));
    }
}
