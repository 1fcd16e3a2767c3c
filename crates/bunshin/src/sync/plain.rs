//! Primitives without guards, for a front in a language that has none.
//!
//! There, whoever has a lock gives it back by a call, and maybe it is another thread or process
//! that does. Beside that, these are what the rest of this folder is, over the same memory. Waits
//! take a time limit, and may end without success when the front wants an interruption.

use std::io;
use std::time::{Duration, Instant};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::barrier::BarrierError;
use super::travels;
use crate::codec::attachments::{Incoming, Outgoing};
use crate::error::{Error, ErrorKind, Result};
use crate::shm::barrier::{MOST_PARTIES, SharedBarrier};
use crate::shm::condition::SharedCondition;
use crate::shm::event::SharedEvent;
use crate::shm::lock;
use crate::shm::owned::OwnedLock;
use crate::shm::semaphore::{Kept, MOST_PERMITS, SharedSemaphore};
use crate::sys::awake::Awake;
use crate::sys::thread;

/// Looks for a while, if there is time; whether it is done.
fn stay(awake: &Awake, deadline: Option<Instant>, is_done: impl Fn() -> bool) -> bool {
    is_done() || (deadline.is_none_or(|deadline| Instant::now() < deadline) && awake.until(is_done))
}

static LOCKS: Awake = Awake::new();
static SEMAPHORES: Awake = Awake::new();
static CONDITIONS: Awake = Awake::new();
static EVENTS: Awake = Awake::new();
static BARRIERS: Awake = Awake::new();

/// The moment at which so much time will be over; none is for ever.
fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(timeout?)
}

/// How something was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// From somebody who gave it back.
    Clean,
    /// From somebody who died with it.
    Abandoned,
}

impl From<lock::Taken> for Taken {
    fn from(taken: lock::Taken) -> Self {
        match taken {
            lock::Taken::Clean => Self::Clean,
            lock::Taken::Abandoned => Self::Abandoned,
        }
    }
}

/// A lock that any thread of any process may give back.
#[derive(Clone, Debug)]
pub struct PlainLock(OwnedLock);

impl PlainLock {
    /// Makes a free lock.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Os` where the process has too many files open.
    pub fn new() -> Result<Self> {
        OwnedLock::create().map(Self)
    }

    /// Takes it if it is free, or its holder's process has ended.
    ///
    /// # Errors
    /// `Unsupported` where the system does not tell when a process began.
    #[inline]
    pub fn try_lock(&self) -> Result<Option<Taken>> {
        let taken = self.0.try_lock();
        Ok(taken.map_err(|error| failed(&error))?.map(Taken::from))
    }

    /// Takes it, waiting for so long at most; nothing if the time is over, or the wait was
    /// interrupted.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    pub fn lock(&self, timeout: Option<Duration>) -> Result<Option<Taken>> {
        let deadline = deadline(timeout);
        stay(&LOCKS, deadline, || self.0.owner() == 0);
        let taken = self.0.lock(deadline);
        Ok(taken.map_err(|error| failed(&error))?.map(Taken::from))
    }

    /// As [`try_lock`](Self::try_lock), with a closer look at whether the holder has ended.
    ///
    /// # Errors
    /// As there.
    pub fn try_lock_thoroughly(&self) -> Result<Option<Taken>> {
        let taken = self.0.try_lock_thoroughly();
        Ok(taken.map_err(|error| failed(&error))?.map(Taken::from))
    }

    /// Gives it back, whoever holds it. Says whether anybody did.
    #[inline]
    pub fn unlock(&self) -> bool {
        self.0.unlock()
    }

    /// Whether this thread holds it.
    #[inline]
    #[must_use]
    pub fn is_mine(&self) -> bool {
        let owner = self.0.owner();
        owner != 0 && thread::identity().is_ok_and(|own| own == owner)
    }

    /// Whether anybody holds it.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.0.owner() != 0
    }

    /// Whether a thread of this process holds it.
    #[must_use]
    pub fn is_held_here(&self) -> bool {
        let owner = self.0.owner();
        owner != 0 && thread::identity().is_ok_and(|own| thread::is_same_process(own, owner))
    }

    /// A count beside the lock, of which its holder alone makes something.
    #[inline]
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.0.depth()
    }

    /// Sets that count.
    #[inline]
    pub fn set_depth(&self, depth: u32) {
        self.0.set_depth(depth);
    }
}

