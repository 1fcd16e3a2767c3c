//! Waiting, and doing the pool's work meanwhile.
//!
//! Whoever waits for something of a pool collects results, replaces workers, fills the table
//! from the backlog and enforces time limits. Of several threads that wait, one watches the
//! workers, and the others wait for it (`Core::is_watched`).

use std::time::{Duration, Instant};

use super::dispatcher::{Core, Dispatcher, Outcome};
use super::held::Held;
use super::state::Phase;
use super::supervisor::watch;
use crate::error::{Error, ErrorKind, Result};
use crate::shm::table::SLOTS;
use crate::sys::{awake, socket, thread};

/// How long the one who watches sleeps while there are tasks that nobody takes: a worker
/// that was about to may have been stopped.
const NUDGE: Duration = Duration::from_millis(50);
/// Ticks that the parent spins at most for a result.
pub(crate) const SPIN_MAX: u64 = 100_000;
/// Whoever was woken after fewer ticks would have done better to spin: the longest spin, and
/// about what it takes to wake up.
pub(crate) const WORTH: u64 = 2 * SPIN_MAX;

/// How few tasks are to be left in the queue before it is worth waking up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LowWater {
    At(usize),
    /// Half of those that there are now: for who waits for one of them.
    Half,
}

impl Dispatcher {
    /// Does the pool's work until `done`, which is asked under the lock. False if the time
    /// was up before; an error in a forked child, where it is the parent's work.
    pub(crate) fn drive(
        &self,
        low_water: LowWater,
        deadline: Option<Instant>,
        mut done: impl FnMut(&mut Core) -> bool,
    ) -> Result<bool> {
        self.check_ours()?;
        let mut core = self.lock();
        loop {
            core.collect();
            let next_look = core.check_limits();
            core.send_jobs();
            self.tell_news(&mut core);
            if done(&mut core) {
                return Ok(true);
            }
            if let Some(job) = core.own_job() {
                drop(core);
                job();
                core = self.lock();
                core.attendants.is_calling = false;
                self.tell_all(&core);
                continue;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            let until = [deadline, next_look].into_iter().flatten().min();
            if core.is_watched {
                core = self.sleep(core, deadline);
                continue;
            }
            core.is_watched = true;
            let waited = self.watch_once(core, low_water, until, &mut done);
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
            // Somebody else may have to watch now.
            self.tell_asleep(&core);
            handled?;
        }
    }

    pub(crate) fn sleep<'a>(&'a self, mut core: Held<'a>, deadline: Option<Instant>) -> Held<'a> {
        core.n_asleep += 1;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut core = core.wait(&self.changed, left);
        core.n_asleep -= 1;
        core
    }

    fn tell_asleep(&self, core: &Core) {
        if core.n_asleep > 0 {
            self.changed.notify_all();
        }
    }

    /// Has all who wait look again, also the one who watches.
    pub(crate) fn tell_all(&self, core: &Core) {
        self.tell_asleep(core);
        if core.is_watched {
            // It may be asleep over descriptors that will never be ready.
            use std::os::fd::AsFd;
            socket::event_set(self.kick.as_fd());
        }
        self.call_on_duty(core);
    }

    /// Has those look again for whom something has been found.
    pub(crate) fn tell_news(&self, core: &mut Core) {
        if core.posts.take_news() || core.state.has_other_mail(0) {
            self.tell_asleep(core);
        }
    }

    /// As `tell_news`, for who looks after one batch.
    pub(crate) fn tell_others(&self, core: &mut Core, batch: u64) {
        core.send_jobs();
        if core.posts.take_news() || core.state.has_other_mail(batch) {
            self.tell_asleep(core);
        }
    }

    /// Waits until there is something for a batch.
    pub(crate) fn wait(
        &self,
        batch: u64,
        low_water: LowWater,
        deadline: Option<Instant>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        self.drive(low_water, deadline, |core| {
            core.take_outcomes(batch, outcomes);
            // Whoever started the workers has to start others.
            !outcomes.is_empty() || !core.vacant.is_empty()
        })
        .map(|_| ())
    }

    /// Waits for a while for room in the table, which others fill.
    pub(crate) fn wait_for_room(&self) -> Result<()> {
        let deadline = Instant::now() + NUDGE / 10;
        self.drive(LowWater::At(SLOTS / 2), Some(deadline), |core| {
            // Results that nobody has taken are read out of the table by who takes slots next.
            core.state.n_free() > 0 || !core.state.untaken().is_empty() || !core.vacant.is_empty()
        })
        .map(|_| ())
    }

    /// Spins or sleeps until a worker has something to say.
    fn watch_once<'a>(
        &'a self,
        mut core: Held<'a>,
        low_water: LowWater,
        until: Option<Instant>,
        done: &mut impl FnMut(&mut Core) -> bool,
    ) -> Result<(Vec<usize>, bool)> {
        let nothing = || Ok((Vec::new(), false));
        let mut spin = core.spin;
        let mut since = 0;
        let table = &self.table;
        table.set_parent_cpu(thread::cpu());
        // With a queue there is time to sleep, and workers need the processor more.
        if table.waiting() <= self.n_workers {
            let seen = core.seen.clone();
            drop(core);
            let here = table.are_all_on(table.parent_cpu());
            since = thread::ticks();
            let found = linger(&mut spin, here, || table.any_finished(&seen));
            core = self.lock();
            core.spin = spin;
            // Another thread may have taken what is waited for out of the table meanwhile.
            if found || done(&mut core) {
                return nothing();
            }
        }
        let low_water = match low_water {
            _ if core.posts.has_backlog() || core.has_unpushed() => SLOTS / 2,
            // Futures wait for some of them, as `Half` is for.
            LowWater::At(_) if core.is_awaited() => table.waiting() / 2,
            LowWater::At(tasks) => tasks,
            LowWater::Half => table.waiting() / 2,
        };
        table.arm_parent(low_water);
        let is_waiting = table.waiting() > 0;
        if table.any_finished(&core.seen) && table.waiting() <= low_water {
            table.disarm_parent();
            return nothing();
        }
        let watched = core.watched();
        if watched.is_empty() {
            table.disarm_parent();
            core.bury_dead();
            return Err(Error::new(ErrorKind::Closed, "the pool has no workers"));
        }
        drop(core);
        let nudge = is_waiting.then(|| Instant::now() + NUDGE);
        let until = [until, nudge].into_iter().flatten().min();
        let result = watch(&watched, &self.kick, until);
        table.disarm_parent();
        if let Ok((sent, false)) = &result {
            if sent.is_empty() && is_waiting {
                let core = self.lock();
                core.wake_workers(true);
            } else if thread::ticks().wrapping_sub(since) < WORTH {
                // Sleeping took longer than what it was for.
                self.lock().spin = SPIN_MAX;
            }
        }
        result
    }

    /// Waits for the workers of a closed pool, and for what is still to be called.
    pub(crate) fn join(&self) -> Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        if matches!(self.lock().state.phase(), Phase::Open) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "join a pool that is still open: close or terminate it first",
            ));
        }
        loop {
            let soon = Instant::now() + NUDGE;
            let is_over = self.drive(LowWater::At(0), Some(soon), |core| {
                if core.is_idle() || *core.state.phase() != Phase::Closed {
                    core.dismiss(false);
                }
                core.bury_dead();
                core.watched().is_empty() && !core.has_own_jobs()
            })?;
            if is_over {
                break;
            }
        }
        self.end_attendants(true);
        Ok(())
    }
}

/// Waits awake for a moment; `here` says that those who are waited for are on this processor.
fn linger(spin: &mut u64, here: bool, done: impl Fn() -> bool) -> bool {
    if here || thread::recent_cpus() == 1 {
        return (0..4).any(|_| {
            thread::give_way();
            done()
        });
    }
    awake::spin(spin, SPIN_MAX, done)
}
