//! The engine's pool for Python's `Pool`: tasks and results are messages.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bunshin::front::ForkMutex;
use bunshin::{Imap, StartMethod, TaskError, TaskHandle};
use pyo3::exceptions::{PyMemoryError, PyOSError, PyStopIteration, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::pyclass::{PyTraverseError, PyVisit};
use pyo3::types::{PyIterator, PyList, PyRange, PyTuple};
use serde::Serialize;

use crate::error::{exception, unmoved};
use crate::executor::Calls;
use crate::payload::{self, Payload};
use crate::process::Worker;
use crate::sync::duration;
use crate::task::{self, Function, Outcome, Shape, execute, worker};

// ---------------------------------------------------------------------------
// In workers

/// What a worker runs first that is a copy of its parent: what it begins with is under a number.
fn begin_copy(number: u64) {
    Python::attach(|py| begun(py, || worker(py)?.call_method1("begin_forked", (number,))));
}

/// What any other worker runs first.
fn begin(preparation: Payload, given: Payload) {
    Python::attach(|py| {
        begun(py, || {
            let worker = worker(py)?;
            worker.call_method0("ignore_interrupts")?;
            let start = py.import("bunshin._start")?;
            start.call_method1("prepare", (preparation.unpickle(py)?,))?;
            worker.call_method1("begin", (given.unpickle(py)?,))
        });
    });
}

/// Tells the engine if a worker cannot begin.
fn begun<'py>(py: Python<'py>, begin: impl FnOnce() -> PyResult<Bound<'py, PyAny>>) {
    let kept = worker(py).and_then(|worker| worker.call_method0("keep_words"));
    if let Err(error) = kept.and_then(|_| begin()) {
        let text = worker(py)
            .and_then(|worker| worker.call_method1("describe", (error.value(py),)))
            .and_then(|text| text.extract::<String>())
            .unwrap_or_else(|_| error.to_string());
        // The engine's way to say that a worker cannot begin.
        std::panic::resume_unwind(Box::new(text));
    }
}

/// Whether the rest of this worker's life is to run within what others have made of a process's.
static IS_WITHIN: AtomicBool = AtomicBool::new(false);

/// Has the rest of this worker's life be run by `_worker.live`.
#[pyfunction]
pub(crate) fn live_within() {
    IS_WITHIN.store(true, Ordering::Relaxed);
}

/// Runs the rest of a worker's life.
pub(crate) fn live(rest: bunshin::front::Rest) -> i32 {
    if !IS_WITHIN.load(Ordering::Relaxed) {
        return rest(Ok(()));
    }
    Python::attach(|py| {
        let code = worker(py).and_then(|worker| {
            let rest = Rest(Mutex::new(Some(rest)));
            worker.call_method1("live", (rest,))?.extract()
        });
        code.unwrap_or_else(|error: PyErr| {
            error.print(py);
            1
        })
    })
}

/// The rest of a worker's life, to be called once.
#[pyclass(frozen)]
struct Rest(Mutex<Option<bunshin::front::Rest>>);

#[pymethods]
impl Rest {
    /// Runs it; `why` says why the worker cannot begin.
    fn __call__(&self, py: Python<'_>, why: Option<String>) -> i32 {
        let rest = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let begun = why.map_or(Ok(()), Err);
        rest.map_or(1, |rest| py.detach(|| rest(begun)))
    }
}

