//! Pools whose workers have a state, which each task is given.
//!
//! A worker has one thread and one state. It is made by the initializer and dropped by the
//! function that the worker runs last.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::batch::alone;
use super::handle::{MapHandle, TaskHandle};
use super::imap::Imap;
use super::{Pool, PoolBuilder};
use crate::codec::outcome::{Call, Failure};
use crate::codec::serde::decode;
use crate::error::Result;
use crate::process::{Target, TaskError, panic, target};
use crate::sys::image;

thread_local! {
    /// The state of this worker.
    static STATE: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// What a [`StatefulPool`] is to be: made by [`PoolBuilder::state`].
#[must_use = "a builder makes a pool when it is built"]
pub struct StatefulPoolBuilder<S> {
    builder: PoolBuilder,
    state: PhantomData<fn() -> S>,
}

impl PoolBuilder {
    /// Has each worker make a state before its first task, of which each of its tasks gets a
    /// `&mut`. It stands in the place of [`initializer`](Self::initializer) and
    /// [`on_exit`](Self::on_exit).
    ///
    /// The arguments are encoded once; each worker gets its own. If making the state panics,
    /// the pool is broken, as with an initializer. A task that panics leaves the state as it
    /// is then.
    ///
    /// # Examples
    /// ```
    /// use bunshin::Pool;
    ///
    /// fn count(tasks: &mut u32, n: u32) -> (u32, u32) {
    ///     *tasks += 1;
    ///     (*tasks, n)
    /// }
    ///
    /// let pool = Pool::builder().workers(1).state(|from: u32| from, (10,)).build()?;
    /// assert_eq!(pool.map(count, [7, 8])?, [(11, 7), (12, 8)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn state<M, Args>(self, make: M, args: Args) -> StatefulPoolBuilder<M::Output>
    where
        M: Target<Args>,
        M::Output: 'static,
        Args: Serialize + DeserializeOwned + 'static,
    {
        let _ = make;
        StatefulPoolBuilder {
            builder: self
                .initializer_entry(target::locate_entry(make_state::<M, Args>), &args)
                .exit_entry(target::locate_entry(drop_state)),
            state: PhantomData,
        }
    }
}

impl<S: 'static> StatefulPoolBuilder<S> {
    /// Makes the pool.
    ///
    /// # Errors
    /// As [`PoolBuilder::build`].
    pub fn build(self) -> Result<StatefulPool<S>> {
        Ok(StatefulPool {
            pool: self.builder.build()?,
            state: PhantomData,
        })
    }
}

/// A pool whose workers have a state each, a `&mut` of which each task is given first.
///
/// What does not concern the state is done by the [`pool`](Self::pool) behind it.
///
/// # Examples
/// See [`PoolBuilder::state`].
pub struct StatefulPool<S> {
    pool: Pool,
    state: PhantomData<fn() -> S>,
}

