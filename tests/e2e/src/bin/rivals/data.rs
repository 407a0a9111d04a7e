//! The files that are backed up: made anew for each run, the same each time.

use anyhow::{Context, Result};
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

/// A set of files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// Eight files of noise, 4 GiB together.
    Incompressible,
    /// Eight files of words, 4 GiB together.
    Compressible,
    /// 200,000 files of 1 to 16 KiB, of words.
    Small,
}

const MIB: u64 = 1 << 20;
const FILES_IN_DIRECTORY: u64 = 500;

impl Set {
    pub(super) const ALL: [Self; 3] = [Self::Incompressible, Self::Compressible, Self::Small];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Incompressible => "incompressible",
            Self::Compressible => "compressible",
            Self::Small => "small",
        }
    }

    /// Makes the files.
    pub(super) fn make(self, at: &Path, percent: u64) -> Result<()> {
        for number in 0..self.files(percent) {
            self.write(at, number, number, percent)?;
        }
        Ok(())
    }

    /// Changes one file in a hundred of the small ones, and as much in the middle of each large one.
    pub(super) fn change(self, at: &Path, percent: u64) -> Result<()> {
        for number in 0..self.files(percent) {
            match self {
                Self::Small if number % 100 == 0 => {
                    self.write(at, number, number + 1_000_000, percent)?
                }
                Self::Small => {}
                _ => {
                    let path = at.join(format!("{number}"));
                    let mut content = fs::read(&path)?;
                    let middle = content.len() / 2;
                    let new = self.content(number + 1_000_000, content.len() / 100);
                    // Longer by a few bytes, so that what follows moves.
                    content.splice(middle..middle + new.len() - 7, new);
                    fs::write(&path, content)?;
                }
            }
        }
        Ok(())
    }

    fn files(self, percent: u64) -> u64 {
        match self {
            Self::Small => 2000 * percent,
            _ => 8,
        }
    }

    fn write(self, at: &Path, number: u64, seed: u64, percent: u64) -> Result<()> {
        let (path, bytes) = match self {
            Self::Small => {
                let directory = at.join(format!("{}", number / FILES_IN_DIRECTORY));
                let bytes = 1024 + Noise::new(seed).next() % (15 * 1024);
                (directory.join(format!("{number}")), bytes)
            }
            _ => (at.join(format!("{number}")), 512 * MIB * percent / 100),
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut file = BufWriter::new(file);
        let mut left = bytes;
        let mut part = 0;
        while left > 0 {
            let now = left.min(MIB);
            let content = self.content((seed << 20) + part, usize::try_from(now)?);
            file.write_all(&content)?;
            (left, part) = (left - now, part + 1);
        }
        Ok(file.flush()?)
    }

    fn content(self, seed: u64, bytes: usize) -> Vec<u8> {
        let mut noise = Noise::new(seed);
        if self == Self::Incompressible {
            let words = std::iter::repeat_with(|| noise.next().to_le_bytes());
            let mut content: Vec<u8> = words.take(bytes / 8 + 1).flatten().collect();
            content.truncate(bytes);
            return content;
        }
        let mut text = String::with_capacity(bytes + 32);
        while text.len() < bytes {
            let number = noise.next();
            // Some words come more often than others, as they do.
            let word = (number % 4096).min(number >> 20 & 4095);
            let _ = write!(
                text,
                "{:x}{} ",
                word * 0x9e37 % 65_521,
                ["", "s", "ing", ","][(word % 4) as usize]
            );
        }
        text.truncate(bytes);
        text.into_bytes()
    }
}

/// Numbers that follow from a seed.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        let mut noise = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1);
        noise.0 |= 1;
        noise.next();
        noise
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