/// What a worker runs last.
fn end() {
    Python::attach(|py| {
        let ended = worker(py).and_then(|worker| worker.call_method0("end"));
        if let Err(error) = ended {
            error.print(py);
        }
    });
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
                let about = (
                    error.to_string(),
                    lost.pid(),
                    code,
                    lost.out_of_memory(),
                    lost.peak_memory(),
                    lost.last_words(),
                );
                worker.call_method1("lost", about)?
            }
            TaskError::TimedOut { .. } => worker.call_method1("late", (error.to_string(),))?,
            TaskError::Cancelled => worker.call_method1("cancelled", (error.to_string(),))?,
            TaskError::Pool(error) if error.kind() == bunshin::ErrorKind::Initializer => {
                worker.call_method1("broken", (error.to_string(),))?
            }
            TaskError::Pool(error) => return Ok(exception(error)),
            // The pool is none the worse for it.
            TaskError::Arguments(why) | TaskError::Result(why) => return Ok(unmoved(error, why)),
            // It is how a worker says that not even an error can be sent.
            TaskError::Panicked(_) => return Ok(PyMemoryError::new_err(error.to_string())),
            other => worker.call_method1("broken", (other.to_string(),))?,
        };
        Ok(PyErr::from_value(made))
    })();
    made.unwrap_or_else(|error| error)
}

/// What became of a task: whether it went well, and its result or exception.
type Settled = (bool, Py<PyAny>);

fn settle(py: Python<'_>, result: Result<Outcome, TaskError>) -> PyResult<Settled> {
    match result {
        Ok(outcome) => outcome.unpickle(py),
        Err(error) => Err(task_exception(py, &error)),
    }
}

/// As [`settle`], where each task is to have something.
fn settle_all(py: Python<'_>, result: Result<Outcome, TaskError>) -> Settled {
    settle(py, result).unwrap_or_else(|error| (false, error.into_value(py).into_any()))
}

/// As [`Settled`], with nothing said of how it went if there is an exception that is not the task's.
pub(crate) type Told = (Option<bool>, Py<PyAny>);

