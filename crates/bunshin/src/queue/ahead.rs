//! Letting a producer get ahead of a consumer that is as quick as it.
//!
//! Such a consumer takes each item the moment it is there. All that the two share then goes from
//! processor to processor for each item, which takes longer than to write and to read it. A
//! consumer that stays behind by some items finds them all at one look. So who has waited awake for
//! an item waits a little longer, if others have come meanwhile the last time; how it went decides
//! how soon that is tried again.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::thread;

/// Ticks to wait; a busy producer sends about ten items in so many.
const TICKS: u64 = 4_000;
/// Items that have to be there then, or it was in vain.
const ENOUGH: u64 = 4;
/// Waits without a try after the first one in vain, and at most.
const FEW: u32 = 16;
const MOST: u32 = 16_384;

/// What is remembered of how it went. Threads that change it at the same time lose little.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Waits to come before the next try.
    pass: AtomicU32,
    /// Waits that were passed before the last one.
    passed: AtomicU32,
}

impl Ahead {
    /// To be called when an item has come that was waited for awake: waits for more, if that seems
    /// to pay. `len` says how many there are.
    pub(super) fn wait(&self, len: impl Fn() -> u64) {
        let pass = self.pass.load(Ordering::Relaxed);
        if pass > 0 {
            self.pass.store(pass - 1, Ordering::Relaxed);
            return;
        }
        // Nothing that is shared is looked at meanwhile.
        let start = thread::ticks();
        while thread::ticks().wrapping_sub(start) < TICKS {
            std::hint::spin_loop();
        }
        let passed = if len() >= ENOUGH {
            0
        } else {
            (self.passed.load(Ordering::Relaxed) * 2).clamp(FEW, MOST)
        };
        self.passed.store(passed, Ordering::Relaxed);
        self.pass.store(passed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// How many of so many waits were tries, where each finds so many items.
    fn tries(ahead: &Ahead, waits: u32, items: u64) -> u32 {
        let count = Cell::new(0);
        for _ in 0..waits {
            ahead.wait(|| {
                count.set(count.get() + 1);
                items
            });
        }
        count.get()
    }

    #[test]
    fn what_pays_is_done_each_time() {
        assert_eq!(tries(&Ahead::default(), 100, ENOUGH), 100);
    }

    #[test]
    fn what_does_not_pay_is_hardly_ever_tried() {
        let ahead = Ahead::default();
        let first = tries(&ahead, 1_000, 1);
        assert!((2..10).contains(&first), "{first} tries of 1,000");
        let later = tries(&ahead, 1_000_000, 1);
        assert!((10..100).contains(&later), "{later} tries of 1,000,000");
        assert!(ahead.pass.load(Ordering::Relaxed) <= MOST);
    }

    #[test]
    fn it_is_done_again_once_it_pays() {
        let ahead = Ahead::default();
        tries(&ahead, 100_000, 1);
        let found = tries(&ahead, 2 * MOST, ENOUGH);
        assert!(found > MOST / 2, "{found} tries");
    }
}
