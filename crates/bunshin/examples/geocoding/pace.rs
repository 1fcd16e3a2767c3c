//! At most so many requests a second, over all workers together.
//!
//! The time from which the next request may go out lies in shared memory. A worker
//! takes that time for itself, moves it on by one interval, and only then sleeps, so
//! that the lock is held for an instant and requests leave evenly spaced. The clock
//! is the system's monotonic one, which all processes read alike.

use std::thread;
use std::time::Duration;

use bunshin::{LockError, Value};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A shared limit on requests; every worker gets one end of the same `Value`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pace {
    /// When the next request may start, in seconds of the monotonic clock.
    next: Value<f64>,
    /// Seconds from one request to the next.
    interval: f64,
}

impl Pace {
    pub(crate) fn new(per_second: f64) -> Result<Pace, bunshin::Error> {
        Ok(Pace {
            next: Value::new(0.0)?,
            interval: per_second.recip(),
        })
    }

    /// Takes the next free moment and sleeps until it has come.
    pub(crate) fn wait(&self) -> Result<(), bunshin::Error> {
        let now = seconds();
        let start = self.update(|next| {
            let start = next.max(now);
            (start, start + self.interval)
        })?;
        if start > now {
            thread::sleep(Duration::from_secs_f64(start - now));
        }
        Ok(())
    }

    /// Lets no worker start a request before `pause` is over.
    pub(crate) fn hold_off(&self, pause: Duration) -> Result<(), bunshin::Error> {
        let until = seconds() + pause.as_secs_f64();
        self.update(|next| ((), next.max(until)))
    }

    /// Replaces the time of the next request under the lock.
    fn update<T>(&self, change: impl FnOnce(f64) -> (T, f64)) -> Result<T, bunshin::Error> {
        // A worker that is killed with the lock leaves either the old time or the new
        // one, which are both good.
        let mut next = self.next.lock().or_else(LockError::recover)?;
        let (result, changed) = change(*next);
        *next = changed;
        Ok(result)
    }
}

fn seconds() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
