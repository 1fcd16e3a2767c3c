//! Messages between two processes: the same work for every peer.
//!
//! The measuring process ("near") keeps one private buffer. For every message
//! it writes an eight-byte header and one byte in each 4 KiB page of that
//! buffer, and hands the buffer to the peer. The child ("far") reads the header
//! and the one byte of each page where the peer shows them to it, mixes both into
//! a digest, and answers: in a round trip with a message of the same size from
//! its own buffer, one way with the digest after the last message of a batch.
//! Each side knows what the digest must be, so a peer that loses, repeats, changes
//! or mixes up messages fails. The first message is compared byte by byte.

use std::io;
use std::panic::{self, AssertUnwindSafe};

use serde::{Deserialize, Serialize};

use super::{Pattern, Work};
use crate::measure::{self, Result};

/// Bytes at the front of each message.
pub const HEADER_BYTES: usize = 8;

const PAGE_BYTES: usize = 4096;

/// Where in its page the byte that is written and read lies.
const STAMP_OFFSET: usize = 64;

/// Header bits above the sequence number.
const STOP: u64 = 1 << 63;
const FLUSH: u64 = 1 << 62;
const AUDIT: u64 = 1 << 61;
const SEQUENCE: u64 = (1 << 32) - 1;

/// One end of a two-way link that carries bytes.
pub trait Link {
    /// Sends one message that lies in the sender's own memory.
    fn send(&mut self, message: &[u8]) -> Result<()>;

    /// Receives one message and shows it to `look`, in place where the peer can.
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R>;
}

/// One end of a two-way link that carries values of a type.
pub trait TypedLink<M: Message> {
    fn send(&mut self, message: M) -> Result<()>;
    fn receive(&mut self) -> Result<M>;
}

/// A value that carries a header.
pub trait Message: Sized {
    fn new(header: u64) -> Self;
    /// The header, and a number made from every field.
    fn inspect(&self) -> (u64, u64);
}

impl Message for u64 {
    fn new(header: u64) -> u64 {
        header
    }

    fn inspect(&self) -> (u64, u64) {
        (*self, *self)
    }
}

/// Sixty-four bytes as a program would have them: a quote of a market.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[repr(C)]
pub struct Quote {
    pub header: u64,
    pub instrument: u64,
    pub bid: f64,
    pub ask: f64,
    pub bid_size: f64,
    pub ask_size: f64,
    pub time: u64,
    pub venue: u32,
    pub flags: u32,
}

const _: () = assert!(size_of::<Quote>() == 64);

impl Message for Quote {
    fn new(header: u64) -> Quote {
        let price = header as u32 as f64;
        Quote {
            header,
            instrument: header.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            bid: price - 0.25,
            ask: price + 0.25,
            bid_size: price * 3.0,
            ask_size: price * 7.0,
            time: header ^ 0x5555_5555_5555_5555,
            venue: header as u32,
            flags: !(header as u32),
        }
    }

    fn inspect(&self) -> (u64, u64) {
        let digest = self.instrument
            ^ self.bid.to_bits()
            ^ self.ask.to_bits().rotate_left(7)
            ^ self.bid_size.to_bits().rotate_left(13)
            ^ self.ask_size.to_bits().rotate_left(21)
            ^ self.time
            ^ (u64::from(self.venue) << 32)
            ^ u64::from(self.flags);
        (self.header, digest)
    }
}

/// One end as the patterns below drive it.
pub trait Port {
    /// Sends a message with this header; returns the message's digest.
    fn put(&mut self, header: u64) -> Result<u64>;
    /// Receives a message; returns its header and digest.
    fn take(&mut self) -> Result<(u64, u64)>;
}

/// A [`Port`] over bytes, with the private buffer they are sent from.
pub struct Bytes<L> {
    link: L,
    buffer: Vec<u8>,
}

impl<L: Link> Bytes<L> {
    /// The end that sends messages of `size_bytes`.
    pub fn new(link: L, size_bytes: usize) -> Bytes<L> {
        // Not zeros: a page that was never touched would be a shared one.
        let buffer = (0..size_bytes).map(|at| (at % 251) as u8).collect();
        Bytes { link, buffer }
    }
}

impl<L: Link> Port for Bytes<L> {
    fn put(&mut self, header: u64) -> Result<u64> {
        let digest = stamp(&mut self.buffer, header)?;
        self.link.send(&self.buffer)?;
        Ok(digest)
    }

    fn take(&mut self) -> Result<(u64, u64)> {
        self.link.receive(inspect)?
    }
}

