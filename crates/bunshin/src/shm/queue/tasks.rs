//! Who has taken items of a queue and not finished them: what joining it waits for.
//!
//! Each process that takes items has a line: how many it took, and how many it finished. An
//! item is counted as taken before it leaves the queue, so that it is always in one of the two
//! or both, never in neither; the intent written before tells whoever comes after a consumer
//! that died in between which of the two was true.

use std::sync::Arc;

use super::super::atomic::{AtomicU32, AtomicU64, Ordering, Unused};
use super::super::layout::{QUEUE_FIXED, QUEUE_HOLDERS, QUEUE_TASKS};
use super::super::lock::RawLock;
use super::super::segment::{Segment, Shared};
use super::super::side::{Limit, Shut, Side};
use super::OnTake;
use crate::error::{Error, ErrorKind, Result};

#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
struct Head {
    finished: RawLock,
    finished_wanted: AtomicU32,
    /// Lines that were ever used.
    used: AtomicU32,
    /// Items of processes that ended before they had finished them.
    lost: AtomicU64,
    /// Items that were declared finished before anybody had taken them.
    ahead: AtomicU64,
    /// The line of who is about to take an item, plus one; 0 if nobody is.
    intent: AtomicU32,
    _spare: Unused,
    /// Which item that is.
    intent_number: AtomicU64,
    /// How many that line had taken before.
    intent_taken: AtomicU64,
    _intent: [Unused; 10],
}

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Holder {
    /// The process, or 0 if the line is free.
    pid: AtomicU32,
    _spare: Unused,
    /// When that process began: another one may have the same number later.
    began: AtomicU64,
    taken: AtomicU64,
    finished: AtomicU64,
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Head>() == 128);
    assert!(offset_of!(Head, lost) == 48);
    assert!(offset_of!(Head, ahead) == 56);
    assert!(offset_of!(Head, intent) == 64);
    assert!(offset_of!(Head, intent_number) == 72);
};
#[cfg(not(loom))]
const _: () = assert!(size_of::<Holder>() == 32);
const _: () = assert!(QUEUE_TASKS + 128 + QUEUE_HOLDERS * 32 <= QUEUE_FIXED);

// SAFETY: atomics, and a lock that is `Shared` itself.
unsafe impl Shared for Head {}
// SAFETY: atomics.
unsafe impl Shared for Holder {}

/// A process, as others tell it from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) pid: u32,
    pub(crate) began: u64,
}

/// A view of a queue's table of unfinished items.
#[derive(Debug)]
pub(crate) struct Tasks {
    segment: Arc<Segment>,
}

impl Tasks {
    pub(crate) fn new(segment: Arc<Segment>) -> Self {
        Self { segment }
    }

    fn head(&self) -> &Head {
        self.segment.at(QUEUE_TASKS)
    }

    fn holder(&self, line: usize) -> &Holder {
        assert!(line < QUEUE_HOLDERS);
        self.segment.at(QUEUE_TASKS + 128 + line * 32)
    }

    fn used(&self) -> usize {
        (self.head().used.load(Ordering::Acquire) as usize).min(QUEUE_HOLDERS)
    }

