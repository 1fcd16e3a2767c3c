//! Queues.

use std::cell::Cell;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bunshin::front::Item;
use bunshin::{JoinError, JoinableQueue, RecvTimeoutError, TryRecvError, TrySendError};
use pyo3::exceptions::{PyEOFError, PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use serde::{Deserialize, Serialize};

use crate::error::exception;
use crate::once::Once;
use crate::payload::{self, Object, Payload};
use crate::plain;
use crate::sync::{limit, wait};

type Items = bunshin::Queue<Payload>;

/// Longer bytes go in memory of their own, so that nobody waits while they are copied.
const COPIED_UP_TO: usize = 32 << 20;
/// While so many bytes or more are copied, other threads run.
const DETACHED_FROM: usize = 256 << 10;

/// A queue of the engine's.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Memory {
    #[serde(rename = "q")]
    Plain(Items),
    #[serde(rename = "j")]
    Joinable(JoinableQueue<Payload>),
}

impl Memory {
    #[inline]
    fn items(&self) -> &Items {
        match self {
            Self::Plain(queue) => queue,
            Self::Joinable(queue) => queue,
        }
    }
}

/// [`Memory`] as an object that can be pickled.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct SharedQueue(pub(crate) Memory);

#[pymethods]
impl SharedQueue {
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        payload::reduce(py, Object::Queue(self.0.clone()))
    }
}

#[cold]
fn raise(py: Python<'_>, class: &'static Once<Py<PyAny>>, name: &str) -> PyErr {
    match class
        .import(py, "queue", name)
        .and_then(|class| class.call0())
    {
        Ok(raised) => PyErr::from_value(raised),
        Err(error) => error,
    }
}

#[cold]
fn empty(py: Python<'_>) -> PyErr {
    static EMPTY: Once<Py<PyAny>> = Once::new();
    raise(py, &EMPTY, "Empty")
}

#[cold]
fn full(py: Python<'_>) -> PyErr {
    static FULL: Once<Py<PyAny>> = Once::new();
    raise(py, &FULL, "Full")
}

