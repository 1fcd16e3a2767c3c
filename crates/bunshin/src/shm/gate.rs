//! A place to sleep at until something may be there.
//!
//! # The word
//!
//! | Bits | Means |
//! |---|---|
//! | 0 | somebody may sleep |
//! | 1 | somebody has entered since the last opening |
//! | 2..=31 | how often it was opened for somebody, wrapping |
//!
//! | From | To | By |
//! |---|---|---|
//! | any | bits 0 and 1 set | `enter`, before the last look at what is waited for |
//! | bit 0 set | one more opening, bit 1 clear | `open`, after the thing is there |
//! | bit 0 set, bit 1 clear | bit 0 clear | the same `open`, if nobody is left asleep |
//!
//! No wake-up is lost. A sleeper enters, looks once more, and then sleeps only on the value
//! that it made; an opener makes the thing available and then looks at the word. One of the
//! two comes first: either the sleeper sees the thing, or the opener sees bit 0. If
//! the opening falls between the sleeper's last look and its sleep, the value has changed and it
//! does not sleep. Bit 0 is taken away only when the kernel found fewer sleepers than it was
//! to wake, and bit 1 still says that nobody has come since: whoever entered later set
//! bit 1 again, so that the exchange fails and bit 0 stays.
//!
//! A sleeper that is killed leaves bit 0 behind; the next opening finds nobody and clears
//! it. One that is killed after it has been woken takes the waking along, and so does an opener
//! that is killed before it wakes: sleepers therefore look again by themselves now and then
//! (`doze`).

use std::time::Instant;

use super::atomic::{AtomicU32, Ordering, fence};
use super::segment::Shared;
use super::system;

const SLEEPERS: u32 = 1;
const ENTERED: u32 = 2;
const OPENING: u32 = 4;

/// To wake everybody; the most that the kernel understands.
pub(crate) const ALL: u32 = i32::MAX as u32;

/// See the module; 4 bytes, valid when zeroed.
#[repr(transparent)]
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU32);

// SAFETY: an atomic of any value.
unsafe impl Shared for Gate {}

/// Loom takes `SeqCst` on one access for less than it is, and a fence for what it is. The
/// processor needs none beside a sequentially consistent exchange.
#[inline]
pub(crate) fn fence_for_loom() {
    if cfg!(loom) {
        fence(Ordering::SeqCst);
    }
}

/// Whether to wait no longer, for who has dozed off once.
pub(super) fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline) || system::is_interrupted()
}

impl Gate {
    /// Says that the caller is about to sleep. It then has to look once more whether what it
    /// waits for is there, by `SeqCst` loads or stronger.
    pub(crate) fn enter(&self) -> u32 {
        let entered = SLEEPERS | ENTERED;
        let entered = self.0.fetch_or(entered, Ordering::SeqCst) | entered;
        fence_for_loom();
        entered
    }

    /// Sleeps until the gate opens, unless it has since `entered`. It may return for no reason,
    /// and does before a second has passed. Says whether the deadline is over, or a signal is to end
    /// the waiting.
    pub(crate) fn sleep(&self, entered: u32, deadline: Option<Instant>) -> bool {
        system::doze(&self.0, entered, deadline) && is_over(deadline)
    }

    /// Wakes up to `count` of those that sleep. The caller has made available what they wait
    /// for, by a `SeqCst` store or exchange.
    #[inline]
    pub(crate) fn open(&self, count: u32) {
        fence_for_loom();
        if self.0.load(Ordering::SeqCst) & SLEEPERS != 0 {
            self.wake(count);
        }
    }

    #[cold]
    fn wake(&self, count: u32) {
        let opened = |seen: u32| (seen & !ENTERED).wrapping_add(OPENING);
        let mut seen = self.0.load(Ordering::SeqCst);
        while let Err(now) =
            self.0
                .compare_exchange(seen, opened(seen), Ordering::SeqCst, Ordering::SeqCst)
        {
            seen = now;
        }
        let now = opened(seen);
        if system::futex_wake(&self.0, count) < count {
            // Nobody is asleep who came before; if somebody has come since, this fails.
            let closed = now & !SLEEPERS;
            let _ = self
                .0
                .compare_exchange(now, closed, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}
