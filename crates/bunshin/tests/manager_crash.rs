//! Managers whose servers and clients are killed, at random moments.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use bunshin::manager::{
    BarrierError, BarrierProxy, ConditionProxy, DictProxy, EventProxy, ListProxy, LockProxy,
    QueueProxy, SemaphoreProxy,
};
use bunshin::{LockError, Manager, RecvTimeoutError, StartMethod, channel};
use rustix::process::Signal;
use support::manager::{churn, kill_clients, objects, random};
use support::{each_method, kill, start_daemon as child, wait_until};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

fn start(method: StartMethod) -> Manager {
    Manager::builder().start_method(method).build().unwrap()
}

#[test]
fn whoever_waits_learns_at_once_that_the_server_is_gone() {
    each_method(|method| {
        let manager = start(method);
        let pid = manager.pid().unwrap();
        let (ready, is_ready) = channel::<u8>().unwrap();
        let wait_on_lock = |lock: LockProxy, ready: bunshin::Sender<u8>| {
            ready.send(1).unwrap();
            matches!(lock.lock(), Err(LockError::Failed(error)) if error.is_disconnected())
        };
        let lock = manager.lock().unwrap();
        let _guard = lock.lock().unwrap();
        let waits = child(method, wait_on_lock, (lock.clone(), ready));
        is_ready.recv().unwrap();
        let queue = manager.queue::<u8>(0).unwrap();
        assert!(matches!(
            queue.recv_timeout(Duration::from_millis(20)),
            Err(RecvTimeoutError::Timeout)
        ));
        kill(pid, Signal::KILL);
        assert!(waits.result().unwrap());
        assert!(matches!(
            queue.recv_timeout(LONG),
            Err(RecvTimeoutError::Disconnected)
        ));
        assert!(manager.dict::<u8, u8>().unwrap_err().is_disconnected());
    });
}

#[test]
fn a_server_killed_at_any_moment_hangs_nobody() {
    let _guard = support::guard_after(170, support::start_each_way_once);
    for _ in 0..15 {
        let manager = start(StartMethod::Forkserver);
        let dict = manager.dict::<u64, ListProxy<u64>>().unwrap();
        let clients: Vec<_> = (0..2)
            .map(|own| {
                let work =
                    |dict: DictProxy<u64, ListProxy<u64>>, list: ListProxy<u64>, own: u64| {
                        let turn = |n: u64| -> bunshin::Result<()> {
                            dict.insert(&(own + n % 8), &list)?;
                            if let Some(list) = dict.get(&(own ^ 1))? {
                                list.push(&n)?;
                            }
                            Ok(())
                        };
                        let error = (0..).find_map(|n| turn(n).err());
                        error.is_some_and(|error| error.is_disconnected())
                    };
                let list = manager.list([0]).unwrap();
                child(StartMethod::Forkserver, work, (dict.clone(), list, own))
            })
            .collect();
        thread::sleep(Duration::from_micros(random(30_000)));
        kill(manager.pid().unwrap(), Signal::KILL);
        for client in clients {
            // One whose arguments came too late has not begun.
            if let Ok(was_told) = client.result() {
                assert!(was_told);
            }
        }
    }
}

#[test]
fn what_a_killed_client_held_goes_to_the_next() {
    each_method(|method| {
        let manager = start(method);
        let lock = manager.lock().unwrap();
        let semaphore = manager.semaphore(1).unwrap();
        let (ready, is_ready) = channel::<u8>().unwrap();
        let hold = |lock: LockProxy, semaphore: SemaphoreProxy, ready: bunshin::Sender<u8>| {
            let _held = (lock.lock().unwrap(), semaphore.acquire().unwrap());
            ready.send(1).unwrap();
            thread::park();
        };
        let holder = child(method, hold, (lock.clone(), semaphore.clone(), ready));
        is_ready.recv().unwrap();
        assert!(matches!(lock.try_lock(), Err(LockError::Unavailable)));
        holder.kill().unwrap();
        match lock.lock_timeout(LONG) {
            Err(LockError::Abandoned(guard)) => drop(guard),
            _ => panic!("the holder has died"),
        }
        // Nobody has said yet that all is well.
        let recovered = lock.lock_timeout(LONG).or_else(LockError::recover);
        drop(recovered.unwrap());
        drop(lock.lock_timeout(LONG).unwrap());
        match semaphore.acquire_timeout(LONG) {
            Err(abandoned @ LockError::Abandoned(_)) => drop(abandoned.recover().unwrap()),
            _ => panic!("the holder has died"),
        }
        drop(semaphore.try_acquire().unwrap());
    });
}

