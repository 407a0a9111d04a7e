//! `backlane path` says which route calls would take and why, whatever is wrong, and jobs then take it.

use anyhow::{Context, Result};
use backlane_e2e::{Client, Job, Setup, System, ready};
use serde_json::{Value, json};

/// What control, events and the messages of a probe's latency may cost at most.
const CONTROL_BYTES_MAX: u64 = 512 << 10;

/// Runs `path`, which has to end with this exit code, and takes its document.
fn path(system: &System, client: &Client, more: &[&str], code: i32) -> Result<(Job, Value)> {
    let job = system.run(client, ["path"].iter().chain(more))?;
    assert_eq!(job.ended.code(), code, "{}", job.ended);
    let document = job.ended.json()?;
    Ok((job, document))
}

/// The reason for which something is down; none where it is up.
fn down(way: &Value) -> Option<&str> {
    assert_eq!(way["up"] == true, way["down"].is_null(), "{way}");
    way["down"]["reason"].as_str()
}

/// Where the large bodies of a direction would go.
fn large<'a>(document: &'a Value, call: &str) -> &'a Value {
    let calls = document["calls"].as_array();
    let mut calls = calls.into_iter().flatten();
    calls
        .find(|it| it["call"] == call && it["body"] == "large")
        .unwrap_or(&Value::Null)
}

/// What was measured of each route.
fn probe<'a>(document: &'a Value, route: &str) -> Result<&'a Value> {
    let probes = document["probes"].as_array();
    let mut probes = probes.into_iter().flatten();
    let probe = probes.find(|it| it["route"] == route);
    let probe = probe.with_context(|| format!("no probe of {route} in {document}"))?;
    assert_eq!(probe["failed"], Value::Null, "{probe}");
    for direction in ["to_server", "to_client"] {
        let seconds = probe[direction]["seconds"].as_f64();
        assert!(seconds.is_some_and(|it| it > 0.0 && it < 10.0), "{probe}");
    }
    assert!(
        probe["latency"]["seconds_p50"].as_f64() > Some(0.0),
        "{probe}"
    );
    Ok(probe)
}

#[test]
fn path_measures_both_routes_before_any_backup_and_stores_nothing() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let (job, document) = path(&system, &client, &[], 0)?;
    assert_eq!(document["verdict"], "bodies take storage");
    assert_eq!(document["advice"], json!([]));
    for group in [
        &document["requests"],
        &document["bodies"],
        &document["at_server"]["bodies"],
    ] {
        assert_eq!(
            (down(&group["network"]), down(&group["storage"])),
            (None, None),
            "{document}"
        );
    }
    assert_eq!(
        document["at_server"]["pool"]["uuid"],
        document["pool"]["uuid"]
    );
    for call in ["put", "get"] {
        assert_eq!(large(&document, call)["route"], "storage", "{document}");
    }
    // What it says it moved has moved, by the kernel's counters.
    let moved = |probe: &Value| -> Option<u64> {
        Some(probe["to_server"]["bytes"].as_u64()? + probe["to_client"]["bytes"].as_u64()?)
    };
    let by_network = moved(probe(&document, "network")?).context("bytes")?;
    assert!(
        job.wire_bytes > by_network,
        "{} on the wire: {document}",
        job.wire_bytes
    );
    let storage = probe(&document, "storage")?;
    let by_storage = moved(storage).context("bytes")?;
    // Written by one side and read by the other.
    assert!(
        job.device_bytes > 2 * by_storage,
        "{} on the disk: {document}",
        job.device_bytes
    );
    for (done, direction) in [("written", "to_server"), ("read", "to_client")] {
        let bytes = storage["device"][done].as_u64();
        assert!(bytes > storage[direction]["bytes"].as_u64(), "{document}");
    }
    // There is no repository still.
    let snapshots = system.run(&client, ["snapshots"])?;
    snapshots
        .ended
        .refused(&["the first `backlane backup` makes it"])?;
    system.works(&client, 1)
}

