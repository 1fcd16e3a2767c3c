//! What the pool knows and decides: which task is where, what a worker's end means, when
//! the pool is broken. No process, socket or clock here: events in, actions out.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::shm::table::Held;

/// The batch of all tasks that nobody waits for as a whole. Their outcomes are for whoever
/// looks first, who passes them on; their position is the place of their post.
pub(crate) const POSTS: u64 = 0;

/// A task that has been handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) batch: u64,
    /// Its position in its batch.
    pub(crate) position: usize,
    pub(crate) ticket: u32,
    /// How long it may run.
    pub(crate) limit: Option<Duration>,
    /// It has run for longer, and its worker is being ended.
    is_overdue: bool,
}

/// How a task ended, for its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The result is in the slot, which the batch frees.
    Done { slot: u32, position: usize },
    /// The result has been read out of its slot, to make room, and is kept under that key.
    Kept { key: u64, position: usize },
    /// Its worker died with it; how is noted under that key.
    Lost { position: usize, key: u64 },
    /// It ran for longer than it may, and its worker was ended.
    TimedOut { position: usize, limit: Duration },
    /// It was never run: the pool was terminated, or is broken.
    NotRun { position: usize },
}

/// What is to be done about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Put the task back into the queue, under a new ticket: the worker had not begun it.
    Requeue { slot: u32, old: u32, ticket: u32 },
    /// The slot is free, and nobody will read what is in it.
    Discard { slot: u32 },
    /// Nobody wants what is kept, or noted, under that key.
    Forget { key: u64 },
    /// Start another worker with that number.
    Replace { worker: usize },
}

/// Whether the pool takes tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// No new tasks; those that there are will be finished.
    Closed,
    /// No tasks at all.
    Terminated,
    /// It has no workers and will get none; why.
    Broken(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    Starting,
    Ready,
    Gone,
}

/// Times in a row that workers may end before they are ready: more in a pool of many, as
/// somebody may be killing them.
fn early_ends_allowed(workers: usize) -> usize {
    16 + 2 * workers
}

#[derive(Debug)]
pub(crate) struct State {
    phase: Phase,
    free: Vec<u32>,
    tasks: Vec<Option<Task>>,
    n_tasks: usize,
    /// Tasks among them that may run for so long only.
    n_limited: usize,
    mailboxes: HashMap<u64, VecDeque<Delivery>>,
    posted: VecDeque<Delivery>,
    workers: Vec<Worker>,
    early_ends: usize,
    next_batch: u64,
    next_ticket: u32,
}

