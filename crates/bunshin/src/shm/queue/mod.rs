//! A queue of items between many producers and many consumers.
//!
//! Producers exclude each other by one lock, consumers by another; an item is written by a
//! producer that is inside, and read by a consumer that is inside. The two sides meet in two
//! numbers alone: how many items were ever sent, and how many were ever taken.
//!
//! - `header`: where both sides and each of them keep their places.
//! - `send`, `take`: what a producer and a consumer do.
//! - `bell`: how `poll` learns of items; the end of a queue.
//! - `store`: chunks and extents.
//! - `tasks`: who has taken an item and not finished it.
//!
//! # Killed at any instruction
//!
//! What belongs to a side beyond its number (where it goes on, what it has of the memory)
//! lies in two slots. The slot that counts is that of the number's parity; the other one is
//! written for the number to come. So the one store that moves the number changes all of it:
//!
//! | Killed | The item | Left behind |
//! |---|---|---|
//! | a producer before it moved `sent` | never was | bytes that the next item overwrites, memory beyond `next` that the next producer gives back |
//! | a producer after it | is there | nothing: the kernel wakes a consumer for it (`side.rs`) |
//! | a consumer before it moved `taken` | is still there | nothing |
//! | a consumer after it | is gone with it | memory to be given back, which the slot names and the next consumer gives back |
//!
//! # Where items lie
//!
//! Small items lie one behind the other in chunks; a record that says so leads from one chunk
//! to the next. A chunk that has been read goes into a small ring of free chunks, or its
//! memory goes back to the system if that is full. A large item has an extent of its own,
//! which is written and read by system calls; two that are not too long are kept for the next
//! ones, in a ring of their own. Places in the memory behind are never used
//! again once their memory has been given back: there are more than can be used up.

mod bell;
mod header;
mod send;
#[cfg(not(loom))]
mod store;
#[cfg(loom)]
#[path = "loom_store.rs"]
mod store;
mod take;
pub(crate) mod tasks;

use std::sync::Arc;

use header::Header;
use store::Store;

use super::atomic::{AtomicU64, Ordering, fence};
use super::layout::{Kind, QUEUE_CHUNK, QUEUE_FIXED, QUEUE_HEADER};
use super::segment::Segment;
use super::side::{Shut, Side};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mutex::ForkMutex;

/// Items up to this size lie in chunks.
pub(crate) const INLINE_MAX: usize = 16 << 10;
/// Items with handles that are in a queue at a time: the socket takes no more.
pub(crate) const WITH_HANDLES_MAX: u64 = 128;
/// A record's header: its kind (bits 0..8), handles (8..24), and bytes of its body (32..64).
const INLINE: u64 = 1;
const EXTENT: u64 = 2;
const JUMP: u64 = 3;
/// Bytes that a record leads to the next chunk in; so many are always left in a chunk.
const JUMP_BYTES: u64 = 16;

/// What belongs to a queue outside of its memory.
pub(crate) trait Outside {
    /// Sends the handles of an item, under this name.
    fn send_handles(&self, lot: u64) -> Result<()>;
    /// Gets the handles of the item of that name, and leaves them there.
    fn fetch_handles(&self, lot: u64, count: usize) -> Result<()>;
    /// Removes what `fetch_handles` got: the item is taken.
    fn drop_handles(&self);
    /// Makes the bell readable.
    fn light(&self);
    /// Makes the bell unreadable.
    fn darken(&self);
}

/// Why an item was not sent, or none was taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There was no room, or no item, in the time given.
    NotYet,
    /// The queue is closed, and for consumers empty.
    Closed,
    /// Something else.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Shut> for Refusal {
    fn from(shut: Shut) -> Self {
        match shut {
            Shut::NotReady | Shut::Held => Self::NotYet,
            Shut::Never(refused) => Self::Failed(Error::new(
                ErrorKind::Unsupported,
                format!("lock a side of a queue: {refused:?}"),
            )),
        }
    }
}

/// Something that is done to a consumer's item in the moment in which it is taken.
pub(crate) trait OnTake {
    /// The item with this number is about to be taken.
    fn before(&self, number: u64) -> Result<()>;
    /// It has been taken.
    fn after(&self);
    /// Who was inside before has died: `taken` items were taken.
    fn mend(&self, taken: u64);
}

/// Nothing is.
impl OnTake for () {
    fn before(&self, _number: u64) -> Result<()> {
        Ok(())
    }

    fn after(&self) {}

    fn mend(&self, _taken: u64) {}
}

/// A view of a queue in a segment.
#[derive(Debug)]
pub(crate) struct Queue {
    segment: Arc<Segment>,
    /// What each side has mapped; used by who is inside on its side.
    produced: ForkMutex<Store>,
    consumed: ForkMutex<Store>,
}

impl Queue {
    /// Makes an empty queue for so many items, or for any number if that is 0.
    pub(crate) fn create(capacity: u64) -> Result<Self> {
        let len = if cfg!(loom) { 1 << 30 } else { QUEUE_FIXED };
        let segment = Segment::create(Kind::Queue, len)?;
        store::reserve(&segment, QUEUE_CHUNK)?;
        let queue = Self::new(segment);
        let header = queue.header();
        header.capacity.store(capacity, Ordering::Relaxed);
        let sent = &header.sent_slots[0];
        sent.position.store(QUEUE_CHUNK, Ordering::Relaxed);
        sent.next.store(2 * QUEUE_CHUNK, Ordering::Relaxed);
        let received = &header.received_slots[0];
        received.position.store(QUEUE_CHUNK, Ordering::Relaxed);
        header.sent.store(0, Ordering::Release);
        Ok(queue)
    }

