//! Ends of pipes that several closures of a scope share, or that were moved into one of them:
//! when the other side is told that they are gone, and when not.

mod support;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bunshin::{
    RawValue, RecvError, RecvTimeoutError, SendError, TryRecvError, channel, pipe, scope, wait,
};
use rustix::process::Signal;
use support::{in_single_thread, wait_until};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

fn guard(seconds: u64) -> support::Guard {
    support::guard(seconds)
}

#[test]
fn a_consumer_that_ends_leaves_the_rest_to_one_that_has_not_begun() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u64>().unwrap();
        scope(|scope| {
            let first = scope.spawn(|| receiver.recv().unwrap()).unwrap();
            let second = scope.spawn(|| {
                thread::sleep(Duration::from_millis(300));
                receiver.iter().map(Result::unwrap).sum::<u64>()
            });
            let second = second.unwrap();
            sender.send(0).unwrap();
            assert_eq!(first.result().unwrap(), 0);
            // More than fits, so that the sender waits.
            for number in 1..=20_000 {
                sender.send(number).unwrap();
            }
            drop(sender);
            assert_eq!(second.result().unwrap(), 200_010_000);
        });
    });
}

#[test]
fn a_producer_that_ends_leaves_the_rest_to_one_that_has_not_begun() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u64>().unwrap();
        scope(|scope| {
            let first = scope.spawn(|| sender.send(1).unwrap()).unwrap();
            let second = scope.spawn(|| {
                thread::sleep(Duration::from_millis(300));
                (2..=100).for_each(|number| sender.send(number).unwrap());
            });
            let second = second.unwrap();
            assert_eq!(receiver.recv().unwrap(), 1);
            first.result().unwrap();
            assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
            assert_eq!(wait(&[&receiver], Some(Duration::ZERO)).unwrap(), []);
            for number in 2..=100 {
                assert_eq!(receiver.recv().unwrap(), number);
            }
            // The second one was the last, and nobody else was given the sender.
            assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
            assert!(matches!(
                receiver.try_recv(),
                Err(TryRecvError::Disconnected)
            ));
            assert_eq!(wait(&[&receiver], None).unwrap(), [0]);
            second.result().unwrap();
        });
    });
}

/// Kills two children that share an end, at any moment, their first use included.
fn kill_both(round: u64, children: [u32; 2]) {
    for (number, pid) in (0..).zip(children) {
        thread::sleep(Duration::from_micros((round + number) * 7919 % 1500));
        support::kill(pid, Signal::KILL);
    }
}

#[test]
fn the_end_of_all_consumers_is_told() {
    let _guard = guard(120);
    in_single_thread(|| {
        for round in 0..60 {
            let (sender, receiver) = channel::<u64>().unwrap();
            scope(|scope| {
                let take = || receiver.iter().for_each(|item| _ = item.unwrap());
                let children = [scope.spawn(take).unwrap(), scope.spawn(take).unwrap()];
                let pids = children.each_ref().map(|child| child.pid());
                let killer = scope.spawn(move || kill_both(round, pids)).unwrap();
                let told = (0..).find_map(|number| sender.send(number).err());
                assert!(
                    matches!(told, Some(SendError::Disconnected(_))),
                    "round {round}: {told:?}"
                );
                killer.join().unwrap();
                children
                    .iter()
                    .for_each(|child| assert!(child.join().is_ok()));
            });
        }
    });
}

#[test]
fn the_end_of_all_producers_is_told() {
    let _guard = guard(120);
    in_single_thread(|| {
        for round in 0..60 {
            let (sender, receiver) = channel::<u64>().unwrap();
            scope(|scope| {
                let produce = || {
                    let mut numbers = 0..50;
                    numbers.try_for_each(|number| sender.send(number)).unwrap();
                    support::sleep_for_ever();
                };
                let children = [scope.spawn(produce).unwrap(), scope.spawn(produce).unwrap()];
                let pids = children.each_ref().map(|child| child.pid());
                let killer = scope.spawn(move || kill_both(round, pids)).unwrap();
                let told = std::iter::repeat_with(|| receiver.recv()).find_map(Result::err);
                assert!(
                    matches!(told, Some(RecvError::Disconnected)),
                    "round {round}: {told:?}"
                );
                killer.join().unwrap();
                children
                    .iter()
                    .for_each(|child| assert!(child.join().is_ok()));
            });
        }
    });
}