impl State {
    pub(crate) fn new(slots: usize, workers: usize) -> Self {
        Self {
            phase: Phase::Open,
            free: (0..slots as u32).rev().collect(),
            tasks: vec![None; slots],
            n_tasks: 0,
            n_limited: 0,
            mailboxes: HashMap::new(),
            posted: VecDeque::new(),
            workers: vec![Worker::Gone; workers],
            early_ends: 0,
            next_batch: 0,
            next_ticket: 0,
        }
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    // -- batches

    pub(crate) fn open_batch(&mut self) -> u64 {
        self.next_batch += 1;
        self.mailboxes.insert(self.next_batch, VecDeque::new());
        self.next_batch
    }

    /// Forgets a batch. What comes for it later is discarded.
    pub(crate) fn close_batch(&mut self, batch: u64) -> Vec<Action> {
        let mail = self.mailboxes.remove(&batch).unwrap_or_default();
        mail.into_iter()
            .filter_map(|delivery| match delivery {
                Delivery::Done { slot, .. } => Some(Action::Discard { slot }),
                Delivery::Kept { key, .. } | Delivery::Lost { key, .. } => {
                    Some(Action::Forget { key })
                }
                _ => None,
            })
            .collect()
    }

    /// The slots with results that their batches have not taken.
    pub(crate) fn untaken(&self) -> Vec<u32> {
        let mail = self.mailboxes.values().flatten();
        mail.filter_map(|delivery| match delivery {
            Delivery::Done { slot, .. } => Some(*slot),
            _ => None,
        })
        .collect()
    }

    /// The result in a slot is kept elsewhere now.
    pub(crate) fn kept(&mut self, from: u32, key: u64) {
        for delivery in self.mailboxes.values_mut().flatten() {
            if let Delivery::Done { slot, position } = *delivery {
                if slot == from {
                    *delivery = Delivery::Kept { key, position };
                    return;
                }
            }
        }
    }

    /// Takes up to `most` free slots.
    pub(crate) fn take_slots(&mut self, most: usize, slots: &mut Vec<u32>) {
        let keep = self.free.len().saturating_sub(most);
        slots.extend(self.free.drain(keep..));
    }

    pub(crate) fn give_back(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// How many slots are free.
    pub(crate) fn n_free(&self) -> usize {
        self.free.len()
    }

    /// A task is about to be put into the queue; gives its ticket.
    pub(crate) fn submit(
        &mut self,
        slot: u32,
        batch: u64,
        position: usize,
        limit: Option<Duration>,
    ) -> u32 {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.tasks[slot as usize] = Some(Task {
            batch,
            position,
            ticket: self.next_ticket,
            limit,
            is_overdue: false,
        });
        self.n_tasks += 1;
        self.n_limited += usize::from(limit.is_some());
        self.next_ticket
    }

    /// The task of a slot is over.
    fn take_task(&mut self, slot: u32) -> Option<Task> {
        let task = self.tasks.get_mut(slot as usize)?.take()?;
        self.n_tasks -= 1;
        self.n_limited -= usize::from(task.limit.is_some());
        Some(task)
    }

    /// Whether any task may run for so long only.
    pub(crate) fn has_limits(&self) -> bool {
        self.n_limited > 0
    }

    /// The tasks that there are: of one batch, and one position of it, if those are given.
    pub(crate) fn tasks_of(&self, batch: u64) -> impl Iterator<Item = (u32, Task)> {
        let tasks = self.tasks.iter().enumerate();
        tasks.filter_map(move |(slot, task)| {
            let task = task.filter(|task| task.batch == batch)?;
            Some((slot as u32, task))
        })
    }

    /// A task has been taken back before any worker began it. Its slot is to be freed.
    pub(crate) fn withdrawn(&mut self, slot: u32) {
        if let Some(task) = self.take_task(slot) {
            // Nobody is left who would discard anything: there is no result.
            let _ = self.deliver(
                task.batch,
                Delivery::NotRun {
                    position: task.position,
                },
            );
        }
    }

    /// A task that was taken back from a worker that does not begin it goes to another.
    pub(crate) fn requeue(&mut self, slot: u32) -> Option<Action> {
        let ticket = self.next_ticket.wrapping_add(1);
        let task = self.tasks.get_mut(slot as usize)?.as_mut()?;
        self.next_ticket = ticket;
        let old = std::mem::replace(&mut task.ticket, ticket);
        Some(Action::Requeue { slot, old, ticket })
    }

    /// A task has run for too long: the end of its worker will be put down to that.
    pub(crate) fn overdue(&mut self, slot: u32) {
        if let Some(Some(task)) = self.tasks.get_mut(slot as usize) {
            task.is_overdue = true;
        }
    }

    /// Whose task is in a slot.
    pub(crate) fn task(&self, slot: u32) -> Option<Task> {
        self.tasks.get(slot as usize).copied().flatten()
    }

    /// The next outcome of a task that nobody waits for as part of a batch.
    pub(crate) fn next_posted(&mut self) -> Option<Delivery> {
        self.posted.pop_front()
    }

    /// The next outcome for a batch.
    pub(crate) fn next_delivery(&mut self, batch: u64) -> Option<Delivery> {
        self.mailboxes.get_mut(&batch)?.pop_front()
    }

    /// Whether there are outcomes for another batch than this.
    pub(crate) fn has_other_mail(&self, batch: u64) -> bool {
        self.mailboxes.len() > 1
            && self
                .mailboxes
                .iter()
                .any(|(other, mail)| *other != batch && !mail.is_empty())
    }

    /// Whether there are outcomes for a batch.
    pub(crate) fn has_mail(&self, batch: u64) -> bool {
        let mail = self.mailboxes.get(&batch);
        mail.is_some_and(|mail| !mail.is_empty())
    }

    fn deliver(&mut self, batch: u64, delivery: Delivery) -> Option<Action> {
        if batch == POSTS {
            self.posted.push_back(delivery);
            return None;
        }
        match self.mailboxes.get_mut(&batch) {
            Some(mail) => {
                mail.push_back(delivery);
                None
            }
            // Nobody waits for it any more.
            None => match delivery {
                Delivery::Done { slot, .. } => Some(Action::Discard { slot }),
                Delivery::Lost { key, .. } => Some(Action::Forget { key }),
                _ => None,
            },
        }
    }

    // -- events

    /// A worker says that it has finished what is in a slot.
    pub(crate) fn finished(&mut self, slot: u32, ticket: u32) -> Option<Action> {
        // Told twice, as when the worker died right after: the second time does not count.
        let task = self.task(slot).filter(|task| task.ticket == ticket)?;
        self.take_task(slot);
        self.deliver(
            task.batch,
            Delivery::Done {
                slot,
                position: task.position,
            },
        )
    }

    pub(crate) fn starting(&mut self, worker: usize) {
        self.workers[worker] = Worker::Starting;
    }

    /// Whether a worker was started and has not said that its initializer has returned.
    pub(crate) fn is_starting(&self, worker: usize) -> bool {
        self.workers[worker] == Worker::Starting
    }

    pub(crate) fn ready(&mut self, worker: usize) {
        if self.workers[worker] == Worker::Starting {
            self.workers[worker] = Worker::Ready;
            self.early_ends = 0;
        }
    }

    /// A worker has ended, with these slots in its hands; `how` says how, for people, and what is
    /// noted under `key`, if it ran a task, for that task.
    pub(crate) fn ended(
        &mut self,
        worker: usize,
        held: &[(u32, u32, Held)],
        key: u64,
        how: &str,
    ) -> Vec<Action> {
        let was_ready = std::mem::replace(&mut self.workers[worker], Worker::Gone) == Worker::Ready;
        let mut actions = Vec::new();
        for (slot, ticket, held) in held.iter().copied() {
            match held {
                Held::Done => actions.extend(self.finished(slot, ticket)),
                Held::Claimed if self.task(slot).is_some_and(|task| task.ticket == ticket) => {
                    actions.extend(self.requeue(slot));
                }
                Held::Running => {
                    let Some(task) = self.task(slot).filter(|task| task.ticket == ticket) else {
                        actions.push(Action::Forget { key });
                        continue;
                    };
                    self.take_task(slot);
                    actions.push(Action::Discard { slot });
                    let position = task.position;
                    let delivery = match task.limit {
                        Some(limit) if task.is_overdue => {
                            actions.push(Action::Forget { key });
                            Delivery::TimedOut { position, limit }
                        }
                        _ => Delivery::Lost { position, key },
                    };
                    actions.extend(self.deliver(task.batch, delivery));
                }
                Held::Claimed => {}
            }
        }
        if !was_ready && held.is_empty() {
            self.early_ends += 1;
        }
        if self.early_ends > early_ends_allowed(self.workers.len()) {
            actions.extend(self.break_down(format!(
                "workers ended {} times in a row before they were ready, the last one with {how}",
                self.early_ends
            )));
        }
        if self.phase == Phase::Open || (self.phase == Phase::Closed && !self.is_idle()) {
            actions.push(Action::Replace { worker });
        }
        actions
    }

    /// A worker could not be replaced.
    pub(crate) fn not_replaced(&mut self, why: &str) -> Vec<Action> {
        if self.workers.iter().all(|worker| *worker == Worker::Gone) {
            return self.break_down(format!("no worker can be started: {why}"));
        }
        Vec::new()
    }

    /// The initializer has failed in a worker.
    pub(crate) fn initializer_failed(&mut self, why: &str) -> Vec<Action> {
        self.break_down(format!("the initializer failed: {why}"))
    }

    /// The pool cannot go on.
    pub(crate) fn break_down(&mut self, why: String) -> Vec<Action> {
        if !matches!(self.phase, Phase::Open | Phase::Closed) {
            return Vec::new();
        }
        self.phase = Phase::Broken(why);
        self.cancel_all()
    }

    pub(crate) fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
    }

    pub(crate) fn terminate(&mut self) -> Vec<Action> {
        if matches!(self.phase, Phase::Open | Phase::Closed) {
            self.phase = Phase::Terminated;
        }
        self.cancel_all()
    }

    fn cancel_all(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for slot in 0..self.tasks.len() as u32 {
            if let Some(task) = self.take_task(slot) {
                actions.push(Action::Discard { slot });
                actions.extend(self.deliver(
                    task.batch,
                    Delivery::NotRun {
                        position: task.position,
                    },
                ));
            }
        }
        actions
    }

    /// Whether there is nothing to do, and nobody who may bring more.
    pub(crate) fn is_idle(&self) -> bool {
        self.mailboxes.is_empty() && self.posted.is_empty() && !self.has_tasks()
    }

    pub(crate) fn has_tasks(&self) -> bool {
        self.n_tasks > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> (State, u64) {
        let mut state = State::new(4, 2);
        for worker in 0..2 {
            state.starting(worker);
            state.ready(worker);
        }
        let batch = state.open_batch();
        (state, batch)
    }

    fn submit(state: &mut State, batch: u64, position: usize) -> (u32, u32) {
        let mut slots = Vec::new();
        state.take_slots(1, &mut slots);
        (slots[0], state.submit(slots[0], batch, position, None))
    }

    #[test]
    fn a_result_goes_to_its_batch_once() {
        let (mut state, batch) = pool();
        let (slot, ticket) = submit(&mut state, batch, 7);
        assert_eq!(state.finished(slot, ticket), None);
        assert_eq!(state.finished(slot, ticket), None);
        assert_eq!(
            state.next_delivery(batch),
            Some(Delivery::Done { slot, position: 7 })
        );
        assert_eq!(state.next_delivery(batch), None);
    }

    #[test]
    fn a_dead_worker_loses_only_what_it_had_begun() {
        let (mut state, batch) = pool();
        let begun = submit(&mut state, batch, 0);
        let claimed = submit(&mut state, batch, 1);
        let done = submit(&mut state, batch, 2);
        let held = [
            (begun.0, begun.1, Held::Running),
            (claimed.0, claimed.1, Held::Claimed),
            (done.0, done.1, Held::Done),
        ];
        let actions = state.ended(1, &held, 5, "signal 9");
        let again = state.task(claimed.0).expect("it waits").ticket;
        assert_ne!(
            again, claimed.1,
            "its old entry in the queue must not count"
        );
        assert!(actions.contains(&Action::Requeue {
            slot: claimed.0,
            old: claimed.1,
            ticket: again
        }));
        assert!(actions.contains(&Action::Discard { slot: begun.0 }));
        assert!(actions.contains(&Action::Replace { worker: 1 }));
        assert_eq!(
            state.next_delivery(batch),
            Some(Delivery::Lost {
                position: 0,
                key: 5
            })
        );
        assert_eq!(
            state.next_delivery(batch),
            Some(Delivery::Done {
                slot: done.0,
                position: 2
            })
        );
        assert_eq!(state.task(claimed.0).map(|task| task.position), Some(1));
    }

    #[test]
    fn workers_that_never_get_ready_break_the_pool() {
        let mut state = State::new(4, 1);
        let batch = state.open_batch();
        submit(&mut state, batch, 0);
        let mut starts = 0;
        loop {
            state.starting(0);
            starts += 1;
            if !state
                .ended(0, &[], 0, "exit code 1")
                .contains(&Action::Replace { worker: 0 })
            {
                break;
            }
            assert!(starts < 100, "it goes on for ever");
        }
        assert!(matches!(state.phase(), Phase::Broken(why) if why.contains("exit code 1")));
        assert_eq!(
            state.next_delivery(batch),
            Some(Delivery::NotRun { position: 0 })
        );
    }

    #[test]
    fn a_ready_worker_ends_the_count() {
        let mut state = State::new(4, 1);
        for _ in 0..200 {
            state.starting(0);
            state.ready(0);
            assert!(
                state
                    .ended(0, &[], 0, "signal 9")
                    .contains(&Action::Replace { worker: 0 })
            );
        }
        assert_eq!(*state.phase(), Phase::Open);
    }

    #[test]
    fn what_nobody_waits_for_is_discarded() {
        let (mut state, batch) = pool();
        let first = submit(&mut state, batch, 0);
        let second = submit(&mut state, batch, 1);
        state.finished(first.0, first.1);
        assert_eq!(
            state.close_batch(batch),
            [Action::Discard { slot: first.0 }]
        );
        assert_eq!(
            state.finished(second.0, second.1),
            Some(Action::Discard { slot: second.0 })
        );
    }

    #[test]
    fn a_closed_pool_replaces_workers_only_for_work_that_is_left() {
        let (mut state, batch) = pool();
        let task = submit(&mut state, batch, 0);
        state.close();
        assert!(
            state
                .ended(0, &[], 0, "signal 9")
                .contains(&Action::Replace { worker: 0 })
        );
        state.finished(task.0, task.1);
        state.close_batch(batch);
        assert!(state.ended(1, &[], 0, "signal 9").is_empty());
    }

    #[test]
    fn a_task_that_is_overdue_has_timed_out_once_its_worker_ends() {
        let (mut state, batch) = pool();
        let mut slots = Vec::new();
        state.take_slots(2, &mut slots);
        let limit = Duration::from_millis(5);
        let late = state.submit(slots[0], batch, 0, Some(limit));
        let done = state.submit(slots[1], batch, 1, Some(limit));
        assert!(state.has_limits());
        state.overdue(slots[0]);
        state.overdue(slots[1]);
        // Its result came first.
        state.finished(slots[1], done);
        state.ended(0, &[(slots[0], late, Held::Running)], 0, "signal 15");
        let slot = slots[1];
        assert_eq!(
            state.next_delivery(batch),
            Some(Delivery::Done { slot, position: 1 })
        );
        assert_eq!(
            state.next_delivery(batch),
            Some(Delivery::TimedOut { position: 0, limit })
        );
        assert!(!state.has_limits());
    }

    #[test]
    fn what_is_withdrawn_is_told_and_was_not_run() {
        let (mut state, batch) = pool();
        let (slot, ticket) = submit(&mut state, batch, 4);
        state.withdrawn(slot);
        assert_eq!(
            state.next_delivery(batch),
            Some(Delivery::NotRun { position: 4 })
        );
        assert_eq!(state.finished(slot, ticket), None);
        assert!(!state.has_tasks());
    }

    #[test]
    fn terminating_tells_everyone() {
        let (mut state, batch) = pool();
        let (slot, _) = submit(&mut state, batch, 3);
        assert_eq!(state.terminate(), [Action::Discard { slot }]);
        assert_eq!(
            state.next_delivery(batch),
            Some(Delivery::NotRun { position: 3 })
        );
        assert!(!state.has_tasks());
    }
}
