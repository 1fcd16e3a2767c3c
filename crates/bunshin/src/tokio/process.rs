//! Processes.

use std::fmt;
use std::os::fd::AsFd;

use ::tokio::io::Interest;
use serde::de::DeserializeOwned;

use super::watched::{Watched, blocking, either};
use crate::error::Result;
use crate::process::{self as plain, ExitStatus, TaskError};

/// A [`Process`](crate::Process) whose end is awaited.
///
/// Dropping it does what dropping that does: the child goes on, and is waited for when this
/// process ends, unless it is a daemon.
///
/// # Examples
/// ```
/// use bunshin::StartMethod;
/// use bunshin::tokio::Process;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// # runtime.block_on(async {
/// let builder = bunshin::Process::builder().start_method(StartMethod::Spawn);
/// let child = Process::new(builder.start(|| std::thread::park(), ())?)?;
/// child.get_ref().kill()?;
/// assert_eq!(child.join().await?.signal(), Some(9));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Process<R = ()> {
    inner: plain::Process<R>,
    ended: Watched,
}

impl<R> Process<R> {
    /// Has the current runtime watch a process.
    ///
    /// # Errors
    /// `Os` where this process has too many files open.
    ///
    /// # Panics
    /// Outside of a runtime with `enable_io`.
    pub fn new(process: plain::Process<R>) -> Result<Self> {
        let ended = Watched::new(process.sentinel(), Interest::READABLE)?;
        Ok(Self {
            inner: process,
            ended,
        })
    }

    /// The process itself: to look at it, to signal it.
    #[must_use]
    pub fn get_ref(&self) -> &plain::Process<R> {
        &self.inner
    }

    /// Gives the process back.
    #[must_use]
    pub fn into_inner(self) -> plain::Process<R> {
        self.inner
    }

    /// Waits until the child has ended.
    ///
    /// Cancel safe, and can be asked any number of times.
    ///
    /// # Errors
    /// As [`Process::join`](crate::Process::join).
    #[doc(alias = "wait")]
    pub async fn join(&self) -> Result<ExitStatus> {
        self.ended.is_ready().await?;
        // It does not wait any more.
        self.inner.join()
    }
}

impl<R: DeserializeOwned + Send + 'static> Process<R> {
    /// Waits for what the child's target returns, and then for its end.
    ///
    /// A result that is too long to have come whole is read on a thread of the runtime's for
    /// blocking work, while the child sends it. If the future is dropped, the result is lost
    /// and the child goes on, as when the handle is dropped.
    ///
    /// # Errors
    /// As [`Process::result`](crate::Process::result).
    pub async fn result(self) -> Result<R, TaskError> {
        let Self { inner, ended } = self;
        if let Some(control) = inner.control() {
            let told = Watched::new(control.as_fd(), Interest::READABLE);
            let told = told.map_err(TaskError::Pool)?;
            either(told.is_ready(), ended.is_ready())
                .await
                .map_err(TaskError::Pool)?;
        }
        let (inner, message) = if inner.has_whole_message() {
            let message = inner.receive();
            (inner, message)
        } else {
            let receive = move || {
                let message = inner.receive();
                (inner, message)
            };
            blocking(receive).await.map_err(TaskError::Pool)?
        };
        let message = message?;
        ended.is_ready().await.map_err(TaskError::Pool)?;
        let status = inner.join().map_err(TaskError::Pool)?;
        inner.read(message, Some(status))
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
