//! Ends of pipes.

use std::cell::Cell;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bunshin::front::Arrival;
use bunshin::{Buffer, Receiver, Sender, TryRecvError, TrySendError};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use serde::{Deserialize, Serialize};

use crate::buffer::{self, Borrowed};
use crate::error::{exception, sending};
use crate::payload::{self, Object, Payload};
use crate::sync::duration;
use crate::{pieces, plain};

/// Messages up to this size are sent without letting other threads run, if there is room.
const SMALL_UP_TO: usize = 16 << 10;

/// The engine's side of an end.
#[derive(Serialize, Deserialize)]
pub(crate) enum Link {
    Both(bunshin::Connection<Payload>),
    Sender(Sender<Payload>),
    Receiver(Receiver<Payload>),
}

impl Link {
    fn receiver(&self) -> PyResult<&Receiver<Payload>> {
        match self {
            Self::Both(connection) => Ok(connection.receiver()),
            Self::Receiver(receiver) => Ok(receiver),
            Self::Sender(_) => Err(PyOSError::new_err("connection is write-only")),
        }
    }

    pub(crate) fn sender(&self) -> PyResult<&Sender<Payload>> {
        match self {
            Self::Both(connection) => Ok(connection.sender()),
            Self::Sender(sender) => Ok(sender),
            Self::Receiver(_) => Err(PyOSError::new_err("connection is read-only")),
        }
    }
}

/// One end of a pipe.
#[pyclass(module = "bunshin.connection", weakref, frozen)]
pub(crate) struct Connection {
    link: Mutex<Option<Arc<Link>>>,
    /// A message that was too long for whoever wanted it has gone lost.
    is_deaf: AtomicBool,
}

/// Takes over a descriptor that Python has given up.
pub(crate) fn owned(fd: RawFd) -> PyResult<OwnedFd> {
    buffer::owned(fd)
}

impl Connection {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            link: Mutex::new(Some(link)),
            is_deaf: AtomicBool::new(false),
        }
    }

    /// What this was, for somebody who is to be its only user.
    pub(crate) fn give_up(&self) -> PyResult<Link> {
        let link = self
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        link.and_then(Arc::into_inner)
            .ok_or_else(|| PyOSError::new_err("handle is closed, or in use"))
    }

    fn link(&self) -> PyResult<Arc<Link>> {
        self.link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(|| PyOSError::new_err("handle is closed"))
    }

    fn send_payload(&self, py: Python<'_>, payload: Payload) -> PyResult<()> {
        let link = self.link()?;
        let sender = link.sender()?;
        // What did not fit, or was not wanted, is dropped with the interpreter attached again.
        let sent = match payload.alone() {
            Some(bytes) => return send_alone(py, sender, bytes, true),
            None => py.detach(|| sender.send(payload)),
        };
        sent.map_err(|error| sending(&error.into()))
    }

    fn receive(&self, py: Python<'_>) -> PyResult<Arrival<Payload>> {
        let link = self.link()?;
        receive(py, self.receiver(&link)?)
    }

    fn receiver<'a>(&self, link: &'a Link) -> PyResult<&'a Receiver<Payload>> {
        if self.is_deaf.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err("connection is write-only"));
        }
        link.receiver()
    }
}

thread_local! {
    /// Memory for small messages.
    static SMALL: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Sends an object as bytes, if it is a small one of built-in types; whether it was.
pub(crate) fn send_small(
    sender: &Sender<Payload>,
    object: &Bound<'_, PyAny>,
    header: &[u8],
    wait: bool,
) -> PyResult<bool> {
    let mut bytes = SMALL.take();
    bytes.clear();
    bytes.extend_from_slice(header);
    let sent = if plain::dump(object, &mut bytes) {
        send_alone(object.py(), sender, &bytes, wait).map(|()| true)
    } else {
        Ok(false)
    };
    SMALL.set(bytes);
    sent
}

/// Sends bytes that nothing goes beside.
pub(crate) fn send_alone(
    py: Python<'_>,
    sender: &Sender<Payload>,
    bytes: &[u8],
    wait: bool,
) -> PyResult<()> {
    if bytes.len() <= SMALL_UP_TO || !wait {
        // Detaching costs more than this, and mostly there is room.
        match sender.try_send_bytes(bytes) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(())) if wait => {}
            Err(error) => return Err(sending(&error.into())),
        }
    }
    py.detach(|| sender.send_bytes(bytes))
        .map_err(|error| sending(&error))
}

