//! RLock, semaphores, conditions, events and barriers between processes, under every start method.

mod support;

#[path = "sync/barrier.rs"]
mod barrier;
#[path = "sync/condition.rs"]
mod condition;

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{
    Barrier, BoundedSemaphore, Condition, ErrorKind, Event, LockError, RLock, RawArray, Semaphore,
    Value,
};
use serde::{Deserialize, Serialize};
use support::start_daemon as start;

/// Only tells a hang from slowness.
const LONG: Duration = Duration::from_secs(20);

fn counts_to(board: &RawArray<u64>, at: usize, count: u64) {
    assert!(support::wait_until(LONG, || board.load(at, SeqCst) == count));
}

// -- all of them, deep inside a message, in both directions

#[derive(Clone, Serialize, Deserialize)]
struct Kit {
    rlock: RLock,
    gates: Vec<(Semaphore, Option<BoundedSemaphore>)>,
    changed: Condition,
    event: Event,
    barrier: Barrier,
    number: Value<u64>,
}

impl Kit {
    fn new() -> Self {
        Self {
            rlock: RLock::new().unwrap(),
            gates: vec![(
                Semaphore::new(0).unwrap(),
                Some(BoundedSemaphore::new(1).unwrap()),
            )],
            changed: Condition::new().unwrap(),
            event: Event::new().unwrap(),
            barrier: Barrier::new(2).unwrap(),
            number: Value::new(0).unwrap(),
        }
    }
}

#[test]
fn each_travels_inside_of_other_types_and_is_the_same_there() {
    fn use_all(kit: Kit) -> Kit {
        let held = kit.rlock.lock().expect("free");
        kit.event.set();
        kit.barrier.wait().expect("the parent comes");
        drop(held);
        let (signal, bounded) = &kit.gates[0];
        signal.acquire().expect("the parent releases").forget();
        let bounded = bounded.as_ref().expect("it came along");
        bounded.acquire().expect("free").forget();
        *kit.number.lock().expect("free") = 7;
        kit.changed.notify_all();
        kit
    }
    support::each_method(|method| {
        let kit = Kit::new();
        let child = start(method, use_all, (kit.clone(),));
        assert!(kit.event.wait_timeout(LONG));
        assert!(matches!(kit.rlock.try_lock(), Err(LockError::Unavailable)));
        kit.barrier.wait().unwrap();
        kit.gates[0].0.release().unwrap();
        let number = kit.number.lock().unwrap();
        let number = kit
            .changed
            .wait_for(number, |number| **number == 7)
            .unwrap();
        drop(number);
        let back = child.result().expect("no panic");
        assert!(back.event.is_set());
        assert_eq!(back.gates[0].1.as_ref().unwrap().value(), 0);
        // What came back is what went.
        back.event.clear();
        assert!(!kit.event.is_set());
    });
}

// -- RLock

#[test]
fn an_rlock_is_taken_again_by_its_holder_alone() {
    fn is_held(lock: RLock) -> bool {
        matches!(lock.try_lock(), Err(LockError::Unavailable))
            && matches!(
                lock.lock_timeout(Duration::from_millis(5)),
                Err(LockError::Unavailable)
            )
    }
    support::each_method(|method| {
        let lock = RLock::new().unwrap();
        let mut guards = Vec::new();
        for n in 0..100 {
            guards.push(match n % 3 {
                0 => lock.lock().unwrap(),
                1 => lock.try_lock().unwrap(),
                _ => lock.lock_timeout(LONG).unwrap(),
            });
        }
        let other = lock.clone();
        assert!(thread::spawn(move || is_held(other)).join().unwrap());
        while guards.len() > 1 {
            drop(guards.remove(guards.len() / 2));
        }
        assert!(start(method, is_held, (lock.clone(),)).result().unwrap());
        guards.clear();
        assert!(!start(method, is_held, (lock.clone(),)).result().unwrap());
    });
}

