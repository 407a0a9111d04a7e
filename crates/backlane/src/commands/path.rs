//! `backlane path`: which route each kind of call would take now, and why, and how fast the routes are.
//!
//! It asks the router that jobs ask, about the connections that a job would have. No object is read or written: what
//! the probes send is thrown away where it arrives.

mod decisions;
mod document;
mod measure;

use crate::{
    Context,
    cli::PathArgs,
    config::{self, ClientFile},
    output::Outcome,
};
use anyhow::{Context as _, Result, bail};
use backlane_net::{ClientConfig, PoolUse, RouteStatus, Session, Survey};
use backlane_proto::{Health, Reason, Route, RoutePolicy, ServerRoutes};
use document::PathDocument;
use measure::ProbeDocument;
use std::time::Duration;

/// Shows the path.
///
/// # Errors
/// When the configuration or this host's keys can't be used. That there is no way to the server is no error but the
/// result.
pub(crate) fn run(args: &PathArgs, context: &Context) -> Result<Outcome> {
    let file = ClientFile::read(&config::path(context.config.as_deref()))?;
    let mut how = file.session(context.pool_engine)?;
    if let Some(host) = &args.host {
        how.server = address(host, &file.server);
    }
    if let Some(route) = args.route {
        how.policy = route.into();
    }
    // What fails while it is looked at is to be seen.
    how.route_wait = Duration::ZERO;
    let (server, policy) = (how.server.clone(), how.policy);
    let seen = context.runtime.block_on(async {
        tokio::select! {
            seen = look(how, context) => seen,
            () = context.cancel.wait() => bail!("interrupted while looking at the path to {server}"),
        }
    })?;
    // The server may have left less of the policy than was asked for.
    let session = seen.survey.session.as_ref();
    let policy = session.map_or(policy, Session::policy);
    let outcome = match session {
        Some(_) if decisions::carries(policy, &seen) => Outcome::Done,
        Some(_) => Outcome::NoRoute,
        None => without_session(policy, &seen.survey.control),
    };
    let document = PathDocument::new(&file, (server, policy), seen);
    context.output.result(&document, PathDocument::text)?;
    Ok(outcome)
}

/// How a job would end that began now, where there is no way to the server.
fn without_session(policy: RoutePolicy, control: &RouteStatus) -> Outcome {
    let way = match policy.allows_control(Route::Network) {
        true => &control.network,
        false => &control.storage,
    };
    match way.as_ref().map_err(|down| down.reason) {
        // Another policy, or another state of the pool, could change it.
        Err(reason) if !matches!(reason, Reason::Unreachable | Reason::Refused) => Outcome::NoRoute,
        _ => Outcome::Failed,
    }
}

/// What was found.
struct Seen {
    survey: Survey,
    /// The pool, if it could be joined.
    pool: Option<PoolUse>,
    at_server: Option<ServerRoutes>,
    probes: Vec<ProbeDocument>,
}

async fn look(how: ClientConfig, context: &Context) -> Result<Seen> {
    let survey = Session::survey(how)
        .await
        .context("this host can't connect to any server")?;
    let mut seen = Seen {
        survey,
        pool: None,
        at_server: None,
        probes: Vec::new(),
    };
    let Some(session) = seen.survey.session.clone() else {
        return Ok(seen);
    };
    seen.pool = session.pool();
    match session.server_routes().await {
        Ok(routes) => seen.at_server = Some(routes),
        Err(error) => context.output.warning(format!(
            "how the server sees the routes is not known: {error}"
        )),
    }
    let data = &seen.survey.data;
    for (route, up) in [
        (Route::Storage, data.storage.is_ok()),
        (Route::Network, data.network.is_ok()),
    ] {
        if up {
            if context.output.shows_progress() {
                context.output.note(format!("probing {route} …"));
            }
            seen.probes.push(measure::probe(&session, route).await);
        }
    }
    if let Err(error) = session.close().await {
        context
            .output
            .warning(format!("the session did not end in good order: {error}"));
    }
    Ok(seen)
}

impl Seen {
    /// The routes as this side sees them, which is how it decides about what it puts.
    fn here(&self) -> Health {
        self.survey.data.health()
    }

    /// As the server decides about what it sends.
    fn there(&self) -> Health {
        match &self.at_server {
            Some(routes) => routes.health.and(self.here()),
            None => self.here(),
        }
    }
}

/// `HOST`, at the port of the configured server unless it has its own.
fn address(host: &str, configured: &str) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(name, port)| {
        port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']'))
    });
    if has_port {
        return host.to_owned();
    }
    let port = configured.rsplit_once(':').map_or("", |(_, port)| port);
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlane_net::RouteDown;

    #[test]
    fn without_a_session_path_ends_as_a_job_would() {
        let down = |reason| {
            Err(RouteDown {
                reason,
                detail: String::new(),
            })
        };
        for (policy, network, storage, outcome) in [
            (
                RoutePolicy::StorageOnly,
                Reason::Policy,
                Reason::NoAnswer,
                Outcome::NoRoute,
            ),
            (
                RoutePolicy::StorageOnly,
                Reason::Policy,
                Reason::Refused,
                Outcome::Failed,
            ),
            (
                RoutePolicy::StorageOnly,
                Reason::Policy,
                Reason::Unreachable,
                Outcome::Failed,
            ),
            (
                RoutePolicy::RequireStorage,
                Reason::Unreachable,
                Reason::NoAnswer,
                Outcome::Failed,
            ),
            // The server's ceiling.
            (
                RoutePolicy::Network,
                Reason::Policy,
                Reason::Policy,
                Outcome::NoRoute,
            ),
        ] {
            let control = RouteStatus {
                network: down(network),
                storage: down(storage),
            };
            assert_eq!(without_session(policy, &control), outcome, "{policy}");
        }
    }

    #[test]
    fn a_host_without_a_port_has_that_of_the_configured_server() {
        for (host, address_of_it) in [
            ("b", "b:4870"),
            ("b:1", "b:1"),
            ("10.0.0.1", "10.0.0.1:4870"),
            ("::1", "[::1]:4870"),
            ("[::1]", "[::1]:4870"),
            ("[::1]:2", "[::1]:2"),
        ] {
            assert_eq!(address(host, "store.example:4870"), address_of_it);
        }
    }
}
