//! Python objects as messages: pickle with its buffers beside it.
//!
//! Inside a message, objects of this package (connections, locks, …) are named by index, as
//! the engine moves them itself. A reducer has no way to reach the message it is called
//! for, so that what is being pickled or unpickled is found through a thread-local.
//!
//! Long bytes alone are not pickled: they go beside a mark that no pickle is, so that they are
//! copied once on either side.

use std::cell::RefCell;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use bunshin::Buffer;
use bunshin::front::{self, Arrival, BufferRef, Bytes};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMemoryView, PyTuple};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::buffer::{self, Borrowed, SharedBuffer};
use crate::connection::{Connection, Link};
use crate::error::exception;
use crate::once::Once;
use crate::{main_module, pieces, plain, writable};

/// Pickles up to this size are copied into a bytes object rather than lent.
const COPIED_UP_TO: usize = 4 << 10;

/// Bytes objects from this length on go as they are.
pub(crate) const LONG: usize = 64 << 10;

/// In the place of a pickle: the object is bytes, and those are what goes beside it.
pub(crate) const BYTES: &[u8] = b"B";

/// An object of this package on its way.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Object {
    /// A connection's end.
    #[serde(rename = "c")]
    Connection(Arc<Link>),
    /// A descriptor.
    #[serde(rename = "h")]
    Handle(Arc<front::Handle>),
    /// A lock or the like.
    #[serde(rename = "s")]
    Sync(crate::sync::Memory),
    /// A queue.
    #[serde(rename = "q")]
    Queue(crate::queue::Memory),
}

impl Object {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Self::Connection(link) => Ok(Py::new(py, Connection::new(link))?.into_any()),
            Self::Handle(handle) => {
                let kept = Descriptor(std::sync::Mutex::new(Some(handle)));
                Ok(Py::new(py, kept)?.into_any())
            }
            Self::Sync(memory) => Ok(Py::new(py, crate::sync::Shared(memory))?.into_any()),
            Self::Queue(memory) => Ok(Py::new(py, crate::queue::SharedQueue(memory))?.into_any()),
        }
    }
}

/// One message.
pub(crate) enum Payload {
    /// To be sent: bytes that are lent for the time of the call.
    Leaving {
        pickle: Pickled,
        buffers: Vec<Borrowed>,
        objects: Vec<Object>,
    },
    /// Received.
    Arrived {
        pickle: Buffer<u8>,
        buffers: Vec<Buffer<u8>>,
        objects: Vec<Object>,
    },
}

/// The bytes of a message that is to be sent.
pub(crate) enum Pickled {
    Own(Vec<u8>),
    Lent(Borrowed, std::ops::Range<usize>),
}

impl Pickled {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Lent(borrowed, range) => borrowed.bytes().get(range.clone()).unwrap_or(&[]),
        }
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(3)?;
        match self {
            Self::Leaving {
                pickle,
                buffers,
                objects,
            } => {
                tuple.serialize_element(&BufferRef(pickle.bytes()))?;
                let buffers: Vec<_> = buffers.iter().map(|b| BufferRef(b.bytes())).collect();
                tuple.serialize_element(&buffers)?;
                tuple.serialize_element(objects)?;
            }
            Self::Arrived {
                pickle,
                buffers,
                objects,
            } => {
                tuple.serialize_element(pickle)?;
                tuple.serialize_element(buffers)?;
                tuple.serialize_element(objects)?;
            }
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Payload;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a pickle, its buffers and its objects")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Payload, A::Error> {
                let missing = || A::Error::custom("a message has less than three parts");
                Ok(Payload::Arrived {
                    pickle: parts.next_element()?.ok_or_else(missing)?,
                    buffers: parts.next_element()?.ok_or_else(missing)?,
                    objects: parts.next_element()?.ok_or_else(missing)?,
                })
            }
        }
        deserializer.deserialize_tuple(3, Parts)
    }
}

thread_local! {
    /// Objects of the messages that this thread is pickling.
    static LEAVING: RefCell<Vec<Vec<Object>>> = const { RefCell::new(Vec::new()) };
    /// Objects of the messages that this thread is unpickling.
    static ARRIVING: RefCell<Vec<Vec<Option<Object>>>> = const { RefCell::new(Vec::new()) };
    /// This thread's pickler, unless it is in use.
    static SPARE: RefCell<Option<Reusable>> = const { RefCell::new(None) };
}

