//! A minimal ring in shared memory that never sleeps: the lower bound.
//!
//! One sender, one receiver, slots of a fixed size. The sender copies a message into a
//! free slot and adds one to `tail`; the receiver looks at it there and adds one to
//! `head`. It has no framing, no wake-ups, no notice of a dead peer: nothing that
//! a usable channel needs. A waiting side spins, or gives its core away.

use std::hint;
use std::io;
use std::mem;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::measure::Result;
use crate::workload::link::{self, Link};
use crate::workload::pool::Workers as _;
use crate::workload::{N_WORKERS, Work, arrays, pool};

/// What a waiting side does.
#[derive(Clone, Copy)]
enum Wait {
    Spin,
    /// Spins a little, then lets others run: where processes outnumber cores.
    Yield,
}

/// On lines of their own, so that the two sides do not pull one back and forth.
#[repr(C, align(128))]
struct Index(AtomicU64);

#[repr(C)]
struct Indices {
    /// Messages received.
    head: Index,
    /// Messages sent.
    tail: Index,
}

/// Shared memory that lives as long as the process does.
#[derive(Clone, Copy)]
struct Ring {
    indices: &'static Indices,
    slots: NonNull<u8>,
    slot_bytes: usize,
    n_slots: u64,
    wait: Wait,
}

impl Ring {
    /// A ring for messages of `message_bytes`, in memory that forks share.
    fn new(message_bytes: usize, n_slots: u64, wait: Wait) -> Result<Ring> {
        let slot_bytes = message_bytes.next_multiple_of(128);
        let n_bytes = size_of::<Indices>() + slot_bytes * n_slots as usize;
        // SAFETY: no address is asked for, so no mapping of ours is replaced.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                n_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: the mapping is page-aligned, zeroed (two atomics at nought), large
        // enough, and never unmapped; all access to it is through the atomics.
        let indices = unsafe { &*start.cast::<Indices>() };
        // SAFETY: the mapping is longer than `Indices`.
        let slots = unsafe { start.cast::<u8>().add(size_of::<Indices>()) };
        Ok(Ring {
            indices,
            slots: NonNull::new(slots).ok_or("mapped at address zero")?,
            slot_bytes,
            n_slots,
            wait,
        })
    }

    fn slot(&self, index: u64) -> *mut u8 {
        let offset = (index % self.n_slots) as usize * self.slot_bytes;
        // SAFETY: the remainder is below `n_slots`, so the slot is in the mapping.
        unsafe { self.slots.as_ptr().add(offset) }
    }

    fn wait_until(&self, ready: impl Fn() -> bool) {
        let mut n_spins = 0_u32;
        while !ready() {
            n_spins += 1;
            match self.wait {
                Wait::Yield if n_spins > 100 => thread::yield_now(),
                _ => hint::spin_loop(),
            }
        }
    }

    fn send(&self, message: &[u8]) {
        self.send_with(message.len(), |slot| slot.copy_from_slice(message));
    }

    /// Sends `n_bytes` that `fill` writes where the receiver will look at them.
    fn send_with(&self, n_bytes: usize, fill: impl FnOnce(&mut [u8])) {
        assert!(n_bytes <= self.slot_bytes, "a message beyond its slot");
        let tail = self.indices.tail.0.load(Ordering::Relaxed);
        self.wait_until(|| tail - self.indices.head.0.load(Ordering::Acquire) < self.n_slots);
        // SAFETY: the slot has room (checked above) and is free: the receiver
        // has moved `head` past it and does not look at it before `tail` moves.
        fill(unsafe { slice::from_raw_parts_mut(self.slot(tail), n_bytes) });
        self.indices.tail.0.store(tail + 1, Ordering::Release);
    }

    fn receive<R>(&self, n_bytes: usize, look: impl FnOnce(&[u8]) -> R) -> R {
        assert!(n_bytes <= self.slot_bytes, "a message beyond its slot");
        let head = self.indices.head.0.load(Ordering::Relaxed);
        self.wait_until(|| self.indices.tail.0.load(Ordering::Acquire) != head);
        // SAFETY: the slot holds a message that the sender finished before it moved
        // `tail`, and the sender does not touch it again before `head` moves.
        let found = look(unsafe { slice::from_raw_parts(self.slot(head), n_bytes) });
        self.indices.head.0.store(head + 1, Ordering::Release);
        found
    }
}

/// One end of two rings.
struct End {
    incoming: Ring,
    outgoing: Ring,
    incoming_bytes: usize,
}

impl Link for End {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.outgoing.send(message);
        Ok(())
    }

    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(self.incoming.receive(self.incoming_bytes, look))
    }
}

/// Both ends: `near` sends messages of `there_bytes`, `far` of `back_bytes`.
fn ends(there_bytes: usize, back_bytes: usize, n_slots: u64, wait: Wait) -> Result<(End, End)> {
    let there = Ring::new(there_bytes, n_slots, wait)?;
    let back = Ring::new(back_bytes, n_slots, wait)?;
    let near = End {
        incoming: back,
        outgoing: there,
        incoming_bytes: back_bytes,
    };
    let far = End {
        incoming: there,
        outgoing: back,
        incoming_bytes: there_bytes,
    };
    Ok((near, far))
}

/// As many slots as a megabyte holds, but at least two and at most a thousand.
fn n_slots(message_bytes: usize) -> u64 {
    (1024 * 1024 / message_bytes.max(1)).clamp(2, 1024) as u64
}

