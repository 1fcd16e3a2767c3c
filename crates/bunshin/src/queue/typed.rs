//! The queue.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::untyped::{Form, Untyped};
use crate::codec::attachments::Outgoing;
use crate::codec::serde::tag;
use crate::connection::{
    RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError, Waitable, Watch,
};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Patience;
use crate::transport::channel::Failure;

/// A queue that any number of processes send items to, and any number take items from.
///
/// Each item goes to one taker, and items of one sender come in the order in which it sent
/// them. The queue lies in shared memory; a clone is another handle to the same queue, and so
/// is what arrives where a queue was sent inside a message or as an argument. It lives as long
/// as any handle does.
///
/// Items are sent by the caller itself: one that cannot be encoded fails in
/// [`send`](Self::send) and comes back, and what `send` has returned from is there for everybody.
/// [`len`](Self::len) and [`is_empty`](Self::is_empty) are exact.
///
/// A process that is killed leaves the queue usable, wherever in a call it was. If it was
/// sending, its item never was, or it is there; if it was taking one, the item is still there,
/// or it went with the process. A process that is stopped (`SIGSTOP`) inside a call may hold up
/// the others until it goes on; `try_` and timed calls then end as if the queue were empty or full.
///
/// # Shape and units
/// An item has any size. It can hold up to 200 handles (of connections, locks, shared values
/// and other queues; a [`Buffer`](crate::Buffer) from 1 MiB on has one), and 128 items with
/// handles are in a queue at a time: one that has so many is full.
///
/// # Platform
/// Where a process is killed asleep, the next one is woken by the kernel, from 6.2 on and in
/// the maintained ones before it; elsewhere the others notice within a second.
///
/// # Source
/// CPython's `multiprocessing.Queue`, without its feeder thread: there, an item that cannot be
/// pickled is lost with a message on standard error, `qsize` is approximate, and a process that
/// is killed while it puts or gets an item leaves a queue that nobody can use any more.
///
/// # Examples
/// ```
/// use bunshin::{Process, Queue};
///
/// fn square(numbers: Queue<u64>, squares: Queue<u64>) {
///     for number in &numbers {
///         squares.send(number.expect("a number").pow(2)).expect("it is open");
///     }
/// }
///
/// let (numbers, squares) = (Queue::new()?, Queue::new()?);
/// let workers = [(); 2].map(|()| Process::start(square, (numbers.clone(), squares.clone())));
/// for number in 1..=10 {
///     numbers.send(number)?;
/// }
/// numbers.close()?;
/// for worker in workers {
///     worker?.result()?;
/// }
/// assert_eq!(squares.len(), 10);
/// squares.close()?;
/// assert_eq!(squares.iter().sum::<bunshin::Result<u64>>()?, 385);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Queue<T> {
    pub(crate) inner: Arc<Untyped>,
    values: PhantomData<fn(T) -> T>,
}

