//! What `fuzz/` feeds with bytes: everything that reads what another process, or another
//! machine, has written.
//!
//! It is compiled for the fuzzers (`--cfg fuzzing`) and for the unit tests, which run all
//! inputs that are kept in `fuzz/seeds`; it is no part of the public surface. Each function
//! takes any bytes and must return: no panic, no endless wait, no memory beyond what the
//! bytes are worth. To add one, write the function, list it in [`TARGETS`], and add
//! a file of its name to `fuzz/fuzz_targets` and a `[[bin]]` to `fuzz/Cargo.toml`.

// The unit tests see it as a module of their own crate only.
#![cfg_attr(not(fuzzing), allow(unreachable_pub))]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::codec::attachments::{Incoming, Outgoing};
use crate::codec::buffer::Buffer;
use crate::codec::serde::{decode, decode_of_others, encode_for_others};
use crate::connection::fuzzing::converse;
use crate::shm::heap::{Block, Descriptor, Heap};
use crate::shm::layout::{HEAP_TABLE, Kind, PIPE_FIRST, PIPE_FIXED, PIPE_HEAP, RING};
use crate::shm::ring::{End, Ring};
use crate::shm::segment::Segment;
use crate::sys::socket;
use crate::transport::Patience;
use crate::transport::channel::{Failure, Pair, Side};
use crate::transport::frame::{BODY_MAX, HEADER, Header, RAW};
use crate::transport::prefixed::{Found, Reader};
use crate::transport::{receiver, sender};

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// Every function here, by the name of its folder of seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame),
    ("stream", stream),
    ("auth", auth),
    ("heap", heap),
    ("manager", manager),
];

/// The longest message that [`stream`] takes.
const STREAM_LIMIT: usize = 1 << 16;

/// What the fuzzers' messages are decoded as: text, sequences, options, and a buffer.
type Value = (u8, Vec<Option<String>>, Buffer<u8>);

/// Choices, read from the front of the bytes; zeros after their end.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from(self.byte()) | u16::from(self.byte()) << 8
    }

    fn long(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }
}

