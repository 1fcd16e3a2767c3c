//! Locks that a process owns: any thread may give them back, and its end gives them up.
//!
//! They are for languages whose locks are no guards. A segment holds many of them, as such
//! languages make one for each small thing; a place in it is given out once and never again, by a
//! count in the segment itself, so that copies of a process do not give out the same place.
//!
//! # The owner
//!
//! | Word | Means |
//! |---|---|
//! | 0 | free |
//! | an identity | taken by that thread of that process (`identity` in `sys::thread`) |
//!
//! | From | To | By |
//! |---|---|---|
//! | free | own identity | `try_lock`, one compare-and-swap |
//! | identity of a process that has ended | own identity | who sees that it has ended, and is told |
//! | any identity | free | `unlock`, by any thread; then opens the gate for one |
//!
//! Who takes a lock says who they are in the very instruction that takes it, so that there is no
//! moment at which an owner could die unknown. The kernel does not know of these locks: who waits
//! looks within a second whether the owner still lives, and who finds the lock taken and does not
//! wait looks too. All who share a lock have to see each other's processes by the same numbers.
//!
//! Waiting is done at a gate (`gate.rs`). `depth` is touched by the owner alone.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::atomic::{AtomicU32, AtomicU64, Ordering};
use super::gate::Gate;
use super::layout::{Kind, LOCKS_GIVEN, LOCKS_LEN, LOCKS_PLACE, LOCKS_PLACES};
use super::lock::Taken;
use super::segment::{Segment, Shared};
use super::system;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mutex::ForkMutex;

/// How long an owner is taken to live after it was seen alive.
const TRUST: Duration = Duration::from_millis(400);

/// Locks in a segment.
const PLACES: u32 = ((LOCKS_LEN - LOCKS_PLACES) / LOCKS_PLACE) as u32;

#[repr(C)]
#[derive(Debug, Default)]
struct Place {
    owner: AtomicU64,
    gate: Gate,
    depth: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Place>() == 16);

// SAFETY: atomics only, without padding.
unsafe impl Shared for Place {}

/// The segment that this process makes its next lock in.
static CURRENT: ForkMutex<Option<Arc<Segment>>> = ForkMutex::new(None);
/// Segments that locks came from, by the system's numbers for them.
static KNOWN: ForkMutex<Option<Known>> = ForkMutex::new(None);

type Known = HashMap<(u64, u64), Weak<Segment>>;

/// A lock that a process owns.
#[derive(Clone, Debug)]
pub(crate) struct OwnedLock {
    segment: Arc<Segment>,
    /// Checked.
    index: u32,
}

impl OwnedLock {
    pub(crate) fn create() -> Result<Self> {
        if cfg!(loom) {
            // Nothing that outlives a model's run.
            let segment = Segment::create(Kind::Locks, LOCKS_LEN)?;
            return Ok(Self { segment, index: 0 });
        }
        let mut current = CURRENT.lock();
        loop {
            let segment = match &*current {
                Some(segment) => segment,
                None => current.insert(Segment::create(Kind::Locks, LOCKS_LEN)?),
            };
            let given = segment.at::<AtomicU32>(LOCKS_GIVEN);
            let index = given.fetch_add(1, Ordering::Relaxed);
            if index < PLACES {
                let segment = Arc::clone(segment);
                return Ok(Self { segment, index });
            }
            *current = None;
        }
    }

