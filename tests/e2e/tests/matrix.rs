//! A sample of the fault matrix; `cargo xtask matrix` runs all of it.

use anyhow::{Context, Result};
use backlane_e2e::matrix::{Cell, Ground, run};
use backlane_e2e::{CHAIN, commit_seed, ready_with};

/// How many cells are run: two minutes, three where the machine is busy.
const CELLS: usize = 4;

#[test]
fn a_sample_of_the_fault_matrix_comes_out_as_the_rule_says() -> Result<()> {
    if !ready_with(&CHAIN) || !ready_with(&["restic", "ss"]) {
        return Ok(());
    }
    let seed = commit_seed()?;
    let ground = Ground::new()?;
    for cell in Cell::sample(seed, CELLS) {
        let again = || format!("`cargo xtask matrix --seed {seed} --cells {CELLS}` runs it again");
        println!("{cell}: {:?}", run(cell, &ground).with_context(again)?);
    }
    Ok(())
}
