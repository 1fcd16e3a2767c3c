//! Values and arrays in shared memory behind a lock.
//!
//! Where the lock is one of this package in shared memory and the type a simple one, an access is
//! one call: take the lock, move the bits, give it back. The interpreter is let go of only if
//! somebody else has the lock. All else goes by way of the ctypes object, which is made of the
//! same memory when it is first asked for.

use bunshin::front::memory::{Attempt, MemoryLock, Row};
use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PySlice, PyTuple};

use crate::error::exception;
use crate::heap::Block;
use crate::lock::{SemLock, wait_for_memory};
use crate::number::Kind;
use crate::once::Once;
use crate::sync::abandoned;

fn attempt(lock: &MemoryLock) -> PyResult<Attempt> {
    lock.try_lock().map_err(|error| exception(&error))
}

/// Refuses to pickle an object but for a child that is being started.
fn assert_spawning(object: &Bound<'_, PyAny>) -> PyResult<()> {
    static ASSERT: Once<Py<PyAny>> = Once::new();
    ASSERT
        .import(object.py(), "bunshin.context", "assert_spawning")?
        .call1((object,))?;
    Ok(())
}

/// Where a value of a simple type, or an array of them, lies.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Place {
    kind: Kind,
    row: Row,
    /// Keeps the memory from being used for something else.
    _block: Py<Block>,
    /// Makes the ctypes object when it is asked for.
    make: Py<PyAny>,
}

#[pymethods]
impl Place {
    /// Nothing if the type of that letter and size is not a simple one.
    #[staticmethod]
    fn of(
        block: &Bound<'_, Block>,
        letter: &str,
        item_size: usize,
        len: usize,
        make: Py<PyAny>,
    ) -> Option<Self> {
        let kind = Kind::of(letter, item_size)?;
        let (memory, offset) = (block.get().memory(), block.get().offset());
        Some(Self {
            kind,
            row: Row::new(memory, offset, kind.size(), len).ok()?,
            _block: block.clone().unbind(),
            make,
        })
    }
}

enum Lock {
    /// In shared memory, and taken without a call.
    Own(MemoryLock, Py<SemLock>),
    /// Any object with `acquire` and `release`.
    Other(Py<PyAny>),
}

/// What is common to all: an object and its lock.
#[pyclass(module = "bunshin._native", frozen, subclass)]
pub(crate) struct SynchronizedBase {
    place: Option<Py<Place>>,
    object: Once<Py<PyAny>>,
    lock: Lock,
}

impl SynchronizedBase {
    fn make(
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        lock: Option<Bound<'_, PyAny>>,
        ctx: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let module = || py.import(crate::once::intern!(py, "bunshin.sharedctypes"));
        let lock = match lock.filter(|lock| !lock.is_none()) {
            Some(lock) => lock,
            None => module()?.call_method1("_new_lock", (ctx,))?,
        };
        let own = lock.cast::<SemLock>().ok();
        let own = own.and_then(|own| Some((own.get().memory()?.clone(), own.clone().unbind())));
        let lock = match own {
            Some((memory, own)) => Lock::Own(memory, own),
            None => Lock::Other(lock.unbind()),
        };
        let (place, kept) = match object.cast::<Place>() {
            Ok(place) => (Some(place.clone().unbind()), None),
            Err(_) => {
                let place = module()?.call_method1("_place_of", (object,))?;
                let place = place.extract::<Option<Py<Place>>>()?;
                (place, Some(object.clone().unbind()))
            }
        };
        let whole = Self {
            place,
            object: Once::new(),
            lock,
        };
        if let Some(kept) = kept {
            whole.object.get_or_make(|| Ok(kept))?;
        }
        Ok(whole)
    }

