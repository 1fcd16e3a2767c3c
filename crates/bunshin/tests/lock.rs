//! The lock between processes: exclusion, time limits, and holders that die in every way.
#![allow(
    unsafe_code,
    reason = "the C library's robust mutexes, beside which ours live, have no safe form"
)]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{ErrorKind, Lock, LockError, LockGuard, RawArray, Value, pipe};
use rustix::process::Signal;
use support::start_daemon as start;

type Taken<'a> = Result<LockGuard<'a>, LockError<LockGuard<'a>>>;

fn is_abandoned(taken: &Taken<'_>) -> bool {
    matches!(taken, Err(LockError::Abandoned(_)))
}

fn is_unavailable(taken: &Taken<'_>) -> bool {
    matches!(taken, Err(LockError::Unavailable))
}

fn kill_self() {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, Signal::KILL).expect("it may");
}

// Cells of a board beside a lock.
const INSIDE: usize = 0;
const COUNT: usize = 1;
const VIOLATIONS: usize = 2;
const ABANDONED: usize = 3;
const UP: usize = 4;
const QUIT: usize = 5;
const BOARD: usize = 6;

/// What only a holder does: be alone, and count in two steps that others would tear.
fn be_inside(board: &RawArray<u64>, id: u64) {
    if board.load(INSIDE, SeqCst) != 0 {
        board.fetch_add(VIOLATIONS, 1, SeqCst);
    }
    board.store(INSIDE, id, SeqCst);
    let count = board.get(COUNT);
    std::hint::spin_loop();
    board.set(COUNT, count + 1);
    if board.load(INSIDE, SeqCst) != id {
        board.fetch_add(VIOLATIONS, 1, SeqCst);
    }
    board.store(INSIDE, 0, SeqCst);
}

#[test]
fn one_at_a_time_is_inside() {
    fn visit(lock: Lock, board: RawArray<u64>, id: u64) {
        for n in 0..20_000u64 {
            let taken = match n % 3 {
                0 => lock.lock(),
                1 => lock.lock_timeout(Duration::from_secs(60)),
                _ => loop {
                    let taken = lock.try_lock();
                    if !is_unavailable(&taken) {
                        break taken;
                    }
                    std::hint::spin_loop();
                },
            };
            let _held = taken.expect("nobody dies");
            be_inside(&board, id);
        }
    }
    support::each_method(|method| {
        let (lock, board) = (Lock::new().unwrap(), RawArray::new(BOARD).unwrap());
        let enter = |id| start(method, visit, (lock.clone(), board.clone(), id));
        let children: Vec<_> = (1..=4).map(enter).collect();
        for child in children {
            child.result().expect("no panic");
        }
        assert_eq!((board.get(COUNT), board.get(VIOLATIONS)), (80_000, 0));
        // Threads of one process are kept apart as well.
        thread::scope(|scope| {
            for id in 1..=3 {
                let (lock, board) = (lock.clone(), board.clone());
                scope.spawn(move || visit(lock, board, id));
            }
        });
        assert_eq!((board.get(COUNT), board.get(VIOLATIONS)), (140_000, 0));
    });
}

#[test]
fn waiting_has_three_forms_and_relocking_is_refused() {
    fn hold(lock: Lock, end: bunshin::Connection<u8>) {
        let held = lock.lock().expect("free");
        end.send(1).expect("the parent listens");
        let _ = end.recv();
        drop(held);
        end.send(2).expect("the parent listens");
        let _ = end.recv();
    }
    support::each_method(|method| {
        let lock = Lock::new().unwrap();
        let (here, there) = pipe::<u8>().unwrap();
        let child = start(method, hold, (lock.clone(), there));
        assert_eq!(here.recv().unwrap(), 1);
        assert!(is_unavailable(&lock.try_lock()));
        for ms in [0, 1, 50] {
            let before = Instant::now();
            assert!(is_unavailable(
                &lock.lock_timeout(Duration::from_millis(ms))
            ));
            assert!(before.elapsed() >= Duration::from_millis(ms));
        }
        here.send(0).unwrap();
        let held = lock.lock_timeout(Duration::MAX).expect("the child lets go");
        for again in [
            lock.lock(),
            lock.try_lock(),
            lock.lock_timeout(Duration::ZERO),
        ] {
            match again {
                Err(LockError::Failed(error)) => assert_eq!(error.kind(), ErrorKind::Busy),
                other => panic!("{other:?}"),
            }
        }
        let clone = lock.clone();
        assert!(matches!(clone.lock(), Err(LockError::Failed(_))));
        let in_thread = thread::spawn(move || is_unavailable(&clone.try_lock()));
        assert!(in_thread.join().unwrap());
        drop(held);
        drop(lock.lock().expect("free"));
        assert_eq!(here.recv().unwrap(), 2);
        here.send(0).unwrap();
        child.result().expect("no panic");
    });
}