fn failed(error: &io::Error) -> Error {
    Error::os(
        "take a lock",
        io::Error::new(error.kind(), error.to_string()),
    )
}

impl Serialize for PlainLock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let memory = super::depart(self.0.fd(), "a lock")
            .map_err(|error| S::Error::custom(Outgoing::fail(error)))?;
        (memory, self.0.index()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PlainLock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (memory, index) = <(u32, u32)>::deserialize(deserializer)?;
        let lock = Incoming::detach(memory).and_then(|fd| OwnedLock::attach(fd, index));
        lock.map(Self).map_err(D::Error::custom)
    }
}

/// A semaphore.
#[derive(Clone)]
pub struct PlainSemaphore {
    shared: SharedSemaphore,
}

travels!(PlainSemaphore, shared, SharedSemaphore, "a semaphore");

/// A permit that its holder is watched with.
#[derive(Clone, Copy, Debug)]
pub struct Permit(Kept);

impl Permit {
    /// Whether this thread took it.
    #[inline]
    #[must_use]
    pub fn is_mine(&self) -> bool {
        self.0.1 == thread::tid()
    }
}

impl PlainSemaphore {
    /// Makes a semaphore with so many permits, to which more may come unless it `is_bounded`.
    ///
    /// # Errors
    /// `InvalidInput` if they are too many; otherwise as for a lock.
    pub fn new(permits: u64, is_bounded: bool) -> Result<Self> {
        let permits = u32::try_from(permits).ok();
        let permits = permits.filter(|&permits| permits <= MOST_PERMITS);
        let permits = permits.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("a semaphore has {MOST_PERMITS} permits at most"),
            )
        })?;
        SharedSemaphore::create(permits, is_bounded).map(|shared| Self { shared })
    }

    /// Takes a permit if there is one; see [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As for a lock.
    #[inline]
    pub fn try_acquire(&self, keep: bool) -> Result<Option<(Permit, Taken)>> {
        let taken = self.shared.try_acquire();
        Ok(settle(taken.map_err(|error| failed(&error))?, keep))
    }

    /// Takes a permit, waiting for so long at most; nothing if the time is over, or the wait was
    /// interrupted.
    ///
    /// If it is to `keep` the permit, that comes back should this thread end, until
    /// [`give_back`](Self::give_back). Otherwise it is gone until somebody releases one.
    ///
    /// # Errors
    /// As for a lock.
    pub fn acquire(
        &self,
        keep: bool,
        timeout: Option<Duration>,
    ) -> Result<Option<(Permit, Taken)>> {
        let deadline = deadline(timeout);
        stay(&SEMAPHORES, deadline, || self.shared.may_have_some());
        let taken = self.shared.acquire_asleep(deadline);
        Ok(settle(taken.map_err(|error| failed(&error))?, keep))
    }

    /// Gives back a permit that this thread keeps.
    #[inline]
    pub fn give_back(&self, permit: Permit) {
        self.shared.kept(permit.0).give_back();
    }

    /// Adds a permit; `false` if there are as many as there may be.
    #[inline]
    #[must_use]
    pub fn release(&self) -> bool {
        self.shared.release()
    }

    /// How many permits are there just now.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.shared.value()
    }
}

