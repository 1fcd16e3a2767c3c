//! Locks, semaphores, conditions, events and barriers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bunshin::BarrierError;
use bunshin::front::{
    Permit, PlainBarrier, PlainCondition, PlainEvent, PlainLock, PlainSemaphore, Taken,
};
use pyo3::exceptions::{
    PyAssertionError, PyOSError, PyOverflowError, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use serde::{Deserialize, Serialize};

use crate::error::exception;
use crate::fork::take_raised;
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
fn abandoned(py: Python<'_>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "bunshin.context", "AbandonedLock") {
        Ok(class) => PyErr::from_type(
            class.clone(),
            "the process that held it has ended; it is yours now, and what it protects may be \
             half changed",
        ),
        Err(error) => error,
    }
}

fn unopened() -> PyErr {
    PyRuntimeError::new_err("the object was not initialised")
}

/// How often a thread that does not wait looks closely whether a lock's holder lives.
const LOOK_EVERY_MS: u64 = 50;

/// Milliseconds since some moment in the past.
fn milliseconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(elapsed).unwrap_or(u64::MAX)
}

enum Kind {
    Lock(PlainLock),
    RLock(PlainLock),
    Semaphore {
        semaphore: PlainSemaphore,
        /// Permits that threads of this process have taken by `with`.
        kept: Mutex<Vec<Permit>>,
    },
}

/// A lock, a recursive lock or a semaphore.
#[pyclass(module = "bunshin._native", subclass, weakref, frozen)]
pub(crate) struct SemLock {
    kind: OnceLock<Kind>,
    /// When this was last looked at closely.
    looked: AtomicU64,
}

impl SemLock {
    #[inline]
    fn kind(&self) -> PyResult<&Kind> {
        self.kind.get().ok_or_else(unopened)
    }

    fn open(&self, kind: Kind) -> PyResult<()> {
        self.kind
            .set(kind)
            .map_err(|_| PyRuntimeError::new_err("the object was initialised before"))
    }

    fn plain(&self) -> PyResult<&PlainLock> {
        match self.kind()? {
            Kind::Lock(lock) | Kind::RLock(lock) => Ok(lock),
            Kind::Semaphore { .. } => Err(PyTypeError::new_err(
                "a condition is used with a Lock or an RLock",
            )),
        }
    }

    /// Takes it; how, or nothing if the time is over.
    #[inline]
    fn take(
        &self,
        py: Python<'_>,
        block: bool,
        timeout: Option<f64>,
        keep: bool,
    ) -> PyResult<Option<Taken>> {
        match self.kind()? {
            Kind::Lock(lock) => self.take_lock(py, lock, block, timeout),
            Kind::RLock(lock) => {
                if lock.is_mine() {
                    lock.set_depth(lock.depth() + 1);
                    return Ok(Some(Taken::Clean));
                }
                let taken = self.take_lock(py, lock, block, timeout)?;
                if taken.is_some() {
                    lock.set_depth(1);
                }
                Ok(taken)
            }
            Kind::Semaphore { semaphore, kept } => {
                let os = |error| exception(&error);
                let mut acquired = semaphore.try_acquire(keep).map_err(os)?;
                if acquired.is_none() && block {
                    let limit = limit(timeout)?;
                    let work = || semaphore.acquire(keep, limit);
                    let undo = |acquired| match acquired {
                        Ok(Some((permit, _))) if keep => semaphore.give_back(permit),
                        // There is room for what was just taken.
                        Ok(Some(_)) => drop(semaphore.release()),
                        _ => {}
                    };
                    acquired = wait(py, work, undo)?.map_err(os)?;
                }
                let Some((permit, taken)) = acquired else {
                    return Ok(None);
                };
                if keep {
                    kept.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(permit);
                }
                Ok(Some(taken))
            }
        }
    }

