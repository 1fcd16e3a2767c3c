//! Calls of a manager's objects over shared memory.
//!
//! ```text
//! request   b"Q" ident-length ident method-length method, and the pickled arguments; or as a
//!           message: the pickled (ident, method, args, kwds)
//! reply     b"R" and the pickled result; or as a message: the pickled (kind, result)
//! ```
//!
//! The first forms are for small objects of built-in types. Calls in that form of objects
//! that the server knows not to wait for anything are carried out by one thread for all
//! clients, without threads taking turns; all others by a thread for each client's thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bunshin::front::{Arrival, Hub};
use bunshin::{Connection as Duplex, TryRecvError};
use pyo3::exceptions::{PyEOFError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple,
};

use crate::connection::{self, Connection, Link, send_small};
use crate::error::exception;
use crate::payload::{self, Payload};
use crate::plain;

const REQUEST: u8 = b'Q';
const REPLY: u8 = b'R';

/// What an answer is called that is the result.
const RETURN: &str = "#RETURN";

type Wire = Arc<Duplex<Payload>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both directions of a connection, which is used by nobody else from now on.
fn take(connection: &Bound<'_, Connection>) -> PyResult<Wire> {
    match connection.get().give_up()? {
        Link::Both(wire) => Ok(Arc::new(wire)),
        _ => Err(PyValueError::new_err("the pipe goes one way only")),
    }
}

/// The client's side: one call at a time.
#[pyclass(module = "bunshin._native", frozen, weakref)]
pub(crate) struct Caller(Mutex<Option<Wire>>);

impl Caller {
    fn wire(&self) -> PyResult<Wire> {
        let wire = locked(&self.0).clone();
        wire.ok_or_else(|| PyEOFError::new_err("the connection to the manager is closed"))
    }
}

#[pymethods]
impl Caller {
    #[new]
    fn new(connection: &Bound<'_, Connection>) -> PyResult<Self> {
        Ok(Self(Mutex::new(Some(take(connection)?))))
    }

    /// Calls a method: nothing, and its result; or what else came of it, and what belongs to
    /// that.
    fn call<'py>(
        &self,
        py: Python<'py>,
        ident: &Bound<'py, PyString>,
        method: &Bound<'py, PyString>,
        args: &Bound<'py, PyAny>,
        kwds: &Bound<'py, PyDict>,
    ) -> PyResult<(Option<Py<PyAny>>, Py<PyAny>)> {
        let wire = self.wire()?;
        let mut is_asked = false;
        let called = Self::called(py, &wire, (ident, method, args, kwds), &mut is_asked);
        if called.is_err() && is_asked {
            // An answer that nobody waited for must not be taken for the next one's.
            let wire = locked(&self.0).take();
            drop(wire);
        }
        called
    }

    fn close(&self) {
        let wire = locked(&self.0).take();
        drop(wire);
    }

    /// Whether it can be called.
    #[getter]
    fn is_open(&self) -> bool {
        locked(&self.0).is_some()
    }
}

impl Caller {
    fn called<'py>(
        py: Python<'py>,
        wire: &Wire,
        (ident, method, args, kwds): (
            &Bound<'py, PyString>,
            &Bound<'py, PyString>,
            &Bound<'py, PyAny>,
            &Bound<'py, PyDict>,
        ),
        is_asked: &mut bool,
    ) -> PyResult<(Option<Py<PyAny>>, Py<PyAny>)> {
        let is_sent = kwds.is_empty() && {
            let (ident, method) = (ident.to_str()?, method.to_str()?);
            match (u8::try_from(ident.len()), u8::try_from(method.len())) {
                (Ok(ident_len), Ok(method_len)) => {
                    let mut header = [0; 3 + 2 * 255];
                    let len = 3 + ident.len() + method.len();
                    header[0] = REQUEST;
                    header[1] = ident_len;
                    header[2..2 + ident.len()].copy_from_slice(ident.as_bytes());
                    header[2 + ident.len()] = method_len;
                    header[3 + ident.len()..len].copy_from_slice(method.as_bytes());
                    send_small(wire.sender(), args, &header[..len], true)?
                }
                _ => false,
            }
        };
        if !is_sent {
            // Where this fails, nothing has gone.
            let request = (ident, method, args, kwds).into_pyobject(py)?;
            send(py, wire, &request, true)?;
        }
        *is_asked = true;
        match connection::receive(py, wire.receiver())? {
            Arrival::Bytes(bytes) => {
                let Some((&REPLY, pickle)) = bytes.as_slice().split_first() else {
                    return Err(PyTypeError::new_err("the manager's answer is none"));
                };
                match plain::load(py, pickle) {
                    Some(result) => Ok((None, result.unbind())),
                    None => Err(PyTypeError::new_err("the manager's answer is none")),
                }
            }
            Arrival::Value(payload) => {
                let (kind, result) = payload.unpickle(py)?.extract(py)?;
                Ok((Some(kind), result))
            }
        }
    }
}

