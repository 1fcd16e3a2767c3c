//! The engine's pool for Python's `Pool`: tasks and results are messages.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bunshin::{Imap, StartMethod, TaskError, TaskHandle};
use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;
use serde::{Deserialize, Serialize};

use crate::error::exception;
use crate::payload::{self, Payload};

/// A result, which the handle and its callback both want.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outcome(Mutex<Option<Payload>>);

impl Outcome {
    fn unpickle(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let payload = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        payload
            .ok_or_else(|| PyRuntimeError::new_err("the result was taken already"))?
            .unpickle(py)
    }
}

// ---------------------------------------------------------------------------
// In workers

/// What a worker runs first.
fn begin(inherited: Option<u64>, preparation: Payload, given: Payload) {
    Python::attach(|py| {
        let begun = (|| -> PyResult<()> {
            let worker = py.import("bunshin._worker")?;
            match inherited {
                Some(number) => worker.call_method1("begin_forked", (number,))?,
                None => {
                    let start = py.import("bunshin._start")?;
                    start.call_method1("prepare", (preparation.unpickle(py)?,))?;
                    worker.call_method1("begin", (given.unpickle(py)?,))?
                }
            };
            Ok(())
        })();
        if let Err(error) = begun {
            let text = py
                .import("bunshin._worker")
                .and_then(|worker| worker.call_method1("describe", (error.value(py),)))
                .and_then(|text| text.extract::<String>())
                .unwrap_or_else(|_| error.to_string());
            // The engine's way to say that a worker cannot begin.
            std::panic::panic_any(text);
        }
    });
}

/// What a worker runs last.
fn end() {
    Python::attach(|py| {
        let ended = py
            .import("bunshin._worker")
            .and_then(|worker| worker.call_method0("end"));
        if let Err(error) = ended {
            error.print(py);
        }
    });
}

/// What a worker runs for each task: gives whether it went well, and the result or exception.
fn execute(task: Payload) -> Outcome {
    let payload = Python::attach(|py| {
        let done = (|| -> PyResult<Payload> {
            let worker = py.import(pyo3::intern!(py, "bunshin._worker"))?;
            let (done, by_value) = match task.unpickle(py) {
                Ok(task) => worker
                    .call_method1(pyo3::intern!(py, "run"), (task,))?
                    .extract()?,
                Err(error) => (worker.call_method1("unread", (error.value(py),))?, true),
            };
            let pickled = match by_value {
                true => payload::pickle(&done),
                false => payload::pickle_by_name(&done),
            };
            pickled.or_else(|error| {
                payload::pickle(&worker.call_method1("unsent", (&done, error.value(py)))?)
            })
        })();
        done.or_else(|error| {
            let text = PyString::new(py, &error.to_string());
            payload::pickle((false, text).into_pyobject(py)?.as_any())
        })
    });
    match payload {
        Ok(payload) => Outcome(Mutex::new(Some(payload))),
        // Not even a text can be pickled: there is no memory.
        Err(error) => std::panic::panic_any(error.to_string()),
    }
}

// ---------------------------------------------------------------------------
// In the parent

/// The exception for a task that gave no result.
fn task_exception(py: Python<'_>, error: &TaskError) -> PyErr {
    if let Some(raised) = crate::fork::take_raised() {
        return raised;
    }
    let made = (|| -> PyResult<PyErr> {
        let worker = py.import("bunshin._worker")?;
        let made = match error {
            TaskError::Lost(lost) => {
                let status = lost.status();
                let code = status.and_then(|status| {
                    status
                        .code()
                        .or_else(|| status.signal().map(|signal| -signal))
                });
                worker.call_method1("lost", (error.to_string(), lost.pid(), code))?
            }
            TaskError::TimedOut { .. } => worker.call_method1("late", (error.to_string(),))?,
            TaskError::Cancelled => worker.call_method1("cancelled", (error.to_string(),))?,
            TaskError::Pool(error) if error.kind() == bunshin::ErrorKind::Initializer => {
                worker.call_method1("broken", (error.to_string(),))?
            }
            TaskError::Pool(error) => return Ok(exception(error)),
            other => worker.call_method1("broken", (other.to_string(),))?,
        };
        Ok(PyErr::from_value(made))
    })();
    made.unwrap_or_else(|error| error)
}

