//! What `apply_async` and `map_async` give: handles on tasks that are under way.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::outcomes::{Decode, Outcome, Outcomes, Source, Taken};
use crate::error::Result;
use crate::process::TaskError;

/// Makes a value of an outcome.
pub(crate) type Read<R> = fn(Outcome) -> Result<R, TaskError>;

/// What callbacks are shown, and the handle gives then.
enum Shown<R> {
    All(Vec<R>),
    Mixed(Vec<Result<R, TaskError>>),
}

/// What both kinds of handles are made of.
pub(super) struct Handle<R> {
    outcomes: Arc<Outcomes>,
    source: Arc<dyn Source>,
    /// Where the post of its one task is.
    hint: Option<usize>,
    read: Read<R>,
}

impl<R> Handle<R> {
    fn wait(&self, deadline: Option<Instant>) -> Result<bool> {
        if self.outcomes.is_ready() {
            return Ok(true);
        }
        self.source.wait(&self.outcomes, deadline)
    }

    fn is_ready(&self) -> bool {
        if !self.outcomes.is_ready() {
            self.source.look();
        }
        self.outcomes.is_ready()
    }

    /// Has a future woken once it is ready. True if it is ready now.
    pub(super) fn watch(&self, waker: &Waker) -> Result<bool> {
        if self.outcomes.is_ready() {
            return Ok(true);
        }
        self.source.watch(&self.outcomes, waker)
    }

    pub(super) fn unwatch(&self) {
        self.source.unwatch(&self.outcomes);
    }

    pub(super) fn is_known(&self) -> bool {
        self.outcomes.is_ready()
    }

    pub(super) fn has_begun(&self) -> bool {
        self.source.has_begun(&self.outcomes, self.hint)
    }

    fn cancel(&self, also_running: bool) -> usize {
        let (outcomes, source) = (&self.outcomes, &self.source);
        source.cancel(outcomes, self.hint, also_running)
    }
}

impl<R: 'static> Handle<R> {
    /// Waits, and takes everything.
    pub(super) fn get(&self) -> Result<Vec<Result<R, TaskError>>> {
        self.wait(None)?;
        Ok(match self.outcomes.take() {
            Taken::Outcomes(outcomes) => outcomes.into_iter().map(self.read).collect(),
            Taken::Decoded(shown) => match shown.downcast::<Shown<R>>().map(|shown| *shown) {
                Ok(Shown::All(results)) => results.into_iter().map(Ok).collect(),
                Ok(Shown::Mixed(results)) => results,
                // Only this handle's own type is ever put there.
                Err(_) => vec![Err(TaskError::Cancelled)],
            },
        })
    }

    /// Whether all has succeeded, if it is ready.
    fn is_successful(&self) -> Option<bool> {
        if !self.is_ready() {
            return None;
        }
        let is_success = |outcome: &Outcome| match outcome {
            Ok(payload) => !payload.is_failure(),
            Err(_) => false,
        };
        let shown = |shown: &dyn Any| matches!(shown.downcast_ref(), Some(Shown::<R>::All(_)));
        Some(match self.outcomes.look(is_success, shown) {
            Ok(is_success) | Err(is_success) => is_success,
        })
    }
}

impl<R: Send + 'static> Handle<R> {
    fn on_done(&self, call: impl FnOnce(&Shown<R>) + Send + 'static) {
        let read = self.read;
        let mut call = Some(call);
        self.source.attach(&mut || {
            let decode: Decode = Box::new(move |outcomes| {
                let results: Vec<_> = outcomes.into_iter().map(read).collect();
                let shown = if results.iter().all(Result::is_ok) {
                    Shown::All(results.into_iter().flatten().collect())
                } else {
                    Shown::Mixed(results)
                };
                Box::new(shown)
            });
            match call.take() {
                Some(call) => self.outcomes.attach(
                    decode,
                    Box::new(move |shown| {
                        if let Some(shown) = shown.downcast_ref() {
                            call(shown);
                        }
                    }),
                ),
                None => (false, None),
            }
        });
    }
}

