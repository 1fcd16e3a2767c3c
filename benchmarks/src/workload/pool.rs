//! Trivial tasks in a pool of two workers: what a task costs by itself.

use std::collections::VecDeque;

use super::Work;
use crate::measure::{self, Result};

/// The task.
pub fn increment(number: u64) -> u64 {
    number + 1
}

/// Tasks that peers without a map of their own keep in flight.
pub const WINDOW: usize = 32;

/// The largest map: enough to hide what starting one costs.
const MAX_TASKS: u64 = 1 << 18;

/// Seconds a task in maps over many numbers, each task handed out by itself.
pub fn many(work: &Work, mut map: impl FnMut(Vec<u64>) -> Result<Vec<u64>>) -> Result<f64> {
    measure::seconds_each(work.budget, MAX_TASKS, |n_tasks| {
        let results = map((0..n_tasks).collect())?;
        let right = results.len() as u64 == n_tasks
            && results
                .iter()
                .zip(0..n_tasks)
                .all(|(&result, number)| result == increment(number));
        if right {
            Ok(())
        } else {
            Err("a result is missing, wrong or out of order".into())
        }
    })
}

/// Seconds a task when each waits for the one before.
pub fn one_at_a_time(work: &Work, mut call: impl FnMut(u64) -> Result<u64>) -> Result<f64> {
    measure::seconds_each(work.budget, MAX_TASKS, |n_tasks| {
        for number in 0..n_tasks {
            if call(number)? != increment(number) {
                return Err("a result is wrong".into());
            }
        }
        Ok(())
    })
}

/// Workers that are handed one task at a time.
pub trait Workers<T> {
    type Handle;
    type Output;
    fn submit(&mut self, index: usize, item: T) -> Result<Self::Handle>;
    fn collect(&mut self, index: usize, handle: Self::Handle) -> Result<Self::Output>;
}

/// A map over `items` with up to `window` tasks in flight, for peers that have
/// no map of their own. Results are in input order.
pub fn windowed<T, W: Workers<T>>(
    workers: &mut W,
    items: impl ExactSizeIterator<Item = T>,
    window: usize,
) -> Result<Vec<W::Output>> {
    let mut results = Vec::with_capacity(items.len());
    let mut in_flight = VecDeque::with_capacity(window);
    for (index, item) in items.enumerate() {
        if in_flight.len() == window {
            let (index, handle) = in_flight.pop_front().ok_or("a window of no tasks")?;
            results.push(workers.collect(index, handle)?);
        }
        in_flight.push_back((index, workers.submit(index, item)?));
    }
    for (index, handle) in in_flight {
        results.push(workers.collect(index, handle)?);
    }
    Ok(results)
}
