//! Numbers of a list or a tuple, as bytes.
//!
//! To ask a list for each of its items costs more than to convert them, so they are read where the
//! interpreter keeps them. That is no part of its stable interface: it is done only under
//! versions that are known, and if it holds for objects that were made to try it.

#![allow(unsafe_code)]

use std::slice;

use pyo3::ffi;
use pyo3::prelude::*;

use crate::once::Once;
use pyo3::types::{PyFloat, PyList, PyTuple};

/// Versions whose lists, tuples and floats are known to lie so.
const FIRST: (u8, u8) = (3, 11);
const LAST: (u8, u8) = (3, 15);

const WORD: usize = size_of::<usize>();
/// What all objects begin with: a count and a type.
const HEAD: usize = 2 * WORD;
/// In a list: how many items there are, where they lie, and for how many there is room.
const LIST_ITEMS: usize = HEAD + WORD;
const LIST_ROOM: usize = HEAD + 2 * WORD;
const LIST_LEN: usize = HEAD + 3 * WORD;
/// In a float: its value.
const FLOAT_VALUE: usize = HEAD;
const FLOAT_LEN: usize = HEAD + size_of::<f64>();

/// How objects lie in memory.
#[derive(Clone, Copy)]
struct Layout {
    /// Where the items of a tuple begin, one after the other.
    tuple_items: usize,
}

/// Reads a word of an object.
///
/// # Safety
/// The object lives, and reaches at least a word beyond `offset`, which is a multiple of one.
#[inline]
unsafe fn word(object: *mut ffi::PyObject, offset: usize) -> usize {
    // SAFETY: it is within the object, as the caller says.
    let at = unsafe { object.byte_add(offset) };
    // SAFETY: as above; objects are aligned to more than a word.
    unsafe { at.cast::<usize>().read() }
}

impl Layout {
    /// Nothing if this interpreter's objects are not known, or not found, to lie so.
    fn get(py: Python<'_>) -> Option<Self> {
        static FOUND: Once<Option<Layout>> = Once::new();
        *FOUND.get_or_make(|| Self::find(py)).unwrap_or(&None)
    }

    fn find(py: Python<'_>) -> PyResult<Option<Self>> {
        let version = py.version_info();
        let is_known = (FIRST..=LAST).contains(&(version.major, version.minor));
        let len_of = |class: Bound<'_, pyo3::types::PyType>| -> PyResult<usize> {
            class.getattr("__basicsize__")?.extract()
        };
        // Without room for an item.
        let tuple_items = len_of(py.get_type::<PyTuple>())?;
        if !is_known
            || len_of(py.get_type::<PyList>())? != LIST_LEN
            || len_of(py.get_type::<PyFloat>())? != FLOAT_LEN
            || tuple_items < LIST_ITEMS
            || tuple_items % WORD != 0
        {
            return Ok(None);
        }
        let found = Self { tuple_items };
        let numbers = [0.1, -2.5e300, 7.0].map(|number| PyFloat::new(py, number));
        let list = PyList::new(py, &numbers)?;
        // If two of the three words count the items, the third says where they are.
        // SAFETY: a list has these words, as its size says.
        let room = unsafe { word(list.as_ptr(), LIST_ROOM) };
        // SAFETY: as above.
        let len = unsafe { word(list.as_ptr(), HEAD) };
        if [len, room] != [numbers.len(); 2] {
            return Ok(None);
        }
        let tuple = PyTuple::new(py, &numbers)?;
        // SAFETY: as was just found.
        let in_list = unsafe { found.of_list(&list) };
        // SAFETY: a tuple has its items behind what its size says.
        let in_tuple = unsafe { found.of_tuple(&tuple) };
        let is_so = numbers.iter().enumerate().all(|(at, number)| {
            let item = number.as_ptr();
            // SAFETY: a float has a word there, as its size says.
            let bits = unsafe { word(item, FLOAT_VALUE) };
            bits as u64 == number.value().to_bits() && in_list[at] == item && in_tuple[at] == item
        });
        Ok(is_so.then_some(found))
    }

    /// The items of a list.
    ///
    /// # Safety
    /// Lists lie so, and nothing changes this one as long as the items are used.
    unsafe fn of_list<'a>(self, list: &'a Bound<'_, PyList>) -> &'a [*mut ffi::PyObject] {
        let len = list.len();
        if len == 0 {
            return &[];
        }
        // SAFETY: as the caller says.
        let items = unsafe { word(list.as_ptr(), LIST_ITEMS) } as *const *mut ffi::PyObject;
        // SAFETY: so many are there, and stay, as the caller says.
        unsafe { slice::from_raw_parts(items, len) }
    }

    /// The items of a tuple.
    ///
    /// # Safety
    /// Tuples lie so.
    unsafe fn of_tuple<'a>(self, tuple: &'a Bound<'_, PyTuple>) -> &'a [*mut ffi::PyObject] {
        // SAFETY: it is within the tuple, or at its end.
        let items = unsafe { tuple.as_ptr().byte_add(self.tuple_items) };
        // SAFETY: so many are there, and a tuple does not change.
        unsafe { slice::from_raw_parts(items.cast(), tuple.len()) }
    }
}