/// Pairs of methods that both handles have.
macro_rules! waits {
    () => {
        /// Waits until it is ready.
        ///
        /// Does the pool's work meanwhile, as every wait for a pool does.
        ///
        /// # Errors
        /// `Closed` in a child that was forked after the handle was made; `Os` if the system
        /// lets nobody wait.
        pub fn wait(&self) -> Result<()> {
            self.handle.wait(None).map(|_| ())
        }

        /// Waits until it is ready, for so long at most. False if it is not.
        ///
        /// The tasks go on; [`Batch::timeout`](crate::Batch::timeout) would end them.
        ///
        /// # Errors
        /// As [`wait`](Self::wait).
        pub fn wait_timeout(&self, timeout: Duration) -> Result<bool> {
            self.handle.wait(Instant::now().checked_add(timeout))
        }

        /// Whether the outcome is there, and callbacks have been called.
        #[doc(alias = "ready")]
        #[must_use]
        pub fn is_ready(&self) -> bool {
            self.handle.is_ready()
        }
    };
}

/// A task that is under way.
///
/// Dropping it changes nothing: the task is done all the same. After a pool has been
/// terminated or dropped, tasks that were not done have been cancelled. In `async` code,
/// `.await` gives the result: see [`TaskFuture`](crate::TaskFuture).
///
/// # Source
/// CPython's `multiprocessing.pool.AsyncResult`.
///
/// # Examples
/// ```
/// use bunshin::Pool;
///
/// let pool = Pool::new(2)?;
/// let task = pool.apply_async(|a: u64, b: u64| a.pow(2) + b, (3, 4));
/// let another = pool.apply_async(|| "meanwhile".to_string(), ());
/// assert_eq!(task.get()?, 13);
/// assert_eq!(another.get()?, "meanwhile");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "AsyncResult")]
#[must_use = "the task's result and its error come with the handle"]
pub struct TaskHandle<R> {
    pub(super) handle: Handle<R>,
}

impl<R> TaskHandle<R> {
    pub(crate) fn new(
        outcomes: Arc<Outcomes>,
        source: Arc<dyn Source>,
        hint: Option<usize>,
        read: Read<R>,
    ) -> Self {
        Self {
            handle: Handle {
                outcomes,
                source,
                hint,
                read,
            },
        }
    }

    waits!();

    /// Cancels the task if no worker has begun it. True if it was: then it never runs, and
    /// its outcome is [`TaskError::Cancelled`].
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(1)?;
    /// let first = pool.apply_async(|| std::thread::sleep(std::time::Duration::from_millis(200)), ());
    /// let second = pool.apply_async(|| 1, ());
    /// assert!(second.cancel());
    /// assert!(second.get().is_err());
    /// first.get()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cancel(&self) -> bool {
        self.handle.cancel(false) > 0
    }

    /// Cancels the task, or if it has begun kills the worker that runs it, and no other: then
    /// its outcome is [`TaskError::Lost`]. False if it was done before.
    ///
    /// A thread cannot be killed: for a [`ThreadPool`](crate::ThreadPool) this is
    /// [`cancel`](Self::cancel).
    pub fn kill(&self) -> bool {
        self.handle.cancel(true) > 0
    }
}