#[test]
fn clients_killed_in_the_middle_cost_only_themselves() {
    let _guard = support::guard_after(170, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let objects = objects(&manager);
    kill_clients(&manager, objects.clone(), 25, || {
        child(StartMethod::Forkserver, churn, (objects.clone(),))
    });
}

#[test]
fn a_waiter_that_dies_takes_nothing_along() {
    each_method(|method| {
        let manager = start(method);
        let queue = manager.queue::<u32>(0).unwrap();
        let condition = manager.condition().unwrap();
        let barrier = manager.barrier(2).unwrap();
        let event = manager.event().unwrap();
        let (ready, is_ready) = channel::<u8>().unwrap();
        let receive = |queue: QueueProxy<u32>, ready: bunshin::Sender<u8>| {
            ready.send(1).unwrap();
            queue.recv().is_ok()
        };
        let sleep = |condition: ConditionProxy, ready: bunshin::Sender<u8>| {
            let mut guard = condition.lock().unwrap();
            ready.send(1).unwrap();
            guard.wait().is_ok()
        };
        let pass = |barrier: BarrierProxy, ready: bunshin::Sender<u8>| {
            ready.send(1).unwrap();
            barrier.wait().is_ok()
        };
        let watch = |event: EventProxy, ready: bunshin::Sender<u8>| {
            ready.send(1).unwrap();
            event.wait().is_ok()
        };
        let (second, is_second) = channel::<u8>().unwrap();
        let (third, is_third) = channel::<u8>().unwrap();
        let (fourth, is_fourth) = channel::<u8>().unwrap();
        let victims = [
            child(method, receive, (queue.clone(), ready)),
            child(method, sleep, (condition.clone(), second)),
            child(method, pass, (barrier.clone(), third)),
            child(method, watch, (event.clone(), fourth)),
        ];
        for is_ready in [is_ready, is_second, is_third, is_fourth] {
            is_ready.recv().unwrap();
        }
        assert!(wait_until(LONG, || barrier.waiting().unwrap() == 1));
        // Once the lock is to be had, the other one sleeps.
        drop(condition.lock_timeout(LONG).unwrap());
        thread::sleep(Duration::from_millis(20));
        for victim in &victims {
            victim.kill().unwrap();
            victim.join().unwrap();
        }
        // The item is for those who live.
        assert!(wait_until(LONG, || manager.census().unwrap().1 == 1));
        queue.send(7).unwrap();
        assert_eq!(queue.recv_timeout(LONG).unwrap(), 7);
        let guard = condition.lock_timeout(LONG).unwrap();
        assert_eq!(guard.notify_all().unwrap(), 0);
        assert!(matches!(barrier.wait(), Err(BarrierError::Broken)));
        event.set().unwrap();
    });
}

#[test]
fn a_stopped_server_ends_timed_calls_and_loses_nothing() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let pid = manager.pid().unwrap();
    let lock = manager.lock().unwrap();
    let queue = manager.queue::<u32>(0).unwrap();
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    kill(pid, Signal::STOP);
    let short = Duration::from_millis(20);
    assert!(matches!(
        lock.lock_timeout(short),
        Err(LockError::Unavailable)
    ));
    assert!(matches!(
        queue.recv_timeout(short),
        Err(RecvTimeoutError::Timeout)
    ));
    kill(pid, Signal::CONT);
    // What they would have got is given back.
    let has_all = || queue.len().unwrap() == 2;
    assert!(wait_until(LONG, has_all), "{}", queue.len().unwrap());
    drop(lock.lock_timeout(LONG).unwrap());
    assert_eq!((queue.recv().unwrap(), queue.recv().unwrap()), (1, 2));
}

#[test]
fn serial_an_idle_server_uses_no_processor() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let dict = manager.dict::<u32, u32>().unwrap();
    for n in 0..1000 {
        dict.insert(&n, &n).unwrap();
    }
    let pid = manager.pid().unwrap();
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let rest = stat.rsplit_once(')').unwrap().1.to_owned();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    thread::sleep(Duration::from_millis(100));
    let (before, since) = (ticks(), Instant::now());
    thread::sleep(Duration::from_secs(2));
    let used = ticks() - before;
    assert!(used <= 2, "{used} ticks of 10 ms in {:?}", since.elapsed());
}
