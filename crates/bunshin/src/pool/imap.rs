//! Mapping lazily: results one by one, while the items are still being taken.

use std::collections::VecDeque;
use std::fmt;
use std::iter::{Enumerate, Fuse, Peekable};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::drive::LowWater;
use super::map::{Ledger, Run, read};
use crate::error::{Error, ErrorKind, Result};
use crate::process::TaskError;
use crate::shm::table::SLOTS;

/// Items that an imap takes ahead of its consumer at most, unless it is told otherwise.
const WINDOW_MAX: usize = SLOTS / 2;

/// The results of [`Pool::imap`](crate::Pool::imap), in the order of the items, or of
/// [`Pool::imap_unordered`](crate::Pool::imap_unordered), as they come.
///
/// Items are taken as results are: so many as the window allows are in the hands of the pool or
/// wait to be asked for. Dropping it cancels the rest.
///
/// # Examples
/// ```
/// let pool = bunshin::Pool::new(2)?;
/// let mut results = pool.imap(|n: u32| n * 10, 0..);
/// assert_eq!(results.by_ref().take(2).collect::<Result<Vec<_>, _>>()?, [0, 10]);
/// assert_eq!(results.next().transpose()?, Some(20));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Imap<I: Iterator, R> {
    /// Nothing if the pool takes no tasks.
    pub(super) run: Option<Run>,
    items: Peekable<Enumerate<Fuse<I>>>,
    is_ordered: bool,
    window: usize,
    window_max: usize,
    /// Results given since the window was last filled.
    since: usize,
    pub(super) out: usize,
    /// From the position of the next result on, if they are ordered.
    waiting: VecDeque<Option<Result<R, TaskError>>>,
    front: usize,
    is_over: bool,
}

/// What going on without waiting has come to.
pub(super) enum Step<R> {
    /// The next result, or nothing after the last.
    Next(Option<Result<R, TaskError>>),
    /// Nothing yet, and there is more to do: the items come slowly.
    More,
    /// Nothing, until the pool has done something.
    Wait,
}

/// What happens to items while a window is filled.
struct Window<'a, R> {
    is_ordered: bool,
    out: &'a mut usize,
    waiting: &'a mut VecDeque<Option<Result<R, TaskError>>>,
    front: usize,
}

impl<R> Window<'_, R> {
    fn set(&mut self, position: usize, result: Result<R, TaskError>) {
        *self.out -= 1;
        if !self.is_ordered {
            self.waiting.push_back(Some(result));
        } else if let Some(slot @ None) = self.waiting.get_mut(position.wrapping_sub(self.front)) {
            *slot = Some(result);
        }
    }
}

impl<R> Ledger for Window<'_, R> {
    fn begun(&mut self) {
        *self.out += 1;
        if self.is_ordered {
            self.waiting.push_back(None);
        }
    }

    fn failed(&mut self, position: usize, error: TaskError) {
        self.set(position, Err(error));
    }
}