impl<R: 'static> TaskHandle<R> {
    /// Waits for the task's result.
    ///
    /// # Errors
    /// Why there is none: see [`TaskError`].
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// assert_eq!(pool.apply_async(|n: u32| n + 1, (1,)).get()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "join")]
    pub fn get(self) -> Result<R, TaskError> {
        let mut results = self.handle.get().map_err(TaskError::Pool)?;
        results.pop().unwrap_or(Err(TaskError::Cancelled))
    }

    /// The task's result if it is there, or else the handle.
    ///
    /// # Errors
    /// The handle, if the task is not done.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let mut task = pool.apply_async(|n: u32| n + 1, (1,));
    /// let result = loop {
    ///     match task.try_get() {
    ///         Ok(result) => break result?,
    ///         Err(handle) => task = handle,
    ///     }
    /// };
    /// assert_eq!(result, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_get(self) -> Result<Result<R, TaskError>, Self> {
        if self.is_ready() {
            Ok(self.get())
        } else {
            Err(self)
        }
    }

    /// Waits for the task's result for so long at most; then gives the handle back. The task
    /// goes on.
    ///
    /// # Errors
    /// The handle, if the task is not done by then.
    ///
    /// # Examples
    /// ```
    /// use bunshin::Pool;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::new(1)?;
    /// let slow = pool.apply_async(|| std::thread::sleep(Duration::from_secs(60)), ());
    /// let slow = slow.get_timeout(Duration::from_millis(20)).unwrap_err();
    /// assert!(slow.kill() && slow.get().unwrap_err().is_lost());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_timeout(self, timeout: Duration) -> Result<Result<R, TaskError>, Self> {
        match self.wait_timeout(timeout) {
            Ok(false) => Err(self),
            Ok(true) => Ok(self.get()),
            Err(error) => Ok(Err(TaskError::Pool(error))),
        }
    }

    /// Whether the task gave a result; nothing if it is not done.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let task = pool.apply_async(|n: u32| 1 / n, (0,));
    /// task.wait()?;
    /// assert_eq!(task.is_successful(), Some(false));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "successful")]
    #[must_use]
    pub fn is_successful(&self) -> Option<bool> {
        self.handle.is_successful()
    }
}

impl<R: Send + 'static> TaskHandle<R> {
    /// Has `call` called with the task's result once that is there, in this process.
    ///
    /// A thread of the pool's calls all its callbacks, one after the other; the handle is
    /// ready when its own have been called. A callback may use the pool, also wait for other
    /// tasks of it. One that panics keeps nobody from the result. A pool whose workers are
    /// forked has no thread, and calls within whatever waits for it.
    ///
    /// # Examples
    /// ```
    /// use bunshin::Pool;
    /// use std::sync::mpsc;
    ///
    /// let pool = Pool::new(2)?;
    /// let (done, sum) = mpsc::channel();
    /// let task = pool.apply_async(|a: i32, b: i32| a + b, (1, 2)).callback(move |sum| {
    ///     done.send(*sum).expect("somebody listens");
    /// });
    /// assert_eq!(sum.recv()?, 3);
    /// assert_eq!(task.get()?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn callback(self, call: impl FnOnce(&R) + Send + 'static) -> Self {
        self.handle.on_done(move |shown| {
            if let Shown::All(results) = shown {
                results.first().map(call);
            }
        });
        self
    }

    /// Has `call` called with the error if the task gives no result. As
    /// [`callback`](Self::callback) otherwise.
    pub fn error_callback(self, call: impl FnOnce(&TaskError) + Send + 'static) -> Self {
        self.handle.on_done(move |shown| {
            if let Shown::Mixed(results) = shown {
                if let Some(Err(error)) = results.first() {
                    call(error);
                }
            }
        });
        self
    }
}

/// Many tasks that are under way.
///
/// Dropping it changes nothing: the tasks are done all the same.
///
/// # Source
/// CPython's `multiprocessing.pool.MapResult`.
///
/// # Examples
/// ```
/// use bunshin::Pool;
///
/// let pool = Pool::new(2)?;
/// let squares = pool.map_async(|n: u64| n * n, 0..5);
/// // ... something else ...
/// assert_eq!(squares.get()?, [0, 1, 4, 9, 16]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "AsyncResult")]
#[must_use = "the results and errors come with the handle"]
pub struct MapHandle<R> {
    pub(super) handle: Handle<R>,
}

impl<R> MapHandle<R> {
    pub(crate) fn new(outcomes: Arc<Outcomes>, source: Arc<dyn Source>, read: Read<R>) -> Self {
        Self {
            handle: Handle {
                outcomes,
                source,
                hint: None,
                read,
            },
        }
    }

