//! Repositories that somebody who had the key has filled with what no program writes: readers refuse it by name, and fall
//! over nothing.

use backlane_proto::{ObjectId, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use std::sync::Arc;

use super::support::PASSWORD;
use crate::fuzzing::{Sealed, parse};
use crate::index::HexId;
use crate::seal::sha256;
use crate::testing::MemoryStore;
use crate::{
    BlobId, FileKind, InitOptions, ObjectStore, RepoError, Repository, Tree, name_is_plain,
};

/// A repository, and what the attacker has.
struct Poisoned {
    store: Arc<MemoryStore>,
    repository: Repository,
}

impl Poisoned {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let object_store: Arc<dyn ObjectStore> = store.clone();
        let repository = Repository::init(object_store, PASSWORD, &InitOptions::default());
        Self {
            store,
            repository: repository.unwrap(),
        }
    }

    fn put(&self, kind: ObjectKind, contents: PackContents, body: Vec<u8>) -> ObjectId {
        let id = ObjectId(sha256(&body));
        let name = ObjectName { kind, id };
        self.store.write(name, contents, Bytes::from(body)).unwrap();
        id
    }

    /// Stores blobs one behind the other; returns their pack, and where each lies.
    fn pack(&self, blobs: &[&[u8]]) -> (ObjectId, Vec<(usize, usize)>) {
        let mut pack = Vec::new();
        let mut places = Vec::new();
        for blob in blobs {
            let sealed = self.repository.inner.key.seal(blob).unwrap();
            places.push((pack.len(), sealed.len()));
            pack.extend_from_slice(&sealed);
        }
        let id = self.put(ObjectKind::Pack, PackContents::Trees, pack);
        (id, places)
    }

    /// Stores an index of one pack; of its blobs it says what it is told.
    fn index(&self, pack: ObjectId, blobs: &[serde_json::Value]) {
        let json = serde_json::json!({ "packs": [{ "id": HexId(pack.0), "blobs": blobs }] });
        let sealed = self
            .repository
            .inner
            .key
            .seal_object(json.to_string().as_bytes());
        self.put(
            ObjectKind::Index,
            PackContents::Data,
            sealed.unwrap().to_vec(),
        );
    }

    /// Stores a tree in a pack and an index of its own.
    fn tree(&self, json: &str) -> BlobId {
        let (pack, places) = self.pack(&[json.as_bytes()]);
        self.index(pack, &[blob(json, places[0])]);
        BlobId(sha256(json.as_bytes()))
    }

    fn read(&self, tree: BlobId) -> Result<Tree, RepoError> {
        self.repository.reader().unwrap().tree(tree)
    }
}

/// What an index says of a tree that isn't compressed.
fn blob(json: &str, (offset, length): (usize, usize)) -> serde_json::Value {
    let id = HexId(sha256(json.as_bytes()));
    serde_json::json!({ "id": id, "type": "tree", "offset": offset, "length": length })
}

