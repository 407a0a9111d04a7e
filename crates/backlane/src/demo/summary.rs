//! What the demo says in the end: the closing table, and the same as a document.

use super::compare::Comparison;
use crate::{
    commands::documents::{BackupDocument, RestoreDocument},
    commands::summary::NetworkReason,
    output::{bytes, rate, table},
};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, time::Duration};

/// The demo's result. Both backups and the restores together, where nothing else is said.
#[derive(Debug, Serialize)]
pub(super) struct DemoDocument {
    pub(super) bytes_storage: u64,
    pub(super) bytes_network: u64,
    pub(super) objects_storage: u64,
    pub(super) objects_network: u64,
    pub(super) network_reasons: Vec<NetworkReason>,
    /// Of the first backup.
    pub(super) backup_seconds: f64,
    pub(super) backup_bytes: u64,
    pub(super) backup_files: u64,
    pub(super) backup_bytes_storage: u64,
    pub(super) backup_bytes_network: u64,
    /// Of the second backup, after small changes.
    pub(super) second_backup_seconds: f64,
    pub(super) second_backup_files_changed: u64,
    /// What the second backup had to send; the rest was there already.
    pub(super) second_backup_bytes_sent: u64,
    pub(super) second_backup_bytes_storage: u64,
    pub(super) second_backup_bytes_network: u64,
    pub(super) restore_seconds: f64,
    pub(super) restore_bytes: u64,
    pub(super) restore_bytes_storage: u64,
    pub(super) restore_bytes_network: u64,
    /// Whether what was restored equals its source.
    pub(super) verified: bool,
    pub(super) verified_entries: u64,
    pub(super) verified_bytes: u64,
    pub(super) verify_seconds: f64,
    pub(super) differences: u64,
    /// The first differences in words.
    pub(super) difference_examples: Vec<String>,
    /// Warnings of all the jobs.
    pub(super) warnings: u64,
}

impl DemoDocument {
    pub(super) fn new(
        first: &BackupDocument,
        second: &BackupDocument,
        restores: &[RestoreDocument],
        changed: u64,
        found: &[Comparison],
        compared: Duration,
    ) -> Self {
        let jobs = || {
            [&first.routes, &second.routes]
                .into_iter()
                .chain(restores.iter().map(|restored| &restored.routes))
        };
        let restored =
            |field: fn(&RestoreDocument) -> u64| -> u64 { restores.iter().map(field).sum() };
        let mut reasons: BTreeMap<&str, NetworkReason> = BTreeMap::new();
        for reason in jobs().flat_map(|routes| &routes.network_reasons) {
            let sum = reasons
                .entry(&reason.reason)
                .or_insert_with(|| NetworkReason {
                    reason: reason.reason.clone(),
                    code: reason.code,
                    what: reason.what.clone(),
                    objects: 0,
                    bytes: 0,
                });
            sum.objects += reason.objects;
            sum.bytes += reason.bytes;
        }
        let differences = found.iter().map(|comparison| comparison.differences).sum();
        Self {
            bytes_storage: jobs().map(|routes| routes.bytes_storage).sum(),
            bytes_network: jobs().map(|routes| routes.bytes_network).sum(),
            objects_storage: jobs().map(|routes| routes.objects_storage).sum(),
            objects_network: jobs().map(|routes| routes.objects_network).sum(),
            network_reasons: reasons.into_values().collect(),
            backup_seconds: first.seconds,
            backup_bytes: first.bytes,
            backup_files: first.files,
            backup_bytes_storage: first.routes.bytes_storage,
            backup_bytes_network: first.routes.bytes_network,
            second_backup_seconds: second.seconds,
            second_backup_files_changed: changed,
            second_backup_bytes_sent: second.routes.bytes_sent,
            second_backup_bytes_storage: second.routes.bytes_storage,
            second_backup_bytes_network: second.routes.bytes_network,
            restore_seconds: restores.iter().map(|restored| restored.seconds).sum(),
            restore_bytes: restored(|document| document.bytes),
            restore_bytes_storage: restored(|document| document.routes.bytes_storage),
            restore_bytes_network: restored(|document| document.routes.bytes_network),
            verified: differences == 0,
            verified_entries: found.iter().map(|comparison| comparison.entries).sum(),
            verified_bytes: found.iter().map(|comparison| comparison.bytes).sum(),
            verify_seconds: compared.as_secs_f64(),
            differences,
            difference_examples: found.iter().flat_map(|c| c.examples.clone()).collect(),
            warnings: first.warnings.count
                + second.warnings.count
                + restored(|document| document.warnings.count),
        }
    }

    /// The closing table.
    pub(super) fn text(&self) -> String {
        let row = |name: &str, size: u64, storage: u64, network: u64, seconds: f64| {
            vec![
                name.to_owned(),
                bytes(size),
                bytes(storage),
                bytes(network),
                format!("{seconds:.1} s"),
                rate(size, seconds),
            ]
        };
        let mut text = String::from("\n");
        text.push_str(&table(&[
            ["job", "data", "by storage", "by network", "time", "rate"]
                .map(str::to_owned)
                .to_vec(),
            row(
                "backup",
                self.backup_bytes,
                self.backup_bytes_storage,
                self.backup_bytes_network,
                self.backup_seconds,
            ),
            row(
                "second backup",
                self.backup_bytes,
                self.second_backup_bytes_storage,
                self.second_backup_bytes_network,
                self.second_backup_seconds,
            ),
            row(
                "restore",
                self.restore_bytes,
                self.restore_bytes_storage,
                self.restore_bytes_network,
                self.restore_seconds,
            ),
        ]));
        text.push_str(&format!(
            "\nobjects: {} by storage, {} by network\n",
            self.objects_storage, self.objects_network
        ));
        for reason in &self.network_reasons {
            text.push_str(&reason.text());
        }
        text.push_str(&format!(
            "deduplication: after changes to {} files, the second backup sent {} for {}\n",
            self.second_backup_files_changed,
            bytes(self.second_backup_bytes_sent),
            bytes(self.backup_bytes),
        ));
        if self.verified {
            text.push_str(&format!(
                "verified: {} entries and {} restored as they were\n",
                self.verified_entries,
                bytes(self.verified_bytes)
            ));
        } else {
            text.push_str(&format!("NOT verified: {} differences\n", self.differences));
            for example in &self.difference_examples {
                text.push_str(&format!("  {example}\n"));
            }
        }
        text
    }
}

/// How to look around in what was kept.
pub(super) fn look_around(directory: &Path) -> String {
    let at = directory.display();
    format!(
        "kept in {at}:\n\
         \x20 backlane --config {at}/server.toml server run &\n\
         \x20 backlane --config {at}/client.toml snapshots\n\
         \x20 backlane --config {at}/client.toml ls latest\n\
         \x20 backlane pool info {at}/pool.img\n\
         and without Backlane, with restic:\n\
         \x20 restic --no-lock -r {at}/server/repositories/{host} --password-file {at}/client/repository.key snapshots\n\
         to remove it: rm -r {at}",
        host = super::HOST,
    )
}
