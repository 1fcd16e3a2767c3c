//! Managers over a network: every kind of object from far away, who gets in, and what becomes of
//! what a client had that is killed or cut off. Peers that mean harm are in
//! `manager_remote/hostile.rs`.

#[path = "manager_remote/crash.rs"]
mod crash;
#[path = "manager_remote/hostile.rs"]
mod hostile;
mod support;
#[cfg(feature = "tls")]
#[path = "manager_remote/tls.rs"]
mod tls;

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use bunshin::manager::{
    BarrierProxy, ConditionProxy, DictProxy, EventProxy, ListProxy, LockProxy, QueueProxy,
    SemaphoreProxy, ValueProxy,
};
use bunshin::{
    Address, Buffer, CallError, ErrorKind, LockError, Manager, RecvTimeoutError, Sender,
    StartMethod, channel, managed,
};
use support::{each_method, start_daemon as child};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(50);

fn start(method: StartMethod) -> Manager {
    Manager::builder().start_method(method).build().unwrap()
}

/// A manager, and where it is served.
fn serve(method: StartMethod) -> (Manager, Address) {
    let manager = start(method);
    let address = manager.serve("secret").bind("127.0.0.1:0").unwrap();
    (manager, address)
}

fn connect(address: &str) -> Manager {
    Manager::connect(address, "secret").unwrap()
}

#[test]
fn every_kind_of_object_works_from_far_away() {
    each_method(|method| {
        let (manager, address) = serve(method);
        let far = |address: String| {
            let there = connect(&address);
            let dict = there.dict::<String, Vec<u32>>().unwrap();
            assert_eq!(dict.insert("a", &vec![1]).unwrap(), None);
            assert_eq!(dict.insert("a", &vec![2]).unwrap(), Some(vec![1]));
            assert_eq!(dict.get("b").unwrap(), None);
            dict.update([("b".to_string(), vec![]), ("c".into(), vec![3])])
                .unwrap();
            let keys: BTreeSet<String> = dict.keys().unwrap().into_iter().collect();
            assert_eq!(keys.into_iter().collect::<String>(), "abc");
            let list = there.list([1, 2, 3]).unwrap();
            list.push(&4).unwrap();
            assert_eq!(list.to_vec().unwrap(), [1, 2, 3, 4]);
            let names = there.namespace().unwrap();
            names.set("x", &1.5).unwrap();
            assert_eq!(names.get("x").unwrap(), Some(1.5));
            let value = there.value(7).unwrap();
            assert_eq!(value.update(|n| n + 1).unwrap(), 7);
            assert_eq!(there.array([1u8, 2]).unwrap().to_vec().unwrap(), [1, 2]);
            let rlock = there.rlock().unwrap();
            let outer = rlock.lock().unwrap();
            drop((rlock.lock().unwrap(), outer));
            let semaphore = there.bounded_semaphore(1).unwrap();
            let permit = semaphore.acquire().unwrap();
            assert!(matches!(
                semaphore.try_acquire(),
                Err(LockError::Unavailable)
            ));
            drop(permit);
            let condition = there.condition().unwrap();
            assert!(!condition.lock().unwrap().wait_timeout(SOON).unwrap());
            let event = there.event().unwrap();
            assert!(!event.wait_timeout(SOON).unwrap());
            event.set().unwrap();
            event.wait().unwrap();
            assert!(there.barrier(1).unwrap().wait().is_ok());
            let queue = there.queue::<Buffer<u8>>(0).unwrap();
            // Larger than what goes through a ring at once, and not beside it.
            queue.send(Buffer::from(vec![5; 3 << 20])).unwrap();
            assert!(queue.recv().unwrap().iter().all(|byte| *byte == 5));
            assert!(matches!(
                queue.recv_timeout(SOON),
                Err(RecvTimeoutError::Timeout)
            ));
            there.census().unwrap()
        };
        let ended = child(method, far, (address.to_string(),)).result().unwrap();
        assert_eq!(ended.1, 2, "this process, and the one far away");
        assert!(support::wait_until(LONG, || manager.census().unwrap() == (0, 1)));
    });
}

