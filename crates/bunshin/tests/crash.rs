//! Faults: processes and pipes whose peers are killed or stopped, at random moments,
//! under every start method.

mod support;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{
    Buffer, Connection, Fork, Lock, Process, RawValue, Receiver, RecvError, SendError, Sender,
    StartMethod, TaskError, TrySendError, channel, fork, pipe, wait,
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use support::{in_single_thread, is_running, start, under_each_start_method, wait_until};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

/// The fixture's guard, for when the forkserver is there already.
fn guard(seconds: u64) -> support::Guard {
    support::guard_after(seconds, || {
        let child = Process::start(|| (), ()).expect("a child can be started");
        assert!(child.join().expect("it can be joined").success());
    })
}

/// Runs `body` in a child that is not checked for leaks: for what changes the process.
fn in_child<F: Fn() + Copy + 'static>(body: F) {
    if let Err(error) = start(StartMethod::Spawn, body, ()).result() {
        panic!("in a child: {error}");
    }
}

/// Kills a process after a while; to be run in a child, as threads forbid forks.
fn kill_later(pid: u32, micros: u64) {
    thread::sleep(Duration::from_micros(micros));
    support::kill(pid, Signal::KILL);
}

/// A message whose parts all follow from its number.
#[derive(Serialize, Deserialize)]
struct Message {
    number: u64,
    inside: Vec<u8>,
    beside: Buffer<u32>,
}

impl Message {
    fn new(number: u64) -> Self {
        // Small ones, ones that nearly fill the ring, and ones that go outside of it.
        let (inside, beside) = match number % 11 {
            3 => (8_000, 0),
            5 => (10_000, 100),
            7 => (30, 2_000),
            9 => (100_000, 50_000),
            rest => (rest as usize * 20, 0),
        };
        let beside = vec![number as u32; beside].into();
        Self {
            number,
            inside: vec![number as u8; inside],
            beside,
        }
    }

    fn is(&self, number: u64) -> bool {
        let right = Self::new(number);
        self.number == number && self.inside == right.inside && self.beside == *right.beside
    }
}

/// Sends messages for ever, and counts those that have gone out.
fn send_for_ever(sender: Sender<Message>, sent: RawValue<u64>) {
    for number in 0.. {
        sender
            .send(Message::new(number))
            .expect("the parent listens");
        sent.store(number + 1, Ordering::SeqCst);
    }
}

#[test]
fn what_a_killed_child_has_sent_is_received_and_then_its_end() {
    let _guard = guard(170);
    under_each_start_method(|method| {
        for round in 0..200u64 {
            let (sender, receiver) = channel::<Message>().unwrap();
            let sent = RawValue::new(0u64).unwrap();
            let child = start(method, send_for_ever, (sender, sent.clone()));
            // Before the first send, in the middle of one, or while it waits for room.
            let deadline = Instant::now() + Duration::from_micros(round * 7919 % 9000);
            let mut next = 0;
            while Instant::now() < deadline {
                if round % 2 == 0 {
                    thread::sleep(Duration::from_micros(50));
                } else if let Ok(message) = receiver.try_recv() {
                    assert!(message.is(next), "{method}: message {next} is wrong");
                    next += 1;
                }
            }
            child.kill().unwrap();
            loop {
                match receiver.recv() {
                    Ok(message) => assert!(message.is(next), "{method}: message {next} is wrong"),
                    Err(RecvError::Disconnected) => break,
                    Err(error) => panic!("{method}: round {round}, message {next}: {error}"),
                }
                next += 1;
            }
            let sent = sent.load(Ordering::SeqCst);
            assert!(
                (sent..=sent + 1).contains(&next),
                "{method}: {next} of {sent} were received"
            );
            assert_eq!(child.join().unwrap().signal(), Some(9));
        }
    });
}

