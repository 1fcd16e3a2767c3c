//! The report: tables with ratios, goals, and what a peer does better.

use std::fmt::Write as _;

use serde::Serialize;

use crate::entries::Entry;
use crate::measure::median;
use crate::rows::{self, Goal, Limit, ROWS, Row, Unit};
use crate::runner::{Measurement, Outcome};

/// Everything measured of one peer in one row, in the row's unit.
#[derive(Debug, Serialize)]
pub struct EntryReport {
    pub peer: String,
    pub ours: bool,
    pub median: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    /// In the order they were measured.
    pub values: Vec<f64>,
    /// Failures and hangs, and processes left behind.
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct GoalReport {
    pub text: String,
    pub reached: Option<f64>,
    pub limit: Option<f64>,
    pub met: Option<bool>,
}

#[derive(Debug, Serialize)]
pub struct RowReport {
    pub name: String,
    pub title: String,
    pub unit: String,
    pub more_is_better: bool,
    pub entries: Vec<EntryReport>,
    pub goals: Vec<GoalReport>,
}

impl EntryReport {
    pub fn new(row: &Row, peer: &str, ours: bool, measured: &[Measurement]) -> EntryReport {
        let mut values = Vec::new();
        let mut notes: Vec<(String, usize)> = Vec::new();
        let mut note = |text: String| match notes.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => notes.push((text, 1)),
        };
        for measurement in measured {
            match &measurement.outcome {
                Outcome::Value(seconds) => values.push(row.unit.of(*seconds, &row.work)),
                Outcome::Failed(reason) => note(format!("failed: {reason}")),
                Outcome::Hung(after) => note(format!("hung: killed after {after:?}")),
            }
            if measurement.n_left_behind > 0 {
                note("left processes behind".to_owned());
            }
        }
        let has_values = !values.is_empty();
        EntryReport {
            peer: peer.to_owned(),
            ours,
            median: has_values.then(|| median(&mut values.clone())),
            min: values.iter().copied().reduce(f64::min),
            max: values.iter().copied().reduce(f64::max),
            values,
            notes: notes
                .into_iter()
                .map(|(text, count)| format!("{text} ({count} of {} rounds)", measured.len()))
                .collect(),
        }
    }
}

impl RowReport {
    /// The report of a row whose goals have not been judged yet.
    pub fn new(row: &Row, entries: &[&Entry], measured: &[Vec<Measurement>]) -> RowReport {
        RowReport {
            name: row.name.to_owned(),
            title: row.title.to_owned(),
            unit: row.unit.name().to_owned(),
            more_is_better: row.unit.more_is_better(),
            entries: entries
                .iter()
                .zip(measured)
                .map(|(entry, measured)| EntryReport::new(row, entry.peer, entry.ours, measured))
                .collect(),
            goals: Vec::new(),
        }
    }
}

/// How often a peer was killed for taking too long.
pub fn n_hung(measured: &[Measurement]) -> usize {
    let is_hung = |measurement: &&Measurement| matches!(measurement.outcome, Outcome::Hung(_));
    measured.iter().filter(is_hung).count()
}

/// Holds the goals against what was measured; a goal may look at another row.
pub fn judge(reports: &mut [RowReport]) {
    let find = |row: &str, peer: &str| {
        let report = reports.iter().find(|report| report.name == row)?;
        let entry = report.entries.iter().find(|entry| entry.peer == peer)?;
        entry.median
    };
    let goals: Vec<Vec<GoalReport>> = reports
        .iter()
        .map(|report| {
            let row = rows::row(&report.name);
            row.iter()
                .flat_map(|row| row.goals.iter().map(|goal| goal_report(row, goal, find)))
                .collect()
        })
        .collect();
    for (report, goals) in reports.iter_mut().zip(goals) {
        report.goals = goals;
    }
}

fn goal_report(row: &Row, goal: &Goal, find: impl Fn(&str, &str) -> Option<f64>) -> GoalReport {
    let times = |factor: f64, of: Option<f64>| {
        of.map(|of| {
            if row.unit.more_is_better() {
                of / factor
            } else {
                of * factor
            }
        })
    };
    let unit = row.unit.name();
    let word = if row.unit.more_is_better() {
        "at least"
    } else {
        "at most"
    };
    let share = |factor: f64, peer: &str| {
        if row.unit.more_is_better() {
            format!("{word} {:.0} % of {peer}", 100.0 / factor)
        } else {
            format!("{word} {factor} × {peer}")
        }
    };
    let (limit, text) = match goal.limit {
        Limit::Number(limit) => (Some(limit), format!("{word} {limit} {unit}")),
        Limit::Times(factor, peer) => (times(factor, find(row.name, peer)), share(factor, peer)),
        Limit::TimesInRow(factor, other, peer) => (
            times(factor, find(other, peer)),
            format!("{} in row {other}", share(factor, peer)),
        ),
    };
    let reached = find(row.name, goal.entry);
    let met = reached.zip(limit).map(|(reached, limit)| {
        if row.unit.more_is_better() {
            reached >= limit
        } else {
            reached <= limit
        }
    });
    GoalReport {
        text: format!("{}: {}: {text}", row.name, goal.entry),
        reached,
        limit,
        met,
    }
}