/// The framing of connections to other programs, in pieces, and the values in it.
pub fn stream(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let step = usize::from(choices.byte()) + 1;
    let mut rest = choices.0;
    let mut reader = Reader::new(STREAM_LIMIT);
    let mut taken = 0;
    loop {
        let mut source = |into: &mut [u8]| {
            let count = into.len().min(rest.len()).min(step);
            into[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            if count == 0 && step % 2 == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        };
        let found = reader.fill(&mut source).expect("there is memory");
        if found == Found::NotYet {
            // What was begun is all that was given and not taken.
            let begun = reader.begun();
            assert_eq!(begun, choices.0[taken..]);
            let resumed = Reader::resume(STREAM_LIMIT, &begun).expect("it was begun here");
            assert_eq!(resumed.begun(), begun);
            return;
        }
        match reader.take() {
            Ok(message) => {
                assert!(message.len() <= STREAM_LIMIT);
                // It reads to the end of a message, and no further.
                taken = choices.0.len() - rest.len();
                assert!(choices.0[..taken].ends_with(&message));
                if let Ok(value) = decode_of_others::<Value>(&message) {
                    let again = encode_for_others(&value).expect("it can be written");
                    let twice = decode_of_others::<Value>(&again).expect("it can be read");
                    assert!(value.1 == twice.1 && value.2 == twice.2);
                }
            }
            Err(Failure::NotYet) => panic!("it said that there is one"),
            Err(_) => return,
        }
    }
}

/// The showing of keys, with a peer that does not have it.
pub fn auth(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let flags = choices.byte();
    let mut messages = Vec::new();
    while !choices.is_over() {
        let len = choices.byte().into();
        messages.push(choices.take(len));
    }
    let sure = converse(flags & 1 != 0, flags & 2 != 0, &messages);
    assert!(!sure, "somebody without the key was believed");
}

/// A manager's messages, of clients that have shown the key, and what its objects do then.
pub fn manager(bytes: &[u8]) {
    crate::manager::fuzz_messages(bytes);
}

/// The frames in a pipe's ring, written by a peer that writes what it likes.
pub fn frame(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let Ok(segment) = Segment::create_first(Kind::Pipe, PIPE_FIXED, PIPE_FIRST) else {
        return;
    };
    let Ok((one, two)) = socket::pair() else {
        return;
    };
    let pair = Pair::new(&one, &two);
    let ring = || Ring::new(Arc::clone(&segment), 0);
    let heaps = [0, 1].map(|member| Heap::new(Arc::clone(&segment), PIPE_HEAP, member));
    let Ok(rogue) = socket::duplicate(one.as_fd()) else {
        return;
    };
    let side = |end, socket, member: usize| {
        let heap = Arc::clone(&heaps[member]);
        Side::new(ring(), heap, socket, end, Some(Arc::clone(&pair)))
    };
    let sender = sender::Sender::new(side(End::Sender, one, 0));
    let receiver = receiver::Receiver::new(side(End::Receiver, two, 1), VecDeque::new());
    ring().open(End::Sender);
    ring().open(End::Receiver);
    while !choices.is_over() {
        match choices.byte() % 6 {
            // An honest message.
            0 => {
                let len = usize::from(choices.word());
                let mut outgoing = Outgoing::new(Some(Arc::clone(&heaps[0])));
                let _ = sender.send(RAW, &vec![1; len], &mut outgoing, Patience::Never);
            }
            // A frame whose check is right.
            1 => {
                let frame = Header {
                    len: u32::from(choices.word()),
                    tag: choices.byte().into(),
                    handles: choices.byte().into(),
                    blocks: choices.byte().into(),
                    flags: choices.byte().into(),
                };
                let n_body = choices.byte().into();
                let body = choices.take(n_body);
                let mut all = frame.to_bytes().to_vec();
                all.extend_from_slice(body);
                let (tail, room) = ring().room(&mut 0, all.len());
                if all.len() <= room {
                    ring().put(tail, &all);
                    ring().publish(tail.wrapping_add(frame.span() as u64));
                }
            }
            // Anything, anywhere in the ring.
            2 => {
                let at = choices.word() as usize % RING;
                let count = usize::from(choices.byte()).min(HEADER * 4);
                ring().put(at as u64, choices.take(count));
            }
            // A tail that says more or less than there is.
            3 => {
                let (tail, _) = ring().room(&mut 0, 0);
                let by = i64::from(choices.word() as i16);
                ring().publish(tail.wrapping_add_signed(by));
            }
            // Bytes on the socket, with and without a handle.
            4 => {
                let count = usize::from(choices.byte() % 32);
                let say = choices.take(count);
                if !say.is_empty() {
                    let handle = [segment.as_fd()];
                    let handles = if count % 2 == 0 { &handle[..] } else { &[] };
                    let _ = socket::send(rogue.as_fd(), say, handles, false);
                }
            }
            _ => {
                if let Ok(mut message) = receiver.receive(Patience::Never) {
                    let mut incoming: Incoming = std::mem::take(&mut message.incoming);
                    assert!(message.bytes().len() <= BODY_MAX.max(PIPE_FIXED * 4096));
                    let _ = decode::<Value>(message.bytes(), &mut incoming);
                }
            }
        }
    }
}

/// A shared heap whose table another process writes what it likes to, other than to the word
/// of its lock and the addresses in it, which only whoever has the lock may touch.
pub fn heap(bytes: &[u8]) {
    /// Bytes of the lock, at the start of the table.
    const LOCK: usize = 40;
    let mut choices = Choices(bytes);
    let Ok(segment) = Segment::create_first(Kind::Pipe, PIPE_FIXED, PIPE_FIRST) else {
        return;
    };
    let Ok(file) = socket::duplicate(segment.as_fd()).map(File::from) else {
        return;
    };
    let heaps = [0, 1].map(|member| Heap::new(Arc::clone(&segment), PIPE_HEAP, member));
    let mut blocks: Vec<(usize, Block)> = Vec::new();
    let mut sent: Vec<Descriptor> = Vec::new();
    while !choices.is_over() && blocks.len() < 64 {
        let op = choices.byte();
        let member = usize::from(op >> 7);
        match op & 0x7f {
            0..=15 => {
                let len = choices.long() as usize % (1 << 19);
                if let Ok(Some(block)) = heaps[member].alloc(len) {
                    look(&block, len);
                    blocks.push((member, block));
                }
            }
            16..=63 => {
                // Mostly to the entries in use, which are the first ones.
                let at = LOCK + usize::from(choices.word()) % (64 + 32 * 12 - LOCK);
                let count = (1 + usize::from(op & 7)).min(HEAP_TABLE - at);
                let what = choices.take(count);
                let _ = file.write_at(what, (PIPE_HEAP + at) as u64);
            }
            64..=79 if !blocks.is_empty() => {
                let (member, block) = &blocks[usize::from(choices.byte()) % blocks.len()];
                sent.extend(block.send_by(&heaps[*member]));
            }
            80..=95 if !sent.is_empty() => {
                let descriptor = sent[usize::from(choices.byte()) % sent.len()];
                claim(&heaps, member, descriptor, &mut blocks);
            }
            96..=103 => {
                let descriptor = Descriptor {
                    index: choices.word().into(),
                    times: choices.byte().into(),
                    len: choices.long().into(),
                };
                claim(&heaps, member, descriptor, &mut blocks);
            }
            104..=111 if !sent.is_empty() => {
                let at = usize::from(choices.byte()) % sent.len();
                heaps[member].recall(sent.swap_remove(at));
            }
            112..=119 if !blocks.is_empty() => {
                let at = usize::from(choices.byte()) % blocks.len();
                let (_, mut block) = blocks.swap_remove(at);
                let len = block.len();
                if let Some(bytes) = block.bytes_mut() {
                    assert_eq!(bytes.len(), len);
                    if let [first, .., last] = bytes {
                        (*first, *last) = (1, 2);
                    }
                }
            }
            120..=121 => heaps[member].bury(u32::from(choices.byte()) % 64),
            _ => {}
        }
    }
}

fn claim(
    heaps: &[Arc<Heap>; 2],
    member: usize,
    descriptor: Descriptor,
    blocks: &mut Vec<(usize, Block)>,
) {
    if let Ok(block) = heaps[member].claim(descriptor) {
        look(&block, descriptor.len as usize);
        blocks.push((member, block));
    }
}

/// A block must have the length that was asked for, and be there.
fn look(block: &Block, len: usize) {
    let bytes = block.bytes();
    assert_eq!(bytes.len(), len);
    // Reads, which end the process if the memory is not there.
    let _ = std::hint::black_box(bytes.first().zip(bytes.last()));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::sys::thread::has_robust_lock;

    /// Every input that is kept, among them those that once failed.
    #[test]
    fn what_was_found_once_stays_found() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
        for (name, target) in super::TARGETS {
            let folder = std::fs::read_dir(seeds.join(name)).expect("each target has seeds");
            let mut count = 0;
            for seed in folder {
                let path = seed.expect("it can be listed").path();
                let bytes = std::fs::read(&path).expect("it can be read");
                println!("{}", path.display());
                target(&bytes);
                count += 1;
            }
            assert!(count > 0, "{name} has no seeds");
        }
    }

    /// A few thousand random inputs: not much of a search, but in every run of the tests.
    #[test]
    fn random_bytes_do_no_harm() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..if cfg!(miri) { 3 } else { 300 } {
            let bytes: Vec<u8> = (0..round * 3)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            for (name, target) in super::TARGETS {
                target(&bytes);
                assert!(
                    !has_robust_lock(),
                    "{name} left a lock behind in round {round}"
                );
            }
        }
    }
}
