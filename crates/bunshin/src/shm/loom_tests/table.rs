//! The task table: each task is claimed once, and nobody sleeps over one. As `pool` uses it.

use std::sync::Arc;

use loom::thread;

use super::super::table::{Claim, Held, Table};
use super::{Socket, explore};

struct Pool {
    table: Table,
    to_parent: Socket,
    to_worker: Vec<Socket>,
}

impl Pool {
    fn new(workers: usize) -> Arc<Self> {
        let table = Table::create(workers).unwrap();
        for worker in 0..workers {
            table.reset_worker(worker);
        }
        Arc::new(Self {
            table,
            to_parent: Socket::default(),
            to_worker: (0..workers).map(|_| Socket::default()).collect(),
        })
    }

    fn push(&self, slot: u32, ticket: u32) {
        self.table.put(slot, 0, &[ticket as u8]);
        while !self.table.push(slot, ticket) {
            thread::yield_now();
        }
    }

    fn wake(&self) {
        let mut wake = Vec::new();
        self.table.sleepers(false, &mut wake);
        for worker in wake {
            self.to_worker[worker].ring();
        }
    }

    /// The tickets of all tasks that this worker can get now.
    fn claim_all(&self, worker: usize) -> Vec<u32> {
        std::iter::from_fn(|| self.table.claim(worker))
            .map(|claim| self.look(claim))
            .collect()
    }

    fn look(&self, claim: Claim) -> u32 {
        let mut body = [0];
        self.table.get(claim.slot, 0, &mut body);
        assert_eq!(u32::from(body[0]), claim.ticket, "the task of another");
        claim.ticket
    }

    /// A worker's life; gives the number of tasks it had.
    fn work(&self, worker: usize) -> usize {
        let mut done = 0;
        loop {
            if let Some(claim) = self.table.claim(worker) {
                assert!(self.table.begin(worker, claim), "nobody withdraws it");
                let ticket = self.look(claim);
                self.table.put(claim.slot, 0, &[ticket as u8 + 100]);
                match self.table.finish(worker, claim, false) {
                    Some(true) => self.to_parent.ring(),
                    Some(false) => {}
                    None => panic!("nobody dooms it"),
                }
                done += 1;
                continue;
            }
            if self.table.is_closing() {
                return done;
            }
            self.table.set_searching(worker);
            if self.table.has_tasks() {
                self.table.set_busy(worker);
                continue;
            }
            self.table.arm_worker(worker);
            if !(self.table.has_tasks() || self.table.is_closing()) {
                self.to_worker[worker].read();
            }
            self.table.set_busy(worker);
        }
    }

    /// The parent's wait for so many results; gives their tickets.
    fn collect(&self, count: usize, low_water: usize) -> Vec<u32> {
        let mut seen = vec![0; self.to_worker.len()];
        let mut tickets = Vec::new();
        loop {
            for (worker, seen) in seen.iter_mut().enumerate() {
                self.table.finished(worker, seen, |slot| {
                    let ticket = self.table.is_done(slot).expect("it is finished");
                    let mut body = [0];
                    self.table.get(slot, 0, &mut body);
                    assert_eq!(u32::from(body[0]), ticket + 100, "half a result");
                    self.table.free(slot);
                    tickets.push(ticket);
                });
            }
            if tickets.len() == count {
                return tickets;
            }
            self.table.arm_parent(low_water);
            if !(self.table.any_finished(&seen) && self.table.waiting() <= low_water) {
                self.to_parent.read();
            }
            self.table.disarm_parent();
        }
    }

    fn close(&self) {
        self.table.close();
        self.to_worker.iter().for_each(Socket::ring);
    }
}

fn assert_once(lists: impl IntoIterator<Item = Vec<u32>>, expected: &[u32]) {
    let mut all: Vec<u32> = lists.into_iter().flatten().collect();
    all.sort_unstable();
    assert_eq!(all, expected, "each exactly once");
}

#[test]
fn loom_table_gives_each_task_to_one_worker() {
    explore(3, || {
        let pool = Pool::new(3);
        let workers = [0, 1].map(|worker| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || pool.claim_all(worker))
        });
        pool.push(0, 1);
        pool.push(1, 2);
        let taken = workers.map(|worker| worker.join().unwrap());
        let rest = pool.claim_all(2);
        assert_once(taken.into_iter().chain([rest]), &[1, 2]);
        assert!(!pool.table.has_tasks());
    });
}

