//! Who this process is, who started it, and whom it has started.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::handle::{Process, living_children};
use super::start_method::StartMethod;
use crate::error::{Error, Result};
use crate::sys::mutex::ForkMutex;
use crate::sys::process;
use crate::sys::socket::{self, Interest};
use crate::transport::Patience;

/// The name of a process that was not started by this crate.
const MAIN: &str = "MainProcess";

/// What a child knows of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) name: String,
    daemon: bool,
    method: StartMethod,
    /// Its number among its parent's children, after those of all above it.
    numbers: Vec<u32>,
    parent_name: String,
    parent_pid: u32,
}

/// The identity of this process, if it was started by this crate.
static OWN: ForkMutex<Option<Arc<Identity>>> = ForkMutex::new(None);

/// Numbers the children of this process.
static STARTED: AtomicU32 = AtomicU32::new(0);

fn own() -> Option<Arc<Identity>> {
    OWN.lock().clone()
}

impl Identity {
    /// The identity of the next child of this process.
    pub(super) fn of_child(name: Option<String>, method: StartMethod, daemon: bool) -> Self {
        let own = own();
        let mut numbers = own.as_ref().map_or(Vec::new(), |own| own.numbers.clone());
        numbers.push(STARTED.fetch_add(1, Ordering::Relaxed) + 1);
        let name = name.unwrap_or_else(|| {
            let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
            format!("Process-{}", numbers.join(":"))
        });
        Self {
            name,
            daemon,
            method,
            numbers,
            parent_name: own.map_or_else(|| MAIN.to_owned(), |own| own.name.clone()),
            parent_pid: std::process::id(),
        }
    }

    /// One for nobody, to try the encoding with; numbers no child.
    pub(super) fn of_rehearsal() -> Self {
        Self {
            name: String::new(),
            daemon: false,
            method: StartMethod::Forkserver,
            numbers: Vec::new(),
            parent_name: String::new(),
            parent_pid: 0,
        }
    }

    /// The same with another name.
    pub(super) fn named(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// Makes it this process's own.
    pub(super) fn adopt(self) {
        STARTED.store(0, Ordering::Relaxed);
        *OWN.lock() = Some(Arc::new(self));
    }
}

/// This process; see [`current_process`].
///
/// # Examples
/// ```
/// assert!(bunshin::current_process().is_main());
/// ```
#[derive(Clone, Debug)]
pub struct CurrentProcess {
    identity: Option<Arc<Identity>>,
}

/// This process, as whoever started it sees it.
///
/// # Source
/// CPython's `multiprocessing.current_process`.
///
/// # Examples
/// ```
/// use bunshin::{Process, StartMethod, current_process};
///
/// assert_eq!(current_process().name(), "MainProcess");
/// let child = Process::builder()
///     .name("reader")
///     .start_method(StartMethod::Spawn)
///     .start(|| (current_process().name().to_owned(), current_process().start_method()), ())?;
/// assert_eq!(child.result()?, ("reader".to_owned(), Some(StartMethod::Spawn)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn current_process() -> CurrentProcess {
    CurrentProcess { identity: own() }
}

impl CurrentProcess {
    /// Its name: the one it was started with, or `MainProcess`.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::current_process().name(), "MainProcess");
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        self.identity.as_ref().map_or(MAIN, |own| &own.name)
    }

    /// Its process id.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::current_process().pid(), std::process::id());
    /// ```
    #[doc(alias = "ident")]
    #[must_use]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Whether it is killed, rather than waited for, when its handle is dropped.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, current_process};
    ///
    /// let builder = Process::builder().daemon(true);
    /// assert!(builder.start(|| current_process().is_daemon(), ())?.result()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "daemon")]
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.identity.as_ref().is_some_and(|own| own.daemon)
    }

    /// How it was started; nothing if not by this crate.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(bunshin::current_process().start_method(), None);
    /// ```
    #[must_use]
    pub fn start_method(&self) -> Option<StartMethod> {
        self.identity.as_ref().map(|own| own.method)
    }

    /// Whether it was not started by this crate: the first of its tree.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, current_process};
    ///
    /// assert!(current_process().is_main());
    /// assert!(!Process::start(|| current_process().is_main(), ())?.result()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.identity.is_none()
    }
}

/// The process that started this one; see [`parent_process`].
///
/// # Examples
/// ```
/// use bunshin::{Process, parent_process};
///
/// let child = Process::start(
///     || parent_process().ok().flatten().map(|parent| parent.is_alive()),
///     (),
/// )?;
/// assert_eq!(child.result()?, Some(true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ParentProcess {
    name: String,
    pid: u32,
    sentinel: OwnedFd,
}

