//! A host's disk is lost, and everything comes back from a sheet of paper and a new token; a server's state is lost, and it
//! goes on with the repositories that are there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Client, Ended, Process, Scene, Setup, System, Terminal, same, until};

const MIB: u64 = 1 << 20;

/// The lines of the key on a sheet, as a person types them.
fn typed(sheet: &str) -> Vec<String> {
    let lines = sheet.lines().filter_map(|line| {
        let (name, groups) = line.trim().split_once(": ")?;
        name.starts_with("key ").then(|| groups.to_lowercase())
    });
    lines.collect()
}

/// Makes a key file at a terminal, with a mistake in the first line before it is typed as it should be.
fn recover_at_terminal(
    system: &System,
    client: &Client,
    file: &Path,
    lines: &[String],
) -> Result<Ended> {
    let mut command = system.client_command(client);
    command.args(["key", "recover", "--key-file"]).arg(file);
    let mut terminal = Terminal::start(&command, &system.path(""))?;
    let mut wrong = lines[0].clone();
    let last = if wrong.ends_with('2') { "3" } else { "2" };
    wrong.replace_range(wrong.len() - 1.., last);
    for (prompt, times, keys) in std::iter::once((1, 1, &wrong))
        .chain([(1, 2, &lines[0])])
        .chain((2..).zip(&lines[1..]).map(|(at, line)| (at, 1, line)))
    {
        let prompt = format!("key {prompt}: ");
        until("a line of the key is asked for", || {
            let asked = terminal.screen()?.matches(&prompt).count() == times;
            Ok(asked && !terminal.echoes()?)
        })?;
        terminal.type_in(&format!("{keys}\n"))?;
    }
    let (ended, screen) = terminal.wait()?;
    for line in lines {
        ensure!(
            !screen.contains(line),
            "what was typed can be seen: {screen}"
        );
    }
    ensure!(ended.stderr.contains("line 1 of the key"), "{ended}");
    ended.success()
}

#[test]
fn a_lost_host_comes_back_from_its_sheet_and_a_new_token() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 24 * MIB)? else {
        return Ok(());
    };
    let (system, client) = (&scene.system, &scene.client);
    scene.backup("require-storage")?.success()?;
    let paper = system.path("paper");
    let paper_shown = paper.to_string_lossy();
    let written = system.run(client, ["key", "sheet", "--output", &paper_shown])?;
    println!("{}", written.success()?.ended);
    let sheet = fs::read_to_string(&paper)?;
    fs::remove_file(&paper)?;
    let key = fs::read_to_string(&client.key_file)?;

    // The host's disk: its keys and its configuration, and the tree, which only the witness still has.
    fs::remove_dir_all(client.config.parent().context("it has a directory")?)?;
    let witness = system.path("witness");
    fs::rename(&scene.source, &witness)?;

    // Another machine, which is given the paper.
    let (client, mut join) = system.join_command("alpha", &system.at_client())?;
    let file = client.config.with_file_name("recovered.key");
    recover_at_terminal(system, &client, &file, &typed(&sheet))?;
    assert_eq!(fs::read_to_string(&file)?, key);
    let again = client.config.with_file_name("again.key");
    let mut recover = system.client_command(&client);
    recover.args(["key", "recover", "--sheet", "-", "--key-file"]);
    Process::start(recover.arg(&again), &system.path(""), Some(&sheet))?
        .wait()?
        .success()?;
    assert_eq!(fs::read_to_string(&again)?, key);

    let token = system.token("alpha", &[])?;
    join.args(["--token-file", "-", "--key-file"]).arg(&file);
    Process::start(&mut join, &system.path(""), Some(&format!("{token}\n")))?
        .wait()?
        .success()?;
    system.administer(&["allow-restore", "alpha", "--for", "1day"])?;
    scene.restore("require-storage")?.success()?;
    same(&witness, &scene.target)
}

