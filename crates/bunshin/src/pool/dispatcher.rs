//! The parent's side: tasks into the table, results out of it.
//!
//! ```text
//!  map ──encode──▶ slot ──queue──▶ worker ──run──▶ slot ──list──▶ collect ──decode──▶ map
//!   ▲                                 │                              ▲
//!   └── supervisor ◀── socket, end ───┘      bell, once it is worth waking the parent
//! ```
//!
//! No thread of the pool's takes part in that: whoever waits for results does the pool's
//! work meanwhile (`drive`). What is not waited for is in `post`.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::attendant::{Attendants, acquaint};
use super::held::{Held, Stream};
use super::limits::Limits;
use super::message::{self, Arrived};
use super::post::Posts;
use super::state::{Delivery, Phase, State};
use super::supervisor::{Recipe, Worker, member, parent_heap};
use crate::codec::attachments::Outgoing;
use crate::error::{Error, ErrorKind, Result};
use crate::process::{TaskError, WorkerLost, scarcity};
use crate::shm::heap::{Descriptor, Heap, MEMBERS};
use crate::shm::table::{Parcel, SLOTS, Table};
use crate::sys::{socket, thread};

/// Bytes in blocks that may be out as tasks: with few blocks in turn, each stays warm.
const BLOCKS_OUT: u64 = 16 << 20;

/// Ticks between two looks for workers that have died, where no batch takes long: about a
/// millisecond.
const LOOK_EVERY: u64 = 2_000_000;

/// The pool's parts that change, under one lock.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) table: Table,
    pub(crate) heap: Arc<Heap>,
    pub(crate) state: State,
    pub(crate) recipe: Recipe,
    pub(crate) workers: Vec<Option<Worker>>,
    /// How workers ended that have lost a task, by the key that the task's outcome has.
    ends: HashMap<u64, WorkerLost>,
    /// What went out beside tasks, by ticket.
    pub(crate) task_handles: HashMap<u32, Vec<OwnedFd>>,
    pub(crate) task_blocks: HashMap<u32, Vec<Descriptor>>,
    pub(crate) blocks_out: u64,
    /// Results that had to be read before their batch asked for them.
    early: HashMap<u32, Result<Arrived>>,
    /// Results that had to make room before their batch asked for them.
    kept: HashMap<u64, Result<Arrived>>,
    next_kept: u64,
    /// Tasks whose entries the queue has had no room for yet: slot and ticket.
    unpushed: VecDeque<(u32, u32)>,
    pub(crate) posts: Posts,
    /// Batches that futures wait for.
    pub(crate) streams: Vec<Stream>,
    pub(crate) limits: Limits,
    pub(crate) attendants: Attendants,
    /// Workers that are to be replaced by whoever started them.
    pub(crate) vacant: Vec<usize>,
    /// How much of each worker's list of finished tasks has been read.
    pub(crate) seen: Vec<u64>,
    pub(crate) is_watched: bool,
    /// Readable once whoever watches is to look again.
    pub(crate) kick: Arc<OwnedFd>,
    /// Threads that wait for the one who watches.
    pub(crate) n_asleep: usize,
    pub(crate) spin: u64,
    /// When ends of workers were looked for last, in ticks.
    looked: u64,
}