/// Receives the next message; waits for it.
pub(crate) fn receive(py: Python<'_>, receiver: &Receiver<Payload>) -> PyResult<Arrival<Payload>> {
    if receiver.has_message() {
        match receiver.recv_either(false) {
            Ok(found) => return Ok(found),
            Err(TryRecvError::Empty) => {}
            Err(error) => return Err(exception(&error.into())),
        }
    }
    py.detach(|| receiver.recv_either(true))
        .map_err(|error| exception(&error.into()))
}

/// The part of so many bytes that CPython's `offset` and `size` mean.
fn part(len: usize, offset: isize, size: Option<isize>) -> PyResult<std::ops::Range<usize>> {
    let refuse = |why: &'static str| Err(PyValueError::new_err(why));
    let Ok(from) = usize::try_from(offset) else {
        return refuse("offset is negative");
    };
    if len < from {
        return refuse("buffer length < offset");
    }
    match size.map(usize::try_from) {
        None => Ok(from..len),
        Some(Err(_)) => refuse("size is negative"),
        Some(Ok(size)) => match from.checked_add(size) {
            Some(to) if to <= len => Ok(from..to),
            _ => refuse("buffer length < offset + size"),
        },
    }
}

#[pymethods]
impl Connection {
    /// Send a (picklable) object.
    fn send(&self, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let link = self.link()?;
        if send_small(link.sender()?, obj, &[], true)? {
            return Ok(());
        }
        if let Some(kind) = pieces::kind(obj) {
            return pieces::send(&link, obj, kind);
        }
        self.send_payload(obj.py(), payload::pickle_large(obj)?)
    }

    /// Receive a (picklable) object.
    fn recv(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        payload::unpickle(py, self.receive(py)?)
    }

    /// Send the bytes data from a bytes-like object.
    #[pyo3(signature = (buf, offset=0, size=None))]
    fn send_bytes(
        &self,
        buf: &Bound<'_, PyAny>,
        offset: isize,
        size: Option<isize>,
    ) -> PyResult<()> {
        self.link()?.sender()?;
        let view = pyo3::types::PyMemoryView::from(buf)?.call_method1("cast", ("B",))?;
        let bytes = Borrowed::of(&view)?;
        let range = part(bytes.bytes().len(), offset, size)?;
        self.send_payload(buf.py(), payload::raw(bytes, range))
    }

