//! A queue's header: what both sides look at, and what each side goes on from.

use super::super::atomic::{AtomicU32, AtomicU64, Unused};
use super::super::lock::RawLock;
use super::super::segment::Shared;

/// Chunks that wait to be used again.
pub(super) const FREE: u64 = 16;
/// Extents that do, and how long those are at most: fresh pages cost more than what is copied.
pub(super) const KEPT: u64 = 2;
pub(super) const KEPT_MAX: u64 = 1280 << 10;

/// Where the producers go on.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Sent {
    /// Where the next record goes.
    pub(super) position: AtomicU64,
    /// From here on, nothing of the memory has ever been used.
    pub(super) next: AtomicU64,
    /// Chunks ever taken from the ring of free ones.
    pub(super) reused: AtomicU64,
    /// Items with handles ever sent.
    pub(super) with_handles: AtomicU64,
    /// Extents ever taken from the ring of kept ones.
    pub(super) refilled: AtomicU64,
}

/// Where the consumers go on.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Received {
    /// Where the next record lies.
    pub(super) position: AtomicU64,
    /// Chunks ever put into the ring of free ones.
    pub(super) freed: AtomicU64,
    /// Items with handles ever taken.
    pub(super) with_handles: AtomicU64,
    /// A chunk whose memory the last one who took an item has to give back, or 0.
    pub(super) chunk: AtomicU64,
    /// An extent likewise.
    pub(super) extent: AtomicU64,
    pub(super) extent_len: AtomicU64,
    /// Extents ever put into the ring of kept ones.
    pub(super) kept: AtomicU64,
}

/// An extent to be used again.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Kept {
    pub(super) extent: AtomicU64,
    /// Its length, in whole pages.
    pub(super) len: AtomicU64,
}

#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Header {
    /// How many items fit; 0 for any number.
    pub(super) capacity: AtomicU64,
    pub(super) items_wanted: AtomicU32,
    pub(super) room_wanted: AtomicU32,
    pub(super) closed: AtomicU32,
    /// Somebody has asked for the bell.
    pub(super) watched: AtomicU32,
    /// The bell has been rung, and nobody has silenced it since.
    pub(super) lit: AtomicU32,
    _signals: [Unused; 9],

    pub(super) producers: RawLock,
    /// What a producer has last seen of `taken`.
    pub(super) taken_seen: AtomicU64,
    _producers: [Unused; 4],
    pub(super) sent_slots: [Sent; 2],
    pub(super) sent: AtomicU64,
    pub(super) producer_cpu: AtomicU32,
    _sent: [Unused; 9],

    pub(super) consumers: RawLock,
    /// What a consumer has last seen of `sent`.
    pub(super) sent_seen: AtomicU64,
    _consumers: [Unused; 4],
    pub(super) received_slots: [Received; 2],
    _received: [Unused; 4],
    pub(super) taken: AtomicU64,
    pub(super) consumer_cpu: AtomicU32,
    _taken: [Unused; 13],

    pub(super) free: [AtomicU64; FREE as usize],
    pub(super) kept: [Kept; KEPT as usize],
    _kept: [Unused; 8],
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Header>() == 704);
    assert!(offset_of!(Header, producers) == 64);
    assert!(offset_of!(Header, sent_slots) == 128);
    assert!(offset_of!(Header, sent) == 208);
    assert!(offset_of!(Header, consumers) == 256);
    assert!(offset_of!(Header, received_slots) == 320);
    assert!(offset_of!(Header, taken) == 448);
    assert!(offset_of!(Header, free) == 512);
    assert!(offset_of!(Header, kept) == 640);
};

// SAFETY: atomics, and locks that are `Shared` themselves.
unsafe impl Shared for Header {}