#[test]
fn the_end_of_a_killed_child_is_told_in_every_way_of_waiting() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        for way in 0..5 {
            let (here, there) = pipe::<u8>().unwrap();
            let hold = |there: Connection<u8>| {
                there.send(1).unwrap();
                support::sleep_for_ever();
            };
            let child = start(method, hold, (there,));
            assert_eq!(here.recv().unwrap(), 1);
            let killer = start(method, kill_later, (child.pid(), 5_000));
            let before = Instant::now();
            match way {
                0 => assert!(here.recv().is_err()),
                1 => assert!(here.recv_timeout(LONG).is_err()),
                2 => assert!(here.poll(LONG).unwrap()),
                3 => assert_eq!(wait(&[&here], Some(LONG)).unwrap(), [0]),
                _ => assert!(wait_until(LONG, || here.is_disconnected())),
            }
            assert!(before.elapsed() < LONG, "{method}: way {way}");
            assert!(
                matches!(here.recv(), Err(RecvError::Disconnected)),
                "{method}: way {way}"
            );
            assert!(
                matches!(here.send(7), Err(SendError::Disconnected(7))),
                "{method}: way {way}"
            );
            assert!(killer.join().unwrap().success());
            assert_eq!(child.join().unwrap().signal(), Some(9));
        }
    });
}

#[test]
fn a_sender_that_waits_for_room_learns_that_the_receiver_was_killed() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        for len in [10, 5_000, 100_000] {
            let (sender, receiver) = channel::<Vec<u8>>().unwrap();
            let hold = |receiver: Receiver<Vec<u8>>| {
                drop(receiver.recv());
                support::sleep_for_ever();
            };
            let child = start(method, hold, (receiver,));
            let killer = start(method, kill_later, (child.pid(), 30_000));
            let back = loop {
                if let Err(error) = sender.send(vec![7; len]) {
                    break error;
                }
            };
            assert!(
                matches!(&back, SendError::Disconnected(_)),
                "{method}: {back}"
            );
            assert_eq!(back.into_inner(), vec![7; len]);
            assert!(sender.send_bytes(b"x").unwrap_err().is_disconnected());
            assert!(killer.join().unwrap().success());
            assert_eq!(child.join().unwrap().signal(), Some(9));
        }
    });
}

#[test]
fn a_receiver_killed_at_random_does_not_hang_its_sender() {
    let _guard = guard(120);
    under_each_start_method(|method| {
        for round in 0..100u64 {
            let (here, there) = pipe::<Message>().unwrap();
            let echo = |there: Connection<Message>| {
                while let Ok(message) = there.recv() {
                    there.send(message).expect("the parent listens");
                }
            };
            let child = start(method, echo, (there,));
            let killer = start(
                method,
                kill_later,
                (child.pid(), 1_000 + round * 7919 % 8000),
            );
            for number in 0.. {
                if here.send(Message::new(number)).is_err() {
                    break;
                }
                match here.recv() {
                    Ok(message) => assert!(message.is(number), "{method}: {number} is wrong"),
                    Err(RecvError::Disconnected) => break,
                    Err(error) => panic!("{method}: round {round}: {error}"),
                }
            }
            assert!(killer.join().unwrap().success());
            assert_eq!(child.join().unwrap().signal(), Some(9));
        }
    });
}

#[test]
fn a_stopped_receiver_does_not_hold_up_a_sender_beyond_its_time() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        for handles in [0, 1, 201] {
            let (sender, receiver) = channel::<(Vec<u8>, Vec<Lock>)>().unwrap();
            let hold = |receiver: Receiver<(Vec<u8>, Vec<Lock>)>| {
                drop(receiver.recv());
                support::sleep_for_ever();
            };
            let child = start(method, hold, (receiver,));
            support::kill(child.pid(), Signal::STOP);
            let lock = Lock::new().unwrap();
            let mut sent = 0;
            let late = loop {
                let message = (vec![7; 500], vec![lock.clone(); handles]);
                match sender.send_timeout(message, Duration::from_millis(50)) {
                    Ok(()) => sent += 1,
                    Err(error) => break error,
                }
                assert!(sent < 100_000, "{method}: the pipe is never full");
            };
            assert!(matches!(&late, TrySendError::Full(_)), "{method}: {late}");
            assert!(matches!(
                sender.try_send((vec![], vec![])),
                Ok(()) | Err(TrySendError::Full(_))
            ));
            child.kill().unwrap();
            assert_eq!(child.join().unwrap().signal(), Some(9));
        }
    });
}

#[test]
fn a_result_does_not_wait_for_a_grandchild_that_lives_on() {
    let _guard = guard(60);
    for method in StartMethod::ALL
        .into_iter()
        .filter(|method| *method != StartMethod::Fork)
    {
        let (tell, told) = channel::<u32>().unwrap();
        let child = start(
            method,
            |tell: Sender<u32>| -> u8 {
                match fork().expect("there are no threads") {
                    Fork::Parent(grandchild) => {
                        tell.send(grandchild.pid()).expect("the parent listens");
                        std::process::abort();
                    }
                    Fork::Child => {
                        thread::sleep(Duration::from_secs(4));
                        std::process::exit(0);
                    }
                }
            },
            (tell,),
        );
        let grandchild = told.recv().unwrap();
        let outcome = child.result();
        let lives_on = is_running(grandchild);
        support::kill(grandchild, Signal::KILL);
        assert!(
            matches!(outcome, Err(TaskError::Lost(_))),
            "{method}: {outcome:?}"
        );
        assert!(
            lives_on,
            "{method}: the result came only when the grandchild had ended"
        );
    }
}

