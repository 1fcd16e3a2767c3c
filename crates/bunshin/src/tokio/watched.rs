//! Waiting for a descriptor.
//!
//! The runtime is told of changes only (its `epoll` is edge-triggered), and what our descriptors
//! stand for is looked at elsewhere. So whoever has found nothing looks at the descriptor
//! itself before it sleeps: if that says that there is something, no change may come any more.

use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::task;

use crate::error::{Error, Result};
use crate::sys::socket;

/// Times that others have a turn before it is assumed that somebody is stopped, or slow, in the
/// middle of what keeps this one from going on.
const TURNS: u32 = 16;
/// How long it then waits before it tries again.
const NAP: Duration = Duration::from_millis(20);

/// A descriptor that the runtime watches.
#[derive(Debug)]
pub(super) struct Watched {
    fd: AsyncFd<OwnedFd>,
}

impl Watched {
    pub(super) fn new(fd: BorrowedFd<'_>, interest: Interest) -> Result<Self> {
        // A descriptor of its own: it is taken out of the runtime before it is closed.
        Self::of(socket::duplicate(fd).map_err(not_watched)?, interest)
    }

    fn of(fd: OwnedFd, interest: Interest) -> Result<Self> {
        #[allow(
            deprecated,
            reason = "what replaces it is unsafe and new; an owned descriptor is what it is safe for"
        )]
        let fd = AsyncFd::with_interest(fd, interest).map_err(not_watched)?;
        Ok(Self { fd })
    }

    /// Whether it is readable at this moment.
    pub(super) fn is_readable(&self) -> Result<bool> {
        self.is(socket::Interest::Readable)
    }

    /// Whether it can be written to at this moment.
    pub(super) fn is_writable(&self) -> Result<bool> {
        self.is(socket::Interest::Writable)
    }

    fn is(&self, interest: socket::Interest) -> Result<bool> {
        let fds = [(self.fd.get_ref().as_fd(), interest)];
        let count = socket::poll(&fds, Some(Instant::now()), &mut Vec::new());
        Ok(count.map_err(|error| Error::os("look at a descriptor", error))? > 0)
    }

    /// Waits until it has become readable since this was last waited for.
    pub(super) async fn became_readable(&self) -> Result<()> {
        let mut guard = self.fd.readable().await.map_err(failed)?;
        guard.clear_ready();
        Ok(())
    }

    /// Waits until it has become writable since this was last waited for.
    pub(super) async fn became_writable(&self) -> Result<()> {
        let mut guard = self.fd.writable().await.map_err(failed)?;
        guard.clear_ready();
        Ok(())
    }

    /// Waits until it is readable, and leaves it so: for what never ceases to be.
    pub(super) async fn is_ready(&self) -> Result<()> {
        let mut guard = self.fd.readable().await.map_err(failed)?;
        guard.retain_ready();
        Ok(())
    }

    /// Waits, after an attempt has found nothing, until another one is worth making.
    pub(super) async fn next_look(&self, looks: &mut u32) -> Result<()> {
        if self.is_readable()? {
            // Somebody else is about to take what is there, or to say that there is nothing.
            give_way(looks).await
        } else {
            *looks = 0;
            self.became_readable().await
        }
    }
}

/// Descriptors that are waited for once, and a time limit: what `poll` is elsewhere.
#[derive(Debug)]
pub(super) struct Alarm {
    any: Watched,
    /// It leaves `any` when it is closed.
    _timer: Option<OwnedFd>,
}

impl Alarm {
    /// Has the runtime watch the descriptors, as they are now, and the time.
    pub(super) fn new(
        handles: &[(BorrowedFd<'_>, socket::Interest)],
        deadline: Option<Instant>,
    ) -> Result<Self> {
        // A timer of the kernel's, as the runtime need not have one.
        let timer = deadline.map(socket::timer).transpose();
        let timer = timer.map_err(not_watched)?;
        let mut handles = handles.to_vec();
        handles.extend(
            timer
                .iter()
                .map(|it| (it.as_fd(), socket::Interest::Readable)),
        );
        let any = socket::any_ready(&handles).map_err(not_watched)?;
        Ok(Self {
            any: Watched::of(any, Interest::READABLE)?,
            _timer: timer,
        })
    }

    /// Waits until a descriptor is ready, or the time has come.
    pub(super) async fn rings(self) -> Result<()> {
        self.any.is_ready().await
    }
}

fn not_watched(error: std::io::Error) -> Error {
    Error::os("have a descriptor watched", error)
}

fn failed(error: std::io::Error) -> Error {
    Error::os("wait for a descriptor", error)
}

/// Waits for somebody who only takes a moment, unless they are stopped.
pub(super) async fn give_way(looks: &mut u32) -> Result<()> {
    *looks += 1;
    if *looks <= TURNS {
        task::yield_now().await;
        return Ok(());
    }
    // Nothing tells when they go on. A timer would do, but a runtime need not have one.
    blocking(|| std::thread::sleep(NAP)).await
}

/// Runs what waits on a thread of the runtime's that is there for that.
pub(super) async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R> {
    let ended = task::spawn_blocking(work).await;
    ended.map_err(|error| Error::os("wait on a thread of the runtime's", error.into()))
}

/// Lets others of this thread have a turn, if they have not had one for long.
pub(super) async fn take_turns() {
    task::coop::consume_budget().await;
}

/// Waits for the first of two.
pub(super) async fn either<T>(one: impl Future<Output = T>, other: impl Future<Output = T>) -> T {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|context| match one.as_mut().poll(context) {
        Poll::Pending => other.as_mut().poll(context),
        ready => ready,
    })
    .await
}
