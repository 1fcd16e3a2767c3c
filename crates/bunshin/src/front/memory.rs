//! Shared memory for fronts: locks at any place in it, and names that stay while the process does.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::shared::SharedMemory;
use crate::shm::lock::{Refused, Taken};
use crate::shm::pinned::Pinned;
pub use crate::shm::pinned::Row;
use crate::shm::reentrant::ReentrantLock;
use crate::shm::tracker;
use crate::sys::named::Identity;
use crate::sys::process;
use crate::sys::socket;
use crate::transport::Patience;

/// Bytes that a lock takes; its place is a multiple of eight. Zeros are a free one.
pub const LOCK_BYTES: usize = size_of::<ReentrantLock>();

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
pub struct MemoryLock(Pinned<ReentrantLock>);

impl MemoryLock {
    /// The lock at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` if there is no room for a lock there.
    pub fn at(memory: &SharedMemory, offset: usize) -> Result<Self> {
        Pinned::new(memory, offset).map(Self)
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
        let deadline = match patience {
            Patience::Never => None,
            patience => Some(patience.deadline()),
        };
        match self.0.get().enter(deadline) {
            Ok(Taken::Clean) => Ok(Attempt::Taken),
            Ok(Taken::Abandoned) => Ok(Attempt::Abandoned),
            Err(Refused::Held) => Ok(Attempt::Unavailable),
            Err(Refused::Own) => Err(Error::new(
                ErrorKind::Busy,
                "this thread has taken the lock as often as can be counted",
            )),
            Err(Refused::Unsupported(error)) => Err(Error::os("take a lock", error)),
        }
    }

    /// Gives the lock back, once. Says whether this thread had it.
    #[inline]
    pub fn unlock(&self) -> bool {
        self.0.get().leave()
    }

    /// What `read` reads, if nobody had the lock meanwhile: as good as read with the lock.
    #[inline]
    pub fn glance<R>(&self, read: impl FnOnce() -> R) -> Option<R> {
        self.0.get().glance(read)
    }

    /// Whether this thread has the lock.
    #[inline]
    pub fn is_mine(&self) -> bool {
        self.0.get().raw().is_mine()
    }

    /// Whether anybody has the lock.
    pub fn is_taken(&self) -> bool {
        !self.0.get().raw().is_free()
    }

    /// How often whoever has the lock has taken it.
    pub fn depth(&self) -> u32 {
        self.0.get().depth()
    }

    /// Whether a thread of this process has the lock, so that the memory has to stay mapped.
    pub fn is_held_here(&self) -> bool {
        self.0.get().raw().is_held_here()
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
    check(name)?;
    // Known before the name is gone: another thread may then give it to a memory of its own.
    let known = tracker::known(name);
    SharedMemory::unlink_name(name)?;
    if let Some(identity) = known {
        tracker::forget_removed(name, identity);
    }
    Ok(())
}

fn check(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a shared memory cannot be called {name:?}"),
        ));
    }
    Ok(())
}

fn identity(name: &str) -> Result<Identity> {
    check(name)?;
    Identity::of_name(name)
        .map_err(|error| Error::os(format!("find the shared memory {name:?}"), error))
}
