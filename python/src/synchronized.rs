//! Values and arrays in shared memory behind a lock.
//!
//! Where the lock is one of this package in shared memory and the type a simple one, an access is
//! one call: take the lock, move the bits, give it back. The interpreter is let go of only if
//! somebody else has the lock. All else goes by way of the ctypes object, which is made of the
//! same memory when it is first asked for.

use std::time::Duration;

use bunshin::front::memory::{Attempt, MemoryLock, Row};
use pyo3::exceptions::{PyAssertionError, PyOverflowError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PySlice, PyTuple};

use crate::error::exception;
use crate::fork;
use crate::heap::Block;
use crate::number::Kind;

/// The lock that lies before the data of a block. The thread that has it may take it again.
#[pyclass(module = "bunshin._native", frozen, weakref)]
pub(crate) struct ValueLock {
    lock: MemoryLock,
    block: Py<Block>,
}

fn abandoned(py: Python<'_>) -> PyErr {
    static MAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let made = MAKE
        .import(py, "bunshin.sharedctypes", "_abandoned")
        .and_then(|make| make.call0());
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// Takes the lock, waiting so long at most, or for ever. An abandoned one is taken too.
fn wait(py: Python<'_>, lock: &MemoryLock, timeout: Option<Duration>) -> PyResult<Attempt> {
    loop {
        let attempt = py.detach(|| match timeout {
            None => lock.lock(),
            Some(timeout) => lock.lock_timeout(timeout),
        });
        let attempt = attempt.map_err(|error| exception(&error))?;
        if attempt == Attempt::Unavailable {
            // A signal's handler raised, or the time is over.
            if let Some(raised) = fork::take_raised() {
                return Err(raised);
            }
            if timeout.is_none() {
                continue;
            }
        }
        return Ok(attempt);
    }
}

fn attempt(lock: &MemoryLock) -> PyResult<Attempt> {
    lock.try_lock().map_err(|error| exception(&error))
}

impl ValueLock {
    /// Takes the lock; says whether it did. It has it as well when it says that it was abandoned.
    fn take(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<bool> {
        let mut got = attempt(&self.lock)?;
        if got == Attempt::Unavailable && timeout != Some(Duration::ZERO) {
            got = wait(py, &self.lock, timeout)?;
        }
        match got {
            Attempt::Taken => Ok(true),
            Attempt::Unavailable => Ok(false),
            Attempt::Abandoned => Err(abandoned(py)),
        }
    }

    fn give_back(&self) -> PyResult<()> {
        if self.lock.unlock() {
            return Ok(());
        }
        Err(PyAssertionError::new_err(
            "the lock cannot be given back by a thread that does not have it",
        ))
    }
}

#[pymethods]
impl ValueLock {
    /// The lock of a block that was made with one.
    #[new]
    fn new(block: &Bound<'_, Block>) -> PyResult<Self> {
        let lock = block.get().lock().cloned().ok_or_else(|| {
            pyo3::exceptions::PyValueError::new_err("the block was made without a lock")
        })?;
        Ok(Self {
            lock,
            block: block.clone().unbind(),
        })
    }

    /// Takes the lock: waiting for it, only if it is free, or within so many seconds.
    #[pyo3(signature = (block=true, timeout=None))]
    fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        let timeout = match timeout {
            _ if !block => Some(Duration::ZERO),
            None => None,
            Some(seconds) if seconds.is_nan() => {
                return Err(PyOverflowError::new_err("timeout is not a number"));
            }
            // What is too long to be told is for ever.
            Some(seconds) => Duration::try_from_secs_f64(seconds.max(0.0)).ok(),
        };
        self.take(py, timeout)
    }

    /// Gives the lock back, once.
    fn release(&self) -> PyResult<()> {
        self.give_back()
    }

    /// Whether anybody has the lock.
    fn locked(&self) -> bool {
        self.lock.is_taken()
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        // Nobody would give it back: the body of the `with` is not run.
        self.take(py, None).inspect_err(|_| {
            self.lock.unlock();
        })
    }

    #[pyo3(signature = (_type=None, _exception=None, _traceback=None))]
    fn __exit__(
        &self,
        _type: Option<&Bound<'_, PyAny>>,
        _exception: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.give_back()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        assert_spawning(slf)?;
        (slf.get_type(), (slf.get().block.clone_ref(py),)).into_pyobject(py)
    }

    fn __repr__(&self) -> &'static str {
        if self.lock.is_mine() {
            "<ValueLock(taken by this thread)>"
        } else if self.lock.is_taken() {
            "<ValueLock(taken)>"
        } else {
            "<ValueLock(free)>"
        }
    }
}

