//! What is looked up or made once in a process, and kept.
//!
//! PyO3's cells for that, and its `intern!`, are locked while a value is made, and let go of the
//! interpreter before: another thread may fork meanwhile, and in the copy they stay locked for ever.
//! Here a value is made first, perhaps by several threads, and one of them is kept then.

use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

/// A place for such a value.
pub(crate) struct Once<T>(OnceLock<T>);

impl<T> Once<T> {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The value; where there is none yet, what `make` gives.
    #[inline]
    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> PyResult<T>) -> PyResult<&T> {
        match self.0.get() {
            Some(value) => Ok(value),
            None => Ok(self.keep(make()?)),
        }
    }

    /// Of two threads that have made one, the first keeps it.
    #[cold]
    fn keep(&self, made: T) -> &T {
        // Whoever is here has the interpreter until it is done, and so does whoever forks.
        let _ = self.0.set(made);
        self.0.get().expect("it was put there, or another one was")
    }
}

impl Once<Py<PyAny>> {
    /// An object of a module.
    #[inline]
    pub(crate) fn import<'py>(
        &self,
        py: Python<'py>,
        module: &str,
        name: &str,
    ) -> PyResult<&Bound<'py, PyAny>> {
        let find = || Ok(py.import(module)?.getattr(name)?.unbind());
        Ok(self.get_or_make(find)?.bind(py))
    }
}

/// A string that is made once.
pub(crate) struct Interned(&'static str, Once<Py<PyString>>);

impl Interned {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self(text, Once::new())
    }

    #[inline]
    pub(crate) fn get<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        let Self(text, made) = self;
        let make = || made.keep(PyString::intern(py, text).unbind());
        made.0.get().unwrap_or_else(make).bind(py)
    }
}

/// A string that is made at its first use here.
macro_rules! intern {
    ($py:expr, $text:expr) => {{
        static TEXT: $crate::once::Interned = $crate::once::Interned::new($text);
        TEXT.get($py)
    }};
}
pub(crate) use intern;

/// Has made now what PyO3 keeps in its own cells and makes at the first use.
pub(crate) fn make_ahead(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    // How many items an iterator has left.
    let _ = PyList::empty(py).into_any().try_iter()?.size_hint();
    // What each error that is fetched is compared with, and how errors name types and arguments.
    for wrong in [
        module.cast::<PyString>().map(drop).map_err(PyErr::from),
        module.getattr("set_top")?.call1(("",)).map(drop),
    ] {
        if let Err(error) = wrong {
            drop(error.value(py).str()?);
        }
    }
    drop(py.get_type::<PyString>().name()?);
    drop(py.get_type::<PyString>().fully_qualified_name()?);
    Ok(())
}
