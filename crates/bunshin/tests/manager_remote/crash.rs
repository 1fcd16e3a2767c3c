//! Clients and servers that are killed, stopped or cut off.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use support::manager::{churn, kill_clients, objects, random};
use support::{kill, wait_until};

use super::*;

#[test]
fn whoever_waits_far_away_learns_at_once_that_the_server_is_gone() {
    each_method(|method| {
        let (manager, address) = serve(method);
        manager.publish("lock", &manager.lock().unwrap()).unwrap();
        let lock: LockProxy = manager.find("lock").unwrap().unwrap();
        let _guard = lock.lock().unwrap();
        let wait_on_lock = |address: String, ready: Sender<u8>| {
            let there = connect(&address);
            let lock: LockProxy = there.find("lock").unwrap().unwrap();
            ready.send(1).unwrap();
            let is_gone =
                matches!(lock.lock(), Err(LockError::Failed(error)) if error.is_disconnected());
            // For good: also for what has no connection yet.
            is_gone
                && there.list([1]).unwrap_err().is_disconnected()
                && matches!(there.pool(1), Err(CallError::Disconnected))
        };
        let (ready, is_ready) = channel().unwrap();
        let waits = child(method, wait_on_lock, (address.to_string(), ready));
        is_ready.recv().unwrap();
        thread::sleep(SOON);
        kill(manager.pid().unwrap(), Signal::KILL);
        assert!(waits.result().unwrap());
    });
}

#[test]
fn a_server_killed_at_any_moment_hangs_no_client() {
    let _guard = support::guard_after(170, support::start_each_way_once);
    for _ in 0..12 {
        let (manager, address) = serve(StartMethod::Forkserver);
        let dict = manager.dict::<u64, ListProxy<u64>>().unwrap();
        manager.publish("dict", &dict).unwrap();
        let work = |address: String, own: u64| {
            let run = || -> bunshin::Result<()> {
                let there = Manager::connect(&address, "secret")?;
                let dict: DictProxy<u64, ListProxy<u64>> =
                    there.find("dict")?.expect("it is there");
                let mine = there.list([0])?;
                for n in 0.. {
                    dict.insert(&(own + n % 8), &mine)?;
                    if let Some(list) = dict.get(&(own ^ 1))? {
                        list.push(&n)?;
                    }
                }
                Ok(())
            };
            matches!(
                run().unwrap_err().kind(),
                ErrorKind::Disconnected | ErrorKind::Os
            )
        };
        let clients: Vec<_> = (0..2)
            .map(|own| child(StartMethod::Forkserver, work, (address.to_string(), own)))
            .collect();
        thread::sleep(Duration::from_micros(random(30_000)));
        kill(manager.pid().unwrap(), Signal::KILL);
        for client in clients {
            // One that came too late found nobody there.
            assert!(client.result().unwrap());
        }
    }
}

#[test]
fn what_a_killed_client_far_away_held_goes_to_the_next() {
    each_method(|method| {
        let (manager, address) = serve(method);
        let lock = manager.lock().unwrap();
        let semaphore = manager.semaphore(1).unwrap();
        manager
            .publish("both", &(lock.clone(), semaphore.clone()))
            .unwrap();
        type Both = (LockProxy, SemaphoreProxy);
        let hold = |address: String, ready: Sender<u8>| {
            let there = connect(&address);
            let (lock, semaphore) = there.find::<Both>("both").unwrap().unwrap();
            let _held = (lock.lock().unwrap(), semaphore.acquire().unwrap());
            let _kept = there.list([1]).unwrap();
            ready.send(1).unwrap();
            thread::park();
        };
        let (ready, is_ready) = channel().unwrap();
        let holder = child(method, hold, (address.to_string(), ready));
        is_ready.recv().unwrap();
        assert!(matches!(lock.try_lock(), Err(LockError::Unavailable)));
        assert_eq!(manager.census().unwrap(), (3, 2));
        holder.kill().unwrap();
        match lock.lock_timeout(LONG) {
            Err(abandoned @ LockError::Abandoned(_)) => drop(abandoned.recover().unwrap()),
            _ => panic!("the holder has died"),
        }
        drop(lock.lock_timeout(LONG).unwrap());
        match semaphore.acquire_timeout(LONG) {
            Err(abandoned @ LockError::Abandoned(_)) => drop(abandoned.recover().unwrap()),
            _ => panic!("the holder has died"),
        }
        assert!(wait_until(LONG, || manager.census().unwrap() == (2, 1)));
    });
}

#[test]
fn clients_killed_in_the_middle_cost_only_themselves() {
    let _guard = support::guard_after(170, support::start_each_way_once);
    let (manager, address) = serve(StartMethod::Forkserver);
    let objects = objects(&manager);
    manager.publish("all", &objects).unwrap();
    let work = |address: String| churn(connect(&address).find("all").unwrap().unwrap());
    kill_clients(&manager, objects, 20, || {
        child(StartMethod::Forkserver, work, (address.to_string(),))
    });
}

