//! The last words of a worker: what it has written to its standard error.

use std::os::fd::RawFd;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

/// The `write` of a stream that also keeps what is written. A function of Python's would take more
/// memory in each worker than all else of this.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct KeepingWrite(Py<PyAny>);

#[pymethods]
impl KeepingWrite {
    #[new]
    fn new(write: Py<PyAny>) -> Self {
        Self(write)
    }

    #[pyo3(signature = (*args, **kwargs))]
    fn __call__(
        &self,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        // First: this process may not live to see the write return.
        if let Ok(text) = args.get_item(0) {
            leave_words(&text);
        }
        self.0.call(args.py(), args, kwargs)
    }

    #[getter]
    fn __wrapped__(&self, py: Python<'_>) -> Py<PyAny> {
        self.0.clone_ref(py)
    }

    /// All else is as it was.
    fn __getattr__(&self, name: &Bound<'_, PyString>) -> PyResult<Py<PyAny>> {
        self.0.getattr(name.py(), name)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.0)
    }
}

/// Keeps what is being written to the standard error. What is no text is left to that to refuse.
fn leave_words(text: &Bound<'_, PyAny>) {
    let Ok(text) = text.cast::<PyString>() else {
        return;
    };
    if let Ok(text) = text.to_str() {
        bunshin::front::leave_words(text.as_bytes());
    } else if let Ok(bytes) = text.call_method1("encode", ("utf-8", "backslashreplace")) {
        // Half a pair of surrogates, which the standard error writes in the same way.
        if let Ok(bytes) = bytes.extract::<Vec<u8>>() {
            bunshin::front::leave_words(&bytes);
        }
    }
}

/// The descriptor that reports of crashes may be written to, in a worker.
#[pyfunction]
pub(crate) fn words_descriptor() -> Option<RawFd> {
    bunshin::front::words_descriptor()
}