fn settle(py: Python<'_>, result: Result<Outcome, TaskError>) -> PyResult<Py<PyAny>> {
    match result {
        Ok(outcome) => outcome.unpickle(py),
        Err(error) => Err(task_exception(py, &error)),
    }
}

/// A pool of workers.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Pool(Arc<bunshin::Pool>);

#[pymethods]
impl Pool {
    /// Starts the workers. They find what to begin with under a number, if they are copies of
    /// this process, and else in `given`.
    #[new]
    #[pyo3(signature = (workers, method, name, command, max_tasks, inherited, preparation, given))]
    #[allow(clippy::too_many_arguments, reason = "one call, from one place")]
    fn new(
        py: Python<'_>,
        workers: usize,
        method: &str,
        name: String,
        command: Vec<std::ffi::OsString>,
        max_tasks: Option<usize>,
        inherited: Option<u64>,
        preparation: &Bound<'_, PyAny>,
        given: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let os = |error: bunshin::Error| exception(&error);
        let method: StartMethod = method.parse().map_err(os)?;
        bunshin::front::set_command(command).map_err(os)?;
        let arguments = (
            inherited,
            payload::pickle(preparation)?,
            payload::pickle(given)?,
        );
        let mut builder = bunshin::Pool::builder()
            .workers(workers)
            .start_method(method)
            .name(name)
            .initializer(begin, arguments)
            .on_exit(end);
        if let Some(tasks) = max_tasks {
            builder = builder.max_tasks_per_child(tasks);
        }
        let pool = py.detach(|| builder.build()).map_err(os)?;
        Ok(Self(Arc::new(pool)))
    }

    /// Gives the pool a task. `call` is called with what became of it, if it is given.
    #[pyo3(signature = (task, call=None, limit=None))]
    fn submit(
        &self,
        py: Python<'_>,
        task: &Bound<'_, PyAny>,
        call: Option<Py<PyAny>>,
        limit: Option<f64>,
    ) -> PyResult<Task> {
        let payload = payload::pickle(task)?;
        let limit = limit.map(Duration::try_from_secs_f64).transpose();
        let limit = limit.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let handle = py.detach(|| {
            let mut batch = self.0.batch();
            if let Some(limit) = limit {
                batch = batch.timeout(limit);
            }
            let handle = batch.apply_async(execute, (payload,));
            match call {
                None => handle,
                Some(call) => {
                    let also = Python::attach(|py| call.clone_ref(py));
                    handle
                        .callback(move |outcome: &Outcome| {
                            Python::attach(|py| tell(py, &call, outcome.unpickle(py)));
                        })
                        .error_callback(move |error| {
                            Python::attach(|py| tell(py, &also, Err(task_exception(py, error))));
                        })
                }
            }
        });
        Ok(Task(Mutex::new(Some(Arc::new(handle)))))
    }

    /// Runs all tasks that an iterator gives; gives what became of each, in order.
    fn imap(&self, py: Python<'_>, tasks: Py<PyAny>, ordered: bool) -> PyResult<Results> {
        let raised = Arc::new(Mutex::new(None));
        let tasks = Tasks {
            tasks,
            raised: Arc::clone(&raised),
        };
        let pool = &self.0;
        let imap: Box<dyn Next> = py.detach(|| -> Box<dyn Next> {
            if ordered {
                Box::new(pool.imap(execute, tasks))
            } else {
                Box::new(pool.imap_unordered(execute, tasks))
            }
        });
        Ok(Results {
            imap: Mutex::new(Some(imap)),
            raised,
        })
    }

    fn worker_pids(&self, py: Python<'_>) -> Vec<u32> {
        py.detach(|| self.0.worker_pids())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }

    fn terminate(&self, py: Python<'_>) {
        py.detach(|| self.0.terminate());
    }

    fn join(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.join())
            .map_err(|error| exception(&error))
    }
}

fn tell(py: Python<'_>, call: &Py<PyAny>, result: PyResult<Py<PyAny>>) {
    let told = match result {
        Ok(value) => call.call1(py, (value, py.None())),
        Err(error) => call.call1(py, (py.None(), error.value(py))),
    };
    if let Err(error) = told {
        error.write_unraisable(py, None);
    }
}

