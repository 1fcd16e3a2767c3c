//! Pipes: what goes through them, in which order, and who is told when, under every
//! start method. What happens when processes are killed is in `crash.rs`.

#[path = "pipe/handles.rs"]
mod handles;
#[path = "pipe/memory.rs"]
mod memory;
mod support;
#[path = "pipe/watched.rs"]
mod watched;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{
    Connection, ErrorKind, Process, Receiver, RecvError, RecvTimeoutError, SendError, Sender,
    StartMethod, TryRecvError, TrySendError, Waitable, channel, duplex, pipe, wait,
};
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use support::{start, under_each_start_method};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

/// The fixture's guard, for when the forkserver is there already.
fn guard(seconds: u64) -> support::Guard {
    support::guard_after(seconds, || {
        let child = Process::start(|| (), ()).expect("a child can be started");
        assert!(child.join().expect("it can be joined").success());
    })
}

/// Bytes that differ from message to message and from place to place.
fn pattern(number: usize, len: usize) -> Vec<u8> {
    let mut state = number as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Whether a descriptor is readable now, by `poll` and by `epoll`.
fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap();
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let data = epoll::EventData::new_u64(0);
    epoll::add(&set, fd, data, epoll::EventFlags::IN).unwrap();
    let mut events = Vec::with_capacity(1);
    epoll::wait(
        &set,
        rustix::buffer::spare_capacity(&mut events),
        Some(&now),
    )
    .unwrap();
    assert_eq!(
        polled == 1,
        events.len() == 1,
        "poll and epoll do not agree"
    );
    polled == 1
}

/// Waits on a descriptor as an event loop does.
fn becomes_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).unwrap();
    rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

/// Sends every message back.
fn echo(connection: Connection<Vec<u8>>) {
    while let Ok(bytes) = connection.recv() {
        connection.send(bytes).expect("the parent waits for it");
    }
}

/// Sends every raw message back.
fn echo_bytes(connection: Connection<()>) {
    while let Ok(bytes) = connection.recv_bytes() {
        connection
            .send_bytes(&bytes)
            .expect("the parent waits for it");
    }
}

#[test]
fn messages_of_all_sizes_come_back_unchanged() {
    let _guard = guard(170);
    under_each_start_method(|method| {
        let (typed, there) = pipe().unwrap();
        let typed_child = start(method, echo, (there,));
        let (raw, there) = pipe::<()>().unwrap();
        let raw_child = start(method, echo_bytes, (there,));
        let kib = 1 << 10;
        for len in [
            0,
            1,
            15,
            16,
            17,
            4095,
            4096,
            4097,
            8 * kib - 8,
            8 * kib - 1,
            8 * kib,
            8 * kib + 1,
            16 * kib,
            64 * kib - 1,
            64 * kib,
            64 * kib + 1,
            1 << 20,
            40 << 20,
        ] {
            let bytes = pattern(len, len);
            raw.send_bytes(&bytes).unwrap();
            assert!(
                raw.recv_bytes().unwrap() == bytes,
                "{method}: {len} raw bytes changed"
            );
            typed.send(bytes.clone()).unwrap();
            assert!(
                typed.recv().unwrap() == bytes,
                "{method}: {len} bytes changed"
            );
        }
        let mut into = vec![7; 3];
        raw.send_bytes(b"some").unwrap();
        assert_eq!(raw.recv_bytes_timeout(LONG).unwrap(), b"some");
        raw.send_bytes(b"").unwrap();
        assert_eq!(raw.receiver().recv_bytes_into(&mut into).unwrap(), 0);
        assert!(into.is_empty());
        assert!(matches!(raw.try_recv_bytes(), Err(TryRecvError::Empty)));
        drop((typed, raw));
        assert!(typed_child.join().unwrap().success());
        assert!(raw_child.join().unwrap().success());
    });
}

