//! Rayon: threads, which share memory and cannot die alone. The ceiling.

use std::mem;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::measure::Result;
use crate::workload::{N_WORKERS, Work, arrays, pool};

fn threads() -> Result<ThreadPool> {
    Ok(ThreadPoolBuilder::new().num_threads(N_WORKERS).build()?)
}

pub fn pool_many(work: &Work) -> Result<f64> {
    let threads = threads()?;
    pool::many(work, |numbers| {
        Ok(threads.install(|| {
            // One task per job: the counterpart of a chunk size of one.
            let tasks = numbers.into_par_iter().with_max_len(1);
            tasks.map(pool::increment).collect()
        }))
    })
}

pub fn pool_one(work: &Work) -> Result<f64> {
    let threads = threads()?;
    pool::one_at_a_time(work, |number| {
        Ok(threads.install(|| pool::increment(number)))
    })
}

/// A job for each task, and a channel of its own for each result.
pub fn pool_burst(work: &Work) -> Result<f64> {
    let threads = threads()?;
    pool::many(work, |numbers| {
        let results: Vec<_> = numbers
            .into_iter()
            .map(|number| {
                let (tell, told) = std::sync::mpsc::sync_channel(1);
                threads.spawn(move || {
                    let _ = tell.send(pool::increment(number));
                });
                told
            })
            .collect();
        let results = results.into_iter().map(|told| told.recv());
        Ok(results.collect::<std::result::Result<_, _>>()?)
    })
}

pub fn map_sum(work: &Work) -> Result<f64> {
    let threads = threads()?;
    arrays::summed(work, |inputs| {
        Ok(threads.install(|| {
            let tasks = inputs.par_iter().with_max_len(1);
            tasks.map(|array| arrays::sum(array)).collect()
        }))
    })
}

pub fn map_changed(work: &Work) -> Result<f64> {
    let threads = threads()?;
    arrays::changed(
        work,
        |inputs| {
            Ok(threads.install(|| {
                let tasks = mem::take(inputs).into_par_iter().with_max_len(1);
                tasks
                    .map(|mut array| {
                        arrays::change(&mut array);
                        array
                    })
                    .collect()
            }))
        },
        |array: &Vec<f64>| array,
    )
}
