//! Semaphores.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use super::lock::{LockError, Recover};
use super::travels;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::lock::Taken;
use crate::shm::semaphore::{MOST_PERMITS, Permit, SharedSemaphore};
use crate::transport::Patience;

/// A number of permits that processes take and give back.
///
/// It lives in shared memory, and clones and copies in other processes are the same semaphore.
/// [`acquire`](Self::acquire) takes a permit and gives a guard, which gives the permit back when
/// it is dropped. The guard belongs to the thread that took it: if that ends with the permit, in
/// any way, the permit comes back. Who waits for it gets it within a second, and is told that what
/// it stands for may be half changed: [`LockError::Abandoned`].
///
/// For signalling, one process does [`release`](Self::release) for what another one
/// [`forget`](SemaphoreGuard::forget)s. Nobody's death changes the number then.
///
/// Permits are not given out in the order in which they were asked for.
///
/// # Shape and units
/// Up to 2³¹ - 1 permits. So many guards at a time are watched as the semaphore had permits at
/// first, but 64 at least and 4096 at most; a guard beyond those takes its permit along if its
/// holder is killed.
///
/// # Source
/// CPython's `multiprocessing.Semaphore`, whose permits are lost with their holders.
///
/// # Examples
/// Two at a time:
/// ```
/// use bunshin::Semaphore;
///
/// let semaphore = Semaphore::new(2)?;
/// let (first, second) = (semaphore.acquire()?, semaphore.acquire()?);
/// assert!(semaphore.try_acquire().is_err());
/// drop(first);
/// assert!(semaphore.try_acquire().is_ok());
/// # drop(second);
/// # Ok::<(), bunshin::Error>(())
/// ```
///
/// A signal:
/// ```
/// use bunshin::{Process, Semaphore};
///
/// let done = Semaphore::new(0)?;
/// let child = Process::start(|done: Semaphore| done.release().is_ok(), (done.clone(),))?;
/// done.acquire()?.forget();
/// assert!(child.result()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Semaphore {
    shared: SharedSemaphore,
}

/// A [`Semaphore`] that never has more permits than it began with.
///
/// That catches a [`release`](Self::release) too many.
///
/// # Source
/// CPython's `multiprocessing.BoundedSemaphore`.
///
/// # Examples
/// ```
/// use bunshin::BoundedSemaphore;
///
/// let semaphore = BoundedSemaphore::new(1)?;
/// assert!(semaphore.release().is_err(), "nothing has been taken");
/// semaphore.acquire()?.forget();
/// semaphore.release()?;
/// assert_eq!(semaphore.value(), 1);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone)]
pub struct BoundedSemaphore {
    shared: SharedSemaphore,
}

travels!(Semaphore, shared, SharedSemaphore, "a semaphore");
travels!(BoundedSemaphore, shared, SharedSemaphore, "a semaphore");

fn create(value: usize, is_bounded: bool) -> Result<SharedSemaphore> {
    let permits = u32::try_from(value)
        .ok()
        .filter(|&value| value <= MOST_PERMITS);
    let permits = permits.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("a semaphore has {MOST_PERMITS} permits at most, not {value}"),
        )
    })?;
    SharedSemaphore::create(permits, is_bounded)
}

type Acquired<'a> = Result<SemaphoreGuard<'a>, LockError<SemaphoreGuard<'a>>>;

fn acquire(shared: &SharedSemaphore, patience: Patience) -> Acquired<'_> {
    let acquired = match patience {
        Patience::Never => shared.try_acquire(),
        patience => shared.acquire(patience.deadline()),
    };
    let failed = |error: io::Error| LockError::Failed(Error::os("acquire a semaphore", error));
    let (mut permit, taken) = acquired.map_err(failed)?.ok_or(LockError::Unavailable)?;
    permit.is_abandoned = taken == Taken::Abandoned;
    let guard = SemaphoreGuard {
        permit,
        thread: PhantomData,
    };
    match taken {
        Taken::Clean => Ok(guard),
        Taken::Abandoned => Err(LockError::Abandoned(guard)),
    }
}

fn release(shared: &SharedSemaphore) -> Result<()> {
    if shared.release() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        "a semaphore was released more often than it may be",
    ))
}