    /// The ctypes object.
    fn object<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let object = self.object.get_or_make(|| match &self.place {
            Some(place) => place.get().make.call0(py),
            None => Err(PyAssertionError::new_err("there is no object")),
        })?;
        Ok(object.bind(py))
    }

    /// Runs `work` with the lock held, which does not need the interpreter.
    #[inline]
    fn locked<R: Send>(&self, py: Python<'_>, work: impl FnOnce() -> R + Send) -> PyResult<R> {
        match &self.lock {
            Lock::Own(lock, _) => {
                let mut got = attempt(lock)?;
                if got == Attempt::Unavailable {
                    got = wait_for_memory(py, lock, None)?;
                }
                if got == Attempt::Abandoned {
                    lock.unlock();
                    return Err(abandoned(py));
                }
                let result = work();
                lock.unlock();
                Ok(result)
            }
            Lock::Other(lock) => {
                lock.call_method0(py, crate::once::intern!(py, "acquire"))?;
                let result = work();
                lock.call_method0(py, crate::once::intern!(py, "release"))?;
                Ok(result)
            }
        }
    }

    /// Runs `work` on the ctypes object with the lock held.
    fn locked_object<'py, R>(
        &self,
        py: Python<'py>,
        work: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<R>,
    ) -> PyResult<R> {
        let object = self.object(py)?;
        match &self.lock {
            Lock::Own(_, lock) => {
                let lock = lock.get().hold()?;
                lock.enter(py)?;
                let result = work(object);
                lock.leave(py)?;
                result
            }
            Lock::Other(lock) => {
                lock.call_method0(py, crate::once::intern!(py, "acquire"))?;
                let result = work(object);
                lock.call_method0(py, crate::once::intern!(py, "release"))?;
                result
            }
        }
    }

    fn lock_object<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        match &self.lock {
            Lock::Own(_, lock) => lock.bind(py).as_any(),
            Lock::Other(lock) => lock.bind(py),
        }
    }

    /// The items, if they are for here.
    #[inline]
    fn place(&self) -> Option<&Place> {
        self.place.as_ref().map(Py::get)
    }

    /// The item at `index`, which is there.
    #[inline]
    fn load<'py>(
        &self,
        py: Python<'py>,
        place: &Place,
        index: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let glance = match &self.lock {
            Lock::Own(lock, _) => lock.glance(|| place.row.load(index)),
            Lock::Other(_) => None,
        };
        let bits = match glance {
            Some(bits) => bits,
            None => self.locked(py, || place.row.load(index))?,
        };
        place.kind.to_python(py, bits)
    }

    /// The items, if they are characters of a byte each.
    fn text(&self) -> Option<&Place> {
        self.place().filter(|place| place.kind == Kind::Char)
    }

    /// Writes the bytes of items from `first` on, which are there.
    fn write(&self, py: Python<'_>, place: &Place, first: usize, bytes: &[u8]) -> PyResult<()> {
        let (memory, offset) = place.row.place(first);
        let written = self.locked(py, || memory.write_at(offset, bytes))?;
        written.map_err(|error| exception(&error))
    }

    /// The bytes of so many items from `first` on, which are there.
    fn read(&self, py: Python<'_>, place: &Place, first: usize, count: usize) -> PyResult<Vec<u8>> {
        let (memory, offset) = place.row.place(first);
        let mut bytes = vec![0; count * place.kind.size()];
        let read = match &self.lock {
            Lock::Own(lock, _) => lock.glance(|| memory.read_at(offset, &mut bytes)),
            Lock::Other(_) => None,
        };
        let read = match read {
            Some(read) => read,
            None => self.locked(py, || memory.read_at(offset, &mut bytes))?,
        };
        read.map_err(|error| exception(&error))?;
        Ok(bytes)
    }

    /// Writes the item at `index`, which is there; says whether it did.
    #[inline]
    fn store(&self, place: &Place, index: usize, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        // Before the lock is taken: it may run Python code.
        let Some(bits) = place.kind.bits(value) else {
            return Ok(false);
        };
        self.locked(value.py(), || place.row.store(index, bits))?;
        Ok(true)
    }
}

