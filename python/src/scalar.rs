//! Plain numbers and texts as pickles, without a pickler.
//!
//! What messages carry most often is a number, a short text or nothing at all, and a pickler's
//! calls cost more than all else that is done for such a one. The bytes are the pickles that any
//! unpickler reads; what is not of these shapes is left to `pickle`.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};

const START: [u8; 2] = [0x80, 5];
const STOP: u8 = b'.';
const NONE: u8 = b'N';
const TRUE: u8 = 0x88;
const FALSE: u8 = 0x89;
const INT: u8 = b'J';
const FLOAT: u8 = b'G';
const TEXT: u8 = b'X';
const BYTES: u8 = b'B';

/// Texts and bytes up to this length.
const SHORT: usize = 1024;

fn pickled(code: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + parts.iter().map(|part| part.len()).sum::<usize>());
    bytes.extend_from_slice(&START);
    bytes.push(code);
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes.push(STOP);
    bytes
}

fn with_length(code: u8, body: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(body.len()).ok()?;
    (body.len() <= SHORT).then(|| pickled(code, &[&len.to_le_bytes(), body]))
}

/// The pickle of an object that is so simple.
pub(crate) fn dump(object: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
    // Exactly these types: a subclass may be pickled as it likes.
    if let Ok(int) = object.cast_exact::<PyInt>() {
        let value: i32 = int.extract().ok()?;
        Some(pickled(INT, &[&value.to_le_bytes()]))
    } else if object.is_none() {
        Some(pickled(NONE, &[]))
    } else if let Ok(text) = object.cast_exact::<PyString>() {
        // Not every text can be encoded, and `pickle` knows what to do then.
        with_length(TEXT, text.to_str().ok()?.as_bytes())
    } else if let Ok(float) = object.cast_exact::<PyFloat>() {
        Some(pickled(FLOAT, &[&float.value().to_be_bytes()]))
    } else if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        with_length(BYTES, bytes.as_bytes())
    } else if let Ok(truth) = object.cast_exact::<PyBool>() {
        Some(pickled(if truth.is_true() { TRUE } else { FALSE }, &[]))
    } else {
        None
    }
}

/// The object of a pickle that [`dump`] may have made.
pub(crate) fn load<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let body = pickle.strip_prefix(&START)?.strip_suffix(&[STOP])?;
    let (code, body) = body.split_first()?;
    match (*code, body.len()) {
        (NONE, 0) => Some(py.None().into_bound(py)),
        (TRUE, 0) => Some(PyBool::new(py, true).to_owned().into_any()),
        (FALSE, 0) => Some(PyBool::new(py, false).to_owned().into_any()),
        (INT, 4) => {
            let value = i32::from_le_bytes(body.try_into().ok()?);
            Some(PyInt::new(py, value).into_any())
        }
        (FLOAT, 8) => {
            let value = f64::from_be_bytes(body.try_into().ok()?);
            Some(PyFloat::new(py, value).into_any())
        }
        (TEXT | BYTES, 4..) => {
            let (len, body) = body.split_first_chunk::<4>()?;
            if u32::from_le_bytes(*len) as usize != body.len() {
                return None;
            }
            if *code == BYTES {
                return Some(PyBytes::new(py, body).into_any());
            }
            let text = std::str::from_utf8(body).ok()?;
            Some(PyString::new(py, text).into_any())
        }
        _ => None,
    }
}
