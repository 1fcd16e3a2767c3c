//! Tasks that nobody waits for as a batch: where their outcomes go, and those that wait for
//! room in the table.
//!
//! ```text
//!  apply_async ──encode──▶ slot, or backlog ──▶ worker ──▶ slot ──▶ whoever drives ──▶ post ──▶ handle
//! ```
//!
//! A result is taken out of its slot as soon as somebody drives the pool, so that results that
//! nobody has asked for yet do not fill the table. It is decoded by who asks for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::dispatcher::{Core, Dispatcher, Written};
use super::drive::LowWater;
use super::outcomes::{Aftermath, Job, Outcome, Outcomes, Payload, Source};
use super::state::{Delivery, POSTS, Phase, Task};
use super::tended::is_at_work;
use crate::codec::attachments::Outgoing;
use crate::error::{ErrorKind, Result};
use crate::process::TaskError;
use crate::shm::heap::Descriptor;

/// Tasks in the backlog after which who adds one looks for room.
const LOOK_EVERY: usize = 64;
/// Large tasks that may be out in all, or wait; and how many bytes of them.
const LARGE_OUT: usize = 64;
const LARGE_BYTES: u64 = 64 << 20;

/// Where the outcome of a task goes.
#[derive(Debug)]
struct Post {
    outcomes: Arc<Outcomes>,
    position: usize,
    serial: u64,
    /// Where it lies in the table, once it does.
    slot: Option<u32>,
}

/// A task that waits for room in the table.
#[derive(Debug)]
struct Pending {
    key: usize,
    /// Tells whether its post is still its own.
    serial: u64,
    entry: u64,
    chunk: usize,
    bytes: Vec<u8>,
    limit: Option<Duration>,
    large: Option<Box<Outgoing>>,
}

/// A task that is to be done some time.
pub(crate) struct Order<'a> {
    pub(crate) outcomes: &'a Arc<Outcomes>,
    pub(crate) position: usize,
    pub(crate) entry: u64,
    pub(crate) chunk: usize,
    pub(crate) limit: Option<Duration>,
}

/// All posts of a pool.
#[derive(Debug, Default)]
pub(crate) struct Posts {
    posts: Vec<Option<Post>>,
    free: Vec<usize>,
    backlog: VecDeque<Pending>,
    /// Large tasks in the backlog, and their bytes.
    n_large: usize,
    large_bytes: u64,
    next_serial: u64,
    has_news: bool,
    /// Handles with callbacks whose tasks are not all done.
    n_calling: usize,
    /// Handles that futures wait for, whose tasks are not all done.
    n_awaited: usize,
    /// Futures whose tasks are done: they are woken by who lets go of the lock.
    pub(crate) wakers: Vec<Waker>,
}

fn len_of(blocks: &[Descriptor]) -> u64 {
    blocks.iter().map(|block| block.len).sum()
}

impl Posts {
    fn add(&mut self, outcomes: &Arc<Outcomes>, position: usize) -> (usize, u64) {
        self.next_serial += 1;
        let post = Some(Post {
            outcomes: Arc::clone(outcomes),
            position,
            serial: self.next_serial,
            slot: None,
        });
        let key = match self.free.pop() {
            Some(key) => {
                self.posts[key] = post;
                key
            }
            None => {
                self.posts.push(post);
                self.posts.len() - 1
            }
        };
        (key, self.next_serial)
    }

    /// Gives a task's outcome to who wants it; what is to be called then.
    fn deliver(&mut self, key: usize, outcome: Outcome) -> Option<Job> {
        let post = self.posts.get_mut(key)?.take()?;
        self.free.push(key);
        self.has_news = true;
        let Aftermath {
            job,
            waker,
            was_awaited,
        } = post.outcomes.deliver(post.position, outcome);
        self.n_calling -= usize::from(job.is_some());
        self.n_awaited -= usize::from(was_awaited);
        self.wakers.extend(waker);
        job
    }

    /// The tasks that are not done, from the oldest on.
    pub(crate) fn by_age(&self) -> Vec<usize> {
        let posts = self.posts.iter().enumerate();
        let mut open: Vec<_> = posts
            .filter_map(|(key, post)| Some((post.as_ref()?.serial, key)))
            .collect();
        open.sort_unstable();
        open.into_iter().map(|(_, key)| key).collect()
    }

