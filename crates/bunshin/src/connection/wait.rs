//! Waiting for many connections and processes at once.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::duplex::Connection;
use super::receiver::Receiver;
use super::stream::StreamConnection;
use crate::error::{Error, Result};
use crate::process::{ParentProcess, Process};
use crate::sys::socket::{self, Interest};
use crate::transport::Patience;

/// What [`wait`] can wait for: a [`Receiver`], [`Connection`], [`StreamConnection`] or
/// [`Queue`](crate::Queue) that has something to receive, a [`Process`] or [`ParentProcess`] that
/// has ended.
///
/// # Examples
/// ```
/// use bunshin::{Process, Waitable, channel, wait};
///
/// let (sender, receiver) = channel::<u8>()?;
/// let child = Process::start(|| (), ())?;
/// let objects: [&dyn Waitable; 2] = [&receiver, &child];
/// assert_eq!(wait(&objects, None)?, [1]);
/// # drop(sender);
/// # Ok::<(), bunshin::Error>(())
/// ```
pub trait Waitable: sealed::Watch {}

pub(crate) mod sealed {
    use super::{BorrowedFd, Result};

    pub trait Watch {
        /// Begins to watch; true if it is ready already.
        fn begin(&self) -> bool;
        /// The handle that becomes readable.
        fn handle(&self) -> BorrowedFd<'_>;
        /// Ends the watch; true if it is ready.
        fn end(&self, was_readable: bool) -> Result<bool>;
        /// Whether it may become ready without its handle becoming readable.
        fn may_end_unheard(&self) -> bool {
            false
        }
    }
}

impl<T> Waitable for Receiver<T> {}

impl<T> sealed::Watch for Receiver<T> {
    fn begin(&self) -> bool {
        self.untyped().begin_watch()
    }

    fn handle(&self) -> BorrowedFd<'_> {
        self.untyped().side.socket()
    }

    fn end(&self, _was_readable: bool) -> Result<bool> {
        self.untyped().end_watch().map_err(Error::from)
    }

    fn may_end_unheard(&self) -> bool {
        self.untyped().may_end_unheard()
    }
}

impl<S, R> Waitable for Connection<S, R> {}

impl<S, R> sealed::Watch for Connection<S, R> {
    fn begin(&self) -> bool {
        self.receiver().begin()
    }

    fn handle(&self) -> BorrowedFd<'_> {
        self.receiver().handle()
    }

    fn end(&self, was_readable: bool) -> Result<bool> {
        self.receiver().end(was_readable)
    }

    fn may_end_unheard(&self) -> bool {
        self.receiver().may_end_unheard()
    }
}

impl<S, R> Waitable for StreamConnection<S, R> {}

impl<S, R> sealed::Watch for StreamConnection<S, R> {
    fn begin(&self) -> bool {
        // What goes wrong here goes wrong at the end as well, and is told there.
        self.link().poll(Patience::Never).unwrap_or(false)
    }

    fn handle(&self) -> BorrowedFd<'_> {
        self.link().wire().socket()
    }

    fn end(&self, _was_readable: bool) -> Result<bool> {
        self.link().poll(Patience::Never)
    }
}

impl<R> Waitable for Process<R> {}

impl<R> sealed::Watch for Process<R> {
    fn begin(&self) -> bool {
        false
    }

    fn handle(&self) -> BorrowedFd<'_> {
        self.sentinel()
    }

    fn end(&self, was_readable: bool) -> Result<bool> {
        Ok(was_readable)
    }
}

impl Waitable for ParentProcess {}

impl sealed::Watch for ParentProcess {
    fn begin(&self) -> bool {
        false
    }

    fn handle(&self) -> BorrowedFd<'_> {
        self.sentinel()
    }

    fn end(&self, was_readable: bool) -> Result<bool> {
        Ok(was_readable)
    }
}

/// How long to sleep while siblings of a dead process may keep its end of a pipe open.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Waits until at least one of the objects is ready, for so long at most.
///
/// A connection is ready when there is a message to receive or its sender is gone, a
/// queue when it has an item or is closed, a process when it has ended. Returns the
/// positions of those that are ready, in order; none if the time has passed. Without a
/// timeout, waits for ever; on no objects at all it returns at once.
///
/// # Errors
/// `Os` if the system refuses to wait.
///
/// # Source
/// CPython's `multiprocessing.connection.wait`.
///
/// # Examples
/// ```
/// use bunshin::{channel, wait};
///
/// let (_quiet, first) = channel::<u8>()?;
/// let (loud, second) = channel::<u8>()?;
/// loud.send(1)?;
/// assert_eq!(wait(&[&first, &second], None)?, [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn wait(objects: &[&dyn Waitable], timeout: Option<Duration>) -> Result<Vec<usize>> {
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let patience = timeout.map_or(Patience::Forever, Patience::within);
    loop {
        let mut is_ready = false;
        for object in objects {
            is_ready |= object.begin();
        }
        let handles: Vec<_> = objects
            .iter()
            .map(|object| (object.handle(), Interest::Readable))
            .collect();
        let patience = if is_ready { Patience::Never } else { patience };
        let mut deadline = patience.deadline();
        if objects.iter().any(|object| object.may_end_unheard()) {
            let soon = Instant::now() + LOOK_AGAIN;
            deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
        }
        let mut readable = Vec::new();
        let polled = socket::poll(&handles, deadline, &mut readable)
            .map_err(|error| Error::os(format!("wait for {} objects", objects.len()), error));
        let mut ready = Vec::new();
        // Every watch is ended, also where one of them fails.
        let mut failed = polled.err();
        for (position, object) in objects.iter().enumerate() {
            match object.end(readable.get(position).copied().unwrap_or(false)) {
                Ok(true) => ready.push(position),
                Ok(false) => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if !ready.is_empty() || patience.is_over() {
            return Ok(ready);
        }
    }
}
