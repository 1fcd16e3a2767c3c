//! Conditions, events and barriers, and what all that is waited for has in common.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Duration;

use bunshin::BarrierError;
use bunshin::front::{PlainBarrier, PlainCondition, PlainEvent, PlainLock, PlainSemaphore, Taken};
use pyo3::exceptions::{
    PyAssertionError, PyOverflowError, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::exception;
use crate::fork::take_raised;
use crate::lock::{Entrances, Hold, SemLock};
use crate::once::Once;
use crate::payload::{self, Object};

/// What lies in shared memory behind an object, on its way to a child.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Memory {
    #[serde(rename = "l")]
    Lock(PlainLock),
    #[serde(rename = "s")]
    Semaphore(PlainSemaphore),
    #[serde(rename = "c")]
    Condition(PlainCondition),
    #[serde(rename = "e")]
    Event(PlainEvent),
    #[serde(rename = "b")]
    Barrier(PlainBarrier),
}

/// [`Memory`] as an object that can be pickled.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Shared(pub(crate) Memory);

#[pymethods]
impl Shared {
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyTuple>> {
        payload::reduce(py, Object::Sync(self.0.clone()))
    }
}

/// A time limit as Python gives it; one that is over already is none at all.
pub(crate) fn limit(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = timeout else {
        return Ok(None);
    };
    if seconds.is_nan() {
        return Err(PyValueError::new_err("a timeout is a number of seconds"));
    }
    // Longer than can be told is for ever.
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).ok())
}

/// A time limit that has been checked elsewhere: one longer than can be told is the longest.
pub(crate) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// Waits with the interpreter detached. A signal handler that raises ends the wait, and `undo`
/// is called with what came out of it then.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send,
    undo: impl FnOnce(T),
) -> PyResult<T> {
    if let Some(raised) = take_raised() {
        return Err(raised);
    }
    py.check_signals()?;
    let result = py.detach(work);
    match take_raised() {
        None => Ok(result),
        Some(raised) => {
            undo(result);
            Err(raised)
        }
    }
}

#[cold]
pub(crate) fn abandoned(py: Python<'_>) -> PyErr {
    static CLASS: Once<Py<PyAny>> = Once::new();
    const WHY: &str = "the process that held it has ended; it is yours now, and what it protects \
                       may be half changed";
    let class = CLASS.import(py, "bunshin.context", "AbandonedLock");
    match class.and_then(|class| class.call1((WHY,))) {
        Ok(raised) => PyErr::from_value(raised),
        Err(error) => error,
    }
}

pub(crate) fn unopened() -> PyErr {
    PyRuntimeError::new_err("the object was not initialised")
}

/// A condition, and the lock that it is used with.
#[pyclass(module = "bunshin._native", subclass, weakref, frozen)]
pub(crate) struct Condition(OnceLock<(PlainCondition, Py<SemLock>)>);

impl Condition {
    #[inline]
    fn parts(&self) -> PyResult<(&PlainCondition, &Hold)> {
        let (condition, lock) = self.0.get().ok_or_else(unopened)?;
        Ok((condition, lock.get().hold()?))
    }

    /// What `with` calls of the lock.
    pub(crate) fn entrances(&self) -> Option<&Entrances> {
        self.0.get()?.1.get().entrances()
    }

    fn set(&self, condition: PlainCondition, lock: Py<SemLock>) -> PyResult<()> {
        lock.get().hold()?.check_for_condition()?;
        self.0
            .set((condition, lock))
            .map_err(|_| PyRuntimeError::new_err("the object was initialised before"))
    }

    /// The condition, for who has the lock.
    fn held(&self, why: &'static str) -> PyResult<&PlainCondition> {
        let (condition, lock) = self.parts()?;
        if lock.is_mine() {
            return Ok(condition);
        }
        Err(PyAssertionError::new_err(why))
    }
}

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> Self {
        Self(OnceLock::new())
    }

    fn _open(&self, lock: Py<SemLock>) -> PyResult<()> {
        let condition = PlainCondition::new().map_err(|error| exception(&error))?;
        self.set(condition, lock)
    }

    fn _adopt(&self, shared: &Shared, lock: Py<SemLock>) -> PyResult<()> {
        match shared.0.clone() {
            Memory::Condition(condition) => self.set(condition, lock),
            _ => Err(PyTypeError::new_err("something else has arrived")),
        }
    }

    fn _shared(&self) -> PyResult<Shared> {
        Ok(Shared(Memory::Condition(self.parts()?.0.clone())))
    }

    /// Releases the lock, waits until notified or for `timeout` seconds, and acquires the lock
    /// again. Whether it was notified.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let condition = self.held("must acquire() condition before using wait()")?;
        let lock = self.parts()?.1;
        let limit = limit(timeout)?;
        if let Some(raised) = take_raised() {
            return Err(raised);
        }
        py.check_signals()?;
        let (woken, taken) = py.detach(|| {
            let depth = Cell::new(0);
            let mut taken = Ok(Taken::Clean);
            let give_up = || depth.set(lock.give_up());
            // Also after a signal: the caller is to find the lock as it was.
            let take_again = || taken = lock.take_again(depth.get());
            (condition.wait(limit, give_up, take_again), taken)
        });
        if let Some(raised) = take_raised() {
            return Err(raised);
        }
        let taken = taken.map_err(|error| exception(&error))?;
        let woken = woken.map_err(|error| exception(&error))?;
        match taken {
            Taken::Clean => Ok(woken),
            Taken::Abandoned => Err(abandoned(py)),
        }
    }

    /// Wakes so many who wait.
    #[pyo3(signature = (n=1))]
    fn notify(&self, n: i64) -> PyResult<()> {
        let condition = self.held("lock is not owned")?;
        if n > 0 {
            condition.notify(u32::try_from(n).unwrap_or(u32::MAX));
        }
        Ok(())
    }

    /// Wakes all who wait.
    fn notify_all(&self) -> PyResult<()> {
        self.held("lock is not owned")?.notify_all();
        Ok(())
    }

    /// How many wait, and how many of them were notified and have not gone on yet.
    fn _waiting(&self) -> PyResult<(u32, u32)> {
        Ok(self.parts()?.0.n_waiting())
    }
}

