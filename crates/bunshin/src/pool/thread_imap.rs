//! The lazy results of a pool of threads.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handle::TaskHandle;
use super::outcomes::Outcomes;
use super::thread_pool::{Crew, Task, ThreadPool, WORKS_FOR, run, unpack};
use crate::error::{Error, ErrorKind, Result};
use crate::process::TaskError;

/// Items that an imap takes ahead of its consumer for each thread, at first.
const AHEAD: usize = 4;
/// Items that it takes ahead at most, where tasks are quick.
const AHEAD_MAX: usize = 512;
/// Items are taken for so long at most before tasks are begun, so that none waits for slow ones.
const SOON: Duration = Duration::from_micros(50);

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

/// The results of [`ThreadPool::imap`](crate::ThreadPool::imap) and [`ThreadPool::imap_unordered`](crate::ThreadPool::imap_unordered).
///
/// # Examples
/// ```
/// let pool = bunshin::ThreadPool::new(2)?;
/// let mut results = pool.imap(|n: u32| n + 1, 0..2);
/// assert_eq!(results.next().transpose()?, Some(1));
/// assert_eq!(results.next().transpose()?, Some(2));
/// assert!(results.next().is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

impl<'a, I, F, R> ThreadImap<'a, I, F, R>
where
    I: Iterator<Item: Send + 'static>,
    F: Fn(I::Item) -> R + Send + Sync + 'static,
    R: Send + 'static,
{
    pub(super) fn new(pool: &'a ThreadPool, function: F, items: I, is_ordered: bool) -> Self {
        Self {
            pool,
            function: Arc::new(function),
            items: Some(items),
            out: VecDeque::new(),
            is_ordered,
            window: AHEAD.saturating_mul(pool.n_threads),
        }
    }

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
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let sleep = |ms| std::thread::sleep(std::time::Duration::from_millis(ms));
    /// let mut results = pool.imap(sleep, [300]);
    /// assert!(results.try_next().unwrap_err().is_timeout());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_next(&mut self) -> Result<Option<Result<R, TaskError>>> {
        self.advance(Some(Instant::now()))
    }

    /// Waits for the next result, for so long at most. `None` after the last.
    ///
    /// # Errors
    /// `TimedOut` if it has not come by then; nothing is lost, and it may be asked for again.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let pool = bunshin::ThreadPool::new(2)?;
    /// let mut results = pool.imap(|n: u32| n + 1, [1]);
    /// assert_eq!(results.next_timeout(Duration::from_secs(60))?.transpose()?, Some(2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