/// How many times better `ours` is than `theirs`.
fn lead(ours: f64, theirs: f64, more_is_better: bool) -> f64 {
    if more_is_better {
        ours / theirs
    } else {
        theirs / ours
    }
}

fn lead_text(lead: f64) -> String {
    if (0.98..=1.02).contains(&lead) {
        "the same".to_owned()
    } else if lead > 1.0 {
        format!("{} × faster", digits(lead))
    } else {
        format!("{} × slower", digits(1.0 / lead))
    }
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), digits)
}

/// A row's table: a line of headings, then a line for each peer.
fn cells(report: &RowReport) -> Vec<Vec<String>> {
    let ours: Vec<&EntryReport> = report.entries.iter().filter(|entry| entry.ours).collect();
    let mut heading = vec![
        "peer".to_owned(),
        report.unit.clone(),
        "min".to_owned(),
        "max".to_owned(),
    ];
    heading.extend(ours.iter().map(|entry| format!("{} is", entry.peer)));
    let mut lines = vec![heading];
    for entry in &report.entries {
        let mut line = vec![
            entry.peer.clone(),
            number(entry.median),
            number(entry.min),
            number(entry.max),
        ];
        line.extend(ours.iter().map(|our| match our.median.zip(entry.median) {
            Some((our_median, median)) if our.peer != entry.peer => {
                lead_text(lead(our_median, median, report.more_is_better))
            }
            _ => String::new(),
        }));
        lines.push(line);
    }
    lines
}

fn notes(report: &RowReport) -> impl Iterator<Item = String> {
    report
        .entries
        .iter()
        .flat_map(|entry| entry.notes.iter().map(move |note| (&entry.peer, note)))
        .map(|(peer, note)| format!("{peer}: {note}"))
}

/// What the better end of the numbers is.
fn direction(report: &RowReport) -> &'static str {
    if report.more_is_better {
        "more is better"
    } else {
        "less is better"
    }
}