    /// Receive bytes data as a bytes object.
    #[pyo3(signature = (maxlength=None))]
    fn recv_bytes<'py>(
        &self,
        py: Python<'py>,
        maxlength: Option<isize>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let limit = match maxlength.map(usize::try_from) {
            None => usize::MAX,
            Some(Ok(limit)) => limit,
            Some(Err(_)) => return Err(PyValueError::new_err("negative maxlength")),
        };
        let bytes = payload::into_bytes(py, self.receive(py)?)?;
        if bytes.len() > limit {
            // What is left of the stream would make no sense to this reader.
            if self.writable() {
                self.is_deaf.store(true, Ordering::Relaxed);
            } else {
                self.close();
            }
            return Err(PyOSError::new_err("bad message length"));
        }
        buffer::bytes(py, &bytes)
    }

    /// Receive bytes data into a writeable bytes-like object. Return the number of bytes read.
    #[pyo3(signature = (buf, offset=0))]
    fn recv_bytes_into(&self, buf: &Bound<'_, PyAny>, offset: isize) -> PyResult<usize> {
        let py = buf.py();
        let view = pyo3::types::PyMemoryView::from(buf)?;
        if view.getattr("readonly")?.is_truthy()? {
            return Err(PyTypeError::new_err("the memory is read-only"));
        }
        let item: usize = view.getattr("itemsize")?.extract()?;
        let into = Borrowed::of(&view.call_method1("cast", ("B",))?)?;
        let len = into.bytes().len();
        let Ok(from) = usize::try_from(offset) else {
            return Err(PyValueError::new_err("negative offset"));
        };
        if from > len {
            return Err(PyValueError::new_err("offset too large"));
        }
        let bytes: Buffer<u8> = payload::into_bytes(py, self.receive(py)?)?;
        if bytes.len() > len - from {
            let too_short = py.import("bunshin.context")?.getattr("BufferTooShort")?;
            return Err(PyErr::from_value(
                too_short.call1((PyBytes::new(py, &bytes),))?,
            ));
        }
        into.write(from * item.min(1), &bytes)?;
        Ok(bytes.len())
    }

    /// Whether there is any input available to be read.
    #[pyo3(signature = (timeout=Some(0.0)))]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let link = self.link()?;
        let receiver = self.receiver(&link)?;
        let timeout = timeout.map_or(Duration::MAX, duration);
        py.detach(|| receiver.poll(timeout))
            .map_err(|error| exception(&error))
    }

    /// File descriptor that is readable exactly while there is a message.
    fn fileno(&self) -> PyResult<RawFd> {
        let link = self.link()?;
        let number = match &*link {
            Link::Sender(sender) => bunshin::front::sender_fileno(sender),
            other => other
                .receiver()?
                .fileno()
                .map_err(|error| exception(&error))?,
        };
        Ok(number.as_raw_fd())
    }

    /// Sends a copy of a descriptor.
    fn send_handle(&self, py: Python<'_>, handle: RawFd) -> PyResult<()> {
        self.send_payload(py, payload::handle(buffer::copied(handle)?))
    }

    /// Receives a descriptor, which is the caller's from then on.
    fn recv_handle(&self, py: Python<'_>) -> PyResult<RawFd> {
        match self.receive(py)? {
            Arrival::Value(payload) => payload.into_handle(),
            Arrival::Bytes(_) => Err(PyRuntimeError::new_err(
                "expected a descriptor, and the message is none",
            )),
        }
    }

    /// Close the connection.
    fn close(&self) {
        let link = self
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(link);
    }

    /// True if the connection is closed.
    #[getter]
    fn closed(&self) -> bool {
        self.link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    }

    /// True if the connection is readable.
    #[getter]
    fn readable(&self) -> bool {
        self.link().is_ok_and(|link| self.receiver(&link).is_ok())
    }

    /// True if the connection is writable.
    #[getter]
    fn writable(&self) -> bool {
        self.link().is_ok_and(|link| link.sender().is_ok())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.close();
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        payload::reduce(py, Object::Connection(self.link()?))
    }
}

/// Two connected ends; one way if not `duplex`, the first to receive from.
#[pyfunction]
#[pyo3(signature = (duplex=true))]
pub(crate) fn pipe(py: Python<'_>, duplex: bool) -> PyResult<(Py<Connection>, Py<Connection>)> {
    let os = |error: bunshin::Error| exception(&error);
    let (first, second) = if duplex {
        let (first, second) = bunshin::pipe().map_err(os)?;
        (Link::Both(first), Link::Both(second))
    } else {
        let (sender, receiver) = bunshin::channel().map_err(os)?;
        (Link::Receiver(receiver), Link::Sender(sender))
    };
    let end = |link| Py::new(py, Connection::new(Arc::new(link)));
    Ok((end(first)?, end(second)?))
}

/// A connection as bytes and descriptors, for somebody to [`unpack`](payload::unpack).
#[pyfunction]
pub(crate) fn pack(
    py: Python<'_>,
    connection: &Bound<'_, Connection>,
) -> PyResult<(Py<PyBytes>, Vec<RawFd>)> {
    let object = Object::Connection(connection.get().link()?);
    let (bytes, handles) = bunshin::front::pack(&object).map_err(|error| exception(&error))?;
    let handles = handles.into_iter().map(IntoRawFd::into_raw_fd).collect();
    Ok((PyBytes::new(py, &bytes).unbind(), handles))
}