// -- holders that die

/// Holds the lock, says so, waits for `UP` to be 2, and ends in one of several ways.
fn hold_and_end(lock: Lock, board: RawArray<u64>, how: u64) {
    let held = lock
        .lock()
        .or_else(LockError::recover)
        .expect("it is free by now");
    board.store(UP, 1, SeqCst);
    let may_end = || board.load(UP, SeqCst) == 2;
    assert!(support::wait_until(Duration::from_secs(20), may_end));
    match how {
        0 => kill_self(),
        1 => std::process::exit(0),
        // SAFETY: it ends the process, without its exit handlers.
        2 => unsafe { libc::_exit(3) },
        3 => std::mem::forget(held),
        4 => {
            let clone = lock.clone();
            // The main thread sleeps as the process goes, with another thread's call.
            let exit = thread::spawn(move || {
                drop(clone);
                std::process::exit(0)
            });
            let _ = exit.join();
        }
        5 => std::process::abort(),
        6 => panic!("with the lock, whose guard is dropped"),
        _ => drop(held),
    }
}

#[test]
fn whoever_waits_gets_what_the_dead_leave() {
    fn wait_for(lock: Lock, board: RawArray<u64>) -> bool {
        board.fetch_add(COUNT, 1, SeqCst);
        let taken = lock.lock();
        let was_abandoned = is_abandoned(&taken);
        drop(taken.or_else(LockError::recover).expect("it is ours"));
        was_abandoned
    }
    support::each_method(|method| {
        let lock = Lock::new().unwrap();
        for how in 0..8 {
            let board = RawArray::new(BOARD).unwrap();
            let arguments = (lock.clone(), board.clone(), how);
            let holder = start(method, hold_and_end, arguments);
            let is_up = || board.load(UP, SeqCst) == 1;
            assert!(support::wait_until(Duration::from_secs(10), is_up));
            let waiting = |_| start(method, wait_for, (lock.clone(), board.clone()));
            let waiters: Vec<_> = (0..2).map(waiting).collect();
            let are_up = || board.load(COUNT, SeqCst) == 2;
            assert!(support::wait_until(Duration::from_secs(10), are_up));
            thread::sleep(Duration::from_millis(10));
            board.store(UP, 2, SeqCst);
            let ways: Vec<_> = waiters.into_iter().map(|w| w.result().unwrap()).collect();
            let told = ways.iter().filter(|was_abandoned| **was_abandoned).count();
            assert_eq!(told, usize::from(how < 6), "how {how}: one is told, once");
            holder.join().unwrap();
            drop(lock.lock().expect("the other one has mended it"));
        }
    });
}

#[test]
fn who_does_not_mend_leaves_it_to_the_next() {
    support::each_method(|method| {
        let lock = Lock::new().unwrap();
        let board = RawArray::new(BOARD).unwrap();
        board.store(UP, 2, SeqCst);
        for how in [0, 2, 5] {
            let holder = start(method, move_on, (lock.clone(), board.clone(), how));
            holder.join().unwrap();
            for _ in 0..3 {
                assert!(is_abandoned(&lock.lock()));
                assert!(is_abandoned(&lock.try_lock()));
                assert!(is_abandoned(&lock.lock_timeout(Duration::ZERO)));
            }
            let child = start(
                method,
                |lock: Lock| is_abandoned(&lock.lock()),
                (lock.clone(),),
            );
            assert!(child.result().unwrap());
            match lock.lock() {
                Err(LockError::Abandoned(_held)) => {
                    let child = start(
                        method,
                        |l: Lock| is_unavailable(&l.try_lock()),
                        (lock.clone(),),
                    );
                    assert!(child.result().unwrap(), "it is held, told or not");
                }
                other => panic!("{other:?}"),
            }
            drop(lock.lock().or_else(LockError::recover).expect("it is ours"));
            drop(lock.lock().expect("it is mended"));
            board.store(UP, 2, SeqCst);
        }
    });
}

