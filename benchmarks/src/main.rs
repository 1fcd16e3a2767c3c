//! Bunshin beside its peers: every row, every peer, one command.
//!
//! ```text
//! cargo run --release --manifest-path benchmarks/Cargo.toml
//! ```
//!
//! Within a row the peers take turns, round after round, so that a change in
//! the machine's mood falls on all of them. Each turn is a process of its own
//! (`runner.rs`), which measures one peer once and prints one number.
//! `docs/benchmarks.md` says what each row does.

mod entries;
mod machine;
mod measure;
mod peers;
mod rows;
mod runner;
mod table;
mod workload;

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use machine::Machine;
use measure::Result;
use rows::{ROWS, Row};
use runner::Measurement;
use table::RowReport;
use workload::Work;

const USAGE: &str = "\
Measures Bunshin beside its peers.

Options:
  --only NAME   rows or peers whose name contains NAME, or ROW/PEER for both;
                may be repeated
  --rounds N    turns of each peer in each row (5; with --quick 2)
  --quick       short measurements: shows that all works, not how fast
  --save        write results even of a quick or partial run
  --list        print the rows and who takes part, and end
  --help        print this, and end
";

/// Memory without which the map rows would measure the swap.
const NEEDED_KIB: u64 = 4 * 1024 * 1024;

/// After so many hangs a peer has no further turn in its row.
const MAX_HANGS: usize = 2;

struct Options {
    only: Vec<String>,
    n_rounds: usize,
    budget: Duration,
    quick: bool,
    save: bool,
}

fn main() -> ExitCode {
    peers::become_child();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some(runner::MEASURE_ROLE) => measure_one(&arguments[1..]),
        Some("--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        Some("--list") => {
            print!("{}", table::list());
            Ok(())
        }
        _ => options(&arguments).and_then(|options| run(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: &[String]) -> Result<Options> {
    let mut only = Vec::new();
    let mut n_rounds = None;
    let mut quick = false;
    let mut save = false;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next();
            value.ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--only" => only.push(value()?.clone()),
            "--rounds" => n_rounds = Some(value()?.parse::<usize>()?.max(1)),
            "--quick" => quick = true,
            "--save" => save = true,
            other => return Err(format!("unknown option {other}\n\n{USAGE}").into()),
        }
    }
    Ok(Options {
        only,
        n_rounds: n_rounds.unwrap_or(if quick { 2 } else { 5 }),
        budget: Duration::from_millis(if quick { 100 } else { 1000 }),
        quick,
        save,
    })
}

/// A measuring process: one peer, one row, one number.
fn measure_one(arguments: &[String]) -> Result<()> {
    let [row, peer, budget] = arguments else {
        return Err("a measurement needs a row, a peer and a budget".into());
    };
    let row = rows::row(row).ok_or_else(|| format!("no row {row}"))?;
    let entry = row.entries.iter().find(|entry| entry.peer == peer);
    let entry = entry.ok_or_else(|| format!("no peer {peer} in row {}", row.name))?;
    let work = Work {
        budget: Duration::from_millis(budget.parse()?),
        ..row.work
    };
    let seconds = (entry.run)(&work)?;
    println!("{} {seconds:e}", runner::VALUE_MARK);
    Ok(())
}

fn run(options: &Options) -> Result<()> {
    runner::adopt_orphans()?;
    let machine = Machine::here();
    for line in machine.lines() {
        println!("{line}");
    }
    let load_before = machine::load();
    let started = Instant::now();
    println!(
        "{} rounds of {:?} each; load before: {load_before:.2}\n",
        options.n_rounds, options.budget
    );
    let mut reports = Vec::new();
    for row in ROWS {
        if let Some(report) = measure_row(row, options)? {
            println!("{}", table::plain(&report));
            reports.push(report);
        }
    }
    if reports.is_empty() {
        return Err(format!("no row or peer contains {:?}; see --list", options.only).into());
    }
    table::judge(&mut reports);
    print_summary(&reports);
    let head = [
        machine.lines(),
        vec![format!(
            "run: {} rounds of {:?}{}, {:.0} s in all, load {load_before:.2} before and {:.2} after",
            options.n_rounds,
            options.budget,
            if options.quick { " (quick)" } else { "" },
            started.elapsed().as_secs_f64(),
            machine::load(),
        )],
    ]
    .concat();
    let is_whole = options.only.is_empty() && !options.quick;
    if is_whole || options.save {
        let paths = save(&machine, &head, &reports)?;
        for path in paths {
            println!("wrote {}", path.display());
        }
    } else {
        println!("a quick or partial run: nothing written (--save writes)");
    }
    Ok(())
}

