//! Conditions and events: who is woken, who is not, and what becomes of it when somebody is killed.

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{Array, Condition, Event, Lock, LockError, Process, RLock, RawArray, Value, Woken};

use super::{BOARD, COUNT, LONG, QUIT, counts_to, start};
use crate::support;

#[test]
fn a_wait_lets_go_of_each_kind_of_lock() {
    fn change(lock: Lock, rlock: RLock, array: Array<u32>, changed: Condition) {
        // Each of them is free only once the parent waits.
        drop(lock.lock().expect("the parent waits"));
        changed.notify(1);
        drop(rlock.lock().expect("the parent waits"));
        changed.notify(1);
        array.lock().expect("the parent waits")[1] = 5;
        changed.notify(1);
    }
    support::each_method(|method| {
        let (lock, rlock) = (Lock::new().unwrap(), RLock::new().unwrap());
        let (array, changed) = (Array::new(2).unwrap(), Condition::new().unwrap());
        let first = lock.lock().unwrap();
        let second = (rlock.lock().unwrap(), rlock.lock().unwrap());
        let third = array.lock().unwrap();
        let arguments = (lock.clone(), rlock.clone(), array.clone(), changed.clone());
        let child = start(method, change, arguments);
        let first = changed.wait(first).unwrap();
        let inner = changed.wait(second.1).unwrap();
        let third = changed.wait_for(third, |array| array[1] == 5).unwrap();
        drop((first, third));
        child.result().unwrap();
        // Both levels of it are there again.
        drop(second.0);
        let other = rlock.clone();
        let is_held = || other.try_lock().is_err();
        assert!(thread::scope(|scope| scope.spawn(is_held).join().unwrap()));
        drop(inner);
    });
}

#[test]
fn waits_end_in_time_and_predicates_are_asked() {
    let _guard = support::guard(60);
    let (value, changed) = (Value::new(1u32).unwrap(), Condition::new().unwrap());
    let before = Instant::now();
    let short = Duration::from_millis(30);
    let (guard, woken) = changed.wait_timeout(value.lock().unwrap(), short).unwrap();
    assert_eq!(woken, Woken::TimedOut);
    let (guard, is_so) = changed
        .wait_for_timeout(guard, short, |v| **v == 2)
        .unwrap();
    assert!(!is_so && before.elapsed() >= 2 * short);
    let (guard, is_so) = changed
        .wait_for_timeout(guard, short, |v| **v == 1)
        .unwrap();
    assert!(is_so);
    drop(guard);
    // A notification before the wait is not kept.
    changed.notify(5);
    changed.notify_all();
    let (_guard, woken) = changed.wait_timeout(value.lock().unwrap(), short).unwrap();
    assert_eq!(woken, Woken::TimedOut);
}

/// Waits for one ticket, and counts.
fn take_ticket(tickets: Value<u64>, changed: Condition, board: RawArray<u64>) {
    let guard = tickets.lock().or_else(LockError::recover).expect("ours");
    board.fetch_add(COUNT, 1, SeqCst);
    let mut guard = match changed.wait_for(guard, |tickets| **tickets > 0) {
        Ok(guard) => guard,
        Err(abandoned) => abandoned.recover().expect("ours"),
    };
    *guard -= 1;
    drop(guard);
    board.fetch_add(QUIT, 1, SeqCst);
}

#[test]
fn so_many_are_notified() {
    support::each_method(|method| {
        let (tickets, changed) = (Value::new(0).unwrap(), Condition::new().unwrap());
        let board = RawArray::new(BOARD).unwrap();
        let arguments = (tickets.clone(), changed.clone(), board.clone());
        let waiters: Vec<_> = (0..5)
            .map(|_| start(method, take_ticket, arguments.clone()))
            .collect();
        counts_to(&board, COUNT, 5);
        // The last to count waits once its lock can be had.
        *tickets.lock().unwrap() += 1;
        changed.notify(1);
        counts_to(&board, QUIT, 1);
        *tickets.lock().unwrap() += 2;
        changed.notify(2);
        counts_to(&board, QUIT, 3);
        *tickets.lock().unwrap() += 2;
        changed.notify_all();
        for waiter in waiters {
            waiter.result().unwrap();
        }
    });
}

