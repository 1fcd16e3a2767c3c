//! Several views of the same shared memory in one process.

mod support;

use std::sync::mpsc;
use std::thread;

use bunshin::{Lock, Value, channel};

/// How many memory objects of this engine the process has mapped.
fn n_mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
    maps.lines().filter(|line| line.contains("memfd:")).count()
}

#[test]
fn copies_that_go_while_the_lock_is_held_elsewhere_leave_nothing() {
    let _guard = support::guard(60);
    let value = Value::new(1u64).unwrap();
    let lock = Lock::new().unwrap();
    let (values, next_value) = channel::<Value<u64>>().unwrap();
    let (locks, next_lock) = channel::<Lock>().unwrap();
    let before = n_mapped();
    for _ in 0..20 {
        let (held, is_held) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let value = &value;
        let lock = &lock;
        let copies = (&values, &next_value, &locks, &next_lock);
        thread::scope(|scope| {
            scope.spawn(move || {
                let _value = value.lock().unwrap();
                let _lock = lock.lock().unwrap();
                held.send(()).unwrap();
                gone.recv().unwrap();
            });
            is_held.recv().unwrap();
            let (values, next_value, locks, next_lock) = copies;
            for _ in 0..5 {
                values.send(value.clone()).unwrap();
                drop(next_value.recv().unwrap());
                locks.send(lock.clone()).unwrap();
                drop(next_lock.recv().unwrap());
            }
            go.send(()).unwrap();
        });
    }
    // What could not be given back while the lock was held is at the next such occasion.
    drop((Value::new(0u64).unwrap(), value, lock));
    assert!(n_mapped() <= before, "{before} became {}", n_mapped());
}

#[test]
fn a_forgotten_guard_keeps_its_memory_until_its_thread_ends() {
    let _guard = support::guard(60);
    let before = n_mapped();
    let forget = || {
        for _ in 0..10 {
            let value = Value::new(1u64).unwrap();
            std::mem::forget(value.lock().unwrap());
        }
        // The list of this thread's locks leads to memory that is there still.
        assert!(n_mapped() >= before + 10);
    };
    thread::scope(|scope| scope.spawn(forget).join().unwrap());
    drop(Value::new(0u64).unwrap());
    assert!(n_mapped() <= before, "{before} became {}", n_mapped());
}