/// One row for a terminal.
pub fn plain(report: &RowReport) -> String {
    let cells = cells(report);
    let n_columns = cells[0].len();
    let width = |column: usize| {
        let widths = cells.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let mut text = format!(
        "{} [{}] ({}, {})\n",
        report.title,
        report.name,
        report.unit,
        direction(report)
    );
    for line in &cells {
        let mut out = String::from("  ");
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            if column == 0 {
                let _ = write!(out, "{cell:width$}");
            } else {
                let _ = write!(out, "  {cell:>width$}");
            }
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    for note in notes(report) {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

/// One row for a Markdown file.
fn markdown_row(report: &RowReport) -> String {
    let mut text = format!(
        "## {}\n\n`{}`, {}, {}.\n\n",
        report.title,
        report.name,
        report.unit,
        direction(report)
    );
    for (index, line) in cells(report).iter().enumerate() {
        let _ = writeln!(text, "| {} |", line.join(" | "));
        if index == 0 {
            let _ = writeln!(text, "|---|{}", "---:|".repeat(line.len() - 1));
        }
    }
    text.push('\n');
    for note in notes(report) {
        let _ = writeln!(text, "- {note}");
    }
    if notes(report).next().is_some() {
        text.push('\n');
    }
    text
}

/// The goals, a line each: what was to be reached, what was, and met or missed.
pub fn goal_lines(reports: &[RowReport]) -> Vec<String> {
    reports
        .iter()
        .flat_map(|report| report.goals.iter().map(move |goal| (report, goal)))
        .map(|(report, goal)| {
            let verdict = match goal.met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not measured",
            };
            format!(
                "{verdict}: {}: {} {} (limit {})",
                goal.text,
                number(goal.reached),
                report.unit,
                number(goal.limit),
            )
        })
        .collect()
}

/// Where a peer is ahead of us: by row and entry of ours.
pub fn loss_lines(reports: &[RowReport]) -> Vec<String> {
    let mut lines = Vec::new();
    for report in reports {
        for our in report.entries.iter().filter(|entry| entry.ours) {
            let Some(our_median) = our.median else {
                continue;
            };
            let mut ahead: Vec<(f64, &str)> = report
                .entries
                .iter()
                .filter(|entry| !entry.ours)
                .filter_map(|entry| {
                    let lead = lead(our_median, entry.median?, report.more_is_better);
                    (lead < 0.98).then_some((lead, entry.peer.as_str()))
                })
                .collect();
            ahead.sort_by(|a, b| a.0.total_cmp(&b.0));
            let names: Vec<String> = ahead
                .iter()
                .map(|(lead, peer)| format!("{peer} ({} ×)", digits(1.0 / lead)))
                .collect();
            if !names.is_empty() {
                lines.push(format!(
                    "{}: {} is behind {}",
                    report.name,
                    our.peer,
                    names.join(", ")
                ));
            }
        }
    }
    lines
}

/// The whole report as a Markdown file.
pub fn markdown(head: &[String], reports: &[RowReport]) -> String {
    let mut text = String::from("# Benchmarks\n\n");
    let list = |text: &mut String, lines: &[String]| {
        for line in lines {
            let _ = writeln!(text, "- {line}");
        }
        text.push('\n');
    };
    list(&mut text, head);
    text.push_str(
        "Each number is the median over the rounds, with the smallest and the largest; what \
         the rows do stands in `docs/benchmarks.md`.\n\n## Goals\n\n",
    );
    list(&mut text, &goal_lines(reports));
    let losses = loss_lines(reports);
    if !losses.is_empty() {
        text.push_str("## Where another is ahead\n\n");
        list(&mut text, &losses);
    }
    for report in reports {
        text.push_str(&markdown_row(report));
    }
    text
}

/// All rows and who takes part, for `--list`.
pub fn list() -> String {
    let mut text = String::new();
    for row in ROWS {
        let unit = Unit::name(row.unit);
        let peers: Vec<&str> = row.entries.iter().map(|entry| entry.peer).collect();
        let _ = writeln!(text, "{} ({unit}): {}", row.name, row.title);
        let _ = writeln!(text, "    {}", peers.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn measured(seconds: &[f64]) -> Vec<Measurement> {
        let measurement = |&seconds| Measurement {
            outcome: Outcome::Value(seconds),
            n_left_behind: 0,
        };
        seconds.iter().map(measurement).collect()
    }

    /// The row of that name with ours and one peer measured.
    fn report(row: &str, ours: &[f64], theirs: (&str, &[f64])) -> RowReport {
        let row = rows::row(row).expect("a row of that name");
        let entry = |name: &str| {
            let mut entries = row.entries.iter();
            entries.find(|entry| entry.peer == name).expect("a peer")
        };
        let entries = [entry("bunshin"), entry(theirs.0)];
        let mut reports = [RowReport::new(
            row,
            &entries,
            &[measured(ours), measured(theirs.1)],
        )];
        judge(&mut reports);
        let [report] = reports;
        report
    }

    #[test]
    fn goals_know_which_way_is_better() {
        let slow = report("round-trip-8", &[2e-6], ("pipe", &[1e-5]));
        assert_eq!(slow.goals[0].met, Some(false));
        assert!(loss_lines(&[slow]).is_empty());

        let fast = report("one-way-64-bytes", &[5e-8, 5e-8, 9e-8], ("pipe", &[1e-8]));
        assert_eq!(fast.goals[0].met, Some(true));
        assert_eq!(
            loss_lines(&[fast]),
            ["one-way-64-bytes: bunshin is behind pipe (5.00 ×)"]
        );
    }

    #[test]
    fn a_share_of_memcpy_is_a_lower_limit() {
        let mib16 = (16 * 1024 * 1024) as f64;
        let at = |rate_gib: f64| mib16 / (rate_gib * (1u64 << 30) as f64);
        let missed = report("throughput-16m", &[at(8.4)], ("memcpy", &[at(10.0)]));
        assert_eq!(missed.goals[0].met, Some(false));
        let met = report("throughput-16m", &[at(8.6)], ("memcpy", &[at(10.0)]));
        assert_eq!(met.goals[0].met, Some(true));
    }

    #[test]
    fn what_went_wrong_is_shown() {
        let row = rows::row("round-trip-8").expect("a row of that name");
        let mut rounds = measured(&[1e-6]);
        rounds.push(Measurement {
            outcome: Outcome::Hung(Duration::from_secs(20)),
            n_left_behind: 0,
        });
        assert_eq!(n_hung(&rounds), 1);
        let entry = EntryReport::new(row, "pipe", false, &rounds);
        assert_eq!(entry.median, Some(1.0));
        assert_eq!(entry.notes, ["hung: killed after 20s (1 of 2 rounds)"]);
    }
}
