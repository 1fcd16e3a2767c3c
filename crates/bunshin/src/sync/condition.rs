//! The condition.

use std::time::Duration;

use super::lock::{LockError, Recover, refused};
use super::travels;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::condition::SharedCondition;
use crate::shm::lock::{RawLock, Refused, Taken};
use crate::transport::Patience;

/// How a [`Condition::wait_timeout`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// By a notification, or for no reason.
    Notified,
    /// The time was over before that. No notification has been lost with it.
    TimedOut,
}

/// Guards of a lock that can be let go and taken again.
pub(crate) trait Holds: Recover {
    fn raw(&self) -> &RawLock;

    /// Gives the lock back, and says what it takes to have it as before.
    fn let_go(&mut self) -> u32;

    /// Takes it again, as it was.
    fn take_again(&mut self, before: u32) -> Result<Taken, Refused>;
}

/// What threads and processes wait for while they have let go of a lock: that somebody says that
/// something has changed.
///
/// It lives in shared memory, and clones and copies in other processes are the same condition. It
/// goes with any lock of this crate: [`Lock`](crate::Lock), [`RLock`](crate::RLock), or the one of
/// a [`Value`](crate::Value) or an [`Array`](crate::Array). A call to wait takes the guard, gives
/// the lock back for as long as it waits, and returns with the guard. All who wait together must
/// use the same lock, and whoever changes what they wait for holds it while it does.
///
/// # When somebody dies
/// A waiter that is killed takes no notification along: if it had been notified and had not got
/// the lock back yet, another waiter is notified in its place, within a second. A
/// notifier that is killed within [`notify_all`](Self::notify_all) has notified all or none; those
/// whom it had no time to wake wake up within a second. If the lock's holder dies, whoever
/// gets the lock next is told: [`LockError::Abandoned`].
///
/// # Waking for no reason
/// A waiter may go on without having been notified, though it seldom does. Look at what you
/// wait for in a loop, or use [`wait_for`](Self::wait_for), which does.
///
/// # Source
/// CPython's `multiprocessing.Condition`, and `std::sync::Condvar` for the form.
///
/// # Examples
/// ```
/// use bunshin::{Condition, Process, Value};
///
/// fn produce(stock: Value<u32>, changed: Condition) -> bunshin::Result<()> {
///     for _ in 0..3 {
///         *stock.lock()? += 1;
///         changed.notify(1);
///     }
///     Ok(())
/// }
///
/// let (stock, changed) = (Value::new(0)?, Condition::new()?);
/// let child = Process::start(|s, c| produce(s, c).is_ok(), (stock.clone(), changed.clone()))?;
/// let guard = changed.wait_for(stock.lock()?, |stock| **stock == 3)?;
/// assert_eq!(*guard, 3);
/// drop(guard);
/// assert!(child.result()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "Condvar")]
#[derive(Clone)]
pub struct Condition {
    shared: SharedCondition,
}

travels!(Condition, shared, SharedCondition, "a condition");

#[allow(private_bounds)]
impl Condition {
    /// Makes a condition that nobody waits for.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Os` where the process has too many files open.
    ///
    /// # Examples
    /// ```
    /// bunshin::Condition::new()?.notify_all();
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new() -> Result<Self> {
        Ok(Self {
            shared: SharedCondition::create()?,
        })
    }

    /// Gives the lock back, waits to be notified, and takes the lock again.
    ///
    /// An [`RLock`](crate::RLock) is given back whole, however often this thread holds it.
    ///
    /// # Errors
    /// [`LockError::Abandoned`] with the lock, if its holder died meanwhile;
    /// [`LockError::Failed`] if the guard is a copy that a fork made.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Condition, Lock};
    ///
    /// let (lock, changed) = (Lock::new()?, Condition::new()?);
    /// let guard = lock.lock()?;
    /// let (other_lock, other_changed) = (lock.clone(), changed.clone());
    /// let notifier = std::thread::spawn(move || {
    ///     // Not before the other waits, as that has the lock until then.
    ///     let _guard = other_lock.lock().unwrap();
    ///     other_changed.notify(1);
    /// });
    /// let guard = changed.wait(guard)?;
    /// drop(guard);
    /// notifier.join().unwrap();
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn wait<G: Holds>(&self, guard: G) -> Result<G, LockError<G>> {
        self.wait_until(guard, Patience::Forever)
            .map(|(guard, _)| guard)
    }