#[inline]
fn settle(
    taken: Option<(crate::shm::semaphore::Permit<'_>, lock::Taken)>,
    keep: bool,
) -> Option<(Permit, Taken)> {
    let (permit, taken) = taken?;
    if !keep {
        permit.consume();
    }
    Some((Permit(permit.keep()), taken.into()))
}

/// A condition, apart from the lock that is used with it.
#[derive(Clone)]
pub struct PlainCondition {
    shared: SharedCondition,
}

travels!(PlainCondition, shared, SharedCondition, "a condition");

impl PlainCondition {
    /// Makes a condition.
    ///
    /// # Errors
    /// As for a lock.
    pub fn new() -> Result<Self> {
        SharedCondition::create().map(|shared| Self { shared })
    }

    /// Waits until notified; `false` if the time was over before, or the wait was interrupted.
    ///
    /// The caller has a lock, which `give_up` gives back, and `take_again` takes again.
    ///
    /// # Errors
    /// As for a lock.
    pub fn wait(
        &self,
        timeout: Option<Duration>,
        give_up: impl FnOnce(),
        take_again: impl FnOnce(),
    ) -> Result<bool> {
        let deadline = deadline(timeout);
        let waiter = self.shared.begin().map_err(|error| failed(&error))?;
        give_up();
        stay(&CONDITIONS, deadline, || waiter.is_called());
        let is_notified = waiter.sleep(deadline);
        take_again();
        Ok(is_notified)
    }

    /// Notifies so many who wait.
    pub fn notify(&self, n: u32) {
        self.shared.notify(n);
    }

    /// Notifies all who wait.
    pub fn notify_all(&self) {
        self.shared.notify_all();
    }

    /// How many wait, and how many of these were notified and have not gone on yet.
    #[must_use]
    pub fn n_waiting(&self) -> (u32, u32) {
        self.shared.n_waiting()
    }
}

/// An event.
#[derive(Clone)]
pub struct PlainEvent {
    shared: SharedEvent,
}

travels!(PlainEvent, shared, SharedEvent, "an event");

impl PlainEvent {
    /// Makes an event that is not set.
    ///
    /// # Errors
    /// As for a lock.
    pub fn new() -> Result<Self> {
        SharedEvent::create().map(|shared| Self { shared })
    }

    /// Whether it is set.
    #[inline]
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.shared.is_set()
    }

    /// Sets it, and wakes all who wait.
    #[inline]
    pub fn set(&self) {
        self.shared.set();
    }

    /// Takes it back.
    #[inline]
    pub fn clear(&self) {
        self.shared.clear();
    }

    /// Waits until it is set; `false` if the time was over before, or the wait was interrupted.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let deadline = deadline(timeout);
        let came = self.shared.moment();
        stay(&EVENTS, deadline, || self.shared.has_come(came))
            || self.shared.sleep_since(came, deadline)
    }
}

/// A barrier.
#[derive(Clone)]
pub struct PlainBarrier {
    shared: SharedBarrier,
}

travels!(PlainBarrier, shared, SharedBarrier, "a barrier");

impl PlainBarrier {
    /// Makes a barrier.
    ///
    /// # Errors
    /// `InvalidInput` if it is for nobody or for too many; otherwise as for a lock.
    pub fn new(parties: u64) -> Result<Self> {
        let parties = u32::try_from(parties).ok();
        let parties = parties.filter(|n| (1..=MOST_PARTIES).contains(n));
        let parties = parties.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("a barrier has from 1 to {MOST_PARTIES} parties"),
            )
        })?;
        SharedBarrier::create(parties).map(|shared| Self { shared })
    }

    /// Waits for the others, and says how many had come before. The last to come does `act`, and
    /// breaks the barrier if that fails. So does who runs out of time, or is interrupted.
    ///
    /// # Errors
    /// What `act` fails with, if it is this one who did it; otherwise how the barrier failed.
    pub fn wait<E: From<BarrierError>>(
        &self,
        timeout: Option<Duration>,
        act: impl FnOnce() -> Result<(), E>,
    ) -> Result<u32, E> {
        let deadline = deadline(timeout);
        let party = self.shared.arrive(false, deadline);
        let party = party.map_err(BarrierError::from)?;
        if party.is_last() {
            // If it fails, dropping the party breaks the barrier.
            act()?;
            party.let_all_go().map_err(BarrierError::from)?;
        } else {
            stay(&BARRIERS, deadline, || party.is_told());
            party.wait(deadline).map_err(BarrierError::from)?;
        }
        Ok(party.index)
    }

    /// Begins anew; who waits is told that the barrier is broken.
    ///
    /// # Errors
    /// As for a lock.
    pub fn reset(&self) -> Result<()> {
        let done = self.shared.reset();
        done.map_err(|stopped| BarrierError::from(stopped).into())
    }

    /// Breaks it, for all who wait and all who come.
    ///
    /// # Errors
    /// As for a lock.
    pub fn abort(&self) -> Result<()> {
        let done = self.shared.abort();
        done.map_err(|stopped| BarrierError::from(stopped).into())
    }

    /// How many it is for.
    #[must_use]
    pub fn parties(&self) -> u32 {
        self.shared.n_parties()
    }

    /// How many wait.
    #[must_use]
    pub fn n_waiting(&self) -> u32 {
        self.shared.n_waiting()
    }

    /// Whether it is broken.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.is_broken()
    }
}