    fn side(&self) -> Side<'_> {
        let head = self.head();
        Side {
            lock: &head.finished,
            wanted: &head.finished_wanted,
        }
    }

    /// The line of a process; makes one if need be. For who is inside as a consumer.
    pub(crate) fn line(&self, who: Who, is_alive: impl Fn(Who) -> bool) -> Result<usize> {
        let used = self.used();
        let own = (0..used).find(|line| self.who(*line) == Some(who));
        if let Some(line) = own {
            return Ok(line);
        }
        let free = (0..used).find(|line| {
            self.unfinished_of(*line) == 0 && self.who(*line).is_none_or(|who| !is_alive(who))
        });
        let line = match free {
            Some(line) => line,
            None if used < QUEUE_HOLDERS => used,
            None => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("more than {QUEUE_HOLDERS} processes have unfinished items of a queue"),
                ));
            }
        };
        let holder = self.holder(line);
        holder.pid.store(0, Ordering::Relaxed);
        holder.began.store(who.began, Ordering::Relaxed);
        holder.pid.store(who.pid, Ordering::Release);
        if line == used {
            self.head().used.store(used as u32 + 1, Ordering::Release);
        }
        Ok(line)
    }

    fn who(&self, line: usize) -> Option<Who> {
        let holder = self.holder(line);
        let pid = holder.pid.load(Ordering::Acquire);
        (pid != 0).then(|| Who {
            pid,
            began: holder.began.load(Ordering::Relaxed),
        })
    }

    fn unfinished_of(&self, line: usize) -> u64 {
        let holder = self.holder(line);
        // In this order: what is finished was taken before.
        let finished = holder.finished.load(Ordering::SeqCst);
        holder.taken.load(Ordering::SeqCst).wrapping_sub(finished)
    }

    /// Items that were taken and not finished.
    pub(crate) fn unfinished(&self) -> u64 {
        (0..self.used())
            .map(|line| self.unfinished_of(line))
            .fold(0, u64::wrapping_add)
    }

    /// Notes that the process of that line has finished an item; false if it has none.
    /// `is_over` says whether nothing is unfinished any more.
    pub(crate) fn finish(&self, line: usize, is_over: impl Fn() -> bool) -> bool {
        let holder = self.holder(line);
        let mut finished = holder.finished.load(Ordering::SeqCst);
        loop {
            if holder.taken.load(Ordering::SeqCst) == finished {
                return false;
            }
            let mut now = Ok(finished);
            self.side().announce(
                || {
                    now = holder.finished.compare_exchange(
                        finished,
                        finished + 1,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    );
                },
                &is_over,
            );
            match now {
                Ok(_) => return true,
                Err(now) => finished = now,
            }
        }
    }

    /// Items that were declared finished before anybody had taken them, and still count as
    /// unfinished in the queue or in a line.
    pub(crate) fn ahead(&self) -> u64 {
        self.head().ahead.load(Ordering::SeqCst)
    }

    /// Notes that one more of the `open` items, in the queue or in lines, is finished; false if
    /// as many are.
    pub(crate) fn finish_ahead(&self, open: impl Fn() -> u64, is_over: impl Fn() -> bool) -> bool {
        let head = self.head();
        let mut ahead = self.ahead();
        while ahead < open() {
            let mut now = Ok(ahead);
            self.side().announce(
                || {
                    now = head.ahead.compare_exchange(
                        ahead,
                        ahead + 1,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    );
                },
                &is_over,
            );
            match now {
                Ok(_) => return true,
                Err(now) => ahead = now,
            }
        }
        false
    }

    /// Waits until nothing is unfinished.
    pub(crate) fn wait(&self, limit: Limit, is_over: impl Fn() -> bool) -> Result<(), Shut> {
        let side = self.side();
        loop {
            side.enter(limit, &is_over)?;
            // Who got in after somebody who died there looks again.
            let over = is_over();
            // Wakes the next one who waits for the same.
            side.leave(&is_over);
            if over {
                return Ok(());
            }
        }
    }

    /// Processes that have unfinished items.
    pub(crate) fn holders(&self) -> Vec<(usize, Who)> {
        (0..self.used())
            .filter(|line| self.unfinished_of(*line) != 0)
            .filter_map(|line| Some((line, self.who(line)?)))
            .collect()
    }

    /// Gives up what a process that has ended has not finished. For who is inside as a
    /// consumer.
    pub(crate) fn bury(&self, line: usize, who: Who, is_over: impl Fn() -> bool) {
        if self.who(line) != Some(who) {
            return;
        }
        let holder = self.holder(line);
        let unfinished = self.unfinished_of(line);
        let ahead = unfinished.min(self.ahead());
        // First this: were this process killed next, those would count as lost after all, and
        // nothing as finished that is not.
        self.head().ahead.fetch_sub(ahead, Ordering::SeqCst);
        self.head()
            .lost
            .fetch_add(unfinished - ahead, Ordering::Relaxed);
        let taken = holder.taken.load(Ordering::Relaxed);
        self.side()
            .announce(|| holder.finished.store(taken, Ordering::SeqCst), is_over);
    }

    /// Items that were ever lost so.
    pub(crate) fn lost(&self) -> u64 {
        self.head().lost.load(Ordering::Acquire)
    }
}

/// Counts an item for a line when it is taken.
pub(crate) struct Counted<'a> {
    pub(crate) tasks: &'a Tasks,
    /// The line, for who is inside.
    pub(crate) line: &'a dyn Fn() -> Result<usize>,
}

impl OnTake for Counted<'_> {
    fn before(&self, number: u64) -> Result<()> {
        let line = (self.line)()?;
        let (head, holder) = (self.tasks.head(), self.tasks.holder(line));
        let taken = holder.taken.load(Ordering::Relaxed);
        head.intent_taken.store(taken, Ordering::Relaxed);
        head.intent_number.store(number, Ordering::Relaxed);
        head.intent.store(line as u32 + 1, Ordering::Release);
        holder.taken.store(taken + 1, Ordering::SeqCst);
        Ok(())
    }

    fn after(&self) {
        self.tasks.head().intent.store(0, Ordering::Release);
    }

    fn mend(&self, taken: u64) {
        let head = self.tasks.head();
        let intent = head.intent.load(Ordering::Acquire) as usize;
        if intent == 0 || intent > QUEUE_HOLDERS {
            return;
        }
        // It was counted, and is still in the queue.
        if head.intent_number.load(Ordering::Relaxed) == taken {
            let before = head.intent_taken.load(Ordering::Relaxed);
            let holder = self.tasks.holder(intent - 1);
            holder.taken.store(before, Ordering::SeqCst);
        }
        head.intent.store(0, Ordering::Release);
    }
}