#[test]
fn waiters_that_die_far_away_take_nothing_along() {
    each_method(|method| {
        let (manager, address) = serve(method);
        let queue = manager.queue::<u32>(0).unwrap();
        let condition = manager.condition().unwrap();
        let barrier = manager.barrier(2).unwrap();
        type All = (QueueProxy<u32>, ConditionProxy, BarrierProxy);
        manager
            .publish("all", &(queue.clone(), condition.clone(), barrier.clone()))
            .unwrap();
        let wait = |address: String, which: u8, ready: Sender<u8>| {
            let there = connect(&address);
            let (queue, condition, barrier) = there.find::<All>("all").unwrap().unwrap();
            let mut guard = (which == 1).then(|| condition.lock().unwrap());
            ready.send(1).unwrap();
            match (which, &mut guard) {
                (0, _) => queue.recv().is_ok(),
                (_, Some(guard)) => guard.wait().is_ok(),
                _ => barrier.wait().is_ok(),
            }
        };
        let victims = [0, 1, 2].map(|which| {
            let (ready, is_ready) = channel().unwrap();
            let victim = child(method, wait, (address.to_string(), which, ready));
            is_ready.recv().unwrap();
            victim
        });
        assert!(wait_until(LONG, || barrier.waiting().unwrap() == 1));
        // Once the lock is to be had, the other one sleeps.
        drop(condition.lock_timeout(LONG).unwrap());
        thread::sleep(SOON);
        for victim in &victims {
            victim.kill().unwrap();
            victim.join().unwrap();
        }
        assert!(wait_until(LONG, || manager.census().unwrap().1 == 1));
        queue.send(7).unwrap();
        assert_eq!(queue.recv_timeout(LONG).unwrap(), 7);
        assert_eq!(
            condition.lock_timeout(LONG).unwrap().notify_all().unwrap(),
            0
        );
        assert!(matches!(
            barrier.wait(),
            Err(bunshin::manager::BarrierError::Broken)
        ));
    });
}

/// Passes bytes on between clients and a server, until it is cut.
struct Cable {
    address: String,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    fn to(server: &Address) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (server, ends) = (server.to_string(), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&ends);
        // It ends with the process.
        thread::spawn(move || {
            for here in listener.incoming() {
                let (here, there) = (here.unwrap(), TcpStream::connect(&server).unwrap());
                for (from, to) in [(&here, &there), (&there, &here)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    thread::spawn(move || {
                        let mut bytes = [0; 4096];
                        while let Ok(count @ 1..) = from.read(&mut bytes) {
                            if to.write_all(&bytes[..count]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                kept.lock().unwrap().extend([here, there]);
            }
        });
        Self { address, ends }
    }

    fn cut(&self) {
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_client_that_is_cut_off_is_over_and_can_come_again() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    // The threads of the cable end with a process of their own.
    let scenario = || {
        let (manager, address) = serve(StartMethod::Spawn);
        let lock = manager.lock().unwrap();
        manager.publish("lock", &lock).unwrap();
        let cable = Cable::to(&address);
        let there = connect(&cable.address);
        let far: LockProxy = there.find("lock").unwrap().unwrap();
        let list = there.list([1]).unwrap();
        let guard = far.lock().unwrap();
        assert!(matches!(lock.try_lock(), Err(LockError::Unavailable)));
        cable.cut();
        // Both sides know, and the lock is somebody else's.
        drop(lock.lock_timeout(LONG).or_else(LockError::recover).unwrap());
        assert!(list.push(&2).unwrap_err().is_disconnected());
        drop(guard);
        assert!(there.list([1]).unwrap_err().is_disconnected());
        assert!(wait_until(LONG, || manager.census().unwrap() == (1, 1)));
        // The address is served as before.
        let again = connect(&cable.address);
        let far: LockProxy = again.find("lock").unwrap().unwrap();
        drop(far.lock().unwrap());
    };
    child(StartMethod::Spawn, scenario, ()).result().unwrap();
}

#[test]
fn a_stopped_server_ends_timed_calls_and_loses_nothing() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let (manager, address) = serve(StartMethod::Forkserver);
    let pid = manager.pid().unwrap();
    let there = connect(&address.to_string());
    let lock = there.lock().unwrap();
    let queue = there.queue::<u32>(0).unwrap();
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    kill(pid, Signal::STOP);
    let short = Duration::from_millis(20);
    assert!(matches!(
        lock.lock_timeout(short),
        Err(LockError::Unavailable)
    ));
    assert!(queue.recv_timeout(short).is_err());
    kill(pid, Signal::CONT);
    // What they would have got is given back.
    let has_all = || queue.len().unwrap() == 2;
    assert!(wait_until(LONG, has_all), "{}", queue.len().unwrap());
    drop(lock.lock_timeout(LONG).unwrap());
    assert_eq!((queue.recv().unwrap(), queue.recv().unwrap()), (1, 2));
}

#[test]
fn idle_connections_are_closed_and_nobody_notices() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let idle = Duration::from_secs(3);
    let address = manager
        .serve("secret")
        .idle_timeout(idle)
        .bind("127.0.0.1:0")
        .unwrap();
    manager.publish("lock", &manager.lock().unwrap()).unwrap();
    let lock: LockProxy = manager.find("lock").unwrap().unwrap();
    let there = Manager::connect(&address, "secret").unwrap();
    let far: LockProxy = there.find("lock").unwrap().unwrap();
    let list = there.list([1]).unwrap();
    let before = sockets_of(manager.pid().unwrap());
    let is_less = || sockets_of(manager.pid().unwrap()) < before;
    assert!(wait_until(LONG, is_less), "it is still open");
    assert_eq!(list.to_vec().unwrap(), [1]);
    // One that waits is not idle.
    let guard = lock.lock().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let guard = far.lock().unwrap();
            // Nor has it been idle when it gets its answer.
            thread::sleep(idle / 4);
            drop(guard);
        });
        thread::sleep(idle * 2);
        assert!(!waits.is_finished());
        drop(guard);
        waits.join().unwrap();
    });
    drop(lock.lock_timeout(LONG).unwrap());
    assert_eq!(list.to_vec().unwrap(), [1]);
}

fn sockets_of(pid: u32) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = folder.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}
