//! What `path` prints.

use super::{Seen, decisions, measure::ProbeDocument};
use crate::{
    advice,
    commands::reasons::{DownDocument, ReasonDocument},
    config::ClientFile,
    output::table,
};
use backlane_net::{RouteDown, RouteStatus};
use backlane_proto::{Health, Reason, RoutePolicy};
use serde::Serialize;
use std::{collections::BTreeSet, path::PathBuf};

/// The document, and with it the text.
#[derive(Serialize)]
pub(super) struct PathDocument {
    /// What the configuration says, or the command line where it says something else.
    server: String,
    policy: String,
    pool: Option<PoolDocument>,
    /// This host's name, as the server knows it.
    host: Option<String>,
    /// The connections for requests and answers.
    requests: WaysDocument,
    /// Those for bodies.
    bodies: WaysDocument,
    at_server: Option<ServerDocument>,
    calls: Vec<CallDocument>,
    probes: Vec<ProbeDocument>,
    verdict: String,
    /// What to do about each reason for which something can't be used.
    advice: Vec<AdviceDocument>,
}

#[derive(Serialize)]
struct PoolDocument {
    uuid: String,
    devices: Vec<PathBuf>,
    slots: Vec<u32>,
    /// The slot that was taken, if the pool could be joined.
    slot: Option<u32>,
    /// What does the I/O then.
    engine: Option<String>,
}

#[derive(Serialize)]
struct WaysDocument {
    network: WayDocument,
    storage: WayDocument,
}

#[derive(Serialize)]
struct WayDocument {
    up: bool,
    /// Why it isn't.
    down: Option<DownDocument>,
}

#[derive(Serialize)]
struct ServerDocument {
    bodies: WaysDocument,
    pool: Option<ServerPoolDocument>,
}

#[derive(Serialize)]
struct ServerPoolDocument {
    uuid: String,
    #[serde(flatten)]
    way: WayDocument,
}

/// A kind of call, and its route.
#[derive(Serialize)]
pub(super) struct CallDocument {
    pub(super) call: &'static str,
    /// Of what size, and when in a job.
    pub(super) body: &'static str,
    pub(super) bytes: u64,
    /// None where no route may be taken.
    pub(super) route: Option<String>,
    /// Why it isn't storage, or why there is none.
    pub(super) reason: Option<ReasonDocument>,
}

#[derive(Serialize)]
struct AdviceDocument {
    reason: &'static str,
    advice: &'static str,
}

