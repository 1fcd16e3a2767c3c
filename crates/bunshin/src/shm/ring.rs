//! A byte ring between one sender and one receiver, and its two bells.
//!
//! Positions count bytes from the beginning of time; a position modulo the capacity
//! is a place in the data. `tail` is written by the sender alone, `head` by the
//! receiver alone; the bytes from `head` to `tail` are the receiver's to read.
//!
//! # Bells
//!
//! Whoever finds nothing to do arms its bell, looks once more, and sleeps on its
//! socket. The other side, after it has published its position, rings if the bell is
//! armed: it moves the bell to `RUNG`, and writes one byte to the socket.
//!
//! | State | Means | Left by |
//! |---|---|---|
//! | `QUIET` | nobody wants to be woken | the sleeper: to `ARMED` |
//! | `ARMED` | wants to be woken | the other side: to `RUNG`; the sleeper: to `QUIET` |
//! | `RUNG` | one byte is on its way, or there | the sleeper, when it has read it |
//!
//! A side whose socket users watch in several processes is never `QUIET`, and its byte stays in the
//! socket, where all of them see it, until nothing is left to do: then the bell is armed before
//! the byte is read, so that what comes in between is rung for again, or has the byte of before
//! stand for it.
//!
//! No wake-up is lost: the sleeper stores `ARMED` and then loads the position; the
//! other side stores the position and then loads the bell; sequentially consistent
//! fences between the two make at least one of them see the other's store.
//!
//! # Memory
//!
//! A ring's header is there from the start, its data are not: the sender reserves each page right
//! before it writes to it for the first time, holding the sending side's lock, so that memory that
//! cannot be had is an error of that call. The receiver asks the system whether a page has been
//! written to before it looks at it for the first time. Each end keeps for itself how far it
//! knows the data to be there ([`Known`]); nothing that a peer writes is believed. Pages
//! are never given back while the segment lives.
//!
//! No page that anybody counts on is without content: one that is only reserved goes again when
//! a reservation across it fails or is interrupted.

use std::sync::Arc;

use super::atomic::{AtomicU32, AtomicU64, Ordering, Unused, fence};
use super::holders::{self, Holders};
use super::layout::{PIPE_DATA, PIPE_HOLDERS, PIPE_RINGS, RING, RING_HEADER};
use super::lock::RawLock;
use super::segment::{Segment, Shared};
use crate::error::{Error, Result};
use crate::sys::memory::PAGE;

const QUIET: u32 = 0;
const ARMED: u32 = 1;
const RUNG: u32 = 2;

/// A ring's header in the segment.
#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
pub(crate) struct RingHeader {
    tail: AtomicU64,
    sender_cpu: AtomicU32,
    sender_claims: AtomicU32,
    _sender: [Unused; 12],

    head: AtomicU64,
    receiver_cpu: AtomicU32,
    receiver_claims: AtomicU32,
    /// Messages before this position may have left no byte in the socket, where users watch it.
    untold: AtomicU64,
    _receiver: [Unused; 10],

    /// The receiver's bell, and how many processes use the receiving side.
    data_bell: AtomicU32,
    receivers: AtomicU32,
    _data: [Unused; 14],

    /// The sender's bell, and how many processes use the sending side.
    space_bell: AtomicU32,
    senders: AtomicU32,
    _space: [Unused; 14],

    send_lock: RawLock,
    _send: [Unused; 6],
    receive_lock: RawLock,
    _receive: [Unused; 6],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<RingHeader>() == RING_HEADER);

// SAFETY: atomics, and locks that are `Shared` themselves.
unsafe impl Shared for RingHeader {}

/// A process that was forked with copies of a side uses it, or has: that the side is gone is told
/// by the list of its holders.
const CLAIMED: u32 = 1;
/// There were more holders than the list has room for: it tells nothing.
const CROWDED: u32 = 2;
/// Several processes may have copies of a side.
const COPIED: u32 = 4;
/// Users watch the socket of a side.
const WATCHED: u32 = 8;

