//! Memory that grows, in extents with offsets, each of which somebody owns.
//!
//! Where the heap's blocks are handed from process to process, an extent belongs to a part of
//! a larger structure: whoever holds that part's lock allocates for it and frees. The
//! table of extents says who owns which. An extent that was allocated by a process that died
//! before it was put to use is found there by the next one that takes the part's lock
//! ([`Arena::sweep`]): no memory is ever lost.
//!
//! Extents are powers of two in length and lie at multiples of their length, so that none
//! straddles a power of two. A process maps the memory from one power of two to the next at
//! once, and never unmaps it: a reader finds an extent without a lock, and what it reads is
//! always memory, though it may be used for something else by then.
//!
//! | State of an extent | Means |
//! |---|---|
//! | 0 | free, its memory has not been reserved |
//! | `READY` | free |
//! | owner + 1 | being made for that owner |
//! | owner + 1, `READY` | that owner's |
//!
//! Freed extents are kept for the next one of that length. The memory is given back with
//! the whole arena.

use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::OnceLock;

use super::atomic::{AtomicU32, AtomicU64, Ordering, Unused};
use super::layout::{ARENA_TABLE, EXTENTS};
use super::lock::RawLock;
use super::segment::{Segment, Shared};
use crate::error::{Error, ErrorKind, Result};

/// The memory of the extent exists.
const READY: u64 = 1 << 32;
const OWNER: u64 = READY - 1;

/// The smallest extent, as a power of two.
pub(crate) const CLASS_MIN: u32 = if cfg!(loom) { 8 } else { 12 };
/// The largest extent, as a power of two: 32 GiB.
pub(crate) const CLASS_MAX: u32 = 35;
/// Offsets are below this power of two.
const OFFSET_BITS: u32 = 47;
/// Bits of a place that hold the class; offsets are multiples of more.
const CLASS: u64 = 0x3f;

/// Where an extent lies, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    offset: u64,
    class: u32,
}

impl Extent {
    /// An extent as one word: the offset, and the class in its lowest bits.
    pub(crate) fn to_word(self) -> u64 {
        self.offset | u64::from(self.class)
    }

    /// Reads a word that a peer may have written; only the lowest 48 bits count.
    pub(crate) fn from_word(word: u64) -> Option<Self> {
        let class = (word & CLASS) as u32;
        let offset = word & ((1 << OFFSET_BITS) - 1) & !CLASS;
        let is_one = (CLASS_MIN..=CLASS_MAX).contains(&class)
            && offset != 0
            && offset & ((1 << class) - 1) == 0;
        is_one.then_some(Self { offset, class })
    }

    /// Words in the extent.
    pub(crate) fn len(self) -> usize {
        1 << (self.class - 3)
    }

    /// The class of the smallest extent that has so many words.
    pub(crate) fn class_for(words: usize) -> Option<u32> {
        let class = words.checked_next_power_of_two()?.ilog2() + 3;
        (class <= CLASS_MAX).then_some(class.max(CLASS_MIN))
    }
}

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Head {
    lock: RawLock,
    /// Where the next new extent may start.
    next: AtomicU64,
    /// Extents that were ever made: the rest of the table is untouched.
    made: AtomicU32,
    _spare: [Unused; 3],
}

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Entry {
    place: AtomicU64,
    state: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Head>() == 64);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Entry>() == 16);
const _: () = assert!(ARENA_TABLE == 64 + EXTENTS * 16);

// SAFETY: atomics and a lock that is `Shared` itself.
unsafe impl Shared for Head {}
// SAFETY: atomics.
unsafe impl Shared for Entry {}

/// A view of an arena.
pub(crate) struct Arena {
    segment: Arc<Segment>,
    table: usize,
    memory: Memory,
}

impl Arena {
    /// Views the arena whose table lies at `table`; zeroed memory is an empty arena.
    pub(crate) fn new(segment: Arc<Segment>, table: usize) -> Self {
        segment.span(table, ARENA_TABLE);
        Self {
            segment,
            table,
            memory: Memory::default(),
        }
    }

    fn head(&self) -> &Head {
        self.segment.at(self.table)
    }

    fn entry(&self, index: usize) -> &Entry {
        assert!(index < EXTENTS);
        self.segment.at(self.table + 64 + index * 16)
    }

    fn made(&self) -> usize {
        (self.head().made.load(Ordering::Acquire) as usize).min(EXTENTS)
    }