#[test]
fn serial_a_message_beyond_four_gib_crosses() {
    let _guard = guard(170);
    let len = (4usize << 30) + 12_345;
    // The message and its copy in shared memory; where there is less there is no point.
    let free = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = free
        .lines()
        .find(|line| line.starts_with("MemAvailable"))
        .unwrap();
    let free: usize = free.split_whitespace().nth(1).unwrap().parse().unwrap();
    if free < (10 << 20) {
        eprintln!("left out: there are {free} KiB of memory");
        return;
    }
    let mut bytes = vec![0; len];
    let marks = [0, 1 << 20, (4 << 30) - 1, 4 << 30, (4 << 30) + 1, len - 1];
    for (number, mark) in marks.into_iter().enumerate() {
        bytes[mark] = number as u8 + 1;
    }
    let (here, there) = pipe::<()>().unwrap();
    let look = |there: Connection<()>, marks: Vec<usize>| {
        let bytes = there.recv_bytes().unwrap();
        (
            bytes.len(),
            marks.iter().map(|mark| bytes[*mark]).collect::<Vec<u8>>(),
        )
    };
    let child = start(StartMethod::Forkserver, look, (there, marks.to_vec()));
    here.send_bytes(&bytes).unwrap();
    drop(bytes);
    assert_eq!(child.result().unwrap(), (len, vec![1, 2, 3, 4, 5, 6]));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Numbered {
    number: usize,
    bytes: Vec<u8>,
    text: Option<String>,
}

impl Numbered {
    fn new(number: usize) -> Self {
        // Mostly small, now and then so long that it goes beside the ring.
        let len = match number % 97 {
            0 => 20_000,
            1 => 8_192,
            rest => rest * 3,
        };
        let text = (number % 3 == 0).then(|| number.to_string());
        Self {
            number,
            bytes: pattern(number, len),
            text,
        }
    }
}

#[test]
fn a_hundred_thousand_messages_keep_their_order() {
    let _guard = guard(150);
    under_each_start_method(|method| {
        let (sender, receiver) = channel::<Numbered>().unwrap();
        let count = 100_000;
        let send = |sender: Sender<Numbered>, count: usize| {
            (0..count).for_each(|number| sender.send(Numbered::new(number)).unwrap());
        };
        let child = start(method, send, (sender, count));
        let mut next = 0;
        for message in &receiver {
            assert!(
                message.unwrap() == Numbered::new(next),
                "{method}: message {next} is wrong"
            );
            next += 1;
        }
        assert_eq!(next, count);
        assert!(child.join().unwrap().success());
    });
}

#[test]
fn both_directions_carry_messages_at_the_same_time() {
    let _guard = guard(120);
    fn talk(connection: &Connection<Numbered>, count: usize) {
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..count).for_each(|number| connection.send(Numbered::new(number)).unwrap());
            });
            for number in 0..count {
                assert!(connection.recv().unwrap() == Numbered::new(number));
            }
        });
    }
    under_each_start_method(|method| {
        let (here, there) = pipe().unwrap();
        let child = start(method, |there| talk(&there, 20_000), (there,));
        talk(&here, 20_000);
        child.result().unwrap();
    });
}

#[test]
fn messages_sent_before_the_child_starts_arrive() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (here, there) = duplex::<String, Vec<String>>().unwrap();
        for number in 0..100 {
            here.send(format!("early {number}")).unwrap();
        }
        here.send("x".repeat(1 << 20)).unwrap();
        let collect = |there: Connection<Vec<String>, String>| {
            let got = (0..102).map(|_| there.recv().unwrap()).collect();
            there.send(got).unwrap();
        };
        let child = start(method, collect, (there,));
        here.send("late".into()).unwrap();
        let got = here.recv().unwrap();
        assert_eq!((got[0].as_str(), got[99].as_str()), ("early 0", "early 99"));
        assert_eq!((got[100].len(), got[101].as_str()), (1 << 20, "late"));
        assert!(child.join().unwrap().success());
    });
}

#[test]
fn a_full_pipe_says_so_and_gives_the_value_back() {
    let _guard = guard(60);
    let (sender, receiver) = channel::<Vec<u32>>().unwrap();
    let mut sent = 0;
    let back = loop {
        match sender.try_send(vec![sent; 100]) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full(back)) => break back,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(back, vec![sent; 100]);
    assert!(sent >= 50, "only {sent} messages fit");
    let before = Instant::now();
    let late = sender
        .send_timeout(vec![9; 100], Duration::from_millis(50))
        .unwrap_err();
    assert!(matches!(&late, TrySendError::Full(_)), "{late}");
    assert!(before.elapsed() >= Duration::from_millis(50));
    assert_eq!(late.into_inner(), [9; 100]);
    // Nothing of what was refused was sent.
    thread::scope(|scope| {
        scope.spawn(|| sender.send(vec![sent; 100]).unwrap());
        for number in 0..=sent {
            assert_eq!(receiver.recv().unwrap(), vec![number; 100]);
        }
    });
    assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
}

