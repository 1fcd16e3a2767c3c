//! Bunshin's locks and signals, through its public interface.

use bunshin::{Barrier, Condition, Event, Lock, RLock, Semaphore, Value};

use crate::measure::Result;
use crate::workload::Work;
use crate::workload::locks::{self, Excludes, Far, Meets, Signals};

struct ByLock(Lock);

impl Excludes for ByLock {
    fn within(&self, work: impl FnOnce()) -> Result<()> {
        let _held = self.0.lock()?;
        work();
        Ok(())
    }
}

struct ByRLock(RLock);

impl Excludes for ByRLock {
    fn within(&self, work: impl FnOnce()) -> Result<()> {
        let _held = self.0.lock()?;
        work();
        Ok(())
    }
}

struct BySemaphore(Semaphore);

impl Excludes for BySemaphore {
    fn within(&self, work: impl FnOnce()) -> Result<()> {
        let _permit = self.0.acquire()?;
        work();
        Ok(())
    }
}

struct ByCondition {
    is_signalled: Value<[u8; 2]>,
    changed: Condition,
}

impl Signals for ByCondition {
    fn signal(&self, side: usize) -> Result<()> {
        self.is_signalled.lock()?[side] = 1;
        self.changed.notify(1);
        Ok(())
    }

    fn wait(&self, side: usize) -> Result<()> {
        let held = self.is_signalled.lock()?;
        let mut held = self.changed.wait_for(held, |flags| flags[side] == 1)?;
        held[side] = 0;
        Ok(())
    }
}

struct ByEvents([Event; 2]);

impl Signals for ByEvents {
    fn signal(&self, side: usize) -> Result<()> {
        self.0[side].set();
        Ok(())
    }

    fn wait(&self, side: usize) -> Result<()> {
        self.0[side].wait();
        self.0[side].clear();
        Ok(())
    }
}

struct BySemaphores([Semaphore; 2]);

impl Signals for BySemaphores {
    fn signal(&self, side: usize) -> Result<()> {
        Ok(self.0[side].release()?)
    }

    fn wait(&self, side: usize) -> Result<()> {
        self.0[side].acquire()?.forget();
        Ok(())
    }
}

impl Meets for Barrier {
    fn meet(&self) -> Result<()> {
        self.wait()?;
        Ok(())
    }
}

pub fn lock_pair(work: &Work) -> Result<f64> {
    locks::pair(work, ByLock(Lock::new()?))
}

pub fn rlock_pair(work: &Work) -> Result<f64> {
    locks::pair(work, ByRLock(RLock::new()?))
}

pub fn semaphore_pair(work: &Work) -> Result<f64> {
    locks::pair(work, BySemaphore(Semaphore::new(1)?))
}

pub fn lock_contended(work: &Work) -> Result<f64> {
    locks::contended(work, Far::Process, ByLock(Lock::new()?))
}

pub fn semaphore_contended(work: &Work) -> Result<f64> {
    locks::contended(work, Far::Process, BySemaphore(Semaphore::new(1)?))
}

pub fn condition_round_trip(work: &Work) -> Result<f64> {
    let signals = ByCondition {
        is_signalled: Value::new([0, 0])?,
        changed: Condition::new()?,
    };
    locks::round_trip(work, Far::Process, signals)
}

pub fn event_round_trip(work: &Work) -> Result<f64> {
    let events = [Event::new()?, Event::new()?];
    locks::round_trip(work, Far::Process, ByEvents(events))
}

pub fn semaphore_round_trip(work: &Work) -> Result<f64> {
    let semaphores = [Semaphore::new(0)?, Semaphore::new(0)?];
    locks::round_trip(work, Far::Process, BySemaphores(semaphores))
}

pub fn barrier_meetings(work: &Work) -> Result<f64> {
    locks::meetings(work, Far::Process, Barrier::new(2)?)
}
