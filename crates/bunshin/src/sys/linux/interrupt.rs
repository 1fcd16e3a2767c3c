//! Whether a signal is to end a wait.
//!
//! A Rust program's signals do not concern the engine: waits go on. A language whose
//! signal handlers run outside of the handler proper, such as Python, has to get control
//! in between; it says so through the function given here.

use std::sync::OnceLock;

static CHECK: OnceLock<fn() -> bool> = OnceLock::new();

/// Has each wait that a signal arrives in ask `check`, and end with `EINTR` if it says so.
/// The first one given stays.
pub(crate) fn set_check(check: fn() -> bool) {
    let _ = CHECK.set(check);
}

/// Whether the wait that a signal has just arrived in is to end.
#[cold]
pub(crate) fn is_wanted() -> bool {
    CHECK.get().is_some_and(|check| check())
}
