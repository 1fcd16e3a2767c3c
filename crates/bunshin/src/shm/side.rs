//! A robust lock that is taken once something is ready behind it.
//!
//! A queue has two: consumers enter the one when there is an item, producers the other
//! when there is room. Waiting for the lock and waiting for what is behind it are one sleep
//! on one word, so that nothing can be lost between the two.
//!
//! # The word
//!
//! | Bits | Means |
//! |---|---|
//! | 0..=29 | thread id of who is inside, 0 if nobody is |
//! | 30 | who was inside died there; set by the kernel, together with owner 0 |
//! | 31 | somebody sleeps on the word, or is about to, or did |
//!
//! | From | To | By |
//! |---|---|---|
//! | free (+ waiters) | owner (+ waiters) | `enter`, one compare-and-swap |
//! | any | + waiters | whoever is about to sleep |
//! | owner (+ waiters) | free (+ waiters) | `leave`, which wakes one sleeper if there is something ready |
//! | owner (+ waiters) | died (+ waiters) | the kernel, which wakes one sleeper |
//! | died (+ waiters) | owner (+ waiters) | the next to enter, who is told |
//! | free + waiters | free | whoever has woken nobody: there was no sleeper |
//!
//! Beside the word, on a line of memory that hardly ever changes, lies `wanted`: 0 only if
//! nobody sleeps. The other side looks at it after each change, and at the word only if it
//! is set.
//!
//! # Why no wake-up is lost
//!
//! - A sleeper sets the waiters bit, then `wanted`, and then looks again; the other side
//!   changes what is looked at, and then looks at `wanted`. Fences between the two make
//!   at least one see the other.
//! - If somebody is inside meanwhile, the other side leaves the waking to them: they look
//!   after they have left.
//! - A wake-up keeps the waiters bit, so that the next change wakes the next sleeper, also if
//!   the one before has not come to run yet, or never will. Only a wake-up that finds nobody
//!   takes the bit away, and wakes everybody who came to sleep at that very moment.
//! - Who is killed asleep, or woken and not inside yet, or between a change and the wake-up
//!   that it owes, has announced the word to the kernel (`Pending`), which then wakes the next
//!   sleeper. If somebody is inside at that moment, they wake the next when they leave.
//! - One case is left: who changes something is killed right after it, while somebody else is
//!   between the last look and sleep. The kernel then wakes nobody, and nothing tells that
//!   sleeper. So every sleeper looks again each second (`doze`). It also finds what a process that was
//!   stopped (`SIGSTOP`) has been woken for in its place.

use std::time::{Duration, Instant};

use super::atomic::{AtomicU32, Ordering, fence};
use super::lock::{RawLock, Refused, Taken};
use super::system::{self as thread, OWNER, OWNER_DIED, Pending, WAITERS};

/// Tries before a thread goes to sleep while another one is inside.
const SPINS: u32 = if cfg!(loom) { 1 } else { 200 };

/// Why nobody got in.
#[derive(Debug)]
pub(crate) enum Shut {
    /// What is waited for was not there in the time given.
    NotReady,
    /// It was there, and somebody else was inside all the time.
    Held,
    /// This very thread is inside, or the system has no such locks.
    Never(Refused),
}

/// How long [`Side::enter`] may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// For what is behind it.
    pub(crate) ready: Until,
    /// For somebody inside, who only stays for a moment unless they are stopped.
    pub(crate) held: Until,
}

/// A limit in time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// No waiting at all.
    Now,
    /// A moment: only who is stopped, or has no processor, stays inside for longer.
    Soon,
    /// Until then.
    Then(Instant),
    /// Without a limit.
    Forever,
}

/// [`Until::Soon`].
const MOMENT: Duration = Duration::from_millis(20);

impl Until {
    fn fixed(self) -> Self {
        match self {
            Self::Soon => Self::Then(Instant::now() + MOMENT),
            other => other,
        }
    }

    fn is_over(self) -> bool {
        match self {
            Self::Now => true,
            Self::Then(deadline) => cfg!(loom) || Instant::now() >= deadline,
            Self::Soon | Self::Forever => false,
        }
    }

    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Now => Some(Instant::now()),
            Self::Then(deadline) => Some(deadline),
            Self::Soon | Self::Forever => None,
        }
    }
}

/// A view of a side in a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side<'a> {
    pub(crate) lock: &'a RawLock,
    pub(crate) wanted: &'a AtomicU32,
}

