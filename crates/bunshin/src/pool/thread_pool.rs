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
use crate::error::{Error, ErrorKind, Result};
use crate::process::{TaskError, panic};
use crate::sys::thread;

/// Items that an imap takes ahead of its consumer for each thread, at first.
const AHEAD: usize = 4;
/// Items that it takes ahead at most, where tasks are quick.
const AHEAD_MAX: usize = 512;
/// Items are taken for so long at most before tasks are begun, so that none waits for slow ones.
const SOON: Duration = Duration::from_micros(50);

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
    crew: Arc<Crew>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    n_threads: usize,
}

thread_local! {
    /// The address of the crew that this thread is one of, or 0.
    static WORKS_FOR: Cell<usize> = const { Cell::new(0) };
}

/// A task: what it gives goes to its outcomes.
struct Task {
    outcomes: Arc<Outcomes>,
    position: usize,
    work: Box<dyn FnOnce() -> Outcome + Send>,
}

struct Crew {
    state: Mutex<State>,
    /// A task has come, or the pool ends.
    work: Condvar,
    /// Something was done.
    done: Condvar,
    generation: u32,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Task>,
    is_closed: bool,
    /// Threads that wait for a task, and callers that wait for an outcome.
    n_idle: usize,
    n_waiting: usize,
}

impl ThreadPool {
    /// Makes a pool of so many threads.
    ///
    /// # Errors
    /// `InvalidInput` for 0 threads, `Os` if the system gives no further thread.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a pool of 0 threads: there is at least 1",
            ));
        }
        // So that a panic is told with its place.
        panic::install_hook();
        let pool = Self {
            crew: Arc::new(Crew {
                state: Mutex::default(),
                work: Condvar::new(),
                done: Condvar::new(),
                generation: thread::generation(),
            }),
            threads: Mutex::default(),
            n_threads: threads,
        };
        for number in 1..=threads {
            let crew = Arc::clone(&pool.crew);
            // Those already started end when the pool is dropped.
            let thread = std::thread::Builder::new()
                .name(format!("bunshin-task-{number}"))
                .spawn(move || crew.work())
                .map_err(|error| Error::os("start a thread of a pool", error))?;
            pool.lock_threads().push(thread);
        }
        Ok(pool)
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many threads the pool has.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.n_threads
    }

    /// Runs a function once and gives its result.
    ///
    /// # Errors
    /// [`TaskError::Panicked`], or `Cancelled` or `Pool` if it was not run.
    pub fn apply<F, R>(&self, function: F) -> Result<R, TaskError>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        self.apply_async(function).get()
    }

    /// Has a function run some time, and gives a handle on its result at once.
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
    pub fn imap<F, T, R, I>(&self, function: F, items: I) -> ThreadImap<'_, I::IntoIter, F, R>
    where
        F: Fn(T) -> R + Send + Sync + 'static,
        T: Send + 'static,
        R: Send + 'static,
        I: IntoIterator<Item = T>,
    {
        ThreadImap {
            pool: self,
            function: Arc::new(function),
            items: Some(items.into_iter()),
            out: VecDeque::new(),
            is_ordered: true,
            window: AHEAD.saturating_mul(self.n_threads),
        }
    }

    /// [`imap`](Self::imap), with the results as they come.
    ///
    /// # Panics
    /// As there.
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
        let mut results = self.imap(function, items);
        results.is_ordered = false;
        results
    }

    /// Takes no more tasks. The threads end when those that are under way are done.
    pub fn close(&self) {
        self.crew.lock().is_closed = true;
        self.crew.work.notify_all();
    }

    /// Takes no more tasks, and cancels those that have not begun. Those that have go on.
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

    fn source(&self) -> Arc<dyn Source> {
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

fn run<R: Send + 'static>(function: impl FnOnce() -> R) -> Outcome {
    match panic::catch(true, function) {
        Ok(result) => Ok(Payload::Value(Box::new(result))),
        Err(failure) => Err(failure.into()),
    }
}

fn unpack<R: 'static>(outcome: Outcome) -> Result<R, TaskError> {
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

impl Crew {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ours(&self) -> bool {
        self.generation == thread::generation()
    }

    /// Refuses what belongs to the process that this one was forked from.
    fn check_ours(&self) -> Result<()> {
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
            drop(state);
            let error = Error::new(ErrorKind::Closed, "the pool is closed");
            self.end(&task.outcomes, task.position, Err(TaskError::Pool(error)));
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
    fn begin_all(&self, tasks: &mut Vec<Task>) {
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
    fn run(&self, task: Task) {
        let Task {
            outcomes,
            position,
            work,
        } = task;
        self.end(&outcomes, position, work());
    }

    /// A thread's life.
    fn work(&self) {
        WORKS_FOR.set(std::ptr::from_ref(self).addr());
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

    fn wait_for_news<'a>(
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

/// Tasks that are begun together, also if the iterator of their items panics.
struct Lot<'a> {
    crew: &'a Crew,
    tasks: Vec<Task>,
}

impl Lot<'_> {
    fn begin(&mut self) {
        if !self.tasks.is_empty() {
            self.crew.begin_all(&mut self.tasks);
        }
    }
}

impl Drop for Lot<'_> {
    fn drop(&mut self) {
        self.begin();
    }
}

/// The results of [`ThreadPool::imap`] and [`ThreadPool::imap_unordered`].
pub struct ThreadImap<'a, I, F, R> {
    pool: &'a ThreadPool,
    function: Arc<F>,
    /// Until they are all taken.
    items: Option<I>,
    out: VecDeque<TaskHandle<R>>,
    is_ordered: bool,
    /// Items that are taken ahead now.
    window: usize,
}