/// A simple type of C whose values are read from Python's numbers.
pub(crate) trait Number: Sized {
    /// The value of exactly a number of the one kind that is read here; nothing for all others.
    ///
    /// # Safety
    /// `object` lives and lies as [`Layout`] has it, and the thread is attached.
    unsafe fn read(object: *mut ffi::PyObject) -> Option<Self>;
}

#[inline]
fn is_error(py: Python<'_>) -> bool {
    PyErr::take(py).is_some()
}

/// An exact integer that fits into 64 bits.
///
/// # Safety
/// As for [`Number::read`].
#[inline]
unsafe fn integer(object: *mut ffi::PyObject) -> Option<i64> {
    // SAFETY: as the caller says.
    if unsafe { ffi::PyLong_CheckExact(object) } == 0 {
        return None;
    }
    // SAFETY: as above.
    let value = unsafe { ffi::PyLong_AsLongLong(object) };
    // SAFETY: the thread is attached.
    if value == -1 && is_error(unsafe { Python::assume_attached() }) {
        return None;
    }
    Some(value)
}

/// An exact float.
///
/// # Safety
/// As for [`Number::read`].
#[inline]
unsafe fn real(object: *mut ffi::PyObject) -> Option<f64> {
    // SAFETY: as the caller says.
    if unsafe { ffi::PyFloat_CheckExact(object) } == 0 {
        return None;
    }
    // SAFETY: a float has its value there, as the caller says.
    Some(f64::from_bits(unsafe { word(object, FLOAT_VALUE) } as u64))
}

macro_rules! numbers {
    ($($type:ty: $read:ident),*) => { $(
        impl Number for $type {
            #[inline]
            unsafe fn read(object: *mut ffi::PyObject) -> Option<Self> {
                // SAFETY: as the caller says.
                Some(unsafe { $read(object) }? as $type)
            }
        }
    )* };
}
numbers!(u8: integer, u16: integer, u32: integer, u64: integer, f32: real, f64: real);

/// The bytes of `len` numbers of a list or a tuple; nothing if it is neither, or of another
/// length, or has anything in it but plain integers or floats, as the type wants them, or if
/// it is not known how they lie.
pub(crate) fn bytes_of<T: Number, const N: usize>(
    values: &Bound<'_, PyAny>,
    len: usize,
    bytes: impl Fn(T) -> [u8; N],
) -> Option<Vec<u8>> {
    let layout = Layout::get(values.py())?;
    let items = if let Ok(list) = values.cast_exact::<PyList>() {
        // SAFETY: lists lie so; no code of the interpreter's runs below that could change one.
        unsafe { layout.of_list(list) }
    } else {
        // SAFETY: tuples lie so.
        unsafe { layout.of_tuple(values.cast_exact::<PyTuple>().ok()?) }
    };
    if items.len() != len {
        return None;
    }
    let mut all = vec![0; items.len() * N];
    for (place, item) in all.chunks_exact_mut(N).zip(items) {
        // SAFETY: the list or tuple keeps its items, and the thread is attached.
        let value = unsafe { T::read(*item) }?;
        place.copy_from_slice(&bytes(value));
    }
    Some(all)
}