#[test]
fn a_wait_that_times_out_has_taken_nothing() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (go, wait) = channel::<()>().unwrap();
        let (sender, receiver) = channel::<u32>().unwrap();
        let answer = |wait: Receiver<()>, sender: Sender<u32>| {
            (0..50).for_each(|number| {
                wait.recv().unwrap();
                sender.send(number).unwrap();
            });
        };
        let child = start(method, answer, (wait, sender));
        for number in 0..50 {
            let timeout = Duration::from_micros(u64::from(number) * 100);
            assert!(matches!(
                receiver.recv_timeout(timeout),
                Err(RecvTimeoutError::Timeout)
            ));
            assert!(!receiver.poll(timeout).unwrap());
            assert!(!receiver.poll(Duration::ZERO).unwrap());
            go.send(()).unwrap();
            assert!(receiver.poll(LONG).unwrap());
            assert!(
                receiver.poll(Duration::ZERO).unwrap(),
                "{method}: poll has taken it"
            );
            assert_eq!(receiver.recv_timeout(LONG).unwrap(), number);
        }
        assert!(
            receiver.poll(LONG).unwrap(),
            "{method}: the end is not told"
        );
        assert!(matches!(
            receiver.recv_timeout(LONG),
            Err(RecvTimeoutError::Disconnected)
        ));
        assert!(child.join().unwrap().success());
    });
}

#[test]
fn what_was_sent_before_an_end_closed_is_received() {
    let _guard = guard(60);
    let (sender, receiver) = channel::<Vec<u8>>().unwrap();
    for len in [1, 10_000, 100_000] {
        sender.send(pattern(len, len)).unwrap();
    }
    drop(sender);
    for len in [1, 10_000, 100_000] {
        assert_eq!(receiver.recv().unwrap(), pattern(len, len));
    }
    for _ in 0..3 {
        assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
        assert!(matches!(
            receiver.try_recv(),
            Err(TryRecvError::Disconnected)
        ));
        assert!(matches!(
            receiver.recv_bytes(),
            Err(RecvError::Disconnected)
        ));
    }
    let (sender, receiver) = channel::<Vec<u8>>().unwrap();
    drop(receiver);
    assert!(sender.is_disconnected());
    match sender.send(vec![1]) {
        Err(SendError::Disconnected(back)) => assert_eq!(back, [1]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        sender.try_send(vec![2; 100_000]),
        Err(TrySendError::Disconnected(_))
    ));
    assert!(sender.send_bytes(b"x").unwrap_err().is_disconnected());
}

#[test]
fn the_descriptor_is_readable_exactly_while_there_is_a_message() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (here, there) = pipe::<u32>().unwrap();
        let serve = |there: Connection<u32>| {
            let fd = there.fileno().unwrap();
            for round in 0..200 {
                assert!(
                    becomes_readable(fd, LONG),
                    "round {round}: no message in the child"
                );
                let number = there.try_recv().expect("it is said to be there");
                // Late, so that the parent sleeps, or early, so that it has not begun to.
                if round % 3 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
                for copy in 0..number % 4 {
                    there.send(number * 10 + copy).unwrap();
                }
            }
        };
        let child = start(method, serve, (there,));
        let fd = here.fileno().unwrap();
        for number in 0..200 {
            assert!(
                !is_readable(fd),
                "{method}: round {number}: readable without a message"
            );
            here.send(number).unwrap();
            for copy in 0..number % 4 {
                match number % 3 {
                    0 => assert!(here.poll(LONG).unwrap()),
                    1 => assert!(!wait(&[&here], Some(LONG)).unwrap().is_empty()),
                    _ => assert!(becomes_readable(fd, LONG)),
                }
                assert!(
                    is_readable(fd),
                    "{method}: round {number}: not readable with a message"
                );
                assert_eq!(here.recv().unwrap(), number * 10 + copy);
            }
            match here.try_recv() {
                Err(TryRecvError::Empty) => {}
                // After the last round the child ends.
                Err(TryRecvError::Disconnected) if number == 199 => {}
                other => panic!("{method}: round {number}: {other:?}"),
            }
        }
        assert!(child.join().unwrap().success());
        assert!(is_readable(fd), "{method}: the end is not told");
        assert!(matches!(here.try_recv(), Err(TryRecvError::Disconnected)));
        assert!(is_readable(fd), "{method}: the end is told once only");
    });
}