/// As [`hold_and_end`], without waiting.
fn move_on(lock: Lock, board: RawArray<u64>, how: u64) {
    let held = lock.lock().or_else(LockError::recover).expect("free");
    board.store(UP, 1, SeqCst);
    match how {
        0 => kill_self(),
        5 => std::process::abort(),
        // SAFETY: it ends the process, without its exit handlers.
        _ => unsafe { libc::_exit(3) },
    }
    drop(held);
}

#[test]
fn a_thread_that_ends_with_the_lock_is_a_dead_holder() {
    /// In a process of its own, as what a forgotten guard held is left.
    fn forget() {
        let lock = Lock::new().unwrap();
        for _ in 0..20 {
            let forgetful = lock.clone();
            let thread = thread::spawn(move || std::mem::forget(forgetful.lock().expect("free")));
            thread.join().unwrap();
            assert!(is_abandoned(&lock.lock()));
            drop(lock.lock().or_else(LockError::recover).expect("ours"));
            let panicking = lock.clone();
            let thread = thread::spawn(move || {
                let _held = panicking.lock().expect("free");
                std::panic::resume_unwind(Box::new("with the guard, which is dropped"));
            });
            assert!(thread.join().is_err());
            drop(lock.lock().expect("given back"));
        }
    }
    support::each_method(|method| start(method, forget, ()).result().expect("no panic"));
}

/// Kills of holders and waiters alike: never a deadlock, never two inside.
#[test]
fn three_hundred_kills_around_a_lock() {
    fn visit(lock: Lock, board: RawArray<u64>, total: Value<u64>) {
        let id = u64::from(std::process::id());
        for n in 0u64.. {
            if board.load(QUIT, SeqCst) == 1 {
                return;
            }
            let taken = match n % 3 {
                0 => lock.lock(),
                1 => lock.lock_timeout(Duration::from_micros(50)),
                _ => lock.try_lock(),
            };
            let _held = match taken {
                Err(LockError::Unavailable) => continue,
                Err(abandoned @ LockError::Abandoned(_)) => {
                    board.fetch_add(ABANDONED, 1, SeqCst);
                    // Whoever was inside is dead.
                    board.store(INSIDE, 0, SeqCst);
                    abandoned.recover().expect("it is ours")
                }
                other => other.expect("nothing else can happen"),
            };
            be_inside(&board, id);
            if n % 16 == 0 {
                *total
                    .lock()
                    .or_else(LockError::recover)
                    .expect("it is ours") += 1;
            }
        }
    }
    support::each_method(|method| {
        let (lock, board) = (Lock::new().unwrap(), RawArray::new(BOARD).unwrap());
        let total = Value::new(0u64).unwrap();
        let enter = || start(method, visit, (lock.clone(), board.clone(), total.clone()));
        let mut children: Vec<_> = (0..4).map(|_| enter()).collect();
        let mut random = 0x2545_f491_4f6c_dd1du64;
        for round in 0..300 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Now and then those that live must have got on.
            if round % 8 == 0 {
                let count = board.get(COUNT);
                let goes_on = || board.get(COUNT) > count + 10;
                assert!(
                    support::wait_until(Duration::from_secs(10), goes_on),
                    "stuck"
                );
            }
            thread::sleep(Duration::from_micros(random % 3000));
            let victim = (random >> 32) as usize % 4;
            children[victim].kill().expect("it may");
            assert_eq!(children[victim].join().unwrap().signal(), Some(9));
            children[victim] = enter();
        }
        let count = board.get(COUNT);
        let goes_on = || board.get(COUNT) > count + 100;
        assert!(
            support::wait_until(Duration::from_secs(10), goes_on),
            "stuck"
        );
        board.store(QUIT, 1, SeqCst);
        for child in children {
            child.result().expect("no panic");
        }
        assert_eq!(board.get(VIOLATIONS), 0);
        assert!(board.get(ABANDONED) > 0, "no holder was hit");
        drop(lock.lock().expect("the last one has given it back"));
        assert!(total.lock().or_else(LockError::recover).is_ok());
    });
}

