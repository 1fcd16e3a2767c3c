//! A proxy to a semaphore.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::super::message::Op;
use super::super::referent::Referent;
use super::lock::{recover, take};
use super::proxy;
use crate::error::Result;
use crate::sync::{LockError, Recover};
use crate::sys::thread;
use crate::transport::Patience;

/// A semaphore in a manager's server, with a bound or without.
///
/// A permit is a guard, and comes back when that is dropped. Permits of a process that dies
/// come back too, and whoever gets a permit from then on is told
/// ([`LockError::Abandoned`]), until somebody [recovers](LockError::recover).
///
/// # Source
/// CPython's `SyncManager.Semaphore` and `BoundedSemaphore`.
///
/// # Examples
/// ```
/// let manager = bunshin::Manager::new()?;
/// let semaphore = manager.bounded_semaphore(2)?;
/// let permits = (semaphore.acquire()?, semaphore.acquire()?);
/// assert!(semaphore.try_acquire().is_err());
/// drop(permits);
/// assert_eq!(semaphore.available_permits()?, 2);
/// assert!(semaphore.release(1).is_err(), "that would be three");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SemaphoreProxy {
    referent: Arc<Referent>,
    types: PhantomData<()>,
}

proxy!(SemaphoreProxy);

type Taken<'a> = Result<SemaphorePermit<'a>, LockError<SemaphorePermit<'a>>>;

impl SemaphoreProxy {
    /// Takes a permit, waiting until there is one.
    ///
    /// # Errors
    /// [`LockError::Abandoned`] with the permit, if a process died with one;
    /// [`LockError::Failed`] if the server is gone.
    pub fn acquire(&self) -> Taken<'_> {
        self.take(Patience::Forever)
    }

    /// Takes a permit if there is one.
    ///
    /// # Errors
    /// [`LockError::Unavailable`] if there is none; otherwise as [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Taken<'_> {
        self.take(Patience::Never)
    }

    /// Takes a permit, waiting for so long at most.
    ///
    /// # Errors
    /// [`LockError::Unavailable`] if there was none in that time; otherwise as
    /// [`acquire`](Self::acquire).
    pub fn acquire_timeout(&self, timeout: Duration) -> Taken<'_> {
        self.take(Patience::within(timeout))
    }

    fn take(&self, patience: Patience) -> Taken<'_> {
        take(&self.referent, Op::Acquire, patience, |referent| {
            SemaphorePermit {
                referent,
                generation: thread::generation(),
            }
        })
    }

    /// Adds permits.
    ///
    /// # Errors
    /// `InvalidInput` if a bounded semaphore would have more than it started with.
    pub fn release(&self, permits: usize) -> Result<()> {
        let ask = self.referent.ask(Op::Add)?.number(permits as u64);
        ask.call()?.check()
    }

    /// How many permits there are now.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "get_value")]
    pub fn available_permits(&self) -> Result<usize> {
        let answer = self.referent.ask(Op::Permits)?.call()?;
        answer.check()?;
        Ok(answer.number as usize)
    }
}

/// A permit of a [`SemaphoreProxy`], until this is dropped.
#[must_use = "the permit is given back at once if it is not kept"]
pub struct SemaphorePermit<'a> {
    referent: &'a Referent,
    generation: u32,
}

impl SemaphorePermit<'_> {
    /// Keeps the permit for good: only [`release`](SemaphoreProxy::release) makes up for it.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    pub fn forget(self) -> Result<()> {
        let result = self.referent.ask(Op::Reset)?.call()?.check();
        std::mem::forget(self);
        result
    }
}

impl Drop for SemaphorePermit<'_> {
    fn drop(&mut self) {
        if self.generation == thread::generation() {
            // A server that is gone has no permits.
            let _ = self.referent.ask(Op::Unlock).and_then(|ask| ask.call());
        }
    }
}

impl Recover for SemaphorePermit<'_> {
    fn recover(&mut self) {
        recover(self.referent);
    }
}

impl std::fmt::Debug for SemaphorePermit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SemaphorePermit")
    }
}
