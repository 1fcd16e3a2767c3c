//! `parking_lot`: locks between threads, what there is to reach within one process.

use parking_lot::{Condvar, Mutex};

use crate::measure::Result;
use crate::workload::Work;
use crate::workload::locks::{self, Excludes, Far, Signals};

#[derive(Default)]
struct Locked {
    is_signalled: Mutex<[bool; 2]>,
    changed: Condvar,
}

impl Excludes for Locked {
    fn within(&self, work: impl FnOnce()) -> Result<()> {
        let _held = self.is_signalled.lock();
        work();
        Ok(())
    }
}

impl Signals for Locked {
    fn signal(&self, side: usize) -> Result<()> {
        self.is_signalled.lock()[side] = true;
        // The other side may be the one that still waits for its own signal.
        self.changed.notify_all();
        Ok(())
    }

    fn wait(&self, side: usize) -> Result<()> {
        let mut held = self.is_signalled.lock();
        while !std::mem::replace(&mut held[side], false) {
            self.changed.wait(&mut held);
        }
        Ok(())
    }
}

pub fn pair(work: &Work) -> Result<f64> {
    locks::pair(work, Locked::default())
}

pub fn contended(work: &Work) -> Result<f64> {
    locks::contended(work, Far::Thread, Locked::default())
}

pub fn round_trip(work: &Work) -> Result<f64> {
    locks::round_trip(work, Far::Thread, Locked::default())
}
