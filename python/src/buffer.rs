//! Memory that Python objects lend and borrow, and descriptors by number.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bunshin::{Buffer, SharedMemory, front};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyMemoryError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// While so many bytes or more are copied, other threads run.
const LARGE: usize = 1 << 20;

/// Contiguous memory of a Python object, held until this is dropped.
///
/// As with every buffer, another thread may write to it meanwhile: what is then copied is
/// a mixture, as it is with `os.write`.
pub(crate) struct Borrowed {
    buffer: PyBuffer<u8>,
}

impl Borrowed {
    /// Borrows the memory of any object that lends bytes.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the memory is not contiguous"));
        }
        Ok(Self { buffer })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let len = self.buffer.len_bytes();
        if len == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps `len` bytes there while the buffer is held, which `self`
        // does, and says that they are contiguous. They may change, which a copy of bytes endures.
        unsafe { std::slice::from_raw_parts(self.buffer.buf_ptr().cast::<u8>(), len) }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.buffer.readonly()
    }

    /// Copies bytes into the object's memory, from `offset` on; the caller has checked that
    /// they fit.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> PyResult<()> {
        if self.buffer.readonly() {
            return Err(PyBufferError::new_err("the memory is read-only"));
        }
        let fits = offset
            .checked_add(bytes.len())
            .is_some_and(|end| end <= self.buffer.len_bytes());
        if !fits {
            return Err(PyBufferError::new_err("the memory is too short"));
        }
        // SAFETY: the offset lies inside, as was just checked.
        let to = unsafe { self.buffer.buf_ptr().cast::<u8>().add(offset) };
        // SAFETY: `bytes` is memory of the engine's that no Python object lends for writing,
        // so that the two do not overlap, and they fit.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }
}

/// A bytes object with these bytes.
pub(crate) fn bytes<'py>(py: Python<'py>, from: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    if from.len() < LARGE {
        return Ok(PyBytes::new(py, from));
    }
    let len = isize::try_from(from.len()).map_err(|_| PyMemoryError::new_err(()))?;
    // SAFETY: attached to the interpreter; without bytes to copy, it leaves room for so many.
    let made = unsafe { ffi::PyBytes_FromStringAndSize(ptr::null(), len) };
    // SAFETY: it is a new reference, or null with an error set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
    let made = made.cast_into::<PyBytes>()?;
    // SAFETY: it is a bytes object.
    let to = unsafe { ffi::PyBytes_AsString(made.as_ptr()) };
    // SAFETY: so long it is, and nobody else has a reference to it so far.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<MaybeUninit<u8>>(), from.len()) };
    py.detach(|| {
        front::about_to_fill(to);
        // SAFETY: both are so long; the one is new memory, which the other is not in.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr().cast(), from.len()) };
    });
    Ok(made)
}

/// How new memory comes: in large pages, or page by page.
///
/// Large pages take a fraction of the time, but not everywhere: under a hypervisor that takes back
/// memory which is free in such pages, and gives it again bit by bit, they take several times as long. So
/// they are asked for stretch by stretch, up to one that has taken longer than small ones.
struct Pages {
    /// Bytes that are filled of this stretch, and how long they have taken.
    filled: usize,
    took: Duration,
    is_large: bool,
    /// How long a MiB takes in small pages, in which the second stretch is filled.
    small: Option<Duration>,
}

/// The bytes of a stretch.
const STRETCH: usize = 32 << 20;

impl Pages {
    fn begin(memory: &mut [MaybeUninit<u8>]) -> Self {
        ask_for_large(memory);
        Self {
            filled: 0,
            took: Duration::ZERO,
            is_large: true,
            small: None,
        }
    }

    /// Notes how long some bytes have taken; `after` are those that follow.
    fn filled(&mut self, len: usize, took: Duration, after: &mut [MaybeUninit<u8>]) {
        self.filled += len;
        self.took += took;
        if self.filled < STRETCH {
            return;
        }
        // Per MiB: a stretch is as long as the pieces make it.
        let took = self.took / u32::try_from(self.filled >> 20).unwrap_or(u32::MAX).max(1);
        match self.small {
            _ if self.is_large => self.is_large = self.small.is_some_and(|small| took <= small),
            None => {
                self.small = Some(took);
                self.is_large = true;
            }
            Some(_) => {}
        }
        if self.is_large {
            ask_for_large(after);
        }
        self.filled = 0;
        self.took = Duration::ZERO;
    }
}

fn ask_for_large(memory: &mut [MaybeUninit<u8>]) {
    let len = memory.len().min(STRETCH);
    front::about_to_fill(&mut memory[..len]);
}

