//! A pool of worker processes.
//!
//! - `map`: what users call; `builder`: how a pool is made.
//! - `dispatcher`: tasks into the table and results out of it; `message`: their form.
//! - `supervisor`: starts, watches and replaces workers; `worker`: what those run.
//! - `state`: what is decided, without I/O or clocks.

mod builder;
mod dispatcher;
mod map;
mod message;
mod state;
mod supervisor;
mod worker;

pub use builder::PoolBuilder;
pub use map::Batch;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::process::{Target, TaskError};
use dispatcher::Dispatcher;

/// A pool of worker processes that run tasks.
///
/// A worker that is killed or crashes costs the one task that it had begun: that task fails
/// with [`TaskError::Lost`], all others are done, and another worker takes its place. A task
/// that panics fails with [`TaskError::Panicked`], and its worker goes on.
///
/// Several threads can use a pool at a time. Dropping it ends its workers, also in the middle of
/// tasks; so does the end of this process, in whatever way it comes.
///
/// # Source
/// CPython's `multiprocessing.Pool`, which hangs when a worker is killed.
///
/// # Examples
/// ```
/// use bunshin::Pool;
///
/// fn shout(word: String) -> String {
///     word.to_uppercase()
/// }
///
/// let pool = Pool::new(4)?;
/// let words = ["many", "hands"].map(String::from);
/// assert_eq!(pool.map(shout, words)?, ["MANY", "HANDS"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pool {
    dispatcher: Dispatcher,
}

impl Pool {
    /// Makes a pool of so many workers, with the default start method.
    ///
    /// # Errors
    /// `InvalidInput` for 0 workers or more than 4096, `Threads` if the start method is `Fork`
    /// and this process has other threads, `Os` if the system gives no further process.
    pub fn new(workers: usize) -> Result<Self> {
        Self::builder().workers(workers).build()
    }

    /// Makes a pool with more choices.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Runs a function on each item and gives the results in the order of the items.
    ///
    /// Items are taken from the iterator as workers get to them, about a thousand ahead. An item
    /// or result can hold connections, shared values and [`Buffer`](crate::Buffer)s.
    ///
    /// # Errors
    /// The first error in the order of the items, after all were run; [`map_each`](Self::map_each)
    /// gives each item's own.
    ///
    /// # Panics
    /// If the iterator panics; what it gave before is still run, in vain.
    pub fn map<F, T, I>(&self, function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.batch().map(function, items)
    }

    /// Runs a function on each item and gives each one's result or error, in the order of
    /// the items.
    ///
    /// # Panics
    /// As [`map`](Self::map).
    pub fn map_each<F, T, I>(&self, function: F, items: I) -> Vec<Result<F::Output, TaskError>>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.batch().map_each(function, items)
    }

    /// A map with a chunk size, or with reports of its progress.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// How many workers the pool has.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.dispatcher.n_workers
    }

    /// The process ids of the workers that there are now. Dead ones are replaced first.
    #[must_use]
    pub fn worker_pids(&self) -> Vec<u32> {
        self.dispatcher.pids()
    }

    /// Takes no more tasks. The workers end when those that are under way are done.
    pub fn close(&self) {
        self.dispatcher.close();
    }

    /// Ends all workers now: asks them (SIGTERM), and kills those that have not ended after
    /// half a second. Maps that are under way fail with [`TaskError::Cancelled`].
    pub fn terminate(&self) {
        self.dispatcher.terminate();
    }

    /// Waits for the workers of a closed or terminated pool.
    ///
    /// # Errors
    /// `InvalidInput` if the pool is open.
    pub fn join(&self) -> Result<()> {
        self.dispatcher.join()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // In a forked child the workers are the parent's.
        self.dispatcher.terminate();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("workers", &self.workers())
            .finish_non_exhaustive()
    }
}
