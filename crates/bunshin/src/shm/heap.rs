//! Blocks of shared memory that are handed from process to process instead of copied.
//!
//! A heap is a table of blocks in a segment; the blocks themselves follow the
//! segment's fixed part. The processes that use a heap are its members, each with a
//! number; a block's state says which of them hold it:
//!
//! | Bits of the state | Means |
//! |---|---|
//! | 0..=61 | the member of that number holds the block |
//! | 62 | the block is being made, or named in a message, or its memory is being given back |
//! | 63 | a message that names the block is on its way |
//!
//! | From | To | By |
//! |---|---|---|
//! | 0 | one holder | `alloc`, compare-and-swap |
//! | holder | holder + 62, holder + on its way | the sender, when it writes the message |
//! | on its way (+ holder) | receiver (+ holder) | the receiver, when it reads the message |
//! | one holder less | | whoever lets go; at 0 the block is free again |
//!
//! Only a holder that is alone may write (`is_alone`): nobody can become a second one
//! but through a message that this holder sends. A member holds a block once: one that comes
//! back to where it is held still is copied. Free blocks keep their memory up to a
//! limit, as fresh pages cost more than the copy into them.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, Unused};
use super::layout::{HEAP_BLOCKS, HEAP_TABLE};
use super::lock::RawLock;
use super::segment::{Segment, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::leases;
use crate::sys::memory::{self, Mapping, PAGE};
use crate::sys::mutex::ForkMutex;
use crate::sys::thread;

const MAKING: u64 = 1 << 62;
const ON_ITS_WAY: u64 = 1 << 63;
/// Members beyond this number copy instead of holding blocks.
pub(crate) const MEMBERS: u32 = 62;

/// Free memory that a heap keeps for the next blocks.
const KEEP: u64 = if cfg!(loom) { 1 } else { 256 << 20 };
/// A larger block gives its memory back as soon as nobody holds it.
const KEEP_BLOCK: u64 = if cfg!(loom) { 64 << 10 } else { 128 << 20 };
/// The smallest block.
const SMALLEST: u64 = 64 << 10;

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Table {
    lock: RawLock,
    /// Where the next new block starts in the memory behind the segment.
    next: AtomicU64,
    /// Blocks that were ever made: the rest of the table is untouched.
    made: AtomicU32,
    _spare: [Unused; 3],
}

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Entry {
    state: AtomicU64,
    offset: AtomicU64,
    capacity: AtomicU64,
    /// The member that put the block on its way.
    sender: AtomicU32,
    /// Counts the messages that named the block, so that an old name is told from a new one.
    times: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Table>() == 64);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Entry>() == 32);
const _: () = assert!(HEAP_TABLE == 64 + HEAP_BLOCKS * 32);

// SAFETY: atomics and a lock that is `Shared` itself.
unsafe impl Shared for Table {}
// SAFETY: atomics.
unsafe impl Shared for Entry {}

/// A block named in a message: which one, and how many of its bytes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) index: u32,
    /// The how-manieth message it is that names the block.
    pub(crate) times: u32,
    pub(crate) len: u64,
}

impl Descriptor {
    /// Bytes of a descriptor in a message.
    pub(crate) const SIZE: usize = 16;

    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.index.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.times.to_le_bytes());
        bytes[8..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            index: word(0),
            times: word(4),
            len: u64::from(word(8)) | u64::from(word(12)) << 32,
        }
    }
}

/// One member's view of a heap.
#[derive(Debug)]
pub(crate) struct Heap {
    segment: Arc<Segment>,
    table: usize,
    member: u32,
    /// Blocks that this view holds.
    held: AtomicUsize,
    maps: ForkMutex<Vec<Option<Mapped>>>,
    /// Blocks that were let go here while copies of this process may have had them, too.
    with_copies: ForkMutex<Vec<WithCopies>>,
    /// How many these are.
    waiting: AtomicUsize,
    /// Entries of the table that are known to be there.
    known: AtomicUsize,
}

/// A block that is let go once those copies have ended that were made while it was held.
#[derive(Debug)]
struct WithCopies {
    index: usize,
    /// The process that held it.
    generation: u32,
    /// How many copies there had been before it was held, and when it was let go.
    copies: (u32, u32),
}

