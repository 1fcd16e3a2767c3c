//! A barrier: so many threads wait until all of them are there.
//!
//! # The words
//!
//! The barrier's state and the number of those who have arrived are changed under a robust lock,
//! which nobody holds for long. Each party that has arrived holds a place, as in `condition.rs`:
//! a robust lock, so that its death is seen, and a word for what it is told.
//!
//! | State | Means |
//! |---|---|
//! | filling | parties arrive |
//! | acting | all are there; the last one does what is to be done before they go on |
//! | broken | whoever arrives is told so, until a reset |
//!
//! | Told | Means |
//! |---|---|
//! | nothing | the place is free, or its holder goes |
//! | wait | its holder has arrived |
//! | go | all have arrived |
//! | broken | the barrier was broken or reset under its holder |
//!
//! | From | To | By |
//! |---|---|---|
//! | filling | acting | the last to arrive |
//! | acting | filling | the same party, once it has acted: all who wait are told to go |
//! | any | broken | whoever aborts, runs out of time, finds a waiting party dead, or gets the lock from a dead holder: all who wait are told |
//! | any | filling | a reset: all who wait are told that it is broken |
//!
//! There are as many places as parties, and a party gives its place back when it goes; who comes
//! for the next round before that waits for room, at a gate of its own.
//!
//! # Nobody waits for the dead
//!
//! Those who wait look again within a second (`doze`), and break the barrier if a place's
//! holder has died waiting, or the lock's holder. A party that is told to go and dies before
//! it has gone has arrived all the same: its place is given to the next. The outcome of a round
//! is in each party's own place, so that a party that is slow to wake is not
//! told about a later round.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::atomic::{AtomicU32, Ordering};
use super::gate::{ALL, Gate};
use super::layout::{BARRIER_HEAD, BARRIER_PLACE, BARRIER_PLACES, Kind};
use super::linger::{Spin, Whence};
use super::lock::{RawLock, Refused, Taken};
use super::segment::{Segment, Shared};
use crate::error::{Error, ErrorKind, Result};

/// Parties at most.
pub(crate) const MOST_PARTIES: u32 = 65536;

const FILLING: u32 = 0;
const ACTING: u32 = 1;
const BROKEN: u32 = 2;

const NOTHING: u32 = 0;
const WAIT: u32 = 1;
const GO: u32 = 2;
const SORRY: u32 = 3;

#[repr(C)]
#[derive(Debug, Default)]
struct Head {
    lock: RawLock,
    /// For those who wait for the others.
    gate: Gate,
    /// For those who wait for a place.
    room: Gate,
    n_parties: AtomicU32,
    state: AtomicU32,
    n_arrived: AtomicU32,
    /// Where somebody arrived last.
    whence: Whence,
}

#[repr(C)]
#[derive(Debug, Default)]
struct Place {
    lock: RawLock,
    told: AtomicU32,
    _unused: super::atomic::Unused,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Head>() == 64 && size_of::<Place>() == 48);

// SAFETY: a lock and atomics, without padding.
unsafe impl Shared for Head {}
// SAFETY: a lock and atomics, without padding.
unsafe impl Shared for Place {}

/// Why a party does not pass.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The barrier is broken.
    Broken,
    /// The time is over, or not all others are there and there is no time to wait.
    TimedOut,
    /// The system has no robust locks.
    Unsupported(std::io::Error),
}

impl From<Refused> for Stopped {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Held | Refused::Own => Self::TimedOut,
            Refused::Unsupported(error) => Self::Unsupported(error),
        }
    }
}

/// A barrier in a segment of its own.
#[derive(Clone, Debug)]
pub(crate) struct SharedBarrier {
    segment: Arc<Segment>,
    /// Copied out once and checked.
    n_parties: u32,
    spin: Spin,
}

impl SharedBarrier {
    /// For so many parties, from 1 to [`MOST_PARTIES`].
    pub(crate) fn create(n_parties: u32) -> Result<Self> {
        let len = BARRIER_PLACES + n_parties as usize * BARRIER_PLACE;
        let segment = Segment::create(Kind::Barrier, len)?;
        let head = segment.at::<Head>(BARRIER_HEAD);
        head.n_parties.store(n_parties, Ordering::Release);
        Ok(Self {
            segment,
            n_parties,
            spin: Spin::default(),
        })
    }

