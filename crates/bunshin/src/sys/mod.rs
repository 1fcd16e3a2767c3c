//! The system layer: the only code that names `libc` or `rustix`.
//!
//! Everything above talks to the kernel through the safe functions below. A port
//! to another system supplies the same names:
//!
//! | Part | What it must supply |
//! |---|---|
//! | `memory` | anonymous shared memory that cannot shrink, room reserved before use, mappings |
//! | `named` | shared memory with a name that other programs can open |
//! | `socket` | a connected pair of byte streams that carries handles, and `poll` |
//! | `network` | sockets with addresses, read and written without waiting; random bytes |
//! | `poller` | a set of handles to wait for, however many there are |
//! | `pipe` | a pipe that many processes write whole records to, for the feature `tracing` |
//! | `process` | fork, start of this program again, a waitable handle per child, signals |
//! | `server` | the forkserver's clone: a child of the user's own process |
//! | `grace` | the end of this process, so long after its parent's |
//! | `leases` | which copies of this process, made by raw forks, may still be there |
//! | `thread` | thread identity, processor in use, the list of robust locks, futexes |
//! | `cpus` | how many processors this process may use |
//! | `oom` | how many processes were killed for lack of memory |
//! | `pages` | which pages of its memory a process has to itself |
//! | `words` | bytes that a process leaves behind, whatever ends it |
//! | `awake` | nothing of the system: whether to wait a little before sleeping |
//! | `interrupt` | nothing of the system: whether a signal is to end a wait |
//! | `mutex` | nothing of the system: a lock that a forked copy can take whoever held it |
//! | `image` | the hook before `main`, and code addresses relative to this program |

#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(not(target_os = "linux"))]
compile_error!(
    "bunshin runs on Linux only so far; docs/platforms.md says what a port has to supply"
);
