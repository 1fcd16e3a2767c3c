//! The queue and its sides: no item is lost or comes twice, and nobody sleeps for ever,
//! whoever is killed when.

use std::cell::Cell;
use std::sync::Arc;

use loom::thread::{self, JoinHandle};

use super::super::queue::{Outside, Queue, Refusal};
use super::super::side::{Limit, Until};
use super::super::system;
use super::explore;
use crate::error::Result;

/// No handles, and a bell that nobody has asked for.
struct Nothing;

impl Outside for Nothing {
    fn send_handles(&self, _lot: u64) -> Result<()> {
        Ok(())
    }

    fn fetch_handles(&self, _lot: u64, _count: usize) -> Result<()> {
        Ok(())
    }

    fn drop_handles(&self) {}

    fn light(&self) {}

    fn darken(&self) {}
}

const FOREVER: Limit = Limit {
    ready: Until::Forever,
    held: Until::Forever,
};

fn queue(capacity: u64) -> Arc<Queue> {
    Arc::new(Queue::create(capacity).unwrap())
}

fn send(queue: &Queue, byte: u8) {
    queue.push(&[&[byte]], 0, FOREVER, &Nothing).unwrap();
}

/// The next item, or `None` at the end.
fn take(queue: &Queue) -> Option<u8> {
    let mut body = Vec::new();
    match queue.pop(&mut body, FOREVER, &Nothing, &()) {
        Ok(_) => Some(body[0]),
        Err(Refusal::Closed) => None,
        Err(refusal) => panic!("{refusal:?}"),
    }
}

/// Runs `work` in a thread that is killed at its call number `kill_at`.
fn start<R: 'static>(
    queue: &Arc<Queue>,
    tid: u32,
    kill_at: Option<u32>,
    work: impl FnOnce(&Queue) -> R + 'static,
) -> JoinHandle<Option<R>> {
    let queue = Arc::clone(queue);
    thread::spawn(move || {
        let done = system::run(tid, kill_at, || work(&queue));
        if done.is_none() {
            queue.thread_ended();
            // Who was not asleep yet, so that the kernel could not wake it (see `side.rs`).
            system::seconds_pass();
        }
        done
    })
}

#[test]
fn loom_queue_gives_each_item_to_one() {
    explore(1, || {
        let queue = queue(0);
        let takers = [1, 2].map(|tid| start(&queue, tid, None, take));
        system::run(3, None, || {
            send(&queue, 1);
            send(&queue, 2);
        });
        let mut taken = takers.map(|taker| taker.join().unwrap().flatten());
        taken.sort_unstable();
        assert_eq!(taken, [Some(1), Some(2)]);
        assert!(queue.is_empty());
    });
}

#[test]
fn loom_queue_that_is_full_wakes_a_producer() {
    explore(2, || {
        let queue = queue(1);
        let producer = start(&queue, 1, None, |queue| {
            (1..=3).for_each(|n| send(queue, n))
        });
        system::run(2, None, || {
            assert_eq!([(); 3].map(|()| take(&queue)), [1, 2, 3].map(Some));
        });
        producer.join().unwrap();
    });
}

#[test]
fn loom_queue_that_is_closed_wakes_everybody() {
    explore(1, || {
        let queue = queue(0);
        let takers = [1, 2].map(|tid| start(&queue, tid, None, take));
        system::run(3, None, || queue.close(&Nothing).unwrap());
        for taker in takers {
            assert_eq!(taker.join().unwrap(), Some(None));
        }
    });
}

/// The item of a killed producer never was, or it is there and somebody is woken for it.
#[test]
fn loom_queue_outlives_a_producer() {
    for kill_at in 0..12 {
        explore(2, move || {
            let queue = queue(0);
            let killed = start(&queue, 1, Some(kill_at), |queue| send(queue, 1));
            let taker = start(&queue, 2, None, |queue| (take(queue), take(queue)));
            killed.join().unwrap();
            system::run(3, None, || {
                if queue.sent() == 0 {
                    send(&queue, 1);
                }
                send(&queue, 2);
            });
            assert_eq!(taker.join().unwrap(), Some((Some(1), Some(2))));
        });
    }
}

/// A taker sleeps, and the one item there is comes from a producer that is killed after
/// it: nobody else would wake the taker.
#[test]
fn loom_queue_wakes_for_the_last_item_of_a_producer() {
    for kill_at in 0..12 {
        explore(2, move || {
            let queue = queue(0);
            let taker = start(&queue, 2, None, take);
            let killed = start(&queue, 1, Some(kill_at), |queue| send(queue, 1));
            killed.join().unwrap();
            if queue.sent() == 0 {
                system::run(3, None, || queue.close(&Nothing).unwrap());
                assert_eq!(taker.join().unwrap(), Some(None));
            } else {
                assert_eq!(taker.join().unwrap(), Some(Some(1)));
            }
        });
    }
}

/// Whoever is killed asleep, woken, or inside, leaves the item or took it; and the other one
/// gets what is left, without being woken by anybody else.
#[test]
fn loom_queue_outlives_a_consumer() {
    // Asleep, woken, and inside: all of them would take many minutes with three threads.
    for kill_at in [1, 3, 6] {
        explore(1, move || {
            let queue = queue(0);
            let killed = start(&queue, 1, Some(kill_at), |queue| take(queue));
            let other = start(&queue, 2, None, take);
            system::run(3, None, || {
                send(&queue, 1);
                send(&queue, 2);
            });
            let other = other.join().unwrap().flatten();
            assert!(other == Some(1) || other == Some(2), "{other:?}");
            let killed = killed.join().unwrap().flatten();
            assert_ne!(killed, other, "an item came twice");
            // In order, whatever was taken.
            let left = queue.len();
            let last = Cell::new(0);
            system::run(3, None, || {
                for _ in 0..left {
                    last.set(take(&queue).unwrap());
                }
            });
            assert!(left <= 1 && (left == 0 || last.get() == 2));
        });
    }
}

/// Likewise on the other side.
#[test]
fn loom_queue_outlives_a_consumer_that_makes_room() {
    for kill_at in 0..12 {
        explore(2, move || {
            let queue = queue(1);
            system::run(3, None, || send(&queue, 1));
            let producer = start(&queue, 2, None, |queue| send(queue, 2));
            let killed = start(&queue, 1, Some(kill_at), |queue| take(queue));
            killed.join().unwrap();
            if !queue.is_empty() && queue.sent() == 1 {
                // It was killed before it took it.
                assert_eq!(system::run(3, None, || take(&queue)), Some(Some(1)));
            }
            producer.join().unwrap();
            assert_eq!(system::run(3, None, || take(&queue)), Some(Some(2)));
        });
    }
}