/// How many blocks of heaps this process holds.
static HELD: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// To be called before a raw fork, whose copy goes on with all blocks.
pub(crate) fn begin_copy() {
    leases::begin(HELD.load(Ordering::Relaxed) > 0);
}

/// Who has written to a block before it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// Nobody, or this process.
    Own,
    /// The process that sent it.
    Another,
}

#[derive(Clone, Debug)]
struct Mapped {
    offset: u64,
    capacity: u64,
    map: Arc<Mapping>,
}

impl Heap {
    /// Views the heap whose table lies at `table`; zeroed memory is an empty heap.
    pub(crate) fn new(segment: Arc<Segment>, table: usize, member: u32) -> Arc<Self> {
        segment.span(table, HEAP_TABLE);
        let known = segment.first().saturating_sub(table + 64) / 32;
        Arc::new(Self {
            segment,
            table,
            member,
            held: AtomicUsize::new(0),
            maps: ForkMutex::new(Vec::new()),
            with_copies: ForkMutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            known: AtomicUsize::new(known.min(HEAP_BLOCKS)),
        })
    }

    fn table(&self) -> &Table {
        self.segment.at(self.table)
    }

    fn entry(&self, index: usize) -> &Entry {
        assert!(index < HEAP_BLOCKS);
        self.segment.at(self.table + 64 + index * 32)
    }

    fn bit(&self) -> Option<u64> {
        (self.member < MEMBERS).then(|| 1 << self.member)
    }

    fn made(&self) -> usize {
        let made = (self.table().made.load(Ordering::Acquire) as usize).min(HEAP_BLOCKS);
        let known = self.known.load(Ordering::Relaxed);
        if made <= known {
            return made;
        }
        // Whoever has made an entry has written to it before. One that only the number says is
        // there must not be looked at: that would make the memory for it.
        let entries = self.table + 64;
        let (from, to) = (entries + known * 32, entries + made * 32);
        if self.segment.is_written(from, to - from) {
            // All of the last page is there.
            let all = (to.next_multiple_of(PAGE) - entries) / 32;
            self.known
                .fetch_max(all.min(HEAP_BLOCKS), Ordering::Relaxed);
            made
        } else {
            known
        }
    }

    /// Has the memory of an entry be there, which is about to be made.
    fn reserve_entry(&self, index: usize) -> Result<()> {
        if index < self.known.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.segment
            .reserve(self.table + 64 + index * 32, 32)
            .map_err(|error| Error::os("reserve memory for the table of a shared heap", error))
    }

    /// Whether this member holds so many blocks that it had better copy the next.
    ///
    /// Without it, a receiver that keeps what it gets would leave the sender no block.
    pub(crate) fn is_crowded(&self) -> bool {
        self.bit().is_none() || self.held.load(Ordering::Relaxed) >= HEAP_BLOCKS / 2
    }

    /// Takes a block of at least `len` bytes. `Ok(None)` if there is none to be had in
    /// this heap, which says nothing about the memory of the machine.
    pub(crate) fn alloc(self: &Arc<Self>, len: usize) -> Result<Option<Block>> {
        let Some(bit) = self.bit() else {
            return Ok(None);
        };
        let want = capacity_for(len as u64);
        self.let_go_after_copies();
        for index in 0..self.made() {
            let entry = self.entry(index);
            let capacity = entry.capacity.load(Ordering::Relaxed);
            if entry.state.load(Ordering::Relaxed) == 0
                && (want..=want.saturating_mul(2)).contains(&capacity)
                && entry
                    .state
                    .compare_exchange(0, bit, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                // Another member may have given the memory back before the swap.
                if entry.capacity.load(Ordering::Relaxed) == capacity {
                    return self.block(index, len, Writer::Own).map(Some);
                }
                self.let_go(index, bit);
            }
        }
        self.make(want, bit)?
            .map(|index| self.block(index, len, Writer::Own))
            .transpose()
    }

