//! Large messages: shared memory that is handed over, kept, written to, given back,
//! or that there is none of.

use std::sync::Arc;
use std::time::Duration;

use bunshin::{
    Array, Buffer, Connection, ErrorKind, Receiver, SendError, Sender, TrySendError, channel, pipe,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::{resident_bytes, under_each_start_method};
use crate::{LONG, guard, pattern, start};

/// Bytes of memory that the machine has, of which nothing can be wholly free.
fn all_memory() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let line = text
        .lines()
        .find(|line| line.starts_with("MemTotal"))
        .expect("it is the first");
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<usize>().ok())
        .expect("a number")
        << 10
}

#[test]
fn a_message_larger_than_the_memory_comes_back() {
    let _guard = guard(60);
    let len = all_memory() - (64 << 20);
    if Vec::<u8>::new().try_reserve_exact(len).is_err() {
        eprintln!("left out: the system does not promise memory that it has not");
        return;
    }
    // Zeros that nobody has looked at take no memory, before or after.
    let huge = vec![0u8; len];
    let (sender, receiver) = channel::<Buffer<u8>>().unwrap();
    assert_eq!(
        sender.send_bytes(&huge).unwrap_err().kind(),
        ErrorKind::OutOfMemory
    );
    match sender.send(Buffer::from(huge)) {
        Err(SendError::Failed(back, error)) => {
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
            assert_eq!((back.len(), back[len - 1]), (len, 0));
        }
        other => panic!("{other:?}"),
    }
    sender.send(Buffer::from(vec![1; 100_000])).unwrap();
    assert_eq!(receiver.recv().unwrap(), vec![1; 100_000]);
}

#[test]
fn shared_data_larger_than_the_memory_is_an_error() {
    let _guard = guard(60);
    for len in [1 << 50, (1 << 61) - 1, usize::MAX / 8, usize::MAX] {
        let error = Array::<u64>::new(len).expect_err("there is no such memory");
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{len}: {error}");
    }
}

#[test]
fn a_receiver_that_keeps_thousands_of_buffers_does_not_hold_up_the_sender() {
    let _guard = guard(120);
    under_each_start_method(|method| {
        let send = |sender: Sender<Buffer<u8>>, count: usize| {
            for number in 0..count {
                let mut bytes = vec![number as u8; 66_000];
                bytes[0] = (number >> 8) as u8;
                sender.send(Buffer::from(bytes)).unwrap();
            }
        };
        let (sender, receiver) = channel().unwrap();
        let child = start(method, send, (sender, 5000));
        let kept: Vec<_> = receiver.iter().map(Result::unwrap).collect();
        assert_eq!(kept.len(), 5000);
        for (number, bytes) in kept.iter().enumerate() {
            assert_eq!(
                (bytes.len(), bytes[0]),
                (66_000, (number >> 8) as u8),
                "{method}: {number}"
            );
            assert!(
                bytes[1..].iter().all(|byte| *byte == number as u8),
                "{method}: {number}"
            );
        }
        assert!(child.join().unwrap().success());
    });
}

/// Sends every buffer back with each number one higher.
fn count_up(there: Connection<Buffer<u64>>) {
    while let Ok(mut numbers) = there.recv() {
        numbers
            .as_mut_slice()
            .iter_mut()
            .for_each(|number| *number += 1);
        there.send(numbers).unwrap();
    }
}

#[test]
fn a_buffer_goes_to_and_fro() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (here, there) = pipe().unwrap();
        let child = start(method, count_up, (there,));
        for len in [0usize, 1, 511, 512, 513, 8192, 1 << 20] {
            let mut numbers: Buffer<u64> = (0..len as u64).collect();
            for round in 1..=20 {
                here.send(numbers).unwrap();
                numbers = here.recv().unwrap();
                let right = numbers
                    .iter()
                    .enumerate()
                    .all(|(i, n)| *n == i as u64 + round);
                assert!(
                    right && numbers.len() == len,
                    "{method}: {len} numbers, round {round}"
                );
            }
        }
        drop(here);
        assert!(child.join().unwrap().success());
    });
}

#[test]
fn many_buffers_in_flight_stay_apart() {
    let _guard = guard(120);
    under_each_start_method(|method| {
        let (here, there) = pipe().unwrap();
        let child = start(method, count_up, (there,));
        let len = |number: usize| 600 + number % 7 * 9_000;
        let mut kept = Vec::new();
        for number in 0..300 {
            here.send(Buffer::from(vec![number as u64; len(number)]))
                .unwrap();
            if number >= 40 {
                kept.push(here.recv().unwrap());
            }
            if number % 5 == 0 {
                // Room for others, somewhere in the middle.
                if let Some(middle) = kept.get_mut(number / 2) {
                    *middle = Buffer::default();
                }
            }
        }
        for (number, numbers) in kept.iter().enumerate() {
            if !numbers.is_empty() {
                assert_eq!(
                    *numbers,
                    vec![number as u64 + 1; len(number)],
                    "{method}: {number}"
                );
            }
        }
        child.kill().unwrap();
        child.join().unwrap();
    });
}