impl<I, F, R> ThreadImap<'_, I, F, R>
where
    I: Iterator<Item: Send + 'static>,
    F: Fn(I::Item) -> R + Send + Sync + 'static,
    R: Send + 'static,
{
    /// Takes items while the window has room, a part of it at a time.
    fn fill(&mut self) {
        // With results at hand, items are taken in lots: the threads are woken once for each.
        let is_due = self.out.len() <= self.window - self.window / 4;
        let crew = &self.pool.crew;
        if !is_due || self.items.is_none() || !crew.is_ours() {
            return;
        }
        let mut lot = Lot {
            crew,
            tasks: Vec::new(),
        };
        let mut since = Instant::now();
        // Of a closed pool one refusal is enough: those of further items would be the same.
        let is_closed = crew.lock().is_closed;
        let most = if is_closed {
            self.out.len() + 1
        } else {
            self.window
        };
        while self.out.len() < most {
            let Some(item) = self.items.as_mut().and_then(Iterator::next) else {
                self.items = None;
                break;
            };
            let outcomes = Outcomes::one();
            let function = Arc::clone(&self.function);
            lot.tasks.push(Task {
                outcomes: Arc::clone(&outcomes),
                position: 0,
                work: Box::new(move || run(move || function(item))),
            });
            let handle = TaskHandle::new(outcomes, self.pool.source(), Some(0), unpack);
            self.out.push_back(handle);
            if since.elapsed() > SOON {
                lot.begin();
                if self.ready().is_some() {
                    // The items come slowly, and there is something to give meanwhile.
                    break;
                }
                since = Instant::now();
            }
        }
        lot.begin();
        if is_closed {
            self.items = None;
        }
    }

    /// The next result, if it is there by now.
    ///
    /// # Errors
    /// `TimedOut` if it is not.
    pub fn try_next(&mut self) -> Result<Option<Result<R, TaskError>>> {
        self.advance(Some(Instant::now()))
    }

    /// Waits for the next result, for so long at most. `None` after the last.
    ///
    /// # Errors
    /// `TimedOut` if it has not come by then; nothing is lost, and it may be asked for again.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Result<R, TaskError>>> {
        self.advance(Instant::now().checked_add(timeout))
    }

    /// Where there is a result that may be given now.
    fn ready(&self) -> Option<usize> {
        let most = if self.is_ordered { 1 } else { self.out.len() };
        self.out.iter().take(most).position(TaskHandle::is_ready)
    }

    fn advance(&mut self, deadline: Option<Instant>) -> Result<Option<Result<R, TaskError>>> {
        self.fill();
        let crew = &self.pool.crew;
        if self.out.is_empty() && (self.items.is_none() || crew.is_ours()) {
            return Ok(None);
        }
        crew.check_ours()?;
        if let Some(at) = self.ready() {
            return Ok(self.out.remove(at).map(TaskHandle::get));
        }
        let helps = WORKS_FOR.get() == Arc::as_ptr(crew).addr();
        let mut state = crew.lock();
        loop {
            if let Some(at) = self.ready() {
                let n_queued = state.queue.len();
                drop(state);
                if n_queued < self.window / 4 {
                    // So much was done in one wait: the tasks are quick, and waiting is what
                    // takes time.
                    self.window = (self.window * 2).clamp(1, AHEAD_MAX.max(self.window));
                }
                return Ok(self.out.remove(at).map(TaskHandle::get));
            }
            if let Some(task) = helps.then(|| state.queue.pop_front()).flatten() {
                drop(state);
                crew.run(task);
                state = crew.lock();
                continue;
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Error::new(ErrorKind::TimedOut, "wait for the next result"));
            }
            state = crew.wait_for_news(state, left);
        }
    }
}

impl<I, F, R> Iterator for ThreadImap<'_, I, F, R>
where
    I: Iterator<Item: Send + 'static>,
    F: Fn(I::Item) -> R + Send + Sync + 'static,
    R: Send + 'static,
{
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance(None) {
            Ok(next) => next,
            // Nothing will come any more.
            Err(error) => {
                self.out.clear();
                self.items = None;
                Some(Err(TaskError::Pool(error)))
            }
        }
    }
}

impl<I, F, R> Drop for ThreadImap<'_, I, F, R> {
    fn drop(&mut self) {
        // From the last on: none is begun meanwhile that would be cancelled later.
        for handle in self.out.iter().rev() {
            handle.cancel();
        }
    }
}

impl<I, F, R> fmt::Debug for ThreadImap<'_, I, F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadImap")
            .field("is_ordered", &self.is_ordered)
            .field("out", &self.out.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool")
            .field("threads", &self.n_threads)
            .finish_non_exhaustive()
    }
}
