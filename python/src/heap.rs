//! Blocks of shared memory without a name, for values and arrays.
//!
//! Small blocks lie side by side in arenas; a large one has an arena of its own. A block's memory
//! is used again once nobody can have it any more: no process was forked while the block was
//! there, and it was not pickled. Otherwise it is given back together with its whole arena.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bunshin::SharedMemory;
use bunshin::front::memory::{self, LOCK_BYTES, MemoryLock};
use pyo3::exceptions::{PyMemoryError, PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyTuple};

use crate::buffer::{self, Lent};
use crate::error::exception;

/// Blocks lie at multiples of this; long ones, and those with a lock, at lines of the caches.
const STEP: usize = 16;
const LINE: usize = 64;
/// Bytes before the data of a block that has a lock; the data starts a line of the caches.
const HEADER: usize = 64;
const _: () = assert!(LOCK_BYTES <= HEADER);
const PAGE: usize = 4096;
/// Blocks from this length on have an arena of their own.
const LARGE_FROM: usize = 64 << 10;
/// The first arena, and the largest for small blocks.
const FIRST_ARENA: usize = 16 << 10;
const LAST_ARENA: usize = 1 << 20;
/// Bytes that are kept for further blocks.
const KEPT: usize = 8 << 20;

/// Counts the forks that this process, and those it is a copy of, have begun.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// A copy of this process, with all of its blocks, is about to be made.
pub(crate) fn before_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Memory and what it is called: its file's number.
pub(crate) struct Mapped {
    pub(crate) memory: SharedMemory,
    inode: u64,
}

impl Mapped {
    fn create(len: usize) -> PyResult<Arc<Self>> {
        Self::of(SharedMemory::new(len).map_err(|error| exception(&error))?)
    }

    fn of(memory: SharedMemory) -> PyResult<Arc<Self>> {
        let fd = memory::descriptor(&memory).map_err(|error| exception(&error))?;
        let inode = std::fs::File::from(fd).metadata()?.ino();
        let mapped = Arc::new(Self { memory, inode });
        known().insert(inode, Arc::downgrade(&mapped));
        Ok(mapped)
    }

    /// The memory behind a descriptor, mapped once per process.
    fn attach(fd: OwnedFd, len: usize) -> PyResult<Arc<Self>> {
        let file = std::fs::File::from(fd);
        let inode = file.metadata()?.ino();
        // While it is mapped, no other memory has its number.
        let found = known().get(&inode).and_then(Weak::upgrade);
        if let Some(mapped) = found.filter(|mapped| mapped.memory.len() >= len) {
            return Ok(mapped);
        }
        let memory = memory::attach(OwnedFd::from(file), len).map_err(|error| exception(&error))?;
        let mapped = Arc::new(Self { memory, inode });
        known().insert(inode, Arc::downgrade(&mapped));
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mut known = known();
        if known
            .get(&self.inode)
            .is_some_and(|weak| weak.strong_count() == 0)
        {
            known.remove(&self.inode);
        }
    }
}

/// All memory that this process has mapped, by the number of its file.
fn known() -> MutexGuard<'static, HashMap<u64, Weak<Mapped>>> {
    static KNOWN: OnceLock<Mutex<HashMap<u64, Weak<Mapped>>>> = OnceLock::new();
    KNOWN
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// A piece of shared memory that blocks lie in.
#[pyclass(module = "bunshin._native", frozen, weakref)]
pub(crate) struct Arena {
    map: Arc<Mapped>,
    /// A descriptor of the memory, for those who ask for its number.
    fd: OnceLock<OwnedFd>,
}

impl Arena {
    fn of(map: Arc<Mapped>) -> Self {
        Self {
            map,
            fd: OnceLock::new(),
        }
    }
}

#[pymethods]
impl Arena {
    /// Memory of so many bytes; that behind `fd`, which is taken over, unless this is negative.
    #[new]
    #[pyo3(signature = (size, fd=-1))]
    fn new(size: usize, fd: RawFd) -> PyResult<Self> {
        Ok(Self::of(if fd < 0 {
            Mapped::create(size)?
        } else {
            Mapped::attach(buffer::owned(fd)?, size)?
        }))
    }

    #[getter]
    fn size(&self) -> usize {
        self.map.memory.len()
    }

