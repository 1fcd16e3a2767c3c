//! What the parent holds of a child.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bootstrap::{FAILED, RETURNED};
use super::builder::ProcessBuilder;
use super::exit::ExitStatus;
use super::lookout::Lookout;
use super::outcome::{TaskError, WorkerLost};
use super::scarcity;
use super::target::Target;
use crate::codec::outcome::Failure;
use crate::codec::serde::decode;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::tracker;
use crate::sys::mutex::ForkMutex;
use crate::sys::process::{self, Sig, Started};
use crate::sys::socket::{self, Interest};
use crate::sys::thread;
use crate::transport::{Patience, heirs, stream};

/// How long reading what a dead child has sent may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

static ANSWERS: Lookout = Lookout::new();
static ENDS: Lookout = Lookout::new();

/// A child process, whatever it returns.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    started: Started,
    daemon: bool,
    generation: u32,
    /// Counts the handles of this process, in the order of the starts.
    number: u64,
    /// How it ended, once that has been collected.
    status: ForkMutex<Option<ExitStatus>>,
    /// Bytes of memory that it had at its peak; 0 until that has been collected.
    peak_memory: AtomicU64,
}

/// The children that somebody has a handle on.
static CHILDREN: ForkMutex<Vec<Weak<Child>>> = ForkMutex::new(Vec::new());
static REGISTERED: AtomicU64 = AtomicU64::new(0);

impl Child {
    /// A child that has been started, to be found by [`living_children`].
    pub(crate) fn register(name: String, started: Started, daemon: bool) -> Arc<Self> {
        let child = Arc::new(Self {
            name,
            started,
            daemon,
            generation: thread::generation(),
            number: REGISTERED.fetch_add(1, Ordering::Relaxed),
            status: ForkMutex::new(None),
            peak_memory: AtomicU64::new(0),
        });
        let mut children = CHILDREN.lock();
        // Only looked at here: upgrading could make this the last owner, whose drop needs
        // more than this lock.
        children.retain(|known| known.strong_count() > 0);
        children.push(Arc::downgrade(&child));
        child
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> u32 {
        self.started.pid
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.started.pidfd.as_fd()
    }

    fn what(&self, operation: &str) -> String {
        format!(
            "{operation} process {} (pid {})",
            self.name, self.started.pid
        )
    }

    /// Collects the exit status: at once, in time, or whenever it comes.
    pub(crate) fn wait(&self, patience: Patience) -> Result<Option<ExitStatus>> {
        if let Some(status) = self.known_status() {
            return Ok(Some(status));
        }
        // Not under the lock: other threads may want to look, or to kill.
        if patience != Patience::Never {
            let pidfd = [(self.pidfd(), Interest::Readable)];
            let waited = ENDS.poll(&pidfd, patience, &mut Vec::new());
            waited.map_err(|error| Error::os(self.what("join"), error))?;
        }
        let mut status = self.status.lock();
        if status.is_none() {
            let ended = process::wait(self.pidfd(), false)
                .map_err(|error| Error::os(self.what("join"), error))?;
            if let Some(ended) = ended {
                self.peak_memory.store(ended.peak_memory, Ordering::Relaxed);
                *status = Some(ended.into());
                heirs::forget(self.started.pid);
            }
        }
        Ok(*status)
    }

    fn known_status(&self) -> Option<ExitStatus> {
        *self.status.lock()
    }

    /// Bytes of memory that it had at its peak, if it has ended and the system says so.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        Some(self.peak_memory.load(Ordering::Relaxed)).filter(|bytes| *bytes != 0)
    }

    /// Whether somebody has collected its exit status.
    pub(crate) fn is_collected(&self) -> bool {
        self.known_status().is_some()
    }

    pub(crate) fn signal(&self, signal: Sig) -> Result<()> {
        if self.known_status().is_some() {
            return Ok(());
        }
        process::signal(self.pidfd(), signal).map_err(|error| Error::os(self.what("signal"), error))
    }

    /// Ends it for certain, and collects it.
    pub(crate) fn destroy(&self) {
        if self.generation == thread::generation() && self.signal(Sig::KILL).is_ok() {
            let _ = self.wait(Patience::Forever);
        }
    }
}

/// Children whose handle was dropped while they ran: they are collected at the next
/// start, and waited for when this process ends.
static DETACHED: ForkMutex<Vec<Detached>> = ForkMutex::new(Vec::new());

pub(super) struct Detached {
    name: String,
    started: Started,
    generation: u32,
}

impl Detached {
    pub(super) fn new(name: String, started: Started) -> Self {
        Self {
            name,
            started,
            generation: thread::generation(),
        }
    }
}

