//! The lock: one owner at a time, and always a next one, whoever is killed when.

use std::sync::Arc;
use std::time::Instant;

use loom::cell::UnsafeCell;
use loom::thread;

use super::super::lock::{RawLock, Refused, Taken};
use super::super::system;
use super::explore;

/// What a lock protects: 1 while it is half changed.
#[derive(Default)]
struct Guarded {
    lock: RawLock,
    data: UnsafeCell<u32>,
}

// SAFETY: the data is touched under the lock, or loom fails the test.
unsafe impl Sync for Guarded {}

impl Guarded {
    /// Changes the data under the lock, which has been taken.
    fn change(&self, taken: Taken) {
        // SAFETY: as above.
        let found = self
            .data
            .with_mut(|data| unsafe { std::mem::replace(&mut *data, 1) });
        assert!(found == 0 || taken == Taken::Abandoned, "nobody is told");
        system::call();
        // SAFETY: as above.
        self.data.with_mut(|data| unsafe { *data = 0 });
        self.lock.unlock();
    }

    fn lock_and_change(&self) {
        self.change(self.lock.lock(None).unwrap());
    }

    /// A thread that takes the lock, and is killed at its call number `kill_at`.
    fn thread(self: &Arc<Self>, tid: u32, kill_at: Option<u32>) -> thread::JoinHandle<()> {
        let guarded = Arc::clone(self);
        thread::spawn(move || {
            if system::run(tid, kill_at, || guarded.lock_and_change()).is_none() {
                guarded.lock.thread_ended();
            }
        })
    }
}

#[test]
fn loom_lock_excludes_and_wakes() {
    explore(3, || {
        let guarded = Arc::new(Guarded::default());
        let others = [1, 2].map(|tid| guarded.thread(tid, None));
        system::run(3, None, || guarded.lock_and_change());
        for other in others {
            other.join().unwrap();
        }
        system::run(3, None, || assert!(guarded.lock.try_lock().is_ok()));
    });
}

#[test]
fn loom_lock_of_a_dead_owner_goes_to_the_next() {
    for kill_at in 0..13 {
        explore(4, move || {
            let guarded = Arc::new(Guarded::default());
            let dying = guarded.thread(1, Some(kill_at));
            system::run(2, None, || guarded.lock_and_change());
            dying.join().unwrap();
            system::run(2, None, || guarded.lock_and_change());
        });
    }
}

/// Whoever is woken may be killed before it takes the lock: then another sleeper must be.
#[test]
fn loom_lock_outlives_a_waiter() {
    for kill_at in 0..13 {
        explore(3, move || {
            let guarded = Arc::new(Guarded::default());
            system::run(3, None, || {
                let taken = guarded.lock.lock(None).unwrap();
                let others = [guarded.thread(1, Some(kill_at)), guarded.thread(2, None)];
                guarded.change(taken);
                for other in others {
                    other.join().unwrap();
                }
                guarded.lock_and_change();
            });
        });
    }
}

/// Whoever is woken may be overtaken, and killed before it has asked to be woken again: then the
/// one who overtook it knows of no sleeper, and the next one finds out by itself.
#[test]
fn loom_lock_outlives_a_waiter_that_was_overtaken() {
    for kill_at in 0..13 {
        explore(2, move || {
            let guarded = Arc::new(Guarded::default());
            system::run(3, None, || {
                let taken = guarded.lock.lock(None).unwrap();
                let killed = guarded.thread(1, Some(kill_at));
                let waiting = guarded.thread(2, None);
                guarded.change(taken);
                if let Ok(taken) = guarded.lock.try_lock() {
                    guarded.change(taken);
                }
                killed.join().unwrap();
                system::seconds_pass();
                waiting.join().unwrap();
            });
        });
    }
}

#[test]
fn loom_lock_is_not_lost_on_who_gives_up() {
    explore(3, || {
        let guarded = Arc::new(Guarded::default());
        let waiting = guarded.thread(1, None);
        let impatient = Arc::clone(&guarded);
        let impatient = thread::spawn(move || {
            system::run(2, None, || {
                match impatient.lock.lock(Some(Instant::now())) {
                    Ok(taken) => impatient.change(taken),
                    Err(refused) => assert!(matches!(refused, Refused::Held)),
                }
            });
        });
        system::run(3, None, || guarded.lock_and_change());
        waiting.join().unwrap();
        impatient.join().unwrap();
    });
}

#[test]
fn loom_lock_tells_that_it_was_given_up() {
    explore(4, || {
        let guarded = Arc::new(Guarded::default());
        let other = Arc::clone(&guarded);
        let other = thread::spawn(move || {
            system::run(1, None, || {
                let taken = other.lock.lock(None).unwrap();
                if taken == Taken::Clean {
                    other.lock.unlock_abandoned();
                } else {
                    other.lock.unlock();
                }
                taken
            })
        });
        let own = system::run(2, None, || {
            let taken = guarded.lock.lock(None).unwrap();
            guarded.lock.unlock();
            taken
        });
        let other = other.join().unwrap();
        // Who comes second is told; who comes first has nothing to be told.
        assert_eq!(other, Some(Taken::Clean));
        let left = system::run(2, None, || guarded.lock.try_lock().unwrap()).unwrap();
        let told = [own.unwrap(), left];
        assert_eq!(told.iter().filter(|t| **t == Taken::Abandoned).count(), 1);
    });
}
