//! A look at every connection of a session: each is tried by itself, so that what becomes of one says nothing of
//! another.

use super::{ClientConfig, Inner, RouteDown, RouteStatus, Session, connect::Start, line::Line};
use crate::Error;
use backlane_proto::{ErrorCode, Reason, Route};
use std::sync::Arc;

/// What became of a session's connections.
#[derive(Debug)]
pub struct Survey {
    /// Requests and answers by each mechanism: all the way to the server's welcome.
    pub control: RouteStatus,
    /// Bodies by each mechanism.
    pub data: RouteStatus,
    /// The session, with requests by network where they can go by both; none where they can go by neither.
    pub session: Option<Session>,
}

pub(super) async fn survey(config: ClientConfig) -> Result<Survey, Error> {
    let policy = config.policy;
    let start = Start::new(config)?;
    let ruled_out =
        |route| (!policy.allows_control(route)).then(|| RouteDown::new(Reason::Policy, policy));
    let by_network = async {
        match ruled_out(Route::Network) {
            Some(down) => Err(down),
            None => start
                .liner
                .by_network(None)
                .await
                .map_err(RouteDown::of_line),
        }
    };
    let by_storage = async {
        match ruled_out(Route::Storage) {
            Some(down) => Err(down),
            None => start
                .liner
                .by_storage(None)
                .await
                .map_err(RouteDown::of_line),
        }
    };
    let (network, storage) = tokio::join!(by_network, by_storage);
    let became = |line: &Result<Line, RouteDown>| line.as_ref().map(drop).map_err(RouteDown::clone);
    let control = RouteStatus {
        network: became(&network),
        storage: became(&storage),
    };
    let Ok(line) = network.or(storage) else {
        // Without a session there are no pairs, for the same reasons.
        let mut data = control.clone();
        if !policy.allows(Route::Network) {
            data.network = Err(RouteDown::new(Reason::Policy, policy));
        }
        return Ok(Survey {
            control,
            data,
            session: None,
        });
    };
    let shared = start.session(line).await;
    let inner = Arc::new(Inner { shared });
    let session = Session { inner };
    Ok(Survey {
        control,
        data: session.routes(),
        session: Some(session),
    })
}

impl RouteDown {
    /// Why there is no line.
    fn of_line(error: Error) -> Self {
        match error {
            Error::NoRoute { reason, detail, .. } => Self { reason, detail },
            error @ (Error::Connect { .. } | Error::Silent { .. } | Error::Lost { .. }) => {
                Self::new(Reason::Unreachable, error)
            }
            // Under the server's ceiling.
            error @ Error::Refused {
                code: ErrorCode::Route,
                ..
            } => Self::new(Reason::Policy, error),
            error => Self::new(Reason::Refused, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_servers_ceiling_leaves_nothing_of_is_a_matter_of_the_policy_and_no_other_refusal_is()
     {
        for (code, reason) in [
            (ErrorCode::Route, Reason::Policy),
            (ErrorCode::Denied, Reason::Refused),
        ] {
            let refused = Error::Refused {
                server: "s:1".to_owned(),
                code,
                text: "no".to_owned(),
            };
            assert_eq!(RouteDown::of_line(refused).reason, reason);
        }
    }
}
