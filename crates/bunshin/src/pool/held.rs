//! The lock over all of a pool that changes.
//!
//! Futures are woken by who lets go of it, afterwards: what a waker does is the user's, and
//! may come back to the pool.

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::Waker;
use std::time::Duration;

use super::dispatcher::{Core, Dispatcher};
use super::state::Phase;
use crate::error::Result;

/// A batch whose results a future waits for.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) batch: u64,
    /// Whether it has nothing under way, and waits for room in the table.
    for_room: bool,
    waker: Waker,
}

impl Core {
    /// Whether a future waits for results.
    pub(crate) fn is_awaited(&self) -> bool {
        self.posts.is_awaited() || !self.streams.is_empty()
    }

    fn is_due(&self, batch: u64, for_room: bool) -> bool {
        let is_running = matches!(self.state.phase(), Phase::Open | Phase::Closed);
        self.state.has_mail(batch)
            || !is_running
            || (for_room && (self.state.n_free() > 0 || !self.state.untaken().is_empty()))
    }

    /// The futures that have something to do now.
    fn due(&mut self) -> Vec<Waker> {
        let mut due = mem::take(&mut self.posts.wakers);
        if !self.streams.is_empty() {
            let streams = mem::take(&mut self.streams);
            let (ready, others) = streams
                .into_iter()
                .partition(|stream: &Stream| self.is_due(stream.batch, stream.for_room));
            self.streams = others;
            due.extend(ready.into_iter().map(|stream: Stream| stream.waker));
        }
        due
    }
}

impl Dispatcher {
    /// Has a future woken once there is something for its batch, and sees to it that there will
    /// be though nobody waits. True if there is something already, and nobody will be woken.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    pub(crate) fn watch_batch(&self, batch: u64, for_room: bool, waker: &Waker) -> Result<bool> {
        self.check_ours()?;
        let mut core = self.lock();
        core.collect();
        self.tell_others(&mut core, batch);
        core.streams.retain(|stream| stream.batch != batch);
        if core.is_due(batch, for_room) {
            return Ok(true);
        }
        self.have_attendant(&mut core)?;
        core.streams.push(Stream {
            batch,
            for_room,
            waker: waker.clone(),
        });
        // The thread may sleep over what it saw before.
        self.call_on_duty(&core);
        Ok(false)
    }
}

/// The lock while it is held.
pub(crate) struct Held<'a> {
    lock: &'a Mutex<Core>,
    /// There until it is dropped.
    core: Option<MutexGuard<'a, Core>>,
}

impl<'a> Held<'a> {
    pub(crate) fn new(lock: &'a Mutex<Core>) -> Self {
        let core = lock.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            lock,
            core: Some(core),
        }
    }

    /// Without waiting for whoever holds it.
    pub(crate) fn try_new(lock: &'a Mutex<Core>) -> Option<Self> {
        let core = match lock.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Self {
            lock,
            core: Some(core),
        })
    }

    /// Waits to be notified; may return without that.
    pub(crate) fn wait(mut self, condition: &Condvar, left: Option<Duration>) -> Self {
        let lock = self.lock;
        let Some(mut core) = self.core.take() else {
            return Self::new(lock);
        };
        let due = core.due();
        if !due.is_empty() {
            drop(core);
            due.into_iter().for_each(Waker::wake);
            return Self::new(lock);
        }
        let core = match left {
            None => condition.wait(core).unwrap_or_else(PoisonError::into_inner),
            Some(left) => {
                let woken = condition.wait_timeout(core, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        Self {
            lock,
            core: Some(core),
        }
    }
}

const HELD: &str = "the lock is held until this is dropped";

impl Deref for Held<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.core.as_ref().expect(HELD)
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        self.core.as_mut().expect(HELD)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(mut core) = self.core.take() {
            let due = core.due();
            drop(core);
            due.into_iter().for_each(Waker::wake);
        }
    }
}

impl fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}
