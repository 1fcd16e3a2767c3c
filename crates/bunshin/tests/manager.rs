//! Managers: every kind of object, from every kind of child.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bunshin::manager::{
    BarrierError, BarrierProxy, ConditionProxy, DictProxy, EventProxy, ListProxy, LockProxy,
    NamespaceProxy, PoolProxy, QueueProxy, RLockProxy, SemaphoreProxy, ValueProxy,
};
use bunshin::{
    Buffer, CallError, ErrorKind, LockError, Manager, Process, RecvTimeoutError, StartMethod,
    TaskError, TryRecvError, TrySendError, channel, managed,
};
use support::each_method;

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(50);

fn start(method: StartMethod) -> Manager {
    Manager::builder().start_method(method).build().unwrap()
}

/// Runs a function in a child, and gives what it returned.
macro_rules! in_child {
    ($method:expr, $function:expr, $arguments:expr) => {
        Process::builder()
            .start_method($method)
            .start($function, $arguments)
            .unwrap()
            .result()
            .unwrap()
    };
}

#[test]
fn a_dict_is_the_same_in_every_process() {
    each_method(|method| {
        let manager = start(method);
        let dict = manager.dict::<String, Vec<u32>>().unwrap();
        assert_eq!(dict.insert("a", &vec![1]).unwrap(), None);
        assert_eq!(dict.insert("a", &vec![2]).unwrap(), Some(vec![1]));
        in_child!(
            method,
            |dict: DictProxy<String, Vec<u32>>| {
                assert_eq!(dict.get("a").unwrap(), Some(vec![2]));
                dict.update([("b".to_string(), vec![]), ("c".into(), vec![3])])
                    .unwrap();
            },
            (dict.clone(),)
        );
        assert_eq!(dict.len().unwrap(), 3);
        let keys: BTreeSet<String> = dict.keys().unwrap().into_iter().collect();
        assert_eq!(keys.into_iter().collect::<String>(), "abc");
        assert_eq!(dict.get_or_insert("c", &vec![]).unwrap(), [3]);
        assert_eq!(dict.remove("c").unwrap(), Some(vec![3]));
        assert_eq!(dict.remove("c").unwrap(), None);
        assert!(dict.contains_key("b").unwrap() && !dict.contains_key("c").unwrap());
        assert!(!dict.compare_exchange("b", &vec![9], &vec![]).unwrap());
        assert!(dict.compare_exchange("b", &vec![], &vec![7]).unwrap());
        let mut items = dict.items().unwrap();
        items.sort();
        assert_eq!(items, [("a".into(), vec![2]), ("b".into(), vec![7])]);
        let values: usize = dict.values().unwrap().iter().map(Vec::len).sum();
        assert_eq!(values, 2);
        assert!(dict.remove_any().unwrap().is_some());
        dict.clear().unwrap();
        assert!(dict.is_empty().unwrap() && dict.remove_any().unwrap().is_none());
    });
}