#[test]
fn an_rlock_of_a_dead_holder_tells_the_next_until_it_is_mended() {
    fn die(lock: RLock, n: u32) {
        let guards: Vec<_> = (0..n).map(|_| lock.lock().expect("free")).collect();
        assert_eq!(guards.len(), n as usize);
        std::process::abort();
    }
    support::each_method(|method| {
        let lock = RLock::new().unwrap();
        for n in 1..4 {
            assert!(
                !start(method, die, (lock.clone(), n))
                    .join()
                    .unwrap()
                    .success()
            );
            // Not mended: told again, at each depth.
            for _ in 0..2 {
                let Err(LockError::Abandoned(outer)) = lock.lock() else {
                    panic!("nobody is told");
                };
                assert!(matches!(lock.lock(), Err(LockError::Abandoned(_))));
                drop(outer);
            }
            let outer = lock.lock().or_else(LockError::recover).unwrap();
            drop(lock.lock().expect("it is mended"));
            drop(outer);
            drop(lock.lock().expect("it is mended"));
        }
    });
}

// -- semaphores

const INSIDE: usize = 0;
const COUNT: usize = 1;
const QUIT: usize = 2;
const ABANDONED: usize = 3;
const BOARD: usize = 4;

#[test]
fn so_many_are_inside_at_a_time_and_no_more() {
    fn visit(semaphore: Semaphore, board: RawArray<u64>) {
        for n in 0..2000 {
            let taken = match n % 3 {
                0 => semaphore.acquire(),
                1 => semaphore.acquire_timeout(LONG),
                _ => loop {
                    match semaphore.try_acquire() {
                        Err(LockError::Unavailable) => thread::yield_now(),
                        taken => break taken,
                    }
                },
            };
            let _permit = taken.expect("nobody dies");
            let inside = board.fetch_add(INSIDE, 1, SeqCst) + 1;
            assert!(inside <= 2, "{inside} inside");
            board.fetch_add(COUNT, 1, SeqCst);
            if n % 64 == 0 {
                thread::yield_now();
            }
            board.fetch_add(INSIDE, u64::MAX, SeqCst);
        }
    }
    support::each_method(|method| {
        let (semaphore, board) = (Semaphore::new(2).unwrap(), RawArray::new(BOARD).unwrap());
        let enter = |_| start(method, visit, (semaphore.clone(), board.clone()));
        let children: Vec<_> = (0..4).map(enter).collect();
        for child in children {
            child.result().expect("no panic");
        }
        assert_eq!((board.get(COUNT), semaphore.value()), (8000, 2));
    });
}

#[test]
fn signals_are_counted_however_many() {
    fn release(semaphore: Semaphore, n: usize) {
        (0..n).for_each(|_| semaphore.release().expect("there is room"));
    }
    support::each_method(|method| {
        let semaphore = Semaphore::new(0).unwrap();
        let child = start(method, release, (semaphore.clone(), 10_000));
        for _ in 0..10_000 {
            semaphore.acquire().unwrap().forget();
        }
        child.result().unwrap();
        assert_eq!(semaphore.value(), 0);
        assert!(matches!(
            semaphore.try_acquire(),
            Err(LockError::Unavailable)
        ));
        let before = Instant::now();
        assert!(
            semaphore
                .acquire_timeout(Duration::from_millis(20))
                .is_err()
        );
        assert!(before.elapsed() >= Duration::from_millis(20));
    });
}