    /// Views a queue that came from another process.
    pub(crate) fn attach(fd: std::os::fd::OwnedFd) -> Result<Self> {
        Segment::attach(fd, Kind::Queue, QUEUE_FIXED).map(Self::new)
    }

    fn new(segment: Arc<Segment>) -> Self {
        Self {
            segment,
            produced: ForkMutex::new(Store::default()),
            consumed: ForkMutex::new(Store::default()),
        }
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    #[inline]
    fn header(&self) -> &Header {
        self.segment.at(QUEUE_HEADER)
    }

    #[inline]
    pub(super) fn producers(&self) -> Side<'_> {
        let header = self.header();
        Side {
            lock: &header.producers,
            wanted: &header.room_wanted,
        }
    }

    #[inline]
    pub(super) fn consumers(&self) -> Side<'_> {
        let header = self.header();
        Side {
            lock: &header.consumers,
            wanted: &header.items_wanted,
        }
    }

    // -- looking

    /// Items in the queue.
    pub(crate) fn len(&self) -> u64 {
        let header = self.header();
        let mut len = 0;
        for _ in 0..100 {
            let taken = header.taken.load(Ordering::Acquire);
            len = header.sent.load(Ordering::Acquire).wrapping_sub(taken);
            // Both at one moment, or the difference was never there.
            if header.taken.load(Ordering::Acquire) == taken {
                break;
            }
        }
        len
    }

    /// How many items were ever sent.
    pub(crate) fn sent(&self) -> u64 {
        self.header().sent.load(Ordering::SeqCst)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        let header = self.header();
        // In this order: what was sent by the time of the second look.
        let taken = header.taken.load(Ordering::Acquire);
        header.sent.load(Ordering::Acquire) == taken
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.header().capacity.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.header().closed.load(Ordering::Acquire) != 0
    }

    /// Whether a consumer has something to do.
    #[inline]
    pub(crate) fn has_item(&self) -> bool {
        let header = self.header();
        let taken = header.taken.load(Ordering::Relaxed);
        self.is_ahead_of(taken) || self.is_closed()
    }

    #[inline]
    fn is_ahead_of(&self, taken: u64) -> bool {
        let header = self.header();
        is_ahead(header.sent_seen.load(Ordering::Acquire), taken)
            || header.sent.load(Ordering::Acquire) != taken
    }

    /// Whether a producer has something to do.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.is_closed() || !self.is_full()
    }

    #[inline]
    fn is_full(&self) -> bool {
        let header = self.header();
        let sent = header.sent.load(Ordering::Relaxed);
        let capacity = header.capacity.load(Ordering::Relaxed);
        if capacity != 0 {
            let len = |taken: u64| sent.wrapping_sub(taken);
            if len(header.taken_seen.load(Ordering::Acquire)) >= capacity
                && len(header.taken.load(Ordering::Acquire)) >= capacity
            {
                return true;
            }
        }
        let with_handles = header.sent_slots[parity(sent)]
            .with_handles
            .load(Ordering::Relaxed);
        with_handles >= WITH_HANDLES_MAX && self.has_many_handles()
    }

    /// Whether items with handles should better come without them, where that can be.
    #[inline]
    pub(crate) fn is_crowded(&self) -> bool {
        let header = self.header();
        let sent = header.sent.load(Ordering::Relaxed);
        let with_handles = header.sent_slots[parity(sent)]
            .with_handles
            .load(Ordering::Relaxed);
        with_handles >= WITH_HANDLES_MAX / 2 && self.waiting_with_handles() >= WITH_HANDLES_MAX / 2
    }

    #[cold]
    fn has_many_handles(&self) -> bool {
        self.waiting_with_handles() >= WITH_HANDLES_MAX
    }

    /// Items with handles in the queue.
    fn waiting_with_handles(&self) -> u64 {
        let header = self.header();
        let sent = settled(&header.sent, |number| {
            &header.sent_slots[parity(number)].with_handles
        });
        let received = settled(&header.taken, |number| {
            &header.received_slots[parity(number)].with_handles
        });
        match (sent, received) {
            (Some(sent), Some(received)) => sent.wrapping_sub(received),
            // Both move: whoever is to decide is inside, and then one of them does not.
            _ => 0,
        }
    }

    // -- waiting awake

    /// The processors that producers and consumers ran on last, if they ever ran.
    pub(crate) fn cpus(&self) -> (Option<u32>, Option<u32>) {
        let header = self.header();
        (
            header.producer_cpu.load(Ordering::Relaxed).checked_sub(1),
            header.consumer_cpu.load(Ordering::Relaxed).checked_sub(1),
        )
    }
}

#[inline]
fn parity(number: u64) -> usize {
    (number & 1) as usize
}

/// Whether `a` is more than `b`, where both count from the beginning of time.
#[inline]
fn is_ahead(a: u64, b: u64) -> bool {
    a.wrapping_sub(b) as i64 > 0
}

/// Reads from the slot of the other side that counts: it is not being written while the
/// number stays the same.
fn settled<'a>(number: &AtomicU64, slot: impl Fn(u64) -> &'a AtomicU64) -> Option<u64> {
    const TRIES: usize = if cfg!(loom) { 2 } else { 100 };
    for _ in 0..TRIES {
        let before = number.load(Ordering::Acquire);
        let value = slot(before).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if number.load(Ordering::Relaxed) == before {
            return Some(value);
        }
    }
    None
}

#[cfg(loom)]
impl Queue {
    /// What the kernel does to the sides when the thread that calls this has been killed.
    pub(super) fn thread_ended(&self) {
        self.producers().thread_ended();
        self.consumers().thread_ended();
    }
}
