//! Which copies of this process, made by raw forks, may still be there.
//!
//! A copy goes on with all memory that this process had, and so do the copies that it makes. Whether
//! any is left is for the system to say: before the fork an empty piece of shared memory is mapped,
//! a lease, which all of them inherit and which goes with them, however they end. While
//! anybody has it mapped, it cannot be sealed against writing (`fcntl(2)`, `F_SEAL_WRITE`).
//! Process ids would not tell of copies of copies, and descriptors are closed by some programs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};

use super::memory::{Mapping, PAGE};
use super::thread;

/// Copies beyond so many share a lease, which costs a descriptor.
const MOST: usize = 256;

struct Lease {
    /// The first and the last of the copies that have it.
    copies: (u32, u32),
    /// What is mapped in them, and the number of its file; `None` if there was no memory for it, and
    /// nobody knows when they end.
    memory: Option<(OwnedFd, u64)>,
}

impl Lease {
    fn new(copy: u32) -> io::Result<(Self, Mapping)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("bunshin-lease", flags)?;
        let map = Mapping::lazily(fd.as_fd(), 0, PAGE)?;
        let number = rustix::fs::fstat(&fd)?.st_ino;
        let lease = Self {
            copies: (copy, copy),
            memory: Some((fd, number)),
        };
        Ok((lease, map))
    }

    /// Whether all who had it have ended.
    fn is_over(&self) -> bool {
        let Some((fd, number)) = &self.memory else {
            return false;
        };
        // Somebody may have closed all descriptors, and another file has got this one's number.
        let is_it = rustix::fs::fstat(fd).is_ok_and(|about| about.st_ino == *number);
        is_it && rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE).is_ok()
    }
}

#[derive(Default)]
struct Leases {
    all: Vec<Lease>,
    /// What is mapped here for forks that are being made, and how many these are.
    open: Vec<Mapping>,
    forks: usize,
}

impl Leases {
    fn add(&mut self, copy: u32) {
        if self.all.len() >= MOST && self.share(copy) {
            return;
        }
        match Lease::new(copy) {
            Ok((lease, map)) => {
                self.all.push(lease);
                self.open.push(map);
            }
            Err(_) => self.all.push(Lease {
                copies: (copy, copy),
                memory: None,
            }),
        }
    }

    /// Gives the newest lease to one more copy.
    fn share(&mut self, copy: u32) -> bool {
        let Some(lease) = self.all.last_mut() else {
            return false;
        };
        let mapped = match &lease.memory {
            Some((fd, _)) => Mapping::lazily(fd.as_fd(), 0, PAGE).map(Some),
            None => Ok(None),
        };
        let Ok(map) = mapped else {
            return false;
        };
        self.open.extend(map);
        lease.copies.1 = copy;
        true
    }
}

/// The leases of the process that was there after so many forks.
struct OfProcess {
    generation: u32,
    leases: Mutex<Leases>,
}

/// Never freed: a copy has its parent's, and another thread of that may have locked them.
static CURRENT: AtomicPtr<OfProcess> = AtomicPtr::new(ptr::null_mut());

fn current() -> Option<&'static OfProcess> {
    // SAFETY: null, or from `Box::into_raw` and never freed.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
}

fn leases() -> MutexGuard<'static, Leases> {
    let generation = thread::generation();
    loop {
        let found = current();
        if let Some(own) = found.filter(|own| own.generation == generation) {
            return own.leases.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let before = found.map_or(ptr::null_mut(), |found| ptr::from_ref(found).cast_mut());
        let new = Box::into_raw(Box::new(OfProcess {
            generation,
            leases: Mutex::default(),
        }));
        let put = CURRENT.compare_exchange(before, new, Ordering::AcqRel, Ordering::Acquire);
        if put.is_err() {
            // SAFETY: from `Box::into_raw` just now, and nobody else has seen it.
            drop(unsafe { Box::from_raw(new) });
        }
    }
}

/// Counts a copy that is about to be made, by [`thread::count_copy`]; with a lease, if it
/// matters when it ends.
pub(crate) fn begin(is_wanted: bool) {
    let mut leases = leases();
    leases.forks += 1;
    if is_wanted {
        // Before it counts: whoever sees the number finds the lease.
        leases.add(thread::copies().wrapping_add(1));
    }
    thread::count_copy();
}

/// To be called once that fork is made, or has failed, in the process that made it.
pub(crate) fn end() {
    let mut leases = leases();
    leases.forks = leases.forks.saturating_sub(1);
    if leases.forks == 0 {
        leases.open.clear();
    }
}

/// To be called in the copy: closes what belongs to the leases of its parent.
pub(crate) fn end_in_copy() {
    let generation = thread::generation();
    let Some(inherited) = current().filter(|found| found.generation != generation) else {
        return;
    };
    // What is mapped stays so.
    if let Ok(mut leases) = inherited.leases.try_lock() {
        leases.all.clear();
    }
}

/// The copies that may still be there, as first and last numbers. Of those that were counted
/// without a lease nothing is said.
pub(crate) fn living() -> Vec<(u32, u32)> {
    let mut leases = leases();
    leases.all.retain(|lease| !lease.is_over());
    leases.all.iter().map(|lease| lease.copies).collect()
}
