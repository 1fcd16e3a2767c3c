//! Small objects of built-in types, pickled and unpickled without a pickler.
//!
//! What is written is an ordinary pickle, that anybody's `pickle.loads` reads. What is read is
//! what is written here; anything else is left to `pickle`. Only objects of exactly these
//! types qualify (no subclasses), nested a few levels deep: `None`, `bool`, `int` of 64 bits,
//! `float`, `str`, `bytes`, `tuple`, `list`, `dict`. A list or dict that occurs twice does not, as it
//! would arrive as two.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyNone, PyString, PyTuple};

/// Levels of containers.
const DEPTH: usize = 6;
/// Longer strings and containers are left to the pickler.
const BYTES: usize = 4 << 10;
const ITEMS: usize = 256;

const PROTO: u8 = 0x80;
const STOP: u8 = b'.';
const NONE: u8 = b'N';
const TRUE: u8 = 0x88;
const FALSE: u8 = 0x89;
const BININT: u8 = b'J';
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const LONG1: u8 = 0x8a;
const BINFLOAT: u8 = b'G';
const SHORT_STR: u8 = 0x8c;
const STR: u8 = b'X';
const SHORT_BYTES: u8 = b'C';
const BIN_BYTES: u8 = b'B';
const MARK: u8 = b'(';
const EMPTY_TUPLE: u8 = b')';
const TUPLE1: u8 = 0x85;
const TUPLE2: u8 = 0x86;
const TUPLE3: u8 = 0x87;
const TUPLE: u8 = b't';
const EMPTY_LIST: u8 = b']';
const APPENDS: u8 = b'e';
const EMPTY_DICT: u8 = b'}';
const SETITEMS: u8 = b'u';

/// Appends the pickle of an object; false, with anything appended, if it does not qualify.
pub(crate) fn dump(object: &Bound<'_, PyAny>, pickle: &mut Vec<u8>) -> bool {
    pickle.extend_from_slice(&[PROTO, 4]);
    let done = write(object, pickle, &mut Vec::new(), DEPTH);
    pickle.push(STOP);
    done
}

fn write(
    object: &Bound<'_, PyAny>,
    out: &mut Vec<u8>,
    seen: &mut Vec<*mut ffi::PyObject>,
    depth: usize,
) -> bool {
    if let Ok(text) = object.cast_exact::<PyString>() {
        // Lone surrogates have no such form.
        let Ok(text) = text.to_str() else {
            return false;
        };
        return write_bytes(text.as_bytes(), SHORT_STR, STR, out);
    }
    if let Ok(number) = object.cast_exact::<PyInt>() {
        return match number.extract::<i64>() {
            Ok(number) => {
                write_int(number, out);
                true
            }
            // Too large for this, and the error is dropped.
            Err(_) => false,
        };
    }
    if object.is_none() {
        out.push(NONE);
        return true;
    }
    if let Ok(truth) = object.cast_exact::<PyBool>() {
        out.push(if truth.is_true() { TRUE } else { FALSE });
        return true;
    }
    if let Ok(number) = object.cast_exact::<PyFloat>() {
        out.push(BINFLOAT);
        out.extend_from_slice(&number.value().to_be_bytes());
        return true;
    }
    if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        return write_bytes(bytes.as_bytes(), SHORT_BYTES, BIN_BYTES, out);
    }
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    if let Ok(items) = object.cast_exact::<PyTuple>() {
        return write_tuple(items, out, seen, depth);
    }
    if let Ok(items) = object.cast_exact::<PyList>() {
        if items.len() > ITEMS || seen.contains(&object.as_ptr()) {
            return false;
        }
        seen.push(object.as_ptr());
        out.extend_from_slice(&[EMPTY_LIST, MARK]);
        let done = items.iter().all(|item| write(&item, out, seen, depth));
        out.push(APPENDS);
        return done;
    }
    if let Ok(items) = object.cast_exact::<PyDict>() {
        if items.len() > ITEMS || seen.contains(&object.as_ptr()) {
            return false;
        }
        seen.push(object.as_ptr());
        out.extend_from_slice(&[EMPTY_DICT, MARK]);
        // Nothing that runs here changes it.
        let done = items
            .iter()
            .all(|(key, value)| write(&key, out, seen, depth) && write(&value, out, seen, depth));
        out.push(SETITEMS);
        return done;
    }
    false
}

