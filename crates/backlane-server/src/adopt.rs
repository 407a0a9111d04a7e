//! Adoption: a repository whose host or objects the state database doesn't know is entered there, by what its directory
//! says (§4). That rebuilds the state of a server that has lost it, and makes known what other tools brought.
//!
//! An object counts as arrived when its file was written. What a pack holds is on its file, or in its header, which takes
//! the repository's key; where neither says so, it counts as data.

use crate::{
    ExclusiveRepository, HostName, ObjectCount, Removal, ServerError, ServerState,
    audit::AuditEvent,
    db::{Event, Found, Timestamp},
    error::io_error,
    repository::blocking,
    store::{ByteStore, Shelf},
};
use backlane_proto::{ObjectInfo, ObjectKind, ObjectName};
use serde_json::json;
use std::{fs, path::PathBuf};

/// The repositories that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repositories {
    /// By the names of their hosts, enrolled or not.
    pub hosts: Vec<HostName>,
    /// What lies between them and is none.
    pub others: Vec<PathBuf>,
}

impl ServerState {
    /// Lists the repositories that are in this server's directory, whatever the database knows of them.
    ///
    /// # Errors
    /// When it can't be listed.
    pub fn repositories(&self) -> Result<Repositories, ServerError> {
        let directory = self.config().repositories();
        let mut found = Repositories::default();
        for entry in fs::read_dir(&directory).map_err(io_error("list", &directory))? {
            let path = entry.map_err(io_error("list", &directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            // Names are folded when they are parsed: another spelling is no directory of ours.
            let host = name.and_then(|name| Some((name, name.parse::<HostName>().ok()?)));
            match host {
                Some((name, host)) if host.as_str() == name && path.join("config").is_file() => {
                    found.hosts.push(host);
                }
                _ => found.others.push(path),
            }
        }
        found.hosts.sort_unstable();
        found.others.sort_unstable();
        Ok(found)
    }

    /// Enters a host and all objects of its repository that the database doesn't know. Returns the repository, how much
    /// was new, and of which packs nothing says what they hold.
    ///
    /// # Errors
    /// [`ServerError::NoRepository`] where there is none of that name; as [`ServerState::exclusive`].
    pub async fn adopt(&self, host: &HostName) -> Result<Adopted, ServerError> {
        let root = self.config().repositories().join(host.as_str());
        if !root.join("config").is_file() {
            return Err(ServerError::NoRepository { path: root });
        }
        let id = self.database().enter_host(host, Timestamp::now()).await?;
        let repository = self.exclusive(host, Removal::Recoverable).await?;
        let store = repository.store();
        let (found, unlabelled) = blocking(move || look(&*store)).await?;
        let new = self.database().enter_objects(id, &found).await?;
        let detail = json!({"objects": new.objects, "bytes": new.bytes});
        let event = Event::new(AuditEvent::Adopted, Some(host), detail);
        self.database().audit(event).await?;
        let labelled = self.database().labelled_packs(id).await?;
        let unlabelled = unlabelled.into_iter();
        let unlabelled = unlabelled.filter(|pack| !labelled.contains(&pack.id));
        Ok(Adopted {
            new,
            unlabelled: unlabelled.collect(),
            repository,
        })
    }
}

/// An adopted repository, held alone.
pub struct Adopted {
    /// What the database didn't know.
    pub new: ObjectCount,
    /// Packs of which nothing says what they hold.
    pub unlabelled: Vec<ObjectInfo>,
    /// The repository.
    pub repository: ExclusiveRepository,
}

/// Everything in a repository and on its shelf, and the packs without a label.
fn look(store: &dyn ByteStore) -> Result<(Vec<Found>, Vec<ObjectInfo>), ServerError> {
    let (mut found, mut unlabelled) = (Vec::new(), Vec::new());
    for kind in ObjectKind::ALL {
        for object in store.list(kind)? {
            let name = ObjectName {
                kind,
                id: object.id,
            };
            let origin = store.origin(name)?;
            if kind == ObjectKind::Pack && origin.contents.is_none() {
                unlabelled.push(object);
            }
            found.push(Found {
                name,
                bytes: object.bytes,
                origin,
                removed_at: None,
            });
        }
    }
    // After what is in place: an object that was removed and came again is there.
    for aside in store.shelf(Shelf::Removed)? {
        found.push(Found {
            name: aside.name,
            bytes: aside.bytes,
            origin: store.shelf_origin(Shelf::Removed, &aside)?,
            removed_at: Some(aside.at),
        });
    }
    Ok((found, unlabelled))
}
