//! Anonymous shared memory: sealed memfds, reserved room, mappings.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes in a page; every offset given to [`Mapping::new`] is a multiple of it.
pub(crate) const PAGE: usize = 4096;

/// From this size on, a request is compared with the memory that is left before
/// any of it is taken, so that a hopeless one is an error and not a visit of the
/// out-of-memory killer.
const CHECKED_FROM: u64 = 16 << 20;

/// Memory that is never promised away, for the kernel and everyone else.
const MARGIN: u64 = 32 << 20;

/// Creates anonymous shared memory of `len` bytes whose pages exist already.
///
/// It is sealed against shrinking, so that no peer can turn an access into SIGBUS.
pub(crate) fn create(len: u64) -> io::Result<OwnedFd> {
    create_first(len, len)
}

/// As [`create`], but only the pages of the first bytes exist already. Whoever uses others
/// has them exist before.
pub(crate) fn create_first(len: u64, first: u64) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("bunshin", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    reserve(fd.as_fd(), 0, first)?;
    if first < len {
        rustix::fs::ftruncate(&fd, len)?;
    }
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(fd)
}

/// Makes the bytes `offset..offset + len` exist, growing the memory to hold them.
pub(crate) fn reserve(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    afford(len)?;
    loop {
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), offset, len) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether `len` more bytes can be had, as far as that can be told beforehand.
pub(crate) fn afford(len: u64) -> io::Result<()> {
    if len >= CHECKED_FROM {
        let left = available();
        if len.saturating_add(MARGIN) > left {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("{len} bytes of memory were asked for and {left} are left"),
            ));
        }
    }
    Ok(())
}