fn write_tuple(
    items: &Bound<'_, PyTuple>,
    out: &mut Vec<u8>,
    seen: &mut Vec<*mut ffi::PyObject>,
    depth: usize,
) -> bool {
    let len = items.len();
    if len > ITEMS {
        return false;
    }
    if len > 3 {
        out.push(MARK);
    }
    if !items.iter().all(|item| write(&item, out, seen, depth)) {
        return false;
    }
    out.push(match len {
        0 => EMPTY_TUPLE,
        1 => TUPLE1,
        2 => TUPLE2,
        3 => TUPLE3,
        _ => TUPLE,
    });
    true
}

fn write_bytes(bytes: &[u8], short: u8, long: u8, out: &mut Vec<u8>) -> bool {
    if bytes.len() > BYTES {
        return false;
    }
    match u8::try_from(bytes.len()) {
        Ok(len) => out.extend_from_slice(&[short, len]),
        Err(_) => {
            out.push(long);
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
    }
    out.extend_from_slice(bytes);
    true
}

fn write_int(number: i64, out: &mut Vec<u8>) {
    if let Ok(small) = u8::try_from(number) {
        out.extend_from_slice(&[BININT1, small]);
    } else if let Ok(small) = u16::try_from(number) {
        out.push(BININT2);
        out.extend_from_slice(&small.to_le_bytes());
    } else if let Ok(small) = i32::try_from(number) {
        out.push(BININT);
        out.extend_from_slice(&small.to_le_bytes());
    } else {
        out.extend_from_slice(&[LONG1, 8]);
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// The object of a pickle that [`dump`] may have written; nothing if it was another.
pub(crate) fn load<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let rest = pickle.strip_prefix(&[PROTO, 4])?;
    let mut reader = Reader { rest };
    // What has one part, as most messages have, needs no stack.
    let mut stack: Vec<Bound<'py, PyAny>> = Vec::new();
    let mut marks: Vec<usize> = Vec::new();
    loop {
        let code = reader.byte()?;
        let value = match code {
            STOP => {
                let value = stack.pop()?;
                return (stack.is_empty() && reader.rest.is_empty()).then_some(value);
            }
            MARK => {
                marks.push(stack.len());
                continue;
            }
            NONE => PyNone::get(py).to_owned().into_any(),
            TRUE | FALSE => PyBool::new(py, code == TRUE).to_owned().into_any(),
            BININT1 => PyInt::new(py, reader.byte()?).into_any(),
            BININT2 => PyInt::new(py, u16::from_le_bytes(reader.array()?)).into_any(),
            BININT => PyInt::new(py, i32::from_le_bytes(reader.array()?)).into_any(),
            LONG1 => {
                if reader.byte()? != 8 {
                    return None;
                }
                PyInt::new(py, i64::from_le_bytes(reader.array()?)).into_any()
            }
            BINFLOAT => PyFloat::new(py, f64::from_be_bytes(reader.array()?)).into_any(),
            SHORT_STR | STR => {
                let bytes = reader.counted(code == SHORT_STR)?;
                PyString::new(py, std::str::from_utf8(bytes).ok()?).into_any()
            }
            SHORT_BYTES | BIN_BYTES => {
                PyBytes::new(py, reader.counted(code == SHORT_BYTES)?).into_any()
            }
            EMPTY_TUPLE => PyTuple::empty(py).into_any(),
            TUPLE1 | TUPLE2 | TUPLE3 => {
                let from = stack.len().checked_sub(usize::from(code - TUPLE1) + 1)?;
                PyTuple::new(py, stack.drain(from..)).ok()?.into_any()
            }
            TUPLE => {
                let from = marks.pop()?;
                PyTuple::new(py, stack.drain(from.min(stack.len())..))
                    .ok()?
                    .into_any()
            }
            EMPTY_LIST => PyList::empty(py).into_any(),
            EMPTY_DICT => PyDict::new(py).into_any(),
            APPENDS => {
                let from = marks.pop()?;
                let items: Vec<_> = stack.drain(from.min(stack.len())..).collect();
                let list = stack.last()?.cast_exact::<PyList>().ok()?;
                for item in items {
                    list.append(item).ok()?;
                }
                continue;
            }
            SETITEMS => {
                let from = marks.pop()?;
                let items: Vec<_> = stack.drain(from.min(stack.len())..).collect();
                let dict = stack.last()?.cast_exact::<PyDict>().ok()?;
                for pair in items.chunks_exact(2) {
                    dict.set_item(&pair[0], &pair[1]).ok()?;
                }
                continue;
            }
            _ => return None,
        };
        stack.push(value);
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*first)
    }

    fn counted(&mut self, is_short: bool) -> Option<&'a [u8]> {
        let len = if is_short {
            usize::from(self.byte()?)
        } else {
            usize::try_from(u32::from_le_bytes(self.array()?)).ok()?
        };
        let (first, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(first)
    }
}
