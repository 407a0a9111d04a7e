//! A sample of the fault matrix; `cargo xtask matrix` runs all of it.

use anyhow::{Context, Result};
use backlane_e2e::matrix::{Cell, Ground, run};
use backlane_e2e::{CHAIN, commit_seed, ready_with};

/// How many cells are run; four take about two minutes. None is run unasked yet.
const CELLS: &str = "BACKLANE_MATRIX_CELLS";

#[test]
fn a_sample_of_the_fault_matrix_comes_out_as_the_rule_says() -> Result<()> {
    let cells = match std::env::var(CELLS) {
        Ok(cells) => cells.parse().context(CELLS)?,
        Err(_) => {
            println!("{CELLS} says how many cells are run");
            return Ok(());
        }
    };
    if !ready_with(&CHAIN) || !ready_with(&["restic", "ss"]) {
        return Ok(());
    }
    let seed = commit_seed()?;
    let ground = Ground::new()?;
    for cell in Cell::sample(seed, cells) {
        let again = || format!("`cargo xtask matrix --seed {seed} --cells {cells}` runs it again");
        println!("{cell}: {:?}", run(cell, &ground).with_context(again)?);
    }
    Ok(())
}
