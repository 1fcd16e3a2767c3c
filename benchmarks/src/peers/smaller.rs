//! Parts of Bunshin with rows of their own beside one or two peers: the list in shared
//! memory, the map over borrowed items in forks, and the pool of threads.

use std::hint::black_box;
use std::process::Command;

use ::bunshin::{ShareableList, ThreadPool};
use ::rayon::prelude::*;

use crate::measure::{self, Result};
use crate::workload::{N_WORKERS, Work, pool};

/// Items of the list.
const ITEMS: usize = 1000;
/// The most operations in one batch.
const BATCH: u64 = 1 << 20;

/// One item after the other out of a list of numbers.
pub fn list_get(work: &Work) -> Result<f64> {
    let list = ShareableList::new(0..ITEMS as i64)?;
    measure::seconds_each(work.budget, BATCH, |n_items| {
        for at in (0..ITEMS).cycle().take(n_items as usize) {
            if black_box(list.get(at)?) != (at as i64).into() {
                return Err("an item is wrong".into());
            }
        }
        Ok(())
    })
}

/// The same by CPython's own list.
pub fn cpython_list_get(work: &Work) -> Result<f64> {
    let program = format!(
        "
import time
from multiprocessing.shared_memory import ShareableList
items = ShareableList(range({ITEMS}))
n, started = 0, time.perf_counter()
while time.perf_counter() - started < {budget}:
    for at in range({ITEMS}):
        if items[at] != at:
            raise SystemExit('an item is wrong')
    n += {ITEMS}
print((time.perf_counter() - started) / n)
items.shm.close()
items.shm.unlink()
",
        budget = work.budget.as_secs_f64()
    );
    let output = Command::new("python3").args(["-c", &program]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// Numbers in one map over borrowed items.
const BORROWED: usize = 64;

/// So long as a task takes that is worth a process: about a tenth of a millisecond.
fn busy(number: &u64) -> u64 {
    (0..100_000).fold(*number, |sum, step| {
        black_box(sum.wrapping_mul(31).wrapping_add(step))
    })
}

/// Seconds that `map` takes for one of the borrowed items.
fn borrowed(work: &Work, map: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<f64> {
    let numbers: Vec<u64> = (0..BORROWED as u64).collect();
    let right: Vec<u64> = numbers.iter().map(busy).collect();
    let seconds = measure::seconds_each(work.budget, BATCH, |n_maps| {
        for _ in 0..n_maps {
            if map(&numbers)? != right {
                return Err("a result is wrong".into());
            }
        }
        Ok(())
    })?;
    Ok(seconds / BORROWED as f64)
}

/// Forks for each map, over what is around the closure.
pub fn par_map(work: &Work) -> Result<f64> {
    borrowed(work, |numbers| {
        let results = ::bunshin::scope(|scope| scope.par().workers(N_WORKERS).map(numbers, busy));
        Ok(results?)
    })
}

pub fn rayon_map(work: &Work) -> Result<f64> {
    let threads = ::rayon::ThreadPoolBuilder::new()
        .num_threads(N_WORKERS)
        .build()?;
    borrowed(work, |numbers| {
        Ok(threads.install(|| numbers.par_iter().with_max_len(1).map(busy).collect()))
    })
}

pub fn serial_map(work: &Work) -> Result<f64> {
    borrowed(work, |numbers| Ok(numbers.iter().map(busy).collect()))
}

/// A handle for each trivial task, and then its result.
pub fn thread_pool_burst(work: &Work) -> Result<f64> {
    let threads = ThreadPool::new(N_WORKERS)?;
    pool::many(work, |numbers| {
        let handles: Vec<_> = numbers
            .into_iter()
            .map(|number| threads.apply_async(move || pool::increment(number)))
            .collect();
        let results = handles.into_iter().map(|handle| handle.get());
        Ok(results.collect::<std::result::Result<_, _>>()?)
    })
}

/// Results one after the other, in order, as they come.
pub fn thread_pool_imap(work: &Work) -> Result<f64> {
    let threads = ThreadPool::new(N_WORKERS)?;
    pool::many(work, |numbers| {
        let results = threads.imap(pool::increment, numbers);
        Ok(results.collect::<std::result::Result<_, _>>()?)
    })
}
