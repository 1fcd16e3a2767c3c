//! The parent's side: tasks into the table, results out of it.
//!
//! ```text
//!  map ──encode──▶ slot ──queue──▶ worker ──run──▶ slot ──list──▶ collect ──decode──▶ map
//!   ▲                                 │                              ▲
//!   └── supervisor ◀── socket, end ───┘      bell, once it is worth waking the parent
//! ```
//!
//! There is no thread of the pool's: whoever waits for results does the pool's work
//! meanwhile. Of several threads that wait, one watches the workers, and the others wait
//! for it (`Core::is_watched`).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::message::{self, Arrived};
use super::state::{Delivery, Phase, State};
use super::supervisor::{Recipe, Worker, member, parent_heap, watch};
use crate::codec::attachments::Outgoing;
use crate::error::{Error, ErrorKind, Result};
use crate::process::{ExitStatus, TaskError, WorkerLost};
use crate::shm::heap::{Descriptor, Heap, MEMBERS};
use crate::shm::table::{Parcel, SLOTS, Table};
use crate::sys::thread;

/// How long the one who watches sleeps while there are tasks that nobody takes: a worker
/// that was about to may have been stopped.
const NUDGE: Duration = Duration::from_millis(50);
/// Ticks that the parent spins at most for a result.
const SPIN_MAX: u64 = 100_000;
const SPIN_MIN: u64 = 4_000;
/// Bytes in blocks that may be out as tasks: with few blocks in turn, each stays warm.
const BLOCKS_OUT: u64 = 16 << 20;

/// The pool's parts that change, under one lock.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) table: Table,
    pub(crate) heap: Arc<Heap>,
    pub(crate) state: State,
    pub(crate) recipe: Recipe,
    pub(crate) workers: Vec<Option<Worker>>,
    /// How the last worker of each number ended: name, pid, status.
    pub(crate) ends: HashMap<usize, (String, u32, Option<ExitStatus>)>,
    /// What went out beside tasks, by ticket.
    pub(crate) task_handles: HashMap<u32, Vec<OwnedFd>>,
    pub(crate) task_blocks: HashMap<u32, Vec<Descriptor>>,
    blocks_out: u64,
    /// Results that had to be read before their batch asked for them.
    early: HashMap<u32, Result<Arrived>>,
    /// How much of each worker's list of finished tasks has been read.
    seen: Vec<u64>,
    is_watched: bool,
    spin: u64,
}

/// A pool's parent side.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    core: Mutex<Core>,
    changed: Condvar,
    generation: u32,
    /// For encoding and claiming without the lock.
    table: Table,
    heap: Arc<Heap>,
    pub(crate) n_workers: usize,
}

/// A task that has been written to a slot, and is to be put into the queue.
pub(crate) struct Written {
    pub(crate) slot: u32,
    pub(crate) position: usize,
    pub(crate) outgoing: Outgoing,
}

/// An outcome for a batch.
pub(crate) type Outcome = (usize, Result<Arrived, TaskError>);

impl Core {
    /// Sorts what workers have finished to its batches.
    pub(crate) fn collect(&mut self) {
        let mut actions = Vec::new();
        let mut tickets = Vec::new();
        let has_extras = !self.task_handles.is_empty() || !self.task_blocks.is_empty();
        for (number, seen) in self.seen.iter_mut().enumerate() {
            let (state, table) = (&mut self.state, &self.table);
            table.finished(number, seen, |slot| {
                let Some(ticket) = table.is_done(slot) else {
                    return;
                };
                actions.extend(state.finished(slot, ticket));
                if has_extras {
                    tickets.push(ticket);
                }
            });
        }
        for ticket in tickets {
            self.forget_task(ticket);
        }
        self.act(actions);
    }

    /// Forgets what went out beside a task that is over; gives its blocks.
    pub(crate) fn forget_task(&mut self, ticket: u32) -> Vec<Descriptor> {
        self.task_handles.remove(&ticket);
        let blocks = self.task_blocks.remove(&ticket).unwrap_or_default();
        let bytes: u64 = blocks.iter().map(|block| block.len).sum();
        self.blocks_out = self.blocks_out.saturating_sub(bytes);
        blocks
    }

