//! A proxy to a queue.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::message::{Op, Status};
use super::super::referent::Referent;
use super::proxy;
use crate::connection::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Patience;
use crate::transport::channel::Failure;

/// A queue in a manager's server, from many senders to many receivers.
///
/// It also counts what has been taken and not been said to be done, so that one can wait for
/// all of it: [`task_done`](Self::task_done) and [`join`](Self::join). A receiver that dies
/// takes along what it had received, and nothing else.
///
/// # Errors
/// Every method: `Disconnected` if the server is gone.
///
/// # Source
/// CPython's `SyncManager.Queue` and `JoinableQueue`.
///
/// # Examples
/// ```
/// use bunshin::{Manager, Process, manager::QueueProxy};
///
/// let manager = Manager::new()?;
/// let queue = manager.queue::<u32>(0)?;
/// let child = Process::start(|queue: QueueProxy<u32>| {
///     (0..3).all(|n| queue.send(n).is_ok())
/// }, (queue.clone(),))?;
/// assert_eq!((queue.recv()?, queue.recv()?, queue.recv()?), (0, 1, 2));
/// assert!(child.result()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct QueueProxy<T> {
    referent: Arc<Referent>,
    types: PhantomData<fn(T) -> T>,
}

proxy!(QueueProxy<T>);

impl<T: Serialize + DeserializeOwned> QueueProxy<T> {
    /// Puts an item in, waiting for room.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone; `Failed` if the item cannot be encoded. It comes
    /// back.
    #[doc(alias = "put")]
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        self.put(&item, Patience::Forever)
            .map_err(|failure| SendError::new(item, failure))
    }

    /// Puts an item in if there is room.
    ///
    /// # Errors
    /// `Full` if there is none; otherwise as [`send`](Self::send).
    #[doc(alias = "put_nowait")]
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        self.put(&item, Patience::Never)
            .map_err(|failure| TrySendError::new(item, failure))
    }

    /// Puts an item in, waiting for room for so long at most.
    ///
    /// # Errors
    /// `Full` if there was none in that time; otherwise as [`send`](Self::send).
    pub fn send_timeout(&self, item: T, timeout: Duration) -> Result<(), TrySendError<T>> {
        self.put(&item, Patience::within(timeout))
            .map_err(|failure| TrySendError::new(item, failure))
    }

    fn put(&self, item: &T, patience: Patience) -> Result<(), Failure> {
        let answer = self
            .referent
            .ask(Op::Send)?
            .wait(patience)
            .field(item)?
            .call();
        let answer = answer.map_err(late)?;
        answer.check()?;
        match answer.status {
            Status::NotYet => Err(Failure::NotYet),
            _ => Ok(()),
        }
    }

    /// Takes an item, waiting for one.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone; `Failed` if the item is of another type. It is
    /// lost then.
    #[doc(alias = "get")]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.take(Patience::Forever).map_err(RecvError::from)
    }

    /// Takes an item if there is one.
    ///
    /// # Errors
    /// `Empty` if there is none; otherwise as [`recv`](Self::recv).
    #[doc(alias = "get_nowait")]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.take(Patience::Never).map_err(TryRecvError::from)
    }

    /// Takes an item, waiting for one for so long at most. A call that times out has taken
    /// nothing.
    ///
    /// # Errors
    /// `Timeout` if there was none in that time; otherwise as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.take(Patience::within(timeout))
            .map_err(RecvTimeoutError::from)
    }

    fn take(&self, patience: Patience) -> Result<T, Failure> {
        let answer = self.referent.ask(Op::Recv)?.wait(patience).call();
        let mut answer = answer.map_err(late)?;
        answer.check()?;
        match answer.status {
            Status::NotYet => Err(Failure::NotYet),
            _ => Ok(answer.value()?),
        }
    }

    /// How many items are in the queue.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "qsize")]
    pub fn len(&self) -> Result<usize> {
        let answer = self.referent.ask(Op::Len)?.call()?;
        answer.check()?;
        Ok(answer.number as usize)
    }

    /// Whether there is no item.
    ///
    /// # Errors
    /// As the type says.
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Says that an item that was taken is done.
    ///
    /// # Errors
    /// `InvalidInput` if that was said for all items already.
    pub fn task_done(&self) -> Result<()> {
        self.referent.ask(Op::TaskDone)?.call()?.check()
    }

    /// Waits until all items that were put in are done.
    ///
    /// # Errors
    /// As the type says.
    pub fn join(&self) -> Result<()> {
        self.all_done(Patience::Forever).map(|_| ())
    }

    /// Whether all items that were put in are done.
    ///
    /// # Errors
    /// As the type says.
    pub fn try_join(&self) -> Result<bool> {
        self.all_done(Patience::Never)
    }

    /// Waits until all items are done, for so long at most; `false` if they were not.
    ///
    /// # Errors
    /// As the type says.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool> {
        self.all_done(Patience::within(timeout))
    }

    fn all_done(&self, patience: Patience) -> Result<bool> {
        let answer = self.referent.ask(Op::Join)?.wait(patience).call()?;
        answer.check()?;
        Ok(answer.status == Status::Ok)
    }
}

/// A server that did not answer in time is a queue that did not.
fn late(error: Error) -> Failure {
    if error.kind() == ErrorKind::TimedOut {
        Failure::NotYet
    } else {
        error.into()
    }
}