    /// Makes a new block. The lock may have been abandoned: `next` and `made` are each
    /// right on their own at any time, and an entry left half made stays out of use.
    fn make(&self, want: u64, bit: u64) -> Result<Option<usize>> {
        let table = self.table();
        table.lock.lock(None).map_err(|refused| {
            Error::new(
                ErrorKind::Unsupported,
                format!("lock a shared heap: {refused:?}"),
            )
        })?;
        let made = self.make_locked(want, bit);
        table.lock.unlock();
        made
    }

    fn make_locked(&self, want: u64, bit: u64) -> Result<Option<usize>> {
        let table = self.table();
        self.trim();
        let reusable = (0..self.made()).find(|index| {
            let entry = self.entry(*index);
            entry.capacity.load(Ordering::Relaxed) == 0
                && entry
                    .state
                    .compare_exchange(0, MAKING, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        });
        let index = match reusable {
            Some(index) => index,
            None if self.made() < HEAP_BLOCKS => {
                let index = self.made();
                self.reserve_entry(index)?;
                self.entry(index).state.store(MAKING, Ordering::Relaxed);
                table.made.store(index as u32 + 1, Ordering::Release);
                index
            }
            None => return Ok(None),
        };
        let entry = self.entry(index);
        let offset = table
            .next
            .load(Ordering::Relaxed)
            .max(self.segment.len().next_multiple_of(PAGE) as u64);
        // A start that leaves no room up to the largest offset is refused when room is made.
        let next = offset.saturating_add(want);
        table.next.store(next, Ordering::Relaxed);
        entry.offset.store(offset, Ordering::Relaxed);
        entry.capacity.store(0, Ordering::Relaxed);
        if let Err(error) = memory::reserve(self.segment.as_fd(), offset, want) {
            entry.state.store(0, Ordering::Release);
            return Err(Error::os(
                format!("make a block of {want} bytes of shared memory"),
                error,
            ));
        }
        entry.capacity.store(want, Ordering::Relaxed);
        entry.state.store(bit, Ordering::Release);
        Ok(Some(index))
    }

    /// Gives memory of free blocks back while they have more than the limit.
    fn trim(&self) {
        let free = |index: usize| {
            let entry = self.entry(index);
            if entry.state.load(Ordering::Relaxed) == 0 {
                entry.capacity.load(Ordering::Relaxed)
            } else {
                0
            }
        };
        // The numbers are another process's: they need not add up.
        let mut total = (0..self.made()).map(free).fold(0, u64::saturating_add);
        for index in 0..self.made() {
            if total <= KEEP {
                break;
            }
            let capacity = free(index);
            let state = &self.entry(index).state;
            if capacity != 0
                && state
                    .compare_exchange(0, MAKING, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                total = total.saturating_sub(capacity);
                self.give_back(index);
            }
        }
    }

    /// Gives the memory of a block that is marked `MAKING` back, and frees its entry.
    fn give_back(&self, index: usize) {
        let entry = self.entry(index);
        let capacity = entry.capacity.swap(0, Ordering::Relaxed);
        let offset = entry.offset.load(Ordering::Relaxed);
        // The number is another process's. What lies before the blocks must stay: a lock that
        // became zeros while it is held would stay in this thread's list, and outlive its memory.
        if offset >= self.segment.len() as u64 {
            memory::release(self.segment.as_fd(), offset, capacity);
        }
        // A swap: `recall` may take its bit away, which is not there any more, at this moment.
        entry.state.swap(0, Ordering::Release);
    }

    /// A block that this member has just become a holder of.
    fn block(self: &Arc<Self>, index: usize, len: usize, writer: Writer) -> Result<Block> {
        let map = self
            .map(index, len, writer)
            .inspect_err(|_| self.let_go(index, self.bit().unwrap_or(0)))?;
        self.held.fetch_add(1, Ordering::Relaxed);
        HELD.fetch_add(1, Ordering::Relaxed);
        Ok(Block {
            home: Home::Heap {
                heap: Arc::clone(self),
                index,
            },
            map,
            len,
            generation: thread::generation(),
            copies: thread::copies(),
        })
    }

    fn map(&self, index: usize, len: usize, writer: Writer) -> Result<Arc<Mapping>> {
        let entry = self.entry(index);
        let (offset, capacity) = (
            entry.offset.load(Ordering::Relaxed),
            entry.capacity.load(Ordering::Relaxed),
        );
        let mut maps = self.maps.lock();
        if let Some(Some(mapped)) = maps.get(index) {
            if mapped.offset == offset && mapped.capacity == capacity && len as u64 <= capacity {
                return Ok(Arc::clone(&mapped.map));
            }
        }
        let end = offset.checked_add(capacity);
        let size = memory::len(self.segment.as_fd())
            .map_err(|error| Error::os("look at a shared heap", error))?;
        if len as u64 > capacity
            || offset < self.segment.len() as u64
            || end.is_none_or(|end| end > size)
            || capacity > capacity_for(len as u64).saturating_mul(2)
            // Memory that only the table says is there must not be mapped: that would make
            // it, and as much of it as the table likes.
            || (writer == Writer::Another
                && !memory::is_written(self.segment.as_fd(), offset, len as u64))
        {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "a message names block {index} of {len} bytes, which is not a block of this heap"
                ),
            ));
        }
        let length = usize::try_from(capacity)
            .map_err(|_| Error::new(ErrorKind::OutOfMemory, "map a block"))?;
        let map = Mapping::new(self.segment.as_fd(), offset, length).map_err(|error| {
            Error::os(
                format!("map a block of {capacity} bytes of shared memory"),
                error,
            )
        })?;
        let map = Arc::new(map);
        if maps.len() <= index {
            maps.resize(index + 1, None);
        }
        maps[index] = Some(Mapped {
            offset,
            capacity,
            map: Arc::clone(&map),
        });
        Ok(map)
    }

    /// Lets go of the bits of a block; frees it if nobody else holds it.
    fn let_go(&self, index: usize, bits: u64) {
        let entry = self.entry(index);
        if entry.capacity.load(Ordering::Relaxed) > KEEP_BLOCK
            && entry
                .state
                .compare_exchange(bits, MAKING, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            self.give_back(index);
            return;
        }
        entry.state.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Lets go of a block that this view holds.
    fn release(&self, index: usize) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.let_go(index, self.bit().unwrap_or(0));
    }

    /// Lets go of blocks whose copies have ended.
    fn let_go_after_copies(&self) {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        // Somebody else is at it.
        let Some(mut waiting) = self.with_copies.try_lock() else {
            return;
        };
        // Only now: a copy that was made before one of these was let go must not be missed.
        let living = leases::living();
        let has_copy = |from: u32, to: u32| {
            let mut living = living.iter();
            living.any(|(first, last)| *first <= to && *last > from)
        };
        let generation = thread::generation();
        let mut over = Vec::new();
        waiting.retain(|block| {
            let (from, to) = block.copies;
            let is_over = block.generation != generation || !has_copy(from, to);
            // In a copy they are its parent's to let go.
            if is_over && block.generation == generation {
                over.push(block.index);
            }
            !is_over
        });
        self.waiting.store(waiting.len(), Ordering::Relaxed);
        drop(waiting);
        for index in over {
            self.release(index);
        }
    }

    /// Receives a block that a message names.
    pub(crate) fn claim(self: &Arc<Self>, descriptor: Descriptor) -> Result<Block> {
        let corrupt = |why: &str| {
            Error::new(
                ErrorKind::Corrupt,
                format!("a message names block {}, {why}", descriptor.index),
            )
        };
        let index = descriptor.index as usize;
        if index >= self.made() {
            return Err(corrupt("which was never made"));
        }
        let len = usize::try_from(descriptor.len).map_err(|_| corrupt("which is too long"))?;
        let Some(bit) = self.bit() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this process is one too many to hold shared blocks",
            ));
        };
        let Entry { state, times, .. } = self.entry(index);
        let mut seen = state.load(Ordering::Acquire);
        loop {
            if seen & ON_ITS_WAY == 0 || times.load(Ordering::Relaxed) != descriptor.times {
                return Err(corrupt("which nobody has sent"));
            }
            if seen & bit != 0 {
                return self.claim_copy(index, len);
            }
            match state.compare_exchange_weak(
                seen,
                seen & !ON_ITS_WAY | bit,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return self.block(index, len, Writer::Another),
                Err(now) => seen = now,
            }
        }
    }

    /// Receives a block that this process holds already, as a copy: its bit cannot say that
    /// there are two, each of which would believe to be alone.
    fn claim_copy(&self, index: usize, len: usize) -> Result<Block> {
        let copied = self.map(index, len, Writer::Another).and_then(|map| {
            // The handle is not needed: the memory lives as long as it is mapped.
            let (mut block, _) = Block::alone(len)?;
            // SAFETY: `map` checked the length. Nobody writes while the block is on its way.
            let bytes = unsafe { std::slice::from_raw_parts(map.start().as_ptr(), len) };
            if let Some(to) = block.bytes_mut() {
                to.copy_from_slice(bytes);
            }
            Ok(block)
        });
        self.let_go(index, ON_ITS_WAY);
        copied
    }

    /// Undoes the sending of a block whose message does not go out, or that nobody
    /// will read. Does nothing if it has been received, even if it was sent again since.
    pub(crate) fn recall(&self, descriptor: Descriptor) {
        let index = descriptor.index as usize;
        if index >= self.made() {
            return;
        }
        let Entry { state, times, .. } = self.entry(index);
        if state.load(Ordering::Acquire) & ON_ITS_WAY != 0
            && times.load(Ordering::Relaxed) == descriptor.times
        {
            self.let_go(index, ON_ITS_WAY);
        }
    }

    /// Lets go of everything that a member held or was sending when it died.
    ///
    /// Its messages that did go out must have been read before.
    pub(crate) fn bury(&self, member: u32) {
        for index in 0..self.made() {
            let entry = self.entry(index);
            let state = entry.state.load(Ordering::Acquire);
            if state & ON_ITS_WAY != 0 && entry.sender.load(Ordering::Relaxed) == member {
                self.let_go(index, ON_ITS_WAY);
            }
            if member < MEMBERS && state & (1 << member) != 0 {
                // Nobody else could be naming the block in a message.
                let was_naming = state == MAKING | 1 << member;
                self.let_go(index, if was_naming { state } else { 1 << member });
            }
        }
    }
}

