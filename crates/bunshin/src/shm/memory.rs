//! Shared memory as bytes, with a name or without.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::segment::Shared;
use super::tracker;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::memory::{self, Mapping};
use crate::sys::named::{self, Identity};
use crate::sys::thread;

/// Bytes that processes share.
///
/// Without a name ([`new`](Self::new)) the memory goes to other processes inside any message,
/// and goes away when the last process lets go of it: nothing can be left behind. With a name
/// ([`create`](Self::create)), any process of the same user can [`open`](Self::open) it, those
/// that run other programs included.
///
/// A named memory has one owner: the process that made it. The name is removed when the owner
/// drops its last handle and when it ends, in whichever way: a small helper process, started
/// with the first name, does it even after a SIGKILL. [`detach`](Self::detach) lets a name
/// outlive its owner. Who opens a memory, receives it in a message or inherits it by a fork
/// never owns it. Those who have it go on using it when its name is gone.
///
/// Clones, and copies in other processes, are the same memory. Everybody may write at any time:
/// `&[u8]` to it is therefore not to be had without `unsafe`. Copy in and out, or look at single
/// integers as atomics; [`Array`](crate::Array) has a lock that makes slices safe.
///
/// # Shape and units
/// Lengths and offsets are in bytes. The memory starts as zeros, at a multiple of 4096.
///
/// # Platform
/// Names are those of `shm_open(3)`: files in `/dev/shm`, which only this user may open. Another
/// process of the user can shorten such a file. Then [`read_at`](Self::read_at) and
/// [`write_at`](Self::write_at) give `Corrupt`; atomics and slices beyond the new end are SIGBUS,
/// as they are for everybody who maps a file. Memory without a name cannot be shortened.
///
/// # Source
/// CPython's `multiprocessing.shared_memory.SharedMemory`, whose processes can open these
/// and the other way round; `memfd_create(2)`.
///
/// # Examples
/// ```
/// use bunshin::{Process, SharedMemory};
///
/// let memory = SharedMemory::new(1 << 20)?;
/// let child = Process::start(|memory: SharedMemory| memory.write_at(4096, b"hello").is_ok(), (memory.clone(),))?;
/// child.join()?;
/// let mut bytes = [0; 5];
/// memory.read_at(4096, &mut bytes)?;
/// assert_eq!(&bytes, b"hello");
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone)]
pub struct SharedMemory {
    inner: Arc<Inner>,
}

struct Inner {
    fd: OwnedFd,
    map: Mapping,
    named: Option<Named>,
}

struct Named {
    name: String,
    identity: Identity,
    /// Whether this process has to remove the name.
    is_owned: AtomicBool,
    /// The process that made this handle: in a forked child it is somebody else's.
    process: u32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(named) = &self.named {
            // What a forked child goes on with stays until this process ends.
            if !thread::is_left_to_child() && named.disown() {
                match named.remove() {
                    Ok(()) => tracker::forget_removed(&named.name, named.identity),
                    Err(_) => tracker::forget(&named.name, named.identity),
                }
            }
        }
    }
}

impl Named {
    fn is_owner(&self) -> bool {
        self.is_owned.load(Ordering::Relaxed) && self.process == std::process::id()
    }

    /// Takes the ownership away; says whether it was there.
    fn disown(&self) -> bool {
        self.is_owner() && self.is_owned.swap(false, Ordering::Relaxed)
    }

    /// Removes the name, unless it is that of another memory by now.
    fn remove(&self) -> std::io::Result<()> {
        if Identity::of_name(&self.name)? != self.identity {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        named::unlink(&self.name)
    }
}

/// The file's name for a memory's name.
fn checked(name: &str) -> Result<&str> {
    // As shm_open(3) has it, with which one slash in front is usual.
    let name = name.strip_prefix('/').unwrap_or(name);
    let is_usable = (1..=255).contains(&name.len())
        && !name.contains(['/', '\0'])
        && name != "."
        && name != "..";
    is_usable.then_some(name).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("a shared memory cannot be called {name:?}: 1 to 255 bytes without a slash"),
        )
    })
}

fn mapped(fd: BorrowedFd<'_>, len: u64) -> Result<Mapping> {
    let what = || format!("map {len} bytes of shared memory");
    let size = usize::try_from(len).map_err(|_| Error::new(ErrorKind::OutOfMemory, what()))?;
    // The pages are there, and are cleared and entered when they are touched: to have the system do
    // that for all of them here takes longer than the faults of whoever touches all of them.
    Mapping::lazily(fd, 0, size).map_err(|error| Error::os(what(), error))
}

impl SharedMemory {
    fn of(fd: OwnedFd, map: Mapping, named: Option<Named>) -> Self {
        Self {
            inner: Arc::new(Inner { fd, map, named }),
        }
    }

