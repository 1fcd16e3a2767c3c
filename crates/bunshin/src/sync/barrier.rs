//! The barrier.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::attachments::{Incoming, Outgoing};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::barrier::{MOST_PARTIES, SharedBarrier, Stopped};
use crate::sys::image::{self, Entry};
use crate::transport::Patience;

/// Why a party did not pass a [`Barrier`].
#[derive(Debug)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken, or was broken or reset while this party waited: a party was killed
    /// or ran out of time, the action panicked, or somebody called [`Barrier::abort`] or
    /// [`Barrier::reset`].
    Broken,
    /// This party's own time was over. If it had arrived, which it had unless the parties of the
    /// round before filled the barrier all that time, the barrier is broken for the others.
    TimedOut,
    /// Not all others are there: [`Barrier::try_wait`] changed nothing.
    Unavailable,
    /// Something else: the system has no locks that survive their holder.
    Failed(Error),
}

impl fmt::Display for BarrierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str("the barrier is broken"),
            Self::TimedOut => f.write_str("the others did not reach the barrier in time"),
            Self::Unavailable => f.write_str("the others have not reached the barrier yet"),
            Self::Failed(error) => write!(f, "cannot wait at a barrier: {error}"),
        }
    }
}

impl std::error::Error for BarrierError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl From<BarrierError> for Error {
    fn from(error: BarrierError) -> Self {
        let kind = match error {
            BarrierError::Broken => ErrorKind::Broken,
            BarrierError::TimedOut | BarrierError::Unavailable => ErrorKind::TimedOut,
            BarrierError::Failed(error) => return error,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<Stopped> for BarrierError {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Broken => Self::Broken,
            Stopped::TimedOut => Self::TimedOut,
            Stopped::Unsupported(error) => Self::Failed(Error::os("wait at a barrier", error)),
        }
    }
}

/// What the last party does before all go on: a function of this program, by its place.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Action {
    /// Of the program that the place is in.
    stamp: u64,
    place: u64,
}

/// What an action is called with.
struct Nothing;

impl Action {
    fn new<F: Fn() + Copy + 'static>(_action: F) -> Result<Self> {
        fn run<F: Fn() + Copy + 'static>(_: &mut Nothing) {
            image::conjure::<F>()();
        }
        let entry: Entry<Nothing> = run::<F>;
        let place = image::offset_of(entry).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "the barrier's action lies in a shared library, where others may not find it",
            )
        })?;
        Ok(Self {
            stamp: image::stamp(),
            place,
        })
    }

    fn find(self) -> Result<Entry<Nothing>> {
        let found = (self.stamp == image::stamp()).then(|| image::entry_at(self.place));
        found.flatten().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "the barrier's action is a function of another program",
            )
        })
    }
}

/// A point that a number of processes or threads pass together: each waits until all are
/// there.
///
/// It lives in shared memory, and clones and copies in other processes are the same barrier. Once
/// all have passed it, it can be used again.
///
/// # When somebody dies
/// A party that is killed while it waits breaks the barrier: the others get
/// [`BarrierError::Broken`] within a second, and so does whoever comes later, until
/// [`reset`](Self::reset). A party that is killed before it arrives is not known to the barrier;
/// use [`wait_timeout`](Self::wait_timeout) where that can happen.
///
/// # Source
/// CPython's `multiprocessing.Barrier`.
///
/// # Examples
/// ```
/// use bunshin::{Barrier, Process};
///
/// let barrier = Barrier::new(2)?;
/// let child = Process::start(|barrier: Barrier| barrier.wait().unwrap(), (barrier.clone(),))?;
/// let own = barrier.wait()?;
/// assert_eq!(own + child.result()?, 1, "one is number 0, the other number 1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Barrier {
    shared: SharedBarrier,
    action: Option<Action>,
}

