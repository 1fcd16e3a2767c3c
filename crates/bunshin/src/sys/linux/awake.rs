//! Staying awake for a while before a sleep, for as long as that pays.
//!
//! A wake-up costs more than a short wait. So who waits gives way to others a few times and looks
//! in between: on a processor that nobody else wants, that is spinning, and on one that the
//! awaited thread wants too, it lets that run. On one that a third wants it loses a whole
//! slice of time, where a sleeper would be woken at once. How it went decides how soon that is
//! tried again, so that what does not pay costs next to nothing.

use std::sync::atomic::{AtomicU32, Ordering};

use super::thread;

/// Ticks to stay awake; about as long as a wake-up takes.
const TICKS: u64 = 60_000;
/// The same where the awaited thread may be woken itself, on a processor that sleeps too.
const TICKS_FOR_BOTH: u64 = 150_000;
/// Ticks after which a third has run meanwhile.
const SLICE: u64 = 4 * TICKS;
/// Waits without a try at most.
const MOST: u32 = 16_384;

/// What is remembered of how it went. Threads that change it at the same time lose little.
#[derive(Debug)]
pub(crate) struct Awake {
    /// How long it stays awake.
    ticks: u64,
    /// Waits to come before the next try.
    pass: AtomicU32,
    /// Waits that were passed before the last one.
    passed: AtomicU32,
}

impl Awake {
    pub(crate) const fn new() -> Self {
        Self::within(TICKS)
    }

    /// For two that wait for each other in turn.
    pub(crate) const fn in_turn() -> Self {
        Self::within(TICKS_FOR_BOTH)
    }

    const fn within(ticks: u64) -> Self {
        Self {
            ticks,
            pass: AtomicU32::new(0),
            passed: AtomicU32::new(0),
        }
    }

    /// Gives way and looks until it is done, for a while if that seems to pay, and else not at all.
    pub(crate) fn until(&self, is_done: impl Fn() -> bool) -> bool {
        let pass = self.pass.load(Ordering::Relaxed);
        if pass > 0 {
            self.pass.store(pass - 1, Ordering::Relaxed);
            return false;
        }
        let start = thread::ticks();
        loop {
            thread::give_way();
            let took = thread::ticks().wrapping_sub(start);
            for _ in 0..4 {
                if is_done() {
                    self.went(took, true);
                    return true;
                }
                std::hint::spin_loop();
            }
            if took >= self.ticks {
                self.went(took, false);
                return false;
            }
        }
    }

    fn went(&self, took: u64, is_done: bool) {
        let passed = self.passed.load(Ordering::Relaxed);
        let passed = match (took >= SLICE, is_done) {
            (true, _) => (passed * 8).clamp(64, MOST),
            (false, false) => (passed * 2).clamp(4, MOST),
            (false, true) => passed / 2,
        };
        self.passed.store(passed, Ordering::Relaxed);
        self.pass.store(passed, Ordering::Relaxed);
    }
}
