//! From the JSON of trees to our types, and between our identities and the engine's. The way back is in
//! [`crate::archive`].

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStringExt;

use backlane_proto::ObjectId;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use rustic_core::Id;
use rustic_core::repofile as engine;
use serde::Deserialize;

use crate::error::Damage;
use crate::index::{BlobId, HexId};
use crate::node::{FileKind, Metadata, Node, Time, Tree, Xattr};

/// The engine's identity in our type.
pub(crate) fn object_id(id: &Id) -> ObjectId {
    ObjectId::from_hex(id.to_hex().as_str()).expect("an identity prints as 64 hexadecimal digits")
}

fn our_time(stamp: Timestamp) -> Option<Time> {
    let all = stamp.as_nanosecond();
    Some(Time {
        seconds: i64::try_from(all.div_euclid(1_000_000_000)).ok()?,
        nanoseconds: u32::try_from(all.rem_euclid(1_000_000_000)).ok()?,
    })
}

// Bits of Go's os.FileMode, which the format uses for `mode`.
const GO_DIRECTORY: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_CHAR_DEVICE: u32 = 1 << 21;
const GO_STICKY: u32 = 1 << 20;

/// Go's bits beside ours.
const SPECIAL_BITS: [(u32, u32); 3] = [
    (0o4000, GO_SETUID),
    (0o2000, GO_SETGID),
    (0o1000, GO_STICKY),
];

/// The mode as the format has it.
pub(crate) fn go_mode(mode: u32, kind: &FileKind) -> u32 {
    let kind = match kind {
        FileKind::File => 0,
        FileKind::Directory => GO_DIRECTORY,
        FileKind::Symlink { .. } => GO_SYMLINK,
        FileKind::BlockDevice { .. } => GO_DEVICE,
        FileKind::CharDevice { .. } => GO_DEVICE | GO_CHAR_DEVICE,
        FileKind::Fifo => GO_FIFO,
        FileKind::Socket => GO_SOCKET,
        FileKind::Unknown { .. } => 0,
    };
    let special = SPECIAL_BITS.iter().filter(|(ours, _)| mode & ours != 0);
    special.fold(kind | (mode & 0o777), |bits, (_, go)| bits | go)
}

fn our_mode(go: u32) -> u32 {
    let special = SPECIAL_BITS.iter().filter(|(_, bit)| go & bit != 0);
    special.fold(go & 0o777, |bits, (ours, _)| bits | ours)
}

#[derive(Deserialize)]
struct TreeJson {
    nodes: Option<Vec<NodeJson>>,
}

/// A tree whose nodes are looked at one by one.
#[derive(Deserialize)]
struct LooseTreeJson {
    nodes: Vec<serde_json::Value>,
}

#[derive(Default, Deserialize)]
struct NodeJson {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    mode: Option<u32>,
    mtime: Option<Timestamp>,
    atime: Option<Timestamp>,
    ctime: Option<Timestamp>,
    uid: Option<u32>,
    gid: Option<u32>,
    user: Option<String>,
    group: Option<String>,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    device_id: u64,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    links: u64,
    linktarget: Option<String>,
    linktarget_raw: Option<String>,
    #[serde(default)]
    device: u64,
    extended_attributes: Option<Vec<XattrJson>>,
    content: Option<Vec<HexId>>,
    subtree: Option<HexId>,
}

#[derive(Deserialize)]
struct XattrJson {
    name: String,
    value: Option<String>,
}

/// Reads the JSON of one node.
pub(crate) fn node_from_json(json: &[u8]) -> Result<Node, Damage> {
    match serde_json::from_slice(json) {
        Ok(node) => node_from_form(node),
        Err(error) => match serde_json::from_slice(json) {
            Ok(value) => loose_node(&value),
            Err(_) => Err(malformed(&error)),
        },
    }
}

/// Reads the JSON of a tree. A node of a kind that is not known costs no more than itself.
pub(crate) fn tree_from_json(json: &[u8]) -> Result<Tree, Damage> {
    let nodes: Result<Vec<Node>, Damage> = match serde_json::from_slice::<TreeJson>(json) {
        Ok(tree) => {
            let nodes = tree.nodes.unwrap_or_default();
            nodes.into_iter().map(node_from_form).collect()
        }
        // What is said of a kind that is not known may have any form.
        Err(error) => match serde_json::from_slice::<LooseTreeJson>(json) {
            Ok(tree) => tree.nodes.iter().map(loose_node).collect(),
            Err(_) => Err(malformed(&error)),
        },
    };
    Ok(Tree { nodes: nodes? })
}

