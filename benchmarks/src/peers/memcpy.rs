//! The limit: one thread copies between two private buffers, both touched before.

use std::hint::black_box;

use crate::measure::{self, Result};
use crate::workload::{Work, arrays};

/// Copies a message's bytes; nothing else.
pub fn message(work: &Work) -> Result<f64> {
    let source = vec![1_u8; work.size_bytes];
    let mut target = vec![2_u8; work.size_bytes];
    measure::seconds_each(work.budget, u64::MAX, |n_copies| {
        for _ in 0..n_copies {
            black_box(&mut target[..]).copy_from_slice(black_box(&source));
        }
        Ok(())
    })
}

/// Copies each array of a map once, to a place of its own.
pub fn once(work: &Work) -> Result<f64> {
    let mut targets = targets(work);
    measured(work, |sources| {
        for (source, target) in sources.iter().zip(&mut targets) {
            target.copy_from_slice(source);
        }
        black_box(&mut targets);
    })
}

/// Copies each array of a map to a place of its own and back.
pub fn there_and_back(work: &Work) -> Result<f64> {
    let mut targets = targets(work);
    measured(work, |sources| {
        for (source, target) in sources.iter_mut().zip(&mut targets) {
            target.copy_from_slice(source);
            source.copy_from_slice(black_box(target));
        }
    })
}

fn targets(work: &Work) -> Vec<Vec<f64>> {
    vec![vec![-1.0; work.size_bytes / size_of::<f64>()]; work.n_arrays]
}

fn measured(work: &Work, mut copy: impl FnMut(&mut [Vec<f64>])) -> Result<f64> {
    // The sums are made up: this copies and does nothing else, and the checks
    // of the other peers' rows would only slow it down.
    let n_elements = (work.size_bytes / size_of::<f64>()) as f64;
    arrays::summed(work, |sources| {
        copy(black_box(sources));
        Ok(sources
            .iter()
            .map(|source| source[0] * n_elements)
            .collect())
    })
}