    /// Maps what came in a message.
    pub(crate) fn attach(fd: OwnedFd) -> Result<Self> {
        let segment = Segment::attach(fd, Kind::Barrier, BARRIER_PLACES)?;
        let head = segment.at::<Head>(BARRIER_HEAD);
        let n_parties = head.n_parties.load(Ordering::Acquire);
        let room = (segment.len() - BARRIER_PLACES) / BARRIER_PLACE;
        if n_parties == 0 || n_parties > MOST_PARTIES || n_parties as usize > room {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("a barrier of {n_parties} parties has room for {room}"),
            ));
        }
        Ok(Self {
            segment,
            n_parties,
            spin: Spin::default(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }

    fn head(&self) -> &Head {
        self.segment.at(BARRIER_HEAD)
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        (0..self.n_parties as usize)
            .map(|index| self.segment.at(BARRIER_PLACES + index * BARRIER_PLACE))
    }

    pub(crate) fn n_parties(&self) -> u32 {
        self.n_parties
    }

    /// How many wait.
    pub(crate) fn n_waiting(&self) -> u32 {
        let n_arrived = self.head().n_arrived.load(Ordering::SeqCst);
        n_arrived.min(self.n_parties)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.head().state.load(Ordering::SeqCst) == BROKEN
    }

    /// Takes the lock for a short time.
    fn state(&self, deadline: Option<Instant>) -> Result<State<'_>, Stopped> {
        let taken = self.head().lock.lock(deadline)?;
        let state = State { barrier: self };
        if taken == Taken::Abandoned {
            // Some may have been told to go, and others not: these are told that it is broken.
            state.end_round(SORRY, BROKEN);
        }
        Ok(state)
    }

    /// Whether somebody died whom the others would wait for.
    fn has_lost_somebody(&self) -> bool {
        self.head().lock.has_died()
            || self
                .places()
                .any(|place| place.lock.has_died() && place.told.load(Ordering::SeqCst) == WAIT)
    }

    /// Arrives, if there is room before the deadline; `only_last`, if all others are there.
    pub(crate) fn arrive(
        &self,
        only_last: bool,
        deadline: Option<Instant>,
    ) -> Result<Party<'_>, Stopped> {
        let head = self.head();
        loop {
            let state = self.state(deadline)?;
            if self.has_lost_somebody() {
                state.end_round(SORRY, BROKEN);
            }
            if self.is_broken() {
                return Err(Stopped::Broken);
            }
            let index = self.n_waiting();
            let is_last = index + 1 == self.n_parties;
            if only_last && !is_last {
                return Err(Stopped::TimedOut);
            }
            if let Some(place) = self.claim()? {
                head.whence.note();
                place.told.store(WAIT, Ordering::SeqCst);
                head.n_arrived.store(index + 1, Ordering::SeqCst);
                if is_last {
                    head.state.store(ACTING, Ordering::SeqCst);
                }
                return Ok(Party {
                    barrier: self,
                    place,
                    index,
                });
            }
            drop(state);
            if only_last {
                return Err(Stopped::TimedOut);
            }
            let entered = head.room.enter();
            if self.places().any(|place| place.lock.is_free()) || self.is_broken() {
                continue;
            }
            if head.room.sleep(entered, deadline) {
                return Err(Stopped::TimedOut);
            }
        }
    }

    /// Takes a free place; the caller has the lock.
    fn claim(&self) -> Result<Option<&Place>, Stopped> {
        for place in self.places() {
            if !place.lock.is_free() {
                continue;
            }
            match place.lock.try_lock() {
                Ok(_) => return Ok(Some(place)),
                Err(Refused::Held | Refused::Own) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        Ok(None)
    }

    /// Breaks the barrier.
    pub(crate) fn abort(&self) -> Result<(), Stopped> {
        self.state(None)?.end_round(SORRY, BROKEN);
        Ok(())
    }

    /// Begins anew; who waits is told that it is broken.
    pub(crate) fn reset(&self) -> Result<(), Stopped> {
        self.state(None)?.end_round(SORRY, FILLING);
        Ok(())
    }
}

#[cfg(loom)]
impl SharedBarrier {
    /// What the kernel does when the thread that calls this has been killed.
    pub(super) fn thread_ended(&self) {
        self.head().lock.thread_ended();
        self.places().for_each(|place| place.lock.thread_ended());
    }
}

/// The right to change a barrier's state.
struct State<'a> {
    barrier: &'a SharedBarrier,
}

