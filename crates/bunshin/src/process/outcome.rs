//! Why a task in another process gave no result.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::exit::ExitStatus;
use super::last_words;
use crate::codec::outcome::Failure;
use crate::error::{Error, ErrorKind};

/// A panic in another process.
///
/// # Examples
/// ```
/// let child = bunshin::Process::start(|| -> u8 { panic!("out of luck") }, ())?;
/// let Err(bunshin::TaskError::Panicked(panic)) = child.result() else {
///     panic!("it did not panic");
/// };
/// assert!(panic.to_string().ends_with("out of luck"));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    pub(crate) message: String,
    pub(crate) location: Option<String>,
}

impl Panic {
    /// What the task panicked with, if that was text.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { panic!("out of luck") }, ())?;
    /// let Err(bunshin::TaskError::Panicked(panic)) = child.result() else {
    ///     panic!("it did not panic");
    /// };
    /// assert_eq!(panic.message(), "out of luck");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where: file, line and column.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { panic!("out of luck") }, ())?;
    /// let Err(bunshin::TaskError::Panicked(panic)) = child.result() else {
    ///     panic!("it did not panic");
    /// };
    /// assert!(panic.location().is_some_and(|place| place.contains(".rs:")));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn location(&self) -> Option<&str> {
        self.location.as_deref()
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => write!(f, "panicked at {location}: {}", self.message),
            None => write!(f, "panicked: {}", self.message),
        }
    }
}

/// A process that ended while it had a task.
///
/// # Examples
/// ```
/// let child = bunshin::Process::start(|| -> u8 { std::process::abort() }, ())?;
/// let pid = child.pid();
/// let Err(bunshin::TaskError::Lost(lost)) = child.result() else {
///     panic!("it was not lost");
/// };
/// assert_eq!(lost.pid(), pid);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerLost {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) task: Option<usize>,
    pub(crate) status: Option<ExitStatus>,
    pub(crate) out_of_memory: bool,
    pub(crate) peak_memory: Option<u64>,
    pub(crate) last_words: Arc<str>,
}

impl WorkerLost {
    /// The name of the process.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { std::process::abort() }, ())?;
    /// let Err(bunshin::TaskError::Lost(lost)) = child.result() else {
    ///     panic!("it was not lost");
    /// };
    /// assert_eq!(lost.name(), "Process-1");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { std::process::abort() }, ())?;
    /// let pid = child.pid();
    /// let Err(bunshin::TaskError::Lost(lost)) = child.result() else {
    ///     panic!("it was not lost");
    /// };
    /// assert_eq!(lost.pid(), pid);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The position of the task in its map, if it was one of a pool.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::new(1)?;
    /// let results = pool.map_each(|n: u32| assert!(n == 0 || std::process::abort()), [0, 1]);
    /// match &results[1] {
    ///     Err(bunshin::TaskError::Lost(lost)) => assert_eq!(lost.task(), Some(1)),
    ///     other => panic!("not what was expected: {other:?}"),
    /// }
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn task(&self) -> Option<usize> {
        self.task
    }

    /// How the process ended; nothing if the system has no record of it.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { std::process::abort() }, ())?;
    /// let Err(bunshin::TaskError::Lost(lost)) = child.result() else {
    ///     panic!("it was not lost");
    /// };
    /// assert_eq!(lost.status().and_then(|status| status.signal()), Some(6));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Whether the system killed it for lack of memory.
    ///
    /// The system only says how many processes it has killed. A process that somebody else has
    /// killed is taken for one of them if the system has killed another process of the same
    /// control group since a pool was made or a child was seen to be killed.
    ///
    /// # Platform
    /// The count of this process's control group (`memory.events`, or `memory.oom_control` in
    /// version 1); where there is none, that of the whole system (`proc_vmstat(5)`).
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { std::process::abort() }, ())?;
    /// let Err(bunshin::TaskError::Lost(lost)) = child.result() else {
    ///     panic!("it was not lost");
    /// };
    /// assert!(!lost.out_of_memory());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    /// How many bytes of memory it had at its peak, or one of the children that it had waited for.
    ///
    /// Nothing if the system has no record of its end.
    ///
    /// # Platform
    /// What the system counts for the process's number, `ru_maxrss` of `getrusage(2)`: under `spawn`
    /// that is at least what its parent had when it was started.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { std::process::abort() }, ())?;
    /// let Err(bunshin::TaskError::Lost(lost)) = child.result() else {
    ///     panic!("it was not lost");
    /// };
    /// assert!(lost.peak_memory().is_some_and(|bytes| bytes > 100_000));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn peak_memory(&self) -> Option<u64> {
        self.peak_memory
    }

    /// What it has said last, if it was a pool's: the panic that has aborted it.
    ///
    /// That is a panic in a destructor while another panic unwinds, in a function that may not
    /// unwind, and each one where panics abort. Panics that tasks ended with are not among it; one
    /// that a task has caught itself is, and so is one of a thread that it has started. What
    /// the program writes to its standard error goes there, and there only; so does what the
    /// standard library says of a stack that has overflowed. At least the last 32 KiB are kept.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Pool, TaskError};
    ///
    /// struct Guard;
    ///
    /// impl Drop for Guard {
    ///     fn drop(&mut self) {
    ///         panic!("the temporary file is gone");
    ///     }
    /// }
    ///
    /// fn work(number: u32) -> u32 {
    ///     let _guard = Guard;
    ///     assert!(number < 10, "too large");
    ///     number
    /// }
    ///
    /// let pool = Pool::new(1)?;
    /// match pool.apply(work, (12,)) {
    ///     Err(TaskError::Lost(lost)) => {
    ///         assert!(lost.last_words().contains("the temporary file is gone"));
    ///         assert!(lost.to_string().contains("too large"));
    ///     }
    ///     other => panic!("not what was expected: {other:?}"),
    /// }
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn last_words(&self) -> &str {
        &self.last_words
    }
}