    /// Makes memory without a name, of zeros.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes at all; `OutOfMemory` if there is not that much memory, now
    /// rather than when it is used.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{ErrorKind, SharedMemory};
    ///
    /// assert_eq!(SharedMemory::new(100)?.to_vec()?, [0; 100]);
    /// assert_eq!(SharedMemory::new(1 << 50).unwrap_err().kind(), ErrorKind::OutOfMemory);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn new(len: usize) -> Result<Self> {
        Self::check_len(len)?;
        let fd = memory::create(len as u64)
            .map_err(|error| Error::os(format!("make {len} bytes of shared memory"), error))?;
        let map = mapped(fd.as_fd(), len as u64)?;
        Ok(Self::of(fd, map, None))
    }

    fn check_len(len: usize) -> Result<()> {
        if len == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a shared memory has one byte at least",
            ));
        }
        Ok(())
    }

    /// Makes memory of zeros that other processes can open by its name. This process owns it.
    ///
    /// The name exists from the moment on at which all of the memory does.
    ///
    /// # Errors
    /// `Os` with `EEXIST` if the name is taken; otherwise as [`new`](Self::new), and
    /// `InvalidInput` for a name with a slash in it, or of more than 255 bytes.
    ///
    /// # Examples
    /// ```
    /// use bunshin::SharedMemory;
    ///
    /// let name = format!("example-{}", std::process::id());
    /// let memory = SharedMemory::create(&name, 64)?;
    /// SharedMemory::open(&name)?.write_at(0, &[7])?;
    /// assert_eq!(memory.to_vec()?[0], 7);
    /// drop(memory);
    /// assert!(SharedMemory::open(&name).is_err());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn create(name: &str, len: usize) -> Result<Self> {
        let name = checked(name)?;
        Self::check_len(len)?;
        let failed = |error| {
            Error::os(
                format!("make the shared memory {name:?} of {len} bytes"),
                error,
            )
        };
        let fd = named::create(len as u64).map_err(failed)?;
        let map = mapped(fd.as_fd(), len as u64)?;
        let identity = Identity::of_file(fd.as_fd()).map_err(failed)?;
        // Before the name exists: killed in between, it would stay for ever.
        tracker::watch(name, identity)?;
        if let Err(error) = named::publish(fd.as_fd(), name) {
            tracker::forget(name, identity);
            return Err(failed(error));
        }
        let named = Named::new(name, identity, true);
        Ok(Self::of(fd, map, Some(named)))
    }

    /// Opens a memory by its name. This process does not own it.
    ///
    /// # Errors
    /// `Os` with `ENOENT` if there is none; `Corrupt` if it is no memory, or empty;
    /// `OutOfMemory` if whoever made it had not reserved its memory, and there is none left.
    pub fn open(name: &str) -> Result<Self> {
        let name = checked(name)?;
        let failed = |error| Error::os(format!("open the shared memory {name:?}"), error);
        let (fd, len, identity) = named::open(name).map_err(failed)?;
        if len == 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("open the shared memory {name:?}: it is empty"),
            ));
        }
        let map = mapped(fd.as_fd(), len)?;
        let named = Named::new(name, identity, false);
        Ok(Self::of(fd, map, Some(named)))
    }

    /// What came in a message.
    pub(crate) fn attach(fd: OwnedFd, len: u64, name: Option<&str>) -> Result<Self> {
        let failed = |error| Error::os("attach to shared memory", error);
        let named = match name {
            // Nobody can shorten it: then no access can fail later.
            None => {
                if memory::sealed_len(fd.as_fd()).map_err(failed)? < len {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("shared memory of {len} bytes arrived shorter"),
                    ));
                }
                None
            }
            Some(name) => {
                let name = checked(name)?;
                if memory::len(fd.as_fd()).map_err(failed)? < len {
                    return Err(Self::shortened(name));
                }
                let identity = Identity::of_file(fd.as_fd()).map_err(failed)?;
                Some(Named::new(name, identity, false))
            }
        };
        if len == 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "shared memory of no bytes arrived",
            ));
        }
        let map = mapped(fd.as_fd(), len)?;
        Ok(Self::of(fd, map, named))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }

    /// How many bytes there are.
    #[doc(alias = "size")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.map.len()
    }

    /// Whether there are none, which is never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name, if there is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.inner.named.as_ref().map(|named| named.name.as_str())
    }

    /// Whether the name is removed with this process.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        self.inner.named.as_ref().is_some_and(Named::is_owner)
    }

    /// Removes the name, now. The memory stays for those who have it.
    ///
    /// Any process may do this, its owner or not.
    ///
    /// # Errors
    /// `Os` with `ENOENT` if the name is gone, or that of another memory by now;
    /// `InvalidInput` for memory without a name.
    pub fn unlink(&self) -> Result<()> {
        let named = self.named()?;
        let removed = named.remove();
        named.disown();
        // Also where another handle of this process, or none any more, owns it.
        match &removed {
            Ok(()) => tracker::forget_removed(&named.name, named.identity),
            Err(_) => tracker::forget(&named.name, named.identity),
        }
        removed.map_err(|error| {
            Error::os(
                format!("remove the name {:?} of a shared memory", named.name),
                error,
            )
        })
    }

    /// Removes a name that somebody has left behind.
    ///
    /// # Errors
    /// `Os` with `ENOENT` if there is no such name.
    pub fn unlink_name(name: &str) -> Result<()> {
        let name = checked(name)?;
        named::unlink(name).map_err(|error| Error::os(format!("remove the name {name:?}"), error))
    }

    /// Lets the name outlive this process and all handles, until somebody
    /// [`unlink`](Self::unlink)s it.
    ///
    /// # Errors
    /// `InvalidInput` for memory without a name.
    pub fn detach(&self) -> Result<()> {
        let named = self.named()?;
        if named.disown() {
            tracker::forget(&named.name, named.identity);
        }
        Ok(())
    }

    /// Has the name outlive this handle and its clones, but not the process that made it.
    pub(crate) fn leave_to_process(&self) {
        if let Some(named) = &self.inner.named {
            named.disown();
        }
    }

    fn named(&self) -> Result<&Named> {
        self.inner
            .named
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "this shared memory has no name"))
    }

    /// Lets go of the memory. Dropping the handle does the same.
    pub fn close(self) {
        drop(self);
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        if offset > self.len() || len > self.len() - offset {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{len} bytes from {offset} on, of a shared memory of {}",
                    self.len()
                ),
            ));
        }
        Ok(())
    }

    fn shortened(name: &str) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            format!("somebody has shortened the shared memory {name:?}"),
        )
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// While another process writes, these may be old and new bytes mixed.
    ///
    /// # Errors
    /// `InvalidInput` if there are not so many bytes; `Corrupt` if there were and somebody has
    /// shortened the file of a named memory.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        let Some(named) = &self.inner.named else {
            // SAFETY: `check` checked the range.
            let from = unsafe { self.inner.map.start().as_ptr().add(offset) };
            // SAFETY: as above; the copy is ours, whatever others write meanwhile.
            unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
            return Ok(());
        };
        // The system copies: where the file has been shortened, that is no SIGBUS.
        let read = named::read_at(self.fd(), offset as u64, bytes)
            .map_err(|error| Error::os("read shared memory", error))?;
        if read < bytes.len() {
            return Err(Self::shortened(&named.name));
        }
        Ok(())
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        let Some(named) = &self.inner.named else {
            // SAFETY: `check` checked the range.
            let to = unsafe { self.inner.map.start().as_ptr().add(offset) };
            // SAFETY: as above; others who read it get bytes, of which nobody safe has a reference.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
            return Ok(());
        };
        let len =
            memory::len(self.fd()).map_err(|error| Error::os("write shared memory", error))?;
        // Writing past the end would make the file longer again, with memory nobody reserved.
        if len < (offset + bytes.len()) as u64 {
            return Err(Self::shortened(&named.name));
        }
        named::write_at(self.fd(), offset as u64, bytes)
            .map_err(|error| Error::os("write shared memory", error))
    }

    /// A copy of all bytes.
    ///
    /// # Errors
    /// `Corrupt`, as [`read_at`](Self::read_at).
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.len()];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// An atomic at `offset`.
    pub(crate) fn word<T: Shared>(&self, offset: usize) -> Result<&T> {
        self.check(offset, size_of::<T>())?;
        if offset % align_of::<T>() != 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "an integer of {} bytes cannot lie at {offset}",
                    size_of::<T>()
                ),
            ));
        }
        // SAFETY: `check` checked the range.
        let at = unsafe { self.as_ptr().add(offset) }.cast::<T>();
        // SAFETY: in the mapping, which starts at a page, and aligned; any bytes are a valid `T`, which
        // only changes through atomics.
        Ok(unsafe { &*at })
    }

    /// The address of the first byte, for code of other languages.
    ///
    /// It is valid while a handle to this memory exists in this process.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.map.start().as_ptr()
    }

    /// The bytes as a slice.
    ///
    /// # Safety
    /// 1. Until the slice is gone, nobody writes to the memory, in any process.
    /// 2. If it has a name, nobody shortens its file.
    ///
    /// # Examples
    /// ```
    /// let memory = bunshin::SharedMemory::new(4)?;
    /// memory.write_at(0, b"abcd")?;
    /// // SAFETY: nobody else has this memory.
    /// assert_eq!(unsafe { memory.as_slice() }, b"abcd");
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    #[must_use]
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is that long and lives as long as `self`; the rest is the caller's.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// The bytes as a slice, to write to.
    ///
    /// # Safety
    /// Until the slice is gone, nobody else reads or writes the memory, in any process and by any
    /// handle, clones included; and if it has a name, nobody shortens its file.
    #[must_use]
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is that long and lives as long as `self`; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) }
    }
}

impl Named {
    fn new(name: &str, identity: Identity, is_owned: bool) -> Self {
        Self {
            name: name.to_owned(),
            identity,
            is_owned: AtomicBool::new(is_owned),
            process: std::process::id(),
        }
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "SharedMemory({name:?})[{}]", self.len()),
            None => write!(f, "SharedMemory[{}]", self.len()),
        }
    }
}
