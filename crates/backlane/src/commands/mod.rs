//! One module for each command, or group of commands.

mod adopt;
mod backup;
mod bench;
mod damage;
pub(crate) mod documents;
mod join;
mod key;
mod maintain;
mod mariadb;
mod path;
mod pool;
mod postgres;
mod query;
mod reasons;
mod restore;
mod server;
mod session;
mod status;
mod store;
pub(crate) mod summary;
mod top;
mod trust;
mod wal;

use crate::{Context, cli::Command, demo, output::Outcome};
use anyhow::Result;

/// Does what was typed.
///
/// # Errors
/// When it can't be done.
pub(crate) fn run(command: &Command, context: &Context) -> Result<Outcome> {
    match command {
        Command::Demo(args) => demo::run(args, context),
        Command::Pool(command) => pool::run(command, context),
        Command::Server(command) => server::run(command, context),
        Command::Join(args) => join::run(args, context),
        Command::Backup(args) => backup::run(args, context),
        Command::Restore(args) => restore::run(args, context),
        Command::Snapshots(args) => query::snapshots(args, context),
        Command::Ls(args) => query::ls(args, context),
        Command::Find(args) => query::find(args, context),
        Command::Diff(args) => query::diff(args, context),
        Command::Dump(args) => query::dump(args, context),
        Command::Check(args) => query::check(args, context),
        Command::Forget(args) => maintain::forget(args, context),
        Command::Prune(args) => maintain::prune(args, context),
        Command::Key(command) => key::run(command, context),
        Command::Postgres(command) => postgres::run(command, context),
        Command::Mariadb(command) => mariadb::run(command, context),
        Command::Wal(command) => wal::run(command, context),
        Command::Path(args) => path::run(args, context),
        Command::Top(args) => top::run(args, context),
        Command::Bench(command) => bench::run(command, context),
    }
}
