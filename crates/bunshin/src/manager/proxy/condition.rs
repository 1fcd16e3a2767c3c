//! A proxy to a condition.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::super::message::{Op, Status};
use super::super::referent::Referent;
use super::lock::{Held, check_own, recover, take};
use super::proxy;
use crate::error::Result;
use crate::sync::{LockError, Recover};
use crate::transport::Patience;

/// A condition in a manager's server, with a lock of its own.
///
/// Whoever has the lock can wait to be notified, which gives the lock back meanwhile. The
/// lock behaves as a [`LockProxy`](crate::manager::LockProxy): a holder that dies is told of. A waiter
/// that dies is forgotten; a notification that was on its way to it is lost with it.
///
/// # Source
/// CPython's `SyncManager.Condition`.
///
/// # Examples
/// ```
/// use bunshin::{Manager, Process};
/// use bunshin::manager::{ConditionProxy, ValueProxy};
///
/// let manager = Manager::new()?;
/// let (changed, ready) = (manager.condition()?, manager.value(false)?);
/// let child = Process::start(
///     |changed: ConditionProxy, ready: ValueProxy<bool>| {
///         let guard = changed.lock().expect("nobody dies");
///         ready.set(&true).expect("the server lives");
///         guard.notify_all().expect("the server lives");
///     },
///     (changed.clone(), ready.clone()),
/// )?;
/// let mut guard = changed.lock()?;
/// guard.wait_for(|| ready.get())?;
/// assert!(ready.get()?);
/// drop(guard);
/// child.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ConditionProxy {
    referent: Arc<Referent>,
    types: PhantomData<()>,
}

proxy!(ConditionProxy);

impl ConditionProxy {
    /// Takes the condition's lock, waiting until it is free.
    ///
    /// # Errors
    /// As [`LockProxy::lock`](crate::manager::LockProxy::lock).
    #[doc(alias = "acquire")]
    pub fn lock(&self) -> Result<ConditionGuard<'_>, LockError<ConditionGuard<'_>>> {
        self.take(Patience::Forever)
    }

    /// Takes the condition's lock if it is free.
    ///
    /// # Errors
    /// As [`LockProxy::try_lock`](crate::manager::LockProxy::try_lock).
    pub fn try_lock(&self) -> Result<ConditionGuard<'_>, LockError<ConditionGuard<'_>>> {
        self.take(Patience::Never)
    }

    /// Takes the condition's lock, waiting for so long at most.
    ///
    /// # Errors
    /// As [`LockProxy::lock_timeout`](crate::manager::LockProxy::lock_timeout).
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<ConditionGuard<'_>, LockError<ConditionGuard<'_>>> {
        self.take(Patience::within(timeout))
    }

    fn take(
        &self,
        patience: Patience,
    ) -> Result<ConditionGuard<'_>, LockError<ConditionGuard<'_>>> {
        check_own(&self.referent)?;
        take(&self.referent, Op::Lock, patience, |referent| {
            ConditionGuard(Held::new(referent))
        })
    }
}

/// A [`ConditionProxy`]'s lock, held until this is dropped, but for the time of a wait.
#[must_use = "the lock is given back at once if the guard is not kept"]
pub struct ConditionGuard<'a>(Held<'a>);

impl ConditionGuard<'_> {
    /// Gives the lock back, waits to be notified, and takes the lock again.
    ///
    /// It wakes for a notification alone; what was waited for may have changed again by then.
    ///
    /// # Errors
    /// `Abandoned` if the lock's holder died meanwhile: this thread has it all the same.
    /// `Disconnected` if the server is gone.
    pub fn wait(&mut self) -> Result<()> {
        self.sleep(Patience::Forever).map(|_| ())
    }

    /// The same, for so long at most, and as long as it takes to have the lock again; `false`
    /// if the time was over.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<bool> {
        self.sleep(Patience::within(timeout))
    }

    /// Waits until `is_so` says so.
    ///
    /// # Errors
    /// As [`wait`](Self::wait), and those of `is_so`.
    pub fn wait_for(&mut self, is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        self.sleep_for(is_so, Patience::Forever).map(|_| ())
    }

    /// The same, for so long at most; `false` if the time was over, and it was not so.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_for_timeout(
        &mut self,
        is_so: impl FnMut() -> Result<bool>,
        timeout: Duration,
    ) -> Result<bool> {
        self.sleep_for(is_so, Patience::within(timeout))
    }

    fn sleep_for(
        &mut self,
        mut is_so: impl FnMut() -> Result<bool>,
        patience: Patience,
    ) -> Result<bool> {
        loop {
            if is_so()? {
                return Ok(true);
            }
            if !self.sleep(patience)? {
                return is_so();
            }
        }
    }

    fn sleep(&mut self, patience: Patience) -> Result<bool> {
        let ask = self.0.referent().ask(Op::Wait)?;
        // The time of an answer is not known: the lock may be held for long by then.
        let answer = ask.wait(patience).patiently().call()?;
        answer.check()?;
        if answer.status == Status::Abandoned {
            return Err(LockError::Abandoned(()).into());
        }
        Ok(answer.number == 0)
    }

    /// Wakes one who waits; says whether there was one. It runs once it has the lock.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "notify")]
    pub fn notify_one(&self) -> Result<bool> {
        Ok(self.notify(1)? == 1)
    }

    /// Wakes so many who wait, or all if they are fewer; says how many.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    pub fn notify(&self, count: usize) -> Result<usize> {
        let ask = self.0.referent().ask(Op::Notify)?.number(count as u64);
        let answer = ask.call()?;
        answer.check()?;
        Ok(answer.number as usize)
    }

    /// Wakes all who wait; says how many.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    pub fn notify_all(&self) -> Result<usize> {
        self.notify(usize::MAX)
    }
}

impl Recover for ConditionGuard<'_> {
    fn recover(&mut self) {
        recover(self.0.referent());
    }
}

impl std::fmt::Debug for ConditionGuard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConditionGuard")
    }
}