/// A killed waiter takes the waking that was meant for it along; the next must not sleep on.
#[test]
fn a_waiter_that_dies_keeps_nobody_asleep() {
    fn wait_for(lock: Lock, board: RawArray<u64>) {
        board.fetch_add(UP, 1, SeqCst);
        drop(lock.lock().or_else(LockError::recover).expect("it is ours"));
    }
    support::each_method(|method| {
        let lock = Lock::new().unwrap();
        for round in 0..25 {
            let board = RawArray::new(BOARD).unwrap();
            let held = lock.lock().or_else(LockError::recover).expect("free");
            let waiting = |_| start(method, wait_for, (lock.clone(), board.clone()));
            let waiters: Vec<_> = (0..3).map(waiting).collect();
            let are_up = || board.load(UP, SeqCst) == 3;
            assert!(support::wait_until(Duration::from_secs(10), are_up));
            thread::sleep(Duration::from_millis(2));
            // The first sleeper is the one to be woken.
            if round % 2 == 0 {
                waiters[0].kill().expect("it may");
                drop(held);
            } else {
                drop(held);
                waiters[0].kill().expect("it may");
            }
            for waiter in &waiters {
                let ended = waiter.join_timeout(Duration::from_secs(10)).unwrap();
                assert!(ended.is_some(), "round {round}: it sleeps on");
            }
            assert!(
                lock.lock_timeout(Duration::from_secs(1))
                    .or_else(LockError::recover)
                    .is_ok()
            );
        }
    });
}

// -- many locks, and those of the C library, in one thread

/// A robust mutex of the C library.
struct CMutex(Box<std::cell::UnsafeCell<libc::pthread_mutex_t>>);

impl CMutex {
    fn new() -> Self {
        let mutex = Box::new(std::cell::UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));
        let mut kind = std::mem::MaybeUninit::uninit();
        // SAFETY: there is room for attributes.
        let begun = unsafe { libc::pthread_mutexattr_init(kind.as_mut_ptr()) };
        let robust = libc::PTHREAD_MUTEX_ROBUST;
        // SAFETY: the attributes are initialised.
        let set = unsafe { libc::pthread_mutexattr_setrobust(kind.as_mut_ptr(), robust) };
        // SAFETY: the mutex is not in use, and stays where it is.
        let made = unsafe { libc::pthread_mutex_init(mutex.get(), kind.as_ptr()) };
        assert_eq!((begun, set, made), (0, 0, 0));
        Self(mutex)
    }

    fn lock(&self) -> i32 {
        // SAFETY: initialised, and not moved.
        unsafe { libc::pthread_mutex_lock(self.0.get()) }
    }

    fn unlock(&self) {
        // SAFETY: as above.
        let result = unsafe { libc::pthread_mutex_unlock(self.0.get()) };
        assert_eq!(result, 0);
    }

    fn mend(&self) {
        // SAFETY: as above, and the calling thread has just got it from a dead owner.
        let result = unsafe { libc::pthread_mutex_consistent(self.0.get()) };
        assert_eq!(result, 0);
        self.unlock();
    }
}

// SAFETY: a mutex is made to be shared.
unsafe impl Sync for CMutex {}
// SAFETY: it is locked and unlocked by one thread; the box stays where it is.
unsafe impl Send for CMutex {}

