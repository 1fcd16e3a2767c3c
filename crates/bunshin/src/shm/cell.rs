//! Plain bytes in a segment of their own, with a robust lock beside them.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::layout::{CELL_DATA, CELL_LOCK, Kind};
use super::lock::{RawLock, Refused, Taken};
use super::segment::Segment;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mutex::ForkMutex;

/// A lock and bytes, shared between processes.
#[derive(Clone, Debug)]
pub(crate) struct SharedCell {
    segment: ManuallyDrop<Arc<Segment>>,
}

/// Memory whose lock a thread of this process held when the last value that knew the memory was
/// dropped: the thread's list of robust locks may lead there.
static PARKED: ForkMutex<Vec<Segment>> = ForkMutex::new(Vec::new());
/// Whether there is any.
static IS_PARKED: AtomicBool = AtomicBool::new(false);

/// Gives parked memory back, as far as nothing leads there any more.
#[cold]
fn clear_parked() {
    let mut parked = PARKED.lock();
    parked.retain(|segment| segment.at::<RawLock>(CELL_LOCK).is_held_here());
    IS_PARKED.store(!parked.is_empty(), Ordering::Relaxed);
}

impl SharedCell {
    /// Makes zeroed bytes. The memory exists when this returns.
    pub(crate) fn create(len_bytes: usize) -> Result<Self> {
        let len = len_bytes.checked_add(CELL_DATA);
        let len = len.ok_or_else(|| {
            Error::new(ErrorKind::OutOfMemory, format!("share {len_bytes} bytes"))
        })?;
        Ok(Self {
            segment: ManuallyDrop::new(Segment::create(Kind::Shared, len)?),
        })
    }

    /// Maps what came in a message: `len_bytes` of data at least.
    pub(crate) fn attach(fd: OwnedFd, len_bytes: usize) -> Result<Self> {
        let least = len_bytes.checked_add(CELL_DATA);
        let least =
            least.ok_or_else(|| Error::new(ErrorKind::Corrupt, "shared data is too long"))?;
        Ok(Self {
            segment: ManuallyDrop::new(Segment::attach(fd, Kind::Shared, least)?),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }

    #[inline]
    pub(crate) fn raw(&self) -> &RawLock {
        self.segment.at(CELL_LOCK)
    }

    /// Takes the lock, waiting until the deadline, or for ever.
    #[inline]
    pub(crate) fn lock(&self, deadline: Option<Instant>) -> Result<Held<'_>, Refused> {
        self.raw().lock(deadline).map(|taken| self.held(taken))
    }

    /// Takes the lock if it is free.
    #[inline]
    pub(crate) fn try_lock(&self) -> Result<Held<'_>, Refused> {
        self.raw().try_lock().map(|taken| self.held(taken))
    }

    #[inline]
    fn held(&self, taken: Taken) -> Held<'_> {
        Held {
            cell: self,
            abandoned: taken == Taken::Abandoned,
            thread: PhantomData,
        }
    }

    /// Copies bytes in, without the lock; others may see some of them before the rest.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.segment.copy_in(CELL_DATA + offset, bytes);
    }

    /// Copies bytes out, without the lock.
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        self.segment.copy_out(CELL_DATA + offset, bytes);
    }

    pub(crate) fn atomic_u8(&self, offset: usize) -> &AtomicU8 {
        self.segment.at(CELL_DATA + offset)
    }

    pub(crate) fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        self.segment.at(CELL_DATA + offset)
    }

    pub(crate) fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        self.segment.at(CELL_DATA + offset)
    }

    pub(crate) fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        self.segment.at(CELL_DATA + offset)
    }
}

impl Drop for SharedCell {
    fn drop(&mut self) {
        // SAFETY: it is taken here only, and not used afterwards.
        let segment = unsafe { ManuallyDrop::take(&mut self.segment) };
        // One of several that are dropped at the same time is the last.
        if let Some(segment) = Arc::into_inner(segment) {
            // A guard that was forgotten leaves the lock in its thread's list, which must not lead
            // to memory that is gone. Or the lock is held through another view of the same
            // memory, as of a copy that came in a message; which of the two cannot be seen.
            if segment.at::<RawLock>(CELL_LOCK).is_held_here() {
                let mut parked = PARKED.lock();
                parked.push(segment);
                IS_PARKED.store(true, Ordering::Relaxed);
                return;
            }
        }
        if IS_PARKED.load(Ordering::Relaxed) {
            clear_parked();
        }
    }
}

/// The lock of a [`SharedCell`], held.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    cell: &'a SharedCell,
    /// The owner before died, and nobody has said yet that the data is right.
    abandoned: bool,
    /// The lock is this thread's: another one could not give it back.
    thread: PhantomData<*const ()>,
}

impl Held<'_> {
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// Says that the data is right again.
    pub(crate) fn recover(&mut self) {
        self.abandoned = false;
    }

    pub(crate) fn raw(&self) -> &RawLock {
        self.cell.raw()
    }

    /// Gives the lock back, as dropping this does. Until [`take_again`](Self::take_again) the
    /// bytes must not be touched, and a look at them panics.
    #[inline]
    pub(crate) fn let_go(&mut self) {
        if self.abandoned {
            self.cell.raw().unlock_abandoned();
        } else {
            self.cell.raw().unlock();
        }
    }

    /// Takes the lock again after [`let_go`](Self::let_go).
    pub(crate) fn take_again(&mut self) -> Result<Taken, Refused> {
        let taken = self.cell.raw().lock(None)?;
        // What the lock protected when it was let go may have been mended since.
        self.abandoned = taken == Taken::Abandoned;
        Ok(taken)
    }

    /// The first `len` bytes, which nobody else touches while the lock is held.
    ///
    /// # Panics
    /// If this is a copy that a fork made: the parent holds the lock, not this process.
    #[inline]
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        let start = self.start(len);
        // SAFETY: `start` checked the range and that this thread holds the lock; everyone takes
        // the lock before touching the bytes, in every process.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// As [`bytes`](Self::bytes), to write.
    ///
    /// # Panics
    /// As there.
    #[inline]
    pub(crate) fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        let start = self.start(len);
        // SAFETY: as in `bytes`; and `self`, of which there is one, is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    #[inline]
    fn start(&self, len: usize) -> *mut u8 {
        assert!(
            self.cell.raw().is_mine(),
            "a guard was used in a forked child; the lock is its parent's"
        );
        self.cell.segment.span(CELL_DATA, len)
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.let_go();
    }
}
