//! Forks: the raw call, and scopes whose closures use what is around them.
//!
//! A test harness has threads, and a process with threads is not forked: each test
//! runs in a child that has one.

mod support;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bunshin::{
    Buffer, ErrorKind, Fork, Process, RawValue, Receiver, RecvError, RecvTimeoutError, SendError,
    StartMethod, TaskError, Value, channel, fork, pipe, scope, wait,
};
use rustix::process::Signal;
use support::{in_single_thread, is_running, wait_until};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

fn guard(seconds: u64) -> support::Guard {
    support::guard(seconds)
}

#[test]
fn a_process_with_threads_is_not_forked() {
    // The first refusal leaves a descriptor that is kept.
    let _guard = support::guard_after(60, || assert!(fork().is_err(), "a test has threads"));
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || wait.recv().is_err());
    let refused = |error: bunshin::Error| {
        assert_eq!(error.kind(), ErrorKind::Threads, "{error}");
        assert!(error.to_string().contains("thread"), "{error}");
    };
    refused(
        Process::builder()
            .start_method(StartMethod::Fork)
            .start(|| (), ())
            .unwrap_err(),
    );
    refused(fork().expect_err("a process with threads must not be forked"));
    scope(|scope| refused(scope.spawn(|| ()).expect_err("nor by a scope")));
    drop(stop);
    thread.join().unwrap();
}

#[test]
fn a_process_whose_threads_have_been_joined_is_forked() {
    let _guard = guard(60);
    in_single_thread(|| {
        for round in 0..300 {
            let threads: Vec<_> = (0..4).map(|_| thread::spawn(|| ())).collect();
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            let child = Process::builder()
                .start_method(StartMethod::Fork)
                .start(|| 1, ());
            let child = child.unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!(child.result().unwrap(), 1);
        }
    });
}

#[test]
fn fork_copies_the_memory() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<Vec<char>>().unwrap();
        let mut list = vec!['p'];
        match fork().unwrap() {
            Fork::Parent(child) => {
                list.push('p');
                assert_eq!(receiver.recv().unwrap(), ['p', 'c']);
                assert_eq!(list, ['p', 'p']);
                assert_eq!(child.join().unwrap().code(), Some(5));
            }
            Fork::Child => {
                list.push('c');
                sender.send(list).unwrap();
                std::process::exit(5);
            }
        }
    });
}

#[test]
fn after_a_fork_each_side_may_drop_the_end_that_it_does_not_use() {
    let _guard = guard(60);
    in_single_thread(|| {
        for round in 0..50u32 {
            let (here, there) = pipe::<u32>().unwrap();
            match fork().unwrap() {
                Fork::Parent(child) => {
                    drop(there);
                    here.send(round).unwrap();
                    assert_eq!(here.recv().unwrap(), round + 1, "round {round}");
                    drop(here);
                    assert_eq!(child.join().unwrap().code(), Some(0));
                }
                Fork::Child => {
                    drop(here);
                    // The parent gets to its own drop first.
                    thread::sleep(Duration::from_millis(2));
                    let answered = there
                        .recv()
                        .is_ok_and(|number| there.send(number + 1).is_ok());
                    let is_over = matches!(there.recv(), Err(RecvError::Disconnected));
                    std::process::exit(if answered && is_over { 0 } else { 1 });
                }
            }
        }
    });
}

#[test]
fn closures_use_what_is_around_them() {
    let _guard = guard(60);
    in_single_thread(|| {
        let words = ["some", "borrowed", "words"].map(str::to_owned);
        let table: HashMap<&str, usize> = words.iter().map(|w| (w.as_str(), w.len())).collect();
        let total = Value::new(0usize).unwrap();
        let mut untouched = 1;
        let lengths: Vec<usize> = scope(|scope| {
            let spawn = |word| {
                let (table, total) = (&table, &total);
                scope.spawn(move || {
                    *total.lock().unwrap() += table[word];
                    table[word]
                })
            };
            let children: Vec<_> = words
                .iter()
                .map(|word| spawn(word.as_str()).unwrap())
                .collect();
            children
                .into_iter()
                .map(|child| child.result().unwrap())
                .collect()
        });
        assert_eq!(lengths, [4, 8, 5]);
        assert_eq!(total.get().unwrap(), 17);
        scope(|scope| {
            scope.spawn(|| untouched += 1).unwrap().result().unwrap();
        });
        assert_eq!(untouched, 1, "a child has written to its parent's memory");
    });
}

