//! Handles as futures, for any runtime.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::task::{Context, Poll};

use super::handle::{Handle, MapHandle, TaskHandle};
use crate::error::Result;
use crate::process::TaskError;

/// Waits for a handle, and lets go of it.
struct Await<R> {
    /// Until the outcome has been given.
    handle: Option<Handle<R>>,
}

impl<R: 'static> Await<R> {
    fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Vec<Result<R, TaskError>>>> {
        let Some(handle) = &self.handle else {
            // Nobody asks a future again that has given its result; there is nothing to give.
            return Poll::Pending;
        };
        let watched = handle.watch(context.waker());
        if matches!(watched, Ok(false)) {
            return Poll::Pending;
        }
        let results = watched.and_then(|_| handle.get());
        self.handle = None;
        Poll::Ready(results)
    }
}

impl<R> Drop for Await<R> {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.unwatch();
        }
    }
}

/// What `.await` makes of a [`TaskHandle`].
///
/// Dropping it changes nothing: the task is done all the same, and its result is not kept.
/// Awaiting `&mut future`, as in a `select!`, keeps it for another time.
///
/// # Errors
/// As [`TaskHandle::get`]; and [`TaskError::Pool`] with kind `Unsupported` for a pool of
/// forked workers, which has no thread that looks after it while nobody waits.
///
/// # Examples
/// ```
/// use bunshin::{Pool, StartMethod};
/// use std::future::IntoFuture;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// let pool = Pool::builder().workers(1).start_method(StartMethod::Spawn).build()?;
/// let answer = pool.apply_async(|a: u32, b: u32| a * b, (6, 7)).into_future();
/// assert_eq!(runtime.block_on(answer)?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a future does nothing until it is awaited"]
pub struct TaskFuture<R> {
    awaited: Await<R>,
}

/// What `.await` makes of a [`MapHandle`].
///
/// Dropping it changes nothing: the tasks are done all the same.
///
/// # Errors
/// As [`MapHandle::get`], and as [`TaskFuture`].
///
/// # Examples
/// ```
/// use bunshin::{Pool, StartMethod};
///
/// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// let pool = Pool::builder().workers(2).start_method(StartMethod::Spawn).build()?;
/// let squares = runtime.block_on(async { pool.map_async(|n: u64| n * n, 0..4).await })?;
/// assert_eq!(squares, [0, 1, 4, 9]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a future does nothing until it is awaited"]
pub struct MapFuture<R> {
    awaited: Await<R>,
}

// Nothing in them is looked at in place.
impl<R> Unpin for TaskFuture<R> {}
impl<R> Unpin for MapFuture<R> {}

impl<R: 'static> Future for TaskFuture<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.awaited.poll(context).map(|results| {
            let mut results = results.map_err(TaskError::Pool)?;
            results.pop().unwrap_or(Err(TaskError::Cancelled))
        })
    }
}

impl<R: 'static> Future for MapFuture<R> {
    type Output = Result<Vec<R>, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.awaited
            .poll(context)
            .map(|results| results.map_err(TaskError::Pool)?.into_iter().collect())
    }
}

impl<R: 'static> IntoFuture for TaskHandle<R> {
    type Output = Result<R, TaskError>;
    type IntoFuture = TaskFuture<R>;

    fn into_future(self) -> TaskFuture<R> {
        let handle = Some(self.handle);
        TaskFuture {
            awaited: Await { handle },
        }
    }
}

impl<R: 'static> IntoFuture for MapHandle<R> {
    type Output = Result<Vec<R>, TaskError>;
    type IntoFuture = MapFuture<R>;

    fn into_future(self) -> MapFuture<R> {
        let handle = Some(self.handle);
        MapFuture {
            awaited: Await { handle },
        }
    }
}

impl<R> fmt::Debug for TaskFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskFuture").finish_non_exhaustive()
    }
}

impl<R> fmt::Debug for MapFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapFuture").finish_non_exhaustive()
    }
}