/// Two spinning rings.
pub fn spinning(work: &Work) -> Result<f64> {
    linked(work, Wait::Spin)
}

/// Two rings whose waiting side gives its core away.
pub fn yielding(work: &Work) -> Result<f64> {
    linked(work, Wait::Yield)
}

fn linked(work: &Work, wait: Wait) -> Result<f64> {
    let (there, back) = (work.size_bytes, work.reply_bytes());
    let (near, far) = ends(there, back, n_slots(there), wait)?;
    link::forked_bytes(work, near, far)
}

/// Workers behind a ring each way.
struct RingWorkers {
    ends: Vec<End>,
}

impl RingWorkers {
    fn start(
        there_bytes: usize,
        back_bytes: usize,
        n_slots: u64,
        work: fn(&mut End) -> Result<()>,
    ) -> Result<RingWorkers> {
        let mut near_ends = Vec::new();
        for _ in 0..N_WORKERS {
            let (near, mut far) = ends(there_bytes, back_bytes, n_slots, Wait::Yield)?;
            link::fork_into(|| {
                loop {
                    work(&mut far)?;
                }
            })?;
            near_ends.push(near);
        }
        Ok(RingWorkers { ends: near_ends })
    }
}

fn number_in(bytes: &[u8]) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

fn increment_one(end: &mut End) -> Result<()> {
    let number = end.receive(number_in)??;
    end.send(&pool::increment(number).to_le_bytes())
}

fn increment_workers() -> Result<RingWorkers> {
    RingWorkers::start(8, 8, pool::WINDOW as u64, increment_one)
}

impl pool::Workers<u64> for RingWorkers {
    type Handle = ();
    type Output = u64;

    fn submit(&mut self, index: usize, number: u64) -> Result<()> {
        self.ends[index % N_WORKERS].send(&number.to_le_bytes())
    }

    fn collect(&mut self, index: usize, (): ()) -> Result<u64> {
        self.ends[index % N_WORKERS].receive(number_in)?
    }
}

/// Two workers behind rings, with a window of tasks in flight.
pub fn pool_many(work: &Work) -> Result<f64> {
    let mut workers = increment_workers()?;
    pool::many(work, |numbers| {
        pool::windowed(&mut workers, numbers.into_iter(), pool::WINDOW)
    })
}

/// The same workers, one task at a time.
pub fn pool_one(work: &Work) -> Result<f64> {
    let mut workers = increment_workers()?;
    pool::one_at_a_time(work, |number| {
        workers.submit(0, number)?;
        workers.collect(0, ())
    })
}

/// Arrays in flight per worker: one being copied while another is being worked on.
const ARRAY_SLOTS: u64 = 2;

/// Copies arrays into slots; workers sum them there.
pub fn map_sum(work: &Work) -> Result<f64> {
    struct Sums(RingWorkers);

    impl pool::Workers<&Vec<f64>> for Sums {
        type Handle = ();
        type Output = f64;

        fn submit(&mut self, index: usize, array: &Vec<f64>) -> Result<()> {
            self.0.ends[index % N_WORKERS].send(arrays::as_bytes(array))
        }

        fn collect(&mut self, index: usize, (): ()) -> Result<f64> {
            let bits = self.0.ends[index % N_WORKERS].receive(number_in)??;
            Ok(f64::from_bits(bits))
        }
    }

    fn sum_one(end: &mut End) -> Result<()> {
        let sum = end.receive(|bytes| arrays::sum(arrays::as_array(bytes)))?;
        end.send(&sum.to_bits().to_le_bytes())
    }

    let workers = RingWorkers::start(work.size_bytes, 8, ARRAY_SLOTS, sum_one)?;
    let mut sums = Sums(workers);
    let window = N_WORKERS * ARRAY_SLOTS as usize;
    arrays::summed(work, |inputs| {
        pool::windowed(&mut sums, inputs.iter(), window)
    })
}

/// Copies arrays into slots; workers write them, changed, into other slots;
/// the caller copies them back to where they came from.
pub fn map_changed(work: &Work) -> Result<f64> {
    struct Changed(RingWorkers);

    impl<'a> pool::Workers<&'a mut Vec<f64>> for Changed {
        type Handle = &'a mut Vec<f64>;
        type Output = ();

        fn submit(&mut self, index: usize, array: &'a mut Vec<f64>) -> Result<&'a mut Vec<f64>> {
            self.0.ends[index % N_WORKERS].send(arrays::as_bytes(array))?;
            Ok(array)
        }

        fn collect(&mut self, index: usize, array: &'a mut Vec<f64>) -> Result<()> {
            self.0.ends[index % N_WORKERS]
                .receive(|bytes| array.copy_from_slice(arrays::as_array(bytes)))
        }
    }

    fn change_one(end: &mut End) -> Result<()> {
        end.incoming.receive(end.incoming_bytes, |before| {
            end.outgoing.send_with(before.len(), |after| {
                let before = arrays::as_array(before);
                for (after, before) in arrays::as_array_mut(after).iter_mut().zip(before) {
                    *after = before + 1.0;
                }
            });
        });
        Ok(())
    }

    let workers = RingWorkers::start(work.size_bytes, work.size_bytes, ARRAY_SLOTS, change_one)?;
    let mut changed = Changed(workers);
    let window = N_WORKERS * ARRAY_SLOTS as usize;
    arrays::changed(
        work,
        |inputs| {
            pool::windowed(&mut changed, inputs.iter_mut(), window)?;
            Ok(mem::take(inputs))
        },
        |array: &Vec<f64>| array,
    )
}