impl<I: Iterator, R> Imap<I, R>
where
    I::Item: Serialize,
    R: DeserializeOwned,
{
    pub(super) fn new(
        run: Result<Run, TaskError>,
        items: I,
        is_ordered: bool,
        window: Option<usize>,
    ) -> Self {
        let mut waiting = VecDeque::new();
        let mut first = WINDOW_MAX;
        let run = match run {
            Ok(run) => {
                first = (4 * run.dispatcher.n_workers).max(16);
                // Each worker has a chunk, and finds another.
                let chunks = 2 * run.chunk.saturating_mul(run.dispatcher.n_workers);
                // Who names a window wants that many ahead.
                first = first.max(chunks).max(window.unwrap_or(0)).min(WINDOW_MAX);
                Some(run)
            }
            Err(error) => {
                waiting.push_back(Some(Err(error)));
                None
            }
        };
        let window_max = window.unwrap_or(WINDOW_MAX).max(1);
        Self {
            is_over: run.is_none(),
            run,
            items: items.fuse().enumerate().peekable(),
            is_ordered,
            window: first.min(window_max),
            window_max,
            since: 0,
            out: 0,
            waiting,
            front: 0,
        }
    }

    /// The next result, if it is there by now.
    ///
    /// # Errors
    /// `TimedOut` if it is not.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(2)?;
    /// let sleep = |ms| std::thread::sleep(std::time::Duration::from_millis(ms));
    /// let mut results = pool.imap(sleep, [300]);
    /// assert!(results.try_next().unwrap_err().is_timeout());
    /// results.next().transpose()?;
    /// assert!(results.try_next()?.is_none());
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
    /// let pool = bunshin::Pool::new(2)?;
    /// let mut results = pool.imap(|n: u32| n + 1, [1]);
    /// assert_eq!(results.next_timeout(Duration::from_secs(60))?.transpose()?, Some(2));
    /// assert!(results.next_timeout(Duration::ZERO)?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Result<R, TaskError>>> {
        self.advance(Instant::now().checked_add(timeout))
    }

    fn pop(&mut self) -> Option<Result<R, TaskError>> {
        let result = self.waiting.front_mut()?.take()?;
        self.waiting.pop_front();
        self.front += 1;
        self.since += 1;
        Some(result)
    }

    /// Takes items while the window has room. True if it has stopped early, as the items
    /// come slowly, and is to go on unless there are results.
    fn fill(&mut self) -> bool {
        let Some(run) = &self.run else { return false };
        self.since = 0;
        if self.is_over {
            return false;
        }
        let is_running = run.dispatcher.is_running();
        let mut window = Window {
            is_ordered: self.is_ordered,
            out: &mut self.out,
            waiting: &mut self.waiting,
            front: self.front,
        };
        let held = match window.is_ordered {
            true => window.waiting.len(),
            false => window.waiting.len() + *window.out,
        };
        let most = self.window.saturating_sub(held);
        if !is_running {
            // One more item, whose error says why; those of the others would be the same.
            self.is_over = true;
            run.fill(&mut self.items, 1, true, &mut window);
            return false;
        }
        run.fill(&mut self.items, most, true, &mut window)
    }

    /// Takes in what the pool has done; waits if `until` says so.
    fn take(&mut self, deadline: Option<Option<Instant>>) -> Result<(), TaskError> {
        let Some(run) = &self.run else { return Ok(()) };
        let mut outcomes = Vec::new();
        match deadline {
            None => run.dispatcher.take(run.batch, &mut outcomes),
            Some(deadline) => run
                .dispatcher
                .wait(run.batch, LowWater::Half, deadline, &mut outcomes)
                .map_err(TaskError::Pool)?,
        }
        let mut window = Window {
            is_ordered: self.is_ordered,
            out: &mut self.out,
            waiting: &mut self.waiting,
            front: self.front,
        };
        for (position, outcome) in outcomes {
            window.set(position, outcome.and_then(read));
        }
        Ok(())
    }

    /// Goes on without waiting.
    pub(super) fn step(&mut self) -> Step<R> {
        // While its consumer takes what is there, the pool is given more in good time.
        if self.since > self.window / 4 {
            if let Err(error) = self.take(None) {
                return Step::Next(self.break_off(error));
            }
            self.fill();
        }
        if let Some(result) = self.pop() {
            return Step::Next(Some(result));
        }
        let goes_on = self.fill();
        if let Err(error) = self.take(None) {
            return Step::Next(self.break_off(error));
        }
        if let Some(result) = self.pop() {
            Step::Next(Some(result))
        } else if goes_on {
            Step::More
        } else if self.out == 0 && (self.is_over || self.items.peek().is_none()) {
            Step::Next(None)
        } else {
            Step::Wait
        }
    }

    fn advance(&mut self, deadline: Option<Instant>) -> Result<Option<Result<R, TaskError>>> {
        loop {
            match self.step() {
                Step::Next(next) => return Ok(next),
                Step::More if deadline.is_none() => continue,
                Step::More | Step::Wait => {}
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::new(ErrorKind::TimedOut, "wait for the next result"));
            }
            let Some(run) = &self.run else {
                return Ok(None);
            };
            if self.out == 0 {
                // Others have all the room.
                if let Err(error) = run.dispatcher.wait_for_room() {
                    return Ok(self.break_off(TaskError::Pool(error)));
                }
                continue;
            }
            let before = self.out;
            if let Err(error) = self.take(Some(deadline)) {
                return Ok(self.break_off(error));
            }
            self.widen(before);
        }
    }

    /// Opens the window if so many of `before` results have come in one wait: the tasks are
    /// quick, and waiting is what takes time.
    pub(super) fn widen(&mut self, before: usize) {
        if before.saturating_sub(self.out) > self.window / 4 {
            // By so much, as each wait on the way takes a sleep.
            self.window = (self.window * 4).min(self.window_max);
        }
    }

    /// Gives an error instead of all that is left.
    pub(super) fn break_off(&mut self, error: TaskError) -> Option<Result<R, TaskError>> {
        self.run = None;
        self.is_over = true;
        self.out = 0;
        self.waiting.clear();
        Some(Err(error))
    }
}

impl<I: Iterator, R> Iterator for Imap<I, R>
where
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance(None) {
            Ok(next) => next,
            // Without a deadline there is no end of it.
            Err(error) => Some(Err(TaskError::Pool(error))),
        }
    }
}

impl<I: Iterator, R> fmt::Debug for Imap<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap")
            .field("is_ordered", &self.is_ordered)
            .field("window", &self.window)
            .field("out", &self.out)
            .finish_non_exhaustive()
    }
}
