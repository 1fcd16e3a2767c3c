//! Pools that are looked after though nobody waits, and what else fronts ask of a pool.
//!
//! Workers do what there is without their parent; it is needed once one of them ends. Where somebody may
//! give tasks and never wait for them, the pool's thread looks now and then, and drives the pool
//! while workers are to be replaced after so many tasks.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::Pool;
use super::attendant::Attendants;
use super::dispatcher::{Core, Dispatcher};
use super::handle::TaskHandle;
use super::outcomes::Outcomes;
use super::state::Phase;
use crate::error::Result;
use crate::process::Child;

/// How often the thread looks while there are tasks.
const LOOK: Duration = Duration::from_millis(100);
/// After so many looks without a new task it sleeps until there is one: to wake it takes longer
/// than a short task.
const LOOKS: u32 = 10;

/// What the thread has seen of a pool that it is to look after.
#[derive(Debug)]
pub(crate) struct Tending {
    /// How many tasks there had been.
    seen: u64,
    /// How often it has looked since there was one.
    looks: u32,
}

impl Core {
    pub(crate) fn is_tended(&self) -> bool {
        self.attendants.tending.is_some()
    }

    /// Whether workers come to their end on the way, so that the pool is to be driven.
    pub(crate) fn wears_workers(&self) -> bool {
        self.is_tended() && self.recipe.tasks.is_some() && self.posts.any()
    }

    /// How long the thread may sleep now; for as long as there is nothing for it if that is
    /// `None`.
    pub(crate) fn next_look(&mut self) -> Option<Duration> {
        let (count, any) = (self.posts.count(), self.posts.any());
        let Attendants {
            tending: Some(tending),
            ..
        } = &mut self.attendants
        else {
            return None;
        };
        if any || count != tending.seen {
            tending.seen = count;
            tending.looks = 0;
        }
        tending.looks += 1;
        (tending.looks <= LOOKS).then_some(LOOK)
    }

    /// Sees what has become of the workers, and of their tasks.
    pub(crate) fn look_after(&mut self) {
        for number in 0..self.workers.len() {
            self.read_packets(number);
        }
        self.bury_dead();
        self.collect();
    }
}

impl Dispatcher {
    /// Sees to it that a thread looks after a new task, if that is wanted.
    pub(crate) fn tend(&self, core: &mut Core) {
        if core.is_tended() && (core.attendants.is_off || core.attendants.is_alone()) {
            self.want_attendant(core, false);
        }
    }
}

impl Pool {
    /// Has a thread look after the tasks of handles though nobody waits: a worker that has ended
    /// is replaced all the same.
    pub(crate) fn have_tended(&self) {
        self.dispatcher.lock().attendants.tending = Some(Tending { seen: 0, looks: 0 });
    }

    /// Takes no more tasks, unless somebody is at the pool just now: false then.
    pub(crate) fn try_close(&self) -> bool {
        self.dispatcher.try_close()
    }

    /// Ends the workers, unless somebody is at the pool just now: false then.
    pub(crate) fn try_terminate(&self) -> bool {
        self.dispatcher.try_terminate()
    }

    /// Cancels the tasks of handles that have not begun, but for the oldest `kept` that are not done.
    pub(crate) fn cancel_pending(&self, kept: usize) {
        if !self.dispatcher.is_ours() {
            return;
        }
        let mut core = self.dispatcher.lock();
        core.collect();
        for key in core.posts.by_age().into_iter().skip(kept) {
            core.cancel_post(key, false);
        }
        core.deliver_posts();
        core.send_jobs();
        self.dispatcher.tell_all(&core);
    }

    /// The workers that there are now. Dead ones are replaced first.
    pub(crate) fn members(&self) -> Vec<Arc<Child>> {
        if !self.dispatcher.is_ours() {
            return Vec::new();
        }
        let mut core = self.dispatcher.lock();
        core.bury_dead();
        let workers = core.workers.iter().flatten();
        workers.map(|worker| Arc::clone(&worker.child)).collect()
    }

    /// Whether tasks of handles are not done, as far as is known.
    pub(crate) fn has_pending(&self) -> bool {
        if !self.dispatcher.is_ours() {
            return false;
        }
        let mut core = self.dispatcher.lock();
        core.look_after();
        core.posts.any()
    }

    /// Why it cannot have workers, if that is so.
    pub(crate) fn broken(&self) -> Option<String> {
        if !self.dispatcher.is_ours() {
            return None;
        }
        let mut core = self.dispatcher.lock();
        core.look_after();
        match core.state.phase() {
            Phase::Broken(why) => Some(why.clone()),
            _ => None,
        }
    }
}

impl<R> TaskHandle<R> {
    /// Has `waker` woken once the handle is ready, though nobody waits. True if it is ready now, and
    /// nobody will be woken.
    pub(crate) fn watch(&self, waker: &Waker) -> Result<bool> {
        self.handle.watch(waker)
    }

    /// Whether the outcome is there, as far as is known: it does not look.
    pub(crate) fn is_known(&self) -> bool {
        self.handle.is_known()
    }

    /// Whether a worker has begun the task, and not finished it.
    pub(crate) fn has_begun(&self) -> bool {
        self.handle.has_begun()
    }
}

/// Whether a worker is at the task of a handle.
pub(super) fn is_at_work(core: &Core, outcomes: &Arc<Outcomes>, hint: Option<usize>) -> bool {
    let Some((slot, ticket)) = hint.and_then(|key| core.slot_of(key, outcomes)) else {
        return false;
    };
    let mut is_running = false;
    core.table.at_work(|_, at, of, held| {
        is_running |= (at, of) == (slot, ticket) && held == crate::shm::table::Held::Running;
    });
    is_running
}
