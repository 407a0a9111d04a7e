//! Scrubbing: every object of a repository is read, at a pace, and compared with its name (§2).
//!
//! It may run beside sessions. What is damaged is laid aside, where it harms nobody, so that the next backup stores again
//! what it has of it; nothing is deleted.

use crate::{
    HostName, ServerError, ServerState,
    audit::AuditEvent,
    content::Content,
    db::{Event, Timestamp},
    repository::{PIECE_BYTES_MAX, Repository},
    store::{Hold, Shelf},
};
use backlane_proto::{ObjectKind, ObjectName};
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
            unreadable: Unreadable::default(),
            scrubbed: Scrubbed::default(),
        };
        crate::repository::blocking(move || scrub.run(go_on)).await
    }
}

/// More objects in a row than this aren't bad places of a disk, but a bad disk.
const UNREADABLE_MAX: u32 = 3;

/// Objects in a row that couldn't be read.
#[derive(Default)]
struct Unreadable(u32);

struct Scrub {
    repository: Arc<Repository>,
    host: HostName,
    runtime: Handle,
    rate: Option<u64>,
    began: Instant,
    unreadable: Unreadable,
    scrubbed: Scrubbed,
}

impl Scrub {
    fn run(
        mut self,
        mut go_on: impl FnMut(&Scrubbed) -> ControlFlow<()>,
    ) -> Result<Scrubbed, ServerError> {
        // The config has no hash, and a key that is damaged is of more use where it is than elsewhere.
        let kinds = [
            ObjectKind::Snapshot,
            ObjectKind::Index,
            ObjectKind::Pack,
            ObjectKind::Wal,
        ];
        for kind in kinds {
            for object in self.repository.list(kind)? {
                let name = ObjectName {
                    kind,
                    id: object.id,
                };
                if let Some(why) = self.damage(name)? {
                    self.lay_aside(&why, name)?;
                }
                self.scrubbed.objects += 1;
                if go_on(&self.scrubbed).is_break() {
                    return Ok(self.scrubbed);
                }
            }
        }
        Ok(self.scrubbed)
    }

    /// What is wrong with an object, if that is so twice.
    fn damage(&mut self, name: ObjectName) -> Result<Option<ServerError>, ServerError> {
        let mut look = || match self.read(name) {
            Ok(()) => Ok(None),
            // Removed since it was listed.
            Err(ServerError::NotFound { .. }) => Ok(None),
            Err(error) if error.is_damage() => Ok(Some(error)),
            Err(error) => Err(error),
        };
        let damage = match look()? {
            None => None,
            Some(_) => look()?,
        };
        self.unreadable.judge(damage)
    }

    /// Reads an object; fails if it isn't what its name says.
    fn read(&mut self, name: ObjectName) -> Result<(), ServerError> {
        let mut outlet = self.repository.read(name, None)?;
        let mut content = Content::new(name);
        while let Some(piece) = outlet.next(PIECE_BYTES_MAX)? {
            content.take(&piece);
            self.scrubbed.bytes += piece.len() as u64;
            if let Some(rate) = self.rate.filter(|rate| *rate > 0) {
                let due = Duration::from_secs_f64(self.scrubbed.bytes as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(self.began.elapsed()));
            }
        }
        content.finish_stored().map(drop)
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

impl Unreadable {
    /// Lets the damage of the next object pass. A disk that fails as a whole is no reason to take a repository apart.
    fn judge(&mut self, damage: Option<ServerError>) -> Result<Option<ServerError>, ServerError> {
        self.0 = match damage {
            Some(ServerError::Io { .. }) => self.0 + 1,
            _ => 0,
        };
        match damage {
            Some(error) if self.0 > UNREADABLE_MAX => Err(error),
            damage => Ok(damage),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_as_a_whole_takes_no_repository_apart() {
        let bad = || {
            let source = rustix::io::Errno::IO.into();
            Some(ServerError::Io {
                action: "read",
                path: "pack".into(),
                source,
            })
        };
        let mut unreadable = Unreadable::default();
        for _ in 0..2 {
            for _ in 0..3 {
                assert!(unreadable.judge(bad()).unwrap().is_some());
            }
            assert!(unreadable.judge(None).unwrap().is_none());
        }
        for _ in 0..3 {
            unreadable.judge(bad()).unwrap();
        }
        assert!(unreadable.judge(bad()).is_err());
    }
}