/// A [`Port`] over values of a type.
pub struct Values<L, M> {
    link: L,
    message: std::marker::PhantomData<M>,
}

impl<M: Message, L: TypedLink<M>> Values<L, M> {
    pub fn new(link: L) -> Values<L, M> {
        Values {
            link,
            message: std::marker::PhantomData,
        }
    }
}

impl<M: Message, L: TypedLink<M>> Port for Values<L, M> {
    fn put(&mut self, header: u64) -> Result<u64> {
        let message = M::new(header);
        let (_, digest) = message.inspect();
        self.link.send(message)?;
        Ok(digest)
    }

    fn take(&mut self) -> Result<(u64, u64)> {
        Ok(self.link.receive()?.inspect())
    }
}

/// Writes the header and the byte of each page; returns the message's digest.
fn stamp(buffer: &mut [u8], header: u64) -> Result<u64> {
    buffer[..HEADER_BYTES].copy_from_slice(&header.to_le_bytes());
    let mut sum = 0;
    for byte in buffer.iter_mut().skip(STAMP_OFFSET).step_by(PAGE_BYTES) {
        *byte = header as u8;
        sum += u64::from(*byte);
    }
    if header & AUDIT == 0 {
        Ok(header.wrapping_add(sum))
    } else {
        Ok(inspect(buffer)?.1)
    }
}

/// Reads the header and the byte of each page; every byte if the header asks for it.
fn inspect(message: &[u8]) -> Result<(u64, u64)> {
    let (header, rest) = message
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(|| format!("a message of {} bytes came", message.len()))?;
    let header = u64::from_le_bytes(*header);
    let sum: u64 = if header & AUDIT == 0 {
        let stamps = rest.iter().skip(STAMP_OFFSET - HEADER_BYTES);
        stamps
            .step_by(PAGE_BYTES)
            .map(|&byte| u64::from(byte))
            .sum()
    } else {
        rest.iter().map(|&byte| u64::from(byte)).sum()
    };
    Ok((header, header.wrapping_add(sum)))
}

fn mix(digest: u64, with: u64) -> u64 {
    digest.rotate_left(5) ^ with
}

/// The near side: measures, and returns seconds a round trip or a message.
pub fn drive(port: &mut impl Port, work: &Work) -> Result<f64> {
    let mut sequence = 0;
    let mut next = || {
        sequence = (sequence + 1) & SEQUENCE;
        sequence
    };
    let mut batch = |n_messages: u64, flags: u64| -> Result<()> {
        match work.pattern {
            Pattern::RoundTrip => {
                for _ in 0..n_messages {
                    let header = next() | flags;
                    let sent = (header, port.put(header)?);
                    let came = port.take()?;
                    if came != sent {
                        return Err(format!("sent {sent:x?}, {came:x?} came back").into());
                    }
                }
            }
            Pattern::OneWay => {
                let mut digest = 0;
                for left in (0..n_messages).rev() {
                    let flush = if left == 0 { FLUSH } else { 0 };
                    digest = mix(digest, port.put(next() | flags | flush)?);
                }
                let (received, _) = port.take()?;
                if received != digest {
                    return Err(format!("sent {digest:x}, received {received:x}").into());
                }
            }
        }
        Ok(())
    };
    batch(1, AUDIT)?;
    let seconds = measure::seconds_each(work.budget, u64::MAX, |n| batch(n, 0))?;
    port.put(STOP)?;
    Ok(seconds)
}

/// The far side: answers until the near side stops it.
pub fn serve(port: &mut impl Port, pattern: Pattern) -> Result<()> {
    let mut digest = 0;
    loop {
        let (header, part) = port.take()?;
        if header & STOP != 0 {
            return Ok(());
        }
        match pattern {
            Pattern::RoundTrip => {
                // Both sides' buffers hold the same, so the answer's digest is
                // what the question's must have been.
                if port.put(header)? != part {
                    return Err("a changed message came".into());
                }
            }
            Pattern::OneWay => {
                digest = mix(digest, part);
                if header & FLUSH != 0 {
                    port.put(digest)?;
                    digest = 0;
                }
            }
        }
    }
}

/// Measures a link whose far end is a forked child: for peers that bring no
/// way to start a process. Each side makes its own end, after the fork.
pub fn forked<N: Port, F: Port>(
    work: &Work,
    near: impl FnOnce() -> Result<N>,
    far: impl FnOnce() -> Result<F>,
) -> Result<f64> {
    let (near_core, far_core) = work.cores()?;
    let child = fork_into(|| {
        measure::pin(far_core)?;
        serve(&mut far()?, work.pattern)
    })?;
    measure::pin(near_core)?;
    let seconds = drive(&mut near()?, work)?;
    reap(child)?;
    Ok(seconds)
}