#[test]
fn what_is_published_is_found_if_it_is_of_that_type() {
    each_method(|method| {
        let (manager, address) = serve(method);
        let scores = manager.dict::<String, ListProxy<u32>>().unwrap();
        scores.insert("ann", &manager.list([3]).unwrap()).unwrap();
        assert!(!manager.publish("scores", &scores).unwrap());
        let lock = manager.lock().unwrap();
        manager
            .publish("both", &(scores.clone(), lock.clone()))
            .unwrap();
        let guard = lock.lock().unwrap();
        let far = |address: String| {
            let there = connect(&address);
            assert!(there.find::<LockProxy>("nothing").unwrap().is_none());
            let error = there.find::<LockProxy>("scores").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TypeMismatch);
            assert!(error.to_string().contains("DictProxy"), "{error}");
            type Both = (DictProxy<String, ListProxy<u32>>, LockProxy);
            let (scores, lock) = there.find::<Both>("both").unwrap().unwrap();
            assert!(matches!(
                lock.lock_timeout(SOON),
                Err(LockError::Unavailable)
            ));
            scores.get("ann").unwrap().unwrap().push(&4).unwrap();
            // Made here, and kept by what lies there.
            scores.insert("bob", &there.list([9]).unwrap()).unwrap();
            there.publish("mine", &there.value(1).unwrap()).unwrap()
        };
        assert!(!child(method, far, (address.to_string(),)).result().unwrap());
        drop(guard);
        assert_eq!(
            scores.get("ann").unwrap().unwrap().to_vec().unwrap(),
            [3, 4]
        );
        assert_eq!(scores.get("bob").unwrap().unwrap().to_vec().unwrap(), [9]);
        let mine: ValueProxy<i32> = manager.find("mine").unwrap().unwrap();
        assert_eq!(mine.get().unwrap(), 1);
        assert!(manager.unpublish("mine").unwrap() && !manager.unpublish("mine").unwrap());
    });
}

#[test]
fn waits_end_by_what_others_do_near_and_far() {
    each_method(|method| {
        let (manager, address) = serve(method);
        let lock = manager.lock().unwrap();
        let queue = manager.queue::<u32>(1).unwrap();
        let back = manager.queue::<u32>(1).unwrap();
        let condition = manager.condition().unwrap();
        let barrier = manager.barrier(2).unwrap();
        let event = manager.event().unwrap();
        type All = (
            LockProxy,
            [QueueProxy<u32>; 2],
            ConditionProxy,
            BarrierProxy,
            EventProxy,
        );
        let all: All = (
            lock.clone(),
            [queue.clone(), back.clone()],
            condition.clone(),
            barrier.clone(),
            event.clone(),
        );
        manager.publish("all", &all).unwrap();
        let guard = lock.lock().unwrap();
        let far = |address: String| {
            let there = connect(&address);
            let (lock, [queue, back], condition, barrier, event) =
                there.find::<All>("all").unwrap().unwrap();
            event.set().unwrap();
            drop(lock.lock().unwrap());
            assert_eq!(queue.recv().unwrap(), 1);
            back.send(2).unwrap();
            back.send(3).unwrap();
            let mut guard = condition.lock().unwrap();
            event.clear().unwrap();
            guard.wait().unwrap();
            drop(guard);
            barrier.wait().is_ok()
        };
        let waits = child(method, far, (address.to_string(),));
        event.wait().unwrap();
        thread::sleep(SOON);
        drop(guard);
        queue.send(1).unwrap();
        assert_eq!((back.recv().unwrap(), back.recv().unwrap()), (2, 3));
        assert!(support::wait_until(LONG, || !event.is_set().unwrap()));
        let guard = condition.lock().unwrap();
        assert!(guard.notify_one().unwrap());
        drop(guard);
        barrier.wait().unwrap();
        assert!(waits.result().unwrap());
    });
}