#[test]
fn an_event_loop_misses_nothing_of_a_sender_that_never_stops() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (sender, receiver) = channel::<u32>().unwrap();
        let count = 50_000;
        let send = |sender: Sender<u32>, count: u32| {
            for number in 0..count {
                sender.send(number).unwrap();
                if number % 1000 == 0 {
                    thread::sleep(Duration::from_micros(300));
                }
            }
        };
        let child = start(method, send, (sender, count));
        let fd = receiver.fileno().unwrap();
        for number in 0..count {
            assert!(
                becomes_readable(fd, LONG),
                "{method}: message {number} is not told"
            );
            assert_eq!(receiver.try_recv().expect("it is said to be there"), number);
        }
        assert!(becomes_readable(fd, LONG));
        assert!(matches!(
            receiver.try_recv(),
            Err(TryRecvError::Disconnected)
        ));
        assert!(child.join().unwrap().success());
    });
}

#[test]
fn many_connections_and_processes_are_waited_for_at_once() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let mut receivers = Vec::new();
        let mut children = Vec::new();
        let mut gates = Vec::new();
        for number in 0..12u32 {
            let (sender, receiver) = channel::<u32>().unwrap();
            let (gate, wait) = channel::<()>().unwrap();
            let say = |number: u32, sender: Sender<u32>, wait: Receiver<()>| {
                wait.recv().unwrap();
                sender.send(number).unwrap();
                wait.recv().unwrap();
            };
            children.push(start(method, say, (number, sender, wait)));
            receivers.push(receiver);
            gates.push(gate);
        }
        let mut objects: Vec<&dyn Waitable> = Vec::new();
        objects.extend(receivers.iter().map(|receiver| receiver as &dyn Waitable));
        objects.extend(children.iter().map(|child| child as &dyn Waitable));
        let none = wait(&objects, Some(Duration::from_millis(20))).unwrap();
        assert!(none.is_empty(), "{method}: {none:?}");
        for number in [5usize, 0, 11, 3] {
            gates[number].send(()).unwrap();
            // Ready until it is taken.
            assert_eq!(wait(&objects, Some(LONG)).unwrap(), [number]);
            assert_eq!(wait(&objects, None).unwrap(), [number]);
            assert_eq!(receivers[number].try_recv().unwrap(), number as u32);
            assert!(wait(&objects, Some(Duration::ZERO)).unwrap().is_empty());
        }
        gates[3].send(()).unwrap();
        assert!(children[3].join_timeout(LONG).unwrap().unwrap().success());
        // The end of its pipe, and its own.
        assert_eq!(wait(&objects, Some(LONG)).unwrap(), [3, 15]);
        for child in &children {
            child.kill().unwrap();
            child.join().unwrap();
        }
        assert_eq!(wait(&objects, Some(LONG)).unwrap().len(), 24);
        assert!(wait(&[], None).unwrap().is_empty());
    });
}

#[test]
fn threads_share_an_end() {
    let _guard = guard(60);
    let (sender, receiver) = channel::<u64>().unwrap();
    let (threads, each) = (4u64, 5_000u64);
    let sum = thread::scope(|scope| {
        for thread in 0..threads {
            let sender = &sender;
            scope.spawn(move || {
                (0..each).for_each(|number| sender.send(thread * each + number).unwrap());
            });
        }
        let takers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| (0..each).map(|_| receiver.recv().unwrap()).sum::<u64>()))
            .collect();
        takers
            .into_iter()
            .map(|taker| taker.join().unwrap())
            .sum::<u64>()
    });
    assert_eq!(sum, (0..threads * each).sum::<u64>());
}

