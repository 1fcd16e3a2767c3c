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
/// Ticks that are spun at least, where spinning has never helped.
pub(crate) const SPIN_MIN: u64 = 4_000;
/// Ticks after which a peer on another processor is not expected to send again at once.
const PAUSE: u64 = 10_000;
/// Ticks between two times that a server gives way to peers on its own processor while others
/// are being served; as long as a wake-up, which they would else wait for.
const TURN: u64 = 150_000;

/// Spins for as long as has been worth the while, and learns from it. True once `is_done` says so.
pub(crate) fn spin(spin: &mut u64, max: u64, is_done: impl Fn() -> bool) -> bool {
    let start = thread::ticks();
    loop {
        for _ in 0..16 {
            if is_done() {
                *spin = (*spin * 2).min(max);
                return true;
            }
            std::hint::spin_loop();
        }
        if thread::ticks().wrapping_sub(start) > *spin {
            *spin = (*spin / 2).max(SPIN_MIN);
            return false;
        }
    }
}

/// When a thread that serves many peers gives its processor to those that wait on it.
///
/// To change places with another process takes as long as several messages of a peer that runs
/// on another processor. While there is such a one, those on this processor have their turn
/// now and then, not after each message of the other one.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// When peers on this processor last had theirs.
    last: u64,
}

impl Turns {
    /// Gives the processor away if a peer waits on it, which cannot send anything while this
    /// thread has it; false if not.
    ///
    /// `peers` gives for each the processor that it was last seen on, and when it last sent; if it
    /// is passed true, it looks for the processor anew. That is not done for each message, as the
    /// peer writes to that line of memory again and again.
    pub(crate) fn give_way<P>(
        &mut self,
        is_busy: bool,
        now: u64,
        peers: impl FnOnce(bool) -> P,
    ) -> bool
    where
        P: Iterator<Item = (Option<u32>, u64)>,
    {
        let is_turn = now.wrapping_sub(self.last) > TURN;
        if is_busy && !is_turn {
            return false;
        }
        let here = Some(thread::cpu());
        let mut is_shared = false;
        for (cpu, last_used) in peers(is_turn) {
            if cpu == here {
                is_shared = true;
            } else if !is_turn && now.wrapping_sub(last_used) < PAUSE {
                return false;
            }
        }
        if is_shared {
            thread::give_way();
        }
        if is_turn {
            // Somebody may have had the processor for long: those elsewhere come first again.
            self.last = thread::ticks();
        }
        is_shared
    }
}

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
