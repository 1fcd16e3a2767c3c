//! Mapping a closure that borrows over a slice, in processes forked for the purpose.
//!
//! The workers are those of a pool whose items do not travel: a forked worker has them
//! already, and is sent their positions. Results come back as a pool's do, and a worker that
//! dies is replaced by another fork.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::dispatcher::{Core, Dispatcher};
use super::map::{Run, map_all};
use super::supervisor::{Recipe, Worker};
use super::worker;
use crate::codec::outcome::{Call, Failure};
use crate::codec::serde::decode;
use crate::error::{Error, Result};
use crate::process::last_words::{self, LastWords};
use crate::process::{Scope, StartMethod, TaskError, panic, target};
use crate::shm::table::WORKERS;
use crate::sys::{process, socket, thread};

/// How the items of a slice are to be mapped by forked processes.
///
/// # Examples
/// ```
/// # // Doc tests have threads, so that the fork happens in a child that has none.
/// # bunshin::Process::start(|| {
/// let words = vec!["some", "borrowed", "words"];
/// let suffix = String::from("!");
/// let loud = bunshin::scope(|scope| {
///     scope.par().workers(2).chunk_size(2).map(&words, |word| word.to_uppercase() + &suffix)
/// });
/// assert_eq!(loud.unwrap(), ["SOME!", "BORROWED!", "WORDS!"]);
/// # }, ())?.result()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "it does nothing until it maps"]
pub struct ParMap<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    workers: Option<usize>,
    chunk_size: Option<usize>,
    limit: Option<Duration>,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Runs a closure on each item of a slice, in as many forked processes as there are
    /// processors that this process may use, and gives the results in order.
    ///
    /// The closure and the items may borrow what is around them: each process has a copy of
    /// everything, as of the moment of its fork. Only results come back.
    ///
    /// # Errors
    /// The first error in the order of the items, after all were run;
    /// [`par_map_each`](Self::par_map_each) gives each item's own. [`TaskError::Pool`] of kind
    /// `Threads` if this process has other threads.
    ///
    /// # Examples
    /// ```
    /// # bunshin::Process::start(|| {
    /// let factor = 3;
    /// let numbers: Vec<u64> = (0..1000).collect();
    /// let products = bunshin::scope(|scope| scope.par_map(&numbers, |number| number * factor));
    /// assert_eq!(products.unwrap()[999], 2997);
    /// # }, ())?.result()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn par_map<T, R>(
        &'scope self,
        items: &[T],
        work: impl Fn(&T) -> R,
    ) -> Result<Vec<R>, TaskError>
    where
        R: Serialize + DeserializeOwned,
    {
        self.par().map(items, work)
    }

    /// As [`par_map`](Self::par_map), with each item's result or error: a process that is
    /// killed or crashes costs the item that it had begun, and another takes its place.
    pub fn par_map_each<T, R>(
        &'scope self,
        items: &[T],
        work: impl Fn(&T) -> R,
    ) -> Vec<Result<R, TaskError>>
    where
        R: Serialize + DeserializeOwned,
    {
        self.par().map_each(items, work)
    }

    /// [`par_map`](Self::par_map) with choices.
    pub fn par(&'scope self) -> ParMap<'scope, 'env> {
        ParMap {
            scope: self,
            workers: None,
            chunk_size: None,
            limit: None,
        }
    }
}

impl ParMap<'_, '_> {
    /// How many processes. By default as many as there are processors that this process may
    /// use, and never more than items. 0 is as 1.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// How many items a process takes at a time. By default so many that each comes eight
    /// times, and 64 at most. Each item is tracked by itself all the same.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = Some(items);
        self
    }

    /// How long each item may take; see [`Batch::timeout`](crate::Batch::timeout).
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// See [`Scope::par_map`].
    ///
    /// # Errors
    /// As there.
    pub fn map<T, R>(self, items: &[T], work: impl Fn(&T) -> R) -> Result<Vec<R>, TaskError>
    where
        R: Serialize + DeserializeOwned,
    {
        self.map_each(items, work).into_iter().collect()
    }

    /// See [`Scope::par_map_each`].
    pub fn map_each<T, R>(self, items: &[T], work: impl Fn(&T) -> R) -> Vec<Result<R, TaskError>>
    where
        R: Serialize + DeserializeOwned,
    {
        if items.is_empty() {
            return Vec::new();
        }
        let n_workers = self.workers.unwrap_or_else(thread::cpus).max(1);
        let n_workers = n_workers.min(items.len()).min(WORKERS);
        let chunk_size = self
            .chunk_size
            .unwrap_or_else(|| (items.len() / (8 * n_workers)).min(64));
        let local = |call: &mut Call| run(call, items, &work);
        let crew = Crew::new(n_workers).and_then(|crew| {
            crew.hire(self.scope, &local)?;
            Ok(crew)
        });
        let crew = match crew {
            Ok(crew) => crew,
            Err(error) => {
                let run = Err(TaskError::Pool(error));
                return map_all(run, 0..items.len(), None, &mut || ());
            }
        };
        let run = Run::new(&crew.dispatcher, Ok(0), chunk_size.max(1), self.limit);
        let mut hire = || {
            // If nobody is left, the pool is broken, and every item is told why.
            let _ = crew.hire(self.scope, &local);
        };
        map_all(run, 0..items.len(), None, &mut hire)
    }
}