/// A task that is under way.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Task(Mutex<Option<Arc<TaskHandle<Outcome>>>>);

impl Task {
    fn handle(&self) -> PyResult<Arc<TaskHandle<Outcome>>> {
        let kept = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        kept.ok_or_else(|| PyRuntimeError::new_err("the result was taken already"))
    }
}

#[pymethods]
impl Task {
    /// Waits; whether the task is done.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let handle = self.handle()?;
        let timeout = timeout
            .map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX));
        let waited = py.detach(|| {
            let waited = match timeout {
                None => handle.wait().map(|()| true),
                Some(Duration::ZERO) => Ok(handle.is_ready()),
                Some(timeout) => handle.wait_timeout(timeout),
            };
            drop(handle);
            waited
        });
        if let Some(raised) = crate::fork::take_raised() {
            return Err(raised);
        }
        waited.map_err(|error| exception(&error))
    }

    /// What the worker gave for a task that is done: once.
    fn take(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let handle = loop {
            match kept.map(Arc::try_unwrap) {
                None => return Err(PyRuntimeError::new_err("the result was taken already")),
                Some(Ok(handle)) => break handle,
                // Another thread is just leaving its wait.
                Some(Err(shared)) => {
                    kept = Some(shared);
                    py.detach(std::thread::yield_now);
                }
            }
        };
        let result = py.detach(|| handle.get());
        settle(py, result)
    }

    /// Cancels the task if it has not begun, or with `kill` also then.
    fn cancel(&self, py: Python<'_>, kill: bool) -> PyResult<bool> {
        let handle = self.handle()?;
        Ok(py.detach(|| {
            let cancelled = if kill { handle.kill() } else { handle.cancel() };
            drop(handle);
            cancelled
        }))
    }
}

/// Tasks that an iterator gives, pickled as they are wanted.
pub(crate) struct Tasks {
    tasks: Py<PyAny>,
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Iterator for Tasks {
    type Item = Payload;

    fn next(&mut self) -> Option<Payload> {
        Python::attach(|py| {
            let next = self
                .tasks
                .bind(py)
                .call_method0(pyo3::intern!(py, "__next__"));
            match next.and_then(|task| payload::pickle(&task)) {
                Ok(payload) => Some(payload),
                Err(error) if error.is_instance_of::<PyStopIteration>(py) => None,
                Err(error) => {
                    let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
                    *raised = Some(error);
                    None
                }
            }
        })
    }
}

type Awaited = bunshin::Result<Option<Result<Outcome, TaskError>>>;

/// The engine's iterator over results, whatever its items are.
trait Next: Send {
    fn next_within(&mut self, timeout: Option<Duration>) -> Awaited;
}

impl<I> Next for Imap<I, Outcome>
where
    I: Iterator + Send,
    I::Item: Serialize + Send,
{
    fn next_within(&mut self, timeout: Option<Duration>) -> Awaited {
        match timeout {
            None => Ok(self.next()),
            Some(Duration::ZERO) => self.try_next(),
            Some(timeout) => self.next_timeout(timeout),
        }
    }
}

/// Results, one by one.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Results {
    imap: Mutex<Option<Box<dyn Next>>>,
    /// What the iterator of the tasks raised.
    raised: Arc<Mutex<Option<PyErr>>>,
}

#[pymethods]
impl Results {
    /// The next result; `StopIteration` after the last, `TimeoutError` if it has not come.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let next = py.detach(|| {
            let mut kept = self.imap.lock().unwrap_or_else(PoisonError::into_inner);
            let imap = kept.as_mut()?;
            Some(imap.next_within(timeout.map(|seconds| {
                Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
            })))
        });
        if let Some(raised) = crate::fork::take_raised() {
            return Err(raised);
        }
        match next {
            Some(Ok(Some(result))) => settle(py, result),
            Some(Err(error)) if error.is_timeout() => Err(PyTimeoutError::new_err("not yet")),
            Some(Err(error)) => Err(exception(&error)),
            Some(Ok(None)) | None => {
                let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
                Err(raised
                    .take()
                    .unwrap_or_else(|| PyStopIteration::new_err(())))
            }
        }
    }

    /// Cancels what has not begun.
    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            drop(
                self.imap
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take(),
            )
        });
    }
}