    waits!();

    /// Cancels the tasks that no worker has begun; gives how many that were. They never run.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(1)?;
    /// let sleep = || std::thread::sleep(std::time::Duration::from_millis(200));
    /// let first = pool.apply_async(sleep, ());
    /// let many = pool.map_async(|n: u32| n, 0..100);
    /// assert_eq!(many.cancel(), 100);
    /// first.get()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cancel(&self) -> usize {
        self.handle.cancel(false)
    }

    /// Cancels the tasks that no worker has begun, and kills the workers that run one of the
    /// others; gives how many tasks that were.
    pub fn kill(&self) -> usize {
        self.handle.cancel(true)
    }
}

impl<R: 'static> MapHandle<R> {
    /// Waits for all results, and gives them in the order of the items.
    ///
    /// # Errors
    /// The first error in the order of the items.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// assert_eq!(pool.map_async(|n: u32| n + 1, 0..2).get()?, [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "join")]
    pub fn get(self) -> Result<Vec<R>, TaskError> {
        let results = self.handle.get().map_err(TaskError::Pool)?;
        results.into_iter().collect()
    }

    /// Waits until all are done, and gives each one's result or error.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let results = pool.map_async(|n: u32| 1 / n, 0..2).get_each()?;
    /// assert!(results[0].is_err());
    /// assert!(matches!(results[1], Ok(1)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_each(self) -> Result<Vec<Result<R, TaskError>>> {
        self.handle.get()
    }

    /// All results if they are there, or else the handle.
    ///
    /// # Errors
    /// The handle, if some task is not done.
    pub fn try_get(self) -> Result<Result<Vec<R>, TaskError>, Self> {
        if self.is_ready() {
            Ok(self.get())
        } else {
            Err(self)
        }
    }

    /// Waits for all results for so long at most; then gives the handle back. The tasks go on.
    ///
    /// # Errors
    /// The handle, if some task is not done by then.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let pool = bunshin::Pool::new(2)?;
    /// let squares = pool.map_async(|n: u32| n * n, 0..3);
    /// let squares = squares.get_timeout(Duration::from_secs(60)).map_err(|_| "in time")?;
    /// assert_eq!(squares?, [0, 1, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_timeout(self, timeout: Duration) -> Result<Result<Vec<R>, TaskError>, Self> {
        match self.wait_timeout(timeout) {
            Ok(false) => Err(self),
            Ok(true) => Ok(self.get()),
            Err(error) => Ok(Err(TaskError::Pool(error))),
        }
    }

    /// Whether all tasks gave a result; nothing if they are not all done.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let many = pool.map_async(|n: u32| n, 0..3);
    /// many.wait()?;
    /// assert_eq!(many.is_successful(), Some(true));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "successful")]
    #[must_use]
    pub fn is_successful(&self) -> Option<bool> {
        self.handle.is_successful()
    }
}

impl<R: Send + 'static> MapHandle<R> {
    /// Has `call` called with all results once they are there, if no task failed. As
    /// [`TaskHandle::callback`].
    pub fn callback(self, call: impl FnOnce(&[R]) + Send + 'static) -> Self {
        self.handle.on_done(move |shown| {
            if let Shown::All(results) = shown {
                call(results);
            }
        });
        self
    }

    /// Has `call` called with the first error once all tasks are done, if there is one.
    pub fn error_callback(self, call: impl FnOnce(&TaskError) + Send + 'static) -> Self {
        self.handle.on_done(move |shown| {
            if let Shown::Mixed(results) = shown {
                if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
                    call(error);
                }
            }
        });
        self
    }
}

impl<R> fmt::Debug for TaskHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("is_ready", &self.handle.outcomes.is_ready())
            .finish_non_exhaustive()
    }
}

impl<R> fmt::Debug for MapHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapHandle")
            .field("is_ready", &self.handle.outcomes.is_ready())
            .finish_non_exhaustive()
    }
}