#[test]
fn indexes_that_divide_a_pack_between_them_make_no_reader_fall_over() {
    let poisoned = Poisoned::new();
    let trees = [r#"{"nodes":[]}"#, r#"{"nodes":null}"#];
    let (pack, places) = poisoned.pack(&trees.map(str::as_bytes));
    for (tree, place) in trees.into_iter().zip(places) {
        poisoned.index(pack, &[blob(tree, place)]);
    }
    let reader = poisoned.repository.reader().unwrap();
    // The first of them is fetched whole when it is wanted for the second time, up to where its index says it ends.
    for tree in [trees[0], trees[0], trees[1], trees[0]] {
        let id = BlobId(sha256(tree.as_bytes()));
        assert_eq!(reader.tree(id).unwrap(), Tree::default(), "{tree}");
    }
}

#[test]
fn a_blob_that_expands_without_end_costs_its_index_and_nothing_else() {
    let poisoned = Poisoned::new();
    let good = poisoned.tree(r#"{"nodes":[]}"#);
    let (pack, places) = poisoned.pack(&[b"(a little that expands to four gigabytes)"]);
    let mut bomb = blob("bomb", places[0]);
    bomb["uncompressed_length"] = u32::MAX.into();
    poisoned.index(pack, &[bomb]);
    let reader = poisoned.repository.reader().unwrap();
    let [damage] = reader.index_damage() else {
        panic!("{:?}", reader.index_damage());
    };
    assert!(
        damage.to_string().contains("impossible place or size"),
        "{damage}"
    );
    assert_eq!(reader.tree(good).unwrap(), Tree::default());
    let bomb = reader.tree(BlobId(sha256(b"bomb")));
    assert!(
        matches!(bomb, Err(RepoError::BlobNotIndexed { .. })),
        "{bomb:?}"
    );
}

#[test]
fn a_blob_beyond_the_end_of_its_pack_is_refused() {
    let poisoned = Poisoned::new();
    let json = r#"{"nodes":[]}"#;
    let (pack, places) = poisoned.pack(&[json.as_bytes()]);
    for place in [(places[0].1, 100), (0, 1 << 29), (1 << 31, 64)] {
        let poisoned = Poisoned {
            store: poisoned.store.clone(),
            repository: poisoned.repository.clone(),
        };
        poisoned.index(pack, &[blob(json, place)]);
    }
    assert!(poisoned.read(BlobId(sha256(json.as_bytes()))).is_err());
}

#[test]
fn a_name_that_leads_elsewhere_is_no_plain_one_however_it_is_escaped() {
    let poisoned = Poisoned::new();
    // As JSON has it, and within that as the format escapes what is not UTF-8.
    let names = [
        r"..",
        r".\u002e",
        r"\\x2e\\x2e",
        r"\\u002e.",
        r"a\\x2fb",
        r"a\/b",
        r"n\u0000l",
        r"n\\x00l",
        r"",
    ];
    let nodes: Vec<_> = names
        .iter()
        .map(|name| format!(r#"{{"name":"{name}","type":"dir"}}"#))
        .collect();
    let json = format!(r#"{{"nodes":[{}]}}"#, nodes.join(","));
    let tree = poisoned.read(poisoned.tree(&json)).unwrap();
    assert_eq!(tree.nodes.len(), names.len());
    for (node, name) in tree.nodes.iter().zip(names) {
        let shown = node.name.escape_ascii();
        assert!(!name_is_plain(&node.name), "{name}: {shown}");
    }
}

#[test]
fn a_tree_of_a_form_that_no_program_writes_is_damage_or_is_what_it_says() {
    let poisoned = Poisoned::new();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for bad in [
        format!(r#"{{"nodes":[{{"name":"a","type":"file","size":{deep}}}]}}"#),
        format!(r#"{{"nodes":{deep}}}"#),
        r#"{"nodes":[{"name":"a","type":"file","size":18446744073709551616}]}"#.to_owned(),
        r#"{"nodes":[{"name":"a","type":"file","content":["0"]}]}"#.to_owned(),
        r#"{"nodes":[{"name":"a","type":"dir","subtree":"../../config"}]}"#.to_owned(),
    ] {
        let read = poisoned.read(poisoned.tree(&bad));
        assert!(matches!(read, Err(RepoError::Damaged { .. })), "{read:?}");
    }
    // Escapes that end too early, and sizes that nothing has.
    let odd = r#"{"nodes":[{"name":"a\\","type":"file","size":18446744073709551615,"links":18446744073709551615},
        {"name":"\\x2","type":"symlink","linktarget":"/etc/\\x"},{"name":"\\ud800","type":"fifo"}]}"#;
    let tree = poisoned.read(poisoned.tree(odd)).unwrap();
    let kinds: Vec<_> = tree.nodes.iter().map(|node| &node.kind).collect();
    assert!(
        matches!(
            kinds[..],
            [FileKind::File, FileKind::Symlink { .. }, FileKind::Fifo]
        ),
        "{kinds:?}"
    );
    assert!(tree.nodes.iter().all(|node| name_is_plain(&node.name)));
}

/// Changes some JSON as a fuzzer would: bytes replaced, doubled, taken out, pieces of itself put in elsewhere.
fn changed(json: &str, edits: &[(usize, usize, u8, u8)]) -> Vec<u8> {
    let mut bytes = json.as_bytes().to_vec();
    for (at, other, byte, how) in edits {
        if bytes.is_empty() {
            break;
        }
        let (at, other) = (at % bytes.len(), other % bytes.len());
        match how % 5 {
            0 => bytes[at] = *byte,
            1 => bytes.insert(at, *byte),
            2 => drop(bytes.drain(at.min(other)..at.max(other))),
            3 => {
                let piece = bytes[at.min(other)..at.max(other)].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.swap(at, other),
        }
    }
    bytes
}

const TREE: &str = r#"{"nodes":[{"name":"a","type":"file","mode":420,"mtime":"2026-01-31T12:00:00.5+01:00","atime":"2026-01-31T12:00:00Z","uid":0,"gid":0,"user":"root","inode":7,"device_id":3,"links":2,"size":9,"extended_attributes":[{"name":"user.a","value":"Yg=="}],"content":["00ff000000000000000000000000000000000000000000000000000000000000"]},{"name":"\\xff\\u00e9","type":"symlink","linktarget":"x","linktarget_raw":"eA=="},{"name":"d","type":"dir","subtree":"00ff000000000000000000000000000000000000000000000000000000000000"},{"name":"n","type":"chardev","device":258}]}"#;
const INDEX: &str = r#"{"supersedes":[],"packs":[{"id":"00ff000000000000000000000000000000000000000000000000000000000000","blobs":[{"id":"11ff000000000000000000000000000000000000000000000000000000000000","type":"data","offset":0,"length":150,"uncompressed_length":300},{"id":"22ff000000000000000000000000000000000000000000000000000000000000","type":"tree","offset":150,"length":60}]}],"packs_to_delete":[]}"#;
const SNAPSHOT: &str = r#"{"time":"2026-01-31T12:00:00.123456789+01:00","tree":"00ff000000000000000000000000000000000000000000000000000000000000","paths":["/srv"],"hostname":"web1","username":"","uid":0,"gid":0,"tags":["a"],"original":"11ff000000000000000000000000000000000000000000000000000000000000","summary":{"files_new":1,"total_bytes_processed":9}}"#;

proptest! {
    /// `PROPTEST_CASES` makes a long run of it.
    #[test]
    fn whatever_somebody_seals_makes_no_parser_of_it_fall_over(
        edits in vec(any::<(usize, usize, u8, u8)>(), 1..12),
        header in vec(any::<u8>(), 0..200),
    ) {
        parse(Sealed::Tree, &changed(TREE, &edits));
        parse(Sealed::Index, &changed(INDEX, &edits));
        parse(Sealed::Snapshot, &changed(SNAPSHOT, &edits));
        parse(Sealed::Header, &header);
    }
}