#[test]
fn a_list_a_namespace_a_value_and_an_array_work() {
    each_method(|method| {
        let manager = start(method);
        let list = manager.list([1, 2, 3]).unwrap();
        in_child!(
            method,
            |list: ListProxy<i32>| {
                list.push(&4).unwrap();
                list.extend([5, 6]).unwrap();
                assert!(list.insert(0, &0).unwrap() && !list.insert(99, &0).unwrap());
            },
            (list.clone(),)
        );
        assert_eq!(list.to_vec().unwrap(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(list.range(2..4).unwrap(), [2, 3]);
        assert_eq!(list.range(5..99).unwrap(), [5, 6]);
        assert_eq!(list.pop().unwrap(), Some(6));
        assert_eq!(list.remove(0).unwrap(), Some(0));
        assert_eq!(list.remove(50).unwrap(), None);
        assert_eq!(list.set(0, &-1).unwrap(), Some(1));
        assert_eq!(
            (list.get(0).unwrap(), list.get(9).unwrap()),
            (Some(-1), None)
        );
        assert_eq!(list.position(&3).unwrap(), Some(2));
        assert!(list.contains(&3).unwrap() && !list.contains(&33).unwrap());
        assert!(list.swap(0, 1).unwrap() && !list.swap(0, 9).unwrap());
        list.reverse().unwrap();
        assert_eq!(list.to_vec().unwrap(), [5, 4, 3, -1, 2]);
        list.truncate(2).unwrap();
        list.replace([7, 7, 8]).unwrap();
        assert_eq!((list.count(&7).unwrap(), list.len().unwrap()), (2, 3));
        list.clear().unwrap();
        assert_eq!(
            (list.pop().unwrap(), list.is_empty().unwrap()),
            (None, true)
        );

        let names = manager.namespace().unwrap();
        names.set("x", &1.5).unwrap();
        in_child!(
            method,
            |names: NamespaceProxy| names.set("y", &(1, "two")).unwrap(),
            (names.clone(),)
        );
        assert_eq!(names.get("x").unwrap(), Some(1.5));
        assert_eq!(names.get("y").unwrap(), Some((1, "two".to_string())));
        let error = names.get::<Vec<String>>("x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert_eq!(names.names().unwrap().len(), 2);
        assert!(names.remove("x").unwrap() && !names.remove("x").unwrap());

        let value = manager.value(0).unwrap();
        let children: Vec<_> = (0..3)
            .map(|_| {
                let add = |value: ValueProxy<i32>| {
                    (0..100).for_each(|_| _ = value.update(|n| n + 1).unwrap());
                };
                let builder = Process::builder().start_method(method);
                builder.start(add, (value.clone(),)).unwrap()
            })
            .collect();
        children
            .into_iter()
            .for_each(|child| child.result().unwrap());
        assert_eq!(value.get().unwrap(), 300);

        let array = manager.array(["a".to_string(), "b".into()]).unwrap();
        assert!(array.set(1, &"c".into()).unwrap() && !array.set(2, &"d".into()).unwrap());
        assert_eq!(array.to_vec().unwrap(), ["a", "c"]);
        assert_eq!(array.len().unwrap(), 2);
    });
}

#[test]
fn locks_exclude_and_wait() {
    each_method(|method| {
        let manager = start(method);
        let lock = manager.lock().unwrap();
        let guard = lock.lock().unwrap();
        assert!(
            matches!(lock.try_lock(), Err(LockError::Failed(error)) if error.kind() == ErrorKind::Busy)
        );
        in_child!(
            method,
            |lock: LockProxy| {
                assert!(matches!(lock.try_lock(), Err(LockError::Unavailable)));
                let before = Instant::now();
                assert!(matches!(
                    lock.lock_timeout(SOON),
                    Err(LockError::Unavailable)
                ));
                assert!(before.elapsed() >= SOON);
            },
            (lock.clone(),)
        );
        let (ready, is_ready) = channel::<()>().unwrap();
        let child = Process::builder().start_method(method).start(
            |lock: LockProxy, ready: bunshin::Sender<()>| {
                ready.send(()).unwrap();
                drop(lock.lock().unwrap());
            },
            (lock.clone(), ready),
        );
        is_ready.recv().unwrap();
        drop(guard);
        child.unwrap().result().unwrap();
        drop(lock.lock_timeout(LONG).unwrap());

        let lock = manager.rlock().unwrap();
        let outer = lock.lock().unwrap();
        let inner = lock.try_lock().unwrap();
        drop(outer);
        in_child!(
            method,
            |lock: RLockProxy| assert!(lock.try_lock().is_err()),
            (lock.clone(),)
        );
        drop(inner);
        in_child!(
            method,
            |lock: RLockProxy| drop(lock.try_lock().unwrap()),
            (lock.clone(),)
        );
    });
}

#[test]
fn semaphores_events_and_barriers_work() {
    each_method(|method| {
        let manager = start(method);
        let semaphore = manager.semaphore(1).unwrap();
        let permit = semaphore.acquire().unwrap();
        assert!(matches!(
            semaphore.try_acquire(),
            Err(LockError::Unavailable)
        ));
        assert!(matches!(
            semaphore.acquire_timeout(SOON),
            Err(LockError::Unavailable)
        ));
        let child = Process::builder().start_method(method).start(
            |semaphore: SemaphoreProxy| semaphore.acquire().unwrap().forget().unwrap(),
            (semaphore.clone(),),
        );
        drop(permit);
        child.unwrap().result().unwrap();
        assert_eq!(semaphore.available_permits().unwrap(), 0);
        semaphore.release(2).unwrap();
        assert_eq!(semaphore.available_permits().unwrap(), 2);
        let bounded = manager.bounded_semaphore(1).unwrap();
        assert_eq!(
            bounded.release(1).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );

        let event = manager.event().unwrap();
        assert!(!event.is_set().unwrap() && !event.wait_timeout(SOON).unwrap());
        let child = Process::builder()
            .start_method(method)
            .start(|event: EventProxy| event.set().unwrap(), (event.clone(),));
        event.wait().unwrap();
        assert!(event.is_set().unwrap() && event.wait_timeout(Duration::ZERO).unwrap());
        child.unwrap().result().unwrap();
        event.clear().unwrap();
        assert!(!event.is_set().unwrap());

        let barrier = manager.barrier(3).unwrap();
        let sum = manager.value(0usize).unwrap();
        let children: Vec<_> = (0..2)
            .map(|_| {
                let pass = |barrier: BarrierProxy, sum: ValueProxy<usize>| {
                    let place = barrier.wait_with(|| _ = sum.update(|n| n + 100).unwrap());
                    place.unwrap()
                };
                let arguments = (barrier.clone(), sum.clone());
                let builder = Process::builder().start_method(method);
                builder.start(pass, arguments).unwrap()
            })
            .collect();
        let mut places = vec![
            barrier
                .wait_with(|| _ = sum.update(|n| n + 100).unwrap())
                .unwrap(),
        ];
        assert_eq!(
            sum.get().unwrap(),
            100,
            "one of them acts, before any goes on"
        );
        places.extend(children.into_iter().map(|child| child.result().unwrap()));
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2]);
        assert!(matches!(
            barrier.wait_timeout(SOON),
            Err(BarrierError::TimedOut)
        ));
        assert!(barrier.is_broken().unwrap());
        assert!(matches!(barrier.wait(), Err(BarrierError::Broken)));
        barrier.reset().unwrap();
        assert_eq!(
            (barrier.waiting().unwrap(), barrier.parties().unwrap()),
            (0, 3)
        );
    });
}

#[test]
fn a_condition_wakes_those_who_wait() {
    each_method(|method| {
        let manager = start(method);
        let condition = manager.condition().unwrap();
        let turn = manager.value(0u32).unwrap();
        let children: Vec<_> = (1..4u32)
            .map(|own| {
                let take_turn = |condition: ConditionProxy, turn: ValueProxy<u32>, own: u32| {
                    let mut guard = condition.lock().unwrap();
                    guard.wait_for(|| Ok(turn.get()? == own)).unwrap();
                    turn.set(&(own + 1)).unwrap();
                    guard.notify_all().unwrap();
                };
                let arguments = (condition.clone(), turn.clone(), own);
                let builder = Process::builder().start_method(method);
                builder.start(take_turn, arguments).unwrap()
            })
            .collect();
        let mut guard = condition.lock().unwrap();
        assert!(!guard.wait_timeout(SOON).unwrap(), "nobody notifies yet");
        turn.set(&1).unwrap();
        guard.notify_all().unwrap();
        guard.wait_for(|| Ok(turn.get()? == 4)).unwrap();
        drop(guard);
        children
            .into_iter()
            .for_each(|child| child.result().unwrap());
        let mut guard = condition.lock().unwrap();
        assert!(!guard.wait_for_timeout(|| Ok(false), SOON).unwrap());
        assert!(!guard.notify_one().unwrap());
    });
}

#[test]
fn queues_pass_items_on_and_wait() {
    each_method(|method| {
        let manager = start(method);
        let queue = manager.queue::<u32>(2).unwrap();
        assert!(matches!(queue.try_recv(), Err(TryRecvError::Empty)));
        assert!(matches!(
            queue.recv_timeout(SOON),
            Err(RecvTimeoutError::Timeout)
        ));
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        assert!(matches!(queue.try_send(3), Err(TrySendError::Full(3))));
        assert!(matches!(
            queue.send_timeout(3, SOON),
            Err(TrySendError::Full(3))
        ));
        assert_eq!(
            (queue.len().unwrap(), queue.is_empty().unwrap()),
            (2, false)
        );
        let child = Process::builder().start_method(method).start(
            |queue: QueueProxy<u32>| (3..100).for_each(|n| queue.send(n).unwrap()),
            (queue.clone(),),
        );
        for expected in 1..100 {
            assert_eq!(queue.recv().unwrap(), expected);
        }
        child.unwrap().result().unwrap();

        let tasks = manager.queue::<u32>(0).unwrap();
        assert!(tasks.try_join().unwrap());
        (0..10).for_each(|n| tasks.send(n).unwrap());
        assert!(!tasks.join_timeout(SOON).unwrap());
        let child = Process::builder().start_method(method).start(
            |tasks: QueueProxy<u32>| {
                (0..10).for_each(|_| {
                    tasks.recv().unwrap();
                    tasks.task_done().unwrap();
                });
            },
            (tasks.clone(),),
        );
        tasks.join().unwrap();
        child.unwrap().result().unwrap();
        assert_eq!(
            tasks.task_done().unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    });
}

/// An object of the program's own.
struct Stack<T> {
    items: Vec<T>,
}

#[managed]
impl<T> Stack<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned + Clone + Send + Sync,
    T: 'static,
{
    pub(crate) fn new(items: Vec<T>) -> Self {
        Self { items }
    }

    pub(crate) fn push(&mut self, item: T) -> usize {
        self.items.push(item);
        self.items.len()
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        self.items.pop()
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.items.clone()
    }
}

/// One whose methods wait, fail, and use what else there is.
struct Desk {
    seen: Option<ListProxy<String>>,
    gate: std::sync::Barrier,
    on_drop: Option<bunshin::Sender<u8>>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some(on_drop) = &self.on_drop {
            let _ = on_drop.send(1);
        }
    }
}

#[managed(DeskStand)]
impl Desk {
    pub(crate) fn new() -> Self {
        Self {
            seen: None,
            gate: std::sync::Barrier::new(3),
            on_drop: None,
        }
    }

    pub(crate) fn tell_end(&mut self, on_drop: bunshin::Sender<u8>) {
        self.on_drop = Some(on_drop);
    }

    /// Returns only if three callers are in here at once.
    pub(crate) fn meet(&self) -> bool {
        self.gate.wait().is_leader()
    }

    pub(crate) fn fail(&mut self, why: &str) {
        panic!("{why}, on purpose");
    }

    pub(crate) fn keep(&mut self, list: ListProxy<String>) {
        self.seen = Some(list);
    }

    pub(crate) fn note(&self, words: &[String]) -> Option<ListProxy<String>> {
        let list = self.seen.as_ref()?;
        list.extend(words.iter().cloned()).expect("it is our own");
        Some(list.clone())
    }

    pub(crate) fn halve(&self, numbers: Buffer<f64>) -> Buffer<f64> {
        let mut numbers = numbers;
        numbers.as_mut_slice().iter_mut().for_each(|n| *n /= 2.0);
        numbers
    }
}

#[test]
fn types_of_the_program_are_managed() {
    each_method(|method| {
        let manager = start(method);
        let stack = StackProxy::new(&manager, vec!["a".to_string()]).unwrap();
        in_child!(
            method,
            |stack: StackProxy<String>| assert_eq!(stack.push("b".into()).unwrap(), 2),
            (stack.clone(),)
        );
        assert_eq!(stack.all().unwrap(), ["a", "b"]);
        assert_eq!(stack.pop().unwrap().as_deref(), Some("b"));

        let desk = DeskStand::new(&manager).unwrap();
        match desk.fail("it breaks") {
            Err(CallError::Panicked(panic)) => {
                assert_eq!(panic.message(), "it breaks, on purpose");
                assert!(panic.location().unwrap().contains("manager.rs"));
            }
            other => panic!("not what was expected: {other:?}"),
        }
        let list = manager.list(Vec::<String>::new()).unwrap();
        assert!(desk.note(&["lost".to_string()]).unwrap().is_none());
        desk.keep(list.clone()).unwrap();
        let same = desk.note(&["kept".to_string()]).unwrap().unwrap();
        assert_eq!(same.to_vec().unwrap(), ["kept"]);
        assert_eq!(list.to_vec().unwrap(), ["kept"]);
        let halves = desk.halve(Buffer::from(vec![3.0; 100_000])).unwrap();
        assert!(halves.len() == 100_000 && halves.iter().all(|half| *half == 1.5));
        let (on_drop, dropped) = channel().unwrap();
        desk.tell_end(on_drop).unwrap();
        drop(desk);
        assert_eq!(dropped.recv().unwrap(), 1);
    });
}

#[test]
fn methods_run_side_by_side() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let desk = Arc::new(DeskStand::new(&manager).unwrap());
    let leaders: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| usize::from(desk.meet().unwrap())))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(leaders, 1);
}