#[test]
fn many_locks_and_those_of_the_c_library_share_a_list() {
    support::each_method(|_| {
        let locks: Vec<_> = (0..40).map(|_| Lock::new().unwrap()).collect();
        let mutexes: Vec<_> = (0..40).map(|_| CMutex::new()).collect();
        let mut random = 88_172_645_463_325_252u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize % below
        };
        let mut held: Vec<Option<LockGuard<'_>>> = locks.iter().map(|_| None).collect();
        let mut is_locked = [false; 40];
        for _ in 0..5000 {
            let n = next(40);
            if next(2) == 0 {
                held[n] = match held[n].take() {
                    Some(_) => None,
                    None => Some(locks[n].lock().expect("free")),
                };
            } else {
                if is_locked[n] {
                    mutexes[n].unlock();
                } else {
                    assert_eq!(mutexes[n].lock(), 0);
                }
                is_locked[n] ^= true;
            }
        }
        held.clear();
        (0..40)
            .filter(|n| is_locked[*n])
            .for_each(|n| mutexes[n].unlock());

        // A thread ends with some of both; each of them is told of, and no other.
        for round in 0..10 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut held = Vec::new();
                    for (lock, mutex) in locks.iter().zip(&mutexes) {
                        held.push(Some(lock.lock().expect("free")));
                        assert_eq!(mutex.lock(), 0);
                    }
                    for n in (0..40).rev().filter(|n| (n + round) % 3 == 0) {
                        held[n] = None;
                        mutexes[n].unlock();
                    }
                    std::mem::forget(held);
                });
            });
            for (n, mutex) in mutexes.iter().enumerate() {
                let is_kept = (n + round) % 3 != 0;
                let expected = if is_kept { libc::EOWNERDEAD } else { 0 };
                assert_eq!(mutex.lock(), expected);
                if is_kept {
                    mutex.mend();
                } else {
                    mutex.unlock();
                }
            }
            let told = locks
                .iter()
                .filter(|lock| is_abandoned(&lock.lock()))
                .count();
            let kept = (0..40).filter(|n| (n + round) % 3 != 0).count();
            assert_eq!(told, kept);
            for lock in &locks {
                drop(lock.lock().or_else(LockError::recover).expect("it is ours"));
            }
        }
    });
}

#[test]
fn a_process_that_dies_with_many_locks_leaves_them_all() {
    fn die_with(locks: Vec<Lock>) {
        let mutexes: Vec<_> = (0..100).map(|_| CMutex::new()).collect();
        let mut held = Vec::new();
        for (lock, mutex) in locks.iter().zip(&mutexes) {
            assert_eq!(mutex.lock(), 0);
            held.push(lock.lock().expect("free"));
        }
        held.drain(20..30);
        mutexes[50].unlock();
        kill_self();
    }
    support::each_method(|method| {
        let locks: Vec<_> = (0..100).map(|_| Lock::new().unwrap()).collect();
        start(method, die_with, (locks.clone(),)).join().unwrap();
        for (n, lock) in locks.iter().enumerate() {
            assert_eq!(
                is_abandoned(&lock.lock()),
                !(20..30).contains(&n),
                "lock {n}"
            );
        }
    });
}

// -- forks

#[test]
fn a_forked_child_neither_holds_nor_releases_its_parents_lock() {
    support::each_method(|method| {
        let (lock, other) = (Lock::new().unwrap(), Lock::new().unwrap());
        let mut held = Some(lock.lock().expect("free"));
        bunshin::scope(|scope| {
            let child = scope.spawn(|| {
                let before = is_unavailable(&lock.try_lock());
                drop(held.take());
                let after = is_unavailable(&lock.lock_timeout(Duration::from_millis(5)));
                let own = other.lock().expect("free");
                drop(other.clone());
                drop(own);
                before && after
            });
            assert!(child.unwrap().result().unwrap());
        });
        let is_held = start(
            method,
            |lock: Lock| is_unavailable(&lock.try_lock()),
            (lock.clone(),),
        );
        assert!(is_held.result().unwrap(), "the child has released it");

        match bunshin::fork().expect("there is one thread") {
            bunshin::Fork::Child => {
                let is_right = is_unavailable(&lock.try_lock());
                std::mem::forget(other.lock());
                // SAFETY: it ends the child, which is a copy, without exit handlers.
                unsafe { libc::_exit(i32::from(!is_right)) }
            }
            bunshin::Fork::Parent(child) => assert_eq!(child.join().unwrap().code(), Some(0)),
        }
        assert!(is_abandoned(&other.lock()), "the child died with this one");
        let again = lock.lock();
        assert!(matches!(again, Err(LockError::Failed(error)) if error.kind() == ErrorKind::Busy));
        drop(held);
        drop(lock.lock().expect("free"));
    });
}