fn malformed(error: &serde_json::Error) -> Damage {
    let what = error.to_string();
    Damage::Content { what }
}

/// A node of a known kind as it must be, or one of an unknown kind with no more than name and kind.
fn loose_node(json: &serde_json::Value) -> Result<Node, Damage> {
    let error = match NodeJson::deserialize(json) {
        Ok(node) => return node_from_form(node),
        Err(error) => malformed(&error),
    };
    let text = |field: &str| json[field].as_str().map(str::to_owned);
    let (Some(name), Some(kind)) = (text("name"), text("type")) else {
        return Err(error);
    };
    let stub = NodeJson {
        name,
        kind,
        ..NodeJson::default()
    };
    let node = node_from_form(stub)?;
    match node.kind {
        FileKind::Unknown { .. } => Ok(node),
        _ => Err(error),
    }
}

fn node_from_form(json: NodeJson) -> Result<Node, Damage> {
    let kind = match json.kind.as_str() {
        "file" => FileKind::File,
        "dir" => FileKind::Directory,
        "symlink" => FileKind::Symlink {
            target: match json.linktarget_raw {
                Some(raw) => from_base64(&raw)?,
                None => json.linktarget.unwrap_or_default().into_bytes(),
            },
        },
        "dev" => FileKind::BlockDevice { rdev: json.device },
        "chardev" => FileKind::CharDevice { rdev: json.device },
        "fifo" => FileKind::Fifo,
        "socket" => FileKind::Socket,
        _ => {
            return Ok(Node {
                name: unescaped(json.name),
                kind: FileKind::Unknown { kind: json.kind },
                meta: Metadata::default(),
                content: Vec::new(),
                subtree: None,
            });
        }
    };
    let xattr = |xattr: XattrJson| {
        Ok(Xattr {
            name: xattr.name.into_bytes(),
            value: from_base64(&xattr.value.unwrap_or_default())?,
        })
    };
    let xattrs = json.extended_attributes.unwrap_or_default();
    let blob = |id: HexId| BlobId(id.0);
    Ok(Node {
        name: unescaped(json.name),
        kind,
        meta: Metadata {
            mode: json.mode.map(our_mode),
            uid: json.uid,
            gid: json.gid,
            user: json.user,
            group: json.group,
            modified: json.mtime.and_then(our_time),
            accessed: json.atime.and_then(our_time),
            changed: json.ctime.and_then(our_time),
            inode: json.inode,
            device: json.device_id,
            links: json.links,
            size: json.size,
            xattrs: xattrs.into_iter().map(xattr).collect::<Result<_, _>>()?,
        },
        content: json
            .content
            .unwrap_or_default()
            .into_iter()
            .map(blob)
            .collect(),
        subtree: json.subtree.map(blob),
    })
}

fn from_base64(text: &str) -> Result<Vec<u8>, Damage> {
    BASE64_STANDARD
        .decode(text)
        .map_err(|error| Damage::Content {
            what: error.to_string(),
        })
}

/// A name as the format has it: what is not UTF-8 is escaped, and so are a few characters.
pub(crate) fn escaped(name: &OsStr) -> Cow<'_, str> {
    let is_plain = |byte: &u8| !matches!(byte, b'\\' | b'"' | 0x07..=0x0d);
    match name.to_str() {
        Some(text) if text.as_bytes().iter().all(is_plain) => Cow::Borrowed(text),
        _ => {
            let meta = engine::Metadata::default();
            let node = engine::Node::new_node(name, engine::NodeType::File, meta);
            Cow::Owned(node.name)
        }
    }
}