#[test]
fn proxies_from_far_away_go_to_other_processes_of_their_machine() {
    each_method(|method| {
        let (manager, address) = serve(method);
        let there = connect(&address.to_string());
        let list = there.list([1]).unwrap();
        let work = |list: ListProxy<u32>, again: ListProxy<u32>| {
            list.push(&2).unwrap();
            again.push(&3).unwrap();
            list
        };
        // The only proxies are those in the messages.
        let given = child(method, work, (list.clone(), list)).result().unwrap();
        assert_eq!(given.to_vec().unwrap(), [1, 2, 3]);
        let (sender, receiver) = channel().unwrap();
        sender.send(given).unwrap();
        // It lies in the pipe, and is kept.
        assert_eq!(there.census().unwrap().0, 1);
        let given = receiver.recv().unwrap();
        assert_eq!(given.to_vec().unwrap(), [1, 2, 3]);
        sender.send(given).unwrap();
        drop((sender, receiver));
        assert!(support::wait_until(LONG, || manager.census().unwrap().0 == 0));
        // An object of a manager near, which keeps one far away.
        let near = start(method);
        let dict = near.dict::<u8, ListProxy<u32>>().unwrap();
        dict.insert(&1, &there.list([7]).unwrap()).unwrap();
        assert_eq!(dict.get(&1).unwrap().unwrap().to_vec().unwrap(), [7]);
        dict.clear().unwrap();
        assert!(support::wait_until(LONG, || manager.census().unwrap().0 == 0));
    });
}

struct Account {
    balance: i64,
    history: Vec<i64>,
}

#[managed]
impl Account {
    pub(crate) fn open(balance: i64) -> Self {
        Self {
            balance,
            history: Vec::new(),
        }
    }

    pub(crate) fn withdraw(&mut self, amount: i64) -> i64 {
        assert!(amount <= self.balance, "{amount} is more than there is");
        self.balance -= amount;
        self.history.push(amount);
        self.balance
    }

    pub(crate) fn copy_to(&self, list: ListProxy<i64>) -> ListProxy<i64> {
        list.extend(self.history.iter().copied()).unwrap();
        list
    }

    pub(crate) fn pipe(&self) -> bunshin::Receiver<u8> {
        channel().unwrap().1
    }

    pub(crate) fn rest(&self, millis: u64) {
        thread::sleep(Duration::from_millis(millis));
    }
}

