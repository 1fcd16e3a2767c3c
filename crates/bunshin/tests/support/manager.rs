//! What clients of a manager do while they are killed, wherever they are.

use std::thread;
use std::time::Duration;

use bunshin::manager::{DictProxy, ListProxy, LockProxy, QueueProxy};
use bunshin::{LockError, Manager, Process};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

/// Numbers that differ from run to run.
pub(crate) fn random(below: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() % below
}

/// Objects that hold each other.
pub(crate) type Objects = (
    LockProxy,
    DictProxy<u64, ListProxy<u64>>,
    QueueProxy<ListProxy<u64>>,
);

/// What the manager has for [`churn`].
pub(crate) fn objects(manager: &Manager) -> Objects {
    (
        manager.lock().unwrap(),
        manager.dict().unwrap(),
        manager.queue(4).unwrap(),
    )
}

/// Passes lists on between a dict and a queue until it is killed.
pub(crate) fn churn((lock, dict, queue): Objects) {
    for n in 0.. {
        let guard = lock.lock().or_else(LockError::recover).unwrap();
        let list = dict.get(&(n % 4)).unwrap();
        drop(guard);
        let list = list.or_else(|| queue.try_recv().ok());
        if let Some(list) = list {
            list.push(&n).unwrap();
            dict.insert(&((n + 1) % 4), &list).unwrap();
            let _ = queue.try_send(list);
        }
    }
}

/// Kills clients at `churn` again and again: the server goes on each time, the lock comes back,
/// and in the end nothing is left of them.
pub(crate) fn kill_clients(
    manager: &Manager,
    (lock, dict, queue): Objects,
    rounds: u32,
    start: impl Fn() -> Process<()>,
) {
    for _ in 0..rounds {
        dict.insert(&0, &manager.list([1]).unwrap()).unwrap();
        let victims = [start(), start()];
        thread::sleep(Duration::from_micros(random(40_000)));
        for victim in &victims {
            victim.kill().unwrap();
        }
        let guard = lock.lock_timeout(LONG).or_else(LockError::recover).unwrap();
        dict.len().unwrap();
        drop(guard);
        for victim in &victims {
            victim.join().unwrap();
        }
    }
    dict.clear().unwrap();
    while queue.try_recv().is_ok() {}
    let is_alone = || manager.census().unwrap() == (3, 1);
    assert!(super::wait_until(LONG, is_alone), "{:?}", manager.census());
}
