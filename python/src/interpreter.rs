//! What the interpreter has to be told, and there is no safe form of.

#![allow(unsafe_code)]

use std::cell::Cell;

use pyo3::ffi;

thread_local! {
    /// How this thread was attached before the fork that it is making.
    static BEFORE: Cell<Option<ffi::PyGILState_STATE>> = const { Cell::new(None) };
    /// The interrupts that it holds back, so that a copy does not take up those of its parent.
    static HELD: Cell<Option<bunshin::front::Held>> = const { Cell::new(None) };
}

/// Has the interpreter take part in forks that the engine makes, as in those of `os.fork`.
pub(crate) fn watch_forks() {
    bunshin::front::on_fork(before, in_parent, in_child);
}

fn before() {
    // Freed memory is sorted by the first that asks for much, and what lies around it is written to
    // by that: not by each child.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(64 << 10)));
    HELD.set(Some(bunshin::front::hold_interrupts()));
    // SAFETY: the engine forks while the interpreter runs; whether this thread is attached
    // does not matter.
    let state = unsafe { ffi::PyGILState_Ensure() };
    BEFORE.set(Some(state));
    // SAFETY: this thread is attached.
    unsafe { ffi::PyOS_BeforeFork() };
}

fn in_parent() {
    // SAFETY: this thread is attached since `before`.
    unsafe { ffi::PyOS_AfterFork_Parent() };
    if let Some(state) = BEFORE.take() {
        // SAFETY: `state` is what `before` was given in this thread.
        unsafe { ffi::PyGILState_Release(state) };
    }
    if let Some(held) = HELD.take() {
        held.release();
    }
}

fn in_child() {
    // SAFETY: this thread is attached since `before`, and is the only one.
    unsafe { ffi::PyOS_AfterFork_Child() };
    BEFORE.set(None);
    // Its Python code unblocks them, once it is ready for them.
    HELD.set(None);
    // Detached, but not released: the child keeps what the interpreter knows of its thread.
    // SAFETY: this thread is attached.
    unsafe { ffi::PyEval_SaveThread() };
}
