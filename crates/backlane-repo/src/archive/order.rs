//! Whether entries come as trees need them.

use crate::node::{FileKind, name_is_plain};
use crate::source::Entry;

/// Checks entries one after the other.
#[derive(Default)]
pub(crate) struct Order {
    last: Vec<u8>,
    last_was_directory: bool,
}

impl Order {
    /// Takes in an entry, or says what is wrong with it.
    pub(crate) fn admit(&mut self, entry: &Entry) -> Result<(), &'static str> {
        if matches!(entry.kind, FileKind::Unknown { .. }) {
            return Err("which is of no kind that the format has");
        }
        let directory = entry.kind == FileKind::Directory;
        let path = entry.path.as_slice();
        if path == b"/" {
            return if directory && self.last.is_empty() {
                Ok(())
            } else {
                Err("which is no directory, or not first")
            };
        }
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        if !parts(relative).all(name_is_plain) {
            return Err("which is not a plain path");
        }
        if !self.last.is_empty() {
            if parts(path).le(parts(&self.last)) {
                return Err("out of order");
            }
            let below = path.strip_prefix(self.last.as_slice());
            if !self.last_was_directory && below.is_some_and(|rest| rest.starts_with(b"/")) {
                return Err("below something that is no directory");
            }
        }
        self.last.clear();
        self.last.extend_from_slice(path);
        self.last_was_directory = directory;
        Ok(())
    }
}

/// The components of a path.
pub(crate) fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Metadata;

    fn entry(path: &str, kind: FileKind) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind,
            meta: Metadata::default(),
            open: None,
        }
    }

    fn order(paths: &[&str]) -> Result<(), &'static str> {
        let mut order = Order::default();
        paths.iter().try_for_each(|path| {
            let kind = if let Some(name) = path.strip_suffix('*') {
                return order.admit(&entry(name, FileKind::File));
            } else {
                FileKind::Directory
            };
            order.admit(&entry(path, kind))
        })
    }

    #[test]
    fn only_the_order_of_trees_is_admitted() {
        for good in [
            &["/", "/a", "/a/b", "/a/b/c*", "/a/c*", "/a.b*", "/b"][..],
            &["a", "a/b*", "b"],
            // By names, component by component: not by the bytes of the whole path.
            &["/a", "/a/z*", "/a b", "/a!"],
        ] {
            assert_eq!(order(good), Ok(()), "{good:?}");
        }
        for bad in [
            &["/b", "/a"][..],
            &["/a", "/a"],
            &["/a!", "/a/z*"],
            &["/a/b", "/a"],
            &["/a", "/"],
            &["/a*", "/a/b*"],
            &["/a/../b"],
            &["/a/"],
            &["."],
            &[""],
        ] {
            assert!(order(bad).is_err(), "{bad:?}");
        }
    }
}
