//! A sample of the fault matrix; `cargo xtask matrix` runs all of it.

use anyhow::{Context, Result};
use backlane_e2e::matrix::{Cell, Ground, run};
use backlane_e2e::{CHAIN, commit_seed, ready_with};

/// How many cells are run, if another number than [`CELLS`].
const CELLS_VARIABLE: &str = "BACKLANE_MATRIX_CELLS";

/// So few that a run takes minutes: 2 min 36 s on two busy cores.
const CELLS: usize = 4;

#[test]
fn a_sample_of_the_fault_matrix_comes_out_as_the_rule_says() -> Result<()> {
    if !ready_with(&CHAIN) || !ready_with(&["restic", "ss"]) {
        return Ok(());
    }
    let cells = match std::env::var(CELLS_VARIABLE) {
        Ok(cells) => cells.parse().context(CELLS_VARIABLE)?,
        Err(_) => CELLS,
    };
    let seed = commit_seed()?;
    let ground = Ground::new()?;
    for cell in Cell::sample(seed, cells) {
        let again = || format!("`cargo xtask matrix --seed {seed} --cells {cells}` runs it again");
        println!("{cell}: {:?}", run(cell, &ground).with_context(again)?);
    }
    Ok(())
}
