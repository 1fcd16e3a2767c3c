//! Handles inside messages, on pipes of which each end is used by several processes.

mod support;

use std::thread;
use std::time::Duration;

use bunshin::{LockError, RecvTimeoutError, Sender, Value, channel, scope, wait};
use rustix::process::Signal;
use support::in_single_thread;

fn guard(seconds: u64) -> support::Guard {
    support::guard(seconds)
}

type Message = (u64, Value<u64>);

/// Marks what comes until there is nothing more, and says how much that was.
fn mark_all(receiver: &bunshin::Receiver<Message>) -> u32 {
    let mut taken = 0;
    loop {
        // Looks at what lies there, also where another process then takes it.
        let _ = wait(&[receiver], Some(Duration::from_micros(300)));
        match receiver.recv_timeout(Duration::from_micros(300)) {
            Ok((number, value)) => {
                let mut value = value.lock().unwrap();
                assert_eq!(*value, number, "these are the handles of another message");
                *value += 1000;
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return taken,
            Err(error) => panic!("after {taken}: {error}"),
        }
        taken += 1;
    }
}

fn send_all(sender: &Sender<Message>, values: &[Value<u64>]) {
    for (number, value) in (0..).zip(values) {
        sender.send((number, value.clone())).unwrap();
    }
}

#[test]
fn a_killed_receiver_takes_no_handles_of_others_along() {
    let _guard = guard(120);
    in_single_thread(|| {
        let values: Vec<_> = (0..60).map(|number| Value::new(number).unwrap()).collect();
        for round in 0..60u64 {
            for (number, value) in (0..).zip(&values) {
                // The last victim may have died with it.
                *value.lock().or_else(LockError::recover).unwrap() = number;
            }
            let (sender, receiver) = channel::<Message>().unwrap();
            scope(|scope| {
                let take = || mark_all(&receiver);
                let victim = scope.spawn(take).unwrap();
                let survivor = scope.spawn(take).unwrap();
                let pid = victim.pid();
                let kill = move || {
                    thread::sleep(Duration::from_micros(200 + round * 7919 % 4000));
                    support::kill(pid, Signal::KILL);
                };
                let killer = scope.spawn(kill).unwrap();
                for (number, value) in (0..).zip(&values) {
                    sender.send((number, value.clone())).unwrap();
                    thread::sleep(Duration::from_micros(30));
                }
                killer.join().unwrap();
                victim.join().unwrap();
                drop(sender);
                let taken = survivor.result().unwrap();
                assert!(taken <= 60, "round {round}: {taken}");
            });
            let n_marked = (0..)
                .zip(&values)
                .filter(|(number, value)| match value.lock() {
                    Ok(value) => *value == number + 1000,
                    // The victim had it.
                    Err(_) => false,
                })
                .count();
            // The victim has taken at most the message with it that it was at.
            assert!(n_marked >= 59, "round {round}: {n_marked}");
        }
    });
}

#[test]
fn a_killed_sender_leaves_no_handles_in_the_way() {
    let _guard = guard(120);
    in_single_thread(|| {
        let values: Vec<_> = (0..40).map(|number| Value::new(number).unwrap()).collect();
        for round in 0..60u64 {
            let (sender, receiver) = channel::<Message>().unwrap();
            scope(|scope| {
                let take = || {
                    let mut taken = 0;
                    while let Ok((number, value)) = receiver.recv() {
                        let found = *value.lock().unwrap();
                        assert_eq!(found, number, "these are the handles of another message");
                        taken += 1;
                    }
                    taken
                };
                let takers = [scope.spawn(take).unwrap(), scope.spawn(take).unwrap()];
                let victim = scope.spawn(|| (0..50).for_each(|_| send_all(&sender, &values)));
                let victim = victim.unwrap();
                let survivor = scope.spawn(|| send_all(&sender, &values)).unwrap();
                thread::sleep(Duration::from_micros(300 + round * 7919 % 5000));
                victim.kill().unwrap();
                victim.join().unwrap();
                survivor.result().unwrap();
                let taken: u32 = takers.map(|taker| taker.result().unwrap()).iter().sum();
                assert!(taken >= 40, "round {round}: {taken}");
            });
        }
    });
}