    /// Takes an extent for an owner, on whose behalf nobody else does so meanwhile.
    ///
    /// What is in it is what was there before.
    pub(crate) fn alloc(&self, class: u32, owner: u32) -> Result<Extent> {
        // An owner before us that died has left each word right.
        self.head().lock.lock(None).map_err(|refused| {
            Error::new(
                ErrorKind::Unsupported,
                format!("lock an arena of shared memory: {refused:?}"),
            )
        })?;
        let extent = self.alloc_locked(class, owner);
        self.head().lock.unlock();
        extent
    }

    fn alloc_locked(&self, class: u32, owner: u32) -> Result<Extent> {
        let owned = u64::from(owner) + 1;
        let fits = |index: &usize| {
            let entry = self.entry(*index);
            entry.state.load(Ordering::Acquire) & OWNER == 0
                && Extent::from_word(entry.place.load(Ordering::Relaxed))
                    .is_some_and(|extent| extent.class == class)
        };
        let index = match (0..self.made()).find(fits) {
            Some(index) => index,
            None => self.make(class)?,
        };
        let Entry { place, state } = self.entry(index);
        let extent = Extent::from_word(place.load(Ordering::Relaxed)).ok_or_else(corrupt)?;
        let before = state.load(Ordering::Relaxed) & READY;
        state.store(owned | before, Ordering::Relaxed);
        super::step();
        if before == 0 {
            // Also again, where a process was killed in the middle of this.
            if let Err(error) = self
                .memory
                .reserve(&self.segment, extent.offset, 1 << extent.class)
            {
                state.store(0, Ordering::Release);
                return Err(Error::os(
                    format!("reserve {} bytes of shared memory", 1u64 << extent.class),
                    error,
                ));
            }
            state.store(owned | READY, Ordering::Relaxed);
        }
        Ok(extent)
    }

    /// Adds a free extent to the table.
    fn make(&self, class: u32) -> Result<usize> {
        let head = self.head();
        let index = self.made();
        let size = 1u64 << class;
        let from = head
            .next
            .load(Ordering::Relaxed)
            .max(self.segment.len() as u64);
        let offset = from.checked_next_multiple_of(size);
        let end = offset.and_then(|offset| offset.checked_add(size));
        let (Some(offset), Some(end)) = (offset, end) else {
            return Err(corrupt());
        };
        if index == EXTENTS || end > 1 << OFFSET_BITS {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                "an arena of shared memory has no room for another extent",
            ));
        }
        // In this order: whoever is killed in between has lost a range of offsets, not memory, and
        // no two extents overlap.
        head.next.store(end, Ordering::Relaxed);
        let entry = self.entry(index);
        entry
            .place
            .store(Extent { offset, class }.to_word(), Ordering::Relaxed);
        entry.state.store(0, Ordering::Relaxed);
        head.made.store(index as u32 + 1, Ordering::Release);
        Ok(index)
    }

    /// Gives back an extent of an owner, on whose behalf nobody else does anything meanwhile.
    pub(crate) fn free(&self, extent: Extent, owner: u32) {
        self.free_if(owner, |owned| owned == extent);
    }

    /// Gives back all that an owner has, but for the one extent that it uses.
    pub(crate) fn sweep(&self, owner: u32, used: Option<Extent>) {
        self.free_if(owner, |owned| Some(owned) != used);
    }

    fn free_if(&self, owner: u32, is_free: impl Fn(Extent) -> bool) {
        for index in 0..self.made() {
            let Entry { place, state } = self.entry(index);
            let seen = state.load(Ordering::Relaxed);
            let Some(extent) = Extent::from_word(place.load(Ordering::Relaxed)) else {
                continue;
            };
            if seen & OWNER == u64::from(owner) + 1 && is_free(extent) {
                // With release: what was read from the extent was read before it is given away.
                state.store(seen & READY, Ordering::Release);
            }
        }
    }

    /// What the kernel does to the lock when the thread that calls this has been killed.
    #[cfg(loom)]
    pub(super) fn thread_ended(&self) {
        self.head().lock.thread_ended();
    }

    /// How many extents are free, and how many an owner has.
    #[cfg(test)]
    pub(crate) fn count(&self, owner: u32) -> (usize, usize) {
        let owners = (0..self.made()).map(|index| self.entry(index).state.load(Ordering::Relaxed));
        owners.fold((0, 0), |(free, owned), state| match state & OWNER {
            0 => (free + 1, owned),
            of if of == u64::from(owner) + 1 => (free, owned + 1),
            _ => (free, owned),
        })
    }

    /// The words of an extent, which anybody may change at any time.
    #[inline]
    pub(crate) fn words(&self, extent: Extent) -> Result<&[AtomicU64]> {
        self.memory.words(&self.segment, extent)
    }
}

