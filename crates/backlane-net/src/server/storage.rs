//! The server's pool: who coordinates it, the proofs of members, and the data pairs through it.

use super::{Core, ServerPool, session::Session};
use crate::Error;
use backlane_proto::{
    Answer, Reason,
    proof::{Member, Proof},
};
use std::sync::Arc;
use uuid::Uuid;

/// The pool, while the server runs.
pub(super) struct Storage {
    uuid: Uuid,
}

impl Storage {
    /// Opens and claims the pool.
    pub(super) async fn open(pool: ServerPool) -> Result<Arc<Self>, Error> {
        let _ = pool;
        Err(Error::Pool {
            why: "this build has no storage sockets".to_owned(),
        })
    }

    /// Binds a member of the pool to a session, once both sides have proved that they see the same devices.
    pub(super) async fn prove(
        &self,
        core: &Arc<Core>,
        session: &Arc<Session>,
        member: Member,
        proofs: Vec<Proof>,
    ) -> Result<Answer, Reason> {
        let _ = (
            core,
            session,
            member,
            proofs,
            &session.proof_key,
            &session.seal_key,
        );
        Err(Reason::Unsupported)
    }

    /// Waits until a session that is over has let go of its segments.
    pub(super) async fn released(&self, session: &Session) {
        let _ = session;
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.uuid
    }
}