fn capacity_for(len: u64) -> u64 {
    let len = len.max(SMALLEST);
    // Steps of an eighth of the next power of two: little waste, few sizes.
    let step = (len.checked_next_power_of_two().unwrap_or(len) / 8).max(PAGE as u64);
    len.div_ceil(step).saturating_mul(step)
}

/// Shared memory that this process holds: a block of a heap, or memory of its own.
///
/// Lets go when dropped.
#[derive(Debug)]
pub(crate) struct Block {
    home: Home,
    map: Arc<Mapping>,
    len: usize,
    /// Of the process that holds it: a forked child has a copy that does not count.
    generation: u32,
    /// Raw copies of this process that had been made by then: a later one has this block too.
    copies: u32,
}

#[derive(Debug)]
enum Home {
    Heap {
        heap: Arc<Heap>,
        index: usize,
    },
    /// Memory that came with a handle, for this holder alone.
    Alone,
    /// Memory that came with a handle, which others read too.
    Common,
}

impl Block {
    /// Makes memory that belongs to no heap, and the handle to send it by.
    pub(crate) fn alone(len: usize) -> Result<(Self, std::os::fd::OwnedFd)> {
        let what = || format!("make {len} bytes of shared memory");
        let fd = memory::create(len.max(1) as u64).map_err(|error| Error::os(what(), error))?;
        let map =
            Mapping::new(fd.as_fd(), 0, len.max(1)).map_err(|error| Error::os(what(), error))?;
        Ok((
            Self {
                home: Home::Alone,
                map: Arc::new(map),
                len,
                generation: thread::generation(),
                copies: thread::copies(),
            },
            fd,
        ))
    }

