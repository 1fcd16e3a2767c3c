//! A condition: threads that wait until somebody notifies them, in a list that the dead drop out of.
//!
//! # A place
//!
//! Who waits holds a place: a robust lock (`lock.rs`), from before it lets go of the user's lock
//! until after it has that again. Beside it are the order in which its holder came, and a
//! bell, which its holder sleeps on:
//!
//! | Bell | Means |
//! |---|---|
//! | idle | nobody waits here |
//! | waiting | its holder waits |
//! | notified | its holder is to go on, and has not got so far yet |
//!
//! | From | To | By |
//! |---|---|---|
//! | idle | waiting | the place's new holder, who has the user's lock |
//! | waiting | notified | a notifier, one for each of `n`, who then wakes the holder |
//! | waiting | idle | the holder, when its time is over |
//! | notified | idle | the holder, when it has the user's lock again |
//! | waiting, notified | idle | who takes a dead holder's place; after notified, it notifies another |
//!
//! # No notification is lost
//!
//! A notifier skips places whose holder has died, and those already notified. A waiter that
//! dies after it was notified, and before it has the user's lock, leaves its place as
//! "died, notified": whoever sees that takes the place, notifies another, and only then clears
//! it, so that it may die in its turn. All sleepers look for such places within a second
//! (`doze`), and each notifier before it begins. Who dies later dies with the user's lock,
//! which says so itself.
//!
//! A notifier of all first raises `all_upto` to the last order given out: with that one store all
//! of them are notified, should it die before it has woken each; they see it when they
//! look again. Those who come later have a higher order and are not.
//!
//! A notification is never taken by one who came after it: only bells that wait are rung.
//! Waiters are rung in turn, from the place after the one rung last, so that none is passed over
//! for ever.
//!
//! # The crowd
//!
//! Where all places are taken, further waiters sleep at a gate (`gate.rs`) that every notifier
//! opens for all of them once the last place has ever been in use. They go on more often
//! than they are notified, as waiters on a condition may.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::atomic::{AtomicU32, AtomicU64, Ordering, Unused};
use super::gate::{ALL, Gate, is_over};
use super::layout::{CONDITION_HEAD, CONDITION_PLACE, CONDITION_PLACES, Kind};
use super::linger::{Spin, Whence};
use super::lock::{RawLock, Refused, Taken};
use super::segment::{Segment, Shared};
use super::system;
use crate::error::Result;

/// Waiters that are told apart.
pub(crate) const PLACES: u32 = if cfg!(loom) { 2 } else { 256 };

const IDLE: u32 = 0;
const WAITING: u32 = 1;
const NOTIFIED: u32 = 2;

#[repr(C)]
#[derive(Debug, Default)]
struct Head {
    crowd: Gate,
    /// One past the last place that was ever in use.
    n_used: AtomicU32,
    /// Where the next notifier begins.
    turn: AtomicU32,
    /// Where somebody notified last.
    whence: Whence,
    /// The order given out last.
    order: AtomicU64,
    /// Whoever has this order or a lower one has been notified.
    all_upto: AtomicU64,
}

// SAFETY: atomics only, without padding.
unsafe impl Shared for Head {}

#[repr(C)]
#[derive(Debug, Default)]
struct Place {
    lock: RawLock,
    bell: AtomicU32,
    _unused: Unused,
    order: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Head>() == 32 && size_of::<Place>() == 56);

// SAFETY: a lock and atomics, without padding.
unsafe impl Shared for Place {}

/// A condition in a segment of its own.
#[derive(Clone, Debug)]
pub(crate) struct SharedCondition {
    segment: Arc<Segment>,
    spin: Spin,
}

impl SharedCondition {
    const LEN: usize = CONDITION_PLACES + PLACES as usize * CONDITION_PLACE;

    pub(crate) fn create() -> Result<Self> {
        Ok(Self {
            segment: Segment::create(Kind::Condition, Self::LEN)?,
            spin: Spin::default(),
        })
    }

