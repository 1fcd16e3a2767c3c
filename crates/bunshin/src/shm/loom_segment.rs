//! Under loom: a segment whose objects are made when they are first asked for.
//!
//! Each object has the address of a place in a segment, and lives outside of it. Bytes
//! that are copied in and out are cells that loom watches: an access that another thread's
//! access does not come before or after is a failure.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use loom::cell::UnsafeCell;

use super::layout::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::memory;

/// Types that may lie in memory that other processes write.
///
/// # Safety
/// As of the trait that this one stands for.
pub(crate) unsafe trait Shared: Default + 'static {}

macro_rules! shared {
    ($($atomic:ident)*) => {$(
        // SAFETY: an atomic of any value.
        unsafe impl Shared for std::sync::atomic::$atomic {}
        // SAFETY: an atomic of any value.
        unsafe impl Shared for loom::sync::atomic::$atomic {}
    )*};
}
shared!(AtomicU8 AtomicU16 AtomicU32 AtomicU64);

/// A segment that is not mapped anywhere.
pub(crate) struct Segment {
    len: usize,
    /// For the blocks of a heap, which are mapped in earnest.
    fd: OnceLock<OwnedFd>,
    /// Neither map ever loses an entry, and what is in the boxes stays where it is.
    objects: Mutex<HashMap<usize, Box<dyn Any>>>,
    bytes: Mutex<HashMap<usize, Box<UnsafeCell<u8>>>>,
}

// SAFETY: the maps are behind locks, and what they hold may be shared as its type says.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    pub(crate) fn create(_kind: Kind, len: usize) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            len,
            fd: OnceLock::new(),
            objects: Mutex::default(),
            bytes: Mutex::default(),
        }))
    }

    pub(crate) fn create_first(kind: Kind, len: usize, _first: usize) -> Result<Arc<Self>> {
        Self::create(kind, len)
    }

    pub(crate) fn attach_first(
        fd: OwnedFd,
        kind: Kind,
        least: usize,
        _first: usize,
    ) -> Result<Arc<Self>> {
        Self::attach(fd, kind, least)
    }

    pub(crate) fn attach(_fd: OwnedFd, _kind: Kind, _least: usize) -> Result<Arc<Self>> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "attach to a segment of a model",
        ))
    }

    pub(crate) fn at<T: Shared>(&self, offset: usize) -> &T {
        assert!(offset < self.len, "outside of the segment");
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let object = objects
            .entry(offset)
            .or_insert_with(|| Box::new(T::default()));
        let object: *const T = object.downcast_ref().expect("one place has one type");
        // SAFETY: in a box that lives as long as `self`.
        unsafe { &*object }
    }

    fn byte(&self, offset: usize) -> &UnsafeCell<u8> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let byte: *const UnsafeCell<u8> = &raw const **bytes
            .entry(offset)
            .or_insert_with(|| Box::new(UnsafeCell::new(0)));
        // SAFETY: in a box that lives as long as `self`.
        unsafe { &*byte }
    }

    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.span(offset, bytes.len());
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: loom fails the test if anybody else uses the cell meanwhile.
            self.byte(offset + at).with_mut(|to| unsafe { *to = *byte });
        }
    }

    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        self.span(offset, bytes.len());
        for (at, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: as in `copy_in`.
            *byte = self.byte(offset + at).with(|from| unsafe { *from });
        }
    }

    /// Checks the range. There is nothing at the address.
    pub(crate) fn span(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "outside of the segment"
        );
        std::ptr::dangling_mut()
    }

    /// All of a model is there.
    pub(crate) fn first(&self) -> usize {
        self.len
    }

    pub(crate) fn reserve(&self, _offset: usize, _len: usize) -> std::io::Result<()> {
        Ok(())
    }

    pub(crate) fn is_written(&self, _offset: usize, _len: usize) -> bool {
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").finish_non_exhaustive()
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
            .get_or_init(|| memory::create(self.len as u64).expect("memory for a model"))
            .as_fd()
    }
}
