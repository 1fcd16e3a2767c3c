//! CPython's `multiprocessing.Queue`, in a `python3` that measures itself.

use std::process::{Command, Stdio};

use crate::measure::Result;
use crate::workload::{Pattern, Work};

const SCRIPT: &str = include_str!("cpython_queue.py");

/// Whether there is a `python3`; the rows leave these peers out where there is none.
pub fn is_there() -> bool {
    Command::new("python3")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn measured(work: &Work, what: &str) -> Result<f64> {
    let output = Command::new("python3")
        .args(["-c", SCRIPT, what, &work.budget.as_secs_f64().to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("python3: {}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// One process to one other.
pub fn queue(work: &Work) -> Result<f64> {
    match work.pattern {
        Pattern::RoundTrip => measured(work, "round-trip"),
        Pattern::OneWay => measured(work, "1"),
    }
}

/// Four processes to four others.
pub fn queue_each(work: &Work) -> Result<f64> {
    measured(work, "4")
}
