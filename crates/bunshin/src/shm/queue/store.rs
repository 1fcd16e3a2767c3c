//! The memory behind a queue's fixed part: chunks that this process maps, and extents that
//! it only reads and writes.

use std::os::fd::AsFd;

use super::super::layout::QUEUE_CHUNK;
use super::super::segment::Segment;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::memory::{self, Mapping};

/// Chunks that a process keeps mapped on each side of a queue.
const MAPPED: usize = 16;

/// One side's mapped chunks.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// Which chunk lies in each place, and where.
    mapped: [Option<(u64, Mapping)>; MAPPED],
}

impl Store {
    /// Copies bytes in. All of them lie in one chunk.
    #[inline]
    pub(super) fn put(&mut self, segment: &Segment, at: u64, bytes: &[u8]) -> Result<()> {
        let to = self.span(segment, at, bytes.len())?;
        // SAFETY: `span` checked the range; nobody has a reference to it, in any process.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies bytes out. All of them lie in one chunk.
    #[inline]
    pub(super) fn get(&mut self, segment: &Segment, at: u64, bytes: &mut [u8]) -> Result<()> {
        let from = self.span(segment, at, bytes.len())?;
        // SAFETY: `span` checked the range; the copy is ours, whatever a peer writes.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Appends bytes. All of them lie in one chunk.
    #[inline]
    pub(super) fn append(
        &mut self,
        segment: &Segment,
        at: u64,
        len: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let from = self.span(segment, at, len)?;
        bytes.reserve(len);
        let to = bytes.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `span` checked the one range, and `reserve` made the other.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        let len = bytes.len() + len;
        // SAFETY: the bytes up to there have just been written.
        unsafe { bytes.set_len(len) };
        Ok(())
    }

    #[inline]
    fn span(&mut self, segment: &Segment, at: u64, len: usize) -> Result<*mut u8> {
        let inside = at % QUEUE_CHUNK;
        let chunk = at - inside;
        if len as u64 > QUEUE_CHUNK - inside {
            return Err(corrupt("a queue's item goes beyond its chunk"));
        }
        let place = (chunk / QUEUE_CHUNK) as usize % MAPPED;
        let start = match &self.mapped[place] {
            Some((known, map)) if *known == chunk => map.start(),
            _ => self.map(segment, chunk, place)?,
        };
        // SAFETY: the mapping has the length of a chunk, in which `inside` lies.
        Ok(unsafe { start.as_ptr().add(inside as usize) })
    }

    #[cold]
    fn map(
        &mut self,
        segment: &Segment,
        chunk: u64,
        place: usize,
    ) -> Result<std::ptr::NonNull<u8>> {
        let os = |error| Error::os("map a part of a queue", error);
        let len = memory::len(segment.as_fd()).map_err(os)?;
        // An access beyond the end would be a crash.
        if chunk < QUEUE_CHUNK || chunk.checked_add(QUEUE_CHUNK).is_none_or(|end| end > len) {
            return Err(corrupt("a queue's positions make no sense"));
        }
        let map = Mapping::new(segment.as_fd(), chunk, QUEUE_CHUNK as usize).map_err(os)?;
        let start = map.start();
        self.mapped[place] = Some((chunk, map));
        Ok(start)
    }
}

/// Makes the memory of a chunk exist.
pub(super) fn reserve(segment: &Segment, chunk: u64) -> Result<()> {
    memory::reserve(segment.as_fd(), chunk, QUEUE_CHUNK)
        .map_err(|error| Error::os("make room in a queue", error))
}

/// Writes a large item, whose parts come one behind the other.
pub(super) fn write(segment: &Segment, at: u64, parts: &[&[u8]]) -> Result<()> {
    if at < QUEUE_CHUNK {
        return Err(corrupt("a queue's large item lies where its locks are"));
    }
    let mut end = at;
    let written = parts.iter().try_for_each(|part| {
        let from = end;
        end += part.len() as u64;
        memory::write_at(segment.as_fd(), from, part)
    });
    written.map_err(|error| {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        // What was written before it failed.
        memory::release(
            segment.as_fd(),
            at,
            (len as u64).next_multiple_of(memory::PAGE as u64),
        );
        Error::os(format!("put an item of {len} bytes into a queue"), error)
    })
}

/// Appends a large item to `bytes`.
pub(super) fn read(segment: &Segment, at: u64, len: u64, bytes: &mut Vec<u8>) -> Result<()> {
    let end = at.checked_add(len);
    let size = memory::len(segment.as_fd()).map_err(|error| Error::os("look at a queue", error))?;
    match usize::try_from(len) {
        Ok(len) if end.is_some_and(|end| end <= size) => {
            memory::read_at(segment.as_fd(), at, len, bytes).map_err(|error| {
                Error::os(format!("take an item of {len} bytes from a queue"), error)
            })
        }
        _ => Err(corrupt("a queue's large item lies outside of it")),
    }
}

/// Gives memory back.
pub(super) fn release(segment: &Segment, at: u64, len: u64) {
    // The number is another process's. The first chunk has the locks: one that became zeros while
    // it is held would stay in this thread's list, and outlive its memory.
    if at >= QUEUE_CHUNK {
        memory::release(segment.as_fd(), at, len);
    }
}

/// Gives all memory from `at` on back.
pub(super) fn release_from(segment: &Segment, at: u64) {
    if let Ok(len) = memory::len(segment.as_fd()) {
        if len > at {
            memory::release(segment.as_fd(), at, len - at);
        }
    }
}

pub(super) fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::layout::{Kind, QUEUE_FIXED};

    #[test]
    fn no_number_of_another_process_reaches_the_locks() {
        let segment = Segment::create(Kind::Queue, QUEUE_FIXED).unwrap();
        reserve(&segment, QUEUE_CHUNK).unwrap();
        segment.copy_in(QUEUE_FIXED - 8, &[7; 8]);
        for at in [0, 4096, QUEUE_CHUNK - 1] {
            release(&segment, at, QUEUE_CHUNK);
            assert!(write(&segment, at, &[&[1; 4096]]).is_err());
        }
        release(&segment, QUEUE_CHUNK, u64::MAX);
        write(&segment, QUEUE_CHUNK, &[&[1; 4096]]).unwrap();
        let mut found = [0; 8];
        segment.copy_out(QUEUE_FIXED - 8, &mut found);
        assert_eq!(found, [7; 8]);
    }
}
