//! What is done inside of a side, and is neither sending nor taking: the bell, and the end.

use super::super::atomic::Ordering;
use super::super::lock::Taken;
use super::super::side::{Shut, Side};
use super::super::system as thread;
use super::{OnTake, Outside, Queue, Refusal};

/// How often a consumer looks whether a producer has left.
const LEAVING: u32 = if cfg!(loom) { 0 } else { 500 };

impl Queue {
    /// Silences the bell if the queue is empty, for who is inside as a consumer.
    #[cold]
    pub(super) fn settle(&self, outside: &impl Outside) {
        let header = self.header();
        if header.watched.load(Ordering::Relaxed) == 0 || self.is_closed() {
            return;
        }
        // No producer may be between the bell and its item.
        let side = self.producers();
        let mut tries = 0;
        loop {
            match side.try_enter() {
                Ok(Taken::Clean) => break,
                Ok(Taken::Abandoned) => {
                    self.mend_producers();
                    break;
                }
                // It is about to put an item there, or it has put there the one that was just
                // taken, and is about to leave. One that stays has a long item, or is stopped.
                Err(_) if tries < LEAVING && self.is_empty() => {
                    tries += 1;
                    #[cfg(not(loom))]
                    std::thread::yield_now();
                }
                Err(_) => return,
            }
        }
        if self.is_empty() && !self.is_closed() {
            header.lit.store(0, Ordering::Relaxed);
            outside.darken();
        }
        side.leave(|| self.has_room());
    }

    /// From now on the bell is readable while there is an item, or the queue is closed.
    pub(crate) fn watch(&self, outside: &impl Outside) -> Result<(), Refusal> {
        let header = self.header();
        if header.watched.load(Ordering::Acquire) != 0 {
            return Ok(());
        }
        let side = self.producers();
        match enter_anyway(&side)? {
            Taken::Clean => {}
            Taken::Abandoned => self.mend_producers(),
        }
        header.watched.store(1, Ordering::Release);
        // No item can come now. One that is taken meanwhile leaves a bell that says too much,
        // until somebody looks.
        if !self.is_empty() || self.is_closed() {
            outside.light();
            header.lit.store(1, Ordering::Relaxed);
        }
        side.leave(|| self.has_room());
        Ok(())
    }

    /// Silences a bell that was found to say too much: there was nothing to take.
    pub(crate) fn unring(&self, outside: &impl Outside, on_take: &impl OnTake) {
        if self.header().watched.load(Ordering::Relaxed) == 0 {
            return;
        }
        let side = self.consumers();
        let Ok(taken) = side.try_enter() else {
            // They settle it.
            return;
        };
        if taken == Taken::Abandoned {
            self.mend_consumers(on_take);
        }
        if self.is_empty() {
            self.settle(outside);
        }
        side.leave(|| self.has_item());
    }

    /// Runs `work` as a consumer that takes nothing.
    pub(crate) fn as_consumer<R>(
        &self,
        on_take: &impl OnTake,
        work: impl FnOnce() -> R,
    ) -> Result<R, Refusal> {
        let side = self.consumers();
        if enter_anyway(&side)? == Taken::Abandoned {
            self.mend_consumers(on_take);
        }
        let result = work();
        side.leave(|| self.has_item());
        Ok(result)
    }

    /// Lets no item in any more, and wakes everybody who waits.
    pub(crate) fn close(&self, outside: &impl Outside) -> Result<(), Refusal> {
        let header = self.header();
        let side = self.producers();
        // Inside, so that no item comes after the end.
        if enter_anyway(&side)? == Taken::Abandoned {
            self.mend_producers();
        }
        let close = || header.closed.store(1, Ordering::SeqCst);
        // Who is woken wakes the next one, here and there.
        self.consumers().announce(close, || true);
        if header.watched.load(Ordering::Relaxed) != 0 {
            outside.light();
            header.lit.store(1, Ordering::Relaxed);
        }
        side.leave(|| self.has_room());
        Ok(())
    }
}

/// Enters for something else than what is waited for there: by trying, as nobody would wake
/// such a one.
fn enter_anyway(side: &Side<'_>) -> Result<Taken, Refusal> {
    loop {
        match side.try_enter() {
            Err(Shut::Held) => thread::pause(),
            other => return other.map_err(Refusal::from),
        }
    }
}
