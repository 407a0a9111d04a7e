//! Whether the bytes of an object are what its name says, as far as that can be told without a key (§2; `wal.md` §2).

use crate::ServerError;
use aws_lc_rs::digest::{Context, SHA256};
use backlane_proto::{
    ObjectId, ObjectKind, ObjectName, WalHeader,
    wal::{HEADER_BYTES, SUMMED_BYTES},
};

/// Takes an object's bytes as they come.
pub(crate) struct Content {
    name: ObjectName,
    hash: Context,
    /// The header of archived WAL, as far as it has come.
    header: Vec<u8>,
}

impl Content {
    pub(crate) fn new(name: ObjectName) -> Self {
        Self {
            name,
            hash: Context::new(&SHA256),
            header: Vec::new(),
        }
    }

    pub(crate) fn take(&mut self, mut piece: &[u8]) {
        if self.name.kind == ObjectKind::Wal {
            let missing = HEADER_BYTES - self.header.len();
            let (header, sealed) = piece.split_at(missing.min(piece.len()));
            self.header.extend_from_slice(header);
            if !header.is_empty() && self.header.len() == HEADER_BYTES {
                self.hash.update(&self.header[..SUMMED_BYTES]);
            }
            piece = sealed;
        }
        self.hash.update(piece);
    }

    /// What two objects of one name have in common if they are the same: their SHA-256, or the keyed digest of a WAL file.
    ///
    /// # Errors
    /// What is wrong, where the object isn't what its name says.
    pub(crate) fn finish(self) -> Result<ObjectId, String> {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.hash.finish().as_ref());
        let hash = ObjectId(hash);
        match self.name.kind {
            ObjectKind::Wal => {
                let header = WalHeader::decode(&self.header).map_err(|bad| bad.to_string())?;
                if header.name.id() != self.name.id {
                    return Err(format!("it is {}", header.name));
                }
                match header.sum == hash.0 {
                    true => Ok(ObjectId(header.digest)),
                    false => Err(format!("its content has the SHA-256 {hash}")),
                }
            }
            kind if kind == ObjectKind::Config || hash == self.name.id => Ok(hash),
            _ => Err(format!("its content has the SHA-256 {hash}")),
        }
    }

    /// The same of an object that is stored.
    ///
    /// # Errors
    /// [`ServerError::Damaged`].
    pub(crate) fn finish_stored(self) -> Result<ObjectId, ServerError> {
        let name = self.name;
        self.finish()
            .map_err(|found| ServerError::Damaged { name, found })
    }
}
