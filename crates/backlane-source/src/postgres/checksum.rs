//! Checksums of pages.
//!
//! The algorithm is described in PostgreSQL's `storage/checksum_impl.h`: 32 sums run side by side over the page as
//! little-endian words, each an FNV-1a with a shift, and are folded with the block's number.

use super::Lsn;

const LANES: usize = 32;

const PRIME: u32 = 16_777_619;

/// The bytes from which one word goes to each lane.
const ROUND_BYTES: usize = 4 * LANES;

/// Where a page has its checksum.
const SUM_AT: usize = 8;

/// Where it has the end of its free space, which is zero in a page that was never used.
const UPPER_AT: usize = 14;

/// What the sums begin with.
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// A file of a relation, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationFile<'a> {
    /// The relation's number.
    pub number: &'a str,
    fork: Option<&'a str>,
    /// Which file of the fork it is.
    pub segment: u32,
}

impl<'a> RelationFile<'a> {
    /// Understands `16384`, `16384.1`, `16384_vm` and the like.
    #[must_use]
    pub fn parse(name: &'a str) -> Option<Self> {
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) => (name, digits(segment)?.parse().ok()?),
            None => (name, 0),
        };
        let (number, fork) = match name.split_once('_') {
            Some((number, fork)) => (number, Some(fork)),
            None => (name, None),
        };
        let is_known = matches!(fork, None | Some("vm" | "fsm" | "init"));
        let number = digits(number).filter(|_| is_known)?;
        Some(Self {
            number,
            fork,
            segment,
        })
    }

    /// Whether it is what an unlogged relation is made anew of.
    pub(crate) fn is_initial(&self) -> bool {
        self.fork == Some("init")
    }

    /// Whether a file is of a temporary relation: `t3_16384` and the like, with the number of a session.
    pub(crate) fn is_temporary(name: &'a str) -> bool {
        let parts = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
        parts
            .is_some_and(|(session, rest)| digits(session).is_some() && Self::parse(rest).is_some())
    }
}

fn digits(text: &str) -> Option<&str> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(text)
}

/// How the pages of a cluster are checked while it is backed up.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Bytes of a page.
    pub bytes: usize,
    /// Pages of a file, before the next one begins.
    pub in_segment: u32,
    /// Where the backup began: pages that were written later come from the WAL, whatever was read.
    pub start: Lsn,
}

impl Pages {
    /// Whether a page is what the server wrote, or will be once the WAL is replayed.
    ///
    /// `block` is its number in the relation's fork.
    #[must_use]
    pub fn is_right(&self, page: &[u8], block: u32) -> bool {
        if half_word(page, UPPER_AT) == 0 {
            return page.iter().all(|byte| *byte == 0);
        }
        lsn(page) >= self.start || half_word(page, SUM_AT) == checksum(page, block)
    }
}

/// Where in the WAL the last change of a page is: two words, the higher first.
fn lsn(page: &[u8]) -> Lsn {
    Lsn(u64::from(word(page, 0)) << 32 | u64::from(word(page, 4)))
}

fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = OFFSETS;
    for round in (0..page.len()).step_by(ROUND_BYTES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let at = round + 4 * lane;
            let word = word(page, at);
            // The sum itself counts as zero.
            mix(
                sum,
                if at == SUM_AT {
                    word & 0xFFFF_0000
                } else {
                    word
                },
            );
        }
    }
    // So that the last words get mixed as well.
    for _ in 0..2 {
        sums.iter_mut().for_each(|sum| mix(sum, 0));
    }
    let folded = sums.iter().fold(block, |folded, sum| folded ^ sum);
    u16::try_from(folded % 65_535 + 1).expect("at most 65,535")
}

fn mix(sum: &mut u32, word: u32) {
    let mixed = *sum ^ word;
    *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
}

fn word(page: &[u8], at: usize) -> u32 {
    let bytes = page[at..at + 4].try_into();
    u32::from_le_bytes(bytes.expect("four bytes"))
}

fn half_word(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_known_by_the_names_of_their_files() {
        let parsed = |name| RelationFile::parse(name).map(|file| (file.number, file.segment));
        assert_eq!(parsed("16384"), Some(("16384", 0)));
        assert_eq!(parsed("16384.12"), Some(("16384", 12)));
        assert_eq!(parsed("16384_fsm.1"), Some(("16384", 1)));
        for other in [
            "",
            "PG_VERSION",
            "pg_filenode.map",
            "16384_old",
            "16384.",
            "16384.x",
            "_vm",
            "t3_16384",
        ] {
            assert_eq!(parsed(other), None, "{other}");
        }
    }

    #[test]
    fn pages_of_a_real_server_are_right_and_no_bit_of_them_may_differ() {
        let file = include_bytes!("checksum/pages");
        let pages = Pages {
            bytes: 8192,
            in_segment: 131_072,
            start: Lsn(u64::MAX),
        };
        for (block, page) in (0..).zip(file.chunks_exact(8192)) {
            assert!(pages.is_right(page, block), "block {block}");
            assert!(!pages.is_right(page, block + 1), "block {block} elsewhere");
            for at in [0, 8, 9, 10, 100, 8191] {
                let mut page = page.to_vec();
                page[at] ^= 0x10;
                assert!(!pages.is_right(&page, block), "block {block}, byte {at}");
            }
        }
    }

    #[test]
    fn pages_that_the_wal_brings_back_may_be_torn_and_unused_ones_are_zeros() {
        let pages = Pages {
            bytes: 8192,
            in_segment: 131_072,
            start: Lsn(0x1_0000_0002),
        };
        let mut page = vec![0; 8192];
        assert!(pages.is_right(&page, 7));
        page[8000] = 1;
        assert!(!pages.is_right(&page, 7));
        page[UPPER_AT] = 100;
        assert!(!pages.is_right(&page, 7));
        page[0] = 1;
        page[4] = 2;
        assert!(pages.is_right(&page, 7));
        page[4] = 1;
        assert!(!pages.is_right(&page, 7));
    }
}
