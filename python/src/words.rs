//! The last words of a worker: what it has written to its standard error.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::PyString;

/// Keeps what is being written to the standard error. What is no text is left to that to refuse.
#[pyfunction]
pub(crate) fn leave_words(text: &Bound<'_, PyAny>) {
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
