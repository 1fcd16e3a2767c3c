//! A pool's task table: slots for tasks, the queue of those that wait, and for each
//! worker the list of those that it has finished.
//!
//! # A slot's state
//!
//! One 64-bit word: kind in bits 0..8, worker in bits 8..32, ticket in bits 32..64.
//!
//! | From | To | By |
//! |---|---|---|
//! | `FREE` | `READY` | the parent, after it has written the task |
//! | `READY` | `CLAIMED` | a worker, by compare-and-swap that writes its own number |
//! | `CLAIMED` | `RUNNING` | that worker, before it decodes the task |
//! | `RUNNING` | `DONE` | that worker, after it has written the result |
//! | `DONE` | `FREE` | the parent, after it has read the result |
//! | `CLAIMED` | `READY` | the parent, after that worker has died: it had not begun |
//! | `RUNNING` | `FREE` | the parent, after that worker has died: the task is lost |
//! | `READY`, `CLAIMED` | `FREE` | the parent, by compare-and-swap: the task is withdrawn |
//! | `RUNNING` | `DOOMED` | the parent, by compare-and-swap: it is about to end that worker |
//! | `DOOMED` | `FREE` | the parent, after that worker has died |
//!
//! Beginning and finishing are compare-and-swaps too, so that a task is either begun or
//! withdrawn, and either finished or doomed. A worker whose task is doomed takes no other: who
//! ends it ends that task and nothing else.
//!
//! A claim names its worker in the same step that makes it, so that at any moment the
//! parent can tell what a dead worker held. The ticket is new for each task, so that a
//! claim of a slot that has been used again meanwhile fails.
//!
//! # The queue
//!
//! Entry `p` of the queue is at `p` modulo its length: slot and ticket. The parent alone
//! writes entries and `tail`. `head` is moved by anyone past an entry whose slot is not
//! `READY` with that ticket any more; a worker that dies between its claim and moving
//! `head` holds nobody up. A task that is put back has a new ticket, so that its old entry
//! stays passed. Entries of withdrawn tasks take room until `head` comes to them: a queue can
//! be full of them, and then takes no more until a worker has claimed something.
//!
//! # Bells
//!
//! As in `ring`: a side arms its bell, looks again, and sleeps; the other side publishes,
//! and then looks at the bell. A worker that looks for a task without sleeping says so
//! (`SEARCHING`), and takes that back before it claims: as many searching workers as there are
//! tasks in the queue will take them all, and nobody else need be rung. One that looks on the
//! parent's own processor does not count: it cannot run before the parent sleeps.

use std::sync::Arc;

use super::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, Unused, fence};
use super::layout::{HEADER, HEAP_TABLE, Kind};
use super::segment::{Segment, Shared};
use super::system;
use crate::error::{Error, ErrorKind, Result};

/// Tasks that can be outstanding.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 1024 };
/// Bytes of a task or result that lie in the slot itself.
pub(crate) const BODY: usize = if cfg!(loom) { 1 } else { 216 };
/// Workers at most.
pub(crate) const WORKERS: usize = 4096;

const FREE: u64 = 0;
const READY: u64 = 1;
const CLAIMED: u64 = 2;
const RUNNING: u64 = 3;
const DONE: u64 = 4;
const DOOMED: u64 = 5;

const QUIET: u32 = 0;
const ARMED: u32 = 1;
const RUNG: u32 = 2;
/// Only workers: looking for a task without sleeping.
const SEARCHING: u32 = 3;

#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
struct Head {
    workers: AtomicU32,
    /// 1 once workers are to end when there is nothing left.
    closing: AtomicU32,
    _first: [Unused; 14],
    tail: AtomicU64,
    _tail: [Unused; 14],
    head: AtomicU64,
    _head: [Unused; 14],
    parent_bell: AtomicU32,
    /// The parent wants to be woken when so few tasks are left in the queue.
    low_water: AtomicU32,
    parent_cpu: AtomicU32,
    _parent: [Unused; 13],
}

#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
struct WorkerLine {
    bell: AtomicU32,
    /// The processor that this worker last looked for tasks on, and one: a hint.
    cpu: AtomicU32,
    _bell: [Unused; 14],
    /// How many tasks this worker has finished: entries of its list.
    finished: AtomicU64,
    _finished: [Unused; 14],
}

#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
struct Slot {
    state: AtomicU64,
    entry: AtomicU64,
    len: AtomicU32,
    blocks: AtomicU32,
    handles: AtomicU16,
    flags: AtomicU16,
    chunk: AtomicU32,
    _spare: [Unused; 2],
    body: [AtomicU8; BODY],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Head>() == 256);