#[test]
fn a_thread_that_waits_does_not_keep_another_from_looking() {
    let _guard = guard(60);
    let (sender, receiver) = channel::<u8>().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| receiver.recv());
        thread::sleep(Duration::from_millis(50));
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        let short = Duration::from_millis(20);
        assert!(matches!(
            receiver.recv_timeout(short),
            Err(RecvTimeoutError::Timeout)
        ));
        assert!(!receiver.poll(short).unwrap());
        // Whoever hangs here would be freed by a message that comes too late.
        let before = Instant::now();
        scope.spawn(|| {
            thread::sleep(Duration::from_secs(3));
            sender.send(1).unwrap();
        });
        let ready = wait(&[&receiver], Some(short)).unwrap();
        assert!(
            before.elapsed() < Duration::from_secs(2),
            "wait hangs; it found {ready:?}"
        );
        assert_eq!(waiting.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn messages_of_the_wrong_kind_are_errors_and_the_next_one_comes() {
    let _guard = guard(60);
    let (here, there) = pipe::<u32>().unwrap();
    let kind = |error: RecvError| match error {
        RecvError::Failed(error) => error.kind(),
        other => panic!("{other}"),
    };
    here.send_bytes(b"raw").unwrap();
    here.send(1).unwrap();
    assert_eq!(kind(there.recv().unwrap_err()), ErrorKind::TypeMismatch);
    assert_eq!(there.recv().unwrap(), 1);
    here.send(2).unwrap();
    here.send_bytes(&[7; 100_000]).unwrap();
    assert_eq!(
        kind(there.recv_bytes().unwrap_err()),
        ErrorKind::TypeMismatch
    );
    assert_eq!(there.recv_bytes().unwrap(), vec![7; 100_000]);
    here.send_bytes(&[7; 100_000]).unwrap();
    here.send(3).unwrap();
    assert_eq!(kind(there.recv().unwrap_err()), ErrorKind::TypeMismatch);
    assert_eq!(there.iter().next().unwrap().unwrap(), 3);
}

/// Fails, or panics, when it is serialised or deserialised; as it says.
#[derive(Debug, PartialEq)]
struct Rude(String, Vec<u8>);

impl Serialize for Rude {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_str() {
            "fail to encode" => Err(S::Error::custom("rudely refused to encode")),
            "panic at encode" => panic!("rudely panicked at encode"),
            _ => (&self.0, &self.1).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Rude {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (how, bytes) = <(String, Vec<u8>)>::deserialize(deserializer)?;
        match how.as_str() {
            "fail to decode" => Err(D::Error::custom("rudely refused to decode")),
            "panic at decode" => panic!("rudely panicked at decode"),
            _ => Ok(Self(how, bytes)),
        }
    }
}

fn panics(work: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err()
}

#[test]
fn rude_types_harm_only_their_own_message() {
    let _guard = guard(60);
    let (here, there) = pipe::<Rude>().unwrap();
    let rude = |how: &str, len| Rude(how.to_owned(), pattern(len, len));
    for len in [3, 100_000] {
        for _ in 0..3 {
            match here.send(rude("fail to encode", len)) {
                Err(SendError::Failed(back, error)) => {
                    assert_eq!(back, rude("fail to encode", len));
                    assert_eq!(error.kind(), ErrorKind::Encode);
                    assert!(error.to_string().contains("rudely refused"), "{error}");
                }
                other => panic!("{other:?}"),
            }
            assert!(panics(|| drop(here.send(rude("panic at encode", len)))));
            here.send(rude("fail to decode", len)).unwrap();
            here.send(rude("panic at decode", len)).unwrap();
            here.send(rude("be nice", len)).unwrap();
            match there.recv() {
                Err(RecvError::Failed(error)) => {
                    assert_eq!(error.kind(), ErrorKind::Decode);
                    assert!(error.to_string().contains("rudely refused"), "{error}");
                }
                other => panic!("{other:?}"),
            }
            assert!(panics(|| drop(there.recv())));
            assert_eq!(there.recv().unwrap(), rude("be nice", len));
        }
    }
}

/// A list that is deeper than anything should be.
#[derive(Serialize, Deserialize)]
struct Deep {
    inner: Option<Box<Deep>>,
}

impl fmt::Debug for Deep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deep")
    }
}

#[test]
fn values_nested_too_deep_are_errors() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        // In a thread as most are, whose stack is smaller than that of the first.
        let through = |depth: usize| {
            thread::spawn(move || go_deep(depth))
                .join()
                .is_ok_and(|got| got)
        };
        assert!(start(method, through, (100,)).result().unwrap(), "{method}");
        // Either end may refuse it; neither may fall over it.
        start(method, through, (2_000,)).result().unwrap();
    });
}

/// Sends a value of that depth; whether it was received.
fn go_deep(depth: usize) -> bool {
    let deep = |inner, _| Deep {
        inner: Some(Box::new(inner)),
    };
    let (sender, receiver) = channel::<Deep>().unwrap();
    let sent = sender
        .send((0..depth).fold(Deep { inner: None }, deep))
        .is_ok();
    let got = sent && receiver.recv().is_ok();
    // The next one is no worse for it.
    sender.send(Deep { inner: None }).unwrap();
    assert!(receiver.recv().is_ok());
    got
}