/// A bytes object of `len` bytes, or a bytearray, that `next` gives piece by piece; it is called with
/// the interpreter detached.
pub(crate) fn gathered(
    py: Python<'_>,
    len: u64,
    is_array: bool,
    mut next: impl FnMut() -> PyResult<Buffer<u8>> + Send,
) -> PyResult<Py<PyAny>> {
    let size = isize::try_from(len).map_err(|_| PyMemoryError::new_err(()))?;
    let made = if is_array {
        // SAFETY: attached to the interpreter; without bytes to copy, it leaves room for so many.
        unsafe { ffi::PyByteArray_FromStringAndSize(ptr::null(), size) }
    } else {
        // SAFETY: as above.
        unsafe { ffi::PyBytes_FromStringAndSize(ptr::null(), size) }
    };
    // SAFETY: it is a new reference, or null with an error set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
    let to = if is_array {
        // SAFETY: it is a bytearray.
        unsafe { ffi::PyByteArray_AsString(made.as_ptr()) }
    } else {
        // SAFETY: it is a bytes object.
        unsafe { ffi::PyBytes_AsString(made.as_ptr()) }
    };
    // SAFETY: so long it is, and nobody else has a reference to it so far.
    let to = unsafe {
        std::slice::from_raw_parts_mut(to.cast::<MaybeUninit<u8>>(), size.unsigned_abs())
    };
    py.detach(move || {
        let mut rest = to;
        let mut pages = Pages::begin(rest);
        while !rest.is_empty() {
            let piece = next()?;
            let Some((into, after)) = rest.split_at_mut_checked(piece.len()) else {
                return Err(PyValueError::new_err(
                    "a message is longer than it was said to be",
                ));
            };
            if piece.is_empty() {
                return Err(PyValueError::new_err(
                    "a message is shorter than it was said to be",
                ));
            }
            let start = Instant::now();
            // SAFETY: both are so long; the one is new memory, which the other is not in.
            unsafe {
                ptr::copy_nonoverlapping(piece.as_ptr(), into.as_mut_ptr().cast(), into.len())
            };
            pages.filled(into.len(), start.elapsed(), after);
            rest = after;
        }
        Ok(())
    })?;
    Ok(made.unbind())
}

/// Memory that came beside a message, as a writable buffer.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct SharedBuffer {
    /// Kept only so that what the address is of stays there.
    _buffer: Buffer<u8>,
    address: usize,
    len: usize,
}

impl SharedBuffer {
    pub(crate) fn new(mut buffer: Buffer<u8>) -> Self {
        // Copies what the sender can still write to.
        let bytes = buffer.as_mut_slice();
        let (address, len) = (bytes.as_mut_ptr() as usize, bytes.len());
        Self {
            _buffer: buffer,
            address,
            len,
        }
    }
}

#[pymethods]
impl SharedBuffer {
    fn __len__(&self) -> usize {
        self.len
    }

    /// As memory beside the message, or else as a copy of its bytes.
    fn __reduce_ex__<'py>(
        slf: &Bound<'py, Self>,
        protocol: i32,
    ) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyAny>,))> {
        let py = slf.py();
        if protocol < 5 {
            let builtins = py.import("builtins")?;
            let bytes = builtins.getattr("bytes")?.call1((slf,))?;
            return Ok((builtins.getattr("bytearray")?, (bytes,)));
        }
        let lent = py
            .import("pickle")?
            .getattr("PickleBuffer")?
            .call1((slf,))?;
        let arrive = py.import("bunshin._native")?.getattr("rebuffer")?;
        Ok((arrive, (lent,)))
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let (address, len) = (this.address, this.len);
        // SAFETY: the interpreter passes a view to fill in; the address is that of `len` bytes
        // that stay where they are while `slf` lives, and the view holds a reference to it.
        let rc = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                address as *mut c_void,
                isize::try_from(len).unwrap_or(isize::MAX),
                0,
                flags,
            )
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(PyErr::take(slf.py())
                .unwrap_or_else(|| PyBufferError::new_err("the memory cannot be lent")))
        }
    }
}

/// The memory that a buffer was pickled as.
#[pyfunction]
pub(crate) fn rebuffer(memory: Bound<'_, PyAny>) -> Bound<'_, PyAny> {
    memory
}

/// A copy of a descriptor that Python keeps.
pub(crate) fn copied(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("a descriptor is not negative"));
    }
    // SAFETY: it is only used to ask the system for a copy, which says if there is none.
    let lent = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(lent.try_clone_to_owned()?)
}

/// Takes over a descriptor that Python has given up.
pub(crate) fn owned(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("a descriptor is not negative"));
    }
    // SAFETY: it comes from a `detach` of Python's, whose caller owns it from then on.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Shared memory, or a part of it, as a writable buffer.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Lent {
    memory: SharedMemory,
    offset: usize,
    len: usize,
    /// How many buffers there are of it.
    exports: AtomicUsize,
    /// What is not to go before the buffers do.
    _owner: Option<Py<PyAny>>,
}

impl Lent {
    /// `len` bytes from `offset` on, which the caller has checked to be there.
    pub(crate) fn new(
        memory: SharedMemory,
        offset: usize,
        len: usize,
        owner: Option<Py<PyAny>>,
    ) -> Self {
        Self {
            memory,
            offset,
            len,
            exports: AtomicUsize::new(0),
            _owner: owner,
        }
    }

    /// Whether there are buffers of it.
    pub(crate) fn is_lent(&self) -> bool {
        self.exports.load(Ordering::Acquire) > 0
    }
}

#[pymethods]
impl Lent {
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let (offset, len) = (this.offset, this.len);
        if offset > this.memory.len() || len > this.memory.len() - offset {
            return Err(PyBufferError::new_err("the shared memory is shorter"));
        }
        let address = this.memory.as_ptr() as usize + offset;
        // SAFETY: the interpreter passes a view to fill in; the address is that of `len` bytes
        // of shared memory that stays mapped while `slf` is there, and the view holds a
        // reference to it.
        let rc = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                address as *mut c_void,
                isize::try_from(len).unwrap_or(isize::MAX),
                0,
                flags,
            )
        };
        if rc != 0 {
            return Err(PyErr::take(slf.py())
                .unwrap_or_else(|| PyBufferError::new_err("the memory cannot be lent")));
        }
        this.exports.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.exports.fetch_sub(1, Ordering::AcqRel);
    }
}
