//! Between our types and the JSON of trees, and between our identities and the engine's.
//!
//! What a node of the format can't carry is found here and reported, never dropped in silence.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use backlane_proto::ObjectId;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustic_core::Id;
use rustic_core::repofile as engine;
use serde::Deserialize;

use crate::error::Damage;
use crate::index::{BlobId, HexId};
use crate::node::{FileKind, Metadata, Node, Time, Tree, Xattr};

/// Seconds of 1973-01-01: after it no time zone has an offset that is not whole minutes.
const ODD_OFFSETS_END: i64 = 94_694_400;

/// The engine's identity in our type.
pub(crate) fn object_id(id: &Id) -> ObjectId {
    ObjectId::from_hex(id.to_hex().as_str()).expect("an identity prints as 64 hexadecimal digits")
}

/// Makes the engine's node; says what of it the format can't carry.
pub(crate) fn node_to_engine(
    name: &OsStr,
    kind: &FileKind,
    meta: &Metadata,
) -> (engine::Node, Vec<String>) {
    let mut lost = Vec::new();
    let node_type = match kind {
        FileKind::File => engine::NodeType::File,
        FileKind::Directory => engine::NodeType::Dir,
        FileKind::Symlink { target } => {
            engine::NodeType::from_link(OsStr::from_bytes(target).as_ref())
        }
        FileKind::BlockDevice { rdev } => engine::NodeType::Dev { device: *rdev },
        FileKind::CharDevice { rdev } => engine::NodeType::Chardev { device: *rdev },
        FileKind::Fifo => engine::NodeType::Fifo,
        FileKind::Socket => engine::NodeType::Socket,
        FileKind::Unknown { .. } => unreachable!("no source may give such entries"),
    };
    let mut time = |what: &str, time: Option<Time>| {
        let stamp = timestamp(time?, &TimeZone::system());
        if stamp.is_none() {
            lost.push(format!("its time of {what} is out of range"));
        }
        stamp
    };
    let mut converted = engine::Metadata {
        mode: meta.mode.map(|mode| go_mode(mode, kind)),
        mtime: time("modification", meta.modified),
        atime: time("access", meta.accessed),
        ctime: time("change", meta.changed),
        uid: meta.uid,
        gid: meta.gid,
        user: meta.user.clone(),
        group: meta.group.clone(),
        inode: meta.inode,
        device_id: meta.device,
        size: meta.size,
        links: meta.links,
        extended_attributes: Vec::new(),
    };
    for xattr in &meta.xattrs {
        if let Err(what) = add_xattr(&mut converted, xattr) {
            lost.push(what);
        }
    }
    (engine::Node::new_node(name, node_type, converted), lost)
}

fn add_xattr(meta: &mut engine::Metadata, xattr: &Xattr) -> Result<(), String> {
    let name = xattr.name.escape_ascii();
    let Ok(text) = std::str::from_utf8(&xattr.name) else {
        return Err(format!(
            "extended attribute `{name}` has a name that is not UTF-8"
        ));
    };
    // The engine's type of an attribute can't be named, but it can be read.
    let value = BASE64_STANDARD.encode(&xattr.value);
    let json = serde_json::json!({ "name": text, "value": value });
    let attribute = serde_json::from_value(json)
        .map_err(|error| format!("extended attribute `{name}` can't be kept: {error}"))?;
    meta.extended_attributes.push(attribute);
    Ok(())
}

/// The instant for which the engine writes a text that reads back as `time`.
///
/// The engine writes local times with their offset cut to minutes. Before about 1900, and in places until 1972, local
/// offsets had seconds; without the correction such a time would come back wrong by them.
fn timestamp(time: Time, zone: &TimeZone) -> Option<Timestamp> {
    let nanoseconds = i32::try_from(time.nanoseconds).ok()?;
    let stamp = Timestamp::new(time.seconds, nanoseconds).ok()?;
    if time.seconds >= ODD_OFFSETS_END {
        return Some(stamp);
    }
    let offset = zone.to_offset(stamp);
    let written = stamp.display_with_offset(offset).to_string();
    let read: Timestamp = written.parse().ok()?;
    let wrong = i64::try_from(read.as_nanosecond() - stamp.as_nanosecond()).ok()?;
    stamp
        .checked_sub(jiff::SignedDuration::from_nanos(wrong))
        .ok()
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

fn go_mode(mode: u32, kind: &FileKind) -> u32 {
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

/// Reads the JSON of a tree. A node of a kind that is not known costs no more than itself.
pub(crate) fn tree_from_json(json: &[u8]) -> Result<Tree, Damage> {
    let nodes: Result<Vec<Node>, Damage> = match serde_json::from_slice::<TreeJson>(json) {
        Ok(tree) => {
            let nodes = tree.nodes.unwrap_or_default();
            nodes.into_iter().map(node_from_json).collect()
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
        Ok(node) => return node_from_json(node),
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
    let node = node_from_json(stub)?;
    match node.kind {
        FileKind::Unknown { .. } => Ok(node),
        _ => Err(error),
    }
}

fn node_from_json(json: NodeJson) -> Result<Node, Damage> {
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

    fn round_trip(name: &[u8], kind: &FileKind, meta: &Metadata) -> (Node, Vec<String>) {
        let (node, lost) = node_to_engine(OsStr::from_bytes(name), kind, meta);
        let json = serde_json::json!({ "nodes": [node] });
        let mut tree = tree_from_json(json.to_string().as_bytes()).unwrap();
        (tree.nodes.remove(0), lost)
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
    fn times_survive_local_offsets_that_have_seconds() {
        for (zone, seconds) in [("Europe/Berlin", -2_524_600_000), ("Africa/Monrovia", 1)] {
            let zone = TimeZone::get(zone).unwrap();
            for nanoseconds in [0, 1, 999_999_999] {
                let time = Time {
                    seconds,
                    nanoseconds,
                };
                let stamp = timestamp(time, &zone).unwrap();
                // As the engine writes it.
                let offset = zone.to_offset(stamp);
                let written = stamp.display_with_offset(offset).to_string();
                assert_eq!(our_time(written.parse().unwrap()), Some(time), "{written}");
            }
        }
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