#[test]
fn path_of_a_policy_keeps_to_it() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let (job, document) = path(&system, &client, &["--route", "require-storage"], 0)?;
    assert_eq!(document["verdict"], "bodies take storage");
    assert_eq!(down(&document["bodies"]["network"]), Some("policy"));
    probe(&document, "storage")?;
    assert!(probe(&document, "network").is_err());
    assert!(
        job.wire_bytes < CONTROL_BYTES_MAX,
        "{} on the wire",
        job.wire_bytes
    );
    let (job, document) = path(&system, &client, &["--route", "storage-only"], 0)?;
    assert_eq!(down(&document["requests"]["network"]), Some("policy"));
    assert_eq!(down(&document["requests"]["storage"]), None);
    // The kernel looks for neighbours by itself; a handshake would take more than this.
    assert!(job.wire_bytes < 1024, "{} on the wire", job.wire_bytes);
    let (_, document) = path(&system, &client, &["--route", "network"], 0)?;
    assert_eq!(
        document["verdict"],
        "bodies take the network, because the route policy says so"
    );
    assert_eq!(down(&document["bodies"]["storage"]), Some("policy"));
    Ok(())
}

#[test]
fn path_names_what_is_wrong_with_the_pool_and_what_to_do() -> Result<()> {
    const MISSING: &str = "/dev/disk/by-id/gone";
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let (without, joined) = system.join("without", &system.token("without", &[])?, &[])?;
    joined.success()?;
    let wrong = system.client("wrong")?;
    let other = system.mislead(&wrong)?;
    let [right, other] =
        [&system.devices[0].at_client, &other.at_client].map(|path| path.display().to_string());
    // Not a loop device that is detached: that is another test's at once.
    let missing = system.client("missing")?;
    let config = std::fs::read_to_string(&missing.config)?;
    std::fs::write(&missing.config, config.replace(&right, MISSING))?;
    for (client, reason, detail) in [
        (&without, "no_pool", ""),
        (&wrong, "other_pool", other.as_str()),
        (&missing, "pool_not_found", MISSING),
    ] {
        let (_, document) = path(&system, client, &[], 0)?;
        let storage = &document["bodies"]["storage"];
        assert_eq!(down(storage), Some(reason), "{document}");
        let told = storage["down"]["detail"].as_str();
        assert!(told.is_some_and(|told| told.contains(detail)), "{document}");
        assert_eq!(document["advice"][0]["reason"], reason, "{document}");
        let why = storage["down"]["what"].as_str().context("a sentence")?;
        assert_eq!(
            document["verdict"],
            format!("bodies take the network, because {why}")
        );
        for call in ["put", "get"] {
            assert_eq!(
                large(&document, call)["reason"]["reason"],
                reason,
                "{document}"
            );
        }
        probe(&document, "network")?;
        // As a job would end.
        let (_, document) = path(&system, client, &["--route", "require-storage"], 4)?;
        assert_eq!(
            document["verdict"],
            format!("bodies take no route, because {why}")
        );
    }
    Ok(())
}

#[test]
fn path_without_a_network_goes_through_the_pool_and_without_a_server_says_so() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let mut system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let (_, document) = path(&system, &client, &["10.77.0.99"], 0)?;
    assert_eq!(document["server"], "10.77.0.99:4710");
    assert_eq!(
        down(&document["requests"]["network"]),
        Some("unreachable"),
        "{document}"
    );
    system.lane.cut()?;
    let (_, document) = path(&system, &client, &[], 0)?;
    assert_eq!(
        down(&document["requests"]["network"]),
        Some("unreachable"),
        "{document}"
    );
    assert_eq!(down(&document["requests"]["storage"]), None, "{document}");
    assert_eq!(document["calls"][0]["route"], "storage", "{document}");
    assert_eq!(document["verdict"], "bodies take storage");
    probe(&document, "storage")?;
    system.lane.mend()?;
    system.stop_server()?;
    let (_, document) = path(&system, &client, &[], 1)?;
    assert_eq!(
        down(&document["requests"]["network"]),
        Some("unreachable"),
        "{document}"
    );
    assert_eq!(
        down(&document["requests"]["storage"]),
        Some("coordinator_busy"),
        "{document}"
    );
    assert_eq!(document["at_server"], Value::Null);
    assert_eq!(document["probes"], json!([]));
    assert_eq!(large(&document, "put")["route"], Value::Null, "{document}");
    let verdict = document["verdict"].as_str().context("a verdict")?;
    assert!(
        verdict.starts_with("there is no way to the server: "),
        "{verdict}"
    );
    Ok(())
}