/// [`forked`] for a byte link whose two ends exist before the fork.
pub fn forked_bytes<L: Link>(work: &Work, near: L, far: L) -> Result<f64> {
    forked(
        work,
        || Ok(Bytes::new(near, work.size_bytes)),
        || Ok(Bytes::new(far, work.reply_bytes())),
    )
}

/// [`forked`] for a typed link whose two ends exist before the fork.
pub fn forked_values<M: Message, L: TypedLink<M>>(work: &Work, near: L, far: L) -> Result<f64> {
    forked(work, || Ok(Values::new(near)), || Ok(Values::new(far)))
}

/// Forks a child that runs `work` and ends. Returns the child's process number.
pub fn fork_into(work: impl FnOnce() -> Result<()>) -> Result<libc::pid_t> {
    // SAFETY: the measuring process has one thread when it forks (each peer's
    // function starts with this), so no lock is held by a thread that is gone.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().into()),
        0 => {
            // Nobody ends workers by hand; they go when the measurement does.
            // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory of ours.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let status = match panic::catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    eprintln!("in the child: {error}");
                    1
                }
                Err(_) => 101,
            };
            // SAFETY: ends this process; the parent's destructors and buffered
            // output, of which this child has copies, must not run twice.
            unsafe { libc::_exit(status) }
        }
        child => Ok(child),
    }
}

/// Waits for a child of [`fork_into`] and checks that it ended well.
pub fn reap(child: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    if unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Err(io::Error::last_os_error().into());
    }
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        Ok(())
    } else {
        Err(format!("the child ended with status {status:#x}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use std::time::Duration;

    /// A link between threads that may spoil what it carries.
    struct Thread {
        sender: Sender<Vec<u8>>,
        receiver: Receiver<Vec<u8>>,
        spoil: fn(usize, &mut Vec<u8>),
        n_sent: usize,
    }

    impl Link for Thread {
        fn send(&mut self, message: &[u8]) -> Result<()> {
            self.n_sent += 1;
            let mut message = message.to_vec();
            (self.spoil)(self.n_sent, &mut message);
            Ok(self.sender.send(message)?)
        }

        fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
            Ok(look(&self.receiver.recv()?))
        }
    }

    fn measured(
        pattern: Pattern,
        size_bytes: usize,
        spoil: fn(usize, &mut Vec<u8>),
    ) -> Result<f64> {
        let work = Work {
            pattern,
            size_bytes,
            budget: Duration::from_millis(20),
            ..Work::NONE
        };
        let (near_sender, far_receiver) = channel();
        let (far_sender, near_receiver) = channel();
        let end = |sender, receiver, spoil| Thread {
            sender,
            receiver,
            spoil,
            n_sent: 0,
        };
        let far = end(far_sender, far_receiver, |_, _| {});
        let server = thread::spawn(move || {
            serve(&mut Bytes::new(far, work.reply_bytes()), work.pattern).is_ok()
        });
        let near = end(near_sender, near_receiver, spoil);
        let measured = drive(&mut Bytes::new(near, size_bytes), &work);
        let served = server.join().expect("the far side did not panic");
        match measured {
            Ok(_) if !served => Err("the far side failed".into()),
            measured => measured,
        }
    }

    #[test]
    fn an_honest_link_is_measured() -> Result<()> {
        for pattern in [Pattern::RoundTrip, Pattern::OneWay] {
            for size_bytes in [8, 64, 65, 4096, 3 * 4096 + 100] {
                let seconds = measured(pattern, size_bytes, |_, _| {})?;
                assert!(seconds > 0.0, "{pattern:?} of {size_bytes} bytes");
            }
        }
        Ok(())
    }

    #[test]
    fn a_changed_message_is_noticed() {
        for pattern in [Pattern::RoundTrip, Pattern::OneWay] {
            // Any byte of the first message; later ones where they are stamped.
            let first = measured(pattern, 10_000, |n, message| {
                message[5000] ^= u8::from(n == 1);
            });
            assert!(first.is_err(), "{pattern:?}, first message");
            let later = measured(pattern, 10_000, |n, message| {
                message[STAMP_OFFSET + PAGE_BYTES] ^= u8::from(n == 2);
            });
            assert!(later.is_err(), "{pattern:?}, later message");
        }
    }

    #[test]
    fn messages_out_of_order_are_noticed() {
        let (one, two) = (mix(mix(0, 1), 2), mix(mix(0, 2), 1));
        assert_ne!(one, two);
    }
}
