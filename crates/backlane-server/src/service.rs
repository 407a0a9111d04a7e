//! What sessions call: the network's traits, on top of the state and the repositories.

use crate::{
    HostName, ServerError, ServerState,
    db::Arrival,
    repository::{Intake, Outlet, PIECE_BYTES_MAX, Repository, blocking},
};
use backlane_net::service::{
    BodySink, BodySource, BoxFuture, EnrollGrant, EnrollRequest, ObjectService, Service,
    ServiceError,
};
use backlane_proto::{ByteRange, ObjectInfo, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;
use std::sync::Arc;

impl Service for ServerState {
    fn open<'a>(
        &'a self,
        host: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn ObjectService>, ServiceError>> {
        Box::pin(async move {
            let repository = self.session(&host.parse::<HostName>()?).await?;
            Ok(Arc::new(Session { repository }) as Arc<dyn ObjectService>)
        })
    }

    fn enroll<'a>(
        &'a self,
        request: EnrollRequest,
    ) -> BoxFuture<'a, Result<EnrollGrant, ServiceError>> {
        Box::pin(async move { Ok(self.redeem(&request).await?) })
    }

    fn slots<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<u32>, ServiceError>> {
        Box::pin(async move { Ok(self.slots_of(&host.parse::<HostName>()?).await?) })
    }

    fn all_slots(&self) -> BoxFuture<'_, Result<Vec<u32>, ServiceError>> {
        Box::pin(async move { Ok(ServerState::all_slots(self).await?) })
    }
}

/// One session's hold on its host's repository.
struct Session {
    repository: Arc<Repository>,
}

impl ObjectService for Session {
    fn list(&self, kind: ObjectKind) -> BoxFuture<'_, Result<Vec<ObjectInfo>, ServiceError>> {
        let repository = Arc::clone(&self.repository);
        Box::pin(async move { Ok(blocking(move || repository.list(kind)).await?) })
    }

    fn get(
        &self,
        name: ObjectName,
        range: Option<ByteRange>,
    ) -> BoxFuture<'_, Result<Box<dyn BodySource>, ServiceError>> {
        let repository = Arc::clone(&self.repository);
        Box::pin(async move {
            let outlet = blocking(move || repository.read(name, range)).await?;
            Ok(Box::new(Source {
                length: outlet.remaining(),
                outlet: Some(outlet),
                name,
            }) as Box<dyn BodySource>)
        })
    }

    fn put(
        &self,
        name: ObjectName,
        contents: PackContents,
        bytes: u64,
    ) -> BoxFuture<'_, Result<Box<dyn BodySink>, ServiceError>> {
        let repository = Arc::clone(&self.repository);
        let put = Arrival {
            name,
            contents,
            bytes,
        };
        Box::pin(async move {
            let intake = blocking(move || repository.begin(put)).await?;
            Ok(Box::new(Sink {
                intake: Some(intake),
                name,
            }) as Box<dyn BodySink>)
        })
    }

    fn removals(&self) -> BoxFuture<'_, Result<u64, ServiceError>> {
        let repository = Arc::clone(&self.repository);
        Box::pin(async move { Ok(repository.removals().await?) })
    }

    fn remove(&self, _: ObjectName) -> BoxFuture<'_, Result<(), ServiceError>> {
        let denied = ServerError::Denied("a client adds objects and never removes any");
        Box::pin(async move { Err(denied.into()) })
    }
}

/// A body on its way out. The outlet is away while a piece is read, and stays away after a failure.
struct Source {
    outlet: Option<Outlet>,
    length: u64,
    name: ObjectName,
}

impl BodySource for Source {
    fn length(&self) -> u64 {
        self.length
    }

    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Option<Bytes>, ServiceError>> {
        Box::pin(async move {
            let name = self.name;
            let mut outlet = self.outlet.take().ok_or(ServerError::Abandoned { name })?;
            let (outlet, piece) = blocking(move || {
                let piece = outlet.next(most.min(PIECE_BYTES_MAX))?;
                Ok((outlet, piece))
            })
            .await?;
            self.outlet = Some(outlet);
            Ok(piece)
        })
    }
}

/// A body on its way in. The intake is away while a piece is written, and stays away after a failure.
struct Sink {
    intake: Option<Intake>,
    name: ObjectName,
}

impl BodySink for Sink {
    fn write(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(async move {
            let name = self.name;
            let mut intake = self.intake.take().ok_or(ServerError::Abandoned { name })?;
            let intake = blocking(move || {
                intake.take(&piece)?;
                Ok(intake)
            })
            .await?;
            self.intake = Some(intake);
            Ok(())
        })
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let name = self.name;
            let intake = self.intake.take().ok_or(ServerError::Abandoned { name })?;
            Ok(intake.commit().await?)
        })
    }
}