/// Processes of a group that run.
fn group(leader: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc is mounted");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let is_member = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace();
        let (state, group) = (fields.next().unwrap_or("Z"), fields.nth(1));
        state != "Z" && state != "X" && group == Some(leader.to_string().as_str())
    };
    pids.filter(is_member).collect()
}

/// Kills what is left of a group, and says what that was.
fn expect_empty(leader: u32, when: &str) {
    let is_empty = wait_until(Duration::from_secs(1), || group(leader).is_empty());
    let left = group(leader);
    left.iter()
        .for_each(|pid| _ = support::kill(*pid, Signal::KILL));
    assert!(is_empty, "{when}: {left:?} still run after a second");
}

/// Makes itself the leader of a group, and starts a tree of processes under it.
fn grow(depth: u32, method: String, pids: Sender<u32>) {
    if depth == 3 {
        rustix::process::setsid().expect("a child leads no group");
    }
    let mut children = Vec::new();
    if depth > 0 {
        for next in StartMethod::ALL {
            // Under `fork`, ends of the parent are not the child's: each gets its own.
            let (sender, receiver) = channel().expect("a pipe can be made");
            let method = if depth == 3 {
                method.parse().expect("it is one")
            } else {
                next
            };
            let args = (depth - 1, next.to_string(), sender);
            children.push(start(method, grow, args));
            receiver
                .iter()
                .take(if depth == 1 {
                    1
                } else {
                    4 + (depth as usize - 2) * 9
                })
                .for_each(|pid| {
                    pids.send(pid.expect("pids are numbers"))
                        .expect("the parent listens");
                });
        }
    }
    pids.send(std::process::id()).expect("the parent listens");
    support::sleep_for_ever();
    drop(children);
}

#[test]
fn no_descendant_of_a_killed_parent_is_left() {
    let _guard = guard(120);
    under_each_start_method(|method| {
        let (sender, receiver) = channel().unwrap();
        let parent = start(StartMethod::Spawn, grow, (3, method.to_string(), sender));
        // Itself, three, nine and twenty-seven, without the forkservers.
        let pids: Vec<u32> = receiver.iter().take(40).map(Result::unwrap).collect();
        assert_eq!(pids.len(), 40);
        assert!(
            group(parent.pid()).len() >= 40,
            "{method}: it is not their group"
        );
        parent.kill().unwrap();
        parent.join().unwrap();
        expect_empty(parent.pid(), &format!("{method}"));
    });
}

#[test]
fn a_parent_killed_halfway_through_starts_leaves_no_descendant() {
    let _guard = guard(120);
    fn start_for_ever(method: String, ready: Sender<()>) {
        rustix::process::setsid().expect("a child leads no group");
        let method: StartMethod = method.parse().expect("it is one");
        ready.send(()).expect("the parent listens");
        let mut children = Vec::new();
        loop {
            children.push(start(method, support::sleep_for_ever, ()));
            if children.len() > 20 {
                children
                    .drain(..)
                    .for_each(|child| child.kill().expect("it is a child"));
            }
        }
    }
    for method in StartMethod::ALL {
        for round in 0..60u64 {
            let (ready, is_ready) = channel().unwrap();
            let parent = start(
                StartMethod::Forkserver,
                start_for_ever,
                (method.to_string(), ready),
            );
            is_ready.recv().unwrap();
            thread::sleep(Duration::from_micros(round * 7919 % 20_000));
            parent.kill().unwrap();
            parent.join().unwrap();
            expect_empty(parent.pid(), &format!("{method}, round {round}"));
        }
    }
}

/// The forkserver of this process.
fn server() -> u32 {
    let own = std::process::id();
    let is_server = |pid: &u32| {
        support::ProcessState::of(*pid)
            .is_some_and(|p| p.comm == "bunshin-fs" && p.state != 'Z' && p.parent == own)
    };
    support::descendants(own)
        .into_iter()
        .find(is_server)
        .expect("there is a forkserver")
}