/// Sends an object as a message that cannot be taken for the first form.
fn send(py: Python<'_>, wire: &Wire, object: &Bound<'_, PyAny>, wait: bool) -> PyResult<()> {
    let payload = payload::pickle(object)?;
    let sent = if wait {
        py.detach(|| wire.sender().send(payload))
            .map_err(bunshin::Error::from)
    } else {
        wire.try_send(payload).map_err(bunshin::Error::from)
    };
    sent.map_err(|error| crate::error::sending(&error))
}

/// A request whose arguments are still pickled.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Request(Mutex<Option<Payload>>);

#[pymethods]
impl Request {
    /// The object's identity, the method's name, and its arguments.
    fn load(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let payload = locked(&self.0).take();
        payload
            .ok_or_else(|| PyValueError::new_err("the request was loaded already"))?
            .unpickle(py)
    }
}

/// Where the answer to a request goes, and the next one comes from.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Reply(Wire);

/// A request's parts, or the request with its arguments still pickled.
fn request<'py>(py: Python<'py>, arrival: Arrival<Payload>) -> PyResult<Bound<'py, PyAny>> {
    match arrival {
        // It may take long to unpickle, and may run anything.
        Arrival::Value(payload) => {
            Ok(Bound::new(py, Request(Mutex::new(Some(payload))))?.into_any())
        }
        Arrival::Bytes(bytes) => {
            let (ident, method, pickle) = parse(bytes.as_slice()).ok_or_else(nonsense)?;
            let args = plain::load(py, pickle).ok_or_else(nonsense)?;
            Ok((ident, method, args.cast_into::<PyTuple>()?)
                .into_pyobject(py)?
                .into_any())
        }
    }
}

fn nonsense() -> PyErr {
    PyValueError::new_err("the request makes no sense")
}

#[pymethods]
impl Reply {
    /// Waits for the next request over this connection, for the thread that has it.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        request(py, connection::receive(py, self.0.receiver())?)
    }

    /// Answers. Does not wait for a client that does not receive, unless `wait`.
    fn send(
        &self,
        kind: &Bound<'_, PyString>,
        result: &Bound<'_, PyAny>,
        wait: bool,
    ) -> PyResult<()> {
        if kind.to_str()? == RETURN && send_small(self.0.sender(), result, &[REPLY], wait)? {
            return Ok(());
        }
        let answer = PyTuple::new(result.py(), [kind.as_any(), result])?;
        send(result.py(), &self.0, &answer, wait)
    }
}

/// The methods of an object that are called by the one thread.
struct Quick {
    methods: HashMap<String, Py<PyAny>>,
}

/// The server's side.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Server {
    hub: Arc<Hub<Payload>>,
    quick: Mutex<HashMap<String, Quick>>,
    /// What the connections are told by, from the time on that they were added.
    added: Mutex<HashMap<usize, Py<PyAny>>>,
}