#[test]
fn methods_of_objects_of_the_program_s_own_are_called_from_far_away() {
    each_method(|method| {
        let (manager, address) = serve(method);
        let account = AccountProxy::open(&manager, 100).unwrap();
        manager.publish("account", &account).unwrap();
        let far = |address: String| {
            let there = connect(&address);
            let account: AccountProxy = there.find("account").unwrap().unwrap();
            assert_eq!(account.withdraw(30).unwrap(), 70);
            match account.withdraw(300) {
                Err(CallError::Panicked(panic)) => {
                    assert_eq!(panic.message(), "300 is more than there is");
                }
                other => panic!("{other:?}"),
            }
            let list = account.copy_to(there.list([]).unwrap()).unwrap();
            assert_eq!(list.to_vec().unwrap(), [30]);
            // A pipe stays on its machine.
            let error = account.pipe().unwrap_err();
            assert!(matches!(&error, CallError::Result(_)), "{error:?}");
            assert!(error.to_string().contains("stays on"), "{error}");
            // Nothing that names a place in the program comes over a network.
            for error in [
                AccountProxy::open(&there, 1).unwrap_err(),
                there.pool(1).map(|_| ()).unwrap_err(),
            ] {
                match error {
                    CallError::Failed(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
                    other => panic!("{other:?}"),
                }
            }
            let refused = there.serve("key").bind("@").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
            // Ending a client ends no server.
            assert!(there.shutdown().unwrap().is_none());
            account.withdraw(1).unwrap()
        };
        assert_eq!(
            child(method, far, (address.to_string(),)).result().unwrap(),
            69
        );
        assert_eq!(account.withdraw(9).unwrap(), 60);
    });
}

#[test]
fn what_cannot_leave_its_machine_is_refused_by_name() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let (manager, address) = serve(StartMethod::Forkserver);
    let there = connect(&address.to_string());
    let dict = there.dict::<u8, Sender<u8>>().unwrap();
    let error = dict.insert(&1, &channel().unwrap().0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("Sender<u8>"), "{error}");
    let array = bunshin::Array::<u32>::new(4).unwrap();
    let error = there.list([array]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("Array<u32>"), "{error}");
    // What a process near has put in stays, and is for those near.
    let queue = manager.queue::<Sender<u8>>(0).unwrap();
    let dict = manager.dict::<u8, Sender<u8>>().unwrap();
    let (sender, receiver) = channel().unwrap();
    dict.insert(&1, &sender).unwrap();
    queue.send(sender).unwrap();
    manager.publish("dict", &dict).unwrap();
    let far: DictProxy<u8, Sender<u8>> = there.find("dict").unwrap().unwrap();
    let error = far.get(&1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    // The connection is as good as before, and so is the value.
    assert_eq!(far.len().unwrap(), 1);
    dict.get(&1).unwrap().unwrap().send(5).unwrap();
    assert_eq!(receiver.recv().unwrap(), 5);
}

#[test]
fn many_clients_call_side_by_side() {
    let _guard = support::guard_after(170, support::start_each_way_once);
    let (manager, address) = serve(StartMethod::Forkserver);
    let total = manager.value(0u64).unwrap();
    let queue = manager.queue::<u64>(0).unwrap();
    manager.publish("total", &total).unwrap();
    manager.publish("queue", &queue).unwrap();
    let work = |address: String| {
        let there = connect(&address);
        // A client's threads wait at the same time, each over a connection of its own.
        thread::scope(|scope| {
            for _ in 0..3 {
                let there = &there;
                scope.spawn(move || {
                    let total: ValueProxy<u64> = there.find("total").unwrap().unwrap();
                    let queue: QueueProxy<u64> = there.find("queue").unwrap().unwrap();
                    for _ in 0..50 {
                        let item = queue.recv().unwrap();
                        total.update(|sum| sum + item).unwrap();
                        queue.task_done().unwrap();
                    }
                });
            }
        });
    };
    let clients: Vec<_> = (0..8)
        .map(|_| child(StartMethod::Forkserver, work, (address.to_string(),)))
        .collect();
    for n in 1..=8 * 3 * 50 {
        queue.send(n).unwrap();
    }
    assert!(queue.join_timeout(Duration::from_secs(120)).unwrap());
    for client in clients {
        client.result().unwrap();
    }
    assert_eq!(total.get().unwrap(), 1200 * 1201 / 2);
    assert!(support::wait_until(LONG, || manager.census().unwrap().1 == 1));
}

#[test]
fn every_kind_of_address_is_served_and_leaves_nothing() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let path = std::env::temp_dir().join(format!("bunshin-{}-manager.sock", std::process::id()));
    let manager = start(StartMethod::Forkserver);
    manager.publish("n", &manager.value(5).unwrap()).unwrap();
    let serve = || manager.serve("secret");
    for address in [
        serve().bind(&path).unwrap(),
        serve().bind("@").unwrap(),
        serve().bind("localhost:0").unwrap(),
    ] {
        let there = Manager::connect(&address, "secret").unwrap();
        let n: ValueProxy<i32> = there.find("n").unwrap().unwrap();
        assert_eq!(n.get().unwrap(), 5);
        assert!(there.pid().is_none());
    }
    let taken = serve().bind(&path).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Os, "{taken}");
    let nowhere = serve().bind("nowhere").unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::InvalidInput);
    let keyless = manager.serve("").bind("@").unwrap_err();
    assert_eq!(keyless.kind(), ErrorKind::InvalidInput);
    assert_eq!(
        Manager::connect("@x", "").unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(path.exists());
    drop(manager);
    assert!(!path.exists());
}

#[test]
fn a_forked_child_is_a_client_of_its_own() {
    support::in_single_thread(|| {
        let (manager, address) = serve(StartMethod::Spawn);
        let there = connect(&address.to_string());
        let lock = there.lock().unwrap();
        let list = there.list([1u8]).unwrap();
        let guard = lock.lock().unwrap();
        bunshin::scope(|scope| {
            let child = scope.spawn(|| {
                list.push(&2).unwrap();
                assert!(matches!(lock.try_lock(), Err(LockError::Unavailable)));
                there.census().is_ok()
            });
            assert!(child.unwrap().result().unwrap());
        });
        drop(guard);
        assert_eq!(list.to_vec().unwrap(), [1, 2]);
        drop(lock.lock().unwrap());
        assert!(support::wait_until(LONG, || manager.census().unwrap().1 == 2));
    });
}
