//! The lock that its holder may take again.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::condition::Holds;
use super::lock::{LockError, Recover, refused};
use crate::codec::attachments::{Incoming, Outgoing};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::cell::SharedCell;
use crate::shm::lock::{RawLock, Refused, Taken};
use crate::transport::Patience;

/// Set in the depth while nobody has said that what the lock protects is right again.
const ABANDONED: u32 = 1 << 31;

/// A lock between processes that the thread which holds it may take again.
///
/// It lives in shared memory, and clones and copies in other processes are the same lock. It
/// belongs to the thread that took it, and is free again when that thread has dropped as many
/// guards as it got. When the thread ends with the lock, in any way, the next one gets it at
/// once and is told: [`LockError::Abandoned`]. Until somebody says that all is right, by
/// [`LockError::recover`], its holder is told again each time it takes the lock.
///
/// # Source
/// CPython's `multiprocessing.RLock`.
///
/// # Examples
/// ```
/// use bunshin::{Process, RLock};
///
/// let lock = RLock::new()?;
/// let outer = lock.lock()?;
/// let inner = lock.lock()?;
/// drop(outer);
/// let child = Process::start(|lock: RLock| lock.try_lock().is_err(), (lock.clone(),))?;
/// assert!(child.result()?, "one guard is left");
/// drop(inner);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RLock {
    /// The lock, and how deep its holder is in it.
    cell: SharedCell,
}

/// Bytes beside the lock: the depth.
const DEPTH: usize = size_of::<u32>();

impl RLock {
    /// Makes a lock that is free.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Os` where the process has too many files open.
    ///
    /// # Examples
    /// ```
    /// assert!(bunshin::RLock::new()?.try_lock().is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new() -> Result<Self> {
        Ok(Self {
            cell: SharedCell::create(DEPTH)?,
        })
    }

    /// Takes the lock, waiting until it is free or this thread's own.
    ///
    /// # Errors
    /// [`LockError::Abandoned`] with the lock, if its holder died.
    ///
    /// # Examples
    /// ```
    /// let lock = bunshin::RLock::new()?;
    /// let (_outer, _inner) = (lock.lock()?, lock.lock()?);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "acquire")]
    #[inline]
    pub fn lock(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.acquire(Patience::Forever)
    }

    /// Takes the lock if it is free or this thread's own.
    ///
    /// # Errors
    /// [`LockError::Unavailable`] if it is not; otherwise as [`lock`](Self::lock).
    ///
    /// # Examples
    /// ```
    /// let lock = bunshin::RLock::new()?;
    /// let _held = lock.lock()?;
    /// assert!(lock.try_lock().is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn try_lock(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.acquire(Patience::Never)
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
    /// let lock = bunshin::RLock::new()?;
    /// assert!(lock.lock_timeout(Duration::from_millis(1)).is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.acquire(Patience::within(timeout))
    }

    #[inline]
    fn acquire(&self, patience: Patience) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        let (raw, depth) = (self.cell.raw(), self.depth());
        if raw.is_mine() {
            let now = depth.load(Ordering::Relaxed);
            if now & !ABANDONED == !ABANDONED {
                return Err(LockError::Failed(Error::new(
                    ErrorKind::Busy,
                    "this thread has taken the lock as often as can be counted",
                )));
            }
            depth.store(now + 1, Ordering::Relaxed);
        } else {
            let taken = match patience {
                Patience::Never => raw.try_lock(),
                patience => raw.lock(patience.deadline()),
            };
            let abandoned = match taken.map_err(refused)? {
                Taken::Clean => 0,
                Taken::Abandoned => ABANDONED,
            };
            depth.store(1 | abandoned, Ordering::Relaxed);
        }
        let guard = RLockGuard {
            lock: self,
            thread: PhantomData,
        };
        if depth.load(Ordering::Relaxed) & ABANDONED == 0 {
            Ok(guard)
        } else {
            Err(LockError::Abandoned(guard))
        }
    }

    /// Written by the holder alone.
    #[inline]
    fn depth(&self) -> &AtomicU32 {
        self.cell.atomic_u32(0)
    }

    /// Gives the lock back, however deep its holder is in it.
    #[inline]
    fn unlock(&self) {
        let depth = self.depth();
        let was = depth.load(Ordering::Relaxed);
        depth.store(0, Ordering::Relaxed);
        if was & ABANDONED == 0 {
            self.cell.raw().unlock();
        } else {
            self.cell.raw().unlock_abandoned();
        }
    }
}

impl fmt::Debug for RLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RLock").finish_non_exhaustive()
    }
}

impl Serialize for RLock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        super::depart(self.cell.fd(), "a lock")
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RLock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)?;
        let cell = Incoming::detach(index).and_then(|fd| SharedCell::attach(fd, DEPTH));
        Ok(Self {
            cell: cell.map_err(D::Error::custom)?,
        })
    }
}

/// An [`RLock`], held until this and all other guards of the same thread are dropped.
///
/// It belongs to the thread that took the lock, and cannot be sent to another.
#[derive(Debug)]
#[must_use = "the lock is given back at once if the guard is not kept"]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    thread: PhantomData<*const ()>,
}

impl Recover for RLockGuard<'_> {
    fn recover(&mut self) {
        if self.lock.cell.raw().is_mine() {
            self.lock.depth().fetch_and(!ABANDONED, Ordering::Relaxed);
        }
    }
}

impl Holds for RLockGuard<'_> {
    fn raw(&self) -> &RawLock {
        self.lock.cell.raw()
    }

    fn let_go(&mut self) -> u32 {
        let depth = self.lock.depth().load(Ordering::Relaxed);
        self.lock.unlock();
        depth
    }

    fn take_again(&mut self, depth: u32) -> Result<Taken, Refused> {
        let taken = self.lock.cell.raw().lock(None)?;
        // What the lock protected when it was let go may have been mended since.
        let abandoned = match taken {
            Taken::Clean => 0,
            Taken::Abandoned => ABANDONED,
        };
        let depth = depth & !ABANDONED | abandoned;
        self.lock.depth().store(depth, Ordering::Relaxed);
        Ok(taken)
    }
}

impl Drop for RLockGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // A forked child has a copy of the guard, and not the lock.
        if !self.lock.cell.raw().is_mine() {
            return;
        }
        let depth = self.lock.depth();
        let now = depth.load(Ordering::Relaxed);
        if now & !ABANDONED > 1 {
            depth.store(now - 1, Ordering::Relaxed);
        } else {
            self.lock.unlock();
        }
    }
}
