//! Scrubbing: every object of a repository is read, at a pace, and compared with its name (§2).
//!
//! It may run beside sessions. What is damaged is laid aside, where it harms nobody, so that the next backup stores again
//! what it has of it; nothing is deleted.

use crate::{
    HostName, ServerError, ServerState,
    audit::AuditEvent,
    db::{Event, Timestamp},
    repository::{PIECE_BYTES_MAX, Repository},
    store::{Hold, Shelf},
};
use aws_lc_rs::digest::{Context, SHA256};
use backlane_proto::{ObjectId, ObjectKind, ObjectName};
use serde_json::json;
use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// How many objects were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was laid aside, and why.
    pub damaged: Vec<(ObjectName, String)>,
}

impl ServerState {
    /// Reads every object of a host's repository, at no more than `rate` bytes a second. `go_on` is asked after each.
    ///
    /// # Errors
    /// When the repository is held alone, can't be listed, or something damaged can't be laid aside.
    pub async fn scrub(
        &self,
        host: &HostName,
        rate: Option<u64>,
        go_on: impl FnMut(&Scrubbed) -> ControlFlow<()> + Send + 'static,
    ) -> Result<Scrubbed, ServerError> {
        let repository = self.repository(host, Hold::Shared).await?;
        let scrub = Scrub {
            repository,
            host: host.clone(),
            runtime: Handle::current(),
            rate,
            began: Instant::now(),
            scrubbed: Scrubbed::default(),
        };
        crate::repository::blocking(move || scrub.run(go_on)).await
    }
}

struct Scrub {
    repository: Arc<Repository>,
    host: HostName,
    runtime: Handle,
    rate: Option<u64>,
    began: Instant,
    scrubbed: Scrubbed,
}

impl Scrub {
    fn run(
        mut self,
        mut go_on: impl FnMut(&Scrubbed) -> ControlFlow<()>,
    ) -> Result<Scrubbed, ServerError> {
        // The config has no hash; whether it is sound only its reader knows.
        for kind in [
            ObjectKind::Key,
            ObjectKind::Snapshot,
            ObjectKind::Index,
            ObjectKind::Pack,
        ] {
            for object in self.repository.list(kind)? {
                let name = ObjectName {
                    kind,
                    id: object.id,
                };
                match self.read(name) {
                    Ok(id) if id == name.id => {}
                    Ok(found) => self.lay_aside(&ServerError::Damaged { name, found }, name)?,
                    // Removed since it was listed.
                    Err(ServerError::NotFound { .. }) => {}
                    Err(error) if error.is_damage() => self.lay_aside(&error, name)?,
                    Err(error) => return Err(error),
                }
                self.scrubbed.objects += 1;
                if go_on(&self.scrubbed).is_break() {
                    return Ok(self.scrubbed);
                }
            }
        }
        Ok(self.scrubbed)
    }

    /// The SHA-256 of an object.
    fn read(&mut self, name: ObjectName) -> Result<ObjectId, ServerError> {
        let mut outlet = self.repository.read(name, None)?;
        let mut hash = Context::new(&SHA256);
        while let Some(piece) = outlet.next(PIECE_BYTES_MAX)? {
            hash.update(&piece);
            self.scrubbed.bytes += piece.len() as u64;
            if let Some(rate) = self.rate.filter(|rate| *rate > 0) {
                let due = Duration::from_secs_f64(self.scrubbed.bytes as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(self.began.elapsed()));
            }
        }
        let mut id = [0; 32];
        id.copy_from_slice(hash.finish().as_ref());
        Ok(ObjectId(id))
    }

    fn lay_aside(&mut self, why: &ServerError, name: ObjectName) -> Result<(), ServerError> {
        let (text, now) = (why.to_string(), Timestamp::now());
        tracing::warn!(host = %self.host, %name, why = text, "laid aside as damaged");
        let detail = json!({"object": name.to_string(), "why": text});
        let event = Event::new(AuditEvent::ObjectDamaged, Some(&self.host), detail);
        let (host, database) = self.repository.known();
        self.runtime.block_on(async {
            database.audit(event).await?;
            // A client that had no connection meanwhile must not rely on what it knows.
            database.count_removals(host).await
        })?;
        self.repository.lay_aside(name, Shelf::Damaged, now)?;
        self.runtime
            .block_on(database.set_removed(host, name, Some(now)))?;
        self.scrubbed.damaged.push((name, text));
        Ok(())
    }
}