/// The workers of one `par_map`, which end with it.
struct Crew {
    dispatcher: Arc<Dispatcher>,
}

impl Crew {
    fn new(n_workers: usize) -> Result<Self> {
        let recipe = Recipe {
            method: StartMethod::Fork,
            prefix: "ParMap-".to_owned(),
            first: 1,
            tasks: None,
            initializer: None,
            exit: None,
            ends_starting: false,
            is_external: true,
        };
        Ok(Self {
            dispatcher: Dispatcher::new(n_workers, recipe)?,
        })
    }

    /// Forks the workers that are missing. Fails if none of them could be.
    fn hire(&self, scope: &Scope<'_, '_>, local: worker::Local<'_>) -> Result<()> {
        let vacant = std::mem::take(&mut self.dispatcher.lock().vacant);
        let mut any = vacant.is_empty();
        let mut failed = None;
        for number in vacant {
            let installed = match self.start(scope, number, local) {
                Ok(worker) => Ok(worker),
                Err(error) => {
                    let words = error.to_string();
                    failed = Some(error);
                    Err(words)
                }
            };
            any |= installed.is_ok();
            self.dispatcher.lock().install(number, installed);
        }
        match failed {
            Some(error) if !any => Err(error),
            _ => Ok(()),
        }
    }

    fn start(
        &self,
        scope: &Scope<'_, '_>,
        number: usize,
        local: worker::Local<'_>,
    ) -> Result<Worker> {
        let (socket, theirs) =
            socket::packet_pair().map_err(|error| Error::os("start a worker", error))?;
        let here = socket.as_raw_fd();
        let (words, their_words) = LastWords::new()?;
        let table = self.dispatcher.table.clone();
        let name = format!("ParMap-{}", number + 1);
        let child = scope.start_worker(name, move || {
            // The parent's end must not stay open here, or its death would not be seen.
            process::close_inherited(here);
            // Without them it works as well.
            let _ = last_words::adopt(their_words);
            worker::run_local(table, theirs, number, local)
        })?;
        Ok(Worker {
            child,
            socket: Arc::new(socket),
            words,
            handles: HashMap::new(),
        })
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.dispatcher.terminate();
    }
}

impl Core {
    /// Puts a worker that others have started into its place.
    pub(super) fn install(&mut self, number: usize, started: Result<Worker, String>) {
        match started {
            Ok(worker) => self.workers[number] = Some(worker),
            Err(error) => {
                // Another try would only fail again; the others go on.
                let _ = self.state.ended(number, &[], 0, "no start");
                let actions = self.state.not_replaced(&error);
                self.act(actions);
            }
        }
    }
}

/// Runs the closure on the item whose position is the task's argument.
fn run<T, R: Serialize>(call: &mut Call, items: &[T], work: &dyn Fn(&T) -> R) {
    let position = decode::<usize>(call.input.as_bytes(), &mut call.incoming);
    let item = position.ok().and_then(|position| items.get(position));
    let Some(item) = item else {
        return target::fail(call, &Failure::Arguments("there is no such item".into()));
    };
    match panic::catch(call.is_quiet, || work(item)) {
        Ok(result) => {
            target::finish(call, &result);
            // Dropping the result is the user's code too.
            let _ = panic::catch(call.is_quiet, move || drop(result));
        }
        Err(failure) => target::fail(call, &failure),
    }
}