/// Whether detached children are waited for when this process ends.
static AT_EXIT: AtomicBool = AtomicBool::new(false);

impl Drop for Child {
    fn drop(&mut self) {
        let is_over = matches!(self.wait(Patience::Never), Ok(Some(_)) | Err(_));
        if is_over || self.generation != thread::generation() {
            return;
        }
        if self.daemon {
            self.destroy();
            return;
        }
        if !AT_EXIT.swap(true, Ordering::Relaxed) {
            extern "C" fn handler() {
                join_detached();
            }
            process::at_exit(handler);
        }
        if let Ok(pidfd) = socket::duplicate(self.pidfd()) {
            let started = Started {
                pid: self.started.pid,
                pidfd,
            };
            collect_later(Detached {
                name: std::mem::take(&mut self.name),
                started,
                generation: self.generation,
            });
        }
    }
}

/// Has a child that is about to end collected with the detached ones.
pub(super) fn collect_later(child: Detached) {
    let mut detached = DETACHED.lock();
    detached.push(child);
}

/// Collects detached children that have ended.
pub(crate) fn collect_detached() {
    tracker::tend();
    let mut detached = DETACHED.lock();
    detached.retain(|child| {
        // A forked child has no say in its parent's children.
        child.generation == thread::generation()
            && matches!(process::wait(child.started.pidfd.as_fd(), false), Ok(None))
    });
}

/// All children of this process that have not ended; collects those that have.
pub(super) fn living_children() -> Vec<Arc<Child>> {
    collect_detached();
    let generation = thread::generation();
    // Those that nobody had a handle on have one again, until it is dropped.
    let detached = std::mem::take(&mut *DETACHED.lock());
    let revived: Vec<_> = detached
        .into_iter()
        .map(|child| Child::register(child.name, child.started, false))
        .collect();
    let known: Vec<_> = {
        let children = CHILDREN.lock();
        children.iter().filter_map(Weak::upgrade).collect()
    };
    // Not under the lock: a handle that is dropped here may be the last one.
    let mut living: Vec<_> = known
        .into_iter()
        .filter(|child| child.generation == generation)
        .filter(|child| matches!(child.wait(Patience::Never), Ok(None)))
        .collect();
    drop(revived);
    living.sort_by_key(|child| child.number);
    living
}

/// Waits for detached children.
pub(super) fn join_detached() {
    collect_detached();
    let rest = std::mem::take(&mut *DETACHED.lock());
    for child in rest {
        let _ = process::wait(child.started.pidfd.as_fd(), true);
    }
}

/// A child process whose target returns `R`.
///
/// Dropping it does not end the child: it is waited for when this process ends, unless it
/// is a daemon, which is killed. If this process is killed, so are all its children.
///
/// # Source
/// CPython's `multiprocessing.Process`.
///
/// # Examples
/// ```
/// use bunshin::Process;
///
/// fn greet(name: String) -> String {
///     format!("hello {name}")
/// }
///
/// let child = Process::start(greet, ("world".to_string(),))?;
/// assert_ne!(child.pid(), std::process::id());
/// assert_eq!(child.result()?, "hello world");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Process<R = ()> {
    child: Arc<Child>,
    control: Option<OwnedFd>,
    returns: PhantomData<fn() -> R>,
}

impl Process {
    /// Starts a child that runs a function, with the default start method.
    ///
    /// Returns when the child exists; it may not have begun to run.
    ///
    /// # Errors
    /// `Encode` if an argument cannot be encoded, `Threads` if the start method is `Fork` and
    /// this process has other threads, `Os` if the system gives no further process.
    ///
    /// # Source
    /// CPython's `Process(target=…, args=…).start()`.
    ///
    /// # Examples
    /// ```
    /// fn add(a: i32, b: i32) -> i32 {
    ///     a + b
    /// }
    ///
    /// assert_eq!(bunshin::Process::start(add, (1, 2))?.result()?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn start<F, Args>(target: F, args: Args) -> Result<Process<F::Output>>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
    {
        Self::builder().start(target, args)
    }

    /// Starts a child with a name, as a daemon, or with another start method.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, StartMethod};
    ///
    /// let child = Process::builder()
    ///     .name("worker")
    ///     .daemon(true)
    ///     .start_method(StartMethod::Spawn)
    ///     .start(|| (), ())?;
    /// assert_eq!(child.name(), "worker");
    /// assert!(child.join()?.success());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder::default()
    }
}

impl<R> Process<R> {
    pub(crate) fn new(child: Arc<Child>, control: Option<OwnedFd>) -> Self {
        Self {
            child,
            control,
            returns: PhantomData,
        }
    }

