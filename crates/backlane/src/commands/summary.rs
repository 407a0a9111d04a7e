//! The summary of a job: what each route carried, and every reason for which the network was taken.

use crate::output::{bytes, rate, table};
use backlane_proto::report::{RouteChange, RouteReport};
use serde::{Deserialize, Serialize};

/// What the routes of one job carried, both directions together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Routes {
    /// Bytes of objects' bodies through the pool.
    pub(crate) bytes_storage: u64,
    /// Bytes of objects' bodies over the network.
    pub(crate) bytes_network: u64,
    /// Objects, or parts of them, through the pool.
    pub(crate) objects_storage: u64,
    /// Objects, or parts of them, over the network.
    pub(crate) objects_network: u64,
    /// Bytes of bodies that this host sent, by either route.
    pub(crate) bytes_sent: u64,
    /// Bytes of bodies that this host received, by either route.
    pub(crate) bytes_received: u64,
    /// Why bodies took the network; their sum is all that did.
    pub(crate) network_reasons: Vec<NetworkReason>,
    /// Bodies that were begun once more, because their route failed under them.
    pub(crate) objects_repeated: u64,
    /// Their bytes.
    pub(crate) bytes_repeated: u64,
    /// The routes that were lost and taken back under way, the oldest first.
    pub(crate) route_changes: Vec<Change>,
    /// How many of the newest changes are not in that list.
    pub(crate) route_changes_left_out: u64,
    /// Why storage could not be used when the job ended; none where it could, or was not wanted.
    pub(crate) storage_down: Option<String>,
}

/// A route that was lost or taken back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Seconds since the session began.
    pub(crate) after_seconds: f64,
    /// `storage` or `network`.
    pub(crate) route: String,
    /// Whether it was taken back; it was lost otherwise.
    pub(crate) up: bool,
    /// The reason's name, for programs, of a loss.
    pub(crate) reason: Option<String>,
    /// The reason and the facts in words, of a loss.
    pub(crate) what: Option<String>,
}

impl Change {
    fn text(&self) -> String {
        let Self {
            after_seconds,
            route,
            ..
        } = self;
        match &self.what {
            Some(what) => format!("  {route} was lost after {after_seconds:.1} s: {what}\n"),
            None => format!("  {route} was taken back after {after_seconds:.1} s\n"),
        }
    }
}

impl From<&RouteChange> for Change {
    fn from(change: &RouteChange) -> Self {
        let loss = change.state.as_ref().err();
        Self {
            after_seconds: change.after.as_secs_f64(),
            route: change.route.to_string(),
            up: change.state.is_ok(),
            reason: loss.map(|(reason, _)| reason.name().to_owned()),
            what: loss.map(|(reason, detail)| match detail.as_str() {
                "" => reason.to_string(),
                detail => format!("{reason} ({detail})"),
            }),
        }
    }
}

/// One reason for which bodies took the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NetworkReason {
    /// The reason's name, for programs.
    pub(crate) reason: String,
    /// The same in words.
    pub(crate) what: String,
    /// How many bodies.
    pub(crate) objects: u64,
    /// How many bytes.
    pub(crate) bytes: u64,
}

impl NetworkReason {
    /// One line of a summary.
    pub(crate) fn text(&self) -> String {
        let Self {
            what,
            objects,
            bytes,
            ..
        } = self;
        format!(
            "  by network: {}, {} ({what})\n",
            counted(*objects),
            crate::output::bytes(*bytes)
        )
    }
}

impl From<&RouteReport> for Routes {
    fn from(report: &RouteReport) -> Self {
        let (storage, network) = (report.storage(), report.network());
        Self {
            bytes_storage: storage.bytes,
            bytes_network: network.bytes,
            objects_storage: storage.objects,
            objects_network: network.objects,
            bytes_sent: report.sent.storage.bytes + report.sent.network.bytes,
            bytes_received: report.received.storage.bytes + report.received.network.bytes,
            network_reasons: report
                .reasons
                .iter()
                .map(|(reason, traffic)| NetworkReason {
                    reason: reason.name().to_owned(),
                    what: reason.to_string(),
                    objects: traffic.objects,
                    bytes: traffic.bytes,
                })
                .collect(),
            objects_repeated: report.repeated.objects,
            bytes_repeated: report.repeated.bytes,
            route_changes: report.changes.iter().map(Change::from).collect(),
            route_changes_left_out: report.changes_left_out,
            storage_down: None,
        }
    }
}

impl Routes {
    /// The table of routes, and a line for each reason.
    pub(crate) fn text(&self, seconds: f64) -> String {
        let row = |route: &str, objects: u64, carried: u64| {
            vec![
                route.to_owned(),
                objects.to_string(),
                bytes(carried),
                rate(carried, seconds),
            ]
        };
        let mut text = table(&[
            ["route", "objects", "bytes", "rate"]
                .map(str::to_owned)
                .to_vec(),
            row("storage", self.objects_storage, self.bytes_storage),
            row("network", self.objects_network, self.bytes_network),
        ]);
        for reason in &self.network_reasons {
            text.push_str(&reason.text());
        }
        for change in &self.route_changes {
            text.push_str(&change.text());
        }
        if self.route_changes_left_out > 0 {
            let more = self.route_changes_left_out;
            text.push_str(&format!("  and {more} changes more\n"));
        }
        if self.objects_repeated > 0 {
            text.push_str(&format!(
                "  begun once more: {}, {}\n",
                counted(self.objects_repeated),
                bytes(self.bytes_repeated)
            ));
        }
        if let Some(why) = &self.storage_down {
            text.push_str(&format!("  storage was not usable: {why}\n"));
        }
        text
    }
}

fn counted(objects: u64) -> String {
    match objects {
        1 => "1 object".to_owned(),
        _ => format!("{objects} objects"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlane_proto::{Decision, Reason, Route};
    use std::time::Duration;

    #[test]
    fn a_route_that_was_lost_and_taken_back_is_printed() {
        let mut report = RouteReport::default();
        for (seconds, state) in [
            (12, Err((Reason::DeviceError, "/dev/lun7".to_owned()))),
            (31, Ok(())),
        ] {
            report.changed(RouteChange {
                after: Duration::from_secs(seconds),
                route: Route::Storage,
                state,
            });
        }
        report.repeated(5 << 20);
        let text = Routes::from(&report).text(1.0);
        for line in [
            "  storage was lost after 12.0 s: a device of the pool failed (/dev/lun7)\n",
            "  storage was taken back after 31.0 s\n",
            "  begun once more: 1 object, 5.0 MiB\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn every_reason_for_the_network_is_printed() {
        let mut report = RouteReport::default();
        report.sent(Decision::Storage, 3 << 20);
        report.sent(Decision::Network(Reason::Small), 100);
        let routes = Routes::from(&report);
        let text = routes.text(1.0);
        assert!(
            text.contains("storage        1  3.0 MiB  3.0 MiB/s"),
            "{text}"
        );
        assert!(
            text.contains("by network: 1 object, 100 B (the body is small)"),
            "{text}"
        );
    }
}
