//! Writes the JSON of a directory's entries.
//!
//! Times are written in UTC, so that a directory's list, and with it its name, depends on no time zone.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use jiff::tz::Offset;
use serde::{Serialize, Serializer};

use crate::convert::{escaped, go_mode};
use crate::error::RepoError;
use crate::index::{BlobId, HexId};
use crate::node::{FileKind, Metadata, Time, Xattr};

/// An entry of which only content or subtree is not yet known.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The bytes of its name.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: FileKind,
    pub(crate) meta: Metadata,
}

/// What an entry leads to.
#[derive(Clone, Copy)]
pub(crate) enum Leads<'a> {
    Nowhere,
    ToContent(&'a [BlobId]),
    ToTree(BlobId),
}

impl Draft {
    /// Takes out what the format can't carry, and says what that is.
    pub(crate) fn purge(&mut self) -> Vec<String> {
        let mut lost = Vec::new();
        let meta = &mut self.meta;
        for (what, time) in [
            ("modification", &mut meta.modified),
            ("access", &mut meta.accessed),
            ("change", &mut meta.changed),
        ] {
            if time.is_some_and(|time| stamp(time).is_none()) {
                lost.push(format!("its time of {what} is out of range"));
                *time = None;
            }
        }
        meta.xattrs.retain(|xattr| {
            let is_text = std::str::from_utf8(&xattr.name).is_ok();
            if !is_text {
                let name = xattr.name.escape_ascii();
                lost.push(format!(
                    "extended attribute `{name}` has a name that is not UTF-8"
                ));
            }
            is_text
        });
        lost
    }

    /// The entry's JSON.
    pub(crate) fn json(&self, leads: Leads<'_>) -> Result<Vec<u8>, RepoError> {
        let mut json = Vec::with_capacity(512);
        serde_json::to_writer(&mut json, &self.form(leads)).map_err(|error| RepoError::Engine {
            doing: "writing a directory's list",
            what: error.to_string(),
        })?;
        Ok(json)
    }

    fn form<'a>(&'a self, leads: Leads<'a>) -> NodeForm<'a> {
        let meta = &self.meta;
        let (kind, device) = match self.kind {
            FileKind::File => ("file", None),
            FileKind::Directory => ("dir", None),
            FileKind::Symlink { .. } => ("symlink", None),
            FileKind::BlockDevice { rdev } => ("dev", Some(rdev)),
            FileKind::CharDevice { rdev } => ("chardev", Some(rdev)),
            FileKind::Fifo => ("fifo", None),
            FileKind::Socket => ("socket", None),
            FileKind::Unknown { .. } => unreachable!("no source may give such entries"),
        };
        let target = match &self.kind {
            FileKind::Symlink { target } => Some(target),
            _ => None,
        };
        let raw = target.filter(|target| std::str::from_utf8(target).is_err());
        NodeForm {
            name: escaped(OsStr::from_bytes(&self.name)),
            kind,
            linktarget: target.map(|target| String::from_utf8_lossy(target)),
            linktarget_raw: raw.map(|target| BASE64_STANDARD.encode(target)),
            device,
            mode: meta.mode.map(|mode| go_mode(mode, &self.kind)),
            mtime: meta.modified.and_then(stamp).map(Stamp),
            atime: meta.accessed.and_then(stamp).map(Stamp),
            ctime: meta.changed.and_then(stamp).map(Stamp),
            uid: meta.uid,
            gid: meta.gid,
            user: meta.user.as_deref(),
            group: meta.group.as_deref(),
            inode: meta.inode,
            device_id: meta.device,
            size: meta.size,
            links: meta.links,
            extended_attributes: meta.xattrs.iter().map(XattrForm::of).collect(),
            content: match leads {
                Leads::ToContent(content) => Some(Ids(content)),
                _ => None,
            },
            subtree: match leads {
                Leads::ToTree(id) => Some(HexId(id.0)),
                _ => None,
            },
        }
    }
}

/// A node, its fields in the order of rustic's and restic's.
#[derive(Serialize)]
struct NodeForm<'a> {
    name: Cow<'a, str>,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    linktarget: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linktarget_raw: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime: Option<Stamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    atime: Option<Stamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctime: Option<Stamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    inode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    device_id: u64,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "is_zero")]
    links: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extended_attributes: Vec<XattrForm<'a>>,
    content: Option<Ids<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtree: Option<HexId>,
}

#[derive(Serialize)]
struct XattrForm<'a> {
    name: Cow<'a, str>,
    value: String,
}

impl<'a> XattrForm<'a> {
    fn of(xattr: &'a Xattr) -> Self {
        Self {
            name: String::from_utf8_lossy(&xattr.name),
            value: BASE64_STANDARD.encode(&xattr.value),
        }
    }
}

struct Ids<'a>(&'a [BlobId]);

impl Serialize for Ids<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|id| HexId(id.0)))
    }
}

struct Stamp(Timestamp);

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.display_with_offset(Offset::UTC))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn stamp(time: Time) -> Option<Timestamp> {
    let nanoseconds = i32::try_from(time.nanoseconds).ok()?;
    Timestamp::new(time.seconds, nanoseconds).ok()
}
