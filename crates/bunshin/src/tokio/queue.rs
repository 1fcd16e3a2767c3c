//! Queues.

use std::fmt;
use std::sync::Arc;

use ::tokio::io::Interest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::room::Waiting;
use super::watched::{Watched, take_turns};
use crate::connection::{RecvError, SendError, TryRecvError, TrySendError};
use crate::error::Result;
use crate::queue as plain;

/// A [`Queue`](crate::Queue) whose waits are `async`.
///
/// Any number of tasks, threads and processes use a queue at a time, some of them like this.
/// A clone is another handle to the same queue.
///
/// Who sends to a full queue waits by a thread of the runtime's for blocking work (its
/// `spawn_blocking`): one for each handle and its clones, while somebody waits. It looks a few
/// times a second whether anybody still does, and a runtime that is dropped waits for that.
///
/// # Examples
/// ```
/// use bunshin::tokio::Queue;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// # runtime.block_on(async {
/// let queue = bunshin::Queue::bounded(1)?;
/// let there = queue.clone();
/// let child = std::thread::spawn(move || there.iter().sum::<bunshin::Result<u32>>());
/// let here = Queue::new(queue)?;
/// for number in 0..5 {
///     here.send(number).await?;
/// }
/// here.get_ref().close()?;
/// assert_eq!(child.join().expect("it does not panic")?, 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Queue<T> {
    inner: plain::Queue<T>,
    watched: Arc<Watched>,
    waiting: Arc<Waiting>,
}

impl<T> Queue<T> {
    /// Has the current runtime watch a queue.
    ///
    /// # Errors
    /// As [`Queue::fileno`](crate::Queue::fileno), and `Os` where the process has too many
    /// files open.
    ///
    /// # Panics
    /// Outside of a runtime with `enable_io`.
    pub fn new(queue: plain::Queue<T>) -> Result<Self> {
        let watched = Watched::new(queue.fileno()?, Interest::READABLE)?;
        Ok(Self {
            inner: queue,
            watched: Arc::new(watched),
            waiting: Arc::default(),
        })
    }

    /// The queue itself: to look at it, to close it, to send it to another process.
    #[must_use]
    pub fn get_ref(&self) -> &plain::Queue<T> {
        &self.inner
    }

    /// Gives the queue back.
    #[must_use]
    pub fn into_inner(self) -> plain::Queue<T> {
        self.inner
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the next item, waiting until there is one.
    ///
    /// Cancel safe: if the future is dropped before it has given the item, the item is still in
    /// the queue.
    ///
    /// # Errors
    /// As [`Queue::recv`](crate::Queue::recv).
    #[doc(alias = "get")]
    pub async fn recv(&self) -> Result<T, RecvError> {
        take_turns().await;
        let mut looks = 0;
        loop {
            match self.inner.try_recv() {
                Ok(item) => return Ok(item),
                Err(TryRecvError::Disconnected) => return Err(RecvError::Disconnected),
                Err(TryRecvError::Failed(error)) => return Err(RecvError::Failed(error)),
                Err(TryRecvError::Empty) => {}
            }
            let waited = self.watched.next_look(&mut looks).await;
            waited.map_err(RecvError::Failed)?;
        }
    }
}

impl<T: Serialize> Queue<T> {
    /// Sends an item, waiting while the queue is full.
    ///
    /// Cancel safe in so far as the item is sent wholly or not at all; if the future is dropped
    /// before it is done, it was not sent, and the item is dropped.
    ///
    /// # Errors
    /// As [`Queue::send`](crate::Queue::send).
    #[doc(alias = "put")]
    pub async fn send(&self, item: T) -> Result<(), SendError<T>> {
        take_turns().await;
        let mut item = item;
        loop {
            item = match self.inner.try_send(item) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(item)) => {
                    return Err(SendError::Disconnected(item));
                }
                Err(TrySendError::Failed(item, error)) => {
                    return Err(SendError::Failed(item, error));
                }
                Err(TrySendError::Full(item)) => item,
            };
            if let Err(error) = self.waiting.for_room(&self.inner.inner).await {
                return Err(SendError::Failed(item, error));
            }
        }
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            watched: Arc::clone(&self.watched),
            waiting: Arc::clone(&self.waiting),
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
