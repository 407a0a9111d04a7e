//! How fast a route is, by bodies that are thrown away where they arrive.

use crate::output::{bytes, rate};
use backlane_net::{Error, IoStats, Session};
use backlane_proto::{Probe, ProbeDirection, Route, message::PROBE_BYTES_MAX};
use serde::Serialize;
use std::time::Duration;
use tokio::time::timeout;

/// The first body of a direction: what it takes says how large the second may be.
const FIRST_BYTES: u64 = 4 << 20;
/// How long the body should take by which a direction is measured.
const BODY_TIME: Duration = Duration::from_millis(700);
/// The messages by which latency is measured, and how many there are.
const MESSAGE_BYTES: u64 = 4096;
const MESSAGES: usize = 30;
/// How long a route may take for all of that; one that is slower than that is told as such.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a route did.
#[derive(Serialize)]
pub(super) struct ProbeDocument {
    pub(super) route: String,
    to_server: Option<Throughput>,
    to_client: Option<Throughput>,
    latency: Option<Latency>,
    device: Option<DeviceBytes>,
    /// Why something was not measured.
    failed: Option<String>,
}

#[derive(Serialize)]
struct Throughput {
    bytes: u64,
    seconds: f64,
}

/// A message there and an answer back.
#[derive(Serialize)]
struct Latency {
    bytes: u64,
    messages: usize,
    seconds_p50: f64,
}

/// What this process did to the pool's devices meanwhile.
#[derive(Serialize)]
struct DeviceBytes {
    written: u64,
    read: u64,
}

/// Probes a route.
pub(super) async fn probe(session: &Session, route: Route) -> ProbeDocument {
    let io = || match route {
        Route::Network => None,
        Route::Storage => session.pool().map(|pool| pool.io),
    };
    let before = io();
    let mut probe = ProbeDocument {
        route: route.to_string(),
        to_server: None,
        to_client: None,
        latency: None,
        device: None,
        failed: None,
    };
    probe.failed = match timeout(PATIENCE, probe.measure(session, route)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("it took more than {PATIENCE:?}")),
    };
    probe.device = before
        .zip(io())
        .map(|(before, after)| DeviceBytes::between(before, after));
    probe
}

impl ProbeDocument {
    async fn measure(&mut self, session: &Session, route: Route) -> Result<(), Error> {
        self.latency = Some(latency(session, route).await?);
        self.to_server = Some(throughput(session, route, ProbeDirection::ToServer).await?);
        self.to_client = Some(throughput(session, route, ProbeDirection::ToClient).await?);
        Ok(())
    }

    pub(super) fn head() -> Vec<String> {
        [
            "probe",
            "to the server",
            "from it",
            "there and back",
            "written to the devices",
            "read",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    pub(super) fn row(&self) -> Vec<String> {
        let none = || "–".to_owned();
        let speed = |it: &Option<Throughput>| it.as_ref().map_or_else(none, Throughput::text);
        let device = |of: fn(&DeviceBytes) -> u64| {
            self.device
                .as_ref()
                .map_or_else(none, |device| bytes(of(device)))
        };
        vec![
            self.route.clone(),
            speed(&self.to_server),
            speed(&self.to_client),
            self.latency.as_ref().map_or_else(none, Latency::text),
            device(|device| device.written),
            device(|device| device.read),
        ]
    }

    /// Why something was not measured.
    pub(super) fn failure(&self) -> Option<String> {
        let why = self.failed.as_ref()?;
        Some(format!(
            "the probe of the {} route did not come to its end: {why}",
            self.route
        ))
    }
}

impl Throughput {
    fn text(&self) -> String {
        rate(self.bytes, self.seconds)
    }
}

impl Latency {
    fn text(&self) -> String {
        format!("{:.2} ms", self.seconds_p50 * 1000.0)
    }
}

impl DeviceBytes {
    /// A pool that was joined again in between counts from its beginning.
    fn between(before: IoStats, after: IoStats) -> Self {
        Self {
            written: after.bytes_written.saturating_sub(before.bytes_written),
            read: after.bytes_read.saturating_sub(before.bytes_read),
        }
    }
}

async fn throughput(
    session: &Session,
    route: Route,
    direction: ProbeDirection,
) -> Result<Throughput, Error> {
    let mut bytes = FIRST_BYTES;
    loop {
        let took = session
            .probe(Probe {
                direction,
                bytes,
                route,
            })
            .await?;
        let next = fitting(bytes, took);
        // What was short says little, and nothing can be longer than the longest.
        if bytes > FIRST_BYTES || next <= bytes {
            let seconds = took.as_secs_f64();
            return Ok(Throughput { bytes, seconds });
        }
        bytes = next;
    }
}

/// How many bytes take about as long as they should, where so many have taken so long.
fn fitting(bytes: u64, took: Duration) -> u64 {
    let took = took.as_micros().max(1);
    let fitting = u128::from(bytes) * BODY_TIME.as_micros() / took;
    u64::try_from(fitting)
        .unwrap_or(u64::MAX)
        .min(PROBE_BYTES_MAX)
}

async fn latency(session: &Session, route: Route) -> Result<Latency, Error> {
    let message = Probe {
        direction: ProbeDirection::ToServer,
        bytes: MESSAGE_BYTES,
        route,
    };
    let mut took = Vec::with_capacity(MESSAGES);
    for _ in 0..MESSAGES {
        took.push(session.probe(message).await?);
    }
    took.sort_unstable();
    Ok(Latency {
        bytes: MESSAGE_BYTES,
        messages: MESSAGES,
        seconds_p50: took[MESSAGES / 2].as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_body_takes_about_as_long_as_it_should_and_is_not_too_large() {
        let millis = Duration::from_millis;
        assert_eq!(fitting(4 << 20, millis(70)), 40 << 20);
        assert_eq!(fitting(4 << 20, millis(1)), PROBE_BYTES_MAX);
        assert_eq!(fitting(4 << 20, Duration::ZERO), PROBE_BYTES_MAX);
        assert!(fitting(4 << 20, millis(1400)) < 4 << 20);
    }
}