    /// What came in a message.
    pub(crate) fn attach(fd: OwnedFd, index: u32) -> Result<Self> {
        if index >= PLACES {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("lock number {index} of {PLACES} has arrived"),
            ));
        }
        let segment = Self::find(fd)?;
        Ok(Self { segment, index })
    }

    /// The segment, once, however many of its locks arrive.
    fn find(fd: OwnedFd) -> Result<Arc<Segment>> {
        let attach = |fd| Segment::attach(fd, Kind::Locks, LOCKS_LEN);
        let number = crate::sys::memory::number(fd.as_fd())
            .map_err(|error| Error::os("attach to a lock", error))?;
        let mut known = KNOWN.lock();
        let known = known.get_or_insert_default();
        if let Some(segment) = known.get(&number).and_then(Weak::upgrade) {
            return Ok(segment);
        }
        let segment = attach(fd)?;
        known.retain(|_, segment| segment.strong_count() > 0);
        known.insert(number, Arc::downgrade(&segment));
        Ok(segment)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    #[inline]
    fn place(&self) -> &Place {
        self.segment
            .at(LOCKS_PLACES + self.index as usize * LOCKS_PLACE)
    }

    /// The identity of whoever has it, or 0.
    #[inline]
    pub(crate) fn owner(&self) -> u64 {
        self.place().owner.load(Ordering::SeqCst)
    }

    /// How often its owner has taken it.
    #[inline]
    pub(crate) fn depth(&self) -> u32 {
        self.place().depth.load(Ordering::Relaxed)
    }

    /// Says so, for its owner.
    #[inline]
    pub(crate) fn set_depth(&self, depth: u32) {
        self.place().depth.store(depth, Ordering::Relaxed);
    }

    /// Takes it if it is free, or if its owner has ended and that is easily seen.
    #[inline]
    pub(crate) fn try_lock(&self) -> io::Result<Option<Taken>> {
        let own = system::identity()?;
        match self.take(0, own) {
            Ok(()) => Ok(Some(Taken::Clean)),
            Err(owner) => Ok(self.inherit(owner, own, false)),
        }
    }

    /// As [`try_lock`](Self::try_lock), with a close look at whether the owner has ended.
    pub(crate) fn try_lock_thoroughly(&self) -> io::Result<Option<Taken>> {
        let own = system::identity()?;
        match self.take(0, own) {
            Ok(()) => Ok(Some(Taken::Clean)),
            Err(owner) => Ok(self.inherit(owner, own, true)),
        }
    }

    #[inline]
    fn take(&self, from: u64, own: u64) -> std::result::Result<(), u64> {
        let owner = &self.place().owner;
        owner
            .compare_exchange(from, own, Ordering::SeqCst, Ordering::SeqCst)
            .map(drop)
    }

    #[cold]
    fn inherit(&self, owner: u64, own: u64, thoroughly: bool) -> Option<Taken> {
        if owner == 0 || system::is_same_process(owner, own) || !system::is_gone(owner, thoroughly)
        {
            return None;
        }
        self.take(owner, own).ok().map(|()| Taken::Abandoned)
    }

    /// Takes it, waiting until the deadline or for ever; nothing if it came to be over, or a
    /// signal ended the wait.
    pub(crate) fn lock(&self, deadline: Option<Instant>) -> io::Result<Option<Taken>> {
        let own = system::identity()?;
        let place = self.place();
        // When it was looked whether the owner lives.
        let mut looked: Option<Instant> = None;
        loop {
            let entered = place.gate.enter();
            // The last look before sleep; whoever gives it back later sees that we entered.
            let owner = match self.take(0, own) {
                Ok(()) => return Ok(Some(Taken::Clean)),
                Err(owner) => owner,
            };
            let is_time = looked.is_none_or(|at| cfg!(loom) || at.elapsed() >= TRUST);
            if is_time {
                // Not closely at once: that takes as long as most owners keep a lock.
                if let Some(taken) = self.inherit(owner, own, looked.is_some() || cfg!(loom)) {
                    return Ok(Some(taken));
                }
                looked = Some(Instant::now());
            }
            if place.gate.sleep(entered, deadline) {
                return self.try_lock_thoroughly();
            }
        }
    }

    /// Gives it back, whoever has it. Says whether anybody had.
    #[inline]
    pub(crate) fn unlock(&self) -> bool {
        let place = self.place();
        if place.owner.swap(0, Ordering::SeqCst) == 0 {
            return false;
        }
        place.gate.open(1);
        true
    }
}