/// The third task's entry takes the place of the first's, which a worker may just be reading.
#[test]
fn loom_table_uses_entries_and_slots_again() {
    explore(3, || {
        let pool = Pool::new(3);
        pool.push(0, 1);
        pool.push(1, 2);
        let workers = [0, 1].map(|worker| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || pool.table.claim(worker).map(|claim| pool.look(claim)))
        });
        let own = pool.table.claim(2).map(|claim| {
            let ticket = pool.look(claim);
            pool.table.free(claim.slot);
            pool.push(claim.slot, 3);
            ticket
        });
        let taken = workers.map(|worker| worker.join().unwrap());
        let rest = pool.claim_all(2);
        let taken = taken.into_iter().chain([own]).flatten().collect();
        let expected: &[u32] = if own.is_some() { &[1, 2, 3] } else { &[1, 2] };
        assert_once([taken, rest], expected);
    });
}

#[test]
fn loom_table_is_not_held_up_by_a_dead_worker() {
    explore(3, || {
        let pool = Pool::new(3);
        pool.push(0, 1);
        pool.push(1, 2);
        let dying = Arc::clone(&pool);
        // Claims, and dies before it moves the head.
        let dying = thread::spawn(move || dying.table.claim_entry(0, 0).is_some());
        let worker = Arc::clone(&pool);
        let worker = thread::spawn(move || worker.claim_all(1));
        let claimed = dying.join().unwrap();
        let held = pool.table.held_by(0);
        assert_eq!(held.len(), usize::from(claimed));
        for (slot, ticket, held) in held {
            assert_eq!((ticket, held), (1, Held::Claimed));
            pool.push(slot, 3);
        }
        let rest = pool.claim_all(2);
        let expected: &[u32] = if claimed { &[2, 3] } else { &[1, 2] };
        assert_once([worker.join().unwrap(), rest], expected);
        assert!(!pool.table.has_tasks());
    });
}

/// A task is begun or withdrawn, and if begun finished or doomed, never both.
#[test]
fn loom_table_withdraws_or_begins() {
    explore(3, || {
        let pool = Pool::new(2);
        pool.push(0, 1);
        let worker = Arc::clone(&pool);
        let worker = thread::spawn(move || {
            let claim = worker.table.claim(0)?;
            if !worker.table.begin(0, claim) {
                return Some((false, false));
            }
            Some((true, worker.table.finish(0, claim, false).is_some()))
        });
        let withdrawn = pool.table.withdraw(0, 1);
        let doomed = pool.table.doom(0, 1);
        if withdrawn {
            // The slot is used again, while the worker may still hold its old claim.
            pool.push(0, 2);
        }
        let fate = worker.join().unwrap();
        let (begun, finished) = match fate {
            // It may have got the second task.
            Some((begun, finished)) if withdrawn && begun => {
                (!pool.claim_all(1).is_empty(), finished)
            }
            Some(fate) => fate,
            None => (false, false),
        };
        assert!(!(withdrawn && begun), "both withdrawn and begun");
        assert!(
            doomed.is_none() || (begun && !finished),
            "both doomed and finished"
        );
        assert_eq!(doomed.unwrap_or(0), 0);
    });
}

/// Two tasks that come one by one while one worker searches and the other sleeps: both are
/// taken, though the first worker does nothing after its claim.
#[test]
fn loom_table_counts_a_searching_worker_once() {
    explore(3, || {
        let pool = Pool::new(2);
        pool.table.set_searching(0);
        pool.table.arm_worker(1);
        let searching = Arc::clone(&pool);
        let searching = thread::spawn(move || {
            if !searching.table.has_tasks() {
                return false;
            }
            searching.table.set_busy(0);
            // It has a task, and runs it for ever.
            searching.table.claim(0).is_some()
        });
        let mut rung = Vec::new();
        for (slot, ticket) in [(0, 1), (1, 2)] {
            pool.push(slot, ticket);
            pool.table.sleepers(false, &mut rung);
        }
        let took = searching.join().unwrap();
        let left = pool.table.waiting();
        assert_eq!(left, 2 - usize::from(took));
        assert!(rung.contains(&1), "a task is left that nobody will take");
    });
}

fn round_trip(workers: usize, low_water: usize, preemptions: usize) {
    explore(preemptions, move || {
        let pool = Pool::new(workers);
        let running: Vec<_> = (0..workers)
            .map(|worker| {
                let pool = Arc::clone(&pool);
                thread::spawn(move || pool.work(worker))
            })
            .collect();
        for (slot, ticket) in [(0, 1), (1, 2)] {
            pool.push(slot, ticket);
            pool.wake();
        }
        assert_once([pool.collect(2, low_water)], &[1, 2]);
        pool.close();
        let done: usize = running.into_iter().map(|w| w.join().unwrap()).sum();
        assert_eq!(done, 2);
    });
}

#[test]
fn loom_table_wakes_parent_and_worker() {
    round_trip(1, 0, 3);
    round_trip(1, 1, 3);
}

#[test]
fn loom_table_wakes_parent_and_workers() {
    round_trip(2, 0, 2);
}