/// The bytes of a name: the format escapes what is not UTF-8, the way Go quotes strings.
fn unescaped(name: String) -> Vec<u8> {
    if !name.contains('\\') {
        return name.into_bytes();
    }
    let node = engine::Node {
        name,
        ..Default::default()
    };
    node.name().into_owned().into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::node::{Draft, Leads};

    fn round_trip(name: &[u8], kind: &FileKind, meta: &Metadata) -> (Node, Vec<String>) {
        let (name, kind, meta) = (name.to_vec(), kind.clone(), meta.clone());
        let mut draft = Draft { name, kind, meta };
        let lost = draft.purge();
        let node = String::from_utf8(draft.json(Leads::Nowhere).unwrap()).unwrap();
        let json = format!("{{\"nodes\":[{node}]}}");
        let mut tree = tree_from_json(json.as_bytes()).unwrap();
        let ours = tree.nodes.remove(0);
        // The engine reads the same.
        let engines: engine::Node = serde_json::from_str(&node).unwrap();
        assert_eq!(engines.name().as_encoded_bytes(), ours.name);
        let again = serde_json::to_vec(&serde_json::json!({ "nodes": [engines] })).unwrap();
        assert_eq!(tree_from_json(&again).unwrap().nodes[0], ours);
        (ours, lost)
    }

    fn metadata() -> Metadata {
        let time = |seconds| {
            Some(Time {
                seconds,
                nanoseconds: 123_456_789,
            })
        };
        Metadata {
            mode: Some(0o7654),
            uid: Some(1000),
            gid: Some(1001),
            user: Some("someone".to_owned()),
            group: None,
            modified: time(1_700_000_000),
            accessed: time(-1),
            changed: time(4_102_444_800),
            inode: u64::MAX,
            device: 7,
            links: 3,
            size: 1 << 40,
            xattrs: vec![Xattr {
                name: b"user.x".to_vec(),
                value: b"\0\xff".to_vec(),
            }],
        }
    }

    #[test]
    fn every_kind_and_all_metadata_survive_the_format() {
        let bytes = b"\xff\n\"\\ \xc3\xa9\x01";
        let target = bytes.to_vec();
        for kind in [
            FileKind::File,
            FileKind::Directory,
            FileKind::Symlink { target },
            FileKind::BlockDevice { rdev: 0x0801 },
            FileKind::CharDevice { rdev: 0x0103 },
            FileKind::Fifo,
            FileKind::Socket,
        ] {
            let (node, lost) = round_trip(bytes, &kind, &metadata());
            assert_eq!(node.name, bytes);
            assert_eq!(node.kind, kind);
            assert_eq!(node.meta, metadata());
            assert_eq!(lost, [""; 0]);
        }
    }

    #[test]
    fn what_the_format_cannot_carry_is_named() {
        let mut meta = metadata();
        meta.xattrs[0].name = b"user.\xff".to_vec();
        meta.modified = Some(Time {
            seconds: i64::MAX,
            nanoseconds: 0,
        });
        let (node, lost) = round_trip(b"a", &FileKind::File, &meta);
        assert_eq!(lost.len(), 2, "{lost:?}");
        assert_eq!(node.meta.xattrs, []);
        assert_eq!(node.meta.modified, None);
    }

    #[test]
    fn a_node_of_unknown_kind_costs_no_other() {
        // What restic writes for what it can't classify, and forms that nobody writes yet.
        for node in [
            r#"{"name":"x","type":"irregular","mode":67108864,"content":null}"#,
            r#"{"name":"x","type":"door","content":{"to":"y"},"inode":"7","mtime":5}"#,
            r#"{"name":"x","type":"door","subtree":"elsewhere"}"#,
        ] {
            let known = r#"{"name":"a","type":"file","size":3}"#;
            let json = format!(r#"{{"nodes":[{known},{node}]}}"#);
            let tree = tree_from_json(json.as_bytes()).unwrap();
            assert_eq!(tree.nodes[0].kind, FileKind::File);
            assert_eq!(tree.nodes[0].meta.size, 3);
            assert_eq!(tree.nodes[1].name, b"x");
            let kind = &tree.nodes[1].kind;
            assert!(matches!(kind, FileKind::Unknown { .. }), "{kind:?}");
        }
    }

    #[test]
    fn malformed_trees_are_errors() {
        for bad in [
            "",
            "{}x",
            "[]",
            r#"{"nodes":[{"name":7,"type":"door","content":{}}]}"#,
            r#"{"nodes":[{"name":"a","type":"file","size":{}}]}"#,
            r#"{"nodes":[{"name":"a","type":"file","content":["00"]}]}"#,
            r#"{"nodes":[{"name":"a","type":"symlink","linktarget_raw":"%"}]}"#,
        ] {
            assert!(tree_from_json(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(tree_from_json(br#"{"nodes":null}"#), Ok(Tree::default()));
    }
}
