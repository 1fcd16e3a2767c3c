//! The engine's errors as Python's exceptions.

use bunshin::{Error, ErrorKind, TaskError};
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

/// The exception for a task, or a result, that could not be sent.
pub(crate) fn unmoved(error: &TaskError, why: &Error) -> PyErr {
    const ENOMEM: i32 = 12;
    let text = error.to_string();
    // What went wrong in the worker comes as text, at the end of which is the system's number.
    let told = || {
        let (_, number) = text.rsplit_once("(os error ")?;
        number.strip_suffix(')')?.parse().ok()
    };
    match why.raw_os_error().or_else(told) {
        Some(ENOMEM) => PyMemoryError::new_err(text),
        Some(number) => PyOSError::new_err((number, text)),
        None => exception(why),
    }
}
