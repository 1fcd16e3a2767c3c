//! Methods that the interpreter calls with nothing in between.
//!
//! To take a lock that is free is two instructions; what lies between the interpreter and them is
//! then most of the time. A [`Method`] is the function that the interpreter calls, and what takes
//! longer than a moment goes on in the ordinary way. [`Entrance`] is what `with` finds on a class:
//! it gives the functions that the object keeps ready, where the interpreter would make a new
//! object for each of the two.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::slice;

use pyo3::PyClass;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::types::{PyString, PyTuple, PyType};

/// What such a method answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    None,
    True,
    False,
}

impl Answer {
    fn object(self) -> *mut ffi::PyObject {
        let object = match self {
            // SAFETY: it is there as long as the interpreter.
            Self::None => unsafe { ffi::Py_None() },
            // SAFETY: as above.
            Self::True => unsafe { ffi::Py_True() },
            // SAFETY: as above.
            Self::False => unsafe { ffi::Py_False() },
        };
        // SAFETY: as above; who calls a method is attached.
        unsafe { ffi::Py_IncRef(object) };
        object
    }
}

impl From<bool> for Answer {
    fn from(truth: bool) -> Self {
        if truth { Self::True } else { Self::False }
    }
}

/// Makes the exception for what went wrong.
pub(crate) type Failure = fn(Python<'_>) -> PyErr;

/// The arguments of a call: those by position, and then those by name.
pub(crate) struct Arguments<'a, 'py> {
    py: Python<'py>,
    given: &'a [*mut ffi::PyObject],
    names: Option<Bound<'py, PyTuple>>,
}

impl<'py> Arguments<'_, 'py> {
    /// Those that the method `M` calls so, none of which has to be given.
    pub(crate) fn of<M: Method, const N: usize>(
        &self,
        wanted: [&str; N],
    ) -> PyResult<[Option<Bound<'py, PyAny>>; N]> {
        let wrong = |what: String| {
            let method = M::NAME.to_string_lossy();
            PyTypeError::new_err(format!("{method}() {what}"))
        };
        let n_named = self.names.as_ref().map_or(0, |names| names.len());
        let n_placed = self.given.len() - n_named;
        if n_placed > N {
            return Err(wrong(format!(
                "takes {N} arguments at most ({n_placed} given)"
            )));
        }
        let mut found = [const { None }; N];
        for (at, given) in self.given.iter().enumerate() {
            let place = match &self.names {
                Some(names) if at >= n_placed => {
                    let name = names.get_item(at - n_placed)?;
                    let name = name.cast::<PyString>()?.to_cow()?;
                    let place = wanted.iter().position(|wanted| *wanted == name);
                    place.ok_or_else(|| wrong(format!("has no argument called {name}")))?
                }
                _ => at,
            };
            // SAFETY: the interpreter gives objects that live while it calls.
            let value = unsafe { Bound::from_borrowed_ptr(self.py, *given) };
            if found[place].replace(value).is_some() {
                return Err(wrong(format!("was given {} twice", wanted[place])));
            }
        }
        Ok(found)
    }
}

/// A method of a class.
pub(crate) trait Method: Sized + 'static {
    type Class: PyClass<Frozen = True> + Sync;
    const NAME: &'static CStr;
    /// Its signature, as the interpreter reads it, and what it does.
    const DOC: &'static CStr;
    /// With so many arguments by position at most, all is as if there were none.
    const IGNORED: usize = 0;

    /// Does what there is to do for most who call it without arguments; or nothing at all, if it
    /// answers nothing. It must neither wait nor touch any Python object.
    fn at_once(this: &Self::Class) -> Result<Option<Answer>, Failure>;

    /// Does it in any case.
    fn in_full(
        this: &Self::Class,
        py: Python<'_>,
        arguments: &Arguments<'_, '_>,
    ) -> PyResult<Answer>;
}

/// The function that the interpreter calls.
///
/// # Safety
/// 1. The thread is attached.
/// 2. `this` is an object of the method's class.
/// 3. The arguments are as the interpreter has them for this kind of function.
unsafe extern "C" fn call<M: Method>(
    this: *mut ffi::PyObject,
    given: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    if count.unsigned_abs() <= M::IGNORED && names.is_null() {
        // SAFETY: duty 1.
        let py = unsafe { Python::assume_attached() };
        // SAFETY: duty 2; the caller keeps the object.
        let this = unsafe { Borrowed::from_ptr(py, this) };
        // SAFETY: as above.
        let this = unsafe { this.cast_unchecked::<M::Class>() };
        match M::at_once(this.get()) {
            Ok(Some(answer)) => return answer.object(),
            Ok(None) => {}
            Err(failure) => {
                failure(py).restore(py);
                return ptr::null_mut();
            }
        }
    }
    // SAFETY: as the caller says.
    unsafe { call_in_full::<M>(this, given, count, names) }
}

/// As [`call`], for all cases.
///
/// # Safety
/// As there.
#[cold]
unsafe fn call_in_full<M: Method>(
    this: *mut ffi::PyObject,
    given: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: duty 1. PyO3 does not count this thread as attached, as it would in a method of
    // its own: references that are dropped without a token are then dropped a little later.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: duty 2; the caller keeps the object.
    let this = unsafe { Borrowed::from_ptr(py, this) };
    // SAFETY: as above.
    let this = unsafe { this.cast_unchecked::<M::Class>() };
    // SAFETY: duty 3: a tuple of names, or nothing.
    let names = unsafe { Bound::from_borrowed_ptr_or_opt(py, names) };
    let names = names.and_then(|names| names.cast_into::<PyTuple>().ok());
    let count = count.unsigned_abs() + names.as_ref().map_or(0, |names| names.len());
    let given = if count == 0 {
        &[]
    } else {
        // SAFETY: duty 3: so many arguments are there, those by name last.
        unsafe { slice::from_raw_parts(given, count) }
    };
    let arguments = Arguments { py, given, names };
    match M::in_full(this.get(), py, &arguments) {
        Ok(answer) => answer.object(),
        Err(error) => {
            error.restore(py);
            ptr::null_mut()
        }
    }
}

