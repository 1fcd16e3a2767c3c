//! The ring's bells: no wake-up is lost, and what was sent is there. As `transport` uses it.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::thread;

use super::super::layout::{Kind, PIPE_FIXED, RING};
use super::super::ring::{End, Ring};
use super::super::segment::Segment;
use super::{Socket, explore};

struct Pipe {
    ring: Ring,
    to_receiver: Socket,
    to_sender: Socket,
}

impl Pipe {
    fn new() -> Arc<Self> {
        let segment = Segment::create(Kind::Pipe, PIPE_FIXED).unwrap();
        let ring = Ring::new(segment, 0);
        ring.open(End::Sender);
        ring.open(End::Receiver);
        Arc::new(Self {
            ring,
            to_receiver: Socket::default(),
            to_sender: Socket::default(),
        })
    }

    /// Sends one byte that takes `span` bytes of the ring.
    fn send(&self, head: &mut u64, byte: u8, span: usize) {
        let (tail, mut free) = self.ring.room(head, span);
        while free < span {
            self.ring.arm(End::Sender);
            if self.ring.room(head, span).1 >= span {
                self.ring.disarm(End::Sender);
            } else {
                self.to_sender.read();
                self.ring.answered(End::Sender);
            }
            (_, free) = self.ring.room(head, span);
        }
        self.ring.put(tail, &[byte]);
        if self.ring.publish(tail + span as u64) {
            self.to_receiver.ring();
        }
    }

    /// Receives one byte that takes `span` bytes of the ring; `None` at the end.
    fn receive(&self, tail: &mut u64, span: usize) -> Option<u8> {
        let (head, filled) = loop {
            let (head, filled) = self.ring.filled(tail);
            if filled > 0 {
                break (head, filled);
            }
            self.ring.arm(End::Receiver);
            if self.ring.has_data() {
                self.ring.disarm(End::Receiver);
                continue;
            }
            if self.ring.is_closed(End::Sender) {
                // The sender may have sent between the two looks.
                if self.ring.has_data() {
                    continue;
                }
                return None;
            }
            for _ in 0..self.to_receiver.read() {
                self.ring.answered(End::Receiver);
            }
        };
        assert!(filled >= span, "half a message");
        let mut byte = [0];
        self.ring.take(head, &mut byte);
        if self.ring.consume(head, head + span as u64) {
            self.to_sender.ring();
        }
        Some(byte[0])
    }

    fn close(&self, end: End) {
        if self.ring.close(end) {
            match end {
                End::Sender => self.to_receiver.ring(),
                End::Receiver => self.to_sender.ring(),
            }
        }
    }
}

#[test]
fn loom_ring_wakes_the_receiver_to_what_was_sent() {
    explore(5, || {
        let pipe = Pipe::new();
        let receiver = Arc::clone(&pipe);
        let receiver = thread::spawn(move || {
            let mut tail = 0;
            [1, 2].map(|_| receiver.receive(&mut tail, 1))
        });
        let mut head = 0;
        pipe.send(&mut head, 1, 1);
        pipe.send(&mut head, 2, 1);
        assert_eq!(receiver.join().unwrap(), [Some(1), Some(2)]);
    });
}

#[test]
fn loom_ring_ends_after_what_was_sent() {
    explore(5, || {
        let pipe = Pipe::new();
        let receiver = Arc::clone(&pipe);
        let receiver = thread::spawn(move || {
            let mut tail = 0;
            [1, 2].map(|_| receiver.receive(&mut tail, 1))
        });
        pipe.send(&mut 0, 1, 1);
        pipe.close(End::Sender);
        assert_eq!(receiver.join().unwrap(), [Some(1), None]);
    });
}

#[test]
fn loom_ring_wakes_the_sender_to_room() {
    const QUARTER: usize = RING / 4;
    explore(5, || {
        let pipe = Pipe::new();
        // Full before the receiver begins: the fifth has to wait, and takes the place of the first.
        let mut head = 0;
        for byte in 1..=4 {
            pipe.send(&mut head, byte, QUARTER);
        }
        let receiver = Arc::clone(&pipe);
        let receiver = thread::spawn(move || {
            let mut tail = 0;
            [1, 2, 3, 4, 5].map(|_| receiver.receive(&mut tail, QUARTER))
        });
        pipe.send(&mut head, 5, QUARTER);
        assert_eq!(receiver.join().unwrap(), [1, 2, 3, 4, 5].map(Some));
    });
}

/// A receiving end that two processes have, as `transport` receives from one that users watch.
struct Watched {
    pipe: Arc<Pipe>,
    sending: Mutex<()>,
    /// How many messages have been taken.
    lock: Mutex<usize>,
}

impl Watched {
    /// Looks at the socket, takes the lock, looks again, and must then find a message.
    fn take_what_is_told(&self) -> usize {
        let mut taken = self.lock.lock().unwrap();
        if self.pipe.to_receiver.has_some() {
            assert!(self.pipe.ring.has_data(), "a byte that stands for nothing");
            self.take(&mut taken);
        }
        *taken
    }

    /// Takes what is there, told or not.
    fn take_what_is_there(&self) {
        let mut taken = self.lock.lock().unwrap();
        if self.pipe.ring.has_data() {
            self.take(&mut taken);
        }
    }

    fn take(&self, taken: &mut usize) {
        let (pipe, ring) = (&self.pipe, &self.pipe.ring);
        self.wait_for_sender(|| ring.is_rung(End::Receiver));
        pipe.receive(&mut 0, 1);
        *taken += 1;
        self.wait_for_sender(|| ring.has_data());
        if ring.has_data() {
            return;
        }
        ring.arm_again(End::Receiver);
        if ring.has_data() && ring.keep_rung(End::Receiver) {
            return;
        }
        pipe.to_receiver.read_one();
    }

    fn wait_for_sender(&self, is_enough: impl Fn() -> bool) {
        while !is_enough() && self.sending.try_lock().is_err() {
            thread::yield_now();
        }
    }
}

fn explore_watched(other: impl Fn(&Watched) + Copy + Send + Sync + 'static) {
    const COUNT: u8 = 2;
    explore(3, move || {
        let pipe = Pipe::new();
        pipe.ring.arm(End::Receiver);
        let here = Arc::new(Watched {
            pipe,
            sending: Mutex::new(()),
            lock: Mutex::new(0),
        });
        let sender = Arc::clone(&here);
        let there = Arc::clone(&here);
        let there = thread::spawn(move || other(&there));
        let sender = thread::spawn(move || {
            let mut head = 0;
            for byte in 0..COUNT {
                let _sending = sender.sending.lock().unwrap();
                sender.pipe.send(&mut head, byte, 1);
            }
        });
        here.take_what_is_told();
        there.join().unwrap();
        // A message that nothing tells of ends in a deadlock.
        while here.take_what_is_told() < COUNT.into() {
            here.pipe.to_receiver.wait_for_some();
        }
        sender.join().unwrap();
        let is_told = here.pipe.to_receiver.has_some();
        assert!(!is_told, "all was taken, and there is a byte");
    });
}

#[test]
fn loom_ring_tells_two_who_watch() {
    explore_watched(|other| _ = other.take_what_is_told());
}

#[test]
fn loom_ring_tells_one_who_watches_while_another_takes() {
    explore_watched(Watched::take_what_is_there);
}
