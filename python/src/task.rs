//! Tasks of pools: what is to be called, with what, and calling it in a worker.
//!
//! The function comes as bytes of its own, which a worker unpickles once and not for each task, unless
//! it is an object with a state: that is another one for each.
//! What is called without a loop is called from here; the rest is in `bunshin._worker`.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bunshin::Buffer;
use bunshin::front::BufferRef;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::once::Once;
use crate::payload::{self, Payload};

/// How the arguments of a task are given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One argument.
    One,
    /// Arguments, in a tuple or whatever can be unpacked.
    Tuple,
    /// A pair of arguments and named arguments.
    Apply,
    /// A tuple of arguments, for a call each: a list of results.
    Map,
    /// A tuple of tuples of arguments.
    Starmap,
}

impl Shape {
    /// The shape of that number, as `bunshin.pool` names it.
    pub(crate) fn given(number: u8) -> PyResult<Self> {
        let unknown = || PyValueError::new_err("a task has no such shape");
        Self::from_bits(number).ok_or_else(unknown)
    }

    fn from_bits(bits: u8) -> Option<Self> {
        [
            Self::One,
            Self::Tuple,
            Self::Apply,
            Self::Map,
            Self::Starmap,
        ]
        .get(usize::from(bits))
        .copied()
    }
}

/// What is to be called.
pub(crate) enum Function {
    /// Its pickle, which is all that it takes.
    Pickled(Arc<[u8]>),
    /// One that is pickled with each task, as more than bytes belongs to it.
    Whole(Py<PyAny>),
}

impl Function {
    /// Made of what `bunshin.pool.pickled` gives.
    pub(crate) fn new(function: Bound<'_, PyAny>) -> Self {
        match function.cast_exact::<PyBytes>() {
            Ok(pickle) => Self::Pickled(pickle.as_bytes().into()),
            Err(_) => Self::Whole(function.unbind()),
        }
    }
}

/// A task on its way.
pub(crate) struct Task {
    shape: u8,
    /// Empty if the function is pickled together with the arguments, as a pair.
    function: Pickle,
    arguments: Payload,
}

enum Pickle {
    Leaving(Arc<[u8]>),
    None,
    Arrived(Buffer<u8>),
}

impl Task {
    pub(crate) fn new(
        function: &Function,
        shape: Shape,
        arguments: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let py = arguments.py();
        let (function, arguments) = match function {
            Function::Pickled(pickle) => (
                Pickle::Leaving(Arc::clone(pickle)),
                payload::pickle(arguments)?,
            ),
            Function::Whole(function) => {
                let pair = (function, arguments).into_pyobject(py)?;
                (Pickle::None, payload::pickle(pair.as_any())?)
            }
        };
        Ok(Self {
            shape: shape as u8,
            function,
            arguments,
        })
    }

    /// The task that calls a function once.
    pub(crate) fn apply(
        function: &Function,
        positional: &Bound<'_, PyAny>,
        named: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let has_names = named.cast_exact::<PyDict>().map_or(true, |n| !n.is_empty());
        match positional.cast_exact::<PyTuple>() {
            Ok(positional) if !has_names => match positional.len() {
                1 => Self::new(function, Shape::One, &positional.get_item(0)?),
                _ => Self::new(function, Shape::Tuple, positional),
            },
            _ => {
                let both = (positional, named).into_pyobject(positional.py())?;
                Self::new(function, Shape::Apply, &both)
            }
        }
    }

    /// Bytes that wait to be sent, roughly.
    pub(crate) fn len(&self) -> usize {
        self.arguments.len()
    }
}

impl Serialize for Task {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(3)?;
        tuple.serialize_element(&self.shape)?;
        match &self.function {
            Pickle::Leaving(pickle) => tuple.serialize_element(&BufferRef(pickle))?,
            Pickle::None => tuple.serialize_element(&BufferRef(&[]))?,
            Pickle::Arrived(bytes) => tuple.serialize_element(bytes)?,
        }
        tuple.serialize_element(&self.arguments)?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Task {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Task;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a shape, a function and its arguments")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Task, A::Error> {
                let missing = || A::Error::custom("a task has less than three parts");
                Ok(Task {
                    shape: parts.next_element()?.ok_or_else(missing)?,
                    function: Pickle::Arrived(parts.next_element()?.ok_or_else(missing)?),
                    arguments: parts.next_element()?.ok_or_else(missing)?,
                })
            }
        }
        deserializer.deserialize_tuple(3, Parts)
    }
}

/// What came of a task, which its handle and a callback may both want.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Whether it is the result, and not an exception.
    is_good: bool,
    payload: Mutex<Option<Payload>>,
}

impl Outcome {
    fn new(is_good: bool, payload: Payload) -> Self {
        Self {
            is_good,
            payload: Mutex::new(Some(payload)),
        }
    }

    /// Bytes of the result, roughly, until it is taken.
    pub(crate) fn len(&self) -> usize {
        let payload = self.payload.lock().unwrap_or_else(PoisonError::into_inner);
        payload.as_ref().map_or(0, Payload::len)
    }

    /// Whether it went well, and the result or the exception: once.
    pub(crate) fn unpickle(&self, py: Python<'_>) -> PyResult<(bool, Py<PyAny>)> {
        let payload = self
            .payload
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let payload =
            payload.ok_or_else(|| PyRuntimeError::new_err("the result was taken already"))?;
        Ok((self.is_good, payload.unpickle(py)?))
    }
}

// ---------------------------------------------------------------------------
// In workers

/// The function of the last task that brought one.
struct Known {
    pickle: Vec<u8>,
    /// None if it is to be unpickled each time.
    function: Option<Py<PyAny>>,
    /// Results are pickled as functions are: those of one that goes by its name have to go by
    /// names too.
    by_value: bool,
}

