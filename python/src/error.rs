//! The engine's errors as Python's exceptions.

use bunshin::{Error, ErrorKind};
use pyo3::PyErr;
use pyo3::exceptions::{
    PyBrokenPipeError, PyEOFError, PyMemoryError, PyOSError, PyTimeoutError, PyValueError,
};

use crate::fork;

/// The exception for an error of the engine; what a signal handler raised goes first.
pub(crate) fn exception(error: &Error) -> PyErr {
    if let Some(raised) = fork::take_raised() {
        return raised;
    }
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Disconnected => PyEOFError::new_err(text),
        ErrorKind::TimedOut => PyTimeoutError::new_err(text),
        ErrorKind::OutOfMemory => PyMemoryError::new_err(text),
        ErrorKind::InvalidInput => PyValueError::new_err(text),
        _ => match error.raw_os_error() {
            Some(number) => PyOSError::new_err((number, text)),
            None => PyOSError::new_err(text),
        },
    }
}

/// As [`exception`], for a call that sends.
pub(crate) fn sending(error: &Error) -> PyErr {
    const EPIPE: i32 = 32;
    if error.is_disconnected() {
        return PyBrokenPipeError::new_err((EPIPE, error.to_string()));
    }
    exception(error)
}