impl<S: 'static> StatefulPool<S> {
    /// The pool, for tasks that do not use the state, and to close it.
    ///
    /// # Examples
    /// ```
    /// let pool = bunshin::Pool::builder().workers(1).state(|| 7u32, ()).build()?;
    /// assert_eq!(pool.pool().apply(|n: u32| n + 1, (1,))?, 2);
    /// pool.pool().close();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// See [`Pool::apply`].
    ///
    /// # Errors
    /// As there.
    pub fn apply<F, T, R>(&self, function: F, item: T) -> Result<R, TaskError>
    where
        F: Fn(&mut S, T) -> R + Copy + 'static,
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let entry = self.entry(function);
        self.pool.batch().apply_entry(entry, (item,))
    }

    /// See [`Pool::map`].
    ///
    /// # Errors
    /// As there.
    pub fn map<F, T, R, I>(&self, function: F, items: I) -> Result<Vec<R>, TaskError>
    where
        F: Fn(&mut S, T) -> R + Copy + 'static,
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        self.map_each(function, items).into_iter().collect()
    }

    /// See [`Pool::map_each`].
    pub fn map_each<F, T, R, I>(&self, function: F, items: I) -> Vec<Result<R, TaskError>>
    where
        F: Fn(&mut S, T) -> R + Copy + 'static,
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        let entry = self.entry(function);
        self.pool.batch().map_entry(entry, alone(items))
    }

    /// See [`Pool::apply_async`].
    pub fn apply_async<F, T, R>(&self, function: F, item: T) -> TaskHandle<R>
    where
        F: Fn(&mut S, T) -> R + Copy + 'static,
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let entry = self.entry(function);
        self.pool.batch().apply_entry_async(entry, (item,))
    }

    /// See [`Pool::map_async`].
    pub fn map_async<F, T, R, I>(&self, function: F, items: I) -> MapHandle<R>
    where
        F: Fn(&mut S, T) -> R + Copy + 'static,
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        let entry = self.entry(function);
        self.pool.batch().map_entry_async(entry, alone(items))
    }

    /// See [`Pool::imap`].
    pub fn imap<F, T, R, I>(
        &self,
        function: F,
        items: I,
    ) -> Imap<impl Iterator<Item = (T,)> + use<F, S, T, R, I>, R>
    where
        F: Fn(&mut S, T) -> R + Copy + 'static,
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        let entry = self.entry(function);
        self.pool.batch().imap_entry(entry, alone(items), true)
    }

    fn entry<F, T, R>(&self, _function: F) -> Result<u64>
    where
        F: Fn(&mut S, T) -> R + Copy + 'static,
        T: DeserializeOwned,
        R: Serialize,
    {
        target::locate_entry(run_with_state::<F, S, T, R>)
    }
}

impl<S> fmt::Debug for StatefulPool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatefulPool").field(&self.pool).finish()
    }
}

impl<S> fmt::Debug for StatefulPoolBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatefulPoolBuilder")
            .field(&self.builder)
            .finish()
    }
}

/// Decodes what a call is given. `None` if it cannot be; the call says so then.
fn arguments<T: DeserializeOwned>(call: &mut Call) -> Option<T> {
    let decoded = panic::catch(call.is_quiet, || {
        decode::<T>(call.input.as_bytes(), &mut call.incoming)
    });
    let failure = match decoded {
        Ok(Ok(arguments)) => {
            // What the arguments did not take.
            call.incoming = Default::default();
            return Some(arguments);
        }
        Ok(Err(error)) => Failure::Arguments(error.to_string()),
        Err(failure) => Failure::Arguments(target::said(failure)),
    };
    target::fail(call, &failure);
    None
}

fn make_state<M, Args>(call: &mut Call)
where
    M: Target<Args>,
    M::Output: 'static,
    Args: DeserializeOwned,
{
    let Some(arguments) = arguments::<Args>(call) else {
        return;
    };
    let make = image::conjure::<M>();
    match panic::catch(call.is_quiet, || make.call(arguments)) {
        Ok(state) => STATE.set(Some(Box::new(state))),
        Err(failure) => target::fail(call, &failure),
    }
}

fn drop_state(call: &mut Call) {
    // Dropping it is the user's code.
    let _ = panic::catch(call.is_quiet, || STATE.take());
}

fn run_with_state<F, S, T, R>(call: &mut Call)
where
    F: Fn(&mut S, T) -> R + Copy + 'static,
    S: 'static,
    T: DeserializeOwned,
    R: Serialize,
{
    let Some((argument,)) = arguments::<(T,)>(call) else {
        return;
    };
    let function = image::conjure::<F>();
    let result = panic::catch(call.is_quiet, || {
        STATE.with_borrow_mut(|state| {
            let state = state.as_mut().and_then(|state| state.downcast_mut::<S>());
            state.map(|state| function(state, argument))
        })
    });
    match result {
        Ok(Some(result)) => {
            target::finish(call, &result);
            let _ = panic::catch(call.is_quiet, move || drop(result));
        }
        Ok(None) => target::fail(
            call,
            &Failure::Arguments("the worker has no such state".into()),
        ),
        Err(failure) => target::fail(call, &failure),
    }
}