/// Refuses to pickle an object but for a child that is being started.
fn assert_spawning(object: &Bound<'_, PyAny>) -> PyResult<()> {
    static ASSERT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
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
    Own(MemoryLock, Py<ValueLock>),
    /// Any object with `acquire` and `release`.
    Other(Py<PyAny>),
}

/// What is common to all: an object and its lock.
#[pyclass(module = "bunshin._native", frozen, subclass)]
pub(crate) struct SynchronizedBase {
    place: Option<Py<Place>>,
    object: PyOnceLock<Py<PyAny>>,
    lock: Lock,
}

impl SynchronizedBase {
    fn make(
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        lock: Option<Bound<'_, PyAny>>,
        ctx: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let module = || py.import(pyo3::intern!(py, "bunshin.sharedctypes"));
        let lock = match lock.filter(|lock| !lock.is_none()) {
            Some(lock) => lock,
            None => module()?.call_method1("_new_lock", (ctx,))?,
        };
        let lock = match lock.cast::<ValueLock>() {
            Ok(own) => Lock::Own(own.get().lock.clone(), own.clone().unbind()),
            Err(_) => Lock::Other(lock.unbind()),
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
            object: PyOnceLock::new(),
            lock,
        };
        if let Some(kept) = kept {
            // It is empty, as it was just made.
            let _ = whole.object.set(py, kept);
        }
        Ok(whole)
    }

    /// The ctypes object.
    fn object<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let object = self.object.get_or_try_init(py, || match &self.place {
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
                    got = wait(py, lock, None)?;
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
                lock.call_method0(py, pyo3::intern!(py, "acquire"))?;
                let result = work();
                lock.call_method0(py, pyo3::intern!(py, "release"))?;
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
                let lock = lock.get();
                lock.__enter__(py)?;
                let result = work(object);
                lock.give_back()?;
                result
            }
            Lock::Other(lock) => {
                lock.call_method0(py, pyo3::intern!(py, "acquire"))?;
                let result = work(object);
                lock.call_method0(py, pyo3::intern!(py, "release"))?;
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
        self.lock_object(py).getattr(pyo3::intern!(py, "acquire"))
    }

    /// Gives the lock back, as its own `release` does.
    #[getter]
    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock_object(py).getattr(pyo3::intern!(py, "release"))
    }

    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock_object(py)
            .call_method0(pyo3::intern!(py, "__enter__"))
    }

    #[pyo3(signature = (*exception))]
    fn __exit__<'py>(
        &self,
        py: Python<'py>,
        exception: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.lock_object(py)
            .call_method1(pyo3::intern!(py, "__exit__"), exception.clone())
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
            None => whole.locked_object(py, |object| object.getattr(pyo3::intern!(py, "value"))),
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
            object.setattr(pyo3::intern!(py, "value"), value)
        })
    }
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
                let (memory, offset) = place.row.place(first);
                let mut bytes = vec![0; count * place.kind.size()];
                let read = whole.locked(py, || memory.read_at(offset, &mut bytes))?;
                read.map_err(|error| exception(&error))?;
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
                    let (memory, offset) = place.row.place(first);
                    let written = whole.locked(py, || memory.write_at(offset, &bytes))?;
                    return written.map_err(|error| exception(&error));
                }
            }
        }
        whole.locked_object(py, |object| object.set_item(key, value))
    }
}
