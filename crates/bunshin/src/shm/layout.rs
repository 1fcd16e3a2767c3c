//! Where things lie in a segment: the numbers of LAYOUT.md.

/// The first eight bytes of every segment.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"bunshin\x01");
/// Changes with every change of LAYOUT.md.
pub(crate) const VERSION: u32 = 3;

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Two rings and a heap: a duplex pipe. One ring of it may stay unused.
    Pipe = 1,
    /// A lock and plain values.
    Shared = 2,
    /// A pool's task table and heap.
    Pool = 3,
    /// A semaphore.
    Semaphore = 16,
    /// A condition.
    Condition = 17,
    /// An event.
    Event = 18,
    /// A barrier.
    Barrier = 19,
    /// Locks that processes own.
    Locks = 24,
    /// A map and its arena.
    Map = 8,
    /// A queue of many producers and many consumers.
    Queue = 7,
}

/// Bytes of the header that every segment starts with.
pub(crate) const HEADER: usize = 64;

/// Bytes of a ring's data; a power of two.
pub(crate) const RING: usize = 64 << 10;
/// Bytes of a ring's header.
pub(crate) const RING_HEADER: usize = 384;
/// Where the lists of a pipe's holders start: for each ring, one of the sending side and one of
/// the receiving side.
pub(crate) const PIPE_HOLDERS: usize = HEADER;
/// Where the headers of a pipe's two rings start.
pub(crate) const PIPE_RINGS: usize = 4096;

/// Blocks that a heap can hold at a time.
pub(crate) const HEAP_BLOCKS: usize = 2048;
/// Bytes of a heap's table.
pub(crate) const HEAP_TABLE: usize = 64 + HEAP_BLOCKS * 32;

/// Where a pipe's heap table starts.
pub(crate) const PIPE_HEAP: usize = PIPE_RINGS + 2 * RING_HEADER;
/// Bytes of a pipe's segment that are there from the start: what every pipe uses.
pub(crate) const PIPE_FIRST: usize = PIPE_RINGS + 4096;
/// Where the data of a pipe's two rings start.
pub(crate) const PIPE_DATA: usize = (PIPE_HEAP + HEAP_TABLE).next_multiple_of(4096);
/// Bytes of a pipe's segment before its first block.
pub(crate) const PIPE_FIXED: usize = PIPE_DATA + 2 * RING;

/// Where the lock of shared data lies.
pub(crate) const CELL_LOCK: usize = 64;
/// Where shared data starts.
pub(crate) const CELL_DATA: usize = 128;

/// Where a semaphore's head lies.
pub(crate) const SEMAPHORE_HEAD: usize = 64;
/// Where its places start.
pub(crate) const SEMAPHORE_PLACES: usize = 128;
/// Bytes of a place: a lock, on a line of its own.
pub(crate) const SEMAPHORE_PLACE: usize = 64;

/// Where a condition's head lies.
pub(crate) const CONDITION_HEAD: usize = 64;
/// Where its places start.
pub(crate) const CONDITION_PLACES: usize = 128;
/// Bytes of a place: a lock and what its holder waits for.
pub(crate) const CONDITION_PLACE: usize = 64;

/// Where an event's words lie.
pub(crate) const EVENT: usize = 64;
/// Where it was set last.
pub(crate) const EVENT_WHENCE: usize = 68;

/// Where a barrier's head lies.
pub(crate) const BARRIER_HEAD: usize = 64;
/// Where its places start.
pub(crate) const BARRIER_PLACES: usize = 192;
/// Bytes of a place: a lock and what its holder is told.
pub(crate) const BARRIER_PLACE: usize = 64;

/// Where the number of locks that were given out lies.
pub(crate) const LOCKS_GIVEN: usize = 64;
/// Where the locks that processes own start.
pub(crate) const LOCKS_PLACES: usize = 128;
/// Bytes of such a lock.
pub(crate) const LOCKS_PLACE: usize = 64;
/// Bytes of a segment of them.
pub(crate) const LOCKS_LEN: usize = 4096;

/// Extents that an arena can have.
pub(crate) const EXTENTS: usize = if cfg!(loom) { 6 } else { 2048 };
/// Bytes of an arena's table.
pub(crate) const ARENA_TABLE: usize = 64 + EXTENTS * 16;

/// Where the key of a map's hash lies: two words.
pub(crate) const MAP_KEY: usize = 64;
/// Where a map's arena lies.
pub(crate) const MAP_ARENA: usize = 128;
/// Parts of a map that are changed independently; a power of two.
pub(crate) const SHARDS: usize = if cfg!(loom) { 1 } else { 64 };
/// Bytes of a part's line.
pub(crate) const SHARD_LINE: usize = 128;
/// Where the lines of a map's parts start.
pub(crate) const MAP_SHARDS: usize = (MAP_ARENA + ARENA_TABLE).next_multiple_of(64);
/// Bytes of a map's segment before its first extent.
pub(crate) const MAP_FIXED: usize = (MAP_SHARDS + SHARDS * SHARD_LINE).next_multiple_of(4096);
/// Where a queue's header lies.
pub(crate) const QUEUE_HEADER: usize = 64;
/// Where a queue's table of unfinished tasks lies.
pub(crate) const QUEUE_TASKS: usize = 1024;
/// Processes that can have unfinished tasks of a queue at a time.
pub(crate) const QUEUE_HOLDERS: usize = 200;
/// Bytes of a queue's fixed part.
pub(crate) const QUEUE_FIXED: usize = 8192;
/// Bytes of a chunk of a queue's items; chunks start at multiples of it.
pub(crate) const QUEUE_CHUNK: u64 = 64 << 10;

const _: () = assert!(RING.is_power_of_two());
const _: () = assert!(PIPE_HEAP % 64 == 0);