/// Where a pickler writes to.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Sink(std::sync::Mutex<Vec<u8>>);

#[pymethods]
impl Sink {
    fn write(&self, bytes: &Bound<'_, PyAny>) -> PyResult<usize> {
        let mut written = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Ok(bytes) = bytes.cast::<PyBytes>() {
            written.extend_from_slice(bytes.as_bytes());
            return Ok(bytes.as_bytes().len());
        }
        let lent = Borrowed::of(bytes)?;
        written.extend_from_slice(lent.bytes());
        Ok(lent.bytes().len())
    }
}

/// A pickler that is used again and again.
struct Reusable {
    pickler: Py<PyAny>,
    sink: Py<Sink>,
    buffers: Py<PyList>,
}

impl Reusable {
    fn new(py: Python<'_>) -> PyResult<Self> {
        static MAKE: Once<Py<PyAny>> = Once::new();
        let make = MAKE.import(py, "bunshin.reduction", "_make_pickler")?;
        let sink = Py::new(py, Sink(std::sync::Mutex::default()))?;
        let buffers = PyList::empty(py);
        let append = buffers.getattr("append")?;
        let pickler = make.call1((&sink, append))?.unbind();
        Ok(Self {
            pickler,
            sink,
            buffers: buffers.unbind(),
        })
    }
}

/// The message that is an object pickled.
pub(crate) fn pickle(object: &Bound<'_, PyAny>) -> PyResult<Payload> {
    match simple(object) {
        Some(payload) => Ok(payload),
        None => pickle_large(object),
    }
}

/// As [`pickle`], of an object that [`plain`] does not write.
pub(crate) fn pickle_large(object: &Bound<'_, PyAny>) -> PyResult<Payload> {
    match by_pickler(object) {
        Ok(Payload::Leaving { pickle, .. })
            if long_bytes(object).is_none() && main_module::is_needed(pickle.bytes()) =>
        {
            by_value(object.py(), object, None)
        }
        Err(error) => by_value(object.py(), object, Some(error)),
        named => named,
    }
}

/// As [`pickle`], of an object all parts of which pickle can name.
pub(crate) fn pickle_by_name(object: &Bound<'_, PyAny>) -> PyResult<Payload> {
    match simple(object) {
        Some(payload) => Ok(payload),
        None => by_pickler(object),
    }
}

/// The message that is an object which takes no pickler.
fn simple(object: &Bound<'_, PyAny>) -> Option<Payload> {
    let mut pickle = Vec::new();
    plain::dump(object, &mut pickle).then(|| Payload::Leaving {
        pickle: Pickled::Own(pickle),
        buffers: Vec::new(),
        objects: Vec::new(),
    })
}

fn by_pickler(object: &Bound<'_, PyAny>) -> PyResult<Payload> {
    let py = object.py();
    if long_bytes(object).is_some() {
        return Ok(Payload::Leaving {
            pickle: Pickled::Own(BYTES.to_vec()),
            buffers: vec![Borrowed::of(object)?],
            objects: Vec::new(),
        });
    }
    let reusable = match SPARE.take() {
        Some(reusable) => reusable,
        None => Reusable::new(py)?,
    };
    LEAVING.with_borrow_mut(|stack| stack.push(Vec::new()));
    let dumped = reusable
        .pickler
        .bind(py)
        .call_method1(crate::once::intern!(py, "dump"), (object,));
    let objects = LEAVING.with_borrow_mut(Vec::pop).unwrap_or_default();
    let bytes = std::mem::take(
        &mut *reusable
            .sink
            .get()
            .0
            .lock()
            .unwrap_or_else(|e| e.into_inner()),
    );
    let found = reusable.buffers.bind(py);
    // If it fails, its memory and buffers are in no known state: it is not used again.
    dumped?;
    let mut views = Vec::with_capacity(found.len());
    for buffer in found.iter() {
        views.push(buffer.call_method0(crate::once::intern!(py, "raw"))?);
    }
    let (bytes, buffers) = with_buffers(bytes, &views)?;
    if !views.is_empty() {
        found.call_method0(crate::once::intern!(py, "clear"))?;
    }
    reusable
        .pickler
        .bind(py)
        .call_method0(crate::once::intern!(py, "clear_memo"))?;
    SPARE.set(Some(reusable));
    Ok(Payload::Leaving {
        pickle: Pickled::Own(bytes),
        buffers,
        objects,
    })
}

