//! The queue with the fewest questions.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::typed::Queue;
use crate::connection::{RecvError, RecvTimeoutError, SendError, TryRecvError};
use crate::error::Result;

/// A [`Queue`] without a bound, of which one asks only whether it is empty.
///
/// It behaves as a [`Queue`] does, also when processes are killed.
///
/// # Source
/// CPython's `multiprocessing.SimpleQueue`, whose `put` waits when a pipe is full; this one
/// takes any number of items.
///
/// # Examples
/// ```
/// use bunshin::{Process, SimpleQueue};
///
/// fn greet(queue: SimpleQueue<String>) {
///     queue.send("hello".into()).expect("it is open");
/// }
///
/// let queue = SimpleQueue::new()?;
/// Process::start(greet, (queue.clone(),))?.join()?;
/// assert_eq!(queue.recv()?, "hello");
/// assert!(queue.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "", transparent)]
pub struct SimpleQueue<T>(Queue<T>);

impl<T> SimpleQueue<T> {
    /// Makes an empty queue.
    ///
    /// # Errors
    /// As [`Queue::new`].
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::SimpleQueue::new()?;
    /// queue.send(1)?;
    /// assert_eq!(queue.recv()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new() -> Result<Self> {
        Queue::new().map(Self)
    }

    /// Whether there is no item in the queue.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::SimpleQueue::new()?;
    /// assert!(queue.is_empty());
    /// queue.send(1)?;
    /// assert!(!queue.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "empty")]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// See [`Queue::close`].
    ///
    /// # Errors
    /// As there.
    pub fn close(&self) -> Result<()> {
        self.0.close()
    }
}

impl<T: Serialize> SimpleQueue<T> {
    /// See [`Queue::send`].
    ///
    /// # Errors
    /// As there.
    #[doc(alias = "put")]
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        self.0.send(item)
    }
}

impl<T: DeserializeOwned> SimpleQueue<T> {
    /// See [`Queue::recv`].
    ///
    /// # Errors
    /// As there.
    #[doc(alias = "get")]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.0.recv()
    }

    /// See [`Queue::try_recv`].
    ///
    /// # Errors
    /// As there.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.0.try_recv()
    }

    /// See [`Queue::recv_timeout`].
    ///
    /// # Errors
    /// As there.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.0.recv_timeout(timeout)
    }
}

impl<T> Clone for SimpleQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
