//! A piece of anonymous shared memory with a checked header.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::layout::{HEADER, Kind, MAGIC, VERSION};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::memory::{self, Mapping};

/// Types that may lie in memory that other processes write.
///
/// # Safety
/// Every field is an atomic (or is touched only by the holder of a lock word in the
/// same struct), every bit pattern is valid, there is no padding that is read, and
/// the layout is fixed (`repr(C)`).
pub(crate) unsafe trait Shared {}

// SAFETY: an atomic of any value.
unsafe impl Shared for AtomicU8 {}
// SAFETY: an atomic of any value.
unsafe impl Shared for AtomicU16 {}
// SAFETY: an atomic of any value.
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic of any value.
unsafe impl Shared for AtomicU64 {}

/// A segment, mapped into this process from its start up to a fixed length.
#[derive(Debug)]
pub(crate) struct Segment {
    fd: OwnedFd,
    map: Mapping,
    /// Bytes at the start that are known to be there.
    first: usize,
}

impl Segment {
    /// Makes a segment of `len` bytes; the memory exists when this returns.
    pub(crate) fn create(kind: Kind, len: usize) -> Result<Arc<Self>> {
        Self::create_first(kind, len, len)
    }

    /// As [`create`](Self::create), but only the first bytes exist when this returns. Of the others,
    /// each is reserved before it is written for the first time.
    pub(crate) fn create_first(kind: Kind, len: usize, first: usize) -> Result<Arc<Self>> {
        let what = || format!("create a shared memory segment of {len} bytes");
        let fd = memory::create_first(len as u64, first as u64)
            .map_err(|error| Error::os(what(), error))?;
        let map = mapped(fd.as_fd(), len).map_err(|error| Error::os(what(), error))?;
        let segment = Self { fd, map, first };
        segment.at::<AtomicU32>(8).store(VERSION, Ordering::Relaxed);
        segment
            .at::<AtomicU32>(12)
            .store(kind as u32, Ordering::Relaxed);
        segment
            .at::<AtomicU64>(16)
            .store(len as u64, Ordering::Relaxed);
        segment.at::<AtomicU64>(0).store(MAGIC, Ordering::Release);
        Ok(Arc::new(segment))
    }

    /// Maps a segment that came from another process, after checking that it is one.
    pub(crate) fn attach(fd: OwnedFd, kind: Kind, least: usize) -> Result<Arc<Self>> {
        Self::attach_first(fd, kind, least, usize::MAX)
    }

    /// As [`attach`](Self::attach), for a segment of which only the first bytes are sure to be there.
    pub(crate) fn attach_first(
        fd: OwnedFd,
        kind: Kind,
        least: usize,
        first: usize,
    ) -> Result<Arc<Self>> {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::Corrupt,
                format!("attach to a shared memory segment: {why}"),
            )
        };
        let len = memory::sealed_len(fd.as_fd())
            .map_err(|error| Error::os("attach to a shared memory segment", error))?;
        if len < HEADER as u64 {
            return Err(bad("it is too small"));
        }
        let head = Mapping::new(fd.as_fd(), 0, HEADER)
            .map_err(|error| Error::os("map a segment's header", error))?;
        let head = View(&head);
        if head.at::<AtomicU64>(0).load(Ordering::Acquire) != MAGIC {
            return Err(bad("it does not start as one"));
        }
        let version = head.at::<AtomicU32>(8).load(Ordering::Relaxed);
        if version != VERSION {
            return Err(bad(&format!(
                "its layout has version {version}, and this program knows {VERSION}"
            )));
        }
        if head.at::<AtomicU32>(12).load(Ordering::Relaxed) != kind as u32 {
            return Err(bad("it holds something else"));
        }
        let fixed = head.at::<AtomicU64>(16).load(Ordering::Relaxed);
        if fixed > len || fixed < least as u64 {
            return Err(bad("its length is wrong"));
        }
        let fixed = usize::try_from(fixed).map_err(|_| bad("its length is wrong"))?;
        let map = mapped(fd.as_fd(), fixed).map_err(|error| Error::os("map a segment", error))?;
        let first = first.min(fixed);
        // Whoever made it has written to each page of those.
        if first < fixed && !memory::is_written(fd.as_fd(), 0, first as u64) {
            return Err(bad("some of it is missing"));
        }
        Ok(Arc::new(Self { fd, map, first }))
    }

    /// The object at `offset`.
    ///
    /// # Panics
    /// If it does not lie in the segment, aligned: a mistake in this crate, as
    /// offsets from peers are checked before they get here.
    #[inline]
    pub(crate) fn at<T: Shared>(&self, offset: usize) -> &T {
        View(&self.map).at(offset)
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If they do not lie in the segment.
    #[inline]
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let to = self.span(offset, bytes.len());
        // SAFETY: `span` checked the range; a peer that reads it meanwhile gets bytes that it
        // checks, and our own side never has a reference to them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// If they do not lie in the segment.
    #[inline]
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.span(offset, bytes.len());
        // SAFETY: `span` checked the range; the copy is ours, whatever a peer writes.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// The address of `len` bytes at `offset`.
    ///
    /// # Panics
    /// If they do not lie in the segment.
    #[inline]
    pub(crate) fn span(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.map.len() && len <= self.map.len() - offset,
            "outside of the segment"
        );
        // SAFETY: the result lies in the mapping, or one past its end.
        unsafe { self.map.start().as_ptr().add(offset) }
    }

    /// Bytes at the start that were there when this process got the segment.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// Makes bytes exist that are about to be written.
    pub(crate) fn reserve(&self, offset: usize, len: usize) -> std::io::Result<()> {
        memory::reserve(self.fd.as_fd(), offset as u64, len as u64)
    }

    /// Whether the bytes are on pages that have been written to.
    pub(crate) fn is_written(&self, offset: usize, len: usize) -> bool {
        memory::is_written(self.fd.as_fd(), offset as u64, len as u64)
    }

    /// Bytes of the fixed part, which is mapped.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Segments up to here are mapped with their pages, which most of them use all of.
const SHORT: usize = 4 * memory::PAGE;

/// Maps the fixed part of a segment. Of a long one most is not used by most: its pages exist, and are
/// cleared and mapped as they are touched.
fn mapped(fd: BorrowedFd<'_>, len: usize) -> std::io::Result<Mapping> {
    match len {
        ..=SHORT => Mapping::new(fd, 0, len),
        _ => Mapping::lazily(fd, 0, len),
    }
}

/// Checked access to the objects in a mapping.
pub(crate) struct View<'a>(pub(crate) &'a Mapping);

impl<'a> View<'a> {
    #[inline]
    pub(crate) fn at<T: Shared>(&self, offset: usize) -> &'a T {
        assert!(
            offset <= self.0.len() && size_of::<T>() <= self.0.len() - offset,
            "outside of the segment"
        );
        // SAFETY: the assertion above.
        let address = unsafe { self.0.start().as_ptr().add(offset) }.cast::<T>();
        assert!(address.is_aligned(), "misaligned in the segment");
        // SAFETY: in the mapping, aligned, and any bytes are a valid `T`, which only
        // changes through atomics.
        unsafe { &*address }
    }
}