/// A pickle and the buffers beside it, such that all but those of bytes arrive writable.
fn with_buffers(
    mut pickle: Vec<u8>,
    views: &[Bound<'_, PyAny>],
) -> PyResult<(Vec<u8>, Vec<Borrowed>)> {
    let mut buffers = Vec::with_capacity(views.len());
    let mut frozen = Vec::new();
    for (at, view) in views.iter().enumerate() {
        let lent = Borrowed::of(view)?;
        if lent.is_read_only() && !writable::is_of_bytes(view)? {
            frozen.push(at);
        }
        buffers.push(lent);
    }
    if !frozen.is_empty() {
        pickle = writable::thawed(pickle, &mut buffers, &frozen);
    }
    Ok((pickle, buffers))
}

/// The bytes of a bytes object that is long.
pub(crate) fn long_bytes<'a>(object: &'a Bound<'_, PyAny>) -> Option<&'a [u8]> {
    let bytes = object.cast_exact::<PyBytes>().ok()?.as_bytes();
    (bytes.len() >= LONG).then_some(bytes)
}

/// The object of an item that came as bytes.
pub(crate) fn unpickle_item(py: Python<'_>, item: &[u8]) -> PyResult<Py<PyAny>> {
    if let Some(bytes) = item.strip_prefix(BYTES) {
        return Ok(buffer::bytes(py, bytes)?.into_any().unbind());
    }
    if let Some(object) = plain::load(py, item) {
        return Ok(object.unbind());
    }
    Ok(loads(py)?.call1((PyBytes::new(py, item),))?.unbind())
}

/// Pickles what goes by no name (lambdas, closures, functions of a notebook) by value; `error` is
/// what pickle says of it.
#[cold]
fn by_value(py: Python<'_>, object: &Bound<'_, PyAny>, error: Option<PyErr>) -> PyResult<Payload> {
    static DUMP: Once<Py<PyAny>> = Once::new();
    let dump = DUMP.import(py, "bunshin.reduction", "_dump_by_value")?;
    LEAVING.with_borrow_mut(|stack| stack.push(Vec::new()));
    let dumped = dump.call1((object, error));
    let objects = LEAVING.with_borrow_mut(Vec::pop).unwrap_or_default();
    let (bytes, found): (Bound<'_, PyBytes>, Vec<Bound<'_, PyAny>>) = dumped?.extract()?;
    let (pickle, buffers) = with_buffers(bytes.as_bytes().to_vec(), &found)?;
    Ok(Payload::Leaving {
        pickle: Pickled::Own(pickle),
        buffers,
        objects,
    })
}

/// The object pickled, if that is all it takes: no buffers and no objects of this package.
#[pyfunction]
pub(crate) fn dumps_plain<'py>(
    object: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    Ok(match pickle(object)? {
        Payload::Leaving {
            pickle,
            buffers,
            objects,
        } if buffers.is_empty() && objects.is_empty() => {
            Some(PyBytes::new(object.py(), pickle.bytes()))
        }
        _ => None,
    })
}

/// The message that is bytes as they are.
pub(crate) fn raw(bytes: Borrowed, range: std::ops::Range<usize>) -> Payload {
    Payload::Leaving {
        pickle: Pickled::Lent(bytes, range),
        buffers: Vec::new(),
        objects: Vec::new(),
    }
}

/// The message that is a descriptor.
pub(crate) fn handle(handle: OwnedFd) -> Payload {
    Payload::Leaving {
        pickle: Pickled::Own(Vec::new()),
        buffers: Vec::new(),
        objects: vec![Object::Handle(Arc::new(front::Handle(handle)))],
    }
}

/// The object that came, in either way.
pub(crate) fn unpickle(py: Python<'_>, arrival: Arrival<Payload>) -> PyResult<Py<PyAny>> {
    match arrival {
        Arrival::Value(payload) => payload.unpickle(py),
        Arrival::Bytes(bytes) => unpickle_bytes(py, bytes),
    }
}

