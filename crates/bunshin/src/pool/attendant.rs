//! The threads of a pool: none at first.
//!
//! Who waits for a pool does its work. What is to happen though nobody waits needs a thread:
//! moving the backlog on when more tasks are out than the table holds, sending handles of the
//! system to workers that ask for them, time limits, callbacks, and futures that wait. The
//! first such need starts `bunshin-pool`, which drives the pool while there is such a need and
//! sleeps otherwise; the first callback starts `bunshin-calls`, which runs
//! callbacks one after the other, so that a slow one holds up no other thing. Both end with
//! the pool.
//!
//! A pool whose workers are forked starts neither: it could not fork another worker while
//! there are threads. What they would do is done by who waits.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use super::dispatcher::{Core, Dispatcher};
use super::drive::LowWater;
use super::outcomes::Job;
use super::state::Phase;
use super::tended::Tending;
use crate::error::{Error, ErrorKind, Result};
use crate::process::{StartMethod, panic};
use crate::sys::process::is_hosted;

#[derive(Default)]
pub(crate) struct Attendants {
    /// How a thread reaches the pool.
    pub(crate) pool: Weak<Dispatcher>,
    supervisor: Option<JoinHandle<()>>,
    caller: Option<JoinHandle<()>>,
    calls: Option<mpsc::Sender<Job>>,
    /// What is to be called, and has been given to no thread.
    pub(crate) jobs: VecDeque<Job>,
    /// Whether who waits is calling just now.
    pub(crate) is_calling: bool,
    is_ending: bool,
    /// Whether the thread that drives the pool sleeps until there is a need.
    pub(crate) is_asleep: bool,
    /// Whether it does so for as long as nobody wakes it.
    pub(crate) is_off: bool,
    /// There if tasks are to be done though nobody waits, whatever becomes of workers.
    pub(crate) tending: Option<Tending>,
}

impl Attendants {
    /// Whether there is no thread that drives the pool.
    pub(crate) fn is_alone(&self) -> bool {
        self.supervisor.is_none()
    }
}

impl Core {
    fn may_have_threads(&self) -> bool {
        (self.recipe.method != StartMethod::Fork || is_hosted()) && !self.attendants.is_ending
    }

    /// Whether there is something to do though nobody waits.
    fn needs_driving(&self) -> bool {
        self.posts.has_backlog()
            || self.posts.is_calling()
            || self.posts.is_awaited()
            || !self.streams.is_empty()
            // Workers ask for them.
            || !self.task_handles.is_empty()
            || self.has_unpushed()
            || self.wears_workers()
            || self.state.has_limits()
            || self.limits.is_ending()
    }

    /// Hands what is to be called to the thread for it, if there is one.
    pub(crate) fn send_jobs(&mut self) {
        if let Some(calls) = &self.attendants.calls {
            while let Some(job) = self.attendants.jobs.pop_front() {
                if let Err(mpsc::SendError(job)) = calls.send(job) {
                    self.attendants.jobs.push_front(job);
                    break;
                }
            }
        }
    }

    /// What the one who waits is to call itself. It clears `is_calling` afterwards.
    pub(crate) fn own_job(&mut self) -> Option<Job> {
        if self.attendants.is_calling {
            return None;
        }
        let job = self.attendants.jobs.pop_front()?;
        self.attendants.is_calling = true;
        Some(job)
    }

    pub(crate) fn has_own_jobs(&self) -> bool {
        !self.attendants.jobs.is_empty()
    }
}

impl Dispatcher {
    /// Sees to it that there is a thread that drives the pool, and one that calls.
    pub(crate) fn want_attendant(&self, core: &mut Core, to_call: bool) {
        if core.may_have_threads() {
            let pool = core.attendants.pool.clone();
            if core.attendants.supervisor.is_none() {
                let run = move || {
                    if let Some(pool) = pool.upgrade() {
                        pool.supervise();
                    }
                };
                // Where no thread can be had, who waits does its work.
                let thread = thread::Builder::new().name("bunshin-pool".into());
                core.attendants.supervisor = thread.spawn(run).ok();
            }
            if to_call && core.attendants.caller.is_none() {
                let (calls, jobs) = mpsc::channel::<Job>();
                let pool = core.attendants.pool.clone();
                let thread = thread::Builder::new().name("bunshin-calls".into());
                let run = move || call(&jobs, &pool);
                if let Ok(thread) = thread.spawn(run) {
                    core.attendants.caller = Some(thread);
                    core.attendants.calls = Some(calls);
                }
            }
        }
        self.call_on_duty(core);
    }