impl PathDocument {
    pub(super) fn new(
        file: &ClientFile,
        (server, policy): (String, RoutePolicy),
        seen: Seen,
    ) -> Self {
        let pool = file.pool.as_ref().map(|pool| PoolDocument {
            uuid: pool.uuid.clone(),
            devices: pool.devices.clone(),
            slots: pool.slots.clone(),
            slot: seen.pool.map(|joined| joined.slot),
            engine: seen.pool.map(|joined| joined.engine.to_string()),
        });
        let at_server = seen.at_server.as_ref().map(|routes| ServerDocument {
            bodies: WaysDocument::from(routes.health),
            pool: routes.pool.as_ref().map(|pool| {
                let down = pool.down.as_ref();
                ServerPoolDocument {
                    uuid: pool.uuid.to_string(),
                    way: WayDocument::new(down.map(|(why, detail)| (*why, detail.as_str()))),
                }
            }),
        });
        Self {
            server,
            policy: policy.to_string(),
            pool,
            host: seen
                .survey
                .session
                .as_ref()
                .map(|session| session.host().to_owned()),
            requests: WaysDocument::from(&seen.survey.control),
            bodies: WaysDocument::from(&seen.survey.data),
            at_server,
            calls: decisions::calls(policy, &seen),
            verdict: decisions::verdict(policy, &seen),
            advice: advised(&seen),
            probes: seen.probes,
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("server    {}", self.server);
        if let Some(host) = &self.host {
            text.push_str(&format!(", to which this host is {host}"));
        }
        text.push_str(&format!("\npolicy    {}\n", self.policy));
        text.push_str(&match &self.pool {
            Some(pool) => pool.text(),
            None => "pool      none\n".to_owned(),
        });
        text.push_str("\nrequests and answers\n");
        text.push_str(&self.requests.text());
        text.push_str("bodies\n");
        text.push_str(&self.bodies.text());
        if let Some(server) = &self.at_server {
            text.push_str("bodies, as the server sees it\n");
            text.push_str(&server.text());
        }
        let mut rows = vec![["call", "route", "reason"].map(str::to_owned).to_vec()];
        rows.extend(self.calls.iter().map(CallDocument::row));
        text.push_str(&format!("\n{}", table(&rows)));
        if !self.probes.is_empty() {
            let mut rows = vec![ProbeDocument::head()];
            rows.extend(self.probes.iter().map(ProbeDocument::row));
            text.push_str(&format!("\n{}", table(&rows)));
        }
        for failure in self.probes.iter().filter_map(ProbeDocument::failure) {
            text.push_str(&format!("{failure}\n"));
        }
        text.push_str(&format!("\n{}\n", self.verdict));
        for advised in &self.advice {
            text.push_str(&format!("{}: {}\n", advised.reason, advised.advice));
        }
        text
    }
}

impl PoolDocument {
    fn text(&self) -> String {
        let list = |items: Vec<String>| items.join(", ");
        let devices = list(
            self.devices
                .iter()
                .map(|it| it.display().to_string())
                .collect(),
        );
        let slots = list(self.slots.iter().map(u32::to_string).collect());
        let joined = match (&self.slot, &self.engine) {
            (Some(slot), Some(engine)) => format!("joined in slot {slot}, by {engine}"),
            _ => "not joined".to_owned(),
        };
        format!(
            "pool      {}, {joined}\n  devices {devices}\n  slots   {slots}\n",
            self.uuid
        )
    }
}

impl WaysDocument {
    fn text(&self) -> String {
        format!(
            "  network  {}\n  storage  {}\n",
            self.network.text(),
            self.storage.text()
        )
    }
}

impl From<&RouteStatus> for WaysDocument {
    fn from(routes: &RouteStatus) -> Self {
        let way = |way: &Result<(), RouteDown>| {
            let down = way.as_ref().err();
            WayDocument::new(down.map(|down| (down.reason, down.detail.as_str())))
        };
        Self {
            network: way(&routes.network),
            storage: way(&routes.storage),
        }
    }
}

impl From<Health> for WaysDocument {
    fn from(health: Health) -> Self {
        let way = |way: Result<(), Reason>| WayDocument::new(way.err().map(|why| (why, "")));
        Self {
            network: way(health.network),
            storage: way(health.storage),
        }
    }
}

impl WayDocument {
    fn new(down: Option<(Reason, &str)>) -> Self {
        Self {
            up: down.is_none(),
            down: down.map(|(reason, detail)| DownDocument {
                reason: reason.into(),
                detail: detail.to_owned(),
            }),
        }
    }

    fn text(&self) -> String {
        match &self.down {
            None => "up".to_owned(),
            Some(down) => format!("down: {}: {}", down.reason.reason, down.text()),
        }
    }
}

impl ServerDocument {
    fn text(&self) -> String {
        let pool = match &self.pool {
            Some(pool) => format!("{}, {}", pool.uuid, pool.way.text()),
            None => "none".to_owned(),
        };
        format!("{}  pool     {pool}\n", self.bodies.text())
    }
}

impl CallDocument {
    fn row(&self) -> Vec<String> {
        let reason = self.reason.as_ref();
        vec![
            format!("{} {}", self.call, self.body),
            self.route.clone().unwrap_or_else(|| "none".to_owned()),
            reason.map_or_else(String::new, |reason| reason.reason.clone()),
        ]
    }
}

/// What to do about what is down, each reason once.
fn advised(seen: &Seen) -> Vec<AdviceDocument> {
    let survey = &seen.survey;
    let ways = [&survey.control, &survey.data].map(|routes| [&routes.network, &routes.storage]);
    let here = ways
        .into_iter()
        .flatten()
        .filter_map(|way| way.as_ref().err());
    let pool = seen
        .at_server
        .as_ref()
        .and_then(|routes| routes.pool.as_ref());
    let there = pool
        .and_then(|pool| pool.down.as_ref())
        .map(|(why, _)| *why);
    let reasons: BTreeSet<Reason> = here.map(|down| down.reason).chain(there).collect();
    reasons
        .into_iter()
        // What was asked for is nothing to do anything about.
        .filter(|reason| *reason != Reason::Policy)
        .filter_map(|reason| {
            let advice = advice::about(reason)?;
            let reason = reason.name();
            Some(AdviceDocument { reason, advice })
        })
        .collect()
}
