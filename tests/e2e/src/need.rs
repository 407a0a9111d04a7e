//! What the tests here need of the machine. Where it is missing they say so, loudly, and don't pretend.

use std::process::Command;

/// Whether this machine can run a system; prints a line with `SKIPPED` and the reason if not.
///
/// Needed are root, network namespaces, traffic shaping and loop devices.
#[must_use]
pub fn ready() -> bool {
    ready_with(&[])
}

/// As [`ready`], and the programs `tools` can be started.
#[must_use]
pub fn ready_with(tools: &[&str]) -> bool {
    is_there(missing(tools))
}

/// As [`ready`], and a PostgreSQL can be run.
#[must_use]
pub fn ready_for_postgresql() -> bool {
    is_there(missing(&["setpriv"]).or_else(crate::postgres::missing))
}

/// As [`ready`], and a MariaDB can be run.
#[must_use]
pub fn ready_for_mariadb() -> bool {
    is_there(missing(&["setpriv"]).or_else(crate::mariadb::missing))
}

fn is_there(missing: Option<String>) -> bool {
    match missing {
        None => true,
        Some(why) => {
            eprintln!("******** SKIPPED: {why} ********");
            false
        }
    }
}

fn missing(tools: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root, and network namespaces and loop devices need it".to_owned());
    }
    let known = ["ip", "tc", "losetup", "blockdev"];
    for tool in known.iter().chain(tools) {
        // Any answer at all will do: the tools don't agree on how to ask for a version.
        if let Err(why) = Command::new(tool).arg("--version").output() {
            return Some(format!("{tool} can't be started ({why})"));
        }
    }
    let name = crate::sweep::unique("probe");
    let mut add = Command::new("ip");
    if let Err(why) = crate::output(add.args(["netns", "add", &name])) {
        return Some(format!("the kernel refuses network namespaces ({why:#})"));
    }
    let deleted = crate::output(Command::new("ip").args(["netns", "del", &name]));
    let looped = crate::output(Command::new("losetup").arg("--find"));
    match deleted.and(looped) {
        Ok(_) => None,
        Err(why) => Some(format!("the kernel refuses ({why:#})")),
    }
}