    #[getter]
    fn fd(&self) -> PyResult<RawFd> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd.as_raw_fd());
        }
        let fd = memory::descriptor(&self.map.memory).map_err(|error| exception(&error))?;
        Ok(self.fd.get_or_init(|| fd).as_raw_fd())
    }

    /// The memory as a buffer.
    #[getter]
    fn buffer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let memory = self.map.memory.clone();
        let len = memory.len();
        PyMemoryView::from(Bound::new(py, Lent::new(memory, 0, len, None))?.as_any())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let native = py.import(crate::once::intern!(py, "bunshin._native"))?;
        let fd = memory::descriptor(&slf.get().map.memory).map_err(|error| exception(&error))?;
        let descriptor = native.getattr("Descriptor")?.call1((fd.as_raw_fd(),))?;
        (
            native.getattr("attach_arena")?,
            (slf.get().size(), descriptor),
        )
            .into_pyobject(py)
    }
}

/// The arena that was pickled with its size and a descriptor.
#[pyfunction]
pub(crate) fn attach_arena(size: usize, descriptor: &Bound<'_, PyAny>) -> PyResult<Arena> {
    let fd = descriptor.call_method0("detach")?.extract()?;
    Ok(Arena::of(Mapped::attach(buffer::owned(fd)?, size)?))
}

/// Where the blocks of this process come from.
struct Heap {
    process: u32,
    /// The arena that small blocks are cut from, and how much of it is.
    current: Option<(Arc<Mapped>, usize)>,
    next_arena: usize,
    /// Pieces that were given back, by length.
    free: HashMap<usize, Vec<(Arc<Mapped>, usize)>>,
    kept: usize,
}

static HEAP: Mutex<Option<Heap>> = Mutex::new(None);

/// Runs `work` with the heap, which no Python code runs inside of.
fn with_heap<R>(work: impl FnOnce(&mut Heap) -> R) -> R {
    let process = std::process::id();
    let mut slot = HEAP.lock().unwrap_or_else(PoisonError::into_inner);
    let before = match &mut *slot {
        Some(heap) if heap.process == process => None,
        // What is free in the parent is the parent's to give away.
        other => other.replace(Heap {
            process,
            current: None,
            next_arena: FIRST_ARENA,
            free: HashMap::new(),
            kept: 0,
        }),
    };
    let result = slot.as_mut().map(work);
    drop(slot);
    drop(before);
    result.unwrap_or_else(|| unreachable!("the heap was just made"))
}

/// Zeroed memory of `len` bytes, which is a multiple of `STEP`.
fn allocate(py: Python<'_>, len: usize) -> PyResult<(Arc<Mapped>, usize)> {
    let kept = with_heap(|heap| {
        let piece = heap.free.get_mut(&len)?.pop()?;
        heap.kept -= len;
        Some(piece)
    });
    if let Some((map, start)) = kept {
        clear(&map.memory, start, len)?;
        return Ok((map, start));
    }
    if len >= LARGE_FROM {
        let pages = len.checked_next_multiple_of(PAGE);
        let pages = pages.ok_or_else(|| PyMemoryError::new_err(too_much(len)))?;
        let made = py.detach(|| SharedMemory::new(pages));
        // Attached again: another thread could fork meanwhile, and no lock is to be held then.
        return Ok((Mapped::of(made.map_err(|error| exception(&error))?)?, 0));
    }
    let align = if len >= LINE { LINE } else { STEP };
    with_heap(|heap| {
        if let Some((map, used)) = &mut heap.current {
            let start = used.next_multiple_of(align);
            if start + len <= map.memory.len() {
                *used = start + len;
                return Ok((Arc::clone(map), start));
            }
        }
        let size = heap.next_arena.max(len.next_multiple_of(PAGE));
        heap.next_arena = (2 * heap.next_arena).min(LAST_ARENA);
        let map = Mapped::create(size)?;
        heap.current = Some((Arc::clone(&map), len));
        Ok((map, 0))
    })
}

fn too_much(len: usize) -> String {
    format!("{len} bytes of shared memory are more than there can be")
}

fn clear(memory: &SharedMemory, start: usize, len: usize) -> PyResult<()> {
    static ZEROS: [u8; PAGE] = [0; PAGE];
    let mut done = 0;
    while done < len {
        let part = PAGE.min(len - done);
        memory
            .write_at(start + done, &ZEROS[..part])
            .map_err(|error| exception(&error))?;
        done += part;
    }
    Ok(())
}

/// A block of shared memory; it is given back when the last reference to it goes.
#[pyclass(module = "bunshin._native", frozen, weakref)]
pub(crate) struct Block {
    map: Arc<Mapped>,
    /// Where its memory starts, lock included, and how long it is; 0 if it is another
    /// process's to give back.
    start: usize,
    taken: usize,
    /// Where the data starts, and how long it is.
    offset: usize,
    size: usize,
    lock: Option<MemoryLock>,
    forks: u64,
    is_sent: AtomicBool,
}

impl Block {
    pub(crate) fn memory(&self) -> &SharedMemory {
        &self.map.memory
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) fn lock(&self) -> Option<&MemoryLock> {
        self.lock.as_ref()
    }