/// The object whose pickle came alone.
fn unpickle_bytes(py: Python<'_>, bytes: Bytes) -> PyResult<Py<PyAny>> {
    let pickle = bytes.as_slice();
    if let Some(object) = plain::load(py, pickle) {
        return Ok(object.unbind());
    }
    let data = if pickle.len() <= COPIED_UP_TO {
        PyBytes::new(py, pickle).into_any()
    } else {
        lend(py, bytes.into_buffer().map_err(|error| exception(&error))?)?
    };
    Ok(loads(py)?.call1((data,))?.unbind())
}

/// The bytes that came, in either way.
pub(crate) fn into_bytes(py: Python<'_>, arrival: Arrival<Payload>) -> PyResult<Buffer<u8>> {
    match arrival {
        Arrival::Value(payload) => payload.into_bytes(py),
        Arrival::Bytes(bytes) => bytes.into_buffer().map_err(|error| exception(&error)),
    }
}

pub(crate) fn loads(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOADS: Once<Py<PyAny>> = Once::new();
    LOADS.import(py, "pickle", "loads")
}

impl Payload {
    /// One to be sent that is bytes, with objects beside them.
    pub(crate) fn leaving(bytes: Vec<u8>, objects: Vec<Object>) -> Self {
        Self::Leaving {
            pickle: Pickled::Own(bytes),
            buffers: Vec::new(),
            objects,
        }
    }

    /// How long its pickle is.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Leaving { pickle, .. } => pickle.bytes().len(),
            Self::Arrived { pickle, .. } => pickle.len(),
        }
    }

    /// Its bytes, if nothing goes beside them.
    pub(crate) fn alone(&self) -> Option<&[u8]> {
        match self {
            Self::Leaving {
                pickle,
                buffers,
                objects,
            } if buffers.is_empty() && objects.is_empty() => Some(pickle.bytes()),
            _ => None,
        }
    }

    /// The descriptor that was sent.
    pub(crate) fn into_handle(self) -> PyResult<RawFd> {
        let Self::Arrived { objects, .. } = self else {
            return Err(PyValueError::new_err("the message has not been sent"));
        };
        match <[Object; 1]>::try_from(objects) {
            Ok([Object::Handle(handle)]) => Arc::into_inner(handle)
                .map(|handle| handle.0.into_raw_fd())
                .ok_or_else(|| PyRuntimeError::new_err("the descriptor is in use")),
            _ => Err(PyRuntimeError::new_err(
                "expected a descriptor, and the message is none",
            )),
        }
    }

    /// The object that was pickled.
    pub(crate) fn unpickle(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Self::Arrived {
            pickle,
            buffers,
            objects,
        } = self
        else {
            return Err(PyValueError::new_err("the message has not been sent"));
        };
        if buffers.is_empty() && objects.is_empty() {
            if let Some(object) = plain::load(py, &pickle) {
                return Ok(object.unbind());
            }
        }
        if *pickle == *BYTES {
            if let [bytes] = &*buffers {
                return Ok(buffer::bytes(py, bytes)?.into_any().unbind());
            }
        }
        if let Some((kind, len)) = pieces::announced(&pickle) {
            if let [Object::Connection(link)] = &*objects {
                return pieces::receive(py, link, kind, len);
            }
        }
        let loads = loads(py)?;
        let data = lend(py, pickle)?;
        if buffers.is_empty() && objects.is_empty() {
            return Ok(loads.call1((data,))?.unbind());
        }
        let lent = PyList::empty(py);
        for buffer in buffers {
            lent.append(Py::new(py, SharedBuffer::new(buffer))?)?;
        }
        let keywords = PyDict::new(py);
        keywords.set_item(crate::once::intern!(py, "buffers"), lent)?;
        ARRIVING.with_borrow_mut(|stack| stack.push(objects.into_iter().map(Some).collect()));
        let loaded = loads.call((data,), Some(&keywords));
        ARRIVING.with_borrow_mut(Vec::pop);
        Ok(loaded?.unbind())
    }

    /// Its bytes; those of an object with buffers are made whole first.
    pub(crate) fn into_bytes(self, py: Python<'_>) -> PyResult<Buffer<u8>> {
        match self {
            Self::Arrived {
                pickle,
                buffers,
                objects,
            } if buffers.is_empty() && objects.is_empty() => Ok(pickle),
            whole => {
                let object = whole.unpickle(py)?;
                let reduction = py.import("bunshin.reduction")?;
                let bytes = reduction
                    .getattr("ForkingPickler")?
                    .call_method1("dumps", (object,))?;
                Ok(Buffer::from(Borrowed::of(&bytes)?.bytes()))
            }
        }
    }
}

