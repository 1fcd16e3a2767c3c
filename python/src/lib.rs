//! The native part of the Python package `bunshin`: glue over the engine.
//!
//! Each file converts types, maps errors and detaches from the interpreter while it waits;
//! what is decided, is decided by the engine.

mod buffer;
mod connection;
mod error;
mod executor;
mod fork;
mod forked;
mod heap;
mod interpreter;
mod items;
mod lock;
mod main_module;
mod manager;
mod named;
mod number;
mod once;
mod payload;
mod pieces;
mod plain;
mod pool;
mod process;
mod queue;
mod quick;
mod sync;
mod synchronized;
mod task;
mod words;
mod writable;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    fork::watch_signals();
    interpreter::watch_forks();
    bunshin::front::on_idle(task::idle);
    bunshin::front::around_worker(pool::live);
    named::set_top(std::process::id());
    module.add_class::<connection::Connection>()?;
    module.add_class::<buffer::SharedBuffer>()?;
    module.add_function(wrap_pyfunction!(buffer::rebuffer, module)?)?;
    module.add_class::<payload::Sink>()?;
    module.add_function(wrap_pyfunction!(connection::pipe, module)?)?;
    module.add_function(wrap_pyfunction!(connection::pack, module)?)?;
    module.add_function(wrap_pyfunction!(payload::arrived, module)?)?;
    module.add_function(wrap_pyfunction!(payload::in_message, module)?)?;
    module.add_function(wrap_pyfunction!(payload::unpack, module)?)?;
    module.add_function(wrap_pyfunction!(fork::before_fork, module)?)?;
    module.add_function(wrap_pyfunction!(fork::after_fork_in_parent, module)?)?;
    module.add_function(wrap_pyfunction!(fork::after_fork_in_child, module)?)?;
    module.add_function(wrap_pyfunction!(fork::watch_imports, module)?)?;
    module.add_function(wrap_pyfunction!(fork::before_exit, module)?)?;
    module.add_function(wrap_pyfunction!(pool::live_within, module)?)?;
    module.add_function(wrap_pyfunction!(fork::hold_interrupts, module)?)?;
    module.add_function(wrap_pyfunction!(fork::release_interrupts, module)?)?;
    module.add_class::<forked::Life>()?;
    module.add_class::<process::Child>()?;
    module.add_class::<process::Worker>()?;
    module.add_function(wrap_pyfunction!(process::start, module)?)?;
    module.add_function(wrap_pyfunction!(process::run_child, module)?)?;
    module.add_function(wrap_pyfunction!(process::name, module)?)?;
    module.add_function(wrap_pyfunction!(process::end_after_parent, module)?)?;
    module.add_class::<payload::Descriptor>()?;
    module.add_function(wrap_pyfunction!(payload::dumps_plain, module)?)?;
    module.add_function(wrap_pyfunction!(main_module::set_main_is_private, module)?)?;
    module.add_class::<manager::Caller>()?;
    module.add_class::<manager::Server>()?;
    module.add_class::<manager::Reply>()?;
    module.add_class::<manager::Request>()?;
    module.add_function(wrap_pyfunction!(manager::is_harmless, module)?)?;
    module.add_class::<pool::Pool>()?;
    module.add_class::<pool::Task>()?;
    module.add_class::<pool::Results>()?;
    module.add_class::<executor::Relay>()?;
    module.add_class::<executor::Calls>()?;
    module.add_class::<words::KeepingWrite>()?;
    module.add_function(wrap_pyfunction!(words::words_descriptor, module)?)?;
    module.add_class::<lock::SemLock>()?;
    module.add_class::<sync::Condition>()?;
    lock::add_methods(module.py())?;
    module.add_class::<sync::Event>()?;
    module.add_class::<sync::Barrier>()?;
    module.add_class::<queue::Queue>()?;
    module.add_class::<queue::SimpleQueue>()?;
    module.add_class::<buffer::Lent>()?;
    module.add_class::<heap::Arena>()?;
    module.add_class::<heap::Block>()?;
    module.add_function(wrap_pyfunction!(heap::arena_of, module)?)?;
    module.add_function(wrap_pyfunction!(heap::attach_arena, module)?)?;
    module.add_function(wrap_pyfunction!(heap::attach_block, module)?)?;
    module.add_class::<named::NamedMemory>()?;
    module.add_function(wrap_pyfunction!(named::unlink_memory, module)?)?;
    module.add_function(wrap_pyfunction!(named::watch_memory, module)?)?;
    module.add_function(wrap_pyfunction!(named::forget_memory, module)?)?;
    module.add_function(wrap_pyfunction!(named::set_names_command, module)?)?;
    module.add_function(wrap_pyfunction!(named::set_top, module)?)?;
    module.add_function(wrap_pyfunction!(named::top, module)?)?;
    module.add_function(wrap_pyfunction!(named::bequeath_names, module)?)?;
    module.add_class::<synchronized::Place>()?;
    module.add_class::<synchronized::SynchronizedBase>()?;
    module.add_class::<synchronized::SynchronizedValue>()?;
    module.add_class::<synchronized::SynchronizedItems>()?;
    once::make_ahead(module)
}
