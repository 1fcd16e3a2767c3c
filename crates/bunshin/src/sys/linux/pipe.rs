//! A pipe of the kernel's that many processes write whole records to, and one reads.
//!
//! A write of up to [`WHOLE_MAX`] bytes is done or not done (`pipe(7)`): records of several
//! writers do not mix, and a writer that is killed leaves no half of one. What was written
//! stays when its writer is gone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

/// Bytes that are written whole or not at all: `PIPE_BUF` of Linux.
pub(crate) const WHOLE_MAX: usize = 4096;

/// Bytes that are to fit in: what the kernel lets any user ask for.
const CAPACITY: usize = 1 << 20;

/// Makes a pipe that neither waits nor breaks; the one handle reads and writes.
///
/// A writer without a reader would be killed (SIGPIPE). Each holder of this handle is both,
/// so that a full pipe is the worst that a writer can meet.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let pipe = rustix::fs::open(
        format!("/proc/self/fd/{}", write.as_raw_fd()),
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    drop(read);
    // One of the usual size will do where the system gives no larger one.
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, CAPACITY);
    Ok(pipe)
}

/// Writes a record at once; false if there is no room for it.
pub(crate) fn write(pipe: BorrowedFd<'_>, record: &[u8]) -> bool {
    debug_assert!(record.len() <= WHOLE_MAX, "a record is written whole");
    loop {
        match rustix::io::write(pipe, record) {
            Err(rustix::io::Errno::INTR) => continue,
            other => return other == Ok(record.len()),
        }
    }
}

/// Reads what is there; 0 if nothing is.
pub(crate) fn read(pipe: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(pipe, &mut *bytes) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => return Ok(0),
            other => return Ok(other?),
        }
    }
}