#[pymethods]
impl Server {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self {
            hub: Arc::new(Hub::new().map_err(|error| exception(&error))?),
            quick: Mutex::default(),
            added: Mutex::default(),
        })
    }

    /// Serves a client's connection as well; `client` is what it is told by.
    fn add(&self, connection: &Bound<'_, Connection>, client: Py<PyAny>) -> PyResult<()> {
        let wire = take(connection)?;
        locked(&self.added).insert(Arc::as_ptr(&wire) as usize, client);
        self.hub.add(wire);
        Ok(())
    }

    /// Has the one thread serve a connection again.
    fn give_back(&self, reply: &Reply, client: Py<PyAny>) {
        let wire = Arc::clone(&reply.0);
        locked(&self.added).insert(Arc::as_ptr(&wire) as usize, client);
        self.hub.add(wire);
    }

    /// Whether the one thread can call this method.
    fn is_quick(&self, ident: &str, method: &str) -> bool {
        locked(&self.quick)
            .get(ident)
            .is_some_and(|quick| quick.methods.contains_key(method))
    }

    /// Has these methods of an object be called by the one thread: none of them waits.
    fn offer(&self, ident: String, object: &Bound<'_, PyAny>, methods: Vec<String>) {
        let methods = methods
            .into_iter()
            .filter_map(|name| Some((name.clone(), object.getattr(name).ok()?.unbind())))
            .collect();
        let before = locked(&self.quick).insert(ident, Quick { methods });
        drop(before);
    }

    /// Has no method of that object be called by the one thread any more.
    fn withdraw(&self, ident: &str) {
        // Dropping the object may run anything.
        let taken = locked(&self.quick).remove(ident);
        drop(taken);
    }

    fn close(&self) {
        self.hub.close();
    }

    /// Is the one thread. Calls `other(client, reply, request)` with what is for another thread,
    /// which has the connection from then on;
    /// `answer(reply, result)` for results that are not small, `failed(reply, error)` where a
    /// call raised, and `gone(client)` when a connection has ended.
    fn run(
        &self,
        py: Python<'_>,
        callbacks: (Bound<'_, PyAny>, Bound<'_, PyAny>, Bound<'_, PyAny>),
        gone: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut ready = Vec::new();
        let mut clients: HashMap<u64, Py<PyAny>> = HashMap::new();
        while py
            .detach(|| self.hub.wait(&mut ready))
            .map_err(|error| exception(&error))?
        {
            for (number, wire) in ready.drain(..) {
                if let std::collections::hash_map::Entry::Vacant(vacant) = clients.entry(number) {
                    let at = Arc::as_ptr(&wire) as usize;
                    let client = locked(&self.added).remove(&at);
                    vacant.insert(client.unwrap_or_else(|| py.None()));
                }
                match self.serve(py, &wire, &clients[&number], &callbacks) {
                    Ok(true) => continue,
                    // Another thread has it now.
                    Ok(false) => {
                        self.hub.remove(number);
                        clients.remove(&number);
                    }
                    // A client that is gone, or says what makes no sense.
                    Err(_) => {
                        self.hub.remove(number);
                        let client = clients.remove(&number);
                        drop(wire);
                        if let Err(error) = gone.call1((client,)) {
                            error.write_unraisable(py, None);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl Server {
    /// Serves what a connection has; false if that is for another thread.
    fn serve(
        &self,
        py: Python<'_>,
        wire: &Wire,
        client: &Py<PyAny>,
        (other, answer, failed): &(Bound<'_, PyAny>, Bound<'_, PyAny>, Bound<'_, PyAny>),
    ) -> PyResult<bool> {
        let arrival = match wire.receiver().recv_either(false) {
            Ok(arrival) => arrival,
            Err(TryRecvError::Empty) => return Ok(true),
            Err(error) => return Err(exception(&error.into())),
        };
        let found = match &arrival {
            Arrival::Bytes(bytes) => {
                let (ident, method, pickle) = parse(bytes.as_slice()).ok_or_else(nonsense)?;
                let quick = locked(&self.quick);
                let method = quick.get(ident).and_then(|quick| quick.methods.get(method));
                method.map(|method| (method.clone_ref(py), pickle))
            }
            Arrival::Value(_) => None,
        };
        let reply = || Reply(Arc::clone(wire));
        let Some((method, pickle)) = found else {
            other.call1((client, reply(), request(py, arrival)?))?;
            return Ok(false);
        };
        let args = plain::load(py, pickle).ok_or_else(nonsense)?;
        match method.bind(py).call1(args.cast_into::<PyTuple>()?) {
            Ok(result) => {
                // A client that does not receive what it has asked for is not waited for.
                if !send_small(wire.sender(), &result, &[REPLY], false)? {
                    answer.call1((reply(), result))?;
                }
            }
            Err(error) => {
                failed.call1((reply(), error.value(py)))?;
            }
        }
        Ok(true)
    }
}

fn parse(request: &[u8]) -> Option<(&str, &str, &[u8])> {
    let rest = request.strip_prefix(&[REQUEST])?;
    let (ident, rest) = counted(rest)?;
    let (method, rest) = counted(rest)?;
    Some((ident, method, rest))
}

fn counted(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (&len, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(len))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// Containers in containers that [`is_harmless`] looks into.
const DEPTH: usize = 16;

/// Whether an object is of built-in types all through, so that handling it runs no code of
/// the program's own.
#[pyfunction]
pub(crate) fn is_harmless(object: &Bound<'_, PyAny>) -> bool {
    harmless(object, DEPTH)
}

fn harmless(object: &Bound<'_, PyAny>, depth: usize) -> bool {
    if object.is_none()
        || object.is_exact_instance_of::<PyInt>()
        || object.is_exact_instance_of::<PyString>()
        || object.is_exact_instance_of::<PyFloat>()
        || object.is_exact_instance_of::<PyBool>()
        || object.is_exact_instance_of::<PyBytes>()
        || object.is_exact_instance_of::<PyByteArray>()
    {
        return true;
    }
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    if let Ok(items) = object.cast_exact::<PyTuple>() {
        return items.iter().all(|item| harmless(&item, depth));
    }
    if let Ok(items) = object.cast_exact::<PyList>() {
        return items.iter().all(|item| harmless(&item, depth));
    }
    if let Ok(items) = object.cast_exact::<PyDict>() {
        return items
            .iter()
            .all(|(key, value)| harmless(&key, depth) && harmless(&value, depth));
    }
    false
}