#[test]
fn children_of_a_scope_fail_as_others_do() {
    let _guard = guard(60);
    in_single_thread(|| {
        let word = "captured".to_owned();
        scope(|scope| {
            match scope
                .spawn(|| -> u8 { panic!("with {word}") })
                .unwrap()
                .result()
            {
                Err(TaskError::Panicked(panic)) => {
                    assert_eq!(panic.message(), "with captured");
                    assert!(panic.location().unwrap().contains("scope.rs"));
                }
                other => panic!("{other:?}"),
            }
            let child = scope.spawn(support::sleep_for_ever).unwrap();
            assert!(child.is_alive());
            child.kill().unwrap();
            assert!(
                matches!(child.result(), Err(TaskError::Lost(lost)) if lost.status().unwrap().signal() == Some(9))
            );
            let child = scope.spawn(|| std::process::exit(4)).unwrap();
            let outcome: Result<(), _> = child.result();
            assert!(
                matches!(outcome, Err(TaskError::Lost(lost)) if lost.status().unwrap().code() == Some(4))
            );
        });
    });
}

#[test]
fn a_scope_waits_for_its_children_and_kills_them_if_it_panics() {
    let _guard = guard(60);
    in_single_thread(|| {
        let done = RawValue::new(0u32).unwrap();
        scope(|scope| {
            for _ in 0..3 {
                let work = || {
                    thread::sleep(Duration::from_millis(100));
                    done.fetch_add(1, Ordering::SeqCst);
                };
                drop(scope.spawn(work).unwrap());
            }
        });
        assert_eq!(done.load(Ordering::SeqCst), 3);

        let mut pid = 0;
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scope(|scope| {
                pid = scope.spawn(support::sleep_for_ever).unwrap().pid();
                panic!("expected");
            });
        }));
        assert!(caught.is_err());
        assert!(!is_running(pid));

        let caught = std::panic::catch_unwind(|| {
            scope(|scope| {
                drop(
                    scope
                        .spawn(|| std::process::exit(3))
                        .map(|child: bunshin::ScopedProcess<'_, ()>| child.pid()),
                )
            });
        });
        assert!(
            caught.is_err(),
            "a child that nobody joined has failed unnoticed"
        );
    });
}

#[test]
fn the_end_of_a_moved_pipe_reaches_the_child() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u32>().unwrap();
        let sum = scope(|scope| {
            let add = move || receiver.iter().map(Result::unwrap).sum::<u32>();
            let child = scope.spawn(add).unwrap();
            (1..=100).for_each(|number| sender.send(number).unwrap());
            drop(sender);
            child.result().unwrap()
        });
        assert_eq!(sum, 5050);
    });
}

#[test]
fn the_end_of_a_borrowed_pipe_reaches_the_child() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u32>().unwrap();
        let sum = scope(|scope| {
            let add = || receiver.iter().map(Result::unwrap).sum::<u32>();
            let child = scope.spawn(add).unwrap();
            (1..=100).for_each(|number| sender.send(number).unwrap());
            drop(sender);
            child.result().unwrap()
        });
        assert_eq!(sum, 5050);
    });
}

#[test]
fn the_end_of_a_child_reaches_its_parent() {
    let _guard = guard(60);
    in_single_thread(|| {
        for killed in [false, true] {
            let (here, there) = pipe::<u32>().unwrap();
            scope(|scope| {
                let child = scope.spawn(move || {
                    there.send(there.recv().unwrap() + 1).unwrap();
                    if killed {
                        support::sleep_for_ever()
                    }
                });
                let child = child.unwrap();
                here.send(1).unwrap();
                assert_eq!(here.recv().unwrap(), 2);
                if killed {
                    child.kill().unwrap();
                }
                assert!(matches!(
                    here.recv_timeout(LONG),
                    Err(RecvTimeoutError::Disconnected)
                ));
                assert!(matches!(here.send(7), Err(SendError::Disconnected(7))));
                child.join().unwrap();
            });
        }
    });
}

#[test]
fn a_sibling_does_not_hide_that_a_child_was_killed() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (here, there) = pipe::<u32>().unwrap();
        let (other, other_there) = pipe::<u32>().unwrap();
        scope(|scope| {
            // It was forked while the parent still had the end that the next one gets.
            let sibling = scope.spawn(move || drop(other_there.recv())).unwrap();
            let child = scope.spawn(move || {
                there.send(1).unwrap();
                support::sleep_for_ever();
            });
            let child = child.unwrap();
            assert_eq!(here.recv().unwrap(), 1);
            child.kill().unwrap();
            child.join().unwrap();
            let end = here.recv_timeout(Duration::from_secs(5));
            assert!(
                matches!(end, Err(RecvTimeoutError::Disconnected)),
                "{end:?}"
            );
            drop(other);
            sibling.result().unwrap();
        });
    });
}