thread_local! {
    static KNOWN: RefCell<Option<Known>> = const { RefCell::new(None) };
    /// When what tasks have printed was last sent out.
    static FLUSHED: RefCell<Option<Instant>> = const { RefCell::new(None) };
}

/// How long what a task has printed stays where the worker's death would take it along, while the
/// worker is busy: one that is idle has sent it out.
const UNFLUSHED: Duration = Duration::from_millis(1);

/// What is Python's part of a worker.
pub(crate) fn worker(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static WORKER: Once<Py<PyModule>> = Once::new();
    let import = || py.import("bunshin._worker").map(Bound::unbind);
    Ok(WORKER.get_or_make(import)?.bind(py))
}

/// What a worker runs for each task.
pub(crate) fn execute(task: Task) -> Outcome {
    let done = Python::attach(|py| {
        let outcome = run(py, task).or_else(|error| {
            let text = PyString::new(py, &error.to_string());
            Ok(Outcome::new(false, payload::pickle(&text)?))
        });
        // A worker that is idle may be ended at any time.
        let _ = crate::named::bequeath_names();
        let is_due = FLUSHED.with_borrow(|at| at.is_none_or(|at| at.elapsed() > UNFLUSHED));
        if is_due {
            flush(py);
        }
        outcome
    });
    done.unwrap_or_else(|error: PyErr| {
        // Not even a text can be pickled: there is no memory.
        std::panic::panic_any(error.to_string())
    })
}

/// What an idle worker runs before it sleeps.
pub(crate) fn idle() {
    Python::attach(flush);
}

fn flush(py: Python<'_>) {
    if let Ok(worker) = worker(py) {
        if let Err(error) = worker.call_method0(crate::once::intern!(py, "flush")) {
            error.write_unraisable(py, None);
        }
    }
    FLUSHED.set(Some(Instant::now()));
}

fn run(py: Python<'_>, task: Task) -> PyResult<Outcome> {
    let mut by_value = true;
    let (is_good, value) = match call(py, task, &mut by_value) {
        Ok(value) => (true, value),
        Err(Failed::Unread(error)) => {
            let done =
                worker(py)?.call_method1(crate::once::intern!(py, "unread"), (error.value(py),))?;
            (false, done)
        }
        Err(Failed::Raised(error)) => {
            let done = worker(py)?.call_method1(
                crate::once::intern!(py, "failed"),
                (error.into_value(py), by_value),
            )?;
            (false, done)
        }
    };
    let pickled = match by_value {
        true => payload::pickle(&value),
        false => payload::pickle_by_name(&value),
    };
    match pickled {
        Ok(payload) => Ok(Outcome::new(is_good, payload)),
        Err(error) => {
            let unsent = worker(py)?.call_method1("unsent", (&value, error.value(py)))?;
            Ok(Outcome::new(false, payload::pickle(&unsent)?))
        }
    }
}

enum Failed {
    /// The task cannot be unpickled.
    Unread(PyErr),
    Raised(PyErr),
}

impl From<PyErr> for Failed {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

fn call<'py>(
    py: Python<'py>,
    task: Task,
    by_value: &mut bool,
) -> Result<Bound<'py, PyAny>, Failed> {
    let arguments = task.arguments.unpickle(py).map_err(Failed::Unread)?;
    let mut arguments = arguments.into_bound(py);
    let function = match &task.function {
        Pickle::Arrived(pickle) if !pickle.is_empty() => known(py, pickle, by_value)?,
        _ => {
            let (function, rest) = arguments.extract()?;
            arguments = rest;
            function
        }
    };
    let loops = |name| worker(py)?.call_method1(name, (&function, &arguments));
    Ok(match Shape::given(task.shape)? {
        Shape::One => function.call1((arguments,))?,
        Shape::Tuple => match arguments.cast_exact::<PyTuple>() {
            Ok(arguments) => function.call1(arguments)?,
            Err(_) => loops(crate::once::intern!(py, "unpack"))?,
        },
        Shape::Apply => loops(crate::once::intern!(py, "apply"))?,
        Shape::Map => loops(crate::once::intern!(py, "map_chunk"))?,
        Shape::Starmap => loops(crate::once::intern!(py, "starmap_chunk"))?,
    })
}

/// The function of a pickle, which often is that of the task before.
fn known<'py>(
    py: Python<'py>,
    pickle: &[u8],
    by_value: &mut bool,
) -> Result<Bound<'py, PyAny>, Failed> {
    let same = KNOWN.with_borrow(|known| {
        let known = known.as_ref().filter(|known| known.pickle == pickle)?;
        let function = known
            .function
            .as_ref()
            .map(|function| function.clone_ref(py));
        Some((function, known.by_value))
    });
    if let Some((function, is_by_value)) = same {
        *by_value = is_by_value;
        return Ok(match function {
            Some(function) => function.into_bound(py),
            None => unpickled(py, pickle)?,
        });
    }
    const BY_VALUE: &[u8] = b"cloudpickle";
    let is_by_value = pickle.windows(BY_VALUE.len()).any(|part| part == BY_VALUE);
    let function = unpickled(py, pickle)?;
    let is_kept = worker(py)?
        .call_method1(crate::once::intern!(py, "has_no_state"), (&function,))?
        .is_truthy()?;
    *by_value = is_by_value;
    let before = KNOWN.replace(Some(Known {
        pickle: pickle.to_vec(),
        function: is_kept.then(|| function.clone().unbind()),
        by_value: is_by_value,
    }));
    // Its own code may run, which may come back here.
    drop(before);
    Ok(function)
}

fn unpickled<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // By bytes of its own: what it lends may be kept.
    payload::loads(py)?.call1((PyBytes::new(py, pickle),))
}
