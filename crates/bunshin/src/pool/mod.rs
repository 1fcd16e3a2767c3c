//! A pool of worker processes.
//!
//! - `batch`: what users call, and how tasks are to be done; `builder`: how a pool is made.
//! - `map`: many results at once; `imap`: one by one; `handle`: later.
//! - `dispatcher`: tasks into the table and results out of it; `message`: their form.
//! - `drive`: waiting, and doing the pool's work meanwhile; `limits`: tasks that take too long.
//! - `awaited`, `stream`: handles and imaps as futures and streams.
//! - `held`: the lock over all that changes, and who is woken after it.
//! - `post`, `outcomes`: tasks that nobody waits for now; `attendant`: the threads for them,
//!   and `tended` what they look after.
//! - `supervisor`: starts, watches and replaces workers; `worker`: what those run.
//! - `par_map`: a pool of forks, for a closure that borrows.
//! - `stateful`: workers with a state of their own; `thread_pool`, `thread_builder`,
//!   `thread_imap`: the same over threads.
//! - `state`: what is decided, without I/O or clocks.

mod attendant;
mod awaited;
mod batch;
mod builder;
mod dispatcher;
mod drive;
mod handle;
mod held;
mod imap;
mod limits;
mod map;
mod message;
mod outcomes;
mod par_map;
mod post;
mod state;
mod stateful;
#[cfg(feature = "tokio")]
mod stream;
mod supervisor;
mod tended;
mod thread_builder;
mod thread_imap;
mod thread_pool;
mod worker;

pub(crate) use worker::{around, on_idle};

pub use awaited::{MapFuture, TaskFuture};
pub use batch::Batch;
pub use builder::PoolBuilder;
pub use handle::{MapHandle, TaskHandle};
pub use imap::Imap;
pub use par_map::ParMap;
pub use stateful::{StatefulPool, StatefulPoolBuilder};
#[cfg(feature = "tokio")]
pub use stream::ImapStream;
pub use thread_builder::ThreadPoolBuilder;
pub use thread_imap::ThreadImap;
pub use thread_pool::ThreadPool;

use std::fmt;
use std::sync::Arc;

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
    dispatcher: Arc<Dispatcher>,
}