#[cfg(not(loom))]
const _: () = assert!(size_of::<WorkerLine>() == 128);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 256);

// SAFETY: atomics.
unsafe impl Shared for Head {}
// SAFETY: atomics.
unsafe impl Shared for WorkerLine {}
// SAFETY: atomics.
unsafe impl Shared for Slot {}

const QUEUE: usize = HEADER + size_of::<Head>();
const SLOTS_AT: usize = QUEUE + SLOTS * 8;
const HEAP_AT: usize = SLOTS_AT + SLOTS * 256;
const WORKERS_AT: usize = (HEAP_AT + HEAP_TABLE).next_multiple_of(64);

/// What is written to, or read from, a slot beside its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parcel {
    /// The place of the function, for a task.
    pub(crate) entry: u64,
    pub(crate) len: u32,
    pub(crate) blocks: u32,
    pub(crate) handles: u16,
    pub(crate) flags: u16,
    /// How many tasks a worker takes at a time.
    pub(crate) chunk: u32,
}

/// How far a worker that died had got with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Taken, not begun.
    Claimed,
    /// Begun.
    Running,
    /// Finished; the result is there.
    Done,
}

/// A task that a worker has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) slot: u32,
    pub(crate) ticket: u32,
}

/// A view of a task table.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    segment: Arc<Segment>,
    workers: usize,
}

fn word(kind: u64, worker: usize, ticket: u32) -> u64 {
    kind | (worker as u64) << 8 | u64::from(ticket) << 32
}

fn holder(word: u64) -> usize {
    (word >> 8 & 0xff_ffff) as usize
}

impl Table {
    pub(crate) fn create(workers: usize) -> Result<Self> {
        let len = WORKERS_AT + workers * (size_of::<WorkerLine>() + SLOTS * 4);
        let segment = Segment::create(Kind::Pool, len)?;
        segment
            .at::<Head>(HEADER)
            .workers
            .store(workers as u32, Ordering::Relaxed);
        Ok(Self { segment, workers })
    }

