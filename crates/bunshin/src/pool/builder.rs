//! Making a pool.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Pool;
use super::dispatcher::Dispatcher;
use super::supervisor::{Initializer, Recipe};
use crate::codec::attachments::Outgoing;
use crate::codec::serde::encode;
use crate::error::{Error, ErrorKind, Result};
use crate::process::{StartMethod, Target, start_method, target};
use crate::shm::table::WORKERS;
use crate::sys::thread;

/// What a [`Pool`] is to be.
///
/// # Examples
/// ```
/// use bunshin::{Pool, StartMethod};
/// use std::sync::OnceLock;
///
/// static GREETING: OnceLock<String> = OnceLock::new();
///
/// fn prepare(greeting: String) {
///     GREETING.set(greeting).expect("each worker prepares once");
/// }
///
/// fn greet(name: String) -> String {
///     format!("{} {name}", GREETING.get().expect("prepared"))
/// }
///
/// let pool = Pool::builder()
///     .workers(2)
///     .start_method(StartMethod::Spawn)
///     .initializer(prepare, ("hello".to_string(),))
///     .build()?;
/// assert_eq!(pool.map(greet, ["world".to_string()])?, ["hello world"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[must_use = "a builder makes a pool when it is built"]
pub struct PoolBuilder {
    workers: Option<usize>,
    start_method: Option<StartMethod>,
    /// What the workers' names begin with, and the number of the first.
    names: Option<(String, usize)>,
    tasks: Option<usize>,
    initializer: Option<Result<Initializer>>,
    exit: Option<Result<u64>>,
    ends_starting: bool,
}

impl PoolBuilder {
    /// How many workers. By default as many as there are processors that this process may use.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::builder().workers(3).build()?;
    /// assert_eq!(pool.workers(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// The start method. By default that of [`start_method`](crate::start_method).
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.start_method = Some(method);
        self
    }

    /// What the workers are called, followed by `-1` and so on. By default `Worker`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names = Some((format!("{}-", name.into()), 1));
        self
    }

    /// Has workers that are not ready when the pool is terminated be ended without what they are to run
    /// last.
    pub(crate) fn ends_starting(mut self) -> Self {
        self.ends_starting = true;
        self
    }

    /// What the workers' names begin with, followed by `first` and so on.
    pub(crate) fn names(mut self, prefix: String, first: usize) -> Self {
        self.names = Some((prefix, first));
        self
    }

    /// A function that each worker runs before its first task.
    ///
    /// The arguments are encoded once; each worker gets its own. If it panics, the pool is
    /// broken: all tasks fail with an error of kind `Initializer` that says why.
    pub fn initializer<F, Args>(self, function: F, args: Args) -> Self
    where
        F: Target<Args>,
        F::Output: Serialize,
        Args: Serialize + DeserializeOwned,
    {
        self.initializer_entry(target::locate(function), &args)
    }

    /// The function at a place as [`initializer`](Self::initializer).
    pub(super) fn initializer_entry<Args: Serialize>(
        mut self,
        entry: Result<u64>,
        args: &Args,
    ) -> Self {
        let encode = || {
            let mut outgoing = Outgoing::default();
            let mut arguments = Vec::new();
            encode(args, &mut arguments, &mut outgoing)?;
            Ok(Initializer {
                entry: entry?,
                arguments,
                handles: std::mem::take(&mut outgoing.handles),
            })
        };
        self.initializer = Some(encode());
        self
    }

    /// The function at a place as [`on_exit`](Self::on_exit).
    pub(super) fn exit_entry(mut self, entry: Result<u64>) -> Self {
        self.exit = Some(entry);
        self
    }

    /// A function that each worker runs last: when the pool is closed and its work is done,
    /// when the worker has had all the tasks it may have, and when the pool is terminated or
    /// dropped, if the worker is idle then or becomes so within a quarter of a second. A worker
    /// that is killed or crashes does not get to it.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Pool, RawValue};
    /// use std::sync::OnceLock;
    ///
    /// static LEFT: OnceLock<RawValue<u32>> = OnceLock::new();
    ///
    /// let left = RawValue::new(0u32)?;
    /// let pool = Pool::builder()
    ///     .workers(2)
    ///     .initializer(|left: RawValue<u32>| LEFT.set(left).expect("once"), (left.clone(),))
    ///     .on_exit(|| { LEFT.get().expect("prepared").fetch_add(1, std::sync::atomic::Ordering::SeqCst); })
    ///     .build()?;
    /// pool.close();
    /// pool.join()?;
    /// assert_eq!(left.get(), 2);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn on_exit<F>(self, function: F) -> Self
    where
        F: Target<(), Output = ()>,
    {
        self.exit_entry(target::locate(function))
    }

    /// How many tasks a worker runs before another takes its place, for tasks that leak.
    /// By default any number. 0 is as 1.
    #[doc(alias = "maxtasksperchild")]
    pub fn max_tasks_per_child(mut self, tasks: usize) -> Self {
        self.tasks = Some(tasks.max(1));
        self
    }

    /// Makes the pool. Returns when the workers have been started, which may not run yet.
    ///
    /// # Errors
    /// As [`Pool::new`]; `Encode` if the initializer's arguments cannot be encoded.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{ErrorKind, Pool};
    ///
    /// let refused = Pool::builder().workers(0).build();
    /// assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    /// ```
    pub fn build(self) -> Result<Pool> {
        let workers = self.workers.unwrap_or_else(thread::cpus);
        if workers == 0 || workers > WORKERS {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a pool of {workers} workers: there are 1 to {WORKERS}"),
            ));
        }
        let (prefix, first) = self.names.unwrap_or_else(|| ("Worker-".to_owned(), 1));
        let recipe = Recipe {
            method: self.start_method.unwrap_or_else(start_method),
            prefix,
            first,
            tasks: self.tasks,
            initializer: self.initializer.transpose()?,
            exit: self.exit.transpose()?,
            ends_starting: self.ends_starting,
            is_external: false,
        };
        Ok(Pool {
            dispatcher: Dispatcher::new(workers, recipe)?,
        })
    }
}
