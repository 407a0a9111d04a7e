//! `backlane top` shows what runs on either side: what moves, what waits, and what was lost and why.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{CHAIN, Medium, Process, Scene, Setup, Side, Wire, output, ready_with, until};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Megabits a second of the disk and of the wire: so slow that there is time to look.
const PACE_MBIT: u32 = 80;

/// Far more than are served at once.
const IDLE_READERS: usize = 40;

/// The program as the administrator of one side runs it, without more arguments.
fn top(scene: &Scene, side: Side) -> Command {
    let mut top = match side {
        Side::Server => scene.system.server_command(),
        Side::Client => {
            let mut command = scene.system.command(side);
            command.arg("--config").arg(&scene.client.config);
            command
        }
    };
    top.arg("top");
    top
}

fn view(scene: &Scene, side: Side) -> Result<Value> {
    let view = output(top(scene, side).args(["--json", "--once"]))?;
    serde_json::from_str(&view).context("the document of top")
}

/// The only process of a side, if there is one yet.
fn process(scene: &Scene, side: Side) -> Result<Option<Value>> {
    let view = view(scene, side)?;
    ensure!(view["troubles"] == serde_json::json!([]), "{view}");
    match view["processes"].as_array().map(Vec::as_slice) {
        Some([]) => Ok(None),
        Some([process]) => Ok(Some(process.clone())),
        _ => anyhow::bail!("not one process: {view}"),
    }
}

/// How a route of the only session of a side stands, if there is one yet.
fn route(scene: &Scene, side: Side, name: &str) -> Result<Value> {
    let Some(process) = process(scene, side)? else {
        return Ok(Value::Null);
    };
    let routes = process["sessions"][0]["routes"].as_array();
    let mut routes = routes.into_iter().flatten();
    Ok(routes
        .find(|it| it["route"] == name)
        .cloned()
        .unwrap_or_default())
}

/// Waits until a route carries bodies, and more of them.
fn carries(scene: &Scene, side: Side, name: &str) -> Result<()> {
    let bytes = match side {
        Side::Client => "bytes_sent",
        Side::Server => "bytes_received",
    };
    let mut before = None;
    until(
        &format!("{name} carries more and more at the {side:?}"),
        || {
            let route = route(scene, side, name)?;
            let now = route[bytes].as_u64().filter(|bytes| *bytes > MIB);
            if now.is_some() {
                ensure!(route["up"] == true, "{route}");
            }
            let rises = before.is_some() && now > before;
            before = before.or(now);
            Ok(rises)
        },
    )
}

fn sockets(scene: &Scene, side: Side) -> Result<Vec<PathBuf>> {
    let state = match side {
        Side::Server => scene.system.path("server"),
        Side::Client => scene.client.state.clone(),
    };
    let entries = std::fs::read_dir(state.join("status"))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[test]
fn both_sides_show_a_backup_and_why_it_left_storage() -> Result<()> {
    if !ready_with(&CHAIN) {
        return Ok(());
    }
    let setup = Setup {
        wire: Wire {
            mbit: Some(PACE_MBIT),
        },
        medium: Medium::Breakable,
        ..Setup::default()
    };
    let Some(mut scene) = Scene::new(&setup, 256 * MIB)? else {
        return Ok(());
    };
    for side in [Side::Server, Side::Client] {
        scene.system.devices[0].chain(side)?.set_rate(PACE_MBIT)?;
    }
    let mut watching = top(&scene, Side::Server);
    watching.args(["--json", "--interval", "200ms"]);
    let watching = Process::start(&mut watching, &scene.system.path(""), None)?;
    let arguments = ["backup".as_ref(), scene.source.as_os_str()];
    let backup = scene.system.start(&scene.client, arguments)?;
    for side in [Side::Client, Side::Server] {
        carries(&scene, side, "storage")?;
    }
    let client = process(&scene, Side::Client)?.context("a backup")?;
    assert_eq!(
        (&client["role"], client["pid"].as_u64()),
        (&"backup".into(), Some(backup.id().into()))
    );
    let server = process(&scene, Side::Server)?.context("a server")?;
    assert_eq!(server["role"], "server");
    for process in [&client, &server] {
        let session = &process["sessions"][0];
        assert_eq!(
            (&session["host"], &session["control"]),
            (&"alpha".into(), &"network".into())
        );
        assert!(
            session["routes"][0]["stream"]["credits"].is_u64(),
            "{process}"
        );
    }
    // Whoever asks and doesn't listen holds nothing up.
    let [socket] = &sockets(&scene, Side::Client)?[..] else {
        anyhow::bail!("not one socket")
    };
    let idle = (0..IDLE_READERS).map(|_| UnixStream::connect(socket));
    let idle = idle.collect::<Result<Vec<_>, _>>()?;

    // The server sees it at once, and tells the client.
    scene.system.devices[0].chain(Side::Server)?.remove()?;
    for side in [Side::Client, Side::Server] {
        until(&format!("the {side:?} shows that storage is lost"), || {
            Ok(route(&scene, side, "storage")?["up"] == false)
        })?;
        let process = process(&scene, side)?.context("a process")?;
        let session = &process["sessions"][0];
        let lost = session["changes"].as_array().into_iter().flatten();
        let mut lost = lost.filter(|it| it["route"] == "storage" && it["up"] == false);
        assert!(lost.any(|it| it["reason"].is_string()), "{session}");
        let text = output(top(&scene, side).arg("--once"))?;
        println!("{text}");
        assert!(text.contains(" ago: storage was lost: "), "{text}");
    }
    carries(&scene, Side::Client, "network")?;

    let ended = backup.wait()?.success()?;
    drop(idle);
    assert!(ended.json()?["bytes_network"].as_u64() > Some(0), "{ended}");
    assert!(process(&scene, Side::Client)?.is_none());
    assert!(sockets(&scene, Side::Client)?.is_empty());
    watching.signal(Signal::INT)?;
    let watched = watching.wait()?.success()?;
    let views: Vec<Value> = watched
        .stdout
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let seen = views
        .iter()
        .any(|view| view["processes"][0]["sessions"][0]["host"] == "alpha");
    assert!(views.len() > 5 && seen, "{watched}");
    Ok(())
}

#[test]
fn a_job_that_was_killed_is_not_shown_and_its_socket_is_removed() -> Result<()> {
    let Some(mut scene) = Scene::new(&Setup::default(), 128 * MIB)? else {
        return Ok(());
    };
    let backup = scene.underway(16 * MIB)?;
    backup.signal(Signal::KILL)?;
    backup.wait()?;
    assert_eq!(sockets(&scene, Side::Client)?.len(), 1);
    assert!(process(&scene, Side::Client)?.is_none());
    assert!(sockets(&scene, Side::Client)?.is_empty());
    // A server that stands still is named, not left out.
    scene.system.server()?.signal(Signal::STOP)?;
    let mut stopped = top(&scene, Side::Server);
    let stopped = Process::start(
        stopped.args(["--json", "--once"]),
        &scene.system.path(""),
        None,
    )?;
    let ended = stopped.wait()?;
    let id = scene.system.server()?.id();
    scene.system.server()?.signal(Signal::CONT)?;
    assert_eq!(ended.code(), 3, "{ended}");
    let trouble = &ended.json()?["troubles"][0];
    assert_eq!(trouble["pid"], id, "{ended}");
    assert!(trouble["what"].to_string().contains("no answer"), "{ended}");
    until("the server is shown again", || {
        Ok(process(&scene, Side::Server)?.is_some())
    })
}
