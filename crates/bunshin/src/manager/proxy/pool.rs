//! A proxy to a pool of workers.

use std::marker::PhantomData;
use std::sync::{Arc, RwLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::managed::{self, CallError, Entering, Managed, MethodCall, Proxy};
use super::super::message::Op;
use super::super::referent::Referent;
use super::proxy;
use crate::codec::outcome::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Pool;
use crate::process::{ExitStatus, Target, TaskError, WorkerLost};
use crate::sys::image;

/// A pool of workers that belongs to a manager's server, for any process to give tasks to.
///
/// The workers are children of the server. A task that panics or is lost costs itself, as in
/// a [`Pool`].
///
/// # Source
/// CPython's `SyncManager.Pool`.
///
/// # Examples
/// ```
/// let manager = bunshin::Manager::new()?;
/// let pool = manager.pool(2)?;
/// assert_eq!(pool.map(|n: u32| n * n, [1, 2, 3])?, [1, 4, 9]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PoolProxy {
    referent: Arc<Referent>,
    types: PhantomData<()>,
}

proxy!(PoolProxy);

/// The pool in the server.
pub(in crate::manager) struct Workers(Pool);

impl Workers {
    pub(in crate::manager) fn start(workers: usize) -> Self {
        match Pool::new(workers) {
            Ok(pool) => Self(pool),
            // It reaches whoever asked for the pool.
            Err(error) => panic!("{error}"),
        }
    }
}

impl Managed for Workers {
    type Proxy = Proxy<Self>;

    fn call(_object: &RwLock<Self>, _method: u64, call: &mut MethodCall) {
        call.unknown();
    }
}

/// How a task ended, on its way from the server.
#[derive(Serialize, Deserialize)]
enum Ended<R> {
    Done(R),
    Failed(Failure),
    Lost {
        name: String,
        pid: u32,
        task: Option<usize>,
        code: Option<i32>,
        signal: Option<i32>,
        out_of_memory: bool,
        peak_memory: Option<u64>,
        last_words: String,
    },
    Cancelled,
    Pool(String),
}

impl<R> Ended<R> {
    fn of(result: Result<R, TaskError>) -> Self {
        match result {
            Ok(value) => Self::Done(value),
            Err(TaskError::Panicked(panic)) => Self::Failed(Failure::Panicked {
                message: panic.message,
                location: panic.location,
            }),
            Err(TaskError::Lost(lost)) => Self::Lost {
                code: lost.status.and_then(|status| status.code()),
                signal: lost.status.and_then(|status| status.signal()),
                name: lost.name,
                pid: lost.pid,
                task: lost.task,
                out_of_memory: lost.out_of_memory,
                peak_memory: lost.peak_memory,
                last_words: lost.last_words.to_string(),
            },
            Err(TaskError::Arguments(error)) => Self::Failed(Failure::Arguments(error.to_string())),
            Err(TaskError::Result(error)) => Self::Failed(Failure::Result(error.to_string())),
            Err(TaskError::Cancelled) => Self::Cancelled,
            Err(error) => Self::Pool(error.to_string()),
        }
    }

    fn into_result(self) -> Result<R, TaskError> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Failed(failure) => Err(failure.into()),
            Self::Lost {
                name,
                pid,
                task,
                code,
                signal,
                out_of_memory,
                peak_memory,
                last_words,
            } => Err(TaskError::Lost(WorkerLost {
                name,
                pid,
                task,
                status: ExitStatus::from_parts(code, signal),
                out_of_memory,
                peak_memory,
                last_words: last_words.into(),
            })),
            Self::Cancelled => Err(TaskError::Cancelled),
            Self::Pool(words) => Err(TaskError::Pool(Error::new(ErrorKind::Os, words))),
        }
    }
}

impl PoolProxy {
    /// Runs a function on every item, in the server's workers; the results come in the order of
    /// the items.
    ///
    /// # Errors
    /// The first task's error, as [`Pool::map`]; [`TaskError::Pool`] if the server is gone.
    pub fn map<F, T, I>(&self, function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.map_each(function, items)?.into_iter().collect()
    }

    /// The same, with an outcome for every item.
    ///
    /// # Errors
    /// [`TaskError::Pool`] if the server is gone; the items' own errors are in the list.
    #[allow(clippy::type_complexity)]
    pub fn map_each<F, T, I>(
        &self,
        _function: F,
        items: I,
    ) -> Result<Vec<Result<F::Output, TaskError>>, TaskError>
    where
        F: Target<(T,)>,
        F::Output: Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        let items: Vec<T> = items.into_iter().collect();
        let ended: Vec<Ended<F::Output>> = image::offset_of(run::<F, T>)
            .ok_or_else(managed::not_ours)
            .and_then(|entry| Ok(self.referent.ask(Op::Enter)?.number(entry)))
            .map_err(CallError::from)
            .and_then(|ask| managed::call(ask, &(items,)))
            .map_err(|error| match error {
                CallError::Panicked(panic) => TaskError::Panicked(panic),
                CallError::Arguments(error) => TaskError::Arguments(error),
                CallError::Result(error) => TaskError::Result(error),
                other => TaskError::Pool(other.into()),
            })?;
        Ok(ended.into_iter().map(Ended::into_result).collect())
    }
}

/// Runs a map in the server.
fn run<F, T>(entering: &mut Entering<'_>)
where
    F: Target<(T,)>,
    F::Output: Serialize + DeserializeOwned,
    T: Serialize + DeserializeOwned,
{
    let Some(workers) = entering.object.as_any().downcast_ref::<RwLock<Workers>>() else {
        return entering.call.unknown();
    };
    let function = image::conjure::<F>();
    entering.call.run(|(items,): (Vec<T>,)| {
        managed::macro_support::read(workers, |workers| {
            let results = workers.0.map_each(function, items);
            results.into_iter().map(Ended::of).collect::<Vec<_>>()
        })
    });
}
