//! The forkserver's clone: a child of the server's parent, not of the server.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::memory::{self, Mapping, PAGE};
use super::process::fork_hooks;
use super::thread;

/// A word of shared memory in which the kernel itself notes the id of each child that is
/// cloned, before that runs: if the server is killed before it can tell, its parent, whose
/// child that is, still learns of it.
#[derive(Debug)]
pub(crate) struct Note {
    memory: OwnedFd,
    map: Mapping,
}

impl Note {
    pub(crate) fn new() -> io::Result<Self> {
        Self::attach(memory::create(PAGE as u64)?)
    }

    /// Maps a note that another process has made.
    pub(crate) fn attach(memory: OwnedFd) -> io::Result<Self> {
        if memory::len(memory.as_fd())? < PAGE as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let map = Mapping::new(memory.as_fd(), 0, PAGE)?;
        Ok(Self { memory, map })
    }

    pub(crate) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is a page, aligned, and lives as long as `self`.
        unsafe { self.map.start().cast().as_ref() }
    }

    /// Forgets what stands there.
    pub(crate) fn clear(&self) {
        self.word().store(0, Ordering::Relaxed);
    }

    /// The child that was cloned since the note was cleared.
    pub(crate) fn pid(&self) -> Option<u32> {
        Some(self.word().load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }
}

/// What a single-threaded process needs to clone itself past the C library.
pub(crate) struct Cloner {
    /// Where the C library keeps the thread's id.
    tid: usize,
    robust_list: usize,
    note: Note,
}

impl Cloner {
    /// To be made in the server's only thread.
    pub(crate) fn new(note: Note) -> io::Result<Self> {
        let mut tid = 0usize;
        const PR_GET_TID_ADDRESS: libc::c_int = 40;
        // SAFETY: the kernel writes one address to a local.
        let rc = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut tid) };
        if rc != 0 || tid == 0 {
            tid = find_tid()?;
        }
        Ok(Self {
            tid,
            robust_list: thread::list_head(),
            note,
        })
    }

    /// Clones this process; the child's parent is this process's parent, which can
    /// wait for it, and with which it can be made to die. `Ok(None)` is the child.
    ///
    /// This is `clone` and not `clone3`, which container profiles refuse.
    pub(crate) fn clone(&self) -> io::Result<Option<u32>> {
        let flags = libc::CLONE_PARENT
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_SETTID
            | libc::CLONE_CHILD_CLEARTID;
        let note = self.note.map.start().as_ptr() as usize;
        // The C library reads its thread id from there; this is what its own fork does.
        let (tid, no_tls) = (self.tid, 0usize);
        // The order in which a processor's kernel takes the last two.
        #[cfg(target_arch = "x86_64")]
        let (fourth, fifth) = (tid, no_tls);
        #[cfg(not(target_arch = "x86_64"))]
        let (fourth, fifth) = (no_tls, tid);
        let no_stack = 0usize;
        let hooks = fork_hooks();
        if let Some(hooks) = hooks {
            (hooks.before)();
        }
        // SAFETY: without CLONE_VM the child gets a copy of everything, as with fork, and goes on
        // with its copy of this stack; the process has one thread, so that no lock is held by
        // another one. The kernel writes ids to the note and to the C library's own place.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_clone,
                flags as usize,
                no_stack,
                note,
                fourth,
                fifth,
            )
        };
        let error = io::Error::last_os_error();
        if rc == 0 {
            thread::after_fork();
            thread::adopt_list(self.robust_list);
        }
        match (hooks, rc) {
            (Some(hooks), 0) => (hooks.in_child)(),
            (Some(hooks), _) => (hooks.in_parent)(),
            (None, _) => {}
        }
        match rc {
            -1 => Err(error),
            0 => Ok(None),
            pid => Ok(Some(u32::try_from(pid).unwrap_or(0))),
        }
    }
}

/// Finds the C library's copy of the thread id in the thread's control block, for
/// kernels built without `PR_GET_TID_ADDRESS`.
fn find_tid() -> io::Result<usize> {
    const CONTROL_BLOCK: usize = 1024;
    // SAFETY: always allowed.
    let start = unsafe { libc::pthread_self() } as usize;
    let tid = thread::tid();
    let mut found = None;
    for offset in (0..CONTROL_BLOCK).step_by(size_of::<u32>()) {
        // SAFETY: glibc's control block is larger than this on every platform it supports.
        if unsafe { *((start + offset) as *const u32) } == tid {
            if found.is_some() {
                found = None;
                break;
            }
            found = Some(start + offset);
        }
    }
    found.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "no forkserver here: neither the kernel nor the C library says where the thread id is kept",
        )
    })
}
