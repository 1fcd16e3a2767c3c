//! A semaphore whose permits come back from the dead.
//!
//! # A permit
//!
//! Each permit has a place of its own, which is a robust lock (`lock.rs`), so that taking a permit
//! and saying who has it are one instruction, and the kernel gives back what the dead held.
//!
//! | Word | Means |
//! |---|---|
//! | 0 | a permit is here, for anybody |
//! | a thread's id | that thread has it |
//! | died | its holder died; it is here for anybody, who is then told |
//! | absent | there is no permit here: it was consumed, or has never been released |
//!
//! | From | To | By |
//! |---|---|---|
//! | here, died | a thread | `try_acquire` |
//! | a thread | here | `Permit::give_back`, which then opens the gate for one |
//! | a thread | absent | `Permit::consume` |
//! | absent | here | `release`, which then opens the gate for one |
//! | a thread | died | the kernel |
//!
//! Permits for which no place is left are a mere count, `loose`: they are given out when no place
//! has one, and whoever dies with such a one has lost it. `MOST_PLACES` says when that is.
//!
//! # Waiting
//!
//! Behind a gate (`gate.rs`). Nobody sleeps on the places themselves, so that the death of a
//! holder wakes nobody: sleepers see it when they look again, within a second.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::atomic::{AtomicU32, Ordering};
use super::gate::Gate;
use super::layout::{Kind, SEMAPHORE_HEAD, SEMAPHORE_PLACE, SEMAPHORE_PLACES};
use super::linger::{Spin, Whence};
use super::lock::{RawLock, Refused, Taken};
use super::segment::{Segment, Shared};
use super::system;
use crate::error::{Error, ErrorKind, Result};

/// Places of a semaphore that starts with fewer permits and may get more.
const LEAST_PLACES: u32 = if cfg!(loom) { 1 } else { 64 };
/// Places at most.
pub(crate) const MOST_PLACES: u32 = if cfg!(loom) { 2 } else { 4096 };
/// Permits at most.
pub(crate) const MOST_PERMITS: u32 = i32::MAX as u32;

#[repr(C)]
#[derive(Debug, Default)]
struct Head {
    gate: Gate,
    /// The place at which a permit was left last.
    hint: AtomicU32,
    n_places: AtomicU32,
    loose: AtomicU32,
    most_loose: AtomicU32,
    /// Where a permit was left last.
    whence: Whence,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Head>() == 24);

// SAFETY: atomics only, without padding.
unsafe impl Shared for Head {}

/// A semaphore in a segment of its own.
#[derive(Clone, Debug)]
pub(crate) struct SharedSemaphore {
    segment: Arc<Segment>,
    /// Copied out once and checked.
    n_places: u32,
    spin: Spin,
}

impl SharedSemaphore {
    /// Makes a semaphore with `value` permits, which is all that it can have if it `is_bounded`.
    pub(crate) fn create(value: u32, is_bounded: bool) -> Result<Self> {
        let n_places = if is_bounded {
            value.min(MOST_PLACES)
        } else {
            value.clamp(LEAST_PLACES, MOST_PLACES)
        };
        let len = SEMAPHORE_PLACES + n_places as usize * SEMAPHORE_PLACE;
        let semaphore = Self {
            segment: Segment::create(Kind::Semaphore, len)?,
            n_places,
            spin: Spin::default(),
        };
        for index in value..n_places {
            semaphore.place(index).make_absent();
        }
        let loose = value.saturating_sub(n_places);
        let most = if is_bounded { loose } else { MOST_PERMITS };
        let head = semaphore.head();
        head.loose.store(loose, Ordering::Relaxed);
        head.most_loose.store(most, Ordering::Relaxed);
        head.n_places.store(n_places, Ordering::Release);
        Ok(semaphore)
    }

