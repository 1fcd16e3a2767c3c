//! What managers owe to those who wait: a leader that dies, a server that is stopped, and time
//! limits that nobody needed.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use bunshin::manager::{BarrierError, BarrierProxy, ListProxy, QueueProxy};
use bunshin::{Manager, Sender, StartMethod, channel};
use rustix::process::Signal;
use support::{each_method, kill, start_daemon as child, wait_until};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

fn start(method: StartMethod) -> Manager {
    Manager::builder().start_method(method).build().unwrap()
}

#[test]
fn a_leader_killed_in_its_action_breaks_the_barrier() {
    each_method(|method| {
        let manager = start(method);
        let barrier = manager.barrier(2).unwrap();
        let wait = |barrier: BarrierProxy| matches!(barrier.wait(), Err(BarrierError::Broken));
        let lead = |barrier: BarrierProxy, acting: Sender<u8>| {
            let stay = || {
                acting.send(1).unwrap();
                thread::park();
            };
            barrier.wait_with(stay).is_ok()
        };
        let (acting, is_acting) = channel().unwrap();
        let member = child(method, wait, (barrier.clone(),));
        assert!(wait_until(LONG, || barrier.waiting().unwrap() == 1));
        let leader = child(method, lead, (barrier.clone(), acting));
        is_acting.recv().unwrap();
        leader.kill().unwrap();
        let told = member.join_timeout(LONG).unwrap();
        assert!(told.is_some(), "the group waits for a leader that is dead");
        assert!(member.result().unwrap());
        assert!(barrier.is_broken().unwrap());
        leader.join().unwrap();
    });
}

#[test]
fn leaders_killed_at_any_moment_hang_nobody() {
    let _guard = support::guard_after(170, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let address = manager.serve("secret").bind("@").unwrap().to_string();
    let barrier = manager.barrier(3).unwrap();
    manager.publish("barrier", &barrier).unwrap();
    for round in 0..30u64 {
        let pass = |address: String, is_far: bool, near: BarrierProxy| {
            let there;
            let barrier = if is_far {
                there = Manager::connect(&address, "secret").unwrap();
                there.find("barrier").unwrap().unwrap()
            } else {
                near
            };
            let mut passed = 0;
            while barrier.wait_with(|| ()).is_ok() {
                passed += 1;
            }
            passed
        };
        let parties = [false, true, round % 2 == 0].map(|is_far| {
            let arguments = (address.clone(), is_far, barrier.clone());
            child(StartMethod::Forkserver, pass, arguments)
        });
        thread::sleep(Duration::from_micros(1000 + round * 1300));
        let victim = (round % 3) as usize;
        parties[victim].kill().unwrap();
        parties[victim].join().unwrap();
        // The others have been told, or wait for one that will not come: but not for a leader.
        let is_settled = || {
            let ended = parties.iter().filter(|party| !party.is_alive()).count();
            ended - 1 + barrier.waiting().unwrap() >= 2
        };
        assert!(wait_until(LONG, is_settled), "round {round}");
        barrier.abort().unwrap();
        for party in &parties {
            assert!(party.join_timeout(LONG).unwrap().is_some(), "round {round}");
        }
        barrier.reset().unwrap();
    }
}

#[test]
fn time_limits_that_were_not_needed_are_forgotten() {
    let _guard = support::guard_after(120, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let (there, back) = (manager.queue(1).unwrap(), manager.queue(1).unwrap());
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let echo = |there: QueueProxy<u8>, back: QueueProxy<u8>| {
        while let Ok(item @ 1..) = there.recv_timeout(DAY) {
            back.send(item).unwrap();
        }
    };
    let echo = child(StartMethod::Forkserver, echo, (there.clone(), back.clone()));
    let turns = |n: u32| {
        for _ in 0..n {
            there.send(1).unwrap();
            assert_eq!(back.recv_timeout(DAY).unwrap(), 1);
        }
    };
    turns(2000);
    let memory = || support::resident_bytes(manager.pid().unwrap()).unwrap();
    let before = memory();
    turns(60_000);
    let grown = memory().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes for answers long given");
    there.send(0).unwrap();
    assert!(echo.join().unwrap().success());
}

#[test]
fn a_stopped_server_far_away_is_waited_for_once() {
    let _guard = support::guard_after(120, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let pid = manager.pid().unwrap();
    let serve = manager
        .serve("secret")
        .idle_timeout(Duration::from_millis(100));
    let address = serve.bind("127.0.0.1:0").unwrap();
    let remote = Manager::remote("secret").timeout(Duration::from_secs(1));
    let there = remote.connect(&address).unwrap();
    let lists: Vec<ListProxy<u8>> = (0..30).map(|_| there.list([1]).unwrap()).collect();
    let queue = there.queue::<Vec<u8>>(0).unwrap();
    kill(pid, Signal::STOP);
    let since = Instant::now();
    // A request that no socket holds.
    let long = vec![1; 40 << 20];
    let sent = queue.send_timeout(long, Duration::from_millis(50));
    assert!(sent.is_err(), "the server is stopped");
    // By now, the connection has been idle for too long to be used.
    thread::sleep(Duration::from_millis(100));
    drop(lists);
    let took = since.elapsed();
    kill(pid, Signal::CONT);
    assert!(took < Duration::from_secs(15), "{took:?}");
    drop(queue);
    // What could not be let go of at the time is let go of with the next calls.
    let has_none = || {
        drop(there.list([0]));
        manager.census().unwrap().0 <= 1
    };
    assert!(wait_until(LONG, has_none), "{:?}", manager.census());
}
