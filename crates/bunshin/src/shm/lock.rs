//! A lock word in shared memory that survives its owner.
//!
//! # The word
//!
//! | Bits | Means |
//! |---|---|
//! | 0..=29 | thread id of the owner, 0 if there is none; all ones for a lock that is absent |
//! | 30 | the owner died with the lock; set by the kernel, together with owner 0 |
//! | 31 | somebody sleeps on the word, or is about to |
//!
//! | From | To | By |
//! |---|---|---|
//! | free | owner | `try_lock`, one compare-and-swap |
//! | owner | owner + waiters | a thread that is about to sleep |
//! | owner (+ waiters) | free | `unlock`, one swap; wakes one sleeper if there were waiters |
//! | owner (+ waiters) | died (+ waiters) | the kernel, when the owner ends; wakes one sleeper |
//! | died (+ waiters) | owner (+ waiters) | the next to lock, who is told |
//! | owner | absent | `unlock_absent`, of a semaphore's place |
//! | absent | free | `make_present`, of the same |
//!
//! No wake-up is lost: a sleeper sets the waiters bit by compare-and-swap on the very
//! value that it then waits for (`futex(2)` compares again), and whoever gets the lock
//! after having slept keeps the bit, as others may sleep still. The kernel finds the
//! word through the thread's list of robust locks (see `sys::thread`), into which the
//! owner links it; between the swap of the word and the link, `pending` names it. It also
//! does while a thread sleeps, so that one that is killed after it has been woken, and before
//! it has the lock, does not take the wake-up along: the kernel then wakes the next.
//!
//! The kernel does not if the lock has an owner by then, who overtook the one that was woken, and
//! who knows of no sleeper: the waiters bit is set again by the woken one only. Nor does it know of
//! one that is stopped (`SIGSTOP`) after it was woken. Sleepers therefore also look again by
//! themselves now and then, as `futex_wait` returns before a second has passed.

use std::io;
use std::time::Instant;

use super::atomic::{AtomicU32, Ordering, Unused};
use super::segment::Shared;
use super::system::{self as thread, Node, OWNER, OWNER_DIED, Pending, WAITERS};

/// The owner of a lock that refuses everybody. No thread has this id: the kernel's end at 2^22.
const ABSENT: u32 = OWNER;

/// Tries before a thread goes to sleep on a lock that another processor holds.
const SPINS: u32 = if cfg!(loom) { 1 } else { 100 };

/// A robust lock; 40 bytes, valid when zeroed.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct RawLock {
    pub(super) word: AtomicU32,
    _shape: [Unused; 5],
    pub(super) node: Node,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<RawLock>() == 40);
#[cfg(not(loom))]
const _: () = assert!(
    std::mem::offset_of!(RawLock, node) as isize + thread::WORD_FROM_NODE
        == std::mem::offset_of!(RawLock, word) as isize
);

// SAFETY: the node is touched by the thread that holds the word, nobody else.
unsafe impl Sync for RawLock {}
// SAFETY: as above; zeros and every other pattern are valid.
unsafe impl Shared for RawLock {}

/// How a lock was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// From an owner who gave it back.
    Clean,
    /// From an owner who died: what it protects may be half changed.
    Abandoned,
}

/// Why a lock was not got.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Another thread has it, and there is no time to wait.
    Held,
    /// This very thread has it: waiting would never end.
    Own,
    /// The system has no robust locks.
    Unsupported(io::Error),
}