#[cold]
fn corrupt() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "an arena of shared memory does not hold what it says",
    )
}

#[cfg(not(loom))]
use mapped::Memory;
#[cfg(loom)]
use model::Memory;

/// The memory behind the segment, as far as this process has looked at it.
#[cfg(not(loom))]
mod mapped {
    use std::io;
    use std::os::fd::AsFd;

    use super::{
        AtomicU64, Error, Extent, OFFSET_BITS, OnceLock, Ordering, Result, Segment, corrupt,
    };
    use crate::sys::memory::{self, Mapping};

    #[derive(Default)]
    pub(crate) struct Memory {
        /// The one at position `n` maps from two to the power of `n` up to the next one.
        maps: Maps,
        /// Bytes that are known to exist.
        size: AtomicU64,
    }

    struct Maps([OnceLock<Mapping>; OFFSET_BITS as usize]);

    impl Default for Maps {
        fn default() -> Self {
            Self([const { OnceLock::new() }; OFFSET_BITS as usize])
        }
    }

    impl Memory {
        pub(super) fn reserve(&self, segment: &Segment, offset: u64, len: u64) -> io::Result<()> {
            memory::reserve(segment.as_fd(), offset, len)
        }

        #[inline]
        pub(super) fn words(&self, segment: &Segment, extent: Extent) -> Result<&[AtomicU64]> {
            let len = 1u64 << extent.class;
            // What lies before the extents, the locks above all, is none.
            if extent.offset < segment.len() as u64 {
                return Err(corrupt());
            }
            if extent.offset + len > self.size.load(Ordering::Relaxed) {
                self.look_at_size(segment, extent.offset + len)?;
            }
            let chunk = extent.offset.ilog2();
            let map = match self.maps.0[chunk as usize].get() {
                Some(map) => map,
                None => self.map(segment, chunk)?,
            };
            // SAFETY: the chunk is `1 << chunk` long, of which less than that is left out.
            let start = unsafe {
                map.start()
                    .as_ptr()
                    .add((extent.offset - (1 << chunk)) as usize)
            };
            // SAFETY: offset and length are multiples of the length, which is a power of two, so
            // that all of it lies in the chunk, aligned; the memory exists and cannot shrink; any
            // bytes are valid atomics, and all access is through them.
            Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), extent.len()) })
        }

        #[cold]
        fn look_at_size(&self, segment: &Segment, end: u64) -> Result<()> {
            let size = memory::len(segment.as_fd())
                .map_err(|error| Error::os("look at an arena of shared memory", error))?;
            self.size.fetch_max(size, Ordering::Relaxed);
            if end > size { Err(corrupt()) } else { Ok(()) }
        }

        #[cold]
        fn map(&self, segment: &Segment, chunk: u32) -> Result<&Mapping> {
            let map = Mapping::ahead(segment.as_fd(), 1 << chunk, 1 << chunk)
                .map_err(|error| Error::os("map an arena of shared memory", error))?;
            // Another thread may have been faster; then its one is used.
            Ok(self.maps.0[chunk as usize].get_or_init(|| map))
        }
    }
}

/// Under loom, extents are made when they are first looked at.
#[cfg(loom)]
mod model {
    use std::collections::HashMap;
    use std::io;
    use std::sync::{Mutex, PoisonError};

    use super::{AtomicU64, Extent, Result, Segment};

    #[derive(Default)]
    pub(crate) struct Memory(Mutex<HashMap<u64, Box<[AtomicU64]>>>);

    impl Memory {
        pub(super) fn reserve(&self, _: &Segment, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        pub(super) fn words(&self, _: &Segment, extent: Extent) -> Result<&[AtomicU64]> {
            let mut extents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let words = extents
                .entry(extent.offset)
                .or_insert_with(|| (0..extent.len()).map(|_| AtomicU64::new(0)).collect());
            let words: *const [AtomicU64] = &raw const **words;
            // SAFETY: in a box that nobody takes out of the map, which lives as long as `self`.
            Ok(unsafe { &*words })
        }
    }
}