thread_local! {
    /// Memory for small items.
    static SMALL: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Puts an object in, in whatever way it goes quickest.
fn put(
    py: Python<'_>,
    items: &Items,
    object: &Bound<'_, PyAny>,
    limit: Option<Duration>,
) -> PyResult<()> {
    if let Some(bytes) = payload::long_bytes(object).filter(|bytes| bytes.len() <= COPIED_UP_TO) {
        return put_bytes(py, items, [payload::BYTES, bytes], limit);
    }
    let mut small = SMALL.take();
    small.clear();
    let done = plain::dump(object, &mut small).then(|| put_bytes(py, items, [&small, &[]], limit));
    SMALL.set(small);
    match done {
        Some(done) => done,
        None => put_payload(py, items, payload::pickle_large(object)?, limit),
    }
}

/// Puts in an object's bytes, which lie in two places.
fn put_bytes(
    py: Python<'_>,
    items: &Items,
    parts: [&[u8]; 2],
    limit: Option<Duration>,
) -> PyResult<()> {
    let sent = if parts[1].len() >= DETACHED_FROM {
        py.detach(|| items.try_send_bytes(parts))
    } else {
        items.try_send_bytes(parts)
    };
    let sent = match sent {
        Err(TrySendError::Full(())) if limit != Some(Duration::ZERO) => {
            let limit = limit.unwrap_or(Duration::MAX);
            wait(py, || items.send_bytes_timeout(parts, limit), drop)?
        }
        sent => sent,
    };
    match sent {
        Ok(()) => Ok(()),
        Err(TrySendError::Full(())) => Err(full(py)),
        Err(error) => Err(exception(&error.into())),
    }
}

fn put_payload(
    py: Python<'_>,
    items: &Items,
    payload: Payload,
    limit: Option<Duration>,
) -> PyResult<()> {
    let sent = match items.try_send(payload) {
        // What there is no room for comes back, to be tried again.
        Err(TrySendError::Full(payload)) if limit != Some(Duration::ZERO) => {
            let limit = limit.unwrap_or(Duration::MAX);
            wait(py, || items.send_timeout(payload, limit), drop)?
        }
        sent => sent,
    };
    match sent {
        Ok(()) => Ok(()),
        Err(TrySendError::Full(_)) => Err(full(py)),
        Err(error) => Err(exception(&error.into())),
    }
}

/// The next item's object. `Some(ZERO)` is not to wait at all.
fn get(py: Python<'_>, items: &Items, limit: Option<Duration>) -> PyResult<Py<PyAny>> {
    match items.try_recv_either() {
        Ok(item) => return unpickle(py, item),
        Err(TryRecvError::Empty) if limit == Some(Duration::ZERO) => return Err(empty(py)),
        Err(TryRecvError::Empty) => {}
        Err(TryRecvError::Disconnected) => return Err(PyEOFError::new_err("the queue is closed")),
        Err(error) => return Err(exception(&error.into())),
    }
    let limit = limit.unwrap_or(Duration::MAX);
    match wait(py, || items.recv_either_timeout(limit), drop)? {
        Ok(item) => unpickle(py, item),
        Err(RecvTimeoutError::Timeout) => Err(empty(py)),
        Err(error) => Err(exception(&error.into())),
    }
}

fn unpickle(py: Python<'_>, item: Item<Payload>) -> PyResult<Py<PyAny>> {
    match item {
        Item::Bytes(bytes) => payload::unpickle_item(py, bytes.as_slice()),
        Item::Value(payload) => payload.unpickle(py),
    }
}

/// `block` and `timeout` as a time limit.
#[inline]
fn patience(block: Option<&Bound<'_, PyAny>>, timeout: Option<f64>) -> PyResult<Option<Duration>> {
    match block {
        Some(block) if !block.is_truthy()? => Ok(Some(Duration::ZERO)),
        _ => limit(timeout),
    }
}

/// A queue; with `maxsize`, and items that can be declared done.
#[pyclass(module = "bunshin._native", subclass, weakref, frozen)]
pub(crate) struct Queue {
    memory: OnceLock<Memory>,
    is_closed: AtomicBool,
    /// Whether this process has put something in.
    was_put: AtomicBool,
    ends: Ends,
}

impl Queue {
    #[inline]
    fn memory(&self) -> PyResult<&Memory> {
        self.memory
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("the object was not initialised"))
    }

    fn open(&self, memory: Memory) -> PyResult<()> {
        self.memory
            .set(memory)
            .map_err(|_| PyRuntimeError::new_err("the object was initialised before"))
    }

    fn joinable(&self) -> PyResult<&JoinableQueue<Payload>> {
        match self.memory()? {
            Memory::Joinable(queue) => Ok(queue),
            Memory::Plain(_) => Err(PyTypeError::new_err("the queue cannot be joined")),
        }
    }

    /// The queue, if this process has not closed it.
    #[inline]
    fn items<'a>(slf: &'a Bound<'_, Self>) -> PyResult<&'a Items> {
        let this = slf.get();
        if this.is_closed.load(Ordering::Relaxed) {
            let text = slf.repr()?.to_string();
            return Err(PyValueError::new_err(format!("Queue {text} is closed")));
        }
        Ok(this.memory()?.items())
    }
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            memory: OnceLock::new(),
            is_closed: AtomicBool::new(false),
            was_put: AtomicBool::new(false),
            ends: Ends::default(),
        }
    }

    /// Makes what is behind it, for so many items, or if that is 0 for as many as there is memory
    /// for.
    fn _open(&self, maxsize: usize, joinable: bool) -> PyResult<()> {
        let os = |error: bunshin::Error| exception(&error);
        self.open(match (joinable, maxsize) {
            (false, 0) => Memory::Plain(bunshin::Queue::new().map_err(os)?),
            (false, n) => Memory::Plain(bunshin::Queue::bounded(n).map_err(os)?),
            (true, 0) => Memory::Joinable(JoinableQueue::new().map_err(os)?),
            (true, n) => Memory::Joinable(JoinableQueue::bounded(n).map_err(os)?),
        })
    }

    /// Goes on with what came from another process.
    fn _adopt(&self, shared: &SharedQueue) -> PyResult<()> {
        self.open(shared.0.clone())
    }

    fn _shared(&self) -> PyResult<SharedQueue> {
        Ok(SharedQueue(self.memory()?.clone()))
    }

    /// Puts an object in; with `block`, waiting for room for `timeout` seconds or for ever.
    #[pyo3(signature = (obj, block=None, timeout=None))]
    fn put(
        slf: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let py = slf.py();
        let items = Self::items(slf)?;
        let limit = patience(block, timeout)?;
        slf.get().was_put.store(true, Ordering::Relaxed);
        match put(py, items, obj, limit) {
            Err(error) if error.is_instance_of::<pyo3::exceptions::PyException>(py) => {
                Self::refused(slf, obj, error)
            }
            sent => sent,
        }
    }

    /// Takes an object out; with `block`, waiting for one for `timeout` seconds or for ever.
    #[pyo3(signature = (block=None, timeout=None))]
    fn get(
        slf: &Bound<'_, Self>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        let limit = patience(block, timeout)?;
        get(slf.py(), Self::items(slf)?, limit)
    }

    /// Puts an object in if there is room.
    fn put_nowait(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let method = crate::once::intern!(slf.py(), "put");
        slf.call_method1(method, (obj, false)).map(drop)
    }

    /// Takes an object out if there is one.
    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.call_method1(crate::once::intern!(slf.py(), "get"), (false,))
    }

    /// How many objects are in the queue.
    fn qsize(&self) -> PyResult<usize> {
        Ok(self.memory()?.items().len())
    }

    /// Whether there is none. As in `multiprocessing`, that cannot be asked once the queue was
    /// closed by a process that has put something in, and by others it can.
    fn empty(&self) -> PyResult<bool> {
        if self.is_closed.load(Ordering::Relaxed) && self.was_put.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err("handle is closed"));
        }
        Ok(self.memory()?.items().is_empty())
    }

    /// Whether there is no room.
    fn full(&self) -> PyResult<bool> {
        Ok(self.memory()?.items().is_full())
    }

    /// Has this process neither put nor get any more. What was put stays.
    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.ends.close();
    }

    #[getter]
    fn _closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    #[getter]
    fn _reader(&self, py: Python<'_>) -> PyResult<Py<End>> {
        let is_closed = self.is_closed.load(Ordering::Relaxed);
        self.ends.end(py, self.memory()?, true, is_closed)
    }

    #[getter]
    fn _writer(&self, py: Python<'_>) -> PyResult<Py<End>> {
        let is_closed = self.is_closed.load(Ordering::Relaxed);
        self.ends.end(py, self.memory()?, false, is_closed)
    }

    fn _task_done(&self) -> PyResult<()> {
        bunshin::front::task_done_for_anyone(self.joinable()?)
            .map_err(|_| PyValueError::new_err("task_done() called too many times"))
    }

    /// Waits until all objects are done: how many were lost with processes that ended.
    fn _join(&self, py: Python<'_>) -> PyResult<u64> {
        let queue = self.joinable()?;
        match wait(py, || queue.join_timeout(Duration::MAX), drop)? {
            Ok(()) => Ok(0),
            Err(JoinError::Lost(items)) => Ok(items),
            Err(error) => Err(exception(&error.into())),
        }
    }
}

