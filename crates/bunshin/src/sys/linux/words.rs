//! Bytes that a process leaves behind, whatever ends it: a file in memory to which it appends,
//! and of which another one reads the end.
//!
//! Each append is one system call, so that nothing is lost with the process. What is appended by
//! others who have the descriptor, such as a handler of signals, goes to the end too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, OFlags};
use rustix::process::Resource;

use super::memory;

/// At least so many bytes of the end are kept, and at most twice as many by [`append`].
pub(crate) const KEPT: usize = 32 << 10;

/// Makes such a file. It takes no memory until something is written to it.
pub(crate) fn create() -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("bunshin", MemfdFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

/// The last bytes of a file, [`KEPT`] of them at most, without what has been let go of or taken
/// back. No byte that is zero is text that anybody misses.
pub(crate) fn end_of(file: BorrowedFd<'_>) -> Vec<u8> {
    let len = rustix::fs::fstat(file).map_or(0, |stat| stat.st_size.max(0) as u64);
    let kept = len.min(KEPT as u64);
    let mut bytes = vec![0; kept as usize];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file, rest, len - kept + filled as u64) {
            // Somebody has cut it.
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    bytes.truncate(filled);
    // That reads as zeros.
    bytes.retain(|byte| *byte != 0);
    bytes
}

/// The file of this process, and what tells it from all others: a program may close all
/// descriptors it does not know, and the number may be another file's then. Atomics and not a
/// lock, as it is written to while the process crashes, and in copies that have one thread of
/// many.
static FILE: AtomicI32 = AtomicI32::new(-1);
static DEVICE: AtomicU64 = AtomicU64::new(0);
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Makes a file this process's. To be called before others than the calling thread use it.
pub(crate) fn adopt(file: OwnedFd) -> io::Result<()> {
    let (device, number) = memory::number(file.as_fd())?;
    DEVICE.store(device, Ordering::Relaxed);
    NUMBER.store(number, Ordering::Relaxed);
    // It stays open until the end: that is what it is for.
    FILE.store(file.into_raw_fd(), Ordering::Release);
    Ok(())
}

/// The file of this process, and its length; nothing if it has none.
fn own() -> Option<(BorrowedFd<'static>, u64)> {
    let file = FILE.load(Ordering::Acquire);
    if file < 0 {
        return None;
    }
    // SAFETY: it is no -1, and nothing is done with it but asking, before it is known to be open
    // and the file that this process has adopted, which nobody here closes.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    let stat = rustix::fs::fstat(file).ok()?;
    let is_it = stat.st_dev == DEVICE.load(Ordering::Relaxed)
        && stat.st_ino == NUMBER.load(Ordering::Relaxed);
    is_it.then_some((file, stat.st_size.max(0) as u64))
}

/// The descriptor of this process's file, if it has one.
pub(crate) fn descriptor() -> Option<RawFd> {
    use std::os::fd::AsRawFd;
    own().map(|(file, _)| file.as_raw_fd())
}

/// Where [`append`] has written: from which byte on, and up to which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    from: u64,
    to: u64,
}

/// Appends to the file of this process, if it has one: the last [`KEPT`] bytes at most. Lets go of
/// what is too old.
pub(crate) fn append(bytes: &[u8]) -> Option<Written> {
    let (file, from) = own()?;
    let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
    // Beyond a limit on the size of files a write would be a signal that ends this process.
    let limit = rustix::process::getrlimit(Resource::Fsize).current;
    if limit.is_some_and(|limit| from.saturating_add(bytes.len() as u64) > limit) {
        return None;
    }
    let count = loop {
        match rustix::io::write(file, bytes) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.ok()?,
        }
    };
    let to = from + count as u64;
    let half = KEPT as u64;
    if to / half > from / half && to / half > 1 {
        // By one call: whoever is killed has let go of it, or has not.
        memory::release(file, 0, (to / half - 1) * half);
    }
    let written = Written { from, to };
    // Another thread, or a copy of this process, may have written since the length was asked for:
    // then this lies further on, and it is not known where.
    holds(file, written, &bytes[..count]).then_some(written)
}

/// Whether these bytes are there.
fn holds(file: BorrowedFd<'_>, written: Written, bytes: &[u8]) -> bool {
    // On the stack: nothing is allocated while a process may be crashing.
    let mut seen = [0; 512];
    let mut at = written.from;
    bytes.chunks(seen.len()).all(|chunk| {
        let read = rustix::io::pread(file, &mut seen[..chunk.len()], at);
        at += chunk.len() as u64;
        read.is_ok_and(|count| seen[..count] == *chunk)
    })
}