    #[inline]
    fn take_lock(
        &self,
        py: Python<'_>,
        lock: &PlainLock,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Option<Taken>> {
        match lock.try_lock() {
            Ok(None) => self.take_slowly(py, lock, block, timeout),
            Ok(taken) => Ok(taken),
            Err(error) => Err(exception(&error)),
        }
    }

    #[cold]
    fn take_slowly(
        &self,
        py: Python<'_>,
        lock: &PlainLock,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Option<Taken>> {
        let taken = if block {
            let limit = limit(timeout)?;
            let undo = |taken| {
                if let Ok(Some(_)) = taken {
                    lock.unlock();
                }
            };
            wait(py, || lock.lock(limit), undo)?
        } else {
            let now = milliseconds();
            if now.wrapping_sub(self.looked.load(Ordering::Relaxed)) < LOOK_EVERY_MS {
                return Ok(None);
            }
            self.looked.store(now, Ordering::Relaxed);
            lock.try_lock_thoroughly()
        };
        taken.map_err(|error| exception(&error))
    }

    #[inline]
    fn give_back(&self) -> PyResult<()> {
        let is_done = match self.kind()? {
            Kind::Lock(lock) => lock.unlock(),
            Kind::RLock(lock) => {
                if !lock.is_mine() {
                    return Err(PyAssertionError::new_err(
                        "attempt to release recursive lock not owned by thread",
                    ));
                }
                match lock.depth() {
                    0 | 1 => lock.unlock(),
                    depth => {
                        lock.set_depth(depth - 1);
                        true
                    }
                }
            }
            Kind::Semaphore { semaphore, kept } => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                match kept.iter().rposition(Permit::is_mine) {
                    Some(at) => {
                        let permit = kept.remove(at);
                        drop(kept);
                        semaphore.give_back(permit);
                        true
                    }
                    None => {
                        drop(kept);
                        semaphore.release()
                    }
                }
            }
        };
        if is_done {
            return Ok(());
        }
        Err(PyValueError::new_err(
            "semaphore or lock released too many times",
        ))
    }
}

#[pymethods]
impl SemLock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> Self {
        Self {
            kind: OnceLock::new(),
            looked: AtomicU64::new(0),
        }
    }

    /// Makes what is behind it: `"lock"`, `"rlock"`, or a semaphore with so many permits.
    #[pyo3(signature = (what, value=1, bounded=false))]
    fn _open(&self, what: &str, value: i64, bounded: bool) -> PyResult<()> {
        const EINVAL: i32 = 22;
        let os = |error: bunshin::Error| exception(&error);
        self.open(match what {
            "lock" => Kind::Lock(PlainLock::new().map_err(os)?),
            "rlock" => Kind::RLock(PlainLock::new().map_err(os)?),
            _ => {
                let invalid = |error: bunshin::Error| match error.kind() {
                    bunshin::ErrorKind::InvalidInput => {
                        PyOSError::new_err((EINVAL, error.to_string()))
                    }
                    _ => exception(&error),
                };
                let value = u64::try_from(value)
                    .map_err(|_| PyOSError::new_err((EINVAL, "a semaphore has no debts")))?;
                Kind::Semaphore {
                    semaphore: PlainSemaphore::new(value, bounded).map_err(invalid)?,
                    kept: Mutex::default(),
                }
            }
        })
    }

    /// Goes on with what came from another process.
    fn _adopt(&self, what: &str, shared: &Shared) -> PyResult<()> {
        self.open(match (what, shared.0.clone()) {
            ("lock", Memory::Lock(lock)) => Kind::Lock(lock),
            ("rlock", Memory::Lock(lock)) => Kind::RLock(lock),
            (_, Memory::Semaphore(semaphore)) => Kind::Semaphore {
                semaphore,
                kept: Mutex::default(),
            },
            _ => return Err(PyTypeError::new_err("something else has arrived")),
        })
    }

    fn _shared(&self) -> PyResult<Shared> {
        Ok(Shared(match self.kind()? {
            Kind::Lock(lock) | Kind::RLock(lock) => Memory::Lock(lock.clone()),
            Kind::Semaphore { semaphore, .. } => Memory::Semaphore(semaphore.clone()),
        }))
    }