macro_rules! semaphore {
    ($type:ident, $bounded:literal, $name:literal, $new:literal) => {
        impl $type {
            #[doc = $new]
            ///
            /// # Errors
            /// `InvalidInput` if `value` is above 2³¹ - 1; `OutOfMemory`, or `Os` where the
            /// process has too many files open.
            ///
            /// # Examples
            /// ```
            #[doc = concat!("assert_eq!(bunshin::", $name, "::new(3)?.value(), 3);")]
            /// # Ok::<(), bunshin::Error>(())
            /// ```
            pub fn new(value: usize) -> Result<Self> {
                Ok(Self {
                    shared: create(value, $bounded)?,
                })
            }

            /// Takes a permit, waiting until there is one.
            ///
            /// # Errors
            /// [`LockError::Abandoned`] with the permit, if its holder died.
            ///
            /// # Examples
            /// ```
            #[doc = concat!("let semaphore = bunshin::", $name, "::new(1)?;")]
            /// let permit = semaphore.acquire()?;
            /// assert_eq!(semaphore.value(), 0);
            /// # drop(permit);
            /// # Ok::<(), bunshin::Error>(())
            /// ```
            pub fn acquire(&self) -> Result<SemaphoreGuard<'_>, LockError<SemaphoreGuard<'_>>> {
                acquire(&self.shared, Patience::Forever)
            }

            /// Takes a permit if there is one.
            ///
            /// It may find none although there always was one, if others take and give back
            /// permits at the same moment.
            ///
            /// # Errors
            /// [`LockError::Unavailable`] if there is none; otherwise as
            /// [`acquire`](Self::acquire).
            ///
            /// # Examples
            /// ```
            #[doc = concat!("let semaphore = bunshin::", $name, "::new(0)?;")]
            /// assert!(semaphore.try_acquire().is_err());
            /// # Ok::<(), bunshin::Error>(())
            /// ```
            pub fn try_acquire(&self) -> Result<SemaphoreGuard<'_>, LockError<SemaphoreGuard<'_>>> {
                acquire(&self.shared, Patience::Never)
            }

            /// Takes a permit, waiting for so long at most.
            ///
            /// # Errors
            /// [`LockError::Unavailable`] if there was none in that time; otherwise as
            /// [`acquire`](Self::acquire).
            ///
            /// # Examples
            /// ```
            /// use std::time::Duration;
            ///
            #[doc = concat!("let semaphore = bunshin::", $name, "::new(0)?;")]
            /// assert!(semaphore.acquire_timeout(Duration::from_millis(1)).is_err());
            /// # Ok::<(), bunshin::Error>(())
            /// ```
            pub fn acquire_timeout(
                &self,
                timeout: Duration,
            ) -> Result<SemaphoreGuard<'_>, LockError<SemaphoreGuard<'_>>> {
                acquire(&self.shared, Patience::within(timeout))
            }

            /// Adds a permit, and wakes one who waits for it. For permits that were
            /// [forgotten](SemaphoreGuard::forget) or never there; a guard does this by itself.
            ///
            /// # Errors
            /// `InvalidInput` if there are as many as there may be: nothing has changed then.
            ///
            /// # Examples
            /// ```
            #[doc = concat!("let semaphore = bunshin::", $name, "::new(1)?;")]
            /// semaphore.acquire()?.forget();
            /// semaphore.release()?;
            /// assert_eq!(semaphore.value(), 1);
            /// # Ok::<(), bunshin::Error>(())
            /// ```
            pub fn release(&self) -> Result<()> {
                release(&self.shared)
            }

            /// How many permits are there just now; the next moment it may be another number.
            ///
            /// # Examples
            /// ```
            #[doc = concat!("assert_eq!(bunshin::", $name, "::new(2)?.value(), 2);")]
            /// # Ok::<(), bunshin::Error>(())
            /// ```
            #[doc(alias = "get_value")]
            #[must_use]
            pub fn value(&self) -> usize {
                self.shared.value() as usize
            }
        }
    };
}

semaphore!(
    Semaphore,
    false,
    "Semaphore",
    "Makes a semaphore with so many permits."
);
semaphore!(
    BoundedSemaphore,
    true,
    "BoundedSemaphore",
    "Makes a semaphore with so many permits, which is also the most that it can have."
);

/// A permit of a [`Semaphore`] or [`BoundedSemaphore`], given back when this is dropped.
///
/// It belongs to the thread that took it, and cannot be sent to another.
#[must_use = "the permit is given back at once if the guard is not kept"]
pub struct SemaphoreGuard<'a> {
    permit: Permit<'a>,
    thread: PhantomData<*const ()>,
}

impl SemaphoreGuard<'_> {
    /// Keeps the permit for good: only [`Semaphore::release`] makes up for it, in any thread or
    /// process. From here on nobody's death brings it back.
    ///
    /// # Examples
    /// ```
    /// let semaphore = bunshin::Semaphore::new(1)?;
    /// semaphore.acquire()?.forget();
    /// assert_eq!(semaphore.value(), 0);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn forget(self) {
        self.permit.consume();
        std::mem::forget(self);
    }
}

impl Recover for SemaphoreGuard<'_> {
    fn recover(&mut self) {
        self.permit.is_abandoned = false;
    }
}

impl fmt::Debug for SemaphoreGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SemaphoreGuard").finish_non_exhaustive()
    }
}

impl Drop for SemaphoreGuard<'_> {
    fn drop(&mut self) {
        self.permit.give_back();
    }
}
