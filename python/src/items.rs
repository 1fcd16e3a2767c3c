//! Numbers of a list or a tuple, as bytes.
//!
//! To ask a list for each of its items costs more than to convert them. A function that the
//! interpreter calls with a tuple as its arguments is given all of them as an array, and so the
//! items are read inside of such a call.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr;
use std::slice;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

const CAPSULE: &CStr = c"bunshin items";

/// Something to be done with the items of a tuple, and then what came of it.
struct Work<F, R> {
    work: Option<F>,
    result: Option<R>,
}

/// What the interpreter reads about the function.
struct Definition<F, R>(PhantomData<(F, R)>);

impl<F: FnOnce(&[*mut ffi::PyObject]) -> R, R> Definition<F, R> {
    const HERE: &'static ffi::PyMethodDef = &ffi::PyMethodDef {
        ml_name: c"items".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionFast: receive::<F, R>,
        },
        ml_flags: ffi::METH_FASTCALL,
        ml_doc: ptr::null(),
    };
}

/// Does the work that a capsule leads to with the arguments of the call.
///
/// # Safety
/// To be called by the interpreter, with a capsule made by [`with_items`] for the same types.
unsafe extern "C" fn receive<F: FnOnce(&[*mut ffi::PyObject]) -> R, R>(
    capsule: *mut ffi::PyObject,
    given: *mut *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: the capsule is one, as the caller says.
    let work = unsafe { ffi::PyCapsule_GetPointer(capsule, CAPSULE.as_ptr()) };
    // SAFETY: it leads to such a piece of work, which is there and nobody else's during the call.
    let work = unsafe { work.cast::<Work<F, R>>().as_mut() };
    let Some(work) = work else {
        return ptr::null_mut();
    };
    let items = if count <= 0 {
        &[]
    } else {
        // SAFETY: the interpreter has put so many objects there.
        unsafe { slice::from_raw_parts(given, count.unsigned_abs()) }
    };
    work.result = work.work.take().map(|work| work(items));
    // SAFETY: it is there as long as the interpreter.
    let none = unsafe { ffi::Py_None() };
    // SAFETY: as above; the thread is attached.
    unsafe { ffi::Py_NewRef(none) }
}

/// Calls `work` with the items of a tuple, which live as long as that.
fn with_items<F, R>(values: &Bound<'_, PyTuple>, work: F) -> PyResult<Option<R>>
where
    F: FnOnce(&[*mut ffi::PyObject]) -> R,
{
    let py = values.py();
    let mut work = Work {
        work: Some(work),
        result: None,
    };
    let at = (&raw mut work).cast();
    // SAFETY: the address is not null, the name is there for ever, and nothing is to be freed.
    let capsule = unsafe { ffi::PyCapsule_New(at, CAPSULE.as_ptr(), None) };
    // SAFETY: it gives a new object, or says why not.
    let capsule = unsafe { Bound::from_owned_ptr_or_err(py, capsule) }?;
    let definition = ptr::from_ref(Definition::<F, R>::HERE).cast_mut();
    // SAFETY: the definition is there for ever, and only read.
    let function = unsafe { ffi::PyCFunction_NewEx(definition, capsule.as_ptr(), ptr::null_mut()) };
    // SAFETY: it gives a new object, or says why not.
    let function = unsafe { Bound::from_owned_ptr_or_err(py, function) }?;
    function.call1(values)?;
    Ok(work.result)
}

/// A simple type of C whose values are read from Python's numbers.
pub(crate) trait Number: Sized {
    /// The value of exactly a number of the one kind that is read here; nothing for all others.
    ///
    /// # Safety
    /// `object` lives, and the thread is attached.
    unsafe fn read(object: *mut ffi::PyObject) -> Option<Self>;
}

#[inline]
fn is_error(py: Python<'_>) -> bool {
    PyErr::take(py).is_some()
}

/// An exact integer that fits into 64 bits.
///
/// # Safety
/// `object` lives, and the thread is attached.
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
/// `object` lives, and the thread is attached.
#[inline]
unsafe fn real(object: *mut ffi::PyObject) -> Option<f64> {
    // SAFETY: as the caller says.
    if unsafe { ffi::PyFloat_CheckExact(object) } == 0 {
        return None;
    }
    // SAFETY: as above; it cannot fail for a float.
    Some(unsafe { ffi::PyFloat_AsDouble(object) })
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
/// length, or has anything in it but plain integers or floats, as the type wants them.
pub(crate) fn bytes_of<T: Number, const N: usize>(
    values: &Bound<'_, PyAny>,
    len: usize,
    bytes: impl Fn(T) -> [u8; N],
) -> Option<Vec<u8>> {
    let values = if let Ok(list) = values.cast_exact::<PyList>() {
        if list.len() != len {
            return None;
        }
        list.to_tuple()
    } else {
        values.cast_exact::<PyTuple>().ok()?.clone()
    };
    if values.len() != len {
        return None;
    }
    let work = |items: &[*mut ffi::PyObject]| {
        let mut all = vec![0; items.len() * N];
        for (place, item) in all.chunks_exact_mut(N).zip(items) {
            // SAFETY: the interpreter keeps the items while it calls.
            let value = unsafe { T::read(*item) }?;
            place.copy_from_slice(&bytes(value));
        }
        Some(all)
    };
    // What goes wrong here goes wrong again where it is told.
    with_items(&values, work).ok()??
}