/// Takes back what was appended, whatever was appended since.
///
/// It becomes zeros, and the file is not cut: between a look at its length and the cut another
/// thread, a copy of this process or a handler of signals may write, and what it wrote would be
/// lost. No bytes but those that were appended are touched.
pub(crate) fn take_back(written: Written) {
    if let Some((file, _)) = own() {
        memory::release(file, written.from, written.to - written.from);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::{Mutex, PoisonError};

    use super::{FILE, KEPT, adopt, append, create, descriptor, end_of, own, take_back};
    use crate::sys::socket;

    /// A process has one file.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Runs `test` with a file that is this process's meanwhile; it is given another descriptor.
    fn with_file(test: impl FnOnce(std::os::fd::BorrowedFd<'_>)) {
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let file = create().expect("there is memory");
        let reader = socket::duplicate(file.as_fd()).expect("there is room");
        adopt(file).expect("it is open");
        test(reader.as_fd());
        let number = FILE.swap(-1, std::sync::atomic::Ordering::AcqRel);
        super::super::process::close_inherited(number);
    }

    #[test]
    fn what_was_appended_can_be_read() {
        with_file(|reader| {
            assert!(descriptor().is_some());
            assert_eq!(end_of(reader), b"");
            append(b"one\n").expect("it is there");
            append(b"").expect("it is there");
            append(b"two\xff\n").expect("it is there");
            assert_eq!(end_of(reader), b"one\ntwo\xff\n");
        });
        assert!(descriptor().is_none() && append(b"nowhere").is_none());
    }

    #[test]
    fn no_more_than_twice_as_much_as_needed_takes_memory() {
        with_file(|reader| {
            for round in 0..5000u32 {
                append(format!("{round:99}\n").as_bytes()).expect("it is there");
            }
            let blocks = rustix::fs::fstat(reader).expect("it is open").st_blocks;
            assert!(blocks * 512 <= 2 * KEPT as i64 + 8192, "{blocks}");
            let end = end_of(reader);
            assert_eq!(end.len(), KEPT);
            assert!(end.ends_with(format!("{:99}\n", 4999).as_bytes()));
            // All at once.
            let mut large = vec![b'x'; 1 << 20];
            large.push(b'!');
            append(&large).expect("it is there");
            let end = end_of(reader);
            assert!(end.len() == KEPT && end.ends_with(b"x!") && !end.contains(&0));
        });
    }

    #[test]
    fn what_is_taken_back_was_never_there() {
        with_file(|reader| {
            append(b"stays ").expect("it is there");
            let gone = append(b"goes").expect("it is there");
            take_back(gone);
            let under = append(b"under ").expect("it is there");
            append(b"over").expect("it is there");
            take_back(under);
            assert_eq!(end_of(reader), b"stays over");
        });
    }

    #[test]
    fn taking_back_loses_nobody_elses_words() {
        const LINES: usize = 1000;
        with_file(|reader| {
            let pause = || std::thread::sleep(std::time::Duration::from_micros(50));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // All of it together is less than what is kept.
                    for _ in 0..2 * LINES {
                        // As long as a line, so that a place that is wrong would be a line's.
                        if let Some(gone) = append(b"gone\n") {
                            take_back(gone);
                        }
                        pause();
                    }
                });
                for line in 0..LINES {
                    append(format!("{line:04}\n").as_bytes());
                    pause();
                }
            });
            let end = String::from_utf8(end_of(reader)).expect("it is text");
            let kept: Vec<&str> = end.lines().filter(|line| *line != "gone").collect();
            let all: Vec<String> = (0..LINES).map(|line| format!("{line:04}")).collect();
            assert_eq!(kept, all);
        });
    }

    #[test]
    fn another_file_of_its_number_is_left_alone() {
        with_file(|reader| {
            append(b"mine").expect("it is there");
            let number = descriptor().expect("it is there");
            let other = create().expect("there is memory");
            // SAFETY: replaces a descriptor that this test has made.
            let replaced = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&other), number) };
            assert_eq!(replaced, number);
            assert!(own().is_none() && append(b"not yours").is_none());
            assert_eq!(
                (end_of(other.as_fd()), end_of(reader)),
                (vec![], b"mine".to_vec())
            );
        });
    }
}
