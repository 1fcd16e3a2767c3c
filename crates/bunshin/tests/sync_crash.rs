//! Faults: holders and waiters that are killed at random moments, around what is not covered
//! beside its feature (`lock.rs`, `sync.rs`, `queue_crash.rs`), under every start method.

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use bunshin::{
    Condition, Event, ListItem, Lock, LockError, LockGuard, RLock, RawArray, SendError,
    ShareableList, SimpleQueue, StartMethod,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use support::{each_method, start_daemon as start, wait_until};

/// Only tells a hang from slowness.
const LONG: Duration = Duration::from_secs(20);

// Places on the board that all children see.
const COUNT: usize = 0;
const QUIT: usize = 1;
const TOLD: usize = 2;
const BOARD: usize = 8;

/// Numbers that look random, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

/// Keeps four children at `work`, kills one of them after the other at random moments and starts
/// another in its place. `work` ends once the board says so.
fn with_kills<A, F>(method: StartMethod, kills: u64, board: &RawArray<u64>, work: F, arguments: A)
where
    A: Clone + Serialize + DeserializeOwned,
    F: bunshin::Target<A> + Copy,
    F::Output: Serialize + DeserializeOwned,
{
    let enter = || start(method, work, arguments.clone());
    let mut children: Vec<_> = (0..4).map(|_| enter()).collect();
    let mut random = Random(0x2545_f491_4f6c_dd1d + kills);
    for _ in 0..kills {
        thread::sleep(Duration::from_micros(random.below(3000)));
        let victim = random.below(4) as usize;
        children[victim].kill().unwrap();
        children[victim].join().unwrap();
        children[victim] = enter();
    }
    // They go on, all the same.
    let count = board.load(COUNT, SeqCst);
    let goes_on = || board.load(COUNT, SeqCst) > count + 20;
    assert!(wait_until(LONG, goes_on), "nobody has moved since the last");
    board.store(QUIT, 1, SeqCst);
    for child in children {
        let ended = child.join_timeout(LONG).unwrap();
        assert!(ended.is_some(), "one waits for somebody who is dead");
        child.result().map(drop).expect("no panic");
    }
}

fn board() -> RawArray<u64> {
    RawArray::new(BOARD).unwrap()
}

#[test]
fn kills_around_an_rlock_leave_it_to_the_next_who_is_told() {
    const INSIDE: usize = 3;
    fn work(lock: RLock, board: RawArray<u64>) {
        let own = u64::from(std::process::id());
        while board.load(QUIT, SeqCst) == 0 {
            let outer = lock.lock().or_else(|error| match error {
                LockError::Abandoned(_) => {
                    board.fetch_add(TOLD, 1, SeqCst);
                    // Whoever died may have left its mark.
                    board.store(INSIDE, 0, SeqCst);
                    error.recover()
                }
                other => Err(other),
            });
            let outer = outer.expect("it is free in the end");
            let inner = lock.lock().expect("it is ours already");
            assert_eq!(board.load(INSIDE, SeqCst), 0, "two are inside");
            board.store(INSIDE, own, SeqCst);
            board.fetch_add(COUNT, 1, SeqCst);
            assert_eq!(board.load(INSIDE, SeqCst), own, "two are inside");
            board.store(INSIDE, 0, SeqCst);
            drop(inner);
            drop(outer);
        }
    }
    each_method(|method| {
        let (lock, board) = (RLock::new().unwrap(), board());
        with_kills(method, 40, &board, work, (lock.clone(), board.clone()));
        let last = lock.lock_timeout(LONG);
        drop(last.or_else(LockError::recover).expect("it is free"));
        assert!(board.load(TOLD, SeqCst) > 0, "no kill has met a holder");
    });
}

#[test]
fn kills_around_an_event_keep_nobody_asleep() {
    fn work(event: Event, back: Event, board: RawArray<u64>) {
        while board.load(QUIT, SeqCst) == 0 {
            event.wait();
            board.fetch_add(COUNT, 1, SeqCst);
            back.set();
        }
    }
    each_method(|method| {
        let (event, back) = (Event::new().unwrap(), Event::new().unwrap());
        let board = board();
        let pulse = |event: Event, back: Event, board: RawArray<u64>| {
            while board.load(QUIT, SeqCst) == 0 {
                event.set();
                // Whoever was to answer may have been killed.
                let _ = back.wait_timeout(Duration::from_millis(1));
                back.clear();
                event.clear();
            }
            event.set();
        };
        let pulsing = start(method, pulse, (event.clone(), back.clone(), board.clone()));
        with_kills(method, 40, &board, work, (event, back, board.clone()));
        pulsing.result().expect("no panic");
    });
}

#[test]
fn kills_around_a_condition_keep_nobody_asleep() {
    const TURN: usize = 3;
    fn take(lock: &Lock) -> LockGuard<'_> {
        let taken = lock.lock().or_else(LockError::recover);
        taken.expect("it is free in the end")
    }
    fn work(lock: Lock, changed: Condition, board: RawArray<u64>) {
        let mut seen = 0;
        while board.load(QUIT, SeqCst) == 0 {
            let is_next =
                |_: &mut _| board.load(TURN, SeqCst) != seen || board.load(QUIT, SeqCst) != 0;
            let woken = changed.wait_for(take(&lock), is_next);
            let guard = woken.or_else(LockError::recover).expect("it is free");
            seen = board.load(TURN, SeqCst);
            board.fetch_add(COUNT, 1, SeqCst);
            drop(guard);
        }
    }
    fn give(lock: Lock, changed: Condition, board: RawArray<u64>) {
        while board.load(QUIT, SeqCst) == 0 {
            let guard = take(&lock);
            board.fetch_add(TURN, 1, SeqCst);
            drop(guard);
            changed.notify_all();
            thread::sleep(Duration::from_micros(200));
        }
        // Whoever has not seen that it is over waits by now.
        drop(take(&lock));
        changed.notify_all();
    }
    each_method(|method| {
        let (lock, changed) = (Lock::new().unwrap(), Condition::new().unwrap());
        let board = board();
        let arguments = (lock.clone(), changed, board.clone());
        let giving = start(method, give, arguments.clone());
        with_kills(method, 40, &board, work, arguments);
        giving.result().expect("no panic");
        drop(lock.lock_timeout(LONG).or_else(LockError::recover).unwrap());
    });
}

