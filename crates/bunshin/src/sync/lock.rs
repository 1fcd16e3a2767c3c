//! The lock.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::condition::holds;
use crate::codec::attachments::{Incoming, Outgoing};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::cell::{Held, SharedCell};
use crate::shm::lock::Refused;
use crate::transport::Patience;

/// Why a lock was not taken as asked.
///
/// # Examples
/// ```
/// use bunshin::{Lock, LockError, Process};
///
/// let lock = Lock::new()?;
/// let child = Process::start(
///     |lock: Lock| -> () {
///         let _guard = lock.lock();
///         std::process::abort();
///     },
///     (lock.clone(),),
/// )?;
/// child.join()?;
/// assert!(matches!(lock.lock(), Err(LockError::Abandoned(_))));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[non_exhaustive]
pub enum LockError<G> {
    /// The holder before died with the lock. The caller has it now, and decides whether what
    /// it protects is right: [`recover`](Self::recover) says that it is. If this is dropped
    /// instead, the next one is told again.
    Abandoned(G),
    /// Somebody else has it, and the time to wait is over.
    Unavailable,
    /// Something else: this thread has it already (`Busy`), or the system has no such locks.
    Failed(Error),
}

/// Guards that can be abandoned.
pub(crate) trait Recover {
    /// Says that what the lock protects is right again.
    fn recover(&mut self);
}

#[allow(private_bounds)]
impl<G: Recover> LockError<G> {
    /// Goes on with an abandoned lock, as good as new.
    ///
    /// # Errors
    /// The other errors, as they are.
    ///
    /// # Examples
    /// ```
    /// # use bunshin::{Lock, LockError};
    /// let lock = Lock::new()?;
    /// let guard = lock.lock().or_else(LockError::recover)?;
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn recover(self) -> Result<G, Self> {
        match self {
            Self::Abandoned(mut guard) => {
                guard.recover();
                Ok(guard)
            }
            other => Err(other),
        }
    }
}

impl<G> fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abandoned(_) => f.write_str(
                "its holder died with the lock or permit; what that protects may be half changed",
            ),
            Self::Unavailable => {
                f.write_str("the lock is held, or all permits are, by other threads or processes")
            }
            Self::Failed(error) => write!(f, "cannot lock: {error}"),
        }
    }
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockError({self})")
    }
}

// A guard borrows its lock, so that this cannot be an `Error` that outlives it; `?` turns
// it into one, without the guard.

impl<G> From<LockError<G>> for Box<dyn std::error::Error> {
    fn from(error: LockError<G>) -> Self {
        Error::from(error).into()
    }
}

impl<G> From<LockError<G>> for Box<dyn std::error::Error + Send + Sync> {
    fn from(error: LockError<G>) -> Self {
        Error::from(error).into()
    }
}

impl<G> From<LockError<G>> for Error {
    fn from(error: LockError<G>) -> Self {
        let kind = match error {
            LockError::Abandoned(_) => ErrorKind::Abandoned,
            LockError::Unavailable => ErrorKind::TimedOut,
            LockError::Failed(error) => return error,
        };
        Self::new(kind, error.to_string())
    }
}

/// The error for a lock that was not got.
pub(crate) fn refused<G>(refused: Refused) -> LockError<G> {
    match refused {
        Refused::Held => LockError::Unavailable,
        Refused::Own => LockError::Failed(Error::new(
            ErrorKind::Busy,
            "this thread holds the lock already; waiting for it would never end",
        )),
        Refused::Unsupported(error) => LockError::Failed(Error::os("take a lock", error)),
    }
}

/// Takes a cell's lock with some patience; the guard is made of what is held.
#[inline]
pub(crate) fn acquire<'a, G>(
    cell: &'a SharedCell,
    patience: Patience,
    guard: impl FnOnce(Held<'a>) -> G,
) -> Result<G, LockError<G>> {
    let held = match patience {
        Patience::Never => cell.try_lock(),
        patience => cell.lock(patience.deadline()),
    };
    match held {
        Ok(held) if held.is_abandoned() => Err(LockError::Abandoned(guard(held))),
        Ok(held) => Ok(guard(held)),
        Err(error) => Err(refused(error)),
    }
}

/// A mutual exclusion lock between processes.
///
/// It lives in shared memory, and clones and copies in other processes are the same lock. It
/// belongs to the thread that took it. When that thread ends with the lock, in any way, the
/// next one gets it at once and is told: [`LockError::Abandoned`].
///
/// # Source
/// CPython's `multiprocessing.Lock`, which others wait for in vain if its holder dies; the
/// kernel's robust futexes (`get_robust_list(2)`).
///
/// # Examples
/// ```
/// use bunshin::{Lock, Process};
///
/// let lock = Lock::new()?;
/// let guard = lock.lock()?;
/// let child = Process::start(|lock: Lock| lock.try_lock().is_err(), (lock.clone(),))?;
/// assert!(child.result()?);
/// drop(guard);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Lock {
    cell: SharedCell,
}

impl Lock {
    /// Makes a lock that is free.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Os` where the process has too many files open.
    ///
    /// # Examples
    /// ```
    /// assert!(bunshin::Lock::new()?.try_lock().is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new() -> Result<Self> {
        Ok(Self {
            cell: SharedCell::create(0)?,
        })
    }

    /// Takes the lock, waiting until it is free.
    ///
    /// # Errors
    /// [`LockError::Abandoned`] with the lock, if its holder died; [`LockError::Failed`] if this
    /// thread has it already.
    ///
    /// # Examples
    /// ```
    /// let lock = bunshin::Lock::new()?;
    /// let guard = lock.lock()?;
    /// // Nobody else is here now.
    /// drop(guard);
    /// assert!(lock.lock().is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "acquire")]
    #[inline]
    pub fn lock(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        acquire(&self.cell, Patience::Forever, LockGuard)
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    /// [`LockError::Unavailable`] if it is not; otherwise as [`lock`](Self::lock).
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Lock, LockError};
    ///
    /// let lock = Lock::new()?;
    /// let guard = lock.lock()?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| assert!(matches!(lock.try_lock(), Err(LockError::Unavailable))));
    /// });
    /// drop(guard);
    /// assert!(lock.try_lock().is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn try_lock(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        acquire(&self.cell, Patience::Never, LockGuard)
    }

    /// Takes the lock, waiting for so long at most.
    ///
    /// # Errors
    /// [`LockError::Unavailable`] if it was not free in that time; otherwise as
    /// [`lock`](Self::lock).
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let lock = bunshin::Lock::new()?;
    /// assert!(lock.lock_timeout(Duration::from_secs(1)).is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        acquire(&self.cell, Patience::within(timeout), LockGuard)
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

impl Serialize for Lock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        super::depart(self.cell.fd(), "a lock")
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Lock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)?;
        let cell = Incoming::detach(index).and_then(|fd| SharedCell::attach(fd, 0));
        Ok(Self {
            cell: cell.map_err(D::Error::custom)?,
        })
    }
}

/// A [`Lock`], held until this is dropped.
///
/// # Examples
/// ```
/// let lock = bunshin::Lock::new()?;
/// let guard = lock.lock()?;
/// drop(guard);
/// assert!(lock.try_lock().is_ok());
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the lock is given back at once if the guard is not kept"]
pub struct LockGuard<'a>(Held<'a>);

holds!(LockGuard<'_>, 0);

impl Recover for LockGuard<'_> {
    fn recover(&mut self) {
        self.0.recover();
    }
}