/// One of the two sides of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Sender,
    Receiver,
}

/// A view of a ring in a segment.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    segment: Arc<Segment>,
    /// Which of a pipe's two it is.
    number: usize,
}

/// How many bytes of a ring's data one end knows to be on pages that are there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known(usize);

impl Ring {
    pub(crate) fn new(segment: Arc<Segment>, number: usize) -> Self {
        // Panics here, not later, if the ring does not fit.
        assert!(number < 2, "a pipe has two rings");
        let ring = Self { segment, number };
        ring.header();
        ring.segment.span(ring.data(), RING);
        ring
    }

    #[inline]
    fn data(&self) -> usize {
        PIPE_DATA + self.number * RING
    }

    #[inline]
    fn header(&self) -> &RingHeader {
        self.segment.at(PIPE_RINGS + self.number * RING_HEADER)
    }

    pub(crate) fn lock(&self, end: End) -> &RawLock {
        match end {
            End::Sender => &self.header().send_lock,
            End::Receiver => &self.header().receive_lock,
        }
    }

    // -- the sender's side

    /// Where the sender goes on, and how many bytes are free there. `head` is what the
    /// caller has last seen of the receiver; it is looked at again if `need` is not free.
    #[inline]
    pub(crate) fn room(&self, head: &mut u64, need: usize) -> (u64, usize) {
        let header = self.header();
        let tail = header.tail.load(Ordering::Relaxed);
        let free = |head: u64| {
            RING.saturating_sub(usize::try_from(tail.wrapping_sub(head)).unwrap_or(usize::MAX))
        };
        // What was seen may be older than a whole round if another process has sent meanwhile.
        if free(*head) < need {
            *head = header.head.load(Ordering::Acquire);
        }
        (tail, free(*head))
    }

    /// Where in the data `len` bytes from `position` on end, at most.
    #[inline]
    fn end(position: u64, len: usize) -> usize {
        (position as usize & (RING - 1))
            .saturating_add(len)
            .min(RING)
    }

    /// Has the memory be there that `len` bytes from `position` on take. Only who has the sending
    /// side's lock may ask for it. What this returns is known once all of them have been written.
    ///
    /// # Errors
    /// There is no memory; nothing has changed.
    #[inline]
    pub(crate) fn reserve(&self, known: Known, position: u64, len: usize) -> Result<Known> {
        if Self::end(position, len) <= known.0 {
            return Ok(known);
        }
        self.reserve_more(known, Self::end(position, len))
    }

    #[cold]
    fn reserve_more(&self, known: Known, end: usize) -> Result<Known> {
        let end = end.next_multiple_of(PAGE);
        // What others have written is there: a reservation across it would only take time.
        if self.segment.first() < self.data() + end {
            self.segment
                .reserve(self.data() + known.0, end - known.0)
                .map_err(|error| Error::os("reserve memory for a message in a pipe", error))?;
        }
        Ok(Known(end))
    }

    /// Whether the memory is there in which `len` bytes from `position` on were sent.
    #[inline]
    pub(crate) fn is_there(&self, known: &mut Known, position: u64, len: usize) -> bool {
        Self::end(position, len) <= known.0 || self.is_more_there(known, Self::end(position, len))
    }

    #[cold]
    fn is_more_there(&self, known: &mut Known, end: usize) -> bool {
        let end = end.next_multiple_of(PAGE);
        let is_there = self.segment.first() >= self.data() + end
            || self
                .segment
                .is_written(self.data() + known.0, end - known.0);
        if is_there {
            known.0 = end;
        }
        is_there
    }

    /// Copies bytes to a position that is free.
    #[inline]
    pub(crate) fn put(&self, position: u64, bytes: &[u8]) {
        let place = position as usize & (RING - 1);
        let data = self.data();
        let first = bytes.len().min(RING - place);
        self.segment.copy_in(data + place, &bytes[..first]);
        if first < bytes.len() {
            self.segment.copy_in(data, &bytes[first..]);
        }
    }

