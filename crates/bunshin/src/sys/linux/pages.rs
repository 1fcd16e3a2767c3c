//! Which pages of its memory this process has to itself, and having some of them copied ahead.
//!
//! After a fork all private pages are shared, until either process writes to one and gets a
//! copy. That copy is most of what a short-lived child costs.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::mm::Advice;

use super::memory::{self, Mapping, PAGE};
use super::thread;

/// Longer mappings are not looked through: what is kept of each page takes eight bytes.
const LONGEST_MAPPING: usize = 64 << 20;

/// Some pages in a row: the address of the first, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) pages: usize,
}

/// The writable private pages that this process shares with nobody; nothing if there are more than
/// `most`.
///
/// # Errors
/// Those of the system, which may not tell.
pub(crate) fn own(most: usize) -> io::Result<Option<Vec<Run>>> {
    const PRESENT: u64 = 1 << 63;
    const OF_A_FILE: u64 = 1 << 61;
    const EXCLUSIVE: u64 = 1 << 56;
    const ENTRY: usize = size_of::<u64>();
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut runs: Vec<Run> = Vec::new();
    let (mut count, mut entries) = (0, Vec::new());
    for Private { start, end, .. } in writable()? {
        let pages = (end - start) / PAGE;
        if end - start > LONGEST_MAPPING {
            continue;
        }
        entries.resize(pages * ENTRY, 0);
        if pagemap
            .read_exact_at(&mut entries, (start / PAGE * ENTRY) as u64)
            .is_err()
        {
            // The mapping was that of the list above.
            continue;
        }
        for (index, entry) in entries.chunks_exact(ENTRY).enumerate() {
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            if entry & (PRESENT | OF_A_FILE | EXCLUSIVE) != PRESENT | EXCLUSIVE {
                continue;
            }
            count += 1;
            if count > most {
                return Ok(None);
            }
            let address = start + index * PAGE;
            match runs.last_mut() {
                Some(run) if run.start + run.pages * PAGE == address => run.pages += 1,
                _ => runs.push(Run {
                    start: address,
                    pages: 1,
                }),
            }
        }
    }
    Ok(Some(runs))
}

/// A writable private mapping of this process.
struct Private {
    start: usize,
    end: usize,
    is_of_a_file: bool,
}

fn writable() -> io::Result<Vec<Private>> {
    let mut found = Vec::new();
    for line in BufReader::new(File::open("/proc/self/maps")?).lines() {
        let line = line?;
        // The range, what may be done with it, where it begins in its file, the device, the file.
        let mut words = line.split(' ');
        let (Some(range), Some("rw-p")) = (words.next(), words.next()) else {
            continue;
        };
        let is_of_a_file = words.nth(2) != Some("0");
        let mapping = range.split_once('-').and_then(|(start, end)| {
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some(Private {
                start: number(start)?,
                end: number(end)?,
                is_of_a_file,
            })
        });
        found.extend(mapping);
    }
    Ok(found)
}

/// Has pages be this process's own, as if it had written to each what is there already, until
/// `is_enough` says so. Pages that are not there are passed over; all are, if there are other
/// threads, who might take memory away meanwhile.
pub(crate) fn take(runs: impl Iterator<Item = Run>, is_enough: impl FnMut(&Run) -> bool) {
    if thread::count().is_ok_and(|count| count == 1) {
        // SAFETY: only this thread could make another one.
        unsafe { take_alone(runs, is_enough) };
    }
}

/// # Safety
/// No other thread unmaps memory that holds one of these pages.
unsafe fn take_alone(runs: impl Iterator<Item = Run>, mut is_enough: impl FnMut(&Run) -> bool) {
    let Ok(mappings) = writable() else {
        return;
    };
    for run in runs {
        if is_enough(&run) {
            break;
        }
        let end = run.start.saturating_add(run.pages.saturating_mul(PAGE));
        let holds = |mapping: &&Private| mapping.start <= run.start && end <= mapping.end;
        match mappings.iter().find(holds) {
            // A file may have become shorter than its mapping, where nobody may write.
            Some(mapping) if mapping.is_of_a_file => take_of_a_file(&run),
            // Half as long as the same by a call for each run, which most often is a page.
            Some(_) => {
                for address in (run.start..end).step_by(PAGE) {
                    // SAFETY: the address lies in a writable mapping of this process's own, by
                    // the list above, and no other thread can have changed that since.
                    let byte = unsafe { AtomicU8::from_ptr(address as *mut u8) };
                    // One instruction, as the handler of a signal may write there, too.
                    let now = byte.load(Ordering::Relaxed);
                    let _ = byte.compare_exchange(now, now, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
            None => {}
        }
    }
    // Not sooner: what it gives back to the system could be a part of those mappings.
    drop(mappings);
}

fn take_of_a_file(run: &Run) {
    let start = run.start as *mut core::ffi::c_void;
    let len = run.pages.saturating_mul(PAGE);
    // SAFETY: this changes no byte of any memory, wherever it is, and takes none away. Kernels
    // before 5.14 do not know it and do nothing.
    let _ = unsafe { rustix::mm::madvise(start, len, Advice::LinuxPopulateWrite) };
}

/// Words that this process shares with all copies of it.
pub(crate) struct Words(Mapping);

impl Words {
    /// As many as fill so many pages; all are zero.
    pub(crate) fn new(pages: usize) -> io::Result<Self> {
        let memory = memory::create((pages * PAGE) as u64)?;
        Mapping::new(memory.as_fd(), 0, pages * PAGE).map(Self)
    }

    pub(crate) fn all(&self) -> &[AtomicU64] {
        let len = self.0.len() / size_of::<AtomicU64>();
        // SAFETY: the mapping is so long, aligned to pages, and lives as long as `self`; words
        // that others write to are atomics.
        unsafe { std::slice::from_raw_parts(self.0.start().cast().as_ptr(), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(runs: &[Run], address: usize) -> bool {
        let holds = |run: &Run| (run.start..run.start + run.pages * PAGE).contains(&address);
        runs.iter().any(holds)
    }

    #[test]
    fn pages_are_ones_own_once_they_were_written_to_or_taken() {
        // So much has a mapping of its own, whose pages are not there before they are touched.
        let mut memory = vec![0u8; 40 << 20];
        let first = memory.as_ptr() as usize;
        memory[20 * PAGE] = 1;
        let all = || own(usize::MAX).unwrap().unwrap();
        assert!(has(&all(), first + 20 * PAGE));
        let untouched = (first + (30 << 20)) / PAGE * PAGE;
        assert!(!has(&all(), untouched), "nobody has touched that page");
        let run = |start, pages| Run { start, pages };
        let wanted = [
            run(0, 1),
            run(untouched, 2),
            run(usize::MAX - 9, 9),
            run(untouched, usize::MAX),
        ];
        // SAFETY: others have threads here, but none that unmaps this memory.
        unsafe { take_alone(wanted.into_iter(), |_| false) };
        assert!(has(&all(), untouched + PAGE));
        assert_eq!((memory[20 * PAGE], memory[31 << 20]), (1, 0));
        assert_eq!(own(3).unwrap(), None);
    }
}
