//! `fidelity make` builds a tree that is hard to back up; `fidelity compare` says in what two trees differ.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use fidelity::TreeOptions;

/// Trees that are hard to back up, and a witness that compares two of them.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a tree in a directory, which is made or is empty.
    Make {
        dir: PathBuf,
        #[arg(long, value_enum, default_value = "small")]
        scale: Scale,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Leave out paths over 4,096 bytes, which rsync can't walk.
        #[arg(long)]
        no_over_long_paths: bool,
        /// Add extended attributes whose names are not UTF-8.
        #[arg(long)]
        xattr_names_not_utf8: bool,
    },
    /// Name everything in which two trees differ; exits 1 if there is anything.
    Compare { first: PathBuf, second: PathBuf },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scale {
    Small,
    Moderate,
    Full,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Make {
            dir,
            scale,
            seed,
            no_over_long_paths,
            xattr_names_not_utf8,
        } => {
            let options = match scale {
                Scale::Small => TreeOptions::default(),
                Scale::Moderate => TreeOptions::moderate(),
                Scale::Full => TreeOptions::full(),
            };
            let over_long_paths = !no_over_long_paths;
            let options = TreeOptions {
                seed,
                over_long_paths,
                xattr_names_not_utf8,
                ..options
            };
            std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
            for left_out in fidelity::make_tree(&dir, &options)?.left_out {
                eprintln!("left out: {left_out}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Compare { first, second } => {
            let differences = fidelity::compare(&first, &second)?;
            for difference in &differences {
                println!("{difference}");
            }
            Ok(if differences.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}