#[test]
fn a_killed_forkserver_is_replaced() {
    let _guard = guard(60);
    in_child(|| {
        let first = start(StartMethod::Forkserver, |a: u8| a + 1, (1,));
        assert_eq!(first.result().unwrap(), 2);
        for round in 0..30 {
            let child = start(StartMethod::Forkserver, support::sleep_for_ever, ());
            let killed = server();
            support::kill(killed, Signal::KILL);
            if round % 2 == 0 {
                assert!(wait_until(LONG, || !is_running(killed)));
            }
            let next = start(StartMethod::Forkserver, |a: u8| a + 1, (round,));
            assert_eq!(next.result().unwrap(), round + 1);
            // Its children live on, and end with the parent all the same.
            assert!(child.is_alive());
            child.kill().unwrap();
            assert_eq!(child.join().unwrap().signal(), Some(9));
        }
        let zombies = support::descendants(std::process::id());
        let zombies = zombies.into_iter().filter(|pid| !is_running(*pid)).count();
        assert!(
            zombies <= 1,
            "{zombies} killed forkservers were never reaped"
        );
    });
}

#[test]
fn a_forkserver_killed_at_random_costs_no_start() {
    let _guard = guard(60);
    in_child(|| {
        let killer = || {
            for round in 0..60u64 {
                thread::sleep(Duration::from_micros(500 + round * 7919 % 9000));
                let parent = std::os::unix::process::parent_id();
                let servers = support::descendants(parent).into_iter().filter(|pid| {
                    support::ProcessState::of(*pid).is_some_and(|p| p.comm == "bunshin-fs")
                });
                for pid in servers {
                    support::kill(pid, Signal::KILL);
                }
            }
        };
        let killer = start(StartMethod::Spawn, killer, ());
        let mut number = 0u32;
        while killer.is_alive() {
            number += 1;
            let child = start(StartMethod::Forkserver, |number: u32| number * 2, (number,));
            match child.result() {
                Ok(twice) => assert_eq!(twice, number * 2),
                // Until it takes its own name, a child looks like the server to the killer.
                Err(TaskError::Lost(lost)) => {
                    assert_eq!(lost.status().and_then(|status| status.signal()), Some(9));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(killer.join().unwrap().success());
    });
}

#[test]
fn a_killed_child_leaves_nothing_of_what_it_was_given() {
    let _guard = guard(120);
    under_each_start_method(|method| {
        let own = std::process::id();
        let before = support::open_descriptors(own);
        for round in 0..60u64 {
            let (here, there) = pipe::<Message>().unwrap();
            let (more, taken) = channel::<Vec<Connection<Message>>>().unwrap();
            let ends = (0..4).map(|_| pipe().unwrap()).collect::<Vec<_>>();
            let (ours, theirs): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
            // Killed with handles that it has not taken, or has not even started to.
            let child = start(
                method,
                |_: Connection<Message>, _: Receiver<_>| support::sleep_for_ever(),
                (there, taken),
            );
            more.send(theirs).unwrap();
            here.send(Message::new(round)).unwrap();
            thread::sleep(Duration::from_micros(round * 7919 % 3000));
            child.kill().unwrap();
            for end in &ours {
                assert!(
                    matches!(end.recv(), Err(RecvError::Disconnected)),
                    "{method}"
                );
            }
            assert!(
                matches!(here.recv(), Err(RecvError::Disconnected)),
                "{method}"
            );
            assert_eq!(child.join().unwrap().signal(), Some(9));
        }
        assert_eq!(support::open_descriptors(own), before, "{method}");
    });
}

#[test]
fn a_child_that_exits_in_the_middle_is_lost() {
    let _guard = guard(60);
    in_single_thread(|| {
        for method in [StartMethod::Fork, StartMethod::Spawn] {
            let (here, there) = pipe::<u8>().unwrap();
            let child = start(
                method,
                |there: Connection<u8>| std::process::exit(there.send(1).map_or(1, |()| 9)),
                (there,),
            );
            assert_eq!(here.recv().unwrap(), 1);
            let outcome: Result<(), _> = child.result();
            match outcome {
                Err(TaskError::Lost(lost)) => assert_eq!(lost.status().unwrap().code(), Some(9)),
                other => panic!("{method}: {other:?}"),
            }
            assert!(matches!(here.recv(), Err(RecvError::Disconnected)));
        }
    });
}
