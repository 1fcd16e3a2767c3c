//! Shared memory with a name: files in `/dev/shm`, where `shm_open(3)` puts them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use super::memory;

const FOLDER: &str = "/dev/shm";

/// Which file it is, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Identity {
    fn of(stat: &rustix::fs::Stat) -> Self {
        // The widths of these fields differ between processors.
        #[allow(clippy::unnecessary_cast)]
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
        }
    }

    /// Of an open file.
    pub(crate) fn of_file(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstat(fd)?))
    }

    /// Of the file that has this name now.
    pub(crate) fn of_name(name: &str) -> io::Result<Self> {
        let stat = rustix::fs::statat(CWD, path(name), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self::of(&stat))
    }
}

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

/// Makes a file of `len` bytes whose pages exist, without a name as yet.
pub(crate) fn create(len: u64) -> io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(FOLDER, flags, Mode::RUSR | Mode::WUSR)?;
    memory::reserve(borrow(&fd), 0, len)?;
    Ok(fd)
}

fn borrow(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

/// Gives a file its name. Fails if another one has it.
pub(crate) fn publish(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // Older systems refuse this to most users, which is not asked again then.
    static IS_REFUSED: AtomicBool = AtomicBool::new(false);
    if !IS_REFUSED.load(Ordering::Relaxed) {
        match rustix::fs::linkat(fd, "", CWD, path(name), AtFlags::EMPTY_PATH) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::PERM) => {
                IS_REFUSED.store(true, Ordering::Relaxed);
            }
            linked => return Ok(linked?),
        }
    }
    let from = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::linkat(CWD, from, CWD, path(name), AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Opens the file of that name, and says how long it is and which. All of its pages exist then,
/// also where its maker had not reserved them.
pub(crate) fn open(name: &str) -> io::Result<(OwnedFd, u64, Identity)> {
    // Without NONBLOCK, somebody's FIFO of that name would be waited for.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path(name), flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a file",
        ));
    }
    let len = u64::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidData)?;
    // In units of 512 bytes, whatever the size of a block is.
    let has = u64::try_from(stat.st_blocks).map_or(0, |blocks| blocks.saturating_mul(512));
    if has < len {
        memory::reserve(borrow(&fd), 0, len)?;
    }
    Ok((fd, len, Identity::of(&stat)))
}

/// Removes a name.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    Ok(rustix::fs::unlink(path(name))?)
}

/// Reads bytes of a file; fewer than asked for at its end.
pub(crate) fn read_at(fd: BorrowedFd<'_>, mut offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(fd, &mut bytes[done..], offset) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                offset += n as u64;
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// Writes bytes to a file.
pub(crate) fn write_at(fd: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
