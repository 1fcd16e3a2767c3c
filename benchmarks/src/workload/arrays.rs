//! A map over large arrays of `f64`: their sums, or each array changed.
//!
//! Before the clock starts the arrays lie in the parent as plain `Vec<f64>`,
//! every page of them touched. The clock then covers everything: turning them into
//! whatever the peer sends, the map, and reading one element in each page of what
//! came back. Inputs are made afresh for each sample. A peer may borrow them or take
//! them; so that it makes no difference, this process keeps memory that is freed:
//! giving 512 MiB back to the system takes longer than copying them.

use std::hint::black_box;
use std::slice;
use std::time::Instant;

use super::Work;
use crate::measure::{self, Result};

/// Elements in a page.
const PAGE_ELEMENTS: usize = 4096 / size_of::<f64>();

/// Sums with eight running totals, so that the memory is what limits it.
pub fn sum(array: &[f64]) -> f64 {
    let mut totals = [0.0; 8];
    let chunks = array.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (total, value) in totals.iter_mut().zip(chunk) {
            *total += value;
        }
    }
    totals.iter().sum::<f64>() + rest
}

/// Adds one to each element.
pub fn change(array: &mut [f64]) {
    for value in array {
        *value += 1.0;
    }
}

/// The value that fills array `index`.
fn fill(index: usize) -> f64 {
    (index + 1) as f64
}

/// Makes this process keep the memory of freed arrays for the next ones.
fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
    ] {
        // SAFETY: mallopt takes two numbers and may be called at any time.
        unsafe { libc::mallopt(parameter, value) };
    }
}

fn inputs(work: &Work) -> Vec<Vec<f64>> {
    let n_elements = work.size_bytes / size_of::<f64>();
    (0..work.n_arrays)
        .map(|index| vec![fill(index); n_elements])
        .collect()
}

/// Seconds that `map` takes to bring back the sums of all arrays.
pub fn summed(
    work: &Work,
    mut map: impl FnMut(&mut Vec<Vec<f64>>) -> Result<Vec<f64>>,
) -> Result<f64> {
    keep_freed_memory();
    let n_elements = (work.size_bytes / size_of::<f64>()) as f64;
    measure::median_seconds(work.budget, work.cold, || {
        let mut arrays = black_box(inputs(work));
        let started = Instant::now();
        let sums = black_box(map(&mut arrays)?);
        let took = started.elapsed();
        let right = sums.len() == work.n_arrays
            && sums
                .iter()
                .enumerate()
                .all(|(index, &sum)| sum == fill(index) * n_elements);
        if right {
            Ok(took)
        } else {
            Err("a sum is missing, wrong or out of order".into())
        }
    })
}

/// Seconds that `map` takes to bring back all arrays, one added to each element.
/// `view` shows the elements of what the peer returns.
pub fn changed<R>(
    work: &Work,
    mut map: impl FnMut(&mut Vec<Vec<f64>>) -> Result<Vec<R>>,
    view: impl Fn(&R) -> &[f64],
) -> Result<f64> {
    keep_freed_memory();
    measure::median_seconds(work.budget, work.cold, || {
        let mut arrays = black_box(inputs(work));
        let started = Instant::now();
        let results = black_box(map(&mut arrays)?);
        let right = results.len() == work.n_arrays
            && results.iter().enumerate().all(|(index, result)| {
                let result = view(result);
                size_of_val(result) == work.size_bytes
                    && result
                        .iter()
                        .step_by(PAGE_ELEMENTS)
                        .all(|&value| value == fill(index) + 1.0)
            });
        // The results live until the clock has stopped, as they would with a caller.
        let took = started.elapsed();
        if right {
            Ok(took)
        } else {
            Err("an array is missing, wrong or out of order".into())
        }
    })
}

/// The bytes of an array, for peers that carry only bytes.
pub fn as_bytes(array: &[f64]) -> &[u8] {
    // SAFETY: f64 has no padding and u8 no alignment; the length is the same memory's.
    unsafe { slice::from_raw_parts(array.as_ptr().cast(), size_of_val(array)) }
}

/// The array in `bytes`, which must be aligned for `f64` and hold whole elements.
pub fn as_array(bytes: &[u8]) -> &[f64] {
    // SAFETY: every bit pattern is an f64.
    let (front, array, back) = unsafe { bytes.align_to::<f64>() };
    assert!(front.is_empty() && back.is_empty(), "unaligned array");
    array
}

/// [`as_array`] for memory that is written.
pub fn as_array_mut(bytes: &mut [u8]) -> &mut [f64] {
    // SAFETY: every bit pattern is an f64, and every f64 is eight bytes.
    let (front, array, back) = unsafe { bytes.align_to_mut::<f64>() };
    assert!(front.is_empty() && back.is_empty(), "unaligned array");
    array
}