    /// Sees to it that a thread drives the pool, for a future that cannot.
    pub(crate) fn have_attendant(&self, core: &mut Core) -> Result<()> {
        self.want_attendant(core, false);
        if core.attendants.supervisor.is_some() {
            return Ok(());
        }
        let why = if core.recipe.method == StartMethod::Fork && !is_hosted() {
            "its workers are forked, and it may have no thread that looks after it meanwhile; \
             wait for it, or let the pool spawn its workers"
        } else {
            "there is no thread that looks after it meanwhile"
        };
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("await a task of a pool: {why}"),
        ))
    }

    pub(crate) fn call_on_duty(&self, core: &Core) {
        if core.attendants.is_asleep {
            self.duty.notify_all();
        }
    }

    /// Drives the pool while there is a need.
    fn supervise(&self) {
        loop {
            let mut core = self.lock();
            while !core.needs_driving() {
                if core.attendants.is_ending {
                    return;
                }
                let left = core.next_look();
                core.attendants.is_asleep = true;
                core.attendants.is_off = left.is_none();
                core = core.wait(&self.duty, left);
                core.attendants.is_asleep = false;
                core.attendants.is_off = false;
                if left.is_some() {
                    core.look_after();
                    core.send_jobs();
                    self.tell_news(&mut core);
                }
            }
            drop(core);
            let is_over = |core: &mut Core| !core.needs_driving();
            if let Err(error) = self.drive(LowWater::At(0), None, is_over) {
                // Nobody could tell those who wait later: they are told now.
                let mut core = self.lock();
                let mut actions = core.state.break_down(error.to_string());
                if !matches!(core.state.phase(), Phase::Broken(_)) {
                    actions.extend(core.state.terminate());
                }
                core.act(actions);
                core.give_up_backlog();
                core.deliver_posts();
                core.send_jobs();
                self.tell_all(&core);
                if core.needs_driving() {
                    return;
                }
            }
        }
    }

    /// Has the threads end; waits for them if `also_calls` is true, or else for the one that
    /// drives only: callbacks are the user's, and may take any time.
    pub(crate) fn end_attendants(&self, also_calls: bool) {
        if !self.is_ours() {
            return;
        }
        let mut core = self.lock();
        core.attendants.is_ending = true;
        core.send_jobs();
        core.attendants.calls = None;
        let supervisor = core.attendants.supervisor.take();
        let caller = core.attendants.caller.take().filter(|_| also_calls);
        self.tell_all(&core);
        drop(core);
        for thread in [supervisor, caller].into_iter().flatten() {
            // A callback may drop the pool.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn call(jobs: &mpsc::Receiver<Job>, pool: &Weak<Dispatcher>) {
    for job in jobs {
        // Callbacks are caught one by one; this is for decoding and dropping what they see.
        let _ = panic::catch(false, job);
        if let Some(pool) = pool.upgrade() {
            pool.tell_all(&pool.lock());
        }
    }
}

impl fmt::Debug for Attendants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attendants")
            .field("supervisor", &self.supervisor)
            .field("caller", &self.caller)
            .field("n_jobs", &self.jobs.len())
            .finish_non_exhaustive()
    }
}

/// Makes a pool's parent side known to itself, for the threads that it may start.
pub(crate) fn acquaint(dispatcher: Dispatcher) -> Arc<Dispatcher> {
    let dispatcher = Arc::new(dispatcher);
    dispatcher.lock().attendants.pool = Arc::downgrade(&dispatcher);
    dispatcher
}