impl RawLock {
    /// Takes the lock if it is free.
    #[inline]
    pub(crate) fn try_lock(&self) -> Result<Taken, Refused> {
        let tid = thread::tid();
        let pending = Pending::begin(&self.node).map_err(Refused::Unsupported)?;
        let taken = match self
            .word
            .compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed)
        {
            Ok(_) => Some(Taken::Clean),
            Err(seen) => self.take_unowned(seen, tid, 0),
        };
        if taken.is_some() {
            pending.link(&self.node);
        }
        pending.end();
        taken.ok_or_else(|| {
            if self.word.load(Ordering::Relaxed) & OWNER == tid {
                Refused::Own
            } else {
                Refused::Held
            }
        })
    }

    /// Takes the lock if the value seen has no owner; `keep` is added to the word.
    pub(super) fn take_unowned(&self, seen: u32, tid: u32, keep: u32) -> Option<Taken> {
        if seen & OWNER != 0 {
            return None;
        }
        let new = tid | (seen & WAITERS) | keep;
        self.word
            .compare_exchange(seen, new, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        Some(if seen & OWNER_DIED != 0 {
            Taken::Abandoned
        } else {
            Taken::Clean
        })
    }

    /// Waits for the lock, for ever without a deadline.
    #[inline]
    pub(crate) fn lock(&self, deadline: Option<Instant>) -> Result<Taken, Refused> {
        match self.try_lock() {
            Err(Refused::Held) => self.lock_slowly(deadline),
            other => other,
        }
    }

    #[cold]
    fn lock_slowly(&self, deadline: Option<Instant>) -> Result<Taken, Refused> {
        let tid = thread::tid();
        for _ in 0..SPINS {
            std::hint::spin_loop();
            if self.word.load(Ordering::Relaxed) & OWNER == 0 {
                break;
            }
        }
        // Pending over the wait too: whoever is woken and dies before it takes the lock has
        // taken the wake-up along, and the kernel then wakes the next one.
        let pending = Pending::begin(&self.node).map_err(Refused::Unsupported)?;
        let mut slept = 0;
        loop {
            let seen = self.word.load(Ordering::Relaxed);
            if seen & OWNER == 0 {
                if let Some(taken) = self.take_unowned(seen, tid, slept) {
                    pending.link(&self.node);
                    pending.end();
                    return Ok(taken);
                }
                continue;
            }
            let waiting = seen | WAITERS;
            if seen != waiting
                && self
                    .word
                    .compare_exchange(seen, waiting, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            slept = WAITERS;
            if thread::futex_wait(&self.word, waiting, deadline) {
                pending.end();
                return Err(Refused::Held);
            }
        }
    }

    /// Gives the lock back.
    ///
    /// Does nothing if this thread does not hold it, as in a forked child that has
    /// inherited a guard of its parent.
    /// Says whether it did.
    #[inline]
    pub(crate) fn unlock(&self) -> bool {
        self.give_back(0)
    }

    /// Gives the lock back so that the next one is told that it was abandoned.
    pub(crate) fn unlock_abandoned(&self) -> bool {
        self.give_back(OWNER_DIED)
    }

    #[inline]
    fn give_back(&self, to: u32) -> bool {
        if !self.is_mine() {
            return false;
        }
        let Ok(pending) = Pending::begin(&self.node) else {
            return false;
        };
        pending.unlink(&self.node);
        // Stronger than the lock needs: what follows may look for sleepers elsewhere.
        if self.word.swap(to, Ordering::SeqCst) & WAITERS != 0 {
            thread::futex_wake(&self.word, 1);
        }
        pending.end();
        true
    }

    /// Whether this thread holds the lock.
    #[inline]
    pub(crate) fn is_mine(&self) -> bool {
        self.word.load(Ordering::Relaxed) & OWNER == thread::tid()
    }

    /// Whether nobody holds the lock, nobody waits for it and nobody died with it.
    #[inline]
    pub(crate) fn is_clear(&self) -> bool {
        self.word.load(Ordering::Acquire) == 0
    }

    /// Whether nobody holds the lock, or its holder died.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.word.load(Ordering::SeqCst) & OWNER == 0
    }

    /// Whether the holder died and nobody has taken the lock since.
    pub(crate) fn has_died(&self) -> bool {
        self.word.load(Ordering::SeqCst) & (OWNER | OWNER_DIED) == OWNER_DIED
    }

    /// Has a lock that nobody knows yet refuse everybody.
    pub(crate) fn make_absent(&self) {
        self.word.store(ABSENT, Ordering::Relaxed);
    }

    /// Makes an absent lock a free one. Says whether it was absent.
    #[inline]
    pub(crate) fn make_present(&self) -> bool {
        self.word.load(Ordering::SeqCst) == ABSENT
            && self
                .word
                .compare_exchange(ABSENT, 0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
    }

    /// Gives the lock back so that nobody gets it before it is made present.
    pub(crate) fn unlock_absent(&self) -> bool {
        self.give_back(ABSENT)
    }

    /// Whether a thread of this process holds the lock; the memory must then stay mapped.
    pub(crate) fn is_held_here(&self) -> bool {
        let owner = self.word.load(Ordering::Relaxed) & OWNER;
        owner != ABSENT && thread::is_own_thread(owner)
    }
}

#[cfg(loom)]
impl RawLock {
    /// What the kernel does to this lock when the thread that calls this has been killed.
    pub(super) fn thread_ended(&self) {
        thread::thread_ended(&self.word, &self.node);
    }
}