    /// Acquires it; with `block`, waiting for `timeout` seconds or for ever. Whether it did.
    #[pyo3(signature = (block=None, timeout=None))]
    fn acquire(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let block = block.is_none_or(|block| block.is_truthy().unwrap_or(true));
        match self.take(py, block, timeout, false)? {
            None => Ok(false),
            Some(Taken::Clean) => Ok(true),
            Some(Taken::Abandoned) => Err(abandoned(py)),
        }
    }

    /// Releases it.
    fn release(&self) -> PyResult<()> {
        self.give_back()
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        match self.take(py, true, None, true)? {
            Some(Taken::Abandoned) => {
                // The block is not run, and what would end it is not called.
                self.give_back()?;
                Err(abandoned(py))
            }
            taken => Ok(taken.is_some()),
        }
    }

    #[pyo3(signature = (_type=None, _value=None, _traceback=None, /))]
    fn __exit__(
        &self,
        _type: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.give_back()
    }

    /// Whether nobody could acquire it just now.
    fn locked(&self) -> PyResult<bool> {
        self._is_zero()
    }

    fn _is_mine(&self) -> PyResult<bool> {
        Ok(match self.kind()? {
            Kind::Lock(lock) | Kind::RLock(lock) => lock.is_mine(),
            Kind::Semaphore { kept, .. } => kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(Permit::is_mine),
        })
    }

    /// Whether a thread of this process holds it.
    fn _is_held_here(&self) -> PyResult<bool> {
        Ok(match self.kind()? {
            Kind::Lock(lock) | Kind::RLock(lock) => lock.is_held_here(),
            Kind::Semaphore { kept, .. } => !kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty(),
        })
    }

    /// How often a thread of this process has acquired it.
    fn _count(&self) -> PyResult<u32> {
        Ok(match self.kind()? {
            Kind::Lock(lock) => u32::from(lock.is_held_here()),
            Kind::RLock(lock) if lock.is_held_here() => lock.depth(),
            Kind::RLock(_) => 0,
            Kind::Semaphore { kept, .. } => {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                u32::try_from(kept.len()).unwrap_or(u32::MAX)
            }
        })
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(match self.kind()? {
            Kind::Lock(lock) | Kind::RLock(lock) => u32::from(!lock.is_locked()),
            Kind::Semaphore { semaphore, .. } => semaphore.value(),
        })
    }

    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self._get_value()? == 0)
    }
}

/// A condition, and the lock that it is used with.
#[pyclass(module = "bunshin._native", subclass, weakref, frozen)]
pub(crate) struct Condition(OnceLock<(PlainCondition, Py<SemLock>)>);

impl Condition {
    #[inline]
    fn parts(&self) -> PyResult<(&PlainCondition, &SemLock)> {
        let (condition, lock) = self.0.get().ok_or_else(unopened)?;
        Ok((condition, lock.get()))
    }

    fn set(&self, condition: PlainCondition, lock: Py<SemLock>) -> PyResult<()> {
        lock.get().plain()?;
        self.0
            .set((condition, lock))
            .map_err(|_| PyRuntimeError::new_err("the object was initialised before"))
    }

    /// The condition, for who has the lock.
    fn held(&self, why: &'static str) -> PyResult<&PlainCondition> {
        let (condition, lock) = self.parts()?;
        if lock.plain()?.is_mine() {
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
        let lock = self.parts()?.1.plain()?;
        let limit = limit(timeout)?;
        if let Some(raised) = take_raised() {
            return Err(raised);
        }
        py.check_signals()?;
        let depth = lock.depth();
        let (woken, taken) = py.detach(|| {
            let mut taken = Ok(Taken::Clean);
            let give_up = || {
                lock.unlock();
            };
            let take_again = || {
                // Also after a signal: the caller is to find the lock as it was.
                taken = loop {
                    match lock.lock(None) {
                        Ok(None) => {}
                        Ok(Some(taken)) => break Ok(taken),
                        Err(error) => break Err(error),
                    }
                };
                lock.set_depth(depth);
            };
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

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.parts()?.1.__enter__(py)
    }

    #[pyo3(signature = (_type=None, _value=None, _traceback=None, /))]
    fn __exit__(
        &self,
        _type: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.parts()?.1.give_back()
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