    /// Maps what came in a message.
    pub(crate) fn attach(fd: OwnedFd) -> Result<Self> {
        let segment = Segment::attach(fd, Kind::Semaphore, SEMAPHORE_PLACES)?;
        let head = segment.at::<Head>(SEMAPHORE_HEAD);
        let n_places = head.n_places.load(Ordering::Acquire);
        let room = (segment.len() - SEMAPHORE_PLACES) / SEMAPHORE_PLACE;
        if n_places > MOST_PLACES || n_places as usize > room {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("a semaphore of {n_places} places has room for {room}"),
            ));
        }
        Ok(Self {
            segment,
            n_places,
            spin: Spin::default(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }

    fn head(&self) -> &Head {
        self.segment.at(SEMAPHORE_HEAD)
    }

    #[inline]
    fn place(&self, index: u32) -> &RawLock {
        let offset = SEMAPHORE_PLACES + index as usize * SEMAPHORE_PLACE;
        self.segment.at(offset)
    }

    /// The places, from the one where a permit was left last.
    #[inline]
    fn indices(&self) -> impl Iterator<Item = u32> + use<> {
        let hint = self.head().hint.load(Ordering::Relaxed);
        let first = if hint < self.n_places { hint } else { 0 };
        (first..self.n_places).chain(0..first)
    }

    /// Takes a permit if there is one.
    #[inline]
    pub(crate) fn try_acquire(&self) -> io::Result<Option<(Permit<'_>, Taken)>> {
        for index in self.indices() {
            let place = self.place(index);
            // Looked at before it is written to, as a write takes the line from its holder.
            if !place.is_free() {
                continue;
            }
            match place.try_lock() {
                Ok(taken) => return Ok(Some((self.permit(Some(index)), taken))),
                Err(Refused::Held | Refused::Own) => {}
                Err(Refused::Unsupported(error)) => return Err(error),
            }
        }
        let loose = &self.head().loose;
        let mut seen = loose.load(Ordering::SeqCst);
        while seen > 0 {
            match loose.compare_exchange(seen, seen - 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(Some((self.permit(None), Taken::Clean))),
                Err(now) => seen = now,
            }
        }
        Ok(None)
    }

    fn permit(&self, index: Option<u32>) -> Permit<'_> {
        Permit {
            semaphore: self,
            index,
            owner: system::tid(),
            is_abandoned: false,
        }
    }

    /// Takes a permit, waiting until the deadline, or for ever.
    pub(crate) fn acquire(
        &self,
        deadline: Option<Instant>,
    ) -> io::Result<Option<(Permit<'_>, Taken)>> {
        let mut acquired = self.try_acquire();
        if matches!(acquired, Ok(None)) {
            self.spin.linger(&self.head().whence, deadline, || {
                // A look at all places is dear where there are many.
                if self.may_have_some() {
                    acquired = self.try_acquire();
                }
                !matches!(acquired, Ok(None))
            });
        }
        if !matches!(acquired, Ok(None)) {
            return acquired;
        }
        self.acquire_asleep(deadline)
    }

    /// As [`acquire`](Self::acquire), for who has looked for long enough.
    pub(crate) fn acquire_asleep(
        &self,
        deadline: Option<Instant>,
    ) -> io::Result<Option<(Permit<'_>, Taken)>> {
        loop {
            let entered = self.head().gate.enter();
            // The last look before sleep; whoever leaves a permit later sees that we entered.
            if let Some(acquired) = self.try_acquire()? {
                return Ok(Some(acquired));
            }
            if self.head().gate.sleep(entered, deadline) {
                return self.try_acquire();
            }
        }
    }

    /// Whether the place where a permit was left last has one, or there are loose ones.
    pub(crate) fn may_have_some(&self) -> bool {
        self.indices()
            .next()
            .is_some_and(|index| self.place(index).is_free())
            || self.head().loose.load(Ordering::Relaxed) > 0
    }

    /// Adds a permit. `false` if there are as many as there may be.
    pub(crate) fn release(&self) -> bool {
        for index in self.indices() {
            if self.place(index).make_present() {
                self.left_at(index);
                return true;
            }
        }
        let head = self.head();
        let most = head.most_loose.load(Ordering::Relaxed);
        let more = |loose: u32| (loose < most).then(|| loose + 1);
        let released = head
            .loose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_ok();
        if released {
            self.tell();
        }
        released
    }

    /// A permit has been left at a place, by a `SeqCst` exchange.
    #[inline]
    fn left_at(&self, index: u32) {
        let head = self.head();
        // Written only where it changes, so that the line stays with all who read it.
        if head.hint.load(Ordering::Relaxed) != index {
            head.hint.store(index, Ordering::Relaxed);
        }
        self.tell();
    }

    /// A permit is there for somebody.
    #[inline]
    fn tell(&self) {
        let head = self.head();
        head.whence.note();
        head.gate.open(1);
    }

    /// How many permits are there just now.
    pub(crate) fn value(&self) -> u32 {
        let here = (0..self.n_places).filter(|&index| self.place(index).is_free());
        let here = u32::try_from(here.count()).unwrap_or(u32::MAX);
        here.saturating_add(self.head().loose.load(Ordering::Relaxed))
    }
}

#[cfg(loom)]
impl SharedSemaphore {
    /// What the kernel does when the thread that calls this has been killed.
    pub(super) fn thread_ended(&self) {
        (0..self.n_places).for_each(|index| self.place(index).thread_ended());
    }
}

impl Drop for SharedSemaphore {
    fn drop(&mut self) {
        // As with a lock: a forgotten permit is in this thread's list, which must not lead to
        // memory that is gone.
        if Arc::strong_count(&self.segment) == 1
            && (0..self.n_places).any(|index| self.place(index).is_held_here())
        {
            std::mem::forget(Arc::clone(&self.segment));
        }
    }
}

impl SharedSemaphore {
    /// The permit that [`Permit::keep`] was called on.
    pub(crate) fn kept(&self, (index, owner): Kept) -> Permit<'_> {
        Permit {
            semaphore: self,
            index: index.filter(|index| *index < self.n_places),
            owner,
            is_abandoned: false,
        }
    }
}

/// A permit apart from its semaphore: its place and its owner.
pub(crate) type Kept = (Option<u32>, u32);

/// A permit of a [`SharedSemaphore`].
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    semaphore: &'a SharedSemaphore,
    /// The place; none for a loose one.
    index: Option<u32>,
    /// The thread that took it.
    owner: u32,
    /// To be left as one whose holder died.
    pub(crate) is_abandoned: bool,
}

impl Permit<'_> {
    /// What [`SharedSemaphore::kept`] makes a permit of again.
    pub(crate) fn keep(&self) -> Kept {
        (self.index, self.owner)
    }

    /// Gives the permit back. Nothing happens in a forked child, whose parent has it.
    #[inline]
    pub(crate) fn give_back(&self) {
        let Some(index) = self.index else {
            if self.owner != system::tid() {
                return;
            }
            let loose = &self.semaphore.head().loose;
            loose.fetch_add(1, Ordering::SeqCst);
            self.semaphore.tell();
            return;
        };
        let place = self.semaphore.place(index);
        let is_given = if self.is_abandoned {
            place.unlock_abandoned()
        } else {
            place.unlock()
        };
        if is_given {
            self.semaphore.left_at(index);
        }
    }

    /// Does away with the permit; only `release` makes another.
    pub(crate) fn consume(&self) {
        if let Some(index) = self.index {
            self.semaphore.place(index).unlock_absent();
        }
    }
}