    /// Whether any is not done.
    pub(crate) fn any(&self) -> bool {
        self.posts.len() > self.free.len()
    }

    /// How many there have been.
    pub(crate) fn count(&self) -> u64 {
        self.next_serial
    }

    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether outcomes have been delivered since this was asked.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Whether somebody is to be called when tasks are done.
    pub(crate) fn is_calling(&self) -> bool {
        self.n_calling > 0
    }

    /// Whether a future waits for tasks.
    pub(crate) fn is_awaited(&self) -> bool {
        self.n_awaited > 0
    }

    fn push(&mut self, pending: Pending) {
        if let Some(large) = &pending.large {
            self.n_large += 1;
            self.large_bytes += len_of(&large.blocks);
        }
        self.backlog.push_back(pending);
    }

    fn pop(&mut self) -> Option<Pending> {
        let pending = self.backlog.pop_front()?;
        if let Some(large) = &pending.large {
            self.n_large -= 1;
            self.large_bytes -= len_of(&large.blocks);
        }
        Some(pending)
    }

    fn is_wanted(&self, key: usize, serial: u64) -> bool {
        self.posts[key]
            .as_ref()
            .is_some_and(|post| post.serial == serial)
    }
}

impl Core {
    /// Sends the outcomes of posted tasks to where they go.
    pub(crate) fn deliver_posts(&mut self) {
        while let Some(delivery) = self.state.next_posted() {
            let (at, outcome) = match delivery {
                Delivery::Done { slot, position } => {
                    let arrived = self.take_result(slot);
                    let outcome = arrived.map(Payload::Arrived).map_err(TaskError::Result);
                    (position, outcome)
                }
                Delivery::Lost { position, key } => {
                    let posts = &self.posts.posts;
                    let post = posts.get(position).and_then(Option::as_ref);
                    let task = post.and_then(|post| post.outcomes.task(post.position));
                    (position, Err(self.lost(key, task)))
                }
                Delivery::TimedOut { position, limit } => {
                    (position, Err(TaskError::TimedOut(limit)))
                }
                // Only results of batches are kept.
                Delivery::Kept { position, .. } | Delivery::NotRun { position } => {
                    (position, Err(self.not_run()))
                }
            };
            self.deliver(at, outcome);
        }
        if *self.state.phase() == Phase::Closed && self.posts.has_news && self.is_idle() {
            self.dismiss(false);
        }
    }

    fn deliver(&mut self, key: usize, outcome: Outcome) {
        if let Some(job) = self.posts.deliver(key, outcome) {
            self.attendants.jobs.push_back(job);
        }
    }

    /// Moves tasks from the backlog into the table while that has room.
    pub(crate) fn refill(&mut self) {
        if self.posts.backlog.is_empty() {
            return;
        }
        let mut slots = Vec::new();
        let mut any = false;
        while let Some(pending) = self.posts.backlog.front() {
            if self.posts.is_wanted(pending.key, pending.serial) {
                self.take_slots(1, &mut slots);
                if slots.is_empty() {
                    break;
                }
            }
            let Some(pending) = self.posts.pop() else {
                break;
            };
            // Without a slot it has been cancelled.
            if let Some(slot) = slots.pop() {
                self.begin_pending(slot, pending);
                any = true;
            }
        }
        if any {
            self.wake_workers(false);
        }
    }

    fn begin_pending(&mut self, slot: u32, mut pending: Pending) {
        let mut outgoing = match pending.large.take() {
            Some(outgoing) => *outgoing,
            None => self.outgoing(),
        };
        let (entry, bytes) = (pending.entry, &pending.bytes);
        match self.write(slot, entry, pending.chunk, bytes, &mut outgoing) {
            Ok(()) => self.begin_post(pending.key, pending.limit, slot, outgoing),
            Err(error) => {
                self.free(slot);
                self.deliver(pending.key, Err(TaskError::Arguments(error)));
            }
        }
    }

    fn begin_post(&mut self, key: usize, limit: Option<Duration>, slot: u32, outgoing: Outgoing) {
        if let Some(Some(post)) = self.posts.posts.get_mut(key) {
            post.slot = Some(slot);
        }
        let written = Written {
            slot,
            position: key,
            outgoing,
        };
        self.submit(POSTS, limit, written);
    }

