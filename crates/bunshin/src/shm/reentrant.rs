//! A lock that its holder may take again, and past which others can glance while nobody has it.
//!
//! Whoever takes the lock raises `version` before it touches what the lock protects. A glance is
//! good if the lock was free before and after it, with the same version: then nobody had the lock
//! in between, as the next one would have raised the version, and no one that is not done could
//! have been seen, as seeing any of its writes means to see the version too (the fence after the
//! version, and that of the glance). Who has taken the lock and not yet raised the version, or has
//! died with it, has its mark in the lock's word.

use std::time::Instant;

use super::atomic::{AtomicU32, Ordering, fence};
use super::lock::{RawLock, Refused, Taken};
use super::segment::Shared;

/// A lock, how often its holder has taken it, and how often it was taken by anybody; 48 bytes,
/// valid when zeroed.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct ReentrantLock {
    lock: RawLock,
    depth: AtomicU32,
    version: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<ReentrantLock>() == 48);

// SAFETY: its parts are valid with any bytes, and change through atomics or under the lock.
unsafe impl Shared for ReentrantLock {}

impl ReentrantLock {
    /// Takes the lock if it is free or this thread's own; waits until the deadline otherwise, or
    /// for ever. `Own` if it was taken too often to be counted.
    #[inline]
    pub(crate) fn enter(&self, deadline: Option<Option<Instant>>) -> Result<Taken, Refused> {
        if self.lock.is_mine() {
            let deeper = self.depth.load(Ordering::Relaxed).checked_add(1);
            self.depth
                .store(deeper.ok_or(Refused::Own)?, Ordering::Relaxed);
            return Ok(Taken::Clean);
        }
        let taken = match deadline {
            None => self.lock.try_lock(),
            Some(deadline) => self.lock.lock(deadline),
        }?;
        self.depth.store(1, Ordering::Relaxed);
        // Who sees the version sees that the lock is taken.
        let version = self.version.load(Ordering::Relaxed).wrapping_add(1);
        self.version.store(version, Ordering::Release);
        // Who sees what is written from now on sees the version.
        fence(Ordering::Release);
        Ok(taken)
    }

    /// Gives the lock back, once. Says whether this thread had it.
    #[inline]
    pub(crate) fn leave(&self) -> bool {
        let depth = self.depth.load(Ordering::Relaxed);
        if depth <= 1 {
            // Does nothing if it is somebody else's, as the depth then was.
            return self.lock.unlock();
        }
        let is_mine = self.lock.is_mine();
        if is_mine {
            self.depth.store(depth - 1, Ordering::Relaxed);
        }
        is_mine
    }

    /// What `read` reads, if nobody had the lock meanwhile.
    #[inline]
    pub(crate) fn glance<R>(&self, read: impl FnOnce() -> R) -> Option<R> {
        let version = self.version.load(Ordering::Acquire);
        if !self.lock.is_clear() {
            return None;
        }
        let seen = read();
        fence(Ordering::Acquire);
        let is_good = self.lock.is_clear() && self.version.load(Ordering::Relaxed) == version;
        is_good.then_some(seen)
    }

    /// How often the lock is taken: once or more often, or not at all.
    pub(crate) fn depth(&self) -> u32 {
        if self.lock.is_free() {
            return 0;
        }
        self.depth.load(Ordering::Relaxed)
    }

    /// The lock itself, to look at.
    #[inline]
    pub(crate) fn raw(&self) -> &RawLock {
        &self.lock
    }
}
