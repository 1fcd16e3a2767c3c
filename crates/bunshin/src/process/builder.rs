//! Starting a process.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bootstrap::{self, Preparation, START};
use super::current::Identity;
use super::handle::{self, Child, Detached, Process, collect_detached};
use super::start_method::{StartMethod, start_method};
use super::target::{self, Target};
use super::{fork, forkserver, scarcity, spawn};
use crate::codec::attachments::Outgoing;
use crate::codec::serde::encode;
use crate::error::{Error, Result};
use crate::sys::process::{self, Sig};
use crate::sys::{image, socket};
use crate::transport::stream;

/// How a process is to be started.
///
/// # Examples
/// ```
/// use bunshin::{Process, StartMethod};
///
/// let child = Process::builder().start_method(StartMethod::Spawn).start(|| 7, ())?;
/// assert_eq!(child.result()?, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ProcessBuilder {
    name: Option<String>,
    daemon: bool,
    start_method: Option<StartMethod>,
    pub(super) may_fork_threads: bool,
}

impl ProcessBuilder {
    /// The child's name, for error messages, logs and `ps`. By default `Process-1`
    /// and so on, and for a child of that one `Process-1:1`.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::builder().name("reader").start(|| (), ())?;
    /// assert_eq!(child.name(), "reader");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether the child is killed when its handle is dropped. By default it is not: this
    /// process waits for it before it ends.
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::builder().daemon(true).start(|| std::thread::park(), ())?;
    /// assert!(child.is_daemon());
    /// // It is killed here.
    /// drop(child);
    /// assert!(bunshin::active_children().is_empty());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// The start method. By default that of [`start_method`](crate::start_method).
    ///
    /// # Examples
    /// ```
    /// use bunshin::{Process, StartMethod, current_process};
    ///
    /// let builder = Process::builder().start_method(StartMethod::Spawn);
    /// let child = builder.start(|| current_process().start_method(), ())?;
    /// assert_eq!(child.result()?, Some(StartMethod::Spawn));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.start_method = Some(method);
        self
    }

    /// Starts the process.
    ///
    /// # Errors
    /// As [`Process::start`].
    ///
    /// # Examples
    /// ```
    /// let child = bunshin::Process::builder().start(|a: i32, b: i32| a * b, (6, 7))?;
    /// assert_eq!(child.result()?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn start<F, Args>(self, target: F, args: Args) -> Result<Process<F::Output>>
    where
        F: Target<Args>,
        F::Output: Serialize + DeserializeOwned,
        Args: Serialize + DeserializeOwned,
    {
        let mut outgoing = Outgoing::default();
        let mut arguments = Vec::new();
        let entry = target::locate(target)?;
        encode(&args, &mut arguments, &mut outgoing)?;
        // The child has its own now; if this one were kept until the child ends, the child
        // would not learn that a pipe of it is closed.
        drop(args);
        let (child, control) = self.launch(entry, arguments, outgoing)?;
        Ok(Process::new(child, Some(control)))
    }

    fn launch(
        self,
        entry: u64,
        arguments: Vec<u8>,
        mut outgoing: Outgoing,
    ) -> Result<(Arc<Child>, OwnedFd)> {
        collect_detached();
        scarcity::look(false);
        let method = self.start_method.unwrap_or_else(start_method);
        let identity = Identity::of_child(self.name, method, self.daemon);
        let name = identity.name.clone();
        let pair =
            || socket::pair().map_err(|error| Error::os(format!("start process {name}"), error));
        let body = |identity, outgoing: &mut Outgoing| {
            // A copy of the server has the server's working directory.
            let directory = (method == StartMethod::Forkserver)
                .then(|| std::env::current_dir().ok())
                .flatten()
                .map(|directory| directory.into_os_string().into_vec());
            let preparation = Preparation {
                stamp: image::stamp(),
                entry,
                identity,
                directory,
                records: None,
            };
            #[cfg(feature = "tracing")]
            let preparation = preparation.with_records(outgoing);
            #[cfg(not(feature = "tracing"))]
            let _ = outgoing;
            // What is printed next by the child comes after what was printed here.
            let _ = std::io::stdout().flush();
            bootstrap::start_body(&preparation, &arguments)
        };
        let (started, control) = match method {
            StartMethod::Fork => {
                let (control, theirs) = pair()?;
                let handles = std::mem::take(&mut outgoing.handles);
                let call = move || bootstrap::forked_call(arguments, handles);
                let forked = fork::start_forked(
                    entry,
                    identity,
                    &control,
                    theirs,
                    self.may_fork_threads,
                    call,
                )?;
                (forked, control)
            }
            StartMethod::Spawn => {
                let (control, theirs) = pair()?;
                // The message waits in the socket, so that the child need not wait for it.
                let body = body(identity, &mut outgoing)?;
                stream::send(control.as_fd(), START, &body, &mut outgoing)?;
                (spawn::start(spawn::CHILD, theirs)?, control)
            }
            StartMethod::Forkserver => {
                let body = body(identity, &mut outgoing)?;
                let forkserver::Waiting { started, control } = forkserver::take()?;
                match stream::send(control.as_fd(), START, &body, &mut outgoing) {
                    // One that was killed just now is seen like any other that ends early.
                    Err(error) if !error.is_disconnected() => {
                        let _ = process::signal(started.pidfd.as_fd(), Sig::KILL);
                        handle::collect_later(Detached::new(name, started));
                        return Err(error);
                    }
                    _ => {}
                }
                forkserver::order_next();
                (started, control)
            }
        };
        #[cfg(feature = "tracing")]
        crate::log::resume();
        Ok((Child::register(name, started, self.daemon), control))
    }
}

/// Starts a process that runs a function of this crate's on encoded arguments.
pub(crate) fn start_entry(
    builder: ProcessBuilder,
    entry: u64,
    arguments: Vec<u8>,
    outgoing: Outgoing,
) -> Result<(Arc<Child>, OwnedFd)> {
    builder.launch(entry, arguments, outgoing)
}