    /// Forgets what went out beside tasks, none of which is left.
    pub(crate) fn forget_all_tasks(&mut self) {
        self.task_handles.clear();
        for block in std::mem::take(&mut self.task_blocks)
            .into_values()
            .flatten()
        {
            self.heap.recall(block);
        }
        self.blocks_out = 0;
    }

    /// Reads the result in a slot, and leaves the slot.
    fn read(&mut self, slot: u32) -> Result<Arrived> {
        let parcel = self.table.parcel(slot);
        let mut handles = Vec::new();
        if parcel.handles != 0 {
            let ticket = self.table.is_done(slot).unwrap_or(0);
            for number in 0..self.workers.len() {
                self.read_packets(number);
                if let Some(found) = self.workers[number]
                    .as_mut()
                    .and_then(|worker| worker.handles.remove(&ticket))
                {
                    handles = found;
                    break;
                }
            }
        }
        message::read(&self.table, &self.heap, slot, parcel, handles, Vec::new())
    }

    /// Reads a result before its batch asks for it.
    pub(crate) fn read_early(&mut self, slot: u32) {
        if !self.early.contains_key(&slot) {
            let arrived = self.read(slot);
            self.early.insert(slot, arrived);
        }
    }

    /// Frees a slot whose contents nobody wants.
    pub(crate) fn discard(&mut self, slot: u32) {
        if self.early.remove(&slot).is_none() && self.table.is_done(slot).is_some() {
            // Reading it lets go of what it names.
            let _ = self.read(slot);
        }
        self.free(slot);
    }

    fn free(&mut self, slot: u32) {
        self.table.free(slot);
        self.state.give_back(slot);
    }

    fn lost(&self, worker: usize, position: usize) -> TaskError {
        let (name, pid, status) = self.ends.get(&worker).cloned().unwrap_or_default();
        TaskError::Lost(WorkerLost {
            name,
            pid,
            task: Some(position),
            status,
        })
    }

    fn not_run(&self) -> TaskError {
        match self.state.phase() {
            Phase::Broken(why) => TaskError::Pool(Error::new(ErrorKind::Initializer, why.clone())),
            _ => TaskError::Cancelled,
        }
    }
}