    /// As [`wait`](Self::wait), for so long at most; then the lock is taken again, however
    /// long that takes.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// use bunshin::{Condition, Lock, Woken};
    ///
    /// let (lock, changed) = (Lock::new()?, Condition::new()?);
    /// let (_guard, woken) = changed.wait_timeout(lock.lock()?, Duration::from_millis(1))?;
    /// assert_eq!(woken, Woken::TimedOut);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn wait_timeout<G: Holds>(
        &self,
        guard: G,
        timeout: Duration,
    ) -> Result<(G, Woken), LockError<G>> {
        self.wait_until(guard, Patience::within(timeout))
    }

    /// Waits until `is_so` holds, looking each time it is woken. It does not wait if that holds
    /// already.
    ///
    /// # Errors
    /// As [`wait`](Self::wait). `is_so` is not asked about what an abandoned lock protects.
    ///
    /// # Panics
    /// If `is_so` does; the lock is given back.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Condition, Value};
    ///
    /// let (value, changed) = (Value::new(5)?, Condition::new()?);
    /// assert_eq!(*changed.wait_for(value.lock()?, |value| **value > 4)?, 5);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "wait_while")]
    pub fn wait_for<G: Holds>(
        &self,
        guard: G,
        is_so: impl FnMut(&mut G) -> bool,
    ) -> Result<G, LockError<G>> {
        self.wait_for_until(guard, Patience::Forever, is_so)
            .map(|(guard, _)| guard)
    }

    /// As [`wait_for`](Self::wait_for), for so long at most. Says whether `is_so` holds.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// use bunshin::{Condition, Value};
    ///
    /// let (value, changed) = (Value::new(5)?, Condition::new()?);
    /// let second = Duration::from_millis(1);
    /// let (guard, is_so) = changed.wait_for_timeout(value.lock()?, second, |value| **value > 5)?;
    /// assert!(!is_so);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn wait_for_timeout<G: Holds>(
        &self,
        guard: G,
        timeout: Duration,
        is_so: impl FnMut(&mut G) -> bool,
    ) -> Result<(G, bool), LockError<G>> {
        self.wait_for_until(guard, Patience::within(timeout), is_so)
    }

    /// Notifies `n` of those who wait, or all if they are fewer. It does not wait.
    ///
    /// Only those are notified who wait now. It need not be called with the lock held, but what
    /// they wait for has to be changed under the lock before.
    ///
    /// # Examples
    /// ```
    /// bunshin::Condition::new()?.notify(1); // Nobody waits: nothing happens.
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "notify_one")]
    pub fn notify(&self, n: usize) {
        self.shared.notify(u32::try_from(n).unwrap_or(u32::MAX));
    }

    /// Notifies all who wait. It does not wait.
    ///
    /// # Examples
    /// ```
    /// bunshin::Condition::new()?.notify_all();
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn notify_all(&self) {
        self.shared.notify_all();
    }

    fn wait_until<G: Holds>(
        &self,
        mut guard: G,
        patience: Patience,
    ) -> Result<(G, Woken), LockError<G>> {
        if !guard.raw().is_mine() {
            return Err(LockError::Failed(Error::new(
                ErrorKind::Busy,
                "the guard is a copy that a fork made: the lock is its parent's",
            )));
        }
        let unsupported = |error| LockError::Failed(Error::os("wait on a condition", error));
        // Before the lock is given back: whoever gets it then and notifies finds this waiter.
        let waiter = self.shared.begin().map_err(unsupported)?;
        let before = guard.let_go();
        let is_notified = waiter.sleep(patience.deadline());
        let taken = guard.take_again(before);
        // Not before: until it has the lock, another waiter gets what it was notified of if it
        // is killed.
        drop(waiter);
        let woken = match is_notified {
            true => Woken::Notified,
            false => Woken::TimedOut,
        };
        match taken {
            Ok(Taken::Clean) => Ok((guard, woken)),
            Ok(Taken::Abandoned) => Err(LockError::Abandoned(guard)),
            Err(error) => Err(refused(error)),
        }
    }

    fn wait_for_until<G: Holds>(
        &self,
        mut guard: G,
        patience: Patience,
        mut is_so: impl FnMut(&mut G) -> bool,
    ) -> Result<(G, bool), LockError<G>> {
        loop {
            if is_so(&mut guard) {
                return Ok((guard, true));
            }
            if patience.is_over() {
                return Ok((guard, false));
            }
            guard = self.wait_until(guard, patience)?.0;
        }
    }
}

/// Implements [`Holds`] for guards with a field that is the lock held.
macro_rules! holds {
    ($guard:ty, $held:tt $(, $param:ident)?) => {
        impl$(<$param: bytemuck::Pod>)? $crate::sync::Holds for $guard {
            fn raw(&self) -> &$crate::shm::lock::RawLock {
                self.$held.raw()
            }

            fn let_go(&mut self) -> u32 {
                self.$held.let_go();
                0
            }

            fn take_again(
                &mut self,
                _before: u32,
            ) -> Result<$crate::shm::lock::Taken, $crate::shm::lock::Refused> {
                self.$held.take_again()
            }
        }
    };
}

pub(crate) use holds;
