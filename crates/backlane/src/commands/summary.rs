//! The summary of a job: what each route carried, and every reason for which the network was taken.

use crate::output::{bytes, rate, table};
use backlane_proto::{
    Reason, Route, RoutePolicy,
    report::{Change as Changed, RouteChange, RouteReport},
};
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
    /// What carried requests and answers when the job ended: `network` or `storage`.
    pub(crate) control: Option<String>,
    /// The name of the reason why that is storage, where it is.
    pub(crate) control_reason: Option<String>,
    /// Its number.
    pub(crate) control_code: Option<u32>,
    /// The routes that were lost and taken back under way, and where requests went, the oldest first.
    pub(crate) route_changes: Vec<Change>,
    /// How many of the newest changes are not in that list.
    pub(crate) route_changes_left_out: u64,
    /// Why storage could not be used when the job ended; none where it could, or was not wanted.
    pub(crate) storage_down: Option<String>,
    /// The reason's name, for programs.
    pub(crate) storage_down_reason: Option<String>,
    /// Its number.
    pub(crate) storage_down_code: Option<u32>,
}

/// Something that was lost or taken back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Seconds since the session began.
    pub(crate) after_seconds: f64,
    /// `bodies`, or `requests` for requests and answers.
    pub(crate) what_moved: String,
    /// `storage` or `network`.
    pub(crate) route: String,
    /// Whether it was taken back; it was lost otherwise.
    pub(crate) up: bool,
    /// The reason's name, for programs, of a loss.
    pub(crate) reason: Option<String>,
    /// Its number.
    pub(crate) code: Option<u32>,
    /// The reason and the facts in words, of a loss.
    pub(crate) what: Option<String>,
}

impl Change {
    /// What happened, without when.
    pub(crate) fn news(&self) -> String {
        let route = &self.route;
        match (self.what_moved.as_str(), &self.what) {
            (REQUESTS, Some(what)) => format!("requests lost their way by {route}: {what}"),
            (REQUESTS, None) => format!("requests went by {route}"),
            (_, Some(what)) => format!("{route} was lost: {what}"),
            (_, None) => format!("{route} was taken back"),
        }
    }

    fn text(&self) -> String {
        let Self {
            after_seconds,
            route,
            ..
        } = self;
        let lost = self.reason.as_ref().zip(self.what.as_ref());
        let lost = lost.map(|(reason, what)| format!("{reason}: {what}"));
        match (self.what_moved.as_str(), lost) {
            (REQUESTS, Some(what)) => {
                format!("  requests lost their way by {route} after {after_seconds:.1} s: {what}\n")
            }
            (REQUESTS, None) => {
                format!("  requests went by {route} from {after_seconds:.1} s on\n")
            }
            (_, Some(what)) => format!("  {route} was lost after {after_seconds:.1} s: {what}\n"),
            (_, None) => format!("  {route} was taken back after {after_seconds:.1} s\n"),
        }
    }
}

const BODIES: &str = "bodies";
const REQUESTS: &str = "requests";

impl From<&RouteChange> for Change {
    fn from(change: &RouteChange) -> Self {
        let (what_moved, route, loss) = match &change.change {
            Changed::Lost(route, reason, detail) => (BODIES, route, Some((reason, detail))),
            Changed::TakenBack(route) => (BODIES, route, None),
            Changed::ControlLost(route, reason, detail) => {
                (REQUESTS, route, Some((reason, detail)))
            }
            Changed::Control(route) => (REQUESTS, route, None),
        };
        Self {
            after_seconds: change.after.as_secs_f64(),
            what_moved: what_moved.to_owned(),
            route: route.to_string(),
            up: loss.is_none(),
            reason: loss.map(|(reason, _)| reason.name().to_owned()),
            code: loss.map(|(reason, _)| reason.code()),
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
    /// Its number.
    pub(crate) code: u32,
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
            reason,
            what,
            objects,
            bytes,
            ..
        } = self;
        format!(
            "  by network: {}, {} ({reason}: {what})\n",
            counted(*objects),
            crate::output::bytes(*bytes)
        )
    }
}

impl Routes {
    /// What a job's session reports that was held under a policy.
    pub(crate) fn new(report: &RouteReport, policy: RoutePolicy) -> Self {
        let (storage, network) = (report.storage(), report.network());
        let control_reason = match report.control {
            // The network is tried first wherever it may be.
            Some(Route::Storage) if policy.allows_control(Route::Network) => {
                Some(Reason::Unreachable)
            }
            Some(Route::Storage) => Some(Reason::Policy),
            Some(Route::Network) | None => None,
        };
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
                    code: reason.code(),
                    what: reason.to_string(),
                    objects: traffic.objects,
                    bytes: traffic.bytes,
                })
                .collect(),
            objects_repeated: report.repeated.objects,
            bytes_repeated: report.repeated.bytes,
            control: report.control.map(|route| route.to_string()),
            control_reason: control_reason.map(|reason| reason.name().to_owned()),
            control_code: control_reason.map(Reason::code),
            route_changes: report.changes.iter().map(Change::from).collect(),
            route_changes_left_out: report.changes_left_out,
            storage_down: None,
            storage_down_reason: None,
            storage_down_code: None,
        }
    }

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
        if let Some(reason) = &self.control_reason {
            text.push_str(&format!(
                "  requests and answers go through the pool ({reason})\n"
            ));
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
        if let Some((reason, why)) = self
            .storage_down_reason
            .as_ref()
            .zip(self.storage_down.as_ref())
        {
            text.push_str(&format!("  storage was not usable: {reason}: {why}\n"));
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
    use backlane_proto::Decision;
    use std::time::Duration;

    #[test]
    fn a_route_that_was_lost_and_taken_back_is_printed() {
        let mut report = RouteReport::default();
        let lost = "/dev/lun7".to_owned();
        let silent = "no answer".to_owned();
        for (seconds, change) in [
            (12, Changed::Lost(Route::Storage, Reason::DeviceError, lost)),
            (31, Changed::TakenBack(Route::Storage)),
            (
                40,
                Changed::ControlLost(Route::Network, Reason::ControlLost, silent),
            ),
            (41, Changed::Control(Route::Storage)),
        ] {
            report.changed(RouteChange {
                after: Duration::from_secs(seconds),
                change,
            });
        }
        report.control = Some(Route::Storage);
        report.repeated(5 << 20);
        let routes = Routes::new(&report, RoutePolicy::PreferStorage);
        let codes: Vec<_> = routes.route_changes.iter().map(|it| it.code).collect();
        assert_eq!(codes, [Some(14), None, Some(20), None]);
        let moved = routes.route_changes.iter().map(|it| it.what_moved.as_str());
        let moved: Vec<_> = moved.collect();
        assert_eq!(moved, ["bodies", "bodies", "requests", "requests"]);
        let text = routes.text(1.0);
        for line in [
            "  storage was lost after 12.0 s: device_error: a device of the pool failed (/dev/lun7)\n",
            "  storage was taken back after 31.0 s\n",
            "  requests lost their way by network after 40.0 s: control_lost: the connection that carries requests and answers was lost \
             (no answer)\n",
            "  requests went by storage from 41.0 s on\n",
            "  requests and answers go through the pool (unreachable)\n",
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
        let routes = Routes::new(&report, RoutePolicy::PreferStorage);
        assert_eq!(routes.network_reasons[0].code, 2);
        let text = routes.text(1.0);
        assert!(
            text.contains("storage        1  3.0 MiB  3.0 MiB/s"),
            "{text}"
        );
        assert!(
            text.contains("by network: 1 object, 100 B (small: the body is small)"),
            "{text}"
        );
    }
}