impl Place {
    /// The index that an integer means in an array, if it is in it.
    #[inline]
    fn index(&self, key: &Bound<'_, PyAny>) -> Option<usize> {
        let len = self.row.len();
        let index: isize = key.cast_exact::<PyInt>().ok()?.extract().ok()?;
        let index = if index < 0 {
            len.checked_sub(index.unsigned_abs())?
        } else {
            index.unsigned_abs()
        };
        (index < len).then_some(index)
    }

    /// The items of a slice that lie side by side, and how many: first, count.
    fn span(&self, key: &Bound<'_, PyAny>) -> PyResult<Option<(usize, usize)>> {
        let (Ok(slice), Ok(len)) = (key.cast::<PySlice>(), isize::try_from(self.row.len())) else {
            return Ok(None);
        };
        let indices = slice.indices(len)?;
        let is_whole = indices.step == 1 && indices.slicelength > 0 && !self.kind.is_text();
        Ok(is_whole.then_some((indices.start.unsigned_abs(), indices.slicelength)))
    }
}

#[pymethods]
impl SynchronizedBase {
    #[new]
    #[pyo3(signature = (obj, lock=None, ctx=None))]
    fn new(
        py: Python<'_>,
        obj: &Bound<'_, PyAny>,
        lock: Option<Bound<'_, PyAny>>,
        ctx: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        Self::make(py, obj, lock, ctx)
    }

    /// The object in shared memory, without its lock.
    fn get_obj<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.object(py).cloned()
    }

    /// The lock.
    fn get_lock<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.lock_object(py).clone()
    }

    #[getter]
    fn _obj<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get_obj(py)
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.get_lock(py)
    }

    /// Takes the lock, as its own `acquire` does.
    #[getter]
    fn acquire<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock_object(py)
            .getattr(crate::once::intern!(py, "acquire"))
    }

    /// Gives the lock back, as its own `release` does.
    #[getter]
    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock_object(py)
            .getattr(crate::once::intern!(py, "release"))
    }

    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock_object(py)
            .call_method0(crate::once::intern!(py, "__enter__"))
    }

    #[pyo3(signature = (*exception))]
    fn __exit__<'py>(
        &self,
        py: Python<'py>,
        exception: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.lock_object(py)
            .call_method1(crate::once::intern!(py, "__exit__"), exception.clone())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        assert_spawning(slf)?;
        let again = py.import("bunshin.sharedctypes")?.getattr("synchronized")?;
        let this = slf.get();
        (again, (this.get_obj(py)?, this.get_lock(py))).into_pyobject(py)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let name = slf.get_type().name()?;
        let object = slf.get().object(slf.py())?.str()?;
        Ok(format!("<{name} wrapper for {object}>"))
    }
}

/// A value of a simple type and its lock.
#[pyclass(module = "bunshin._native", frozen, subclass, extends = SynchronizedBase)]
pub(crate) struct SynchronizedValue;

#[pymethods]
impl SynchronizedValue {
    #[new]
    #[pyo3(signature = (obj, lock=None, ctx=None))]
    fn new(
        py: Python<'_>,
        obj: &Bound<'_, PyAny>,
        lock: Option<Bound<'_, PyAny>>,
        ctx: Option<Bound<'_, PyAny>>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let whole = SynchronizedBase::make(py, obj, lock, ctx)?;
        Ok(PyClassInitializer::from(whole).add_subclass(Self))
    }

    /// The value, read and written with the lock held.
    #[getter]
    fn value<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let whole = slf.as_super().get();
        match whole.place() {
            Some(place) => whole.load(py, place, 0),
            None => whole.locked_object(py, |object| {
                object.getattr(crate::once::intern!(py, "value"))
            }),
        }
    }

    #[setter]
    fn set_value(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let whole = slf.as_super().get();
        if let Some(place) = whole.place() {
            if whole.store(place, 0, value)? {
                return Ok(());
            }
        }
        let py = slf.py();
        whole.locked_object(py, |object| {
            object.setattr(crate::once::intern!(py, "value"), value)
        })
    }
}

/// Whether there are as many characters as text has, or more.
fn fits(place: &Place, text: &Bound<'_, PyBytes>) -> bool {
    text.as_bytes().len() <= place.row.len()
}