impl<T> Queue<T> {
    /// Makes a queue that holds as many items as there is memory for.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Os` where the process has too many files open.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::new()?;
    /// queue.send("item".to_string())?;
    /// assert_eq!(queue.recv()?, "item");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new() -> Result<Self> {
        Self::create(0, false)
    }

    /// Makes a queue that holds `capacity` items; who sends one more waits.
    ///
    /// # Errors
    /// `InvalidInput` if `capacity` is 0; otherwise as [`new`](Self::new).
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Queue, TrySendError};
    ///
    /// let queue = Queue::bounded(1)?;
    /// queue.send('a')?;
    /// assert!(matches!(queue.try_send('b'), Err(TrySendError::Full('b'))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "maxsize")]
    pub fn bounded(capacity: usize) -> Result<Self> {
        Self::create(bound(capacity)?, false)
    }

    /// As `!is_empty()`, waiting for one that its descriptor has announced already.
    pub(crate) fn has_item(&self) -> bool {
        self.inner.has_item() || {
            self.inner.unring();
            self.inner.has_item()
        }
    }

    pub(super) fn create(capacity: u64, is_joinable: bool) -> Result<Self> {
        Ok(Self {
            inner: Arc::new(Untyped::create(capacity, is_joinable)?),
            values: PhantomData,
        })
    }

    /// How many items are in the queue.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::new()?;
    /// queue.send(1)?;
    /// queue.send(2)?;
    /// assert_eq!(queue.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "qsize")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Whether there is no item in the queue.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::new()?;
    /// assert!(queue.is_empty());
    /// queue.send(1)?;
    /// assert!(!queue.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "empty")]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// Whether who sends an item now has to wait.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::bounded(1)?;
    /// queue.send(1)?;
    /// assert!(queue.is_full());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "full")]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.inner.is_full()
    }

    /// How many items fit; `None` if that is not limited.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::Queue::<u8>::bounded(3)?.capacity(), Some(3));
    /// assert_eq!(bunshin::Queue::<u8>::new()?.capacity(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn capacity(&self) -> Option<usize> {
        self.inner.capacity()
    }

    /// Lets nobody send any more, in any process. Items that are there can still be taken.
    ///
    /// Whoever waits to send, or for an item that will not come, goes on with `Disconnected`.
    /// Closing it once more does nothing.
    ///
    /// # Errors
    /// `Unsupported` where the system has no robust locks.
    ///
    /// # Source
    /// `queue.Queue.shutdown`. (CPython's `multiprocessing.Queue.close` is for one process alone.)
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Queue, RecvError};
    ///
    /// let queue = Queue::new()?;
    /// queue.send(1)?;
    /// queue.close()?;
    /// assert_eq!(queue.send(2).unwrap_err().into_inner(), 2);
    /// assert_eq!(queue.recv()?, 1);
    /// assert!(matches!(queue.recv(), Err(RecvError::Disconnected)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "shutdown")]
    pub fn close(&self) -> Result<()> {
        self.inner.close()
    }

    /// Whether the queue is closed. There may be items in it still.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::<u8>::new()?;
    /// assert!(!queue.is_closed());
    /// queue.close()?;
    /// assert!(queue.is_closed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    /// A descriptor for `select`, `poll` or an event loop: readable while there is an item, or
    /// the queue is closed.
    ///
    /// Another process may be quicker to take the item: use [`try_recv`](Self::try_recv) then.
    /// Reading or writing the descriptor spoils it. From the first call on, in any process,
    /// sending to an empty queue and emptying it take a system call more.
    ///
    /// # Errors
    /// `Unsupported` where the system has no robust locks.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::new()?;
    /// let _to_be_polled = queue.fileno()?;
    /// queue.send(1)?;
    /// // As `wait` does it.
    /// assert_eq!(bunshin::wait(&[&queue], None)?, [0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fileno(&self) -> Result<BorrowedFd<'_>> {
        self.inner.watch()
    }
}

/// The capacity in the form that 0 is none in.
pub(super) fn bound(capacity: usize) -> Result<u64> {
    if capacity == 0 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "make a queue that holds no item",
        ));
    }
    Ok(capacity as u64)
}