/// An event.
#[pyclass(module = "bunshin._native", subclass, weakref, frozen)]
pub(crate) struct Event(OnceLock<PlainEvent>);

impl Event {
    #[inline]
    fn event(&self) -> PyResult<&PlainEvent> {
        self.0.get().ok_or_else(unopened)
    }

    fn put(&self, event: PlainEvent) -> PyResult<()> {
        self.0
            .set(event)
            .map_err(|_| PyRuntimeError::new_err("the object was initialised before"))
    }
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> Self {
        Self(OnceLock::new())
    }

    fn _open(&self) -> PyResult<()> {
        self.put(PlainEvent::new().map_err(|error| exception(&error))?)
    }

    fn _adopt(&self, shared: &Shared) -> PyResult<()> {
        match shared.0.clone() {
            Memory::Event(event) => self.put(event),
            _ => Err(PyTypeError::new_err("something else has arrived")),
        }
    }

    fn _shared(&self) -> PyResult<Shared> {
        Ok(Shared(Memory::Event(self.event()?.clone())))
    }

    /// Whether it is set.
    fn is_set(&self) -> PyResult<bool> {
        Ok(self.event()?.is_set())
    }

    /// Sets it, and wakes all who wait.
    fn set(&self) -> PyResult<()> {
        self.event()?.set();
        Ok(())
    }

    /// Has it be not set any more.
    fn clear(&self) -> PyResult<()> {
        self.event()?.clear();
        Ok(())
    }

    /// Waits until it is set, or for `timeout` seconds. Whether it is.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let event = self.event()?;
        if event.is_set() {
            return Ok(true);
        }
        let limit = limit(timeout)?;
        wait(py, || event.wait(limit), |_| {})
    }
}

/// A barrier, without what Python adds to it.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Barrier(PlainBarrier);

/// What ends a wait at a barrier.
enum Stop {
    Raised(PyErr),
    Broken,
    Failed(bunshin::Error),
}

impl From<BarrierError> for Stop {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::Failed(error) => Self::Failed(error),
            _ => Self::Broken,
        }
    }
}

#[pymethods]
impl Barrier {
    #[new]
    fn new(parties: i64) -> PyResult<Self> {
        let parties = u64::try_from(parties).unwrap_or(0);
        if parties == 0 {
            return Err(PyValueError::new_err("parties must be >= 1"));
        }
        let barrier = PlainBarrier::new(parties).map_err(|error| match error.kind() {
            bunshin::ErrorKind::InvalidInput => PyOverflowError::new_err(error.to_string()),
            _ => exception(&error),
        })?;
        Ok(Self(barrier))
    }

    #[staticmethod]
    fn _adopt(shared: &Shared) -> PyResult<Self> {
        match shared.0.clone() {
            Memory::Barrier(barrier) => Ok(Self(barrier)),
            _ => Err(PyTypeError::new_err("something else has arrived")),
        }
    }

    fn _shared(&self) -> Shared {
        Shared(Memory::Barrier(self.0.clone()))
    }

    /// Waits for the others: how many had come before, or none if the barrier is broken.
    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        action: Option<Py<PyAny>>,
    ) -> PyResult<Option<u32>> {
        let limit = limit(timeout)?;
        let work = || {
            self.0.wait(limit, || match &action {
                None => Ok(()),
                Some(action) => {
                    let called = Python::attach(|py| action.call0(py).map(drop));
                    called.map_err(Stop::Raised)
                }
            })
        };
        match wait(py, work, drop)? {
            Ok(index) => Ok(Some(index)),
            Err(Stop::Broken) => Ok(None),
            Err(Stop::Raised(error)) => Err(error),
            Err(Stop::Failed(error)) => Err(exception(&error)),
        }
    }

    fn reset(&self) -> PyResult<()> {
        self.0.reset().map_err(|error| exception(&error))
    }

    fn abort(&self) -> PyResult<()> {
        self.0.abort().map_err(|error| exception(&error))
    }

    #[getter]
    fn parties(&self) -> u32 {
        self.0.parties()
    }

    #[getter]
    fn n_waiting(&self) -> u32 {
        self.0.n_waiting()
    }

    #[getter]
    fn broken(&self) -> bool {
        self.0.is_broken()
    }
}
