//! Catching panics with the place they came from.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use super::last_words;
use crate::codec::outcome::Failure;

thread_local! {
    /// Where the last panic of this thread was.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
    /// Whether panics of this thread are told to the caller only.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

static IS_INSTALLED: AtomicBool = AtomicBool::new(false);

/// Has panics note their location. What the hook before did, such as printing, it goes
/// on doing, except for quiet ones.
pub(crate) fn install_hook() {
    // A forked child inherits both the hook and this flag.
    if IS_INSTALLED.swap(true, Ordering::Relaxed) {
        return;
    }
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        LOCATION.set(info.location().map(ToString::to_string));
        last_words::panicked(info);
        #[cfg(feature = "tracing")]
        crate::log::panicked(info);
        if !QUIET.get() {
            before(info);
        }
    }));
}

/// Runs `work`, turning a panic into a failure. A quiet one prints nothing.
pub(crate) fn catch<R>(is_quiet: bool, work: impl FnOnce() -> R) -> Result<R, Failure> {
    let before = QUIET.replace(is_quiet);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.map_err(|payload| {
        last_words::caught();
        let message = if let Some(text) = payload.downcast_ref::<&str>() {
            (*text).to_owned()
        } else if let Some(text) = payload.downcast_ref::<String>() {
            text.clone()
        } else {
            "(the panic's payload is not text)".to_owned()
        };
        // Dropping the payload is the user's code, which may panic in its turn.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(payload)));
        Failure::Panicked {
            message,
            location: LOCATION.take(),
        }
    })
}