impl State<'_> {
    /// Tells all who wait, and goes on in that state.
    fn end_round(&self, told: u32, next: u32) {
        let head = self.barrier.head();
        // First, so that nobody who is told comes back before it is so. If this thread dies
        // further on, whoever gets the lock next ends the round again.
        head.n_arrived.store(0, Ordering::SeqCst);
        head.state.store(next, Ordering::SeqCst);
        for place in self.barrier.places() {
            if place.told.load(Ordering::SeqCst) == WAIT {
                place.told.store(told, Ordering::SeqCst);
            }
        }
        head.gate.open(ALL);
        head.room.open(ALL);
    }
}

impl Drop for State<'_> {
    fn drop(&mut self) {
        #[cfg(loom)]
        if super::system::is_killed() {
            return;
        }
        self.barrier.head().lock.unlock();
    }
}

/// One who has arrived.
pub(crate) struct Party<'a> {
    barrier: &'a SharedBarrier,
    place: &'a Place,
    /// How many had arrived before.
    pub(crate) index: u32,
}

impl Party<'_> {
    /// Whether all have arrived with this one.
    pub(crate) fn is_last(&self) -> bool {
        self.index + 1 == self.barrier.n_parties
    }

    /// Has all go on; the last party calls this once it has acted.
    pub(crate) fn let_all_go(&self) -> Result<(), Stopped> {
        let state = self.barrier.state(None)?;
        if self.barrier.has_lost_somebody() {
            state.end_round(SORRY, BROKEN);
        } else if self.told() == WAIT {
            state.end_round(GO, FILLING);
        }
        drop(state);
        self.verdict().unwrap_or(Err(Stopped::Broken))
    }

    /// Waits until all are there, or until the deadline, which breaks the barrier.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<(), Stopped> {
        let barrier = self.barrier;
        let spin = &barrier.spin;
        spin.linger(&barrier.head().whence, deadline, || self.told() != WAIT);
        if let Some(verdict) = self.verdict() {
            return verdict;
        }
        loop {
            let entered = barrier.head().gate.enter();
            if let Some(verdict) = self.verdict() {
                return verdict;
            }
            let is_over = barrier.head().gate.sleep(entered, deadline);
            if let Some(verdict) = self.verdict() {
                return verdict;
            }
            if is_over || barrier.has_lost_somebody() {
                let state = barrier.state(None)?;
                // The others may have come, or gone, meanwhile.
                if let Some(verdict) = self.verdict() {
                    return verdict;
                }
                let is_lost = barrier.has_lost_somebody();
                if is_lost || is_over {
                    state.end_round(SORRY, BROKEN);
                }
                if is_over && !is_lost {
                    return Err(Stopped::TimedOut);
                }
            }
        }
    }

    /// Whether it is known what becomes of this round, as far as one look tells.
    pub(crate) fn is_told(&self) -> bool {
        self.told() != WAIT
    }

    fn told(&self) -> u32 {
        self.place.told.load(Ordering::SeqCst)
    }

    fn verdict(&self) -> Option<Result<(), Stopped>> {
        match self.told() {
            WAIT => None,
            GO => Some(Ok(())),
            _ => Some(Err(Stopped::Broken)),
        }
    }
}

impl Drop for Party<'_> {
    fn drop(&mut self) {
        #[cfg(loom)]
        if super::system::is_killed() {
            return;
        }
        if self.told() == WAIT {
            // Its action panicked.
            let _ = self.barrier.abort();
        }
        self.place.told.store(NOTHING, Ordering::SeqCst);
        if self.place.lock.unlock() {
            self.barrier.head().room.open(ALL);
        }
    }
}