#[test]
fn processes_share_a_receiver() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u64>().unwrap();
        let sums: Vec<(u64, u64)> = scope(|scope| {
            let take = || {
                receiver
                    .iter()
                    .fold((0, 0), |(n, sum), item| (n + 1, sum + item.unwrap()))
            };
            let children: Vec<_> = (0..4).map(|_| scope.spawn(take).unwrap()).collect();
            (0..20_000).for_each(|number| sender.send(number).unwrap());
            drop(sender);
            children
                .into_iter()
                .map(|child| child.result().unwrap())
                .collect()
        });
        assert_eq!(sums.iter().map(|(n, _)| n).sum::<u64>(), 20_000);
        assert_eq!(
            sums.iter().map(|(_, sum)| sum).sum::<u64>(),
            (0..20_000).sum::<u64>()
        );
    });
}

#[test]
fn a_process_that_looks_does_not_keep_another_from_receiving() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u64>().unwrap();
        let (count, stop) = (RawValue::new(0u64).unwrap(), RawValue::new(0u32).unwrap());
        scope(|scope| {
            let take = || {
                receiver
                    .iter()
                    .for_each(|item| _ = count.fetch_add(item.map_or(0, |_| 1), Ordering::SeqCst))
            };
            let taker = scope.spawn(take).unwrap();
            let look = || {
                while stop.load(Ordering::SeqCst) == 0 {
                    wait(&[&receiver], Some(Duration::from_millis(1))).unwrap();
                }
            };
            let looker = scope.spawn(look).unwrap();
            for number in 0..2_000u64 {
                sender.send(1).unwrap();
                // Each one is to find the taker asleep.
                let came = wait_until(Duration::from_secs(3), || {
                    count.load(Ordering::SeqCst) > number
                });
                assert!(came, "message {number} was never received");
            }
            stop.store(1, Ordering::SeqCst);
            drop(sender);
            looker.result().unwrap();
            taker.result().unwrap();
        });
    });
}

#[test]
fn processes_share_a_receiver_of_handles() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<Value<u64>>().unwrap();
        let values: Vec<_> = (0..500).map(|number| Value::new(number).unwrap()).collect();
        scope(|scope| {
            let take = || {
                let mut taken = 0;
                loop {
                    // Looks at what lies there, also where another process then takes it.
                    let _ = wait(&[&receiver], Some(Duration::from_micros(200)));
                    match receiver.recv_timeout(Duration::from_micros(200)) {
                        Ok(value) => *value.lock().unwrap() += 1000,
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) => return taken,
                        Err(error) => panic!("after {taken}: {error}"),
                    }
                    taken += 1;
                }
            };
            let children: Vec<_> = (0..3).map(|_| scope.spawn(take).unwrap()).collect();
            for value in &values {
                sender.send(value.clone()).unwrap();
                thread::sleep(Duration::from_micros(100));
            }
            drop(sender);
            let taken: u32 = children
                .into_iter()
                .map(|child| child.result().unwrap())
                .sum();
            assert_eq!(taken, 500);
        });
        for (number, value) in (0..).zip(&values) {
            assert_eq!(value.get().unwrap(), number + 1000);
        }
    });
}

#[test]
fn a_killed_consumer_does_not_stop_the_others() {
    let _guard = guard(170);
    in_single_thread(|| {
        for round in 0..100u64 {
            let (sender, receiver) = channel::<u64>().unwrap();
            let (answers, answered) = channel::<u64>().unwrap();
            scope(|scope| {
                let take = || {
                    for item in &receiver {
                        answers.send(item.unwrap()).unwrap();
                    }
                };
                let victim = scope.spawn(take).unwrap();
                let survivor = scope.spawn(take).unwrap();
                let pid = victim.pid();
                let kill = move || {
                    thread::sleep(Duration::from_micros(300 + round * 7919 % 3000));
                    support::kill(pid, Signal::KILL);
                };
                let killer = scope.spawn(kill).unwrap();
                let mut got = 0;
                for number in 0..200 {
                    sender.send(number).unwrap();
                    if number % 4 == 0 {
                        thread::sleep(Duration::from_micros(20));
                    }
                    while answered.try_recv().is_ok() {
                        got += 1;
                    }
                }
                killer.join().unwrap();
                victim.join().unwrap();
                for number in 200..210 {
                    sender.send(number).unwrap();
                }
                // The victim has taken at most one message with it, and one answer more.
                while got < 208 {
                    match answered.recv_timeout(Duration::from_secs(3)) {
                        Ok(_) => got += 1,
                        Err(error) => panic!("round {round}: after {got} answers: {error}"),
                    }
                }
                drop(sender);
                assert!(survivor.join().unwrap().success(), "round {round}");
            });
        }
    });
}

