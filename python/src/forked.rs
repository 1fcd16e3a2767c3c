//! Children that are copies of this process: what they are before and after their program.
//!
//! After a fork each page that is written to is copied, and to use an object of the interpreter's
//! is to write to it. So the parent looks up all that a child needs, and a child does what there is
//! to do, and no more: it runs no function of the interpreter's for what is empty.

use pyo3::exceptions::{PyRuntimeError, PySystemExit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyModule, PySet, PyString, PyTuple};

/// A variable of a module's.
struct Variable {
    module: Py<PyDict>,
    name: Py<PyString>,
}

impl Variable {
    fn new(module: &Bound<'_, PyModule>, name: &str) -> Self {
        Self {
            module: module.dict().unbind(),
            name: PyString::intern(module.py(), name).unbind(),
        }
    }

    fn get<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let value = self.module.bind(py).get_item(self.name.bind(py))?;
        Ok(value.filter(|value| !value.is_none()))
    }

    /// As [`get`](Self::get), for what is always there. It is not kept: others put functions of theirs
    /// in the place of some.
    fn function<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let name = self.name.bind(py);
        let gone = || PyRuntimeError::new_err(format!("{name} is gone"));
        self.get(py)?.ok_or_else(gone)
    }

    fn set(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.module.bind(py).set_item(self.name.bind(py), value)
    }

    /// Whether nothing is in the collection that it has.
    fn is_empty(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(match self.get(py)? {
            Some(collection) => collection.len()? == 0,
            None => true,
        })
    }
}

/// What a process knows of itself, by the modules that it is kept in.
#[pyclass(module = "bunshin._native", frozen)]
pub(crate) struct Life {
    current: Variable,
    parent: Variable,
    children: Variable,
    numbers: Variable,
    input: Variable,
    streams: [Variable; 2],
    logger: Variable,
    finalizers: Variable,
    is_exiting: Variable,
    /// What is to be told of a fork, and what of it is ours, which such a child has no use for.
    followers: Py<PyAny>,
    own_follower: Py<PyAny>,
    tell_followers: Variable,
    end: Variable,
    info: Variable,
    end_threads: Variable,
    main_thread: Variable,
    count: Py<PyAny>,
    first_number: Py<PyTuple>,
    names: Names,
    /// Whether handlers that run later end what belongs to the process.
    is_ended_later: bool,
}

/// The names of what is called in a child, which are not to be made there.
struct Names {
    close: Py<PyString>,
    flush: Py<PyString>,
    run: Py<PyString>,
    clear: Py<PyString>,
    set_native_id: Py<PyString>,
    sentinel: Py<PyString>,
}

#[pymethods]
impl Life {
    /// To be made in the parent; `own_follower` is what this package has registered for forks.
    #[new]
    fn new(py: Python<'_>, own_follower: Py<PyAny>, is_ended_later: bool) -> PyResult<Self> {
        let process = py.import("multiprocessing.process")?;
        let util = py.import("multiprocessing.util")?;
        let threading = py.import("threading")?;
        let sys = py.import("sys")?;
        let name = |text| PyString::intern(py, text).unbind();
        Ok(Self {
            current: Variable::new(&process, "_current_process"),
            parent: Variable::new(&process, "_parent_process"),
            children: Variable::new(&process, "_children"),
            numbers: Variable::new(&process, "_process_counter"),
            input: Variable::new(&sys, "stdin"),
            streams: [Variable::new(&sys, "stdout"), Variable::new(&sys, "stderr")],
            logger: Variable::new(&util, "_logger"),
            finalizers: Variable::new(&util, "_finalizer_registry"),
            is_exiting: Variable::new(&util, "_exiting"),
            followers: util
                .getattr("_afterfork_registry")?
                .getattr("data")?
                .unbind(),
            own_follower,
            tell_followers: Variable::new(&util, "_run_after_forkers"),
            end: Variable::new(&util, "_exit_function"),
            info: Variable::new(&util, "info"),
            end_threads: Variable::new(&threading, "_shutdown"),
            main_thread: Variable::new(&threading, "main_thread"),
            count: py.import("itertools")?.getattr("count")?.unbind(),
            first_number: (1,).into_pyobject(py)?.unbind(),
            names: Names {
                close: name("close"),
                flush: name("flush"),
                run: name("run"),
                clear: name("clear"),
                set_native_id: name("_set_native_id"),
                sentinel: name("_sentinel"),
            },
            is_ended_later,
        })
    }