#[test]
fn large_and_bounded_semaphores_keep_count() {
    let _guard = support::guard(170);
    let large = Semaphore::new(100_000).unwrap();
    let guards: Vec<_> = (0..100_000).map(|_| large.acquire().unwrap()).collect();
    assert!(large.try_acquire().is_err());
    drop(guards);
    assert_eq!(large.value(), 100_000);
    for n in [0, 1, 5000] {
        let bounded = BoundedSemaphore::new(n).unwrap();
        let error = bounded.release().unwrap_err();
        assert_eq!(
            (error.kind(), bounded.value()),
            (ErrorKind::InvalidInput, n)
        );
        let guards: Vec<_> = (0..n).map(|_| bounded.try_acquire().unwrap()).collect();
        assert!(bounded.try_acquire().is_err());
        guards.into_iter().for_each(|guard| guard.forget());
        (0..n).for_each(|_| bounded.release().unwrap());
        assert!(bounded.release().is_err());
    }
    for too_many in [1 << 31, usize::MAX] {
        let error = Semaphore::new(too_many).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn permits_of_the_dead_come_back_and_the_next_is_told() {
    fn take(semaphore: Semaphore, board: RawArray<u64>) {
        let _guards = (semaphore.acquire(), semaphore.acquire());
        board.store(COUNT, 1, SeqCst);
        thread::sleep(Duration::from_secs(100));
    }
    fn wait(semaphore: Semaphore, board: RawArray<u64>) -> bool {
        board.fetch_add(COUNT, 1, SeqCst);
        match semaphore.acquire() {
            Ok(permit) => permit.forget(),
            Err(abandoned) => {
                abandoned.recover().expect("it is ours").forget();
                return true;
            }
        }
        false
    }
    support::each_method(|method| {
        let (semaphore, board) = (Semaphore::new(2).unwrap(), RawArray::new(BOARD).unwrap());
        let holder = start(method, take, (semaphore.clone(), board.clone()));
        counts_to(&board, COUNT, 1);
        let waiting = |_| start(method, wait, (semaphore.clone(), board.clone()));
        let waiters: Vec<_> = (0..2).map(waiting).collect();
        counts_to(&board, COUNT, 3);
        thread::sleep(Duration::from_millis(20));
        holder.kill().unwrap();
        let told = waiters.into_iter().map(|waiter| waiter.result().unwrap());
        assert_eq!(told.filter(|told| *told).count(), 2);
        holder.join().unwrap();
        assert_eq!(semaphore.value(), 0, "both were kept for good");
        // Not recovered: the next is told again.
        semaphore.release().unwrap();
        let dying = start(
            method,
            |semaphore: Semaphore| -> () {
                let _permit = semaphore.acquire().expect("there is one");
                std::process::abort();
            },
            (semaphore.clone(),),
        );
        dying.join().unwrap();
        for _ in 0..2 {
            assert!(matches!(semaphore.acquire(), Err(LockError::Abandoned(_))));
        }
        drop(semaphore.acquire().or_else(LockError::recover).unwrap());
        drop(semaphore.acquire().expect("it is as good as new"));
    });
}

#[test]
fn kills_around_a_semaphore_lose_no_permit() {
    fn visit(semaphore: Semaphore, board: RawArray<u64>) {
        while board.load(QUIT, SeqCst) == 0 {
            let permit = match semaphore.acquire() {
                Ok(permit) => permit,
                Err(abandoned) => {
                    board.fetch_add(ABANDONED, 1, SeqCst);
                    abandoned.recover().expect("it is ours")
                }
            };
            board.fetch_add(COUNT, 1, SeqCst);
            drop(permit);
        }
    }
    support::each_method(|method| {
        let semaphore = Semaphore::new(2).unwrap();
        let board = RawArray::<u64>::new(BOARD).unwrap();
        let enter = || start(method, visit, (semaphore.clone(), board.clone()));
        let mut children: Vec<_> = (0..4).map(|_| enter()).collect();
        let mut random = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..30 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            thread::sleep(Duration::from_micros(random % 2000));
            let victim = (random >> 32) as usize % 4;
            children[victim].kill().unwrap();
            children[victim].join().unwrap();
            children[victim] = enter();
        }
        let count = board.get(COUNT);
        assert!(support::wait_until(LONG, || board.get(COUNT) > count + 10));
        board.store(QUIT, 1, SeqCst);
        for child in children {
            child.result().expect("no panic");
        }
        assert_eq!(semaphore.value(), 2);
    });
}
