//! Forks that the interpreter makes, and signals that arrive in a wait.

use std::cell::{Cell, RefCell};
use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::PyDict;

thread_local! {
    /// What a signal handler raised in a wait of this thread's.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
    /// What this thread had blocked before [`hold_interrupts`].
    static HELD: Cell<Option<bunshin::front::Held>> = const { Cell::new(None) };
}

/// Has the interpreter's signal handlers run when a signal arrives in a wait.
pub(crate) fn watch_signals() {
    bunshin::front::on_interrupt(|| {
        Python::try_attach(|py| match py.check_signals() {
            Ok(()) => false,
            Err(raised) => {
                RAISED.with_borrow_mut(|kept| *kept = Some(raised));
                true
            }
        })
        .unwrap_or(false)
    });
}

/// What a signal handler raised in the wait that has just ended, if one did.
pub(crate) fn take_raised() -> Option<PyErr> {
    let raised = RAISED.with_borrow_mut(Option::take);
    if raised.is_some() {
        bunshin::front::clear_interrupt();
    }
    raised
}

/// To be called before `os.fork`.
#[pyfunction]
pub(crate) fn before_fork() {
    bunshin::front::before_fork();
    crate::heap::before_fork();
}

/// To be called after `os.fork`, in the parent.
#[pyfunction]
pub(crate) fn after_fork_in_parent() {
    bunshin::front::after_fork_in_parent();
}

/// The locks of modules that are being imported.
static IMPORTS: OnceLock<Py<PyDict>> = OnceLock::new();

/// Has copies of this process see to these locks, if there are any, which nobody holds any more.
#[pyfunction]
pub(crate) fn watch_imports(locks: Py<PyDict>) {
    // A second time it would be the same.
    let _ = IMPORTS.set(locks);
}

/// To be called after `os.fork`, in the child.
#[pyfunction]
pub(crate) fn after_fork_in_child(py: Python<'_>) -> PyResult<()> {
    bunshin::front::after_fork_in_child();
    match IMPORTS.get() {
        // Nothing is kept of the module, which is to go at the end like others.
        Some(locks) if !locks.bind(py).is_empty() => {
            // It may be one of those that were being imported.
            let modules = py.import("sys")?.getattr("modules")?;
            let fork = modules.get_item("bunshin._fork")?;
            fork.call_method1("_release_imports", (locks,)).map(drop)
        }
        _ => Ok(()),
    }
}

/// To be called before the process ends without dropping its objects.
#[pyfunction]
pub(crate) fn before_exit() {
    bunshin::front::before_exit();
}

/// Has interrupts wait in this thread, and in a copy that it makes of the process. The interpreter's
/// own function for it makes an object of each signal, and a fork has the pages of all copied.
#[pyfunction]
pub(crate) fn hold_interrupts() {
    HELD.set(Some(bunshin::front::hold_interrupts()));
}

/// Ends [`hold_interrupts`], in either process; raises what an interrupt raises that has come.
#[pyfunction]
pub(crate) fn release_interrupts(py: Python<'_>) -> PyResult<()> {
    if let Some(held) = HELD.take() {
        held.release();
    }
    py.check_signals()
}
