//! Shared memory with a name, and what becomes of the names.

use std::ffi::OsString;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bunshin::SharedMemory;
use bunshin::front::memory;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::buffer::Lent;
use crate::error::exception;

/// A memory with a name, until it is closed.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct NamedMemory {
    /// Given up once it is closed.
    lent: Mutex<Option<Py<Lent>>>,
    #[pyo3(get)]
    size: usize,
}

impl NamedMemory {
    fn of(py: Python<'_>, memory: SharedMemory) -> PyResult<Self> {
        let size = memory.len();
        Ok(Self {
            lent: Mutex::new(Some(Py::new(py, Lent::new(memory, 0, size, None))?)),
            size,
        })
    }
}

impl NamedMemory {
    fn slot(&self) -> MutexGuard<'_, Option<Py<Lent>>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl NamedMemory {
    /// Makes a memory of that name, which goes with this process at the latest; if `track` is
    /// false, it stays until somebody removes it.
    #[staticmethod]
    fn create(py: Python<'_>, name: &str, size: usize, track: bool) -> PyResult<Self> {
        let made = py.detach(|| {
            let memory = SharedMemory::create(name, size)?;
            if track {
                memory::leave_to_process(&memory);
            } else {
                memory.detach()?;
            }
            Ok(memory)
        });
        Self::of(py, made.map_err(|error| exception(&error))?)
    }

    /// Opens the memory of that name.
    #[staticmethod]
    fn open(py: Python<'_>, name: &str) -> PyResult<Self> {
        let opened = py.detach(|| SharedMemory::open(name));
        Self::of(py, opened.map_err(|error| exception(&error))?)
    }

    /// A view of the memory, which may be written to.
    fn view<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let lent = self.slot().as_ref().map(|lent| lent.clone_ref(py));
        let lent = lent.ok_or_else(|| PyValueError::new_err("the shared memory is closed"))?;
        PyMemoryView::from(lent.bind(py).as_any())
    }

    /// Lets go of the memory; not while there are views of it.
    fn close(&self) -> PyResult<()> {
        let Some(lent) = self.slot().take() else {
            return Ok(());
        };
        // numpy keeps what a buffer was had from, rather than the buffer: then the memory goes
        // with the array.
        if lent.get().is_lent() {
            *self.slot() = Some(lent);
            return Err(PyBufferError::new_err(
                "cannot close shared memory while views of it exist",
            ));
        }
        drop(lent);
        Ok(())
    }
}

/// Removes a name.
#[pyfunction]
pub(crate) fn unlink_memory(name: &str) -> PyResult<()> {
    memory::unlink_name(name).map_err(|error| exception(&error))
}

/// Has a name removed when this process ends.
#[pyfunction]
pub(crate) fn watch_memory(name: &str) -> PyResult<()> {
    memory::watch_name(name).map_err(|error| exception(&error))
}

/// Has a name stay when this process ends.
#[pyfunction]
pub(crate) fn forget_memory(name: &str) -> PyResult<()> {
    memory::forget_name(name).map_err(|error| exception(&error))
}

/// How the process that removes names is started.
#[pyfunction]
pub(crate) fn set_names_command(words: Vec<OsString>) -> PyResult<()> {
    memory::set_names_command(words).map_err(|error| exception(&error))
}

/// The process at the top of the tree that this one is in; 0 until it is known.
static TOP: AtomicU32 = AtomicU32::new(0);

/// What [`top`] gives from now on, in this process and its copies.
#[pyfunction]
pub(crate) fn set_top(process: u32) {
    TOP.store(process, Ordering::Relaxed);
}

/// The process at the top of the tree that this one is in: children that are copies have the
/// number of their parent's, and others are told.
#[pyfunction]
pub(crate) fn top() -> u32 {
    TOP.load(Ordering::Relaxed)
}

/// Lets the names that this process has made live as long as the process at the top of the tree.
#[pyfunction]
pub(crate) fn bequeath_names() -> PyResult<()> {
    // The cheaper question first: workers ask after each task.
    if !memory::has_names() {
        return Ok(());
    }
    let top = top();
    if top == std::process::id() {
        return Ok(());
    }
    memory::bequeath_names(top).map_err(|error| exception(&error))?;
    Ok(())
}