    /// The data as something that lends buffers.
    pub(crate) fn lend<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Lent>> {
        let this = slf.get();
        let lent = Lent::new(
            this.map.memory.clone(),
            this.offset,
            this.size,
            Some(slf.clone().into_any().unbind()),
        );
        Bound::new(slf.py(), lent)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let locked = self.lock.as_ref().filter(|lock| lock.is_taken());
        if locked.is_some_and(MemoryLock::is_held_here) {
            // The kernel would look for the lock in memory that is gone.
            std::mem::forget(Arc::clone(&self.map));
        }
        let is_own = self.taken > 0
            && locked.is_none()
            && self.forks == FORKS.load(Ordering::Relaxed)
            && !self.is_sent.load(Ordering::Relaxed);
        if is_own {
            let piece = (Arc::clone(&self.map), self.start);
            let len = self.taken;
            let left = with_heap(|heap| {
                if heap.kept + len > KEPT {
                    return Some(piece);
                }
                heap.kept += len;
                heap.free.entry(len).or_default().push(piece);
                None
            });
            drop(left);
        }
    }
}

#[pymethods]
impl Block {
    /// Zeroed memory of so many bytes, with a lock before it or without.
    #[new]
    #[pyo3(signature = (size, lock=false))]
    fn new(py: Python<'_>, size: isize, lock: bool) -> PyResult<Self> {
        let Ok(bytes) = usize::try_from(size) else {
            return Err(PyValueError::new_err(format!("size {size} out of range")));
        };
        if size == isize::MAX {
            return Err(PyOverflowError::new_err(format!("size {size} too large")));
        }
        let before = if lock { HEADER } else { 0 };
        let taken = bytes
            .max(1)
            .checked_add(before)
            .and_then(|len| len.checked_next_multiple_of(STEP))
            .ok_or_else(|| PyMemoryError::new_err(too_much(bytes)))?;
        let (map, start) = allocate(py, taken)?;
        let lock = lock
            .then(|| MemoryLock::at(&map.memory, start))
            .transpose()
            .map_err(|error| exception(&error))?;
        Ok(Self {
            map,
            start,
            taken,
            offset: start + before,
            size: bytes,
            lock,
            forks: FORKS.load(Ordering::Relaxed),
            is_sent: AtomicBool::new(false),
        })
    }

    #[getter]
    fn size(&self) -> usize {
        self.size
    }

    /// A view of the data, which may be written to.
    fn view<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(Self::lend(slf)?.as_any())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let (py, this) = (slf.py(), slf.get());
        this.is_sent.store(true, Ordering::Relaxed);
        let native = py.import(crate::once::intern!(py, "bunshin._native"))?;
        let arena = native.getattr("arena_of")?.call1((slf,))?;
        let arguments = (arena, this.offset, this.size, this.lock.is_some());
        (native.getattr("attach_block")?, arguments).into_pyobject(py)
    }
}

/// The arena of a block: one object for all blocks in it while there is any reference to it, so
/// that a pickler that meets several of them sends one descriptor.
#[pyfunction]
pub(crate) fn arena_of<'py>(block: &Bound<'py, Block>) -> PyResult<Bound<'py, Arena>> {
    let map = &block.get().map;
    let py = block.py();
    let arenas = py
        .import(crate::once::intern!(py, "bunshin.heap"))?
        .getattr(crate::once::intern!(py, "_arenas"))?;
    if let Ok(found) = arenas.get_item(map.inode) {
        let arena = found.cast_into::<Arena>()?;
        if Arc::ptr_eq(&arena.get().map, map) {
            return Ok(arena);
        }
    }
    let arena = Bound::new(py, Arena::of(Arc::clone(map)))?;
    arenas.set_item(map.inode, &arena)?;
    Ok(arena)
}

/// The block that was pickled as a place in an arena.
#[pyfunction]
pub(crate) fn attach_block(
    arena: &Bound<'_, Arena>,
    offset: usize,
    size: usize,
    lock: bool,
) -> PyResult<Block> {
    let map = &arena.get().map;
    let before = if lock { HEADER } else { 0 };
    let fits = offset >= before
        && offset % STEP == 0
        && offset <= map.memory.len()
        && size <= map.memory.len() - offset;
    if !fits {
        return Err(PyValueError::new_err("the block does not lie in its arena"));
    }
    let lock = lock
        .then(|| MemoryLock::at(&map.memory, offset - before))
        .transpose()
        .map_err(|error| exception(&error))?;
    Ok(Block {
        map: Arc::clone(map),
        start: offset - before,
        taken: 0,
        offset,
        size,
        lock,
        forks: FORKS.load(Ordering::Relaxed),
        is_sent: AtomicBool::new(true),
    })
}
