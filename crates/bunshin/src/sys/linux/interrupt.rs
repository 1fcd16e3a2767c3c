//! Whether a signal is to end a wait.
//!
//! A Rust program's signals do not concern the engine: waits go on. A language whose
//! signal handlers run outside of the handler proper, such as Python, has to get control
//! in between; it says so through the function given here.

use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    /// Whether `check` has said so since [`clear`].
    static PENDING: Cell<bool> = const { Cell::new(false) };
}

static CHECK: OnceLock<fn() -> bool> = OnceLock::new();

/// Has each wait that a signal arrives in ask `check`, and end with `EINTR` if it says so.
/// The first one given stays.
pub(crate) fn set_check(check: fn() -> bool) {
    let _ = CHECK.set(check);
}

/// Whether the wait that a signal has just arrived in is to end.
#[cold]
pub(crate) fn is_wanted() -> bool {
    let is_wanted = CHECK.get().is_some_and(|check| check());
    if is_wanted {
        PENDING.set(true);
    }
    is_wanted
}

/// Whether this thread's waits are to end: `check` has said so.
#[inline]
pub(crate) fn is_pending() -> bool {
    PENDING.get()
}

/// Whoever asked for this thread's waits to end has got what they wanted.
pub(crate) fn clear() {
    PENDING.set(false);
}