impl Side<'_> {
    /// Enters if nobody is inside, whatever is behind it.
    #[inline]
    pub(crate) fn try_enter(&self) -> Result<Taken, Shut> {
        self.lock.try_lock().map_err(|refused| match refused {
            Refused::Held => Shut::Held,
            other => Shut::Never(other),
        })
    }

    /// Enters once `is_ready` says so, which may not be so any more by then. Who inherits the
    /// side from somebody who died inside gets in even if nothing is ready, to mend what was
    /// left.
    #[inline]
    pub(crate) fn enter(&self, limit: Limit, is_ready: impl Fn() -> bool) -> Result<Taken, Shut> {
        if is_ready() {
            match self.try_enter() {
                Err(Shut::Held) => {}
                other => return other,
            }
        }
        self.enter_slowly(limit, is_ready)
    }

    #[cold]
    fn enter_slowly(&self, limit: Limit, is_ready: impl Fn() -> bool) -> Result<Taken, Shut> {
        let tid = thread::tid();
        let word = &self.lock.word;
        // Pending over the wait too: whoever is woken and dies before it is inside has taken
        // the wake-up along, and the kernel then wakes the next one.
        let pending = Pending::begin(&self.lock.node)
            .map_err(|error| Shut::Never(Refused::Unsupported(error)))?;
        let mut slept = 0;
        let mut spins = SPINS;
        let mut held = limit.held;
        let entered = loop {
            let seen = word.load(Ordering::Relaxed);
            if seen & OWNER == tid {
                break Err(Shut::Never(Refused::Own));
            }
            let is_free = seen & OWNER == 0;
            let ready = is_ready();
            if is_free && (ready || seen & OWNER_DIED != 0) {
                if let Some(taken) = self.lock.take_unowned(seen, tid, slept) {
                    pending.link(&self.lock.node);
                    break Ok(taken);
                }
                continue;
            }
            if ready && spins > 0 {
                spins -= 1;
                std::hint::spin_loop();
                continue;
            }
            let until = if ready {
                held = held.fixed();
                held
            } else {
                limit.ready
            };
            if until.is_over() {
                break Err(if ready { Shut::Held } else { Shut::NotReady });
            }
            let waiting = seen | WAITERS;
            if seen != waiting
                && word
                    .compare_exchange(seen, waiting, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            slept = WAITERS;
            // The bit before the flag: who takes both away does it in the other order.
            fence(Ordering::SeqCst);
            self.wanted.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if !ready && is_ready() {
                continue;
            }
            if thread::doze(word, waiting, until.deadline()) && thread::is_interrupted() {
                break Err(if ready { Shut::Held } else { Shut::NotReady });
            }
            spins = SPINS;
        };
        pending.end();
        entered
    }

    /// Leaves. Wakes a sleeper if `is_ready` says that there is something for it.
    #[inline]
    pub(crate) fn leave(&self, is_ready: impl Fn() -> bool) {
        let tid = thread::tid();
        let Self { lock, wanted } = *self;
        if lock.word.load(Ordering::Relaxed) & OWNER != tid {
            return;
        }
        let Ok(pending) = Pending::begin(&lock.node) else {
            return;
        };
        pending.unlink(&lock.node);
        // Takes the owner away and keeps the rest.
        if lock.word.fetch_sub(tid, Ordering::Release) & WAITERS != 0 {
            wanted.store(1, Ordering::Relaxed);
            // Who has changed something while this thread was inside has left the waking to it.
            fence(Ordering::SeqCst);
            if is_ready() {
                self.wake();
            }
        }
        pending.end();
    }

    /// Makes a change that somebody may wait for, and wakes one who does if it is `worth` that.
    /// Not for who is inside already: they wake when they leave.
    #[inline]
    pub(crate) fn announce(&self, change: impl FnOnce(), worth: impl Fn() -> bool) {
        // If this thread is killed after the change and before the wake-up, the kernel wakes.
        let pending = Pending::begin(&self.lock.node);
        change();
        fence(Ordering::SeqCst);
        if self.wanted.load(Ordering::Relaxed) != 0 && worth() {
            self.ring();
        }
        if let Ok(pending) = pending {
            pending.end();
        }
    }

    #[cold]
    fn ring(&self) {
        let mut seen = self.lock.word.load(Ordering::Relaxed);
        if seen & WAITERS == 0 {
            self.wanted.store(0, Ordering::Relaxed);
            // Who sets the bit after this look sets the flag after that store.
            fence(Ordering::SeqCst);
            seen = self.lock.word.load(Ordering::Relaxed);
            if seen & WAITERS == 0 {
                return;
            }
            self.wanted.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            seen = self.lock.word.load(Ordering::Relaxed);
        }
        if seen & OWNER == 0 {
            self.wake();
        }
    }

    fn wake(&self) {
        let word = &self.lock.word;
        if thread::futex_wake(word, 1) != 0 {
            return;
        }
        self.wanted.store(0, Ordering::Relaxed);
        if word
            .compare_exchange(WAITERS, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            // Who set the bit before and began to sleep since would not be woken any more.
            thread::futex_wake(word, u32::MAX >> 1);
        } else {
            self.wanted.store(1, Ordering::Relaxed);
        }
    }
}

#[cfg(loom)]
impl Side<'_> {
    /// What the kernel does to this side when the thread that calls this has been killed.
    pub(super) fn thread_ended(&self) {
        self.lock.thread_ended();
    }
}
