//! The directories below the target, by number.
//!
//! Invariants: a directory is reached from the target's handle, one plain name at a time and never through a symbolic
//! link, and has to be the inode that it was when it was entered here: nothing outside the target is ever reached, and
//! a path may be of any length. At most [`HANDLES_MAX`] are held open. A directory is forgotten when the last that
//! refers to it is.

use crate::fs::{self, Facts, Identity};
use std::{
    collections::{HashMap, VecDeque},
    ffi::{OsStr, OsString},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many directories are held open beside the target itself.
const HANDLES_MAX: usize = 256;

/// A directory below the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlaceId(u64);

impl PlaceId {
    /// The target itself.
    pub(crate) const TARGET: Self = Self(0);
}

/// All directories that the restore has to do with at the moment.
pub(crate) struct Places {
    target: Arc<OwnedFd>,
    path: PathBuf,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    places: HashMap<PlaceId, Place>,
    last: u64,
    open: HashMap<PlaceId, Arc<OwnedFd>>,
    /// The open ones, the oldest first.
    order: VecDeque<PlaceId>,
    /// One directory on each file system that was met, to sync it at the end.
    devices: HashMap<u64, Arc<OwnedFd>>,
}

struct Place {
    parent: PlaceId,
    name: OsString,
    identity: Identity,
    /// How many directories and others refer to it.
    holders: u32,
}

impl Places {
    pub(crate) fn new(target: OwnedFd, path: &Path) -> io::Result<Self> {
        let device = Facts::of_open(&target)?.identity.device;
        let target = Arc::new(target);
        let devices = HashMap::from([(device, Arc::clone(&target))]);
        Ok(Self {
            target,
            path: path.to_owned(),
            table: Mutex::new(Table {
                devices,
                ..Table::default()
            }),
        })
    }

    /// Waits until all that was written is on the devices.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let devices = std::mem::take(&mut self.table().devices);
        for handle in devices.values() {
            rustix::fs::syncfs(handle)?;
        }
        Ok(())
    }

    /// Takes in the directory `name` of `parent`, which is open; the caller is its first holder.
    pub(crate) fn add(
        &self,
        parent: PlaceId,
        name: &OsStr,
        handle: OwnedFd,
    ) -> io::Result<PlaceId> {
        let identity = Facts::of_open(&handle)?.identity;
        let mut table = self.table();
        table.last += 1;
        let id = PlaceId(table.last);
        if let Some(parent) = table.places.get_mut(&parent) {
            parent.holders += 1;
        }
        table.places.insert(
            id,
            Place {
                parent,
                name: name.to_owned(),
                identity,
                holders: 1,
            },
        );
        let handle = Arc::new(handle);
        let device = table.devices.entry(identity.device);
        device.or_insert_with(|| Arc::clone(&handle));
        table.keep_open(id, handle);
        Ok(id)
    }

    /// Whether another name leads to the same directory, as on a file system that doesn't tell `a` from `A`.
    pub(crate) fn has_twin(&self, id: PlaceId) -> bool {
        let table = self.table();
        let identity = table.places.get(&id).map(|place| place.identity);
        let same = table
            .places
            .iter()
            .filter(|(_, place)| Some(place.identity) == identity);
        same.count() > 1
    }

    /// One more refers to it.
    pub(crate) fn hold(&self, id: PlaceId) {
        if let Some(place) = self.table().places.get_mut(&id) {
            place.holders += 1;
        }
    }

    /// One less refers to it.
    pub(crate) fn release(&self, mut id: PlaceId) {
        let mut table = self.table();
        while let Some(place) = table.places.get_mut(&id) {
            place.holders -= 1;
            if place.holders > 0 {
                return;
            }
            let parent = place.parent;
            table.places.remove(&id);
            if table.open.remove(&id).is_some() {
                table.order.retain(|open| *open != id);
            }
            id = parent;
        }
    }

    /// The directory, open.
    pub(crate) fn handle(&self, id: PlaceId) -> io::Result<Arc<OwnedFd>> {
        let mut table = self.table();
        // Up to the nearest that is open, then down again.
        let mut way = Vec::new();
        let mut at = id;
        let mut handle = loop {
            if at == PlaceId::TARGET {
                break Arc::clone(&self.target);
            }
            if let Some(handle) = table.open.get(&at) {
                break Arc::clone(handle);
            }
            way.push(at);
            at = table.place(at)?.parent;
        };
        if way.is_empty() {
            return Ok(handle);
        }
        for step in way.into_iter().rev() {
            let place = table.place(step)?;
            let next = fs::open_dir(&handle, &place.name)?;
            if Facts::of_open(&next)?.identity != place.identity {
                return Err(io::Error::other("the directory was replaced by another"));
            }
            handle = Arc::new(next);
        }
        table.keep_open(id, Arc::clone(&handle));
        Ok(handle)
    }

    /// The path of `name` in it, to be shown to people.
    pub(crate) fn path_of(&self, id: PlaceId, name: &OsStr) -> PathBuf {
        let table = self.table();
        let mut names = vec![name];
        let mut at = id;
        while let Some(place) = table.places.get(&at) {
            names.push(&place.name);
            at = place.parent;
        }
        let mut path = self.path.clone();
        for name in names.into_iter().rev() {
            if !name.is_empty() {
                path.push(name);
            }
        }
        path
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn place(&self, id: PlaceId) -> io::Result<&Place> {
        self.places
            .get(&id)
            .ok_or_else(|| io::Error::other("the directory is no longer known"))
    }

    fn keep_open(&mut self, id: PlaceId, handle: Arc<OwnedFd>) {
        if self.open.insert(id, handle).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > HANDLES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.open.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkdirat};

    fn places(target: &Path) -> Places {
        let handle = fs::open_dir(CWD, target.as_os_str()).unwrap();
        Places::new(handle, target).unwrap()
    }

    fn make(places: &Places, parent: PlaceId, name: &str) -> PlaceId {
        let above = places.handle(parent).unwrap();
        mkdirat(&*above, name, Mode::RWXU).unwrap();
        let handle = fs::open_dir(&*above, name.as_ref()).unwrap();
        places.add(parent, name.as_ref(), handle).unwrap()
    }

    #[test]
    fn deep_directories_are_reached_with_few_handles_and_forgotten_when_released() {
        let target = tempfile::tempdir().unwrap();
        let places = places(target.path());
        let name = "d".repeat(100);
        let mut chain = vec![PlaceId::TARGET];
        for _ in 0..HANDLES_MAX + 50 {
            chain.push(make(&places, chain[chain.len() - 1], &name));
        }
        assert_eq!(places.table().open.len(), HANDLES_MAX);
        for id in &chain {
            places.handle(*id).unwrap();
        }
        for id in chain.iter().rev() {
            places.release(*id);
        }
        assert_eq!(places.table().places.len(), 0);
        assert_eq!(places.table().open.len(), 0);
    }

    #[test]
    fn a_directory_that_two_names_lead_to_is_known() {
        let target = tempfile::tempdir().unwrap();
        let places = places(target.path());
        let [first, another] = ["a", "b"].map(|name| make(&places, PlaceId::TARGET, name));
        assert!(
            ![PlaceId::TARGET, first, another]
                .map(|id| places.has_twin(id))
                .contains(&true)
        );
        let again = fs::open_dir(&*places.handle(first).unwrap(), ".".as_ref()).unwrap();
        let again = places.add(PlaceId::TARGET, "A".as_ref(), again).unwrap();
        assert!(places.has_twin(first) && places.has_twin(again) && !places.has_twin(another));
    }

    #[test]
    fn a_directory_replaced_by_a_link_is_not_entered() {
        let target = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let places = places(target.path());
        let id = make(&places, PlaceId::TARGET, "a");
        let below = make(&places, id, "b");
        places.table().open.clear();
        places.table().order.clear();
        std::fs::rename(target.path().join("a"), target.path().join("moved")).unwrap();
        std::fs::create_dir(outside.path().join("b")).unwrap();
        std::os::unix::fs::symlink(outside.path(), target.path().join("a")).unwrap();
        places.handle(below).unwrap_err();
    }
}