impl Pool {
    /// Makes a pool of so many workers, with the default start method.
    ///
    /// # Errors
    /// `InvalidInput` for 0 workers or more than 4096, `Threads` if the start method is `Fork`
    /// and this process has other threads, `Os` if the system gives no further process.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// assert_eq!(pool.workers(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(workers: usize) -> Result<Self> {
        Self::builder().workers(workers).build()
    }

    /// Makes a pool with more choices.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::builder().workers(2).max_tasks_per_child(100).build()?;
    /// assert_eq!(pool.map(|n: u32| n + 1, [1])?, [2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// assert_eq!(pool.map(|n: i32| n.pow(2), -2..=2)?, [4, 1, 0, 1, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let halves = pool.map_each(|n: u32| 10 / n, [0, 5]);
    /// assert!(halves[0].is_err());
    /// assert!(matches!(halves[1], Ok(2)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_each<F, T, I>(&self, function: F, items: I) -> Vec<Result<F::Output, TaskError>>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.batch().map_each(function, items)
    }

    /// Runs a function once and gives its result.
    ///
    /// # Errors
    /// Why there is none.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(1)?;
    /// assert_eq!(pool.apply(|a: u32, b: u32| a * b, (6, 7))?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply<F, Args>(&self, function: F, arguments: Args) -> Result<F::Output, TaskError>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
    {
        self.batch().apply(function, arguments)
    }

    /// Runs a function on each tuple of arguments and gives the results in their order.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    ///
    /// # Panics
    /// As [`map`](Self::map).
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// assert_eq!(pool.starmap(u32::pow, [(2, 5), (3, 2), (10, 3)])?, [32, 9, 1000]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn starmap<F, Args, I>(&self, function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
        I: IntoIterator<Item = Args>,
    {
        self.batch().starmap(function, items)
    }

    /// Runs a function on each tuple of arguments and gives each one's result or error, in
    /// their order.
    ///
    /// # Panics
    /// As [`map`](Self::map).
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let quotients = pool.starmap_each(|a: u32, b: u32| a / b, [(6, 3), (1, 0)]);
    /// assert!(matches!(quotients[0], Ok(2)));
    /// assert!(quotients[1].is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn starmap_each<F, Args, I>(
        &self,
        function: F,
        items: I,
    ) -> Vec<Result<F::Output, TaskError>>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
        I: IntoIterator<Item = Args>,
    {
        self.batch().starmap_each(function, items)
    }

    /// Has a function run some time, and gives a handle on its result at once.
    ///
    /// Never waits for a worker: about a thousand tasks lie where workers take them, and more
    /// are kept until there is room. It does wait while more than 64 MiB of buffers, or about a
    /// hundred tasks with buffers or connections, are on their way. An error, also that the
    /// pool is closed, comes with the handle.
    ///
    /// Tasks are run whether or not somebody waits. More tasks than a thousand, arguments that
    /// hold connections or shared values, time limits and [callbacks](TaskHandle::callback)
    /// need somebody who looks after the pool: whoever waits for it, or else a thread, which
    /// the first such need starts and which ends with the pool.
    /// From then on this process cannot be forked. A pool whose workers are forked starts no
    /// thread: there it needs somebody who waits.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let one = pool.apply_async(u64::pow, (2, 10));
    /// let other = pool.apply_async(u64::pow, (3, 2));
    /// assert_eq!((one.get()?, other.get()?), (1024, 9));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply_async<F, Args>(&self, function: F, arguments: Args) -> TaskHandle<F::Output>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
    {
        self.batch().apply_async(function, arguments)
    }

    /// Has a function run on each item some time, and gives a handle on the results.
    ///
    /// Takes all items at once, as many as there are; [`imap`](Self::imap) takes them as they
    /// are wanted. As [`apply_async`](Self::apply_async) otherwise.
    ///
    /// # Panics
    /// If the iterator panics; what it gave before is still run.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let doubled = pool.map_async(|n: u32| n * 2, [1, 2, 3]);
    /// assert_eq!(doubled.get()?, [2, 4, 6]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_async<F, T, I>(&self, function: F, items: I) -> MapHandle<F::Output>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.batch().map_async(function, items)
    }

    /// [`map_async`](Self::map_async) for tuples of arguments.
    ///
    /// # Panics
    /// As there.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let powers = pool.starmap_async(u32::pow, [(2, 5), (3, 2)]);
    /// assert_eq!(powers.get()?, [32, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn starmap_async<F, Args, I>(&self, function: F, items: I) -> MapHandle<F::Output>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
        I: IntoIterator<Item = Args>,
    {
        self.batch().starmap_async(function, items)
    }

    /// Runs a function on each item, and gives the results one by one in their order.
    ///
    /// Items are taken as results are asked for, a few for each worker ahead, and more (512 at
    /// most, see [`Batch::window`]) if the tasks are quick: an endless iterator will do, memory
    /// stays as it is, and who takes results slowly holds the items back. A worker that dies
    /// makes one result an error, and it goes on. Dropping the iterator cancels the rest.
    ///
    /// # Panics
    /// Taking a result panics if the iterator of the items does.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let squares = pool.imap(|n: u64| n * n, 1..).take(3);
    /// assert_eq!(squares.collect::<Result<Vec<_>, _>>()?, [1, 4, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap<F, T, I>(
        &self,
        function: F,
        items: I,
    ) -> Imap<impl Iterator<Item = (T,)> + use<F, T, I>, F::Output>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.batch().imap(function, items)
    }

    /// [`imap`](Self::imap), with the results as they come: none waits for one before it.
    ///
    /// # Panics
    /// As there.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let mut squares = pool.imap_unordered(|n: u32| n * n, 0..4).collect::<Result<Vec<_>, _>>()?;
    /// squares.sort();
    /// assert_eq!(squares, [0, 1, 4, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap_unordered<F, T, I>(
        &self,
        function: F,
        items: I,
    ) -> Imap<impl Iterator<Item = (T,)> + use<F, T, I>, F::Output>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.batch().imap_unordered(function, items)
    }

    /// Tasks with choices: a chunk size, a time limit, reports of progress.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// assert_eq!(pool.batch().chunk_size(4).map(|n: u32| n, 0..8)?.len(), 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// How many workers the pool has.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::Pool::new(3)?.workers(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn workers(&self) -> usize {
        self.dispatcher.n_workers
    }

    /// The process ids of the workers that there are now. Dead ones are replaced first.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let pids = pool.worker_pids();
    /// assert_eq!(pids.len(), 2);
    /// assert!(pids.contains(&pool.apply(std::process::id, ())?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn worker_pids(&self) -> Vec<u32> {
        self.dispatcher.pids()
    }

    /// Takes no more tasks. The workers end when those that are under way are done.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let task = pool.apply_async(|| 1, ());
    /// pool.close();
    /// assert!(pool.apply(|| 2, ()).is_err());
    /// assert_eq!(task.get()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) {
        self.dispatcher.close();
    }

    /// Ends all workers now: asks them (SIGTERM), and kills those that have not ended after
    /// half a second. Tasks that are not done fail with [`TaskError::Cancelled`].
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let task = pool.apply_async(|| std::thread::park(), ());
    /// pool.terminate();
    /// assert!(task.get().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn terminate(&self) {
        self.dispatcher.terminate();
    }

    /// Waits for the workers of a closed or terminated pool, and for callbacks.
    ///
    /// # Errors
    /// `InvalidInput` if the pool is open.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// assert!(pool.join().is_err());
    /// pool.close();
    /// pool.join()?;
    /// assert!(pool.worker_pids().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join(&self) -> Result<()> {
        self.dispatcher.join()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // In a forked child the workers and the threads are the parent's.
        if self.dispatcher.is_ours() {
            self.dispatcher.terminate();
            self.dispatcher.end_attendants(false);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("workers", &self.workers())
            .finish_non_exhaustive()
    }
}
