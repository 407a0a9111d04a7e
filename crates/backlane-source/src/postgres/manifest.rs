//! The list of a base backup's files that pg_verifybackup reads.

use super::{Cluster, Lsn};
use aws_lc_rs::digest;
use crc_fast::{CrcAlgorithm, Digest};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

/// The first version whose manifests say which cluster they are of.
const MAJOR_OF_SYSTEM: u32 = 17;

/// The files of a backup, by their paths below the cluster's directory, as bytes.
#[derive(Debug, Default)]
pub struct Manifest(BTreeMap<Vec<u8>, Listed>);

#[derive(Debug)]
struct Listed {
    bytes: u64,
    modified: Timestamp,
    sum: String,
}

/// The content of a file, summed up as it is read.
#[derive(Debug)]
pub struct Content {
    sum: Digest,
    bytes: u64,
}

impl Default for Content {
    fn default() -> Self {
        Self {
            sum: Digest::new(CrcAlgorithm::Crc32Iscsi),
            bytes: 0,
        }
    }
}

impl Content {
    /// More of it.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

/// A line of the list.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct File<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(rename = "Encoded-Path", skip_serializing_if = "Option::is_none")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: &'static str,
    checksum: &'a str,
}

impl Manifest {
    /// Enters a file.
    pub fn enter(&mut self, path: &[u8], modified_seconds: i64, content: Content) {
        // Four bytes, in the order in which the server's machine has them.
        let sum = u32::try_from(content.sum.finalize()).expect("a sum of 32 bits");
        let listed = Listed {
            bytes: content.bytes,
            modified: Timestamp::from_second(modified_seconds).unwrap_or_default(),
            sum: hex::encode(sum.to_le_bytes()),
        };
        self.0.insert(path.to_vec(), listed);
    }

    /// The manifest's text, of a backup that needs the WAL of a timeline between two positions.
    #[must_use]
    pub fn text(&self, cluster: &Cluster, (timeline, start, stop): (u32, Lsn, Lsn)) -> String {
        let has_system = cluster.major() >= MAJOR_OF_SYSTEM;
        let version = if has_system { 2 } else { 1 };
        let mut text = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n");
        if has_system {
            text.push_str(&format!("\"System-Identifier\": {},\n", cluster.system));
        }
        let lines = self.0.iter().map(|(path, listed)| {
            let plain = std::str::from_utf8(path).ok();
            let file = File {
                path: plain,
                encoded_path: plain.is_none().then(|| hex::encode(path)),
                size: listed.bytes,
                last_modified: listed
                    .modified
                    .strftime("%Y-%m-%d %H:%M:%S GMT")
                    .to_string(),
                algorithm: "CRC32C",
                checksum: &listed.sum,
            };
            serde_json::to_string(&file).expect("all keys are text")
        });
        let lines: Vec<_> = lines.collect();
        text.push_str(&format!("\"Files\": [\n{}\n],\n", lines.join(",\n")));
        let range =
            format!("{{\"Timeline\":{timeline},\"Start-LSN\":\"{start}\",\"End-LSN\":\"{stop}\"}}");
        text.push_str(&format!("\"WAL-Ranges\": [\n{range}\n],\n"));
        let sum = digest::digest(&digest::SHA256, text.as_bytes());
        text.push_str(&format!(
            "\"Manifest-Checksum\": \"{}\"}}\n",
            hex::encode(sum)
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster(major: u32) -> Cluster {
        serde_json::from_value(json!({
            "version_number": major, "version": "x", "system": "-1", "data_directory": "/srv",
            "config_files": [], "checksums": "on", "page_bytes": 8192, "segment_pages": 131_072,
            "wal_segment_bytes": 16_777_216, "in_recovery": false, "archive_mode": "off",
            "archive_command": null, "archive_library": null,
        }))
        .unwrap()
    }

    fn text(major: u32) -> String {
        let mut manifest = Manifest::default();
        let mut content = Content::default();
        content.update(b"1234");
        content.update(b"56789");
        manifest.enter(b"base/1/\"2\"", 1_700_000_000, content);
        manifest.enter(b"\xff", 0, Content::default());
        manifest.text(&cluster(major), (3, Lsn(0x300_0028), Lsn(0x300_0138)))
    }

    #[test]
    fn the_manifest_of_each_version_is_that_of_pg_basebackup() {
        let files = r#""Files": [
{"Path":"base/1/\"2\"","Size":9,"Last-Modified":"2023-11-14 22:13:20 GMT","Checksum-Algorithm":"CRC32C","Checksum":"839206e3"},
{"Encoded-Path":"ff","Size":0,"Last-Modified":"1970-01-01 00:00:00 GMT","Checksum-Algorithm":"CRC32C","Checksum":"00000000"}
],
"WAL-Ranges": [
{"Timeline":3,"Start-LSN":"0/3000028","End-LSN":"0/3000138"}
],
"#;
        let old = text(16);
        let body = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n{files}");
        assert_eq!(old.rsplit_once("\"Manifest-Checksum\"").unwrap().0, body);
        let new = text(17);
        let head = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 18446744073709551615,\n";
        assert_eq!(
            new.rsplit_once("\"Manifest-Checksum\"").unwrap().0,
            format!("{head}{files}")
        );
        for text in [old, new] {
            let (body, sum) = text.rsplit_once("\"Manifest-Checksum\": \"").unwrap();
            let expected = digest::digest(&digest::SHA256, body.as_bytes());
            assert_eq!(sum, format!("{}\"}}\n", hex::encode(expected)));
        }
    }
}
