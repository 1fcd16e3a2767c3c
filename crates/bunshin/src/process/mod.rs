//! Processes: starting them, talking to them, and how they end.
//!
//! - `handle`: [`Process`](crate::Process), what the parent holds; `lookout`: how it waits for what
//!   a child is about to do.
//! - `builder`: how one is started; `start_method`, `target`: by what, and doing what.
//! - `current`: who this process is, who started it, and whom it has started.
//! - `fork`, `spawn`, `forkserver`: the three start methods; `launcher` is the thread
//!   that children are started from where the main thread is not the caller.
//! - `bootstrap`: the child's side; `footprint`: what a copy of the server has copied ahead.
//! - `exit`, `outcome`: how a process or a task ended; `last_words`: what a worker has said before;
//!   `scarcity`: whether it was killed for lack of memory.

pub(crate) mod bootstrap;
mod builder;
mod current;
mod exit;
mod footprint;
pub(crate) mod fork;
mod forkserver;
mod handle;
pub(crate) mod last_words;
mod launcher;
mod lookout;
pub(crate) mod outcome;
pub(crate) mod panic;
pub(crate) mod scarcity;
mod spawn;
mod start_method;
pub(crate) mod target;

pub use bootstrap::init;
pub use builder::ProcessBuilder;
pub use current::{
    CurrentProcess, ParentProcess, active_children, current_process, parent_process,
};
pub use exit::ExitStatus;
pub use fork::{Fork, Scope, ScopedProcess, fork, fork_unchecked, scope};
pub use forkserver::{PreloadOutcome, set_forkserver_preload};
pub use handle::Process;
pub use outcome::{Panic, TaskError, WorkerLost};
pub use start_method::{StartMethod, set_start_method, start_method};
pub use target::Target;

pub(crate) use bootstrap::run_hosted;
pub(crate) use builder::start_entry;
pub(crate) use handle::Child;