impl fmt::Display for WorkerLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} (pid {}) ended", self.name, self.pid)?;
        match self.status {
            Some(status) => write!(f, " with {status}")?,
            None => f.write_str(" in an unknown way")?,
        }
        match self.task {
            Some(task) => write!(f, " while it ran task {task}")?,
            None => f.write_str(" without a result")?,
        }
        if let Some(bytes) = self.peak_memory {
            write!(f, "; its peak memory was {} MiB", bytes.div_ceil(1 << 20))?;
        }
        if self.out_of_memory {
            f.write_str(
                "; the system was out of memory and killed it: fewer workers, or smaller tasks, \
                 need less at a time",
            )?;
        }
        f.write_str(&last_words::clause(&self.last_words))
    }
}

/// Why a task gave no result.
///
/// # Examples
/// ```
/// use bunshin::{Pool, TaskError};
///
/// fn check(number: i32) -> i32 {
///     assert!(number != 2, "no twos");
///     number
/// }
///
/// let pool = Pool::new(2)?;
/// let results = pool.map_each(check, [1, 2, 3]);
/// assert_eq!(results[2].as_ref().ok(), Some(&3));
/// match &results[1] {
///     Err(TaskError::Panicked(panic)) => assert_eq!(panic.message(), "no twos"),
///     other => panic!("not what was expected: {other:?}"),
/// }
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum TaskError {
    /// It panicked. The process goes on, if it is a pool's.
    Panicked(Panic),
    /// Its process was killed, crashed, or exited.
    Lost(WorkerLost),
    /// The arguments could not be sent, or could not be decoded where the task was to run.
    Arguments(Error),
    /// The result could not be sent, or could not be decoded here.
    Result(Error),
    /// It was never run, as it was cancelled, or the pool was closed or terminated.
    Cancelled,
    /// It ran for longer than this limit of its, and was ended.
    TimedOut(Duration),
    /// It was never run, as the pool has no workers and can get none.
    Pool(Error),
}

impl TaskError {
    /// Whether the task's process died.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { std::process::abort() }, ())?;
    /// assert!(child.result().is_err_and(|error| error.is_lost()));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// Whether the task was never run, as it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }

    /// Whether the task ran for too long.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut(_))
    }

    /// Whether the task panicked.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| -> u8 { panic!("out of luck") }, ())?;
    /// assert!(child.result().is_err_and(|error| error.is_panic()));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn is_panic(&self) -> bool {
        matches!(self, Self::Panicked(_))
    }
}

impl From<Failure> for TaskError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Panicked { message, location } => Self::Panicked(Panic { message, location }),
            Failure::Arguments(message) => Self::Arguments(Error::new(ErrorKind::Decode, message)),
            Failure::Result(message) => Self::Result(Error::new(ErrorKind::Encode, message)),
        }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(panic) => write!(f, "the task {panic}"),
            Self::Lost(lost) => write!(f, "the task's process was lost: {lost}"),
            Self::Arguments(error) => write!(f, "the task's arguments did not get there: {error}"),
            Self::Result(error) => write!(f, "the task's result did not get here: {error}"),
            Self::Cancelled => f.write_str("the task was cancelled before it ran"),
            Self::TimedOut(limit) => {
                write!(f, "the task ran for longer than {limit:?}, and was ended")
            }
            Self::Pool(error) => write!(f, "the task could not be run: {error}"),
        }
    }
}

impl StdError for TaskError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Arguments(error) | Self::Result(error) | Self::Pool(error) => Some(error),
            _ => None,
        }
    }
}
