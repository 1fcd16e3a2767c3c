//! Start to first result: a process is started for one small calculation.

use std::hint::black_box;
use std::time::Instant;

use super::Work;
use crate::measure::{self, Result};

/// What the started process calculates.
pub fn answer(question: u64) -> u64 {
    question.wrapping_mul(3) + 1
}

/// Bytes of a block of the parent's heap: small enough to come from the heap
/// proper, as a program's many objects do, and not from one large mapping.
const HEAP_BLOCK_BYTES: usize = 64 * 1024;

/// Seconds from asking until the answer is here and the process is reaped.
pub fn start_to_result(work: &Work, mut start: impl FnMut(u64) -> Result<u64>) -> Result<f64> {
    let heap: Vec<Vec<u8>> = (0..work.heap_bytes / HEAP_BLOCK_BYTES)
        .map(|block| vec![block as u8 | 1; HEAP_BLOCK_BYTES])
        .collect();
    black_box(&heap);
    let mut question = 0;
    let mut sample = || {
        question += 1;
        let started = Instant::now();
        let found = start(question)?;
        let took = started.elapsed();
        if found == answer(question) {
            Ok(took)
        } else {
            Err(format!("asked {question}, was told {found}").into())
        }
    };
    // A peer may start a server first, once.
    for _ in 0..3 {
        sample()?;
    }
    let seconds = measure::median_seconds(work.budget, false, sample)?;
    black_box(&heap);
    Ok(seconds)
}
