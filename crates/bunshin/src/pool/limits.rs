//! Time limits: a task that runs for too long is ended together with its worker.
//!
//! Workers keep no time. Whoever drives the pool looks at the table every so often, and notes
//! since when each worker has been at the same task. At the limit the task is doomed, so that
//! its worker takes no other, and the worker is asked to end, with all processes below it;
//! after a grace they are killed. A task that its worker has taken and does not begin, since
//! the worker is stopped, goes to another worker.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dispatcher::Core;
use super::supervisor::GRACE;
use crate::process::Child;
use crate::shm::table::Held;
use crate::sys::process::{self, Sig};

/// How far apart looks at the table are, for limits of every length.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(50);

/// What is known of the tasks that may run for so long only.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// For each worker the ticket it is at, and since when.
    clocks: Vec<Option<(u32, Instant)>>,
    overdue: Vec<Overdue>,
}

/// A worker that has been asked to end.
#[derive(Debug)]
struct Overdue {
    kill_at: Instant,
    child: Arc<Child>,
    below: Vec<OwnedFd>,
}

impl Limits {
    /// Whether somebody has been asked to end, and may have to be killed.
    pub(crate) fn is_ending(&self) -> bool {
        !self.overdue.is_empty()
    }
}

impl Core {
    /// Ends what has run for too long; gives when to look again.
    pub(crate) fn check_limits(&mut self) -> Option<Instant> {
        if !self.state.has_limits() && !self.limits.is_ending() {
            return None;
        }
        let now = Instant::now();
        self.end_overdue(Some(now));
        let mut next = self.limits.overdue.iter().map(|it| it.kill_at).min();
        let mut look = LOOK_MAX;
        let mut at_work = vec![None; self.workers.len()];
        self.table.at_work(|worker, slot, ticket, held| {
            // Of several tasks in its hands a worker is at the one that has begun.
            if let Some(at @ (None | Some((_, _, Held::Claimed)))) = at_work.get_mut(worker) {
                if at.is_none() || held == Held::Running {
                    *at = Some((slot, ticket, held));
                }
            }
        });
        self.limits.clocks.resize(at_work.len(), None);
        for (worker, at) in at_work.into_iter().enumerate() {
            let limited = at.and_then(|(slot, ticket, held)| {
                let task = self.state.task(slot).filter(|task| task.ticket == ticket)?;
                Some((slot, ticket, held, task.limit?))
            });
            let Some((slot, ticket, held, limit)) = limited else {
                self.limits.clocks[worker] = None;
                continue;
            };
            let since = match self.limits.clocks[worker] {
                Some((known, since)) if known == ticket => since,
                _ => now,
            };
            self.limits.clocks[worker] = Some((ticket, since));
            look = look.min(limit / 10);
            let end = since.checked_add(limit);
            if end.is_none_or(|end| end > now) {
                next = [next, end].into_iter().flatten().min();
            } else if held == Held::Claimed {
                if self.table.withdraw(slot, ticket) {
                    let again = self.state.requeue(slot);
                    self.act(again.into_iter().collect());
                    self.wake_workers(true);
                }
            } else if self.table.doom(slot, ticket).is_some() {
                self.state.overdue(slot);
                self.ask_to_end(worker, now);
                next = [next, Some(now + GRACE)].into_iter().flatten().min();
            }
        }
        if self.state.has_limits() {
            let look = now + look.max(LOOK_MIN);
            next = Some(next.map_or(look, |next| next.min(look)));
        }
        next
    }

    fn ask_to_end(&mut self, worker: usize, now: Instant) {
        let Some(worker) = &self.workers[worker] else {
            return;
        };
        let child = Arc::clone(&worker.child);
        let below = process::descendants(child.pid());
        for process in &below {
            let _ = process::signal(process.as_fd(), Sig::TERM);
        }
        let _ = child.signal(Sig::TERM);
        self.limits.overdue.push(Overdue {
            kill_at: now + GRACE,
            child,
            below,
        });
    }

    /// Kills those that have been asked to end and have had their time by now, or all.
    pub(crate) fn end_overdue(&mut self, now: Option<Instant>) {
        self.limits.overdue.retain(|overdue| {
            let is_time = now.is_none_or(|now| overdue.kill_at <= now);
            if is_time {
                // What it has started since then, if it is still there to be asked.
                if !overdue.child.is_collected() {
                    for process in process::descendants(overdue.child.pid()) {
                        let _ = process::signal(process.as_fd(), Sig::KILL);
                    }
                }
                for process in &overdue.below {
                    let _ = process::signal(process.as_fd(), Sig::KILL);
                }
                let _ = overdue.child.signal(Sig::KILL);
            }
            let is_over = overdue.child.is_collected() && overdue.below.is_empty();
            !is_time && !is_over
        });
    }
}
