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
        self.table.push(slot, ticket);
    }

    fn wake(&self, tasks: usize) {
        let mut wake = Vec::new();
        self.table.sleepers(tasks, false, &mut wake);
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
                self.table.set_busy(worker);
                self.table.begin(worker, claim);
                let ticket = self.look(claim);
                self.table.put(claim.slot, 0, &[ticket as u8 + 100]);
                if self.table.finish(worker, claim, false) {
                    self.to_parent.ring();
                }
                done += 1;
                continue;
            }
            if self.table.is_closing() {
                return done;
            }
            self.table.set_searching(worker);
            self.table.arm_worker(worker);
            if self.table.has_tasks() || self.table.is_closing() {
                continue;
            }
            self.to_worker[worker].read();
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
            assert_eq!(held, Held::Claimed);
            pool.table.push(slot, ticket);
        }
        let rest = pool.claim_all(2);
        assert_once([worker.join().unwrap(), rest], &[1, 2]);
        assert!(!pool.table.has_tasks());
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
            pool.wake(1);
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