impl Queue {
    /// An object that was not put in: subclasses may want to see to that.
    #[cold]
    fn refused(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        static CLASSES: Once<(Py<PyAny>, Py<PyAny>)> = Once::new();
        let (own_full, own_handler) = CLASSES.get_or_make(|| {
            let full = py.import("queue")?.getattr("Full")?;
            let queue = py.import("bunshin.queues")?.getattr("Queue")?;
            let handler = queue.getattr("_on_queue_feeder_error")?;
            PyResult::Ok((full.unbind(), handler.unbind()))
        })?;
        if error.is_instance(py, own_full.bind(py)) {
            return Err(error);
        }
        match slf.get_type().getattr("_on_queue_feeder_error") {
            Ok(handler) if !handler.is(own_handler) => {
                let value = error.value(py);
                slf.call_method1("_on_queue_feeder_error", (value, obj))
                    .map(drop)
            }
            _ => Err(error),
        }
    }
}

/// A queue with the fewest questions.
#[pyclass(module = "bunshin._native", subclass, weakref, frozen)]
pub(crate) struct SimpleQueue {
    memory: OnceLock<Memory>,
    is_closed: AtomicBool,
    ends: Ends,
}

impl SimpleQueue {
    #[inline]
    fn items(&self) -> PyResult<&Items> {
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err("handle is closed"));
        }
        Ok(self.memory()?.items())
    }

    fn memory(&self) -> PyResult<&Memory> {
        self.memory
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("the object was not initialised"))
    }

    fn open(&self, memory: Memory) -> PyResult<()> {
        self.memory
            .set(memory)
            .map_err(|_| PyRuntimeError::new_err("the object was initialised before"))
    }
}