impl<T: Serialize> Queue<T> {
    /// Sends an item.
    ///
    /// Waits while the queue is full. When this returns, the item is in the queue, also if this
    /// process ends at once.
    ///
    /// # Errors
    /// `Disconnected` if the queue is closed; `Failed` if the item cannot be encoded, or there is
    /// no memory for it. The item comes back, and nothing of it was sent.
    ///
    /// # Source
    /// CPython's `Queue.put`.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Queue, SendError};
    /// use std::ffi::OsString;
    /// use std::os::unix::ffi::OsStringExt;
    /// use std::path::PathBuf;
    ///
    /// let not_text = PathBuf::from(OsString::from_vec(vec![0xff]));
    /// let queue = Queue::new()?;
    /// // `serde` has no form for such a path.
    /// assert!(matches!(queue.send(not_text), Err(SendError::Failed(_, _))));
    /// assert!(queue.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "put")]
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        match self.inner.send(&item, Patience::Forever) {
            Ok(()) => Ok(()),
            Err(failure) => Err(SendError::new(item, failure)),
        }
    }

    /// Sends an item if the queue has room.
    ///
    /// # Errors
    /// `Full` if it has none; otherwise as [`send`](Self::send).
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::bounded(1)?;
    /// queue.try_send(1)?;
    /// assert_eq!(queue.try_send(2).unwrap_err().into_inner(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "put_nowait")]
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        match self.inner.send(&item, Patience::Never) {
            Ok(()) => Ok(()),
            Err(failure) => Err(TrySendError::new(item, failure)),
        }
    }

    /// Sends an item, waiting for room for so long at most.
    ///
    /// # Errors
    /// `Full` if there was none in that time; otherwise as [`send`](Self::send).
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let queue = bunshin::Queue::bounded(1)?;
    /// queue.send(1)?;
    /// assert!(queue.send_timeout(2, Duration::from_millis(1)).is_err());
    /// assert_eq!(queue.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_timeout(&self, item: T, timeout: Duration) -> Result<(), TrySendError<T>> {
        match self.inner.send(&item, Patience::within(timeout)) {
            Ok(()) => Ok(()),
            Err(failure) => Err(TrySendError::new(item, failure)),
        }
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the next item.
    ///
    /// Waits until there is one. Who has waited longest is woken first, and somebody who comes
    /// at that moment may still be quicker.
    ///
    /// # Errors
    /// `Disconnected` if the queue is closed and empty; `Failed` if the item cannot be decoded, which
    /// takes it from the queue, or if there is no memory for it or the process has too many files
    /// open, which leaves it there.
    ///
    /// # Source
    /// CPython's `Queue.get`.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::new()?;
    /// queue.send(vec![1, 2])?;
    /// assert_eq!(queue.recv()?, [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "get")]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.inner.recv(Patience::Forever).map_err(RecvError::from)
    }

    /// Takes the next item if there is one.
    ///
    /// # Errors
    /// `Empty` if there is none; otherwise as [`recv`](Self::recv).
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Queue, TryRecvError};
    ///
    /// let queue = Queue::<u8>::new()?;
    /// assert!(matches!(queue.try_recv(), Err(TryRecvError::Empty)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "get_nowait")]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.inner.recv(Patience::Never).map_err(TryRecvError::from)
    }

    /// Takes the next item, waiting for so long at most.
    ///
    /// A call that times out has taken nothing.
    ///
    /// # Errors
    /// `Timeout` if there was none in that time; otherwise as [`recv`](Self::recv).
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let queue = bunshin::Queue::new()?;
    /// assert!(queue.recv_timeout(Duration::from_millis(1)).is_err());
    /// queue.send(1)?;
    /// assert_eq!(queue.recv_timeout(Duration::from_secs(1))?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.inner
            .recv(Patience::within(timeout))
            .map_err(RecvTimeoutError::from)
    }

    /// Takes items until the queue is closed and empty.
    ///
    /// What it gives is an error where an item could not be decoded; the next ones still come.
    ///
    /// # Examples
    /// ```
    /// let queue = bunshin::Queue::new()?;
    /// queue.send(1)?;
    /// queue.send(2)?;
    /// queue.close()?;
    /// assert_eq!(queue.iter().collect::<bunshin::Result<Vec<_>>>()?, [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&self) -> QueueIter<'_, T> {
        QueueIter {
            queue: self,
            is_over: false,
        }
    }
}

/// The items that are taken from a [`Queue`] until it is closed and empty.
///
/// # Examples
/// ```
/// let queue = bunshin::Queue::new()?;
/// queue.send(1)?;
/// let mut items = queue.iter();
/// assert_eq!(items.next().transpose()?, Some(1));
/// queue.close()?;
/// assert!(items.next().is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct QueueIter<'a, T> {
    queue: &'a Queue<T>,
    is_over: bool,
}

impl<T: DeserializeOwned> Iterator for QueueIter<'_, T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        match self.queue.inner.recv(Patience::Forever) {
            Ok(item) => Some(Ok(item)),
            Err(Failure::Other(error)) => {
                // An item that cannot be decoded is gone; whatever else it is stays so.
                self.is_over = error.kind() != ErrorKind::Decode;
                Some(Err(error))
            }
            Err(Failure::Disconnected | Failure::NotYet) => {
                self.is_over = true;
                None
            }
        }
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a Queue<T> {
    type Item = Result<T>;
    type IntoIter = QueueIter<'a, T>;

    fn into_iter(self) -> QueueIter<'a, T> {
        self.iter()
    }
}

impl<T> Waitable for Queue<T> {}

impl<T> Watch for Queue<T> {
    fn begin(&self) -> bool {
        // If it cannot be watched, `end` says why.
        self.inner.watch().is_err() || self.inner.has_item()
    }

    fn handle(&self) -> BorrowedFd<'_> {
        self.inner.bell()
    }

    fn end(&self, was_readable: bool) -> Result<bool> {
        self.inner.watch()?;
        let is_ready = self.inner.has_item();
        if was_readable && !is_ready {
            self.inner.unring();
        }
        Ok(is_ready)
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            values: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("items", &std::any::type_name::<T>())
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .finish()
    }
}

impl<T> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.inner
            .depart(tag::<T>())
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = Form::deserialize(deserializer)?;
        let inner = Untyped::arrive(&form, tag::<T>(), std::any::type_name::<Self>());
        Ok(Self {
            inner: Arc::new(inner.map_err(D::Error::custom)?),
            values: PhantomData,
        })
    }
}
