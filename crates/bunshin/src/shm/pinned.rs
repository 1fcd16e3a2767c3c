//! Places in shared memory whose bounds were checked once.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::memory::SharedMemory;
use super::segment::Shared;
use crate::error::{Error, ErrorKind, Result};

/// An object in a shared memory, which it keeps.
#[derive(Debug)]
pub(crate) struct Pinned<T> {
    at: NonNull<T>,
    memory: SharedMemory,
}

// SAFETY: it is a reference to a `T` in memory that is mapped while `memory` is there.
unsafe impl<T: Shared + Sync> Send for Pinned<T> {}
// SAFETY: as above.
unsafe impl<T: Shared + Sync> Sync for Pinned<T> {}

impl<T> Clone for Pinned<T> {
    fn clone(&self) -> Self {
        Self {
            at: self.at,
            memory: self.memory.clone(),
        }
    }
}

impl<T: Shared> Pinned<T> {
    /// The object at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` if it does not lie there, aligned.
    pub(crate) fn new(memory: &SharedMemory, offset: usize) -> Result<Self> {
        Ok(Self {
            at: NonNull::from(memory.word::<T>(offset)?),
            memory: memory.clone(),
        })
    }

    #[inline]
    pub(crate) fn get(&self) -> &T {
        // SAFETY: `word` has checked that a `T` lies there, and `memory` keeps it mapped.
        unsafe { self.at.as_ref() }
    }
}

/// A row of values of one size in shared memory, which are read and written one by one, each in
/// one step.
#[derive(Clone, Debug)]
pub struct Row {
    start: NonNull<u8>,
    /// How many values, and bytes in each: 1, 2, 4 or 8.
    len: usize,
    size: usize,
    memory: SharedMemory,
    offset: usize,
}

// SAFETY: it is a place in memory that is mapped while `memory` is there; all access is atomic.
unsafe impl Send for Row {}
// SAFETY: as above.
unsafe impl Sync for Row {}

impl Row {
    /// `len` values of `size` bytes, from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` if they do not lie there, aligned, or `size` is none of 1, 2, 4 and 8.
    pub fn new(memory: &SharedMemory, offset: usize, size: usize, len: usize) -> Result<Self> {
        let end = len
            .checked_mul(size)
            .and_then(|len| len.checked_add(offset));
        let fits = end.is_some_and(|end| end <= memory.len());
        let start = memory.as_ptr().wrapping_add(offset);
        let is_size = matches!(size, 1 | 2 | 4 | 8);
        match NonNull::new(start) {
            Some(start) if fits && is_size && start.as_ptr().addr() % size == 0 => Ok(Self {
                start,
                len,
                size,
                memory: memory.clone(),
                offset,
            }),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{len} values of {size} bytes cannot lie at {offset} in a shared memory of {}",
                    memory.len()
                ),
            )),
        }
    }

    /// How many values there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value at `index`; the bits beyond its size are zero.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        let at = self.at(index);
        match self.size {
            // SAFETY: `at` has checked that there are so many bytes, and `new` their alignment;
            // atomics may be read while others write.
            1 => unsafe { AtomicU8::from_ptr(at) }
                .load(Ordering::Relaxed)
                .into(),
            // SAFETY: as above.
            2 => unsafe { AtomicU16::from_ptr(at.cast()) }
                .load(Ordering::Relaxed)
                .into(),
            // SAFETY: as above.
            4 => unsafe { AtomicU32::from_ptr(at.cast()) }
                .load(Ordering::Relaxed)
                .into(),
            // SAFETY: as above.
            _ => unsafe { AtomicU64::from_ptr(at.cast()) }.load(Ordering::Relaxed),
        }
    }

    /// Writes the lowest bits to the value at `index`.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline]
    pub fn store(&self, index: usize, bits: u64) {
        let at = self.at(index);
        match self.size {
            // SAFETY: as in `load`.
            1 => unsafe { AtomicU8::from_ptr(at) }.store(bits as u8, Ordering::Relaxed),
            // SAFETY: as above.
            2 => unsafe { AtomicU16::from_ptr(at.cast()) }.store(bits as u16, Ordering::Relaxed),
            // SAFETY: as above.
            4 => unsafe { AtomicU32::from_ptr(at.cast()) }.store(bits as u32, Ordering::Relaxed),
            // SAFETY: as above.
            _ => unsafe { AtomicU64::from_ptr(at.cast()) }.store(bits, Ordering::Relaxed),
        }
    }

    #[inline]
    fn at(&self, index: usize) -> *mut u8 {
        assert!(index < self.len, "outside of the shared values");
        // SAFETY: `new` has checked that all of the values lie in the memory.
        unsafe { self.start.as_ptr().add(index * self.size) }
    }

    /// The memory, and where in it the value at `index` lies.
    pub fn place(&self, index: usize) -> (&SharedMemory, usize) {
        (&self.memory, self.offset + index * self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_what_lies_in_it_and_no_more() {
        for size in [1, 2, 4, 8] {
            let memory = SharedMemory::new(64).unwrap();
            let row = Row::new(&memory, 16, size, 3).unwrap();
            row.store(2, 0xff_fedc_ba98_7654);
            let kept = u64::MAX >> (64 - 8 * size);
            assert_eq!(row.load(2), 0xff_fedc_ba98_7654 & kept);
            assert_eq!(row.load(1), 0);
            assert!(std::panic::catch_unwind(|| row.load(3)).is_err());
            assert!(Row::new(&memory, 16, size, 48 / size).is_ok());
            assert!(Row::new(&memory, 16, size, 48 / size + 1).is_err());
            assert!(Row::new(&memory, 16, size, usize::MAX).is_err());
        }
        let memory = SharedMemory::new(64).unwrap();
        assert!(Row::new(&memory, 4, 8, 1).is_err(), "not aligned");
        assert!(Row::new(&memory, 0, 3, 1).is_err(), "no size");
    }
}
