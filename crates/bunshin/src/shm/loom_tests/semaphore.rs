//! The semaphore: never more holders than permits, and a permit for all who wait, whoever dies.

use std::sync::Arc;
use std::time::Instant;

use loom::cell::UnsafeCell;
use loom::thread;

use super::super::lock::Taken;
use super::super::semaphore::SharedSemaphore;
use super::super::system;
use super::explore;

/// A semaphore of one permit, and what its holder may touch.
struct Guarded {
    semaphore: SharedSemaphore,
    data: UnsafeCell<u32>,
}

// SAFETY: the data is touched with the permit, or loom fails the test.
unsafe impl Send for Guarded {}
// SAFETY: as above.
unsafe impl Sync for Guarded {}

impl Guarded {
    fn new() -> Arc<Self> {
        let semaphore = SharedSemaphore::create(1, true).unwrap();
        // A segment's objects are made when they are first looked at; no thread may be that early.
        assert_eq!(semaphore.value(), 1);
        Arc::new(Self {
            semaphore,
            data: UnsafeCell::new(0),
        })
    }

    fn acquire_and_change(&self) {
        let (permit, taken) = self.semaphore.acquire(None).unwrap().unwrap();
        // SAFETY: as above.
        let found = self
            .data
            .with_mut(|data| unsafe { std::mem::replace(&mut *data, 1) });
        assert!(found == 0 || taken == Taken::Abandoned, "nobody is told");
        system::call();
        // SAFETY: as above.
        self.data.with_mut(|data| unsafe { *data = 0 });
        permit.give_back();
    }

    /// A thread that takes the permit, and is killed at its call number `kill_at`.
    fn thread(self: &Arc<Self>, tid: u32, kill_at: Option<u32>) -> thread::JoinHandle<()> {
        let guarded = Arc::clone(self);
        thread::spawn(move || {
            if system::run(tid, kill_at, || guarded.acquire_and_change()).is_none() {
                guarded.semaphore.thread_ended();
                system::seconds_pass();
            }
        })
    }
}

#[test]
fn loom_semaphore_excludes_and_wakes() {
    explore(2, || {
        let guarded = Guarded::new();
        let others = [1, 2].map(|tid| guarded.thread(tid, None));
        system::run(3, None, || guarded.acquire_and_change());
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(guarded.semaphore.value(), 1);
    });
}

#[test]
fn loom_semaphore_gets_the_permits_of_the_dead_back() {
    for kill_at in 0..12 {
        explore(2, move || {
            let guarded = Guarded::new();
            let dying = guarded.thread(1, Some(kill_at));
            system::run(2, None, || guarded.acquire_and_change());
            dying.join().unwrap();
            system::run(2, None, || guarded.acquire_and_change());
            assert_eq!(guarded.semaphore.value(), 1);
        });
    }
}

/// One place and a loose one: each release is acquired once.
#[test]
fn loom_semaphore_carries_signals() {
    explore(3, || {
        let semaphore = SharedSemaphore::create(0, false).unwrap();
        let other = semaphore.clone();
        let other = thread::spawn(move || {
            system::run(1, None, || {
                assert!(other.release());
                assert!(other.release());
            });
        });
        system::run(2, None, || {
            for _ in 0..2 {
                semaphore.acquire(None).unwrap().unwrap().0.consume();
            }
        });
        other.join().unwrap();
        assert_eq!(semaphore.value(), 0);
    });
}

#[test]
fn loom_semaphore_is_not_lost_on_who_gives_up() {
    explore(3, || {
        let semaphore = SharedSemaphore::create(0, false).unwrap();
        let waiting = semaphore.clone();
        let waiting = thread::spawn(move || {
            system::run(1, None, || {
                waiting.acquire(None).unwrap().unwrap().0.give_back();
            });
        });
        let impatient = semaphore.clone();
        let impatient = thread::spawn(move || {
            system::run(2, None, || {
                if let Some((permit, _)) = impatient.acquire(Some(Instant::now())).unwrap() {
                    permit.give_back();
                }
            });
        });
        system::run(3, None, || assert!(semaphore.release()));
        waiting.join().unwrap();
        impatient.join().unwrap();
        assert_eq!(semaphore.value(), 1);
    });
}
