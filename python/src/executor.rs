//! What the executor needs beside the pool: futures that are told, and the calls of a `map`.
//!
//! A future whose result is waited for takes it from the pool, in the thread that waits. Only those
//! that somebody wants to be told of go through a [`Relay`], and the thread that listens to it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use bunshin::{TaskError, TaskHandle};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::exception;
use crate::pool::{Task, Told, settle_told};
use crate::sync::duration;
use crate::task::{self, Function, Outcome, Shape, execute};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---------------------------------------------------------------------------
// Telling

#[derive(Default)]
struct Done {
    futures: Vec<Py<PyAny>>,
    is_over: bool,
}

#[derive(Default)]
struct Line {
    done: Mutex<Done>,
    changed: Condvar,
}

impl Line {
    fn push(&self, future: Py<PyAny>) {
        locked(&self.done).futures.push(future);
        self.changed.notify_one();
    }
}

/// Who is to be told of a task; woken by whatever thread learns that it is done.
struct Watch {
    line: Arc<Line>,
    future: Mutex<Option<Py<PyAny>>>,
}

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        let future = locked(&self.future).take();
        if let Some(future) = future {
            self.line.push(future);
        }
    }
}

/// Futures whose tasks are done, for the thread that tells those who want to know.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Relay(Arc<Line>);

#[pymethods]
impl Relay {
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    /// Has `next` give a future once its task is done.
    fn watch(&self, py: Python<'_>, task: &Task, future: Py<PyAny>) {
        let watch = Arc::new(Watch {
            line: Arc::clone(&self.0),
            future: Mutex::new(Some(future)),
        });
        let handle = task.handle();
        py.detach(|| {
            let waker = Waker::from(watch);
            let is_watched = handle
                .as_ref()
                .is_some_and(|handle| matches!(bunshin::front::watch(handle, &waker), Ok(false)));
            // Before anybody can see the task as done: who takes its result waits for that.
            drop(handle);
            if !is_watched {
                // It is done, or else the one who is told waits for it.
                waker.wake();
            }
        });
    }

    /// Waits for futures whose tasks are done; nothing once it is over.
    fn next(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        py.detach(|| {
            let mut done = locked(&self.0.done);
            while done.futures.is_empty() && !done.is_over {
                let woken = self.0.changed.wait(done);
                done = woken.unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::take(&mut done.futures)
        })
    }

    /// Has `next` give nothing, after what there is.
    fn end(&self, py: Python<'_>) {
        py.detach(|| {
            locked(&self.0.done).is_over = true;
            self.0.changed.notify_all();
        });
    }
}

// ---------------------------------------------------------------------------
// Maps

/// Tasks that are handed to the engine together.
const LOT: usize = 32;
/// Results that are taken from the engine together, and bytes of those that are unpickled together.
const AT_A_TIME: usize = 64;
const AT_A_TIME_BYTES: usize = 16 << 10;

/// A call of a map.
enum Call {
    /// Its task could not be pickled.
    Unsent(PyErr),
    Sent(TaskHandle<Outcome>),
    Done(Result<Outcome, TaskError>),
}

/// The calls of a map, in order.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Calls(Mutex<VecDeque<Call>>);

impl Calls {
    pub(crate) fn begin(
        py: Python<'_>,
        pool: &bunshin::Pool,
        function: &Function,
        items: &Bound<'_, PyList>,
        shape: Shape,
    ) -> PyResult<Self> {
        let mut calls = VecDeque::with_capacity(items.len());
        let mut lot = Vec::with_capacity(LOT);
        for item in items {
            lot.push(task::Task::new(function, shape, &item));
            if lot.len() == LOT {
                send(py, pool, &mut lot, &mut calls);
                py.check_signals()?;
            }
        }
        send(py, pool, &mut lot, &mut calls);
        Ok(Self(Mutex::new(calls)))
    }
}

fn send(
    py: Python<'_>,
    pool: &bunshin::Pool,
    lot: &mut Vec<PyResult<task::Task>>,
    calls: &mut VecDeque<Call>,
) {
    py.detach(|| {
        calls.extend(lot.drain(..).map(|task| match task {
            Ok(task) => Call::Sent(pool.apply_async(execute, (task,))),
            Err(error) => Call::Unsent(error),
        }));
    });
}

#[pymethods]
impl Calls {
    /// Waits for the next call; nothing if it is not done in that time. Gives the results of those
    /// that are done and went well, and what became of the one after them, if it did not. Neither
    /// after the last.
    #[pyo3(signature = (timeout=None))]
    fn next(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
    ) -> PyResult<Option<(Py<PyList>, Option<Told>)>> {
        let timeout = timeout.map(duration);
        let values = PyList::empty(py);
        // Not under the lock while it waits: a signal's handler may close the map meanwhile.
        let first = locked(&self.0).pop_front();
        match first {
            None => return Ok(Some((values.unbind(), None))),
            Some(Call::Sent(handle)) => {
                let waited = py.detach(|| match timeout {
                    _ if bunshin::front::is_known(&handle) => Ok(true),
                    None => handle.wait().map(|()| true),
                    Some(timeout) => handle.wait_timeout(timeout),
                });
                let is_done = matches!(waited, Ok(true));
                locked(&self.0).push_front(Call::Sent(handle));
                if let Some(raised) = crate::fork::take_raised() {
                    return Err(raised);
                }
                waited.map_err(|error| exception(&error))?;
                if !is_done {
                    return Ok(None);
                }
            }
            Some(call) => locked(&self.0).push_front(call),
        }
        py.detach(|| {
            let mut calls = locked(&self.0);
            for call in calls.iter_mut().take(AT_A_TIME) {
                let is_done =
                    matches!(call, Call::Sent(handle) if bunshin::front::is_known(handle));
                if !is_done {
                    continue;
                }
                let taken = std::mem::replace(call, Call::Done(Err(TaskError::Cancelled)));
                if let Call::Sent(handle) = taken {
                    *call = Call::Done(handle.get());
                }
            }
        });
        let mut bytes = 0;
        while bytes < AT_A_TIME_BYTES {
            let next = locked(&self.0).pop_front();
            match next {
                Some(Call::Done(result)) => {
                    bytes += result.as_ref().map_or(0, Outcome::len);
                    match settle_told(py, result) {
                        (Some(true), value) => values.append(value)?,
                        failed => return Ok(Some((values.unbind(), Some(failed)))),
                    }
                }
                Some(Call::Unsent(error)) => {
                    let failed = (Some(false), error.into_value(py).into_any());
                    return Ok(Some((values.unbind(), Some(failed))));
                }
                Some(call) => {
                    locked(&self.0).push_front(call);
                    break;
                }
                None => break,
            }
        }
        Ok(Some((values.unbind(), None)))
    }

    /// Cancels what has not begun, and forgets the rest.
    fn cancel(&self, py: Python<'_>) {
        let calls = std::mem::take(&mut *locked(&self.0));
        py.detach(|| {
            for call in &calls {
                if let Call::Sent(handle) = call {
                    handle.cancel();
                }
            }
            drop(calls);
        });
    }
}