/// A buffer that others in this process hold too.
#[derive(Clone)]
struct Held(Arc<Buffer<u64>>);

impl Serialize for Held {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Held {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Buffer::deserialize(deserializer).map(|buffer| Self(Arc::new(buffer)))
    }
}

#[test]
fn a_buffer_that_is_sent_and_kept_does_not_change() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (here, there) = pipe::<Held>().unwrap();
        let echo = |there: Connection<Held>| {
            while let Ok(held) = there.recv() {
                there.send(held).unwrap();
            }
        };
        let child = start(method, echo, (there,));
        let trip = |held: Held| {
            here.send(held).unwrap();
            here.recv().unwrap()
        };
        let fresh = |number: u64| Held(Arc::new(Buffer::from(vec![number; 20_000])));
        let kept = trip(fresh(1));
        // The same memory comes back, and is let go of again.
        for _ in 0..3 {
            assert_eq!(*trip(kept.clone()).0, vec![1; 20_000]);
        }
        // New messages take what memory is free.
        let mut others: Vec<_> = (2..10).map(|number| trip(fresh(number))).collect();
        assert!(*kept.0 == vec![1; 20_000], "{method}: a buffer has changed");
        // Of two that came from the same place, each can be written to.
        let mut twin = trip(kept.clone());
        let twin = Arc::get_mut(&mut twin.0).expect("nobody else holds it");
        twin.as_mut_slice().fill(99);
        assert_eq!(
            *kept.0,
            vec![1; 20_000],
            "{method}: a buffer was written through another"
        );
        for (number, other) in (2..).zip(&mut others) {
            assert_eq!(*other.0, vec![number; 20_000], "{method}");
        }
        drop(here);
        assert!(child.join().unwrap().success());
    });
}

#[test]
fn memory_that_was_let_go_of_is_used_again() {
    let _guard = guard(120);
    let own = std::process::id();
    let (sender, receiver) = channel::<Buffer<u8>>().unwrap();
    let mut before = 0;
    for round in 0..120 {
        let bytes = pattern(round, (4 << 20) + round % 11 * 200_000);
        sender.send(Buffer::from(bytes.clone())).unwrap();
        assert!(receiver.recv().unwrap() == bytes);
        if round == 40 {
            before = resident_bytes(own).unwrap();
        }
    }
    let after = resident_bytes(own).unwrap();
    assert!(after < before + (64 << 20), "{before} bytes became {after}");
}

/// Panics after its buffer has gone beside the message.
#[derive(Deserialize)]
struct Explosive(Buffer<u8>);

impl Serialize for Explosive {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.len() == 1 << 20 {
            self.0.serialize(serializer)?;
            panic!("after the buffer");
        }
        self.0.serialize(serializer)
    }
}

#[test]
fn a_message_that_panics_leaves_no_memory_behind() {
    let _guard = guard(60);
    let own = std::process::id();
    let (sender, receiver) = channel::<Explosive>().unwrap();
    let explode = || {
        let explosive = Explosive(Buffer::from(vec![1; 1 << 20]));
        let caught =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sender.send(explosive)));
        assert!(caught.is_err());
    };
    std::panic::set_hook(Box::new(|_| ()));
    explode();
    let before = resident_bytes(own).unwrap();
    (0..150).for_each(|_| explode());
    let after = resident_bytes(own).unwrap();
    drop(std::panic::take_hook());
    assert!(after < before + (32 << 20), "{before} bytes became {after}");
    sender
        .send(Explosive(Buffer::from(vec![2; 100_000])))
        .unwrap();
    assert_eq!(receiver.recv().unwrap().0, vec![2; 100_000]);
}

#[test]
fn what_does_not_fit_now_comes_back_with_its_memory() {
    let _guard = guard(60);
    let (sender, receiver) = channel::<(u32, Buffer<u8>)>().unwrap();
    let mut sent = 0;
    for round in 0..3000u32 {
        // Some are refused, large as they are, and must not use up what there is.
        let timeout = Duration::from_micros(u64::from(round % 3));
        match sender.send_timeout((round, Buffer::from(vec![round as u8; 70_000])), timeout) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full((number, bytes))) => {
                assert_eq!(
                    (number, bytes.len(), bytes[9]),
                    (round, 70_000, round as u8)
                );
                if round % 2 == 0 {
                    take(&receiver);
                    sent -= 1;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    (0..sent).for_each(|_| take(&receiver));

    fn take(receiver: &Receiver<(u32, Buffer<u8>)>) {
        let (number, bytes) = receiver.recv_timeout(LONG).unwrap();
        assert_eq!(bytes, vec![number as u8; 70_000]);
    }
}
