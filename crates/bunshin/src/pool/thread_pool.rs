//! The pool's surface over threads of this process.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::handle::{MapHandle, TaskHandle};
use super::outcomes::{Aftermath, Job, Outcome, Outcomes, Payload, Source};
use super::thread_builder::{Hook, ThreadPoolBuilder};
use super::thread_imap::ThreadImap;
use crate::error::{Error, ErrorKind, Result};
use crate::process::{TaskError, panic, target};
use crate::sys::thread;

/// A pool of threads that run tasks: what [`Pool`](crate::Pool) offers, where processes are not
/// wanted.
///
/// Closures may capture, and neither they nor results are encoded. But a thread cannot be
/// killed: there are no time limits, [`TaskHandle::kill`] only cancels, and a task that crashes
/// takes the process along. A task that panics fails with [`TaskError::Panicked`].
///
/// Dropping it cancels what has not begun, and waits for what has. In a forked child there are
/// no threads, and a thread pool of the parent's takes no tasks.
///
/// # Source
/// CPython's `multiprocessing.dummy` and `multiprocessing.pool.ThreadPool`.
///
/// # Examples
/// ```
/// use bunshin::ThreadPool;
///
/// let pool = ThreadPool::new(2)?;
/// let factor = 3;
/// assert_eq!(pool.map(move |n: u64| n * factor, 0..4)?, [0, 3, 6, 9]);
/// let later = pool.apply_async(move || factor + 1);
/// assert_eq!(later.get()?, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "dummy")]
pub struct ThreadPool {
    pub(super) crew: Arc<Crew>,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(super) n_threads: usize,
}

thread_local! {
    /// The address of the crew that this thread is one of, or 0.
    pub(super) static WORKS_FOR: Cell<usize> = const { Cell::new(0) };
}

/// A task: what it gives goes to its outcomes.
pub(super) struct Task {
    pub(super) outcomes: Arc<Outcomes>,
    pub(super) position: usize,
    pub(super) work: Box<dyn FnOnce() -> Outcome + Send>,
}

pub(super) struct Crew {
    pub(super) state: Mutex<State>,
    /// A task has come, or the pool ends.
    pub(super) work: Condvar,
    /// Something was done.
    pub(super) done: Condvar,
    pub(super) generation: u32,
    /// What each thread runs before its first task and after its last one.
    pub(super) initializer: Option<Hook>,
    pub(super) exit: Option<Hook>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) queue: VecDeque<Task>,
    pub(super) is_closed: bool,
    /// Why an initializer has failed: nothing is run any more.
    why_broken: Option<String>,
    /// Threads that wait for a task, and callers that wait for an outcome.
    n_idle: usize,
    n_waiting: usize,
}

