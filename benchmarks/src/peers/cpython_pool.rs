//! CPython's `multiprocessing.Pool`, driven by a `python3` of its own.

use std::process::Command;

use crate::measure::Result;
use crate::workload::{N_WORKERS, Work};

const PROGRAM: &str = include_str!("cpython_pool.py");

fn measured(work: &Work, what: &str) -> Result<f64> {
    // From a file, as `-c` would leave the workers without the function by its module.
    let path = std::env::temp_dir().join(format!("cpython-pool-{}.py", std::process::id()));
    std::fs::write(&path, PROGRAM)?;
    let output = Command::new("python3")
        .arg(&path)
        .arg(what)
        .arg(N_WORKERS.to_string())
        .arg(work.budget.as_secs_f64().to_string())
        .output();
    std::fs::remove_file(&path)?;
    let output = output?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

pub fn burst(work: &Work) -> Result<f64> {
    measured(work, "burst")
}

pub fn imap(work: &Work) -> Result<f64> {
    measured(work, "imap")
}

pub fn one(work: &Work) -> Result<f64> {
    measured(work, "one")
}