    /// Makes everything up to `tail` the receiver's. True if the receiver is to be rung.
    #[inline]
    pub(crate) fn publish(&self, tail: u64) -> bool {
        let header = self.header();
        header.tail.store(tail, Ordering::Release);
        fence(Ordering::SeqCst);
        ring(&header.data_bell)
    }

    // -- the receiver's side

    /// Where the receiver goes on, and how many bytes are there. `tail` is what the
    /// caller has last seen of the sender; it is looked at again if nothing is left.
    #[inline]
    pub(crate) fn filled(&self, tail: &mut u64) -> (u64, usize) {
        let header = self.header();
        let head = header.head.load(Ordering::Relaxed);
        let mut filled = tail.wrapping_sub(head);
        // More than a ring: what was seen is older than what another process has received.
        if filled == 0 || filled > RING as u64 {
            *tail = header.tail.load(Ordering::Acquire);
            filled = tail.wrapping_sub(head);
        }
        (head, usize::try_from(filled).unwrap_or(usize::MAX))
    }

    /// Whether there is something to receive.
    #[inline]
    pub(crate) fn has_data(&self) -> bool {
        let header = self.header();
        header.tail.load(Ordering::Acquire) != header.head.load(Ordering::Relaxed)
    }

    /// Copies bytes from a position.
    #[inline]
    pub(crate) fn take(&self, position: u64, bytes: &mut [u8]) {
        let place = position as usize & (RING - 1);
        let data = self.data();
        let first = bytes.len().min(RING - place);
        self.segment.copy_out(data + place, &mut bytes[..first]);
        if first < bytes.len() {
            self.segment.copy_out(data, &mut bytes[first..]);
        }
    }

    /// Makes everything before `new` free again. True if the sender is to be rung.
    ///
    /// The sender's bell is looked at once each quarter of the ring. A sender never waits
    /// for more than a quarter, so that the last look before the ring is empty finds it
    /// with enough room.
    #[inline]
    pub(crate) fn consume(&self, old: u64, new: u64) -> bool {
        let header = self.header();
        header.head.store(new, Ordering::Release);
        const QUARTER: u64 = (RING / 4) as u64;
        if old / QUARTER == new / QUARTER {
            return false;
        }
        fence(Ordering::SeqCst);
        ring(&header.space_bell)
    }

    // -- both sides

    fn bell(&self, end: End) -> &AtomicU32 {
        match end {
            End::Sender => &self.header().space_bell,
            End::Receiver => &self.header().data_bell,
        }
    }

