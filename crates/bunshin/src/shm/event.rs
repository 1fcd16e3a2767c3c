//! An event: a flag that threads wait for.
//!
//! # The word
//!
//! | Bits | Means |
//! |---|---|
//! | 0 | the event is set |
//! | 1 | somebody sleeps on the word, or is about to |
//! | 2..=31 | how often it was set, wrapping |
//!
//! | From | To | By |
//! |---|---|---|
//! | not set | set, one more, no sleepers | `set`, one exchange; then wakes all sleepers |
//! | set | not set | `clear` |
//! | not set | not set, sleepers | one who is about to sleep on that very value |
//!
//! Who waits goes on when the event is set, or has been set since it came: a `set`
//! followed by `clear` at once still lets all go on who waited. No wake-up is lost, as the
//! setter changes the value that the sleepers compare. Should it die before it wakes them, they
//! see the change when they look again, within a second. A sleeper that is killed leaves bit
//! 1 behind, and the next `set` clears it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::atomic::{AtomicU32, Ordering};
use super::gate::{ALL, is_over};
use super::layout::{EVENT, EVENT_WHENCE, Kind};
use super::linger::{Spin, Whence};
use super::segment::Segment;
use super::system;
use crate::error::Result;

const SET: u32 = 1;
const SLEEPERS: u32 = 2;
const ONE: u32 = 4;

/// An event in a segment of its own.
#[derive(Clone, Debug)]
pub(crate) struct SharedEvent {
    segment: Arc<Segment>,
    spin: Spin,
}

impl SharedEvent {
    const LEN: usize = EVENT + 64;

    pub(crate) fn create() -> Result<Self> {
        Ok(Self {
            segment: Segment::create(Kind::Event, Self::LEN)?,
            spin: Spin::default(),
        })
    }

    /// Maps what came in a message.
    pub(crate) fn attach(fd: OwnedFd) -> Result<Self> {
        Ok(Self {
            segment: Segment::attach(fd, Kind::Event, Self::LEN)?,
            spin: Spin::default(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }

    #[inline]
    fn word(&self) -> &AtomicU32 {
        self.segment.at(EVENT)
    }

    /// Where it was set last.
    fn whence(&self) -> &Whence {
        self.segment.at(EVENT_WHENCE)
    }

    #[inline]
    pub(crate) fn is_set(&self) -> bool {
        self.word().load(Ordering::Acquire) & SET != 0
    }

    #[inline]
    pub(crate) fn set(&self) {
        let word = self.word();
        self.whence().note();
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            // Set once more where it is set already: what was written before is then seen by
            // whoever sees it set, and nobody sleeps on a set one.
            let new = (seen | SET) & !SLEEPERS;
            let new = if seen & SET == 0 {
                new.wrapping_add(ONE)
            } else {
                new
            };
            match word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        if seen & SLEEPERS != 0 {
            system::futex_wake(word, ALL);
        }
    }

    #[inline]
    pub(crate) fn clear(&self) {
        self.word().fetch_and(!SET, Ordering::AcqRel);
    }

    /// What [`has_come`](Self::has_come) counts from.
    #[inline]
    pub(crate) fn moment(&self) -> u32 {
        self.word().load(Ordering::Acquire) / ONE
    }

    /// Whether it is set, or has been since that moment.
    #[inline]
    pub(crate) fn has_come(&self, since: u32) -> bool {
        let seen = self.word().load(Ordering::Acquire);
        seen & SET != 0 || seen / ONE != since
    }

    /// Waits until it is set; `false` if the deadline is over before that.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        let came = self.moment();
        let look = || self.has_come(came);
        if look() || self.spin.linger(self.whence(), deadline, look) {
            return true;
        }
        self.sleep_since(came, deadline)
    }

    /// As [`wait`](Self::wait), for who has come at that moment and looked for long enough.
    pub(crate) fn sleep_since(&self, came: u32, deadline: Option<Instant>) -> bool {
        let word = self.word();
        let mut seen = word.load(Ordering::Acquire);
        let has_come = |seen: u32| seen & SET != 0 || seen / ONE != came;
        loop {
            if has_come(seen) {
                return true;
            }
            let asleep = seen | SLEEPERS;
            if seen != asleep {
                if let Err(now) =
                    word.compare_exchange(seen, asleep, Ordering::Acquire, Ordering::Acquire)
                {
                    seen = now;
                    continue;
                }
            }
            let is_late = system::doze(word, asleep, deadline) && is_over(deadline);
            seen = word.load(Ordering::Acquire);
            if is_late {
                return has_come(seen);
            }
        }
    }
}