impl Dispatcher {
    pub(crate) fn new(n_workers: usize, recipe: Recipe) -> Result<Self> {
        let table = Table::create(n_workers)?;
        let heap = parent_heap(&table);
        let mut core = Core {
            table: table.clone(),
            heap: Arc::clone(&heap),
            state: State::new(SLOTS, n_workers),
            recipe,
            workers: (0..n_workers).map(|_| None).collect(),
            ends: HashMap::new(),
            task_handles: HashMap::new(),
            task_blocks: HashMap::new(),
            blocks_out: 0,
            early: HashMap::new(),
            seen: vec![0; n_workers],
            is_watched: false,
            spin: SPIN_MAX / 2,
        };
        for number in 0..n_workers {
            // Those already started end when the core is dropped.
            core.hire(number)?;
        }
        Ok(Self {
            core: Mutex::new(core),
            changed: Condvar::new(),
            generation: thread::generation(),
            table,
            heap,
            n_workers,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the process that made the pool.
    pub(crate) fn is_ours(&self) -> bool {
        self.generation == thread::generation()
    }

    /// Begins a batch.
    pub(crate) fn open_batch(&self) -> Result<u64, TaskError> {
        if !self.is_ours() {
            return Err(TaskError::Pool(Error::new(
                ErrorKind::Closed,
                "the pool belongs to the parent of this forked process; make another one here",
            )));
        }
        let mut core = self.lock();
        match core.state.phase() {
            Phase::Open => {}
            Phase::Closed | Phase::Terminated => {
                return Err(TaskError::Pool(Error::new(
                    ErrorKind::Closed,
                    "the pool is closed",
                )));
            }
            Phase::Broken(_) => return Err(core.not_run()),
        }
        // Workers that died while nobody looked are replaced now.
        core.bury_dead();
        Ok(core.state.open_batch())
    }

    pub(crate) fn close_batch(&self, batch: u64) {
        let mut core = self.lock();
        let actions = core.state.close_batch(batch);
        core.act(actions);
        if *core.state.phase() == Phase::Closed && core.state.is_idle() {
            core.dismiss(false);
        }
        self.changed.notify_all();
    }

    /// Waits for a while for room in the table, which other batches fill.
    pub(crate) fn wait_for_room(&self) {
        let core = self.lock();
        let _ = self.changed.wait_timeout(core, NUDGE / 10);
    }

    /// Slots for up to `most` tasks, fewer while many or large ones are out.
    pub(crate) fn take_slots(&self, most: usize, slots: &mut Vec<u32>) {
        let mut core = self.lock();
        let out = core.task_blocks.len();
        // Descriptors in proportion to workers, never to tasks.
        let with_handles = core.task_handles.len();
        let most = if (core.blocks_out >= BLOCKS_OUT && out > self.n_workers)
            || with_handles > 2 * self.n_workers
        {
            0
        } else if out + with_handles > 0 {
            // Large tasks: one at a time, or the limit would be passed by far.
            most.min(1)
        } else {
            most
        };
        core.state.take_slots(most, slots);
    }

    pub(crate) fn give_back(&self, slot: u32) {
        self.lock().state.give_back(slot);
    }

    /// What a task's handles and buffers are to be collected in.
    pub(crate) fn outgoing(&self) -> Outgoing {
        // Beyond this many workers some could not hold the heap's blocks.
        let heap = (member(self.n_workers) < MEMBERS).then(|| Arc::clone(&self.heap));
        Outgoing::new(heap)
    }

    /// Writes an encoded task into a slot, which others do not look at yet.
    pub(crate) fn write(
        &self,
        slot: u32,
        entry: u64,
        chunk: usize,
        bytes: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<()> {
        let parcel = Parcel {
            entry,
            chunk: u32::try_from(chunk).unwrap_or(u32::MAX),
            ..Parcel::default()
        };
        message::write(&self.table, slot, parcel, bytes, false, outgoing)
            .inspect_err(|_| outgoing.discard())
    }

    /// Puts written tasks into the queue.
    pub(crate) fn submit(&self, batch: u64, written: &mut Vec<Written>) {
        let mut core = self.lock();
        let count = written.len();
        // A batch that was begun before the pool was closed goes on.
        let is_open = matches!(core.state.phase(), Phase::Open | Phase::Closed);
        for Written {
            slot,
            position,
            mut outgoing,
        } in written.drain(..)
        {
            let ticket = core.state.submit(slot, batch, position);
            if !outgoing.handles.is_empty() {
                core.task_handles
                    .insert(ticket, std::mem::take(&mut outgoing.handles));
            }
            if !outgoing.blocks.is_empty() {
                core.blocks_out += outgoing.blocks.iter().map(|block| block.len).sum::<u64>();
                core.task_blocks
                    .insert(ticket, std::mem::take(&mut outgoing.blocks));
            }
            if is_open {
                core.table.push(slot, ticket);
            }
        }
        if is_open {
            core.wake_workers(count, false);
        } else {
            // It was terminated or broken meanwhile: these will not be run.
            let actions = core.state.terminate();
            core.act(actions);
            self.changed.notify_all();
        }
    }

    /// Takes the outcomes that there are for a batch.
    pub(crate) fn take(&self, batch: u64, outcomes: &mut Vec<Outcome>) {
        let mut core = self.lock();
        core.collect();
        if core.state.has_other_mail(batch) {
            self.changed.notify_all();
        }
        Self::take_locked(&mut core, batch, outcomes);
    }

    fn take_locked(core: &mut Core, batch: u64, outcomes: &mut Vec<Outcome>) {
        while let Some(delivery) = core.state.next_delivery(batch) {
            outcomes.push(match delivery {
                Delivery::Done { slot, position } => {
                    let arrived = match core.early.remove(&slot) {
                        Some(arrived) => arrived,
                        None => core.read(slot),
                    };
                    core.free(slot);
                    (position, arrived.map_err(TaskError::Result))
                }
                Delivery::Lost { position, worker } => (position, Err(core.lost(worker, position))),
                Delivery::NotRun { position } => (position, Err(core.not_run())),
            });
        }
    }

    /// Waits until there is something for a batch, doing the pool's work meanwhile.
    ///
    /// `low_water` is how few tasks are to be left in the queue before it is worth waking up.
    pub(crate) fn wait(
        &self,
        batch: u64,
        low_water: usize,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        let mut core = self.lock();
        loop {
            core.collect();
            if core.state.has_other_mail(batch) {
                self.changed.notify_all();
            }
            Self::take_locked(&mut core, batch, outcomes);
            if !outcomes.is_empty() {
                return Ok(());
            }
            if core.is_watched {
                core = self
                    .changed
                    .wait(core)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            core.is_watched = true;
            let waited = self.watch_once(core, batch, low_water);
            core = self.lock();
            core.is_watched = false;
            let handled = waited.map(|(sent, any_ended)| {
                for number in sent {
                    core.read_packets(number);
                }
                if any_ended {
                    core.bury_dead();
                }
            });
            self.changed.notify_all();
            handled?;
        }
    }

    /// Spins or sleeps until a worker has something to say.
    fn watch_once<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        batch: u64,
        low_water: usize,
    ) -> Result<(Vec<usize>, bool)> {
        let mut spin = core.spin;
        let table = &self.table;
        table.set_parent_cpu(thread::cpu());
        // With a queue there is time to sleep, and workers need the processor more.
        if core.table.waiting() <= self.n_workers {
            let seen = core.seen.clone();
            drop(core);
            let found = linger(&mut spin, || table.any_finished(&seen));
            core = self.lock();
            core.spin = spin;
            // Another thread may have taken this batch's results out of the table meanwhile.
            if found || core.state.has_mail(batch) {
                return Ok((Vec::new(), false));
            }
        }
        table.arm_parent(low_water);
        let is_waiting = table.waiting() > 0;
        if table.any_finished(&core.seen) && table.waiting() <= low_water {
            table.disarm_parent();
            return Ok((Vec::new(), false));
        }
        let watched = core.watched();
        if watched.is_empty() {
            table.disarm_parent();
            core.bury_dead();
            return Err(Error::new(ErrorKind::Closed, "the pool has no workers"));
        }
        drop(core);
        let deadline = is_waiting.then(|| Instant::now() + NUDGE);
        let result = watch(&watched, deadline);
        table.disarm_parent();
        if let Ok((sent, false)) = &result {
            if sent.is_empty() {
                let core = self.lock();
                core.wake_workers(table.waiting(), true);
            }
        }
        result
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        if !self.is_ours() {
            return Vec::new();
        }
        let mut core = self.lock();
        core.bury_dead();
        core.workers
            .iter()
            .flatten()
            .map(|worker| worker.child.pid())
            .collect()
    }

    /// Takes no new tasks; workers end when those that there are have been done.
    pub(crate) fn close(&self) {
        if self.is_ours() {
            let mut core = self.lock();
            core.state.close();
            if core.state.is_idle() {
                core.dismiss(false);
            }
        }
    }

    /// Ends all workers now. Batches that are under way are told.
    pub(crate) fn terminate(&self) {
        if self.is_ours() {
            let mut core = self.lock();
            let actions = core.state.terminate();
            core.act(actions);
            core.dismiss(true);
            self.changed.notify_all();
        }
    }

    /// Waits for the workers of a closed pool.
    pub(crate) fn join(&self) -> Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        loop {
            let mut core = self.lock();
            if matches!(core.state.phase(), Phase::Open) {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "join a pool that is still open: close or terminate it first",
                ));
            }
            core.collect();
            if core.state.is_idle() || *core.state.phase() != Phase::Closed {
                core.dismiss(false);
            }
            core.bury_dead();
            let watched = core.watched();
            drop(core);
            if watched.is_empty() {
                return Ok(());
            }
            // Results for other threads are theirs; only ends count here.
            let (sent, _) = watch(&watched, Some(Instant::now() + NUDGE))?;
            let mut core = self.lock();
            for number in sent {
                core.read_packets(number);
            }
        }
    }
}

fn linger(spin: &mut u64, done: impl Fn() -> bool) -> bool {
    if thread::cpus() == 1 {
        return (0..4).any(|_| {
            thread::give_way();
            done()
        });
    }
    let start = thread::ticks();
    loop {
        for _ in 0..16 {
            if done() {
                *spin = (*spin * 2).min(SPIN_MAX);
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