/// Writes bytes that are not there yet, growing the memory to hold them. Cheaper than
/// [`reserve`] and a copy, as pages that are written whole are not cleared before.
pub(crate) fn write_at(fd: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    afford(bytes.len() as u64)?;
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Appends `len` bytes to `bytes`; fails if there is no room for them, or the memory ends before.
pub(crate) fn read_at(
    fd: BorrowedFd<'_>,
    mut offset: u64,
    len: usize,
    bytes: &mut Vec<u8>,
) -> io::Result<()> {
    afford(len as u64)?;
    bytes
        .try_reserve_exact(len)
        .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
    let end = bytes.len() + len;
    about_to_fill(bytes.spare_capacity_mut());
    while bytes.len() < end {
        let left = end - bytes.len();
        let spare = &mut bytes.spare_capacity_mut()[..left];
        match rustix::io::pread(fd, spare, offset) {
            Ok(([], _)) => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok((filled, _)) => {
                let count = filled.len();
                let filled = bytes.len() + count;
                // SAFETY: `pread` has just initialised these bytes, which lie in the capacity.
                unsafe { bytes.set_len(filled) };
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives the pages of `offset..offset + len` back to the system; they read as zero.
pub(crate) fn release(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    // Failing to give memory back costs memory, not correctness.
    let _ = rustix::fs::fallocate(
        fd,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        offset,
        len,
    );
}

/// Whether all of `offset..offset + len` has been written to, so that it takes memory already.
pub(crate) fn is_written(fd: BorrowedFd<'_>, offset: u64, len: u64) -> bool {
    match rustix::fs::seek(fd, rustix::fs::SeekFrom::Hole(offset)) {
        Ok(hole) => offset.checked_add(len).is_some_and(|end| end <= hole),
        // Beyond the end, or no offset at all.
        Err(_) => false,
    }
}

/// What tells the memory behind `fd` from all other that there is.
pub(crate) fn number(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The size of the memory behind `fd`, if it is sealed against shrinking.
pub(crate) fn sealed_len(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let seals = rustix::fs::fcntl_get_seals(fd)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the descriptor is not shared memory of this library (it may still shrink)",
        ));
    }
    len(fd)
}

/// The size of the memory behind `fd`.
pub(crate) fn len(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let stat = rustix::fs::fstat(fd)?;
    u64::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Bytes this process may still use: what the system has left, or less where a
/// control group says so.
fn available() -> u64 {
    let system = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("MemAvailable:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(u64::MAX, |kib| kib * 1024);
    system.min(group_available().unwrap_or(u64::MAX))
}

/// What the memory limits of this process's control group (version 2) leave.
fn group_available() -> Option<u64> {
    let read = |path: String| std::fs::read_to_string(path).ok();
    let own = read("/proc/self/cgroup".into())?;
    let mut path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?
        .trim()
        .to_owned();
    let mut least: Option<u64> = None;
    loop {
        let folder = format!("/sys/fs/cgroup{}", path.trim_end_matches('/'));
        let limit = read(format!("{folder}/memory.max")).and_then(|t| t.trim().parse::<u64>().ok());
        let used =
            read(format!("{folder}/memory.current")).and_then(|t| t.trim().parse::<u64>().ok());
        if let (Some(limit), Some(used)) = (limit, used) {
            let left = limit.saturating_sub(used);
            least = Some(least.map_or(left, |least| least.min(left)));
        }
        match path.rfind('/') {
            Some(at) if path.len() > 1 => path.truncate(at),
            _ => return least,
        }
    }
}

/// A part of a shared memory, mapped readable and writable into this process.
///
/// The bytes may change at any time: no reference to them is handed out here.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is a range of addresses; it belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: all access goes through raw pointers or atomics, whose users say why they may.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from `offset` on, page tables filled in.
    pub(crate) fn new(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        Self::with(fd, offset, len, MapFlags::SHARED | MapFlags::POPULATE)
    }

    /// Maps `len` bytes from `offset` on, of which some do not exist as yet: whoever looks at
    /// any asks for the size of the memory first.
    pub(crate) fn ahead(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        Self::with(fd, offset, len, MapFlags::SHARED | MapFlags::NORESERVE)
    }

    /// Maps `len` bytes from `offset` on, which all exist; their pages come as they are touched,
    /// and are cleared only then.
    pub(crate) fn lazily(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        Self::with(fd, offset, len, MapFlags::SHARED)
    }

    fn with(fd: BorrowedFd<'_>, offset: u64, len: usize, flags: MapFlags) -> io::Result<Self> {
        if len == 0 || offset % PAGE as u64 != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                fd,
                offset,
            )
        }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        if len >= 2 << 20 {
            // SAFETY: the range is the mapping just made. Only a hint: ignored where unknown.
            let _ =
                unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        }
        Ok(Self { start, len })
    }

    /// The first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and whoever used it borrowed `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// From this size on, memory may have large pages in it.
const LARGE_FROM: usize = 2 << 20;

/// Has memory of this process's own, which is about to be filled, come in large pages where
/// the system has some: page by page takes several times as long as the filling.
pub(crate) fn about_to_fill(bytes: &mut [MaybeUninit<u8>]) {
    if bytes.len() < LARGE_FROM {
        return;
    }
    // Whole pages, of which the first and the last may have something else on them as well: an
    // allocator's notes lie before what it gives.
    let inside = bytes.as_mut_ptr().addr() % PAGE;
    let start = bytes.as_mut_ptr().wrapping_byte_sub(inside);
    let len = (inside + bytes.len()).next_multiple_of(PAGE);
    // SAFETY: pages of this process's. A hint, which changes nothing in them, and is ignored where
    // it is unknown.
    let _ = unsafe { rustix::mm::madvise(start.cast(), len, Advice::LinuxHugepage) };
}

/// From this size on, copies for another processor go past this one's caches.
const STREAM_FROM: usize = 2 << 20;

/// Copies bytes that another processor will read.
///
/// Long ones are written past the caches: the reader would have to fetch them from this
/// processor's, and this one would first have to fetch what it is about to overwrite.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn copy_for_another(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "a copy between different lengths");
    #[cfg(target_arch = "x86_64")]
    if to.len() >= STREAM_FROM {
        return stream(to, from);
    }
    to.copy_from_slice(from);
}

#[cfg(target_arch = "x86_64")]
fn stream(to: &mut [u8], from: &[u8]) {
    use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    const STEP: usize = size_of::<__m128i>();
    // Streaming stores want whole aligned lines; the ends go the ordinary way.
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);
    let whole = to.len() / LINE * LINE;
    let (to, to_tail) = to.split_at_mut(whole);
    let (from, from_tail) = from.split_at(whole);
    for (to, from) in to.chunks_exact_mut(LINE).zip(from.chunks_exact(LINE)) {
        let (to, from) = (to.as_mut_ptr(), from.as_ptr());
        for at in (0..LINE).step_by(STEP) {
            // SAFETY: both chunks are 64 bytes, and `at` is at most 48.
            let from = unsafe { from.add(at) };
            // SAFETY: 16 bytes from there are in the chunk; any alignment will do.
            let bytes = unsafe { _mm_loadu_si128(from.cast::<__m128i>()) };
            // SAFETY: as for `from`.
            let to = unsafe { to.add(at) };
            // SAFETY: 16 bytes from there are in the chunk, and aligned, as the chunk is.
            unsafe { _mm_stream_si128(to.cast::<__m128i>(), bytes) };
        }
    }
    // SAFETY: a fence. Streaming stores are not ordered with what publishes the bytes.
    unsafe { _mm_sfence() };
    to_tail.copy_from_slice(from_tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streamed_copy_is_exact_at_any_offset() {
        let from: Vec<u8> = (0..STREAM_FROM + 200)
            .map(|n| (n * 7 % 251) as u8)
            .collect();
        for (offset, len) in [
            (0, STREAM_FROM),
            (1, STREAM_FROM + 63),
            (17, STREAM_FROM + 100),
            (64, STREAM_FROM + 1),
        ] {
            let mut to = vec![0; len + 100];
            copy_for_another(&mut to[offset..offset + len], &from[3..3 + len]);
            assert!(
                to[offset..offset + len] == from[3..3 + len],
                "offset {offset}, length {len}"
            );
            assert!(
                to[..offset]
                    .iter()
                    .chain(&to[offset + len..])
                    .all(|byte| *byte == 0)
            );
        }
    }
}