#[pymethods]
impl SimpleQueue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            memory: OnceLock::new(),
            is_closed: AtomicBool::new(false),
            ends: Ends::default(),
        }
    }

    fn _open(&self) -> PyResult<()> {
        let queue = bunshin::Queue::new().map_err(|error| exception(&error))?;
        self.open(Memory::Plain(queue))
    }

    /// Goes on with what came from another process.
    fn _adopt(&self, shared: &SharedQueue) -> PyResult<()> {
        self.open(shared.0.clone())
    }

    fn _shared(&self) -> PyResult<SharedQueue> {
        Ok(SharedQueue(self.memory()?.clone()))
    }

    /// Puts an object in.
    fn put(&self, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        put(obj.py(), self.items()?, obj, None)
    }

    /// Takes an object out, waiting for one.
    fn get(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        get(py, self.items()?, None)
    }

    /// Whether there is none.
    fn empty(&self) -> PyResult<bool> {
        Ok(self.items()?.is_empty())
    }

    /// Has this process neither put nor get any more.
    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.ends.close();
    }

    #[getter]
    fn _reader(&self, py: Python<'_>) -> PyResult<Py<End>> {
        let is_closed = self.is_closed.load(Ordering::Relaxed);
        self.ends.end(py, self.memory()?, true, is_closed)
    }

    #[getter]
    fn _writer(&self, py: Python<'_>) -> PyResult<Py<End>> {
        let is_closed = self.is_closed.load(Ordering::Relaxed);
        self.ends.end(py, self.memory()?, false, is_closed)
    }
}

/// A queue in the shape of one end of a pipe, for those who wait for its descriptor.
#[pyclass(module = "bunshin._native", weakref, frozen)]
pub(crate) struct End {
    memory: Memory,
    is_reader: bool,
    is_closed: AtomicBool,
}

/// The two ends of a queue, made when they are asked for.
#[derive(Default)]
struct Ends([OnceLock<Py<End>>; 2]);

impl Ends {
    fn end(
        &self,
        py: Python<'_>,
        memory: &Memory,
        is_reader: bool,
        is_closed: bool,
    ) -> PyResult<Py<End>> {
        let kept = &self.0[usize::from(is_reader)];
        if let Some(end) = kept.get() {
            return Ok(end.clone_ref(py));
        }
        let made = End {
            memory: memory.clone(),
            is_reader,
            is_closed: AtomicBool::new(is_closed),
        };
        let made = Py::new(py, made)?;
        Ok(kept.get_or_init(|| made).clone_ref(py))
    }

    fn close(&self) {
        for end in self.0.iter().filter_map(OnceLock::get) {
            end.get().close();
        }
    }
}

impl End {
    fn items(&self, is_reader: bool) -> PyResult<&Items> {
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err("handle is closed"));
        }
        match (is_reader, self.is_reader) {
            (true, false) => Err(PyOSError::new_err("connection is write-only")),
            (false, true) => Err(PyOSError::new_err("connection is read-only")),
            _ => Ok(self.memory.items()),
        }
    }
}

#[pymethods]
impl End {
    /// File descriptor that is readable while there is an object in the queue.
    fn fileno(&self) -> PyResult<RawFd> {
        let fd = self.items(self.is_reader)?.fileno();
        Ok(fd.map_err(|error| exception(&error))?.as_raw_fd())
    }

    /// Whether there is an object, or is within `timeout` seconds.
    #[pyo3(signature = (timeout=Some(0.0)))]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let items = self.items(true)?;
        let limit = limit(timeout)?;
        let has_item = bunshin::front::queue_has_item(items);
        if has_item || limit == Some(Duration::ZERO) {
            return Ok(has_item);
        }
        let ready = wait(py, || bunshin::wait(&[items], limit), drop)?;
        Ok(!ready.map_err(|error| exception(&error))?.is_empty())
    }

    fn recv(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        get(py, self.items(true)?, None)
    }

    fn send(&self, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        put(obj.py(), self.items(false)?, obj, None)
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    #[getter]
    fn closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    #[getter]
    fn readable(&self) -> bool {
        self.is_reader
    }

    #[getter]
    fn writable(&self) -> bool {
        !self.is_reader
    }
}