impl Options {
    /// Whether `--only` leaves this peer in.
    fn wants(&self, row: &Row, peer: &str) -> bool {
        self.only.is_empty()
            || self.only.iter().any(|only| match only.split_once('/') {
                Some((in_row, in_peer)) => row.name.contains(in_row) && peer.contains(in_peer),
                None => row.name.contains(only.as_str()) || peer.contains(only.as_str()),
            })
    }
}

/// Measures a row's peers in turns. Nothing if none of them is wanted.
fn measure_row(row: &'static Row, options: &Options) -> Result<Option<RowReport>> {
    let entries: Vec<_> = row
        .entries
        .iter()
        .filter(|entry| options.wants(row, entry.peer))
        .filter(|entry| !entry.peer.starts_with("CPython") || peers::cpython::is_there())
        .collect();
    if entries.is_empty() {
        return Ok(None);
    }
    if row.work.n_arrays > 0 && machine::available_kib() < NEEDED_KIB {
        println!(
            "{}: left out, as it needs 4 GiB of free memory\n",
            row.title
        );
        return Ok(None);
    }
    let time_limit = row.time_limit / if options.quick { 3 } else { 1 };
    let show = std::io::stderr().is_terminal();
    let mut results: Vec<Vec<Measurement>> = vec![Vec::new(); entries.len()];
    for round in 0..options.n_rounds {
        for turn in 0..entries.len() {
            // Another peer begins each round: nobody always follows the same one.
            let index = (turn + round) % entries.len();
            let peer = entries[index].peer;
            if table::n_hung(&results[index]) >= MAX_HANGS {
                continue;
            }
            if show {
                eprint!("\r\x1b[K{}: round {}: {peer}", row.name, round + 1);
            }
            let result = runner::measure(row.name, peer, options.budget, time_limit)?;
            results[index].push(result);
        }
    }
    if show {
        eprint!("\r\x1b[K");
    }
    Ok(Some(RowReport::new(row, &entries, &results)))
}

fn print_summary(reports: &[RowReport]) {
    println!("Goals");
    for line in table::goal_lines(reports) {
        println!("  {line}");
    }
    let losses = table::loss_lines(reports);
    if !losses.is_empty() {
        println!("\nWhere another is ahead");
        for line in losses {
            println!("  {line}");
        }
    }
    println!();
}

/// What the machine-readable file holds.
#[derive(Serialize)]
struct Saved<'a> {
    machine: &'a Machine,
    run: &'a [String],
    rows: &'a [RowReport],
}

/// Writes both files; an earlier result of the same day keeps its name.
fn save(machine: &Machine, head: &[String], reports: &[RowReport]) -> Result<[PathBuf; 2]> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    fs::create_dir_all(&folder)?;
    let stem = format!("{}-{}", machine.date, machine.slug());
    let stem = (1..)
        .map(|n| {
            if n == 1 {
                stem.clone()
            } else {
                format!("{stem}-{n}")
            }
        })
        .find(|stem| !folder.join(format!("{stem}.md")).exists())
        .ok_or("no free file name")?;
    let text = folder.join(format!("{stem}.md"));
    fs::write(&text, table::markdown(head, reports))?;
    let data = folder.join(format!("{stem}.json"));
    let saved = Saved {
        machine,
        run: head,
        rows: reports,
    };
    fs::write(&data, serde_json::to_string_pretty(&saved)? + "\n")?;
    Ok([text, data])
}