/// As [`settle_all`], for those who tell a task's exceptions from others.
pub(crate) fn settle_told(py: Python<'_>, result: Result<Outcome, TaskError>) -> Told {
    match settle(py, result) {
        Ok((is_good, value)) => (Some(is_good), value),
        Err(error) => (None, error.into_value(py).into_any()),
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
    #[pyo3(signature = (workers, method, names, command, max_tasks, inherited, preparation, given))]
    #[allow(clippy::too_many_arguments, reason = "one call, from one place")]
    fn new(
        py: Python<'_>,
        workers: usize,
        method: &str,
        names: (String, usize),
        command: Vec<std::ffi::OsString>,
        max_tasks: Option<usize>,
        inherited: Option<u64>,
        preparation: &Bound<'_, PyAny>,
        given: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let os = |error: bunshin::Error| exception(&error);
        let method: StartMethod = method.parse().map_err(os)?;
        bunshin::front::set_command(command).map_err(os)?;
        let builder = bunshin::Pool::builder()
            .workers(workers)
            .start_method(method)
            .on_exit(end);
        let builder = bunshin::front::name_workers(builder, names.0, names.1);
        // What is made here is not made in each copy.
        worker(py)?;
        payload::loads(py)?;
        let mut builder = match inherited {
            Some(number) => builder.initializer(begin_copy, (number,)),
            None => {
                let arguments = (payload::pickle(preparation)?, payload::pickle(given)?);
                // A copy of this process may have its handlers, which those do not have.
                bunshin::front::end_starting(builder).initializer(begin, arguments)
            }
        };
        if let Some(tasks) = max_tasks {
            builder = builder.max_tasks_per_child(tasks);
        }
        // Between two forks Python code runs that an exception would not get out of. The other
        // start methods may wait, and can be interrupted.
        let held = (method == StartMethod::Fork).then(bunshin::front::hold_interrupts);
        let built = py.detach(|| builder.build());
        if let Some(held) = held {
            held.release();
        }
        let pool = built.map_err(os)?;
        // Somebody may submit tasks and never ask for them.
        bunshin::front::tend(&pool);
        let made = Self(Arc::new(pool));
        // If this raises, the workers end with what was made.
        py.check_signals()?;
        Ok(made)
    }

    /// Gives the pool a task. `call` is called with what became of it, if it is given.
    #[pyo3(signature = (function, arguments, shape, call=None, limit=None))]
    fn submit(
        &self,
        py: Python<'_>,
        function: Bound<'_, PyAny>,
        arguments: &Bound<'_, PyAny>,
        shape: u8,
        call: Option<Py<PyAny>>,
        limit: Option<f64>,
    ) -> PyResult<Task> {
        let function = Function::new(function);
        let task = match Shape::given(shape)? {
            Shape::Apply => {
                let (positional, named) = arguments.extract()?;
                task::Task::apply(&function, &positional, &named)?
            }
            shape => task::Task::new(&function, shape, arguments)?,
        };
        let limit = limit.map(Duration::try_from_secs_f64).transpose();
        let limit = limit.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let handle = py.detach(|| {
            let mut batch = self.0.batch();
            if let Some(limit) = limit {
                batch = batch.timeout(limit);
            }
            let handle = batch.apply_async(execute, (task,));
            match call {
                None => handle,
                Some(call) => {
                    // One of the two is called, and lets go of it while it is attached: otherwise it
                    // would be kept until some thread happens to be, and go there.
                    let call = Arc::new(Mutex::new(Some(call)));
                    let also = Arc::clone(&call);
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
        Ok(Task {
            generation: bunshin::front::generation(),
            handle: Mutex::new(Some(Arc::new(handle))),
            done: Mutex::new(None),
        })
    }

    /// Gives the pool a task for each item; those that cannot be pickled fail.
    fn submit_all(
        &self,
        py: Python<'_>,
        function: Bound<'_, PyAny>,
        items: &Bound<'_, PyList>,
        shape: u8,
    ) -> PyResult<Calls> {
        let function = Function::new(function);
        Calls::begin(py, &self.0, &function, items, Shape::given(shape)?)
    }

    /// Cancels the tasks that were submitted and have not begun, but for the oldest `kept` that are
    /// not done.
    fn cancel_pending(&self, py: Python<'_>, kept: usize) {
        py.detach(|| bunshin::front::cancel_pending(&self.0, kept));
    }

    /// Whether tasks that were submitted are not done.
    fn has_pending(&self, py: Python<'_>) -> bool {
        py.detach(|| bunshin::front::has_pending(&self.0))
    }

    /// Why the pool cannot have workers, if that is so.
    fn broken(&self, py: Python<'_>) -> Option<String> {
        py.detach(|| bunshin::front::broken(&self.0))
    }

    /// Calls a function (what `bunshin.pool.pickled` makes of it) with each item, so many in a
    /// task; gives what became of each task, in order if `is_ordered`. Where `are_all_wanted`, items
    /// are taken as fast as there is room. With 0 in a task, `expected` items are shared out in tasks
    /// of fewer and fewer.
    #[allow(clippy::too_many_arguments, reason = "one call, from two places")]
    fn imap(
        &self,
        py: Python<'_>,
        function: Py<PyAny>,
        items: &Bound<'_, PyAny>,
        chunk: usize,
        expected: usize,
        shape: u8,
        is_ordered: bool,
        are_all_wanted: bool,
    ) -> PyResult<Results> {
        let raised = Arc::new(Mutex::new(None));
        let is_list = items.is_exact_instance_of::<PyList>()
            || items.is_exact_instance_of::<PyTuple>()
            || items.is_exact_instance_of::<PyRange>();
        let tasks = Tasks {
            function: Callable::Given(function),
            items: items.try_iter()?.unbind(),
            chunk,
            left: expected,
            shares: SHARES * self.0.workers(),
            shape: Shape::given(shape)?,
            is_list,
            ahead: VecDeque::new(),
            is_over: false,
            raised: Arc::clone(&raised),
        };
        let pool = &self.0;
        let imap: Box<dyn Next> = py.detach(|| -> Box<dyn Next> {
            if are_all_wanted {
                Box::new(pool.batch().window(WINDOW).imap(execute, tasks))
            } else if is_ordered {
                Box::new(pool.imap(execute, tasks))
            } else {
                Box::new(pool.imap_unordered(execute, tasks))
            }
        });
        Ok(Results {
            imap: ForkMutex::new(Some(imap)),
            ready: Mutex::new(VecDeque::new()),
            raised,
        })
    }

    /// The workers that there are now.
    fn workers(&self, py: Python<'_>) -> Vec<Worker> {
        let workers = py.detach(|| bunshin::front::workers(&self.0));
        workers.into_iter().map(Worker::new).collect()
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

    /// As `terminate`, or `close` if there is to be `work` yet, for a pool that nobody has any more:
    /// without waiting for anybody.
    fn let_go(&self, py: Python<'_>, work: bool) {
        let pool = Arc::clone(&self.0);
        py.detach(|| bunshin::front::let_go(pool, work));
    }

    fn join(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.join())
            .map_err(|error| exception(&error))
    }
}

fn tell(py: Python<'_>, call: &Mutex<Option<Py<PyAny>>>, result: PyResult<Settled>) {
    let kept = call.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(call) = kept else {
        return;
    };
    let told = match result {
        Ok(settled) => call.call1(py, (settled, py.None())),
        Err(error) => call.call1(py, (py.None(), error.value(py))),
    };
    if let Err(error) = told {
        error.write_unraisable(py, None);
    }
}

/// A task that is under way.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Task {
    /// The process that waits for it, as a number of forks.
    generation: u32,
    /// Until its outcome is taken.
    handle: Mutex<Option<Arc<TaskHandle<Outcome>>>>,
    /// From then on: whether it went well, and its result or exception.
    done: Mutex<Option<Py<PyAny>>>,
}

impl Task {
    pub(crate) fn handle(&self) -> Option<Arc<TaskHandle<Outcome>>> {
        let kept = self.handle.lock();
        kept.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn done(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.as_ref().map(|done| done.clone_ref(py))
    }

    /// Waits for what became of the task, and makes something of it, once.
    fn take(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        settle: impl FnOnce(Python<'_>, Result<Outcome, TaskError>) -> PyResult<Py<PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        if let Some(done) = self.done(py) {
            return Ok(Some(done));
        }
        let deadline = timeout.map(|timeout| Instant::now() + duration(timeout));
        if !self.wait(py, timeout)? {
            return Ok(None);
        }
        let handle = loop {
            let mut kept = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
            match kept.take().map(Arc::try_unwrap) {
                Some(Ok(handle)) => break handle,
                // Another thread is just leaving its wait.
                Some(Err(shared)) => *kept = Some(shared),
                // Or making the result of it.
                None => {}
            }
            drop(kept);
            if let Some(done) = self.done(py) {
                return Ok(Some(done));
            }
            if self.generation != bunshin::front::generation() {
                return Err(PyOSError::new_err(
                    "the result was just being taken by another thread of the parent of this forked \
                     process",
                ));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            py.detach(std::thread::yield_now);
        };
        let result = py.detach(|| handle.get());
        let settled = settle(py, result)?;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = Some(settled.clone_ref(py));
        Ok(Some(settled))
    }
}

#[pymethods]
impl Task {
    /// An exception leads to those who wait for it, and they lead here.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Nobody has it for long; if somebody has it, that is no garbage.
        match self.done.try_lock() {
            Ok(done) => done.as_ref().map_or(Ok(()), |done| visit.call(done)),
            Err(_) => Ok(()),
        }
    }

    /// Waits; whether the task is done.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let Some(handle) = self.handle() else {
            return Ok(true);
        };
        let timeout = timeout.map(duration);
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

    /// Waits for what became of the task: whether it went well, and its result or exception.
    /// Nothing if it is not done in that time.
    #[pyo3(signature = (timeout=None))]
    fn get(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        self.take(py, timeout, |py, result| {
            let settled = settle_all(py, result).into_pyobject(py)?;
            Ok(settled.into_any().unbind())
        })
    }

    /// As `get`, where exceptions that are not the task's own are told from those that are: it is
    /// said of them neither that it went well nor that it did not.
    #[pyo3(signature = (timeout=None))]
    fn outcome(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        self.take(py, timeout, |py, result| {
            let told = settle_told(py, result).into_pyobject(py)?;
            Ok(told.into_any().unbind())
        })
    }

    /// Whether a worker is at the task.
    fn has_begun(&self, py: Python<'_>) -> bool {
        let handle = self.handle();
        py.detach(|| handle.is_some_and(|handle| bunshin::front::has_begun(&handle)))
    }

    /// Cancels the task if it has not begun, or with `kill` also then.
    fn cancel(&self, py: Python<'_>, kill: bool) -> PyResult<bool> {
        let Some(handle) = self.handle() else {
            return Ok(false);
        };
        Ok(py.detach(|| {
            let cancelled = if kill { handle.kill() } else { handle.cancel() };
            drop(handle);
            cancelled
        }))
    }
}

/// A task has so many of the items that are left, for each worker: the first ones as many as
/// CPython's all have, and the last ones one, so that no worker has much to do when others have
/// nothing left.
const SHARES: usize = 4;

/// Tasks of a map that are under way at most.
const WINDOW: usize = 512;

/// Tasks made ahead of need at most, and bytes in them.
const AHEAD: usize = 32;
const AHEAD_BYTES: usize = 4 << 10;

enum Callable {
    Given(Py<PyAny>),
    Ready(Function),
}

/// The tasks of a map, made as they are wanted.
pub(crate) struct Tasks {
    /// Pickled when there is something to call it with.
    function: Callable,
    items: Py<PyIterator>,
    /// Items in a task; 0 if that depends on how many are left.
    chunk: usize,
    left: usize,
    shares: usize,
    shape: Shape,
    /// Whether nobody can tell when items are taken.
    is_list: bool,
    ahead: VecDeque<task::Task>,
    is_over: bool,
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Tasks {
    /// Makes some tasks; none after the last.
    fn make(&mut self, py: Python<'_>) -> PyResult<()> {
        let mut bytes = 0;
        let most = if self.is_list { AHEAD } else { 1 };
        while self.ahead.len() < most && bytes < AHEAD_BYTES && !self.is_over {
            let mut items = self.items.bind(py).clone();
            let (shape, arguments) = if self.chunk == 1 {
                let Some(item) = items.next().transpose()? else {
                    self.is_over = true;
                    break;
                };
                match self.shape {
                    Shape::Map => (Shape::One, item),
                    _ => (Shape::Tuple, item),
                }
            } else {
                let size = match self.chunk {
                    0 => self.left.div_ceil(self.shares).max(1),
                    size => size,
                };
                let chunk = items.take(size).collect::<PyResult<Vec<_>>>()?;
                self.left = self.left.saturating_sub(chunk.len());
                if chunk.is_empty() {
                    self.is_over = true;
                    break;
                }
                (self.shape, PyTuple::new(py, chunk)?.into_any())
            };
            if let Callable::Given(function) = &self.function {
                let pool = py.import("bunshin.pool")?;
                let function = pool.call_method1("pickled", (function,))?;
                self.function = Callable::Ready(Function::new(function));
            }
            let Callable::Ready(function) = &self.function else {
                break;
            };
            let task = task::Task::new(function, shape, &arguments)?;
            bytes += task.len();
            self.ahead.push_back(task);
        }
        Ok(())
    }
}

impl Iterator for Tasks {
    type Item = task::Task;

    fn next(&mut self) -> Option<task::Task> {
        if self.ahead.is_empty() && !self.is_over {
            let made = Python::attach(|py| self.make(py));
            if let Err(error) = made {
                self.is_over = true;
                let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
                *raised = Some(error);
            }
        }
        self.ahead.pop_front()
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

/// Results that are taken from the engine at a time.
const AT_A_TIME: usize = 16;
/// As that, where all are wanted.
const IN_A_ROW: usize = 512;

/// Results, one by one.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Results {
    /// Held while a thread waits.
    imap: ForkMutex<Option<Box<dyn Next>>>,
    /// Those that there are, and were not asked for yet. Never held while something is done.
    ready: Mutex<VecDeque<Result<Outcome, TaskError>>>,
    /// What the iterator of the tasks raised.
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Results {
    /// What the iterator of the tasks raised: once.
    fn raised(&self) -> Option<PyErr> {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        raised.take()
    }

    fn pop(&self) -> Option<Result<Outcome, TaskError>> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.pop_front()
    }

    /// Takes what there is, at least one and at most `most`. False if there are no more.
    fn fetch(&self, py: Python<'_>, timeout: Option<f64>, most: usize) -> PyResult<bool> {
        let timeout = timeout.map(duration);
        let fetched = py.detach(|| {
            let mut kept = self.imap.lock();
            let Some(imap) = kept.as_mut() else {
                return Ok(false);
            };
            let mut timeout = timeout;
            let mut fetched = Vec::new();
            let is_more = loop {
                match imap.next_within(timeout) {
                    Ok(Some(result)) => fetched.push(result),
                    Ok(None) => break Ok(!fetched.is_empty()),
                    Err(_) if !fetched.is_empty() => break Ok(true),
                    Err(error) => break Err(error),
                }
                timeout = Some(Duration::ZERO);
                if fetched.len() >= most {
                    break Ok(true);
                }
            };
            let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
            ready.extend(fetched);
            is_more
        });
        if let Some(raised) = crate::fork::take_raised() {
            return Err(raised);
        }
        match fetched {
            Ok(is_more) => Ok(is_more),
            Err(error) if error.is_timeout() => Err(PyTimeoutError::new_err("not yet")),
            Err(error) => Err(exception(&error)),
        }
    }
}

#[pymethods]
impl Results {
    /// The next result, if it was fetched by now: whether it went well, and what it is.
    fn ready(&self, py: Python<'_>) -> Option<Settled> {
        self.pop().map(|result| settle_all(py, result))
    }

    /// The next result; `StopIteration` after the last, `TimeoutError` if it has not come.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Settled> {
        loop {
            if let Some(result) = self.pop() {
                return Ok(settle_all(py, result));
            }
            if !self.fetch(py, timeout, AT_A_TIME)? {
                let over = || PyStopIteration::new_err(());
                return Err(self.raised().unwrap_or_else(over));
            }
        }
    }

    /// Waits for all of them, and keeps them.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        while self.fetch(py, None, IN_A_ROW)? {
            py.check_signals()?;
        }
        self.close(py);
        Ok(())
    }

    /// Waits for all of them, and gives them as a list: each task's, or with `joined` what is in
    /// the list that each task gives. Also gives the first exception.
    fn all(&self, py: Python<'_>, joined: bool) -> PyResult<(Py<PyList>, Option<Py<PyAny>>)> {
        let list = PyList::empty(py);
        let mut first = None;
        loop {
            let is_more = self.fetch(py, None, IN_A_ROW)?;
            // Where results never stop coming, there is no wait that a signal ends.
            py.check_signals()?;
            while let Some(result) = self.pop() {
                let (is_good, value) = settle_all(py, result);
                if !is_good {
                    first.get_or_insert(value);
                } else if first.is_some() {
                    // Nobody will see them.
                } else if joined {
                    list.call_method1(crate::once::intern!(py, "extend"), (value,))?;
                } else {
                    list.append(value)?;
                }
            }
            if !is_more {
                if let (None, Some(error)) = (&first, self.raised()) {
                    first = Some(error.into_value(py).into_any());
                }
                return Ok((list.unbind(), first));
            }
        }
    }

    /// Cancels what has not begun.
    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            let kept = self.imap.lock().take();
            drop(kept);
        });
    }
}