/// The process that started this one, or nothing in the first process of the tree.
///
/// A child ends with its parent, so that it normally finds it alive. A copy that
/// [`fork`](crate::fork()) has made goes on, and may find it gone.
///
/// # Errors
/// `Os` if the system gives no handle of it.
///
/// # Source
/// CPython's `multiprocessing.parent_process`.
///
/// # Examples
/// ```
/// use bunshin::{Process, parent_process};
///
/// assert!(parent_process()?.is_none());
/// let child = Process::start(
///     || {
///         let parent = parent_process().ok().flatten().expect("somebody started this one");
///         (parent.name().to_owned(), parent.pid(), parent.is_alive())
///     },
///     (),
/// )?;
/// assert_eq!(child.result()?, ("MainProcess".to_owned(), std::process::id(), true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn parent_process() -> Result<Option<ParentProcess>> {
    let Some(own) = own() else { return Ok(None) };
    let pid = own.parent_pid;
    let failed = |error| Error::os(format!("watch the parent (pid {pid})"), error);
    let watched = process::watch(pid);
    let sentinel = if process::parent_id() == pid {
        // It lives, so that the number was not anyone else's when the handle was opened.
        watched.map_err(failed)?
    } else {
        let gone = socket::event().map_err(failed)?;
        socket::event_set(gone.as_fd());
        gone
    };
    Ok(Some(ParentProcess {
        name: own.parent_name.clone(),
        pid,
        sentinel,
    }))
}

impl ParentProcess {
    /// Its name, or `MainProcess` if it was not started by this crate.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, parent_process};
    ///
    /// let child = Process::start(
    ///     || parent_process().ok().flatten().map(|parent| parent.name().to_owned()),
    ///     (),
    /// )?;
    /// assert_eq!(child.result()?, Some("MainProcess".to_owned()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, parent_process};
    ///
    /// let child = Process::start(
    ///     || parent_process().ok().flatten().map(|parent| parent.pid()),
    ///     (),
    /// )?;
    /// assert_eq!(child.result()?, Some(std::process::id()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "ident")]
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended yet.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, parent_process};
    ///
    /// let child = Process::start(
    ///     || parent_process().ok().flatten().map(|parent| parent.is_alive()),
    ///     (),
    /// )?;
    /// assert_eq!(child.result()?, Some(true));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process::parent_id() == self.pid
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// `Os` if the system refuses to wait.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, parent_process};
    ///
    /// fn outlive() {
    ///     if let Ok(Some(parent)) = parent_process() {
    ///         // A child that was started ends with its parent, here.
    ///         let _ = parent.join();
    ///     }
    /// }
    ///
    /// let child = Process::start(outlive, ())?;
    /// assert!(child.is_alive());
    /// child.kill()?;
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn join(&self) -> Result<()> {
        self.wait(Patience::Forever).map(drop)
    }

    /// Waits until it has ended, for so long at most; says whether it has.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, parent_process};
    ///
    /// let child = Process::start(
    ///     || parent_process().ok().flatten().map(|parent| parent.join_timeout(std::time::Duration::ZERO).ok()),
    ///     (),
    /// )?;
    /// assert_eq!(child.result()?, Some(Some(false)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool> {
        self.wait(Patience::within(timeout))
    }

    fn wait(&self, patience: Patience) -> Result<bool> {
        let watched = [(self.sentinel(), Interest::Readable)];
        let mut ready = Vec::new();
        let count = socket::poll(&watched, patience.deadline(), &mut ready)
            .map_err(|error| Error::os(format!("join the parent (pid {})", self.pid), error))?;
        Ok(count > 0)
    }

    /// A descriptor that is readable once it has ended; [`wait`](crate::wait) takes the
    /// parent as it is.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, parent_process};
    ///
    /// let child = Process::start(
    ///     || parent_process().ok().flatten().map(|parent| std::os::fd::AsRawFd::as_raw_fd(&parent.sentinel()) > 2),
    ///     (),
    /// )?;
    /// assert_eq!(child.result()?, Some(true));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn sentinel(&self) -> BorrowedFd<'_> {
        self.sentinel.as_fd()
    }
}

/// The children of this process that have not ended, in the order in which they were
/// started; collects those that have.
///
/// Workers of pools are among them, and children whose handle was dropped. The handles are
/// as good as those that the starts have returned, except that the results go to those.
/// As long as one is kept, a daemon is not killed by dropping the other.
///
/// # Source
/// CPython's `multiprocessing.active_children`.
///
/// # Examples
/// ```
/// use bunshin::{Process, active_children};
///
/// let child = Process::builder().name("idler").start(|| std::thread::park(), ())?;
/// for child in active_children() {
///     assert_eq!(child.name(), "idler");
///     child.kill()?;
/// }
/// assert_eq!(child.join()?.signal(), Some(9));
/// assert!(active_children().is_empty());
/// # Ok::<(), bunshin::Error>(())
/// ```
#[must_use]
pub fn active_children() -> Vec<Process> {
    living_children()
        .into_iter()
        .map(|child| Process::new(child, None))
        .collect()
}
