//! What came of many cells, as a table in Markdown.

use std::fmt::Write;

use super::rule::passes_after;
use super::{Cell, Policy, Seen, Span, Work};
use crate::fault::Fault;

/// What came of a cell, or why that was against the rule.
pub type Row = (Cell, Result<Seen, String>);

/// A line for each fault and job, a column for each policy.
///
/// Where a job was done, its longest stalls are told in the order of the cells, which is that of the moments, and the most
/// that one began once more.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("| fault | job |");
    for policy in Policy::ALL {
        let _ = write!(text, " `{policy}` |");
    }
    text.push_str("\n| --- | --- | --- | --- | --- |\n");
    for fault in Fault::ALL {
        for work in Work::ALL {
            let of = |policy| texts(rows, fault, work, policy);
            let columns = Policy::ALL.map(of);
            if columns.iter().any(|column| !column.is_empty()) {
                let _ = writeln!(text, "| {fault} | {work} | {} |", columns.join(" | "));
            }
        }
    }
    text
}

fn texts(rows: &[Row], fault: Fault, work: Work, policy: Policy) -> String {
    let spans = [Span::Passing, Span::Lasting].map(|span| {
        let here = |cell: &Cell| {
            (cell.fault, cell.work, cell.policy, cell.span) == (fault, work, policy, span)
        };
        let seen: Vec<_> = rows.iter().filter(|(cell, _)| here(cell)).collect();
        match (seen.is_empty(), span) {
            (true, _) => String::new(),
            (false, Span::Lasting) => format!("for good: {}", outcomes(&seen)),
            (false, Span::Passing) if fault.is_momentary() => outcomes(&seen),
            (false, Span::Passing) => {
                format!("{} s: {}", passes_after(fault).as_secs(), outcomes(&seen))
            }
        }
    });
    let told: Vec<_> = spans.into_iter().filter(|text| !text.is_empty()).collect();
    told.join("; ")
}

fn outcomes(rows: &[&Row]) -> String {
    let stalls: Vec<_> = rows
        .iter()
        .map(|(_, seen)| match seen {
            Ok(seen) if seen.done => format!("{:.1}", seen.stall.as_secs_f64()),
            Ok(_) => "fails".to_owned(),
            Err(_) => "**unlawful**".to_owned(),
        })
        .collect();
    let done = rows.iter().filter_map(|(_, seen)| seen.as_ref().ok());
    let again = done
        .filter(|seen| seen.done)
        .map(|seen| seen.repeated_bytes);
    match again.max() {
        Some(bytes) => format!("{} s, {} MiB", stalls.join(" · "), bytes >> 20),
        None => stalls.join(" · "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Moment;
    use std::time::Duration;

    #[test]
    fn stalls_failures_and_breaches_of_the_rule_are_told() {
        let cell = |policy, span, moment| Cell {
            fault: Fault::ClientLosesDisk,
            span,
            moment,
            work: Work::Backup,
            policy,
        };
        let seen = |done, seconds| {
            Ok(Seen {
                done,
                stall: Duration::from_secs(seconds),
                repeated_bytes: seconds << 20,
            })
        };
        let rows = [
            (
                cell(Policy::Prefer, Span::Lasting, Moment::Early),
                seen(true, 1),
            ),
            (
                cell(Policy::Prefer, Span::Lasting, Moment::Late),
                seen(true, 2),
            ),
            (
                cell(Policy::Require, Span::Passing, Moment::Early),
                Err("lost".to_owned()),
            ),
            (
                cell(Policy::Require, Span::Lasting, Moment::Early),
                seen(false, 3),
            ),
        ];
        let table = table(&rows);
        let line = "| client loses the disk | backup | for good: 1.0 · 2.0 s, 2 MiB \
                    | 8 s: **unlawful**; for good: fails |  |\n";
        assert!(table.ends_with(line), "{table}");
    }
}