    /// Nothing in the backlog will be run.
    pub(crate) fn give_up_backlog(&mut self) {
        while let Some(pending) = self.posts.pop() {
            if self.posts.is_wanted(pending.key, pending.serial) {
                let error = self.not_run();
                self.deliver(pending.key, Err(error));
            }
        }
    }

    /// Cancels a task, or if `also_running` ends its worker. False if it has begun, or is over.
    pub(crate) fn cancel_post(&mut self, key: usize, also_running: bool) -> bool {
        let Some(Some(post)) = self.posts.posts.get(key) else {
            return false;
        };
        let Some(slot) = post.slot else {
            self.deliver(key, Err(TaskError::Cancelled));
            return true;
        };
        let Some(task) = self.posted_in(slot, key) else {
            return false;
        };
        if self.withdraw(slot, task.ticket) {
            return true;
        }
        let doomed = also_running.then(|| self.table.doom(slot, task.ticket));
        if let Some(Some(worker)) = doomed {
            self.kill(worker);
            return true;
        }
        false
    }

    /// The slot and the ticket of a handle's task, if it is in the table.
    pub(crate) fn slot_of(&self, key: usize, outcomes: &Arc<Outcomes>) -> Option<(u32, u32)> {
        let post = self.posts.posts.get(key)?.as_ref()?;
        let slot = post
            .slot
            .filter(|_| Arc::ptr_eq(&post.outcomes, outcomes))?;
        Some((slot, self.posted_in(slot, key)?.ticket))
    }

    /// The task of a post, if it is in that slot.
    fn posted_in(&self, slot: u32, key: usize) -> Option<Task> {
        let task = self.state.task(slot);
        task.filter(|task| task.batch == POSTS && task.position == key)
    }

    fn has_room_for_large(&self) -> bool {
        let n = self.posts.n_large + self.task_blocks.len() + self.task_handles.len();
        let bytes = self.posts.large_bytes + self.blocks_out;
        let n_workers = self.workers.len();
        n < LARGE_OUT + 2 * n_workers && (bytes < LARGE_BYTES || n < 2 * n_workers)
    }
}

impl Dispatcher {
    /// Has a task done some time; gives the place of its post.
    ///
    /// Waits if the arguments of too many tasks are on their way beside the table.
    pub(crate) fn post(
        &self,
        order: &Order<'_>,
        bytes: Vec<u8>,
        mut outgoing: Outgoing,
    ) -> Result<usize, TaskError> {
        let is_large = !outgoing.blocks.is_empty() || !outgoing.handles.is_empty();
        if is_large && !self.lock().has_room_for_large() {
            let low_water = LowWater::Half;
            self.drive(low_water, None, |core| core.has_room_for_large())
                .map_err(TaskError::Pool)?;
        }
        let mut core = self.lock();
        core.check_open()?;
        if core.posts.backlog.len() % LOOK_EVERY == LOOK_EVERY - 1 {
            core.collect();
            self.tell_others(&mut core, 0);
        }
        let (key, serial) = core.posts.add(order.outcomes, order.position);
        let mut slots = Vec::new();
        if core.posts.backlog.is_empty() {
            core.take_slots(1, &mut slots);
            if slots.is_empty() {
                core.collect();
                self.tell_others(&mut core, 0);
                core.take_slots(1, &mut slots);
            }
        }
        if let Some(slot) = slots.pop() {
            match core.write(slot, order.entry, order.chunk, &bytes, &mut outgoing) {
                Ok(()) => {
                    core.begin_post(key, order.limit, slot, outgoing);
                    core.wake_workers(false);
                }
                Err(error) => {
                    core.free(slot);
                    core.deliver(key, Err(TaskError::Arguments(error)));
                    core.send_jobs();
                }
            }
        } else {
            core.posts.push(Pending {
                key,
                serial,
                entry: order.entry,
                chunk: order.chunk,
                bytes,
                limit: order.limit,
                large: is_large.then(|| Box::new(outgoing)),
            });
        }
        if order.limit.is_some() || core.posts.has_backlog() || !core.task_handles.is_empty() {
            self.want_attendant(&mut core, false);
            if order.limit.is_some() {
                // Whoever watches has no limit to look after yet.
                self.tell_all(&core);
            }
        }
        self.tend(&mut core);
        Ok(key)
    }