#[test]
fn a_killed_producer_does_not_stop_the_others() {
    let _guard = guard(170);
    in_single_thread(|| {
        for round in 0..100u64 {
            let (sender, receiver) = channel::<(u8, u64, Vec<u8>)>().unwrap();
            let produce = |who: u8| {
                for number in 0.. {
                    let len = number as usize * 997 % 9000;
                    if sender.send((who, number, vec![who; len])).is_err() {
                        return;
                    }
                    if who == 1 && number == 300 {
                        return;
                    }
                }
            };
            scope(|scope| {
                let victim = scope.spawn(|| produce(0)).unwrap();
                let survivor = scope.spawn(|| produce(1)).unwrap();
                let pid = victim.pid();
                let kill = move || {
                    thread::sleep(Duration::from_micros(200 + round * 7919 % 4000));
                    support::kill(pid, Signal::KILL);
                };
                let killer = scope.spawn(kill).unwrap();
                let mut next = [0, 0];
                while next[1] <= 300 {
                    let (who, number, bytes) = match receiver.recv_timeout(Duration::from_secs(5)) {
                        Ok(message) => message,
                        Err(error) => panic!("round {round}: {next:?}: {error}"),
                    };
                    assert_eq!(
                        number,
                        next[usize::from(who)],
                        "round {round}: out of order"
                    );
                    assert!(
                        bytes == vec![who; number as usize * 997 % 9000],
                        "round {round}"
                    );
                    next[usize::from(who)] += 1;
                }
                killer.join().unwrap();
                victim.join().unwrap();
                assert!(survivor.join().unwrap().success());
            });
        }
    });
}

#[test]
fn a_forked_child_keeps_its_copy_of_a_buffer() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<Buffer<u64>>().unwrap();
        let (go, wait) = channel::<()>().unwrap();
        let receive = |number: u64| {
            sender.send(Buffer::from(vec![number; 20_000])).unwrap();
            receiver.recv().unwrap()
        };
        let mut buffer = receive(1);
        match fork().unwrap() {
            Fork::Parent(child) => {
                buffer.as_mut_slice().fill(2);
                drop(buffer);
                let others: Vec<_> = (3..6).map(receive).collect();
                go.send(()).unwrap();
                assert_eq!(
                    child.join().unwrap().code(),
                    Some(0),
                    "the child's memory has changed"
                );
                assert_eq!(others.len(), 3);
            }
            Fork::Child => {
                let is_told = wait.recv().is_ok();
                let is_same = buffer.iter().all(|number| *number == 1);
                std::process::exit(if is_told && is_same { 0 } else { 1 });
            }
        }
    });
}

#[test]
fn ends_that_stayed_with_the_parent_say_so() {
    let _guard = guard(60);
    in_single_thread(|| {
        let (sender, receiver) = channel::<u8>().unwrap();
        scope(|scope| {
            let both = || {
                sender.send(1).map_err(|error| error.to_string())?;
                receiver.recv().map_err(|error| error.to_string())
            };
            // A child has one side of a pipe; using both is an error and no deadlock.
            let outcome = scope.spawn(both).unwrap().result().unwrap();
            let error = outcome.expect_err("it has one side only");
            assert!(error.contains("stayed with the parent"), "{error}");
        });
        assert_eq!(receiver.recv().unwrap(), 1);
    });
}

/// A scope inside the child of a scope.
#[test]
fn scopes_nest() {
    let _guard = guard(60);
    in_single_thread(|| {
        let numbers: Vec<u64> = (0..1000).collect();
        fn sum(numbers: &[u64], depth: u32) -> u64 {
            if depth == 0 {
                return numbers.iter().sum();
            }
            let (left, right) = numbers.split_at(numbers.len() / 2);
            scope(|scope| {
                let left = scope.spawn(|| sum(left, depth - 1)).unwrap();
                let right = scope.spawn(|| sum(right, depth - 1)).unwrap();
                left.result().unwrap() + right.result().unwrap()
            })
        }
        assert_eq!(sum(&numbers, 4), 499_500);
        let receiver: Receiver<u8> = channel().unwrap().1;
        assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
    });
}