/// An array and its lock.
#[pyclass(module = "bunshin._native", frozen, subclass, extends = SynchronizedBase)]
pub(crate) struct SynchronizedItems;

#[pymethods]
impl SynchronizedItems {
    #[new]
    #[pyo3(signature = (obj, lock=None, ctx=None))]
    fn new(
        py: Python<'_>,
        obj: &Bound<'_, PyAny>,
        lock: Option<Bound<'_, PyAny>>,
        ctx: Option<Bound<'_, PyAny>>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let whole = SynchronizedBase::make(py, obj, lock, ctx)?;
        Ok(PyClassInitializer::from(whole).add_subclass(Self))
    }

    /// An array of characters as text: up to the first zero.
    fn _value<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, whole) = (slf.py(), slf.as_super().get());
        match whole.text() {
            Some(place) => {
                let bytes = whole.read(py, place, 0, place.row.len())?;
                let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
                Ok(PyBytes::new(py, text).into_any())
            }
            None => whole.locked_object(py, |object| {
                object.getattr(crate::once::intern!(py, "value"))
            }),
        }
    }

    /// Writes text and, if there is room, a zero behind it.
    fn _set_value(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, whole) = (slf.py(), slf.as_super().get());
        let text = whole.text().zip(value.cast::<PyBytes>().ok());
        if let Some((place, text)) = text.filter(|(place, text)| fits(place, text)) {
            let mut bytes = text.as_bytes().to_vec();
            if bytes.len() < place.row.len() {
                bytes.push(0);
            }
            return whole.write(py, place, 0, &bytes);
        }
        whole.locked_object(py, |object| {
            object.setattr(crate::once::intern!(py, "value"), value)
        })
    }

    /// All characters of an array of such.
    fn _raw<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, whole) = (slf.py(), slf.as_super().get());
        match whole.text() {
            Some(place) => {
                let bytes = whole.read(py, place, 0, place.row.len())?;
                Ok(PyBytes::new(py, &bytes).into_any())
            }
            None => {
                whole.locked_object(py, |object| object.getattr(crate::once::intern!(py, "raw")))
            }
        }
    }

    /// Writes characters.
    fn _set_raw(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, whole) = (slf.py(), slf.as_super().get());
        let text = whole.text().zip(value.cast::<PyBytes>().ok());
        if let Some((place, text)) = text.filter(|(place, text)| fits(place, text)) {
            return whole.write(py, place, 0, text.as_bytes());
        }
        whole.locked_object(py, |object| {
            object.setattr(crate::once::intern!(py, "raw"), value)
        })
    }

    fn __len__(slf: &Bound<'_, Self>) -> PyResult<usize> {
        let whole = slf.as_super().get();
        match &whole.place {
            Some(place) => Ok(place.get().row.len()),
            None => whole.object(slf.py())?.len(),
        }
    }

    fn __getitem__<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let whole = slf.as_super().get();
        if let Some(place) = whole.place() {
            if let Some(index) = place.index(key) {
                return whole.load(py, place, index);
            }
            if let Some((first, count)) = place.span(key)? {
                let bytes = whole.read(py, place, first, count)?;
                return Ok(place.kind.list(py, &bytes)?.into_any());
            }
        }
        whole.locked_object(py, |object| object.get_item(key))
    }

    fn __setitem__(
        slf: &Bound<'_, Self>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let whole = slf.as_super().get();
        if let Some(place) = whole.place() {
            if let Some(index) = place.index(key) {
                if whole.store(place, index, value)? {
                    return Ok(());
                }
            } else if let Some((first, count)) = place.span(key)? {
                let kind = place.kind;
                let bytes = kind
                    .gather(value, count)
                    .or_else(|| kind.borrow(value, count));
                if let Some(bytes) = bytes {
                    return whole.write(py, place, first, &bytes);
                }
            }
        }
        whole.locked_object(py, |object| object.set_item(key, value))
    }
}
