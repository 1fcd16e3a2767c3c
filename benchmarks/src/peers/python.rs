//! CPython's `multiprocessing.connection`, in a Python process of its own.

use std::process::Command;

use crate::measure::Result;
use crate::workload::{Pattern, Work};

const SCRIPT: &str = include_str!("python.py");

/// `send_bytes` and `recv_bytes` of a `Pipe`, whose ends are Unix sockets.
pub fn connection(work: &Work) -> Result<f64> {
    let (near_core, far_core) = work.cores()?;
    let pattern = match work.pattern {
        Pattern::RoundTrip => "round-trip",
        Pattern::OneWay => "one-way",
    };
    let output = Command::new("python3")
        .args(["-c", SCRIPT, pattern])
        .arg(work.size_bytes.to_string())
        .arg(work.budget.as_secs_f64().to_string())
        .args([near_core.to_string(), far_core.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(why.lines().last().unwrap_or("it failed").into());
    }
    Ok(said.trim().parse()?)
}