    /// In a child: is that process, runs it, and gives its exit code.
    ///
    /// `parent` is what `parent_process` is to give, without its `sentinel`; `input` a standard
    /// input without anything in it.
    fn lead(
        &self,
        child: &Bound<'_, PyAny>,
        parent: &Bound<'_, PyAny>,
        sentinel: &Bound<'_, PyAny>,
        input: &Bound<'_, PyAny>,
    ) -> PyResult<i32> {
        let py = child.py();
        let ran = self
            .begin(child, parent, sentinel, input)
            .and_then(|()| self.run(child));
        let code = match ran {
            Ok(()) => 0,
            // Where that cannot be said, the code says it.
            Err(error) => self.report(child, error).unwrap_or(1),
        };
        let ended = self.end_threads.function(py)?.call0();
        if self.logger.get(py)?.is_some() {
            let text = "process exiting with exitcode %d";
            self.info.function(py)?.call1((text, code))?;
        }
        for stream in &self.streams {
            // One that is closed, or none, has nothing to say.
            if let Some(stream) = stream.get(py)? {
                let _ = stream.call_method0(self.names.flush.bind(py));
            }
        }
        ended.map(|_| code)
    }
}

impl Life {
    /// Takes on what tells this process from its parent.
    fn begin(
        &self,
        child: &Bound<'_, PyAny>,
        parent: &Bound<'_, PyAny>,
        sentinel: &Bound<'_, PyAny>,
        input: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = child.py();
        // Those who hear of the fork may still ask for the process that this one was.
        let before = self.current.get(py)?;
        self.current.set(py, child)?;
        parent.setattr(self.names.sentinel.bind(py), sentinel)?;
        self.parent.set(py, parent)?;
        if !self.children.is_empty(py)? {
            self.children.set(py, PySet::empty(py)?.as_any())?;
        }
        let numbers = self.count.bind(py).call1(self.first_number.bind(py))?;
        self.numbers.set(py, &numbers)?;
        let given = self.input.get(py)?;
        if let Some(given) = given.filter(|given| !given.is(input)) {
            // What has been read ahead is for the parent.
            let _ = given.call_method0(self.names.close.bind(py));
            self.input.set(py, input)?;
        }
        let main = self.main_thread.function(py)?.call0()?;
        main.call_method0(self.names.set_native_id.bind(py))?;
        if let Some(finalizers) = self.finalizers.get(py)? {
            finalizers.call_method0(self.names.clear.bind(py))?;
        }
        let followers = self.followers.bind(py);
        if followers.len()? != 1 || !followers.contains(&self.own_follower)? {
            self.tell_followers.function(py)?.call0()?;
        }
        drop(before);
        Ok(())
    }

    fn run(&self, child: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = child.py();
        if self.logger.get(py)?.is_some() {
            let text = "child process calling self.run()";
            self.info.function(py)?.call1((text,))?;
        }
        let ran = child.call_method0(self.names.run.bind(py));
        if self.is_ended_later {
            return ran.map(drop);
        }
        // Its own children, and what is to be done before it ends; a log may be waiting for it.
        let is_idle = self.children.is_empty(py)?
            && self.finalizers.is_empty(py)?
            && self.logger.get(py)?.is_none();
        let ended = if is_idle {
            self.is_exiting.set(py, true.into_pyobject(py)?.as_any())
        } else {
            self.end.function(py)?.call0().map(drop)
        };
        match (ran, ended) {
            (Err(raised), Err(later)) => {
                whole(py, &later)?
                    .setattr(crate::once::intern!(py, "__context__"), whole(py, &raised)?)?;
                Err(later)
            }
            (Err(raised), Ok(())) => Err(raised),
            (Ok(_), ended) => ended,
        }
    }

    /// The exit code for what the program has ended with; says on the standard error what it was.
    fn report(&self, child: &Bound<'_, PyAny>, error: PyErr) -> PyResult<i32> {
        let py = child.py();
        let stderr = self.streams[1].get(py)?;
        let say = |text: String| match &stderr {
            Some(stderr) => stderr.call_method1("write", (text,)).map(drop),
            None => Err(PyRuntimeError::new_err("there is no standard error")),
        };
        if error.is_instance_of::<PySystemExit>(py) {
            let code = error.value(py).getattr("code")?;
            if code.is_none() {
                return Ok(0);
            }
            if code.is_instance_of::<PyInt>() {
                return Ok(code.extract().unwrap_or(255));
            }
            say(format!("{}\n", code.str()?))?;
            return Ok(1);
        }
        say(format!("Process {}:\n", child.getattr("name")?.str()?))?;
        py.import("traceback")?
            .call_method1("print_exception", (whole(py, &error)?,))?;
        Ok(1)
    }
}

/// An exception that knows where it was raised, which it is not told before Python code catches it.
fn whole<'py>(py: Python<'py>, error: &PyErr) -> PyResult<Bound<'py, PyAny>> {
    let value = error.value(py).clone().into_any();
    if let Some(traceback) = error.traceback(py) {
        value.setattr(crate::once::intern!(py, "__traceback__"), traceback)?;
    }
    Ok(value)
}
