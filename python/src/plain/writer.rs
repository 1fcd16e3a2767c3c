//! Objects to bytes.

#![allow(unsafe_code)]

use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PySet, PyString, PyTuple};

use super::object::{self, exactly};
use super::*;

/// Appends the pickle of an object; false, with anything appended, if it does not qualify.
pub(crate) fn dump(object: &Bound<'_, PyAny>, pickle: &mut Vec<u8>) -> bool {
    pickle.extend_from_slice(&[PROTO, 4]);
    let mut writer = Writer {
        end: pickle.len() + TOTAL,
        out: pickle,
        seen: [ptr::null_mut(); CONTAINERS],
        n_seen: 0,
    };
    let done = writer.write(object, DEPTH);
    pickle.push(STOP);
    done
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Where it becomes too long.
    end: usize,
    /// Containers that can change.
    seen: [*mut ffi::PyObject; CONTAINERS],
    n_seen: usize,
}

impl Writer<'_> {
    /// Looks at an object that is no container at once, and takes a reference to one that is: only
    /// to go through a set may run Python code.
    fn write(&mut self, object: &Bound<'_, PyAny>, depth: usize) -> bool {
        if let Some(text) = exactly::<PyString>(object) {
            // Lone surrogates have no such form.
            let Ok(text) = text.to_str() else {
                return false;
            };
            return self.write_bytes(text.as_bytes(), SHORT_STR, STR);
        }
        if let Some(number) = exactly::<PyInt>(object) {
            let number = object::integer(number);
            return number.map(|number| self.write_int(number)).is_some();
        }
        if object.is_none() {
            self.out.push(NONE);
            return true;
        }
        if let Some(truth) = exactly::<PyBool>(object) {
            self.out.push(if truth.is_true() { TRUE } else { FALSE });
            return true;
        }
        if let Some(number) = exactly::<PyFloat>(object) {
            let mut bytes = [BINFLOAT; 9];
            bytes[1..].copy_from_slice(&number.value().to_be_bytes());
            self.out.extend_from_slice(&bytes);
            return true;
        }
        if let Some(bytes) = exactly::<PyBytes>(object) {
            return self.write_bytes(bytes.as_bytes(), SHORT_BYTES, BIN_BYTES);
        }
        match depth.checked_sub(1) {
            Some(depth) => self.write_container(&object.clone(), depth),
            None => false,
        }
    }

    /// A container, whose items may have so many levels.
    fn write_container(&mut self, object: &Bound<'_, PyAny>, depth: usize) -> bool {
        if let Some(items) = exactly::<PyDict>(object) {
            if !self.begin(object, items.len(), EMPTY_DICT) {
                return false;
            }
            // SAFETY: `write` keeps to that. A key has no sets in it, and is written first.
            let done = unsafe {
                object::all_in_dict(items, |key, value| {
                    self.write(key, depth) && self.write(value, depth)
                })
            };
            self.out.push(SETITEMS);
            return done;
        }
        if let Some(items) = exactly::<PyList>(object) {
            if !self.begin(object, items.len(), EMPTY_LIST) {
                return false;
            }
            // SAFETY: `write` keeps to that.
            let done = unsafe { object::all_in_list(items, |item| self.write(item, depth)) };
            self.out.push(APPENDS);
            return done;
        }
        if let Some(items) = exactly::<PyTuple>(object) {
            if items.is_empty() {
                self.out.push(EMPTY_TUPLE);
                return true;
            }
            // One may occur in many places, each time with all that is in it.
            if items.len() > ITEMS || self.is_full() {
                return false;
            }
            self.out.push(MARK);
            let done = items.iter_borrowed().all(|item| self.write(&item, depth));
            self.out.push(TUPLE);
            return done;
        }
        if let Some(items) = exactly::<PySet>(object) {
            if !self.begin(object, items.len(), EMPTY_SET) {
                return false;
            }
            let done = items.iter().all(|item| self.write(&item, depth));
            self.out.push(ADDITEMS);
            return done;
        }
        false
    }

    /// Begins a container that can change, unless it has begun before.
    fn begin(&mut self, object: &Bound<'_, PyAny>, len: usize, code: u8) -> bool {
        let Some((seen, rest)) = self.seen.split_at_mut_checked(self.n_seen) else {
            return false;
        };
        let Some(next) = rest.first_mut() else {
            return false;
        };
        if len > ITEMS || seen.contains(&object.as_ptr()) {
            return false;
        }
        *next = object.as_ptr();
        self.n_seen += 1;
        self.out.extend_from_slice(&[code, MARK]);
        true
    }

    fn write_bytes(&mut self, bytes: &[u8], short: u8, long: u8) -> bool {
        if bytes.len() > BYTES || self.is_full() {
            return false;
        }
        self.out.reserve(bytes.len() + 5);
        match u8::try_from(bytes.len()) {
            Ok(len) => self.out.extend_from_slice(&[short, len]),
            Err(_) => {
                self.out.push(long);
                let len = bytes.len() as u32;
                self.out.extend_from_slice(&len.to_le_bytes());
            }
        }
        self.out.extend_from_slice(bytes);
        true
    }

    /// Whether it is too long already.
    fn is_full(&self) -> bool {
        self.out.len() > self.end
    }

    fn write_int(&mut self, number: i64) {
        if let Ok(small) = u8::try_from(number) {
            self.out.extend_from_slice(&[BININT1, small]);
        } else if let Ok(small) = u16::try_from(number) {
            let [low, high] = small.to_le_bytes();
            self.out.extend_from_slice(&[BININT2, low, high]);
        } else if let Ok(small) = i32::try_from(number) {
            let mut bytes = [BININT; 5];
            bytes[1..].copy_from_slice(&small.to_le_bytes());
            self.out.extend_from_slice(&bytes);
        } else {
            let mut bytes = [8; 10];
            bytes[0] = LONG1;
            bytes[2..].copy_from_slice(&number.to_le_bytes());
            self.out.extend_from_slice(&bytes);
        }
    }
}
