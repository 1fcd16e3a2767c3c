//! The native part of the Python package `bunshin`: glue over the engine.
//!
//! Each file converts types, maps errors and detaches from the interpreter while it waits;
//! what is decided, is decided by the engine.

mod buffer;
mod connection;
mod error;
mod fork;
mod interpreter;
mod payload;
mod pool;
mod process;
mod queue;
mod sync;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    fork::watch_signals();
    interpreter::watch_forks();
    module.add_class::<connection::Connection>()?;
    module.add_class::<buffer::SharedBuffer>()?;
    module.add_function(wrap_pyfunction!(buffer::rebuffer, module)?)?;
    module.add_class::<payload::Sink>()?;
    module.add_function(wrap_pyfunction!(connection::pipe, module)?)?;
    module.add_function(wrap_pyfunction!(payload::arrived, module)?)?;
    module.add_function(wrap_pyfunction!(payload::unpack, module)?)?;
    module.add_function(wrap_pyfunction!(fork::before_fork, module)?)?;
    module.add_function(wrap_pyfunction!(fork::after_fork_in_child, module)?)?;
    module.add_function(wrap_pyfunction!(fork::before_exit, module)?)?;
    module.add_class::<process::Child>()?;
    module.add_function(wrap_pyfunction!(process::start, module)?)?;
    module.add_function(wrap_pyfunction!(process::run_child, module)?)?;
    module.add_class::<payload::Descriptor>()?;
    module.add_function(wrap_pyfunction!(payload::dumps_plain, module)?)?;
    module.add_class::<pool::Pool>()?;
    module.add_class::<pool::Task>()?;
    module.add_class::<pool::Results>()?;
    module.add_class::<sync::SemLock>()?;
    module.add_class::<sync::Condition>()?;
    module.add_class::<sync::Event>()?;
    module.add_class::<sync::Barrier>()?;
    module.add_class::<queue::Queue>()?;
    module.add_class::<queue::SimpleQueue>()?;
    Ok(())
}