    /// Takes outcomes in, and under `fork` calls what is to be called: without waiting.
    fn look_for(&self, outcomes: Option<&Outcomes>, deadline: Option<Instant>) -> Result<bool> {
        self.check_ours()?;
        let is_ready = || outcomes.is_some_and(Outcomes::is_ready);
        let found = self.drive(LowWater::Half, deadline, |_| is_ready());
        let has_ended = matches!(&found, Err(error) if error.kind() == ErrorKind::Closed);
        if has_ended && outcomes.is_some_and(|outcomes| outcomes.is_calling() || is_ready()) {
            // The pool has ended, but not the callbacks: whoever calls them tells when they have.
            let mut core = self.lock();
            while !is_ready() {
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Ok(false);
                }
                core = self.sleep(core, deadline);
            }
            return Ok(true);
        }
        found
    }
}

impl Source for Dispatcher {
    fn wait(&self, outcomes: &Outcomes, deadline: Option<Instant>) -> Result<bool> {
        self.look_for(Some(outcomes), deadline)
    }

    fn look(&self) {
        if !self.is_ours() {
            return;
        }
        {
            // Who only looks, again and again, is all the pool may have.
            let mut core = self.lock();
            if core.is_due_for_look() {
                for number in 0..self.n_workers {
                    core.read_packets(number);
                }
                core.bury_dead();
            }
        }
        // Whoever waits is told why that fails.
        let _ = self.look_for(None, Some(Instant::now()));
    }

    fn attach(&self, attach: &mut dyn FnMut() -> (bool, Option<Job>)) {
        if !self.is_ours() {
            // Nobody calls it here, unless the outcome was known before.
            if let (_, Some(job)) = attach() {
                job();
            }
            return;
        }
        let mut core = self.lock();
        // Outcomes are delivered under this lock.
        let (is_awaited, job) = attach();
        core.posts.n_calling += usize::from(is_awaited);
        core.attendants.jobs.extend(job);
        self.want_attendant(&mut core, true);
        core.send_jobs();
    }

    fn watch(&self, outcomes: &Arc<Outcomes>, waker: &Waker) -> Result<bool> {
        self.check_ours()?;
        let mut core = self.lock();
        core.collect();
        self.tell_others(&mut core, 0);
        let Some(is_new) = outcomes.watch(waker) else {
            return Ok(true);
        };
        core.posts.n_awaited += usize::from(is_new);
        let has_attendant = self.have_attendant(&mut core);
        if has_attendant.is_err() && outcomes.unwatch() {
            core.posts.n_awaited -= 1;
        }
        has_attendant.map(|()| false)
    }

    fn unwatch(&self, outcomes: &Outcomes) {
        if !self.is_ours() {
            return;
        }
        let mut core = self.lock();
        if outcomes.unwatch() {
            core.posts.n_awaited -= 1;
            self.tell_all(&core);
        }
    }

    fn has_begun(&self, outcomes: &Arc<Outcomes>, hint: Option<usize>) -> bool {
        self.is_ours() && is_at_work(&self.lock(), outcomes, hint)
    }

    fn cancel(&self, outcomes: &Arc<Outcomes>, hint: Option<usize>, also_running: bool) -> usize {
        if !self.is_ours() {
            return 0;
        }
        let mut core = self.lock();
        core.collect();
        let is_mine = |post: &Option<Post>| {
            let post = post.as_ref();
            post.is_some_and(|post| Arc::ptr_eq(&post.outcomes, outcomes))
        };
        let posts = &core.posts.posts;
        let keys: Vec<usize> = match hint {
            // There is no other.
            Some(key) => posts
                .get(key)
                .filter(|post| is_mine(post))
                .map(|_| key)
                .into_iter()
                .collect(),
            None => (0..posts.len())
                .filter(|key| is_mine(&posts[*key]))
                .collect(),
        };
        let mut count = 0;
        for key in keys {
            count += usize::from(core.cancel_post(key, also_running));
        }
        core.deliver_posts();
        core.send_jobs();
        self.tell_all(&core);
        count
    }
}
