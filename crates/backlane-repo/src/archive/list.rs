//! A long list of a directory's entries, read one entry at a time.
//!
//! Invariants: no entry is given out before the whole list was held against its hash; what is in memory is the list as it
//! is stored, compressed, and one entry.

use std::io::{Cursor, Read};

use aws_lc_rs::digest::{Context, SHA256};

use super::trees::BEGINNING;
use crate::convert::node_from_json;
use crate::error::Damage;
use crate::index::{BlobId, BlobPlace};
use crate::node::Node;

/// What is decompressed at a time.
const PART_BYTES: usize = 64 << 10;

/// A list that is being read.
pub(crate) struct LongList {
    plain: Plain,
    /// What was decompressed and not yet taken.
    text: Vec<u8>,
    /// How much of that was taken.
    taken: usize,
}

type Plain = zstd::stream::read::Decoder<'static, std::io::BufReader<Cursor<Vec<u8>>>>;

impl LongList {
    /// Checks a list that was opened and is still compressed, and begins to read it.
    pub(crate) fn open(place: &BlobPlace, compressed: Vec<u8>) -> Result<Self, Damage> {
        let compressed = check(place, compressed)?;
        let mut list = Self {
            plain: decoder(compressed)?,
            text: Vec::new(),
            taken: 0,
        };
        for expected in BEGINNING {
            if list.byte()? != Some(*expected) {
                return Err(malformed("it doesn't begin as a list does"));
            }
        }
        Ok(list)
    }

    /// The next entry.
    pub(crate) fn next(&mut self) -> Result<Option<Node>, Damage> {
        self.text.drain(..self.taken);
        self.taken = 0;
        loop {
            match self.byte()? {
                Some(b',' | b' ' | b'\n' | b'\r' | b'\t') => {}
                Some(b'{') => break,
                Some(b']') => return Ok(None),
                _ => return Err(malformed("an entry is expected")),
            }
        }
        let start = self.taken - 1;
        let (mut depth, mut in_text) = (1u32, false);
        while depth > 0 {
            match (self.byte()?, in_text) {
                (None, _) => return Err(malformed("it ends in an entry")),
                (Some(b'"'), _) => in_text = !in_text,
                (Some(b'\\'), true) => drop(self.byte()?),
                (Some(b'{'), false) => depth += 1,
                (Some(b'}'), false) => depth -= 1,
                _ => {}
            }
        }
        node_from_json(&self.text[start..self.taken]).map(Some)
    }

    fn byte(&mut self) -> Result<Option<u8>, Damage> {
        if self.taken == self.text.len() {
            let there = self.text.len();
            self.text.resize(there + PART_BYTES, 0);
            let got = self
                .plain
                .read(&mut self.text[there..])
                .map_err(undecodable)?;
            self.text.truncate(there + got);
        }
        let byte = self.text.get(self.taken).copied();
        self.taken += usize::from(byte.is_some());
        Ok(byte)
    }
}

/// Holds a list against its hash and its length.
fn check(place: &BlobPlace, compressed: Vec<u8>) -> Result<Vec<u8>, Damage> {
    let mut plain = decoder(compressed)?;
    let mut part = vec![0; PART_BYTES];
    let mut hash = Context::new(&SHA256);
    let (want, mut got) = (u64::from(place.plain_length), 0);
    loop {
        let bytes = plain.read(&mut part).map_err(undecodable)?;
        got += bytes as u64;
        if bytes == 0 || got > want {
            break;
        }
        hash.update(&part[..bytes]);
    }
    if got != want {
        return Err(Damage::Length { want, got });
    }
    let mut id = [0; 32];
    id.copy_from_slice(hash.finish().as_ref());
    match BlobId(id) {
        id if id == place.id => Ok(plain.finish().into_inner().into_inner()),
        got => Err(Damage::Hash {
            want: place.id,
            got,
        }),
    }
}

fn decoder(compressed: Vec<u8>) -> Result<Plain, Damage> {
    zstd::stream::read::Decoder::new(Cursor::new(compressed)).map_err(undecodable)
}

fn undecodable(error: std::io::Error) -> Damage {
    Damage::Compression {
        what: error.to_string(),
    }
}

fn malformed(what: &str) -> Damage {
    Damage::Content {
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tree_from_json;
    use crate::index::BlobKind;
    use crate::seal::sha256;
    use backlane_proto::ObjectId;

    fn place(json: &[u8]) -> BlobPlace {
        BlobPlace {
            id: BlobId(sha256(json)),
            kind: BlobKind::Tree,
            pack: ObjectId::NONE,
            offset: 0,
            length: 0,
            plain_length: u32::try_from(json.len()).unwrap(),
            compressed: true,
        }
    }

    fn read(json: &str) -> Result<Vec<Node>, Damage> {
        let compressed = zstd::encode_all(json.as_bytes(), 1).unwrap();
        let mut list = LongList::open(&place(json.as_bytes()), compressed)?;
        let mut nodes = Vec::new();
        while let Some(node) = list.next()? {
            nodes.push(node);
        }
        Ok(nodes)
    }

    #[test]
    fn entries_are_those_of_the_list_as_a_whole() {
        let odd = [
            r#"{"name":"a","type":"file","size":3,"content":null}"#.to_owned(),
            r#"{"name":"b}{\"\\","type":"symlink","linktarget":"]}\\\""}"#.to_owned(),
            r#"{"name":"c","type":"door","content":{"to":["y",{}]}}"#.to_owned(),
            format!(
                r#"{{"name":"{}","type":"fifo"}}"#,
                "x".repeat(3 * PART_BYTES)
            ),
        ];
        let many = (0..5000).map(|n| format!(r#"{{"name":"{n}","type":"dir"}}"#));
        let entries: Vec<String> = odd.into_iter().chain(many).collect();
        for (json, count) in [
            (format!("{{\"nodes\":[{}]}}\n", entries.join(",")), 5004),
            (format!("{{\"nodes\":[{}]}}", entries.join(" ,\n ")), 5004),
            ("{\"nodes\":[]}".to_owned(), 0),
        ] {
            let nodes = read(&json).unwrap();
            assert_eq!(nodes.len(), count);
            assert_eq!(nodes, tree_from_json(json.as_bytes()).unwrap().nodes);
        }
    }

    #[test]
    fn what_is_no_list_or_another_one_is_an_error() {
        for bad in [
            "",
            "{\"nodes\":null}",
            "{\"nodes\":[",
            "{\"nodes\":[{\"name\":\"a\"",
            "{\"nodes\":[{\"name\":\"a}",
            "{\"nodes\":[7]}",
            "{\"nodes\":[{\"name\":7,\"type\":\"dir\"}]}",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let json = b"{\"nodes\":[{\"name\":\"a\",\"type\":\"dir\"}]}";
        let other =
            zstd::encode_all(&b"{\"nodes\":[{\"name\":\"b\",\"type\":\"dir\"}]}"[..], 1).unwrap();
        let opened = LongList::open(&place(json), other).err();
        assert!(matches!(opened, Some(Damage::Hash { .. })), "{opened:?}");
        let longer = zstd::encode_all(&[&json[..], b" "].concat()[..], 1).unwrap();
        let opened = LongList::open(&place(json), longer).err();
        assert!(matches!(opened, Some(Damage::Length { .. })), "{opened:?}");
        let opened = LongList::open(&place(json), json.to_vec()).err();
        assert!(
            matches!(opened, Some(Damage::Compression { .. })),
            "{opened:?}"
        );
    }
}