impl Barrier {
    /// Makes a barrier for so many parties.
    ///
    /// # Errors
    /// `InvalidInput` if there are none, or more than 65536; `OutOfMemory`, or `Os` where the
    /// process has too many files open.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::Barrier::new(3)?.parties(), 3);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new(parties: usize) -> Result<Self> {
        let n_parties = u32::try_from(parties)
            .ok()
            .filter(|n| (1..=MOST_PARTIES).contains(n));
        let n_parties = n_parties.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("a barrier has from 1 to {MOST_PARTIES} parties, not {parties}"),
            )
        })?;
        Ok(Self {
            shared: SharedBarrier::create(n_parties)?,
            action: None,
        })
    }

    /// Makes a barrier at which the last party to arrive calls `action` before any goes on.
    ///
    /// Like what a process runs, it is a plain function, or a closure that captures nothing. If it
    /// panics, the barrier is broken, and the panic goes on in the party that called it.
    ///
    /// # Errors
    /// As [`new`](Self::new), and `Unsupported` if the action lies in a shared library.
    ///
    /// # Examples
    /// ```
    /// use bunshin::Barrier;
    ///
    /// let barrier = Barrier::with_action(1, || println!("all are here"))?;
    /// barrier.wait()?;
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn with_action<F: Fn() + Copy + 'static>(parties: usize, action: F) -> Result<Self> {
        let action = Action::new(action)?;
        Ok(Self {
            action: Some(action),
            ..Self::new(parties)?
        })
    }

    /// Waits until all are there. Gives each another number, from 0 to the number of
    /// parties less one.
    ///
    /// # Errors
    /// [`BarrierError::Broken`].
    ///
    /// # Panics
    /// If this party calls the action, and that panics.
    ///
    /// # Examples
    /// ```
    /// let barrier = bunshin::Barrier::new(1)?;
    /// assert_eq!(barrier.wait()?, 0);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn wait(&self) -> Result<usize, BarrierError> {
        self.pass(Patience::Forever)
    }

    /// Passes if all others are there already. Otherwise nothing happens, and nobody is told.
    ///
    /// # Errors
    /// [`BarrierError::Unavailable`] if they are not; otherwise as [`wait`](Self::wait).
    ///
    /// # Panics
    /// As there.
    ///
    /// # Examples
    /// ```
    /// assert!(bunshin::Barrier::new(2)?.try_wait().is_err());
    /// assert!(bunshin::Barrier::new(1)?.try_wait().is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn try_wait(&self) -> Result<usize, BarrierError> {
        self.pass(Patience::Never)
    }

    /// Waits until all are there, for so long at most; then the barrier is broken for all.
    ///
    /// # Errors
    /// [`BarrierError::TimedOut`]; otherwise as [`wait`](Self::wait).
    ///
    /// # Panics
    /// As there.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let barrier = bunshin::Barrier::new(2)?;
    /// assert!(barrier.wait_timeout(Duration::from_millis(1)).is_err());
    /// assert!(barrier.is_broken());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<usize, BarrierError> {
        self.pass(Patience::within(timeout))
    }

    fn pass(&self, patience: Patience) -> Result<usize, BarrierError> {
        // Looked up first: whoever cannot act must not be the last.
        let action = self.action.map(Action::find).transpose();
        let action = action.map_err(BarrierError::Failed)?;
        let is_impatient = patience == Patience::Never;
        let deadline = match patience {
            // The lock is held for a moment only; it is worth waiting for.
            Patience::Never => None,
            patience => patience.deadline(),
        };
        let arrived = self.shared.arrive(is_impatient, deadline);
        let party = match arrived {
            Err(Stopped::TimedOut) if is_impatient => return Err(BarrierError::Unavailable),
            arrived => arrived?,
        };
        if party.is_last() {
            if let Some(action) = action {
                // If it panics, dropping the party breaks the barrier.
                action(&mut Nothing);
            }
            party.let_all_go()?;
        } else {
            party.wait(deadline)?;
        }
        Ok(party.index as usize)
    }

    /// Makes the barrier as good as new. Whoever waits gets [`BarrierError::Broken`].
    ///
    /// # Errors
    /// `Unsupported`, or `Os`, where the system has no locks that survive their holder.
    ///
    /// # Examples
    /// ```
    /// let barrier = bunshin::Barrier::new(1)?;
    /// barrier.abort()?;
    /// barrier.reset()?;
    /// assert!(barrier.wait().is_ok());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn reset(&self) -> Result<()> {
        let done = self.shared.reset();
        done.map_err(|stopped| BarrierError::from(stopped).into())
    }

    /// Breaks the barrier, for all who wait and all who come, until [`reset`](Self::reset).
    ///
    /// # Errors
    /// As [`reset`](Self::reset).
    ///
    /// # Examples
    /// ```
    /// let barrier = bunshin::Barrier::new(1)?;
    /// barrier.abort()?;
    /// assert!(barrier.wait().is_err());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn abort(&self) -> Result<()> {
        let done = self.shared.abort();
        done.map_err(|stopped| BarrierError::from(stopped).into())
    }

    /// How many pass together.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::Barrier::new(4)?.parties(), 4);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn parties(&self) -> usize {
        self.shared.n_parties() as usize
    }

    /// How many wait just now.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::Barrier::new(4)?.n_waiting(), 0);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.shared.n_waiting() as usize
    }

    /// Whether it is broken. That a party has died shows when another one notices.
    ///
    /// # Examples
    /// ```
    /// assert!(!bunshin::Barrier::new(4)?.is_broken());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "broken")]
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.is_broken()
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties())
            .finish_non_exhaustive()
    }
}

impl Serialize for Barrier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let memory = super::depart(self.shared.fd(), "a barrier")
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?;
        (memory, self.action).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Barrier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (memory, action) = <(u32, Option<Action>)>::deserialize(deserializer)?;
        let shared = Incoming::detach(memory).and_then(SharedBarrier::attach);
        Ok(Self {
            shared: shared.map_err(D::Error::custom)?,
            action,
        })
    }
}
