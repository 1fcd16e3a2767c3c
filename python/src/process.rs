//! Children: starting one that runs a Python process object, and being one.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bunshin::{Process, StartMethod};
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;

use crate::error::exception;
use crate::payload::{self, Payload};
use crate::sync::duration;

/// A child, until it has been collected.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Child {
    /// Given up once it is not needed any more: it holds two descriptors.
    process: Mutex<Option<std::sync::Arc<Process<()>>>>,
    #[pyo3(get)]
    pid: u32,
    /// Readable once the child has ended.
    #[pyo3(get)]
    sentinel: RawFd,
}

impl Child {
    fn process(&self) -> PyResult<std::sync::Arc<Process<()>>> {
        self.process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(|| PyValueError::new_err("the process is closed"))
    }
}

fn code(status: bunshin::ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => -signal,
        (None, None) => 255,
    }
}

#[pymethods]
impl Child {
    /// The exit code (minus the signal, if one ended it), if the child has ended in that time.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        let process = self.process()?;
        let joined = py.detach(|| match timeout {
            None => process.join().map(Some),
            Some(seconds) if seconds <= 0.0 => process.try_join(),
            Some(seconds) => match Duration::try_from_secs_f64(seconds) {
                Ok(timeout) => process.join_timeout(timeout),
                Err(_) => process.join().map(Some),
            },
        });
        Ok(joined.map_err(|error| exception(&error))?.map(code))
    }

    fn close(&self) {
        let process = self
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(process);
    }
}

/// A worker of a pool, which the pool starts, watches and replaces.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Worker {
    worker: bunshin::front::PoolWorker,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    pid: u32,
    /// Readable once the worker has ended, and open for as long as this is there.
    #[pyo3(get)]
    sentinel: RawFd,
}

impl Worker {
    pub(crate) fn new(worker: bunshin::front::PoolWorker) -> Self {
        Self {
            name: worker.name().to_owned(),
            pid: worker.pid(),
            sentinel: worker.sentinel().as_raw_fd(),
            worker,
        }
    }
}

#[pymethods]
impl Worker {
    /// As `Child.wait`.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        let timeout = timeout.map(duration);
        let waited = py.detach(|| self.worker.wait(timeout));
        if let Some(raised) = crate::fork::take_raised() {
            return Err(raised);
        }
        Ok(waited.map_err(|error| exception(&error))?.map(code))
    }
}

/// Starts a child that first takes over `preparation` and then runs `process`.
///
/// What the command starts calls [`run_child`].
#[pyfunction]
pub(crate) fn start(
    py: Python<'_>,
    method: &str,
    command: Vec<std::ffi::OsString>,
    preparation: &Bound<'_, PyAny>,
    process: &Bound<'_, PyAny>,
) -> PyResult<Child> {
    let method: StartMethod = method
        .parse()
        .map_err(|error: bunshin::Error| exception(&error))?;
    let name: String = process.getattr("name")?.extract()?;
    let arguments = (payload::pickle(preparation)?, payload::pickle(process)?);
    bunshin::front::set_command(command).map_err(|error| exception(&error))?;
    let builder = Process::builder().name(name).start_method(method);
    let process = py
        .detach(|| builder.start(run, arguments))
        .map_err(|error| exception(&error))?;
    Ok(Child {
        pid: process.pid(),
        sentinel: process.sentinel().as_raw_fd(),
        process: Mutex::new(Some(std::sync::Arc::new(process))),
    })
}

thread_local! {
    /// What the process object says that this child exits with.
    static EXIT_CODE: Cell<i32> = const { Cell::new(1) };
}

/// What the engine calls this process.
#[pyfunction]
pub(crate) fn name() -> String {
    bunshin::current_process().name().to_owned()
}

/// How long a child may see that its parent has ended.
const GRACE: Duration = Duration::from_millis(700);

/// In a child: ends it soon after its parent.
#[pyfunction]
pub(crate) fn end_after_parent(parent: u32) {
    // If that cannot be had, one that the engine has started ends with its parent, which is as
    // good, and one that was forked goes on, as in `multiprocessing`.
    let _ = bunshin::front::end_after_parent(parent, GRACE);
}

/// In the child: what was started.
fn run(preparation: Payload, process: Payload) {
    end_after_parent(std::os::unix::process::parent_id());
    Python::attach(|py| {
        let ran = (|| -> PyResult<i32> {
            let start = py.import("bunshin._start")?;
            start.call_method1("prepare", (preparation.unpickle(py)?,))?;
            start
                .call_method1("run", (process.unpickle(py)?,))?
                .extract()
        })();
        match ran {
            Ok(code) => EXIT_CODE.set(code),
            // It was interrupted before there was anything to interrupt.
            Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => {}
            Err(error) => error.print(py),
        }
    });
}

/// Runs what this process was started for: its exit code, and whether it ends without the
/// handlers that are registered in it. Nothing if it was not started by [`start`].
#[pyfunction]
pub(crate) fn run_child(py: Python<'_>) -> Option<(i32, bool)> {
    let ended = py.detach(bunshin::front::run_child);
    ended.map(|(code, is_copy)| (if code == 0 { EXIT_CODE.get() } else { code }, is_copy))
}