    /// Asks to be rung; to be followed by another look at the positions.
    pub(crate) fn arm(&self, end: End) {
        let was_quiet = self
            .bell(end)
            .compare_exchange(QUIET, ARMED, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        fence(Ordering::SeqCst);
        if was_quiet && self.is_watched(end) {
            self.note_untold();
        }
    }

    /// Takes the request back. If the bell has been rung meanwhile, it stays so until
    /// the byte is read.
    pub(crate) fn disarm(&self, end: End) {
        let _ = self
            .bell(end)
            .compare_exchange(ARMED, QUIET, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether a byte is in the socket, or on its way.
    pub(crate) fn is_rung(&self, end: End) -> bool {
        self.bell(end).load(Ordering::Relaxed) == RUNG
    }

    /// Asks to be rung again while the byte of the last time is still in the socket; to be followed by
    /// another look at the positions.
    pub(crate) fn arm_again(&self, end: End) {
        self.bell(end).store(ARMED, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Has the byte of the last time stand for what has come since; false if there is another one
    /// for that.
    pub(crate) fn keep_rung(&self, end: End) -> bool {
        self.bell(end)
            .compare_exchange(ARMED, RUNG, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Notes that what is there has left no byte, or none any more.
    pub(crate) fn note_untold(&self) {
        let header = self.header();
        let tail = header.tail.load(Ordering::Acquire);
        header.untold.fetch_max(tail, Ordering::Relaxed);
    }

    /// Whether the next message may have left no byte.
    pub(crate) fn is_untold(&self) -> bool {
        let header = self.header();
        header.head.load(Ordering::Relaxed) < header.untold.load(Ordering::Relaxed)
    }

    /// The byte has been read.
    pub(crate) fn answered(&self, end: End) {
        self.bell(end).store(QUIET, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Moves the bell as ringing it does, whatever its state: used where the one who had
    /// to ring may have died before it did.
    pub(crate) fn ring_anyway(&self, end: End) {
        self.bell(end).store(RUNG, Ordering::SeqCst);
    }

    fn users(&self, end: End) -> &AtomicU32 {
        match end {
            End::Sender => &self.header().senders,
            End::Receiver => &self.header().receivers,
        }
    }

    /// One more process, or message, has this side. A killed process is never counted
    /// down: that it is gone is told by the socket.
    pub(crate) fn open(&self, end: End) {
        self.users(end).fetch_add(1, Ordering::Relaxed);
    }

    /// One less has this side. True if it was the last, and the other side is to be rung.
    pub(crate) fn close(&self, end: End) -> bool {
        let last = self.users(end).fetch_sub(1, Ordering::Release) == 1;
        if last {
            self.ring_anyway(match end {
                End::Sender => End::Receiver,
                End::Receiver => End::Sender,
            });
        }
        last
    }

    /// Whether nobody has that side any more.
    #[inline]
    pub(crate) fn is_closed(&self, end: End) -> bool {
        self.users(end).load(Ordering::Acquire) == 0
    }

    fn claims(&self, end: End) -> &AtomicU32 {
        match end {
            End::Sender => &self.header().sender_claims,
            End::Receiver => &self.header().receiver_claims,
        }
    }

    /// The processes that were forked with a copy of that side.
    pub(crate) fn holders(&self, end: End) -> &Holders {
        let side = usize::from(end == End::Receiver);
        self.segment
            .at(PIPE_HOLDERS + (2 * self.number + side) * holders::SIZE)
    }

    /// Notes that a process which was forked with a copy of this side uses it. The socket may not
    /// tell of its end, as other processes have copies too.
    pub(crate) fn claim(&self, end: End) {
        self.claims(end).fetch_or(CLAIMED, Ordering::SeqCst);
    }

    /// Notes that the list of this side's holders is not complete.
    pub(crate) fn crowd(&self, end: End) {
        self.claims(end).fetch_or(CROWDED, Ordering::SeqCst);
    }

    /// Forgets who was forked with a copy of this side: the socket will tell of its end.
    pub(crate) fn disclaim(&self, end: End) {
        self.claims(end)
            .fetch_and(COPIED | WATCHED, Ordering::SeqCst);
        self.holders(end).clear();
    }

    /// Notes that this side is being copied to another process, by a fork.
    pub(crate) fn copy(&self, end: End) {
        self.claims(end).fetch_or(COPIED, Ordering::SeqCst);
        self.arm_for_copies(end);
    }

    /// Has the next message leave a byte in the socket, which all who will have this side can see.
    pub(crate) fn arm_for_copies(&self, end: End) {
        if end == End::Receiver {
            self.arm(end);
        }
    }

    /// Notes that this side is one process's alone again.
    pub(crate) fn uncopy(&self, end: End) {
        self.claims(end).fetch_and(!COPIED, Ordering::SeqCst);
    }

    /// Whether several processes, or messages, may have copies of this side.
    pub(crate) fn is_copied(&self, end: End) -> bool {
        self.claims(end).load(Ordering::Relaxed) & COPIED != 0
            || self.users(end).load(Ordering::Relaxed) > 1
    }

    /// Notes that users watch this side's socket, in one process or in several.
    pub(crate) fn watch(&self, end: End) {
        self.claims(end).fetch_or(WATCHED, Ordering::SeqCst);
    }

    /// Whether users watch this side's socket in any process.
    pub(crate) fn is_watched(&self, end: End) -> bool {
        self.claims(end).load(Ordering::Relaxed) & WATCHED != 0
    }

    /// Whether the list of that side's holders, and not the socket, tells of its end.
    pub(crate) fn is_told_by_holders(&self, end: End) -> bool {
        self.claims(end).load(Ordering::SeqCst) & (CLAIMED | CROWDED) == CLAIMED
    }

    /// Whether the list of that side's holders has had room for all of them.
    pub(crate) fn is_complete(&self, end: End) -> bool {
        self.claims(end).load(Ordering::SeqCst) & CROWDED == 0
    }

    /// Something has changed about who has that side: true if the other side sleeps, and is to be
    /// rung.
    pub(crate) fn is_news(&self, end: End) -> bool {
        fence(Ordering::SeqCst);
        ring(self.bell(match end {
            End::Sender => End::Receiver,
            End::Receiver => End::Sender,
        }))
    }

    /// Notes which processor this side runs on.
    #[inline]
    pub(crate) fn set_cpu(&self, end: End, cpu: u32) {
        let header = self.header();
        let own = match end {
            End::Sender => &header.sender_cpu,
            End::Receiver => &header.receiver_cpu,
        };
        // One more than the number: 0 is for a side that has never run.
        own.store(cpu + 1, Ordering::Relaxed);
    }

    /// Which processor that side ran on last, if it ever did.
    #[inline]
    pub(crate) fn cpu(&self, end: End) -> Option<u32> {
        let header = self.header();
        let of = match end {
            End::Sender => &header.sender_cpu,
            End::Receiver => &header.receiver_cpu,
        };
        of.load(Ordering::Relaxed).checked_sub(1)
    }
}

#[inline]
fn ring(bell: &AtomicU32) -> bool {
    bell.load(Ordering::Relaxed) == ARMED
        && bell
            .compare_exchange(ARMED, RUNG, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsFd;

    use super::super::layout::{Kind, PIPE_FIRST, PIPE_FIXED};
    use super::*;
    use crate::sys::memory;

    fn ring() -> Ring {
        let segment = Segment::create_first(Kind::Pipe, PIPE_FIXED, PIPE_FIRST).unwrap();
        Ring::new(segment, 1)
    }

    #[test]
    fn memory_is_there_from_the_moment_it_is_written_to() {
        let ring = ring();
        let mut seen = Known::default();
        ring.publish(100);
        assert!(!ring.is_there(&mut seen, 0, 100), "only the tail says so");
        let known = ring.reserve(Known::default(), 0, 5000).unwrap();
        assert!(!ring.is_there(&mut seen, 0, 100), "nothing was written");
        ring.put(0, &[7; 5000]);
        assert!(ring.is_there(&mut seen, 0, 5000));
        assert!(!ring.is_there(&mut seen, 0, 2 * PAGE + 1));
        assert_eq!((seen.0, known.0), (2 * PAGE, 2 * PAGE));
    }

    #[test]
    fn a_message_around_the_end_needs_all_of_the_ring() {
        let ring = ring();
        let last = RING as u64 - 8;
        let known = ring.reserve(Known::default(), last, 16).unwrap();
        assert_eq!(known.0, RING);
        for at in (0..RING).step_by(PAGE) {
            ring.put(at as u64, &[1; PAGE]);
        }
        ring.put(last, &[2; 16]);
        let mut seen = Known::default();
        assert!(ring.is_there(&mut seen, last, 16));
        assert_eq!(seen.0, RING);
    }

    #[test]
    fn a_look_at_what_is_not_there_makes_no_memory() {
        let ring = ring();
        let written = || memory::is_written(ring.segment.as_fd(), ring.data() as u64, 1);
        assert!(!ring.is_there(&mut Known::default(), 0, RING));
        assert!(!written());
        ring.reserve(Known::default(), 0, 1).unwrap();
        ring.put(0, &[1]);
        assert!(written());
    }
}