impl ThreadPool {
    /// Makes a pool of so many threads.
    ///
    /// # Errors
    /// `InvalidInput` for 0 threads, `Os` if the system gives no further thread.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::ThreadPool::new(3)?.threads(), 3);
    /// assert!(bunshin::ThreadPool::new(0).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(threads: usize) -> Result<Self> {
        Self::builder().threads(threads).build()
    }

    /// Makes a pool with choices: the threads' names, what each does first and last.
    pub fn builder() -> ThreadPoolBuilder {
        ThreadPoolBuilder::default()
    }

    pub(super) fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many threads the pool has.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::ThreadPool::new(1)?.threads(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn threads(&self) -> usize {
        self.n_threads
    }

    /// Runs a function once and gives its result.
    ///
    /// # Errors
    /// [`TaskError::Panicked`], or `Cancelled` or `Pool` if it was not run.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let name = String::from("captured");
    /// assert_eq!(pool.apply(move || name.len())?, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply<F, R>(&self, function: F) -> Result<R, TaskError>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        self.apply_async(function).get()
    }

    /// Has a function run some time, and gives a handle on its result at once.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let later = pool.apply_async(|| 6 * 7);
    /// assert_eq!(later.get()?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply_async<F, R>(&self, function: F) -> TaskHandle<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let outcomes = Outcomes::one();
        self.crew.begin(Task {
            outcomes: Arc::clone(&outcomes),
            position: 0,
            work: Box::new(move || run(function)),
        });
        TaskHandle::new(outcomes, self.source(), Some(0), unpack)
    }

    /// Runs a function on each item and gives the results in the order of the items.
    ///
    /// # Errors
    /// The first error in the order of the items, after all were run.
    ///
    /// # Panics
    /// If the iterator panics; what it gave before is still run, in vain.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let offset = 10;
    /// assert_eq!(pool.map(move |n: u32| n + offset, 0..3)?, [10, 11, 12]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<F, T, R, I>(&self, function: F, items: I) -> Result<Vec<R>, TaskError>
    where
        F: Fn(T) -> R + Send + Sync + 'static,
        T: Send + 'static,
        R: Send + 'static,
        I: IntoIterator<Item = T>,
    {
        self.map_async(function, items).get()
    }

    /// Runs a function on each item and gives each one's result or error, in their order.
    ///
    /// # Panics
    /// As [`map`](Self::map).
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let quotients = pool.map_each(|n: u32| 6 / n, [0, 2]);
    /// assert!(quotients[0].is_err());
    /// assert!(matches!(quotients[1], Ok(3)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_each<F, T, R, I>(&self, function: F, items: I) -> Vec<Result<R, TaskError>>
    where
        F: Fn(T) -> R + Send + Sync + 'static,
        T: Send + 'static,
        R: Send + 'static,
        I: IntoIterator<Item = T>,
    {
        let handle = self.map_async(function, items);
        match handle.get_each() {
            Ok(results) => results,
            Err(error) => vec![Err(TaskError::Pool(error))],
        }
    }

    /// Has a function run on each item some time, and gives a handle on the results.
    ///
    /// # Panics
    /// As [`map`](Self::map).
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// assert_eq!(pool.map_async(|n: u32| n + 1, 0..3).get()?, [1, 2, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_async<F, T, R, I>(&self, function: F, items: I) -> MapHandle<R>
    where
        F: Fn(T) -> R + Send + Sync + 'static,
        T: Send + 'static,
        R: Send + 'static,
        I: IntoIterator<Item = T>,
    {
        let outcomes = Outcomes::many();
        let function = Arc::new(function);
        for item in items {
            let function = Arc::clone(&function);
            self.crew.begin(Task {
                position: outcomes.add(),
                outcomes: Arc::clone(&outcomes),
                work: Box::new(move || run(move || function(item))),
            });
        }
        outcomes.seal();
        MapHandle::new(outcomes, self.source(), unpack)
    }

    /// Runs a function on each tuple of arguments, which it takes as a whole, and gives the
    /// results in their order: [`map`](Self::map) by its other name.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    ///
    /// # Panics
    /// As [`map`](Self::map).
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// assert_eq!(pool.starmap(|(base, n)| u32::pow(base, n), [(2, 5), (3, 2)])?, [32, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn starmap<F, Args, R, I>(&self, function: F, items: I) -> Result<Vec<R>, TaskError>
    where
        F: Fn(Args) -> R + Send + Sync + 'static,
        Args: Send + 'static,
        R: Send + 'static,
        I: IntoIterator<Item = Args>,
    {
        self.map(function, items)
    }

    /// [`starmap`](Self::starmap), later.
    ///
    /// # Panics
    /// As [`map`](Self::map).
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let sums = pool.starmap_async(|(a, b): (u32, u32)| a + b, [(1, 2), (3, 4)]);
    /// assert_eq!(sums.get()?, [3, 7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn starmap_async<F, Args, R, I>(&self, function: F, items: I) -> MapHandle<R>
    where
        F: Fn(Args) -> R + Send + Sync + 'static,
        Args: Send + 'static,
        R: Send + 'static,
        I: IntoIterator<Item = Args>,
    {
        self.map_async(function, items)
    }

    /// Runs a function on each item, and gives the results one by one in their order.
    ///
    /// Items are taken as results are asked for, four for each thread ahead, and more (512 at
    /// most) if the tasks are quick. Dropping the iterator cancels the rest.
    ///
    /// # Panics
    /// Taking a result panics if the iterator of the items does.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let squares = pool.imap(|n: u64| n * n, 1..).take(3);
    /// assert_eq!(squares.collect::<Result<Vec<_>, _>>()?, [1, 4, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap<F, T, R, I>(&self, function: F, items: I) -> ThreadImap<'_, I::IntoIter, F, R>
    where
        F: Fn(T) -> R + Send + Sync + 'static,
        T: Send + 'static,
        R: Send + 'static,
        I: IntoIterator<Item = T>,
    {
        ThreadImap::new(self, function, items.into_iter(), true)
    }

    /// [`imap`](Self::imap), with the results as they come.
    ///
    /// # Panics
    /// As there.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let mut squares = pool.imap_unordered(|n: u64| n * n, 1..4).collect::<Result<Vec<_>, _>>()?;
    /// squares.sort();
    /// assert_eq!(squares, [1, 4, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap_unordered<F, T, R, I>(
        &self,
        function: F,
        items: I,
    ) -> ThreadImap<'_, I::IntoIter, F, R>
    where
        F: Fn(T) -> R + Send + Sync + 'static,
        T: Send + 'static,
        R: Send + 'static,
        I: IntoIterator<Item = T>,
    {
        ThreadImap::new(self, function, items.into_iter(), false)
    }

    /// Takes no more tasks. The threads end when those that are under way are done.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// pool.close();
    /// assert!(pool.apply(|| 1).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) {
        self.crew.lock().is_closed = true;
        self.crew.work.notify_all();
    }

    /// Takes no more tasks, and cancels those that have not begun. Those that have go on.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// pool.terminate();
    /// assert!(pool.apply(|| 1).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn terminate(&self) {
        let tasks = {
            let mut state = self.crew.lock();
            state.is_closed = true;
            std::mem::take(&mut state.queue)
        };
        self.crew.work.notify_all();
        for task in tasks {
            self.crew
                .end(&task.outcomes, task.position, Err(TaskError::Cancelled));
        }
    }

    /// Waits for the threads of a closed or terminated pool.
    ///
    /// # Errors
    /// `InvalidInput` if the pool is open.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let task = pool.apply_async(|| 5);
    /// pool.close();
    /// pool.join()?;
    /// assert_eq!(task.get()?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join(&self) -> Result<()> {
        self.crew.check_ours()?;
        if !self.crew.lock().is_closed {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "join a pool that is still open: close or terminate it first",
            ));
        }
        let threads = std::mem::take(&mut *self.lock_threads());
        for thread in threads {
            // A task may drop the pool.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        Ok(())
    }

    pub(super) fn source(&self) -> Arc<dyn Source> {
        Arc::<Crew>::clone(&self.crew)
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        if self.crew.is_ours() {
            self.terminate();
            let _ = self.join();
        } else {
            // The threads are the parent's, and one of them may have held the lock.
            let threads = self.threads.get_mut();
            std::mem::forget(std::mem::take(
                threads.unwrap_or_else(PoisonError::into_inner),
            ));
        }
    }
}