    /// Maps memory that came with a handle.
    ///
    /// `common` says that the same handle went to several readers.
    pub(crate) fn attach(fd: &std::os::fd::OwnedFd, len: usize, common: bool) -> Result<Self> {
        let size = memory::sealed_len(fd.as_fd())
            .map_err(|error| Error::os("attach to a large payload", error))?;
        if len as u64 > size {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("a payload of {len} bytes came in {size} bytes of memory"),
            ));
        }
        let map = Mapping::new(fd.as_fd(), 0, len.max(1))
            .map_err(|error| Error::os("map a large payload", error))?;
        let home = if common { Home::Common } else { Home::Alone };
        Ok(Self {
            home,
            map: Arc::new(map),
            len,
            generation: thread::generation(),
            copies: thread::copies(),
        })
    }

    /// The bytes.
    ///
    /// While this process holds the block, nobody writes to it: other holders may not
    /// unless they are alone.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is at least `len` long and lives as long as `self`. Its bytes do
        // not change: writing takes being the only holder, which others are not while we are.
        unsafe { std::slice::from_raw_parts(self.map.start().as_ptr(), self.len) }
    }

    /// The bytes to write to, if this process is the only holder.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_alone() {
            return None;
        }
        // SAFETY: as in `bytes`, and `self` is the only block of this process that names this
        // memory, borrowed mutably: no other reference exists, in any process.
        Some(unsafe { std::slice::from_raw_parts_mut(self.map.start().as_ptr(), self.len) })
    }

    /// Whether a fork has made a copy of this holder: then both may read, and neither may
    /// write or free the memory.
    fn has_copy(&self) -> bool {
        self.generation != thread::generation() || self.copies != thread::copies()
    }

    /// Whether nobody else holds the block or is about to.
    fn is_alone(&self) -> bool {
        match &self.home {
            _ if self.has_copy() => false,
            Home::Alone => true,
            Home::Common => false,
            Home::Heap { heap, index } => {
                Some(heap.entry(*index).state.load(Ordering::Acquire)) == heap.bit()
            }
        }
    }

    /// Which block of its heap it is.
    #[cfg(loom)]
    pub(super) fn index(&self) -> Option<usize> {
        match &self.home {
            Home::Heap { index, .. } => Some(*index),
            Home::Alone | Home::Common => None,
        }
    }

    /// Whether this process had better copy the bytes and let go.
    pub(crate) fn is_scarce(&self) -> bool {
        matches!(&self.home, Home::Heap { heap, .. } if heap.is_crowded())
    }

    /// Bytes in use.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Names the block in a message to another member of `heap`, if it is one of its
    /// blocks and not on its way already. This process keeps holding it until it lets go.
    pub(crate) fn send_by(&self, heap: &Arc<Heap>) -> Option<Descriptor> {
        let Home::Heap { heap: home, index } = &self.home else {
            return None;
        };
        if !Arc::ptr_eq(home, heap) {
            return None;
        }
        let entry = home.entry(*index);
        let mut seen = entry.state.load(Ordering::Relaxed);
        loop {
            if seen & (ON_ITS_WAY | MAKING) != 0 {
                return None;
            }
            match entry.state.compare_exchange_weak(
                seen,
                seen | MAKING,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        entry.sender.store(home.member, Ordering::Relaxed);
        let times = entry.times.load(Ordering::Relaxed).wrapping_add(1);
        entry.times.store(times, Ordering::Relaxed);
        // Whoever sees it on its way sees by whom: the burial of its sender before must not
        // take it for one of his.
        entry
            .state
            .fetch_xor(MAKING | ON_ITS_WAY, Ordering::Release);
        Some(Descriptor {
            index: *index as u32,
            times,
            len: self.len as u64,
        })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Home::Heap { heap, index } = &self.home else {
            return;
        };
        HELD.fetch_sub(1, Ordering::Relaxed);
        // A copy that a fork made does not count; the block stays held for the other one.
        if thread::is_left_to_child() || self.generation != thread::generation() {
            return;
        }
        if self.has_copy() {
            let block = WithCopies {
                index: *index,
                generation: self.generation,
                copies: (self.copies, thread::copies()),
            };
            let mut waiting = heap.with_copies.lock();
            waiting.push(block);
            heap.waiting.store(waiting.len(), Ordering::Relaxed);
        } else {
            heap.release(*index);
        }
        heap.let_go_after_copies();
    }
}