/// More threads than a condition can tell apart.
#[test]
fn a_crowd_is_notified_too() {
    let _guard = support::guard(60);
    let (tickets, changed) = (Value::new(0u64).unwrap(), Condition::new().unwrap());
    let board = RawArray::<u64>::new(BOARD).unwrap();
    thread::scope(|scope| {
        for _ in 0..300 {
            scope.spawn(|| take_ticket(tickets.clone(), changed.clone(), board.clone()));
        }
        counts_to(&board, COUNT, 300);
        for _ in 0..300 {
            *tickets.lock().unwrap() += 1;
            changed.notify(1);
        }
    });
    assert_eq!(*tickets.lock().unwrap(), 0);
}

/// One notification, two waiters, and the one that may have got it is killed at that moment.
#[test]
fn a_killed_waiter_takes_no_notification_along() {
    support::each_method(|method| {
        for round in 0..10u64 {
            let (tickets, changed) = (Value::new(0).unwrap(), Condition::new().unwrap());
            let board = RawArray::new(BOARD).unwrap();
            let arguments = (tickets.clone(), changed.clone(), board.clone());
            let waiters = [(); 2].map(|()| start(method, take_ticket, arguments.clone()));
            counts_to(&board, COUNT, 2);
            *tickets.lock().unwrap() = 1;
            if round % 3 == 0 {
                waiters[0].kill().unwrap();
            }
            changed.notify(1);
            thread::sleep(Duration::from_micros(round * 15));
            waiters[0].kill().unwrap();
            waiters[0].join().unwrap();
            let left = || *tickets.lock().or_else(LockError::recover).unwrap();
            if left() == 1 {
                // The living one gets it by itself, in time.
                assert!(support::wait_until(LONG, || left() == 0), "round {round}");
            } else if board.load(QUIT, SeqCst) == 0 {
                // Taken by the one that died, or by the other, which is about to say so.
                *tickets.lock().unwrap() += 1;
                changed.notify(1);
            }
            if board.load(QUIT, SeqCst) == 0 {
                let done = waiters[1].join_timeout(LONG).unwrap();
                assert!(done.is_some(), "round {round}: it waits on");
            }
            *tickets.lock().unwrap() += 1;
            changed.notify_all();
            let [_, living] = waiters;
            living.result().unwrap();
        }
    });
}

#[test]
fn whoever_waits_is_told_that_the_lock_was_abandoned() {
    fn die(lock: Lock, changed: Condition) {
        let _held = lock.lock().expect("the parent waits");
        changed.notify_all();
        std::process::abort();
    }
    support::each_method(|method| {
        let (lock, changed) = (Lock::new().unwrap(), Condition::new().unwrap());
        let held = lock.lock().unwrap();
        let child = start(method, die, (lock.clone(), changed.clone()));
        assert!(matches!(changed.wait(held), Err(LockError::Abandoned(_))));
        child.join().unwrap();
    });
}

// -- events

#[test]
fn an_event_lets_all_go_that_wait_even_if_it_is_cleared_at_once() {
    fn wait(event: Event, board: RawArray<u64>) {
        board.fetch_add(COUNT, 1, SeqCst);
        event.wait();
    }
    support::each_method(|method| {
        let (event, board) = (Event::new().unwrap(), RawArray::new(BOARD).unwrap());
        let enter = |_| start(method, wait, (event.clone(), board.clone()));
        let children: Vec<_> = (0..3).map(enter).collect();
        counts_to(&board, COUNT, 3);
        // Long enough for all to sleep; who came late would wait for the second set.
        thread::sleep(Duration::from_millis(50));
        children[0].kill().unwrap();
        event.set();
        event.clear();
        for child in &children[1..] {
            if child
                .join_timeout(Duration::from_secs(2))
                .unwrap()
                .is_none()
            {
                event.set();
            }
            assert!(child.join_timeout(LONG).unwrap().is_some());
        }
        assert!(!event.wait_timeout(Duration::from_millis(10)) || event.is_set());
    });
}

#[test]
fn idle_waiters_use_no_processor() {
    fn cpu_ticks(pid: u32) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        let fields = stat.rsplit_once(')').expect("a name").1;
        let field = |n| {
            fields
                .split_whitespace()
                .nth(n)
                .and_then(|f| f.parse::<u64>().ok())
        };
        field(11).expect("user time") + field(12).expect("system time")
    }
    let _guard = support::guard_after(60, support::start_each_way_once);
    let event = Event::new().unwrap();
    let child = Process::start(|event: Event| event.wait(), (event.clone(),)).unwrap();
    thread::sleep(Duration::from_millis(300));
    let before = cpu_ticks(child.pid());
    thread::sleep(Duration::from_secs(3));
    // Ticks are hundredths of a second.
    assert!(cpu_ticks(child.pid()) - before <= 5);
    event.set();
    child.result().unwrap();
}
