//! The forkserver's clone: a child of the server's parent, not of the server.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::process::Started;
use super::thread;

/// What a single-threaded process needs to clone itself past the C library.
pub(crate) struct Cloner {
    /// Where the C library keeps the thread's id.
    tid: usize,
    robust_list: usize,
}

impl Cloner {
    /// To be made in the server's only thread.
    pub(crate) fn new() -> io::Result<Self> {
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
        })
    }

    /// Clones this process; the child's parent is this process's parent, which can
    /// wait for it, and with which it can be made to die. `Ok(None)` is the child.
    pub(crate) fn clone(&self) -> io::Result<Option<Started>> {
        let mut pidfd: libc::c_int = -1;
        // SAFETY: all zero is a valid record.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = (libc::CLONE_PARENT
            | libc::CLONE_PIDFD
            | libc::CLONE_CHILD_SETTID
            | libc::CLONE_CHILD_CLEARTID) as u64;
        arguments.pidfd = &raw mut pidfd as u64;
        // The C library reads its thread id from there; this is what its own fork does.
        arguments.child_tid = self.tid as u64;
        // SAFETY: without CLONE_VM the child gets a copy of everything, as with fork; the
        // process has one thread, so that no lock is held by another one.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                size_of::<libc::clone_args>(),
            )
        };
        match rc {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                thread::after_fork();
                thread::adopt_list(self.robust_list);
                Ok(None)
            }
            pid => {
                // SAFETY: the kernel has just opened it for us.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                Ok(Some(Started {
                    pid: u32::try_from(pid).unwrap_or(0),
                    pidfd,
                }))
            }
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