    /// Maps what came in a message.
    pub(crate) fn attach(fd: OwnedFd) -> Result<Self> {
        Ok(Self {
            segment: Segment::attach(fd, Kind::Condition, Self::LEN)?,
            spin: Spin::default(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }

    fn head(&self) -> &Head {
        self.segment.at(CONDITION_HEAD)
    }

    fn place(&self, index: u32) -> &Place {
        self.segment
            .at(CONDITION_PLACES + index as usize * CONDITION_PLACE)
    }

    /// Places to look at; a peer may have written anything.
    fn n_used(&self) -> u32 {
        self.head().n_used.load(Ordering::SeqCst).min(PLACES)
    }

    /// Begins to wait. The caller has the user's lock, and gives it back only after this.
    pub(crate) fn begin(&self) -> io::Result<Waiter<'_>> {
        let head = self.head();
        for index in 0..PLACES {
            let place = self.place(index);
            if !place.lock.is_free() {
                continue;
            }
            let taken = match place.lock.try_lock() {
                Ok(taken) => taken,
                Err(Refused::Held | Refused::Own) => continue,
                Err(Refused::Unsupported(error)) => return Err(error),
            };
            if taken == Taken::Abandoned {
                self.hand_on(place);
            }
            let order = head.order.fetch_add(1, Ordering::SeqCst) + 1;
            place.order.store(order, Ordering::SeqCst);
            place.bell.store(WAITING, Ordering::SeqCst);
            head.n_used.fetch_max(index + 1, Ordering::SeqCst);
            return Ok(Waiter {
                condition: self,
                at: At::Place(place, order),
            });
        }
        Ok(Waiter {
            condition: self,
            at: At::Crowd(head.crowd.enter()),
        })
    }

    /// Notifies `n` waiters, or as many as there are.
    pub(crate) fn notify(&self, n: u32) {
        self.head().whence.note();
        self.look_for_the_dead();
        self.ring(n);
        self.call_the_crowd();
    }

    /// Notifies all who wait now.
    pub(crate) fn notify_all(&self) {
        let head = self.head();
        head.whence.note();
        let upto = head.order.load(Ordering::SeqCst);
        // From here on all of them are notified, whatever becomes of this thread.
        head.all_upto.fetch_max(upto, Ordering::SeqCst);
        for index in 0..self.n_used() {
            let place = self.place(index);
            if place.order.load(Ordering::SeqCst) <= upto {
                Self::ring_one(place);
            }
        }
        self.call_the_crowd();
    }

    fn call_the_crowd(&self) {
        if self.n_used() == PLACES {
            self.head().crowd.open(ALL);
        }
    }

    /// Rings the bells of so many who wait and live.
    fn ring(&self, n: u32) {
        let (head, n_used) = (self.head(), self.n_used());
        let turn = head.turn.load(Ordering::Relaxed);
        let first = if turn < n_used { turn } else { 0 };
        let mut left = n;
        for index in (first..n_used).chain(0..first) {
            if left == 0 {
                return;
            }
            let place = self.place(index);
            if place.lock.is_free() {
                continue;
            }
            let order = place.order.load(Ordering::SeqCst);
            let is_new = order > head.all_upto.load(Ordering::SeqCst);
            if Self::ring_one(place) && is_new {
                left -= 1;
                head.turn.store(index + 1, Ordering::Relaxed);
            }
        }
    }

    /// Whether a waiting bell was rung.
    fn ring_one(place: &Place) -> bool {
        let bell = &place.bell;
        let was_waiting = bell.load(Ordering::SeqCst) == WAITING
            && bell
                .compare_exchange(WAITING, NOTIFIED, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok();
        if was_waiting {
            system::futex_wake(bell, 1);
        }
        was_waiting
    }

    /// How many wait, and how many of them have been notified, beside those in the crowd.
    pub(crate) fn n_waiting(&self) -> (u32, u32) {
        let bells = (0..self.n_used()).map(|index| self.place(index));
        let bells = bells.filter(|place| !place.lock.is_free());
        bells.fold((0, 0), |(all, notified), place| {
            match place.bell.load(Ordering::SeqCst) {
                WAITING => (all + 1, notified),
                NOTIFIED => (all + 1, notified + 1),
                _ => (all, notified),
            }
        })
    }

    /// Has the living get what the dead were notified of.
    fn look_for_the_dead(&self) {
        for index in 0..self.n_used() {
            let place = self.place(index);
            if !place.lock.has_died() {
                continue;
            }
            // Another may have been here first; then there is nothing left to do.
            if let Ok(taken) = place.lock.try_lock() {
                if taken == Taken::Abandoned {
                    self.hand_on(place);
                }
                place.lock.unlock();
            }
        }
    }

    /// Clears the place of a dead waiter, which is the caller's now.
    fn hand_on(&self, place: &Place) {
        // One step, as a notifier may be ringing this very bell: then another is to be rung.
        if Self::leave(&place.bell).is_err() {
            // In this order: should the caller die in between, somebody hands it on once more.
            if place.bell.load(Ordering::SeqCst) == NOTIFIED {
                self.ring(1);
            }
            place.bell.store(IDLE, Ordering::SeqCst);
        }
    }

    /// Makes a waiting bell idle.
    fn leave(bell: &AtomicU32) -> Result<u32, u32> {
        bell.compare_exchange(WAITING, IDLE, Ordering::SeqCst, Ordering::SeqCst)
    }
}

#[cfg(loom)]
impl SharedCondition {
    /// What the kernel does when the thread that calls this has been killed.
    pub(super) fn thread_ended(&self) {
        (0..PLACES).for_each(|index| self.place(index).lock.thread_ended());
    }
}

enum At<'a> {
    Place(&'a Place, u64),
    /// At the gate, entered with this value.
    Crowd(u32),
}

/// One who waits on a [`SharedCondition`].
pub(crate) struct Waiter<'a> {
    condition: &'a SharedCondition,
    at: At<'a>,
}

impl Waiter<'_> {
    /// Whether it has been notified, as far as one look tells.
    pub(crate) fn is_called(&self) -> bool {
        match self.at {
            At::Place(place, _) => place.bell.load(Ordering::SeqCst) != WAITING,
            At::Crowd(_) => false,
        }
    }

    /// Sleeps until notified; `false` if the deadline is over before that. The caller has given
    /// back the user's lock.
    pub(crate) fn sleep(&self, deadline: Option<Instant>) -> bool {
        match self.at {
            At::Place(place, order) => self.sleep_at(place, order, deadline),
            At::Crowd(entered) => !self.condition.head().crowd.sleep(entered, deadline),
        }
    }

    fn sleep_at(&self, place: &Place, order: u64, deadline: Option<Instant>) -> bool {
        let (head, spin) = (self.condition.head(), &self.condition.spin);
        spin.linger(&head.whence, deadline, || {
            place.bell.load(Ordering::SeqCst) != WAITING
                || order <= head.all_upto.load(Ordering::SeqCst)
        });
        loop {
            if place.bell.load(Ordering::SeqCst) != WAITING {
                return true;
            }
            if order <= head.all_upto.load(Ordering::SeqCst) {
                // Its notifier has not come so far, and may never.
                SharedCondition::ring_one(place);
                return true;
            }
            if system::doze(&place.bell, WAITING, deadline) {
                self.condition.look_for_the_dead();
                if is_over(deadline) {
                    // Whoever has been notified by now was notified in time.
                    return SharedCondition::leave(&place.bell).is_err();
                }
            }
        }
    }
}

impl Drop for Waiter<'_> {
    /// Ends the waiting; the caller has the user's lock again.
    fn drop(&mut self) {
        #[cfg(loom)]
        if super::system::is_killed() {
            return;
        }
        if let At::Place(place, _) = self.at {
            place.bell.store(IDLE, Ordering::SeqCst);
            place.lock.unlock();
        }
    }
}
