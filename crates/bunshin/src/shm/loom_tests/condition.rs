//! The condition: each notification wakes one who waits and lives, whoever dies.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::super::condition::SharedCondition;
use super::super::lock::{RawLock, Taken};
use super::super::system;
use super::explore;

/// A stock of items behind a lock, and a condition for those who want one.
struct Stock {
    lock: RawLock,
    changed: SharedCondition,
    items: UnsafeCell<u32>,
}

// SAFETY: the items are touched under the lock, or loom fails the test.
unsafe impl Send for Stock {}
// SAFETY: as above.
unsafe impl Sync for Stock {}

impl Stock {
    fn new() -> Arc<Self> {
        let changed = SharedCondition::create().unwrap();
        changed.notify_all();
        // Makes all places, before a thread can be early.
        changed.thread_ended();
        Arc::new(Self {
            lock: RawLock::default(),
            changed,
            items: UnsafeCell::new(0),
        })
    }

    fn lock(&self) {
        self.lock.lock(None).unwrap();
    }

    fn items(&self) -> u32 {
        // SAFETY: as above.
        self.items.with(|items| unsafe { *items })
    }

    fn set(&self, to: u32) {
        // SAFETY: as above.
        self.items.with_mut(|items| unsafe { *items = to });
    }

    fn put(&self, n: u32) {
        self.lock();
        self.set(self.items() + n);
        self.lock.unlock();
    }

    fn put_one_if_there_is_none(&self) {
        let taken = self.lock.lock(None).unwrap();
        let is_empty = self.items() == 0;
        if is_empty {
            self.set(1);
        }
        self.lock.unlock();
        // Whoever died with the lock may have been notified of what is still there.
        if is_empty || taken == Taken::Abandoned {
            self.changed.notify(1);
        }
    }

    fn take(&self) {
        self.lock();
        while self.items() == 0 {
            let waiter = self.changed.begin().unwrap();
            self.lock.unlock();
            waiter.sleep(None);
            self.lock();
            drop(waiter);
        }
        self.set(self.items() - 1);
        self.lock.unlock();
    }

    /// A thread that takes an item, and is killed at its call number `kill_at`.
    fn taker(self: &Arc<Self>, tid: u32, kill_at: Option<u32>) -> thread::JoinHandle<()> {
        let stock = Arc::clone(self);
        thread::spawn(move || {
            if system::run(tid, kill_at, || stock.take()).is_none() {
                stock.changed.thread_ended();
                stock.lock.thread_ended();
                system::seconds_pass();
            }
        })
    }
}

#[test]
fn loom_condition_loses_no_notification() {
    explore(3, || {
        let stock = Stock::new();
        let taker = stock.taker(1, None);
        system::run(2, None, || {
            stock.put(1);
            stock.changed.notify(1);
        });
        taker.join().unwrap();
    });
}

#[test]
fn loom_condition_notifies_as_many_as_it_is_told() {
    explore(2, || {
        let stock = Stock::new();
        let takers = [1, 2].map(|tid| stock.taker(tid, None));
        system::run(3, None, || {
            for _ in 0..2 {
                stock.put(1);
                stock.changed.notify(1);
            }
        });
        for taker in takers {
            taker.join().unwrap();
        }
    });
}

/// One more than there are places: one waits in the crowd.
#[test]
fn loom_condition_notifies_all() {
    explore(1, || {
        let stock = Stock::new();
        let takers = [1, 2].map(|tid| stock.taker(tid, None));
        let other = Arc::clone(&stock);
        let notifier = thread::spawn(move || {
            system::run(3, None, || {
                other.put(3);
                other.changed.notify_all();
            });
        });
        system::run(4, None, || stock.take());
        notifier.join().unwrap();
        for taker in takers {
            taker.join().unwrap();
        }
    });
}

/// One of two takers is killed. If it leaves the item, the other one gets it with no further
/// notification; who takes it sees to it that there is one more. (It sleeps at its call 10.)
#[test]
fn loom_condition_hands_on_what_the_dead_were_notified_of() {
    for kill_at in 8..18 {
        explore(2, move || {
            let stock = Stock::new();
            let dying = Arc::clone(&stock);
            let dying = thread::spawn(move || {
                if system::run(1, Some(kill_at), || dying.take()).is_none() {
                    dying.changed.thread_ended();
                    dying.lock.thread_ended();
                    system::seconds_pass();
                }
                system::run(3, None, || dying.put_one_if_there_is_none());
            });
            let living = Arc::clone(&stock);
            let living = thread::spawn(move || {
                system::run(2, None, || {
                    living.take();
                    living.put_one_if_there_is_none();
                });
            });
            system::run(4, None, || {
                stock.put(1);
                stock.changed.notify(1);
            });
            dying.join().unwrap();
            living.join().unwrap();
        });
    }
}

/// A notifier of all that is killed half-way has notified all or none.
#[test]
fn loom_condition_outlives_its_notifier() {
    for kill_at in 0..6 {
        explore(2, move || {
            let stock = Stock::new();
            let takers = [1].map(|tid| stock.taker(tid, None));
            let other = Arc::clone(&stock);
            system::run(3, None, || stock.put(1));
            let is_done = thread::spawn(move || {
                let done = system::run(4, Some(kill_at), || other.changed.notify_all());
                if done.is_none() {
                    other.changed.thread_ended();
                    system::seconds_pass();
                }
                done.is_some()
            });
            let is_done = is_done.join().unwrap();
            if !is_done {
                // It may have been killed before it began.
                system::run(3, None, || stock.changed.notify_all());
            }
            for taker in takers {
                taker.join().unwrap();
            }
        });
    }
}