#[test]
fn a_sheet_is_only_written_of_a_key_that_opens_the_repository() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), MIB)? else {
        return Ok(());
    };
    let (system, client) = (&scene.system, &scene.client);
    let sheet = |more: &[&str]| {
        let words = ["key", "sheet"].into_iter().chain(more.iter().copied());
        Ok::<_, anyhow::Error>(system.run(client, words)?.ended)
    };
    sheet(&["--print"])?.refused(&["no config", "first `backlane backup`"])?;
    scene.backup("network")?.success()?;
    let printed = sheet(&["--print"])?.success()?.json()?;
    let page = printed["sheet"].as_str().context("no sheet")?;
    assert_eq!(typed(page).len(), 5, "{page}");

    let paper = system.path("paper");
    fs::write(&paper, "something else")?;
    let output = ["--output", &paper.to_string_lossy()];
    sheet(&output)?.refused(&["paper", "exists"])?;
    assert_eq!(fs::read_to_string(&paper)?, "something else");
    fs::write(&client.key_file, "another key\n")?;
    sheet(&["--print"])?.refused(&["repository.key", "wrong password"])
}

/// The server loses all that it knows but the repositories, and is set up anew.
fn lose_state(scene: &mut Scene) -> Result<()> {
    let system = &mut scene.system;
    system.stop_server()?;
    fs::remove_dir_all(system.path("server"))?;
    fs::remove_file(system.path("server.toml"))?;
    system.init_server()?;
    system.start_server()
}

/// The host joins again, with the key that it had.
fn join_again(scene: &Scene) -> Result<()> {
    let (system, client) = (&scene.system, &scene.client);
    let key = system.path("kept.key");
    fs::rename(&client.key_file, &key)?;
    fs::remove_dir_all(&client.state)?;
    fs::remove_file(&client.config)?;
    let (_, mut join) = system.join_command(&client.host, &system.at_client())?;
    join.args(["--token-file", "-", "--key-file"]).arg(&key);
    let token = format!("{}\n", system.token(&client.host, &[])?);
    Process::start(&mut join, &system.path(""), Some(&token))?
        .wait()?
        .success()?;
    Ok(())
}

#[test]
fn a_server_that_lost_its_state_goes_on_with_its_repositories() -> Result<()> {
    let Some(mut scene) = Scene::new(&Setup::default(), 8 * MIB)? else {
        return Ok(());
    };
    scene.backup("require-storage")?.success()?;
    let before = scene.system.administer(&["hosts"])?["hosts"][0]["objects"].clone();

    lose_state(&mut scene)?;
    scene
        .backup("network")?
        .ended
        .refused(&["certificate", "hint: ", "backlane join"])?;
    let adopted = scene.system.administer(&["adopt"])?;
    let host = &adopted["hosts"][0];
    ensure!(
        host["objects"] == before && host["packs_unknown"] == 0,
        "{adopted}"
    );
    join_again(&scene)?;
    // It is compared with what is there, and adds no file.
    let again = scene.backup("require-storage")?.success()?.ended.json()?;
    ensure!(
        again["files_new"] == 0 && again["bytes_packed"].as_u64() < Some(65536),
        "{again}"
    );

    // Nothing says any more what the packs hold, as where the file system knows no attributes.
    let data = scene.system.repository(&scene.client)?.join("data");
    let mut strip = Command::new("find");
    strip.arg(&data).args([
        "-type",
        "f",
        "-exec",
        "setfattr",
        "-x",
        "user.backlane.contents",
        "{}",
        "+",
    ]);
    ensure!(strip.status()?.success(), "the labels stay");
    lose_state(&mut scene)?;
    let system = &scene.system;
    let mut adopt = system.server_command();
    adopt.args(["server", "adopt"]);
    let told = Process::start(&mut adopt, &system.path(""), Some(""))?.wait()?;
    ensure!(
        told.code() == 3 && told.stderr.contains("adopt alpha --key-file FILE"),
        "{told}"
    );
    let key = scene.client.key_file.display().to_string();
    let adopted = system.administer(&["adopt", "alpha", "--key-file", &key])?;
    ensure!(adopted["hosts"][0]["packs_unknown"] == 0, "{adopted}");
    join_again(&scene)?;
    let again = scene.backup("require-storage")?.success()?.ended.json()?;
    ensure!(
        again["files_new"] == 0 && again["bytes_packed"].as_u64() < Some(65536),
        "{again}"
    );
    scene
        .restore("network")?
        .ended
        .refused(&["not permitted"])?;
    system.administer(&["allow-restore", "alpha", "--for", "1h"])?;
    scene.restore("require-storage")?.success()?;
    same(&scene.source, &scene.target)?;
    system.check(&scene.client)
}