pub(super) fn run<R: Send + 'static>(function: impl FnOnce() -> R) -> Outcome {
    match panic::catch(true, function) {
        Ok(result) => Ok(Payload::Value(Box::new(result))),
        Err(failure) => Err(failure.into()),
    }
}

pub(super) fn unpack<R: 'static>(outcome: Outcome) -> Result<R, TaskError> {
    let value: Box<dyn Any + Send> = match outcome? {
        Payload::Value(value) => value,
        // Threads send no bytes.
        Payload::Arrived(_) => return Err(TaskError::Cancelled),
    };
    // The handle has the task's own type.
    value
        .downcast()
        .map(|value| *value)
        .map_err(|_| TaskError::Cancelled)
}

impl State {
    /// Why a closed pool takes no task.
    fn refusal(&self) -> TaskError {
        TaskError::Pool(match &self.why_broken {
            Some(why) => Error::new(
                ErrorKind::Initializer,
                format!("the initializer of a pool's threads {why}"),
            ),
            None => Error::new(ErrorKind::Closed, "the pool is closed"),
        })
    }
}

impl Crew {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_ours(&self) -> bool {
        self.generation == thread::generation()
    }

    /// Refuses what belongs to the process that this one was forked from.
    pub(super) fn check_ours(&self) -> Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Closed,
            "the threads of the pool are those of the parent of this forked process",
        ))
    }

    fn begin(&self, task: Task) {
        if let Err(error) = self.check_ours() {
            // Nobody else has the handle yet, so that nobody waits.
            let error = Err(TaskError::Pool(error));
            let _ = task.outcomes.deliver(task.position, error);
            return;
        }
        let mut state = self.lock();
        if state.is_closed {
            let error = state.refusal();
            drop(state);
            self.end(&task.outcomes, task.position, Err(error));
            return;
        }
        state.queue.push_back(task);
        let is_wanted = state.n_idle > 0;
        drop(state);
        if is_wanted {
            self.work.notify_one();
        }
    }

    /// Begins many, in their order; for who has looked whether the threads are there.
    pub(super) fn begin_all(&self, tasks: &mut Vec<Task>) {
        let mut state = self.lock();
        if state.is_closed {
            drop(state);
            // Each is refused for its own.
            tasks.drain(..).for_each(|task| self.begin(task));
            return;
        }
        let n_wanted = state.n_idle.min(tasks.len());
        state.queue.extend(tasks.drain(..));
        drop(state);
        for _ in 0..n_wanted {
            self.work.notify_one();
        }
    }

    /// Runs a task.
    pub(super) fn run(&self, task: Task) {
        let Task {
            outcomes,
            position,
            work,
        } = task;
        self.end(&outcomes, position, work());
    }

    /// A thread's life.
    pub(super) fn live(&self) {
        WORKS_FOR.set(std::ptr::from_ref(self).addr());
        if let Some(initializer) = &self.initializer {
            if let Err(failure) = panic::catch(true, initializer) {
                return self.break_up(target::said(failure));
            }
        }
        self.work();
        if let Some(exit) = &self.exit {
            // It has come to its end all the same.
            let _ = panic::catch(true, exit);
        }
    }

    /// An initializer has failed: no task runs any more, and all are told why.
    fn break_up(&self, why: String) {
        let tasks: Vec<_> = {
            let mut state = self.lock();
            state.is_closed = true;
            state.why_broken.get_or_insert(why);
            let tasks = std::mem::take(&mut state.queue).into_iter();
            tasks.map(|task| (task, state.refusal())).collect()
        };
        self.work.notify_all();
        for (task, error) in tasks {
            self.end(&task.outcomes, task.position, Err(error));
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.queue.pop_front() {
                drop(state);
                self.run(task);
                state = self.lock();
            } else if state.is_closed {
                return;
            } else {
                state.n_idle += 1;
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.n_idle -= 1;
            }
        }
    }

    pub(super) fn wait_for_news<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        left: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.n_waiting += 1;
        let mut state = match left {
            None => self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(left) => {
                self.done
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        state.n_waiting -= 1;
        state
    }

    /// A task is over. Callbacks are called here, by the thread that did it.
    fn end(&self, outcomes: &Arc<Outcomes>, position: usize, outcome: Outcome) {
        let Aftermath { job, waker, .. } = outcomes.deliver(position, outcome);
        if let Some(job) = job {
            job();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        if outcomes.is_ready() && self.lock().n_waiting > 0 {
            self.done.notify_all();
        }
    }
}

impl Source for Crew {
    fn wait(&self, outcomes: &Outcomes, deadline: Option<Instant>) -> Result<bool> {
        self.check_ours()?;
        // A task that waits for others does them: or else all threads could wait for tasks
        // that have no thread.
        let helps = WORKS_FOR.get() == std::ptr::from_ref(self).addr();
        let mut state = self.lock();
        while !outcomes.is_ready() {
            if let Some(task) = helps.then(|| state.queue.pop_front()).flatten() {
                drop(state);
                self.run(task);
                state = self.lock();
                continue;
            }
            let left = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    None => return Ok(false),
                    left => left,
                },
            };
            state = self.wait_for_news(state, left);
        }
        Ok(true)
    }

    fn look(&self) {}

    fn watch(&self, outcomes: &Arc<Outcomes>, waker: &Waker) -> Result<bool> {
        self.check_ours()?;
        // The threads do the tasks whether or not anybody waits.
        Ok(outcomes.watch(waker).is_none())
    }

    fn unwatch(&self, outcomes: &Outcomes) {
        outcomes.unwatch();
    }

    fn cancel(&self, outcomes: &Arc<Outcomes>, _hint: Option<usize>, _also_running: bool) -> usize {
        let mut cancelled = Vec::new();
        {
            let mut state = self.lock();
            for task in std::mem::take(&mut state.queue) {
                if Arc::ptr_eq(&task.outcomes, outcomes) {
                    cancelled.push(task);
                } else {
                    state.queue.push_back(task);
                }
            }
        }
        let count = cancelled.len();
        for task in cancelled {
            self.end(&task.outcomes, task.position, Err(TaskError::Cancelled));
        }
        count
    }

    fn attach(&self, attach: &mut dyn FnMut() -> (bool, Option<Job>)) {
        if let (_, Some(job)) = attach() {
            job();
            drop(self.lock());
            self.done.notify_all();
        }
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool")
            .field("threads", &self.n_threads)
            .finish_non_exhaustive()
    }
}