#[test]
fn the_end_of_all_who_share_is_told_to_a_sibling() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u64>().unwrap();
        let begun = RawValue::new(0u32).unwrap();
        scope(|scope| {
            let produce = || (0..).find_map(|number| sender.send(number).err()).is_some();
            let producer = scope.spawn(produce).unwrap();
            let take = || {
                receiver.recv().unwrap();
                begun.fetch_add(1, Ordering::SeqCst);
                support::sleep_for_ever();
            };
            let takers = [scope.spawn(take).unwrap(), scope.spawn(take).unwrap()];
            assert!(wait_until(LONG, || begun.load(Ordering::SeqCst) == 2));
            for taker in takers {
                taker.kill().unwrap();
                taker.join().unwrap();
            }
            assert!(producer.result().unwrap());
        });
    });
}

#[test]
fn a_moved_end_is_gone_with_its_child() {
    let _guard = guard(60);
    in_single_thread(|| {
        for is_early in [false, true] {
            let (here, there) = pipe::<u32>().unwrap();
            let (stop, stopped) = channel::<()>().unwrap();
            scope(|scope| {
                // It has a copy of the end that is given to the next one, and never uses it.
                let stopped = &stopped;
                let unrelated = scope.spawn(move || drop(stopped.recv())).unwrap();
                let child = scope.spawn(move || {
                    if !is_early {
                        there.send(1).unwrap();
                    }
                    support::sleep_for_ever();
                    drop(there);
                });
                let child = child.unwrap();
                if !is_early {
                    assert_eq!(here.recv().unwrap(), 1);
                }
                child.kill().unwrap();
                assert!(matches!(
                    here.recv_timeout(LONG),
                    Err(RecvTimeoutError::Disconnected)
                ));
                let told = (0..).find_map(|number| here.send(number).err());
                assert!(matches!(told, Some(SendError::Disconnected(_))));
                assert!(unrelated.is_alive());
                child.join().unwrap();
                stop.send(()).unwrap();
            });
        }
    });
}

#[test]
fn a_moved_end_is_gone_once_its_child_drops_it() {
    let _guard = guard(60);
    in_single_thread(|| {
        for is_used in [false, true] {
            let (sender, receiver) = channel::<u32>().unwrap();
            scope(|scope| {
                let unrelated = scope.spawn(support::sleep_for_ever).unwrap();
                let child = scope.spawn(move || {
                    if is_used {
                        sender.send(1).unwrap();
                    }
                    drop(sender);
                    support::sleep_for_ever();
                });
                let child = child.unwrap();
                if is_used {
                    assert_eq!(receiver.recv().unwrap(), 1);
                }
                assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
                assert!(unrelated.is_alive() && child.is_alive());
                unrelated.kill().unwrap();
                child.kill().unwrap();
                unrelated.join().unwrap();
                child.join().unwrap();
            });
        }
    });
}

#[test]
fn wait_sees_the_end_that_a_sibling_hides() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u32>().unwrap();
        scope(|scope| {
            let unrelated = scope.spawn(support::sleep_for_ever).unwrap();
            let child = scope.spawn(move || {
                sender.send(1).unwrap();
                support::sleep_for_ever();
                drop(sender);
            });
            let child = child.unwrap();
            assert_eq!(receiver.recv().unwrap(), 1);
            let pid = child.pid();
            let killer = scope.spawn(move || {
                thread::sleep(Duration::from_millis(50));
                support::kill(pid, Signal::KILL);
            });
            assert_eq!(wait(&[&receiver], None).unwrap(), [0]);
            assert!(matches!(
                receiver.try_recv(),
                Err(TryRecvError::Disconnected)
            ));
            killer.unwrap().join().unwrap();
            unrelated.kill().unwrap();
            unrelated.join().unwrap();
            child.join().unwrap();
        });
    });
}

/// The process that forks goes on with an end that it shares with its children.
#[test]
fn the_parent_counts_once_it_has_used_an_end_itself() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u32>().unwrap();
        let taken = RawValue::new(0u32).unwrap();
        scope(|scope| {
            sender.send(1).unwrap();
            let consumer = scope.spawn(|| {
                let mut sum = 0;
                for _ in 0..3 {
                    sum += receiver.recv().unwrap();
                    taken.store(sum, Ordering::SeqCst);
                }
                sum
            });
            let consumer = consumer.unwrap();
            let other = scope.spawn(|| sender.send(10).unwrap()).unwrap();
            other.result().unwrap();
            assert!(wait_until(LONG, || taken.load(Ordering::SeqCst) == 11));
            // The consumer has nobody but this process to wait for now.
            thread::sleep(Duration::from_millis(50));
            assert!(consumer.is_alive());
            sender.send(100).unwrap();
            assert_eq!(consumer.result().unwrap(), 111);
        });
    });
}
