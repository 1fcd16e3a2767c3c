//! The lock that a process owns: one at a time, and nobody waits for one that has ended.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::super::lock::Taken;
use super::super::owned::OwnedLock;
use super::super::system;
use super::explore;

/// A lock, and what its owner may touch.
struct Guarded {
    lock: OwnedLock,
    data: UnsafeCell<u32>,
}

// SAFETY: the data is touched with the lock, or loom fails the test.
unsafe impl Send for Guarded {}
// SAFETY: as above.
unsafe impl Sync for Guarded {}

impl Guarded {
    fn new() -> Arc<Self> {
        let lock = OwnedLock::create().unwrap();
        // Makes the words, before a thread can be early.
        assert_eq!(lock.owner(), 0);
        Arc::new(Self {
            lock,
            data: UnsafeCell::new(0),
        })
    }

    fn take_and_change(&self) {
        let taken = self.lock.lock(None).unwrap().unwrap();
        // SAFETY: as above.
        let found = self
            .data
            .with_mut(|data| unsafe { std::mem::replace(&mut *data, 1) });
        assert!(found == 0 || taken == Taken::Abandoned, "nobody is told");
        system::call();
        // SAFETY: as above.
        self.data.with_mut(|data| unsafe { *data = 0 });
        assert!(self.lock.unlock());
    }

    /// A process that takes the lock, and is killed at its call number `kill_at`.
    fn process(self: &Arc<Self>, tid: u32, kill_at: Option<u32>) -> thread::JoinHandle<()> {
        let guarded = Arc::clone(self);
        thread::spawn(move || {
            if system::run(tid, kill_at, || guarded.take_and_change()).is_none() {
                system::process_ended();
                system::seconds_pass();
            }
        })
    }
}

#[test]
fn loom_owned_excludes_and_wakes() {
    explore(2, || {
        let guarded = Guarded::new();
        let others = [1, 2].map(|tid| guarded.process(tid, None));
        system::run(3, None, || guarded.take_and_change());
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(guarded.lock.owner(), 0);
    });
}

#[test]
fn loom_owned_outlives_its_owner() {
    for kill_at in 0..5 {
        explore(3, move || {
            let guarded = Guarded::new();
            let dying = guarded.process(1, Some(kill_at));
            system::run(2, None, || guarded.take_and_change());
            dying.join().unwrap();
        });
    }
}

#[test]
fn loom_owned_is_given_back_by_another() {
    explore(3, || {
        let guarded = Guarded::new();
        assert!(system::run(1, None, || guarded.lock.try_lock().unwrap().is_some()).unwrap());
        let other = guarded.process(2, None);
        system::run(3, None, || assert!(guarded.lock.unlock()));
        other.join().unwrap();
    });
}
