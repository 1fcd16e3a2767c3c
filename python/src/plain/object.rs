//! The interpreter's functions that take or give objects without counting them.
//!
//! For the smallest objects, counting references takes as long as all else: outside of the
//! interpreter, each count is a call. So what is only looked at is borrowed.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr;

use pyo3::PyTypeInfo;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyList};

/// The object, if it is of exactly this type.
///
/// As `cast_exact`, whose error counts references that nobody looks at.
#[inline]
pub(super) fn exactly<'a, 'py, T: PyTypeInfo>(
    object: &'a Bound<'py, PyAny>,
) -> Option<&'a Bound<'py, T>> {
    if object.is_exact_instance_of::<T>() {
        object.cast_exact::<T>().ok()
    } else {
        None
    }
}

/// An integer, if it has 64 bits at most.
#[inline]
pub(super) fn integer(number: &Bound<'_, PyInt>) -> Option<i64> {
    let mut overflow: c_int = 0;
    // SAFETY: it is an integer and the thread is attached; there is a place for the answer.
    let value = unsafe { ffi::PyLong_AsLongLongAndOverflow(number.as_ptr(), &raw mut overflow) };
    // For exactly an integer, nothing else can go wrong.
    (overflow == 0).then_some(value)
}

/// The string of these bytes in UTF-8; nothing if that is not what they are.
#[inline]
pub(super) fn string<'py>(py: Python<'py>, utf8: &[u8]) -> Option<Bound<'py, PyAny>> {
    let len = isize::try_from(utf8.len()).ok()?;
    // SAFETY: so many bytes are there, and the thread is attached. It reads them strictly, as it
    // is not told how else.
    let made = unsafe { ffi::PyUnicode_DecodeUTF8(utf8.as_ptr().cast(), len, ptr::null()) };
    if made.is_null() {
        drop(PyErr::take(py));
        return None;
    }
    // SAFETY: it is a new object.
    Some(unsafe { Bound::from_owned_ptr(py, made) })
}

/// The items of a container, each shown to `look` for as long as that takes, until one is refused.
///
/// What `look` does may run anything (making an object can have the interpreter look for garbage,
/// and that runs what was to run at its end), so that the item may be gone when it returns. Before
/// it has done such a thing, the item is there.
///
/// # Safety
/// `look` does not look at an object again after it did something that may run Python code,
/// unless it took a reference to it before.
pub(super) unsafe fn all_in_list<'py>(
    list: &Bound<'py, PyList>,
    mut look: impl FnMut(&Bound<'py, PyAny>) -> bool,
) -> bool {
    let py = list.py();
    for at in 0..list.len() {
        // SAFETY: it is a list, and answers nothing where there is no item.
        let item = unsafe { ffi::PyList_GetItem(list.as_ptr(), at as isize) };
        if item.is_null() {
            drop(PyErr::take(py));
            return false;
        }
        // SAFETY: the list has it, for as long as `look` needs it to.
        let item = unsafe { Borrowed::from_ptr(py, item) };
        if !look(&item) {
            return false;
        }
    }
    true
}

/// As [`all_in_list`], for the keys of a dict and what they stand for.
///
/// # Safety
/// As there; and what may run Python code is done with the second of the two only, when the first
/// is not looked at any more.
pub(super) unsafe fn all_in_dict<'py>(
    dict: &Bound<'py, PyDict>,
    mut look: impl FnMut(&Bound<'py, PyAny>, &Bound<'py, PyAny>) -> bool,
) -> bool {
    let py = dict.py();
    let len = dict.len();
    let (mut at, mut count) = (0, 0);
    let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
    loop {
        // SAFETY: it is a dict, of which there is a reference, and the places are there. If it
        // has changed meanwhile, what comes next is wrong, but is one of its items or none.
        let found =
            unsafe { ffi::PyDict_Next(dict.as_ptr(), &raw mut at, &raw mut key, &raw mut value) };
        if found == 0 {
            return count == len;
        }
        count += 1;
        // SAFETY: the dict has it, for as long as `look` needs it to.
        let key = unsafe { Borrowed::from_ptr(py, key) };
        // SAFETY: as above.
        let value = unsafe { Borrowed::from_ptr(py, value) };
        if !look(&key, &value) {
            return false;
        }
    }
}
