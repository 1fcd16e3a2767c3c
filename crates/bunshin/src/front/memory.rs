//! Shared memory for fronts: locks at any place in it, and names that stay while the process does.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::shared::SharedMemory;
use crate::shm::lock::{RawLock, Refused, Taken};
use crate::shm::pinned::Pinned;
pub use crate::shm::pinned::Row;
use crate::shm::tracker;
use crate::sys::named::Identity;
use crate::sys::process;
use crate::sys::socket;
use crate::transport::Patience;

/// Bytes that a lock takes; its place is a multiple of eight. Zeros are a free one.
pub const LOCK_BYTES: usize = size_of::<RawLock>() + size_of::<u64>();
/// From the start of a lock to how often its holder has taken it.
const DEPTH: usize = size_of::<RawLock>();

/// How an attempt to take a lock ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// This thread has it.
    Taken,
    /// This thread has it, and whoever had it before died with it.
    Abandoned,
    /// Somebody else has it.
    Unavailable,
}

/// A lock in shared memory, which the thread that has it may take again. Each place in memory
/// that is used as one is a lock of its own.
#[derive(Clone, Debug)]
pub struct MemoryLock {
    lock: Pinned<RawLock>,
    depth: Pinned<AtomicU32>,
}

impl MemoryLock {
    /// The lock at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` if there is no room for a lock there.
    pub fn at(memory: &SharedMemory, offset: usize) -> Result<Self> {
        Ok(Self {
            lock: Pinned::new(memory, offset)?,
            depth: Pinned::new(memory, offset + DEPTH)?,
        })
    }

    /// The memory and the place.
    pub fn place(&self) -> (&SharedMemory, usize) {
        self.lock.place()
    }

    /// Takes the lock if it is free or this thread's own.
    ///
    /// # Errors
    /// `Os` if the system has no robust locks; `Busy` if it was taken too often to be counted.
    #[inline]
    pub fn try_lock(&self) -> Result<Attempt> {
        self.acquire(Patience::Never)
    }

    /// Takes the lock, waiting until it is free; also `Unavailable` when the program wants an
    /// interruption.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    pub fn lock(&self) -> Result<Attempt> {
        self.acquire(Patience::Forever)
    }

    /// Takes the lock, waiting for so long at most.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    pub fn lock_timeout(&self, timeout: Duration) -> Result<Attempt> {
        self.acquire(Patience::within(timeout))
    }

    #[inline]
    fn acquire(&self, patience: Patience) -> Result<Attempt> {
        let (lock, depth) = (self.lock.get(), self.depth.get());
        if lock.is_mine() {
            let deeper = depth.load(Ordering::Relaxed).checked_add(1);
            let deeper = deeper.ok_or_else(|| {
                Error::new(
                    ErrorKind::Busy,
                    "this thread has taken the lock as often as can be counted",
                )
            })?;
            depth.store(deeper, Ordering::Relaxed);
            return Ok(Attempt::Taken);
        }
        let taken = match patience {
            Patience::Never => lock.try_lock(),
            patience => lock.lock(patience.deadline()),
        };
        match taken {
            Ok(taken) => {
                depth.store(1, Ordering::Relaxed);
                Ok(match taken {
                    Taken::Clean => Attempt::Taken,
                    Taken::Abandoned => Attempt::Abandoned,
                })
            }
            Err(Refused::Held | Refused::Own) => Ok(Attempt::Unavailable),
            Err(Refused::Unsupported(error)) => Err(Error::os("take a lock", error)),
        }
    }

    /// Gives the lock back, once. Says whether this thread had it.
    #[inline]
    pub fn unlock(&self) -> bool {
        let (lock, depth) = (self.lock.get(), self.depth.get());
        if !lock.is_mine() {
            return false;
        }
        let now = depth.load(Ordering::Relaxed);
        if now > 1 {
            depth.store(now - 1, Ordering::Relaxed);
        } else {
            depth.store(0, Ordering::Relaxed);
            lock.unlock();
        }
        true
    }

    /// Whether this thread has the lock.
    #[inline]
    pub fn is_mine(&self) -> bool {
        self.lock.get().is_mine()
    }

    /// Whether anybody has the lock.
    pub fn is_taken(&self) -> bool {
        !self.lock.get().is_free()
    }

    /// Whether a thread of this process has the lock, so that the memory has to stay mapped.
    pub fn is_held_here(&self) -> bool {
        self.lock.get().is_held_here()
    }
}

/// A new descriptor of the memory.
///
/// # Errors
/// `Os` where the process has too many files open.
pub fn descriptor(memory: &SharedMemory) -> Result<OwnedFd> {
    socket::duplicate(memory.fd()).map_err(|error| Error::os("send shared memory", error))
}

/// The memory without a name that another process has sent a [`descriptor`] of.
///
/// # Errors
/// `Corrupt` if it is shorter than `len`, or somebody could shorten it.
pub fn attach(descriptor: OwnedFd, len: usize) -> Result<SharedMemory> {
    SharedMemory::attach(descriptor, len as u64, None)
}

/// Has the process that removes names be started by a command, for a program that is an
/// interpreter. What it starts loads this crate and calls [`run_child`](super::run_child).
///
/// # Errors
/// `InvalidInput` if a word contains a null byte.
pub fn set_names_command(words: Vec<OsString>) -> Result<()> {
    process::set_apart(words).map_err(|error| {
        Error::because(
            ErrorKind::InvalidInput,
            "take a command for the process that removes names",
            error,
        )
    })
}

/// Has the memory's name outlive its handles, but not this process, if that has made it.
pub fn leave_to_process(memory: &SharedMemory) {
    memory.leave_to_process();
}

/// Has the names that this process has made stay while the process `heir` lives, which stands
/// above it. Says whether there are any.
///
/// # Errors
/// `Os` if the process that removes names cannot be told.
pub fn bequeath_names(heir: u32) -> Result<bool> {
    tracker::bequeath(heir)
}

/// Whether there is a name that this process has to remove when it ends.
pub fn has_names() -> bool {
    tracker::is_watching()
}

/// Has a name that is there removed when this process ends.
///
/// # Errors
/// `Os` with `ENOENT` if there is no such name.
pub fn watch_name(name: &str) -> Result<()> {
    tracker::watch(name, identity(name)?)
}

/// Leaves a name alone that this process would have removed at its end.
///
/// # Errors
/// `Os` with `ENOENT` if there is no such name.
pub fn forget_name(name: &str) -> Result<()> {
    tracker::forget(name, identity(name)?);
    Ok(())
}

/// Removes a name, and has nobody remove it again.
///
/// # Errors
/// `Os` with `ENOENT` if there is no such name.
pub fn unlink_name(name: &str) -> Result<()> {
    let identity = identity(name)?;
    SharedMemory::unlink_name(name)?;
    tracker::forget(name, identity);
    Ok(())
}

fn identity(name: &str) -> Result<Identity> {
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a shared memory cannot be called {name:?}"),
        ));
    }
    Identity::of_name(name)
        .map_err(|error| Error::os(format!("find the shared memory {name:?}"), error))
}
