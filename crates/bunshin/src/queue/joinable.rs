//! The queue that one can wait for until everything is done.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::typed::{Queue, bound};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Patience;
use crate::transport::channel::Failure;

/// A [`Queue`] of tasks: who takes an item says when it is done, and [`join`](Self::join) waits
/// until all are.
///
/// It has all that a [`Queue`] has. Each process tells of the items that it took itself.
///
/// # Shape and units
/// Up to 200 processes have unfinished items at a time; one more can take none.
///
/// # Source
/// CPython's `multiprocessing.JoinableQueue`. There, `join` waits for ever if a process ends
/// that has not finished its items; here it says so.
///
/// # Examples
/// ```
/// use bunshin::{JoinableQueue, Process};
///
/// fn work(tasks: JoinableQueue<u32>) -> u32 {
///     let mut sum = 0;
///     for task in tasks.iter() {
///         sum += task.expect("a number");
///         tasks.task_done().expect("it was taken");
///     }
///     sum
/// }
///
/// let tasks = JoinableQueue::new()?;
/// let worker = Process::start(work, (tasks.clone(),))?;
/// for task in 1..=4 {
///     tasks.send(task)?;
/// }
/// tasks.join()?;
/// assert!(tasks.is_empty());
/// tasks.close()?;
/// assert_eq!(worker.result()?, 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "", transparent)]
pub struct JoinableQueue<T>(Queue<T>);

/// Why joining a queue did not end well.
///
/// # Examples
/// ```
/// use bunshin::{JoinError, JoinableQueue};
///
/// let tasks = JoinableQueue::new()?;
/// tasks.send(1)?;
/// assert!(matches!(tasks.try_join(), Err(JoinError::Unfinished)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum JoinError {
    /// Nothing is unfinished any more; so many items were taken by processes that ended before
    /// they had finished them. Each handle tells of each such item once.
    Lost(u64),
    /// Something is unfinished, and the time to wait is over.
    Unfinished,
    /// Something else.
    Failed(Error),
}

impl<T> JoinableQueue<T> {
    /// Makes a queue that holds as many items as there is memory for.
    ///
    /// # Errors
    /// As [`Queue::new`].
    ///
    /// # Examples
    /// ```
    /// let tasks = bunshin::JoinableQueue::new()?;
    /// tasks.send(1)?;
    /// assert_eq!(tasks.unfinished(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new() -> Result<Self> {
        Queue::create(0, true).map(Self)
    }

    /// Makes a queue that holds `capacity` items; who sends one more waits.
    ///
    /// # Errors
    /// As [`Queue::bounded`].
    ///
    /// # Examples
    /// ```
    /// let tasks = bunshin::JoinableQueue::bounded(1)?;
    /// tasks.send(1)?;
    /// assert!(tasks.try_send(2).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "maxsize")]
    pub fn bounded(capacity: usize) -> Result<Self> {
        Queue::create(bound(capacity)?, true).map(Self)
    }

    /// Says that an item which this process took is done.
    ///
    /// # Errors
    /// `InvalidInput` if this process has finished all that it took.
    ///
    /// # Examples
    /// ```
    /// let tasks = bunshin::JoinableQueue::new()?;
    /// tasks.send(1)?;
    /// tasks.recv()?;
    /// tasks.task_done()?;
    /// assert!(tasks.task_done().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn task_done(&self) -> Result<()> {
        self.0.inner.task_done()
    }

    /// As [`task_done`](Self::task_done), for a program that does not say who has taken what.
    pub(crate) fn task_done_for_anyone(&self) -> Result<()> {
        self.0.inner.task_done_for_anyone()
    }

    /// How many items were sent and are not done: those in the queue, and those being worked on.
    ///
    /// # Examples
    /// ```
    /// let tasks = bunshin::JoinableQueue::new()?;
    /// tasks.send(1)?;
    /// tasks.recv()?;
    /// assert_eq!((tasks.len(), tasks.unfinished()), (0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn unfinished(&self) -> usize {
        usize::try_from(self.0.inner.unfinished()).unwrap_or(usize::MAX)
    }

    /// Waits until every item that was sent is done.
    ///
    /// A process that ends with unfinished items is noticed within a moment: they are lost, and
    /// no longer waited for.
    ///
    /// # Errors
    /// [`JoinError::Lost`] if there were such.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{JoinError, JoinableQueue, Process};
    ///
    /// let tasks = JoinableQueue::new()?;
    /// tasks.send(1)?;
    /// let careless = |tasks: JoinableQueue<i32>| drop(tasks.recv());
    /// Process::start(careless, (tasks.clone(),))?.join()?;
    /// assert!(matches!(tasks.join(), Err(JoinError::Lost(1))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join(&self) -> Result<(), JoinError> {
        self.joined(Patience::Forever)
    }

    /// Looks whether every item that was sent is done.
    ///
    /// # Errors
    /// [`JoinError::Unfinished`] if not; otherwise as [`join`](Self::join).
    ///
    /// # Examples
    /// ```
    /// let tasks = bunshin::JoinableQueue::new()?;
    /// tasks.try_join()?;
    /// tasks.send(1)?;
    /// assert!(tasks.try_join().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_join(&self) -> Result<(), JoinError> {
        self.joined(Patience::Never)
    }

    /// Waits until every item that was sent is done, for so long at most.
    ///
    /// # Errors
    /// [`JoinError::Unfinished`] if they were not in that time; otherwise as [`join`](Self::join).
    ///
    /// # Examples
    /// ```
    /// use bunshin::{JoinError, JoinableQueue};
    /// use std::time::Duration;
    ///
    /// let tasks = JoinableQueue::new()?;
    /// tasks.send(1)?;
    /// let waited = tasks.join_timeout(Duration::from_millis(1));
    /// assert!(matches!(waited, Err(JoinError::Unfinished)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), JoinError> {
        self.joined(Patience::within(timeout))
    }

    fn joined(&self, patience: Patience) -> Result<(), JoinError> {
        match self.0.inner.join(patience) {
            Ok(0) => Ok(()),
            Ok(lost) => Err(JoinError::Lost(lost)),
            Err(Failure::Other(error)) => Err(JoinError::Failed(error)),
            Err(Failure::NotYet | Failure::Disconnected) => Err(JoinError::Unfinished),
        }
    }
}

impl<T> Deref for JoinableQueue<T> {
    type Target = Queue<T>;

    fn deref(&self) -> &Queue<T> {
        &self.0
    }
}

impl<T> Clone for JoinableQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(items) => write!(
                f,
                "{items} items of the queue were lost with processes that ended before they had \
                 finished them"
            ),
            Self::Unfinished => f.write_str("items of the queue are not finished"),
            Self::Failed(error) => write!(f, "cannot join the queue: {error}"),
        }
    }
}

impl std::error::Error for JoinError {}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Self {
        let kind = match error {
            JoinError::Lost(_) => ErrorKind::Abandoned,
            JoinError::Unfinished => ErrorKind::TimedOut,
            JoinError::Failed(error) => return error,
        };
        Self::new(kind, error.to_string())
    }
}
