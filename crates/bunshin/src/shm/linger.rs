//! Waiting awake for a moment, before a thread goes to sleep.
//!
//! To be woken takes long: some microseconds where both run on one processor, and tens of
//! them where the other processor has to be roused. What helps depends on where the one is who is
//! waited for. On another processor, it may be about to come: it is looked for, again and
//! again, and each thing keeps for itself how long that has been worth the while. On this very
//! processor it cannot come while this thread looks: the processor is given to it. Each signal
//! therefore leaves behind where it was given.

use std::sync::atomic::AtomicU64 as Kept;
use std::time::Instant;

use super::atomic::{AtomicU32, Ordering};
use super::segment::Shared;
use super::system;

/// The longest and the shortest look, in ticks: some tens of microseconds, and about one.
const SPIN_MAX: u64 = 120_000;
const SPIN_MIN: u64 = 4_000;
/// How often the processor is given to others before sleep.
const YIELDS: u32 = 3;

/// Where signals were given.
///
/// | Bits | Means |
/// |---|---|
/// | 0..=15 | the processor of the last one, and one; 0 if there was none yet |
/// | 16..=31 | the same of the last one before it that was given on another processor |
///
/// A hint, which a peer may have set to anything. Two, since who waits may itself have given the
/// last one.
#[repr(transparent)]
#[derive(Debug, Default)]
pub(crate) struct Whence(AtomicU32);

// SAFETY: an atomic of any value.
unsafe impl Shared for Whence {}

/// As in a [`Whence`]. Processors beyond what fits are taken for others, which costs time only.
#[inline]
fn here() -> u32 {
    (system::cpu() + 1) & 0xffff
}

impl Whence {
    /// The caller is about to give a signal.
    #[inline]
    pub(crate) fn note(&self) {
        if cfg!(loom) {
            return;
        }
        let (seen, here) = (self.0.load(Ordering::Relaxed), here());
        // Written only where it changes, so that the line stays with all who read it.
        if seen & 0xffff != here {
            self.0.store(seen << 16 | here, Ordering::Relaxed);
        }
    }
}

/// How long it has been worth looking, for one thing in one process.
#[derive(Debug)]
pub(crate) struct Spin(Kept);

impl Default for Spin {
    fn default() -> Self {
        Self(Kept::new(SPIN_MAX / 2))
    }
}

impl Clone for Spin {
    fn clone(&self) -> Self {
        Self(Kept::new(self.0.load(Ordering::Relaxed)))
    }
}

impl Spin {
    /// Waits awake for as long as that is likely to be quicker than sleeping. True once `done`
    /// says so.
    #[cold]
    pub(crate) fn linger(
        &self,
        whence: &Whence,
        deadline: Option<Instant>,
        mut done: impl FnMut() -> bool,
    ) -> bool {
        let seen = match cfg!(loom) {
            true => 0,
            false => whence.0.load(Ordering::Relaxed),
        };
        // Where nobody has ever given a signal, nobody is about to.
        if seen == 0 {
            return false;
        }
        let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let (last, before, here) = (seen & 0xffff, seen >> 16, here());
        if last != here || (before != here && before != 0) {
            return self.look(is_late, done);
        }
        (0..YIELDS).any(|_| {
            !is_late() && {
                system::give_way();
                done()
            }
        })
    }

    /// Looks for so long, and learns from it.
    fn look(&self, is_late: impl Fn() -> bool, mut done: impl FnMut() -> bool) -> bool {
        let spin = self.0.load(Ordering::Relaxed);
        let start = system::ticks();
        while !is_late() {
            for _ in 0..16 {
                if done() {
                    self.0.store((spin * 2).min(SPIN_MAX), Ordering::Relaxed);
                    return true;
                }
                std::hint::spin_loop();
            }
            if system::ticks().wrapping_sub(start) > spin {
                self.0.store((spin / 2).max(SPIN_MIN), Ordering::Relaxed);
                break;
            }
        }
        false
    }
}