/// What the interpreter reads about a method, at any time.
struct Definition<M>(PhantomData<M>);

impl<M: Method> Definition<M> {
    const HERE: &'static ffi::PyMethodDef = &ffi::PyMethodDef {
        ml_name: M::NAME.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionFastWithKeywords: call::<M>,
        },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: M::DOC.as_ptr(),
    };

    fn pointer() -> *mut ffi::PyMethodDef {
        // It is only read.
        ptr::from_ref(Self::HERE).cast_mut()
    }
}

/// Gives a class the method.
pub(crate) fn add_method<M: Method>(class: &Bound<'_, PyType>) -> PyResult<()> {
    // SAFETY: the class is one, and the definition is there for ever.
    let method = unsafe { ffi::PyDescr_NewMethod(class.as_type_ptr(), Definition::<M>::pointer()) };
    // SAFETY: it gives a new object, or says why not.
    let method = unsafe { Bound::from_owned_ptr_or_err(class.py(), method) }?;
    class.setattr(M::NAME, method)
}

/// The method of this object, as a function.
pub(crate) fn bound<M: Method>(this: &Bound<'_, M::Class>) -> PyResult<Py<PyAny>> {
    // SAFETY: the object is of the class that the method expects, and the definition is there
    // for ever.
    let function = unsafe {
        ffi::PyCFunction_NewEx(Definition::<M>::pointer(), this.as_ptr(), ptr::null_mut())
    };
    // SAFETY: it gives a new object, or says why not.
    Ok(unsafe { Bound::from_owned_ptr_or_err(this.py(), function) }?.unbind())
}

/// One of the two functions that `with` calls, for objects of a class that keep them.
pub(crate) trait Entrance: 'static {
    type Class: PyClass<Frozen = True> + Sync;
    const NAME: &'static CStr;

    /// The function that this object keeps.
    fn function(this: &Self::Class) -> Option<&Py<PyAny>>;
}

/// Gives a class what `with` looks for.
pub(crate) fn add_entrance<E: Entrance>(class: &Bound<'_, PyType>) -> PyResult<()> {
    let get: unsafe extern "C" fn(_, _, _) -> _ = get::<E>;
    let call: unsafe extern "C" fn(_, _, _) -> _ = call_unbound::<E>;
    let mut slots = [
        ffi::PyType_Slot {
            slot: ffi::Py_tp_descr_get,
            pfunc: get as *mut c_void,
        },
        ffi::PyType_Slot {
            slot: ffi::Py_tp_call,
            pfunc: call as *mut c_void,
        },
        ffi::PyType_Slot {
            slot: 0,
            pfunc: ptr::null_mut(),
        },
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"bunshin._native.Entrance".as_ptr(),
        // As large as what it is derived from, which is `object`.
        basicsize: 0,
        itemsize: 0,
        flags: ffi::Py_TPFLAGS_DEFAULT as c_uint,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the functions are of the kinds that the slots are for; the list of slots ends.
    let made = unsafe { ffi::PyType_FromSpec(&raw mut spec) };
    // SAFETY: it gives a new object, or says why not.
    let made = unsafe { Bound::from_owned_ptr_or_err(class.py(), made) }?;
    class.setattr(E::NAME, made.call0()?)
}

/// What `object.__enter__` is.
///
/// # Safety
/// The thread is attached; the objects are such, or null.
unsafe extern "C" fn get<E: Entrance>(
    this: *mut ffi::PyObject,
    object: *mut ffi::PyObject,
    _class: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let found = if object.is_null() {
        // Asked of the class: itself, to be called with an object.
        this
    } else {
        // SAFETY: as the caller says.
        let py = unsafe { Python::assume_attached() };
        // SAFETY: as the caller says.
        let object = unsafe { Borrowed::from_ptr(py, object) };
        let function = object.cast::<E::Class>().ok();
        let function = function.and_then(|object| Some(E::function(object.get())?.as_ptr()));
        match function {
            Some(function) => function,
            None => {
                PyTypeError::new_err("the object was not initialised").restore(py);
                return ptr::null_mut();
            }
        }
    };
    // SAFETY: it is there: the object keeps it, or the caller has it.
    unsafe { ffi::Py_IncRef(found) };
    found
}

/// Calls `__enter__` of the class with an object.
///
/// # Safety
/// As [`get`]; the arguments are a tuple.
unsafe extern "C" fn call_unbound<E: Entrance>(
    _this: *mut ffi::PyObject,
    arguments: *mut ffi::PyObject,
    _named: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    Python::attach(|py| {
        // SAFETY: the interpreter gives a tuple that lives while it calls.
        let arguments = unsafe { Bound::from_borrowed_ptr(py, arguments) };
        let called = arguments
            .cast_into::<PyTuple>()
            .map_err(PyErr::from)
            .and_then(|arguments| {
                let object = arguments
                    .get_item(0)
                    .map_err(|_| PyTypeError::new_err("it is called with an object"))?;
                let object = object.cast::<E::Class>()?;
                let function = E::function(object.get())
                    .ok_or_else(|| PyTypeError::new_err("the object was not initialised"))?;
                function.call1(py, arguments.get_slice(1, arguments.len()))
            });
        match called {
            Ok(result) => result.into_ptr(),
            Err(error) => {
                error.restore(py);
                ptr::null_mut()
            }
        }
    })
}