#[test]
fn a_pool_lives_in_the_server() {
    each_method(|method| {
        let manager = start(method);
        let pool = manager.pool(2).unwrap();
        let squares = in_child!(
            method,
            |pool: PoolProxy| pool.map(|n: u64| n * n, 0..5).unwrap(),
            (pool.clone(),)
        );
        assert_eq!(squares, [0, 1, 4, 9, 16]);
        let each = pool
            .map_each(
                |n: u32| match n {
                    1 => panic!("one"),
                    2 => std::process::exit(3),
                    n => n,
                },
                0..4,
            )
            .unwrap();
        assert!(matches!(each[0], Ok(0)) && matches!(each[3], Ok(3)));
        assert!(matches!(&each[1], Err(TaskError::Panicked(panic)) if panic.message() == "one"));
        assert!(
            matches!(&each[2], Err(TaskError::Lost(lost)) if lost.status().unwrap().code() == Some(3))
        );
    });
}

#[test]
fn proxies_lie_in_each_other_and_in_any_message() {
    each_method(|method| {
        let manager = start(method);
        let other = start(method);
        let outer = manager.dict::<u32, ListProxy<String>>().unwrap();
        outer
            .insert(&1, &manager.list(["one".to_string()]).unwrap())
            .unwrap();
        // A list of another server's.
        outer
            .insert(&2, &other.list(["two".to_string()]).unwrap())
            .unwrap();
        let (objects, _) = manager.census().unwrap();
        assert_eq!(objects, 2, "the dict keeps its list");
        assert_eq!(other.census().unwrap().0, 1, "and that of the other server");
        let (sender, receiver) = channel::<Vec<ListProxy<String>>>().unwrap();
        in_child!(
            method,
            |outer: DictProxy<u32, ListProxy<String>>,
             sender: bunshin::Sender<Vec<ListProxy<String>>>| {
                let lists = outer.values().unwrap();
                for list in &lists {
                    list.push(&"more".to_string()).unwrap();
                }
                // Both are sent, and this process ends before they are received.
                sender.send(lists).unwrap();
                outer.clear().unwrap();
            },
            (outer.clone(), sender)
        );
        let lists = receiver.recv().unwrap();
        let mut firsts: Vec<_> = lists
            .iter()
            .map(|list| list.get(0).unwrap().unwrap())
            .collect();
        firsts.sort();
        assert_eq!(firsts, ["one", "two"]);
        assert!(
            lists
                .iter()
                .all(|list| list.get(1).unwrap().unwrap() == "more")
        );
        drop(lists);
        let is_gone = || other.census().unwrap().0 == 0 && manager.census().unwrap().0 == 1;
        assert!(
            support::wait_until(LONG, is_gone),
            "nothing refers to them any more"
        );
    });
}