/// A pool's parent side.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    core: Mutex<Core>,
    pub(crate) changed: Condvar,
    /// For the thread that supervises: there is something to do for it.
    pub(crate) duty: Condvar,
    /// Readable once whoever watches is to look again.
    pub(crate) kick: Arc<OwnedFd>,
    generation: u32,
    /// For encoding and claiming without the lock.
    pub(crate) table: Table,
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
        if !self.unpushed.is_empty() {
            self.push_again();
        }
        self.deliver_posts();
        self.refill();
    }

    /// Puts a task into the queue, or has it wait for room there.
    pub(crate) fn push(&mut self, slot: u32, ticket: u32) {
        if !self.table.push(slot, ticket) {
            self.unpushed.push_back((slot, ticket));
        }
    }

    fn push_again(&mut self) {
        for (slot, ticket) in std::mem::take(&mut self.unpushed) {
            if self
                .state
                .task(slot)
                .is_some_and(|task| task.ticket == ticket)
            {
                self.push(slot, ticket);
            }
        }
        self.wake_workers(false);
    }

    pub(crate) fn has_unpushed(&self) -> bool {
        !self.unpushed.is_empty()
    }

    /// Takes a task back, if no worker has begun it.
    pub(crate) fn withdraw(&mut self, slot: u32, ticket: u32) -> bool {
        let before = self.unpushed.len();
        self.unpushed.retain(|entry| *entry != (slot, ticket));
        let was_withdrawn = self.unpushed.len() < before || self.table.withdraw(slot, ticket);
        if was_withdrawn {
            for block in self.forget_task(ticket) {
                self.heap.recall(block);
            }
            self.state.withdrawn(slot);
            self.free(slot);
        }
        was_withdrawn
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
    pub(crate) fn read(&mut self, slot: u32) -> Result<Arrived> {
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

    /// Takes the result in a slot out, and frees the slot.
    pub(crate) fn take_result(&mut self, slot: u32) -> Result<Arrived> {
        let arrived = match self.early.remove(&slot) {
            Some(arrived) => arrived,
            None => self.read(slot),
        };
        self.free(slot);
        arrived
    }

    /// Reads a result before its batch asks for it.
    pub(crate) fn read_early(&mut self, slot: u32) {
        if !self.early.contains_key(&slot) {
            let arrived = self.read(slot);
            self.early.insert(slot, arrived);
        }
    }

    /// Takes the outcomes that there are for a batch.
    pub(crate) fn take_outcomes(&mut self, batch: u64, outcomes: &mut Vec<Outcome>) {
        while let Some(delivery) = self.state.next_delivery(batch) {
            outcomes.push(match delivery {
                Delivery::Done { slot, position } => {
                    (position, self.take_result(slot).map_err(TaskError::Result))
                }
                Delivery::Kept { key, position } => {
                    let arrived = self.kept.remove(&key);
                    let arrived = arrived.map(|arrived| arrived.map_err(TaskError::Result));
                    (position, arrived.unwrap_or(Err(TaskError::Cancelled)))
                }
                Delivery::Lost { position, key } => (position, Err(self.lost(key, Some(position)))),
                Delivery::TimedOut { position, limit } => {
                    (position, Err(TaskError::TimedOut(limit)))
                }
                Delivery::NotRun { position } => (position, Err(self.not_run())),
            });
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

    /// Reads results out of the table that their batches have not taken. A consumer that
    /// pauses must not keep others from the table: it may be the same thread.
    fn make_room(&mut self) {
        for slot in self.state.untaken() {
            let arrived = self.take_result(slot);
            self.next_kept += 1;
            self.kept.insert(self.next_kept, arrived);
            self.state.kept(slot, self.next_kept);
        }
    }

    /// Nobody wants a result that was kept, or how a worker ended.
    pub(crate) fn forget_kept(&mut self, key: u64) {
        self.kept.remove(&key);
        self.ends.remove(&key);
    }

    /// Notes how a worker ended that has lost a task; gives the key.
    pub(crate) fn note_end(&mut self, end: WorkerLost) -> u64 {
        self.next_kept += 1;
        self.ends.insert(self.next_kept, end);
        self.next_kept
    }

    /// Slots for up to `most` tasks, fewer while many or large ones are out.
    pub(crate) fn take_slots(&mut self, most: usize, slots: &mut Vec<u32>) {
        if self.state.n_free() == 0 {
            self.make_room();
        }
        let out = self.task_blocks.len();
        // Descriptors in proportion to workers, never to tasks.
        let with_handles = self.task_handles.len();
        let n_workers = self.workers.len();
        let most =
            if (self.blocks_out >= BLOCKS_OUT && out > n_workers) || with_handles > 2 * n_workers {
                0
            } else if out + with_handles > 0 {
                // Large tasks: one at a time, or the limit would be passed by far.
                most.min(1)
            } else {
                most
            };
        self.state.take_slots(most, slots);
    }

    /// Puts a task that has been written to a slot into the queue.
    pub(crate) fn submit(&mut self, batch: u64, limit: Option<Duration>, written: Written) {
        let Written {
            slot,
            position,
            mut outgoing,
        } = written;
        let ticket = self.state.submit(slot, batch, position, limit);
        if !outgoing.handles.is_empty() {
            self.task_handles
                .insert(ticket, std::mem::take(&mut outgoing.handles));
        }
        if !outgoing.blocks.is_empty() {
            self.blocks_out += outgoing.blocks.iter().map(|block| block.len).sum::<u64>();
            self.task_blocks
                .insert(ticket, std::mem::take(&mut outgoing.blocks));
        }
        // A batch that was begun before the pool was closed goes on.
        if matches!(self.state.phase(), Phase::Open | Phase::Closed) {
            self.push(slot, ticket);
        }
    }

    /// See [`Dispatcher::outgoing`].
    pub(crate) fn outgoing(&self) -> Outgoing {
        outgoing(&self.heap, self.workers.len())
    }

    /// See [`Dispatcher::write`].
    pub(crate) fn write(
        &self,
        slot: u32,
        entry: u64,
        chunk: usize,
        bytes: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<()> {
        write(&self.table, slot, entry, chunk, bytes, outgoing)
    }

    /// Whether it is time to look for workers that have ended: then it counts as done.
    pub(crate) fn is_due_for_look(&mut self) -> bool {
        let now = thread::ticks();
        let is_due = now.wrapping_sub(self.looked) > LOOK_EVERY;
        if is_due {
            self.looked = now;
        }
        is_due
    }

    /// Whether there is nothing to do, and nobody who may bring more.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.is_idle() && !self.posts.has_backlog()
    }

    pub(crate) fn free(&mut self, slot: u32) {
        self.table.free(slot);
        self.state.give_back(slot);
    }

    /// The error of a task that was lost with its worker, whose end is noted under `key`.
    pub(crate) fn lost(&mut self, key: u64, position: Option<usize>) -> TaskError {
        TaskError::Lost(WorkerLost {
            task: position,
            ..self.ends.remove(&key).unwrap_or_default()
        })
    }

    /// Refuses tasks of a pool that takes none.
    pub(crate) fn check_open(&self) -> Result<(), TaskError> {
        match self.state.phase() {
            Phase::Open => Ok(()),
            Phase::Closed | Phase::Terminated => Err(TaskError::Pool(Error::new(
                ErrorKind::Closed,
                "the pool is closed",
            ))),
            Phase::Broken(_) => Err(self.not_run()),
        }
    }

    pub(crate) fn not_run(&self) -> TaskError {
        match self.state.phase() {
            Phase::Broken(why) => TaskError::Pool(Error::new(ErrorKind::Initializer, why.clone())),
            _ => TaskError::Cancelled,
        }
    }
}

fn outgoing(heap: &Arc<Heap>, n_workers: usize) -> Outgoing {
    // Beyond this many workers some could not hold the heap's blocks.
    let heap = (member(n_workers) < MEMBERS).then(|| Arc::clone(heap));
    Outgoing::new(heap)
}

fn write(
    table: &Table,
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
    message::write(table, slot, parcel, bytes, false, outgoing).inspect_err(|_| outgoing.discard())
}

impl Dispatcher {
    pub(crate) fn new(n_workers: usize, recipe: Recipe) -> Result<Arc<Self>> {
        let table = Table::create(n_workers)?;
        let heap = parent_heap(&table);
        let kick = socket::event().map_err(|error| Error::os("make a pool", error))?;
        let kick = Arc::new(kick);
        // Before there are workers that can be killed.
        scarcity::look(true);
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
            kept: HashMap::new(),
            next_kept: 0,
            unpushed: VecDeque::new(),
            posts: Posts::default(),
            streams: Vec::new(),
            limits: Limits::default(),
            attendants: Attendants::default(),
            vacant: Vec::new(),
            seen: vec![0; n_workers],
            is_watched: false,
            kick: Arc::clone(&kick),
            n_asleep: 0,
            spin: super::drive::SPIN_MAX / 2,
            looked: 0,
        };
        for number in 0..n_workers {
            // Those already started end when the core is dropped.
            core.hire(number)?;
        }
        Ok(acquaint(Self {
            core: Mutex::new(core),
            changed: Condvar::new(),
            duty: Condvar::new(),
            kick,
            generation: thread::generation(),
            table,
            heap,
            n_workers,
        }))
    }

    pub(crate) fn lock(&self) -> Held<'_> {
        Held::new(&self.core)
    }

    /// Whether this is the process that made the pool.
    pub(crate) fn is_ours(&self) -> bool {
        self.generation == thread::generation()
    }

    /// Whether tasks that are begun now will be done.
    pub(crate) fn is_running(&self) -> bool {
        // In a forked child, whoever waits for them is told.
        !self.is_ours() || matches!(self.lock().state.phase(), Phase::Open | Phase::Closed)
    }

    /// Refuses what belongs to the process that this one was forked from.
    pub(crate) fn check_ours(&self) -> Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Closed,
            "the pool belongs to the parent of this forked process; make another one here",
        ))
    }

    /// Begins a batch.
    pub(crate) fn open_batch(&self) -> Result<u64, TaskError> {
        self.check_ours().map_err(TaskError::Pool)?;
        let mut core = self.lock();
        core.check_open()?;
        // Workers that died while nobody looked are replaced now. A call for each worker is too much
        // for each of many short batches; and who waits for long watches the workers anyway.
        if core.is_due_for_look() {
            core.bury_dead();
        }
        Ok(core.state.open_batch())
    }

    pub(crate) fn close_batch(&self, batch: u64) {
        if !self.is_ours() {
            // A forked child's copy: another thread may have held the lock.
            return;
        }
        let mut core = self.lock();
        let actions = core.state.close_batch(batch);
        core.act(actions);
        core.streams.retain(|stream| stream.batch != batch);
        if *core.state.phase() == Phase::Closed && core.is_idle() {
            core.dismiss(false);
        }
        self.tell_all(&core);
    }

    /// Ends a batch whose tasks are not wanted any more: those that have not begun never run.
    pub(crate) fn drop_batch(&self, batch: u64) {
        if !self.is_ours() {
            return;
        }
        {
            let mut core = self.lock();
            let tasks: Vec<_> = core.state.tasks_of(batch).collect();
            for (slot, task) in tasks {
                core.withdraw(slot, task.ticket);
            }
        }
        self.close_batch(batch);
    }

    /// Slots for up to `most` tasks, fewer while many or large ones are out; none in a forked child,
    /// where they are the parent's.
    pub(crate) fn take_slots(&self, most: usize, slots: &mut Vec<u32>) {
        if !self.is_ours() {
            return;
        }
        let mut core = self.lock();
        // Those that wait for room have their turn too, however fast others ask.
        let most = if core.posts.has_backlog() {
            core.refill();
            most.min(core.state.n_free().div_ceil(2))
        } else {
            most
        };
        core.take_slots(most, slots);
    }

    pub(crate) fn give_back(&self, slot: u32) {
        self.lock().state.give_back(slot);
    }

    /// What a task's handles and buffers are to be collected in.
    pub(crate) fn outgoing(&self) -> Outgoing {
        outgoing(&self.heap, self.n_workers)
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
        write(&self.table, slot, entry, chunk, bytes, outgoing)
    }

    /// Puts written tasks into the queue.
    pub(crate) fn submit(&self, batch: u64, limit: Option<Duration>, written: &mut Vec<Written>) {
        let mut core = self.lock();
        for written in written.drain(..) {
            core.submit(batch, limit, written);
        }
        if matches!(core.state.phase(), Phase::Open | Phase::Closed) {
            core.wake_workers(false);
        } else {
            // It was terminated or broken meanwhile: these will not be run.
            let actions = core.state.terminate();
            core.act(actions);
            self.tell_all(&core);
        }
    }

    /// Takes the outcomes that there are for a batch.
    pub(crate) fn take(&self, batch: u64, outcomes: &mut Vec<Outcome>) {
        if !self.is_ours() {
            // Whoever waits for them is told.
            return;
        }
        let mut core = self.lock();
        core.collect();
        self.tell_others(&mut core, batch);
        core.take_outcomes(batch, outcomes);
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
            Self::finish_work(&mut self.lock());
        }
    }

    /// As [`close`](Self::close), unless somebody holds the lock: false then.
    pub(crate) fn try_close(&self) -> bool {
        if !self.is_ours() {
            return true;
        }
        let held = Held::try_new(&self.core);
        held.map(|mut core| Self::finish_work(&mut core)).is_some()
    }

    fn finish_work(core: &mut Core) {
        core.state.close();
        if core.is_idle() {
            core.dismiss(false);
        }
    }

    /// Ends all workers now. Whoever waits for tasks is told.
    pub(crate) fn terminate(&self) {
        if self.is_ours() {
            self.end_workers(&mut self.lock());
        }
    }

    /// As [`terminate`](Self::terminate), unless somebody holds the lock: false then.
    pub(crate) fn try_terminate(&self) -> bool {
        if !self.is_ours() {
            return true;
        }
        let held = Held::try_new(&self.core);
        held.map(|mut core| self.end_workers(&mut core)).is_some()
    }

    fn end_workers(&self, core: &mut Core) {
        // What is done by now is not taken away any more.
        core.collect();
        let actions = core.state.terminate();
        core.act(actions);
        core.give_up_backlog();
        core.deliver_posts();
        core.dismiss(true);
        core.end_overdue(None);
        self.tell_all(core);
    }
}
