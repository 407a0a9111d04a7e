//! At a terminal: `join` asks for the token, hidden while it is typed, and says what is wrong with it; a check shows how
//! far it is.

use anyhow::{Result, ensure};
use backlane_e2e::{
    Client, Ended, Process, Scene, Setup, Side, System, Terminal, ready, ready_with,
};
use std::process::Command;

/// What `join` asks with.
const PROMPT: &str = "Join token:";

/// Has `host` join at a terminal, where `keys` are typed when the token is asked for. Whatever comes of it, nothing that
/// was typed may be seen.
fn join(system: &System, host: &str, keys: &str) -> Result<(Client, Ended)> {
    let (client, command) = system.join_command(host, &system.at_client())?;
    let mut terminal = Terminal::start(&command, &system.path(""))?;
    terminal.asked_in_secret(PROMPT)?;
    terminal.type_in(keys)?;
    let (ended, screen) = terminal.wait()?;
    ensure!(screen.contains(PROMPT), "the screen: {screen}");
    let typed = keys.trim();
    for shown in [&screen, &ended.stdout, &ended.stderr] {
        ensure!(
            typed.len() < 2 || !shown.contains(typed),
            "what was typed can be seen: {shown}"
        );
    }
    Ok((client, ended))
}

#[test]
fn token_is_typed_unseen() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let token = system.token("alpha", &[])?;
    let (client, joined) = join(&system, "alpha", &format!("{token}\n"))?;
    let document = joined.success()?.json()?;
    assert_eq!(document["host"], "alpha", "{document}");
    system.administer(&["allow-restore", "alpha"])?;
    system.works(&client, 1)
}

#[test]
fn wrong_token_at_the_terminal_is_told_and_the_right_one_works_after_it() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let token = system.token("alpha", &[])?;
    // What a person types: nothing, another thing, a token with a letter lost, one that was used.
    join(&system, "alpha", "\n")?.1.refused(&["token"])?;
    join(&system, "alpha", "correct horse\n")?
        .1
        .refused(&["token"])?;
    let lost = format!("{}\n", &token[..token.len() - 1]);
    join(&system, "alpha", &lost)?.1.refused(&["token"])?;
    join(&system, "alpha", &format!("{token}\n"))?.1.success()?;
    join(&system, "beta", &format!("{token}\n"))?
        .1
        .refused(&["used"])?;
    Ok(())
}

#[test]
fn interrupt_at_the_prompt_ends_the_join_and_leaves_nothing() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let token = system.token("alpha", &[])?;
    let (client, interrupted) = join(&system, "alpha", "\x03")?;
    interrupted.refused(&["interrupted"])?;
    assert!(!client.config.exists() && !client.state.exists());
    join(&system, "alpha", &format!("{token}\n"))?.1.success()?;
    Ok(())
}

#[test]
fn a_check_shows_how_far_it_is() -> Result<()> {
    if !ready_with(&["script"]) {
        return Ok(());
    }
    let Some(scene) = Scene::new(&Setup::default(), 8 << 20)? else {
        return Ok(());
    };
    scene.backup("prefer-storage")?.success()?;
    let system = &scene.system;
    system.administer(&["allow-restore", "alpha"])?;
    let mut check = system.command(Side::Client);
    check.arg("--config").arg(&scene.client.config);
    check.args(["check", "--read-data"]);
    let words = std::iter::once(check.get_program()).chain(check.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command"]);
    script.arg(words.join(" ")).arg("/dev/null");
    let ended = Process::start(&mut script, &system.path(""), Some(""))?
        .wait()?
        .success()?;
    ensure!(
        ended.stdout.contains("reading pack data [") && ended.stdout.contains("whole: 1 snapshots"),
        "{ended}"
    );
    Ok(())
}