#[test]
fn ten_thousand_proxies_come_and_go() {
    let _guard = support::guard_after(120, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let lists: Vec<_> = (0..10_000).map(|n| manager.list([n]).unwrap()).collect();
    let before = support::open_descriptors(std::process::id());
    let child = Process::start(
        |lists: Vec<ListProxy<i32>>| -> i32 {
            lists.iter().map(|list| list.get(0).unwrap().unwrap()).sum()
        },
        (lists.clone(),),
    );
    assert_eq!(child.unwrap().result().unwrap(), (0..10_000).sum());
    let dict = manager.dict::<String, Vec<ListProxy<i32>>>().unwrap();
    dict.insert("all", &lists).unwrap();
    assert!(support::open_descriptors(std::process::id()) <= before + 20);
    drop(lists);
    assert_eq!(manager.census().unwrap().0, 10_001);
    let again: Vec<ListProxy<i32>> = dict.remove("all").unwrap().unwrap();
    assert_eq!(again[9_999].get(0).unwrap(), Some(9_999));
    drop(again);
    assert!(support::wait_until(LONG, || manager.census().unwrap().0 == 1));
}

#[test]
fn a_long_chain_of_objects_ends_as_a_short_one_does() {
    let _guard = support::guard_after(120, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let mut outermost = manager.namespace().unwrap();
    for _ in 0..20_000 {
        let outer = manager.namespace().unwrap();
        outer.set("inner", &outermost).unwrap();
        outermost = outer;
    }
    assert_eq!(manager.census().unwrap().0, 20_001);
    drop(outermost);
    assert!(support::wait_until(LONG, || manager.census().unwrap().0 == 0));
}

#[test]
fn a_proxy_of_another_type_is_refused() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let values = manager.namespace().unwrap();
    values.set("list", &manager.list([1]).unwrap()).unwrap();
    assert_eq!(
        values.get::<LockProxy>("list").unwrap_err().kind(),
        ErrorKind::Decode
    );
    let list = values.get::<ListProxy<i32>>("list").unwrap().unwrap();
    assert_eq!(list.to_vec().unwrap(), [1]);
    values.remove("list").unwrap();
    drop(list);
    assert!(support::wait_until(LONG, || manager.census().unwrap().0 == 1));
}

#[test]
fn large_values_and_handles_are_kept() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let dict = manager.dict::<String, Buffer<u8>>().unwrap();
    dict.insert("mib", &Buffer::from(vec![7; 1 << 20])).unwrap();
    for _ in 0..50 {
        assert_eq!(dict.get("mib").unwrap().unwrap().len(), 1 << 20);
    }
    // Shared memory in a list: every copy is the same lock.
    let locks = manager.list([bunshin::Lock::new().unwrap()]).unwrap();
    let lock = locks.get(0).unwrap().unwrap();
    let guard = lock.lock().unwrap();
    let refused = in_child!(
        StartMethod::Forkserver,
        |locks: ListProxy<bunshin::Lock>| locks.get(0).unwrap().unwrap().try_lock().is_err(),
        (locks.clone(),)
    );
    assert!(refused);
    drop(guard);
    // A pipe's end passes through a queue.
    let ends = manager.queue(0).unwrap();
    let (sender, receiver) = channel::<u8>().unwrap();
    ends.send(sender).unwrap();
    ends.recv().unwrap().send(5).unwrap();
    assert_eq!(receiver.recv().unwrap(), 5);
    assert!(receiver.recv().is_err(), "the end was moved, not copied");
}

#[test]
fn a_shutdown_drops_what_the_program_has_there() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let list = manager.list([1]).unwrap();
    assert!(manager.shutdown().unwrap().unwrap().success());
    assert!(list.get(0).unwrap_err().is_disconnected());
}

#[test]
fn a_scope_uses_what_is_around_it() {
    each_method(|method| {
        let manager = start(method);
        let total = manager.value(0).unwrap();
        let lock = manager.lock().unwrap();
        bunshin::scope(|scope| {
            for _ in 0..3 {
                let work = || {
                    for _ in 0..50 {
                        let guard = lock.lock().unwrap();
                        total.set(&(total.get().unwrap() + 1)).unwrap();
                        drop(guard);
                    }
                };
                scope.spawn(work).unwrap();
            }
        });
        assert_eq!(total.get().unwrap(), 150);
    });
}