    /// The child's process id.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(std::process::id, ())?;
    /// let pid = child.pid();
    /// assert_eq!(child.result()?, pid);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The child's name.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::builder().name("reader").start(|| (), ())?;
    /// assert_eq!(child.name(), "reader");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        self.child.name()
    }

    /// Whether the child is killed, rather than waited for, when this handle is dropped.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| (), ())?;
    /// assert!(!child.is_daemon());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.child.daemon
    }

    /// Waits until the child has ended.
    ///
    /// # Errors
    /// `Os` if the child was collected by something else in this process.
    ///
    /// # Source
    /// CPython's `Process.join`.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| (), ())?;
    /// assert!(child.join()?.success());
    /// // It can be asked any number of times.
    /// assert!(child.join()?.success());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn join(&self) -> Result<ExitStatus> {
        match self.child.wait(Patience::Forever)? {
            Some(status) => Ok(status),
            None => Err(Error::new(ErrorKind::Os, self.child.what("join"))),
        }
    }

    /// How the child ended, if it has.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| std::thread::park(), ())?;
    /// assert!(child.try_join()?.is_none());
    /// child.kill()?;
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn try_join(&self) -> Result<Option<ExitStatus>> {
        self.child.wait(Patience::Never)
    }

    /// Waits until the child has ended, for so long at most.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// let child = bunshin::Process::start(|| std::thread::park(), ())?;
    /// assert!(child.join_timeout(Duration::from_millis(1))?.is_none());
    /// child.kill()?;
    /// assert!(child.join_timeout(Duration::from_secs(60))?.is_some());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn join_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        self.child.wait(Patience::within(timeout))
    }

    /// Whether the child has not ended yet.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| std::thread::park(), ())?;
    /// assert!(child.is_alive());
    /// child.kill()?;
    /// child.join()?;
    /// assert!(!child.is_alive());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.try_join(), Ok(None))
    }

    /// How the child ended, if it has; the same as [`try_join`](Self::try_join), for those
    /// who do not care why it cannot be told.
    ///
    /// # Source
    /// CPython's `Process.exitcode`.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| (), ())?;
    /// child.join()?;
    /// assert_eq!(child.exit_status().and_then(|status| status.code()), Some(0));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[doc(alias = "exitcode")]
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.try_join().ok().flatten()
    }

    /// Asks the child to end (SIGTERM). It is no error if it has ended.
    ///
    /// # Errors
    /// `Os` if this process may not signal it.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| std::thread::park(), ())?;
    /// child.terminate()?;
    /// assert_eq!(child.join()?.signal(), Some(15));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn terminate(&self) -> Result<()> {
        self.child.signal(Sig::TERM)
    }

    /// Ends the child (SIGKILL), also if it is stopped. It is no error if it has ended.
    ///
    /// # Errors
    /// `Os` if this process may not signal it.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| std::thread::park(), ())?;
    /// child.kill()?;
    /// assert_eq!(child.join()?.signal(), Some(9));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn kill(&self) -> Result<()> {
        self.child.signal(Sig::KILL)
    }

    /// Interrupts the child (SIGINT), as Ctrl-C at the terminal does. It is no error if it
    /// has ended.
    ///
    /// # Errors
    /// `Os` if this process may not signal it.
    ///
    /// # Source
    /// CPython's `Process.interrupt`.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| std::thread::park(), ())?;
    /// child.interrupt()?;
    /// // One that was started with interrupts ignored (`nohup`) would go on.
    /// let status = child.join_timeout(std::time::Duration::from_secs(20))?;
    /// assert_eq!(status.and_then(|status| status.signal()), Some(2));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn interrupt(&self) -> Result<()> {
        self.child.signal(Sig::INT)
    }

    /// Gives the handle up if the child has ended, and says how it did; gives the handle back
    /// if the child still runs.
    ///
    /// Dropping the handle closes it as well, and does not ask.
    ///
    /// # Errors
    /// The handle, if the child has not ended, or if that cannot be told.
    ///
    /// # Source
    /// CPython's `Process.close`.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::start(|| std::thread::park(), ())?;
    /// let child = child.close().expect_err("it still runs");
    /// child.kill()?;
    /// child.join()?;
    /// assert_eq!(child.close().ok().and_then(|status| status.signal()), Some(9));
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn close(self) -> Result<ExitStatus, Self> {
        self.exit_status().ok_or(self)
    }

    /// A descriptor that is readable once the child has ended, for `select`, `poll` or an
    /// event loop.
    ///
    /// # Source
    /// CPython's `Process.sentinel`; `pidfd_open(2)`.
    ///
    /// # Examples
    /// ```
    /// use std::os::fd::AsRawFd;
    ///
    /// let child = bunshin::Process::start(|| (), ())?;
    /// assert!(child.sentinel().as_raw_fd() > 2);
    /// assert_eq!(bunshin::wait(&[&child], None)?, [0]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn sentinel(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Waits for what the child's target returns, and then for its end.
    ///
    /// # Errors
    /// [`TaskError::Panicked`] with message and place if it panicked, [`TaskError::Lost`] with the
    /// exit status if it ended in another way, [`TaskError::Arguments`] and
    /// [`TaskError::Result`] if one of those did not get across.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, TaskError};
    ///
    /// let child = Process::start(|| -> u8 { panic!("out of luck") }, ())?;
    /// match child.result() {
    ///     Err(TaskError::Panicked(panic)) => assert_eq!(panic.message(), "out of luck"),
    ///     other => panic!("not what was expected: {other:?}"),
    /// }
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn result(self) -> Result<R, TaskError> {
        self.take_result()
    }

    pub(crate) fn take_result(&self) -> Result<R, TaskError> {
        let message = self.receive()?;
        let status = self
            .child
            .wait(Patience::Forever)
            .map_err(TaskError::Pool)?;
        self.read(message, status)
    }

    pub(crate) fn read(
        &self,
        message: stream::Received,
        status: Option<ExitStatus>,
    ) -> Result<R, TaskError> {
        let kind = message.kind;
        let (mut incoming, body) = message.into_parts();
        match kind {
            RETURNED => decode(body.as_bytes(), &mut incoming).map_err(TaskError::Result),
            FAILED => match decode::<Failure>(body.as_bytes(), &mut incoming) {
                Ok(failure) => Err(failure.into()),
                Err(error) => Err(TaskError::Result(error)),
            },
            _ => Err(self.lost(status)),
        }
    }

    /// The socket that the result comes by.
    #[cfg(feature = "tokio")]
    pub(crate) fn control(&self) -> Option<&OwnedFd> {
        self.control.as_ref()
    }

    /// Whether [`receive`](Self::receive) will not wait for the child.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_whole_message(&self) -> bool {
        let control = self.control.as_ref();
        control.is_none_or(|control| stream::has_whole_message(control.as_fd()))
    }

    pub(crate) fn receive(&self) -> Result<stream::Received, TaskError> {
        let Some(control) = &self.control else {
            return Err(self.lost(self.known_end()));
        };
        // The socket alone does not tell that the child has ended: its children may have it too.
        let watched = [
            (control.as_fd(), Interest::Readable),
            (self.child.pidfd(), Interest::Readable),
        ];
        let mut ready = Vec::new();
        let is_ready = |ready: &[bool], at: usize| ready.get(at) == Some(&true);
        let waited = ANSWERS.poll(&watched, Patience::Forever, &mut ready);
        let waited = waited.and_then(|_| {
            if is_ready(&ready, 0) {
                return Ok((true, is_ready(&ready, 1)));
            }
            // It has ended; what it sent before came after the look at the socket.
            socket::poll(&watched[..1], Some(Instant::now()), &mut ready)
                .map(|count| (count != 0, true))
        });
        let patience = match waited {
            Ok((false, _)) => return Err(self.lost(self.known_end())),
            Ok((true, false)) => Patience::Forever,
            // What a dead child has sent is there; if it is not whole, it never will be.
            Ok((true, true)) => Patience::within(LAST_WORDS),
            Err(error) => return Err(TaskError::Result(Error::os("wait for a result", error))),
        };
        match stream::receive(control.as_fd(), patience) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.lost(self.known_end())),
            Err(error) if error.is_timeout() => Err(self.lost(self.known_end())),
            Err(error) => Err(TaskError::Result(error)),
        }
    }

    fn known_end(&self) -> Option<ExitStatus> {
        self.child.wait(Patience::Forever).ok().flatten()
    }

    fn lost(&self, status: Option<ExitStatus>) -> TaskError {
        let is_killed = status.is_some_and(|status| status.is_kill());
        TaskError::Lost(WorkerLost {
            name: self.name().to_owned(),
            pid: self.pid(),
            status,
            out_of_memory: is_killed && scarcity::blame(1) == 1,
            peak_memory: self.child.peak_memory(),
            ..WorkerLost::default()
        })
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.child.name)
            .field("pid", &self.pid())
            .field("status", &self.child.known_status())
            .finish_non_exhaustive()
    }
}