fn lend<'py>(py: Python<'py>, pickle: Buffer<u8>) -> PyResult<Bound<'py, PyAny>> {
    if pickle.len() <= COPIED_UP_TO {
        return Ok(PyBytes::new(py, &pickle).into_any());
    }
    let shared = Bound::new(py, SharedBuffer::new(pickle))?;
    Ok(PyMemoryView::from(&shared)?.into_any())
}

/// How an object of this package is pickled: as a part of the message that this thread is
/// pickling, or else as bytes and descriptors.
pub(crate) fn reduce<'py>(py: Python<'py>, object: Object) -> PyResult<Bound<'py, PyTuple>> {
    let native = py.import(crate::once::intern!(py, "bunshin._native"))?;
    let index = LEAVING.with_borrow_mut(|stack| {
        stack.last_mut().map(|objects| {
            objects.push(object.clone());
            objects.len() - 1
        })
    });
    if let Some(index) = index {
        return (native.getattr("arrived")?, (index,)).into_pyobject(py);
    }
    let (bytes, handles) = front::pack(&object).map_err(|error| exception(&error))?;
    let handles: Vec<RawFd> = handles.into_iter().map(IntoRawFd::into_raw_fd).collect();
    let duplicates = py
        .import(crate::once::intern!(py, "bunshin.reduction"))?
        .call_method1("_send_descriptors", (handles,))?;
    (
        native.getattr("unpack")?,
        (PyBytes::new(py, &bytes), duplicates),
    )
        .into_pyobject(py)
}

/// A descriptor that is pickled as one: whoever unpickles it gets a copy.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Descriptor(std::sync::Mutex<Option<Arc<front::Handle>>>);

#[pymethods]
impl Descriptor {
    /// Keeps a copy of a descriptor.
    #[new]
    fn new(fd: RawFd) -> PyResult<Self> {
        let handle = Arc::new(front::Handle(crate::buffer::copied(fd)?));
        Ok(Self(std::sync::Mutex::new(Some(handle))))
    }

    /// Gives the descriptor up to the caller.
    fn detach(&self) -> PyResult<RawFd> {
        let kept = self.0.lock().unwrap_or_else(|e| e.into_inner()).take();
        let kept = kept.and_then(Arc::into_inner);
        kept.map(|handle| handle.0.into_raw_fd())
            .ok_or_else(|| PyValueError::new_err("the descriptor was detached"))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let kept = self.0.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let detached = || PyValueError::new_err("the descriptor was detached");
        reduce(py, Object::Handle(kept.ok_or_else(detached)?))
    }
}

/// Whether this thread is pickling a message, which takes descriptors along.
#[pyfunction]
pub(crate) fn in_message() -> bool {
    LEAVING.with_borrow(|stack| !stack.is_empty())
}

/// The object with that number in the message that this thread is unpickling.
#[pyfunction]
pub(crate) fn arrived(py: Python<'_>, index: usize) -> PyResult<Py<PyAny>> {
    let object = ARRIVING.with_borrow_mut(|stack| stack.last_mut()?.get_mut(index)?.take());
    object
        .ok_or_else(|| PyValueError::new_err("the object did not come with this message"))?
        .into_python(py)
}

/// The object that was reduced to bytes and descriptors.
#[pyfunction]
pub(crate) fn unpack(
    py: Python<'_>,
    bytes: &[u8],
    descriptors: Vec<Bound<'_, PyAny>>,
) -> PyResult<Py<PyAny>> {
    let handles = descriptors
        .iter()
        .map(|descriptor| crate::connection::owned(descriptor.call_method0("detach")?.extract()?))
        .collect::<PyResult<Vec<OwnedFd>>>()?;
    let object: Object = front::unpack(bytes, handles).map_err(|error| exception(&error))?;
    object.into_python(py)
}