#[test]
fn kills_around_a_simple_queue_leave_it_usable() {
    fn work(queue: SimpleQueue<Vec<u8>>, board: RawArray<u64>) {
        let mut random = Random(u64::from(std::process::id()) << 20 | 1);
        while board.load(QUIT, SeqCst) == 0 {
            let len = random.below(9000) as usize;
            match queue.send(vec![len as u8; len]) {
                Ok(()) => {}
                Err(SendError::Disconnected(_)) => return,
                Err(error) => panic!("{error}"),
            }
            if let Ok(item) = queue.recv_timeout(Duration::from_millis(1)) {
                assert!(item.iter().all(|byte| *byte == item.len() as u8));
                board.fetch_add(COUNT, 1, SeqCst);
            }
        }
    }
    each_method(|method| {
        let (queue, board) = (SimpleQueue::new().unwrap(), board());
        with_kills(method, 40, &board, work, (queue.clone(), board.clone()));
        while let Ok(item) = queue.try_recv() {
            assert!(item.iter().all(|byte| *byte == item.len() as u8));
        }
        queue.send(vec![1]).unwrap();
        assert_eq!(queue.recv_timeout(LONG).unwrap(), [1]);
    });
}

#[test]
fn writers_killed_at_any_moment_leave_a_list_that_can_be_read() {
    fn work(list: ShareableList, board: RawArray<u64>) {
        let mut random = Random(u64::from(std::process::id()) << 20 | 1);
        while board.load(QUIT, SeqCst) == 0 {
            let n = random.below(1000);
            let item: ListItem = match n % 4 {
                0 => (n as i64).into(),
                1 => (n as f64).into(),
                2 => "text".into(),
                _ => (&b"bytes"[..]).into(),
            };
            list.set((n % 4) as usize, item).expect("it fits");
            // A list has no lock: what others write at the same time may be seen in parts, and is
            // then an error or another item, and never more.
            let _ = list.to_vec();
            board.fetch_add(COUNT, 1, SeqCst);
        }
    }
    each_method(|method| {
        let name = format!("bunshin-list-{}-{method}", std::process::id());
        let items: [ListItem; 4] = [0.into(), 0.5.into(), "some text".into(), vec![1; 16].into()];
        let (list, board) = (ShareableList::create(&name, items).unwrap(), board());
        with_kills(method, 40, &board, work, (list.clone(), board.clone()));
        // Each place can be written and read again, whatever its last writer has left.
        for place in 0..list.len() {
            list.set(place, place as i64).unwrap();
        }
        let numbers: Vec<ListItem> = (0..4).map(|place: i64| place.into()).collect();
        assert_eq!(list.to_vec().unwrap(), numbers);
        drop(list);
        assert!(ShareableList::open(&name).is_err(), "its name stays");
    });
}