    pub(crate) fn attach(fd: std::os::fd::OwnedFd) -> Result<Self> {
        let segment = Segment::attach(fd, Kind::Pool, WORKERS_AT)?;
        let workers = segment.at::<Head>(HEADER).workers.load(Ordering::Relaxed) as usize;
        if workers > WORKERS
            || segment.len() < WORKERS_AT + workers * (size_of::<WorkerLine>() + SLOTS * 4)
        {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "a pool's table is smaller than it says",
            ));
        }
        Ok(Self { segment, workers })
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Where the pool's heap table lies.
    pub(crate) const HEAP: usize = HEAP_AT;

    fn head(&self) -> &Head {
        self.segment.at(HEADER)
    }

    fn slot(&self, slot: u32) -> &Slot {
        assert!((slot as usize) < SLOTS, "no such slot");
        self.segment.at(SLOTS_AT + slot as usize * 256)
    }

    fn queue(&self, position: u64) -> &AtomicU64 {
        self.segment.at(QUEUE + (position as usize % SLOTS) * 8)
    }

    fn line(&self, worker: usize) -> &WorkerLine {
        assert!(worker < self.workers, "no such worker");
        self.segment
            .at(WORKERS_AT + worker * size_of::<WorkerLine>())
    }

    fn list(&self, worker: usize, position: u64) -> &AtomicU32 {
        assert!(worker < self.workers, "no such worker");
        let lists = WORKERS_AT + self.workers * size_of::<WorkerLine>();
        self.segment
            .at(lists + (worker * SLOTS + position as usize % SLOTS) * 4)
    }

    // -- bodies, by whoever has the slot

    /// Writes what lies beside the body.
    pub(crate) fn set_parcel(&self, slot: u32, parcel: Parcel) {
        let slot = self.slot(slot);
        slot.entry.store(parcel.entry, Ordering::Relaxed);
        slot.len.store(parcel.len, Ordering::Relaxed);
        slot.blocks.store(parcel.blocks, Ordering::Relaxed);
        slot.handles.store(parcel.handles, Ordering::Relaxed);
        slot.flags.store(parcel.flags, Ordering::Relaxed);
        slot.chunk.store(parcel.chunk, Ordering::Relaxed);
    }

    pub(crate) fn parcel(&self, slot: u32) -> Parcel {
        let slot = self.slot(slot);
        Parcel {
            entry: slot.entry.load(Ordering::Relaxed),
            len: slot.len.load(Ordering::Relaxed),
            blocks: slot.blocks.load(Ordering::Relaxed),
            handles: slot.handles.load(Ordering::Relaxed),
            flags: slot.flags.load(Ordering::Relaxed),
            chunk: slot.chunk.load(Ordering::Relaxed),
        }
    }

    fn body(&self, slot: u32) -> usize {
        assert!((slot as usize) < SLOTS, "no such slot");
        SLOTS_AT + slot as usize * 256 + std::mem::offset_of!(Slot, body)
    }

    /// Copies bytes into the body; they fit in [`BODY`].
    pub(crate) fn put(&self, slot: u32, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= BODY, "too long for a slot");
        self.segment.copy_in(self.body(slot) + at, bytes);
    }

    /// Copies bytes out of the body.
    pub(crate) fn get(&self, slot: u32, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= BODY, "too long for a slot");
        self.segment.copy_out(self.body(slot) + at, bytes);
    }

    // -- the parent

    /// Puts a task that has been written into the queue. Other processes may claim it.
    ///
    /// False if the queue is full, of withdrawn tasks among others: to be tried again later.
    #[must_use]
    pub(crate) fn push(&self, slot: u32, ticket: u32) -> bool {
        let head = self.head();
        let tail = head.tail.load(Ordering::Relaxed);
        // There are as many entries as slots, but the head may lag behind its claims.
        loop {
            // Looked at once a round: a head that has caught up with the tail is not to be moved.
            let taken = head.head.load(Ordering::Acquire);
            if tail - taken < SLOTS as u64 {
                break;
            }
            if !self.help(taken) {
                return false;
            }
        }
        self.slot(slot)
            .state
            .store(word(READY, 0, ticket), Ordering::Release);
        self.queue(tail)
            .store(u64::from(ticket) << 32 | u64::from(slot), Ordering::Release);
        head.tail.store(tail + 1, Ordering::Release);
        true
    }

    /// Moves the head past an entry before the tail, unless it waits to be claimed.
    fn help(&self, position: u64) -> bool {
        let entry = self.queue(position).load(Ordering::Acquire);
        let (slot, ticket) = (entry as u32, (entry >> 32) as u32);
        let is_over = slot as usize >= SLOTS
            || self.slot(slot).state.load(Ordering::Acquire) != word(READY, 0, ticket);
        if is_over {
            self.pass(position);
        }
        is_over
    }

    /// Takes a task back that no worker has begun. False if one has.
    pub(crate) fn withdraw(&self, slot: u32, ticket: u32) -> bool {
        let state = &self.slot(slot).state;
        let mut seen = state.load(Ordering::Acquire);
        while (seen >> 32) as u32 == ticket && matches!(seen & 0xff, READY | CLAIMED) {
            match state.compare_exchange(seen, FREE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Has a task that runs be the last one of its worker; gives the worker, who is to be
    /// ended. `None` if the task does not run.
    pub(crate) fn doom(&self, slot: u32, ticket: u32) -> Option<usize> {
        let state = &self.slot(slot).state;
        let seen = state.load(Ordering::Acquire);
        let worker = holder(seen);
        if seen != word(RUNNING, worker, ticket) {
            return None;
        }
        let doomed = word(DOOMED, worker, ticket);
        state
            .compare_exchange(seen, doomed, Ordering::AcqRel, Ordering::Relaxed)
            .ok()
            .map(|_| worker)
    }

    /// What each worker is at: slot, ticket and whether it has begun, for each task in a
    /// worker's hands.
    pub(crate) fn at_work(&self, mut each: impl FnMut(usize, u32, u32, Held)) {
        for slot in 0..SLOTS as u32 {
            let state = self.slot(slot).state.load(Ordering::Acquire);
            let ticket = (state >> 32) as u32;
            match state & 0xff {
                CLAIMED => each(holder(state), slot, ticket, Held::Claimed),
                RUNNING => each(holder(state), slot, ticket, Held::Running),
                _ => {}
            }
        }
    }

    /// Tasks in the queue; claimed ones may still be counted.
    pub(crate) fn waiting(&self) -> usize {
        let head = self.head();
        let taken = head.head.load(Ordering::Relaxed);
        head.tail.load(Ordering::Relaxed).saturating_sub(taken) as usize
    }

    /// Finds workers to ring for the tasks in the queue. Each is to be rung.
    ///
    /// Workers that look for a task right now need no waking, unless `doubtful`: one of them may
    /// have been stopped.
    pub(crate) fn sleepers(&self, doubtful: bool, wake: &mut Vec<usize>) {
        fence(Ordering::SeqCst);
        // All of them, not only new ones: a searching worker was counted for those before.
        let tasks = self.waiting();
        if tasks == 0 {
            return;
        }
        let here = system::cpu();
        let bell = |worker: usize| &self.line(worker).bell;
        let searching = (0..self.workers)
            .filter(|w| !doubtful && bell(*w).load(Ordering::Relaxed) == SEARCHING)
            .filter(|w| !self.is_on(*w, here))
            .count();
        let mut need = tasks.saturating_sub(searching);
        // Those who need not wait for this processor come first.
        let (near, far): (Vec<_>, Vec<_>) = (0..self.workers)
            .filter(|w| need > 0 && bell(*w).load(Ordering::Relaxed) == ARMED)
            .partition(|w| self.is_on(*w, here));
        for worker in far.into_iter().chain(near) {
            if need == 0 {
                break;
            }
            if bell(worker)
                .compare_exchange(ARMED, RUNG, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                wake.push(worker);
                need -= 1;
            }
        }
    }

    /// Takes the tasks that a worker has finished since `seen`.
    pub(crate) fn finished(&self, worker: usize, seen: &mut u64, mut each: impl FnMut(u32)) {
        let finished = self.line(worker).finished.load(Ordering::Acquire);
        // A worker that writes nonsense there cannot make this run for ever.
        let from = finished.saturating_sub(SLOTS as u64).max(*seen);
        for position in from..finished {
            let slot = self.list(worker, position).load(Ordering::Relaxed);
            if (slot as usize) < SLOTS {
                each(slot);
            }
        }
        *seen = finished;
    }

    /// Whether any worker has finished something; `seen` holds what is known.
    pub(crate) fn any_finished(&self, seen: &[u64]) -> bool {
        seen.iter()
            .enumerate()
            .any(|(worker, seen)| self.line(worker).finished.load(Ordering::Acquire) != *seen)
    }

    /// Whether the slot holds a result, and of which ticket.
    pub(crate) fn is_done(&self, slot: u32) -> Option<u32> {
        let state = self.slot(slot).state.load(Ordering::Acquire);
        (state & 0xff == DONE).then_some((state >> 32) as u32)
    }

    /// Frees a slot.
    pub(crate) fn free(&self, slot: u32) {
        self.slot(slot).state.store(FREE, Ordering::Release);
    }

    /// What a worker that has died held, and how far it had got.
    pub(crate) fn held_by(&self, worker: usize) -> Vec<(u32, u32, Held)> {
        (0..SLOTS as u32)
            .filter_map(|slot| {
                let state = self.slot(slot).state.load(Ordering::Acquire);
                if holder(state) != worker {
                    return None;
                }
                let ticket = (state >> 32) as u32;
                match state & 0xff {
                    CLAIMED => Some((slot, ticket, Held::Claimed)),
                    RUNNING | DOOMED => Some((slot, ticket, Held::Running)),
                    DONE => Some((slot, ticket, Held::Done)),
                    _ => None,
                }
            })
            .collect()
    }

    /// Arms the parent's bell; to be followed by another look.
    pub(crate) fn arm_parent(&self, low_water: usize) {
        let head = self.head();
        head.low_water.store(low_water as u32, Ordering::Relaxed);
        head.parent_bell.store(ARMED, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Notes which processor the parent runs on.
    pub(crate) fn set_parent_cpu(&self, cpu: u32) {
        self.head().parent_cpu.store(cpu, Ordering::Relaxed);
    }

    pub(crate) fn parent_cpu(&self) -> u32 {
        self.head().parent_cpu.load(Ordering::Relaxed)
    }

    /// Whether all workers that are awake are on that processor, as far as is known.
    pub(crate) fn are_all_on(&self, cpu: u32) -> bool {
        (0..self.workers).all(|worker| {
            self.is_on(worker, cpu) || self.line(worker).bell.load(Ordering::Relaxed) == ARMED
        })
    }

    fn is_on(&self, worker: usize, cpu: u32) -> bool {
        !cfg!(loom) && self.line(worker).cpu.load(Ordering::Relaxed) == cpu.wrapping_add(1)
    }

    pub(crate) fn disarm_parent(&self) {
        self.head().parent_bell.store(QUIET, Ordering::Relaxed);
    }

    /// Tells workers to end when there is nothing left; each is to be rung.
    pub(crate) fn close(&self) {
        self.head().closing.store(1, Ordering::SeqCst);
    }

    /// Forgets what a worker that has died wanted.
    pub(crate) fn reset_worker(&self, worker: usize) {
        self.line(worker).bell.store(QUIET, Ordering::Relaxed);
    }

    // -- the workers

    pub(crate) fn is_closing(&self) -> bool {
        self.head().closing.load(Ordering::Relaxed) != 0
    }

    /// Whether there may be something to claim.
    #[inline]
    pub(crate) fn has_tasks(&self) -> bool {
        let head = self.head();
        head.tail.load(Ordering::Acquire) != head.head.load(Ordering::Acquire)
    }

    /// Claims the next task.
    pub(crate) fn claim(&self, worker: usize) -> Option<Claim> {
        let head = self.head();
        loop {
            let position = head.head.load(Ordering::Acquire);
            if position == head.tail.load(Ordering::Acquire) {
                return None;
            }
            let claimed = self.claim_entry(worker, position);
            // Whoever claimed it: the head goes on.
            self.pass(position);
            if claimed.is_some() {
                return claimed;
            }
        }
    }

    /// Claims the task that an entry of the queue names, if it is still to be had.
    #[inline]
    pub(super) fn claim_entry(&self, worker: usize, position: u64) -> Option<Claim> {
        let entry = self.queue(position).load(Ordering::Acquire);
        let (slot, ticket) = (entry as u32, (entry >> 32) as u32);
        let claimed = (slot as usize) < SLOTS
            && self
                .slot(slot)
                .state
                .compare_exchange(
                    word(READY, 0, ticket),
                    word(CLAIMED, worker, ticket),
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                )
                .is_ok();
        claimed.then_some(Claim { slot, ticket })
    }

    /// Moves the queue's head past an entry that is taken, unless somebody else has.
    #[inline]
    fn pass(&self, position: u64) {
        let _ = self.head().head.compare_exchange(
            position,
            position + 1,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

    /// Begins a claimed task. False if it has been withdrawn: the slot is another's.
    #[must_use]
    pub(crate) fn begin(&self, worker: usize, claim: Claim) -> bool {
        self.slot(claim.slot)
            .state
            .compare_exchange(
                word(CLAIMED, worker, claim.ticket),
                word(RUNNING, worker, claim.ticket),
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// Makes a result the parent's. True if the parent is to be rung; `took_long` says that
    /// it should not be kept waiting for more results. `None` if the task is doomed: this
    /// worker is about to be ended, and is to do nothing more.
    pub(crate) fn finish(&self, worker: usize, claim: Claim, took_long: bool) -> Option<bool> {
        self.slot(claim.slot)
            .state
            .compare_exchange(
                word(RUNNING, worker, claim.ticket),
                word(DONE, worker, claim.ticket),
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .ok()?;
        let line = self.line(worker);
        let finished = line.finished.load(Ordering::Relaxed);
        self.list(worker, finished)
            .store(claim.slot, Ordering::Relaxed);
        line.finished.store(finished + 1, Ordering::Release);
        fence(Ordering::SeqCst);
        let head = self.head();
        if head.parent_bell.load(Ordering::Relaxed) != ARMED {
            return Some(false);
        }
        let is_time =
            took_long || self.waiting() <= head.low_water.load(Ordering::Relaxed) as usize;
        let rings = is_time
            && head
                .parent_bell
                .compare_exchange(ARMED, RUNG, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        Some(rings)
    }

    pub(crate) fn set_searching(&self, worker: usize) {
        let line = self.line(worker);
        if !cfg!(loom) {
            line.cpu
                .store(system::cpu().wrapping_add(1), Ordering::Relaxed);
        }
        line.bell.store(SEARCHING, Ordering::Relaxed);
    }

    /// Whether all other workers are asleep.
    pub(crate) fn is_alone_awake(&self, worker: usize) -> bool {
        (0..self.workers)
            .all(|other| other == worker || self.line(other).bell.load(Ordering::Relaxed) == ARMED)
    }

    /// Takes "searching" or an armed bell back; to be followed by a claim.
    pub(crate) fn set_busy(&self, worker: usize) {
        self.line(worker).bell.store(QUIET, Ordering::Relaxed);
        // Who pushes a task and still finds this worker searching is seen by its next claim.
        fence(Ordering::SeqCst);
    }

    /// Arms a worker's bell; to be followed by another look.
    pub(crate) fn arm_worker(&self, worker: usize) {
        self.line(worker).bell.store(ARMED, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}
